"""The PDUs of association control, parsed and encoded (PS3.8 section 9.3, PS3.7 annex D.3).

P-DATA-TF is not here: the loop in native/ reads it. What is parsed here comes from strangers: every length is
checked before it is believed, and nothing but `PduError` leaves a parser.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"
PROTOCOL_VERSION = 1
# 128 contexts with 60 transfer syntaxes each are 500 kB: what is longer is not meant well.
MAX_ASSOCIATE_LENGTH = 1 << 20

_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")


class PduType(IntEnum):
    """PDU-type, PS3.8 section 9.3."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class AbortSource(IntEnum):
    """Source of an A-ABORT, PS3.8 table 9-26."""

    SERVICE_USER = 0
    SERVICE_PROVIDER = 2


class AbortReason(IntEnum):
    """Reason of an A-ABORT by the service provider, PS3.8 table 9-26."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER_VALUE = 6


class ContextResult(IntEnum):
    """Result of one presentation context, PS3.8 table 9-18."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


class PduError(Exception):
    """A PDU that PS3.8 does not allow; the answer is an A-ABORT with this reason."""

    def __init__(self, message: str, reason: AbortReason = AbortReason.INVALID_PARAMETER_VALUE) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context as proposed, PS3.8 section 9.3.2.2."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContextReply:
    """The answer to a proposed presentation context, PS3.8 section 9.3.3.2."""

    context_id: int
    result: ContextResult
    transfer_syntax: str  # means something only when accepted


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """SCP/SCU role selection, PS3.7 section D.3.3.4."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """SOP class extended negotiation, PS3.7 section D.3.3.5."""

    sop_class_uid: str
    information: bytes


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """SOP class common extended negotiation, PS3.7 section D.3.3.6."""

    sop_class_uid: str
    service_class_uid: str
    related_general_sop_classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """User identity, PS3.7 section D.3.3.7. The fields are secrets: never logged, and not part of the repr."""

    kind: int
    response_requested: bool
    primary: bytes
    secondary: bytes

    def __repr__(self) -> str:
        return f"UserIdentity(kind={self.kind})"


@dataclass(frozen=True, slots=True)
class UserInformation:
    """The sub-items of user information that PS3.7 and PS3.8 define; unknown ones are skipped as they ask."""

    max_length: int = 0  # bytes of a P-DATA-TF after its header; 0 = no limit
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    async_window: tuple[int, int] | None = None  # operations invoked, performed; 0 = no limit
    roles: tuple[RoleSelection, ...] = ()
    extended: tuple[ExtendedNegotiation, ...] = ()
    common_extended: tuple[CommonExtendedNegotiation, ...] = ()
    user_identity: UserIdentity | None = None
    user_identity_response: bytes | None = None


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ, PS3.8 section 9.3.2."""

    called_ae_title: str
    calling_ae_title: str
    contexts: tuple[ProposedContext, ...]
    user: UserInformation
    application_context_name: str = APPLICATION_CONTEXT_NAME
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class AssociateAccept:
    """A-ASSOCIATE-AC, PS3.8 section 9.3.3. The AE titles are echoed, never tested."""

    called_ae_title: str
    calling_ae_title: str
    contexts: tuple[ContextReply, ...]
    user: UserInformation
    application_context_name: str = APPLICATION_CONTEXT_NAME
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class AssociateReject:
    """A-ASSOCIATE-RJ, PS3.8 table 9-21."""

    result: int
    source: int
    reason: int


REJECT_APPLICATION_CONTEXT = AssociateReject(1, 1, 2)
REJECT_CALLING_AE_TITLE = AssociateReject(1, 1, 3)
REJECT_CALLED_AE_TITLE = AssociateReject(1, 1, 7)
REJECT_PROTOCOL_VERSION = AssociateReject(1, 2, 2)
REJECT_TEMPORARY_CONGESTION = AssociateReject(2, 3, 1)
REJECT_LOCAL_LIMIT = AssociateReject(2, 3, 2)


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT, PS3.8 section 9.3.8."""

    source: int
    reason: int


# Items and text ---------------------------------------------------------------------------------------------------


def _items(body: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Walk items of the form type, reserved byte, 2 byte length, value."""
    position, end = 0, len(body)
    while position < end:
        if end - position < 4:
            raise PduError("an item is cut")
        start = position + 4
        position = start + ((body[start - 2] << 8) | body[start - 1])
        if position > end:
            raise PduError("an item is longer than what holds it")
        yield body[start - 4], body[start:position]


def _text(value: memoryview | bytes) -> str:
    """ASCII without padding; what may not be printed becomes "?", so that it can stand in a log line."""
    return _NOT_PRINTABLE.sub("?", str(value, "latin-1").strip("\0 "))


def _uid(value: memoryview) -> str:
    if len(value) > 66:  # 64, and what some senders add as padding
        raise PduError("a UID is longer than 64 characters")
    return _known_uid(bytes(value))


@lru_cache(4096)
def _known_uid(value: bytes) -> str:
    """One string for all places where a request repeats a UID, which is most of it."""
    return _text(value)


def _counted(value: memoryview, position: int) -> tuple[memoryview, int]:
    """A value behind its 2 byte length, and where it ends."""
    start = position + 2
    if start > len(value):
        raise PduError("a length is cut")
    end = start + ((value[position] << 8) | value[position + 1])
    if end > len(value):
        raise PduError("a value is longer than its item")
    return value[start:end], end


# Parsing ----------------------------------------------------------------------------------------------------------


def parse_associate_request(body: bytes | bytearray | memoryview) -> AssociateRequest:
    """Parse the part of an A-ASSOCIATE-RQ behind its six byte header.

    Raises:
        PduError: if it is not one that PS3.8 section 9.3.2 allows.
    """
    version, called, calling, items = _associate(memoryview(body))
    contexts, user, name = [], None, ""
    for kind, value in items:
        if kind == 0x10:
            name = _uid(value)
        elif kind == 0x20:
            contexts.append(_proposed_context(value))
        elif kind == 0x50:
            user = parse_user_information(value)
    if len({c.context_id for c in contexts}) != len(contexts):
        raise PduError("a presentation context id is used twice")
    return AssociateRequest(called, calling, tuple(contexts), user or UserInformation(), name, version)


def parse_associate_accept(body: bytes | bytearray | memoryview) -> AssociateAccept:
    """Parse the part of an A-ASSOCIATE-AC behind its six byte header.

    Raises:
        PduError: if it is not one that PS3.8 section 9.3.3 allows.
    """
    version, called, calling, items = _associate(memoryview(body))
    contexts, user, name = [], None, ""
    for kind, value in items:
        if kind == 0x10:
            name = _uid(value)
        elif kind == 0x21:
            contexts.append(_context_reply(value))
        elif kind == 0x50:
            user = parse_user_information(value)
    return AssociateAccept(called, calling, tuple(contexts), user or UserInformation(), name, version)


def parse_associate_reject(body: bytes | bytearray | memoryview) -> AssociateReject:
    """Parse the four bytes of an A-ASSOCIATE-RJ.

    Raises:
        PduError: if there are not four of them.
    """
    if len(body) != 4:
        raise PduError("an A-ASSOCIATE-RJ has 4 bytes")
    return AssociateReject(body[1], body[2], body[3])


def parse_abort(body: bytes | bytearray | memoryview) -> Abort:
    """Parse the four bytes of an A-ABORT.

    Raises:
        PduError: if there are not four of them.
    """
    if len(body) != 4:
        raise PduError("an A-ABORT has 4 bytes")
    return Abort(body[2], body[3])


def parse_release(body: bytes | bytearray | memoryview) -> None:
    """Check the four reserved bytes of an A-RELEASE-RQ or -RP.

    Raises:
        PduError: if there are not four of them.
    """
    if len(body) != 4:
        raise PduError("a release PDU has 4 bytes")


def _associate(body: memoryview) -> tuple[int, str, str, Iterator[tuple[int, memoryview]]]:
    if len(body) > MAX_ASSOCIATE_LENGTH:
        raise PduError("an association request is longer than 1 MiB")
    if len(body) < 68:
        raise PduError("an association PDU is cut")
    return (body[0] << 8) | body[1], _text(body[4:20]), _text(body[20:36]), _items(body[68:])


def _proposed_context(value: memoryview) -> ProposedContext:
    if len(value) < 4:
        raise PduError("a presentation context is cut")
    if not value[0] & 1:
        raise PduError("a presentation context id is even")
    abstract: str | None = None
    transfer: list[str] = []
    for kind, inner in _items(value[4:]):
        if kind == 0x30:
            if abstract is not None:
                raise PduError("a presentation context has two abstract syntaxes", AbortReason.UNEXPECTED_PARAMETER)
            abstract = _uid(inner)
        elif kind == 0x40:
            transfer.append(_uid(inner))
    if abstract is None:
        raise PduError("a presentation context has no abstract syntax")
    return ProposedContext(value[0], abstract, tuple(transfer))


def _context_reply(value: memoryview) -> ContextReply:
    if len(value) < 4:
        raise PduError("a presentation context is cut")
    try:
        result = ContextResult(value[2])
    except ValueError:
        raise PduError("a presentation context has an unknown result") from None
    transfer = next((_uid(inner) for kind, inner in _items(value[4:]) if kind == 0x40), "")
    if result is ContextResult.ACCEPTANCE and not transfer:
        raise PduError("an accepted presentation context has no transfer syntax")
    return ContextReply(value[0], result, transfer)


def parse_user_information(value: bytes | memoryview) -> UserInformation:
    """Parse the value of a user information item.

    Raises:
        PduError: if a sub-item that we know is malformed.
    """
    fields: dict[str, Any] = {}
    for kind, item in _items(memoryview(value)):
        if kind in _SINGLE:
            name, parse = _SINGLE[kind]
            fields[name] = parse(item)
        elif kind in _REPEATED:
            name, parse = _REPEATED[kind]
            fields[name] = (*fields.get(name, ()), parse(item))
    return UserInformation(**fields)


def _unpack(form: str, value: memoryview) -> tuple[int, ...]:
    if len(value) != struct.calcsize(form):
        raise PduError("a user information sub-item has a wrong length")
    return struct.unpack(form, value)


def _max_length(item: memoryview) -> int:
    return _unpack(">I", item)[0]


def _async_window(item: memoryview) -> tuple[int, int]:
    invoked, performed = _unpack(">HH", item)
    return invoked, performed


def _version_name(item: memoryview) -> str:
    return _text(item)[:16]


def _role(item: memoryview) -> RoleSelection:
    uid, end = _counted(item, 0)
    scu, scp = _unpack(">BB", item[end:])
    return RoleSelection(_uid(uid), scu == 1, scp == 1)


def _extended(item: memoryview) -> ExtendedNegotiation:
    uid, end = _counted(item, 0)
    return ExtendedNegotiation(_uid(uid), bytes(item[end:]))


def _common_extended(item: memoryview) -> CommonExtendedNegotiation:
    sop_class, end = _counted(item, 0)
    service_class, end = _counted(item, end)
    related: list[str] = []
    if end < len(item):  # version 0 of the sub-item may leave the list out
        uids, _ = _counted(item, end)
        position = 0
        while position < len(uids):
            uid, position = _counted(uids, position)
            related.append(_uid(uid))
    return CommonExtendedNegotiation(_uid(sop_class), _uid(service_class), tuple(related))


def _user_identity(item: memoryview) -> UserIdentity:
    if len(item) < 2:
        raise PduError("a user identity is cut")
    primary, end = _counted(item, 2)
    secondary, _ = _counted(item, end)
    return UserIdentity(item[0], item[1] == 1, bytes(primary), bytes(secondary))


def _user_identity_response(item: memoryview) -> bytes:
    return bytes(_counted(item, 0)[0])


_Parsers = Mapping[int, tuple[str, Callable[[memoryview], Any]]]
_SINGLE: _Parsers = {
    0x51: ("max_length", _max_length),
    0x52: ("implementation_class_uid", _uid),
    0x53: ("async_window", _async_window),
    0x55: ("implementation_version_name", _version_name),
    0x58: ("user_identity", _user_identity),
    0x59: ("user_identity_response", _user_identity_response),
}
_REPEATED: _Parsers = {
    0x54: ("roles", _role),
    0x56: ("extended", _extended),
    0x57: ("common_extended", _common_extended),
}


# Encoding ---------------------------------------------------------------------------------------------------------


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _counted_bytes(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def _pdu(kind: PduType, body: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(body)) + body


def encode_user_information(user: UserInformation) -> bytes:
    """Encode the user information item, in the order of the sub-items' types."""
    parts = [_item(0x51, struct.pack(">I", user.max_length)), _item(0x52, user.implementation_class_uid.encode())]
    if user.async_window is not None:
        parts.append(_item(0x53, struct.pack(">HH", *user.async_window)))
    parts += [_item(0x54, _counted_bytes(r.sop_class_uid.encode()) + bytes((r.scu, r.scp))) for r in user.roles]
    if user.implementation_version_name:
        parts.append(_item(0x55, user.implementation_version_name.encode()))
    parts += [_item(0x56, _counted_bytes(e.sop_class_uid.encode()) + e.information) for e in user.extended]
    for c in user.common_extended:
        related = b"".join(_counted_bytes(u.encode()) for u in c.related_general_sop_classes)
        value = _counted_bytes(c.sop_class_uid.encode()) + _counted_bytes(c.service_class_uid.encode())
        parts.append(_item(0x57, value + _counted_bytes(related)))
    if (u := user.user_identity) is not None:
        head = bytes((u.kind, u.response_requested))
        parts.append(_item(0x58, head + _counted_bytes(u.primary) + _counted_bytes(u.secondary)))
    if user.user_identity_response is not None:
        parts.append(_item(0x59, _counted_bytes(user.user_identity_response)))
    return _item(0x50, b"".join(parts))


def _titles(called: str, calling: str) -> bytes:
    return called.encode("ascii", "replace")[:16].ljust(16) + calling.encode("ascii", "replace")[:16].ljust(16)


def encode_associate_request(request: AssociateRequest) -> bytes:
    """Encode a whole A-ASSOCIATE-RQ."""
    parts = [
        struct.pack(">Hxx", request.protocol_version),
        _titles(request.called_ae_title, request.calling_ae_title),
        bytes(32),
        _item(0x10, request.application_context_name.encode()),
    ]
    for c in request.contexts:
        syntaxes = b"".join(_item(0x40, t.encode()) for t in c.transfer_syntaxes)
        parts.append(_item(0x20, bytes((c.context_id, 0, 0, 0)) + _item(0x30, c.abstract_syntax.encode()) + syntaxes))
    parts.append(encode_user_information(request.user))
    return _pdu(PduType.ASSOCIATE_RQ, b"".join(parts))


def encode_associate_accept(accept: AssociateAccept) -> bytes:
    """Encode a whole A-ASSOCIATE-AC."""
    parts = [
        struct.pack(">Hxx", accept.protocol_version),
        _titles(accept.called_ae_title, accept.calling_ae_title),
        bytes(32),
        _item(0x10, accept.application_context_name.encode()),
    ]
    parts += [
        _item(0x21, bytes((c.context_id, 0, c.result, 0)) + _item(0x40, c.transfer_syntax.encode()))
        for c in accept.contexts
    ]
    parts.append(encode_user_information(accept.user))
    return _pdu(PduType.ASSOCIATE_AC, b"".join(parts))


def encode_associate_reject(reject: AssociateReject) -> bytes:
    """Encode a whole A-ASSOCIATE-RJ."""
    return _pdu(PduType.ASSOCIATE_RJ, bytes((0, reject.result, reject.source, reject.reason)))


def encode_abort(abort: Abort) -> bytes:
    """Encode a whole A-ABORT."""
    return _pdu(PduType.ABORT, bytes((0, 0, abort.source, abort.reason)))


RELEASE_REQUEST = _pdu(PduType.RELEASE_RQ, bytes(4))
RELEASE_REPLY = _pdu(PduType.RELEASE_RP, bytes(4))
