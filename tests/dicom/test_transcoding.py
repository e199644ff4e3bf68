"""Data sets made readable for who cannot take what is stored: real files, decoded by others for comparison."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_support import data_set, image, samples
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
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
