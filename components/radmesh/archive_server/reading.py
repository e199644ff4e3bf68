"""Reads an object from the cache, or from the permanent tier where the cache copy is gone or damaged."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from radmesh.api.common.v1 import common_pb2
from radmesh.archive_server.tier import BLOCK, Tier
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import LmdbStudyStore, Ref
from radmesh_native.crc32c import crc32c


class Reading:
    """Opens objects, for ReadRange."""

    def __init__(self, store: LmdbStudyStore, tier: Tier) -> None:
        self._store = store
        self._tier = tier

    def __call__(self, ref: Ref, offset: int = 0, length: int = 0) -> "EitherReader":
        """Open a part of an object.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, RANGE_INVALID, OBJECT_CORRUPT.
        """
        ref = self._store.damage.current(ref)
        try:
            reader: Any = self._store.read(ref, offset, length)
        except RadmeshError as error:
            if error.reason not in ("OBJECT_NOT_FOUND", "OBJECT_CORRUPT"):
                raise
            return EitherReader(self._tier.read(ref, offset, length), None, offset, length)
        instead = lambda at, left: self._instead(ref, at, left)  # noqa: E731
        if reader.residence != common_pb2.RESIDENCE_CACHE_AND_PERMANENT or (checks := self._tier.checks(ref)) is None:
            return EitherReader(reader, instead, offset, length)
        # Whole blocks are read, so that each can be checked before a byte of it leaves.
        wanted = min(reader.size, offset + length) if length else reader.size
        first, end = offset // BLOCK * BLOCK, min(reader.size, -(-wanted // BLOCK) * BLOCK)
        if (first, end) != (offset, wanted):
            reader.close()
            reader = self._store.read(ref, first, end - first)
        return EitherReader(reader, instead, offset, length, checks)

    def _instead(self, ref: Ref, offset: int, length: int) -> Any:
        self._store.damage.question(ref)
        return self._tier.read(ref, offset, length)


class EitherReader:
    """Iterates bytes from one copy, and goes on in the other where the first fails.

    Args:
        reader: the first copy; with `checks` it begins and ends where blocks do.
        instead: opens the other, at an offset, for so many bytes.
        offset: first byte that is wanted.
        length: bytes; 0 = to the end.
        checks: CRC-32C of the object's blocks.
    """

    def __init__(
        self,
        reader: Any,
        instead: Callable[[int, int], Any] | None,
        offset: int,
        length: int,
        checks: Sequence[int] | None = None,
    ) -> None:
        self.size: int = reader.size
        self.sha256: bytes = reader.sha256
        self.residence: int = reader.residence
        self._reader = reader
        self._instead = instead
        self._checks = checks
        self._at = offset
        self._end = min(self.size, offset + length) if length else self.size

    @property
    def verified(self) -> bool:
        """Whether what is yielded was compared with CRC-32Cs that were taken when the SHA-256 was verified."""
        return self._checks is not None or bool(self._reader.verified)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._reader if self._checks is None else self._checked(self._checks):
                self._at += len(data)
                yield data
        except RadmeshError as error:
            if error.reason != "OBJECT_CORRUPT" or self._instead is None:
                raise
            self._reader.close()
            self._reader = self._instead(self._at, self._end - self._at)
            yield from self._reader

    def _checked(self, checks: Sequence[int]) -> Iterator[bytes]:
        start = self._at // BLOCK * BLOCK
        for data in _blocks(self._reader):
            block = start // BLOCK
            if block >= len(checks) or crc32c(data) != checks[block]:
                raise RadmeshError("OBJECT_CORRUPT", "a record in the cache has other bytes than were stored")
            begin, end = self._at - start, self._end - start
            start += len(data)
            yield data if not begin and end >= len(data) else data[begin:end]


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks; as records are, unless a transfer was resumed within one."""
    held: bytes | bytearray = b""
    for piece in pieces:
        # A piece is copied only where it has to be joined.
        if not held:
            held = piece
        else:
            held = held if isinstance(held, bytearray) else bytearray(held)
            held += piece
        while len(held) >= BLOCK:
            yield bytes(held[:BLOCK])
            held = held[BLOCK:]
    if held:
        yield bytes(held)
