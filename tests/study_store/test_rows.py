"""Index rows as bytes: what was written is read, and what is damaged is never taken for a row."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from store_support import header

from radmesh.study_store import IndexRow, ObjectHeader, Ref
from radmesh.study_store.rows import content, decode, encode, encode_header

REF = Ref("0123456789abcdef" * 2, 3, 7)
# What a store takes: no NUL, and nothing that has no UTF-8.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=64)
HEADERS = st.builds(
    ObjectHeader,
    study_instance_uid=TEXT,
    series_instance_uid=TEXT,
    sop_class_uid=TEXT,
    sop_instance_uid=TEXT,
    transfer_syntax_uid=TEXT,
    calling_ae_title=TEXT,
    called_ae_title=TEXT,
    source_address=TEXT,
    admission_key=st.binary(min_size=32, max_size=32),
    verification=st.integers(0, 255),
)
ROWS = st.builds(
    IndexRow,
    ref=st.just(REF),
    header=HEADERS,
    length=st.integers(0, 2**63),
    sha256=st.binary(min_size=32, max_size=32),
    queryable=st.binary(max_size=300),
    receive_time=st.datetimes(datetime(1970, 1, 1), datetime(2500, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    remarks=st.lists(TEXT.filter(bool), max_size=4).map(tuple),
    transfer_id=st.binary(min_size=16, max_size=16),
)
ROW = IndexRow(
    REF,
    header(),
    1000,
    bytes(range(32)),
    b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192",
    datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC),
    ("BAD_VR 0010,1010",),
    bytes(16),
)


@given(ROWS, st.integers(0, 2**64 - 1))
def test_what_is_encoded_is_decoded(row, number):
    data = encode(row, number)
    assert decode(REF, data) == (row, number)
    assert content(data) == (row.length, row.sha256)


@given(st.integers(0, 10_000))
def test_a_cut_row_is_none(size):
    data = encode(ROW, 1)
    if size < len(data):
        with pytest.raises(ValueError, match="cut"):
            decode(REF, data[:size])


@given(st.binary(max_size=400), st.booleans())
@example(b"\x01" + b"\xff" * 300, True)
@example(b"\x01" + b"\xff" * 112 + bytes(300), True)
def test_other_bytes_are_a_value_error(data, versioned):
    if versioned:
        data = b"\x01" + data[1:]
    try:
        decode(REF, data)
    except ValueError:
        return


def test_a_newer_row_is_refused_by_name():
    with pytest.raises(ValueError, match="version 2"):
        decode(REF, b"\x02" + encode(ROW, 1)[1:])


def test_the_first_bytes_are_as_documented():
    """version, object number, length, receive time in microseconds since 1970, verification, SHA-256."""
    data = encode(replace(ROW, length=0x0102), 5)
    assert data[:1] == b"\x01"
    assert data[1:9] == bytes(7) + b"\x05"
    assert data[9:17] == bytes(6) + b"\x01\x02"
    assert data[17:25] == (1_767_323_045_678_901).to_bytes(8, "big")
    assert data[25:26] == b"\x01"
    assert data[26:58] == bytes(range(32))


@given(HEADERS, HEADERS)
def test_what_identifies_a_transfer_is_all_but_its_admission(one, other):
    same = replace(one, admission_key=other.admission_key, verification=other.verification)
    assert encode_header(one) == encode_header(same)
    assert (encode_header(same) == encode_header(other)) == (same == other)
