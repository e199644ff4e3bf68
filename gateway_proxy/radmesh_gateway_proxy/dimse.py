"""DIMSE messages: command sets in and out (PS3.7 sections 6.3, 9.3 and annex E)."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from radmesh_native.dul import encode_command, parse_command

NO_DATA_SET: Final = 0x0101
_AFFECTED_SOP_CLASS_UID: Final = 0x0002
_COMMAND_FIELD: Final = 0x0100
_MESSAGE_ID: Final = 0x0110
_MESSAGE_ID_RESPONDED_TO: Final = 0x0120
_PRIORITY: Final = 0x0700
_DATA_SET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_OFFENDING_ELEMENT: Final = 0x0901
_ERROR_COMMENT: Final = 0x0902
_AFFECTED_SOP_INSTANCE_UID: Final = 0x1000
_RESPONSE: Final = 0x8000


class Command(IntEnum):
    """Command Field (0000,0100) of the requests that are answered here, PS3.7 table E.1-1."""

    C_STORE = 0x0001
    C_ECHO = 0x0030
    C_CANCEL = 0x0FFF


class Status(IntEnum):
    """Status (0000,0900), PS3.7 annex C and PS3.4 table B.2-1."""

    SUCCESS = 0x0000
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORIZED = 0x0124
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class CommandError(Exception):
    """A command set to which there can be no answer: the association is aborted."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command set. UIDs are as sent but for padding; empty = absent."""

    command_field: int
    message_id: int
    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    has_data_set: bool
    priority: int | None  # 0 medium, 1 high, 2 low; None = neither of them

    @property
    def name(self) -> str:
        """Name of the operation for logs and metrics."""
        try:
            return Command(self.command_field).name.replace("_", "-")
        except ValueError:
            return "other"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a response says beside what it repeats of its request.

    Attributes:
        tag: (group, element) of the Offending Element (0000,0901).
        comment: Error Comment (0000,0902), at most 64 characters, without patient data.
    """

    status: int
    comment: str = ""
    tag: tuple[int, int] | None = None


SUCCESS: Final = Outcome(Status.SUCCESS)


def text_of(tag: tuple[int, int] | None) -> str:
    """Return a tag as "GGGG,EEEE", or the empty string."""
    return "" if tag is None else f"{tag[0]:04X},{tag[1]:04X}"


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
    field = _unsigned(elements.get(_COMMAND_FIELD))
    if field is None:
        raise CommandError("the command set has no command field")
    if field & _RESPONSE:
        raise CommandError("a response came to a request that was not made")
    message_id = _unsigned(elements.get(_MESSAGE_ID))
    if message_id is None:
        if field != Command.C_CANCEL:
            raise CommandError("the command set has no message id")
        message_id = 0
    priority: int | None = 0
    if _PRIORITY in elements:
        priority = _unsigned(elements[_PRIORITY])
        if priority not in (0, 1, 2):
            priority = None
    return Request(
        field,
        message_id,
        _uid(elements.get(_AFFECTED_SOP_CLASS_UID)),
        _uid(elements.get(_AFFECTED_SOP_INSTANCE_UID)),
        has_data_set,
        priority,
    )


def encode_response(request: Request, outcome: Outcome) -> bytes:
    """Encode the response to a request; it has no data set."""
    elements = {
        _COMMAND_FIELD: struct.pack("<H", request.command_field | _RESPONSE),
        _MESSAGE_ID_RESPONDED_TO: struct.pack("<H", request.message_id),
        _DATA_SET_TYPE: struct.pack("<H", NO_DATA_SET),
        _STATUS: struct.pack("<H", outcome.status),
    }
    if request.affected_sop_class_uid:
        elements[_AFFECTED_SOP_CLASS_UID] = _echoed(request.affected_sop_class_uid)
    if request.affected_sop_instance_uid:
        elements[_AFFECTED_SOP_INSTANCE_UID] = _echoed(request.affected_sop_instance_uid)
    if outcome.tag is not None:
        elements[_OFFENDING_ELEMENT] = struct.pack("<HH", *outcome.tag)
    if outcome.comment:
        elements[_ERROR_COMMENT] = _padded(outcome.comment.encode("ascii", "replace")[:64])
    return encode_command(elements)


def _echoed(uid: str) -> bytes:
    return uid.encode("latin-1")[:64]


def _padded(text: bytes) -> bytes:
    """LO is padded with a space, not with the NUL of UIDs (PS3.5 section 6.2)."""
    return text + b" " if len(text) & 1 else text
