"""The HTJ2K codec: exact, for every depth, sign and shape, in our decoder, in OpenJPEG and in OpenJPH."""

import struct
import sys
import threading
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from depth import examples
from htj2k_support import KINDS, Frame, assert_same, decoded, dtype_of, frames, limits, made, openjpeg_, openjph
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from radmesh_native import htj2k


def check(frame: Frame, bits: int, levels: int | None = None) -> htj2k.Encoded:
    """Code a frame and compare: whole in three decoders, and every prefix at its resolution."""
    encoded = htj2k.encode(frame, bits_stored=bits, levels=levels)
    back = decoded(encoded.codestream)
    assert back.dtype == dtype_of(bits, frame.dtype.kind == "i")
    assert np.array_equal(back, frame)
    assert_same(frame, openjph(encoded.codestream))
    assert_same(frame, openjpeg_(encoded.codestream))
    top = len(encoded.resolution_offsets) - 1
    assert encoded.resolution_offsets[top] == len(encoded.codestream)
    for reduce in range(top + 1):
        prefix = encoded.codestream[: encoded.resolution_offsets[top - reduce]]
        lower = decoded(prefix, reduce)
        assert lower.shape[:2] == tuple(-(-side // (1 << reduce)) for side in frame.shape[:2])
        assert np.array_equal(lower, htj2k.decode(encoded.codestream, reduce=reduce))
        if reduce:
            assert_same(lower, openjph(prefix, reduce), limits(bits, frame.dtype.kind == "i"))
            with pytest.raises(htj2k.TruncatedError, match="ends too early"):
                htj2k.decode(prefix, reduce=reduce - 1)
            assert np.array_equal(htj2k.decode(prefix, lower=True), lower)
    return encoded


@settings(max_examples=examples(250))
@given(frames(), st.one_of(st.none(), st.integers(0, 8)))
def test_every_frame_is_exact_in_three_decoders(case: tuple[Frame, int], levels: int | None) -> None:
    check(*case, levels)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(1, 17))
def test_every_depth_and_kind_of_content(bits: int, signed: bool) -> None:
    for seed, kind in enumerate(KINDS):
        check(made((67, 131), bits, signed, kind, seed), bits)
        check(made((33, 70, 3), bits, signed, kind, seed), bits)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 3001), (3001, 1), (5, 2049), (1023, 769), (511, 513, 3)])
def test_shapes_of_all_sorts(shape: tuple[int, ...]) -> None:
    for levels in (None, 0, 5):
        check(made(shape, 12, False, "smooth", 1), 12, levels)


def test_more_levels_than_there_are_samples() -> None:
    frame = made((3, 5), 16, True, "noise", 1)
    encoded = htj2k.encode(frame, bits_stored=16, levels=32)
    assert np.array_equal(htj2k.decode(encoded.codestream), frame)
    assert htj2k.decode(encoded.codestream, reduce=32).shape == (1, 1)
    assert_same(frame, openjpeg_(encoded.codestream))


def test_a_side_longer_than_a_precinct() -> None:
    frame = made((2, 40000), 8, False, "smooth", 1)
    encoded = htj2k.encode(frame, bits_stored=8, levels=1)
    assert np.array_equal(htj2k.decode(encoded.codestream), frame)
    assert_same(frame, openjph(encoded.codestream))
    assert_same(frame, openjpeg_(encoded.codestream))
    lower = htj2k.decode(encoded.codestream[: encoded.resolution_offsets[0]], reduce=1)
    assert np.array_equal(lower, htj2k.decode(encoded.codestream, reduce=1))


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_bigendian.dcm",
        "693_J2KR.dcm",
        "emri_small.dcm",
        "examples_overlay.dcm",
        "examples_rgb_color.dcm",
        "SC_rgb.dcm",
        "SC_rgb_16bit.dcm",
    ],
)
def test_pictures_that_come_with_pydicom(name: str) -> None:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    rgb = dataset.SamplesPerPixel == 3
    for frame in pixels[:2] if pixels.ndim == (4 if rgb else 3) else [pixels]:
        check(frame, dataset.BitsStored)


def test_what_dicom_demands_of_the_code_stream() -> None:
    """PS3.5 10.18 for .202: RPCL, a lowest resolution of 64 or less, TLM whose break points are the resolutions."""
    for shape in ((512, 512), (640, 480, 3), (65, 64), (64, 64), (4200, 70)):
        encoded = htj2k.encode(made(shape, 8, False, "smooth", 3), bits_stored=8)
        stream = encoded.codestream
        assert stream[:4] == b"\xff\x4f\xff\x51"
        assert stream[-2:] == b"\xff\xd9"
        segments, at = {}, 2
        while (marker := stream[at : at + 2]) != b"\xff\x90":
            length = int.from_bytes(stream[at + 2 : at + 4])
            segments[marker[1]] = stream[at + 4 : at + 2 + length]
            at += 2 + length
        # Part 15 is needed, and what of it: HT blocks alone, reversible.
        assert struct.unpack(">H8I", segments[0x51][:34])[0] == 0x4000
        assert struct.unpack(">IH", segments[0x50])[0] == 0x00020000
        style, progression, layers, colour, levels, width, height, blocks, wavelet = struct.unpack(
            ">BBHBBBBBB", segments[0x52][:10]
        )
        assert (style, progression, layers, colour) == (1, 2, 1, len(shape) == 3)
        assert (width, height, blocks, wavelet) == (4, 4, 0x40, 1)
        assert levels == htj2k.default_levels(*shape[:2])
        assert -(-min(shape[:2]) // 2**levels) <= 64
        lengths = [length for _, length in struct.iter_unpack(">HI", segments[0x55][2:])]
        assert len(lengths) == levels + 1
        ends = [at + sum(lengths[: n + 1]) for n in range(levels + 1)]
        assert encoded.resolution_offsets == (*ends[:-1], ends[-1] + 2)
        for part, length in enumerate(lengths):
            assert struct.unpack(">HHHIBB", stream[at : at + 12]) == (0xFF90, 10, 0, length, part, levels + 1)
            at += length


@pytest.mark.parametrize(
    ("rows", "columns", "levels"),
    [
        (512, 512, 5),
        (64, 64, 2),
        (65, 65, 3),
        (128, 128, 3),
        (256, 256, 4),
        (3062, 2394, 6),
        (4096, 4096, 6),
        # Less than 7 would leave more than 64.
        (6000, 5000, 7),
        (1, 1, 0),
        (1, 5000, 0),
        (3, 3, 1),
        (16, 65535, 4),
    ],
)
def test_default_levels(rows: int, columns: int, levels: int) -> None:
    assert htj2k.default_levels(rows, columns) == levels


def test_a_sample_outside_of_its_bits_is_refused_wherever_it_is() -> None:
    for signed in (False, True):
        for bits in (1, 7, 12, 15):
            low, high = limits(bits, signed)
            for shape in ((9, 11), (9, 11, 3)):
                for at in (0, 50, -1):
                    frame = np.zeros(shape, np.int16 if signed else np.uint16)
                    for inside in (low, high):
                        frame.flat[at] = inside
                        assert np.array_equal(htj2k.decode(htj2k.encode(frame, bits_stored=bits).codestream), frame)
                    for outside in [high + 1, *([low - 1] if signed else [])]:
                        frame.flat[at] = outside
                        with pytest.raises(ValueError, match=f"outside of {bits} bits"):
                            htj2k.encode(frame, bits_stored=bits)


@pytest.mark.parametrize(
    ("frame", "arguments", "message"),
    [
        (np.zeros((4, 4), np.float32), {"bits_stored": 8}, "not of float32"),
        (np.zeros((4, 4), np.uint32), {"bits_stored": 16}, "not of uint32"),
        (np.zeros((4, 4), bool), {"bits_stored": 1}, "not of bool"),
        (np.zeros(4, np.uint8), {"bits_stored": 8}, "not \\(4,\\)"),
        (np.zeros((4, 4, 1), np.uint8), {"bits_stored": 8}, "not \\(4, 4, 1\\)"),
        (np.zeros((4, 4, 4), np.uint8), {"bits_stored": 8}, "not \\(4, 4, 4\\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"bits_stored": 8}, "not \\(2, 4, 4, 3\\)"),
        (np.zeros((0, 4), np.uint8), {"bits_stored": 8}, "empty"),
        (np.zeros((4, 4), np.uint8), {"bits_stored": 0}, "bits stored are 1 to 16"),
        (np.zeros((4, 4), np.uint16), {"bits_stored": 17}, "bits stored are 1 to 16"),
        (np.zeros((4, 4), np.uint8), {"bits_stored": 8, "levels": -1}, "levels are 0 to 32"),
        (np.zeros((4, 4), np.uint8), {"bits_stored": 8, "levels": 33}, "levels are 0 to 32"),
        # No memory is taken: all of it is one byte.
        (np.broadcast_to(np.uint8(0), (65535, 65535)), {"bits_stored": 8}, "more than 134217728 samples"),
    ],
)
def test_what_cannot_be_encoded_says_why(frame: Frame, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        htj2k.encode(frame, **arguments)


def test_any_layout_in_memory() -> None:
    frame = made((40, 50), 12, True, "noise", 1)
    whole = htj2k.encode(frame, bits_stored=12)
    assert htj2k.encode(np.asfortranarray(frame), bits_stored=12) == whole
    assert htj2k.encode(np.repeat(frame, 2, 1)[:, ::2], bits_stored=12) == whole
    assert htj2k.encode(frame.astype(">i2"), bits_stored=12) == whole
    frame.setflags(write=False)
    assert htj2k.encode(frame, bits_stored=12) == whole
    assert np.array_equal(htj2k.decode(memoryview(bytearray(whole.codestream))), frame)


def test_depth_may_be_other_than_that_of_the_type() -> None:
    frame = made((20, 30), 8, False, "noise", 1)
    assert htj2k.decode(htj2k.encode(frame, bits_stored=12).codestream).dtype == np.uint16
    wide = frame.astype(np.uint16)
    assert htj2k.decode(htj2k.encode(wide, bits_stored=8).codestream).dtype == np.uint8


def pass_through(gate: threading.Lock, passed: threading.Event) -> None:
    gate.acquire()
    passed.set()


def test_other_threads_run_meanwhile() -> None:
    frame = made((700, 700), 12, False, "noise", 1)
    codestream = htj2k.encode(frame, bits_stored=12).codestream
    calls: list[Callable[[], object]] = [
        lambda: htj2k.encode(frame, bits_stored=12),
        lambda: htj2k.decode(codestream),
    ]
    interval = sys.getswitchinterval()
    for call in calls:
        gate, passed = threading.Lock(), threading.Event()
        gate.acquire()
        thread = threading.Thread(target=pass_through, args=(gate, passed))
        thread.start()
        # The interpreter takes the GIL from nobody now: who has it must let it go, or the thread never passes.
        sys.setswitchinterval(1000)
        try:
            gate.release()
            for _ in range(200):
                call()
                if passed.is_set():
                    break
            assert passed.is_set()
        finally:
            sys.setswitchinterval(interval)
            thread.join()


@pytest.mark.parametrize("threads", [1, 2, None])
@pytest.mark.parametrize("shape", [(5, 40, 30), (3, 20, 33, 3)])
def test_frames_are_decoded_at_once(shape: tuple[int, ...], threads: int | None) -> None:
    frames = made(shape, 8, False, "smooth", 1)
    codestreams = [htj2k.encode(frame, bits_stored=8).codestream for frame in frames]
    assert np.array_equal(htj2k.decode_frames(codestreams, threads=threads), frames)
    half = htj2k.decode_frames(codestreams, threads=threads, reduce=1)
    assert np.array_equal(half, [htj2k.decode(codestream, reduce=1) for codestream in codestreams])
    mine = np.zeros((len(frames) + 1, *frames.shape[1:]), np.uint8)
    assert htj2k.decode_frames(iter(codestreams), threads=threads, out=mine[1:]) is not None
    assert np.array_equal(mine[1:], frames)
    assert not mine[0].any()
    one = np.empty(shape[1:], np.uint8)
    assert np.shares_memory(htj2k.decode(codestreams[0], out=one), one)
    assert np.array_equal(one, frames[0])


def test_less_than_the_lowest_resolution_is_none() -> None:
    encoded = htj2k.encode(made((90, 80), 12, False, "smooth", 1), bits_stored=12, levels=3)
    for length in (0, 60, encoded.resolution_offsets[0] - 1):
        with pytest.raises(htj2k.CodestreamError):
            htj2k.decode(encoded.codestream[:length], lower=True)
    with pytest.raises(htj2k.TruncatedError, match="ends too early"):
        htj2k.decode(encoded.codestream[: encoded.resolution_offsets[0] - 1], lower=True)
    # What is broken is not taken for short.
    broken = bytearray(encoded.codestream)
    broken[encoded.codestream.index(b"\xff\x5c") + 4] = 0x41
    with pytest.raises(htj2k.CodestreamError, match="QCD"):
        htj2k.decode(bytes(broken), lower=True)


def test_a_file_around_the_code_stream() -> None:
    """DICOM has code streams alone (PS3.5 A.4.4); some write the boxes of a file around them all the same."""
    frame = made((90, 80), 12, False, "smooth", 1)
    codestream = htj2k.encode(frame, bits_stored=12).codestream
    head = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjph \0\0\0\0jph "
    for box in (
        (8 + len(codestream)).to_bytes(4) + b"jp2c",
        bytes(4) + b"jp2c",
        b"\0\0\0\1jp2c" + (16 + len(codestream)).to_bytes(8),
    ):
        assert np.array_equal(htj2k.decode(head + box + codestream), frame)
    for broken in (head, head + b"\0\0\0\7jp2h", head + b"\0\0\0\1jp2h" + bytes(8), head + bytes(4) + b"jp2h"):
        with pytest.raises(htj2k.CodestreamError, match="not a JPEG 2000 code stream"):
            htj2k.decode(broken)


def test_what_frames_cannot_be_decoded_into() -> None:
    codestreams = [htj2k.encode(made((9, 8), 8, False, "noise", n), bits_stored=8).codestream for n in range(3)]
    other = htj2k.encode(made((9, 9), 8, False, "noise", 1), bits_stored=8).codestream
    for out in (np.empty((9, 9), np.uint8), np.empty((9, 8), np.int8), np.empty((9, 8), np.uint16)):
        with pytest.raises(ValueError, match="is not what they are to be decoded into"):
            htj2k.decode(codestreams[0], out=out)
    read_only = np.empty((9, 8), np.uint8)
    read_only.setflags(write=False)
    for out in (read_only, np.empty((9, 16), np.uint8)[:, ::2], np.empty((8, 9), np.uint8).T):
        with pytest.raises(ValueError, match="C-contiguous and writable"):
            htj2k.decode(codestreams[0], out=out)
    with pytest.raises(ValueError, match="is not what they are to be decoded into"):
        htj2k.decode_frames([*codestreams, other])
    with pytest.raises(ValueError, match="there are 3 code streams"):
        htj2k.decode_frames(codestreams, out=np.empty((2, 9, 8), np.uint8))
    with pytest.raises(ValueError, match="there are 0 code streams"):
        htj2k.decode_frames([])
    with pytest.raises(ValueError, match="threads are 1 or more"):
        htj2k.decode_frames(codestreams, threads=0)
    with pytest.raises(htj2k.CodestreamError, match="ends too early"):
        htj2k.decode_frames([*codestreams, codestreams[0][:-9]])
