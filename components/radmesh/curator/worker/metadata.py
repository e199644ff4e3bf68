"""DICOM JSON of an instance (PS3.18 F.2), describing the frames that are served. Bulk data is left out.

Values are taken as the bytes they came as: half of the time of a small image would go into pydicom's elements else, and
text in a wrongly declared character set is read here as everywhere.
"""

import base64
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from radmesh.curator.worker.table import State
from radmesh.dicom.header import decode_text

# Binary values up to this size are in it, longer ones are not.
INLINE_MOST: Final = 1024
_DEPTH_MOST: Final = 32
_BINARY: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_NUMBERS: Final = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q"}
# One value, of which a backslash may be a part.
_SINGLE: Final = frozenset(("LT", "ST", "UR", "UT"))
# Text that the Specific Character Set does not touch.
_PLAIN: Final = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"))
# What the dictionary leaves open, and the rest of the data set would say, as far as it matters for reading.
_OPEN: Final = {"OB or OW": "OW", "US or OW": "OW", "US or SS or OW": "US or SS"}
_CHARACTER_SET: Final = 0x00080005
# Of a palette that was applied.
_PALETTE: Final = frozenset((0x00281101, 0x00281102, 0x00281103, 0x00281104, 0x00281199)) | frozenset(
    range(0x00281201, 0x00281225)
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What an instance is known as; who joins metadata relies on it, whatever the data set says."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str

    def object(self) -> dict[str, Any]:
        """Return it as DICOM JSON."""
        values = {
            "00080005": ("CS", "ISO_IR 192"),
            "00080016": ("UI", self.sop_class_uid),
            "00080018": ("UI", self.sop_instance_uid),
            "0020000D": ("UI", self.study_instance_uid),
            "0020000E": ("UI", self.series_instance_uid),
        }
        return {tag: _with(vr, [value] if value else []) for tag, (vr, value) in values.items()}

    def document(self) -> bytes:
        """Return the JSON object of an instance of which no more is known."""
        return _dump(self.object())


def describe(ds: Any, identity: Identity, served: Mapping[str, Any]) -> bytes:
    """Return the JSON object of an instance.

    Args:
        ds: pydicom Dataset, without pixel data.
        identity: what it is known as.
        served: `state`, `transfer_syntax_uid`, `photometric_interpretation`, `derived`, `bits`, `signed`, `samples`,
            `number_of_frames` of the frames that are served.
    """
    found = _Writer(ds).object(ds) | identity.object()
    if served["state"] == State.NONE:
        return _dump(found)
    found["00083002"] = {"vr": "UI", "Value": [served["transfer_syntax_uid"]]}
    if served["state"] == State.CODED:
        bits = served["bits"]
        found |= {
            "00280002": {"vr": "US", "Value": [served["samples"]]},
            "00280004": {"vr": "CS", "Value": [served["photometric_interpretation"]]},
            "00280100": {"vr": "US", "Value": [8 if bits <= 8 else 16]},
            "00280101": {"vr": "US", "Value": [bits]},
            "00280102": {"vr": "US", "Value": [bits - 1]},
            "00280103": {"vr": "US", "Value": [int(served["signed"])]},
        }
        found.pop("00280006", None)
        if served["samples"] > 1:
            found["00280006"] = {"vr": "US", "Value": [0]}
            for tag in _PALETTE:
                found.pop(f"{tag:08X}", None)
    return _dump(found)


def _dump(found: Mapping[str, Any]) -> bytes:
    # A lone surrogate is no text that could be sent.
    return json.dumps(dict(sorted(found.items())), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


@lru_cache(4096)
def _vr_of(tag: int) -> str:
    from pydicom.datadict import dictionary_VR  # noqa: PLC0415 - in the process that decodes alone

    if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
        return "LO"  # a private creator (PS3.5 7.8.1)
    try:
        return _OPEN.get(vr := str(dictionary_VR(tag)), vr)
    except KeyError:
        return "UN"


class _Writer:
    def __init__(self, ds: Any) -> None:
        try:
            signed = int(ds[0x00280103].value) == 1
        except Exception:  # noqa: BLE001 - absent, or no number
            signed = False
        self._us_or_ss = "SS" if signed else "US"

    def object(self, ds: Any, character_set: bytes = b"", depth: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own = ds.get_item(_CHARACTER_SET) if _CHARACTER_SET in ds else None
        if own is not None and isinstance(own.value, bytes):
            character_set = own.value
        for tag in ds.keys():  # noqa: SIM118 - iterating a Dataset converts its elements
            # Group lengths say nothing, and are retired (PS3.5 7.2); what is behind the pixels is not described.
            if tag & 0xFFFF == 0 or tag >> 16 in (0x0002, 0x7FE0, 0xFFFA, 0xFFFC):
                continue
            try:
                value = self._element(ds, tag, character_set, depth)
            except Exception:  # noqa: BLE001, S112 - one value that cannot be read hides no other
                continue
            if value is not None:
                found[f"{int(tag):08X}"] = value
        return found

    def _element(self, ds: Any, tag: int, character_set: bytes, depth: int) -> dict[str, Any] | None:
        raw = ds.get_item(tag)
        vr = str(raw.VR or "UN")
        if vr == "UN":
            # Whoever wrote it did not know it.
            vr = _vr_of(int(tag))
        if vr == "US or SS":
            vr = self._us_or_ss
        if vr == "SQ":
            items = ds[tag].value if depth < _DEPTH_MOST else None
            if items is None or isinstance(items, bytes):
                return None
            return _with("SQ", [self.object(item, character_set, depth + 1) for item in items])
        # What is empty is an element of pydicom's from the beginning; what was used for a palette is one by now.
        data = raw.value if raw.value is not None and str(raw.value) else b""
        if data == b"":
            return {"vr": vr}
        if not isinstance(data, bytes):
            return _with(vr, list(data) if vr in _NUMBERS and hasattr(data, "__iter__") else [data])
        if vr not in _BINARY:
            return _with(vr, list(self._values(vr, data, "<" if raw.is_little_endian else ">", character_set)))
        return None if len(data) > INLINE_MOST else {"vr": vr, "InlineBinary": base64.b64encode(data).decode()}

    @staticmethod
    def _values(vr: str, data: bytes, order: str, character_set: bytes) -> Iterator[Any]:
        if vr in _NUMBERS:
            return (_finite(number) for number in _numbers(data, order + _NUMBERS[vr]))
        if vr == "AT":
            pairs = list(_numbers(data, order + "H"))
            return (f"{group:04X}{number:04X}" for group, number in zip(pairs[::2], pairs[1::2], strict=True))
        return _texts(vr, data, character_set)


def _with(vr: str, values: list[Any]) -> dict[str, Any]:
    return {"vr": vr, "Value": values} if any(value is not None for value in values) else {"vr": vr}


def _numbers(data: bytes, code: str) -> Iterator[Any]:
    yield from (value for (value,) in struct.iter_unpack(code, data))


def _finite(number: Any) -> Any:
    if isinstance(number, int) or math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "inf" if number > 0 else "-inf"


def _texts(vr: str, data: bytes, character_set: bytes) -> Iterator[Any]:
    if vr in _PLAIN and data.isascii():
        text = data.decode("ascii").rstrip("\0 ")
    else:
        text = decode_text(data, character_set, vr=b"PN" if vr == "PN" else b"LO")
    for part in (text,) if vr in _SINGLE else text.split("\\"):
        value = part.strip("\0 ")
        yield _text(vr, value) if value else None


def _text(vr: str, value: str) -> Any:
    if vr == "PN":
        names = zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False)
        return {name: text.strip() for name, text in names if text.strip()} or None
    if vr in ("DS", "IS"):
        try:
            number = int(value) if vr == "IS" else float(value)
        except ValueError:
            return None  # who reads a number would stumble over it
        return number if math.isfinite(number) else None
    return value
