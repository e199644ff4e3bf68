"""Looks whether an object's pixel data is what its data set says of it (PS3.3 C.7.6.3, PS3.5 8 and A.4).

The data set streams by: native pixel data is counted, encapsulated pixel data walked item by item; only the first
frame's fragments are kept, to be decoded. What cannot be decided is no defect.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from radmesh.dicom import uids
from radmesh.dicom.elements import (
    DOUBLE_PIXELS,
    EXTENDED_OFFSETS,
    FLOAT_PIXELS,
    ITEM,
    PIXELS,
    SEQUENCE_END,
    UNDEFINED,
    Elements,
    EndedError,
    Source,
    UndecidableError,
    inflate,
)
from radmesh.dicom.header import QueryableHeader, new_scanner

PIXEL_DATA_MISSING: Final = "PIXEL_DATA_MISSING"
PIXEL_DATA_SHORT: Final = "PIXEL_DATA_SHORT"
PIXEL_DATA_LONG: Final = "PIXEL_DATA_LONG"
FRAGMENTS_BROKEN: Final = "FRAGMENTS_BROKEN"
FRAME_UNDECODABLE: Final = "FRAME_UNDECODABLE"

# (frame, values) -> whether it can be decoded; None: there is no decoder for it.
Decode = Callable[[bytearray, Mapping[str, Any]], bool | None]

FRAME_MOST: Final = 64 << 20
# Samples of a frame that is decoded: decoders take four bytes for each, more than once.
SAMPLES_MOST: Final = 1 << 26
_TABLE_MOST: Final = 8 << 20
# Frames of the largest slides are a tenth of it; each takes time, however short it is.
_FRAGMENTS_MOST: Final = 1 << 22

PROVIDER_URL: Final = 0x00287FE0

# SOP classes that have no pixel data, whatever else was copied into them: documents, presentation states, plans.
NO_IMAGES: Final = (
    "1.2.840.10008.5.1.4.1.1.11.",
    "1.2.840.10008.5.1.4.1.1.88.",
    "1.2.840.10008.5.1.4.1.1.104.",
    *(f"1.2.840.10008.5.1.4.1.1.481.{n}" for n in (3, 4, 5, 6, 7, 8, 9)),
)
# Pixel Data Provider URL (0028,7FE0) says where the pixel data is (PS3.5 A.6).
JPIP: Final = (
    "1.2.840.10008.1.2.4.94",
    "1.2.840.10008.1.2.4.95",
    "1.2.840.10008.1.2.4.204",
    "1.2.840.10008.1.2.4.205",
)
VIDEO: Final = tuple(f"1.2.840.10008.1.2.4.{n}" for n in range(100, 110))
_RLE: Final = "1.2.840.10008.1.2.5"
# Decoders for these are on board. Others are not tried: retired processes, JPEG 2000 part 2, JPEG XL.
_DECODABLE: Final = frozenset(
    (_RLE, *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)))
)
_STARTS: Final = (b"\xff\xd8", b"\xff\x4f")
_SEQUENTIAL_JPEG: Final = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")


class _Broken(Exception):  # noqa: N818 - carries a finding, not an error of ours
    """What is found."""


@dataclass(frozen=True, slots=True)
class _Image:
    """What a data set says of its pixel data; `frames` 0: it cannot be understood."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: int
    planar: int
    frames: int
    photometric: str

    @classmethod
    def of(cls, header: QueryableHeader) -> "_Image":
        number = header.number
        photometric = header.text("PhotometricInterpretation")
        frames = number("NumberOfFrames") if header.text("NumberOfFrames") else 1
        allocated = number("BitsAllocated")
        return cls(
            rows=number("Rows"),
            columns=number("Columns"),
            samples=number("SamplesPerPixel") or (3 if photometric.startswith(("RGB", "YBR")) else 1),
            allocated=allocated,
            stored=number("BitsStored") or allocated,
            signed=number("PixelRepresentation"),
            planar=number("PlanarConfiguration"),
            frames=max(0, frames),
            photometric=photometric,
        )

    @property
    def described(self) -> bool:
        return bool(self.rows and self.columns and self.allocated)

    def lengths(self, allocated: int) -> set[int]:
        """Bytes that native pixel data may have, without padding."""
        pixels = self.rows * self.columns
        bits = pixels * self.samples * allocated
        lengths = {-(-bits * self.frames // 8)}
        if bits % 8:
            # Frames of single bits follow each other without a gap (PS3.5 8.1.1), which some writers leave.
            lengths.add(-(-bits // 8) * self.frames)
        if self.samples == 3 and self.photometric.endswith("_422"):
            # Two chrominance samples for two pixels; some write that and have all.
            lengths.add(-(-pixels * 2 * allocated * self.frames // 8))
        if self.samples == 3 and self.photometric.endswith("_420"):
            lengths.add(-(-pixels * 3 * allocated * self.frames // 16))
        return lengths


def check(chunks: Iterable[bytes], sop_class_uid: str, transfer_syntax_uid: str, decode: Decode) -> str:
    """Return what is wrong with an object's pixel data; empty: nothing, there is none, or it cannot be decided.

    Args:
        chunks: the data set, in order.
        sop_class_uid: of the object.
        transfer_syntax_uid: of the data set.
        decode: is asked about the first frame of what is compressed.

    Returns:
        PIXEL_DATA_MISSING, PIXEL_DATA_SHORT, PIXEL_DATA_LONG (by a frame or more),
        FRAGMENTS_BROKEN, FRAME_UNDECODABLE or "".

    Raises:
        Exception: what `chunks` and `decode` raise.
    """
    syntax = uids.transfer_syntax(transfer_syntax_uid)
    # What a transfer syntax of nobody's standard means for pixel data cannot be known.
    if not f"{syntax.uid}.".startswith(f"{uids.IMPLICIT_VR_LITTLE_ENDIAN}.") or syntax.uid in JPIP:
        return ""
    try:
        return _Check(inflate(chunks) if syntax.deflated else chunks, sop_class_uid, syntax, decode).run()
    except UndecidableError:
        return ""
    except _Broken as found:
        return str(found)


class _Check:
    def __init__(
        self, chunks: Iterable[bytes], sop_class_uid: str, syntax: uids.TransferSyntax, decode: Decode
    ) -> None:
        self._syntax = syntax
        self._decode = decode
        self._sop_class_uid = sop_class_uid
        iterator = iter(chunks)
        scanner = new_scanner(syntax, {PROVIDER_URL: b"UR"})
        held = []
        for chunk in iterator:
            held.append(chunk)
            if scanner.feed(bytes(chunk)):
                break
        scanner.finish()
        if scanner.error is not None:
            raise UndecidableError
        self._image = _Image.of(QueryableHeader.parse(scanner.header()))
        self._elsewhere = bool((scanner.value(PROVIDER_URL) or b"").strip(b"\0 "))
        other = "VR_DECLARED_OTHER" in scanner.remarks
        implicit = syntax.implicit != other

        def again() -> Iterator[bytes]:
            while held:
                yield held.pop(0)
            yield from iterator

        self._source = Source(again())
        self._source.skip(scanner.position)
        self._elements = Elements(self._source, syntax, implicit=implicit)

    def run(self) -> str:
        extended: array[int] | None = None
        try:
            while True:
                tag, vr, length = self._elements.next()
                if tag in (PIXELS, FLOAT_PIXELS, DOUBLE_PIXELS):
                    return self._check_pixels(tag, length, extended)
                if tag > PIXELS and tag >> 16 != 0xFFFE:
                    break
                if length == UNDEFINED:
                    self._elements.skip_sequence(implicit=self._elements.implicit or vr == b"UN")
                elif tag == EXTENDED_OFFSETS and length <= _TABLE_MOST and length % 8 == 0:
                    extended = self._table(length, "Q")
                else:
                    self._source.skip(length)
        except EndedError:
            pass
        if (
            self._elements.guessed
            or self._elsewhere
            or not self._image.described
            or self._sop_class_uid.startswith(NO_IMAGES)
        ):
            return ""
        return PIXEL_DATA_MISSING

    # Native pixel data

    def _check_pixels(self, tag: int, length: int, extended: "array[int] | None") -> str:
        if length == UNDEFINED:
            # Fragments in a transfer syntax that has none: nobody can tell what they are.
            return self._check_fragments(extended) if self._syntax.encapsulated else FRAGMENTS_BROKEN
        if self._syntax.encapsulated:
            return FRAGMENTS_BROKEN
        there = self._source.count(length)
        if there < length:
            return PIXEL_DATA_SHORT
        image = self._image
        allocated = {FLOAT_PIXELS: 32, DOUBLE_PIXELS: 64}.get(tag, image.allocated)
        if not (image.rows and image.columns and allocated and image.frames):
            return ""
        lengths = image.lengths(allocated)
        if there < max(lengths):
            return "" if there in lengths or there - 1 in lengths else PIXEL_DATA_SHORT
        # Some writers pad to a block; a frame more than announced is one that nobody would see.
        surplus = there - max(lengths) - max(lengths) % 2
        return PIXEL_DATA_LONG if surplus >= max(lengths) // image.frames else ""

    # Encapsulated pixel data

    def _table(self, length: int, code: str) -> "array[int]":
        table = array(code, self._source.read(length))
        if sys.byteorder == "big":
            table.byteswap()
        return table

    def _check_fragments(self, extended: "array[int] | None") -> str:
        try:
            frame = self._walk_fragments(extended)
        except EndedError:
            return FRAGMENTS_BROKEN
        if frame is None or self._decodes(frame):
            return ""
        return FRAME_UNDECODABLE

    def _next_fragment(self) -> int | None:
        """Read an item's head; return its length, None at the end of the items."""
        # The delimiter at the end is often left out.
        if self._source.ended:
            return None
        tag, _, length = self._elements.next(implicit=True)
        if tag == SEQUENCE_END:
            return None
        if tag != ITEM or length == UNDEFINED:
            raise _Broken(FRAGMENTS_BROKEN)
        return length

    def _walk_fragments(self, extended: "array[int] | None") -> bytearray | None:
        """Walk the items; return the first frame, None where it cannot be told from the next, or is too large.

        Raises:
            _Broken: FRAGMENTS_BROKEN.
            EndedError: the bytes end inside.
        """
        tag, _, length = self._elements.next(implicit=True)
        if tag != ITEM or length == UNDEFINED or length % 4:
            raise _Broken(FRAGMENTS_BROKEN)
        if length > _TABLE_MOST:
            self._source.skip(length)
            basic = None
        else:
            basic = self._table(length, "I")
        offsets = basic or extended or array("Q")
        begin = self._source.position
        due = 0
        frames = self._image.frames
        video = self._syntax.uid in VIDEO
        first: bytearray | None = bytearray()
        # Whether the first frame is complete; where its first fragment ends.
        done, first_end, fragments = False, 0, 0
        # Fragments that begin a JPEG, JPEG-LS or JPEG 2000 image.
        starts, told = 0, False
        while (size := self._next_fragment()) is not None:
            length = size
            at = self._source.position - begin - 8
            if due < len(offsets) and offsets[due] <= at:
                if offsets[due] != at:
                    raise _Broken(FRAGMENTS_BROKEN)
                due += 1
            fragments += 1
            if fragments > _FRAGMENTS_MOST:
                raise UndecidableError
            begins = self._source.read(min(2, length))
            starts += begins in _STARTS
            told = told or fragments == starts == 1
            if fragments > 1 and (due > 1 or self._syntax.uid == _RLE):
                done = True
            if done or first is None or video or len(first) + length > FRAME_MOST:
                first = first if done else None
                self._source.skip(length - len(begins))
            else:
                first += begins
                for piece in self._source.pieces(length - len(begins)):
                    first += piece
                if self._source.position - begin - at - 8 < length:
                    raise EndedError
                first_end = first_end or len(first)
                # The end of a JPEG or JPEG 2000 image, and a byte of padding.
                done = not offsets and frames > 1 and b"\xff\xd9" in first[-4:]
        frames_seen = starts if told and not offsets else fragments
        if due < len(offsets) or (
            frames and not video and (frames_seen < frames or self._miscounted(fragments, len(offsets)))
        ):
            raise _Broken(FRAGMENTS_BROKEN)
        if first and fragments == frames:
            del first[first_end:]
        return first or None

    def _miscounted(self, fragments: int, offsets: int) -> bool:
        """Whether frames, fragments and offsets do not go together (PS3.5 A.4, table A.4-1; RLE: A.4.2)."""
        frames = self._image.frames
        if fragments < frames or (offsets and offsets != frames):
            return True
        return self._syntax.uid == _RLE and fragments != frames

    def _decodes(self, frame: bytearray) -> bool:
        image = self._image
        if (
            self._syntax.uid not in _DECODABLE
            or not image.described
            or image.samples not in (1, 3)
            or image.allocated not in (8, 16, 32)
            or image.stored > image.allocated
            or image.rows * image.columns * image.samples > SAMPLES_MOST
        ):
            return True
        values = {
            "uid": self._syntax.uid,
            "rows": image.rows,
            "columns": image.columns,
            "samples_per_pixel": image.samples,
            "bits_allocated": image.allocated,
            "bits_stored": image.stored,
            "pixel_representation": image.signed & 1,
            # Colours do not matter here, but a name that is none would.
            "photometric_interpretation": "MONOCHROME2" if image.samples == 1 else "RGB",
            "planar_configuration": image.planar & 1,
        }
        if self._syntax.uid in _SEQUENTIAL_JPEG:
            _mend_scan(frame)
        return self._decode(frame, values) is not False


def _mend_scan(frame: bytearray) -> None:
    """Put right the spectral selection of a sequential scan, which can only be 0 to 63 (ISO 10918-1 B.2.3).

    Some encoders write another, which nearly all decoders leave unread, but not the one on board.
    """
    at, sequential = 2, False
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1):
            sequential = True
        if marker == 0xDA:
            if sequential and len(frame) >= at + 2 + length and length == 6 + 2 * frame[at + 4]:
                frame[at + length - 1 : at + length + 2] = b"\0\x3f\0"
            return
        at += 2 + length if marker != 0xFF else 1
