"""Data sets of DICOM JSON (PS3.18 F.2), without what is not in them: bulk data."""

from typing import Any, Final

from pydicom.dataset import Dataset

# Of the web's answers, and no part of the object: Available Transfer Syntax UID, Retrieve URL.
_OF_THE_WEB: Final = ("00083002", "00081190")


def data_set(described: dict[str, Any]) -> Dataset:
    """Return the data set; values that are elsewhere (BulkDataURI), and elements about the answer, are left out."""
    return Dataset.from_json(_inline(described))


def left_out(described: dict[str, Any]) -> tuple[str, ...]:
    """Return the tags, at the first level, whose values are elsewhere, sorted: "GGGGEEEE"."""
    return tuple(sorted(tag for tag, element in described.items() if "BulkDataURI" in element))


def _inline(described: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for tag, element in described.items():
        if "BulkDataURI" in element or tag in _OF_THE_WEB:
            continue
        if element.get("vr") == "SQ":
            element = {**element, "Value": [_inline(item) for item in element.get("Value", ()) if item]}  # noqa: PLW2901
        kept[tag] = element
    return kept
