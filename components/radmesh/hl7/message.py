"""Reads HL7 v2 messages as they come, not as they should be.

Nothing in a message's content is an error here: what can be read is read, what is odd is a remark. A message keeps its
bytes; its text is split only where somebody looks.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from radmesh.hl7 import charsets
from radmesh.hl7.escapes import NULL, Separators, escape, unescape
from radmesh.runtime.errors import RadmeshError

__all__ = ["Component", "Field", "Message", "MessageType", "Segment", "Separators", "escape", "parse", "split_batch"]

MAX_SEGMENTS: Final = 100_000
# Of a segment, a field and a component: what lies beyond stays part of the last.
MAX_PARTS: Final = 4_096
_HEADER_BYTES: Final = 65_536

# Only blanks, control characters and byte order marks may stand before a message, and batch headers.
# Bounded, and without line ends: many of either must not make a search slow.
_BLANKS: Final = rb"[\x00-\x09\x0b\x0c\x0e-\x20\xef\xbb\xbf]{0,64}+"
_JUNK: Final = "".join(map(chr, range(0x21))) + "\ufeff"
_LINE_JUNK: Final = r"\x00-\x09\x0b\x0c\x0e-\x20\ufeff"
_START: Final = re.compile(rb"[\x00-\x20\xef\xbb\xbf]*+(MSH|FHS|BHS)(?=[^A-Za-z0-9])")
_MESSAGE: Final = re.compile(rb"(?:\A|[\r\n])" + _BLANKS + rb"(MSH)(?=[^A-Za-z0-9])")
_TRAILER: Final = re.compile(rb"[\r\n]" + _BLANKS + rb"(?:BTS|FTS|BHS|FHS)(?=[^A-Za-z0-9]|\Z)")
_LINE_END: Final = re.compile(r"\r\n?|\n")
_PATH: Final = re.compile(
    r"([A-Z][A-Z0-9]{2})(?:\((\d{1,4})\))?-(\d{1,4})(?:\((\d{1,4})\))?(?:[.-](\d{1,4}))?(?:[.-](\d{1,4}))?"
)


@dataclass(frozen=True, slots=True)
class MessageType:
    """MSH-9: such as ("ORM", "O01", "ORM_O01"); what is missing is empty."""

    code: str
    trigger: str
    structure: str

    def __str__(self) -> str:
        """Return it as people write it: ORM^O01."""
        return f"{self.code}^{self.trigger}" if self.trigger else self.code


@dataclass(frozen=True, slots=True)
class Coding:
    """How a message's text is to be read."""

    separators: Separators
    charset: str


@dataclass(frozen=True, slots=True)
class Component:
    """A component as it was sent, in `text`."""

    text: str
    coding: Coding

    @property
    def is_null(self) -> bool:
        """HL7's null (two quotation marks): the sender wants the value deleted, where an empty one leaves it."""
        return self.text == NULL

    @property
    def value(self) -> str:
        """The first subcomponent in Unicode; "" for an empty and for a deleted one."""
        return self.subcomponent(1)

    @property
    def subcomponents(self) -> tuple[str, ...]:
        """All of them in Unicode."""
        parts = _split(self.text, self.coding.separators.subcomponent)
        return tuple("" if p == NULL else unescape(p, self.coding.separators, self.coding.charset) for p in parts)

    def subcomponent(self, number: int) -> str:
        """Return the `number`-th, from 1, in Unicode; "" if there is none."""
        part = _part(self.text, self.coding.separators.subcomponent, number)
        return "" if part == NULL else unescape(part, self.coding.separators, self.coding.charset)


@dataclass(frozen=True, slots=True)
class Field:
    """A field, or one repetition of it, as it was sent, in `text`."""

    text: str
    coding: Coding

    @property
    def is_null(self) -> bool:
        """HL7's null (two quotation marks): the sender wants the value deleted, where an empty one leaves it."""
        return self.text == NULL

    @property
    def value(self) -> str:
        """The first component of the first repetition in Unicode."""
        return self.component(1).value

    @property
    def plain(self) -> str:
        """All of it in Unicode, with separators as they stand: for text whose sender may not have escaped them."""
        return "" if self.is_null else unescape(self.text, self.coding.separators, self.coding.charset)

    @property
    def repetitions(self) -> tuple["Field", ...]:
        """Its repetitions; none if the field is empty."""
        if not self.text:
            return ()
        return tuple(Field(part, self.coding) for part in _split(self.text, self.coding.separators.repetition))

    @property
    def components(self) -> tuple[Component, ...]:
        """Those of the first repetition."""
        first = self.repetition(1).text
        return tuple(Component(part, self.coding) for part in _split(first, self.coding.separators.component))

    def repetition(self, number: int) -> "Field":
        """Return the `number`-th, from 1; an empty one if there is none."""
        return Field(_part(self.text, self.coding.separators.repetition, number), self.coding)

    def component(self, number: int) -> Component:
        """Return the `number`-th of the first repetition, from 1; an empty one if there is none."""
        first = _part(self.text, self.coding.separators.repetition, 1)
        return Component(_part(first, self.coding.separators.component, number), self.coding)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment: its name, and in `text` all of it as it was sent."""

    name: str
    text: str
    coding: Coding

    def field(self, number: int) -> Field:
        """Return the `number`-th field, from 1 as the standard counts; an empty one if there is none."""
        if number < 1:
            return Field("", self.coding)
        if self.name in ("MSH", "BHS", "FHS"):
            # MSH-1 is the separator itself, and MSH-2 must not be read by the separators that it lists.
            if number <= 2:
                bare = Coding(Separators(self.coding.separators.field, "", "", "", ""), self.coding.charset)
                text = self.coding.separators.field if number == 1 else self._part(1)
                return Field(text, bare)
            return Field(self._part(number - 1), self.coding)
        return Field(self._part(number), self.coding)

    def _part(self, index: int) -> str:
        return _part(self.text, self.coding.separators.field, index + 1)


def _split(text: str, separator: str) -> list[str]:
    return text.split(separator, MAX_PARTS - 1) if separator else [text]


def _part(text: str, separator: str, number: int) -> str:
    """Return the `number`-th part, from 1, without splitting what comes after."""
    if not separator:
        return text if number == 1 else ""
    if not 1 <= number <= MAX_PARTS:
        return ""
    parts = text.split(separator, number)
    return parts[number - 1] if len(parts) >= number else ""


@dataclass(frozen=True, slots=True)
class Message:
    """A message: its bytes, and what they say.

    `charset` is the set that its text was read in (table 0211); `remarks` say what was odd, without patient data.
    """

    raw: bytes
    charset: str
    remarks: tuple[str, ...]
    separators: Separators
    all_segments: tuple[Segment, ...]

    def segments(self, name: str) -> list[Segment]:
        """Return the segments of that name, in order."""
        return [s for s in self.all_segments if s.name == name]

    def segment(self, name: str) -> Segment | None:
        """Return the first segment of that name."""
        return next((s for s in self.all_segments if s.name == name), None)

    def groups(self, start: Sequence[str]) -> list[list[Segment]]:
        """Cut the message into groups.

        Args:
            start: names of segments that may begin a group, outermost first. ("ORC", "OBR"): a group begins at each
                ORC, and at an OBR that follows no ORC of its own. What stands before the first is in no group.
        """
        groups: list[list[Segment]] = []
        rank = len(start)
        for segment in self.all_segments:
            if segment.name in start:
                own = start.index(segment.name)
                if not groups or own <= rank:
                    groups.append([])
                rank = own
            if groups:
                groups[-1].append(segment)
        return groups

    def get(self, path: str) -> str:
        """Return a value in Unicode; "" if it is not there, or HL7's null.

        Args:
            path: "PID-3", "PID-3.4", "PID-3(2).4.1", "OBX(3)-5"; without component or subcomponent the first.

        Raises:
            ValueError: `path` is none.
        """
        name, occurrence, field, repetition, component, subcomponent = parse_path(path)
        found = [s for s in self.all_segments if s.name == name][occurrence - 1 : occurrence]
        return value_at(found[0], field, repetition, component, subcomponent) if found else ""

    @property
    def header(self) -> Segment:
        """The MSH segment."""
        found = self.segment("MSH")
        assert found is not None, "parse makes no message without one"
        return found

    @property
    def type(self) -> MessageType:
        """MSH-9 in all its forms: "ORM^O01^ORM_O01", "ORM^O01", "ORM_O01", "ADT" with EVN-1."""
        code, trigger, structure = (self.get(f"MSH-9.{n}").strip().upper() for n in (1, 2, 3))
        for whole in (code, trigger):
            if "_" in whole:
                structure = structure or whole
                code, _, rest = whole.partition("_")
                trigger = rest if trigger in ("", whole) else trigger
        if code == "ADT" and not trigger:
            trigger = self.get("EVN-1").strip().upper()
        return MessageType(code, trigger, structure)

    @property
    def control_id(self) -> str:
        """MSH-10."""
        return self.header.field(10).plain.strip()

    @property
    def sending_application(self) -> str:
        """MSH-3, all components as sent."""
        return self.header.field(3).plain

    @property
    def sending_facility(self) -> str:
        """MSH-4."""
        return self.header.field(4).plain

    @property
    def receiving_application(self) -> str:
        """MSH-5."""
        return self.header.field(5).plain

    @property
    def receiving_facility(self) -> str:
        """MSH-6."""
        return self.header.field(6).plain

    @property
    def time(self) -> str:
        """MSH-7 as sent, such as "20260102030405+0100"."""
        return self.get("MSH-7")

    @property
    def version(self) -> str:
        """MSH-12, such as "2.5.1"."""
        return self.get("MSH-12").strip()

    @property
    def accept_ack_type(self) -> str:
        """MSH-15: AL, NE, ER, SU or empty."""
        return self.get("MSH-15").strip().upper()

    @property
    def application_ack_type(self) -> str:
        """MSH-16: AL, NE, ER, SU or empty."""
        return self.get("MSH-16").strip().upper()

    def digest(self, without: Sequence[str] = ("MSH-7",)) -> bytes:
        """Return the SHA-256 of the message's bytes with these fields cut out.

        Two messages with one control ID and one digest are the same one, sent twice: MSH-7 may be the time of sending.
        """
        octets = self.raw
        if codec := charsets.wide_codec(octets):
            octets = octets.decode(codec, "replace").encode()
        spans = sorted(span for path in without if (span := _field_span(octets, path)))
        digest = hashlib.sha256()
        position = 0
        for start, end in spans:
            digest.update(octets[position:start])
            position = end
        digest.update(octets[position:])
        return digest.digest()


def parse_path(path: str) -> tuple[str, int, int, int, int, int]:
    """Return segment, occurrence, field, repetition, component and subcomponent, counted from 1.

    Raises:
        ValueError: `path` is not like "PID-3(2).4.1".
    """
    found = _PATH.fullmatch(path)
    if not found:
        raise ValueError(f"{path!r} is no path to a field: write it as PID-3, PID-3.4 or PID-3(2).4.1")
    name, *numbers = found.groups()
    occurrence, field, repetition, component, subcomponent = (int(n or 1) for n in numbers)
    if not all((occurrence, field, repetition, component, subcomponent)):
        raise ValueError(f"{path!r} is no path to a field: count from 1")
    return name, occurrence, field, repetition, component, subcomponent


def value_at(segment: Segment, field: int, repetition: int = 1, component: int = 1, subcomponent: int = 1) -> str:
    """Return a value in Unicode; "" if it is not there, or HL7's null."""
    return segment.field(field).repetition(repetition).component(component).subcomponent(subcomponent)


def _field_span(octets: bytes, path: str) -> tuple[int, int] | None:
    """Return where the bytes of a field of a segment's first occurrence begin and end."""
    name, _, number, *_ = parse_path(path)
    found = re.search(rb"(?:\A|[\r\n])" + _BLANKS + name.encode() + rb"([^A-Za-z0-9\r\n])", octets)
    if not found:
        return None
    separator, start = found[1], found.end()
    end = next((m.start() for m in re.compile(rb"[\r\n]").finditer(octets, start)), len(octets))
    # After the separator comes field 1, but field 2 of a header.
    for _ in range(number - (2 if name in ("MSH", "BHS", "FHS") else 1)):
        start = octets.find(separator, start, end) + 1
        if not start:
            return None
    stop = octets.find(separator, start, end)
    return start, end if stop < 0 else stop


def parse(raw: bytes, *, default_charset: str = "") -> Message:
    r"""Read a message.

    Args:
        raw: its bytes, without MLLP's. Segments may end with \r, \n or \r\n. Of a batch, the first message is read: see
            `split_batch`.
        default_charset: the set of a message whose MSH-18 is empty (table 0211).

    Raises:
        RadmeshError: HL7_NOT_A_MESSAGE: it does not begin with MSH, nor with batch headers and then MSH.
    """
    raw = _one_message(raw)
    header = _Header.read(raw)
    decoded = charsets.decode(header.switched(raw), header.charsets, default=default_charset)
    text = decoded.text.lstrip(_JUNK)
    remarks = [decoded.remark] if decoded.remark else []
    separators = Separators.read(text[:32])
    if not text.startswith(separators.field + separators.encoding_characters, 3):
        remarks.append("MSH-1 or MSH-2 is odd: read as usual where they make no sense")
    coding = Coding(separators, decoded.charset)
    segments: list[Segment] = []
    for line in _lines(text, separators.field):
        if len(segments) == MAX_SEGMENTS:
            remarks.append(f"more than {MAX_SEGMENTS} segments: the rest was not read")
            break
        segments.append(Segment(line[:3], line, coding))
    if not any(s.name == "MSH" for s in segments):
        raise _not_a_message()
    return Message(raw, decoded.charset, tuple(remarks), separators, tuple(segments))


def _not_a_message() -> RadmeshError:
    return RadmeshError("HL7_NOT_A_MESSAGE", "no MSH segment at the beginning: send HL7 version 2 in ER7 (pipes)")


def _one_message(raw: bytes) -> bytes:
    """Return the first message of a batch, or all that there is."""
    if charsets.wide_codec(raw):
        return raw
    found = _START.match(raw)
    if found and found[1] != b"MSH":
        raw = split_batch(raw)[0]
        found = _START.match(raw)
    if not found or found[1] != b"MSH":
        raise _not_a_message()
    return raw


@dataclass(frozen=True, slots=True)
class _Header:
    """What must be known of the bytes before they can be decoded."""

    escape: bytes
    charsets: tuple[str, ...]

    @classmethod
    def read(cls, octets: bytes) -> "_Header":
        text = octets[:_HEADER_BYTES].decode(charsets.wide_codec(octets) or "latin_1", "replace")
        line = _LINE_END.split(text.lstrip(_JUNK + "\xef\xbb\xbf"), maxsplit=1)[0]
        separators = Separators.read(line)
        declared = _part(line, separators.field, 18)
        names = tuple(name.strip() for name in _split(declared, separators.repetition)[:8]) if declared.strip() else ()
        return cls(separators.escape.encode("latin_1", "ignore"), names)

    def switched(self, octets: bytes) -> bytes:
        r"""Write the escape sequences \C2842\ and \M2442\ as what they stand for: ISO 2022's own."""
        if not self.escape or not re.search(rb"[CM][0-9A-F]{4}", octets):
            return octets
        mark = re.escape(self.escape)
        return re.sub(
            mark + rb"[CM]((?:[0-9A-Fa-f]{2}){2,3})" + mark,
            lambda m: b"\x1b" + bytes.fromhex(m[1].decode("ascii")) if charsets.designates(m[1]) else m[0],
            octets,
        )


def _lines(text: str, separator: str) -> Iterator[str]:
    """Give the segments: a line that begins none belongs to the one before, whose text holds raw line ends."""
    begins = re.compile(
        rf"(?:\A|[\r\n])[{_LINE_JUNK}]{{0,64}}+([A-Z][A-Z0-9]{{2}})(?={re.escape(separator)}|[\r\n]|\Z)"
    )
    start = -1
    for found in begins.finditer(text):
        if start >= 0:
            yield _LINE_END.sub("\n", text[start : found.start()].rstrip("\r\n"))
        start = found.start(1)
    if start >= 0:
        yield _LINE_END.sub("\n", text[start:].rstrip(_JUNK))


def split_batch(raw: bytes) -> list[bytes]:
    """Return the messages of a batch (FHS, BHS … BTS, FTS), or of several that came in one frame; else `raw` alone."""
    if charsets.wide_codec(raw):
        return [raw]
    starts = [m.start(1) for m in _MESSAGE.finditer(raw)]
    first = _START.match(raw)
    if not first or not starts or (len(starts) == 1 and first[1] == b"MSH"):
        return [raw]
    messages = []
    for start, end in itertools.pairwise((*starts, len(raw))):
        trailer = _TRAILER.search(raw, start, end)
        messages.append(raw[start : trailer.start() + 1 if trailer else end])
    return messages
