"""Pixel data against what the data set says of it: pydicom's samples, made ones, and bytes that were flipped."""

import os
import signal
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from radmesh.dicom import frame_decoder, image_check, part10
from radmesh.dicom.frame_decoder import DecoderUnavailableError, FrameDecoder
from radmesh.dicom.image_check import check
from radmesh.runtime.errors import RadmeshError

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG, J2K, RLE, JPEG_LS = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.80",
)
VIDEO = "1.2.840.10008.1.2.4.102"
CT = "1.2.840.10008.5.1.4.1.1.2"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


@pytest.fixture(scope="module")
def decoder() -> Iterator[FrameDecoder]:
    made = FrameDecoder()
    yield made
    made.close()


def fine(_frame: bytes | bytearray, _values: Mapping[str, Any]) -> bool:
    return True


def image(pixels: bytes | None, **changes: Any) -> Dataset:
    ds = Dataset()
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 8, 10, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    if pixels is not None:
        ds.add_new(0x7FE00010, "OW", pixels)
    return ds


def written(ds: Dataset, syntax: str = EXPLICIT, *, undefined: bool = False) -> bytes:
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = syntax == IMPLICIT, syntax != BIG
    if undefined:
        ds["PixelData"].is_undefined_length = True
        ds["PixelData"].VR = "OB"
    write_dataset(file, ds)
    return bytes(file.getvalue())


def result(data: bytes, syntax: str = EXPLICIT, decode: Any = fine, sop_class: str = CT, piece: int = 1 << 20) -> str:
    chunks = [data[at : at + piece] for at in range(0, len(data), piece)]
    return check(chunks, sop_class, syntax, decode)


def fragments(frames: list[bytes], syntax: str = J2K, frames_said: int = 0, **options: Any) -> str:
    ds = image(encapsulate(frames, **options), NumberOfFrames=frames_said or len(frames))
    return result(written(ds, undefined=True), syntax)


SIZE = 8 * 10 * 2


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize(
    ("size", "frames", "found"),
    [
        (SIZE, None, ""),
        (SIZE, 1, ""),
        (SIZE - 2, None, "PIXEL_DATA_SHORT"),
        (0, None, "PIXEL_DATA_SHORT"),
        (SIZE + 2, None, ""),
        (SIZE * 2 - 2, None, ""),
        (SIZE * 2, None, "PIXEL_DATA_LONG"),
        (SIZE * 3, 3, ""),
        (SIZE * 3 - 2, 3, "PIXEL_DATA_SHORT"),
        (SIZE * 4, 3, "PIXEL_DATA_LONG"),
    ],
)
def test_native_lengths(syntax: str, size: int, frames: int | None, found: str) -> None:
    ds = image(bytes(size))
    if frames:
        ds.NumberOfFrames = frames
    assert result(written(ds, syntax), syntax) == found


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (10, {"BitsAllocated": 1, "BitsStored": 1}),
        (30, {"BitsAllocated": 1, "BitsStored": 1, "NumberOfFrames": 3}),
        (120, {"BitsAllocated": 12}),
        (80 * 3, {"SamplesPerPixel": 3, "BitsAllocated": 8, "PhotometricInterpretation": "RGB"}),
        (80 * 2, {"SamplesPerPixel": 3, "BitsAllocated": 8, "PhotometricInterpretation": "YBR_FULL_422"}),
        (80 * 3, {"SamplesPerPixel": 3, "BitsAllocated": 8, "PhotometricInterpretation": "YBR_FULL_422"}),
        (1, {"Rows": 1, "Columns": 1, "BitsAllocated": 8, "BitsStored": 8}),
        (3, {"Rows": 2, "Columns": 2, "BitsAllocated": 1, "BitsStored": 1, "NumberOfFrames": 3}),
        (63 + 1, {"Rows": 7, "Columns": 9, "BitsAllocated": 8, "BitsStored": 8}),
        # What says nothing of its size cannot be contradicted.
        (3, {"Rows": None}),
        (3, {"BitsAllocated": 0}),
    ],
)
def test_native_lengths_of_other_pixels(size: int, changes: dict[str, Any]) -> None:
    assert result(written(image(bytes(size + size % 2), **changes))) == ""


def test_nothing_where_an_image_is_described() -> None:
    assert result(written(image(None))) == "PIXEL_DATA_MISSING"
    assert result(written(image(None)), sop_class=REPORT) == ""
    assert result(written(image(None, Rows=None))) == ""
    assert result(written(image(None, PixelDataProviderURL="https://pacs.example/1"))) == ""
    # Referenced by JPIP, it is elsewhere.
    assert result(written(image(None)), "1.2.840.10008.1.2.4.94") == ""


def test_what_leads_astray_is_not_missing() -> None:
    """Explicit VR in a sequence of undefined length and VR UN, in which it must be implicit (PS3.5 6.2.2)."""
    element = struct.pack("<HH2sH4s", 0x33, 0x1001, b"LO", 4, b"abcd")
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + element + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    sequence = struct.pack("<HH2sHI", 0x33, 0x1000, b"UN", 0, 0xFFFFFFFF) + item
    sequence += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    pixels = written(image(bytes(SIZE)))
    at = pixels.index(b"\xe0\x7f\x10\0")
    assert result(pixels[:at] + sequence + pixels[at:]) == ""


def test_fragments_without_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_check, "_FRAGMENTS_MOST", 1000)
    frames = [b"\xff\x4f"] * 1000
    assert fragments(frames, frames_said=1001, has_bot=False) == "FRAGMENTS_BROKEN"
    assert fragments([*frames, b"\xff\x4f"], frames_said=1002, has_bot=False) == ""


def test_a_data_set_that_ends_within_its_pixel_data() -> None:
    data = written(image(bytes(SIZE)))
    assert result(data[:-1]) == "PIXEL_DATA_SHORT"
    assert result(data[: -SIZE + 1]) == "PIXEL_DATA_SHORT"


@pytest.mark.parametrize("piece", [1, 3, 7, 64, 1 << 20])
def test_however_it_is_cut(piece: int) -> None:
    ds = image(bytes(SIZE))
    nested = Dataset()
    nested.add_new(0x7FE00010, "OW", bytes(9_000))
    ds.IconImageSequence = [nested]
    ds["IconImageSequence"].is_undefined_length = True
    assert result(written(ds), piece=piece) == ""
    frames = [b"\xff\x4f" + os.urandom(50) + b"\xff\xd9" for _ in range(3)]
    coded = image(encapsulate(frames), NumberOfFrames=3)
    assert result(written(coded, undefined=True), J2K, piece=piece) == ""


def test_fragments() -> None:
    frames = [b"\xff\x4f" + bytes([n]) * 40 + b"\xff\xd9" for n in range(4)]
    assert fragments(frames) == ""
    assert fragments(frames, has_bot=False) == ""
    assert fragments(frames, fragments_per_frame=3) == ""
    assert fragments(frames, frames_said=5) == "FRAGMENTS_BROKEN"
    assert fragments(frames, has_bot=False, fragments_per_frame=2) == ""
    assert fragments(frames, has_bot=False, fragments_per_frame=2, frames_said=5) == "FRAGMENTS_BROKEN"
    assert fragments(frames, frames_said=3) == "FRAGMENTS_BROKEN"
    assert fragments(frames, frames_said=4, syntax=RLE) == ""
    assert fragments(frames, frames_said=3, syntax=RLE, has_bot=False) == "FRAGMENTS_BROKEN"
    assert fragments([b"\0\0\1\xba" * 30], frames_said=200, syntax=VIDEO) == ""


def test_the_extended_offset_table() -> None:
    frames = [b"\xff\x4f" + bytes([n]) * 40 + b"\xff\xd9" for n in range(4)]
    pixels, offsets, lengths = encapsulate_extended(frames)
    ds = image(pixels, NumberOfFrames=4, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths)
    assert result(written(ds, undefined=True), J2K) == ""
    ds.ExtendedOffsetTable = offsets[:-8] + b"\5" + bytes(7)
    assert result(written(ds, undefined=True), J2K) == "FRAGMENTS_BROKEN"


def test_fragments_that_are_none() -> None:
    data = written(image(encapsulate([b"\xff\x4f" * 40]), NumberOfFrames=1), undefined=True)
    assert result(data, EXPLICIT) == "FRAGMENTS_BROKEN"
    assert result(written(image(bytes(SIZE))), J2K) == "FRAGMENTS_BROKEN"
    # The delimiter at the end is often left out; a fragment that is cut is another thing.
    assert result(data[:-8], J2K) == ""
    assert result(data[:-9], J2K) == "FRAGMENTS_BROKEN"
    assert result(data.replace(b"\xfe\xff\x00\xe0\x50", b"\xfe\xff\x00\xe1\x50"), J2K) == "FRAGMENTS_BROKEN"


def test_the_first_frame_is_what_is_decoded() -> None:
    seen: list[bytes] = []

    def look(frame: bytes | bytearray, values: Mapping[str, Any]) -> bool:
        seen.append(bytes(frame))
        assert (values["rows"], values["columns"], values["bits_stored"]) == (8, 10, 12)
        return False

    frames = [b"\xff\x4f" + bytes([n]) * 41 + b"\xff\xd9" for n in range(3)]
    for options in ({}, {"has_bot": False}, {"fragments_per_frame": 2}):
        ds = image(encapsulate(frames, **options), NumberOfFrames=3)
        assert result(written(ds, undefined=True), J2K, look) == "FRAME_UNDECODABLE"
        assert seen.pop().rstrip(b"\0") == frames[0]


def test_samples_of_pydicom(decoder: FrameDecoder) -> None:
    """Each real file is what its maker says of it."""
    expected = {
        "MR_truncated.dcm": "PIXEL_DATA_SHORT",
        # A frame of 250 bytes, made for its delimiter.
        "JPEG2000-embedded-sequence-delimiter.dcm": "FRAME_UNDECODABLE",
    }
    found, looked = {}, 0
    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm")):
        try:
            with path.open("rb") as file:
                syntax = part10.seek_data_set(file)
                data = file.read()
        except (RadmeshError, OSError):
            continue
        sop_class = str(dcmread(path, stop_before_pixels=True, force=True).get("SOPClassUID", ""))
        looked += 1
        if defect := result(data, syntax, decoder, sop_class):
            found[path.name] = defect
    assert looked > 70
    assert found == expected


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("SC_rgb_jpeg_dcmtk.dcm", JPEG),
        ("JPEG2000.dcm", "1.2.840.10008.1.2.4.91"),
        ("MR_small_RLE.dcm", RLE),
        ("emri_small_jpeg_ls_lossless.dcm", JPEG_LS),
    ],
)
def test_a_frame_that_is_broken(decoder: FrameDecoder, name: str, syntax: str) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    with path.open("rb") as file:
        assert part10.seek_data_set(file) == syntax
        data = file.read()
    assert result(data, syntax, decoder) == ""
    at = data.index(b"\xe0\x7f\x10\x00")
    # The code stream's own first bytes, behind the offset table and the item's head.
    start = data.index(b"\xfe\xff\x00\xe0", data.index(b"\xfe\xff\x00\xe0", at) + 4) + 8
    broken = data[:start] + bytes(64) + data[start + 64 :]
    assert result(broken, syntax, decoder) == "FRAME_UNDECODABLE"


@settings(max_examples=examples(300))
@given(st.data())
def test_flipped_bytes_have_a_result(data: st.DataObject) -> None:
    frames = [b"\xff\x4f" + bytes([n]) * 20 + b"\xff\xd9" for n in range(3)]
    nested = Dataset()
    nested.PatientID = "1"
    inner = Dataset()
    inner.ReferencedStudySequence = [nested]
    coded = image(encapsulate(frames), NumberOfFrames=3)
    native = image(bytes(SIZE), NumberOfFrames=1)
    for ds in (coded, native):
        ds.ReferencedStudySequence = [inner]
        ds["ReferencedStudySequence"].is_undefined_length = True
    syntax = data.draw(st.sampled_from([EXPLICIT, J2K, RLE, JPEG, DEFLATED, IMPLICIT, BIG, VIDEO]))
    whole = bytearray(written(coded, undefined=True) if data.draw(st.booleans()) else written(native))
    for _ in range(data.draw(st.integers(0, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    assert result(bytes(whole[:cut]), syntax, piece=data.draw(st.integers(1, 200))) in (
        "",
        "PIXEL_DATA_MISSING",
        "PIXEL_DATA_SHORT",
        "PIXEL_DATA_LONG",
        "FRAGMENTS_BROKEN",
        "FRAME_UNDECODABLE",
    )


def test_the_size_that_is_said_takes_no_memory() -> None:
    """Two gigabytes stream by, in pieces; nothing of them is kept."""
    head = written(image(b"", Rows=32768, Columns=32768))[:-4] + (1 << 31).to_bytes(4, "little")
    piece = bytes(1 << 20)

    def chunks() -> Iterator[bytes]:
        yield head
        for _ in range(1 << 11):
            yield piece

    assert check(chunks(), CT, EXPLICIT, fine) == ""


# -- the process that decodes


def frame_and_values() -> tuple[bytes, dict[str, Any]]:
    seen: list[tuple[bytes, dict[str, Any]]] = []
    path = Path(str(get_testdata_file("emri_small_jpeg_ls_lossless.dcm", download=False)))
    with path.open("rb") as file:
        syntax = part10.seek_data_set(file)
        check([file.read()], CT, syntax, lambda f, v: seen.append((bytes(f), dict(v))) or True)  # type: ignore[func-returns-value]
    return seen[0]


def test_the_process_is_started_once_and_again_when_it_died() -> None:
    frame, values = frame_and_values()
    made = FrameDecoder()
    assert made.pid == 0
    assert made(frame, values) is True
    pid = made.pid
    assert made(frame, values) is True
    assert made.pid == pid
    os.kill(pid, signal.SIGKILL)
    assert made(frame, values) is True
    assert made.pid not in (0, pid)
    made.close()
    with pytest.raises(DecoderUnavailableError):
        made(frame, values)


_CRASHES = """
import os, sys
sys.stdout.buffer.write(b"R"); sys.stdout.buffer.flush()
sys.stdin.buffer.readline()
os.abort()
"""
_HANGS = """
import sys, time
sys.stdout.buffer.write(b"R"); sys.stdout.buffer.flush()
time.sleep(600)
"""


def test_a_frame_that_kills_the_process_twice_is_at_fault() -> None:
    frame, values = frame_and_values()
    made = FrameDecoder(("-c", _CRASHES))
    assert made(frame, values) is False
    made.close()


def test_no_answer_says_nothing_of_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, values = frame_and_values()
    monkeypatch.setattr(frame_decoder, "WALL_SECONDS", 0.3)
    made = FrameDecoder(("-c", _HANGS))
    with pytest.raises(DecoderUnavailableError):
        made(frame, values)
    made.close()
    broken = FrameDecoder(("-c", "raise SystemExit(1)"))
    with pytest.raises(DecoderUnavailableError):
        broken(frame, values)
    broken.close()


def test_closing_ends_a_frame_that_is_being_decoded() -> None:
    frame, values = frame_and_values()
    made = FrameDecoder(("-c", _HANGS))
    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(made(frame, values))
        except DecoderUnavailableError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not made.pid:
        pass
    made.close()
    thread.join(60)
    assert isinstance(outcome[0], DecoderUnavailableError)


def test_what_there_is_no_decoder_for_is_no_defect() -> None:
    noise = np.random.default_rng(1).bytes(100)
    made = FrameDecoder()
    assert made(noise, {**frame_and_values()[1], "uid": "1.2.840.10008.1.2.4.53"}) is None
    made.close()


def test_a_decoder_that_panics_says_that_the_frame_cannot_be_decoded(decoder: FrameDecoder) -> None:
    """pylibjpeg-rle is written in Rust: its panics are no Exception, and are of the frame all the same."""
    path = Path(str(get_testdata_file("MR_small_RLE.dcm", download=False)))
    with path.open("rb") as file:
        assert part10.seek_data_set(file) == RLE
        data = file.read()
    head = struct.pack("<3I", 2, 64, 1948)
    assert data.count(head) == 1
    # Its second segment begins within the first, and so is longer than the rows of the image.
    broken = data.replace(head, struct.pack("<3I", 2, 64, 156))
    assert result(broken, RLE, decoder) == "FRAME_UNDECODABLE"
