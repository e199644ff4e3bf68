"""Work that any worker may take: a row with a lease. A dead worker's row is taken by another.

What has ended is kept for two weeks, to be looked at.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.queries import Cursor, page
from radmesh.database_server.schema import jobs
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

QUEUED, LEASED, SUCCEEDED, FAILED = 1, 2, 3, 4
_PAYLOAD_MAX: Final = 64 * 1024
_ATTEMPTS_MAX: Final = 1000
_KEPT: Final = timedelta(days=14)
# Rows removed by each job that ends: more than one, so that what was left lying becomes less.
_PRUNE: Final = 20


class Jobs:
    """The queue."""

    def __init__(self, database: Database, feed: Feed, clock: Clock) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self.failed: Callable[[sa.Connection, Any], None] = lambda _connection, _job: None
        """Called with the row of a job that has failed, in the transaction in which it has."""

    def enqueue(self, kind: str, key: str, payload: str, delay: timedelta, max_attempts: int) -> dict[str, Any]:
        """Add a job; a live one with the same kind and key is returned instead.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        for field, value, most in (("kind", kind, 64), ("key", key, 256), ("payload", payload, _PAYLOAD_MAX)):
            if len(value.encode()) > most or "\0" in value or (field != "payload" and not value):
                raise RadmeshError("FIELD_INVALID", f"{field}: 1 to {most} bytes, no NUL", metadata={"field": field})
        if not 0 <= max_attempts <= _ATTEMPTS_MAX:
            rule = f"max_attempts: 0 to {_ATTEMPTS_MAX}"
            raise RadmeshError("FIELD_INVALID", rule, metadata={"field": "max_attempts"})

        def work(connection: sa.Connection) -> tuple[Any, list[tuple[str, str]]]:
            values = {
                "kind": kind,
                "key": key,
                "payload": payload,
                "state": QUEUED,
                "max_attempts": max_attempts or 10,
                "due_time": micros(self._clock.now() + delay),
            }
            added = self._database.add(connection, jobs, values)
            live = sa.and_(jobs.c.kind == kind, jobs.c.key == key, jobs.c.state.in_((QUEUED, LEASED)))
            row = connection.execute(sa.select(jobs).where(live)).mappings().one()
            return dict(row), [("job", str(row["id"]))] if added else []

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
            query = (
                sa.select(jobs.c.id, jobs.c.payload)
                .where(jobs.c.kind.in_(kinds), takeable)
                .order_by(jobs.c.due_time, jobs.c.id)
            )
            if not self._database.sqlite:
                query = query.with_for_update(skip_locked=True)
            due = [dict(row) for row in connection.execute(query.limit(count)).mappings()]
            # No more than one answer holds: what is leased and not told of would wait for its lease to end.
            ids = [row["id"] for row in page(due, count, "payload")[0]]
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
        ended = connection.execute(
            sa.update(jobs)
            .where(
                jobs.c.kind.in_(kinds),
                jobs.c.state == LEASED,
                jobs.c.lease_until < now,
                jobs.c.attempt >= jobs.c.max_attempts,
            )
            .values(state=FAILED, due_time=now, reason="JOB_LOST", message="every attempt ended without an answer")
            .returning(jobs)
        )
        for row in ended.all():
            self.failed(connection, row)

    def _change(
        self, job_id: int, fence: int, values: Callable[[Any], dict[str, Any]], *, done: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Change a job that is leased under `fence`; one in a state of `done` under it was changed so before."""

        def work(connection: sa.Connection) -> tuple[Any, list[tuple[str, str]]]:
            query = sa.select(jobs).where(jobs.c.id == job_id)
            row = connection.execute(query if self._database.sqlite else query.with_for_update()).mappings().first()
            if row is None:
                raise RadmeshError("JOB_NOT_FOUND", "there is no such job")
            if row["fence"] == fence and row["state"] in done:
                return dict(row), []
            if row["fence"] != fence or row["state"] != LEASED:
                raise RadmeshError("JOB_LOST", "the lease ran out and another has the job: drop it")
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(values(row)))
            if done:
                self._prune(connection, row["kind"])
            changed = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()
            if changed.state == FAILED:
                self.failed(connection, changed)
            return _as_dict(changed), [("job", str(job_id))] if done else []

        job, _ = self._feed.write(work)
        return job  # type: ignore[return-value]

    def _prune(self, connection: sa.Connection, kind: str) -> None:
        """Remove some jobs of a kind that ended long ago: since then nothing has set their `due_time`."""
        before = micros(self._clock.now() - _KEPT)
        for state in (SUCCEEDED, FAILED):
            old = (
                sa.select(jobs.c.id)
                .where(jobs.c.kind == kind, jobs.c.state == state, jobs.c.due_time < before)
                .order_by(jobs.c.due_time)
                .limit(_PRUNE)
            )
            if not self._database.sqlite:
                # Another that ends at this moment has its own.
                old = old.with_for_update(skip_locked=True)
            connection.execute(sa.delete(jobs).where(jobs.c.id.in_(old.scalar_subquery())))

    def renew(self, job_id: int, fence: int, lease: timedelta) -> dict[str, Any]:
        """Prolong a lease.

        Raises:
            RadmeshError: JOB_LOST, JOB_NOT_FOUND.
        """
        until = micros(self._clock.now() + lease)
        return self._change(job_id, fence, lambda _row: {"lease_until": until})

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

        # The call is repeated where its answer was lost.
        return self._change(job_id, fence, values, done=(QUEUED, FAILED) if state == QUEUED else (state,))

    def retry(self, job_id: int, kind: str) -> dict[str, Any]:
        """Queue a job of a kind that has failed again, with all its attempts; one that is queued stays so.

        Raises:
            RadmeshError: JOB_NOT_FOUND, JOB_NOT_FAILED.
        """

        def work(connection: sa.Connection, row: Any) -> dict[str, Any] | None:
            if row.state == QUEUED:
                return None
            live = sa.select(jobs.c.id).where(
                jobs.c.kind == kind, jobs.c.key == row.key, jobs.c.state.in_((QUEUED, LEASED))
            )
            if row.state != FAILED or connection.execute(live).first() is not None:
                raise RadmeshError("JOB_NOT_FAILED", "the job, or another of the same, is under way or done")
            now = micros(self._clock.now())
            return {"state": QUEUED, "attempt": 0, "due_time": now, "reason": "", "message": ""}

        return self._decide(job_id, kind, work)

    def cancel(self, job_id: int, kind: str) -> dict[str, Any]:
        """End a job of a kind; who has its lease loses it.

        Raises:
            RadmeshError: JOB_NOT_FOUND, JOB_ENDED.
        """

        def work(_connection: sa.Connection, row: Any) -> dict[str, Any] | None:
            if row.state == FAILED and row.reason == "CANCELLED":
                return None
            if row.state not in (QUEUED, LEASED):
                raise RadmeshError("JOB_ENDED", "the job has ended already")
            return {
                "state": FAILED,
                "fence": row.fence + 1,
                "due_time": micros(self._clock.now()),
                "owner": "",
                "reason": "CANCELLED",
                "message": "a person cancelled it",
            }

        return self._decide(job_id, kind, work)

    def _decide(
        self, job_id: int, kind: str, decide: Callable[[sa.Connection, Any], dict[str, Any] | None]
    ) -> dict[str, Any]:
        """Change a job as `decide` says, whoever has its lease; None = it is so already."""

        def work(connection: sa.Connection) -> tuple[Any, list[tuple[str, str]]]:
            self._database.serialise(connection)
            query = sa.select(jobs).where(jobs.c.id == job_id, jobs.c.kind == kind)
            row = connection.execute(query if self._database.sqlite else query.with_for_update()).first()
            if row is None:
                raise RadmeshError("JOB_NOT_FOUND", "there is no such job")
            values = decide(connection, row)
            if values is None:
                return _as_dict(row), []
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(values))
            changed = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()
            if changed.state == FAILED:
                self.failed(connection, changed)
            return _as_dict(changed), [("job", str(job_id))]

        job, _ = self._feed.write(work)
        return job  # type: ignore[return-value]

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
            found = [dict(row) for row in connection.execute(query).mappings()]
        rows, more = page(found, size, "payload")
        return rows, cursor.write(rows[-1]["id"]) if more else ""


def _as_dict(row: Any) -> dict[str, Any]:
    return dict(zip(row._fields, row, strict=True))
