"""C-STORE: from the chunks of a data set to a durable object, or to a reject (CORRECTNESS "DIMSE outcomes").

Nothing is decoded but the head, and no object is held whole: the head goes to the Network Gateway for a ticket, the
bytes to the store that the ticket names while they come in, and the answer waits until the store has committed.
"""

import hashlib
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Final

from radmesh.dicom import header as queryable_header
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.header import SCAN_LIMIT
from radmesh.dicom.uids import TransferSyntax, clean_uid, is_valid_uid, transfer_syntax
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh.runtime.reasons import REASONS
from radmesh.study_store import ObjectHeader
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.sender import Sender
from radmesh_gateway_proxy.dimse import SUCCESS, Outcome, Request, text_of
from radmesh_gateway_proxy.negotiation import AcceptedContext
from radmesh_gateway_proxy.services.exchange import Peer, outcome_of
from radmesh_gateway_proxy.tail import Tail

_SOP_CLASS: Final = (0x0008, 0x0016)
_SOP_INSTANCE: Final = (0x0008, 0x0018)
_STUDY: Final = (0x0020, 0x000D)
_SERIES: Final = (0x0020, 0x000E)
_NAMES: Final = {
    (0x0000, 0x0002): "Affected SOP Class UID",
    (0x0000, 0x1000): "Affected SOP Instance UID",
    _SOP_CLASS: "SOP Class UID",
    _SOP_INSTANCE: "SOP Instance UID",
    _STUDY: "Study Instance UID",
    _SERIES: "Series Instance UID",
}
# Nearly every head ends within it, and what is not fed need not be copied.
_FIRST_LOOK: Final = 16 << 10
# Of inflated data: at a time, and of one object.
_PIECE: Final = 256 << 10
_MOST_INFLATED: Final = 4 << 30
# Of inflated elements: a kilobyte becomes a hundred thousand of them, and each is looked at.
_MOST_ELEMENTS: Final = 1 << 20
# Study marks that one association remembers; the oldest has long been registered when it falls out.
_MOST_MARKS: Final = 1024

Tag = tuple[int, int]
Buffer = bytes | bytearray | memoryview
Mark = ObjectReference


class RefusedError(Exception):
    """The object cannot be stored as a DICOM object; its bytes go to the rejects store.

    Attributes:
        kept: what there is of it, where it is not on its way any more.
        cut: that is its beginning only.
    """

    def __init__(
        self, reason: str, message: str, tag: Tag | None = None, kept: Sequence[Buffer] = (), *, cut: bool = False
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.tag = tag
        self.kept = kept
        self.cut = cut

    @property
    def outcome(self) -> Outcome:
        """Status, Error Comment and Offending Element of the response."""
        return Outcome(REASONS[self.reason].dimse_status, f"{self.reason}: {self}"[:64], self.tag)


class Senders:
    """The streams to the stores that a process has open; an object borrows one for as long as it is on its way.

    Args:
        make: makes a sender.
        most: how many there may be; a store serves only so many streams at once.
        patience: seconds that an object waits for one.
    """

    def __init__(self, make: Callable[[], Sender], most: int, *, patience: float = 10.0) -> None:
        self._make = make
        self._most = most
        self._patience = patience
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(most):
            self._free.put(None)
        self._idle: deque[Sender] = deque()

    def borrow(self) -> Sender:
        """Return one that nobody else uses until it is given back.

        Raises:
            RadmeshError: STORE_BUSY when none became free in time.
        """
        try:
            self._free.get(timeout=self._patience)
        except Empty:
            raise RadmeshError("STORE_BUSY", "too many objects are on their way") from None
        return self._one()

    def spare(self) -> Sender | None:
        """As `borrow`, for who has one already: never waits, and leaves half of all to those who have none; or None."""
        if self._free.qsize() <= self._most // 2:
            return None
        try:
            self._free.get_nowait()
        except Empty:
            return None
        return self._one()

    def _one(self) -> Sender:
        try:
            # The one that was used last: its streams are the ones most likely still open.
            return self._idle.pop()
        except IndexError:
            return self._make()

    def give_back(self, sender: Sender) -> None:
        """Take one back; an object that it has open is given up."""
        try:
            sender.abort()
        finally:
            self._idle.append(sender)
            self._free.put(None)

    def close(self) -> None:
        """Close those that nobody has borrowed."""
        while self._idle:
            self._idle.pop().close()


class Inflater:
    """Inflates a deflated data set (PS3.5 section A.5: RFC 1951 without a zlib header), a bounded piece at a time."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(-15)

    @property
    def ended(self) -> bool:
        """Whether the end of the deflated data was seen; what follows is padding."""
        return self._inflater.eof

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk becomes.

        Raises:
            RefusedError: DATA_SET_UNREADABLE.
        """
        try:
            while chunk and not self._inflater.eof:
                piece = self._inflater.decompress(chunk, _PIECE)
                chunk = self._inflater.unconsumed_tail
                if piece:
                    yield piece
        except zlib.error:
            raise RefusedError("DATA_SET_UNREADABLE", "the data set cannot be inflated") from None


class DeflatedTail(Tail):
    """A walk over the elements of a deflated data set; one that inflates beyond all measure is not followed."""

    def __init__(self, *, position: int) -> None:
        super().__init__(implicit=False, big_endian=False, position=position)
        self._inflater = Inflater()
        self._left = _MOST_INFLATED

    def feed(self, chunk: bytes) -> None:
        """Take the next deflated bytes."""
        if self.remark:
            return
        for piece in self._inflater.pieces(chunk):
            super().feed(piece)
            self._left -= len(piece)
            if self._left < 0 or self.elements > _MOST_ELEMENTS:
                self.remark = self.remark or "DEFLATED_TOO_MUCH"
            if self.remark:
                return

    def ends_inside(self) -> int | None:
        """Return the tag of the element that the end of the data set cuts, or None if it cuts none."""
        return self.last_tag if not self.remark and not self._inflater.ended else super().ends_inside()


class Head:
    """The beginning of a data set, as far as it is needed to admit the object.

    Attributes:
        chunks: what was read, at most 4 MiB and a chunk.
        remarks: what was odd and does not stop the store.
    """

    def __init__(self, syntax: TransferSyntax) -> None:
        self._syntax = syntax
        self._scanner = queryable_header.new_scanner(syntax)
        self.chunks: list[bytes] = []
        self.remarks: list[str] = []

    def read(self, chunks: Iterator[bytes]) -> None:
        """Take chunks until all that is wanted was seen.

        Raises:
            RefusedError: no object can begin so.
        """
        feed = self._inflating() if self._syntax.deflated else self._scan
        size = 0
        for chunk in chunks:
            self.chunks.append(chunk)
            size += len(chunk)
            if size == len(chunk):
                self._check_beginning(chunk)
            if feed(chunk):
                break
            if size > SCAN_LIMIT:
                raise RefusedError("DATA_SET_UNREADABLE", "no header within 4 MiB")
        if not size:
            raise RefusedError("DATA_SET_MISSING", "the data set is empty")
        self._scanner.finish()

    def _scan(self, chunk: bytes) -> bool:
        if len(chunk) <= _FIRST_LOOK:
            return self._scanner.feed(chunk)
        return self._scanner.feed(chunk[:_FIRST_LOOK]) or self._scanner.feed(chunk[_FIRST_LOOK:])

    def _inflating(self) -> Callable[[bytes], bool]:
        inflater = Inflater()
        return lambda chunk: any(self._scanner.feed(piece) for piece in inflater.pieces(chunk))

    def _check_beginning(self, chunk: bytes) -> None:
        if len(chunk) < 4 or self._syntax.deflated:
            return
        group, element = struct.unpack_from(">HH" if self._syntax.big_endian else "<HH", chunk)
        if group in (0x0000, 0x0002):
            # A Part 10 preamble (zeros) comes here too.
            text = f"({group:04X},{element:04X}) does not belong in a data set"
            raise RefusedError("DATA_SET_UNREADABLE", text, (group, element))

    def check(self, request: Request) -> dict[Tag, str]:
        """Return the four UIDs of the object, equal to those of the command where that has them.

        Raises:
            RefusedError: one is missing, invalid, or another than the command's; or the data set cannot be read so far.
        """
        error = self._scanner.error
        uids = {tag: clean_uid(self._scanner.value(tag[0] << 16 | tag[1]) or b"") for tag in _NAMES if tag[0]}
        if error is not None:
            reason, tag_text, _ = error
            tag = (int(tag_text[:4], 16), int(tag_text[5:], 16))
            if reason == "DATA_SET_TRUNCATED":
                raise RefusedError(reason, f"the data set ends inside ({tag_text})", tag)
            if not all(uids.values()):
                raise RefusedError(reason, f"cannot be read from ({tag_text}) on", tag)
            self.remarks.append(f"{reason} {tag_text}")
        for tag, uid in uids.items():
            self.remarks += _irregular(tag, uid)
        for tag, uid in (
            (_SOP_CLASS, request.affected_sop_class_uid),
            (_SOP_INSTANCE, request.affected_sop_instance_uid),
        ):
            if uids[tag] != uid:
                raise RefusedError("UID_MISMATCH", f"{_named(tag)} is not the command's", tag)
        self.remarks += self._scanner.remarks
        return uids

    def queryable(self) -> bytes:
        """Return the queryable header."""
        return self._scanner.header()

    def tail(self) -> Tail | None:
        """Return what follows the rest of the data set, or None where it was lost already."""
        if self._scanner.error is not None:
            return None
        if self._syntax.deflated:
            return DeflatedTail(position=self._scanner.position)
        implicit = self._syntax.implicit != ("VR_DECLARED_OTHER" in self._scanner.remarks)
        return Tail(implicit=implicit, big_endian=self._syntax.big_endian, position=self._scanner.position)


class Underway:
    """An object that was sent as a whole, and is not known to be durable."""

    def __init__(self, settle: Callable[["Underway"], Outcome], sender: Sender) -> None:
        self.sender = sender
        self._settle = settle
        self._outcome: Outcome | None = None

    def outcome(self) -> Outcome:
        """Return what became of it; waits for that."""
        if self._outcome is None:
            self._outcome = self._settle(self)
        return self._outcome


class Intake:
    """Stores the objects of one association.

    Args:
        peer: who sends them.
        senders: the process's ways to the stores.
        rejects: gRPC target of the Network Gateway.
        wait: waits until marks are registered, for some seconds at most.
        log: where to say that something could not even be rejected.
    """

    def __init__(
        self,
        peer: Peer,
        senders: Senders,
        rejects: str,
        wait: Callable[[Sequence[Mark], float], None],
        log: Logger,
    ) -> None:
        self._peer = peer
        self._senders = senders
        self._rejects = rejects
        self._wait = wait
        self._log = log
        self._marks: dict[tuple[str, str, int], Mark] = {}
        self._underway: list[Underway] = []

    def store(self, request: Request, context: AcceptedContext, chunks: Iterator[bytes]) -> Underway | Outcome:
        """Take one object; returns when all of it is on its way, or why it is not."""
        head = Head(transfer_syntax(context.transfer_syntax))
        try:
            _check_command(request, context)
            head.read(chunks)
            if request.priority is None:
                head.remarks.append("PRIORITY_INVALID 0000,0700")
            return self._send(request, context, head, chunks)
        except RefusedError as refusal:
            self._reject(refusal, request, context, refusal.kept or chain(head.chunks, chunks))
            return refusal.outcome
        except RadmeshError as error:
            return self._failed(error)

    def _failed(self, error: RadmeshError) -> Outcome:
        self._log.warning(
            "object not stored",
            reason=error.reason,
            text=error.message,
            calling_ae_title=self._peer.calling_ae_title,
            address=self._peer.address,
        )
        return outcome_of(error)

    def _settle(self, underway: Underway) -> Outcome:
        """Wait until an object is durable."""
        self._underway.remove(underway)
        try:
            self._remember(underway.sender.committed().object)
        except RadmeshError as error:
            return self._failed(error)
        finally:
            self._senders.give_back(underway.sender)
        return SUCCESS

    def _borrow(self) -> Sender:
        """Borrow a sender; who has one already waits for none, or all might wait for each other."""
        sender = self._senders.spare() if self._underway else None
        if sender is None:
            self._settle_all()
            sender = self._senders.borrow()
        return sender

    def _settle_all(self) -> None:
        while self._underway:
            self._underway[0].outcome()

    def _send(self, request: Request, context: AcceptedContext, head: Head, chunks: Iterator[bytes]) -> Underway:
        queryable = head.queryable()
        uids = head.check(request)
        head.remarks += queryable_header.character_set_remarks(queryable)
        key = AdmissionKey.of_header(self._peer.calling_ae_title, queryable)
        digest = hashlib.sha256()
        tail = head.tail()
        sender = self._borrow()
        try:
            sender.begin(self._header(context, uids), key, queryable)
            for chunk in chain(head.chunks, chunks):
                digest.update(chunk)
                if tail is not None:
                    tail.feed(chunk)
                sender.write(chunk)
            if tail is not None:
                self._check_end(tail, head, sender)
            sender.finish(digest.digest(), queryable, head.remarks)
        except BaseException:
            self._senders.give_back(sender)
            raise
        underway = Underway(self._settle, sender)
        self._underway.append(underway)
        return underway

    def _check_end(self, tail: Tail, head: Head, sender: Sender) -> None:
        cut = tail.ends_inside()
        if cut is not None:
            tag = (cut >> 16, cut & 0xFFFF)
            base, kept = sender.kept()
            # Of a large object the beginning is gone from the sender; then the head is what tells most.
            raise RefusedError(
                "DATA_SET_TRUNCATED",
                f"the data set ends inside ({text_of(tag)})",
                tag,
                kept if base == 0 else list(head.chunks),
                cut=base != 0,
            )
        if tail.remark:
            head.remarks.append(tail.remark)

    def _header(self, context: AcceptedContext, uids: dict[Tag, str]) -> ObjectHeader:
        return ObjectHeader(
            study_instance_uid=uids[_STUDY],
            series_instance_uid=uids[_SERIES],
            sop_class_uid=uids[_SOP_CLASS],
            sop_instance_uid=uids[_SOP_INSTANCE],
            transfer_syntax_uid=context.transfer_syntax,
            calling_ae_title=self._peer.calling_ae_title,
            called_ae_title=self._peer.called_ae_title,
            source_address=self._peer.address,
            admission_key=b"",  # the sender has the key itself
            verification=0,  # the ticket says
        )

    def _reject(
        self, refusal: RefusedError, request: Request, context: AcceptedContext, data: Iterable[Buffer]
    ) -> None:
        uids = dict.fromkeys((_STUDY, _SERIES), "")
        uids[_SOP_CLASS] = request.affected_sop_class_uid[:64]
        uids[_SOP_INSTANCE] = request.affected_sop_instance_uid[:64]
        try:
            sender = self._borrow()
            try:
                sender.reject(
                    self._rejects,
                    self._header(context, uids),
                    data,
                    reason=refusal.reason,
                    tag=text_of(refusal.tag),
                    message=str(refusal)[:64],
                    cut=refusal.cut,
                )
            except BaseException:
                # Whatever is half sent on that stream ends with it.
                sender.close()
                raise
            finally:
                self._senders.give_back(sender)
        except RadmeshError as error:
            # The sender still has the object, and hears that it was refused: nothing is lost.
            self._log.warning("reject not kept", reason=error.reason, text=error.message, refusal=refusal.reason)

    def _remember(self, reference: ObjectReference) -> None:
        key = (reference.store_id, reference.study_hash, reference.generation)
        known = self._marks.pop(key, None)
        self._marks[key] = reference if known is None or known.sequence < reference.sequence else known
        if len(self._marks) > _MOST_MARKS:
            del self._marks[next(iter(self._marks))]

    def wait_registered(self, seconds: float) -> None:
        """Wait until queries can find what was stored, for so long at most."""
        self._settle_all()
        if self._marks:
            self._wait(list(self._marks.values()), seconds)

    def close(self) -> None:
        """See what is under way to its end; nothing else stays open between objects."""
        self._settle_all()
        self._marks.clear()


def _check_command(request: Request, context: AcceptedContext) -> None:
    if not request.has_data_set:
        raise RefusedError("DATA_SET_MISSING", "(0000,0800) announces no data set", (0x0000, 0x0800))
    for tag, uid in (
        ((0x0000, 0x0002), request.affected_sop_class_uid),
        ((0x0000, 0x1000), request.affected_sop_instance_uid),
    ):
        _irregular(tag, uid)
    if request.affected_sop_class_uid != context.abstract_syntax:
        tag = (0x0000, 0x0002)
        raise RefusedError("SOP_CLASS_NOT_IN_CONTEXT", f"({text_of(tag)}) is another", tag)


def _named(tag: Tag) -> str:
    return f"{_NAMES[tag]} ({text_of(tag)})"


@lru_cache(1024)
def _irregular(tag: Tag, uid: str) -> tuple[str, ...]:
    """Return a remark on a UID that is not quite what PS3.5 section 9.1 says.

    Raises:
        RefusedError: it is not there, or nothing that could be used.
    """
    if not uid:
        raise RefusedError("UID_MISSING", f"{_named(tag)}", tag)
    if not is_valid_uid(uid):
        raise RefusedError("UID_INVALID", f"{_named(tag)}", tag)
    return () if is_valid_uid(uid, strict=True) else (f"UID_IRREGULAR {text_of(tag)}",)
