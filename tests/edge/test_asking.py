"""Stations are asked whether they store for good what they were sent; what they do not is sent once more."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_support import save
from orthanc_support import Orthanc
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from station_support import Edge, until

STUDY = "2.25.77.950"
TITLE = "PYNET"


@pytest.fixture(scope="module")
def files(edge: Edge) -> Iterator[list[Path]]:
    folder = edge.folder / "to-commit"
    folder.mkdir()
    made = [save(folder, 950, SOPInstanceUID=f"{STUDY}.1.{n}") for n in (1, 2)]
    edge.store(*made)
    assert edge.cluster.run("stations", "set", TITLE, "--options", "commit").code == 0
    yield made
    assert edge.cluster.run("stations", "set", TITLE, "--options", "").code == 0


def told(edge: Edge, transaction: str, stored: list[Any], failed: list[Any], calling: str = TITLE) -> int:
    """Report on an association of the station's own, as SCP (PS3.4 J.3.3); the status of the response."""
    ae = AE(calling)
    ae.add_requested_context(StorageCommitmentPushModel)
    role = build_role(StorageCommitmentPushModel, scp_role=True)
    association = ae.associate("127.0.0.1", edge.port, ae_title="RADMESH", ext_neg=[role])
    assert association.is_established
    report = Dataset()
    report.TransactionUID = transaction
    if failed:
        for item in failed:
            item.FailureReason = 0x0110
        report.FailedSOPSequence = Sequence(failed)
    if stored:
        report.ReferencedSOPSequence = Sequence(stored)
    event = 2 if failed else 1
    status, _ = association.send_n_event_report(
        report, event, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    association.release()
    return int(status.Status)


@contextmanager
def committing(edge: Edge, losing: int) -> Iterator[list[str]]:
    """A station that stores, and says of the first objects that it has lost them; yields what came."""
    came: list[str] = []
    reporters: list[threading.Thread] = []
    statuses: list[int] = []

    def store(event: Any) -> int:
        came.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    def action(event: Any) -> tuple[int, None]:
        nonlocal losing
        asked = event.action_information
        items = list(asked.ReferencedSOPSequence)
        lost, losing = items[:losing], 0
        arguments = (edge, asked.TransactionUID, items[len(lost) :], lost)
        reporters.append(threading.Thread(target=lambda: statuses.append(told(*arguments))))
        reporters[-1].start()
        return 0, None

    ae = AE(TITLE)
    ae.add_supported_context(CTImageStorage)
    ae.add_supported_context(StorageCommitmentPushModel)
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_N_ACTION, action)]
    server = ae.start_server(("127.0.0.1", edge.ports[TITLE]), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield came
    finally:
        for reporter in reporters:
            reporter.join(10)
        server.shutdown()
    assert set(statuses) == {0}


def said(edge: Edge, job: int) -> str:
    found: list[Any] = edge.cluster.run("sends", "--json").json["sendings"]
    return str(next(s["message"] for s in found if s["id"] == job))


def test_what_a_station_does_not_store_is_sent_once_more(edge: Edge, files: list[Path]) -> None:
    with committing(edge, losing=1) as came:
        sent = edge.cluster.run("send", STUDY, "--to", TITLE, "--json").json["sendings"][0]["id"]
        until(lambda: said(edge, sent) == "2 instances sent; 1 stored for good, 1 not: sent again", 30)
        again = edge.cluster.run("sends", "--json").json["sendings"][0]
        assert (again["id"] != sent, again["study_instance_uid"], again["station"]) == (True, STUDY, TITLE)
        until(lambda: said(edge, again["id"]) == "1 instance sent; 1 stored for good", 30)
    assert sorted(came[:2]) == [f"{STUDY}.1.1", f"{STUDY}.1.2"]
    assert came[2:] == [f"{STUDY}.1.1"]


def test_a_report_of_what_was_not_asked_is_refused(edge: Edge) -> None:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, "1.2.3"
    assert told(edge, "2.25.4711", [item], []) == 0x0115
    assert told(edge, "", [item], []) == 0x0115


def test_orthanc_says_that_it_stores_what_it_was_sent(edge: Edge, files: list[Path]) -> None:
    assert edge.cluster.run("stations", "set", "ORTHANC", "--options", "commit").code == 0
    orthanc = Orthanc(edge.folder / "orthanc-commits", edge.ports["ORTHANC"], edge.port)
    try:
        until(orthanc.is_up, 30)
        sent = edge.cluster.run("send", STUDY, "--to", "ORTHANC", "--json").json["sendings"][0]["id"]
        until(lambda: said(edge, sent) == "2 instances sent; 2 stored for good", 30)
    finally:
        orthanc.close()
        assert edge.cluster.run("stations", "set", "ORTHANC", "--options", "").code == 0
