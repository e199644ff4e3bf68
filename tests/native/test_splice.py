"""Where elements are: against pydicom on real data sets, and on bytes that mean no good."""

import struct

import pytest
from cluster_support import data_set, samples
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from radmesh.dicom import part10
from radmesh.dicom.uids import transfer_syntax
from radmesh.runtime.errors import RadmeshError
from radmesh_native.splice import CUT, ENDED, FOUND, locate

TAGS = (0x00080005, 0x00080050, 0x00100010, 0x00100020, 0x00181030, 0x04000561)


def element(tag: int, vr: str, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def sequence(tag: int, content: bytes, length: int = 0xFFFFFFFF, vr: bytes = b"SQ") -> bytes:
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length) + content


ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
END_OF_ITEM = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
NAME = element(0x00100010, "PN", b"Doe^John")
STUDY_ID = element(0x00200010, "SH", b"S1")


def explicit(data: bytes, *tags: int) -> tuple[int, int, dict[int, tuple[int, int, int, bool]]]:
    return locate(data, tags or TAGS, implicit=False, big_endian=False)


def test_pydicom_finds_them_too() -> None:
    compared = 0
    for path in samples():
        try:
            with path.open("rb") as file:
                syntax = transfer_syntax(part10.seek_data_set(file))
        except RadmeshError:
            continue
        data = data_set(path)
        if syntax.deflated:
            continue
        try:
            state, _, found = locate(data, TAGS, implicit=syntax.implicit, big_endian=syntax.big_endian)
        except ValueError:
            continue
        ds = dcmread(path, force=True)
        assert state in (FOUND, ENDED)
        for tag, (start, value, end, _) in found.items():
            assert (tag in ds) == (end > start), (path.name, hex(tag))
            if end > start:
                raw = dcmread(path, force=True).get_item(tag)
                assert getattr(raw, "length", 0xFFFFFFFF) in (end - value, 0xFFFFFFFF)
            compared += 1
    assert compared > 400


def test_what_is_not_there_has_its_place() -> None:
    data = element(0x00080060, "CS", b"CT") + STUDY_ID
    state, offset, found = explicit(data, 0x00080050, 0x00100010, 0x00080060)
    assert (state, offset) == (FOUND, 10)
    assert found == {
        0x00080050: (0, 0, 0, False),
        0x00080060: (0, 8, 10, False),
        0x00100010: (10, 10, 10, False),
    }
    assert explicit(data, 0x04000561) == (ENDED, len(data), {0x04000561: (len(data),) * 3 + (False,)})
    assert explicit(b"")[0] == ENDED


def test_a_name_within_a_sequence_is_not_the_patients() -> None:
    for vr in (b"SQ", b"UN"):
        # UN of undefined length holds Implicit VR (PS3.5 6.2.2 note 2).
        inner = NAME if vr == b"SQ" else struct.pack("<HHI", 0x10, 0x10, 8) + b"Doe^John"
        nested = sequence(0x00081115, ITEM + inner + END_OF_ITEM + END, vr=vr)
        _, _, found = explicit(nested + NAME, 0x00081115, 0x00100010)
        assert found[0x00081115] == (0, 12, len(nested), True)
        assert found[0x00100010] == (len(nested), len(nested) + 8, len(nested) + 16, False)


def test_a_delimiter_with_a_length_is_none_the_longer() -> None:
    long = struct.pack("<I", 400)
    data = sequence(0x00081115, ITEM + NAME + END_OF_ITEM[:-4] + long + END[:-4] + long)
    assert explicit(data + NAME, 0x00100010)[2][0x00100010][0] == len(data)


def test_a_value_that_is_not_all_there_is_cut() -> None:
    data = NAME + element(0x00100020, "LO", b"P1")
    for size in range(1, len(data)):
        assert explicit(data[:size])[0] == (ENDED if size == len(NAME) else CUT)
    assert explicit(sequence(0x00081115, b"", length=0xFFFFFFF0))[0] == CUT


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (STUDY_ID + NAME, "order"),
        (NAME + NAME, "order"),
        (element(0, "UL", bytes(4)) * 2, "order"),
        (struct.pack("<HHI", 0x10, 0x10, 8) + b"Doe^John", "VR"),
        (sequence(0x00081115, (ITEM + sequence(0x00081115, b"")) * 1000), "deep"),
    ],
)
def test_what_needs_more_to_be_known_is_said(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        explicit(data)


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_any_bytes_are_borne(data: bytes, implicit: bool, big_endian: bool) -> None:
    try:
        state, offset, found = locate(data, TAGS, implicit=implicit, big_endian=big_endian)
    except ValueError:
        return
    assert state in (FOUND, ENDED, CUT)
    assert 0 <= offset <= len(data)
    assert all(0 <= start <= value <= end <= len(data) for start, value, end, _ in found.values())
