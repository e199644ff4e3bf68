"""What stations were sent, and whether they store it for good: Storage Commitment as SCU (PS3.4 annex J)."""

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from radmesh.api.database.v1 import commitment_pb2 as pb
from radmesh.database_server.checks import checked, invalid
from radmesh.database_server.feed import Feed
from radmesh.database_server.jobs import QUEUED
from radmesh.database_server.routing import COMMITTED, DELIVERY_FAILED, SEND, SENT
from radmesh.database_server.schema import deliveries, instances, jobs, station_commitments, studies
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh.sql.engine import Database, micros

JOB_KIND: Final = "commitment-ask"
_ATTEMPTS: Final = 24
_AT_ONCE: Final = 10_000
_REPORTED_MOST: Final = 20_000
_IN_MOST: Final = 500

Reference = tuple[str, str]
"""SOP Class UID, SOP Instance UID."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a station is asked; `finished`: it has answered."""

    station: str
    references: list[Reference]
    finished: bool


class StationCommitments:
    """Keeps what stations are asked, and what they say."""

    def __init__(self, database: Database, feed: Feed, clock: Clock) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock

    def request(self, uid: str, station: str, job: int) -> list[str]:
        """Make transactions, and their jobs, of what a job has sent to a station and was not asked about; their UIDs.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """

        def work(connection: sa.Connection) -> tuple[list[str], list[tuple[str, str]]]:
            self._database.serialise(connection)
            study = connection.execute(sa.select(studies.c.id).where(studies.c.study_instance_uid == uid)).scalar()
            if study is None:
                raise RadmeshError("STUDY_NOT_FOUND", "there is no such study")
            sent = connection.execute(
                sa.select(deliveries.c.instance)
                .join(instances, instances.c.id == deliveries.c.instance)
                .where(
                    instances.c.study == study,
                    deliveries.c.station == station,
                    deliveries.c.job == job,
                    deliveries.c.state == SENT,
                    deliveries.c.transaction_uid == "",
                )
                .order_by(deliveries.c.instance)
            )
            ids = list(sent.scalars())
            now = micros(self._clock.now())
            made = []
            for first in range(0, len(ids), _AT_ONCE):
                transaction = f"2.25.{uuid.uuid4().int}"
                some = ids[first : first + _AT_ONCE]
                for start in range(0, len(some), _IN_MOST):
                    mine = deliveries.c.instance.in_(some[start : start + _IN_MOST])
                    connection.execute(
                        sa.update(deliveries)
                        .where(mine, deliveries.c.station == station)
                        .values(transaction_uid=transaction)
                    )
                connection.execute(
                    sa.insert(station_commitments).values(
                        transaction_uid=transaction, station=station, job=job, request_time=now
                    )
                )
                connection.execute(
                    sa.insert(jobs).values(
                        kind=JOB_KIND, key=transaction, state=QUEUED, max_attempts=_ATTEMPTS, due_time=now
                    )
                )
                made.append(transaction)
            return made, []

        made, _ = self._feed.write(work)
        return made  # type: ignore[return-value]

    def get(self, transaction_uid: str) -> Asked:
        """Return what is asked.

        Raises:
            RadmeshError: TRANSACTION_NOT_FOUND.
        """
        with self._database.read() as connection:
            row = self._of(connection, transaction_uid)
            query = (
                sa.select(instances.c.sop_class_uid, instances.c.sop_instance_uid)
                .join(deliveries, deliveries.c.instance == instances.c.id)
                .where(deliveries.c.transaction_uid == transaction_uid)
                .order_by(instances.c.id)
            )
            references = [(each.sop_class_uid, each.sop_instance_uid) for each in connection.execute(query)]
        return Asked(row.station, references, bool(row.finish_time))

    def report(self, station: str, transaction_uid: str, stored: Collection[str]) -> None:
        """Keep what a station says; what it does not store is sent once more. The same again changes nothing.

        Raises:
            RadmeshError: TRANSACTION_NOT_FOUND.
        """

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            self._database.serialise(connection)
            row = self._of(connection, transaction_uid)
            if row.station != station:
                raise _unknown()
            if row.finish_time:
                return None, []
            asked = connection.execute(
                sa.select(deliveries.c.instance, instances.c.sop_instance_uid)
                .join(instances, instances.c.id == deliveries.c.instance)
                .where(deliveries.c.transaction_uid == transaction_uid)
            ).all()
            kept = frozenset(stored)
            missing = [each.instance for each in asked if each.sop_instance_uid not in kept]
            mine = deliveries.c.transaction_uid == transaction_uid
            connection.execute(sa.update(deliveries).where(mine).values(state=COMMITTED))
            for first in range(0, len(missing), _IN_MOST):
                some = deliveries.c.instance.in_(missing[first : first + _IN_MOST])
                connection.execute(sa.update(deliveries).where(mine, some).values(state=DELIVERY_FAILED))
            now = micros(self._clock.now())
            connection.execute(
                sa.update(station_commitments)
                .where(station_commitments.c.transaction_uid == transaction_uid)
                .values(finish_time=now)
            )
            return None, self._tell(connection, row.job, len(asked), len(missing), now)

        self._feed.write(work)

    def _tell(
        self, connection: sa.Connection, number: int, asked: int, missing: int, now: int
    ) -> list[tuple[str, str]]:
        """Say at the job that sent it what became of it, and have sent again what is missing, once."""
        job = connection.execute(sa.select(jobs).where(jobs.c.id == number, jobs.c.kind == SEND)).first()
        if job is None:
            return []
        payload = json.loads(job.payload)
        said = f"{asked - missing} stored for good"
        events = [("job", str(job.id))]
        if missing:
            again = not payload.get("again")
            said += f", {missing} not: {'sent again' if again else 'look at the station'}"
            values = {
                "kind": SEND,
                "key": job.key,
                "payload": json.dumps({**payload, "new": True, "again": True}),
                "state": QUEUED,
                "max_attempts": job.max_attempts,
                "due_time": now,
            }
            if again:
                self._database.add(connection, jobs, values)
        message = f"{job.message.partition(';')[0]}; {said}"[:1024]
        connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(message=message))
        return events

    @staticmethod
    def _of(connection: sa.Connection, transaction_uid: str) -> Any:
        query = sa.select(station_commitments).where(station_commitments.c.transaction_uid == transaction_uid)
        row = connection.execute(query).first()
        if row is None:
            raise _unknown()
        return row


def _unknown() -> RadmeshError:
    return RadmeshError("TRANSACTION_NOT_FOUND", "the station was asked nothing with this Transaction UID")


@checked()
class StationCommitmentService:
    """database.v1.StationCommitmentService."""

    def __init__(self, kept: StationCommitments) -> None:
        self._kept = kept

    def RequestStationCommitment(
        self, request: pb.RequestStationCommitmentRequest, _call: Call
    ) -> pb.RequestStationCommitmentResponse:
        """Make transactions of what was sent."""
        _station(request.station)
        made = self._kept.request(request.study_instance_uid, request.station, request.job_id)
        return pb.RequestStationCommitmentResponse(transaction_uids=made)

    def GetStationCommitment(self, request: pb.GetStationCommitmentRequest, _call: Call) -> pb.StationCommitment:
        """Return what is asked."""
        asked = self._kept.get(request.transaction_uid)
        return pb.StationCommitment(
            station=asked.station,
            references=[
                pb.CommitmentReference(sop_class_uid=sop_class, sop_instance_uid=uid)
                for sop_class, uid in asked.references
            ],
            finished=asked.finished,
        )

    def ReportStationCommitment(
        self, request: pb.ReportStationCommitmentRequest, _call: Call
    ) -> pb.ReportStationCommitmentResponse:
        """Keep what a station says."""
        _station(request.station)
        if len(request.stored_sop_instance_uids) > _REPORTED_MOST:
            raise invalid("stored_sop_instance_uids", f"at most {_REPORTED_MOST}")
        self._kept.report(request.station, request.transaction_uid, request.stored_sop_instance_uids)
        return pb.ReportStationCommitmentResponse()


def _station(title: str) -> None:
    if not 1 <= len(title) <= 16:
        raise invalid("station", "1 to 16 characters")
