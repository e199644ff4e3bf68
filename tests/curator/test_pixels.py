"""What is made of pydicom's samples, frame by frame, beside what others see in them."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from cluster_support import samples
from pixels_support import HTJ2K_RPCL, decoded, expected, make, open_file, raw_frames, read
from pydicom.data import get_testdata_file

from radmesh.dicom import uids
from radmesh.runtime.reasons import REASONS
from radmesh_native import htj2k

CODED, PASSED, ORIGINAL, NONE = 1, 2, 3, 4
LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91")
PALETTES = ("PALETTE COLOR", "YBR_FULL", "YBR_FULL_422")
# What is odd about samples that are not simply coded, passed through or without an image.
ODD = {
    "MR_truncated.dcm": "PIXEL_DATA_SHORT",
    "chrJapMulti.dcm": "PIXEL_DATA_MISSING",
    "chrJapMultiExplicitIR6.dcm": "PIXEL_DATA_MISSING",
    "chrKoreanMulti.dcm": "PIXEL_DATA_MISSING",
    "badVR.dcm": "PIXELS_OVER_16_BITS",
    "liver_1frame.dcm": "PIXELS_ONE_BIT",
    "liver_expb_1frame.dcm": "PIXELS_ONE_BIT",
    "meta_missing_tsyntax.dcm": "PIXELS_UNDESCRIBED",
    "nested_priv_SQ.dcm": "PIXELS_UNDESCRIBED",
    "rtdose.dcm": "PIXELS_OVER_16_BITS",
    "rtdose_1frame.dcm": "PIXELS_OVER_16_BITS",
    "rtdose_expb.dcm": "PIXELS_OVER_16_BITS",
    "rtdose_expb_1frame.dcm": "PIXELS_OVER_16_BITS",
    "rtdose_rle.dcm": "PIXELS_OVER_16_BITS",
    "rtdose_rle_1frame.dcm": "PIXELS_OVER_16_BITS",
    "SC_rgb_rle_32bit.dcm": "PIXELS_OVER_16_BITS",
    "SC_rgb_rle_32bit_2frame.dcm": "PIXELS_OVER_16_BITS",
}
FILES = [path for path in samples() if path.name != "no_meta.dcm"]


def dataset(path: Path, syntax: str) -> Any:
    ds = read(path)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_sample_is_made_as_the_table_says(path: Path) -> None:
    data, syntax = open_file(path)
    ds = dataset(path, syntax)
    made = make(data, syntax)
    facts = made.facts
    assert facts["reason"] == ODD.get(path.name, "NO_PIXEL_DATA" if "PixelData" not in ds else "")
    assert not facts["reason"] or facts["reason"] in REASONS
    # DICOM JSON that others read, which describes what is served.
    told = pydicom.Dataset.from_json(made.metadata.decode())
    assert (told.get("SOPInstanceUID") or None) == (ds.get("SOPInstanceUID") or None)
    for keyword in ("PatientID", "PatientName", "StudyDate", "WindowCenter", "ImagePositionPatient"):
        assert (told.get(keyword) or "") == (ds.get(keyword) or ""), keyword
    if facts["state"] == NONE:
        assert not made.frames or facts["reason"] == "PIXEL_DATA_SHORT"
        return
    assert len(made.frames) == len(made.offsets) == facts["number_of_frames"]
    assert told[0x00083002].value == facts["transfer_syntax_uid"]
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        # Without them nobody can read a frame that is passed through.
        assert (facts["state"] == CODED and keyword in told) or told.get(keyword) == ds.get(keyword), keyword
    if facts["state"] != CODED:
        assert (facts["state"] == PASSED) == (syntax in LOSSY)
        assert made.frames == raw_frames(ds)
        assert facts["transfer_syntax_uid"] == (syntax if syntax not in uids.NATIVE else uids.EXPLICIT_VR_LITTLE_ENDIAN)
        assert not any(made.offsets)
        return
    assert facts["transfer_syntax_uid"] == HTJ2K_RPCL
    assert facts["derived"] == (ds.PhotometricInterpretation in PALETTES)
    for frame, offsets, samples_ in zip(made.frames, made.offsets, expected(ds), strict=True):
        seen = decoded(frame)
        assert seen.shape == samples_.shape
        assert np.array_equal(seen.astype("i8"), samples_.astype("i8"))
        assert offsets[-1] == len(frame)
        own = htj2k.decode(frame[: offsets[0]], reduce=len(offsets) - 1, max_samples=seen.size)
        assert own.shape[:2] == tuple(-(-side // (1 << (len(offsets) - 1))) for side in seen.shape[:2])
        assert (told.Rows, told.Columns) == seen.shape[:2]
        assert told.BitsAllocated == 8 * seen.itemsize
        assert told.PixelRepresentation == (seen.dtype.kind == "i")
        assert told.PhotometricInterpretation == ("YBR_RCT" if seen.ndim == 3 else ds.PhotometricInterpretation)
        assert told.SamplesPerPixel == (3 if seen.ndim == 3 else 1)
        assert told.get("PlanarConfiguration") == (0 if seen.ndim == 3 else None)
        assert "RedPaletteColorLookupTableDescriptor" not in told or ds.PhotometricInterpretation != "PALETTE COLOR"


def test_none_of_the_kinds_is_missing() -> None:
    states: Counter[int] = Counter()
    for path in FILES:
        data, syntax = open_file(path)
        states[make(data, syntax).facts["state"]] += 1
    assert states[CODED] >= 40
    assert states[PASSED] > 15
    assert states[ORIGINAL] > 10
    assert sum(states.values()) == len(FILES)


def test_bits_in_words_of_the_other_order_are_the_same_frame() -> None:
    frames = []
    for name in ("liver_1frame.dcm", "liver_expb_1frame.dcm"):
        path = next(p for p in FILES if p.name == name)
        frames.append(make(*open_file(path)).frames)
    assert frames[0] == frames[1]


@pytest.mark.parametrize("piece", [7, 997, 65536])
def test_pieces_of_any_size_make_the_same(piece: int) -> None:
    for name in ("CT_small.dcm", "MR_small_RLE.dcm", "emri_small_jpeg_2k_lossless.dcm", "SC_rgb_jpeg.dcm"):
        path = get_testdata_file(name)
        assert path is not None
        data, syntax = open_file(Path(path))
        assert make(data, syntax, piece=piece) == make(data, syntax)


def test_a_long_value_before_the_pixels_is_left_out_and_passed_over() -> None:
    ds = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    expected_frames = make(*open_file(Path(str(get_testdata_file("CT_small.dcm"))))).frames
    ds.add_new(0x00091001, "OB", bytes(3 << 20))
    ds.add_new(0x00091002, "LO", "after it")
    buffer = io.BytesIO()
    ds.save_as(buffer)
    data = buffer.getvalue()
    start = data.index(b"\x08\x00\x05\x00CS")
    made = make(data[start:], uids.EXPLICIT_VR_LITTLE_ENDIAN)
    assert made.frames == expected_frames
    assert b"00091002" in made.metadata
    assert b"00091001" not in made.metadata


def test_metadata_are_what_others_read_in_a_data_set() -> None:
    """Every element that is not bulk data, in every encoding, nested ones too; text in any declared character set."""
    seen = 0
    for path in FILES:
        data, syntax = open_file(path)
        if path.name == "rtplan_truncated.dcm" or ODD.get(path.name, "PIXEL_DATA_MISSING") != "PIXEL_DATA_MISSING":
            continue
        told = pydicom.Dataset.from_json(make(data, syntax).metadata.decode())
        ds = dataset(path, syntax)
        for element in ds:
            tag = element.tag
            if tag.element == 0 or tag.group in (0x0028, 0x7FE0, 0xFFFA, 0xFFFC) or element.VR in ("SQ", "UN"):
                continue
            if tag == 0x00080005 or (isinstance(element.value, bytes) and len(element.value) > 1024):
                continue
            assert tag in told, (path.name, tag)
            if tag.is_private and told[tag].VR == "UN":
                continue  # in Implicit VR, where pydicom has a dictionary of some makers' elements
            same(told[tag], element, path.name)
            seen += 1
        for element in ds:
            if element.VR == "SQ" and element.tag.group != 0x0028:
                assert len(told[element.tag].value or ()) == len(element.value), (path.name, element.tag)
    assert seen > 2500


def same(told: Any, element: Any, name: str) -> None:
    if element.VR in ("DS", "IS", "FD", "FL") and element.value not in (None, ""):
        ours, theirs = (np.atleast_1d(np.array(e.value, float)) for e in (told, element))
        assert np.allclose(ours, theirs, rtol=1e-12, equal_nan=True), (name, element.tag)
    elif element.VR not in ("LT", "ST", "UT"):
        ours, theirs = (values(e.value) for e in (told, element))
        assert ours == theirs, (name, element.tag)


def values(value: Any) -> list[str]:
    """What there is, without padding, which some writers have within."""
    several = value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
    return [str("" if one is None else one).strip() for one in several] if several else [""]
