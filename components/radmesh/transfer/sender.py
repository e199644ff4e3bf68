"""The client side of Put: one open object, kept until it is durable, replayed or resumed when a store is lost.

    sender.begin(header, admission_key)
    sender.write(chunk)                     # as often as needed, any size
    committed = sender.commit(sha256, queryable)        # or finish, and committed later

Up to 16 MiB of the object are kept, durable or not, so that an object of that size can be replayed to another
store. Of a larger one the durable part is let go, and it can only be resumed where it is.
"""

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, Final

from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.line import Line
from radmesh.study_store import ObjectHeader, Outcome
from radmesh.transfer.codec import PUT, Buffer
from radmesh.transfer.model import CHUNK_MAX, Committed, ObjectReference, Ticket, key_message
from radmesh.transfer.tickets import Admission, Admit, TicketCache
from radmesh_native import bulk
from radmesh_native.crc32c import copy, crc32c

WINDOW: Final = 16 << 20
LEAST_WINDOW: Final = 6 << 20
"""More than what a receiver lets be un-durable before it answers with progress."""
PARTS_MAX: Final = 64
LAID_LEAST: Final = 16 << 10
"""Less than this goes through the socket with the rest of its message at no further cost."""
AVOID_SECONDS: Final = 3.0
"""A silent store has this long to come back before another one is asked for."""
NO_STORE_SECONDS: Final = 2.0
"""That no store has room is an answer: the sender is told soon, and may come again later."""
BACKOFF_MAX: Final = 1.0

LOST: Final = frozenset(
    (
        "PEER_UNAVAILABLE",
        "PEER_TIMEOUT",
        "CANCELLED",
        "INTERNAL",
        "STARTING",
        "NO_STORE",
        "STORE_BUSY",
        "TOO_MANY_CALLS",
    )
)
REFUSED: Final = frozenset(("STORAGE_FULL", "DRAINING"))
AGAIN: Final = frozenset(("DIGEST_MISMATCH", "COMMIT_FAILED"))
RECOVERABLE: Final = LOST | REFUSED | AGAIN | {"CHUNK_CORRUPT", "OFFSET_UNEXPECTED", "TICKET_STALE"}

OUTCOMES: Final = {
    transfer_pb2.OUTCOME_STORED: Outcome.STORED,
    transfer_pb2.OUTCOME_ALREADY: Outcome.ALREADY,
    transfer_pb2.OUTCOME_VARIANT: Outcome.VARIANT,
}


# Tags of fields of bytes: PutRequest.header, Header.sop_instance_uid.
_HEADER: Final = transfer_pb2.PutRequest.HEADER_FIELD_NUMBER << 3 | 2
_SOP_INSTANCE_UID: Final = transfer_pb2.Header.SOP_INSTANCE_UID_FIELD_NUMBER << 3 | 2

_BUT_INSTANCE: Final = attrgetter(*(f.name for f in fields(ObjectHeader) if f.name != "sop_instance_uid"))

Parts = Sequence[Buffer]
"""Bytes as they came: a chunk is written to the line from where it lies, not joined first."""


class _GoneError(RadmeshError):
    """No attempt can help."""

    def __init__(self) -> None:
        super().__init__(
            "PEER_UNAVAILABLE", "the store lost the transfer and its first bytes are no longer kept: send again"
        )


class KeepBudget:
    """Bytes that all senders of a process may keep. Beyond it each keeps only what flow control needs."""

    def __init__(self, limit: int = 256 << 20) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Count bytes kept (or, negative, let go)."""
        with self._lock:
            self._used += size

    @property
    def window(self) -> int:
        """Bytes that one sender may keep now."""
        return WINDOW if self._used < self._limit else LEAST_WINDOW


@dataclass(slots=True)
class _Object:
    """The open object. Offsets: base (first byte kept) ≤ acked ≤ sent ≤ end, but after a store was lost."""

    identifier: bytes
    header: ObjectHeader
    key: AdmissionKey
    digest: bytes
    queryable: bytes
    ticket: Ticket | None = None
    avoid: str = ""
    store_id: str = ""
    kept: deque[tuple[int, int, Parts]] = field(default_factory=deque)
    """Offset, size and bytes of each chunk."""
    base: int = 0
    end: int = 0
    sent: int = 0
    acked: int = 0
    most_acked: int = 0
    held: deque[Buffer] = field(default_factory=deque)
    held_size: int = 0
    check: int = 0
    """CRC-32C of all bytes written, if they are too many for one message."""
    commit: transfer_pb2.Commit | None = None
    commit_sent: bool = False
    committed: Committed | None = None
    stream: "_Stream | None" = None
    resume: bool = False
    trouble_since: float | None = None
    attempts: int = 0
    restarts: int = 0


class _Stream:
    """One Put call, on a line of its own."""

    def __init__(self, line: Line, clock: Clock) -> None:
        self._line = line
        self._clock = clock
        self._laid = b""
        self.used_at = clock.monotonic()

    @property
    def alive(self) -> bool:
        return self._line.alive

    def send(self, fields: transfer_pb2.PutRequest, parts: Parts = (), header: bytes = b"") -> None:
        """Send a message; ``header`` is that of an object, as it is on the wire."""
        head = header + fields.SerializeToString()
        size = sum(map(len, parts))
        self._line.send(bulk.lead(head, size) if size else head, *parts)

    def lay(self, identifier: bytes, parts: Parts) -> int | None:
        """Write an object into the line's window; return its CRC-32C, or None where it has to be sent."""
        window = self._line.window
        if window is None or self._laid:
            return None
        self._laid = identifier
        check = at = 0
        for part in parts:
            check = copy(window, at, part, check)
            at += len(part)
        return check

    def answer(self) -> transfer_pb2.PutResponse:
        answer = transfer_pb2.PutResponse.FromString(bytes(self._line.receive()))
        self.used_at = self._clock.monotonic()
        if self._laid and self._laid == answer.transfer_id and not answer.HasField("progress"):
            self._laid = b""
            reason = answer.failed.reason
            if reason == "CHUNK_CORRUPT":
                self._line.window = None  # the server does not see what is written there: it can all be sent
            elif reason and not reason.startswith("TICKET_"):
                # Its commit may have been given up before it was made: nothing else may come to be where it reads.
                self._line.close()
        return answer

    def close(self) -> None:
        self._line.close()


class Sender:
    """Sends objects to stores. One thread uses it: an association has its own.

    Args:
        lines: opens a Put line to a target (Context.line).
        admit: asks the Network Gateway for a ticket.
        clock: for back-off and resume time.
        tickets: the process's tickets, shared by its senders.
        budget: the process's kept bytes, shared by its senders.
        resume_seconds: how long a lost store is sought, without progress, before the object fails.
        idle_seconds: a stream that was not used for so long is closed when the next object begins.
    """

    def __init__(
        self,
        lines: Callable[..., Line],
        admit: Admit,
        clock: Clock,
        *,
        tickets: TicketCache | None = None,
        budget: KeepBudget | None = None,
        resume_seconds: float = 10.0,
        idle_seconds: float = 30.0,
    ) -> None:
        self._lines, self._admit, self._clock = lines, admit, clock
        self._tickets = tickets or TicketCache(clock)
        self._budget = budget or KeepBudget()
        self._resume_seconds, self._idle_seconds = resume_seconds, idle_seconds
        self._streams: dict[str, _Stream] = {}
        self._object: _Object | None = None
        self._never = threading.Event()
        self._shared: tuple[Any, bytes] = None, b""

    def begin(self, header: ObjectHeader, admission_key: AdmissionKey, queryable: bytes = b"") -> None:
        """Open an object; one that was left open is aborted. ``queryable`` is for the admission, if already known."""
        self.abort()
        self._close_idle()
        self._object = _Object(secrets.token_bytes(16), header, admission_key, admission_key.digest(), queryable)

    def write(self, data: Buffer) -> None:
        """Send the next bytes; they must not change afterwards. Blocks while 16 MiB are not durable.

        Raises:
            RadmeshError: the object failed, and is no longer open.
        """
        o = self._open()
        o.held.append(data)
        o.held_size += len(data)
        if o.end or o.held_size > CHUNK_MAX:
            for part in (data,) if o.end else o.held:
                o.check = crc32c(part, o.check)
        # At least one byte is held back, so that the last chunk travels with the commit.
        while o.held_size > CHUNK_MAX:
            self._keep(o, _cut(o))
            self._drive(o)

    def commit(self, sha256: bytes, queryable: bytes = b"", remarks: Sequence[str] = ()) -> Committed:
        """Finish the object: returns when it is durable.

        Raises:
            RadmeshError: as `committed`.
        """
        self.finish(sha256, queryable, remarks)
        return self.committed()

    def finish(self, sha256: bytes, queryable: bytes = b"", remarks: Sequence[str] = ()) -> None:
        """Send all of the object; `committed` tells what became of it.

        Args:
            sha256: of all bytes written, 32 bytes.
            queryable: the queryable header, Explicit VR Little Endian, at most 262,144 bytes.
            remarks: findings such as "BAD_VR 0010,1010".

        Raises:
            RadmeshError: as `committed`.
        """
        o = self._open()
        while o.held_size:
            self._keep(o, _cut(o))
        o.queryable = queryable or o.queryable
        o.commit = transfer_pb2.Commit(length=o.end, sha256=sha256, header=o.queryable, remarks=remarks, crc32c=o.check)
        o.committed = self._drive(o, wait=False)

    def committed(self) -> Committed:
        """Return where the finished object is, when it is durable.

        Raises:
            RadmeshError: the object is not stored, as far as is known; sending it again is safe.
        """
        o = self._open()
        committed = o.committed or self._drive(o)
        assert committed is not None
        self._forget()
        return committed

    def send(
        self,
        header: ObjectHeader,
        admission_key: AdmissionKey,
        data: Buffer,
        *,
        sha256: bytes,
        queryable: bytes,
        remarks: Sequence[str] = (),
    ) -> Committed:
        """Send a whole object: begin, write, commit."""
        self.begin(header, admission_key, queryable)
        if data:
            self.write(data)
        return self.commit(sha256, queryable, remarks)

    def kept(self) -> tuple[int, list[Buffer]]:
        """Offset and bytes of the open object that are still here, as for a reject."""
        o = self._open()
        return o.base, [*(part for _, _, parts in o.kept for part in parts), *o.held]

    def abort(self) -> None:
        """Give up the open object, if there is one; nothing of it is stored."""
        o = self._object
        if o is None:
            return
        if o.stream is not None and o.stream.alive:
            fields = transfer_pb2.PutRequest(transfer_id=o.identifier, abort=transfer_pb2.Abort())
            o.stream.send(fields)
        self._forget()

    def reject(
        self,
        target: str,
        header: ObjectHeader,
        data: Iterable[Buffer],
        *,
        reason: str,
        tag: str = "",
        message: str = "",
        cut: bool = False,
    ) -> None:
        """Put bytes that are no object into the rejects store of the Network Gateway at ``target``.

        ``cut``: they are the beginning of what came.

        Raises:
            RadmeshError: they are not kept.
        """
        self.abort()
        stream = self._stream(target)
        identifier = secrets.token_bytes(16)
        fields = transfer_pb2.PutRequest(transfer_id=identifier, header=_header(header, None, None))
        offset = 0
        for piece in data:
            for start in range(0, len(piece), CHUNK_MAX):
                chunk = piece if len(piece) <= CHUNK_MAX else memoryview(piece)[start : start + CHUNK_MAX]
                fields.offset, fields.crc32c = offset, crc32c(chunk)
                stream.send(fields, (chunk,))
                offset += len(chunk)
                fields = transfer_pb2.PutRequest(transfer_id=identifier)
                while (answer := stream.answer()).transfer_id != identifier:
                    pass
                if answer.HasField("failed"):
                    raise RadmeshError(answer.failed.reason, answer.failed.message)
        fields.abort.MergeFrom(transfer_pb2.Abort(reason=reason, tag=tag, message=message, cut=cut))
        stream.send(fields)
        while (answer := stream.answer()).transfer_id != identifier:
            pass
        if answer.failed.reason != "TRANSFER_ABORTED":
            raise RadmeshError(answer.failed.reason, answer.failed.message)

    def close(self) -> None:
        """End all streams; an open object is aborted."""
        self.abort()
        while self._streams:
            self._streams.popitem()[1].close()

    # -- the open object

    def _open(self) -> _Object:
        if self._object is None:
            raise RadmeshError("TRANSFER_INVALID", "no object is open: begin one")
        return self._object

    def _forget(self) -> None:
        if self._object is not None:
            self._budget.add(self._object.base - self._object.end)
            self._object = None

    def _keep(self, o: _Object, parts: Parts) -> None:
        size = sum(map(len, parts))
        o.kept.append((o.end, size, parts))
        o.end += size
        self._budget.add(size)

    def _let_go(self, o: _Object, window: int) -> None:
        while o.kept and o.end - o.base > window and o.kept[0][0] + o.kept[0][1] <= o.acked:
            size = o.kept.popleft()[1]
            o.base += size
            self._budget.add(-size)

    def _drive(self, o: _Object, *, wait: bool = True) -> Committed | None:
        """Send what is kept and not sent; after a commit wait for the answer. Recovers for as long as it may."""
        while True:
            try:
                return self._advance(o, wait=wait)
            except _GoneError:
                self.abort()
                raise
            except RadmeshError as error:
                try:
                    self._recover(o, error)
                except RadmeshError:
                    self.abort()
                    raise

    def _advance(self, o: _Object, *, wait: bool) -> Committed | None:
        ticket = o.ticket or self._ticket(o)
        stream = self._stream(ticket.target)
        if o.stream not in (None, stream):
            raise RadmeshError("PEER_UNAVAILABLE", "the stream to the store was lost")
        committed = self._ask(o, stream) if o.resume else None
        if committed is not None:
            return committed
        for offset, size, parts in tuple(o.kept):
            if offset + size > o.sent:
                skip = max(0, o.sent - offset)
                self._send(o, stream, offset + skip, _behind(parts, skip) if skip else parts)
        if o.commit is not None:
            if not o.commit_sent:
                self._send(o, stream, o.end, ())
            if not wait:
                return None
            while (committed := self._take(o, stream)) is None:
                self._let_go(o, self._budget.window)
            return committed
        while o.end - o.base > (window := self._budget.window):
            self._let_go(o, window)
            if o.end - o.base > window:
                committed = self._take(o, stream)
                assert committed is None
        return None

    def _ask(self, o: _Object, stream: _Stream) -> Committed | None:
        """Ask where to go on: a header that comes alone is answered at once."""
        stream.send(transfer_pb2.PutRequest(transfer_id=o.identifier), header=self._head(o, stream))
        committed = self._take(o, stream)
        if committed is None:
            o.resume, o.sent = False, o.acked
            if o.acked < o.base:
                raise _GoneError
        return committed

    def _send(self, o: _Object, stream: _Stream, offset: int, parts: Parts) -> None:
        size = sum(map(len, parts))
        o.sent = offset + size
        commit = o.commit if o.sent == o.end else None
        o.commit_sent = commit is not None
        head = self._head(o, stream)
        message = transfer_pb2.PutRequest(transfer_id=o.identifier, offset=offset, commit=commit)
        whole = commit is not None and not offset and head and size >= LAID_LEAST
        check = stream.lay(o.identifier, parts) if whole else None
        if check is not None:
            message.window, parts = size, ()
        else:
            check = 0
            for part in parts:
                check = crc32c(part, check)
        message.crc32c = check
        stream.send(message, parts, head)

    def _head(self, o: _Object, stream: _Stream) -> bytes:
        """The header on the wire, in the first message on a stream; objects that differ in one UID share the rest."""
        if o.stream is not None:
            return b""
        o.stream = stream
        shared = (o.ticket, o.digest, _BUT_INSTANCE(o.header))
        if self._shared[0] != shared:
            self._shared = shared, _header(replace(o.header, sop_instance_uid=""), o.key, o.ticket).SerializeToString()
        uid = o.header.sop_instance_uid.encode()
        header = bulk.lead(self._shared[1], len(uid), _SOP_INSTANCE_UID) + uid
        return bulk.lead(b"", len(header), _HEADER) + header

    def _take(self, o: _Object, stream: _Stream) -> Committed | None:
        """One answer about the open object."""
        while (answer := stream.answer()).transfer_id != o.identifier:
            pass  # of an object that was given up
        if answer.HasField("committed"):
            committed = answer.committed
            return Committed(ObjectReference.of(committed.object), OUTCOMES.get(committed.outcome, Outcome.STORED))
        failed = answer.HasField("failed")
        o.acked = answer.failed.acknowledged_offset if failed else answer.progress.acknowledged_offset
        if o.acked > o.most_acked:
            o.most_acked, o.trouble_since = o.acked, None
        if failed:
            raise RadmeshError(answer.failed.reason, answer.failed.message)
        return None

    def _ticket(self, o: _Object) -> Ticket:
        ticket = None if o.avoid else self._tickets.get(o.digest)
        if ticket is None:
            ticket = self._admit(Admission(o.header, o.key, o.queryable, o.avoid))
            self._tickets.put(o.digest, ticket)
        if o.store_id and ticket.store_id != o.store_id:
            if o.base:
                raise _GoneError
            o.resume, o.sent, o.acked, o.most_acked = False, 0, 0, 0
        o.ticket, o.store_id = ticket, ticket.store_id
        return ticket

    def _recover(self, o: _Object, error: RadmeshError) -> None:
        """Prepare the next attempt.

        Raises:
            RadmeshError: there is none.
        """
        now = self._clock.monotonic()
        if o.trouble_since is None:
            o.trouble_since, o.attempts = now, 0
        o.attempts += 1
        seconds = now - o.trouble_since
        reason = error.reason
        if reason.startswith("TICKET_"):
            self._forget_ticket(o)
        # What can only be resumed where it is waits for its store, whatever the others say.
        patience = NO_STORE_SECONDS if reason == "NO_STORE" and not o.base else self._resume_seconds
        if seconds >= patience or reason not in RECOVERABLE:
            raise error
        if reason in AGAIN:
            if o.base or o.restarts:
                raise error
            o.restarts += 1
            o.identifier, o.sent, o.acked, o.most_acked = secrets.token_bytes(16), 0, 0, 0
        if reason in REFUSED and (o.base or o.avoid == o.store_id):
            raise error  # there is nowhere else to go
        if not o.base and (reason in REFUSED or (reason in LOST and seconds >= AVOID_SECONDS)):
            o.avoid = o.store_id
            self._forget_ticket(o)
        if o.commit is not None and not o.base and o.end <= CHUNK_MAX:
            o.sent = 0  # one message says it all
        o.resume = o.sent > 0
        o.stream, o.commit_sent = None, False
        if o.attempts > 1 or reason in LOST:
            self._clock.wait(self._never, min(0.05 * 2 ** min(o.attempts - 1, 8), BACKOFF_MAX))

    def _forget_ticket(self, o: _Object) -> None:
        if o.ticket is not None:
            self._tickets.revoke(o.digest, o.ticket)
            o.ticket = None

    # -- streams

    def _stream(self, target: str) -> _Stream:
        stream = self._streams.get(target)
        if stream is not None and stream.alive:
            return stream
        if stream is not None:
            stream.close()
        stream = self._streams[target] = _Stream(self._lines(target, PUT, window=True), self._clock)
        return stream

    def _close_idle(self) -> None:
        if len(self._streams) > 1 or self._idle_seconds <= 0:
            old = self._clock.monotonic() - self._idle_seconds
            for target in [target for target, stream in self._streams.items() if stream.used_at < old]:
                self._streams.pop(target).close()


def _cut(o: _Object) -> Parts:
    """Take at most CHUNK_MAX bytes of what is held, as they lie."""
    parts: list[Buffer] = []
    size = 0
    while o.held and size < CHUNK_MAX:
        part = o.held[0]
        room = CHUNK_MAX - size
        if len(part) <= room:
            o.held.popleft()
        else:
            view = memoryview(part)
            part, o.held[0] = view[:room], view[room:]
        parts.append(part)
        size += len(part)
    o.held_size -= size
    # More than the kernel takes in one call (IOV_MAX) is joined after all.
    return parts if len(parts) <= PARTS_MAX else [b"".join(parts)]


def _behind(parts: Parts, skip: int) -> Parts:
    """Return what is behind the first `skip` bytes."""
    rest: list[Buffer] = []
    for part in parts:
        if skip < len(part):
            rest.append(memoryview(part)[skip:] if skip else part)
        skip = max(0, skip - len(part))
    return rest


def _header(header: ObjectHeader, key: AdmissionKey | None, ticket: Ticket | None) -> transfer_pb2.Header:
    return transfer_pb2.Header(
        ticket=None if ticket is None else ticket.message(),
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        sop_class_uid=header.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid,
        transfer_syntax_uid=header.transfer_syntax_uid,
        calling_ae_title=header.calling_ae_title,
        called_ae_title=header.called_ae_title,
        source_address=header.source_address,
        admission_key=None if key is None else key_message(key),
    )
