"""HTJ2K: frames to code streams, without loss, and back (Rec. ITU-T T.814 | ISO/IEC 15444-15, T.800).

    encoded = encode(frame, bits_stored=12)
    encoded.codestream                                  # 1.2.840.10008.1.2.4.202: HTJ2K Lossless RPCL (PS3.5 10.18)
    prefix = encoded.codestream[: encoded.resolution_offsets[0]]
    thumbnail = decode(prefix, reduce=len(encoded.resolution_offsets) - 1)

`encode` writes one tile, RPCL, one tile-part per resolution with TLM, code blocks of 64 by 64 with one cleanup pass,
and the RCT for colour. `decode` reads that, and other code streams of HT code blocks, reversible or not: any
progression and changes of it, layers, tiles, precincts, styles of single components and tiles, packed packet headers,
SigProp and MagRef passes.

Both release the GIL.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from radmesh_native import _htj2k_decoder, _htj2k_encoder
from radmesh_native._htj2k_decoder import CodestreamError, TruncatedError

MAX_BITS: Final = 16
MAX_LEVELS: Final = 32
MAX_SAMPLES: Final = 1 << 27
"""Samples of all components of a frame; each may take 8 bytes of memory while it is decoded, and 6 while encoded."""

_OUTSIDE: Final = "a sample is outside of {} bits: encode it with the bits allocated"
_THUMBNAIL: Final = 64
_T = TypeVar("_T")
_R = TypeVar("_R")
_USEFUL_LEVELS: Final = 6

__all__ = [
    "MAX_SAMPLES",
    "CodestreamError",
    "Encoded",
    "TruncatedError",
    "decode",
    "decode_frames",
    "default_levels",
    "encode",
    "encode_frames",
    "encode_into",
]


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
    minimum = ((max(rows, columns) - 1) // _THUMBNAIL).bit_length()
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
    encoded = _htj2k_encoder.encode(*_samples(frame, bits_stored, levels))
    if encoded is None:
        raise ValueError(_OUTSIDE.format(bits_stored))
    return Encoded(*encoded)


def encode_into(
    frame: npt.NDArray[np.generic], out: bytearray | memoryview, *, bits_stored: int, levels: int | None = None
) -> tuple[int, ...]:
    """Encode a frame into memory of the caller's.

    Args:
        frame: as for `encode`.
        bits_stored: as for `encode`.
        levels: as for `encode`.
        out: writable and contiguous; left as it is where it has no room. A code stream is seldom longer than its frame,
            but of a small frame or noise it may be.

    Returns:
        What Encoded.resolution_offsets says; the last is the length of the code stream.

    Raises:
        ValueError: as for `encode`, or `out` has no room: the text says how much it takes.
        MemoryError: there is not enough.
    """
    room = memoryview(out).cast("B")
    encoded = _htj2k_encoder.encode(*_samples(frame, bits_stored, levels), room)
    if encoded is None:
        raise ValueError(_OUTSIDE.format(bits_stored))
    if encoded[1][-1] > len(room):
        raise ValueError(f"the code stream takes {encoded[1][-1]} bytes, and there is room for {len(room)}")
    return encoded[1]


def encode_frames(
    frames: Iterable[npt.NDArray[np.generic]],
    *,
    bits_stored: int,
    levels: int | None = None,
    threads: int | None = None,
) -> list[Encoded]:
    """Encode frames, several at once; each thread keeps its work space.

    Args:
        frames: each as for `encode`; or an array of them, frames first.
        bits_stored: as for `encode`, of all of them.
        levels: as for `encode`, of all of them.
        threads: 1 at least; None: as many as there are processors. Never more than frames.

    Returns:
        In the order of the frames.

    Raises:
        ValueError: of the first frame that cannot be encoded, as for `encode`; or there are no threads.
        MemoryError: there is not enough.
    """
    wanted = list(frames)
    return _each(partial(encode, bits_stored=bits_stored, levels=levels), wanted, threads)


def _each(one: Callable[[_T], _R], items: Sequence[_T], threads: int | None) -> list[_R]:
    """Call `one` with each item, several at once: a thread takes the next as soon as it has done one."""
    if threads is None:
        threads = os.cpu_count() or 1
    if threads < 1:
        raise ValueError(f"threads are 1 or more, not {threads}")
    if min(threads, len(items)) < 2:
        return [one(item) for item in items]
    done: dict[int, _R] = {}
    failed: dict[int, BaseException] = {}
    # Shared by all; to take the next of a range is one step.
    indices = iter(range(len(items)))

    def work() -> None:
        # What was taken is done, so that the first failure of all is known.
        while not failed and (index := next(indices, -1)) >= 0:
            try:
                done[index] = one(items[index])
            except BaseException as error:  # noqa: BLE001 - raised below
                failed[index] = error

    with ThreadPoolExecutor(min(threads, len(items)) - 1, "htj2k") as pool:
        others = [pool.submit(work) for _ in range(min(threads, len(items)) - 1)]
        work()
        for other in others:
            other.result()
    if failed:
        raise failed[min(failed)]
    return [done[index] for index in range(len(items))]


def _samples(
    frame: npt.NDArray[np.generic], bits_stored: int, levels: int | None
) -> tuple[npt.NDArray[np.generic], int, int]:
    """The frame as (rows, columns, 1 or 3), its bits and its levels.

    What cannot be encoded raises ValueError.
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
    return samples, bits_stored, levels


def decode(
    codestream: bytes | bytearray | memoryview,
    *,
    reduce: int = 0,
    lower: bool = False,
    max_samples: int = MAX_SAMPLES,
    out: npt.NDArray[np.generic] | None = None,
) -> npt.NDArray[np.generic]:
    """Decode a code stream, or as much of it as the wanted resolution needs.

    Args:
        codestream: bytes, or any contiguous buffer, from SOC on; it may end once the wanted resolution is complete.
        reduce: levels of the wavelet that are left out: rows and columns are those of the frame / 2^reduce, rounded up.
        lower: where the code stream ends too early for that, take the best of the lower resolutions that is complete.
        max_samples: of the whole frame; more is refused before memory is taken for it.
        out: filled, and returned: of the shape and type of what is returned without it, writable, C-contiguous. Where
            CodestreamError is raised, what is in it means nothing.

    Returns:
        (rows, columns) or (rows, columns, 3) in the smallest of uint8, int8, uint16, int16 that has the code stream's
        depth and sign.

    Raises:
        TruncatedError: a CodestreamError: the code stream ends too early for the wanted resolution, or with `lower` for
            any.
        CodestreamError: a ValueError: the code stream is broken, or of a kind that is not read.
        ValueError: `out` is not what the code stream is decoded into.
        MemoryError: there is not enough.
    """
    if not 0 <= reduce <= MAX_LEVELS:
        raise ValueError(f"reduce is 0 to {MAX_LEVELS}, not {reduce}")
    if out is not None and not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("what is decoded into is C-contiguous and writable")
    try:
        frame = _htj2k_decoder.decode(codestream, reduce, min(max_samples, MAX_SAMPLES), out)
    except TruncatedError as error:
        if not lower:
            raise
        return _lower(codestream, reduce + 1, max_samples, out, error)
    return frame[:, :, 0] if frame.shape[2] == 1 else frame


def _lower(
    codestream: bytes | bytearray | memoryview,
    reduce: int,
    max_samples: int,
    out: npt.NDArray[np.generic] | None,
    error: TruncatedError,
) -> npt.NDArray[np.generic]:
    """The best resolution from `reduce` on; `error` where there is none."""
    for less in range(reduce, MAX_LEVELS + 1):
        try:
            return decode(codestream, reduce=less, max_samples=max_samples, out=out)
        except TruncatedError:
            continue
        except CodestreamError:
            break
    raise error


def decode_frames(
    codestreams: Iterable[bytes | bytearray | memoryview],
    *,
    reduce: int = 0,
    threads: int | None = None,
    max_samples: int = MAX_SAMPLES,
    out: npt.NDArray[np.generic] | None = None,
) -> npt.NDArray[np.generic]:
    """Decode the frames of a picture, all of one shape and type, several at once.

    Args:
        codestreams: one at least, each as for `decode`.
        reduce: as for `decode`, of all of them.
        threads: 1 at least; None: as many as there are processors. Never more than frames.
        max_samples: as for `decode`, of each.
        out: as for `decode`, frames first.

    Returns:
        (frames, rows, columns) or (frames, rows, columns, 3), as for `decode`.

    Raises:
        CodestreamError: of the first code stream that cannot be decoded, as for `decode`.
        ValueError: frames differ, or `out` is not what they are decoded into; or there are no threads or no frames.
        MemoryError: there is not enough.
    """
    wanted = list(codestreams)
    if threads is not None and threads < 1:
        raise ValueError(f"threads are 1 or more, not {threads}")
    if not wanted or (out is not None and len(out) != len(wanted)):
        raise ValueError(f"there are {len(wanted)} code streams, and one frame is wanted of each")
    if out is None:
        first = decode(wanted[0], reduce=reduce, max_samples=max_samples)
        out = np.empty((len(wanted), *first.shape), first.dtype)
        out[0] = first
        pairs = list(zip(wanted, out, strict=True))[1:]
    else:
        pairs = list(zip(wanted, out, strict=True))

    def one(pair: tuple[bytes | bytearray | memoryview, npt.NDArray[np.generic]]) -> None:
        decode(pair[0], reduce=reduce, max_samples=max_samples, out=pair[1])

    _each(one, pairs, threads)
    return out
