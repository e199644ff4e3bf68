"""Headers as they are scanned out of real data sets, and what is made of their values."""

import warnings
from pathlib import Path

import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from radmesh.dicom import header, part10, uids
from radmesh.dicom.header import LEVELS, TAGS, WANTED, QueryableHeader, decode_text, new_scanner

CHARSET_FILES = Path(pydicom.data.__file__).parent / "charset_files"
EXPLICIT, IMPLICIT, BIG = (
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_BIG_ENDIAN,
)


def scanned(data: bytes, syntax: str) -> QueryableHeader:
    scanner = new_scanner(uids.transfer_syntax(syntax))
    scanner.feed(data)
    scanner.finish()
    assert scanner.error is None
    return QueryableHeader.parse(scanner.header())


def written(ds: Dataset, syntax: str) -> bytes:
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(file, ds)
    return bytes(file.getvalue())


def of(keyword: str, vr: bytes, value: bytes) -> QueryableHeader:
    return QueryableHeader({TAGS[keyword]: (vr, value)})


def test_the_table_is_that_of_the_standard() -> None:
    for rows in LEVELS.values():
        assert [tag for tag, _, _ in rows] == sorted(tag for tag, _, _ in rows)
        for tag, vr, keyword in rows:
            assert (dictionary_VR(tag), keyword_for_tag(tag)) == (vr, keyword)
    # Each element in one level, and none that the scanner does not reach.
    assert len(WANTED) == sum(map(len, LEVELS.values())) == len(TAGS)
    assert max(WANTED) <= 0x0028FFFF


# -- character sets


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chrArab.dcm", "قباني^لنزار"),
        ("chrFren.dcm", "Buc^Jérôme"),
        ("chrFrenMulti.dcm", "Buc^Jérôme"),
        ("chrGerm.dcm", "Äneas^Rüdiger"),
        ("chrGreek.dcm", "Διονυσιος"),
        ("chrH31.dcm", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("chrH32.dcm", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        ("chrHbrw.dcm", "שרון^דבורה"),
        ("chrI2.dcm", "Hong^Gildong=洪^吉洞=홍^길동"),
        ("chrJapMulti.dcm", "やまだ^たろう"),
        ("chrJapMultiExplicitIR6.dcm", "やまだ^たろう"),
        ("chrKoreanMulti.dcm", "김희중"),
        ("chrRuss.dcm", "Люкceмбypг"),  # noqa: RUF001 - with Latin letters in it
        ("chrX1.dcm", "Wang^XiaoDong=王^小東="),
        ("chrX2.dcm", "Wang^XiaoDong=王^小东="),
    ],
)
def test_names_in_real_files(name: str, text: str) -> None:
    """The samples of PS3.5 annexes H to K and of others, out of whole files."""
    with (CHARSET_FILES / name).open("rb") as file:
        syntax = part10.seek_data_set(file)
        found = scanned(file.read(), syntax)
    assert found.text("PatientName") == text
    assert found.character_set_remarks() == []


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize(
    ("declared", "name", "codec"),
    [
        ("ISO_IR 101", "Łódź^Žižek", "iso8859-2"),
        ("ISO_IR 109", "Ħal^Ġ", "iso8859-3"),
        ("ISO_IR 110", "Āboliņš", "iso8859-4"),
        ("ISO_IR 126", "Διονυσιος", "iso8859-7"),
        ("ISO_IR 148", "Çavuşoğlu", "iso8859-9"),
        ("ISO_IR 166", "เกข^ฃคฅ", "tis-620"),
        ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", "shift_jis"),
        ("GBK", "王^小东", "gbk"),
        # U+3400: four bytes.
        ("GB18030", "王^\u3400小东", "gb18030"),
        ("ISO_IR 192", "王^𠮷", "utf-8"),
    ],
)
def test_names_in_every_encoding_of_data_sets(syntax: str, declared: str, name: str, codec: str) -> None:
    ds = Dataset()
    ds.SpecificCharacterSet = declared
    ds.add_new(0x00081030, "LO", name.encode(codec))
    ds.add_new(0x00100010, "PN", name.encode(codec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scanned(written(ds, syntax), syntax)
    assert found.raw("PatientName").rstrip() == name.encode(codec)
    assert found.text("PatientName") == found.text("StudyDescription") == name
    assert found.character_set_remarks() == []


@pytest.mark.parametrize(
    ("raw", "declared", "vr", "text"),
    [
        # The first set is that of what stands before an escape sequence, and after a delimiter.
        (b"Dionysios=\x1b-F\xc4\xe9\xef\xed", b"ISO 2022 IR 6\\ISO 2022 IR 126", b"PN", "Dionysios=Διον"),
        (b"abc\x1b-T\xa1\xa2", b"ISO 2022 IR 6\\ISO 2022 IR 166", b"LO", "abcกข"),
        # JIS X 0212, in which 丂 is 3021.
        (b"\x1b$(D0!\x1b(B", b"ISO 2022 IR 6\\ISO 2022 IR 159", b"LO", "丂"),
        # Text of several lines: each designates its set anew (PS3.5 annex K.3).
        (
            b"1.\x1b$)A\xb5\xda\xd2\xbb\xd0\xd0\r\n2.\x1b$)A\xb5\xda\xb6\xfe\xd0\xd0\r\n",
            b"\\ISO 2022 IR 58",
            b"LT",
            "1.第一行\r\n2.第二行\r\n",
        ),
        (b"\x1b$)C\xb1\xe8\xc8\xf1\xc1\xdf\\B", b"\\ISO 2022 IR 149", b"LO", "김희중\\B"),
        # GBK has characters whose second byte is a backslash or a bar.
        (b"\x82\x5c^\x82\x7c", b"GBK", b"PN", b"\x82\x5c^\x82\x7c".decode("gbk")),
    ],
)
def test_sets_that_change_within_a_value(raw: bytes, declared: bytes, vr: bytes, text: str) -> None:
    assert decode_text(raw, declared, vr=vr) == text


def test_only_text_depends_on_the_character_set() -> None:
    elements = {
        TAGS["SpecificCharacterSet"]: (b"CS", b"ISO_IR 126"),
        TAGS["PatientName"]: (b"PN", b"\xc4"),
        TAGS["PatientSex"]: (b"CS", b"\xc4"),
        TAGS["StudyInstanceUID"]: (b"UI", b"\xc4\0"),
        # A VR of nobody: the element is known all the same.
        TAGS["StudyDescription"]: (b"UN", b"\xc4"),
    }
    found = QueryableHeader(elements)
    assert (found.text("PatientName"), found.text("StudyDescription")) == ("Δ", "Δ")
    assert (found.text("PatientSex"), found.text("StudyInstanceUID")) == ("Ä", "Ä")


# -- values


def test_what_is_absent_is_empty() -> None:
    found = QueryableHeader.parse(b"")
    assert (found.raw("PatientName"), found.text("PatientName"), found.number("Rows")) == (b"", "", 0)
    assert found.character_set_remarks() == []


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_values_are_the_same_in_every_encoding(syntax: str) -> None:
    ds = Dataset()
    ds.SOPInstanceUID = "2.25.123"
    ds.PatientName, ds.PatientID = "Doe^Jane", "P1"
    ds.NumberOfFrames, ds.Rows, ds.Columns = 12, 513, 65535
    ds.WindowCenter = ["40", "300"]
    found = scanned(written(ds, syntax), syntax)
    assert (found.text("SOPInstanceUID"), found.text("PatientName")) == ("2.25.123", "Doe^Jane")
    assert [found.number(k) for k in ("NumberOfFrames", "Rows", "Columns", "WindowCenter")] == [12, 513, 65535, 40]
    assert found.text("WindowCenter") == "40\\300"


@pytest.mark.parametrize(
    ("vr", "value", "number"),
    [
        (b"US", b"\x01\x02", 0x0201),
        # Two of them: the first counts.
        (b"US", b"\x01\x02\x03\x04", 0x0201),
        (b"UL", b"\x01\x02\x03\x04", 0x04030201),
        (b"IS", b" 12 ", 12),
        (b"IS", b"12\\13", 12),
        (b"IS", b"-3", -3),
        (b"DS", b"1e3\0", 1000),
        (b"DS", b"1.9", 1),
        (b"IS", b"", 0),
        (b"IS", b"twelve", 0),
        (b"IS", b"\xff\xfe", 0),
        (b"DS", b"nan", 0),
        (b"DS", b"inf", 0),
        (b"DS", b"1e999", 0),
        (b"US", b"", 0),
    ],
)
def test_numbers(vr: bytes, value: bytes, number: int) -> None:
    assert of("NumberOfFrames", vr, value).number("NumberOfFrames") == number


@given(st.binary(max_size=120))
def test_bytes_that_are_no_header_are_named(data: bytes) -> None:
    try:
        found = QueryableHeader.parse(data)
    except ValueError:
        return
    for keyword in TAGS:
        assert isinstance(found.text(keyword), str)
        assert isinstance(found.number(keyword), int)


def test_the_page_of_the_docs_has_each_element() -> None:
    page = header.document()
    for tag, vr, keyword in (row for rows in LEVELS.values() for row in rows):
        assert f"| ({tag >> 16:04X},{tag & 0xFFFF:04X}) | {vr} | {keyword} |" in page
