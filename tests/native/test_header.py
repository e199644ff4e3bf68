"""The header scan against pydicom, over every file that pydicom ships, and against hostile input."""

import contextlib
import random
import struct
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file, get_testdata_files

from radmesh_native import header

WANTED = {
    0x00080005: b"CS",
    0x00080016: b"UI",
    0x00080018: b"UI",
    0x00080020: b"DA",
    0x00080050: b"SH",
    0x00080060: b"CS",
    0x00100010: b"PN",
    0x00100020: b"LO",
    0x00100030: b"DA",
    0x0020000D: b"UI",
    0x0020000E: b"UI",
    0x00200013: b"IS",
    0x00280010: b"US",
    0x00280011: b"US",
}


def data_set_of(path):
    """(encoding, data set bytes) of a file with preamble and meta; None for what has none."""
    raw = Path(path).read_bytes()
    if raw[128:132] != b"DICM":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = pydicom.filereader.read_file_meta_info(path)
            offset = 144 + meta.FileMetaInformationGroupLength
        syntax = str(meta.TransferSyntaxUID)
    except Exception:
        return None
    data = raw[offset:]
    if syntax == "1.2.840.10008.1.2.1.99":
        data = zlib.decompressobj(-15).decompress(data)
    encoding = {"1.2.840.10008.1.2": header.IMPLICIT, "1.2.840.10008.1.2.2": header.BIG_ENDIAN}.get(
        syntax, header.EXPLICIT
    )
    return encoding, data


FILES = [(p, found) for p in get_testdata_files() if Path(p).is_file() and (found := data_set_of(p))]


def scan(encoding, data, pieces=None):
    scanner = header.Scanner(encoding, WANTED)
    for piece in pieces or [data]:
        if scanner.feed(piece):
            break
    scanner.finish()
    return scanner


def test_enough_files():
    assert len(FILES) > 150


@pytest.mark.parametrize(
    ("path", "found"), FILES, ids=[p.rsplit("/", 2)[-2] + "/" + p.rsplit("/", 1)[-1] for p, _ in FILES]
)
def test_values_are_those_pydicom_reads(path, found):
    scanner = scan(*found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        for tag in WANTED:
            raw = dict.get(expected._dict, pydicom.tag.Tag(tag))
            want = raw.value if isinstance(raw, pydicom.dataelem.RawDataElement) else None
            if raw is not None and want is None and not isinstance(raw, pydicom.dataelem.RawDataElement):
                continue
            if scanner.error and want is not None:
                continue
            assert (scanner.value(tag) or b"") == (want or b""), hex(tag)
    parsed = header.split_header(scanner.header())
    assert set(parsed) == {tag for tag in WANTED if scanner.value(tag) is not None}
    if found[0] != header.BIG_ENDIAN:
        assert all(parsed[tag][1] == scanner.value(tag) for tag in parsed)


def test_no_file_fails():
    assert [path for path, found in FILES if scan(*found).error] == []


def test_a_cut_header_fails():
    encoding, data = data_set_of(get_testdata_file("CT_small.dcm"))
    ends, end = {0}, scan(encoding, data).position
    for cut in range(1, end + 1):
        scanner = scan(encoding, data[:cut])
        assert scanner.complete
        if scanner.error is None:
            ends.add(scanner.position)
            assert scanner.position == cut
        else:
            assert scanner.error[0] in ("DATA_SET_TRUNCATED", "BAD_VR")
    elements = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    assert len(ends) == 1 + sum(element.tag <= 0x0028FFFF for element in elements)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_give_the_same(seed):
    rng = random.Random(seed)
    _, (encoding, data) = rng.choice(FILES)
    data = data[:20_000]
    whole = scan(encoding, data)
    pieces, i = [], 0
    while i < len(data):
        n = rng.choice((1, 3, 17, 400, 5000))
        pieces.append(data[i : i + n])
        i += n
    cut = scan(encoding, data, pieces)
    assert cut.error == whole.error
    assert cut.header() == whole.header()


@given(
    st.integers(0, len(FILES) - 1),
    st.integers(0, 3000),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=5),
)
def test_hostile_data_sets_end_with_an_error_at_worst(which, cut, changes):
    encoding, data = FILES[which][1]
    mutated = bytearray(data[:cut])
    for position, value in changes:
        if position < len(mutated):
            mutated[position] = value
    scanner = scan(encoding, bytes(mutated))
    assert scanner.complete
    header.split_header(scanner.header())


@given(st.binary(max_size=300), st.sampled_from((header.IMPLICIT, header.EXPLICIT, header.BIG_ENDIAN)))
def test_noise(data, encoding):
    scanner = scan(encoding, data)
    header.split_header(scanner.header())
    with contextlib.suppress(ValueError):
        header.split_header(data)


def taken(data, wanted):
    try:
        return header.split_header(header.Tags(wanted).of(data))
    except ValueError:
        return None


SOME = {0x00080005: b"CS", 0x00100010: b"PN", 0x00100020: b"LO", 0x00280010: b"US"}


def test_some_elements_of_a_header():
    whole = scan(*FILES[0][1]).header()
    assert header.Tags(WANTED).of(whole) == whole
    assert header.Tags({}).of(whole) == b""
    assert header.Tags(SOME).of(b"") == b""
    for _, found in FILES:
        whole = scan(*found).header()
        expected = {tag: element for tag, element in header.split_header(whole).items() if tag in SOME}
        assert taken(whole, SOME) == expected
    encoding, data = FILES[0][1]
    scanner = header.Scanner(encoding, header.Tags(SOME))
    scanner.feed(data)
    assert scanner.header() == header.Tags(SOME).of(scan(encoding, data).header())


@given(st.integers(0, len(FILES) - 1), st.integers(0, 400), st.binary(max_size=3), st.integers(0, 400))
def test_some_elements_of_what_may_be_no_header(which, at, bytes_there, end):
    data = scan(*FILES[which][1]).header()
    data = (data[:at] + bytes_there + data[at + len(bytes_there) :])[: end or None]
    try:
        expected = {tag: element for tag, element in header.split_header(data).items() if tag in SOME}
    except ValueError:
        expected = None
    assert taken(data, SOME) == expected


def nested(depth):
    item, sequence = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF), b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    return (sequence + item) * depth


def test_nesting_is_bounded():
    assert scan(header.EXPLICIT, nested(10_000)).error[0] == "DATA_SET_UNREADABLE"


def test_nothing_is_kept_beyond_the_limit():
    scanner = header.Scanner(header.EXPLICIT, WANTED, limit=1000)
    element = b"\x08\x00\x18\x00UI\x40\x00" + b"1" * 64
    long = b"\x09\x00\x10\x10UN\0\0" + struct.pack("<I", 1 << 30) + bytes(2000)
    assert scanner.feed(element + long)
    assert scanner.error is not None
    assert scanner.value(0x00080018) == b"1" * 64


def test_an_element_without_vr_is_remarked():
    # (0010,1010) whose VR was left out: length 4 follows the tag as in Implicit VR
    data = b"\x08\x00\x60\x00CS\x02\x00CT\x10\x00\x10\x10\x04\x00\x00\x00045Y\x20\x00\x0d\x00UI\x04\x001.2\x00"
    scanner = scan(header.EXPLICIT, data)
    assert scanner.error is None
    assert scanner.remarks == ["BAD_VR 0010,1010"]
    assert scanner.value(0x0020000D) == b"1.2\0"


def test_implicit_declared_explicit():
    data = struct.pack("<HHI", 8, 0x60, 2) + b"CT" + struct.pack("<HHI", 0x20, 0xD, 4) + b"1.2\0"
    scanner = scan(header.EXPLICIT, data)
    assert scanner.remarks == ["VR_DECLARED_OTHER"]
    assert scanner.value(0x0020000D) == b"1.2\0"
