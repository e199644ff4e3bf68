"""Routing in the tables: each change of a study is looked at, each image is sent once, and nothing that is held."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from database_support import HELD, VERIFIED, Parts, record, uid

from radmesh.api.database.v1 import routing_pb2 as pb
from radmesh.database_server.feed import Feed
from radmesh.database_server.jobs import FAILED, QUEUED, SUCCEEDED
from radmesh.database_server.routing import DELIVERY_FAILED, KEY_OBJECTS, SENT, Routing
from radmesh.database_server.routing_service import RouteService
from radmesh.dicom.routes import Route
from radmesh.runtime.errors import RadmeshError

CALL: Any = None
STUDY = uid("study", 1)
RULE = Route("r", ("WS",))
MINUTE = timedelta(minutes=1)


@pytest.fixture
def routing(parts: Parts) -> Routing:
    made = Routing(parts.database, parts.feed, parts.clock, parts.queries)
    parts.jobs.failed = made.gave_up
    return made


def looked_at(parts: Parts, routing: Routing, seconds: float = 3.0) -> list[str]:
    """The studies that a gateway leases after so long."""
    while not routing.step():
        continue
    parts.advance(seconds)
    return [job["key"] for job in parts.jobs.lease(["route"], "gateway", 100, MINUTE)]


def send(parts: Parts, routing: Routing, **options: Any) -> Any:
    """What a proxy leases of what is queued now; None if there is nothing."""
    routing.queue_send(STUDY, "WS", ["r"], **{"key_images": False, "max_attempts": 3, **options})
    jobs = parts.jobs.lease(["send"], "proxy", 1, MINUTE)
    return jobs[0] if jobs else None


def finish(parts: Parts, job: Any, state: int) -> None:
    parts.jobs.finish(job["id"], job["fence"], state, timedelta(), "", "")


def test_without_a_route_nothing_is_queued_and_what_was_before_stays_where_it_is(
    parts: Parts, routing: Routing
) -> None:
    parts.register(record(1, 1))
    assert looked_at(parts, routing) == []
    routing.put(RULE, 0)
    assert looked_at(parts, routing) == []
    parts.register(record(2, 2))
    assert looked_at(parts, routing) == [uid("study", 2)]
    routing.put(replace(RULE, enabled=False), 0)
    parts.register(record(3, 3))
    assert looked_at(parts, routing) == []


def test_what_changes_is_looked_at_after_a_restart_too(parts: Parts, routing: Routing) -> None:
    routing.put(RULE, 0)
    routing.step()
    parts.register(record(1, 1))
    again = Routing(parts.database, parts.feed, parts.clock, parts.queries)
    assert looked_at(parts, again) == [STUDY]
    parts.statuses.move(STUDY, "reading", 2, reason="", expected_version=0, actor="a")
    # Another has it: it loses it, and the study is looked at again.
    assert looked_at(parts, again) == [STUDY]
    assert looked_at(parts, again) == []


def test_a_feed_that_does_not_reach_back_is_made_up_for(parts: Parts, routing: Routing) -> None:
    routing.put(RULE, 0)
    routing.step()
    parts.register(record(1, 1, changes={"receive_time": int(parts.clock.now().timestamp() * 1e6) + 1}))
    late = Routing(parts.database, Feed(parts.database, parts.clock, 1000), parts.clock, parts.queries)
    for _ in range(3):
        parts.feed.write(lambda _c: (None, [("user", "x")] * 1000))
    parts.database.write(lambda c: c.exec_driver_sql("UPDATE feed SET oldest = revision - 1"))
    assert looked_at(parts, late) == [STUDY]


def test_what_comes_while_it_waits_is_no_reason_to_hurry(parts: Parts, routing: Routing) -> None:
    routing.put(RULE, 0)
    routing.step()
    parts.register(record(1, 1))
    routing.step()
    parts.advance(3)
    (job,) = parts.jobs.lease(["route"], "gateway", 1, MINUTE)
    parts.jobs.finish(job["id"], job["fence"], QUEUED, timedelta(seconds=40), "", "")
    parts.register(record(1, 2))
    assert looked_at(parts, routing) == []
    parts.statuses.move(STUDY, "reading", 2, reason="", expected_version=0, actor="a")
    assert looked_at(parts, routing) == [STUDY]


def test_each_image_is_sent_once_and_late_ones_alone(parts: Parts, routing: Routing) -> None:
    routing.put(RULE, 0)
    routing.step()
    parts.register(record(1, 1), record(1, 2))
    job = send(parts, routing)
    assert json.loads(job["payload"]) == {
        "study": STUDY, "station": "WS", "routes": ["r"], "new": True, "key_images": False
    }  # fmt: skip
    assert routing.facts(STUDY, ["WS", "CT1", "WS2"]).undelivered == [2, 0, 2]  # none to where they came from
    parts.register(record(1, 3))
    assert send(parts, routing) is None  # one is under way
    routing.record(STUDY, "WS", SENT, [uid("sop", 1), uid("sop", 2), "1.2.3"], job["id"])
    finish(parts, job, SUCCEEDED)
    assert STUDY in looked_at(parts, routing)
    assert routing.delivered(STUDY, "WS", 1, "")[0] == [uid("sop", 1)]
    first, token = routing.delivered(STUDY, "WS", 1, "")
    assert first + routing.delivered(STUDY, "WS", 10, token)[0] == [uid("sop", 1), uid("sop", 2)]
    assert routing.delivered(STUDY, "CT1", 10, "")[0] == [uid("sop", n) for n in (1, 2, 3)]
    job = send(parts, routing)
    routing.record(STUDY, "WS", SENT, [uid("sop", 3)], job["id"])
    routing.record(STUDY, "WS", DELIVERY_FAILED, [uid("sop", 3)], job["id"])
    finish(parts, job, SUCCEEDED)
    assert routing.delivered(STUDY, "WS", 10, "")[0] == [uid("sop", n) for n in (1, 2, 3)]
    assert send(parts, routing) is None


@pytest.mark.parametrize("way", ["refused", "cancelled", "lost"])
def test_what_failed_waits_for_a_person(parts: Parts, routing: Routing, way: str) -> None:
    parts.register(record(1, 1))
    job = send(parts, routing, max_attempts=1)
    if way == "refused":
        finish(parts, job, FAILED)
    elif way == "cancelled":
        assert parts.jobs.cancel(job["id"], "send")["reason"] == "CANCELLED"
        assert parts.jobs.cancel(job["id"], "send")["state"] == FAILED  # as after an answer that was lost
        with pytest.raises(RadmeshError, match="lease"):
            parts.jobs.renew(job["id"], job["fence"], MINUTE)
    else:
        parts.advance(61)
        assert parts.jobs.lease(["send"], "proxy", 1, MINUTE) == []
    assert send(parts, routing) is None
    assert routing.delivered(STUDY, "WS", 10, "")[0] == []
    parts.register(record(1, 2))
    other = send(parts, routing)
    with pytest.raises(RadmeshError) as refused:
        parts.jobs.retry(job["id"], "send")
    assert refused.value.reason == "JOB_NOT_FAILED"
    finish(parts, other, SUCCEEDED)
    for _ in range(2):
        assert parts.jobs.retry(job["id"], "send")["state"] == QUEUED
    (again,) = parts.jobs.lease(["send"], "proxy", 1, MINUTE)
    assert (again["id"], again["attempt"]) == (job["id"], 1)
    for call in (parts.jobs.retry, parts.jobs.cancel):
        with pytest.raises(RadmeshError) as missing:
            call(job["id"], "curate")
        assert missing.value.reason == "JOB_NOT_FOUND"


def test_what_is_held_is_not_there(parts: Parts, routing: Routing) -> None:
    first, other = record(1, 1), record(1, 2, PatientID="P9")
    parts.register(first, other)
    parts.hold(STUDY, first.admission_key, VERIFIED, "", "a")
    parts.hold(STUDY, other.admission_key, HELD, "PATIENT_MISMATCH", "a")
    facts = routing.facts(STUDY, ["WS"])
    assert (facts.study["verification"], facts.undelivered) == (VERIFIED, [1])
    parts.hold(STUDY, first.admission_key, HELD, "PATIENT_MISMATCH", "a")
    with pytest.raises(RadmeshError, match="no such study"):
        routing.facts(STUDY, ["WS"])
    assert send(parts, routing) is None


def test_key_images_are_queued_for_their_documents(parts: Parts, routing: Routing) -> None:
    parts.register(record(1, 1))
    assert not routing.facts(STUDY, []).key_objects
    assert send(parts, routing, key_images=True) is None
    parts.register(record(1, 2, changes={"sop_class_uid": KEY_OBJECTS}))
    assert routing.facts(STUDY, []).key_objects
    job = send(parts, routing, key_images=True)
    routing.record(STUDY, "WS", SENT, [uid("sop", 2)], job["id"])
    finish(parts, job, SUCCEEDED)
    assert send(parts, routing, key_images=True) is None
    assert send(parts, routing) is not None


def test_key_images_that_failed_keep_no_other_image_back(parts: Parts, routing: Routing) -> None:
    parts.register(record(1, 1), record(1, 2, changes={"sop_class_uid": KEY_OBJECTS}))
    finish(parts, send(parts, routing, key_images=True), FAILED)
    assert send(parts, routing, key_images=True) is None
    assert routing.facts(STUDY, ["WS"]).undelivered == [1]


def test_what_was_looked_at_is_not_kept_for_long(parts: Parts, routing: Routing) -> None:
    routing.put(RULE, 0)
    routing.step()
    for number in (1, 2):
        parts.register(record(number, number))
        routing.step()
        parts.advance(3)
        (job,) = parts.jobs.lease(["route"], "gateway", 10, MINUTE)
        finish(parts, job, SUCCEEDED)
        parts.advance(601)
    parts.register(record(3, 3))
    routing.step()
    assert [job["key"] for job in parts.jobs.list("route", 0, 10, "")[0]] == [uid("study", 3)]


def test_stations_are_told_of_a_study_once_and_again_when_more_has_come(parts: Parts) -> None:
    told: list[str] = []
    routing = Routing(parts.database, parts.feed, parts.clock, parts.queries, lambda: told)
    first = record(1, 1)
    parts.register(first)
    assert looked_at(parts, routing) == []
    assert routing.queue_availability(STUDY) == 0
    told += ["IM1", "IM2"]
    parts.register(record(1, 2))
    assert looked_at(parts, routing) == [STUDY]
    assert (routing.queue_availability(STUDY), routing.queue_availability(STUDY)) == (2, 0)
    jobs = parts.jobs.lease(["availability"], "proxy", 10, MINUTE)
    assert [json.loads(job["payload"]) for job in jobs] == [
        {"study": STUDY, "station": title, "steps": []} for title in told
    ]
    for job in jobs:
        finish(parts, job, SUCCEEDED)
    assert routing.queue_availability(STUDY) == 0
    parts.register(record(1, 3))
    assert routing.queue_availability(STUDY) == 2
    parts.hold(STUDY, first.admission_key, HELD, "PATIENT_MISMATCH", "a")
    with pytest.raises(RadmeshError, match="no such study"):
        routing.queue_availability(STUDY)


def test_routes_are_kept_as_stations_are(parts: Parts, routing: Routing) -> None:
    service = RouteService(routing)
    routing.fill([RULE, Route("s", ("WS",))])
    made = service.SetRoute(
        pb.SetRouteRequest(route=pb.Route(name="r", destinations=["A"], modalities=["CT"], window="01:00-02:00")), CALL
    )
    assert (made.edited, list(made.verification), made.disabled) == (True, ["NOT_REQUIRED", "VERIFIED"], False)
    assert service.SetRoute(pb.SetRouteRequest(route=made, expected_version=made.version), CALL) == made
    routing.fill([RULE])
    answer = service.ListRoutes(pb.ListRoutesRequest(), CALL)
    assert list(answer.routes) == [made]
    assert service.ListRoutes(pb.ListRoutesRequest(known_version=answer.version), CALL).unchanged
    service.DeleteRoute(pb.DeleteRouteRequest(name="r"), CALL)
    with pytest.raises(RadmeshError) as gone:
        service.DeleteRoute(pb.DeleteRouteRequest(name="r"), CALL)
    assert gone.value.reason == "ROUTE_NOT_FOUND"


def test_requests_that_cannot_be_are_named(parts: Parts, routing: Routing) -> None:
    service: Any = RouteService(routing)
    parts.register(record(1, 1))
    for call, request in (
        (service.SetRoute, pb.SetRouteRequest(route=pb.Route(name="x"))),
        (service.GetRoutingFacts, pb.GetRoutingFactsRequest(study_instance_uid=STUDY, stations=["A"] * 257)),
        (service.QueueSend, pb.QueueSendRequest(study_instance_uid=STUDY, station="A")),
        (service.QueueSend, pb.QueueSendRequest(study_instance_uid=STUDY, max_attempts=1)),
        (service.ListDeliveries, pb.ListDeliveriesRequest(study_instance_uid=STUDY)),
        (
            service.RecordDeliveries,
            pb.RecordDeliveriesRequest(study_instance_uid=STUDY, station="A", state=pb.SENT_STATE_SENT),
        ),
        (
            service.RecordDeliveries,
            pb.RecordDeliveriesRequest(
                study_instance_uid=STUDY, station="A", state=pb.SENT_STATE_COMMITTED, sop_instance_uids=["1"]
            ),
        ),
    ):
        with pytest.raises(RadmeshError) as caught:
            call(request, CALL)
        assert caught.value.reason == "FIELD_INVALID"
    for call, request in (
        (service.QueueSend, pb.QueueSendRequest(study_instance_uid="1.2", station="A", max_attempts=1)),
        (service.ListDeliveries, pb.ListDeliveriesRequest(study_instance_uid="1.2", station="A")),
        (service.GetRoutingFacts, pb.GetRoutingFactsRequest(study_instance_uid="1.2")),
    ):
        with pytest.raises(RadmeshError) as unknown:
            call(request, CALL)
        assert unknown.value.reason == "STUDY_NOT_FOUND"
