"""Storage Commitment: pynetdicom and Orthanc ask, and are told on the same or a new association, also after a kill."""

import json
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_support import RealCluster
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from station_support import dcmtk
from waiting import wait_for

FILES = [Path(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm")]
OBJECTS = [(str(d.SOPClassUID), str(d.SOPInstanceUID)) for d in map(dcmread, FILES)]


class Told:
    """What a station was told: Event Type ID and Event Information of each report."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self.status = 0x0000

    def __call__(self, event: evt.Event) -> tuple[int, None]:
        self.reports.append((int(event.event_type), event.event_information))
        return self.status, None

    def of(self, transaction: str) -> tuple[int, dict[str, int]]:
        """Return the event type of a transaction's report, and the failure reason of each instance; 0 = stored."""
        (found,) = [report for report in self.reports if report[1].TransactionUID == transaction]
        stored = {str(item.ReferencedSOPInstanceUID): 0 for item in found[1].get("ReferencedSOPSequence", ())}
        failed = {
            str(item.ReferencedSOPInstanceUID): int(item.FailureReason)
            for item in found[1].get("FailedSOPSequence", ())
        }
        return found[0], stored | failed

    def heard(self, transaction: str) -> bool:
        return any(report[1].TransactionUID == transaction for report in self.reports)


@contextmanager
def listening(port: int, told: Told) -> Iterator[None]:
    """A station that takes reports on associations to it."""
    ae = AE("SCU")
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, told)])
    try:
        yield
    finally:
        server.shutdown()


class Place:
    """A cluster that can be killed and started again, and the ports of its stations."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder, self.ports = folder, ports
        grants = 'grants = ["store", "commit"]\nhost = "127.0.0.1"\n'
        (folder / "radmesh.toml").write_text(
            "".join(
                f'[[stations]]\nae_title = "{name}"\n{grants}port = {port}\n'
                for name, port in zip(("SCU", "ORTHANC"), ports, strict=True)
            )
        )
        self.start()

    def start(self) -> None:
        self.cluster = RealCluster(self.folder / "data", "--config", str(self.folder / "radmesh.toml"))

    @property
    def port(self) -> int:
        return int(self.cluster.ready["ports"]["dicom"])

    def store(self, *files: Path) -> None:
        assert dcmtk("storescu", "-R", "-aet", "SCU", "127.0.0.1", self.port, *files).returncode == 0

    def kill(self) -> None:
        """End every process at once, as a power cut would."""
        self.cluster.process.send_signal(signal.SIGKILL)
        self.cluster.process.wait()
        (self.cluster.data / "ready.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [int(each.getsockname()[1]) for each in taken]
    for each in taken:
        each.close()
    place = Place(tmp_path_factory.mktemp("commitment"), ports)
    try:
        place.store(*FILES)
        yield place
    finally:
        place.cluster.close()


def request(objects: list[tuple[str, str]], transaction: str | None = None) -> tuple[str, Dataset]:
    information = Dataset()
    information.TransactionUID = transaction or generate_uid()
    information.ReferencedSOPSequence = []
    for sop_class, uid in objects:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        information.ReferencedSOPSequence.append(item)
    return str(information.TransactionUID), information


@contextmanager
def associated(place: Place, calling: str = "SCU", told: Told | None = None) -> Iterator[Any]:
    ae = AE(calling)
    ae.add_requested_context(StorageCommitmentPushModel)
    handlers = [(evt.EVT_N_EVENT_REPORT, told)] if told else []
    association = ae.associate("127.0.0.1", place.port, ae_title="RADMESH", evt_handlers=handlers)
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def ask(place: Place, information: Dataset, calling: str = "SCU", action: int = 1) -> int:
    with associated(place, calling) as association:
        status, _ = association.send_n_action(
            information, action, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        return int(status.Status)


def test_a_station_is_told_on_a_new_association_what_is_stored(place: Place) -> None:
    told = Told()
    missing, other_class = (CTImageStorage, generate_uid()), (OBJECTS[0][0], OBJECTS[1][1])
    with listening(place.ports[0], told):
        all_stored, good = request(OBJECTS)
        assert ask(place, good) == 0
        wait_for(lambda: told.heard(all_stored), 20)
        assert told.of(all_stored) == (1, {uid: 0 for _, uid in OBJECTS})
        assert told.reports[0][1].RetrieveAETitle == "RADMESH"
        some, bad = request([OBJECTS[0], missing, other_class])
        assert ask(place, bad) == 0
        wait_for(lambda: told.heard(some), 30)
        assert told.of(some) == (2, {OBJECTS[0][1]: 0, missing[1]: 0x0112, other_class[1]: 0x0119})
        # What comes meanwhile is seen; the same transaction again begins anew.
        told.reports.clear()
        assert ask(place, request(OBJECTS, all_stored)[1]) == 0
        wait_for(lambda: told.heard(all_stored), 20)


def test_a_station_without_a_host_is_told_on_the_association_that_asked(place: Place) -> None:
    told = Told()
    transaction, information = request([*OBJECTS, (CTImageStorage, "1.2.3.4.5")])
    with associated(place, "NOWHERE", told) as association:
        status, _ = association.send_n_action(
            information, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        assert status.Status == 0
        wait_for(lambda: told.heard(transaction), 20)
        assert told.of(transaction) == (2, {uid: 0 for _, uid in OBJECTS} | {"1.2.3.4.5": 0x0112})
    told.reports.clear()
    # One that left before it was told hears of it when it asks again; of what it has acknowledged it hears no more.
    left, information = request(OBJECTS)
    assert ask(place, information, "LEFT") == 0
    again, information = request(OBJECTS[:1])
    for told.status in (0x0110, 0x0000):
        told.reports.clear()
        with associated(place, "LEFT", told) as association:
            association.send_n_action(information, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
            wait_for(lambda: told.heard(again) and told.heard(left), 20)
    told.reports.clear()
    with associated(place, "LEFT", told) as association:
        association.send_n_action(information, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
        wait_for(lambda: told.heard(again), 20)
        assert not told.heard(left)


def test_what_cannot_be_asked_is_refused(place: Place) -> None:
    assert ask(place, request([])[1]) == 0x0115
    anonymous = request(OBJECTS)[1]
    del anonymous.TransactionUID
    assert ask(place, anonymous) == 0x0115
    nameless = request(OBJECTS)[1]
    del nameless.ReferencedSOPSequence[1].ReferencedSOPInstanceUID
    assert ask(place, nameless) == 0x0115
    assert ask(place, request(OBJECTS)[1], action=2) == 0x0123
    with associated(place) as association:
        information = request(OBJECTS)[1]
        status, _ = association.send_n_action(information, 1, StorageCommitmentPushModel, "1.2.3")
        assert status.Status == 0x0112
        status, _ = association.send_n_action(
            information, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        assert status.Status == 0


def test_a_report_survives_a_kill_and_a_station_that_is_away(place: Place) -> None:
    transaction, information = request(OBJECTS)
    assert ask(place, information) == 0
    place.kill()
    place.start()
    told = Told()
    told.status = 0x0110  # a station that cannot take it yet is told again
    with listening(place.ports[0], told):
        wait_for(lambda: told.heard(transaction), 40)
        told.status = 0
        told.reports.clear()
        wait_for(lambda: told.heard(transaction), 40)
        assert told.of(transaction) == (1, {uid: 0 for _, uid in OBJECTS})


def orthanc(url: str, body: Any = None) -> Any:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as answer:
        return json.loads(answer.read() or b"null")


def test_orthanc_asks_and_is_told(place: Place, tmp_path: Path) -> None:
    settings = {
        "DicomAet": "ORTHANC",
        "DicomPort": place.ports[1],
        "HttpPort": 0,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "DicomModalities": {"radmesh": ["RADMESH", "127.0.0.1", place.port]},
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        settings["HttpPort"] = http = int(free.getsockname()[1])
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    base = f"http://127.0.0.1:{http}"
    process = subprocess.Popen(
        ["Orthanc", str(tmp_path / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:

        def up() -> bool:
            try:
                return bool(orthanc(f"{base}/system"))
            except OSError:
                return False

        wait_for(up, 40)
        ids = [orthanc(f"{base}/instances", path.read_bytes())["ID"] for path in FILES]
        asked = orthanc(
            f"{base}/modalities/radmesh/store", {"Resources": ids, "StorageCommitment": True, "Synchronous": True}
        )
        report = f"{base}/storage-commitment/{asked['StorageCommitmentTransactionUID']}"
        wait_for(lambda: orthanc(report)["Status"] != "Pending", 30)
        said = orthanc(report)
        assert said["Status"] == "Success"
        assert {each["SOPInstanceUID"] for each in said["Success"]} == {uid for _, uid in OBJECTS}
    finally:
        process.terminate()
        process.wait(20)


def test_nothing_is_said_to_be_lost_while_a_store_has_not_told(place: Place) -> None:
    """An archive that is stopped may have what is missing: the station waits."""
    told = Told()
    with listening(place.ports[0], told):
        archives = place.cluster.ready["pids"]["archive-server"]
        for pid in archives:
            subprocess.run(["kill", "-STOP", str(pid)], check=True)
        try:
            stored, information = request(OBJECTS)
            missing, lost = request([(CTImageStorage, generate_uid())])
            assert ask(place, information) == 0
            assert ask(place, lost) == 0
            wait_for(lambda: told.heard(stored), 20)  # what is known to be stored needs nobody
            time.sleep(4.0)  # longer than a heartbeat may take to count
            assert not told.heard(missing)
        finally:
            for pid in archives:
                subprocess.run(["kill", "-CONT", str(pid)], check=True)
        wait_for(lambda: told.heard(missing), 60)
        assert told.of(missing)[0] == 2
