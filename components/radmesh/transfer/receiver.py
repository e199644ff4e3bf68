"""TransferService over a StudyStore: what Put and ReadRange do at the store.

Put runs in one thread for each stream. A small object is one message and one ``store.put``; a large one is
begun, written and committed, with progress answered so often that a sender never has more than 4 MiB and one
chunk here that are not durable: its window of 16 MiB cannot fill up.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from radmesh.api.common.v1 import common_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Server
from radmesh.study_store import ObjectHeader, ObjectReader, Outcome, Ref, Stored, StudyStore, Transfer
from radmesh.transfer.codec import TRANSFER_CODECS, Buffer, Bulk
from radmesh.transfer.model import CHUNK_MAX, ObjectReference
from radmesh.transfer.tickets import Signatures, TicketCheck
from radmesh_native.crc32c import combine, crc32c

PROGRESS_BYTES: Final = 4 << 20
COMMIT_SECONDS: Final = 60.0
UID_MAX: Final = 64
RESUMABLE_MAX: Final = 256
OF_THE_STREAM: Final = frozenset(("CHUNK_TOO_LARGE", "STREAM_REPLACED"))
"""Reasons that end the stream; all others fail one object."""

OUTCOMES: Final = {
    Outcome.STORED: transfer_pb2.OUTCOME_STORED,
    Outcome.ALREADY: transfer_pb2.OUTCOME_ALREADY,
    Outcome.VARIANT: transfer_pb2.OUTCOME_VARIANT,
}


class Reject(Protocol):
    """Where the bytes of one object go that will never be stored as DICOM."""

    def write(self, data: Buffer) -> None:
        """Take the next bytes; what is beyond the store's bound is dropped."""

    def keep(self, reason: str, tag: str, message: str, *, cut: bool = False) -> None:
        """Make what was written durable, with why it was rejected; `cut`: it is a beginning only."""

    def drop(self) -> None:
        """Forget it: the stream ended before it said why."""


OpenReject = Callable[[bytes, transfer_pb2.Header], Reject]
Read = Callable[[Ref, int, int], ObjectReader]


class _Checks:
    """CRC-32C of open transfers up to the ends of their chunks, so that a resumed one is compared too. Bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, dict[int, int]] = OrderedDict()

    def at(self, transfer_id: bytes, offset: int) -> int | None:
        """The CRC of the first ``offset`` bytes, or None if it is not known (the process was restarted)."""
        with self._lock:
            return self._known.get(transfer_id, {}).get(offset) if offset else 0

    def keep(self, transfer_id: bytes, offset: int, check: int, durable: int) -> None:
        """Remember one, and forget those before what is durable: nobody resumes there."""
        with self._lock:
            known = self._known.setdefault(transfer_id, {})
            known[offset] = check
            for old in [old for old in known if old < durable]:
                del known[old]
            if len(self._known) > RESUMABLE_MAX:
                self._known.popitem(last=False)

    def forget(self, transfer_id: bytes) -> None:
        """The transfer has ended."""
        with self._lock:
            self._known.pop(transfer_id, None)


class TransferReceiver:
    """Implements TransferService over a store; give ``codecs`` to the server along with it.

    Args:
        store: where objects go.
        signatures: verifies tickets.
        clock: for the tickets' expiry.
        read: opens a part of an object; the store's own ``read`` by default.
        rejects: takes objects whose header has no ticket (a Network Gateway); None refuses them.
    """

    codecs = TRANSFER_CODECS

    def __init__(
        self,
        store: StudyStore,
        signatures: Signatures,
        clock: Clock,
        *,
        read: Read | None = None,
        rejects: OpenReject | None = None,
    ) -> None:
        self.store = store
        self.clock = clock
        self.check = TicketCheck(signatures, clock, store.store_id, store.epoch)
        self.rejects = rejects
        self.checks = _Checks()
        self._read = read or store.read
        self.active_at = float("-inf")

    def serve(self, server: Server) -> None:
        """Serve TransferService at `server`: Put and Read on lines too, which is what the mesh uses."""
        service = transfer_pb2.DESCRIPTOR.services_by_name["TransferService"]
        server.add(service, self, codecs=self.codecs)
        server.add_line(service.methods_by_name["Put"], self.Put, self.codecs["Put"])
        server.add_line(service.methods_by_name["Read"], self.Read, self.codecs["Read"])

    def idle_seconds(self) -> float:
        """Seconds since the last message of any Put stream: background work yields to intake."""
        return self.clock.monotonic() - self.active_at

    def Put(self, requests: Iterator[Bulk[transfer_pb2.PutRequest]], call: Any) -> Iterator[transfer_pb2.PutResponse]:
        """Store objects, one after another (transfer.v1)."""
        return _PutStream(self, call.window).serve(requests)

    def ReadRange(
        self, request: transfer_pb2.ReadRangeRequest, _call: Any
    ) -> Iterator[Bulk[transfer_pb2.ReadRangeResponse]]:
        """Read a part of an object (transfer.v1)."""
        where = ObjectReference.of(request.object)
        if where.store_id != self.store.store_id:
            raise RadmeshError("OBJECT_NOT_FOUND", f"this is {self.store.store_id}: ask the store of the reference")
        with self._read(where.ref, request.offset, request.length) as reader:
            offset = request.offset
            fields = transfer_pb2.ReadRangeResponse(
                offset=offset,
                size=reader.size,
                sha256=reader.sha256,
                residence=reader.residence,  # type: ignore[arg-type]
            )
            for data in reader:
                fields.crc32c, fields.verified = crc32c(data), reader.verified
                yield Bulk(fields, data)
                offset += len(data)
                fields = transfer_pb2.ReadRangeResponse(offset=offset)
            if offset == request.offset:
                yield Bulk(fields)  # an empty object still says its size and digest

    def Read(
        self, requests: Iterator[transfer_pb2.ReadRequest], _call: Any
    ) -> Iterator[Bulk[transfer_pb2.ReadResponse]]:
        """Read whole objects, one after another (transfer.v1)."""
        for request in requests:
            try:
                yield from self._whole(ObjectReference.of(request.object))
            except RadmeshError as error:
                failed = transfer_pb2.Failed(code=error.code.value[0], reason=error.reason, message=error.message)
                yield Bulk(transfer_pb2.ReadResponse(failed=failed))

    def _whole(self, where: ObjectReference) -> Iterator[Bulk[transfer_pb2.ReadResponse]]:
        if where.store_id != self.store.store_id:
            raise RadmeshError("OBJECT_NOT_FOUND", f"this is {self.store.store_id}: ask the store of the reference")
        offset = 0
        with self._read(where.ref, 0, 0) as reader:
            fields = transfer_pb2.ReadResponse(size=reader.size, sha256=reader.sha256)
            for data in reader:
                fields.residence = reader.residence  # type: ignore[assignment]
                fields.crc32c, fields.verified = crc32c(data), reader.verified
                yield Bulk(fields, data)
                offset += len(data)
                fields = transfer_pb2.ReadResponse(size=reader.size, offset=offset)
            if not offset:
                yield Bulk(fields)  # an empty object still says its size and digest


class _PutStream:
    """One Put stream: at most one transfer is open."""

    def __init__(self, receiver: TransferReceiver, window: memoryview | None) -> None:
        self._window = window
        self._receiver = receiver
        self._store = receiver.store
        self._id = b""
        self._transfer: Transfer | None = None
        self._reject: Reject | None = None
        # CRC-32C of what has come of a large object; None: that is not known.
        self._check: int | None = None
        self._reported = 0

    def serve(self, requests: Iterator[Bulk[transfer_pb2.PutRequest]]) -> Iterator[transfer_pb2.PutResponse]:
        """Answer requests until the stream ends; a transfer that is open then can be resumed."""
        receiver, clock = self._receiver, self._receiver.clock
        try:
            for request in requests:
                receiver.active_at = clock.monotonic()
                yield from self._answer(request)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._reject is not None:
            self._reject.drop()
        self._transfer = self._reject = None

    def _answer(self, request: Bulk[transfer_pb2.PutRequest]) -> Sequence[transfer_pb2.PutResponse]:
        fields, data = request.fields, request.data
        if len(data) > CHUNK_MAX:
            raise RadmeshError("CHUNK_TOO_LARGE", f"a chunk has at most {CHUNK_MAX} bytes of data")
        try:
            if fields.window:
                data = self._seen(fields)
            if fields.HasField("header"):
                return self._first(fields, data)
            return self._next(fields, data)
        except RadmeshError as error:
            acknowledged = 0 if self._transfer is None else self._transfer.acknowledged_offset
            self._leave()
            if error.reason in OF_THE_STREAM:
                raise
            return (
                transfer_pb2.PutResponse(
                    transfer_id=fields.transfer_id,
                    failed=transfer_pb2.Failed(
                        code=error.code.value[0],
                        reason=error.reason,
                        message=error.message,
                        acknowledged_offset=acknowledged,
                    ),
                ),
            )

    def _seen(self, fields: transfer_pb2.PutRequest) -> Buffer:
        """What lies in the window: of a whole object alone, for it may be written again as soon as that is answered."""
        if fields.offset or not (fields.HasField("header") and fields.HasField("commit")):
            raise _invalid("window", "of a whole object")
        if self._window is None or fields.window > min(CHUNK_MAX, len(self._window)):
            raise RadmeshError("CHUNK_CORRUPT", "the window does not have the chunk: send it")
        return self._window[: fields.window]

    def _first(self, fields: transfer_pb2.PutRequest, data: Buffer) -> Sequence[transfer_pb2.PutResponse]:
        self._leave()
        self._id = fields.transfer_id
        if len(self._id) != 16:
            raise _invalid("transfer_id", "16 bytes")
        if not fields.header.HasField("ticket"):
            if self._receiver.rejects is None:
                raise RadmeshError("TICKET_INVALID", "an object needs a ticket: admit it")
            self._reject = self._receiver.rejects(self._id, fields.header)
            return self._next(fields, data)
        header, expired = _admitted(self._receiver.check, fields.header)
        if fields.HasField("commit") and not fields.offset and not expired:
            _check_chunk(fields, data)
            return (self._committed(self._put(fields, header, data)),)
        transfer = self._store.begin(self._id, header)
        if transfer.stored is not None:
            return (self._committed(transfer.stored),)
        if expired and not transfer.acknowledged_offset:
            transfer.abort()
            raise RadmeshError("TICKET_STALE", "the ticket has expired: admit again")
        self._transfer = transfer
        self._reported = transfer.acknowledged_offset
        self._check = self._receiver.checks.at(self._id, self._reported)
        if data or fields.HasField("commit") or fields.HasField("abort"):
            return self._next(fields, data)
        return (self._progress(),)  # a header that comes alone asks where to go on

    def _put(self, fields: transfer_pb2.PutRequest, header: ObjectHeader, data: Buffer) -> Stored:
        commit = fields.commit
        if commit.length != len(data):
            raise RadmeshError("DIGEST_MISMATCH", "the commit's length is not that of the data: send the object again")
        # Checked by its CRC-32C: the sender hashed the very bytes that are here (decision 8).
        return self._store.put(
            self._id,
            header,
            data,
            sha256=commit.sha256,
            queryable=commit.header,
            remarks=tuple(commit.remarks),
        )

    def _next(self, fields: transfer_pb2.PutRequest, data: Buffer) -> Sequence[transfer_pb2.PutResponse]:
        if fields.transfer_id != self._id:
            raise RadmeshError("TRANSFER_INVALID", "the transfer was not begun on this stream: send its header")
        if self._reject is None and self._transfer is None:
            return ()  # was under way when the transfer ended
        _check_chunk(fields, data)
        if self._reject is not None:
            return self._rejected(self._reject, fields, data)
        transfer = self._transfer
        assert transfer is not None
        if data:
            transfer.write(fields.offset, data)
            if self._check is not None:
                self._check = combine(self._check, fields.crc32c, len(data))
        if fields.HasField("commit"):
            commit = fields.commit
            self._receiver.checks.forget(self._id)
            if self._check is not None and self._check != commit.crc32c:
                transfer.abort()
                raise RadmeshError("DIGEST_MISMATCH", "the CRC-32C of the data set differs: send the object again")
            stored = transfer.commit(
                commit.length, commit.sha256, queryable=commit.header, remarks=tuple(commit.remarks)
            )
            self._transfer = None
            return (self._committed(stored),)
        if fields.HasField("abort"):
            transfer.abort()
            self._receiver.checks.forget(self._id)
            raise RadmeshError("TRANSFER_ABORTED", "the sender ended the transfer")
        written = fields.offset + len(data)
        if self._check is not None:
            self._receiver.checks.keep(self._id, written, self._check, transfer.acknowledged_offset)
        if written - transfer.acknowledged_offset >= PROGRESS_BYTES:
            transfer.wait(written - PROGRESS_BYTES + 1, COMMIT_SECONDS)
        if transfer.acknowledged_offset - self._reported >= CHUNK_MAX:
            return (self._progress(),)
        return ()

    def _rejected(
        self, reject: Reject, fields: transfer_pb2.PutRequest, data: Buffer
    ) -> Sequence[transfer_pb2.PutResponse]:
        if fields.HasField("commit"):
            raise RadmeshError("TICKET_INVALID", "an object that is committed needs a ticket: admit it")
        if data:
            reject.write(data)
        if fields.HasField("abort"):
            abort = fields.abort
            reject.keep(abort.reason[:UID_MAX], abort.tag[:9], abort.message[:UID_MAX], cut=abort.cut)
            self._reject = None
            raise RadmeshError("TRANSFER_ABORTED", "what was received is in the rejects store")
        self._reported = fields.offset + len(data)
        return (
            transfer_pb2.PutResponse(
                transfer_id=self._id, progress=transfer_pb2.Progress(acknowledged_offset=self._reported)
            ),
        )

    def _progress(self) -> transfer_pb2.PutResponse:
        assert self._transfer is not None
        self._reported = self._transfer.acknowledged_offset
        return transfer_pb2.PutResponse(
            transfer_id=self._id, progress=transfer_pb2.Progress(acknowledged_offset=self._reported)
        )

    def _committed(self, stored: Stored) -> transfer_pb2.PutResponse:
        ref = stored.ref
        return transfer_pb2.PutResponse(
            transfer_id=self._id,
            committed=transfer_pb2.Committed(
                object=common_pb2.ObjectReference(
                    store_id=self._store.store_id,
                    study_hash=ref.study_hash,
                    generation=ref.generation,
                    sequence=ref.sequence,
                ),
                outcome=OUTCOMES[stored.outcome],
            ),
        )


def _admitted(check: TicketCheck, header: transfer_pb2.Header) -> tuple[ObjectHeader, bool]:
    """The header as the store keeps it, and whether its ticket has expired."""
    # What else a header is held to, the store sees to.
    for field in ("series_instance_uid", "sop_class_uid"):
        if not getattr(header, field):
            raise _invalid(field, f"1 to {UID_MAX} characters")
    ticket = check(header.ticket, header.admission_key, header.study_instance_uid)
    return (
        ObjectHeader(
            study_instance_uid=header.study_instance_uid,
            series_instance_uid=header.series_instance_uid,
            sop_class_uid=header.sop_class_uid,
            sop_instance_uid=header.sop_instance_uid,
            transfer_syntax_uid=header.transfer_syntax_uid,
            calling_ae_title=header.calling_ae_title,
            called_ae_title=header.called_ae_title,
            source_address=header.source_address,
            admission_key=ticket.admission_key,
            verification=ticket.verification,
        ),
        check.expired(ticket),
    )


def _check_chunk(fields: transfer_pb2.PutRequest, data: Buffer) -> None:
    if data and crc32c(data) != fields.crc32c:
        raise RadmeshError("CHUNK_CORRUPT", "the chunk's CRC-32C differs: send again from the acknowledged offset")


def _invalid(field: str, rule: str) -> RadmeshError:
    return RadmeshError("FIELD_INVALID", f"{field}: {rule}", metadata={"field": field, "rule": rule})
