"""What the tests of the HTJ2K codec share: frames, and two decoders of others that say what a stream means."""

import io
from typing import Any

import imagecodecs
import numpy as np
import openjpeg
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from radmesh_native import _htj2k_decoder, htj2k

Frame = np.ndarray[Any, Any]

# Those that decoders have; the processor may have less, and takes the best below.
PATHS = ("portable", "sse41", "avx2")


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """The least and the greatest sample."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def dtype_of(bits: int, signed: bool) -> np.dtype[Any]:
    return np.dtype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def made(shape: tuple[int, ...], bits: int, signed: bool, kind: str, seed: int) -> Frame:
    """A frame of a kind of content: constant, noise, extremes, smooth, sparse or checked."""
    low, high = limits(bits, signed)
    random = np.random.default_rng(seed)
    if kind == "constant":
        frame = np.full(shape, random.integers(low, high, endpoint=True))
    elif kind == "noise":
        frame = random.integers(low, high, shape, endpoint=True)
    elif kind == "extremes":
        frame = random.choice(np.array([low, high]), shape)
    elif kind == "smooth":
        steps = random.integers(-2, 3, shape).cumsum(0).cumsum(1)
        frame = np.clip(steps + (low + high) // 2, low, high)
    elif kind == "sparse":
        frame = np.where(random.random(shape) < 0.02, random.integers(low, high, shape, endpoint=True), low)
    else:
        frame = np.where(np.indices(shape).sum(0) % 2, low, high)
    return frame.astype(dtype_of(bits, signed))


KINDS = ("constant", "noise", "extremes", "smooth", "sparse", "checked")


@st.composite
def frames(draw: st.DrawFn, largest: int = 150) -> tuple[Frame, int]:
    """A frame, and its bits stored."""
    bits = draw(st.integers(1, 16))
    signed = draw(st.booleans())
    side = st.one_of(st.integers(1, 9), st.integers(1, largest))
    shape: tuple[int, ...] = (draw(side), draw(side), *draw(st.sampled_from([(), (3,)])))
    if draw(st.integers(0, 9)) == 0:
        low, high = limits(bits, signed)
        small = (min(shape[0], 12), min(shape[1], 12), *shape[2:])
        return draw(hnp.arrays(dtype_of(bits, signed), small, elements=st.integers(low, high))), bits
    return made(shape, bits, signed, draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**32 - 1))), bits


def decoded(codestream: bytes, reduce: int = 0) -> Frame:
    """Decoded by ours, on every path: they agree."""
    frames = []
    try:
        for path in PATHS:
            _htj2k_decoder.use_path(path)
            frames.append(htj2k.decode(codestream, reduce=reduce))
    finally:
        _htj2k_decoder.use_path("avx512")
    for frame in frames[1:]:
        assert frame.dtype == frames[0].dtype
        assert np.array_equal(frame, frames[0])
    return frames[0]


def openjph(codestream: bytes, reduce: int = 0) -> Frame:
    """Decoded by OpenJPH."""
    return np.asarray(imagecodecs.htj2k_decode(codestream, skipres=reduce, resilient=bool(reduce)))


def openjpeg_(codestream: bytes) -> Frame:
    """Decoded by OpenJPEG."""
    return np.asarray(openjpeg.decode(io.BytesIO(codestream), j2k_format=0))


def assert_same(ours: Frame, theirs: Frame, within: tuple[int, int] | None = None) -> None:
    """Compare shapes and samples.

    `within`: OpenJPH lets the samples of a lower resolution wrap where they leave the range, and ours are clipped: only
    those inside of it are compared.
    """
    theirs = theirs.reshape(ours.shape)
    if within is None:
        assert np.array_equal(ours, theirs)
    else:
        inside = (ours > within[0]) & (ours < within[1])
        assert np.array_equal(ours[inside], theirs[inside])
