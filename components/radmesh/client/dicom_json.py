"""Data sets of DICOM JSON (PS3.18 F.2), without what is not in them: bulk data."""

from typing import Any, Final

from pydicom.dataset import Dataset

# Of the web's answers, and no part of the object: Available Transfer Syntax UID, Retrieve URL.
_OF_THE_WEB: Final = ("00083002", "00081190")


def data_set(described: dict[str, Any]) -> tuple[Dataset, list[str]]:
    """Return the data set, and the tags ("GGGGEEEE") of its elements that are not in it.

    Those are elements whose values are elsewhere (BulkDataURI), and those of which pydicom makes nothing: one that is
    odd hides no other.
    """
    made, missing = Dataset(), []
    for tag, element in described.items():
        if tag in _OF_THE_WEB:
            continue
        try:
            if "BulkDataURI" in element:
                raise ValueError("elsewhere")
            made.update(Dataset.from_json({tag: _inline(element)}))
        except Exception:  # noqa: BLE001 - whatever pydicom makes of a value that its VR does not allow
            missing.append(tag)
    return made, missing


def _inline(element: dict[str, Any]) -> dict[str, Any]:
    """Return an element without bulk data in its items."""
    if element.get("vr") != "SQ":
        return element
    items = [
        {tag: _inline(inner) for tag, inner in item.items() if "BulkDataURI" not in inner}
        for item in element.get("Value", ())
        if item
    ]
    return {**element, "Value": items}
