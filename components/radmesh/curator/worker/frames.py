"""Tells frames apart while they stream by (PS3.5 8 and A.4). Each is an iterator of pieces, to be used in turn."""

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from radmesh.curator.worker.table import RLE, YBR, Image
from radmesh.dicom.elements import (
    DOUBLE_PIXELS,
    FLOAT_PIXELS,
    ITEM,
    SEQUENCE_END,
    UNDEFINED,
    Elements,
    EndedError,
    Source,
)
from radmesh.dicom.image_check import VIDEO

_TABLE_MOST: Final = 16 << 20
# What a JPEG, JPEG-LS or JPEG 2000 image begins with.
_STARTS: Final = (b"\xff\xd8", b"\xff\x4f")

Frames = Iterator[Iterator[bytes]]


class BrokenError(Exception):
    """The frames cannot be told apart: `reason`, and which frame is the first that is not there."""

    def __init__(self, reason: str, frame: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.frame = frame


def swapped(pieces: Iterable[bytes], width: int) -> Iterator[bytes]:
    """Yield the same bytes with the order within words of `width` bytes reversed; a last part of a word as it is."""
    held = b""
    for piece in pieces:
        data = held + piece
        whole = len(data) // width * width
        held = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], f"u{width}").byteswap().tobytes()
    if held:
        yield held


# -- native ------------------------------------------------------------------------------------------------------------


def native(source: Source, length: int, image: Image, tag: int, *, swap: int = 1) -> Frames:
    """Yield the frames of native pixel data.

    Args:
        source: its value is next.
        length: bytes of the value.
        image: what the data set says of it.
        tag: Pixel Data, Float Pixel Data or Double Float Pixel Data.
        swap: bytes of a word whose order is to be reversed.

    Raises:
        BrokenError: PIXEL_DATA_SHORT.
    """
    allocated = {FLOAT_PIXELS: 32, DOUBLE_PIXELS: 64}.get(tag, image.allocated)
    if swap > 1:
        source = Source(swapped(source.pieces(length), swap))
    if allocated % 8:
        yield from _packed(source, length, image.frame_samples * allocated, max(1, image.frames))
        return
    size = native_size(image, length, allocated)
    for frame in range(1, max(1, image.frames) + 1):
        yield _exactly(source, size, frame)


def native_size(image: Image, length: int, allocated: int) -> int:
    """Return the bytes of a native frame of whole bytes; those of YBR_FULL_422 may be two thirds (PS3.3 C.7.6.3.1.2).

    Raises:
        BrokenError: PIXEL_DATA_SHORT.
    """
    size = image.frame_samples * allocated // 8
    frames = max(1, image.frames)
    if image.photometric == YBR[1] and image.samples == 3 and length < size * frames:
        size = size // 3 * 2
    if length < size * frames:
        raise BrokenError("PIXEL_DATA_SHORT", length // size + 1)
    return size


def _exactly(source: Source, size: int, frame: int) -> Iterator[bytes]:
    for piece in source.pieces(size):
        size -= len(piece)
        yield piece
    if size:
        raise BrokenError("PIXEL_DATA_SHORT", frame)


def _packed(source: Source, length: int, bits: int, frames: int) -> Frames:
    """Frames that need not end with a byte follow each other without a gap (PS3.5 8.1.1); some leave one."""
    whole = -(-bits // 8)
    gaps = bits % 8 and frames > 1 and whole * frames <= length <= whole * frames + 1
    if length < -(-bits * frames // 8):
        raise BrokenError("PIXEL_DATA_SHORT", length * 8 // bits + 1)
    held, offset = b"", 0
    for frame in range(1, frames + 1):
        if gaps or not bits % 8:
            yield _exactly(source, whole, frame)
            continue
        needed = -(-(offset + bits) // 8) - len(held)
        data = held + b"".join(_exactly(source, needed, frame))
        row = np.unpackbits(np.frombuffer(data, "u1"), bitorder="little")[offset : offset + bits]
        offset = (offset + bits) % 8
        held = data[-1:] if offset else b""
        yield iter((np.packbits(row, bitorder="little").tobytes(),))


# -- encapsulated ------------------------------------------------------------------------------------------------------


class _Fragments:
    """The items behind the offset table.

    `length` and `begins` (its first two bytes, which were read) are of the next one, `at` is where its head was,
    counted from the first; `length` None: there is none.
    """

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._source = elements.source
        self._frame = 1
        size = self._head()
        if size is None or size % 4:
            raise BrokenError("FRAGMENTS_BROKEN", 1)
        self.offsets: array[int] = array("I")
        if size <= _TABLE_MOST:
            self.offsets = _table(self._source.read(size), "I", elements.order)
        else:
            self._source.skip(size)
        self._begin = self._source.position
        self.at = 0
        self.length: int | None = None
        self.begins = b""
        self.go_on()

    def _head(self) -> int | None:
        if self._source.ended:
            return None  # the delimiter at the end is often left out
        tag, _, length = self._elements.next(implicit=True)
        if tag == SEQUENCE_END:
            return None
        if tag != ITEM or length == UNDEFINED:
            raise BrokenError("FRAGMENTS_BROKEN", self._frame)
        return length

    def go_on(self) -> None:
        self.at = self._source.position - self._begin
        self.length = self._head()
        self.begins = self._source.read(min(2, self.length)) if self.length is not None else b""

    def pieces(self, frame: int) -> Iterator[bytes]:
        """The bytes of the next one; then what follows is the next."""
        assert self.length is not None
        self._frame = frame
        rest = self.length - len(self.begins)
        yield self.begins
        for piece in self._source.pieces(rest):
            rest -= len(piece)
            yield piece
        if rest:
            raise EndedError
        self.go_on()


def encapsulated(elements: Elements, image: Image, uid: str, extended: bytes = b"") -> Frames:
    """Yield the frames of encapsulated pixel data; of video there is one.

    Args:
        elements: the head of Pixel Data was read.
        image: what the data set says of it.
        uid: the transfer syntax.
        extended: value of Extended Offset Table (7FE0,0001).

    Raises:
        BrokenError: FRAGMENTS_BROKEN.
    """
    frame = 0
    try:
        fragments = _Fragments(elements)
        begins = _boundaries(fragments, image, uid, extended, elements.order)
        while fragments.length is not None and (frame < image.frames or not image.frames):
            frame += 1
            pieces = _joined(fragments, begins, frame)
            yield pieces
            for _ in pieces:
                pass  # who took a part of it
    except EndedError:
        raise BrokenError("FRAGMENTS_BROKEN", 1) from None  # within the table
    if frame < (1 if uid in VIDEO else max(1, image.frames)):
        raise BrokenError("FRAGMENTS_BROKEN", frame + 1)


def _joined(fragments: _Fragments, begins: Callable[[], bool], frame: int) -> Iterator[bytes]:
    try:
        yield from fragments.pieces(frame)
        while fragments.length is not None and not begins():
            yield from fragments.pieces(frame)
    except EndedError:
        raise BrokenError("FRAGMENTS_BROKEN", frame) from None


def _boundaries(fragments: _Fragments, image: Image, uid: str, extended: bytes, order: str) -> Callable[[], bool]:
    """Return what says whether the next fragment begins another frame."""
    if image.frames == 1 or uid in VIDEO:
        return lambda: False
    offsets = fragments.offsets or _table(extended[: len(extended) // 8 * 8], "Q", order)
    if len(offsets) == image.frames and uid != RLE:
        due = set(offsets)
        return lambda: fragments.at in due
    if uid != RLE and fragments.begins in _STARTS:
        return lambda: fragments.begins in _STARTS
    # Each has a fragment of its own: RLE must (PS3.5 A.4.2), of others nothing better is known.
    return lambda: True


def _table(data: bytes, code: str, order: str) -> "array[int]":
    table = array(code, data)
    if (order == ">") != (sys.byteorder == "big"):
        table.byteswap()
    return table


# -- code streams ------------------------------------------------------------------------------------------------------


def j2k_stream(frame: bytes) -> bytes:
    """Return the code stream of JPEG 2000 or HTJ2K without a file format around it, which has no place in DICOM.

    Raises:
        ValueError: there is none.
    """
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0:
        raise ValueError("no code stream")
    return frame[at:] if at else frame


def j2k_facts(frame: bytes) -> tuple[int, int, int, bool]:
    """Return (rows, columns, bits, irreversible) of a JPEG 2000 or HTJ2K code stream (ISO 15444-1 A.5, A.6).

    Raises:
        ValueError: it is none.
    """
    frame = j2k_stream(frame)
    at = 0
    rows = columns = bits = 0
    irreversible = False
    at += 2
    while at + 4 <= len(frame) and frame[at + 1] not in (0x90, 0x93):  # SOT, SOD
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker == 0xFF51 and at + 41 <= len(frame):
            right, bottom, left, top = struct.unpack_from(">4I", frame, at + 6)
            rows, columns, bits = bottom - top, right - left, (frame[at + 40] & 0x7F) + 1
        elif marker == 0xFF52 and at + 14 <= len(frame):
            irreversible |= frame[at + 13] == 0
        at += 2 + length
    return rows, columns, bits, irreversible


def jpeg_ls_is_lossy(frame: bytes) -> bool:
    """Return whether the first scan is near-lossless: NEAR is not 0 (ISO 14495-1 C.2.3)."""
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xDA:
            near = at + 5 + 2 * frame[at + 4] if at + 4 < len(frame) else len(frame)
            return near < len(frame) and frame[near] != 0
        at += 2 + length if marker != 0xFF else 1
    return False
