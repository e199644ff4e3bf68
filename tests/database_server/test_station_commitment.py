"""What stations are asked to store for good: once for each send, and what they do not is sent once more."""

import json
from datetime import timedelta
from typing import Any

import pytest
from database_support import Parts, record, uid

from radmesh.api.database.v1 import commitment_pb2 as pb
from radmesh.database_server.jobs import SUCCEEDED
from radmesh.database_server.routing import DELIVERY_FAILED, SENT, Routing
from radmesh.database_server.station_commitment import JOB_KIND, StationCommitments, StationCommitmentService
from radmesh.runtime.errors import RadmeshError

CALL: Any = None
STUDY = uid("study", 1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def routing(parts: Parts) -> Routing:
    parts.register(record(1, 1), record(1, 2))
    return Routing(parts.database, parts.feed, parts.clock, parts.queries)


@pytest.fixture
def kept(parts: Parts) -> StationCommitments:
    return StationCommitments(parts.database, parts.feed, parts.clock)


def sent(parts: Parts, routing: Routing) -> int:
    """Send what is to be sent; return the job."""
    (job,) = parts.jobs.lease(["send"], "proxy", 1, MINUTE)
    payload = json.loads(job["payload"])
    has = routing.delivered(STUDY, "WS", 100, "")[0]
    left = [each for each in (uid("sop", 1), uid("sop", 2)) if each not in has]
    assert payload["station"] == "WS"
    routing.record(STUDY, "WS", SENT, left, job["id"])
    parts.jobs.finish(job["id"], job["fence"], SUCCEEDED, timedelta(), "", f"{len(left)} sent; it is asked")
    return int(job["id"])


def message(parts: Parts, job: int) -> str:
    return str(next(row["message"] for row in parts.jobs.list("send", 0, 100, "")[0] if row["id"] == job))


def test_what_was_sent_is_asked_about_once(parts: Parts, routing: Routing, kept: StationCommitments) -> None:
    routing.queue_send(STUDY, "WS", ["r"], key_images=False, max_attempts=3)
    job = sent(parts, routing)
    (transaction,) = kept.request(STUDY, "WS", job)
    assert kept.request(STUDY, "WS", job) == []  # as after an answer that was lost
    assert [row["key"] for row in parts.jobs.lease([JOB_KIND], "proxy", 10, MINUTE)] == [transaction]
    asked = kept.get(transaction)
    assert (asked.station, [each for _, each in asked.references], asked.finished) == (
        "WS", [uid("sop", 1), uid("sop", 2)], False
    )  # fmt: skip
    kept.report("WS", transaction, [uid("sop", 1), uid("sop", 2), "1.2.3"])
    assert message(parts, job) == "2 sent; 2 stored for good"
    assert kept.get(transaction).finished
    routing.record(STUDY, "WS", DELIVERY_FAILED, [uid("sop", 1)], job)
    assert len(routing.delivered(STUDY, "WS", 10, "")[0]) == 2


def test_what_is_missing_is_sent_once_more(parts: Parts, routing: Routing, kept: StationCommitments) -> None:
    routing.queue_send(STUDY, "WS", ["r"], key_images=False, max_attempts=3)
    job = sent(parts, routing)
    (transaction,) = kept.request(STUDY, "WS", job)
    for _ in range(2):
        kept.report("WS", transaction, [uid("sop", 1)])
    assert message(parts, job) == "2 sent; 1 stored for good, 1 not: sent again"
    again = sent(parts, routing)
    (second,) = kept.request(STUDY, "WS", again)
    assert [each for _, each in kept.get(second).references] == [uid("sop", 2)]
    kept.report("WS", second, [])
    assert message(parts, again) == "1 sent; 0 stored for good, 1 not: look at the station"
    assert parts.jobs.lease(["send"], "proxy", 1, MINUTE) == []


def test_only_who_was_asked_can_answer(parts: Parts, routing: Routing, kept: StationCommitments) -> None:
    routing.queue_send(STUDY, "WS", ["r"], key_images=False, max_attempts=3)
    (transaction,) = kept.request(STUDY, "WS", sent(parts, routing))
    service: Any = StationCommitmentService(kept)
    for request in (
        pb.ReportStationCommitmentRequest(station="WS2", transaction_uid=transaction),
        pb.ReportStationCommitmentRequest(station="WS", transaction_uid="1.2"),
    ):
        with pytest.raises(RadmeshError) as unknown:
            service.ReportStationCommitment(request, CALL)
        assert unknown.value.reason == "TRANSACTION_NOT_FOUND"
    answer = service.GetStationCommitment(pb.GetStationCommitmentRequest(transaction_uid=transaction), CALL)
    assert (answer.station, len(answer.references), answer.finished) == ("WS", 2, False)
    for request in (
        pb.ReportStationCommitmentRequest(transaction_uid=transaction),
        pb.ReportStationCommitmentRequest(station="W" * 17, transaction_uid=transaction),
    ):
        with pytest.raises(RadmeshError) as caught:
            service.ReportStationCommitment(request, CALL)
        assert caught.value.reason == "FIELD_INVALID"
