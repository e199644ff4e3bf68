"""pydicom decodes HTJ2K by our decoder, in every transfer syntax that has it."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import imagecodecs
import numpy as np
import openjpeg
import pydicom
import pytest
from htj2k_support import Frame, made, openjpeg_
from htj2k_writer import refined
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, SecondaryCaptureImageStorage, generate_uid

from _radmesh_htj2k import decode_pixel_data
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
    for plugin in ("radmesh", "pylibjpeg"):
        ours = pixel_array(ds, decoding_plugin=plugin).astype(int)
        assert np.abs(ours - openjpeg_(codestream)).max() <= 1


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


def left_out() -> tuple[bytes, Frame]:
    """A code stream that OpenJPEG does not read, for sets of passes of its block are left out; and its frame."""
    codestream, frame = refined(made((40, 50), 10, True, "smooth", 1), 3, skipped=2)
    with pytest.raises(RuntimeError):
        openjpeg_(codestream)
    return codestream, frame.astype("i2")


def test_the_process_that_tries_frames_decodes_by_it() -> None:
    codestream, _ = left_out()
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


# A process in which nobody said anything.
UNTOLD = """
import sys
import numpy, pydicom
import pydicom.pixels.decoders
assert not [name for name in sys.modules if name.startswith("radmesh")]
ds = pydicom.dcmread(sys.argv[1])
numpy.save(sys.argv[2], ds.pixel_array)
assert pydicom.pixels.get_decoder(ds.file_meta.TransferSyntaxUID).available_plugins == ("pylibjpeg",)
"""


def test_pydicom_has_it_where_radmesh_is_installed(tmp_path: Path) -> None:
    for syntax in SYNTAXES:
        found = entry_points(group="pylibjpeg.pixel_data_decoders", name=syntax)
        assert decode_pixel_data in [entry.load() for entry in found]
    codestream, frame = left_out()
    ds = dataset(HTJ2KLosslessRPCL, frame[None], [codestream], 12, "MONOCHROME2")
    ds.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    subprocess.run(
        [sys.executable, "-P", "-c", UNTOLD, str(tmp_path / "image.dcm"), str(tmp_path / "frame.npy")], check=True
    )
    assert np.array_equal(np.load(tmp_path / "frame.npy"), frame)


@pytest.mark.parametrize(("bits", "signed", "colour"), [(12, True, False), (16, False, False), (8, False, True)])
def test_the_plugin_of_pylibjpeg_is_as_that_of_openjpeg(bits: int, signed: bool, colour: bool) -> None:
    frame = made((40, 50, 3) if colour else (40, 50), bits, signed, "smooth", 1)
    codestream = htj2k.encode(frame, bits_stored=bits).codestream
    options = {"rows": 40, "columns": 50, "samples_per_pixel": 3 if colour else 1}
    assert decode_pixel_data(codestream, version=2, **options) == openjpeg.decode_pixel_data(codestream, version=2)
    assert np.array_equal(decode_pixel_data(codestream), openjpeg.decode_pixel_data(codestream))
    # What ours refuses OpenJPEG gets: it cuts off what is larger than the data set says, say.
    options["rows"] = 20
    assert decode_pixel_data(codestream, version=2, **options) == openjpeg.decode_pixel_data(codestream, version=2)
    with pytest.raises(RuntimeError):
        decode_pixel_data(codestream[:100], version=2)
