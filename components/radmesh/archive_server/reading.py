"""Reads an object from the cache, or from the permanent tier where the cache copy is gone or damaged."""

from collections.abc import Callable, Iterator
from typing import Any, Self

from radmesh.archive_server.tier import Tier
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import LmdbStudyStore, Ref

Alarm = Callable[[str, str], None]


class Reading:
    """Opens objects, for ReadRange."""

    def __init__(self, store: LmdbStudyStore, tier: Tier, alarm: Alarm) -> None:
        self._store = store
        self._tier = tier
        self._alarm = alarm

    def __call__(self, ref: Ref, offset: int = 0, length: int = 0) -> "EitherReader":
        """Open a part of an object.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, RANGE_INVALID, OBJECT_CORRUPT.
        """
        try:
            reader: Any = self._store.read(ref, offset, length)
        except RadmeshError as error:
            if error.reason not in ("OBJECT_NOT_FOUND", "OBJECT_CORRUPT"):
                raise
            return EitherReader(self._tier.read(ref, offset, length), None, offset, length)
        return EitherReader(reader, lambda at, left: self._instead(ref, at, left), offset, length)

    def _instead(self, ref: Ref, offset: int, length: int) -> Any:
        self._alarm("CACHE_COPY_LOST", "an object in the cache is damaged: the permanent tier serves it")
        return self._tier.read(ref, offset, length)


class EitherReader:
    """Iterates bytes from one copy, and goes on in the other where the first fails."""

    def __init__(self, reader: Any, instead: Callable[[int, int], Any] | None, offset: int, length: int) -> None:
        self.size: int = reader.size
        self.sha256: bytes = reader.sha256
        self.residence: int = reader.residence
        self._reader = reader
        self._instead = instead
        self._at = offset
        self._end = min(self.size, offset + length) if length else self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._reader:
                self._at += len(data)
                yield data
        except RadmeshError as error:
            if error.reason != "OBJECT_CORRUPT" or self._instead is None:
                raise
            self._reader.close()
            self._reader = self._instead(self._at, self._end - self._at)
            yield from self._reader
