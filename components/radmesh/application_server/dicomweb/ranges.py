"""Parts of an answer, and answers that the client has already (RFC 9110 13 and 14)."""

import re
from typing import Final

from radmesh.runtime.errors import RadmeshError

_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.ASCII)
_TAG: Final = re.compile(r'\s*(W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Return (first byte, byte behind the last) of a Range header for an answer of `size` bytes.

    None: all of it; also for several ranges, other units and what cannot be read, which may be passed over (14.2).

    Raises:
        RadmeshError: RANGE_INVALID: no byte of the answer lies within.
    """
    asked = _RANGE.fullmatch(header.strip()) if header else None
    if asked is None:
        return None
    first, last = asked.groups()
    if not first and not last:
        return None
    if first and last and int(last) < int(first):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise RadmeshError("RANGE_INVALID", f"the answer has {size} bytes", metadata={"size": str(size)})
    return start, end


def has(if_none_match: str, tag: str) -> bool:
    """Whether an If-None-Match header names the entity tag (with its quotes); weak tags count as strong ones."""
    if if_none_match.strip() == "*":
        return True
    position = 0
    while (found := _TAG.match(if_none_match, position)) is not None:
        if found.group(2) == tag.removeprefix("W/"):
            return True
        position = found.end()
    return False


def range_holds(if_range: str, tag: str) -> bool:
    """Whether a Range is to be answered: no If-Range, or one that names exactly this strong tag (13.1.5)."""
    return not if_range or if_range.strip() == tag
