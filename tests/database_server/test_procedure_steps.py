"""Performed procedure steps in the tables, and the acquisition status of studies before and after their images come."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from database_support import ALL, EXPLICIT, Parts, record

from radmesh.api.database.v1 import procedure_step_pb2 as pb
from radmesh.database_server.jobs import LEASED, SUCCEEDED
from radmesh.database_server.procedure_steps import ProcedureSteps, ProcedureStepService
from radmesh.database_server.schema import procedure_step_messages
from radmesh.runtime.errors import RadmeshError

CALL: Any = None
STARTED, COMPLETED, DISCONTINUED = 2, 3, 4


@pytest.fixture
def steps(parts: Parts) -> ProcedureSteps:
    return ProcedureSteps(parts.database, parts.feed, parts.clock, parts.statuses)


def new() -> bytes:
    """The id of a message of its own."""
    return uuid.uuid4().bytes


def acquisition(parts: Parts, study: str) -> int:
    return int(parts.queries.study(study, ALL)["acquisition"])


def refused(reason: str, steps: ProcedureSteps, *arguments: Any) -> None:
    with pytest.raises(RadmeshError) as caught:
        steps.change(*arguments)
    assert caught.value.reason == reason


def test_steps_move_a_study_that_is_there_and_one_that_comes_later(steps: ProcedureSteps, parts: Parts) -> None:
    first = record(1, 1)
    parts.register(first)
    study, later = first.study_instance_uid, record(2, 2)
    assert acquisition(parts, study) == COMPLETED
    steps.create("2.25.1", "CT1", [study, later.study_instance_uid, study], b"begin", EXPLICIT, new())
    assert acquisition(parts, study) == STARTED
    parts.register(later)
    assert acquisition(parts, later.study_instance_uid) == STARTED
    steps.create("2.25.2", "CT1", [study], b"", EXPLICIT, new())
    steps.change("2.25.1", "CT1", "DISCONTINUED", b"end", EXPLICIT, new())
    assert acquisition(parts, study) == STARTED  # the other goes on
    assert acquisition(parts, later.study_instance_uid) == DISCONTINUED
    steps.change("2.25.2", "CT1", "", b"more", EXPLICIT, new())
    steps.change("2.25.2", "CT1", "COMPLETED", b"end", EXPLICIT, new())
    assert acquisition(parts, study) == COMPLETED  # one of them was
    moves, _ = parts.statuses.history(study, 10, "")
    assert [(m["from_state"], m["to_state"], m["reason"], m["actor"]) for m in moves] == [
        ("COMPLETED", "STARTED", "MPPS", "station:CT1"),
        ("STARTED", "COMPLETED", "MPPS", "station:CT1"),
    ]
    with parts.database.read() as connection:
        kept = connection.execute(
            sa.select(procedure_step_messages.c.data_set).order_by(
                procedure_step_messages.c.step, procedure_step_messages.c.number
            )
        ).scalars()
        assert [bytes(data) for data in kept] == [b"begin", b"end", b"", b"more", b"end"]


def test_what_has_ended_stays_as_it_is(steps: ProcedureSteps, parts: Parts) -> None:
    steps.create("2.25.1", "CT1", ["1.2.3"], b"", EXPLICIT, new())
    with pytest.raises(RadmeshError) as twice:
        steps.create("2.25.1", "CT1", ["1.2.3"], b"", EXPLICIT, new())
    assert twice.value.reason == "PROCEDURE_STEP_EXISTS"
    steps.change("2.25.1", "CT1", "COMPLETED", b"", EXPLICIT, new())
    refused("PROCEDURE_STEP_ENDED", steps, "2.25.1", "CT1", "DISCONTINUED", b"", EXPLICIT, new())
    refused("PROCEDURE_STEP_NOT_FOUND", steps, "2.25.2", "CT1", "", b"", EXPLICIT, new())
    made = record(1, 1)
    parts.register(made)
    steps.create("2.25.3", "CT1", [made.study_instance_uid], b"", EXPLICIT, new())
    steps.change("2.25.3", "CT1", "DISCONTINUED", b"", EXPLICIT, new())
    assert acquisition(parts, made.study_instance_uid) == DISCONTINUED


def test_messages(steps: ProcedureSteps) -> None:
    service = ProcedureStepService(steps)
    good: dict[str, Any] = {
        "sop_instance_uid": "2.25.1", "station": "CT1", "study_instance_uids": ["1.2"], "transfer_syntax_uid": EXPLICIT,
        "request_id": bytes(16),
    }  # fmt: skip
    service.CreateProcedureStep(pb.CreateProcedureStepRequest(**good), CALL)
    for field, value in (
        ("sop_instance_uid", ""),
        ("station", "A" * 17),
        ("request_id", b"short"),
        ("study_instance_uids", []),
        ("study_instance_uids", [""]),
        ("data_set", bytes((3 << 20) + 1)),
    ):
        with pytest.raises(RadmeshError, match=field) as caught:
            service.CreateProcedureStep(pb.CreateProcedureStepRequest(**{**good, field: value}), CALL)
        assert caught.value.reason == "FIELD_INVALID"
    with pytest.raises(RadmeshError, match="IN PROGRESS"):
        service.ChangeProcedureStep(pb.ChangeProcedureStepRequest(sop_instance_uid="2.25.1", status="DONE"), CALL)
    service.ChangeProcedureStep(
        pb.ChangeProcedureStepRequest(sop_instance_uid="2.25.1", status="COMPLETED", request_id=new()), CALL
    )


def test_a_call_that_is_repeated_changes_nothing(steps: ProcedureSteps, parts: Parts) -> None:
    begun, ended = new(), new()
    for _ in range(2):
        steps.create("2.25.1", "CT1", ["1.2.3"], b"begin", EXPLICIT, begun)
    for _ in range(2):
        steps.change("2.25.1", "CT1", "COMPLETED", b"end", EXPLICIT, ended)
    with parts.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(procedure_step_messages)).scalar_one() == 2


def test_what_is_said_is_forwarded_to_all_but_who_said_it(parts: Parts) -> None:
    steps = ProcedureSteps(parts.database, parts.feed, parts.clock, parts.statuses, lambda: {"RIS", "CT1"})
    begin = new()
    for _ in range(2):  # as after an answer that was lost
        steps.create("2.25.1", "CT1", ["2.25.2"], b"begin", EXPLICIT, begin)
    steps.change("2.25.1", "CT1", "COMPLETED", b"end", EXPLICIT, new())
    refused("PROCEDURE_STEP_ENDED", steps, "2.25.1", "CT1", "", b"more", EXPLICIT, new())
    jobs = parts.jobs.lease(["mpps"], "proxy", 10, timedelta(minutes=1))
    assert [job["key"] for job in jobs] == ["RIS/2.25.1/1", "RIS/2.25.1/2"]
    service: Any = ProcedureStepService(steps)

    def told(number: int) -> pb.ProcedureStepMessage:
        request = pb.GetProcedureStepMessageRequest(sop_instance_uid="2.25.1", number=number, forward_to="RIS")
        message: pb.ProcedureStepMessage = service.GetProcedureStepMessage(request, CALL)
        return message

    assert (told(1).data_set, told(1).count, told(1).before) == (b"begin", 2, 0)
    assert (told(2).data_set, told(2).before) == (b"end", LEASED)
    parts.jobs.finish(jobs[0]["id"], jobs[0]["fence"], SUCCEEDED, timedelta(), "", "")
    assert told(2).before == SUCCEEDED
    with pytest.raises(RadmeshError, match="no procedure step"):
        told(3)
