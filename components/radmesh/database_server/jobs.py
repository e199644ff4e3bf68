"""Work that any worker may take: a row with a lease. A dead worker's row is taken by another."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.engine import Database, micros
from radmesh.database_server.feed import Feed
from radmesh.database_server.queries import Cursor
from radmesh.database_server.schema import jobs
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError

QUEUED, LEASED, SUCCEEDED, FAILED = 1, 2, 3, 4
_PAYLOAD_MAX: Final = 64 * 1024


class Jobs:
    """The queue."""

    def __init__(self, database: Database, feed: Feed, clock: Clock) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock

    def enqueue(self, kind: str, key: str, payload: str, delay: timedelta, max_attempts: int) -> dict[str, Any]:
        """Add a job; a live one with the same kind and key is returned instead.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        for field, value, most in (("kind", kind, 64), ("key", key, 256), ("payload", payload, _PAYLOAD_MAX)):
            if len(value) > most or (field != "payload" and not value):
                raise RadmeshError("FIELD_INVALID", f"{field}: 1 to {most} characters", metadata={"field": field})

        def work(connection: sa.Connection) -> tuple[Any, list[tuple[str, str]]]:
            inserted = connection.execute(
                self._database.insert_new(jobs).values(
                    kind=kind,
                    key=key,
                    payload=payload,
                    state=QUEUED,
                    max_attempts=max_attempts or 10,
                    due_time=micros(self._clock.now() + delay),
                )
            )
            live = sa.and_(jobs.c.kind == kind, jobs.c.key == key, jobs.c.state.in_((QUEUED, LEASED)))
            row = connection.execute(sa.select(jobs).where(live)).mappings().one()
            return dict(row), [("job", str(row["id"]))] if inserted.rowcount else []

        job, _ = self._feed.write(work)
        return job  # type: ignore[return-value]

    def lease(self, kinds: Sequence[str], owner: str, count: int, lease: timedelta) -> list[dict[str, Any]]:
        """Take up to `count` jobs that are due, or whose lease ran out."""

        def work(connection: sa.Connection) -> tuple[Any, list[tuple[str, str]]]:
            now = micros(self._clock.now())
            self._fail_exhausted(connection, kinds, now)
            takeable = sa.or_(
                sa.and_(jobs.c.state == QUEUED, jobs.c.due_time <= now),
                sa.and_(jobs.c.state == LEASED, jobs.c.lease_until < now),
            )
            query = sa.select(jobs.c.id).where(jobs.c.kind.in_(kinds), takeable).order_by(jobs.c.due_time, jobs.c.id)
            if not self._database.sqlite:
                query = query.with_for_update(skip_locked=True)
            ids = list(connection.execute(query.limit(count)).scalars())
            if not ids:
                return [], []
            connection.execute(
                sa.update(jobs)
                .where(jobs.c.id.in_(ids))
                .values(
                    state=LEASED,
                    owner=owner,
                    attempt=jobs.c.attempt + 1,
                    fence=jobs.c.fence + 1,
                    lease_until=micros(self._clock.now() + lease),
                )
            )
            rows = connection.execute(sa.select(jobs).where(jobs.c.id.in_(ids)).order_by(jobs.c.id)).mappings().all()
            return [dict(row) for row in rows], []

        taken, _ = self._feed.write(work)
        return taken  # type: ignore[return-value]

    def _fail_exhausted(self, connection: sa.Connection, kinds: Sequence[str], now: int) -> None:
        """A job whose every lease ran out kills its workers: it is not given to another."""
        connection.execute(
            sa.update(jobs)
            .where(
                jobs.c.kind.in_(kinds),
                jobs.c.state == LEASED,
                jobs.c.lease_until < now,
                jobs.c.attempt >= jobs.c.max_attempts,
            )
            .values(state=FAILED, reason="JOB_LOST", message="every attempt ended without an answer")
        )

    def _mine(self, connection: sa.Connection, job_id: int, fence: int) -> Any:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
        if row is None:
            raise RadmeshError("JOB_NOT_FOUND", "there is no such job")
        if row["fence"] != fence or row["state"] != LEASED:
            raise RadmeshError("JOB_LOST", "the lease ran out and another has the job: drop it")
        return row

    def _change(self, job_id: int, fence: int, values: Any, *, publish: bool) -> dict[str, Any]:
        def work(connection: sa.Connection) -> tuple[Any, list[tuple[str, str]]]:
            row = self._mine(connection, job_id, fence)
            # The fence is in the condition too: between two transactions of PostgreSQL the row may change.
            changed = connection.execute(
                sa.update(jobs)
                .where(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state == LEASED)
                .values(values(row))
            )
            if not changed.rowcount:
                raise RadmeshError("JOB_LOST", "the lease ran out and another has the job: drop it")
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().one()
            return dict(row), [("job", str(job_id))] if publish else []

        job, _ = self._feed.write(work)
        return job  # type: ignore[return-value]

    def renew(self, job_id: int, fence: int, lease: timedelta) -> dict[str, Any]:
        """Prolong a lease.

        Raises:
            RadmeshError: JOB_LOST, JOB_NOT_FOUND.
        """
        until = micros(self._clock.now() + lease)
        return self._change(job_id, fence, lambda _row: {"lease_until": until}, publish=False)

    def finish(
        self, job_id: int, fence: int, state: int, retry_delay: timedelta, reason: str, message: str
    ) -> dict[str, Any]:
        """End a job, or give it back; one that has no attempts left has failed.

        Raises:
            RadmeshError: JOB_LOST, JOB_NOT_FOUND, FIELD_INVALID.
        """
        if state not in (SUCCEEDED, FAILED, QUEUED):
            raise RadmeshError("FIELD_INVALID", "state: SUCCEEDED, FAILED or QUEUED", metadata={"field": "state"})
        due = micros(self._clock.now() + retry_delay)

        def values(row: Any) -> dict[str, Any]:
            again = state == QUEUED and row["attempt"] < row["max_attempts"]
            return {
                "state": QUEUED if again else FAILED if state == QUEUED else state,
                "due_time": due,
                "owner": "",
                "reason": reason[:64],
                "message": message[:1024],
            }

        return self._change(job_id, fence, values, publish=True)

    def list(self, kind: str, state: int, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of jobs, newest first, and the next token."""
        cursor = Cursor(("jobs", kind, state))
        position = cursor.read(token)
        conditions = []
        if kind:
            conditions.append(jobs.c.kind == kind)
        if state:
            conditions.append(jobs.c.state == state)
        if position:
            conditions.append(jobs.c.id < position[0])
        with self._database.read() as connection:
            query = sa.select(jobs).where(*conditions).order_by(jobs.c.id.desc()).limit(size + 1)
            rows = [dict(row) for row in connection.execute(query).mappings()]
        more = len(rows) > size
        rows = rows[:size]
        return rows, cursor.write(rows[-1]["id"]) if more else ""
