"""Pixels of DICOM objects as arrays, by pydicom: stored values, and RGB of what is coloured."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, iter_pixels
from pydicom.uid import UID

from radmesh.client.dicom_json import data_set
from radmesh.dicom import pydicom_htj2k
from radmesh.runtime.errors import RadmeshError

pydicom_htj2k.register()

Array = npt.NDArray[np.generic]
_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def of_file(path: Path) -> Iterator[Array]:
    """Yield the frames of a DICOM file; of one without pixel data none.

    Raises:
        RadmeshError: FRAME_UNDECODABLE.
    """
    try:
        ds = dcmread(path, force=True, defer_size=1 << 20)
        if any(keyword in ds for keyword in _PIXELS):
            yield from _frames(ds)
    except (MemoryError, GeneratorExit):
        raise
    except Exception as error:
        # Whatever pydicom and its decoders make of bytes that are no valid object.
        raise RadmeshError("FRAME_UNDECODABLE", f"the pixel data cannot be decoded ({type(error).__name__})") from error


def of_frame(described: dict[str, Any], frame: bytes, transfer_syntax_uid: str) -> Array:
    """Return a frame by the DICOM JSON of its instance.

    Raises:
        RadmeshError: FRAME_UNDECODABLE.
    """
    try:
        ds, _ = data_set(described)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax = UID(transfer_syntax_uid)
        ds.NumberOfFrames = 1
        ds.PixelData = encapsulate([frame]) if syntax.is_encapsulated else frame + b"\0" * (len(frame) % 2)
        ds["PixelData"].VR = "OB" if syntax.is_encapsulated or ds.BitsAllocated <= 8 else "OW"
        return next(_frames(ds))
    except MemoryError:
        raise
    except Exception as error:
        raise RadmeshError("FRAME_UNDECODABLE", f"the frame cannot be decoded ({type(error).__name__})") from error


def _frames(ds: Dataset) -> Iterator[Array]:
    # What lies beyond Bits Stored is looked at here: it may mean something.
    for frame in iter_pixels(ds, correct_unused_bits=False):
        yield _shown(frame, ds)


def _shown(frame: Any, ds: Dataset) -> Array:
    if frame.ndim == 2 and frame.dtype.kind in "iu" and ds.BitsAllocated > 1:
        frame = _settled(frame, ds)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, ds)[..., :3]
    shown: Array = frame
    return shown


def _settled(frame: Any, ds: Dataset) -> Any:
    """Return samples from words (PS3.5 8.1.1): from High Bit down, with their sign.

    Bits above the sample are nothing, its sign, or overlay planes (PS3.3 C.9.2, retired); where they are anything else,
    a device counted its bits wrongly, and the words mean what they say.
    """
    allocated, stored = int(ds.BitsAllocated), int(ds.BitsStored)
    high = int(ds.get("HighBit", stored - 1))
    shift = high + 1 - stored if stored - 1 <= high < allocated else 0
    words = frame.view(f"u{frame.itemsize}") >> shift
    if any(f"{group:04X}0102" in ds and ds[f"{group:04X}0102"].value for group in range(0x6000, 0x6020, 2)):
        words &= (1 << stored) - 1
    if not ds.PixelRepresentation:
        return words
    width = allocated - shift
    whole, sample = _signed(words, width), _signed(words, stored)
    padded = (words >> stored == 0) | (whole == sample)
    return (sample if np.all(padded) else whole).astype(f"i{frame.itemsize}")


def _signed(words: Any, bits: int) -> Any:
    """Return the lowest bits of words as numbers in two's complement."""
    sign = 1 << (bits - 1)
    return ((words.astype("i8") & ((1 << bits) - 1)) ^ sign) - sign
