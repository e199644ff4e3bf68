r"""Separators and escape sequences (HL7 v2.5.1 chapter 2.7; v2.7 adds \P\)."""

import re
from dataclasses import dataclass
from typing import Final

from radmesh.hl7.charsets import decode_octets

NULL: Final = '""'


@dataclass(frozen=True, slots=True)
class Separators:
    """MSH-1 and MSH-2. An empty one is not in use; `truncation` is empty before version 2.7."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    subcomponent: str = "&"
    truncation: str = ""

    @classmethod
    def read(cls, header: str) -> "Separators":
        """Read them from a MSH, BHS or FHS segment as far as they make sense; what is missing is as usual.

        A letter, a digit or a blank separates nothing, and one character has one meaning: the first.
        """
        field = header[3:4]
        if not _separates(field):
            field = "|"
        seen = dict.fromkeys(c for c in header[4:12].split(field, maxsplit=1)[0] if _separates(c))
        if list(seen)[2:] == ["&"]:
            # Written by hand without the escape character.
            component, repetition, _ = seen
            return cls(field, component, repetition, "", "&")
        chosen = list(seen)[:4]
        for usual in "^~\\&"[len(chosen) :]:
            chosen.append(usual if usual not in seen and usual != field else "")
        spare = (c for c in "^~\\&" if c not in (*chosen, field))
        component, repetition, mark, subcomponent = (c or next(spare, "") for c in chosen)
        return cls(field, component, repetition, mark, subcomponent, "".join(list(seen)[4:5]))

    @property
    def encoding_characters(self) -> str:
        """MSH-2."""
        return f"{self.component}{self.repetition}{self.escape}{self.subcomponent}{self.truncation}"


def _separates(character: str) -> bool:
    return bool(character) and character.isprintable() and not character.isalnum() and not character.isspace()


_LINES: Final = {".br": "\n", ".ce": "\n", ".sp": "\n", "H": "", "N": "", ".fi": "", ".nf": ""}
_COUNTED: Final = re.compile(r"\.(sp|sk|in|ti) ?[+-]?(\d{1,2})")
_HEX: Final = re.compile(r"X((?:[0-9A-Fa-f]{2}){1,4096})")


def unescape(text: str, separators: Separators, charset: str) -> str:
    r"""Return the text that `text` stands for. A sequence that has no meaning here stays as it is: "C:\temp\x".

    Args:
        text: the value of a component or subcomponent.
        separators: those of the message.
        charset: the message's set, for \Xdd\.
    """
    if not separators.escape or separators.escape not in text:
        return text
    meanings = {
        "F": separators.field,
        "S": separators.component,
        "T": separators.subcomponent,
        "R": separators.repetition,
        "E": separators.escape,
        "P": separators.truncation or "#",
        **_LINES,
    }
    pieces = text.split(separators.escape)
    out = [pieces[0]]
    position = 1
    while position < len(pieces):
        # A sequence needs its closing escape character, that is one more piece.
        meaning = _meaning(pieces[position], meanings, charset) if position + 1 < len(pieces) else None
        if meaning is None:
            out += [separators.escape, pieces[position]]
            position += 1
        else:
            out += [meaning, pieces[position + 1]]
            position += 2
    return "".join(out)


def _meaning(sequence: str, meanings: dict[str, str], charset: str) -> str | None:
    if (plain := meanings.get(sequence)) is not None:
        return plain
    if found := _HEX.fullmatch(sequence):
        return decode_octets(bytes.fromhex(found[1]), charset)
    if found := _COUNTED.fullmatch(sequence):
        count = int(found[2])
        return {"sp": "\n" * count, "sk": " " * count}.get(found[1], "")
    return None


def escape(text: str, separators: Separators) -> str:
    r"""Write `text` so that it reads back; line ends become \.br\, other control characters \Xdd\."""
    meanings = {
        separators.field: "F",
        separators.component: "S",
        separators.subcomponent: "T",
        separators.repetition: "R",
        separators.escape: "E",
        "\n": ".br",
    }
    if separators.truncation:
        meanings[separators.truncation] = "P"
    mark = separators.escape
    assert mark, "what radmesh writes has an escape character"
    out = []
    for character in text.replace("\r\n", "\n").replace("\r", "\n"):
        if character in meanings:
            out.append(f"{mark}{meanings[character]}{mark}")
        elif character < " " or character == "\x7f":
            out.append(f"{mark}X{ord(character):02X}{mark}")
        else:
            out.append(character)
    return "".join(out)
