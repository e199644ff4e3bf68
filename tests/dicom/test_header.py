"""Text of real character sets, wrongly declared ones, and Part 10 files that are cut."""

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.dicom import part10
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.header import TAGS, WANTED, QueryableHeader, decode_text
from radmesh.dicom.stations import Station, match
from radmesh.runtime.errors import RadmeshError


def header(**values: bytes) -> QueryableHeader:
    return QueryableHeader({TAGS[k]: (WANTED[TAGS[k]], v) for k, v in values.items()})


# PS3.5 annexes H, I, J, K and what others write.
RIGHT = [
    (
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        b"\\ISO 2022 IR 87",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
        b"ISO 2022 IR 13\\ISO 2022 IR 87",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
    ),
    (
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        b"\\ISO 2022 IR 149",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        b"\\ISO 2022 IR 58",
        "Zhang^XiaoDong=张^小东=",
    ),
    ("王^小东".encode("gb18030"), b"GB18030 ", "王^小东"),
    ("王^小東".encode(), b"ISO_IR 192", "王^小東"),
    ("Διονυσιος".encode("iso8859-7"), b"ISO_IR 126", "Διονυσιος"),
    ("Люксембург".encode("iso8859-5"), b"ISO_IR 144", "Люксембург"),
    ("เกข".encode("tis-620"), b"ISO_IR 166", "เกข"),
    ("Buc^Jérôme".encode("latin-1"), b"ISO_IR 100", "Buc^Jérôme"),
]


@pytest.mark.parametrize(("raw", "declared", "text"), RIGHT)
def test_names_in_their_character_sets(raw: bytes, declared: bytes, text: str) -> None:
    assert decode_text(raw, declared, vr=b"PN") == text
    assert header(PatientName=raw, SpecificCharacterSet=declared).character_set_remarks() == []


@pytest.mark.parametrize(
    ("raw", "declared", "text", "remarks"),
    [
        ("Müller".encode(), b"", "Müller", ["CHARACTER_SET_WRONG 0010,0010"]),
        ("Müller".encode(), b"ISO_IR 100", "Müller", ["CHARACTER_SET_WRONG 0010,0010"]),
        ("Müller".encode("latin-1"), b"", "Müller", ["CHARACTER_SET_WRONG 0010,0010"]),
        ("Müller".encode("latin-1"), b"ISO_IR 192", "Müller", ["CHARACTER_SET_WRONG 0010,0010"]),
        (
            "Müller".encode(),
            b"ISO_IR 999",
            "Müller",
            ["CHARACTER_SET_UNKNOWN ISO_IR 999", "CHARACTER_SET_WRONG 0010,0010"],
        ),
        (b"Mueller", b"NOBODY\\ISO_IR 100", "Mueller", ["CHARACTER_SET_UNKNOWN NOBODY"]),
    ],
)
def test_wrong_declarations_lose_nothing_and_are_remarked(
    raw: bytes, declared: bytes, text: str, remarks: list[str]
) -> None:
    assert decode_text(raw, declared, vr=b"PN") == text
    assert header(PatientName=raw, SpecificCharacterSet=declared).character_set_remarks() == remarks


@pytest.mark.parametrize(
    "declared",
    [b"undefined", b"unicode_escape", b"raw_unicode_escape", b"utf_7", b"utf-16", b"punycode", b"unicode_escape\\GBK"],
)
@pytest.mark.parametrize("raw", [b"\xe9\\ud800", b"+2AA-\x1b(B", b"\\ud800\x1b$B;3", b"\x00\xd8\xe9"])
def test_a_codec_of_python_is_no_character_set(declared: bytes, raw: bytes) -> None:
    found = header(PatientName=raw, SpecificCharacterSet=declared)
    # A lone surrogate could not be stored, sent or hashed.
    assert AdmissionKey.of("CT1", found).digest()
    assert found.character_set_remarks()[0].startswith("CHARACTER_SET_UNKNOWN ")


@given(st.binary(max_size=40), st.binary(max_size=30), st.sampled_from([b"PN", b"LO", b"LT"]))
def test_any_bytes_are_some_text(raw: bytes, declared: bytes, vr: bytes) -> None:
    assert "\x1b" not in decode_text(raw, declared, vr=vr)
    for remark in header(PatientName=raw, SpecificCharacterSet=declared).character_set_remarks():
        assert remark.isprintable()
        assert len(remark) <= 64


def test_every_cut_of_the_meta_information_is_named() -> None:
    meta = part10.preamble_and_meta("1.2.840.10008.5.1.4.1.1.2", "2.25.1", "1.2.840.10008.1.2.1", "SOMEBODY")
    long = struct.pack("<HH2sHI", 2, 0x0102, b"OB", 0, 4) + b"abcd"
    whole = meta + long
    for end in range(132, len(whole)):
        file = io.BytesIO(whole[:end])
        try:
            assert part10.seek_data_set(file)
        except RadmeshError as error:
            assert error.reason == "FILE_NOT_DICOM"
    with pytest.raises(RadmeshError):
        part10.seek_data_set(io.BytesIO(whole[:-7]))
    file = io.BytesIO(whole + b"data")
    assert part10.seek_data_set(file) == "1.2.840.10008.1.2.1"
    assert file.read() == b"data"


def test_a_station_is_found_whatever_it_is_padded_with() -> None:
    stations = (Station("CT1 ", addresses=("10.0.0.0/8",)), Station("CT1"))
    assert match(stations, " CT1", "10.1.1.1") is stations[0]
    assert match(stations, "CT1 ", "192.168.1.1") is stations[1]
    assert match(stations, "CT2", "10.1.1.1") is None
