"""Reads any part of a stored object; goes on after a cut, and at another location when one fails.

Who wants many objects asks for them over a line, one ahead of the other: `LineReader`.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc

from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.runtime.clock import Clock, SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.line import Line
from radmesh.runtime.rpc import Client
from radmesh.transfer.codec import READ, READ_ANSWER, TRANSFER_CODECS, Buffer, Bulk
from radmesh.transfer.model import ObjectReference
from radmesh_native.crc32c import crc32c

TRIES: Final = 2
LAST_TRIES: Final = 7
"""Attempts that bring no byte, at a location and at the last one: about 2 s of pauses."""
CALL_SECONDS: Final = 60.0
"""Deadline of one call; a longer read goes on with another one."""
NOT_AGAIN: Final = frozenset(
    ("OBJECT_NOT_FOUND", "OBJECT_CORRUPT", "RANGE_INVALID", "CALLER_REFUSED", "CALLER_UNKNOWN", "FIELD_INVALID")
)
SERVICE: Final = transfer_pb2.DESCRIPTOR.services_by_name["TransferService"]


@dataclass(frozen=True, slots=True)
class LineTo:
    """Where a store has its lines, and what opens one (Context.line)."""

    target: str
    lines: Callable[[str, str], Line]


@dataclass(frozen=True, slots=True)
class Location:
    """One copy of an object: what it is called in its store, the channel to that store, and its lines if it has any."""

    channel: grpc.Channel
    object: ObjectReference
    line: LineTo | None = None


class ObjectRead:
    """Iterates the bytes of a range, in order, at most 1,048,560 at a time; use it as a context manager or to its end.

    Attributes:
        size: bytes of the whole object.
        sha256: of the whole object; verified when all of it is read, here or by the store (ReadResponse.verified).
        residence: radmesh.api.common.v1.Residence of the copy that is read.
    """

    def __init__(
        self, locations: Sequence[Location], offset: int = 0, length: int = 0, *, clock: Clock | None = None
    ) -> None:
        """Open the range: the first message has come when this returns.

        Args:
            locations: copies of one content, best first; the next is tried when one fails.
            offset: first byte.
            length: bytes; 0 = to the end.
            clock: for the pauses between attempts.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, RANGE_INVALID, OBJECT_CORRUPT, PEER_UNAVAILABLE …: the last location's.
        """
        self.size = -1
        self.sha256 = b""
        self.residence = 0
        self._locations = list(locations)
        self._at = self._begin = offset
        self._length = length
        self._failures = 0
        self._clock = clock or SystemClock()
        self._never = threading.Event()
        # Of what has come; None while the store has compared all of it.
        self._digest: Any = None
        self._call: Any = None
        self._first = self._next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        data = self._next() if self._first is None else self._first
        self._first = None
        if data is None:
            self.close()
            if self._digest is not None and self._digest.digest() != self.sha256:
                raise RadmeshError("OBJECT_CORRUPT", "the SHA-256 of what was read is not that of the object")
            raise StopIteration
        return data

    def close(self) -> None:
        """End the call that is under way."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    @property
    def _end(self) -> int:
        return min(self.size, self._begin + self._length) if self._length else self.size

    def _next(self) -> Buffer | None:
        """The next bytes, or None after the last."""
        while True:
            try:
                return self._receive()
            except RadmeshError as error:
                self.close()
                self._failures += 1
                last = len(self._locations) < 2
                if error.reason not in NOT_AGAIN and self._failures < (LAST_TRIES if last else TRIES):
                    self._clock.wait(self._never, min(0.05 * 2 ** (self._failures - 1), 1.0))
                elif last:
                    raise
                else:
                    self._locations.pop(0)
                    self._failures = 0

    def _receive(self) -> Buffer | None:
        if self.size >= 0 and self._at >= self._end:
            return None
        if self._call is None:
            if not self._locations:
                raise RadmeshError("OBJECT_NOT_FOUND", "no store is known to have the object")
            location = self._locations[0]
            request = transfer_pb2.ReadRangeRequest(
                object=location.object.message(),
                offset=self._at,
                length=self._end - self._at if self.size >= 0 else self._length,
            )
            self._call = Client(location.channel, SERVICE, codecs=TRANSFER_CODECS).ReadRange(
                request, timeout=CALL_SECONDS
            )
            message = self._message()
            self._describe(message.fields)
        else:
            message = self._message()
        fields, data = message.fields, message.data
        if not data and self._at < self._end:
            raise RadmeshError("CHUNK_CORRUPT", "the store sent no data")
        if data and (fields.offset != self._at or crc32c(data) != fields.crc32c or self._at + len(data) > self._end):
            raise RadmeshError("CHUNK_CORRUPT", "a chunk does not fit: offset or CRC-32C differ")
        if self._whole and self._digest is None and not fields.verified:
            self._digest = self._hashed_again(self._at)
        if not data:
            return None
        self._at += len(data)
        self._failures = 0
        if self._digest is not None:
            self._digest.update(data)
        return data

    def _hashed_again(self, end: int) -> Any:
        """Return the SHA-256 of what came of the object from a store that had compared it: this one has not."""
        digest = hashlib.sha256()
        if end:
            place = self._locations[0]
            for piece in ObjectRead([Location(place.channel, place.object)], 0, end, clock=self._clock):
                digest.update(piece)
        return digest

    def _message(self) -> Bulk[transfer_pb2.ReadRangeResponse]:
        try:
            message: Bulk[transfer_pb2.ReadRangeResponse] = next(self._call)
        except StopIteration:
            raise RadmeshError("PEER_UNAVAILABLE", "the store ended the stream early") from None
        return message

    def _describe(self, fields: transfer_pb2.ReadRangeResponse) -> None:
        if self.size >= 0 and (fields.size, fields.sha256) != (self.size, self.sha256):
            raise RadmeshError("OBJECT_CORRUPT", "the locations differ in size or SHA-256")
        self.size, self.sha256, self.residence = fields.size, fields.sha256, fields.residence

    @property
    def _whole(self) -> bool:
        return not self._begin and self._end == self.size


def read_object(locations: Sequence[Location], offset: int = 0, length: int = 0) -> ObjectRead:
    """Open a range of an object that is at one or more locations; see ObjectRead."""
    return ObjectRead(locations, offset, length)


def read_range(channel: grpc.Channel, reference: ObjectReference, offset: int = 0, length: int = 0) -> ObjectRead:
    """Open a range of an object at one store; see ObjectRead."""
    return ObjectRead([Location(channel, reference)], offset, length)


class LineReader:
    """Reads whole objects of one store over a line (TransferService.Read). One thread uses it.

    What is wanted next is asked for before its turn, so that the store reads while its last answer is dealt with.
    Nothing is tried again here: who gets an error reads the object as `ObjectRead` does.
    """

    def __init__(self, to: LineTo) -> None:
        """Open the line.

        Raises:
            RadmeshError: PEER_UNAVAILABLE, PEER_TIMEOUT.
        """
        self._line = to.lines(to.target, READ)
        self._asked: deque[int] = deque()

    def ask(self, reference: ObjectReference, size: int) -> None:
        """Ask for an object; it takes memory until it is taken.

        Args:
            reference: where it is.
            size: its bytes.

        Raises:
            RadmeshError: PEER_UNAVAILABLE …: the line is lost, and with it what else was asked for.
        """
        self._line.send(transfer_pb2.ReadRequest(object=reference.message()).SerializeToString())
        self._asked.append(size)

    def take(self) -> list[Buffer]:
        """Return the bytes of the object that was asked for first, as they came: at most 1,048,560 at a time.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, OBJECT_CORRUPT: this one cannot be read there; anything else, and
                CHUNK_CORRUPT: the line is lost.
        """
        size = self._asked.popleft()
        pieces: list[Buffer] = []
        at, proved, sha256 = 0, True, b""
        while True:
            answer = READ_ANSWER(self._line.receive())
            fields, data = answer.fields, answer.data
            if fields.HasField("failed"):
                raise RadmeshError(fields.failed.reason, fields.failed.message)
            sha256 = sha256 or fields.sha256
            fits = fields.size == size and fields.offset == at and at + len(data) <= size and (data or not size)
            at += len(data)
            if not fits or crc32c(data) != fields.crc32c:
                # What else comes is that of nobody knows which object.
                self.close()
                raise RadmeshError("CHUNK_CORRUPT", "a chunk does not fit: offset, size or CRC-32C differ")
            proved = proved and fields.verified
            pieces.append(data)
            if at == size:
                break
        if not proved:
            digest = hashlib.sha256()
            for piece in pieces:
                digest.update(piece)
            if digest.digest() != sha256:
                raise RadmeshError("OBJECT_CORRUPT", "the SHA-256 of what was read is not that of the object")
        return pieces

    def close(self) -> None:
        """End it."""
        self._line.close()
