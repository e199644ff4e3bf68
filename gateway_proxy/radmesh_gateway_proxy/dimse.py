"""DIMSE messages: command sets in and out (PS3.7 sections 6.3, 9.3 and annex E)."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from radmesh_native.dul import encode_command, parse_command

NO_DATA_SET: Final = 0x0101
WITH_DATA_SET: Final = 0x0001
RESPONSE: Final = 0x8000


class Element(IntEnum):
    """Elements of group 0000, PS3.7 annex E."""

    AFFECTED_SOP_CLASS_UID = 0x0002
    REQUESTED_SOP_CLASS_UID = 0x0003
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    MESSAGE_ID_RESPONDED_TO = 0x0120
    MOVE_DESTINATION = 0x0600
    PRIORITY = 0x0700
    DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    OFFENDING_ELEMENT = 0x0901
    ERROR_COMMENT = 0x0902
    ERROR_ID = 0x0903
    AFFECTED_SOP_INSTANCE_UID = 0x1000
    REQUESTED_SOP_INSTANCE_UID = 0x1001
    EVENT_TYPE_ID = 0x1002
    ATTRIBUTE_IDENTIFIER_LIST = 0x1005
    ACTION_TYPE_ID = 0x1008
    REMAINING = 0x1020  # numbers of sub-operations, US
    COMPLETED = 0x1021
    FAILED = 0x1022
    WARNING = 0x1023
    MOVE_ORIGINATOR_AE_TITLE = 0x1030
    MOVE_ORIGINATOR_MESSAGE_ID = 0x1031


class Command(IntEnum):
    """Command Field (0000,0100) of requests, PS3.7 table E.1-1; the response has bit 15 set."""

    C_STORE = 0x0001
    C_GET = 0x0010
    C_FIND = 0x0020
    C_MOVE = 0x0021
    C_ECHO = 0x0030
    N_EVENT_REPORT = 0x0100
    N_GET = 0x0110
    N_SET = 0x0120
    N_ACTION = 0x0130
    N_CREATE = 0x0140
    N_DELETE = 0x0150
    C_CANCEL = 0x0FFF


class Status(IntEnum):
    """Status (0000,0900): PS3.7 annex C, PS3.4 tables B.2-1, C.4-1, C.4-2 and C.4-3."""

    SUCCESS = 0x0000
    INVALID_ATTRIBUTE_VALUE = 0x0106
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    INVALID_ARGUMENT_VALUE = 0x0115
    INVALID_OBJECT_INSTANCE = 0x0117
    MISSING_ATTRIBUTE = 0x0120
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    CANNOT_COUNT_MATCHES = 0xA701
    CANNOT_PERFORM_SUB_OPERATIONS = 0xA702
    MOVE_DESTINATION_UNKNOWN = 0xA801
    DATA_SET_MISMATCH = 0xA900
    SUB_OPERATIONS_FAILED = 0xB000
    CANNOT_UNDERSTAND = 0xC000
    CANCELLED = 0xFE00
    PENDING = 0xFF00
    PENDING_WITHOUT_OPTIONAL_KEYS = 0xFF01


_NONE: Final[Mapping[int, bytes]] = MappingProxyType({})


def _none() -> Mapping[int, bytes]:
    return _NONE


class CommandError(Exception):
    """A command set to which there can be no answer: the association is aborted."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command set. UIDs are as sent but for padding; empty = absent.

    `affected_…` are the requested UIDs, (0000,0003) and (0000,1001), where the operation has those.
    """

    command_field: int
    message_id: int
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    has_data_set: bool
    priority: int | None  # 0 medium, 1 high, 2 low; None = neither of them
    elements: Mapping[int, bytes] = field(default_factory=_none, repr=False)

    @property
    def name(self) -> str:
        """Name of the operation for logs and metrics."""
        try:
            return Command(self.command_field).name.replace("_", "-")
        except ValueError:
            return "other"

    def text(self, element: int) -> str:
        """Return a UID or AE title of the command set without its padding; empty if it is absent."""
        return _uid(self.elements.get(element))

    def number(self, element: int) -> int | None:
        """Return a US of the command set; None if it is absent or not one."""
        return _unsigned(self.elements.get(element))


@dataclass(frozen=True, slots=True)
class Response:
    """The response to a request of ours."""

    command_field: int
    message_id: int  # of the request
    status: int
    has_data_set: bool
    elements: Mapping[int, bytes] = field(default_factory=_none, repr=False)

    @property
    def comment(self) -> str:
        """Error Comment (0000,0902) in ASCII; empty if there is none. It may name a patient: never log it."""
        return _uid(self.elements.get(Element.ERROR_COMMENT)).encode("ascii", "replace").decode()[:64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a response says beside what it repeats of its request.

    Attributes:
        tag: (group, element) of the Offending Element (0000,0901).
        comment: Error Comment (0000,0902), at most 64 characters, without patient data.
        elements: other elements of the response, such as numbers of sub-operations.
        identifier: its data set, in the transfer syntax of the context; empty = it has none.
        then: called when the response was sent, and may send requests of ours on the association.
    """

    status: int
    comment: str = ""
    tag: tuple[int, int] | None = None
    elements: Mapping[int, bytes] = field(default_factory=_none)
    identifier: bytes = b""
    then: Callable[[], None] | None = None


SUCCESS: Final = Outcome(Status.SUCCESS)


def text_of(tag: tuple[int, int] | None) -> str:
    """Return a tag as "GGGG,EEEE", or the empty string."""
    return "" if tag is None else f"{tag[0]:04X},{tag[1]:04X}"


def us(value: int) -> bytes:
    """Return a number as US; what is too large for it as the largest."""
    return struct.pack("<H", min(value, 0xFFFF))


def is_response(command: bytes) -> bool:
    """Whether a command set is that of a response."""
    try:
        return bool((_unsigned(parse_command(command).get(Element.COMMAND_FIELD)) or 0) & RESPONSE)
    except ValueError:
        return False


def _unsigned(value: bytes | None) -> int | None:
    return int.from_bytes(value, "little") if value is not None and len(value) == 2 else None


def _uid(value: bytes | None) -> str:
    # Real senders pad with NUL, spaces, or several of them; none of that is part of a UID.
    return str(value or b"", "latin-1").strip("\0 ")


def parse_request(command: bytes, *, has_data_set: bool) -> Request:
    """Read a command set.

    Args:
        command: its bytes, Implicit VR Little Endian.
        has_data_set: whether it announces a data set, as the loop in native/ read it.

    Raises:
        CommandError: it cannot be read, is a response, or lacks what an answer would have to repeat.
    """
    try:
        elements = parse_command(command)
    except ValueError as error:
        raise CommandError(str(error)) from None
    command_field = _unsigned(elements.get(Element.COMMAND_FIELD))
    if command_field is None:
        raise CommandError("the command set has no command field")
    if command_field & RESPONSE:
        raise CommandError("a response came to a request that was not made")
    message_id = _unsigned(elements.get(Element.MESSAGE_ID))
    if message_id is None:
        if command_field != Command.C_CANCEL:
            raise CommandError("the command set has no message id")
        message_id = 0
    priority: int | None = 0
    if Element.PRIORITY in elements:
        priority = _unsigned(elements[Element.PRIORITY])
        if priority not in (0, 1, 2):
            priority = None
    return Request(
        command_field,
        message_id,
        _uid(elements.get(Element.AFFECTED_SOP_CLASS_UID) or elements.get(Element.REQUESTED_SOP_CLASS_UID)),
        _uid(elements.get(Element.AFFECTED_SOP_INSTANCE_UID) or elements.get(Element.REQUESTED_SOP_INSTANCE_UID)),
        has_data_set,
        priority,
        elements,
    )


def parse_response(command: bytes, *, has_data_set: bool) -> Response:
    """Read the command set of a response.

    Raises:
        CommandError: it cannot be read, is a request, or does not say what it responds to and how that went.
    """
    try:
        elements = parse_command(command)
    except ValueError as error:
        raise CommandError(str(error)) from None
    command_field = _unsigned(elements.get(Element.COMMAND_FIELD))
    message_id = _unsigned(elements.get(Element.MESSAGE_ID_RESPONDED_TO))
    status = _unsigned(elements.get(Element.STATUS))
    if command_field is None or message_id is None or status is None:
        raise CommandError("the response lacks command field, message id or status")
    if not command_field & RESPONSE:
        raise CommandError("a request came where a response was due")
    return Response(command_field & ~RESPONSE, message_id, status, has_data_set, elements)


def encode_response(request: Request, outcome: Outcome) -> bytes:
    """Encode the command set of the response to a request."""
    elements = {
        **outcome.elements,
        int(Element.COMMAND_FIELD): us(request.command_field | RESPONSE),
        int(Element.MESSAGE_ID_RESPONDED_TO): us(request.message_id),
        int(Element.DATA_SET_TYPE): us(WITH_DATA_SET if outcome.identifier else NO_DATA_SET),
        int(Element.STATUS): us(outcome.status),
    }
    if request.affected_sop_class_uid:
        elements[Element.AFFECTED_SOP_CLASS_UID] = _echoed(request.affected_sop_class_uid)
    if request.affected_sop_instance_uid:
        elements[Element.AFFECTED_SOP_INSTANCE_UID] = _echoed(request.affected_sop_instance_uid)
    if outcome.tag is not None:
        elements[Element.OFFENDING_ELEMENT] = struct.pack("<HH", *outcome.tag)
    if outcome.comment:
        elements[Element.ERROR_COMMENT] = outcome.comment.encode("ascii", "replace")[:64]
    return encode_command(elements)


def encode_request(
    command_field: int,
    message_id: int,
    sop_class_uid: str,
    sop_instance_uid: str = "",
    *,
    has_data_set: bool = False,
    requested: bool = False,
    elements: Mapping[int, bytes] = _NONE,
) -> bytes:
    """Encode a request of ours.

    Args:
        command_field: the operation.
        message_id: 0 to 65,535.
        sop_class_uid: SOP Class UID.
        sop_instance_uid: SOP Instance UID; empty = none.
        has_data_set: whether a data set follows.
        requested: N-SET, N-GET, N-ACTION, N-DELETE: the UIDs are those of what is asked for, (0000,0003), (0000,1001).
        elements: others, such as Priority (0000,0700).
    """
    sop_class = Element.REQUESTED_SOP_CLASS_UID if requested else Element.AFFECTED_SOP_CLASS_UID
    sop_instance = Element.REQUESTED_SOP_INSTANCE_UID if requested else Element.AFFECTED_SOP_INSTANCE_UID
    encoded = {
        **elements,
        int(sop_class): _echoed(sop_class_uid),
        int(Element.COMMAND_FIELD): us(command_field),
        int(Element.MESSAGE_ID): us(message_id),
        int(Element.DATA_SET_TYPE): us(WITH_DATA_SET if has_data_set else NO_DATA_SET),
    }
    if sop_instance_uid:
        encoded[int(sop_instance)] = _echoed(sop_instance_uid)
    return encode_command(encoded)


def _echoed(uid: str) -> bytes:
    return uid.encode("latin-1")[:64]
