"""What radmesh says in HL7: acknowledgements and reports.

hl7apy builds reports and validates them strictly: one that does not pass is not sent. An acknowledgement is sent
whatever a validator thinks of it, so our own writer makes it, and tests prove that hl7apy accepts it in every version.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Component as _Hl7apyComponent
from hl7apy.core import Field as _Hl7apyField
from hl7apy.core import Message as _Hl7apyMessage
from hl7apy.core import SubComponent as _Hl7apySubComponent
from hl7apy.exceptions import HL7apyException, UnsupportedVersion, ValidationError
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

_STRICT: Final[dict[str, Any]] = {"validation_level": VALIDATION_LEVEL.STRICT}
_GROUPED: Final[dict[str, Any]] = {**_STRICT, "find_groups": True}

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
    segments: list[tuple[str, Mapping[int, str]]] = [("MSA", {1: code, 2: echo.field(10, 65_536), 3: said})]
    if error is not None:
        segments.append(("ERR", _err(error, separators, numbers)))
    charset = message.charset if message else "ASCII"
    return encode(*_write(version, separators, header, segments, charset))[0]


class _Echo:
    """Gives back fields of the message as it wrote them: escaped already, unless our separators differ from its own."""

    def __init__(self, message: Message | None, separators: Separators) -> None:
        self._message = message
        self._separators = separators

    def field(self, number: int, longest: int = 1024) -> str:
        if self._message is None:
            return ""
        field = self._message.header.field(number)
        text = field.text if self._message.separators == self._separators else _say(field.plain, self._separators)
        return text.replace("\n", " ")[:longest]


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
    version: str,
    separators: Separators,
    header: Mapping[int, str],
    segments: Sequence[tuple[str, Mapping[int, str]]],
    charset: str,
) -> tuple[str, str]:
    """Return a message and the set to encode it in.

    Args:
        version: MSH-12.
        separators: MSH-1 and MSH-2.
        header: MSH-3 and later, escaped.
        segments: the others: name, and fields escaped.
        charset: wanted set; one that the text fits in is taken, and said in MSH-18.
    """
    numbers = _numbers(version)
    if numbers < (2, 7):
        separators = replace(separators, truncation="")
    body = [_segment(name, fields, separators) for name, fields in segments]
    _, said = encode("\r".join((*header.values(), *body)), charset)
    if numbers >= (2, 3) and said:
        header = {**header, 18: said.replace("~", separators.repetition)}
    return "\r".join((_segment("MSH", header, separators), *body)) + "\r", said or "ASCII"


def _by_hl7apy(structure: str, version: str, text: str) -> str:
    """Build a message from its segments with hl7apy, validate it strictly, and return what hl7apy writes.

    Where that says something else than the segments did, `text` is returned: hl7apy escapes some sequences twice.

    Raises:
        RadmeshError: HL7_REPORT_INVALID: not as the version's tables want it, or a version that is not known.
    """
    # Left to itself, hl7apy takes any observation's value for an ST, of 199 characters.
    bare, values = [], []
    for line in text.split("\r"):
        parts = line.split("|")
        if parts[0] == "OBX":
            values.append((parts[2], parts[5]))
            parts[5] = ""
        bare.append("|".join(parts))
    try:
        built = _Hl7apyMessage(structure, version=version, **_STRICT)
        built.children = parse_segments("\r".join(bare), version, None, references=built.reference, **_GROUPED)
        for segment, (datatype, value) in zip(_observations(built), values, strict=True):
            segment.add(_observed(datatype, value, version))
        built.validate()
    except (HL7apyException, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # The texts of the others quote values.
        reason = str(error) if isinstance(error, ValidationError | UnsupportedVersion) else type(error).__name__
        text = f"no valid {structure} of version {version}: {reason}"
        raise RadmeshError("HL7_REPORT_INVALID", text) from None
    written = f"{built.to_er7()}\r"
    return written if written == text else text


def _observations(element: Any) -> Iterator[Any]:
    if element.name == "OBX":
        yield element
    elif element.classname in ("Message", "Group"):
        for child in element.children:
            yield from _observations(child)


def _observed(datatype: str, value: str, version: str) -> Any:
    """Return OBX-5 with its value in the type that OBX-2 says."""
    component = _Hl7apyComponent("VARIES_1", datatype=datatype, version=version, **_STRICT)
    component.add(_Hl7apySubComponent(datatype=datatype, value=value, version=version, **_STRICT))
    field = _Hl7apyField("OBX_5", version=version, **_STRICT)
    field.add(component)
    return field


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


@dataclass(frozen=True, slots=True)
class ReportMessage:
    """All that an ORU^R01 of radmesh says. The same values always make the same bytes.

    `control_id` is MSH-10, at most 20 characters; `time` the time of the approval (MSH-7, OBR-22). `sending` and
    `receiving` are application and facility. Names are DICOM PN with their component groups, dates YYYYMMDD, times
    YYYYMMDDHHMMSS or shorter. `status` is P (preliminary), F (final), C (corrected) or A (addendum: goes out as a
    correction, its observations coded as addendum). `text` is Unicode, its paragraphs end with a line feed.
    """

    control_id: str
    time: datetime
    patient_id: str
    study_instance_uid: str
    text: str
    status: str = "F"
    sending: tuple[str, str] = ("RADMESH", "")
    receiving: tuple[str, str] = ("", "")
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    placer_order_number: str = ""
    filler_order_number: str = ""
    accession_number: str = ""
    requested_procedure_id: str = ""
    procedure_code: str = ""
    procedure_code_scheme: str = ""
    procedure_description: str = ""
    study_time: str = ""
    referring_physician_name: str = ""
    radiologist_id: str = ""
    radiologist_name: str = ""
    hl7_version: str = "2.5.1"
    charset: str = "UNICODE UTF-8"


def report(message: ReportMessage) -> bytes:
    """Return a report as ORU^R01: the Study UID as first observation, then one for each paragraph (TX).

    Raises:
        RadmeshError: HL7_REPORT_INVALID: the values do not fit the HL7 version; the error names the field.
    """
    if message.status not in ("P", "F", "C", "A"):
        raise RadmeshError("HL7_REPORT_INVALID", "the status of a report is P, F, C or A")
    if not message.patient_id or not message.control_id:
        raise RadmeshError("HL7_REPORT_INVALID", "a report needs a patient ID and a control ID")
    say, component = _clean, _USUAL.component
    status = "C" if message.status == "A" else message.status
    code = (say(message.procedure_code), say(message.procedure_description), say(message.procedure_code_scheme))
    kind = component.join(_ADDENDUM if message.status == "A" else _REPORT)
    structure = "ORU_R01"
    header = {
        3: say(message.sending[0]),
        4: say(message.sending[1]),
        5: say(message.receiving[0]),
        6: say(message.receiving[1]),
        7: _time(message.time),
        9: component.join(("ORU", "R01", structure)[: 2 if _numbers(message.hl7_version) < (2, 4) else 3]),
        10: say(message.control_id),
        11: "P",
        12: message.hl7_version,
    }
    patient = {
        3: _cx(message.patient_id, message.issuer_of_patient_id),
        5: _xpn(message.patient_name),
        7: say(message.patient_birth_date),
        8: say(message.patient_sex),
    }
    order = {
        1: "1",
        2: say(message.placer_order_number),
        3: say(message.filler_order_number or message.accession_number),
        4: component.join(code if any(code) else _REPORT).rstrip(component),
        7: say(message.study_time),
        16: _xcn("", message.referring_physician_name),
        18: say(message.accession_number),
        19: say(message.requested_procedure_id),
        22: _time(message.time),
        24: "RAD",
        25: status,
        32: _USUAL.subcomponent.join(_xcn(message.radiologist_id, message.radiologist_name).split(component)),
    }
    observations = [("ST", component.join(_STUDY), "1", message.study_instance_uid)]
    observations += [("TX", kind, str(n), line) for n, line in enumerate(_paragraphs(message.text), 1)]
    segments: list[tuple[str, Mapping[int, str]]] = [("PID", patient), ("OBR", order)]
    segments += [
        ("OBX", {1: str(n), 2: form, 3: what, 4: sub, 5: say(value), 11: status})
        for n, (form, what, sub, value) in enumerate(observations, 1)
    ]
    text, charset = _write(message.hl7_version, _USUAL, header, segments, message.charset)
    return encode(_by_hl7apy(structure, message.hl7_version, text), charset)[0]


# DCM and LOINC codes of what the observations are.
_STUDY: Final = ("113014", "DICOM Study", "DCM")
_REPORT: Final = ("18748-4", "Diagnostic imaging report", "LN")
_ADDENDUM: Final = ("55107-7", "Addendum Document", "LN")
# hl7apy and many receivers end at 65,536.
_MAX_PARAGRAPH: Final = 32_000


def _paragraphs(text: str) -> Iterator[str]:
    """Give the lines of a text; one that is too long for an observation is cut at a blank."""
    for line in text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n"):
        rest = line.expandtabs(4)
        while len(rest) > _MAX_PARAGRAPH:
            blank = rest.rfind(" ", 1, _MAX_PARAGRAPH)
            cut = blank + 1 if blank > 0 else _MAX_PARAGRAPH
            yield rest[:cut]
            rest = rest[cut:]
        yield rest


def _clean(text: str) -> str:
    """Escape a value of ours; control characters in it are blanks."""
    return _say(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text), _USUAL)


def _cx(identifier: str, issuer: str) -> str:
    """CX with the issuer as namespace, or as ISO universal ID if it is one."""
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)+", issuer):
        authority = _USUAL.subcomponent.join(("", issuer, "ISO"))
    else:
        authority = _clean(issuer)
    return _USUAL.component.join((_clean(identifier), "", "", authority, "PI"))


def _xpn(name: str) -> str:
    """Return a DICOM PN as XPN: a repetition for each of its component groups, if it has more than one."""
    if not name.strip("^= "):
        return f"{_USUAL.component * 6}U"  # PID-5 is required: a name of unspecified type is none
    groups = [(group, kind) for group, kind in zip(name.split("="), "AIP", strict=False) if group.strip("^ ")]
    if len(groups) == 1 and groups[0][1] == "A":
        return _USUAL.component.join(_xpn_parts(groups[0][0])).rstrip(_USUAL.component)
    return _USUAL.repetition.join(_USUAL.component.join((*_xpn_parts(g), "", "L", kind)) for g, kind in groups)


def _xpn_parts(group: str) -> list[str]:
    """PN has prefix before suffix, XPN suffix before prefix."""
    family, given, middle, prefix, suffix = (*map(_clean, group.split("^")), "", "", "", "", "")[:5]
    return [family, given, middle, suffix, prefix]


def _xcn(identifier: str, name: str) -> str:
    parts = _xpn_parts(name.split("=", maxsplit=1)[0])
    return _USUAL.component.join((_clean(identifier), *parts)).rstrip(_USUAL.component)


def batch_acknowledgement(answers: Sequence[bytes], *, separators: Separators = _USUAL) -> bytes:
    """Return one frame's worth of answers to the messages of a batch: BHS, the answers, BTS with their number."""
    mark = separators.field
    head = f"BHS{mark}{separators.encoding_characters}\r".encode()
    return (
        head + b"".join(a if a.endswith(b"\r") else a + b"\r" for a in answers) + f"BTS{mark}{len(answers)}\r".encode()
    )
