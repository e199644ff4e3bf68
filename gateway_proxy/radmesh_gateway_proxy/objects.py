"""The objects that leave: found, read ahead, corrected, and re-encoded where the receiver needs that."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Final, Self

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.overlay import Corrected
from radmesh.dicom.stations import Station
from radmesh.dicom.transcoding import MOST, Transcoder
from radmesh.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, NATIVE
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.reader import LineReader, LineTo, Location, ObjectRead
from radmesh_gateway_proxy.negotiation import AcceptedContext
from radmesh_gateway_proxy.pdus import ProposedContext
from radmesh_gateway_proxy.requestor import MOST_CONTEXTS

Buffer = bytes | bytearray | memoryview

MOST_INSTANCES: Final = 200_000
"""Instances of one retrieve; who asks for more asks for less at once."""
# Bytes of an object that is kept whole; larger ones stream in their turn.
_WHOLE: Final = 4 << 20
# What has been read before its turn or is being sent: objects, and their bytes as stored (one may be larger).
_MOST_AHEAD: Final = 16
_MOST_BYTES: Final = 12 << 20
# Of a line's objects: so many are asked for before the first of them has come.
_ASKED: Final = 4
# Bytes that one takes which has to be decoded, for each that is stored.
_DECODED: Final = 8
_TURN: Final = 0.2
_SERVICES: Final = database_pb2.DESCRIPTOR.services_by_name
# Where an object is read from first.
_BEST: Final = (
    common_pb2.RESIDENCE_CACHE_AND_PERMANENT,
    common_pb2.RESIDENCE_CACHE,
    common_pb2.RESIDENCE_SPOOL,
    common_pb2.RESIDENCE_PERMANENT,
)
# What everybody can read, for those who cannot take what is stored (PS3.5 10.1).
FALLBACKS: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected value that is in force."""

    keyword: str
    value: str
    source: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Item:
    """One stored instance.

    Attributes:
        length: bytes of its data set as stored.
        locations: copies that can be read now, best first.
        corrections: of its study.
        study_instance_uid: that it was found in.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    length: int
    locations: tuple[Location, ...]
    corrections: tuple[Correction, ...]
    study_instance_uid: str = ""


class Finder:
    """Asks the Database Server what there is to send."""

    def __init__(self, context: Context, viewer_station: str) -> None:
        """Look with the eyes of a station: it sees what it sent itself, held or not; empty = nothing held."""
        self._context = context
        self._viewer = viewer_station
        self._lines: dict[str, LineTo] = {}
        self._query = context.client(_SERVICES["QueryService"], "database-server")
        self._study_service = context.client(_SERVICES["StudyService"], "database-server")

    def studies(self, patient_id: str, issuer: str = "") -> list[str]:
        """Return the Study Instance UIDs of a patient; more patients with that ID if no issuer is given."""
        request = database_pb2.FindStudiesRequest(
            patient_id=patient_id, issuer_of_patient_id=issuer, viewer_station=self._viewer, page_size=1000
        )
        found: list[str] = []
        while True:
            answer = self._query.FindStudies(request)
            found += [s.study_instance_uid for s in answer.studies if s.patient_id == patient_id]
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    def items(self, study: str, series: Sequence[str] = (), instances: Sequence[str] = ()) -> list[Item]:
        """Return the current instances of a study: all, those of some series, or some; none if there is no such study.

        Raises:
            RadmeshError: of the Database Server; CANNOT_COUNT if there are too many.
        """
        request = database_pb2.FindInstancesRequest(study_instance_uid=study, viewer_station=self._viewer)
        request.page_size = 5000
        if len(series) == 1:
            request.series_instance_uid = series[0]
        if len(instances) == 1:
            request.sop_instance_uid = instances[0]
        wanted_series, wanted = frozenset(series), frozenset(instances)
        found: list[database_pb2.Instance] = []
        try:
            while True:
                answer = self._query.FindInstances(request)
                found += [
                    i
                    for i in answer.instances
                    if (not wanted_series or i.series_instance_uid in wanted_series)
                    and (not wanted or i.identity.sop_instance_uid in wanted)
                ]
                if len(found) > MOST_INSTANCES:
                    raise RadmeshError("MESSAGE_TOO_LARGE", f"more than {MOST_INSTANCES} instances: retrieve by series")
                request.page_token = answer.next_page_token
                if not request.page_token:
                    break
            corrections = self._corrections(study) if found else ()
        except RadmeshError as error:
            if error.reason in ("STUDY_NOT_FOUND", "SERIES_NOT_FOUND", "INSTANCE_NOT_FOUND"):
                return []
            raise
        return [self._item(study, instance, corrections) for instance in found]

    def _item(self, study: str, instance: database_pb2.Instance, corrections: tuple[Correction, ...]) -> Item:
        copies = [place for place in instance.locations if place.target and place.residence in _BEST]
        copies.sort(key=lambda place: _BEST.index(place.residence))
        return Item(
            instance.sop_class_uid,
            instance.identity.sop_instance_uid,
            instance.identity.transfer_syntax_uid,
            instance.length,
            tuple(map(self._location, copies)),
            corrections,
            study,
        )

    def _location(self, place: database_pb2.Location) -> Location:
        line = None
        if place.line_target:
            line = self._lines.setdefault(place.line_target, LineTo(place.line_target, self._context.line))
        return Location(self._context.channels.get(place.target), ObjectReference.of(place.object), line)

    def _corrections(self, study: str) -> tuple[Correction, ...]:
        request = database_pb2.ListCorrectionsRequest(study_instance_uid=study, page_size=1000)
        found: list[Correction] = []
        while True:
            answer = self._study_service.ListCorrections(request)
            found += [
                Correction(c.keyword, c.value, c.source, c.time.ToDatetime(UTC))
                for c in answer.corrections
                if c.in_force
            ]
            request.page_token = answer.next_page_token
            if not request.page_token:
                return tuple(found)


def proposals(items: Sequence[Item], preferred: Sequence[str] = ()) -> tuple[tuple[ProposedContext, ...], int]:
    """Return the presentation contexts for as many items as fit one association, and how many items those are.

    Each SOP class is proposed with every transfer syntax it is stored in, one a context, so that the receiver says of
    each whether it takes it; and with what everybody can read.

    Args:
        items: what is to be sent, in this order.
        preferred: transfer syntaxes that the receiver is sent objects in, the best first; none = as stored.
    """
    wanted: dict[tuple[str, tuple[str, ...]], None] = {}
    for number, item in enumerate(items):
        more = dict(wanted)
        for syntax in (*preferred, *(() if preferred else (item.transfer_syntax_uid,))):
            more[item.sop_class_uid, (syntax,)] = None
        more[item.sop_class_uid, FALLBACKS] = None
        if len(more) > MOST_CONTEXTS:
            return _contexts(wanted), number
        wanted = more
    return _contexts(wanted), len(items)


def _contexts(wanted: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[ProposedContext, ...]:
    return tuple(ProposedContext(2 * n + 1, uid, syntaxes) for n, (uid, syntaxes) in enumerate(wanted))


def context_for(item: Item, accepted: Sequence[AcceptedContext], preferred: Sequence[str] = ()) -> AcceptedContext:
    """Return the context that an item goes in: as stored, or else what it can be made.

    Raises:
        RadmeshError: STATION_REFUSED if the receiver takes neither.
    """
    of_class = {c.transfer_syntax: c for c in accepted if c.abstract_syntax == item.sop_class_uid}
    for syntax in (*preferred, item.transfer_syntax_uid, *FALLBACKS, *NATIVE):
        if syntax in of_class and (syntax == item.transfer_syntax_uid or syntax in NATIVE):
            return of_class[syntax]
    raise RadmeshError("STATION_REFUSED", "the receiver takes the SOP class in no transfer syntax that can be made")


def takes_utf_8(station: Station | None) -> bool:
    """Whether a station can be sent objects in ISO_IR 192; one that nobody knows anything of can."""
    return station is None or station.character_set in ("", "ISO_IR 192")


@dataclass(slots=True)
class Prepared:
    """An item on its way out.

    Attributes:
        context: that it goes in.
        pieces: its data set; ends with OBJECT_CORRUPT … where it cannot be read on.
        remark: why it leaves with the values that were stored, not the corrected ones; empty if it does not.
        failure: why it cannot be sent.
    """

    item: Item
    context: AcceptedContext | None = None
    pieces: Iterable[Buffer] = ()
    remark: str = ""
    failure: RadmeshError | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """An item whose turn to be read comes.

    Attributes:
        reader: a line that it was asked of.
    """

    item: Item
    context: AcceptedContext | None = None
    reader: LineReader | None = None
    failure: RadmeshError | None = None


class Outgoing:
    """Items in the order given, read ahead of their turn by a thread; use it as a context manager.

    What is read ahead is bounded: in bytes, but for one object alone. Objects that are small enough come over a line,
    the next ones asked for while the first is on its way; where that fails, each is read by itself.

    Args:
        items: what is to be sent.
        choose: the context that an item goes in; may raise RadmeshError.
        transcoder: for those that do not go as stored.
        utf_8: whether the receiver can read ISO_IR 192.
        between: called at least every 0.2 s while an item is waited for; what it raises ends the iteration.
    """

    def __init__(
        self,
        items: Sequence[Item],
        choose: Callable[[Item], AcceptedContext],
        transcoder: Transcoder,
        *,
        utf_8: bool = True,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        self._items = iter(items)
        # A line for one object would be opened for nothing.
        self._by_line = len(items) > 1
        self._choose = choose
        self._transcoder = transcoder
        self._utf_8 = utf_8
        self._between = between
        self._readers: dict[str, LineReader | None] = {}
        self._changed = threading.Condition()
        # Under its lock: what is ready, with the bytes it is counted as; how much is held; how it stands.
        self._ready: deque[tuple[Prepared, int]] = deque()
        self._held = self._count = 0
        self._closed = self._ended = False
        self._bug: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Prepared]:
        threading.Thread(target=self._run, name="outgoing", daemon=True).start()
        while (ready := self._await()) is not None:
            prepared, size = ready
            if prepared.failure is None and not prepared.pieces:
                # Too large to be kept: it streams now.
                prepared = self._prepared(prepared.item, prepared.context, partial(_read, prepared.item))
            yield prepared
            with self._changed:
                self._held -= size
                self._count -= 1
                self._changed.notify_all()

    def _await(self) -> tuple[Prepared, int] | None:
        """Return what is next, or None after the last."""
        while True:
            with self._changed:
                if not self._ready and not self._ended:
                    self._changed.wait(_TURN)
                if self._ready:
                    return self._ready.popleft()
                if self._ended:
                    if self._bug is not None:
                        raise self._bug
                    return None
            self._between()

    # On the thread that reads

    def _run(self) -> None:
        try:
            self._read_ahead()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            self._bug = error
        finally:
            for reader in filter(None, self._readers.values()):
                reader.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read_ahead(self) -> None:
        asked: deque[tuple[_Asked, int]] = deque()
        following = self._next()
        while True:
            # What was asked for has its room, so that it can always be taken: no store waits for a slow receiver.
            while following is not None and len(asked) < _ASKED and self._reserve(following[1], wait=not asked):
                asked.append((self._ask(following[0]), following[1]))
                following = self._next()
            if not asked:
                return
            first, size = asked.popleft()
            prepared = self._fetched(first)
            with self._changed:
                if self._closed:
                    return
                self._ready.append((prepared, size))
                self._changed.notify_all()

    def _next(self) -> tuple[_Asked, int] | None:
        """Return the next item, and how many bytes it is counted as."""
        item = next(self._items, None)
        if item is None:
            return None
        try:
            context = self._choose(item)
        except RadmeshError as error:
            return _Asked(item, failure=error), 0
        if context.transfer_syntax != item.transfer_syntax_uid:
            return _Asked(item, context), item.length * (1 if item.transfer_syntax_uid in NATIVE else _DECODED)
        return _Asked(item, context), min(item.length, _WHOLE)

    def _reserve(self, size: int, *, wait: bool) -> bool:
        """Make room for an item; False: there is none, or nobody wants it any more."""
        with self._changed:
            while not self._closed:
                if not self._count or (self._count < _MOST_AHEAD and self._held + size <= _MOST_BYTES):
                    self._held += size
                    self._count += 1
                    return True
                if not wait:
                    return False
                self._changed.wait()
            return False

    def _ask(self, wanted: _Asked) -> _Asked:
        item = wanted.item
        if wanted.failure is not None or not self._by_line or item.length > _WHOLE or not item.locations:
            return wanted
        place = item.locations[0]
        if place.line is None:
            return wanted
        try:
            if place.line.target not in self._readers:
                self._readers[place.line.target] = LineReader(place.line)
            if (reader := self._readers[place.line.target]) is not None:
                reader.ask(place.object, item.length)
                return replace(wanted, reader=reader)
        except RadmeshError:
            if (lost := self._readers.get(place.line.target)) is not None:
                lost.close()
            self._readers[place.line.target] = None
        return wanted

    def _fetched(self, asked: _Asked) -> Prepared:
        item, context = asked.item, asked.context
        if asked.failure is not None or context is None:
            return Prepared(item, failure=asked.failure)
        if item.length > _WHOLE and context.transfer_syntax == item.transfer_syntax_uid:
            return Prepared(item, context)
        pieces: list[Buffer] | None = None
        if asked.reader is not None:
            with suppress(RadmeshError):
                pieces = asked.reader.take()
        prepared = self._prepared(item, context, lambda: _read(item) if pieces is None else iter(pieces))
        try:
            prepared.pieces = list(prepared.pieces)
        except RadmeshError as error:
            return Prepared(item, context, failure=error)
        return prepared

    def _prepared(self, item: Item, context: AcceptedContext | None, read: Callable[[], Iterator[Buffer]]) -> Prepared:
        assert context is not None
        try:
            pieces, remark = _corrected(item, read, utf_8=self._utf_8)
            if context.transfer_syntax != item.transfer_syntax_uid:
                pieces = self._transcoded(item, context, pieces)
            return Prepared(item, context, pieces, remark)
        except RadmeshError as error:
            return Prepared(item, context, failure=error)

    def _transcoded(self, item: Item, context: AcceptedContext, pieces: Iterable[Buffer]) -> Iterable[Buffer]:
        if item.length > MOST:
            raise RadmeshError("TRANSCODING_FAILED", f"the object has more than {MOST >> 20} MiB")
        return (self._transcoder(b"".join(pieces), item.transfer_syntax_uid, context.transfer_syntax),)


def _read(item: Item) -> Iterator[Buffer]:
    if not item.locations:
        raise RadmeshError("PEER_UNAVAILABLE", "no store that has the instance answers: try again")
    with ObjectRead(item.locations) as reading:
        yield from reading


def _corrected(item: Item, read: Callable[[], Iterator[Buffer]], *, utf_8: bool) -> tuple[Iterable[Buffer], str]:
    """Return an object's data set with the corrected values, and why some or all of them are not in it."""
    if not item.corrections:
        reading = read()
        # Whether it can be read at all shows before anything is sent.
        return chain((next(reading, b""),), reading), ""
    try:
        made = Corrected(read(), item.transfer_syntax_uid, item.corrections)
        if made.recoded and not utf_8:
            plain = [correction for correction in item.corrections if correction.value.isascii()]
            made = Corrected(read(), item.transfer_syntax_uid, plain)
            return made, "the receiver's character set has no room for a corrected value"
        return made, ""
    except RadmeshError as error:
        if error.reason != "CORRECTION_NOT_APPLIED":
            raise
        return read(), f"{error.reason}: {error.message}"
