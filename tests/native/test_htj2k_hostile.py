"""Code streams that are broken: a named error or a picture, never more, whatever the bytes are."""

import struct

import imagecodecs
import numpy as np
import pytest
from depth import examples
from htj2k_support import PATHS, made
from htj2k_writer import read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh_native import _htj2k_decoder, htj2k


def layered(**kind: object) -> bytes:
    """Three components of their own style, their blocks in three layers."""
    streams = [htj2k.encode(made((70, 90), 8, False, "smooth", n), bits_stored=8, levels=n + 1) for n in range(3)]
    components = [read(encoded.codestream) for encoded in streams]
    for component in components:
        for n, block in enumerate(component.blocks.values()):
            block.layers = [n % 3] * 3
    return write(components, layers=3, **kind)  # type: ignore[arg-type]


STREAMS = [
    htj2k.encode(made((40, 37), 12, False, "smooth", 1), bits_stored=12).codestream,
    htj2k.encode(made((70, 90, 3), 8, False, "noise", 2), bits_stored=8).codestream,
    htj2k.encode(made((9, 200), 16, True, "sparse", 3), bits_stored=16).codestream,
    htj2k.encode(made((1, 1), 1, False, "constant", 4), bits_stored=1).codestream,
    bytes(imagecodecs.htj2k_encode(made((90, 80), 8, False, "smooth", 5), reversible=True, tile=(40, 50), tilepart=3)),
    bytes(imagecodecs.htj2k_encode(made((60, 50, 3), 8, False, "smooth", 6), reversible=False, rgb=True)),
    layered(progression=4, packed="PPT", parts=2),
    layered(progression=0, packed="PPM", marked=True),
    layered(changes=[(0, 0, 2, 2, 3, 1), (0, 0, 3, 9, 3, 3)], styles_in_tile=True),
]
SIZ, CAP, COD, QCD, TLM, SOT = (b"\xff\x51", b"\xff\x50", b"\xff\x52", b"\xff\x5c", b"\xff\x55", b"\xff\x90")


def try_to_decode(codestream: bytes, reduce: int = 0) -> None:
    said = set()
    decoded = []
    for path in PATHS:
        _htj2k_decoder.use_path(path)
        try:
            frame = htj2k.decode(codestream, reduce=reduce, max_samples=1 << 20)
        except ValueError as error:
            assert str(error)
            said.add(str(error))
            continue
        said.add("")
        decoded.append(frame)
        assert frame.size <= 1 << 20
        assert frame.dtype in {np.dtype(name) for name in ("u1", "i1", "u2", "i2")}
    assert len(said) == 1
    assert all(np.array_equal(frame, decoded[0]) for frame in decoded)


edits = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.one_of(st.sampled_from([0, 0x7F, 0x8F, 0xFF]), st.integers(0, 255))),
    min_size=1,
    max_size=12,
)


@settings(max_examples=examples(800))
@given(st.sampled_from(STREAMS), edits, st.booleans(), st.sampled_from([0, 0, 1, 3]))
def test_changed_bytes(stream: bytes, changes: list[tuple[int, int]], in_header: bool, reduce: int) -> None:
    broken = bytearray(stream)
    for at, value in changes:
        broken[at % min(len(broken), 130 if in_header else 1 << 16)] = value
    try_to_decode(bytes(broken), reduce)


@settings(max_examples=examples(500))
@given(st.sampled_from(STREAMS), st.integers(0, 1 << 16), st.integers(0, 1 << 16), st.binary(max_size=20))
def test_bytes_lost_and_put_in(stream: bytes, start: int, stop: int, more: bytes) -> None:
    start, stop = sorted((start % len(stream), stop % len(stream)))
    try_to_decode(stream[:start] + more + stream[stop:])


@settings(max_examples=examples(500))
@given(st.sampled_from(STREAMS), st.binary(max_size=400))
def test_any_bytes_behind_a_good_header(stream: bytes, data: bytes) -> None:
    try_to_decode(data)
    try_to_decode(stream[: stream.index(SOT) + 14] + data)


@pytest.mark.parametrize("stream", STREAMS[:3])
def test_cut_anywhere(stream: bytes) -> None:
    whole = htj2k.decode(stream)
    # Every byte of the headers, then some.
    for length in [*range(300), *range(300, len(stream), 7), *range(len(stream) - 40, len(stream))]:
        try:
            assert np.array_equal(htj2k.decode(stream[:length]), whole)
            # Without EOC, and without empty packets behind the last that says anything, it is complete.
            assert length >= len(stream) - 2
        except htj2k.CodestreamError as error:
            assert length < len(stream) - 2
            assert "ends too early" in str(error) or "main header" in str(error)


def changed(stream: bytes, segment: bytes, at: int, value: bytes) -> bytes:
    """The stream with `value` at an offset behind the marker of a segment."""
    at += stream.index(segment) + 2
    return stream[:at] + value + stream[at + len(value) :]


def inserted(stream: bytes, before: bytes, marker: bytes) -> bytes:
    at = stream.index(before)
    return stream[:at] + marker + b"\0\6\0\0\0\0" + stream[at:]


def in_part(stream: bytes, marker: bytes) -> bytes:
    """A segment in the header of the first tile-part, which is as long as it says."""
    part = bytearray(inserted(stream, b"\xff\x93", marker))
    at = part.index(SOT) + 6
    part[at : at + 4] = (int.from_bytes(part[at : at + 4]) + 8).to_bytes(4)
    return bytes(part)


GREY, RGB = STREAMS[0], STREAMS[1]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "not a JPEG 2000 code stream"),
        (b"\xff\xd8\xff\xe0", "not a JPEG 2000 code stream"),
        (GREY[:2] + GREY[4:], "not a JPEG 2000 code stream"),
        (changed(GREY, SIZ, 4, struct.pack(">I", 0)), "SIZ is broken"),
        (changed(GREY, SIZ, 4, b"\xff\xff\xff\xff"), "SIZ is broken"),
        (changed(GREY, SIZ, 20, struct.pack(">I", 0)), "SIZ is broken"),
        (changed(GREY, SIZ, 28, struct.pack(">II", 1, 1)), "SIZ is broken"),
        # A tile for every sample of a frame of 65,535 by 65,535.
        (changed(GREY, SIZ, 4, struct.pack(">6I", 65535, 65535, 0, 0, 1, 1)), "SIZ is broken"),
        (changed(GREY, SIZ, 4, struct.pack(">II", 65535, 65535)), "SIZ is broken"),
        (changed(GREY, SIZ, 4, struct.pack(">6I", 65535, 65535, 0, 0, 65535, 65535)), "too many samples"),
        # Few enough, but each in a row of its own.
        (changed(GREY, SIZ, 4, struct.pack(">6I", 1, 1 << 27, 0, 0, 1, 1 << 27)), "too many samples"),
        (changed(GREY, SIZ, 36, b"\0\2"), "SIZ is broken"),
        (changed(GREY, SIZ, 38, b"\x10"), "more than 16 bits"),
        (changed(GREY, SIZ, 39, b"\2"), "differ in depth or sampling"),
        (changed(RGB, SIZ, 41, b"\x06"), "differ in depth or sampling"),
        (changed(GREY, COD, 2, b"\xff"), "COD or COC is broken"),
        (changed(GREY, COD, 3, b"\5"), "COD or COC is broken"),
        (changed(GREY, COD, 4, b"\0\0"), "COD or COC is broken"),
        (changed(GREY, COD, 6, b"\1"), "COD or COC is broken"),
        (changed(GREY, COD, 7, b"\x21"), "COD or COC is broken"),
        (changed(GREY, COD, 8, b"\x08\x08"), "COD or COC is broken"),
        (changed(GREY, COD, 10, b"\0"), "not HTJ2K"),
        (changed(GREY, COD, 11, b"\0"), "QCD or QCC is broken"),
        (changed(GREY, COD, 11, b"\2"), "COD or COC is broken"),
        (changed(GREY, COD, 13, b"\x0f"), "COD or COC is broken"),
        (changed(GREY, QCD, 2, b"\x42"), "QCD or QCC is broken"),
        (changed(GREY, QCD, 2, b"\xe0\xf8"), "QCD or QCC is broken"),
        (inserted(GREY, QCD, b"\xff\x5e"), "regions of interest"),
        (inserted(GREY, QCD, b"\xff\x5f"), "POC is broken"),
        (inserted(GREY, QCD, b"\xff\x53"), "COD or COC is broken"),
        (inserted(GREY, QCD, b"\xff\x5d"), "QCD or QCC is broken"),
        (inserted(GREY, QCD, b"\xff\x60"), "main header is broken"),
        (in_part(GREY, b"\xff\x52"), "COD or COC is broken"),
        (in_part(GREY, b"\xff\x5c"), "QCD or QCC is broken"),
        (in_part(GREY, b"\xff\x5f"), "POC is broken"),
        # DCO, MCT, NLT and ATK of T.801.
        *((inserted(GREY, QCD, bytes((0xFF, n))), "extensions of T.801") for n in (0x70, 0x74, 0x76, 0x79)),
        (in_part(GREY, b"\xff\x76"), "extensions of T.801"),
        (inserted(GREY, QCD, b"\xff\x93"), "main header is broken"),
        (changed(GREY, SOT, 2, b"\0\1"), "tile-parts are broken"),
        (changed(GREY, SOT, 4, b"\0\0\0\1"), "tile-parts are broken"),
        (GREY[: GREY.index(SOT)] + b"\xff\xd9", "ends too early"),
    ],
)
def test_each_fault_has_a_name(stream: bytes, message: str) -> None:
    with pytest.raises(htj2k.CodestreamError, match=message):
        htj2k.decode(stream)


def test_more_bits_than_samples_have() -> None:
    """Seven guard bits instead of two: coefficients of 12 bits are beyond the range of those of 16."""
    stream = htj2k.encode(made((40, 37), 12, False, "extremes", 7), bits_stored=12).codestream
    try_to_decode(changed(stream, QCD, 2, b"\xe0"))


def test_markers_that_say_nothing_are_passed_over() -> None:
    for marker in (b"\xff\x64", b"\xff\x63", b"\xff\x58", b"\xff\x57"):
        assert np.array_equal(htj2k.decode(inserted(GREY, QCD, marker)), htj2k.decode(GREY))
        assert np.array_equal(htj2k.decode(in_part(GREY, marker)), htj2k.decode(GREY))


def test_the_caller_says_how_much_is_too_much() -> None:
    assert htj2k.decode(RGB, max_samples=70 * 90 * 3).shape == (70, 90, 3)
    # A lower resolution is no way round it.
    for reduce in (0, 1):
        with pytest.raises(htj2k.CodestreamError, match="too many samples"):
            htj2k.decode(RGB, reduce=reduce, max_samples=70 * 90 * 3 - 1)


def test_reduce_has_its_limits() -> None:
    levels = htj2k.default_levels(40, 37)
    assert htj2k.decode(GREY, reduce=levels).shape == (10, 10)
    with pytest.raises(htj2k.CodestreamError, match="greater than the code stream's decomposition levels"):
        htj2k.decode(GREY, reduce=levels + 1)
    for reduce in (-1, 33):
        with pytest.raises(ValueError, match="reduce is 0 to 32"):
            htj2k.decode(GREY, reduce=reduce)
