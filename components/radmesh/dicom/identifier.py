"""Identifiers of DIMSE messages: the keys of a request read, and the rows of answers written (PS3.4 C.4.1, K.4.1)."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from radmesh.dicom.elements import ITEM, ITEM_END, LONG_FORM, SEQUENCE_END, SHORT_FORM, UNDEFINED
from radmesh.dicom.header import decode_text
from radmesh.runtime.errors import RadmeshError

IDENTIFIER_MOST: Final = 1 << 20
"""Bytes of an identifier: a list of UIDs may be long."""
KEYS_MOST: Final = 512
SPECIFIC_CHARACTER_SET: Final = 0x00080005
QUERY_RETRIEVE_LEVEL: Final = 0x00080052
UTF_8: Final = "ISO_IR 192"
_DEPTH_MOST: Final = 6
_TEXT: Final = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_PLAIN: Final = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"))
_NUMBERS: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
# PS3.3 table C.12-2: sets of one byte a character, which need no escape sequences; and those that replace all.
_CODECS: Final = {
    "ISO_IR 100": "latin-1",
    "ISO_IR 101": "iso8859-2",
    "ISO_IR 109": "iso8859-3",
    "ISO_IR 110": "iso8859-4",
    "ISO_IR 144": "iso8859-5",
    "ISO_IR 127": "iso8859-6",
    "ISO_IR 126": "iso8859-7",
    "ISO_IR 138": "iso8859-8",
    "ISO_IR 148": "iso8859-9",
    "ISO_IR 203": "iso8859-15",
    "ISO_IR 166": "tis-620",
    "GB18030": "gb18030",
    "GBK": "gbk",
    UTF_8: "utf-8",
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key: `value` is Unicode, values separated by backslashes; empty = universal matching.

    `items` are the keys of a sequence's item; a sequence without one asks for all there is.
    """

    tag: int
    vr: str
    value: str = ""
    items: "tuple[Key, ...]" = ()


@dataclass(frozen=True, slots=True)
class Identifier:
    """The keys of a request; `character_set` is its first term, in which answers may be written."""

    keys: tuple[Key, ...]
    character_set: str = ""

    def value(self, tag: int) -> str:
        """Return the value of a key; empty if it is absent."""
        return next((key.value for key in self.keys if key.tag == tag), "")


def _invalid(why: str) -> RadmeshError:
    return RadmeshError("IDENTIFIER_INVALID", f"identifier: {why}")


def read_identifier(data: bytes, *, implicit: bool) -> Identifier:
    """Read the identifier of a request, Little Endian.

    Group lengths and Specific Character Set are no keys. What stands in more than one item of a sequence is read of
    the first (PS3.4 C.2.2.2.6).

    Raises:
        RadmeshError: IDENTIFIER_INVALID: it ends inside an element, has a VR that is none, is too long or too deep.
    """
    if len(data) > IDENTIFIER_MOST:
        raise _invalid(f"{IDENTIFIER_MOST} bytes at most")
    reader = _Reader(data)
    try:
        keys = reader.keys(0, len(data), implicit=implicit, depth=0)[0]
    except struct.error:
        raise _invalid("it ends inside an element") from None
    term = reader.character_set.decode("ascii", "replace").split("\\")[0].strip("\0 ")
    return Identifier(keys, term if term in _CODECS else "")


def read_data_set(data: bytes, *, implicit: bool, most: int, keys_most: int) -> Identifier:
    """Read a data set whose sequences are wanted whole: the `items` of each are keys of tag ITEM, with what is in them.

    Args:
        data: Little Endian.
        implicit: whether in Implicit VR.
        most: bytes that it may have.
        keys_most: elements that it may have, those in items included.

    Raises:
        RadmeshError: IDENTIFIER_INVALID.
    """
    if len(data) > most:
        raise _invalid(f"{most} bytes at most")
    reader = _Reader(data, keys_most, every=True)
    try:
        return Identifier(reader.keys(0, len(data), implicit=implicit, depth=0)[0])
    except struct.error:
        raise _invalid("it ends inside an element") from None


class _Reader:
    def __init__(self, data: bytes, keys_most: int = KEYS_MOST, *, every: bool = False) -> None:
        self._data = data
        self._left = self._most = keys_most
        self._every = every
        self.character_set = b""

    def keys(self, at: int, end: int, *, implicit: bool, depth: int, item: bool = False) -> tuple[tuple[Key, ...], int]:
        """Read keys up to `end`, or to the end of an item of undefined length; return them and where they ended."""
        if depth > _DEPTH_MOST:
            raise _invalid(f"sequences at most {_DEPTH_MOST} deep")
        found: list[Key] = []
        while at < end:
            tag, vr, length, at = self._head(at, implicit=implicit)
            if tag == ITEM_END and item:
                return tuple(found), at
            self._left -= 1
            if self._left < 0:
                raise _invalid(f"{self._most} keys at most")
            if length != UNDEFINED and length > end - at:
                raise _invalid(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is longer than what is there")
            if vr == "SQ" or length == UNDEFINED:
                stop = end if length == UNDEFINED else at + length
                # An unknown VR of undefined length holds Implicit VR (PS3.5 6.2.2).
                items, at = self._sequence(at, stop, implicit=implicit or vr == "UN", depth=depth)
                found.append(Key(tag, "SQ", "", items))
                continue
            raw, at = self._data[at : at + length], at + length
            if tag == SPECIFIC_CHARACTER_SET:
                self.character_set = self.character_set or raw
            elif tag & 0xFFFF:
                found.append(Key(tag, vr, self._value(vr, raw)))
        return tuple(found), at

    def _head(self, at: int, *, implicit: bool) -> tuple[int, str, int, int]:
        group, number, length = struct.unpack_from("<HHI", self._data, at)
        tag = group << 16 | number
        if group == 0xFFFE:
            return tag, "", length, at + 8
        if implicit:
            return tag, vr_of(tag), length, at + 8
        raw = self._data[at + 4 : at + 6]
        if raw in SHORT_FORM:
            return tag, raw.decode(), length >> 16, at + 8
        if raw not in LONG_FORM:
            raise _invalid(f"({group:04X},{number:04X}) has no valid VR")
        vr = raw.decode()
        # Whoever does not know an element may write it so.
        return tag, vr_of(tag) if vr == "UN" else vr, struct.unpack_from("<I", self._data, at + 8)[0], at + 12

    def _sequence(self, at: int, end: int, *, implicit: bool, depth: int) -> tuple[tuple[Key, ...], int]:
        first: tuple[Key, ...] | None = None
        items: list[Key] = []
        while at < end:
            tag, _, length, at = self._head(at, implicit=True)
            if tag == SEQUENCE_END:
                break
            if tag != ITEM:
                raise _invalid("a sequence has something else than items")
            if length != UNDEFINED and length > end - at:
                raise _invalid("an item is longer than what is there")
            stop = end if length == UNDEFINED else at + length
            keys, at = self.keys(at, stop, implicit=implicit, depth=depth + 1, item=length == UNDEFINED)
            first = keys if first is None else first
            if self._every:
                items.append(Key(ITEM, "", "", keys))
        return tuple(items) if self._every else first or (), at

    def _value(self, vr: str, raw: bytes) -> str:
        if vr in _TEXT:
            return decode_text(raw, self.character_set, vr=vr.encode())
        if vr in _PLAIN:
            return raw.decode("latin-1").strip("\0 ")
        letter = _NUMBERS.get(vr)
        if letter is None or not raw or len(raw) % struct.calcsize(letter):
            return ""
        return "\\".join(str(number[0]) for number in struct.iter_unpack("<" + letter, raw))


@lru_cache(4096)
def vr_of(tag: int) -> str:
    """Return the VR of an element as PS3.6 has it; "UN" for one that it has not."""
    from pydicom.datadict import dictionary_VR  # noqa: PLC0415 - its tables are large, and of queries alone

    try:
        return str(dictionary_VR(tag))[:2]
    except KeyError:
        return "UN"


# -- writing -----------------------------------------------------------------------------------------------------------

Items = Sequence[Sequence["Element"]]
Element = tuple[int, str, "str | int | Items"]
"""Tag, VR and value: text, a number (US), or the items of a sequence."""


def codec_of(character_set: str) -> str:
    """Return Python's name of a Specific Character Set that rows can be written in; UTF-8 where it is none."""
    return _CODECS.get(character_set, "utf-8")


def _padded(raw: bytes, vr: str) -> bytes:
    return raw + (b"\0" if vr in ("UI", "UN", "OB") else b" ") if len(raw) & 1 else raw


def head_of(tag: int, vr: str, *, implicit: bool) -> tuple[bytes, Callable[[int], bytes]]:
    """Return what an element begins with, and what writes its length behind that (PS3.5 7.1)."""
    begin = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return begin, _LONG_LENGTH
    if vr.encode() in LONG_FORM:
        return begin + vr.encode() + b"\0\0", _LONG_LENGTH
    return begin + vr.encode(), _SHORT_LENGTH


_LONG_LENGTH: Final = struct.Struct("<I").pack
_SHORT_LENGTH: Final = struct.Struct("<H").pack
_SHORT_MOST: Final = 65_534


def write_element(element: Element, *, implicit: bool, codec: str) -> bytes:
    """Return an element's bytes.

    Raises:
        UnicodeEncodeError: `codec` does not hold its text.
    """
    tag, vr, value = element
    if isinstance(value, str):
        raw = _padded(value.encode(codec if vr in _TEXT else "ascii", "strict" if vr in _TEXT else "replace"), vr)
        raw = raw[:_SHORT_MOST]
    elif isinstance(value, int):
        raw = struct.pack("<H", value & 0xFFFF)
    else:
        raw = b"".join(_item(item, implicit=implicit, codec=codec) for item in value)
    begin, length = head_of(tag, vr, implicit=implicit)
    return begin + length(len(raw)) + raw


def _item(elements: Sequence[Element], *, implicit: bool, codec: str) -> bytes:
    raw = b"".join(write_element(element, implicit=implicit, codec=codec) for element in elements)
    return struct.pack("<HHI", ITEM >> 16, ITEM & 0xFFFF, len(raw)) + raw


def write_identifier(elements: Sequence[Element], *, implicit: bool, character_set: str) -> bytes:
    """Return an identifier, with a Specific Character Set that is true: empty where its text is ASCII.

    Args:
        elements: in rising order of tags, without Specific Character Set (0008,0005) and what is before it.
        implicit: whether in Implicit VR; Little Endian in any case.
        character_set: what is tried before ISO_IR 192.
    """
    for term, codec in (("", "ascii"), (character_set, codec_of(character_set)), (UTF_8, "utf-8")):
        try:
            body = b"".join([write_element(element, implicit=implicit, codec=codec) for element in elements])
        except UnicodeEncodeError:
            continue
        declared = write_element(
            (SPECIFIC_CHARACTER_SET, "CS", term if codec != "utf-8" else UTF_8), implicit=implicit, codec="ascii"
        )
        return declared + body
    raise AssertionError


class RowWriter:
    """Writes rows that have the same elements: what they share is made once.

    Args:
        elements: (tag, VR, value that all rows have, else None), in rising order, without Specific Character Set
            (0008,0005).
        implicit: whether in Implicit VR; Little Endian in any case.
        character_set: what is tried before ISO_IR 192.
    """

    def __init__(self, elements: Sequence[tuple[int, str, str | None]], *, implicit: bool, character_set: str) -> None:
        self._parts: list[tuple[bytes, Callable[[int], bytes], bool, bytes]] = []
        before = b""
        for tag, vr, value in elements:
            if value is not None:
                before += write_element((tag, vr, value), implicit=implicit, codec="ascii")
                continue
            begin, length = head_of(tag, vr, implicit=implicit)
            self._parts.append((before + begin, length, vr in _TEXT, b"\0" if vr == "UI" else b" "))
            before = b""
        self._end = before
        self._declared = {
            codec: write_element((SPECIFIC_CHARACTER_SET, "CS", term), implicit=implicit, codec="ascii")
            for codec, term in (("ascii", ""), (codec_of(character_set), character_set or UTF_8), ("utf-8", UTF_8))
        }

    def write(self, values: Sequence[str | bytes]) -> bytes:
        """Return the identifier of a row: texts, or bytes as they are, one for each element without a value."""
        for codec in self._declared:
            try:
                return self._written(values, codec)
            except UnicodeEncodeError:
                continue
        raise AssertionError

    def _written(self, values: Sequence[str | bytes], codec: str) -> bytes:
        out = [self._declared[codec]]
        add = out.append
        for (begin, length, text, pad), value in zip(self._parts, values, strict=True):
            if isinstance(value, bytes):
                raw = value
            elif text:
                raw = value.encode(codec)
            else:
                raw = value.encode("ascii", "replace")
            size = len(raw)
            add(begin)
            if size & 1:
                add(length(size + 1))
                add(raw)
                add(pad)
            else:
                add(length(size))
                add(raw)
        add(self._end)
        return b"".join(out)


def tag_text(tag: int) -> str:
    """Return a tag as errors name it: (GGGG,EEEE)."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def as_mapping(keys: Sequence[Key]) -> Mapping[int, Key]:
    """Return keys by tag; of one that stands there twice the first."""
    found: dict[int, Any] = {}
    for key in keys:
        found.setdefault(key.tag, key)
    return found
