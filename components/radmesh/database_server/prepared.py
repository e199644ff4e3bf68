"""SELECTs that are asked for many times a second: written once, and run by the driver itself.

SQLAlchemy builds, recognises and wraps a statement anew each time, which costs ten times what SQLite needs to answer.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from radmesh.sql.engine import Database

# Longer lists of row ids are asked for in parts; shorter ones are filled up, so that there are few statements.
_LONGEST: Final = 1024


def text(name: str) -> sa.BindParameter[str]:
    """Return a place for a text in a statement."""
    return sa.bindparam(name, "", sa.String)


def number(name: str) -> sa.BindParameter[int]:
    """Return a place for a number in a statement."""
    return sa.bindparam(name, 0, sa.BigInteger)


def padded(values: Sequence[Any]) -> list[Any]:
    """Return as many values as the next power of two, the last one repeated: statements are few."""
    places = 1 << (len(values) - 1).bit_length() if values else 0
    return [values[min(place, len(values) - 1)] for place in range(places)]


class Prepared:
    """A SELECT. Its parameters are its bindparams with a name; those that have a value already may be left out.

    Args:
        database: where it runs.
        select: the statement.
    """

    def __init__(self, database: Database, select: sa.Select[Any]) -> None:
        dialect: Any = database.engine.dialect
        compiled: Any = select.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        self._dialect = dialect
        self.sql: str = compiled.string
        self._order: Sequence[str] | None = compiled.positiontup
        self._defaults: dict[str, Any] = compiled.params
        self.names = tuple(str(column.key) for column in select.selected_columns)
        readers = [
            column.type.dialect_impl(dialect).result_processor(dialect, None) for column in select.selected_columns
        ]
        self._readers = tuple((place, read) for place, read in enumerate(readers) if read is not None)

    def rows(self, connection: sa.Connection, **parameters: Any) -> list[Sequence[Any]]:
        """Return all rows; begins a transaction if there is none, as SQLAlchemy does.

        Raises:
            DBAPIError: what the driver raises, as SQLAlchemy tells it.
        """
        given: Any = {**self._defaults, **parameters} if self._defaults else parameters
        if self._order is not None:
            given = tuple([given[name] for name in self._order])
        if not connection.in_transaction():
            connection.begin()
        try:
            cursor = connection.connection.cursor()
            try:
                self.execute(cursor, given)
                rows: list[Sequence[Any]] = list(cursor.fetchall())
            finally:
                cursor.close()
        except self._dialect.dbapi.Error as error:
            kind = self._dialect.dbapi.Error
            raise DBAPIError.instance(self.sql, None, error, kind, hide_parameters=True) from error
        if self._readers:
            made = [list(row) for row in rows]
            for row in made:
                for place, read in self._readers:
                    row[place] = read(row[place])
            return list(made)
        return rows

    def execute(self, cursor: Any, parameters: Any) -> None:
        """Run it."""
        cursor.execute(self.sql, parameters)

    def mappings(self, connection: sa.Connection, **parameters: Any) -> list[dict[str, Any]]:
        """Return the same by the names of the columns."""
        names = self.names
        return [dict(zip(names, row, strict=True)) for row in self.rows(connection, **parameters)]


class PreparedForRows:
    """SELECTs of some rows: `where` makes the statement of an IN condition's list of bindparams."""

    def __init__(self, database: Database, where: Callable[[list[sa.BindParameter[int]]], sa.Select[Any]]) -> None:
        self._database = database
        self._where = where
        self._made: dict[int, Prepared] = {}

    def _of(self, ids: Sequence[int]) -> Iterator[tuple[Prepared, dict[str, int]]]:
        for start in range(0, len(ids), _LONGEST):
            some = ids[start : start + _LONGEST]
            places = 1 << (len(some) - 1).bit_length()
            made = self._made.get(places)
            if made is None:
                binds = [number(f"id_{place}") for place in range(places)]
                made = self._made[places] = Prepared(self._database, self._where(binds))
            yield made, {f"id_{place}": some[min(place, len(some) - 1)] for place in range(places)}

    def rows(self, connection: sa.Connection, ids: Sequence[int], **parameters: Any) -> list[Sequence[Any]]:
        """Return what there is of `ids`; as Prepared.rows."""
        return [row for made, listed in self._of(ids) for row in made.rows(connection, **listed, **parameters)]

    def mappings(self, connection: sa.Connection, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the same by the names of the columns."""
        return [row for made, listed in self._of(ids) for row in made.mappings(connection, **listed)]
