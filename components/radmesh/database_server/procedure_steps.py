"""Performed procedure steps (PS3.4 F.7), and what they say of the acquisition of studies (FEATURES GP9)."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa

from radmesh.api.database.v1 import procedure_step_pb2 as pb
from radmesh.database_server.checks import checked, invalid
from radmesh.database_server.feed import Feed
from radmesh.database_server.jobs import QUEUED
from radmesh.database_server.registry import acquisition_of
from radmesh.database_server.schema import (
    jobs,
    procedure_step_messages,
    procedure_step_studies,
    procedure_steps,
    studies,
)
from radmesh.database_server.statuses import AXES, Statuses
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh.sql.engine import Database, micros

IN_PROGRESS, COMPLETED, DISCONTINUED = "IN PROGRESS", "COMPLETED", "DISCONTINUED"
STATUSES: Final = (IN_PROGRESS, COMPLETED, DISCONTINUED)
FORWARD: Final = "mpps"
"""Kind of the jobs that forward messages."""
_FORWARD_ATTEMPTS: Final = 1000
_MESSAGES_MOST: Final = 1000
_STUDIES_MOST: Final = 100
_BYTES_MOST: Final = 3 << 20


class ProcedureSteps:
    """Keeps the steps; `forwarded` gives the AE titles of the stations that get what is said of them."""

    def __init__(
        self,
        database: Database,
        feed: Feed,
        clock: Clock,
        statuses: Statuses,
        forwarded: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._forwarded = forwarded
        self._database = database
        self._feed = feed
        self._clock = clock
        self._statuses = statuses

    def create(
        self,
        uid: str,
        station: str,
        study_instance_uids: Sequence[str],
        data_set: bytes,
        transfer_syntax_uid: str,
        request_id: bytes,
    ) -> None:
        """Keep a step that has begun; the same request again changes nothing.

        Raises:
            RadmeshError: PROCEDURE_STEP_EXISTS.
        """

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            self._database.serialise(connection)
            row = connection.execute(self._of(uid)).first()
            if row is not None and self._last(connection, row.id) == (1, request_id):
                return None, []
            if row is not None:
                raise RadmeshError("PROCEDURE_STEP_EXISTS", "there is a procedure step with this SOP Instance UID")
            now = micros(self._clock.now())
            values = {
                "sop_instance_uid": uid,
                "station": station,
                "status": IN_PROGRESS,
                "create_time": now,
                "update_time": now,
            }
            step = connection.execute(
                sa.insert(procedure_steps).values(values).returning(procedure_steps.c.id)
            ).scalar_one()
            connection.execute(
                sa.insert(procedure_step_studies),
                [{"step": step, "study_instance_uid": study} for study in dict.fromkeys(study_instance_uids)],
            )
            self._keep(connection, step, 1, station, data_set, transfer_syntax_uid, request_id)
            self._forward(connection, uid, 1, station)
            return None, self._move(connection, step, station)

        self._feed.write(work)

    def change(
        self, uid: str, station: str, status: str, data_set: bytes, transfer_syntax_uid: str, request_id: bytes
    ) -> None:
        """Keep what a modality changes; an empty status is as before. The same request again changes nothing.

        Raises:
            RadmeshError: PROCEDURE_STEP_NOT_FOUND, PROCEDURE_STEP_ENDED, FIELD_INVALID.
        """

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            self._database.serialise(connection)
            row = connection.execute(self._of(uid)).first()
            if row is None:
                raise RadmeshError("PROCEDURE_STEP_NOT_FOUND", "there is no procedure step with this SOP Instance UID")
            last, known = self._last(connection, row.id)
            if known == request_id:
                return None, []
            if row.status != IN_PROGRESS:
                raise RadmeshError("PROCEDURE_STEP_ENDED", f"the procedure step is {row.status}, and stays so")
            if last >= _MESSAGES_MOST:
                raise invalid("data_set", f"a procedure step is changed {_MESSAGES_MOST} times at most")
            self._keep(connection, row.id, last + 1, station, data_set, transfer_syntax_uid, request_id)
            self._forward(connection, uid, last + 1, station)
            connection.execute(
                sa.update(procedure_steps)
                .where(procedure_steps.c.id == row.id)
                .values(status=status or row.status, update_time=micros(self._clock.now()))
            )
            return None, self._move(connection, row.id, station)

        self._feed.write(work)

    def message(self, uid: str, number: int) -> tuple[bytes, str, int]:
        """Return data set and transfer syntax of one of the messages of a step, and how many it has.

        Raises:
            RadmeshError: PROCEDURE_STEP_NOT_FOUND.
        """
        messages = procedure_step_messages
        with self._database.read() as connection:
            step = connection.execute(self._of(uid)).first()
            query = sa.select(messages).where(messages.c.step == (step.id if step else 0), messages.c.number == number)
            row = connection.execute(query).first()
            if step is None or row is None:
                raise RadmeshError("PROCEDURE_STEP_NOT_FOUND", "there is no procedure step with this SOP Instance UID")
            return bytes(row.data_set), str(row.transfer_syntax_uid), self._last(connection, step.id)[0]

    @staticmethod
    def _of(uid: str) -> Any:
        return sa.select(procedure_steps).where(procedure_steps.c.sop_instance_uid == uid)

    @staticmethod
    def _last(connection: sa.Connection, step: int) -> tuple[int, bytes]:
        """Return number and request id of the last message of a step."""
        query = (
            sa.select(procedure_step_messages.c.number, procedure_step_messages.c.request_id)
            .where(procedure_step_messages.c.step == step)
            .order_by(procedure_step_messages.c.number.desc())
        )
        row = connection.execute(query.limit(1)).one()
        return int(row.number), bytes(row.request_id)

    def _keep(
        self,
        connection: sa.Connection,
        step: int,
        number: int,
        station: str,
        data_set: bytes,
        transfer_syntax: str,
        request_id: bytes,
    ) -> None:
        connection.execute(
            sa.insert(procedure_step_messages).values(
                step=step,
                number=number,
                station=station,
                transfer_syntax_uid=transfer_syntax,
                data_set=data_set,
                request_id=request_id,
                time=micros(self._clock.now()),
            )
        )

    def _forward(self, connection: sa.Connection, uid: str, number: int, station: str) -> None:
        """Make the jobs that forward a message, with it; none to whom it came from."""
        for title in sorted(set(self._forwarded()) - {station.strip()}):
            values = {
                "kind": FORWARD,
                "key": f"{title}/{uid}/{number}",
                "payload": json.dumps({"station": title, "step": uid, "number": number}),
                "state": QUEUED,
                "max_attempts": _FORWARD_ATTEMPTS,
                "due_time": micros(self._clock.now()),
            }
            connection.execute(sa.insert(jobs).values(values))

    def before(self, uid: str, number: int, station: str) -> int:
        """Return the state of the job that forwards the message before one; 0 = there is none."""
        with self._database.read() as connection:
            query = sa.select(jobs.c.state).where(jobs.c.kind == FORWARD, jobs.c.key == f"{station}/{uid}/{number - 1}")
            return int(connection.execute(query.order_by(jobs.c.id.desc()).limit(1)).scalar() or 0)

    def _move(self, connection: sa.Connection, step: int, station: str) -> list[tuple[str, str]]:
        """Move the studies of a step that are there; those that come later begin so (acquisition_of)."""
        axis = AXES["acquisition"]
        uids = sa.select(procedure_step_studies.c.study_instance_uid).where(procedure_step_studies.c.step == step)
        events = []
        for study in connection.execute(sa.select(studies).where(studies.c.study_instance_uid.in_(uids))).all():
            before = axis.states[study.acquisition]
            to = axis.states[acquisition_of(connection, study.study_instance_uid)]
            if to == before:
                continue
            path = (to,) if to in axis.moves.get(before, (to,)) else ("STARTED", to)
            self._statuses.step(connection, study, "acquisition", *path, reason="MPPS", actor=f"station:{station}")
            events.append(("study", str(study.study_instance_uid)))
        return events


@checked()
class ProcedureStepService:
    """database.v1.ProcedureStepService."""

    def __init__(self, steps: ProcedureSteps) -> None:
        self._steps = steps

    def CreateProcedureStep(
        self, request: pb.CreateProcedureStepRequest, _call: Call
    ) -> pb.CreateProcedureStepResponse:
        """Keep a step that has begun."""
        if not 1 <= len(request.study_instance_uids) <= _STUDIES_MOST:
            raise invalid("study_instance_uids", f"1 to {_STUDIES_MOST}")
        if not all(1 <= len(uid) <= 64 for uid in request.study_instance_uids):
            raise invalid("study_instance_uids", "1 to 64 characters each")
        _check(request)
        self._steps.create(
            request.sop_instance_uid,
            request.station,
            request.study_instance_uids,
            request.data_set,
            request.transfer_syntax_uid,
            request.request_id,
        )
        return pb.CreateProcedureStepResponse()

    def ChangeProcedureStep(
        self, request: pb.ChangeProcedureStepRequest, _call: Call
    ) -> pb.ChangeProcedureStepResponse:
        """Keep a change of a step."""
        if request.status not in ("", *STATUSES):
            raise invalid("status", f"empty, or one of {', '.join(STATUSES)}")
        _check(request)
        self._steps.change(
            request.sop_instance_uid,
            request.station,
            request.status,
            request.data_set,
            request.transfer_syntax_uid,
            request.request_id,
        )
        return pb.ChangeProcedureStepResponse()

    def GetProcedureStepMessage(
        self, request: pb.GetProcedureStepMessageRequest, _call: Call
    ) -> pb.ProcedureStepMessage:
        """Return one of the messages of a step."""
        data_set, syntax, count = self._steps.message(request.sop_instance_uid, request.number)
        station = request.forward_to
        before = self._steps.before(request.sop_instance_uid, request.number, station) if station else 0
        return pb.ProcedureStepMessage(
            data_set=data_set,
            transfer_syntax_uid=syntax,
            count=count,
            before=before,  # type: ignore[arg-type]
        )


def _check(request: pb.CreateProcedureStepRequest | pb.ChangeProcedureStepRequest) -> None:
    if not 1 <= len(request.sop_instance_uid) <= 64 or len(request.transfer_syntax_uid) > 64:
        raise invalid("sop_instance_uid, transfer_syntax_uid", "UIDs of at most 64 characters")
    if len(request.station) > 16:
        raise invalid("station", "at most 16 characters")
    if len(request.request_id) != 16:
        raise invalid("request_id", "16 bytes")
    if len(request.data_set) > _BYTES_MOST:
        raise invalid("data_set", f"at most {_BYTES_MOST} bytes")
