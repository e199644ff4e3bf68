"""Corrected values in DICOM JSON: the same that are written into the object itself."""

import io
import json
from datetime import UTC, datetime

import pytest
from cluster_support import image
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from radmesh.application_server.dicom_json import ORIGINALS, corrected, text_attribute
from radmesh.application_server.metadata import Correction, _instances
from radmesh.dicom import part10
from radmesh.dicom.header import TAGS
from radmesh.dicom.overlay import VRS, Corrected
from radmesh.runtime.errors import RadmeshError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def correction(keyword, value, source="ris:main"):
    return Correction(keyword, f"{TAGS[keyword]:08X}", VRS[keyword], value, source, NOW)


def described(ds):
    """DICOM JSON without pixel data, as a Curator writes it."""
    made = ds.to_json_dict(bulk_data_threshold=0, bulk_data_element_handler=lambda _: "")
    made.pop("7FE00010", None)
    return made | {"00080005": {"vr": "CS", "Value": ["ISO_IR 192"]}}


def test_what_is_said_is_what_is_given():
    """Metadata and the object itself, both corrected, agree in every value."""
    ds = image(1, AccessionNumber="A1", StudyDescription="Thorax")
    corrections = [
        correction("PatientName", "Müller^Ö=山田^太郎"),
        correction("PatientID", "NEW"),
        correction("PatientBirthDate", ""),
        correction("AccessionNumber", "A2", "user:jo"),
        correction("StudyDescription", "Thorax"),
        correction("ReferringPhysicianName", "Doe^R"),
    ]
    said = Dataset.from_json(json.dumps(corrected(described(ds), corrections)))
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    syntax = part10.seek_data_set(buffer)
    body = b"".join(Corrected([buffer.read()], syntax, corrections))
    given = dcmread(io.BytesIO(part10.preamble_and_meta("1.2", "1.3", ExplicitVRLittleEndian) + body))
    for keyword in VRS:
        assert str(said.get(keyword) or "") == str(given.get(keyword) or ""), keyword
    assert len(said.OriginalAttributesSequence) == len(given.OriginalAttributesSequence) == 2
    for ours, theirs in zip(said.OriginalAttributesSequence, given.OriginalAttributesSequence, strict=True):
        for keyword in ("AttributeModificationDateTime", "ModifyingSystem", "ReasonForTheAttributeModification"):
            assert ours[keyword].value == theirs[keyword].value
        before, was = ours.ModifiedAttributesSequence[0], theirs.ModifiedAttributesSequence[0]
        assert {e.keyword: str(e.value or "") for e in before} == {e.keyword: str(e.value or "") for e in was}


def test_what_changes_nothing_is_as_it_was():
    before = described(image(2))
    assert corrected(before, [correction("PatientName", "Doe^John"), correction("PatientID", "P2")]) == before
    assert corrected(before, []) == before
    again = corrected(before, [correction("PatientID", "X")])
    assert list(again) == sorted(again)
    assert len(corrected(again, [correction("PatientID", "Y")])[ORIGINALS]["Value"]) == 2


@pytest.mark.parametrize(
    ("vr", "text", "expected"),
    [
        ("LO", "", {"vr": "LO"}),
        ("CS", "CT\\SR", {"vr": "CS", "Value": ["CT", "SR"]}),
        ("CS", "CT\\", {"vr": "CS", "Value": ["CT"]}),
        ("CS", "\\SR", {"vr": "CS", "Value": [None, "SR"]}),
        ("LT", "a\\b", {"vr": "LT", "Value": ["a\\b"]}),
        ("PN", "A^B=C", {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Ideographic": "C"}]}),
        ("PN", "=C=D", {"vr": "PN", "Value": [{"Ideographic": "C", "Phonetic": "D"}]}),
        ("PN", "^^", {"vr": "PN"}),
        ("IS", " 7 ", {"vr": "IS", "Value": [7]}),
        # Whoever reads a number takes it for one.
        ("IS", "seven", {"vr": "IS"}),
    ],
)
def test_texts_become_values(vr, text, expected):
    assert text_attribute(vr, text) == expected


OBJECTS = st.lists(st.text("0123456789.", min_size=1, max_size=10), max_size=5)


@given(OBJECTS, st.booleans())
def test_arrays_are_taken_apart(uids, loose):
    objects = [
        {"00080018": {"vr": "UI", "Value": [uid]}, "00100010": {"vr": "LT", "Value": ['],"\\x é']}} for uid in uids
    ]
    text = json.dumps(
        objects, ensure_ascii=False, indent=1 if loose else None, separators=None if loose else (",", ":")
    )
    found = list(_instances(text))
    assert [uid for uid, _, _ in found] == uids
    assert [json.loads(source) for _, _, source in found] == objects


@given(st.text(max_size=60) | st.sampled_from(["[", "[{}]", "[1]", "[[]]", '[{"00080018":1}]', "{}", "[{]"]))
def test_what_is_no_array_of_instances_is_told(text):
    try:
        list(_instances(text))
    except RadmeshError as error:
        assert error.reason == "CHUNK_CORRUPT"
