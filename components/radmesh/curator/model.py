"""What the web cache holds."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

# A record, and the data of a message: 256 whole LMDB pages less the 16 bytes of an overflow page's header.
CHUNK: Final = 1_048_560


@dataclass(frozen=True, slots=True)
class Content:
    """The identity of an instance's content (CORRECTNESS rule 13)."""

    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Rendition:
    """What there is of an instance; fields as database.v1.Rendition, `served_syntax` is its transfer_syntax_uid."""

    content: Content
    study_instance_uid: str
    series_instance_uid: str
    state: int
    reason: str = ""
    frame: int = 0
    number_of_frames: int = 0
    served_syntax: str = ""
    photometric_interpretation: str = ""
    derived: bool = False
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: its bytes, and the prefixes that are smaller pictures, lowest resolution first."""

    size: int
    offsets: tuple[int, ...] = ()
    checks: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class FrameRange:
    """A part of a frame that is wanted; `sha256` empty: of whatever content is here, `length` 0: to the end."""

    sop_instance_uid: str
    sha256: bytes
    frame: int
    offset: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of a range: `offset` in the frame; `frame` in the first piece of a range."""

    index: int
    offset: int
    data: bytes
    check: int
    last: bool
    frame: Frame | None = None
    served_syntax: str = ""


@dataclass(frozen=True, slots=True)
class CachedStudy:
    """A study that has a file."""

    study_instance_uid: str
    bytes: int
    read_time: datetime
