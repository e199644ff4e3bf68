"""A part of an object in the cache, opened."""

from collections.abc import Callable, Iterator
from typing import Final, Self

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store.environment import Environment
from radmesh.study_store.store import IndexRow, Residence


class CacheReader:
    """Iterates the bytes in order, at most 1,048,560 at a time. The environment stays open until it is closed."""

    verified: Final = False
    """Of the bytes in the cache alone no CRC-32C is kept."""

    def __init__(
        self,
        environment: Environment,
        release: Callable[[Environment], None],
        row: IndexRow,
        residence: Residence,
        *,
        number: int,
        offset: int,
        end: int,
    ) -> None:
        self.size = row.length
        self.sha256 = row.sha256
        self.residence = int(residence)
        self._environment: Environment | None = environment
        self._release = release
        self._number = number
        self._offset = offset
        self._end = end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let the environment go."""
        environment, self._environment = self._environment, None
        if environment is not None:
            self._release(environment)

    def __iter__(self) -> Iterator[bytes]:
        if self._environment is None:
            raise RadmeshError("OBJECT_NOT_FOUND", "the reader is closed")
        return self._environment.records(self._number, self._offset, self._end)
