"""The change feed: events are hints, tables are the truth."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.schema import changes, feed
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros, time_of

# What another process of the same PostgreSQL committed is seen after this.
_POLL_SECONDS = 0.5
_PAGE = 500
# The last changes that are at hand for all who watch.
_AT_HAND: Final = 4096
_REVISION = sa.select(feed.c.revision)
_ADVANCE = sa.update(feed).values(revision=feed.c.revision + sa.bindparam("count")).returning(feed.c.revision)
_INSERT = sa.insert(changes)
_BEHIND = sa.select(changes).where(changes.c.revision > sa.bindparam("after")).order_by(changes.c.revision)


@dataclass(frozen=True, slots=True)
class Change:
    """Something changed: look at it."""

    revision: int
    kind: str
    key: str
    time: datetime


class _Tail:
    """The last changes, read once for all who watch: each of them would ask the database after each commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        # Those behind revision `first`, to `last`; as of so many commits.
        self._rows: deque[Any] = deque(maxlen=_AT_HAND)
        self._first = self._last = -1
        self._commits = -1
        self._read_at = 0.0

    def behind(self, after: int, commits: int) -> Sequence[Any] | None:
        """Return what is behind a revision once so many commits were made here; None = the database must be asked."""
        with self._lock:
            if self._commits < commits or time.monotonic() - self._read_at >= _POLL_SECONDS:
                self._read()
                self._commits, self._read_at = max(commits, self._commits), time.monotonic()
            if not self._first <= after <= self._last:
                return None
            found = []
            for row in reversed(self._rows):
                if row.revision <= after:
                    break
                found.append(row)
            return found[::-1]

    def _read(self) -> None:
        with self._database.read() as connection:
            revision = int(connection.execute(_REVISION).scalar_one())
            if self._last == revision:
                return
            near = 0 <= self._last < revision < self._last + _AT_HAND
            rows = connection.execute(_BEHIND, {"after": self._last}).all() if near else ()
        if not rows or rows[0].revision != self._last + 1:
            # It begins, the database is another one's backup, or what is between is not kept.
            self._rows.clear()
            self._first = self._last = revision
            return
        self._rows.extend(rows)
        self._last = rows[-1].revision
        if len(self._rows) == _AT_HAND:
            self._first = self._rows[0].revision - 1


class Feed:
    """Takes revisions, and hands changes out."""

    def __init__(self, database: Database, clock: Clock, kept: int) -> None:
        self._database = database
        self._clock = clock
        self._kept = kept
        self._tail = _Tail(database)
        self._changed = threading.Condition()
        self._commits = 0
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
            self._commits += 1
            self._changed.notify_all()

    def wait(self, seconds: float, commits: int | None = None) -> None:
        """Wait until something was committed here; more than so many commits, if they are given."""
        with self._changed:
            if not self._stopped and commits in (None, self._commits):
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
        at_hand = False
        while active() and not self._stopped:
            commits = self._commits
            rows = self._tail.behind(after, commits) if at_hand else None
            if rows is None:
                after, rows = self._behind(after)
                at_hand = len(rows) < _PAGE
            for row in rows:
                if not kinds or row.kind in kinds:
                    yield Change(row.revision, row.kind, row.key, time_of(row.time))
                after = row.revision
            if at_hand:
                self.wait(_POLL_SECONDS, commits)

    def _behind(self, after: int) -> tuple[int, Sequence[Any]]:
        """Ask the database for a page behind a revision, 0 = whatever is kept; return the revision, and the page."""
        with self._database.read() as connection:
            state = connection.execute(sa.select(feed.c.revision, feed.c.oldest)).one()
            after = after or state.oldest
            if after < state.oldest or after > state.revision:
                raise RadmeshError(
                    "RESYNC",
                    "the change feed does not reach back so far: read the tables, then watch from now",
                    metadata={"revision": str(state.revision)},
                )
            return after, connection.execute(_BEHIND.limit(_PAGE), {"after": after}).all()
