"""DICOM JSON of an instance (PS3.18 F.2), describing the frames that are served. Bulk data is left out."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from radmesh.curator.worker.table import State

# Binary values up to this size are in it, longer ones are not.
INLINE_MOST: Final = 1024
_DEPTH_MOST: Final = 32
_BINARY: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_WHOLE: Final = frozenset(("IS", "SL", "SS", "SV", "UL", "US", "UV"))
_REAL: Final = frozenset(("DS", "FD", "FL"))
# Of a palette that was applied.
_PALETTE: Final = frozenset((0x00281101, 0x00281102, 0x00281103, 0x00281104, 0x00281199)) | frozenset(
    range(0x00281201, 0x00281225)
)


def describe(ds: Any, served: Mapping[str, Any]) -> bytes:
    """Return the JSON object of an instance.

    Args:
        ds: pydicom Dataset, without pixel data.
        served: `state`, `transfer_syntax_uid`, `photometric_interpretation`, `derived`, `bits`, `signed`, `samples`,
            `number_of_frames` of the frames that are served.
    """
    found = _object(ds, 0)
    found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
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
    return _dump(dict(sorted(found.items())))


def _dump(found: Mapping[str, Any]) -> bytes:
    # A lone surrogate is no text that could be sent.
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _object(ds: Any, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tag in sorted(ds.keys()):
        # Group lengths say nothing, and are retired (PS3.5 7.2); what is behind the pixels is not described.
        if tag & 0xFFFF == 0 or tag >> 16 in (0x0002, 0x7FE0, 0xFFFA, 0xFFFC):
            continue
        try:
            element = ds[tag]
            value = _element(str(element.VR), element.value, depth)
        except Exception:  # noqa: BLE001, S112 - one value that cannot be read hides no other
            continue
        if value is not None:
            found[f"{int(tag):08X}"] = value
    return found


def _element(vr: str, value: Any, depth: int) -> dict[str, Any] | None:
    if vr == "SQ":
        return _with(vr, [_object(item, depth + 1) for item in value or ()]) if depth < _DEPTH_MOST else None
    if len(vr) != 2 or (vr in _BINARY and value and (not isinstance(value, bytes) or len(value) > INLINE_MOST)):
        return None  # "US or SS", of which nobody knows which; bulk data
    if value is None or value in ("", b""):
        return {"vr": vr}
    if vr in _BINARY:
        return {"vr": vr, "InlineBinary": base64.b64encode(value).decode()}
    one = isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") or hasattr(value, "alphabetic")
    return _with(vr, [_value(vr, item) for item in ([value] if one else value)])


def _with(vr: str, values: list[Any]) -> dict[str, Any]:
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _value(vr: str, value: Any) -> Any:
    if value is None or value == "":
        return None
    if vr == "PN":
        names = {"Alphabetic": value.alphabetic, "Ideographic": value.ideographic, "Phonetic": value.phonetic}
        return {name: text for name, text in names.items() if text} or None
    if vr == "AT":
        return f"{int(value):08X}"
    if vr in _WHOLE:
        return int(value)
    if vr in _REAL:
        number = float(value)
        return number if math.isfinite(number) else "NaN" if math.isnan(number) else "inf" if number > 0 else "-inf"
    return str(value)
