"""UIDs against PS3.5 9.1, transfer syntaxes against PS3.6 A, and the name of a study on disk."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID, UID_dictionary

from radmesh.dicom import uids
from radmesh.dicom.uids import clean_uid, is_valid_uid, study_hash, transfer_syntax

JPIP_DEFLATED = {"1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
SYNTAXES = sorted(uid for uid, row in UID_dictionary.items() if row[1] == "Transfer Syntax")


@pytest.mark.parametrize(
    ("uid", "tolerated", "strict"),
    [
        ("1.2.840.10008.1.2", True, True),
        ("0", True, True),
        ("2.25.0", True, True),
        ("1." + "2" * 62, True, True),
        ("1." + "2" * 63, False, False),
        # Leading zeros, which real devices write.
        ("1.2.03", True, False),
        ("00.1", True, False),
        ("", False, False),
        (".1", False, False),
        ("1.", False, False),
        ("1..2", False, False),
        ("1.2 ", False, False),
        ("1.2\0", False, False),
        ("1.2\n", False, False),
        ("1.2/../3", False, False),
        ("1.a", False, False),
        ("-1.2", False, False),
        # Digits to Python, but none to the standard.
        ("1.\u0662", False, False),
        ("1.\u00b2", False, False),
    ],
)
def test_the_form_of_a_uid(uid: str, tolerated: bool, strict: bool) -> None:
    assert is_valid_uid(uid) is tolerated
    assert is_valid_uid(uid, strict=True) is strict


@given(st.text(string.digits + ". \0/\\a", max_size=70))
def test_what_is_strictly_valid_is_tolerated_and_has_nothing_but_digits_and_dots(uid: str) -> None:
    if is_valid_uid(uid, strict=True):
        assert is_valid_uid(uid)
        assert all(part == str(int(part)) for part in uid.split("."))
    if is_valid_uid(uid):
        assert len(uid) <= 64
        assert set(uid) <= set(string.digits + ".")


def test_padding_is_dropped_and_nothing_else() -> None:
    assert clean_uid(b"1.2.3\0") == clean_uid(b" 1.2.3 ") == clean_uid(b"1.2.3") == "1.2.3"
    assert clean_uid(b"1.2\0.3") == "1.2\0.3"
    assert clean_uid(b"1.\xff") == "1.\xff"
    assert clean_uid(b"\0 ") == ""


def test_the_name_of_a_study_on_disk_never_changes() -> None:
    # printf '%s' 1.2.3 | sha256sum: stores of today are found by it tomorrow.
    assert study_hash("1.2.3") == "c47f5b18b8a430e698b9fe15e51f6119"
    assert study_hash("1.2.03") != study_hash("1.2.3")


@pytest.mark.parametrize("uid", SYNTAXES)
def test_transfer_syntaxes_of_the_standard(uid: str) -> None:
    syntax, known = transfer_syntax(uid), UID(uid)
    assert (syntax.implicit, syntax.big_endian) == (known.is_implicit_VR, not known.is_little_endian)
    assert syntax.encapsulated == known.is_encapsulated
    # pydicom does not know that these deflate their data sets (PS3.5 A.7, A.12).
    assert syntax.deflated == (known.is_deflated or uid in JPIP_DEFLATED)


def test_a_transfer_syntax_that_nobody_knows() -> None:
    syntax = transfer_syntax("1.2.3.4")
    assert (syntax.implicit, syntax.big_endian, syntax.deflated, syntax.encapsulated) == (False, False, False, True)


def test_the_implementation_says_who_it_is() -> None:
    assert is_valid_uid(uids.IMPLEMENTATION_CLASS_UID, strict=True)
    # PS3.7 D.3.3.2.3: at most 16 characters.
    assert 1 <= len(uids.IMPLEMENTATION_VERSION_NAME) <= 16
