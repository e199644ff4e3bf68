"""The admission key: who shares a verification and a hold, and who does not."""

import hashlib
from dataclasses import astuple, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.header import TAGS, WANTED, QueryableHeader

KEY = AdmissionKey("CT1", "1.2.3", "P1", "ISSUER", "Müller^Anna", "19700101", "A1")
NAMES = [field.name for field in fields(AdmissionKey)]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
KEYS = st.builds(AdmissionKey, *[TEXTS] * len(NAMES))


def header(**values: bytes) -> QueryableHeader:
    return QueryableHeader({TAGS[k]: (WANTED[TAGS[k]], v) for k, v in values.items()})


def test_the_digest_never_changes() -> None:
    """Tickets, holds and rows of an older version go on to mean the same admission."""
    # printf '\0\0\0\003CT1\0\0\0\0051.2.3\0\0\0\002P1…' | sha256sum
    assert KEY.digest().hex() == "89efa5d2d08393f4b78fb3197db0e53ec97de12a9159b9654fab4708b50e55b3"
    empty = AdmissionKey("", "")
    assert empty.digest() == hashlib.sha256(bytes(4 * len(NAMES))).digest()


@pytest.mark.parametrize("name", NAMES)
def test_every_field_tells_keys_apart(name: str) -> None:
    other = replace(KEY, **{name: getattr(KEY, name) + "x"})
    assert other.digest() != KEY.digest()
    assert replace(KEY, **{name: ""}).digest() != KEY.digest()


@given(KEYS, KEYS)
def test_equal_digests_are_equal_keys(one: AdmissionKey, other: AdmissionKey) -> None:
    assert (one.digest() == other.digest()) == (one == other)


@given(KEYS, st.integers(0, len(NAMES) - 2), st.integers(0, 8))
def test_text_that_moves_to_the_next_field_is_another_key(key: AdmissionKey, index: int, count: int) -> None:
    values = list(astuple(key))
    kept, moved = values[index][:count], values[index][count:]
    values[index : index + 2] = [kept, moved + values[index + 1]]
    other = AdmissionKey(*values)
    assert (other.digest() == key.digest()) == (not moved)


def test_of_an_object() -> None:
    found = AdmissionKey.of(
        "CT1",
        header(
            StudyInstanceUID=b"1.2.3\0",
            PatientID=b"P1",
            IssuerOfPatientID=b"ISSUER",
            PatientName="Müller^Anna".encode("latin-1"),
            PatientBirthDate=b"19700101",
            AccessionNumber=b"A1",
            SpecificCharacterSet=b"ISO_IR 100",
        ),
    )
    assert found == KEY


def test_padding_and_absence_are_no_difference() -> None:
    plain = AdmissionKey.of("CT1", header(StudyInstanceUID=b"1.2", PatientID=b"P1", PatientName=b"Doe^Jane"))
    padded = AdmissionKey.of(
        "CT1",
        header(
            StudyInstanceUID=b"1.2\0",
            PatientID=b" P1 ",
            PatientName=b"Doe^Jane ",
            IssuerOfPatientID=b"  ",
            PatientBirthDate=b"",
        ),
    )
    assert plain == padded
    assert AdmissionKey.of("CT1", header()) == AdmissionKey("CT1", "")


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("Müller^Anna", {"ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8", "ISO_IR 109": "iso8859-3"}),
        ("王^小东", {"GB18030": "gb18030", "ISO_IR 192": "utf-8", "GBK": "gbk"}),
        ("Διονυσιος", {"ISO_IR 126": "iso8859-7", "ISO_IR 192": "utf-8"}),
        ("เกข", {"ISO_IR 166": "tis-620", "ISO_IR 192": "utf-8"}),
    ],
)
def test_one_patient_in_two_character_sets_is_one_admission(name: str, sets: dict[str, str]) -> None:
    keys = {
        AdmissionKey.of("CT1", header(PatientName=name.encode(codec), SpecificCharacterSet=declared.encode()))
        for declared, codec in sets.items()
    }
    assert [key.patient_name for key in keys] == [name]
