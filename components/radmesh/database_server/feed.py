"""The change feed: events are hints, tables are the truth."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from radmesh.database_server.schema import changes, feed
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros, time_of

# What another process of the same PostgreSQL committed is seen after this.
_POLL_SECONDS = 0.5
_PAGE = 500
_REVISION = sa.select(feed.c.revision)
_ADVANCE = sa.update(feed).values(revision=feed.c.revision + sa.bindparam("count")).returning(feed.c.revision)
_INSERT = sa.insert(changes)


@dataclass(frozen=True, slots=True)
class Change:
    """Something changed: look at it."""

    revision: int
    kind: str
    key: str
    time: datetime


class Feed:
    """Takes revisions, and hands changes out."""

    def __init__(self, database: Database, clock: Clock, kept: int) -> None:
        self._database = database
        self._clock = clock
        self._kept = kept
        self._changed = threading.Condition()
        self._stopped = False

    def publish(self, connection: sa.Connection, events: Sequence[tuple[str, str]]) -> int:
        """Write changes within a transaction, as its last statement; return the greatest revision.

        The row of `feed` stays locked until the commit, so that revisions become visible in their order.
        """
        if not events:
            return int(connection.execute(_REVISION).scalar_one())
        last: int = connection.execute(_ADVANCE, {"count": len(events)}).scalar_one()
        now = micros(self._clock.now())
        connection.execute(
            _INSERT,
            [
                {"revision": last - len(events) + 1 + i, "kind": kind, "key": key, "time": now}
                for i, (kind, key) in enumerate(events)
            ],
        )
        if last // 1000 != (last - len(events)) // 1000 and last > self._kept:
            connection.execute(sa.delete(changes).where(changes.c.revision <= last - self._kept))
            connection.execute(sa.update(feed).values(oldest=last - self._kept))
        return last

    def write(self, work: Callable[[sa.Connection], tuple[object, Sequence[tuple[str, str]]]]) -> tuple[object, int]:
        """Run `work`, which gives (result, events), in a transaction, and publish; return (result, revision)."""

        def run(connection: sa.Connection) -> tuple[object, int]:
            result, events = work(connection)
            return result, self.publish(connection, events)

        answer = self._database.write(run)
        self.wake()
        return answer

    def wake(self) -> None:
        """Something was committed."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until something was committed here."""
        with self._changed:
            if not self._stopped:
                self._changed.wait(seconds)

    @property
    def stopped(self) -> bool:
        """Whether nobody should wait any longer."""
        return self._stopped

    def stop(self) -> None:
        """End all watches."""
        self._stopped = True
        self.wake()

    def revision(self) -> int:
        """Return the greatest revision."""
        with self._database.read() as connection:
            return int(connection.execute(_REVISION).scalar_one())

    def watch(self, after: int, kinds: Sequence[str], active: Callable[[], bool]) -> Iterator[Change]:
        """Yield changes behind revision `after`, for as long as `active`.

        Raises:
            RadmeshError: RESYNC.
        """
        while active() and not self._stopped:
            with self._database.read() as connection:
                state = connection.execute(sa.select(feed.c.revision, feed.c.oldest)).one()
                # 0 asks for whatever is kept.
                after = after or state.oldest
                if after < state.oldest or after > state.revision:
                    raise RadmeshError(
                        "RESYNC",
                        "the change feed does not reach back so far: read the tables, then watch from now",
                        metadata={"revision": str(state.revision)},
                    )
                query = sa.select(changes).where(changes.c.revision > after).order_by(changes.c.revision).limit(_PAGE)
                rows = connection.execute(query).all()
            for row in rows:
                if not kinds or row.kind in kinds:
                    yield Change(row.revision, row.kind, row.key, time_of(row.time))
                after = row.revision
            if len(rows) < _PAGE:
                self.wait(_POLL_SECONDS)
