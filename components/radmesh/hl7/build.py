"""What radmesh says in HL7: acknowledgements and reports.

hl7apy builds and validates strictly (HL7 v2.2 to v2.8.2). Our own writer says the same where hl7apy cannot: in a
version that it does not know, as acknowledgement of a message that breaks the standard's lengths, and for the few texts
that it escapes twice. A report that does not pass is not sent; an acknowledgement always is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message as _Hl7apyMessage
from hl7apy.exceptions import HL7apyException, ValidationError
from hl7apy.parser import parse_segments

from radmesh.hl7.charsets import encode
from radmesh.hl7.escapes import Separators, escape
from radmesh.hl7.message import Message
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError

CODES: Final = ("AA", "AE", "AR", "CA", "CE", "CR")
_USUAL: Final = Separators()
_ERR_2_FROM: Final = (2, 5)

_LOCATION: Final = re.compile(r"([A-Z][A-Z0-9]{2})(?:\((\d+)\))?(?:-(\d+)(?:\((\d+)\))?(?:[.-](\d+))?(?:[.-](\d+))?)?")

# Table 0357.
CONDITIONS: Final = {
    "0": "Message accepted",
    "100": "Segment sequence error",
    "101": "Required field missing",
    "102": "Data type error",
    "103": "Table value not found",
    "200": "Unsupported message type",
    "201": "Unsupported event code",
    "203": "Unsupported version id",
    "204": "Unknown key identifier",
    "207": "Application internal error",
}
_CONDITION_OF: Final = {
    "HL7_SEGMENT_MISSING": "100",
    "HL7_NOT_A_MESSAGE": "100",
    "HL7_FIELD_MISSING": "101",
    "HL7_FIELD_INVALID": "102",
    "HL7_TYPE_UNKNOWN": "200",
}
# What the same bytes will never be taken for: rejected (AR), not erroneous (AE).
_REJECTED: Final = ("HL7_NOT_A_MESSAGE", "HL7_TYPE_UNKNOWN", "HL7_MESSAGE_TOO_LARGE")


@dataclass(frozen=True, slots=True)
class ErrLocation:
    """What an ERR segment says.

    `location` is a path such as "PID-3", "PID(2)-3(1).4" or a segment's name; "" = none. `condition` is of table 0357,
    `reason` one of `radmesh.runtime.reasons`, `text` for people and without patient data.
    """

    location: str = ""
    condition: str = "207"
    severity: str = "E"
    reason: str = ""
    text: str = ""

    @classmethod
    def of(cls, error: RadmeshError) -> "ErrLocation":
        """Return what an error says: its metadata "location" is the place."""
        condition = _CONDITION_OF.get(error.reason, "207")
        return cls(error.metadata.get("location", ""), condition, "E", error.reason, error.message)


def acknowledgement_code(message: Message, outcome: str) -> str:
    """Return the code that the sender asks for (MSH-15, MSH-16); "" if it wants no answer.

    Enhanced mode asks for a commit acknowledgement (CA, CE, CR) by MSH-15, else for an application's by MSH-16; a
    message with neither is in original mode (HL7 v2.5.1 chapter 2.9).

    Args:
        message: the message to be answered.
        outcome: "A" accepted, "E" erroneous, "R" rejected.
    """
    accept, application = message.accept_ack_type, message.application_ack_type
    wanted = {"AL": True, "NE": False, "ER": outcome != "A", "SU": outcome == "A"}
    if not accept and not application:
        return f"A{outcome}"
    if wanted.get(accept, bool(accept)):
        return f"C{outcome}"
    return f"A{outcome}" if wanted.get(application, bool(application)) else ""


def refusal(
    message: Message | None,
    error: RadmeshError,
    *,
    clock: Clock,
    control_id: str,
    sending: tuple[str, str] | None = None,
) -> bytes | None:
    """Return the answer to a message that had no effect: AR or CR if it never can have, else AE or CE.

    Args:
        message: the message; None if it is none.
        error: why; the metadata "location" names the field.
        clock: gives MSH-7.
        control_id: MSH-10 of the answer.
        sending: MSH-3 and MSH-4 of the answer; None = those that the message was sent to.

    Returns:
        The answer; None if the sender wants none.
    """
    outcome = "R" if error.reason in _REJECTED else "E"
    code = acknowledgement_code(message, outcome) if message else f"A{outcome}"
    if not code:
        return None
    return acknowledge(
        message,
        code,
        text=error.message,
        error=ErrLocation.of(error),
        clock=clock,
        control_id=control_id,
        sending=sending,
    )


def acknowledge(
    message: Message | None,
    code: str,
    *,
    clock: Clock,
    control_id: str,
    text: str = "",
    error: ErrLocation | None = None,
    sending: tuple[str, str] | None = None,
) -> bytes:
    """Return an acknowledgement in the sender's version, separators and character set.

    Args:
        message: what is acknowledged; None for bytes that are no message.
        code: AA, AE, AR, CA, CE or CR.
        clock: gives MSH-7.
        control_id: MSH-10 of the answer.
        text: MSA-3, at most 80 characters, without patient data.
        error: makes an ERR segment: ERR-2 and later as of version 2.5, ERR-1 before.
        sending: MSH-3 and MSH-4 of the answer; None = those that the message was sent to.
    """
    assert code in CODES, f"an acknowledgement code is one of {', '.join(CODES)}"
    separators = message.separators if message and message.separators.escape else _USUAL
    version = (message.version if message else "") or "2.5.1"
    numbers = _numbers(version)
    echo = _Echo(message, separators)
    header = {
        3: _say(sending[0], separators) if sending else echo.field(5),
        4: _say(sending[1], separators) if sending else echo.field(6),
        5: echo.field(3),
        6: echo.field(4),
        7: _time(clock.now()),
        9: separators.component.join(_ack_type(message, numbers)),
        10: _say(control_id, separators),
        11: echo.field(11) or "P",
        12: echo.field(12) or version,
    }
    # MSA-3 is withdrawn as of 2.7: ERR-8 says it.
    said = _say(text[:80], separators) if numbers < (2, 7) else ""
    segments: list[tuple[str, Mapping[int, str]]] = [("MSA", {1: code, 2: echo.field(10), 3: said})]
    if error is not None:
        segments.append(("ERR", _err(error, separators, numbers)))
    charset = message.charset if message else "ASCII"
    return _write("ACK", version, separators, header, segments, charset, strict=False)


class _Echo:
    """Gives back fields of the message as it wrote them: escaped already, unless our separators differ from its own."""

    def __init__(self, message: Message | None, separators: Separators) -> None:
        self._message = message
        self._separators = separators

    def field(self, number: int) -> str:
        if self._message is None:
            return ""
        field = self._message.header.field(number)
        text = field.text if self._message.separators == self._separators else _say(field.plain, self._separators)
        return text.replace("\n", " ")[:1024]


def _ack_type(message: Message | None, numbers: tuple[int, ...]) -> list[str]:
    """MSH-9: ACK alone up to 2.2, ACK^trigger up to 2.3.1, then with the structure."""
    trigger = message.type.trigger if message else ""
    trigger = trigger if trigger.isalnum() and trigger.isascii() and len(trigger) <= 4 else ""
    if numbers < (2, 3) or (not trigger and numbers < (2, 4)):
        return ["ACK"]
    return ["ACK", trigger] if numbers < (2, 4) else ["ACK", trigger, "ACK"]


def _err(error: ErrLocation, separators: Separators, numbers: tuple[int, ...]) -> dict[int, str]:
    segment, sequence, field, repetition, component, subcomponent = _place(error.location)
    name = CONDITIONS.get(error.condition, "")
    if numbers < _ERR_2_FROM:
        # ELD: segment, sequence, field, and the condition as subcomponents.
        condition = separators.subcomponent.join((error.condition, name, "HL70357"))
        return {1: separators.component.join((segment, sequence, field, condition))}
    parts = [segment, sequence, field, repetition, component, subcomponent]
    while parts and not parts[-1]:
        parts.pop()
    fields = {
        2: separators.component.join(parts),
        3: separators.component.join((error.condition, name, "HL70357")),
        4: error.severity,
        5: separators.component.join((_say(error.reason, separators), "", "L")) if error.reason else "",
        8: _say(error.text[:250], separators),
    }
    return {number: value for number, value in fields.items() if value}


def _place(location: str) -> tuple[str, str, str, str, str, str]:
    """Read "PID", "PID-3", "PID(2)-3(1).4.2" for ERL: only what is said, but the segment is the first of its name."""
    found = _LOCATION.fullmatch(location)
    if not found:
        return ("", "", "", "", "", "")
    segment, sequence, field, repetition, component, subcomponent = (part or "" for part in found.groups())
    return segment, sequence or "1", field, repetition or ("1" if component else ""), component, subcomponent


def _write(
    structure: str,
    version: str,
    separators: Separators,
    header: Mapping[int, str],
    segments: Sequence[tuple[str, Mapping[int, str]]],
    charset: str,
    *,
    strict: bool,
) -> bytes:
    """Return a message's bytes.

    Args:
        structure: message structure, such as "ORU_R01".
        version: MSH-12.
        separators: MSH-1 and MSH-2.
        header: MSH-3 and later, escaped.
        segments: the others: name, and fields escaped.
        charset: wanted set; one that the text fits in is taken, and said in MSH-18.
        strict: what does not pass the version's rules is not written.

    Raises:
        RadmeshError: HL7_REPORT_INVALID, only if `strict`.
    """
    numbers = _numbers(version)
    if numbers < (2, 7):
        separators = replace(separators, truncation="")
    body = [_segment(name, fields, separators) for name, fields in segments]
    _, said = encode("\r".join((*header.values(), *body)), charset)
    if numbers >= (2, 3) and said:
        header = {**header, 18: said.replace("~", separators.repetition)}
    text = "\r".join((_segment("MSH", header, separators), *body)) + "\r"
    try:
        text = _by_hl7apy(structure, version, separators, text)
    except (HL7apyException, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if strict:
            # Its texts name elements and lengths, not values.
            reason = str(error) if isinstance(error, ValidationError) else type(error).__name__
            raise RadmeshError("HL7_REPORT_INVALID", f"no valid {structure} of version {version}: {reason}") from error
    return encode(text, charset)[0]


def _by_hl7apy(structure: str, version: str, separators: Separators, text: str) -> str:
    """Build a message with hl7apy from segments, validate it strictly, and return what it writes.

    Where hl7apy writes other fields than it was given (it escapes escape sequences that it does not know, and leaves
    out withdrawn fields in 2.8), `text` is returned.
    """
    characters = {
        "SEGMENT": "\r",
        "FIELD": separators.field,
        "COMPONENT": separators.component,
        "REPETITION": separators.repetition,
        "ESCAPE": separators.escape,
        "SUBCOMPONENT": separators.subcomponent,
    }
    if separators.truncation:
        characters["TRUNCATION"] = separators.truncation
    built = _Hl7apyMessage(
        structure, version=version, validation_level=VALIDATION_LEVEL.STRICT, encoding_chars=characters
    )
    built.children = parse_segments(
        text, version, characters, VALIDATION_LEVEL.STRICT, built.reference, find_groups=True
    )
    built.validate()
    written = f"{built.to_er7()}\r"
    return written if written == text else text


def _segment(name: str, fields: Mapping[int, str], separators: Separators) -> str:
    highest = max((number for number, value in fields.items() if value), default=0)
    if name == "MSH":
        parts = [f"MSH{separators.field}{separators.encoding_characters}"]
        parts += [fields.get(number, "") for number in range(3, highest + 1)]
    else:
        parts = [name, *(fields.get(number, "") for number in range(1, highest + 1))]
    return separators.field.join(parts)


def _say(text: str, separators: Separators) -> str:
    return escape(text, separators)


def _numbers(version: str) -> tuple[int, ...]:
    """Return "2.5.1" as (2, 5, 1); (2, 5, 1) for what is no version."""
    found = re.match(r"2(?:\.\d{1,2}){1,2}", version)
    return tuple(map(int, found[0].split("."))) if found else (2, 5, 1)


def _time(moment: datetime) -> str:
    """Return a TS with its offset, to the second."""
    return moment.strftime("%Y%m%d%H%M%S%z")


def batch_acknowledgement(answers: Sequence[bytes], *, separators: Separators = _USUAL) -> bytes:
    """Return one frame's worth of answers to the messages of a batch: BHS, the answers, BTS with their number."""
    mark = separators.field
    head = f"BHS{mark}{separators.encoding_characters}\r".encode()
    return (
        head + b"".join(a if a.endswith(b"\r") else a + b"\r" for a in answers) + f"BTS{mark}{len(answers)}\r".encode()
    )
