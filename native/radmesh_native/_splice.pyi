from collections.abc import Iterable

from typing_extensions import Buffer

FOUND: int
ENDED: int
CUT: int

def locate(
    data: Buffer, tags: Iterable[int], *, implicit: bool, big_endian: bool
) -> tuple[int, int, dict[int, tuple[int, int, int, bool]]]: ...
