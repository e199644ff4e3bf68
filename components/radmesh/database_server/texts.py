"""Texts as both databases can keep, index and compare them."""

import hashlib
import unicodedata
from typing import Final

# PostgreSQL indexes rows of 2,704 bytes at most; what these hold is 64 characters long (PS3.5 6.2).
_INDEXED: Final = {"PatientID": 128, "IssuerOfPatientID": 128, "AccessionNumber": 128, "StudyDate": 32}


def clean(value: str, most: int = 1024) -> str:
    """Return text that both databases can keep: without NULs, bounded."""
    return value.replace("\0", "")[:most]


def bounded(keyword: str, value: str) -> str:
    """Return an attribute's text as the tables can keep it."""
    return clean(value, _INDEXED.get(keyword, 1024))


def short(value: str, most: int) -> str:
    """Return a text that an index takes whole, and no other text is: what is too long ends with its digest."""
    value = value.replace("\0", "")
    return value if len(value) <= most else f"{value[: most - 33]}#{hashlib.sha256(value.encode()).hexdigest()[:32]}"


def name_key(name: str) -> str:
    """Return what names are matched by: "=alphabetic=ideographic=phonetic=", case and width folded, padding dropped."""
    groups = (group.rstrip("^ ").strip() for group in unicodedata.normalize("NFKC", name).casefold().split("="))
    return "=" + "=".join(group for group in groups if group) + "="
