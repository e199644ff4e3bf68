"""A hospital: a cluster with three RIS domains and stations of each policy; orders, images, and peers of both sides."""

import itertools
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster_support import Answer, RealCluster, image
from hl7_partners import free_port
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom import AE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind
from raw_dicom import Client as Modality
from waiting import wait_for

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.client import Cluster, Study
from radmesh.client.model import HistoryEntry, Order
from radmesh.runtime.errors import RadmeshError

PASSWORD = "correct horse battery"
_VT, _FS_CR = b"\x0b", b"\x1c\r"
_numbers = itertools.count(1)

CONFIGURATION = """
[mesh]
connectivity_managers = 2

[connectivity]
ack_timeout = 1

[[domains]]
name = "clinic"
issuer = "CLINIC"
report_to = "127.0.0.1:{clinic}"

[[domains]]
name = "town"
issuer = "TOWN"
manager = 1
hl7_port = {town_hl7}
report_to = "127.0.0.1:{town}"

[[domains]]
name = "village"
issuer = "VILLAGE"
manager = 1
hl7_port = {village_hl7}
feed_timeout = 2

[[stations]]
ae_title = "CT1"
domain = "clinic"
verification = "required"

[[stations]]
ae_title = "CT2"
domain = "clinic"

[[stations]]
ae_title = "CT3"
domain = "clinic"
verification = "off"

[[stations]]
ae_title = "TOWN1"
domain = "town"
verification = "required"

[[stations]]
ae_title = "VILL1"
domain = "village"
verification = "required"

[[stations]]
ae_title = "VILL2"
domain = "village"
verification = "required"
on_ris_unavailable = "hold"

[[stations]]
ae_title = "ANY1"
domain = "by-object"
"""


class Hospital(RealCluster):
    """A cluster, its RIS receivers' ports, and who works there: `rad` (radiologist) and `tech` (technologist)."""

    def __init__(self, data: Path) -> None:
        self.report_ports = {"clinic": free_port(), "town": free_port()}
        data.parent.mkdir(parents=True, exist_ok=True)
        self.configuration = data.parent / "radmesh.toml"
        self.hl7_ports = {"clinic": 0, "town": free_port(), "village": free_port()}
        ports = {f"{name}_hl7": port for name, port in self.hl7_ports.items()}
        text = CONFIGURATION.format(**self.report_ports, **ports)
        self.configuration.write_text(text)
        super().__init__(data, "--config", str(self.configuration))
        try:
            self._settle(data)
        except BaseException:
            super().close()
            raise

    def _settle(self, data: Path) -> None:
        secret = data.parent / "secret"
        secret.write_text(PASSWORD)
        for name, role in (("rad", "radiologist"), ("tech", "technologist")):
            added = self.run("users", "add", name, "--role", role, "--new-password-file", secret)
            assert added.code == 0, added
        self.admin = self.client()
        self.hl7_ports["clinic"] = int(self.ready["ports"]["hl7"])

    # -- people

    def as_user(self, name: str, *arguments: object) -> Answer:
        return self.run(*arguments, "--user", name, "--json", RADMESH_PASSWORD=PASSWORD)

    def user(self, name: str) -> Cluster:
        return self.client(name, PASSWORD)

    def seen_by(self, name: str, study: str) -> dict[str, Any] | None:
        """The study as a person finds it, if so."""
        answer = self.as_user(name, "find", "--limit", "1000")
        assert answer.code == 0, answer
        return next((s for s in answer.json["studies"] if s["study_instance_uid"] == study), None)

    def study(self, uid: str) -> Study:
        return self.admin.study(uid).study

    def orders(self, accession: str) -> list[Order]:
        """Orders with an accession number; none while they cannot be asked for."""
        try:
            return list(self.admin.orders(accession_number=accession))
        except RadmeshError as error:
            assert error.transient, error
            return []

    def verification(self, uid: str) -> tuple[str, str]:
        """Verification and reason; empty while the study is not registered."""
        try:
            found = list(self.admin.find(study_instance_uids=[uid]))
        except RadmeshError as error:
            assert error.transient, error
            return "", ""
        return (found[0].verification, found[0].verification_reason) if found else ("", "")

    def wait_verification(self, uid: str, state: str, reason: str = "", *, seconds: float = 15.0) -> None:
        seen: set[tuple[str, str]] = set()

        def there() -> bool:
            seen.add(now := self.verification(uid))
            return now == (state, reason)

        try:
            wait_for(there, seconds)
        except AssertionError:
            raise AssertionError(f"not {state} {reason} but {seen}") from None

    def moves(self, uid: str, axis: str = "verification") -> list[HistoryEntry]:
        return [entry for entry in self.admin.history(uid) if entry.axis == axis]

    def close(self) -> None:
        self.admin.close()
        super().close()

    # -- stations

    def found_by_station(self, station: str, study: str) -> bool:
        """Whether a station's C-FIND finds the study."""
        asked = Dataset()
        asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", study
        ae = AE(station)
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        association = ae.associate("127.0.0.1", int(self.ready["ports"]["dicom"]), ae_title="RADMESH")
        assert association.is_established
        answers = list(association.send_c_find(asked, StudyRootQueryRetrieveInformationModelFind))
        association.release()
        assert answers[-1][0].Status == 0
        return len(answers) == 2

    def studies_of_patient(self, station: str, patient_id: str) -> list[int]:
        """The counts that a station is told of a Patient ID, one for each patient that has it."""
        answer = self.inside("QueryService").FindPatients(
            database_pb2.FindPatientsRequest(patient_id=patient_id, viewer_station=station)
        )
        return [patient.study_count for patient in answer.patients]

    def instances_seen(self, station: str, study: str) -> list[tuple[str, int]]:
        """(SOP Instance UID, VerificationState) of what a station is told of a study."""
        try:
            answer = self.inside("QueryService").FindInstances(
                database_pb2.FindInstancesRequest(study_instance_uid=study, viewer_station=station)
            )
        except RadmeshError as error:
            assert error.reason == "STUDY_NOT_FOUND", error
            return []
        return [(i.identity.sop_instance_uid, i.verification) for i in answer.instances]

    def send(self, station: str, *images: tuple[str, bytes]) -> list[int]:
        """Send over one association; return the status of each C-STORE."""
        with Modality(int(self.ready["ports"]["dicom"]), calling=station) as modality:
            statuses = [modality.store(data, uid).status for uid, data in images]
            modality.release()
        return statuses

    # -- HL7

    def tell(self, message: bytes, domain: str = "clinic") -> str:
        """Send a message over a socket of its own; return the acknowledgement code."""
        return acknowledgement(ask(self.hl7_ports[domain], message))

    # -- what breaks

    def pids(self, component: str) -> list[int]:
        ready = json.loads((self.data / "ready.json").read_bytes())
        return list(ready["pids"][component])

    @contextmanager
    def without(self, how: str, component: str, number: int = 0) -> Iterator[None]:
        """Take a process away: a "silent" one stands still, a "gone" one is killed and not started again meanwhile."""
        pid = self.pids(component)[number]
        still = pid if how == "silent" else self.process.pid
        os.kill(still, signal.SIGSTOP)
        try:
            if how == "gone":
                os.kill(pid, signal.SIGKILL)
            yield
        finally:
            os.kill(still, signal.SIGCONT)
        if how == "gone":
            wait_for(lambda: self.back(component, pid), 30)

    def kill(self, component: str, number: int = 0) -> None:
        """End a process by SIGKILL, and wait until it is back."""
        pid = self.pids(component)[number]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.back(component, pid), 30)

    def back(self, component: str, gone: int) -> bool:
        try:
            pids = self.pids(component)
        except OSError:
            return False
        return gone not in pids and len(pids) == (2 if component == "connectivity-manager" else 1)


# -- images


def ct(study: str, *, number: int = 1, **values: Any) -> tuple[str, bytes]:
    """A small CT image as (SOP Instance UID, data set in Explicit VR Little Endian)."""
    ds = image(
        0, StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1", SOPInstanceUID=f"{study}.1.{number}", **values
    )
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_dataset(file, ds)
    return f"{study}.1.{number}", file.getvalue()


def new_study() -> str:
    """A Study Instance UID that no test had before."""
    return f"2.25.88.{os.getpid()}.{next(_numbers)}"


# -- HL7 messages


def segment(name: str, values: Mapping[int, str]) -> str:
    return "|".join([name, *(values.get(n, "") for n in range(1, max(values) + 1))])


def msh(kind: str, control_id: str = "", *, facility: str = "CLINIC", time: str = "20260102030405") -> str:
    return f"MSH|^~\\&|RIS|{facility}|RADMESH|{facility}|{time}||{kind}|{control_id or new_id()}|P|2.5.1"


def new_id() -> str:
    return f"T{os.getpid()}-{next(_numbers)}"


def pid(patient_id: str, name: str = "Doe^John", *, issuer: str = "", birth: str = "19700101", sex: str = "M") -> str:
    return segment("PID", {1: "1", 3: f"{patient_id}^^^{issuer}" if issuer else patient_id, 5: name, 7: birth, 8: sex})


def orm(
    accession: str,
    patient_id: str,
    name: str = "Doe^John",
    *,
    study: str = "",
    control: str = "NW",
    modality: str = "CT",
    scheduled: str = "20260102030000",
    **header: str,
) -> bytes:
    """An ORM^O01: an order, its accession number in OBR-18."""
    order = {
        1: "1",
        2: accession,
        3: f"F{accession}",
        4: "CTABD^CT abdomen^L",
        18: accession,
        24: modality,
        36: scheduled,
    }
    parts = [
        msh("ORM^O01^ORM_O01", **header),
        pid(patient_id, name),
        segment("ORC", {1: control, 2: accession, 3: f"F{accession}", 5: "SC"}),
        segment("OBR", order),
    ]
    if study:
        parts.append(f"ZDS|{study}^RADMESH^Application^DICOM")
    return "".join(part + "\r" for part in parts).encode()


def adt(trigger: str, patient_id: str, name: str = "Doe^John", *, prior: str = "", **header: str) -> bytes:
    """An ADT of one patient; `prior` is whom A40 merges into it."""
    parts = [msh(f"ADT^{trigger}", **header), f"EVN|{trigger}|20260102030405", pid(patient_id, name)]
    if prior:
        parts.append(f"MRG|{prior}")
    return "".join(part + "\r" for part in parts).encode()


def ask(port: int, message: bytes, *, timeout: float = 20.0) -> bytes:
    """Send one message in an MLLP frame, and return the answer's bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(_VT + message + _FS_CR)
        return read_frame(connection)


def read_frame(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(_FS_CR):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {len(data)} bytes of an answer")
        data += piece
    assert data.startswith(_VT)
    return data[1:-2]


def acknowledgement(answer: bytes | str) -> str:
    """MSA-1."""
    text = answer if isinstance(answer, str) else answer.decode()
    return next(s for s in text.replace("\n", "\r").split("\r") if s.startswith("MSA|")).split("|")[1]


VERIFIED = common_pb2.VERIFICATION_STATE_VERIFIED
HELD = common_pb2.VERIFICATION_STATE_HELD


def write(folder: Path, messages: Sequence[bytes]) -> list[Path]:
    """Write messages into files, a message each."""
    paths = []
    for number, message in enumerate(messages):
        path = folder / f"{number}.hl7"
        path.write_bytes(message)
        paths.append(path)
    return paths
