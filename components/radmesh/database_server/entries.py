"""Tables that the configuration fills first, and persons edit from then on: stations, routes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa

from radmesh.database_server.checks import invalid
from radmesh.database_server.feed import Feed
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

_MOST: Final = 5000

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Entry(Generic[Value]):
    """A value as its table has it. `edited`: by a person; `update_time` in microseconds since 1970 UTC."""

    value: Value
    edited: bool
    version: int
    update_time: int


class Entries(Generic[Value]):
    """Keeps named values.

    Args:
        database: of the table.
        feed: that is told of changes.
        clock: the time.
        table: one of schema._entries.
        kind: of the changes, and what messages call a value.
        write: gives a value as JSON.
        read: makes one of what that was.
    """

    def __init__(
        self,
        database: Database,
        feed: Feed,
        clock: Clock,
        table: sa.Table,
        kind: str,
        write: Callable[[Value], str],
        read: Callable[[Mapping[str, Any]], Value],
    ) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._table = table
        self._kind = kind
        self._write = write
        self._read = read

    def fill(self, named: Mapping[str, Value]) -> None:
        """Take over what the configuration says of those that no person has edited, or removed."""

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            self._database.serialise(connection)
            known = {row.name: row for row in connection.execute(sa.select(self._table))}
            changed = []
            for name, value in named.items():
                row = known.get(name)
                if row is None or (not row.edited and (row.removed or self._value(row) != value)):
                    self._put(connection, name, value, edited=False)
                    changed.append(name)
            for name, row in known.items():
                if name not in named and not row.edited and not row.removed:
                    self._put(connection, name, self._value(row), edited=False, removed=True)
                    changed.append(name)
            return None, [(self._kind, name) for name in changed]

        self._feed.write(work)

    def version(self) -> int:
        """Return the version of the newest change; 0 = there was none."""
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.max(self._table.c.version))).scalar() or 0)

    def list(self) -> list[Entry[Value]]:
        """Return all by name."""
        with self._database.read() as connection:
            query = sa.select(self._table).where(~self._table.c.removed).order_by(self._table.c.name)
            return [self._entry(row) for row in connection.execute(query)]

    def put(self, name: str, value: Value, expected_version: int) -> Entry[Value]:
        """Add a value, or replace that of its name.

        Raises:
            RadmeshError: FIELD_INVALID, VERSION_CONFLICT.
        """
        table = self._table

        def work(connection: sa.Connection) -> tuple[Entry[Value], Sequence[tuple[str, str]]]:
            self._database.serialise(connection)
            row = connection.execute(sa.select(table).where(table.c.name == name)).first()
            if expected_version and (row is None or row.removed or row.version != expected_version):
                now = 0 if row is None or row.removed else row.version
                raise RadmeshError(
                    "VERSION_CONFLICT",
                    f"the {self._kind} has changed since: read it again",
                    metadata={"version": str(now)},
                )
            if row is not None and row.edited and not row.removed and self._value(row) == value:
                return self._entry(row), ()  # the call is repeated where its answer was lost
            if connection.execute(sa.select(sa.func.count()).where(~table.c.removed)).scalar_one() >= _MOST:
                raise invalid(self._kind, f"there are {_MOST} {self._kind}s already, and no more fit: remove one")
            self._put(connection, name, value, edited=True)
            changed = connection.execute(sa.select(table).where(table.c.name == name)).one()
            return self._entry(changed), [(self._kind, name)]

        entry, _ = self._feed.write(work)
        return entry  # type: ignore[return-value]

    def remove(self, name: str) -> None:
        """Remove a value.

        Raises:
            RadmeshError: STATION_NOT_FOUND, ROUTE_NOT_FOUND.
        """

        def work(connection: sa.Connection) -> tuple[None, Sequence[tuple[str, str]]]:
            self._database.serialise(connection)
            query = sa.select(self._table).where(self._table.c.name == name, ~self._table.c.removed)
            row = connection.execute(query).first()
            if row is None:
                raise RadmeshError(
                    f"{self._kind.upper()}_NOT_FOUND",
                    f"there is no such {self._kind}: see 'radmesh {self._kind}s'",
                )
            self._put(connection, name, self._value(row), edited=True, removed=True)
            return None, [(self._kind, name)]

        self._feed.write(work)

    def _put(self, connection: sa.Connection, name: str, value: Value, *, edited: bool, removed: bool = False) -> None:
        last = connection.execute(sa.select(sa.func.max(self._table.c.version))).scalar() or 0
        values = {
            "name": name,
            "entry": self._write(value),
            "edited": edited,
            "removed": removed,
            "version": last + 1,
            "update_time": micros(self._clock.now()),
        }
        connection.execute(self._database.upsert(self._table, ["name"], values))

    def _value(self, row: Any) -> Value:
        return self._read(json.loads(row.entry))

    def _entry(self, row: Any) -> Entry[Value]:
        return Entry(self._value(row), row.edited, row.version, row.update_time)
