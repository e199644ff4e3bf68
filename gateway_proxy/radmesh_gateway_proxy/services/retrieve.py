"""C-MOVE and C-GET: what a station asks for is sent, to a station it names or to itself (PS3.4 C.4.2 and C.4.3)."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from radmesh.dicom.identifier import QUERY_RETRIEVE_LEVEL, Identifier, read_identifier, write_element
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN, clean_uid, is_valid_uid
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.certificates import dialer_of
from radmesh_gateway_proxy.delivery import WARNINGS, Delivery, GoneError, Store, is_done
from radmesh_gateway_proxy.dimse import Command, Element, Outcome, Response, Status, encode_request, us
from radmesh_gateway_proxy.objects import Buffer, Finder, Item, Outgoing, Prepared, context_for, takes_utf_8
from radmesh_gateway_proxy.services.exchange import Exchange, InterruptedExchangeError, RefusalError, Sent
from radmesh_native import dul

PATIENT_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.1.2"
PATIENT_ROOT_GET: Final = "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
PATIENT_STUDY_MOVE: Final = "1.2.840.10008.5.1.4.1.2.3.2"
PATIENT_STUDY_GET: Final = "1.2.840.10008.5.1.4.1.2.3.3"

_LEVEL: Final = (0x0008, 0x0052)
_FAILED_LIST: Final = 0x00080058
_ISSUER_OF_PATIENT_ID: Final = 0x00100021
_LEVELS: Final = ("PATIENT", "STUDY", "SERIES", "IMAGE")
# Unique key of each level (PS3.4 C.6.1.1): tag, keyword.
_KEYS: Final = {
    "PATIENT": ((0x0010, 0x0020), "PatientID"),
    "STUDY": ((0x0020, 0x000D), "StudyInstanceUID"),
    "SERIES": ((0x0020, 0x000E), "SeriesInstanceUID"),
    "IMAGE": ((0x0008, 0x0018), "SOPInstanceUID"),
}
_PENDING_SECONDS: Final = 0.2
# A C-CANCEL ends a sub-operation that has not ended by itself after this time.
_CANCEL_SECONDS: Final = 0.5
# UI has a 16 bit length in Explicit VR.
_MOST_FAILED_BYTES: Final = 65_000


class _CancelledError(Exception):
    """The peer cancelled, and the sub-operation that is under way does not end."""


@dataclass(slots=True)
class Count:
    """Sub-operations of a retrieve."""

    remaining: int = 0
    completed: int = 0
    warning: int = 0
    failed: list[str] = field(default_factory=list)

    def elements(self, *, remaining: bool) -> dict[int, bytes]:
        """Return their numbers (PS3.7 9.1.3.1.7 to .10), which are 65,535 at most."""
        return {
            **({int(Element.REMAINING): us(self.remaining)} if remaining else {}),
            int(Element.COMPLETED): us(self.completed),
            int(Element.FAILED): us(len(self.failed)),
            int(Element.WARNING): us(self.warning),
        }

    def add(self, item: Item, status: int | None, *, remark: bool) -> None:
        """Count one; `status` None = it was not sent."""
        self.remaining -= 1
        if status is not None and (status in WARNINGS or (status == Status.SUCCESS and remark)):
            self.warning += 1
        elif status == Status.SUCCESS:
            self.completed += 1
        else:
            self.failed.append(item.sop_instance_uid)


def wanted(exchange: Exchange, viewer_station: str) -> list[Item]:
    """Return the instances that the identifier of a C-MOVE or C-GET names.

    Raises:
        RefusalError: 0xA900 if it breaks the rules of PS3.4 C.4.2.2.1, 0xC000 if it cannot be read.
        RadmeshError: of the Database Server.
    """
    identifier = _identifier(exchange)
    level = identifier.value(QUERY_RETRIEVE_LEVEL).strip()
    patient_root = exchange.context.abstract_syntax not in (STUDY_ROOT_MOVE, STUDY_ROOT_GET)
    levels = _LEVELS if patient_root else _LEVELS[1:]
    if level not in levels:
        raise _refused("the level is none of the information model", _LEVEL)
    keys = {name: _values(identifier, name) for name in levels[: levels.index(level) + 1]}
    if not keys[level]:
        raise _refused(f"the unique key {_KEYS[level][1]} is empty", _KEYS[level][0])
    finder = Finder(exchange.mesh.context, viewer_station)
    if level == "PATIENT":
        issuer = identifier.value(_ISSUER_OF_PATIENT_ID).strip()
        studies: Sequence[str] = finder.studies(keys["PATIENT"][0], issuer)
    else:
        studies = keys["STUDY"]
        # Above the level there is one value of each key; of the patient's ID nothing depends on it.
        for name in levels[: levels.index(level)]:
            if name != "PATIENT" and len(keys[name]) != 1:
                raise _refused(f"{_KEYS[name][1]} needs one value", _KEYS[name][0])
    found: list[Item] = []
    for study in studies:
        found += finder.items(study, keys.get("SERIES", ()), keys.get("IMAGE", ()))
    return found


def _identifier(exchange: Exchange) -> Identifier:
    data = exchange.identifier()
    if not data:
        raise _refused("the request has no identifier")
    try:
        return read_identifier(data, implicit=exchange.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN)
    except RadmeshError as error:
        raise RefusalError(Outcome(Status.CANNOT_UNDERSTAND, f"{error.reason}: {error.message}"[:64])) from None


def _values(identifier: Identifier, level: str) -> tuple[str, ...]:
    tag, keyword = _KEYS[level]
    values = identifier.value(tag[0] << 16 | tag[1]).split("\\")
    texts = tuple(v.strip() if level == "PATIENT" else clean_uid(v.encode("latin-1", "replace")) for v in values)
    texts = tuple(text for text in texts if text)
    if level == "PATIENT":
        if len(texts) > 1 or any("*" in text or "?" in text for text in texts):
            raise _refused("Patient ID needs one value, without wildcards", tag)
    elif not all(is_valid_uid(text) for text in texts):
        raise _refused(f"{keyword} is no UID, nor a list of them", tag)
    return texts


def _refused(text: str, tag: tuple[int, int] | None = None) -> RefusalError:
    return RefusalError(Outcome(Status.DATA_SET_MISMATCH, text, tag))


class _Retrieve:
    """The sub-operations of one request, and the responses to it."""

    def __init__(self, exchange: Exchange, items: Sequence[Item]) -> None:
        self.exchange = exchange
        self.items = items
        self.count = Count(len(items))
        self.reason = ""
        # By study: how many arrived, how many did not, and why the first of those did not.
        self._studies: dict[str, tuple[int, int, str]] = {}
        self._told = 0.0
        self._cancelled_at = 0.0

    def cancelled(self) -> bool:
        """Whether the peer cancelled; ask before each sub-operation."""
        if not self._cancelled_at and self.exchange.cancelled():
            self._cancelled_at = time.monotonic()
        return bool(self._cancelled_at)

    def between(self) -> None:
        """Called while a sub-operation goes on: ends it if it does not end by itself after a C-CANCEL."""
        if self.cancelled() and time.monotonic() - self._cancelled_at > _CANCEL_SECONDS:
            raise _CancelledError

    def send(self, outgoing: Iterable[Prepared], store: Store) -> bool:
        """Do sub-operations until there are no more, or the peer cancels: False."""
        try:
            for prepared in outgoing:
                if self.cancelled():
                    return False
                self._do(prepared, store)
                self.tell()
        except _CancelledError:
            return False
        return True

    def _do(self, prepared: Prepared, store: Store) -> None:
        item = prepared.item
        try:
            if prepared.failure is not None:
                raise prepared.failure
            status: int | None = store(prepared).status
            reason, text = "" if status == Status.SUCCESS else f"0x{status:04X}", "the receiver's status"
        except RadmeshError as error:
            status, reason, text = None, error.reason, error.message
        self._add(item, status, reason, remark=bool(prepared.remark))
        if reason:
            self.reason = self.reason or f"{reason}: {text}"
        if reason or prepared.remark:
            self.exchange.log.warning(
                "sub-operation failed" if reason else "sent without corrections",
                reason=reason or prepared.remark,
                sop_instance_uid=item.sop_instance_uid,
                text=text,
            )

    def _add(self, item: Item, status: int | None, reason: str, *, remark: bool) -> None:
        self.count.add(item, status, remark=remark)
        arrived, failed, why = self._studies.get(item.study_instance_uid, (0, 0, ""))
        if status is not None and is_done(status):
            arrived += 1
        else:
            failed, why = failed + 1, why or reason
        self._studies[item.study_instance_uid] = (arrived, failed, why)

    def tell(self) -> None:
        """Say how far it is, now and then."""
        now = time.monotonic()
        if self.count.remaining and now - self._told > _PENDING_SECONDS:
            self._told = now
            self.exchange.respond(elements=self.count.elements(remaining=True))

    def give_up(self, items: Iterable[Item], error: RadmeshError) -> None:
        """Count what cannot be sent at all."""
        for item in items:
            self._add(item, None, error.reason, remark=False)

    def audit(self, destination: str) -> None:
        """Write to the audit what was sent."""
        for study, counted in self._studies.items():
            self.exchange.mesh.sent(self.exchange.peer, study, Sent(destination, *counted))

    def outcome(self, comment: str = "") -> Outcome:
        """Return the last response (PS3.4 tables C.4-2 and C.4-3); else with why the first one failed."""
        count = self.count
        if self._cancelled_at and count.remaining:
            status = Status.CANCELLED
        elif count.failed and not count.completed and not count.warning:
            status = Status.CANNOT_PERFORM_SUB_OPERATIONS
        elif count.failed or count.warning:
            status = Status.SUB_OPERATIONS_FAILED
        else:
            status = Status.SUCCESS
        elements = count.elements(remaining=status == Status.CANCELLED)
        return Outcome(status, (comment or self.reason)[:64], elements=elements, identifier=self._failed())

    def _failed(self) -> bytes:
        """Return the Failed SOP Instance UID List (0008,0058), as much of it as the element takes."""
        listed, size = [], 0
        for uid in self.count.failed:
            size += len(uid) + 1
            if size > _MOST_FAILED_BYTES:
                break
            listed.append(uid)
        if not listed:
            return b""
        implicit = self.exchange.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
        return write_element((_FAILED_LIST, "UI", "\\".join(listed)), implicit=implicit, codec="ascii")


def move(exchange: Exchange) -> Outcome:
    """Answer a C-MOVE request (PS3.4 C.4.2): send what it names to its Move Destination (0000,0600)."""
    title = exchange.request.text(Element.MOVE_DESTINATION)
    caller = exchange.peer.calling_ae_title
    # A station may have everything it sent itself; nobody else gets what is held.
    items = wanted(exchange, caller if title == caller else "")
    station = exchange.mesh.destination(title) if title else None
    if station is None:
        raise RefusalError(
            Outcome(Status.MOVE_DESTINATION_UNKNOWN, "no station of that AE title is known", (0x0000, 0x0600))
        )
    retrieve = _Retrieve(exchange, items)
    delivery = Delivery(
        station,
        exchange.mesh.config.ae_title,
        exchange.mesh.transcoder,
        exchange.mesh.config.max_pdu,
        retrieve.between,
        (caller, exchange.request.message_id),
        dialer_of(station, exchange.mesh.config, exchange.mesh.context),
    )
    comment = ""
    try:
        delivery.run(items, retrieve.send)
    except GoneError as gone:
        error = gone.cause
        exchange.log.warning("move destination failed", ae_title=title, reason=error.reason, text=error.message)
        comment = f"{error.reason}: {error.message}"
        retrieve.give_up(items[len(items) - retrieve.count.remaining :], error)
    except _CancelledError:
        pass
    finally:
        retrieve.audit(title)
    return retrieve.outcome(comment)


def get(exchange: Exchange) -> Outcome:
    """Answer a C-GET request (PS3.4 C.4.3): send what it names on the same association."""
    items = wanted(exchange, exchange.peer.calling_ae_title)
    accepted = tuple(
        context
        for context in exchange.agreement.contexts.values()
        if context.abstract_syntax in exchange.agreement.scp_sop_classes
    )
    retrieve = _Retrieve(exchange, items)
    station = exchange.mesh.station(exchange.peer.calling_ae_title, exchange.peer.address)
    preferred = station.transfer_syntaxes if station is not None else ()

    def store(prepared: Prepared) -> Response:
        assert prepared.context is not None
        command = encode_request(
            Command.C_STORE,
            exchange.line.next_message_id(),
            prepared.context.abstract_syntax,
            prepared.item.sop_instance_uid,
            has_data_set=True,
            elements={int(Element.PRIORITY): us(0)},
        )
        return exchange.store(prepared.context.context_id, command, _to_the_end(prepared, exchange))

    try:
        with Outgoing(
            items,
            lambda item: context_for(item, accepted, preferred),
            exchange.mesh.transcoder,
            utf_8=takes_utf_8(station),
            between=retrieve.between,
        ) as outgoing:
            retrieve.send(outgoing, store)
    finally:
        # Also of what was sent before the peer was cut off.
        retrieve.audit(exchange.peer.calling_ae_title)
    comment = "no storage class was proposed with the SCP role" if items and not accepted else ""
    return retrieve.outcome(comment)


def _to_the_end(prepared: Prepared, exchange: Exchange) -> Iterator[Buffer]:
    """Yield a data set; where it cannot be read on, half of it has been sent, and only an abort ends that."""
    number = 0
    try:
        for piece in prepared.pieces:
            yield piece
            number += 1
    except RadmeshError as error:
        # A piece is sent when the one behind it is there.
        if number < 2:
            raise
        exchange.log.warning(
            "an object could not be read on: the association is aborted",
            reason=error.reason,
            sop_instance_uid=prepared.item.sop_instance_uid,
            text=error.message,
        )
        raise InterruptedExchangeError((dul.WOKEN,)) from error


MOVE_SOP_CLASSES: Final[Mapping[str, str]] = {
    PATIENT_ROOT_MOVE: "Patient Root Query/Retrieve Information Model - MOVE",
    STUDY_ROOT_MOVE: "Study Root Query/Retrieve Information Model - MOVE",
    PATIENT_STUDY_MOVE: "Patient/Study Only Query/Retrieve Information Model - MOVE (retired)",
}
GET_SOP_CLASSES: Final[Mapping[str, str]] = {
    PATIENT_ROOT_GET: "Patient Root Query/Retrieve Information Model - GET",
    STUDY_ROOT_GET: "Study Root Query/Retrieve Information Model - GET",
    PATIENT_STUDY_GET: "Patient/Study Only Query/Retrieve Information Model - GET (retired)",
}
