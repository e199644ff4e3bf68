"""Pages of a query that may take long: whoever waits for them is heard from, and whoever leaves stops the database."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa

from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

PULSE_SECONDS: Final = 0.25
_POOL: Final = ThreadPoolExecutor(max_workers=32, thread_name_prefix="dicom-query")

Page = TypeVar("Page")


class Pages:
    """Reads pages on another thread; a context manager, at whose end what still runs in the database is ended."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._left = False
        self._running: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            if self._running is not None:
                with contextlib.suppress(Exception):
                    # SQLite's name for it, and psycopg's.
                    (self._running.interrupt if self._database.sqlite else self._running.cancel)()

    def read(self, page: Callable[[sa.Connection], Page], *, short: bool = False) -> Iterator[Page | None]:
        """Yield a page once it is read, and None now and then until it is; not of a `short` one, which an index finds.

        Raises:
            RadmeshError: DATABASE_UNAVAILABLE, and what `page` raises.
        """
        if short:
            yield self._read(page)
            return
        coming: Future[Page] = _POOL.submit(self._read, page)
        while True:
            try:
                yield coming.result(PULSE_SECONDS)
            except TimeoutError:
                yield None
            else:
                return

    def _read(self, page: Callable[[sa.Connection], Page]) -> Page:
        with self._database.read() as connection:
            try:
                with self._lock:
                    if self._left:
                        raise RadmeshError("CANCELLED", "nobody waits for the answer any more")
                    self._running = connection.connection.driver_connection
                return page(connection)
            finally:
                with self._lock:
                    self._running = None
