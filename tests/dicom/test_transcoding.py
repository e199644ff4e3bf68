"""Data sets made readable for who cannot take what is stored: real files, decoded by others for comparison."""

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cluster_support import data_set, image, samples
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from radmesh.dicom import part10
from radmesh.dicom.transcoding import Transcoder
from radmesh.runtime.errors import RadmeshError


@pytest.fixture(scope="module")
def transcoder() -> Iterator[Transcoder]:
    made = Transcoder()
    yield made
    made.close()


def read(body: bytes, syntax: str) -> FileDataset:
    return dcmread(io.BytesIO(part10.preamble_and_meta("1.2", "1.3", syntax) + body))


def body_of(ds: FileDataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    part10.seek_data_set(buffer)
    return buffer.read()


@pytest.mark.parametrize("target", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "ExplVR_BigEnd.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "image_dfl.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_jp2klossless.dcm",
        "JPEG-LL.dcm",
        "emri_small_RLE.dcm",
    ],
)
def test_the_pixels_and_values_are_those_that_were(transcoder: Transcoder, name: str, target: str) -> None:
    path = Path(str(get_testdata_file(name)))
    before = dcmread(path)
    source = before.file_meta.TransferSyntaxUID
    if source == target:
        return
    after = read(transcoder(data_set(path), source, target), target)
    assert (after.pixel_array == before.pixel_array).all()
    assert after.SOPInstanceUID == before.SOPInstanceUID
    # Neither what is compared as pixels, nor group lengths, nor what nobody knows the VR of.
    kept = [e for e in before if e.VR != "OW" and e.tag.element and not e.tag.is_private]
    for element in kept:
        if element.keyword not in ("PixelData", "LossyImageCompression"):
            assert after[element.tag].value == element.value, element.tag


def test_what_has_no_pixels_only_changes_its_encoding(transcoder: Transcoder) -> None:
    ds = image(1, PixelData=None)
    after = read(transcoder(body_of(ds), JPEGLosslessSV1, ImplicitVRLittleEndian), ImplicitVRLittleEndian)
    assert after.PatientName == "Doe^John"


def test_what_cannot_be_decoded_fails_and_the_next_does_not(transcoder: Transcoder) -> None:
    good = Path(str(get_testdata_file("MR_small_RLE.dcm")))
    data = data_set(good)
    pixels = data.index(b"\xe0\x7f\x10\x00OB")
    for bad in (data[: pixels + 12] + data[pixels + 1200 :], data[: pixels + 40] + b"\xff" * 200):
        with pytest.raises(RadmeshError, match="TRANSCODING_FAILED"):
            transcoder(bad, RLELossless, ExplicitVRLittleEndian)
    assert read(transcoder(data, RLELossless, ExplicitVRLittleEndian), ExplicitVRLittleEndian).Rows == 64
    with pytest.raises(RadmeshError, match="TRANSCODING_FAILED"):
        transcoder(data, ExplicitVRLittleEndian, RLELossless)


def compressed(ds: FileDataset, *frames: bytes) -> bytes:
    """A data set with encapsulated frames, as it is sent."""
    ds.PixelData = encapsulate(list(frames))
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1  # of those that pydicom knows
    return body_of(ds)


def decoded(transcoder: Transcoder, body: bytes, syntax: str) -> FileDataset:
    return read(transcoder(body, syntax, ExplicitVRLittleEndian), ExplicitVRLittleEndian)


def grey(rows: int = 64, columns: int = 48, **changes: object) -> FileDataset:
    made: FileDataset = image(1, Rows=rows, Columns=columns, BitsAllocated=8, BitsStored=8, HighBit=7, **changes)
    return made


PICTURE = Image.fromarray((np.add.outer(np.arange(64) * 3, np.arange(48)) % 256).astype("u1"))


def jpeg(*, progressive: bool = False) -> bytes:
    out = io.BytesIO()
    PICTURE.save(out, "JPEG", quality=95, progressive=progressive)
    return out.getvalue()


def test_retired_jpeg_processes_are_decoded(transcoder: Transcoder) -> None:
    data = jpeg(progressive=True)
    assert b"\xff\xc2" in data
    for syntax in ("1.2.840.10008.1.2.4.55", "1.2.840.10008.1.2.4.53"):
        after = read(transcoder(compressed(grey(), data), syntax, ExplicitVRLittleEndian), ExplicitVRLittleEndian)
        assert np.abs(after.pixel_array.astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 1


def test_a_sequential_scan_that_says_it_has_one_coefficient_has_all(transcoder: Transcoder) -> None:
    """As one vendor writes them; what is progressive and cut is not made up so."""
    data = jpeg()
    scan = data.index(b"\xff\xda\x00\x08\x01")
    odd = data[: scan + 7] + bytes(3) + data[scan + 10 :]
    assert odd != data
    right, made = (
        read(
            transcoder(compressed(grey(), one), JPEGBaseline8Bit, ExplicitVRLittleEndian),
            ExplicitVRLittleEndian,
        )
        for one in (data, odd)
    )
    assert (made.pixel_array == right.pixel_array).all()
    cut = jpeg(progressive=True)
    with pytest.raises(RadmeshError, match="TRANSCODING_FAILED"):
        transcoder(
            compressed(grey(), cut[: cut.index(b"\xff\xda") + 6]),
            JPEGBaseline8Bit,
            ExplicitVRLittleEndian,
        )


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_frames_that_are_deflated_are_inflated(transcoder: Transcoder, bits: int) -> None:
    syntax = "1.2.840.10008.1.2.8.1"
    size = 64 * 48 * bits // 8
    frames = [bytes((n * 7 + m) % 251 for m in range(size)) for n in range(3)]
    ds = grey(NumberOfFrames=3)
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit = bits - 1
    deflated = []
    for frame in frames:
        deflater = zlib.compressobj(wbits=-15)
        deflated.append(deflater.compress(frame) + deflater.flush())
    after = decoded(transcoder, compressed(ds, *deflated), syntax)
    assert after.PixelData == b"".join(frames)
    for bad in (deflated[:2], [deflated[0][:-4], *deflated[1:]], [zlib.compress(bytes(2 * size))[2:]] * 3):
        with pytest.raises(RadmeshError, match="TRANSCODING_FAILED"):
            decoded(transcoder, compressed(ds, *bad), syntax)


def test_a_delimiter_that_ends_nothing_is_left_out(transcoder: Transcoder) -> None:
    name = str(get_testdata_file("MR_small_RLE.dcm"))
    data = data_set(Path(name)) + bytes.fromhex("feff00e0 00000000 feff0de0 00000000")
    after = decoded(transcoder, data, RLELossless)
    assert (after.pixel_array == dcmread(name).pixel_array).all()


def test_what_nothing_decodes_is_said_to_be_so(transcoder: Transcoder) -> None:
    syntax = "1.2.840.10008.1.2.4.111"
    with pytest.raises(RadmeshError, match=f"TRANSCODING_FAILED: no decoder for {syntax}"):
        decoded(transcoder, compressed(grey(), b"\xff\x0a" * 8), syntax)


def test_every_sample_is_made_or_refused(transcoder: Transcoder) -> None:
    made = 0
    for path in samples():
        try:
            with path.open("rb") as file:
                source = part10.seek_data_set(file)
        except RadmeshError:
            continue
        if source in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
            target = ImplicitVRLittleEndian if source != ImplicitVRLittleEndian else ExplicitVRLittleEndian
            try:
                made += bool(read(transcoder(data_set(path), source, target), target).SOPClassUID)
            except RadmeshError as error:
                assert error.reason == "TRANSCODING_FAILED"
            except AttributeError:
                continue  # a sample without a SOP class
    assert made > 40
