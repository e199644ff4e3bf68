"""`radmesh send`: a study to a station, which may be away, full, or refuse it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_support import data_set, save
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from station_support import Edge, storescp, until

STUDY = "2.25.77.920"


@pytest.fixture(scope="module")
def files(edge: Edge) -> list[Path]:
    folder = edge.folder / "to-send"
    folder.mkdir()
    made = [save(folder, 920, SOPInstanceUID=f"{STUDY}.1.{n}") for n in (1, 2, 3)]
    edge.store(*made)
    return made


@contextmanager
def answering(port: int, *statuses: int) -> Iterator[list[str]]:
    """A station that answers so, one after the other and then with the last; yields what came."""
    came: list[str] = []

    def store(event: Any) -> int:
        came.append(event.request.AffectedSOPInstanceUID)
        return statuses[min(len(came), len(statuses)) - 1]

    ae = AE("PYNET")
    ae.add_supported_context(CTImageStorage)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    try:
        yield came
    finally:
        server.shutdown()


def test_a_study_is_sent_as_it_was_stored(edge: Edge, files: list[Path]) -> None:
    with storescp(edge.folder / "sent", edge.ports["STORESCP"], "+B", "+xa") as folder:
        answer = edge.cluster.run("send", STUDY, "--to", "STORESCP", "--wait", "--json")
        assert answer.code == 0, answer
        assert answer.json["sendings"][0]["state"] == "SUCCEEDED"
        assert sorted(data_set(p) for p in folder.iterdir()) == sorted(data_set(p) for p in files)
    listed = edge.cluster.run("send", "--json").json["sendings"]
    assert (listed[0]["study_instance_uid"], listed[0]["station"], listed[0]["by"]) == (STUDY, "STORESCP", "admin")
    assert "sent" in edge.cluster.run("send").out


def test_what_is_not_known_is_refused_at_once(edge: Edge, files: list[Path]) -> None:
    assert edge.cluster.run("send", STUDY, "--to", "NOBODY", "--json").reason == "STATION_NOT_FOUND"
    assert edge.cluster.run("send", "2.25.1", "--to", "STORESCP", "--json").reason == "STUDY_NOT_FOUND"
    assert edge.cluster.run("send", STUDY, "--json").reason == "FIELD_INVALID"


def test_a_station_that_refuses_ends_the_job(edge: Edge, files: list[Path]) -> None:
    with answering(edge.ports["PYNET"], 0, 0xC000, 0) as came:
        answer = edge.cluster.run("send", STUDY, "--to", "PYNET", "--wait", "--json")
    (sending,) = answer.json["sendings"]
    assert (answer.code, sending["state"], sending["reason"]) == (1, "FAILED", "STATION_REFUSED_OBJECT")
    assert sending["message"] == "1 of 3 instances were not sent; the station answers 0xC000"
    assert len(came) == 3


def test_a_station_that_is_full_or_away_is_tried_again(edge: Edge, files: list[Path]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", edge.ports["PLAIN"]))  # bound, not listening: a connection is refused
        job = edge.cluster.run("send", STUDY, "--to", "PLAIN", "--json").json["sendings"][0]["id"]
        # The same again is the same job.
        assert edge.cluster.run("send", STUDY, "--to", "PLAIN", "--json").json["sendings"][0]["id"] == job
        waiting = until(lambda: _with_reason(edge, job), 30)
    assert (waiting["state"], waiting["reason"], waiting["attempt"]) == ("QUEUED", "STATION_UNREACHABLE", 1)
    with answering(edge.ports["PLAIN"], 0xA700, 0) as came:
        assert until(lambda: _ended(edge, job), 60)["state"] == "SUCCEEDED"
    assert len(came) == 6


def _jobs(edge: Edge) -> list[Any]:
    found: list[Any] = edge.cluster.run("send", "--json").json["sendings"]
    return found


def _with_reason(edge: Edge, job: int) -> Any:
    return next((s for s in _jobs(edge) if s["id"] == job and s["reason"]), None)


def _ended(edge: Edge, job: int) -> Any:
    return next((s for s in _jobs(edge) if s["id"] == job and s["state"] in ("SUCCEEDED", "FAILED")), None)
