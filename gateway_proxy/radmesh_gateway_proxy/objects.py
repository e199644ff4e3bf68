"""The objects that leave: found, read ahead, corrected, and re-encoded where the receiver needs that."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Final, Self

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.overlay import Corrected
from radmesh.dicom.transcoding import MOST, Transcoder
from radmesh.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, NATIVE
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.reader import Location, ObjectRead
from radmesh_gateway_proxy.negotiation import AcceptedContext
from radmesh_gateway_proxy.pdus import ProposedContext
from radmesh_gateway_proxy.requestor import MOST_CONTEXTS

Buffer = bytes | bytearray | memoryview

MOST_INSTANCES: Final = 200_000
"""Instances of one retrieve; who asks for more asks for less at once."""
# What has been read before its turn: objects, and bytes of one that is kept whole; larger ones stream in their turn.
_AHEAD: Final = 6
_WHOLE: Final = 4 << 20
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
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    length: int
    locations: tuple[Location, ...]
    corrections: tuple[Correction, ...]


class Finder:
    """Asks the Database Server what there is to send."""

    def __init__(self, context: Context, viewer_station: str) -> None:
        """Look with the eyes of a station: it sees what it sent itself, held or not; empty = nothing held."""
        self._context = context
        self._viewer = viewer_station
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
        return [self._item(instance, corrections) for instance in found]

    def _item(self, instance: database_pb2.Instance, corrections: tuple[Correction, ...]) -> Item:
        copies = [place for place in instance.locations if place.target and place.residence in _BEST]
        copies.sort(key=lambda place: _BEST.index(place.residence))
        channels = self._context.channels
        return Item(
            instance.sop_class_uid,
            instance.identity.sop_instance_uid,
            instance.identity.transfer_syntax_uid,
            instance.length,
            tuple(Location(channels.get(place.target), ObjectReference.of(place.object)) for place in copies),
            corrections,
        )

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


class Outgoing:
    """Items in the order given, made ready ahead of their turn by two threads; use it as a context manager.

    Args:
        items: what is to be sent.
        choose: the context that an item goes in; may raise RadmeshError.
        transcoder: for those that do not go as stored.
        utf_8: whether the receiver can read ISO_IR 192.
    """

    def __init__(
        self,
        items: Iterable[Item],
        choose: Callable[[Item], AcceptedContext],
        transcoder: Transcoder,
        *,
        utf_8: bool = True,
    ) -> None:
        self._items = iter(items)
        self._choose = choose
        self._transcoder = transcoder
        self._utf_8 = utf_8
        self._pool = ThreadPoolExecutor(2, "outgoing")
        self._coming: deque[tuple[Item, Future[Prepared]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._coming.clear()

    def __iter__(self) -> Iterator[Prepared]:
        while True:
            while len(self._coming) < _AHEAD:
                item = next(self._items, None)
                if item is None:
                    break
                self._coming.append((item, self._pool.submit(self._prepare, item)))
            if not self._coming:
                return
            item, future = self._coming.popleft()
            prepared = future.result()
            if prepared.failure is None and not prepared.pieces:
                # Too large to be kept: it streams now.
                prepared = self._guarded(item, prepared.context, ahead=False)
            yield prepared

    def _prepare(self, item: Item) -> Prepared:
        return self._guarded(item, None, ahead=True)

    def _guarded(self, item: Item, context: AcceptedContext | None, *, ahead: bool) -> Prepared:
        try:
            context = context or self._choose(item)
            transcoded = context.transfer_syntax != item.transfer_syntax_uid
            if ahead and (item.length > _WHOLE or transcoded):
                return Prepared(item, context)
            pieces, remark = _corrected(item, utf_8=self._utf_8)
            if transcoded:
                pieces = self._transcoded(item, context, pieces)
            return Prepared(item, context, list(pieces) if ahead else pieces, remark)
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


def _corrected(item: Item, *, utf_8: bool) -> tuple[Iterable[Buffer], str]:
    """Return an object's data set with the corrected values, and why some or all of them are not in it."""
    if not item.corrections:
        reading = _read(item)
        # Whether it can be read at all shows before anything is sent.
        return chain((next(reading, b""),), reading), ""
    try:
        made = Corrected(_read(item), item.transfer_syntax_uid, item.corrections)
        if made.recoded and not utf_8:
            plain = [correction for correction in item.corrections if correction.value.isascii()]
            made = Corrected(_read(item), item.transfer_syntax_uid, plain)
            return made, "the receiver's character set has no room for a corrected value"
        return made, ""
    except RadmeshError as error:
        if error.reason != "CORRECTION_NOT_APPLIED":
            raise
        return _read(item), f"{error.reason}: {error.message}"
