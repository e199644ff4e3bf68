"""Storage Commitment (PS3.4 annex J): requests, and what is stored for good (CORRECTNESS rule 14, FEATURES GP6)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import commitment_pb2 as pb
from radmesh.database_server.checks import checked, invalid
from radmesh.database_server.jobs import Jobs
from radmesh.database_server.schema import commitments, instances, locations, stores
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call
from radmesh.sql.engine import Database, micros, time_of

JOB_KIND: Final = "commitment"
# Failure Reason (0008,1197), PS3.3 C.14.1.1.
NO_SUCH_OBJECT: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119
_REFERENCES_MOST: Final = 20_000
_IN_MOST: Final = 500
_LIST_MOST: Final = 100
# A heartbeat is made before it is noted: what it says counts from so long after the request on.
_HEARTBEAT_DELAY: Final = timedelta(seconds=3)
# A store that is silent may have what is missing; one that stays silent for longer keeps no report back.
_SILENT_PATIENCE: Final = timedelta(hours=1)
_ATTEMPTS: Final = 1000
# The station hears that its request was taken before it has the report.
_DELAY: Final = timedelta(seconds=1)
_KEPT: Final = timedelta(days=30)

Reference = tuple[str, str]
"""SOP Class UID, SOP Instance UID."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is known of a request. `outcomes` has a failure reason (0 = none) for each reference, once it is decided."""

    references: Sequence[Reference]
    outcomes: Sequence[int] | None
    finished: bool
    called_ae_title: str
    version: int


class Commitments:
    """Keeps the requests, and evaluates them."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs, store_timeout: float) -> None:
        self._database = database
        self._clock = clock
        self._jobs = jobs
        self._store_timeout = timedelta(seconds=store_timeout)

    def request(
        self, station: str, called_ae_title: str, transaction_uid: str, references: Sequence[Reference]
    ) -> None:
        """Keep a request and make its job; the same one again begins anew.

        Raises:
            RadmeshError: TRANSACTION_IN_USE.
        """
        items = json.dumps(references)

        def work(connection: sa.Connection) -> int:
            self._database.serialise(connection)
            now = self._clock.now()
            row = connection.execute(_of(station, transaction_uid)).first()
            if row is not None and not row.finish_time and row.items != items:
                raise RadmeshError(
                    "TRANSACTION_IN_USE", "an open request with this Transaction UID names other objects"
                )
            values: dict[str, Any] = {
                "station": station,
                "transaction_uid": transaction_uid,
                "called_ae_title": called_ae_title,
                "items": items,
                "version": 1 if row is None else row.version + 1,
                "request_time": micros(now),
                "finish_time": 0,
            }
            version = int(values["version"])
            connection.execute(self._database.upsert(commitments, ["station", "transaction_uid"], values))
            old = micros(now - _KEPT)
            connection.execute(
                sa.delete(commitments).where(commitments.c.finish_time > 0, commitments.c.finish_time < old)
            )
            return version

        version = self._database.write(work)
        # Who dies here has not acknowledged, and is asked again.
        self._jobs.enqueue(JOB_KIND, f"{station} {transaction_uid} {version}", "", _DELAY, _ATTEMPTS)

    def evaluate(self, station: str, transaction_uid: str) -> Evaluation:
        """Find out what is stored for good.

        Raises:
            RadmeshError: TRANSACTION_NOT_FOUND.
        """
        with self._database.read() as connection:
            row = connection.execute(_of(station, transaction_uid)).first()
            if row is None:
                raise RadmeshError("TRANSACTION_NOT_FOUND", "there is no such request for Storage Commitment")
            references = [(sop_class, uid) for sop_class, uid in json.loads(row.items)]
            # Stores first: what they have registered until they told is seen by what is asked behind it.
            undecided = self._untold(connection, row.request_time)
            found: dict[str, set[str]] = {}
            wanted = list(dict.fromkeys(uid for _, uid in references))
            for first in range(0, len(wanted), _IN_MOST):
                stored = sa.exists().where(locations.c.instance == instances.c.id)
                query = sa.select(instances.c.sop_instance_uid, instances.c.sop_class_uid).where(
                    instances.c.sop_instance_uid.in_(wanted[first : first + _IN_MOST]), stored
                )
                for uid, sop_class in connection.execute(query):
                    found.setdefault(uid, set()).add(sop_class)
        outcomes = [_outcome(sop_class, found.get(uid)) for sop_class, uid in references]
        decided = not (undecided and NO_SUCH_OBJECT in outcomes)
        return Evaluation(
            references, outcomes if decided else None, bool(row.finish_time), row.called_ae_title, row.version
        )

    def _untold(self, connection: sa.Connection, request_time: int) -> bool:
        """Whether an archive or spool has not told since the request that all it has is registered."""
        now = self._clock.now()
        asked = time_of(request_time)
        patient = now < asked + _SILENT_PATIENCE
        since, told_since = micros(now - self._store_timeout), micros(asked + _HEARTBEAT_DELAY)
        kinds = (common_pb2.STORE_KIND_ARCHIVE, common_pb2.STORE_KIND_SPOOL)
        for store in connection.execute(sa.select(stores).where(stores.c.kind.in_(kinds))):
            alive = store.heartbeat_time >= since
            told = store.heartbeat_time >= told_since and not store.unregistered
            if not told and (alive or patient):
                return True
        return False

    def open(self, station: str) -> list[str]:
        """Return the Transaction UIDs of a station that has not had its report, oldest first."""
        with self._database.read() as connection:
            query = (
                sa.select(commitments.c.transaction_uid)
                .where(commitments.c.station == station, commitments.c.finish_time == 0)
                .order_by(commitments.c.id)
                .limit(_LIST_MOST)
            )
            return list(connection.execute(query).scalars())

    def finish(self, station: str, transaction_uid: str, version: int) -> None:
        """Note that the station has its report; a request that came again meanwhile stays open."""
        now = micros(self._clock.now())
        where = (
            commitments.c.station == station,
            commitments.c.transaction_uid == transaction_uid,
            commitments.c.version == version,
        )
        self._database.write(lambda c: c.execute(sa.update(commitments).where(*where).values(finish_time=now)))


def _of(station: str, transaction_uid: str) -> Any:
    return sa.select(commitments).where(
        commitments.c.station == station, commitments.c.transaction_uid == transaction_uid
    )


def _outcome(sop_class: str, found: set[str] | None) -> int:
    if found is None:
        return NO_SUCH_OBJECT
    return 0 if sop_class in found else CLASS_CONFLICT


@checked()
class CommitmentService:
    """database.v1.CommitmentService."""

    def __init__(self, kept: Commitments) -> None:
        self._kept = kept

    def RequestCommitment(self, request: pb.RequestCommitmentRequest, _call: Call) -> pb.RequestCommitmentResponse:
        """Keep a request."""
        r = request
        if not 1 <= len(r.references) <= _REFERENCES_MOST:
            raise invalid("references", f"1 to {_REFERENCES_MOST}")
        if not 1 <= len(r.station) <= 16 or len(r.called_ae_title) > 16:
            raise invalid("station, called_ae_title", "at most 16 characters")
        uids = (r.transaction_uid, *(u for each in r.references for u in (each.sop_class_uid, each.sop_instance_uid)))
        if not all(1 <= len(uid) <= 64 for uid in uids):
            raise invalid("transaction_uid, references", "UIDs of 1 to 64 characters")
        self._kept.request(
            r.station,
            r.called_ae_title,
            r.transaction_uid,
            [(each.sop_class_uid, each.sop_instance_uid) for each in r.references],
        )
        return pb.RequestCommitmentResponse()

    def EvaluateCommitment(self, request: pb.EvaluateCommitmentRequest, _call: Call) -> pb.EvaluateCommitmentResponse:
        """Say what is stored for good."""
        found = self._kept.evaluate(request.station, request.transaction_uid)
        pairs = () if found.outcomes is None else zip(found.references, found.outcomes, strict=True)
        return pb.EvaluateCommitmentResponse(
            decided=found.outcomes is not None,
            finished=found.finished,
            references=[
                pb.CommitmentReference(sop_class_uid=sop_class, sop_instance_uid=uid, failure_reason=reason)
                for (sop_class, uid), reason in pairs
            ],
            called_ae_title=found.called_ae_title,
            version=found.version,
        )

    def ListCommitments(self, request: pb.ListCommitmentsRequest, _call: Call) -> pb.ListCommitmentsResponse:
        """List open transactions."""
        return pb.ListCommitmentsResponse(transaction_uids=self._kept.open(request.station))

    def FinishCommitment(self, request: pb.FinishCommitmentRequest, _call: Call) -> pb.FinishCommitmentResponse:
        """Note that a report was delivered."""
        self._kept.finish(request.station, request.transaction_uid, request.version)
        return pb.FinishCommitmentResponse()
