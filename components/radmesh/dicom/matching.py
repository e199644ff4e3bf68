"""Matching of attributes (PS3.4 C.2.2.2) where no database does it."""

import re
import unicodedata
from typing import Final

DATE: Final = re.compile(r"(\d{8})?(-)?(\d{8})?", re.ASCII)
TIME: Final = re.compile(
    r"(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?(-)?(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?", re.ASCII
)


def text_matches(pattern: str, text: str) -> bool:
    """Wild card matching, in time that is linear for all practical patterns: no backtracking over several `*`."""
    p = t = 0
    star, mark = -1, 0
    while t < len(text):
        if p < len(pattern) and pattern[p] == "*":
            star, mark = p, t
            p += 1
        elif p < len(pattern) and pattern[p] in ("?", text[t]):
            p, t = p + 1, t + 1
        elif star >= 0:
            p, mark = star + 1, mark + 1
            t = mark
        else:
            return False
    return not pattern[p:].strip("*")


def in_range(text: str, wanted: str) -> bool:
    """Range matching of dates and times; a time that is cut stands for all that begin so."""
    first, dash, last = wanted.partition("-")
    if not text:
        return False
    if not dash:
        return text.startswith(first) or first.startswith(text)
    return (not first or text >= first[: len(text)]) and (not last or text[: len(last)] <= last)


def name_matches(pattern: str, name: str) -> bool:
    """Whether each component group of a pattern matches any of a name, case and width aside."""
    wanted, groups = (
        [group.rstrip("^ ").strip() for group in unicodedata.normalize("NFKC", text).casefold().split("=")]
        for text in (pattern, name)
    )
    return all(
        not one.strip("*") or any(text_matches(form, group) for form in {one, open_end(one)} for group in groups)
        for one in wanted
    )


def open_end(group: str) -> str:
    """Return what a component group with wildcards matches, too: "Doe" of "Doe^*", which asks for no given name."""
    bare = group.rstrip("*")
    return bare.rstrip("^ ") if bare != group and bare.endswith("^") else group


def range_of(value: str, vr: str) -> tuple[str, str] | None:
    """Return both ends of a date (DA) or time (TM), empty where open; None if it is none.

    Colons and full stops of older versions of the standard are taken (PS3.5 6.2).
    """
    value = value.replace(":", "").replace(" ", "")
    if vr == "DA":
        value = value.replace(".", "")
    found = (DATE if vr == "DA" else TIME).fullmatch(value)
    if found is None or value in ("", "-") or (found[1] and found[3] and not found[2]):
        return None
    return (found[1] or "", found[3] or "") if found[2] else (found[1], found[1])
