"""Every program of others that can be had, against a whole cluster: what each does is the matrix of docs/interop.md."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cluster_support import data_set, image, save
from hl7_partners import node
from partner_matrix import cells, meetings, met
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom import sop_class as sop
from ris_support import acknowledgement, ask, orm
from station_support import Edge, dcmtk, free_ports, present, storescp
from waiting import wait_for

from radmesh.client.model import Instance, Station

# PixelMed's query asks for the images of this study and series, and for no other.
STUDY = "1.2.840.113619.2.5.1762386977.1328.985934491.590"
SERIES = "1.2.840.113619.2.5.1762386977.1328.985934491.643"
NAME = "Größe^Ümläut"
NUMBER = 3
PIXELMED = "/usr/share/java/pixelmed.jar"


@pytest.fixture(scope="module")
def files(edge: Edge) -> list[Path]:
    """The study that all ask for, at the cluster."""
    folder = edge.folder / "partners"
    folder.mkdir(exist_ok=True)
    made = [saved(folder, n, PatientID="PARTNERS") for n in range(1, NUMBER + 1)]
    edge.store(*made)
    return made


def saved(folder: Path, number: int, **values: Any) -> Path:
    uid = f"{SERIES}.{number}"
    values = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": NAME, **values}
    return save(
        folder, 950, StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=uid, InstanceNumber=number,
        **values,
    )  # fmt: skip


def own(edge: Edge, program: str, number: int) -> Path:
    """A file that a program is to send: a study of its own."""
    folder = edge.folder / "partners" / program
    folder.mkdir(parents=True, exist_ok=True)
    return save(folder, number, PatientName=NAME, SpecificCharacterSet="ISO_IR 100")


def arrived(edge: Edge, path: Path) -> str:
    """How an object came to the cluster: with every byte, or written anew with every value."""
    sent = dcmread(path)
    (came,) = edge.cluster.client().instances(sent.StudyInstanceUID)
    return "yes" if came.sha256 == hashlib.sha256(data_set(path)).hexdigest() else _anew(edge, sent, came)


def _anew(edge: Edge, sent: Any, came: Instance) -> str:
    into = edge.folder / "anew" / came.sop_instance_uid
    assert edge.cluster.run("get", sent.StudyInstanceUID, "--as-stored", "--out", into).code == 0
    (path,) = (path for path in into.rglob("*") if path.is_file())
    got = dcmread(path)
    assert (got.PatientName, got.PatientID) == (sent.PatientName, sent.PatientID)
    assert got.PixelData == sent.PixelData
    return "yes, written anew"


def same(folder: Path, files: list[Path]) -> str:
    """How objects came to a station: with every byte, or written anew with every value."""
    there = {str(ds.SOPInstanceUID): (path, ds) for path in received(folder) for ds in [dcmread(path, force=True)]}
    assert set(there) == {path.stem for path in files}
    if all(data_set(there[path.stem][0]) == data_set(path) for path in files):
        return "yes"
    for path in files:
        was, ds = dcmread(path), there[path.stem][1]
        assert (ds.PatientName, ds.PixelData) == (was.PatientName, was.PixelData)
    return "yes, written anew"


def received(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def sent_to(edge: Edge, station: str) -> None:
    answer = edge.cluster.run("send", STUDY, "--to", station, "--wait", "--json")
    assert answer.json["sendings"][0]["state"] == "SUCCEEDED", answer


def ran(*command: object, code: int | None = 0, environment: Mapping[str, str] = os.environ) -> str:
    """What a program says."""
    done = subprocess.run(
        [*map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip
    assert code is None or done.returncode == code, (done.returncode, done.stdout)
    return done.stdout


@contextmanager
def server(port: int, *command: object, folder: Path, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """A station's server, for as long as it is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen([*map(str, command)], cwd=folder, stdout=log, stderr=log, env=environment)
        try:
            wait_for(lambda: process.poll() is not None or _listens(port), what=str(command))
            assert process.poll() is None
            yield
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    """Whether a port is taken; asked without a connection, of which some count the first for their only one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@pytest.fixture(scope="module")
def ports(edge: Edge, files: list[Path]) -> Mapping[str, int]:
    """Where the servers of more stations listen, added while the cluster runs."""
    cluster, taken = edge.cluster.client(), iter(free_ports().values())
    made = {name: next(taken) for name in ("CTN", "DCMJS", "GDCM", "PIXELMED")}
    for name, port in made.items():
        syntaxes = (ImplicitVRLittleEndian,) if name == "GDCM" else ()
        cluster.set_station(Station(name, name, host="127.0.0.1", port=port, transfer_syntaxes=syntaxes))
    unknown = 0xA801
    wait_for(
        lambda: all(
            edge.move(name, "QueryRetrieveLevel=STUDY", f"StudyInstanceUID={STUDY}.0").status != unknown
            for name in made
        )
    )
    return made


@pytest.fixture(scope="module")
def scheduled(edge: Edge) -> str:
    """The accession number of an order on the worklist."""
    today = date.today().strftime("%Y%m%d")  # noqa: DTZ011 - as a modality would ask
    port = int(edge.cluster.ready["ports"]["hl7"])
    message = orm("PARTNER1", "WPARTNER1", "Müller^Eva", modality="MR", scheduled=f"{today}0900")
    assert acknowledgement(ask(port, message)) == "AA"
    ae = AE("FINDER")
    ae.add_requested_context(sop.ModalityWorklistInformationFind)

    def there() -> bool:
        asked = Dataset()
        asked.AccessionNumber = "PARTNER1"
        association = ae.associate("127.0.0.1", edge.port, ae_title="RADMESH")
        answers = list(association.send_c_find(asked, sop.ModalityWorklistInformationFind))
        association.release()
        return len(answers) == 2

    wait_for(there)
    return "PARTNER1"


# -- DCMTK


def test_dcmtk_echoes_also_over_tls(edge: Edge) -> None:
    assert dcmtk("echoscu", "-aec", "RADMESH", *edge.address).returncode == 0
    met("DCMTK", "echo")
    tls = ("+tla", "+cf", edge.cluster.ready["ca_certificate"], "localhost", edge.cluster.ready["ports"]["dicom_tls"])
    assert dcmtk("echoscu", "-aec", "RADMESH", *tls).returncode == 0
    met("DCMTK", "TLS")


def test_dcmtk_stores(edge: Edge) -> None:
    by_storescu, by_dcmsend = own(edge, "storescu", 951), own(edge, "dcmsend", 952)
    edge.store(by_storescu)
    assert dcmtk("dcmsend", "-aec", "RADMESH", *edge.address, by_dcmsend).returncode == 0
    assert arrived(edge, by_dcmsend) == "yes"
    met("DCMTK", "store", arrived(edge, by_storescu))


def test_dcmtk_finds(edge: Edge, files: list[Path], scheduled: str) -> None:
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=PARTNERS", "-k", "StudyInstanceUID", "-k", "PatientName")
    said = dcmtk("findscu", "-S", "-aec", "RADMESH", *keys, *edge.address).stdout
    assert said.count(f"[{STUDY}") == 1, said
    met("DCMTK", "find")
    step = ("-k", f"AccessionNumber={scheduled}", "-k", "(0040,0100)[0].Modality=MR", "-k", "RequestedProcedureID")
    said = dcmtk("findscu", "-W", "-aec", "RADMESH", *step, *edge.address).stdout
    assert said.count("Find Response:") == 1, said
    assert f"[{scheduled}]" in said
    met("DCMTK", "worklist")


def test_dcmtk_moves_gets_and_is_sent_to(edge: Edge, files: list[Path]) -> None:
    study = ("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={STUDY}")
    with storescp(edge.folder / "partner-storescp", edge.ports["STORESCP"], "+B") as folder:
        assert edge.move("STORESCP", *study).numbers["completed"] == NUMBER
        met("DCMTK", "move", same(folder, files))
        shutil.rmtree(folder)
        folder.mkdir()
        sent_to(edge, "STORESCP")
        met("DCMTK", "is sent to", same(folder, files))
    assert edge.get(edge.folder / "partner-getscu", *study, options=("+B",)).numbers["completed"] == NUMBER
    met("DCMTK", "get", same(edge.folder / "partner-getscu", files))


def test_termscu_ends_nothing(edge: Edge) -> None:
    """It asks, with a private SOP class of DCMTK's own, that the server end."""
    before = edge.cluster.ready["pids"]["gateway-proxy"]
    said = dcmtk("termscu", "-v", "-aec", "RADMESH", *edge.address)
    assert said.returncode, said.stdout
    assert dcmtk("echoscu", "-aec", "RADMESH", *edge.address).returncode == 0
    assert all(Path(f"/proc/{pid}").exists() for pid in before)


# -- GDCM


def gdcm(edge: Edge, *arguments: object) -> str:
    """Run GDCM's one program, which crashes when the peer answers its release: ours, or DCMTK's."""
    return ran(
        present("gdcmscu"), "--aetitle", "GDCM", "--call", "RADMESH", *arguments, *edge.address, code=-signal.SIGABRT
    )


def test_gdcm(edge: Edge, files: list[Path], ports: Mapping[str, int]) -> None:
    said = gdcm(edge, "--echo", "-D")
    assert "ProtocolStream as nullptr is invalid" in said
    met("GDCM", "echo", "yes ¹")
    path = own(edge, "gdcm", 953)
    gdcm(edge, "--store", "-i", path)
    met("GDCM", "store", f"{arrived(edge, path)} ¹")
    gdcm(edge, "--find", "--studyroot", "--study", "--key", "10,20=PARTNERS", "--key", "20,d=")
    met("GDCM", "find", "no ¹")
    into = edge.folder / "gdcm"
    into.mkdir()
    port, key = ports["GDCM"], f"20,d={STUDY}"
    gdcm(edge, "--move", "--studyroot", "--study", "--key", key, "--port-scp", port, "-o", into)
    met("GDCM", "move", f"{same(into, files)} ¹ ⁵")


# -- PixelMed


def pixelmed(name: str, *arguments: object, options: tuple[str, ...] = (), code: int | None = 0) -> str:
    """Run a class of PixelMed; every one of them says what came of it."""
    present("VerificationSOPClassSCU")
    return ran("java", "-XX:TieredStopAtLevel=1", "-Xshare:auto", *options, "-cp", PIXELMED,
               f"com.pixelmed.network.{name}", *arguments, code=code)  # fmt: skip


def test_pixelmed_echoes_also_over_tls(edge: Edge) -> None:
    assert "was successful" in pixelmed("VerificationSOPClassSCU", *edge.address, "RADMESH", "PIXELMED", "NONSECURE")
    met("PixelMed", "echo")
    store = edge.folder / "pixelmed.p12"
    ran("keytool", "-importcert", "-noprompt", "-alias", "ca", "-file", edge.cluster.ready["ca_certificate"],
        "-keystore", store, "-storepass", "changeit")  # fmt: skip
    trusted = (f"-Djavax.net.ssl.trustStore={store}", "-Djavax.net.ssl.trustStorePassword=changeit")
    tls = ("localhost", edge.cluster.ready["ports"]["dicom_tls"], "RADMESH", "PIXELMED", "SECURE")
    assert "Received fatal alert: handshake_failure" in pixelmed("VerificationSOPClassSCU", *tls, options=trusted)
    met("PixelMed", "TLS", "no ²")


def test_pixelmed_stores(edge: Edge) -> None:
    path, ds = own(edge, "pixelmed", 954), image(954)
    pixelmed("StorageSOPClassSCU", *edge.address, "RADMESH", "PIXELMED", path, ds.SOPClassUID, ds.SOPInstanceUID)
    met("PixelMed", "store", arrived(edge, path))


def test_pixelmed_finds_moves_and_is_sent_to(edge: Edge, files: list[Path], ports: Mapping[str, int]) -> None:
    said = pixelmed("FindSOPClassSCU", *edge.address, "RADMESH", "PIXELMED")
    assert all(path.stem in said for path in files), said
    met("PixelMed", "find")
    folder = edge.folder / "pixelmed"
    listener = ("java", "-XX:TieredStopAtLevel=1", "-cp", PIXELMED, "com.pixelmed.network.StorageSOPClassSCPDispatcher",
                ports["PIXELMED"], "PIXELMED", folder)  # fmt: skip
    with server(ports["PIXELMED"], *listener, folder=folder):
        pixelmed("MoveSOPClassSCU", *edge.address, "RADMESH", "PIXELMED", "PIXELMED", "STUDY", STUDY)
        wait_for(lambda: len(received(folder)) == NUMBER)
        met("PixelMed", "move", same(folder, files))
        for path in received(folder):
            path.unlink()
        sent_to(edge, "PIXELMED")
        met("PixelMed", "is sent to", same(folder, files))


# -- CTN


def test_ctn_echoes_and_asks_for_the_worklist(edge: Edge, scheduled: str) -> None:
    said = ran(present("dicom_echo"), "-a", "CTN", "-c", "RADMESH", *edge.address)
    assert "Verification Response" in said, said
    met("CTN", "echo")
    said = ran(present("mwlQuery"), "-a", "CTN", "-c", "RADMESH", *edge.address)
    assert "IDENTIFIER_INVALID: identifier: there is none" in said, said
    met("CTN", "worklist", "no ³")


def test_ctn_stores_and_is_sent_to(edge: Edge, files: list[Path], ports: Mapping[str, int]) -> None:
    path = own(edge, "ctn", 955)
    said = ran(present("send_image"), "-a", "CTN", "-c", "RADMESH", "-r", *edge.address, path)
    met("CTN", "store", arrived(edge, path))
    folder = edge.folder / "ctn"
    listener = (present("simple_storage"), "-i", "-s", "-x", folder, ports["CTN"])
    with server(ports["CTN"], *listener, folder=folder):
        sent_to(edge, "CTN")
        wait_for(lambda: len(received(folder)) == NUMBER, what=said)
        met("CTN", "is sent to", same(folder, files))


# -- pynetdicom


def by_pynetdicom(edge: Edge, *classes: Any, **more: Any) -> Any:
    ae = AE("PYNET")
    for each in classes:
        ae.add_requested_context(each)
    association = ae.associate("127.0.0.1", edge.port, ae_title="RADMESH", **more)
    assert association.is_established
    return association


def test_pynetdicom(edge: Edge, files: list[Path], scheduled: str) -> None:
    association = by_pynetdicom(
        edge, sop.Verification, CTImageStorage, sop.StudyRootQueryRetrieveInformationModelFind,
        sop.ModalityWorklistInformationFind, sop.ModalityPerformedProcedureStep,
    )  # fmt: skip
    assert association.send_c_echo().Status == 0
    met("pynetdicom", "echo")
    path = own(edge, "pynetdicom", 956)
    assert association.send_c_store(path).Status == 0
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.PatientID, asked.PatientName = "STUDY", "PARTNERS", ""
    rows = [row for _, row in association.send_c_find(asked, sop.StudyRootQueryRetrieveInformationModelFind) if row]
    assert [str(row.PatientName) for row in rows] == [NAME]
    met("pynetdicom", "find")
    asked = Dataset()
    asked.AccessionNumber = scheduled
    rows = [row for _, row in association.send_c_find(asked, sop.ModalityWorklistInformationFind) if row]
    assert [row.AccessionNumber for row in rows] == [scheduled]
    met("pynetdicom", "worklist")
    step, begun, done = generate_uid(), Dataset(), Dataset()
    begun.PerformedProcedureStepStatus, done.PerformedProcedureStepStatus = "IN PROGRESS", "COMPLETED"
    begun.ScheduledStepAttributesSequence = [Dataset()]
    begun.ScheduledStepAttributesSequence[0].StudyInstanceUID = STUDY
    mpps = sop.ModalityPerformedProcedureStep
    assert association.send_n_create(begun, mpps, step)[0].Status == 0
    assert association.send_n_set(done, mpps, step)[0].Status == 0
    met("pynetdicom", "MPPS")
    association.release()
    met("pynetdicom", "store", arrived(edge, path))


def test_pynetdicom_moves_gets_and_is_sent_to(edge: Edge, files: list[Path]) -> None:
    into = edge.folder / "pynetdicom"
    into.mkdir()

    def take(event: Any) -> int:
        (into / f"{event.request.AffectedSOPInstanceUID}.dcm").write_bytes(event.encoded_dataset())
        return 0

    listening = AE("PYNET")
    listening.add_supported_context(CTImageStorage)
    handlers = [(evt.EVT_C_STORE, take)]
    running = listening.start_server(("127.0.0.1", edge.ports["PYNET"]), block=False, evt_handlers=handlers)
    move, get = (sop.StudyRootQueryRetrieveInformationModelMove, sop.StudyRootQueryRetrieveInformationModelGet)
    role = [build_role(CTImageStorage, scp_role=True)]
    association = by_pynetdicom(edge, move, get, CTImageStorage, ext_neg=role, evt_handlers=handlers)
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", STUDY

    try:
        assert [status.Status for status, _ in association.send_c_move(asked, "PYNET", move)][-1] == 0
        met("pynetdicom", "move", same(into, files))
        shutil.rmtree(into)
        into.mkdir()
        assert [status.Status for status, _ in association.send_c_get(asked, get)][-1] == 0
        met("pynetdicom", "get", same(into, files))
        shutil.rmtree(into)
        into.mkdir()
        sent_to(edge, "PYNET")
        met("pynetdicom", "is sent to", same(into, files))
    finally:
        association.release()
        running.shutdown()


def test_pynetdicom_asks_for_commitment(edge: Edge, files: list[Path]) -> None:
    told = threading.Event()
    asked = Dataset()
    asked.TransactionUID, asked.ReferencedSOPSequence = generate_uid(), [Dataset()]
    item = asked.ReferencedSOPSequence[0]
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, files[0].stem

    def hear(event: Any) -> tuple[int, None]:
        assert event.event_type == 1
        told.set()
        return 0, None

    ae = AE("NOHOST")
    ae.add_requested_context(sop.StorageCommitmentPushModel)
    handlers = [(evt.EVT_N_EVENT_REPORT, hear)]
    association = ae.associate("127.0.0.1", edge.port, ae_title="RADMESH", evt_handlers=handlers)
    instance = sop.StorageCommitmentPushModelInstance
    assert association.send_n_action(asked, 1, sop.StorageCommitmentPushModel, instance)[0].Status == 0
    assert told.wait(60)
    association.release()
    met("pynetdicom", "commitment")


# -- dcmjs-dimse


def dcmjs(edge: Edge, *arguments: object) -> list[int]:
    """The status of each last response."""
    command, environment = node("station.cjs", edge.port, *arguments)
    statuses: list[int] = json.loads(ran(*command, environment=environment).strip().splitlines()[-1])
    return statuses


def test_dcmjs_dimse(edge: Edge, files: list[Path], scheduled: str) -> None:
    assert dcmjs(edge, "echo") == [0]
    met("dcmjs-dimse", "echo")
    path = own(edge, "dcmjs", 957)
    assert dcmjs(edge, "store", path) == [0]
    met("dcmjs-dimse", "store", arrived(edge, path))
    command, environment = node("find.cjs", edge.port, "createStudyFindRequest", '{"PatientID": "PARTNERS"}')
    assert STUDY in ran(*command, environment=environment)
    met("dcmjs-dimse", "find")
    command, environment = node("find.cjs", edge.port, "createWorklistFindRequest", "{}")
    said = ran(*command, code=None, environment=environment)
    assert "C-FIND RSP [HasDataset: true] [id: 1; status: 65281]" in said, said
    met("dcmjs-dimse", "worklist", "one row ⁴")
    assert dcmjs(edge, "mpps", STUDY) == [0, 0]
    met("dcmjs-dimse", "MPPS")


def test_dcmjs_dimse_moves_gets_and_is_sent_to(edge: Edge, files: list[Path], ports: Mapping[str, int]) -> None:
    into = edge.folder / "dcmjs-get"
    into.mkdir()
    assert dcmjs(edge, "get", STUDY, into) == [0]
    met("dcmjs-dimse", "get", same(into, files))
    folder = edge.folder / "dcmjs-listen"
    command, environment = node("station.cjs", ports["DCMJS"], "listen", folder)
    with server(ports["DCMJS"], *command, folder=folder, environment=environment):
        assert dcmjs(edge, "move", STUDY) == [0]
        met("dcmjs-dimse", "move", same(folder, files))
        shutil.rmtree(folder)
        folder.mkdir()
        sent_to(edge, "DCMJS")
        met("dcmjs-dimse", "is sent to", same(folder, files))


def test_the_matrix_is_what_these_tests_see() -> None:
    assert set(cells()) == meetings()
