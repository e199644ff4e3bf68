"""HTJ2K, lossless: frames to code streams and back (Rec. ITU-T T.814 | ISO/IEC 15444-15, T.800).

    encoded = encode(frame, bits_stored=12)
    encoded.codestream                                  # 1.2.840.10008.1.2.4.202: HTJ2K Lossless RPCL (PS3.5 10.18)
    prefix = encoded.codestream[: encoded.resolution_offsets[0]]
    thumbnail = decode(prefix, reduce=len(encoded.resolution_offsets) - 1)

`encode` writes one tile, RPCL, one tile-part per resolution with TLM, code blocks of 64 by 64 with one cleanup pass,
and the RCT for colour. `decode` reads that, and other lossless code streams of HT code blocks with one layer: any
progression, tiles, precincts, SigProp and MagRef passes.

Both release the GIL.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from radmesh_native import _htj2k_decoder, _htj2k_encoder
from radmesh_native._htj2k_decoder import CodestreamError

MAX_BITS: Final = 16
MAX_LEVELS: Final = 32
MAX_SAMPLES: Final = 1 << 27
"""Samples of all components of a frame; each takes 8 bytes of memory while it is coded."""

_THUMBNAIL: Final = 64
_USEFUL_LEVELS: Final = 6

__all__ = ["MAX_SAMPLES", "CodestreamError", "Encoded", "decode", "default_levels", "encode"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A code stream, and how much of it each resolution needs.

    The first `resolution_offsets[n]` bytes are a code stream that `decode` with reduce = levels - n reads; lowest
    resolution first, levels + 1 of them, the last is the length of the whole.
    """

    codestream: bytes
    resolution_offsets: tuple[int, ...]


def default_levels(rows: int, columns: int) -> int:
    """Decomposition levels for a frame: two more than DICOM demands (PS3.5 10.18), for they cost less than they spare.

    DICOM wants a lowest resolution of 64 samples or less; it stays larger than that only where the frame's shorter side
    cannot be halved any more.
    """
    minimum = max(0, ((max(rows, columns) - 1) // _THUMBNAIL).bit_length())
    return min(max(minimum, min(minimum + 2, _USEFUL_LEVELS)), min(rows, columns).bit_length() - 1)


def encode(frame: npt.NDArray[np.generic], *, bits_stored: int, levels: int | None = None) -> Encoded:
    """Encode a frame without loss.

    Args:
        frame: (rows, columns) or, for RGB, (rows, columns, 3), of uint8, int8, uint16 or int16.
        bits_stored: 1 to 16; the depth that the code stream declares (SIZ).
        levels: of the wavelet, 0 to 32; None: default_levels().

    Raises:
        ValueError: the frame has another shape or type, more than MAX_SAMPLES samples, or a sample outside of
            `bits_stored` (bits allocated will do instead).
        MemoryError: there is not enough.
    """
    if frame.dtype.kind not in "iu" or frame.dtype.itemsize > MAX_BITS // 8:
        raise ValueError(f"frames are of uint8, int8, uint16 or int16, not of {frame.dtype}")
    shape = (*frame.shape, 1) if frame.ndim == 2 else frame.shape
    if len(shape) != 3 or shape[2] != (1 if frame.ndim == 2 else 3):
        raise ValueError(f"frames are (rows, columns) or (rows, columns, 3), not {frame.shape}")
    if frame.size == 0:
        raise ValueError("the frame is empty")
    if frame.size > MAX_SAMPLES:
        raise ValueError(f"the frame has more than {MAX_SAMPLES} samples")
    if not 1 <= bits_stored <= MAX_BITS:
        raise ValueError(f"bits stored are 1 to {MAX_BITS}, not {bits_stored}")
    if levels is None:
        levels = default_levels(shape[0], shape[1])
    if not 0 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels are 0 to {MAX_LEVELS}, not {levels}")
    samples = np.ascontiguousarray(frame, dtype=frame.dtype.newbyteorder("=")).reshape(shape)
    encoded = _htj2k_encoder.encode(samples, bits_stored, levels)
    if encoded is None:
        raise ValueError(f"a sample is outside of {bits_stored} bits: encode it with the bits allocated")
    return Encoded(*encoded)


def decode(
    codestream: bytes | bytearray | memoryview, *, reduce: int = 0, max_samples: int = MAX_SAMPLES
) -> npt.NDArray[np.generic]:
    """Decode a code stream, or as much of it as the wanted resolution needs.

    Args:
        codestream: bytes, or any contiguous buffer, from SOC on; it may end once the wanted resolution is complete.
        reduce: levels of the wavelet that are left out: rows and columns are those of the frame / 2^reduce, rounded up.
        max_samples: of the whole frame; more is refused before memory is taken for it.

    Returns:
        (rows, columns) or (rows, columns, 3) in the smallest of uint8, int8, uint16, int16 that has the code stream's
        depth and sign.

    Raises:
        CodestreamError: a ValueError: the code stream is broken, ends too early, or is of a kind that is not read.
        MemoryError: there is not enough.
    """
    if not 0 <= reduce <= MAX_LEVELS:
        raise ValueError(f"reduce is 0 to {MAX_LEVELS}, not {reduce}")
    frame = _htj2k_decoder.decode(codestream, reduce, min(max_samples, MAX_SAMPLES))
    return frame[:, :, 0] if frame.shape[2] == 1 else frame
