"""Corrected values in files of every transfer syntax and character set; what is not corrected stays as it was."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster_support import data_set, refused, samples, save
from pydicom import config, dcmread
from pydicom.dataset import Dataset

from radmesh.client import overlay
from radmesh.client.model import Correction
from radmesh.dicom import part10
from radmesh.runtime.errors import RadmeshError

# One has no meta information and begins with a stray byte; in one an element is cut off.
STRAY, CUT = "no_meta.dcm", "rtplan_truncated.dcm"
WHOLE = [path for path in samples() if path.name not in (STRAY, CUT)]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def correction(keyword: str, value: str, source: str = "ris:main") -> Correction:
    return Correction(keyword, "", value, source, "user:admin", NOW)


def as_fetched(path: Path, out: Path) -> Path:
    """A file as `Cluster.fetch` writes it before it is corrected."""
    with path.open("rb") as file:
        syntax = part10.seek_data_set(file)
        body = file.read()
    out.write_bytes(part10.preamble_and_meta("1.2", "1.3", syntax, "CT1") + body)
    return out


def walked(dataset: Dataset) -> list[tuple[str, str, str]]:
    """Every element but those of the correction, as text."""
    elements = []
    for element in dataset:
        if element.tag in (0x00080005, 0x00100010, 0x00100020, 0x04000561) or element.tag.element == 0:
            continue
        if element.VR == "SQ":
            for item in element.value:
                elements += walked(item)
        elif element.VR not in ("OB", "OW", "UN"):
            elements.append((str(element.tag), element.VR, str(element.value)))
    return elements


def test_a_data_set_that_is_cut_stays_as_it_is(tmp_path):
    file = save(tmp_path, 9, PatientComments="C" * 100)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(b"CCCC") + 10])
    uncorrected = file.read_bytes()
    with refused("CORRECTION_NOT_APPLIED"):
        overlay.apply(file, [correction("PatientID", "NEW")])
    assert file.read_bytes() == uncorrected
    assert list(tmp_path.iterdir()) == [file]


def test_what_stands_behind_is_passed_on_even_if_it_is_cut(tmp_path):
    (path,) = (path for path in samples() if path.name == CUT)
    file = as_fetched(path, tmp_path / "file.dcm")
    before = file.read_bytes()
    # Plain ASCII: nothing of the plan itself (group 300A) has to be written anew.
    assert overlay.apply(file, [correction("PatientID", "NEW")]) == ("PatientID",)
    after = file.read_bytes()
    assert after.endswith(before[-500:])
    assert dcmread(file).PatientID == "NEW"
    # Another character set: all of it would have to be.
    file.write_bytes(before)
    with refused("CORRECTION_NOT_APPLIED"):
        overlay.apply(file, [correction("PatientName", "山田^太郎")])
    assert file.read_bytes() == before


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_every_sample_can_be_corrected(path, tmp_path, recwarn):
    file = as_fetched(path, tmp_path / "file.dcm")
    before = dcmread(file)
    before_walked = walked(before)
    corrections = [correction("PatientName", "Ωmega^Ж=山田^太郎"), correction("PatientID", "NEW")]
    changed = overlay.apply(file, corrections)
    assert changed == ("PatientID", "PatientName")
    after = dcmread(file)
    assert (str(after.PatientName), after.PatientID) == ("Ωmega^Ж=山田^太郎", "NEW")
    assert after.SpecificCharacterSet in ("ISO_IR 192", "GB18030")
    assert walked(after) == before_walked
    assert after.get("PixelData") == before.get("PixelData")
    item = after.OriginalAttributesSequence[-1]
    assert (item.ModifiedAttributesSequence[0].PatientID or "") == (before.get("PatientID") or "")
    assert item.ReasonForTheAttributeModification == "CORRECT"
    assert list(tmp_path.iterdir()) == [file]


def test_what_changes_nothing_leaves_the_bytes(tmp_path):
    file = save(tmp_path, 1)
    before = file.read_bytes()
    assert overlay.apply(file, [correction("PatientName", "Doe^John"), correction("PatientID", "P1 ")]) == ()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("charset", "value", "expected"),
    [
        (None, "Doe^Jane", None),
        (None, "Müller^A", "ISO_IR 192"),
        ("ISO_IR 100", "Müller^A", "ISO_IR 100"),
        ("ISO_IR 100", "Δ", "ISO_IR 192"),
        ("ISO_IR 126", "Δ", "ISO_IR 126"),
        ("GB18030", "王^小东", "GB18030"),
        ("ISO_IR 13", "山田", "ISO_IR 192"),
        (["", "ISO 2022 IR 87"], "Yamada^H", ["", "ISO 2022 IR 87"]),
        (["", "ISO 2022 IR 87"], "Yamada^H=山田", "ISO_IR 192"),
    ],
)
def test_the_character_set_changes_only_if_it_must(tmp_path, charset, value, expected):
    changes = {} if charset is None else {"SpecificCharacterSet": charset}
    file = save(tmp_path, 2, InstitutionName="Klinik", **changes)
    overlay.apply(file, [correction("PatientName", value)])
    after = dcmread(file)
    assert after.get("SpecificCharacterSet") == expected
    assert (str(after.PatientName), after.InstitutionName) == (value, "Klinik")


def test_original_attributes_are_added_to_those_there_are(tmp_path):
    file = save(tmp_path, 3)
    overlay.apply(file, [correction("PatientName", "A^B"), correction("AccessionNumber", "N", "user:jo")])
    overlay.apply(file, [correction("PatientName", "C^D")])
    config.settings.reading_validation_mode = config.RAISE
    try:
        history = dcmread(file).OriginalAttributesSequence
    finally:
        config.settings.reading_validation_mode = config.WARN
    assert [item.ModifyingSystem for item in history] == ["radmesh ris:main", "radmesh user:jo", "radmesh ris:main"]
    assert [item.AttributeModificationDateTime for item in history] == ["20260102030405.000000+0000"] * 3
    originals = [item.ModifiedAttributesSequence[0] for item in history]
    assert (originals[0].PatientName, originals[2].PatientName) == ("Doe^John", "A^B")
    assert originals[1].AccessionNumber in ("", None)


def test_what_cannot_be_corrected_is_refused_and_left(tmp_path):
    file = save(tmp_path, 4)
    before = data_set(file)
    with refused("CORRECTION_NOT_APPLIED"):
        overlay.apply(file, [correction("EyeColour", "blue")])
    assert data_set(file) == before


def test_no_bytes_are_lost_of_a_data_set_that_ends_within_an_element(tmp_path):
    file = save(tmp_path, 5)
    whole = file.read_bytes()
    corrected = 0
    for size in range(len(whole) - len(data_set(file)) + 1, len(whole) - 512):
        file.write_bytes(whole[:size])
        try:
            overlay.apply(file, [correction("PatientName", "X")])
            corrected += 1
        except RadmeshError as error:
            assert error.reason == "CORRECTION_NOT_APPLIED"
            assert file.read_bytes() == whole[:size]
    assert 10 < corrected < 25  # where it ends between two elements
