"""The connection to SQLite or PostgreSQL: durable commits, one writer on SQLite, retries on PostgreSQL."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from radmesh.runtime.errors import RadmeshError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TRIES: Final = 5
# PostgreSQL: serialization_failure, deadlock_detected.
_RETRY: Final = ("40001", "40P01")

Result = TypeVar("Result")


def micros(time: datetime) -> int:
    """Return a time as the tables keep it."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def time_of(value: int) -> datetime:
    """Return a time from the tables."""
    return _EPOCH + timedelta(microseconds=value)


class Database:
    """An engine, migrated to the present schema.

    Args:
        url: SQLAlchemy URL of an SQLite or PostgreSQL database.
        migrations: Alembic's script location.

    Raises:
        RadmeshError: DATABASE_UNAVAILABLE.
    """

    def __init__(self, url: str, migrations: Path) -> None:
        self._migrations = migrations
        self.url = sa.make_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._writer = threading.Lock()
        settings: dict[str, Any] = {"pool_pre_ping": not self.sqlite}
        if self.sqlite:
            settings["connect_args"] = {"timeout": 30.0, "check_same_thread": False}
        else:
            settings |= {"pool_size": 16, "max_overflow": 48, "connect_args": {"connect_timeout": 5}}
        self.engine = sa.create_engine(self.url, **settings)
        sa.event.listen(self.engine, "connect", self._connected)
        if self.sqlite:
            # SQLAlchemy's own recipe: the driver must not begin transactions by itself.
            sa.event.listen(self.engine, "begin", lambda c: c.exec_driver_sql(c.info.pop("begin", "BEGIN")))
        try:
            self._migrate()
        except (OperationalError, OSError) as error:
            raise RadmeshError("DATABASE_UNAVAILABLE", f"cannot open the database: {type(error).__name__}") from error

    def _connected(self, connection: Any, _record: Any) -> None:
        if not self.sqlite:
            cursor = connection.cursor()
            cursor.execute("SET synchronous_commit = on")
            cursor.execute("SET lock_timeout = '20s'")
            cursor.close()
            connection.commit()
            return
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode = WAL",
            # Durable at commit, also after a power cut: CORRECTNESS rule 1.
            "synchronous = FULL",
            "foreign_keys = ON",
            "case_sensitive_like = ON",
            "temp_store = MEMORY",
            "cache_size = -65536",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def _migrate(self) -> None:
        configuration = Config()
        configuration.set_main_option("script_location", str(self._migrations))
        with self.engine.connect() as connection:
            if not self.sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_lock(7233451)")
                connection.commit()
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, "head")
            if not self.sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_unlock(7233451)")
            connection.commit()

    def write(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Run `work` in a transaction, committed durably when this returns. It may run more than once.

        Raises:
            RadmeshError: what `work` raises, and DATABASE_UNAVAILABLE.
        """
        for attempt in range(_TRIES):
            try:
                if not self.sqlite:
                    with self.engine.begin() as connection:
                        return work(connection)
                # One writer: a second one would only wait within SQLite, without fairness.
                with self._writer, self.engine.connect() as connection:
                    connection.info["begin"] = "BEGIN IMMEDIATE"
                    with connection.begin():
                        return work(connection)
            except PoolTimeoutError as error:
                raise _busy() from error
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state in _RETRY and attempt < _TRIES - 1:
                    continue
                raise unavailable(error) from error
        raise AssertionError

    def serialise(self, connection: sa.Connection) -> None:
        """Let one transaction at a time, from here to its end, decide what is current, held, counted, or the last copy.

        SQLite has one writer anyway. Under READ COMMITTED two writers would each decide without the other's rows.
        """
        if not self.sqlite:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7233452)")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one state of the database.

        Raises:
            RadmeshError: DATABASE_UNAVAILABLE.
        """
        try:
            with self.engine.connect() as connection:
                if not self.sqlite:
                    # READ COMMITTED would give each statement a state of its own.
                    connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection
        except PoolTimeoutError as error:
            raise _busy() from error
        except DBAPIError as error:
            raise unavailable(error) from error

    def insert_new(self, table: sa.Table) -> Any:
        """Return an INSERT that does nothing where the row is there."""
        dialect = sqlite if self.sqlite else postgresql
        return dialect.insert(table).on_conflict_do_nothing()

    def add(self, connection: sa.Connection, table: sa.Table, values: dict[str, Any]) -> bool:
        """Insert a row where it is not there yet; return whether it was not."""
        # Drivers count the rows of such an INSERT differently, or not at all.
        key = table.primary_key.columns[0]
        return connection.execute(self.insert_new(table).values(values).returning(key)).first() is not None

    def upsert(self, table: sa.Table, keys: list[str], values: dict[str, Any]) -> Any:
        """Return an INSERT of `values` that updates all but `keys` where the row is there."""
        dialect = sqlite if self.sqlite else postgresql
        statement = dialect.insert(table).values(values)
        return statement.on_conflict_do_update(
            index_elements=keys, set_={k: statement.excluded[k] for k in values if k not in keys}
        )

    def backup(self, path: Path) -> None:
        """Copy an SQLite database that is in use to `path`; PostgreSQL has pg_dump for that."""
        if not self.sqlite:
            raise RadmeshError("FIELD_INVALID", "use pg_dump for PostgreSQL")
        import sqlite3  # noqa: PLC0415

        with self.engine.connect() as connection, sqlite3.connect(path) as target:
            raw: Any = connection.connection.driver_connection
            raw.backup(target)
        target.close()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _busy() -> RadmeshError:
    return RadmeshError("DATABASE_UNAVAILABLE", "too many queries at once: try again")


def unavailable(error: DBAPIError) -> RadmeshError:
    """Return what a driver's error means to a caller: its class alone, since its text may quote values."""
    kind = type(error.orig).__name__ if error.orig is not None else type(error).__name__
    if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError | sa.exc.DataError):
        return RadmeshError("INTERNAL", f"the database refused a statement: {kind}")
    return RadmeshError("DATABASE_UNAVAILABLE", f"the database does not work: {kind}")
