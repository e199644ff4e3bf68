"""Synthetic objects for the benchmark: as many and as large as what modalities send, and as hard to compress.

ct     1 study, 1,000 CT of 512 x 512 x 16 bit (0.5 MB each)
small  20 studies, 100 MR of 64 x 64 x 16 bit each (9 kB each)
large  4 studies, 5 DX of 3328 x 3072 x 16 bit each (20 MB each)

Seeded: the same bytes every time. Pixels are pydicom's CT_small, enlarged, shifted from slice to slice, with Gaussian
noise of about 12 HU, so that the entropy is that of a real CT.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SOP_CLASS = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
}


def uid(*parts: object) -> str:
    """A UID under 2.25 that depends on `parts` alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def enlarge(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear."""
    y = np.linspace(0, image.shape[0] - 1.001, rows)
    x = np.linspace(0, image.shape[1] - 1.001, columns)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], (x - x0)[None, :]
    top = image[y0][:, x0] * (1 - fx) + image[y0][:, x0 + 1] * fx
    bottom = image[y0 + 1][:, x0] * (1 - fx) + image[y0 + 1][:, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def data_set(modality: str, study: int, number: int, pixels: np.ndarray, bits_stored: int) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = SOP_CLASS[modality]
    ds.SOPInstanceUID = uid("bench", modality, study, number)
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20240115"
    ds.StudyTime, ds.SeriesTime, ds.ContentTime = "101500", "101530", "101600"
    ds.AccessionNumber = f"A{modality}{study:05d}"
    ds.Modality = modality
    ds.Manufacturer, ds.InstitutionName = "RADMESH BENCH", "Bench Hospital"
    ds.ReferringPhysicianName = "Ref^Doc"
    ds.StudyDescription, ds.SeriesDescription = "BENCH", f"Series {modality}"
    ds.PatientName, ds.PatientID = f"Bench^{modality}{study}", f"BENCH{modality}{study:05d}"
    ds.PatientBirthDate, ds.PatientSex = "19600101", "O"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("bench", modality, study), uid("bench", modality, study, "series")
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1, number + 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits_stored, bits_stored - 1, 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def frames(name: str) -> Iterator[tuple[str, int, int, np.ndarray, int]]:
    """(modality, study, number, (rows, columns) of uint16, bits stored) of every object of a set, always the same."""
    rng = np.random.default_rng(651)
    source = dcmread(get_testdata_file("CT_small.dcm", download=False)).pixel_array.astype(float)
    modality, studies, count, rows, columns, bits = {
        "ct": ("CT", 1, 1000, 512, 512, 12),
        "small": ("MR", 20, 100, 64, 64, 12),
        "large": ("DX", 4, 5, 3328, 3072, 14),
    }[name]
    base = enlarge(source, rows, columns) * (4 if modality == "DX" else 1)
    for study in range(studies):
        for number in range(count):
            pixels = np.roll(base, number % 37, axis=0) + rng.normal(0, 12, base.shape)
            yield modality, study, number, pixels.clip(0, 2**bits - 1).astype("<u2"), bits


def make(out: Path, name: str) -> Path:
    """Write the set `name` below `out`, unless it is there; return its folder."""
    folder = out / name
    done = folder / "done"
    if done.exists():
        return folder
    for modality, study, number, pixels, bits in frames(name):
        (folder / f"s{study:02d}").mkdir(parents=True, exist_ok=True)
        ds = data_set(modality, study, number, pixels, bits)
        ds.save_as(folder / f"s{study:02d}" / f"{number:04d}.dcm", enforce_file_format=True)
    done.touch()
    return folder


if __name__ == "__main__":
    for wanted in sys.argv[2:] or ("ct", "small", "large"):
        print(make(Path(sys.argv[1]), wanted))
