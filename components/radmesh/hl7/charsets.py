"""Character sets of HL7 v2 (MSH-18, table 0211).

Decoding never fails and drops no byte: one wrong character set must not cost an order. What the sender declares is
often wrong, so it is checked against the bytes; whatever differs is told in a remark, never silently.
"""

import codecs
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

UTF_8: Final = "UNICODE UTF-8"
ASCII: Final = "ASCII"

# Table 0211 -> codec. Python has none for CNS 11643: such bytes are tried as UTF-8, else kept one by one.
_CODECS: Final = {
    ASCII: "ascii",
    **{f"8859/{n}": f"iso8859_{n}" for n in (*range(1, 10), 15)},
    "ISO IR6": "ascii",
    "ISO IR14": "shift_jis",
    "ISO IR87": "shift_jis",
    "ISO IR159": "shift_jis",
    "ISO IR149": "cp949",
    "GB 18030-2000": "gb18030",
    "KS X 1001": "cp949",
    "BIG-5": "cp950",
    UTF_8: "utf_8",
    "UNICODE UTF-16": "utf_16",
    "UNICODE UTF-32": "utf_32",
    "WINDOWS-1252": "cp1252",
    "WINDOWS-1250": "cp1250",
    "WINDOWS-1251": "cp1251",
}
# What senders write instead, letters and digits only.
_ALIASES: Final = {
    **{re.sub(r"[^A-Z0-9]", "", name): name for name in _CODECS},
    **{f"ISO8859{n}": f"8859/{n}" for n in (*range(1, 10), 15)},
    **{f"LATIN{n}": f"8859/{n}" for n in range(1, 5)},
    "USASCII": ASCII,
    "UNICODE": UTF_8,
    "UTF8": UTF_8,
    "UTF16": "UNICODE UTF-16",
    "UTF32": "UNICODE UTF-32",
    "ISOIR13": "ISO IR14",
    "ISOIR100": "8859/1",
    "ISOIR101": "8859/2",
    "ISOIR109": "8859/3",
    "ISOIR110": "8859/4",
    "ISOIR144": "8859/5",
    "ISOIR127": "8859/6",
    "ISOIR126": "8859/7",
    "ISOIR138": "8859/8",
    "ISOIR148": "8859/9",
    "ISOIR192": UTF_8,
    "ISO2022JP": "ISO IR87",
    "GB18030": "GB 18030-2000",
    "GBK": "GB 18030-2000",
    "GB2312": "GB 18030-2000",
    "EUCKR": "KS X 1001",
    "KSC5601": "KS X 1001",
    "BIG5": "BIG-5",
    "CP1252": "WINDOWS-1252",
    "CP1250": "WINDOWS-1250",
    "CP1251": "WINDOWS-1251",
}
# With more bytes that fit no character, the text is in another set altogether.
_MOST_STRAYS: Final = 4_096
# Sets in which a byte is a character: nearly any bytes decode, so that they do says nothing about the declaration.
_SINGLE_BYTE: Final = re.compile(r"8859/|ASCII|ISO IR6|WINDOWS-")

# ISO 2022 escape sequences, without ESC -> (0 for bytes below 0x80, 1 for those above; codec).
_DESIGNATIONS: Final = {
    b"(B": (0, "ascii"),
    b"(J": (0, "jis_roman"),
    b"(I": (0, "jis_katakana"),
    b"$@": (0, "jis_x_0208"),
    b"$B": (0, "jis_x_0208"),
    b"$(D": (0, "jis_x_0212"),
    b"$(C": (0, "ks_x_1001"),
    b"$A": (0, "gb_2312"),
    b")I": (1, "shift_jis"),
    b"$)C": (1, "euc_kr"),
    b"$)A": (1, "gb2312"),
    b"-A": (1, "iso8859_1"),
    b"-B": (1, "iso8859_2"),
    b"-C": (1, "iso8859_3"),
    b"-D": (1, "iso8859_4"),
    b"-L": (1, "iso8859_5"),
    b"-G": (1, "iso8859_6"),
    b"-F": (1, "iso8859_7"),
    b"-H": (1, "iso8859_8"),
    b"-M": (1, "iso8859_9"),
}
# 94 x 94 sets in seven bits: the same bytes with the high bit set are the EUC form; JIS X 0212 has a prefix there.
_EUC: Final = {"jis_x_0208": "euc_jp", "ks_x_1001": "euc_kr", "gb_2312": "gb2312"}
_ESCAPE: Final = re.compile(rb"\x1b([\x20-\x2f]{1,3}[\x30-\x7e])")

# How a message begins in sets that are no superset of ASCII.
_WIDE: Final = (
    (b"\xff\xfe\x00\x00", "utf_32_le"),
    (b"\x00\x00\xfe\xff", "utf_32_be"),
    (b"\xff\xfe", "utf_16_le"),
    (b"\xfe\xff", "utf_16_be"),
    *((kind.encode(codec), codec) for kind in ("MSH", "BHS", "FHS") for codec in ("utf_16_le", "utf_16_be")),
    *((kind.encode(codec), codec) for kind in ("MSH", "BHS", "FHS") for codec in ("utf_32_le", "utf_32_be")),
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text, the set it was read in (its name in table 0211), and what was odd; "" = nothing."""

    text: str
    charset: str
    remark: str = ""


def canonical(name: str) -> str:
    """Return the name in table 0211 for what a sender wrote, or "" if no set is meant."""
    return _ALIASES.get(re.sub(r"[^A-Z0-9]", "", name.upper()), "")


def wide_codec(raw: bytes) -> str:
    """Return the codec of a message in UTF-16 or UTF-32, with or without byte order mark; "" for any other."""
    return next((codec for prefix, codec in _WIDE if raw.startswith(prefix)), "")


def decode(raw: bytes, declared: Sequence[str] = (), *, default: str = "") -> Decoded:
    """Decode a message's bytes.

    Args:
        raw: the bytes.
        declared: the repetitions of MSH-18; an empty first one is the default set.
        default: the set of a message that declares none, such as "8859/1"; "" = UTF-8 if it is, else Windows-1252.
    """
    if codec := wide_codec(raw):
        used = "UNICODE UTF-16" if "16" in codec else "UNICODE UTF-32"
        text = raw.decode(codec, "replace").lstrip("\ufeff")
        wrong = "\ufffd" in text or canonical(declared[0] if declared else used) != used
        return Decoded(text, used, _remark(declared, used) if wrong else "")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    names = [canonical(name or default) for name in declared or ("",)]
    if _ESCAPE.search(raw) and any(e[1] in _DESIGNATIONS for e in _ESCAPE.finditer(raw)):
        switching = [n for n in names if n.startswith(("ISO IR", "KS", "8859")) or n in ("", ASCII)]
        if switching or not any(names):
            return _decode_iso_2022(raw, declared, names)
    first = names[0]
    if raw.isascii():
        unknown = bool(declared and declared[0]) and not first
        return Decoded(raw.decode("ascii"), first or ASCII, _remark(declared, ASCII) if unknown else "")
    return _decode_single(raw, declared, first)


def _decode_single(raw: bytes, declared: Sequence[str], first: str) -> Decoded:
    """Decode bytes beyond ASCII in one set, without escapes."""
    try:
        utf_8 = raw.decode()
    except UnicodeDecodeError:
        utf_8 = ""
    # By chance, text of another set is hardly ever well-formed UTF-8.
    if utf_8 and (not first or first.startswith("UNICODE") or _SINGLE_BYTE.match(first)):
        return Decoded(utf_8, UTF_8, "" if first.startswith("UNICODE") else _remark(declared, UTF_8))
    wide = first in ("UNICODE UTF-16", "UNICODE UTF-32")
    codec = _CODECS["WINDOWS-1252" if not first or wide or first in (ASCII, "ISO IR6") else first]
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError:
        if utf_8:
            return Decoded(utf_8, UTF_8, _remark(declared, UTF_8))
        if raw.decode(codec, "replace").count("\ufffd") > _MOST_STRAYS:
            codec = "cp1252"
        return Decoded(raw.decode(codec, "radmesh.hl7"), first or "WINDOWS-1252", _remark(declared, "single bytes"))
    if codec in ("iso8859_1", "iso8859_15") and re.search("[\x80-\x9f]", text):
        # No ISO 8859 text has control characters there: it comes from Windows.
        return Decoded(raw.decode("cp1252", "radmesh.hl7"), "WINDOWS-1252", _remark(declared, "WINDOWS-1252"))
    if codec == "cp1252" and first != "WINDOWS-1252":
        return Decoded(text, "WINDOWS-1252", _remark(declared, "WINDOWS-1252"))
    return Decoded(text, first)


def _remark(declared: Sequence[str], used: str) -> str:
    said = "~".join(name if canonical(name) or not name else "unknown" for name in declared)
    return f"character set: declared {said or 'none'}, read as {used}"


def _decode_iso_2022(raw: bytes, declared: Sequence[str], names: Sequence[str]) -> Decoded:
    """Decode text that switches sets by escape sequences; the end of a segment ends what was switched on."""
    first = names[0] or ASCII
    high = _CODECS[first] if _CODECS[first] != "ascii" else next((_CODECS[n] for n in names if n), "ascii")
    initial = ["ascii", "cp1252" if high in ("ascii", "utf_8") else high]
    parts: list[str] = []
    odd = False
    for line in re.split(rb"(?<=[\r\n])", raw):
        state = list(initial)
        position = 0
        for escape in itertools.chain(_ESCAPE.finditer(line), (None,)):
            end = len(line) if escape is None else escape.start()
            text, replaced = _decode_run(line[position:end], state)
            parts.append(text)
            odd |= replaced
            if escape is None:
                break
            position = escape.end()
            if designation := _DESIGNATIONS.get(escape[1]):
                state[designation[0]] = designation[1]
            else:
                parts.append(escape[0].decode("latin_1"))
                odd = True
    odd |= not any(names)
    used = "~".join(n or (ASCII if i == 0 else "") for i, n in enumerate(names))
    return Decoded("".join(parts), used, _remark(declared, "ISO 2022") if odd else "")


def _decode_run(run: bytes, state: Sequence[str]) -> tuple[str, bool]:
    """Decode bytes between two escapes; return the text, and whether bytes fit no character of their set."""
    parts: list[str] = []
    odd = False
    for piece in re.findall(rb"[\x00-\x7f]+|[\x80-\xff]+", run) if not run.isascii() else (run,):
        codec, octets = state[0], piece
        if not piece.isascii():
            codec = state[1]
        elif codec == "jis_katakana":
            codec, octets = "shift_jis", _raised(piece)
        elif codec == "jis_x_0212":
            codec, octets = "euc_jp", re.sub(rb"[\xa1-\xfe]{2}", lambda m: b"\x8f" + m[0], _raised(piece))
        elif codec in _EUC:
            codec, octets = _EUC[codec], _raised(piece)
        elif codec == "jis_roman":
            codec = "ascii"  # yen and overline stand where HL7 has its escape and repetition separator
        try:
            parts.append(octets.decode(codec))
        except UnicodeDecodeError:
            parts.append(octets.decode(codec, "radmesh.hl7"))
            odd = True
    return "".join(parts), odd


def _raised(piece: bytes) -> bytes:
    """Set the high bit of graphic characters."""
    return bytes(b | 0x80 if 0x20 < b < 0x7F else b for b in piece)


def _single_bytes(error: UnicodeError) -> tuple[str, int]:
    """Give the bytes that fit no character as Windows-1252, else Latin-1: none is dropped."""
    assert isinstance(error, UnicodeDecodeError)
    octets = error.object[error.start : error.end]
    return "".join(bytes([b]).decode("cp1252" if b not in _CP1252_HOLES else "latin_1") for b in octets), error.end


_CP1252_HOLES: Final = frozenset((0x81, 0x8D, 0x8F, 0x90, 0x9D))
codecs.register_error("radmesh.hl7", _single_bytes)


def encode(text: str, charset: str) -> tuple[bytes, str]:
    """Encode what we say; return the bytes and the value of MSH-18 that is true of them.

    Args:
        text: any text.
        charset: wanted set or sets ("~" between); a text that would not read back is written in UTF-8 instead.
    """
    names = [canonical(name) for name in charset.split("~")]
    if any(n in ("ISO IR87", "ISO IR159", "ISO IR14") for n in names):
        codec, said = "iso2022_jp_ext", "~ISO IR87~ISO IR159"
    else:
        said = names[0] if names[0] and not names[0].startswith("UNICODE") else UTF_8
        codec = _CODECS[said]
    try:
        octets = text.encode(codec)
        # Some sets have one code for two characters.
        if octets.decode(codec) == text:
            return octets, "" if said == ASCII else said
    except UnicodeError:
        pass
    return text.encode("utf_8", "replace"), UTF_8


def decode_octets(octets: bytes, charset: str) -> str:
    r"""Decode the bytes of an \Xdd\ escape in the message's set."""
    codec = _CODECS.get(charset.split("~", maxsplit=1)[0] or ASCII, "ascii")
    if codec in ("utf_16", "utf_32"):
        codec = "utf_8"
    return octets.decode(codec, "radmesh.hl7")


def designates(digits: bytes) -> bool:
    """Whether hexadecimal digits are an ISO 2022 escape sequence (without ESC) that switches to a set known here."""
    return bytes.fromhex(digits.decode("ascii")) in _DESIGNATIONS
