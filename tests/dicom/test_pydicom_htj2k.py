"""pydicom decodes HTJ2K by our decoder, in every transfer syntax that has it."""

import imagecodecs
import numpy as np
import pydicom
import pytest
from htj2k_support import Frame, made
from htj2k_writer import refined
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, SecondaryCaptureImageStorage, generate_uid

from radmesh.dicom import pydicom_htj2k
from radmesh.dicom.frame_decoder import FrameDecoder
from radmesh_native import htj2k

SYNTAXES = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)


@pytest.fixture(autouse=True)
def registered() -> None:
    pydicom_htj2k.register()
    pydicom_htj2k.register()


def dataset(syntax: str, frames: Frame, codestreams: list[bytes], bits: int, photometric: str) -> pydicom.Dataset:
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape[:3]
    ds.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    if frames.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = (8 if bits <= 8 else 16), bits, bits - 1
    ds.PixelRepresentation = int(frames.dtype.kind == "i")
    ds.PixelData = encapsulate(codestreams)
    ds["PixelData"].is_undefined_length = True
    return ds


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("bits", "signed", "colour"), [(12, True, False), (16, False, False), (8, False, True)])
def test_lossless_frames(syntax: str, bits: int, signed: bool, colour: bool) -> None:
    frames = made((3, 40, 50, 3) if colour else (3, 40, 50), bits, signed, "smooth", 1)
    codestreams = [htj2k.encode(frame, bits_stored=bits).codestream for frame in frames]
    ds = dataset(syntax, frames, codestreams, bits, "YBR_RCT" if colour else "MONOCHROME2")
    for plugin in ("", "radmesh"):
        assert np.array_equal(pixel_array(ds, decoding_plugin=plugin), frames)
    assert np.array_equal(ds.pixel_array, frames)
    assert np.array_equal(pixel_array(ds, index=1, raw=True), frames[1])


def test_frames_with_loss() -> None:
    frame = made((60, 70, 3), 8, False, "smooth", 2)
    codestream = bytes(imagecodecs.htj2k_encode(frame, reversible=False, rgb=True))
    ds = dataset(HTJ2K, frame[None], [codestream], 8, "YBR_ICT")
    ours, theirs = (pixel_array(ds, decoding_plugin=plugin).astype(int) for plugin in ("radmesh", "pylibjpeg"))
    assert np.abs(ours - theirs).max() <= 1


def test_ours_is_asked_first_and_others_after_it() -> None:
    for syntax in SYNTAXES:
        decoder = get_decoder(syntax)
        assert decoder.available_plugins == ("pylibjpeg", "radmesh")
        assert list(decoder._validate_plugins()) == ["radmesh", "pylibjpeg"]
    assert not pydicom_htj2k.is_available("1.2.840.10008.1.2.4.90")


def test_a_broken_frame_says_why() -> None:
    frame = made((40, 50), 12, False, "noise", 1)
    codestream = htj2k.encode(frame, bits_stored=12).codestream
    ds = dataset(HTJ2KLosslessRPCL, frame[None], [codestream[:-200]], 12, "MONOCHROME2")
    with pytest.raises(RuntimeError, match="the code stream ends too early"):
        pixel_array(ds, decoding_plugin="radmesh")
    # A frame that is larger than its data set says is not made room for.
    ds = dataset(HTJ2KLosslessRPCL, frame[None, :20], [codestream], 12, "MONOCHROME2")
    with pytest.raises(RuntimeError, match="too many samples"):
        pixel_array(ds, decoding_plugin="radmesh")


def test_the_process_that_tries_frames_has_it() -> None:
    """A code stream that the OpenJPEG of pylibjpeg does not read: sets of passes of its block are left out."""
    codestream, frame = refined(made((40, 50), 10, True, "smooth", 1), 3, skipped=2)
    ds = dataset(HTJ2K, frame[None].astype("i2"), [codestream], 12, "MONOCHROME2")
    with pytest.raises(RuntimeError):
        pixel_array(ds, decoding_plugin="pylibjpeg")
    values = {
        "uid": str(HTJ2K),
        "rows": 40,
        "columns": 50,
        "samples_per_pixel": 1,
        "bits_allocated": 16,
        "bits_stored": 12,
        "pixel_representation": 1,
        "photometric_interpretation": "MONOCHROME2",
    }
    decoder = FrameDecoder()
    try:
        assert decoder(codestream, values)
    finally:
        decoder.close()
