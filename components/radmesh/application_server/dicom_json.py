"""DICOM JSON (PS3.18 F.2): attributes made of texts, and corrected values written into what a Curator described."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final, Protocol

_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_WHOLE: Final = frozenset(("IS", "SL", "SS", "UL", "US"))
_SEPARATED: Final = "\\"
ORIGINALS: Final = "04000561"


class Correction(Protocol):
    """A corrected value, as radmesh.dicom.overlay has it, and its tag and VR."""

    @property
    def keyword(self) -> str: ...  # noqa: D102 - said above

    @property
    def tag(self) -> str: ...  # noqa: D102 - eight hexadecimal digits

    @property
    def vr(self) -> str: ...  # noqa: D102

    @property
    def value(self) -> str: ...  # noqa: D102

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def time(self) -> datetime: ...  # noqa: D102


def attribute(vr: str, *values: object) -> dict[str, Any]:
    """Return the JSON object of an attribute; without values, and of empty ones, that of an empty attribute."""
    given = [_value(vr, value) for value in values]
    while given and given[-1] is None:
        given.pop()
    return {"vr": vr, "Value": given} if given else {"vr": vr}


def text_attribute(vr: str, text: str) -> dict[str, Any]:
    """Return the JSON object of an attribute whose values a text has, separated by backslashes (PS3.5 6.4)."""
    single = vr in ("LT", "ST", "UT", "UR")
    return attribute(vr, *([text] if single else text.split(_SEPARATED))) if text else {"vr": vr}


def _value(vr: str, value: object) -> Any:
    if value is None or value == "":
        return None
    if vr == "PN":
        # F.2.2: a component group that is empty is left out.
        groups = (group.rstrip("^ ") for group in str(value).split("="))
        return {name: group for name, group in zip(_GROUPS, groups, strict=False) if group} or None
    if vr in _WHOLE:
        try:
            return int(str(value).strip())
        except ValueError:
            # As received, and none: whoever reads it takes it for a number.
            return None
    return str(value)


def corrected(described: Mapping[str, Any], corrections: Sequence[Correction]) -> dict[str, Any]:
    """Return a description with the values that are shown; what was there before goes into (0400,0561)."""
    changing = [
        (correction, shown)
        for correction in corrections
        if (shown := text_attribute(correction.vr, correction.value))
        != _plain(described.get(correction.tag, {"vr": correction.vr}))
    ]
    if not changing:
        return dict(described)
    made = dict(described)
    history = list(described.get(ORIGINALS, {}).get("Value", ()))
    by_source = sorted(changing, key=lambda pair: (pair[0].source, pair[0].tag))
    for source, group in groupby(by_source, key=lambda pair: pair[0].source):
        pairs = list(group)
        before = {c.tag: described.get(c.tag, {"vr": c.vr}) for c, _ in pairs}
        history.append(_original(source, (c for c, _ in pairs), before))
        made |= {c.tag: shown for c, shown in pairs}
    made[ORIGINALS] = {"vr": "SQ", "Value": history}
    # F.2.2: in the order of tags.
    return dict(sorted(made.items()))


def _plain(described: Any) -> Any:
    return {key: value for key, value in described.items() if key in ("vr", "Value")}


def _original(source: str, corrections: Iterable[Correction], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item of the Original Attributes Sequence (PS3.3 C.12.1.1.9)."""
    from radmesh.dicom.overlay import modification_time, modifying_system  # noqa: PLC0415 - brings pydicom

    return {
        "04000550": {"vr": "SQ", "Value": [dict(sorted(before.items()))]},
        "04000562": attribute("DT", modification_time(corrections)),
        "04000563": attribute("LO", modifying_system(source)),
        "04000564": attribute("LO"),
        "04000565": attribute("CS", "CORRECT"),
    }
