"""Samples from words, and frames from fragments: made ones, odd ones, and any."""

import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
from curator_support import encode, unreadable
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pixels_support import decoded, make
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended

from radmesh.curator.worker.samples import settle
from radmesh.curator.worker.table import Image

EXPLICIT = "1.2.840.10008.1.2.1"
JPEG, J2K, J2K_LOSSY, JPEG_LS, RLE = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.5",
)
DEFLATED = "1.2.840.10008.1.2.8.1"
VIDEO = "1.2.840.10008.1.2.4.102"
CODED, PASSED, ORIGINAL, NONE = 1, 2, 3, 4


def image(pixels: bytes, *, compressed: bool = False, **changes: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "2.25.1"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 16, 20, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.PixelData = pixels
    ds["PixelData"].VR = "OB" if compressed else "OW"
    ds["PixelData"].is_undefined_length = compressed
    return ds


def made(ds: Dataset, syntax: str = EXPLICIT) -> Any:
    return make(encode(ds, syntax), syntax)


def noise(bits: int, *shape: int, dtype: str = "<u2", seed: int = 1) -> Any:
    return np.random.default_rng(seed).integers(0, 1 << bits, shape or (16, 20)).astype(dtype)


# -- words -------------------------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=examples(200))
def test_samples_of_any_width_sign_and_place(data: st.DataObject) -> None:
    allocated = data.draw(st.sampled_from((8, 16, 32)))
    stored = data.draw(st.integers(1, min(16, allocated)))
    high_bit = data.draw(st.integers(stored - 1, allocated - 1))
    signed = data.draw(st.booleans())
    low, high = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    values = np.array(data.draw(st.lists(st.integers(low, high), min_size=6, max_size=6)), "i8").reshape(2, 3)
    extended = data.draw(st.booleans())
    shift = high_bit + 1 - stored
    room = allocated - shift
    words = (values & ((1 << (room if extended else stored)) - 1)) << shift
    about = Image(2, 3, 1, allocated, stored, high_bit, signed, 0, 1, "MONOCHROME2", overlays=False)
    found, depth = settle(words.astype(f"u{allocated // 8}"), about)
    assert np.array_equal(found.astype("i8"), values)
    assert depth == stored


def test_a_sample_outside_of_bits_stored_makes_it_as_deep_as_bits_allocated() -> None:
    pixels = noise(12)
    pixels[3, 4] = 0x8123
    found = made(image(pixels.tobytes()))
    assert found.facts["state"] == CODED
    assert np.array_equal(decoded(found.frames[0]), pixels)
    assert b'"00280101":{"vr":"US","Value":[16]}' in found.metadata


def test_all_frames_are_as_deep_as_the_deepest() -> None:
    pixels = noise(8, 3, 16, 20)
    pixels[2, 0, 0] = 300
    found = made(image(pixels.tobytes(), NumberOfFrames=3, BitsStored=8, HighBit=7))
    assert [wish.bits for wish in found.wishes] == [16]
    frames = [decoded(frame) for frame in found.frames]
    assert [frame.dtype for frame in frames] == [np.dtype("u2")] * 3
    assert np.array_equal(np.stack(frames), pixels)


def test_signed_words_that_mean_what_they_say() -> None:
    """Bits above the sample are neither its sign nor nothing."""
    pixels = np.array([[-30000, 5, 2000, -1]], "<i2").repeat(80, 1).reshape(16, 20)
    found = made(image(pixels.tobytes(), PixelRepresentation=1))
    assert np.array_equal(decoded(found.frames[0]), pixels)
    assert b'"00280101":{"vr":"US","Value":[16]}' in found.metadata


def test_overlay_planes_in_unused_bits_are_left_out() -> None:
    pixels = noise(12)
    ds = image((pixels | 0x8000).tobytes())
    ds.add_new(0x60000010, "US", 16)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    found = made(ds)
    assert np.array_equal(decoded(found.frames[0]), pixels)
    assert b'"00280101":{"vr":"US","Value":[12]}' in found.metadata


def test_more_than_16_bits_in_a_word_of_32() -> None:
    pixels = noise(16, dtype="<u4")
    fits = made(image(pixels.tobytes(), BitsAllocated=32, BitsStored=16, HighBit=15))
    assert np.array_equal(decoded(fits.frames[0]), pixels)
    pixels[0, 0] = 1 << 20
    found = made(image(pixels.tobytes(), BitsAllocated=32, BitsStored=16, HighBit=15))
    assert (found.facts["state"], found.facts["reason"], found.facts["frame"]) == (ORIGINAL, "PIXELS_OVER_16_BITS", 1)
    assert found.frames == [pixels.tobytes()]


def test_a_palette_of_16_bits() -> None:
    indices = noise(8, dtype="<u1")
    tables = [noise(16, 256, seed=seed) for seed in (1, 2, 3)]
    ds = image(indices.tobytes(), BitsAllocated=8, BitsStored=8, HighBit=7, PhotometricInterpretation="PALETTE COLOR")
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", table.tobytes())
    found = made(ds)
    assert found.facts["derived"]
    assert np.array_equal(decoded(found.frames[0]), np.stack([table[indices] for table in tables], 2))
    del ds.GreenPaletteColorLookupTableData
    broken = made(ds)
    assert (broken.facts["state"], broken.facts["reason"]) == (ORIGINAL, "PALETTE_UNUSABLE")
    assert broken.frames == [indices.tobytes()]


@pytest.mark.parametrize(("photometric", "samples"), [("CMYK", 4), ("YBR_PARTIAL_420", 3), ("RGB", 1), ("HSV", 3)])
def test_colours_that_nobody_codes_are_original(photometric: str, samples: int) -> None:
    pixels = noise(8, 16, 20, samples, dtype="u1")
    ds = image(pixels.tobytes(), SamplesPerPixel=samples, PhotometricInterpretation=photometric, PlanarConfiguration=0)
    ds.BitsAllocated = ds.BitsStored = 8
    found = made(ds)
    assert (found.facts["state"], found.facts["reason"]) == (ORIGINAL, "PIXELS_UNUSUAL")
    assert found.frames == [pixels.tobytes()]


# -- native frames -----------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), frames=st.integers(1, 5), gaps=st.booleans())
@settings(max_examples=examples(60))
def test_frames_of_single_bits(rows: int, columns: int, frames: int, gaps: bool) -> None:
    bits = np.random.default_rng(rows * 100 + columns).integers(0, 2, (frames, rows * columns)).astype("u1")
    packed = [np.packbits(frame, bitorder="little").tobytes() for frame in bits]
    gaps = gaps and rows * columns % 8 != 0 and frames > 1
    data = b"".join(packed) if gaps else np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    ambiguous = not gaps and len(data) in (len(packed[0]) * frames, len(packed[0]) * frames - len(data) % 2)
    data += bytes(len(data) % 2)
    ds = image(data, Rows=rows, Columns=columns, NumberOfFrames=frames, BitsAllocated=1, BitsStored=1, HighBit=0)
    found = made(ds)
    assert (found.facts["state"], found.facts["reason"]) == (ORIGINAL, "PIXELS_ONE_BIT")
    if not ambiguous:
        assert found.frames == packed


def test_pixels_that_are_missing_at_the_end() -> None:
    pixels = noise(12, 3, 16, 20)
    ds = image(pixels.tobytes()[:-2], NumberOfFrames=3)
    found = made(ds)
    assert (found.facts["state"], found.facts["reason"], found.facts["frame"]) == (NONE, "PIXEL_DATA_SHORT", 3)
    # The file ends where its length says it goes on.
    found = make(encode(image(pixels.tobytes(), NumberOfFrames=3))[:-100], EXPLICIT)
    assert (found.facts["state"], found.facts["reason"], found.facts["frame"]) == (NONE, "PIXEL_DATA_SHORT", 3)
    assert b"00080018" in found.metadata


# -- encapsulated frames -----------------------------------------------------------------------------------------------


def streams(count: int = 3) -> tuple[Any, list[bytes]]:
    pixels = noise(12, count, 16, 20)
    return pixels, [imagecodecs.jpegls_encode(frame) for frame in pixels]


@pytest.mark.parametrize("table", ["basic", "extended", "none", "wrong"])
@pytest.mark.parametrize("fragments", [1, 3])
def test_frames_of_several_fragments(table: str, fragments: int) -> None:
    pixels, frames = streams()
    extended = None
    if table == "extended":
        data, *extended = encapsulate_extended(frames)
    else:
        data = encapsulate(frames, fragments_per_frame=fragments, has_bot=table != "none")
    if table == "wrong":
        data = bytearray(data)
        data[4:8] = (4).to_bytes(4, "little")
        del data[12:20]
        data = bytes(data)
    ds = image(data, compressed=True, NumberOfFrames=3)
    if extended:
        ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = extended
    found = made(ds, JPEG_LS)
    assert found.facts["state"] == CODED
    assert np.array_equal(np.stack([decoded(frame) for frame in found.frames]), pixels)


def test_fewer_frames_than_announced() -> None:
    _, frames = streams()
    found = made(image(encapsulate(frames), compressed=True, NumberOfFrames=4), JPEG_LS)
    assert (found.facts["state"], found.facts["reason"], found.facts["frame"]) == (NONE, "FRAGMENTS_BROKEN", 4)
    data = encode(image(encapsulate(frames), compressed=True, NumberOfFrames=3), JPEG_LS)
    found = make(data[:-200], JPEG_LS)
    assert (found.facts["state"], found.facts["reason"], found.facts["frame"]) == (NONE, "FRAGMENTS_BROKEN", 3)


def test_a_frame_that_cannot_be_decoded_makes_all_original() -> None:
    _, frames = streams()
    frames[1] = frames[1][:40] + b"\xff" * 40 + frames[1][80:120]
    found = made(image(encapsulate(frames), compressed=True, NumberOfFrames=3), JPEG_LS)
    assert (found.facts["state"], found.facts["reason"], found.facts["frame"]) == (ORIGINAL, "FRAME_UNDECODABLE", 2)
    assert [wish.reason for wish in found.wishes] == ["FRAME_UNDECODABLE"]
    assert [frame[:120].rstrip(b"\0") for frame in found.frames] == [frame[:120].rstrip(b"\0") for frame in frames]
    assert found.facts["transfer_syntax_uid"] == JPEG_LS


def test_what_loses_something_is_passed_through() -> None:
    pixels = noise(8, dtype="u1")
    about = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    lossy = imagecodecs.jpeg2k_encode(pixels, level=40, codecformat="j2k", reversible=False)
    exact = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True)
    for stream, state in ((lossy, PASSED), (exact, CODED)):
        found = made(image(encapsulate([stream]), compressed=True, **about), J2K_LOSSY)
        assert found.facts["state"] == state
    # A later frame decides for all.
    found = made(image(encapsulate([exact, lossy]), compressed=True, NumberOfFrames=2, **about), J2K_LOSSY)
    assert found.facts["state"] == PASSED
    assert [frame.rstrip(b"\0") for frame in found.frames] == [exact.rstrip(b"\0"), lossy.rstrip(b"\0")]
    near = imagecodecs.jpegls_encode(pixels, level=2)
    found = made(image(encapsulate([near]), compressed=True, **about), JPEG_LS)
    assert (found.facts["state"], found.frames[0].rstrip(b"\0")) == (PASSED, near.rstrip(b"\0"))


def test_no_jpeg_under_the_name_of_one() -> None:
    found = made(image(encapsulate([b"no picture at all"]), compressed=True, BitsAllocated=8, BitsStored=8), JPEG)
    assert (found.facts["state"], found.facts["reason"], found.facts["frame"]) == (ORIGINAL, "FRAME_UNDECODABLE", 1)


def test_a_code_stream_of_another_size_is_not_put_into_other_rows() -> None:
    pixels = noise(8, 20, 16, dtype="u1")
    stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True)
    found = made(image(encapsulate([stream]), compressed=True, BitsAllocated=8, BitsStored=8, HighBit=7), J2K)
    assert (found.facts["state"], found.facts["reason"]) == (ORIGINAL, "FRAME_UNDECODABLE")
    deep = imagecodecs.jpeg2k_encode(noise(12), codecformat="j2k", reversible=True)
    found = made(image(encapsulate([deep]), compressed=True, BitsAllocated=8, BitsStored=8, HighBit=7), J2K)
    assert (found.facts["state"], found.facts["reason"]) == (ORIGINAL, "FRAME_UNDECODABLE")


def test_a_video_is_one_stream() -> None:
    parts = [bytes([n]) * 3000 for n in range(1, 5)]
    ds = image(encapsulate(parts, has_bot=False), compressed=True, NumberOfFrames=250, BitsAllocated=8, BitsStored=8)
    found = made(ds, VIDEO)
    assert (found.facts["state"], found.facts["number_of_frames"]) == (PASSED, 1)
    assert found.frames == [b"".join(parts)]


def test_frames_that_are_deflated() -> None:
    pixels = noise(8, 2, 16, 20, dtype="u1")

    def deflated(frame: Any) -> bytes:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(frame.tobytes()) + packer.flush()

    ds = image(encapsulate([deflated(frame) for frame in pixels]), compressed=True, NumberOfFrames=2)
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    found = made(ds, DEFLATED)
    assert np.array_equal(np.stack([decoded(frame) for frame in found.frames]), pixels)


def test_pixels_under_the_other_form() -> None:
    """Native pixel data in a transfer syntax of fragments, and the reverse."""
    for data, compressed, syntax in ((noise(12).tobytes(), False, RLE), (encapsulate([b"1234"]), True, EXPLICIT)):
        found = made(image(data, compressed=compressed), syntax)
        assert (found.facts["state"], found.facts["reason"]) == (NONE, "FRAGMENTS_BROKEN")


def test_a_data_set_that_cannot_be_taken_apart() -> None:
    data = encode(image(noise(12).tobytes(), PatientName="Doe^John"))
    assert make(data, EXPLICIT).facts["state"] == CODED
    found = make(unreadable(data), EXPLICIT)
    assert (found.facts["state"], found.facts["reason"]) == (NONE, "DATA_SET_UNREADABLE")
    assert b'"00080018":{"vr":"UI","Value":["2.25.1"]}' in found.metadata


def test_a_file_format_around_a_code_stream_is_left_away() -> None:
    """One with a box of no length keeps some readers busy for ever."""
    pixels = noise(8, dtype="u1")
    stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True)
    box = bytes.fromhex("0000000c6a5020200d0a870a") + bytes(8)
    found = made(image(encapsulate([box + stream]), compressed=True, BitsAllocated=8, BitsStored=8, HighBit=7), J2K)
    assert np.array_equal(decoded(found.frames[0]), pixels)


# -- anything ----------------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(("native", "fragments", "rle")),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=12),
    end=st.integers(0, 1 << 20),
)
@settings(max_examples=examples(150))
def test_bytes_that_were_changed_anywhere_make_something(kind: str, flips: list[tuple[int, int]], end: int) -> None:
    if kind == "native":
        data, syntax = encode(image(noise(12, 2, 16, 20).tobytes(), NumberOfFrames=2)), EXPLICIT
    else:
        _, frames = streams(2)
        ds = image(encapsulate(frames), compressed=True, NumberOfFrames=2)
        syntax = JPEG_LS if kind == "fragments" else RLE
        data = encode(ds, syntax)
    changed = bytearray(data)
    for at, value in flips:
        changed[at % len(changed)] = value
    found = make(bytes(changed[: max(1, len(changed) - end % len(changed))] if end % 3 == 0 else changed), syntax)
    assert found.facts["state"] in (CODED, PASSED, ORIGINAL, NONE)
    if found.facts["state"] != NONE:
        assert len(found.frames) == found.facts["number_of_frames"] > 0
