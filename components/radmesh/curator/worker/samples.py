"""Samples of a frame as the codec takes them, whatever they were stored as."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from radmesh.curator.worker.frames import j2k_facts, j2k_stream, jpeg_ls_is_lossy
from radmesh.curator.worker.table import (
    DEFLATED_FRAMES,
    JPEG_2000,
    JPEG_LS,
    PALETTE,
    YBR,
    Image,
)

Array = npt.NDArray[Any]
_OPTIONS: Final = {"number_of_frames": 1, "pixel_keyword": "PixelData"}


class UnusableError(Exception):
    """A frame cannot be coded: `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Samples:
    """A frame to be coded: (rows, columns) or (rows, columns, 3), and the depth that all its samples have room in.

    `derived`: the samples are not those that were stored; a palette or a conversion to RGB was applied.
    """

    frame: Array
    bits: int
    derived: bool


def is_lossy(frame: bytes, uid: str) -> bool:
    """Return whether the coding of a frame loses something, so that it is passed through."""
    if uid in JPEG_LS:
        return jpeg_ls_is_lossy(frame)
    if uid in JPEG_2000:
        try:
            return j2k_facts(frame)[3]
        except ValueError:
            return False  # decoding says what is wrong with it
    return False


def of_native(data: bytes, image: Image, palette: Any = None, bits: int = 0) -> Samples:
    """Return the samples of a native frame, little-endian words.

    Args:
        data: rows * columns * samples words of BitsAllocated, or two thirds of them for YBR_FULL_422.
        image: what the data set says of it.
        palette: pydicom Dataset with the lookup tables of PALETTE COLOR.
        bits: depth, where the samples of another frame needed it; 0 = what they need.

    Raises:
        UnusableError: PALETTE_UNUSABLE, PIXELS_OVER_16_BITS.
    """
    words = np.frombuffer(data, f"<u{image.allocated // 8}")
    if image.samples == 1:
        return _grey(words.reshape(image.rows, image.columns), image, palette, bits)
    if image.photometric == YBR[1] and len(words) < image.frame_samples:
        frame = _doubled(words, image)
    elif image.planar:
        frame = words.reshape(3, image.rows, image.columns).transpose(1, 2, 0)
    else:
        frame = words.reshape(image.rows, image.columns, 3)
    return _colour(frame, image, image.photometric in YBR, bits)


def of_encoded(data: bytes, image: Image, uid: str, palette: Any = None, bits: int = 0) -> Samples:
    """Return the samples of a compressed frame.

    Raises:
        UnusableError: FRAME_UNDECODABLE, PALETTE_UNUSABLE, PIXELS_OVER_16_BITS, NO_DECODER.
        MemoryError: there is not enough.
    """
    if uid == DEFLATED_FRAMES:
        size = image.frame_samples * image.allocated // 8
        try:
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
        except zlib.error as error:
            raise UnusableError("FRAME_UNDECODABLE") from error
        if len(inflated) != size:
            raise UnusableError("FRAME_UNDECODABLE")
        return of_native(inflated, image, palette, bits)
    frame, properties = _decode(data, image, uid)
    if image.samples == 1:
        return _grey(frame, image, palette, bits)
    return _colour(frame, image, properties["photometric_interpretation"] in YBR, bits)


def _decode(data: bytes, image: Image, uid: str) -> tuple[Array, Mapping[str, Any]]:
    from pydicom.encaps import encapsulate  # noqa: PLC0415 - takes half a second, of a process that decodes
    from pydicom.pixels import get_decoder  # noqa: PLC0415

    if uid in JPEG_2000:
        try:
            data = j2k_stream(data)
            rows, columns, bits, _ = j2k_facts(data)
        except ValueError as error:
            raise UnusableError("FRAME_UNDECODABLE") from error
        # What is decoded would be cut, or put into rows of another length, without a word.
        if (rows, columns) != (image.rows, image.columns) or bits > image.allocated:
            raise UnusableError("FRAME_UNDECODABLE")
    decoder = get_decoder(uid)
    if not decoder.is_available:
        raise UnusableError("NO_DECODER")
    try:
        frame, properties = decoder.as_array(
            encapsulate([data], has_bot=False),
            index=0,
            raw=True,
            rows=image.rows,
            columns=image.columns,
            samples_per_pixel=image.samples,
            bits_allocated=image.allocated,
            bits_stored=image.stored,
            pixel_representation=int(image.signed),
            photometric_interpretation=image.photometric or "MONOCHROME2",
            planar_configuration=image.planar,
            # What lies outside of BitsStored is to be seen.
            correct_unused_bits=False,
            **_OPTIONS,
        )
    except MemoryError:
        raise
    except BaseException as error:
        raise UnusableError("FRAME_UNDECODABLE") from error
    return frame.view(f"u{frame.itemsize}"), properties


def _grey(words: Array, image: Image, palette: Any, bits: int) -> Samples:
    values, depth = settle(words, image)
    if image.photometric == PALETTE:
        return _painted(values, palette)
    depth = max(depth, bits)
    width = 1 if depth <= 8 else 2
    return Samples(values.astype(f"{values.dtype.kind}{width}", copy=False), depth, derived=False)


def settle(words: Array, image: Image) -> tuple[Array, int]:
    """Return samples from their words, shifted from HighBit and sign extended, and the depth that holds them all.

    That is BitsStored. Bits above it are the sign, nothing, or overlay planes that are left out; where they are
    anything else, the words mean what they say, and the depth is BitsAllocated.

    Raises:
        UnusableError: PIXELS_OVER_16_BITS.
    """
    shift = image.high_bit + 1 - image.stored
    width = image.allocated - shift
    values = words >> shift if shift else words
    if image.overlays and width > image.stored:
        values = values & values.dtype.type((1 << image.stored) - 1)
    if not image.signed:
        depth = image.stored if values.size == 0 or int(values.max()) >> image.stored == 0 else width
        return _at_most_16(values, depth)
    own = 1 << (image.stored - 1)
    if width == 8 * values.itemsize:
        signed = values.view(f"i{values.itemsize}")
        if -own <= int(signed.min()) and int(signed.max()) < own:
            return _at_most_16(signed, image.stored)
    wide = values.astype("i8")
    extended = _extended(wide & (2 * own - 1), image.stored)
    above = wide >> image.stored
    if not np.all((above == 0) | (above == ((1 << (width - image.stored)) - 1)) & (extended < 0)):
        return _at_most_16(_extended(wide, width), width)
    return _at_most_16(extended, image.stored)


def _extended(values: Array, bits: int) -> Array:
    sign = 1 << (bits - 1)
    extended: Array = (values ^ sign) - sign
    return extended


def _at_most_16(values: Array, depth: int) -> tuple[Array, int]:
    if depth > 16:
        low, high = int(values.min()), int(values.max())
        fits = low >= -0x8000 and high < 0x8000 if values.dtype.kind == "i" else high < 0x10000
        if not fits:
            raise UnusableError("PIXELS_OVER_16_BITS")
        depth = 16
    return values, depth


def _painted(values: Array, palette: Any) -> Samples:
    from pydicom.pixels import apply_color_lut  # noqa: PLC0415

    try:
        painted = apply_color_lut(values.astype("u2" if values.dtype.kind == "u" else "i2", copy=False), palette)
        frame = np.ascontiguousarray(painted[:, :, :3])
    except MemoryError:
        raise
    except Exception as error:
        raise UnusableError("PALETTE_UNUSABLE") from error
    if frame.dtype.kind != "u" or frame.dtype.itemsize > 2:
        raise UnusableError("PALETTE_UNUSABLE")
    return Samples(frame, 8 * frame.dtype.itemsize, derived=True)


def _doubled(words: Array, image: Image) -> Array:
    """Each pair of pixels has a chrominance of its own (PS3.3 C.7.6.3.1.2): Y Y CB CR."""
    pairs = words.reshape(-1, 4)
    frame = np.empty((len(pairs), 2, 3), words.dtype)
    frame[:, :, 0] = pairs[:, :2]
    frame[:, :, 1:] = pairs[:, None, 2:]
    return frame.reshape(image.rows, image.columns, 3)


def _colour(frame: Array, image: Image, ybr: bool, bits: int) -> Samples:  # noqa: FBT001
    if ybr:
        from pydicom.pixels import convert_color_space  # noqa: PLC0415

        return Samples(convert_color_space(np.ascontiguousarray(frame), "YBR_FULL", "RGB"), 8, derived=True)
    values, depth = settle(np.ascontiguousarray(frame), image)
    depth = max(depth, bits)
    return Samples(values.astype("u1" if depth <= 8 else "u2", copy=False), depth, derived=False)
