"""The header scan: what real writers do wrong, and what hostile ones might."""

import itertools
import random
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh_native import header

WANTED = {
    0x00080005: b"CS",
    0x00080018: b"UI",
    0x00080060: b"CS",
    0x00100020: b"LO",
    0x00104000: b"LT",
    0x0020000D: b"UI",
    0x00280010: b"US",
    0x00280106: b"US",
}
UNDEFINED = 0xFFFFFFFF
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def tag_of(tag: int) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def explicit(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    n = len(value) if length is None else length
    return tag_of(tag) + vr + (struct.pack("<HI", 0, n) if vr in LONG else struct.pack("<H", n)) + value


def implicit(tag: int, value: bytes, length: int | None = None) -> bytes:
    return tag_of(tag) + struct.pack("<I", len(value) if length is None else length) + value


def item(content: bytes) -> bytes:
    """An item of undefined length."""
    return implicit(0xFFFEE000, content + implicit(0xFFFEE00D, b""), UNDEFINED)


SEQUENCE_END = implicit(0xFFFEE0DD, b"")
SOP = explicit(0x00080018, b"UI", b"1.2\0")
STUDY = explicit(0x0020000D, b"UI", b"1.2.3\0")


def scan(data: bytes, encoding: int = header.EXPLICIT, pieces: int = 0) -> header.Scanner:
    scanner = header.Scanner(encoding, WANTED)
    step = pieces or len(data) or 1
    for i in range(0, len(data), step):
        if scanner.feed(data[i : i + step]):
            break
    scanner.finish()
    return scanner


def check(data: bytes, remarks: list[str], encoding: int = header.EXPLICIT) -> None:
    """The Study UID behind the oddity is found, in whatever pieces the bytes come."""
    for pieces in (0, 1, 7):
        scanner = scan(data, encoding, pieces)
        assert scanner.error is None
        assert scanner.value(0x0020000D) == b"1.2.3\0"
        assert scanner.remarks == remarks
        assert scanner.position == len(data)


@pytest.mark.parametrize("vr", [b"??", b"  ", b"\0\0", b"xx", b"AA"])
@pytest.mark.parametrize("value", [b"", b"12", b"1234567890", b"x" * 300])
def test_a_vr_of_nobody(vr: bytes, value: bytes) -> None:
    for length in (struct.pack("<H", len(value)), struct.pack("<HI", 0, len(value))):
        odd = tag_of(0x00101010) + vr + length + value
        check(SOP + odd + STUDY, ["BAD_VR 0010,1010"])


@pytest.mark.parametrize("value", [b"", b"CT"])
def test_the_first_element_has_no_vr(value: bytes) -> None:
    for odd in (implicit(0x00080005, value), tag_of(0x00080005) + b"  " + struct.pack("<H", len(value)) + value):
        check(odd + SOP + STUDY, ["BAD_VR 0008,0005"])


def test_the_last_element_of_an_item_has_no_vr() -> None:
    for odd in (implicit(0x00081155, b"1.2\0"), tag_of(0x00081155) + b"??" + struct.pack("<H", 4) + b"1.2\0"):
        for what in (item(odd), item(odd) * 2, implicit(0xFFFEE000, odd)):
            sequence = explicit(0x00081140, b"SQ", what + SEQUENCE_END, UNDEFINED)
            check(SOP + sequence + STUDY, [])


def test_a_sequence_without_vr() -> None:
    sequence = implicit(0x00081140, item(implicit(0x00081155, b"1.2\0")) + SEQUENCE_END, UNDEFINED)
    check(SOP + sequence + STUDY, ["BAD_VR 0008,1140"])
    check(SOP + implicit(0x00081140, SEQUENCE_END, UNDEFINED) + STUDY, ["BAD_VR 0008,1140"])


def test_unknown_sequences_hold_implicit_or_explicit_vr() -> None:
    for inner in (implicit(0x00081155, b"1.2\0"), explicit(0x00081155, b"UI", b"1.2\0"), b""):
        deep = item(inner) + SEQUENCE_END
        check(SOP + explicit(0x00091010, b"UN", deep, UNDEFINED) + STUDY, [])
    nested = explicit(0x00081140, b"SQ", item(explicit(0x00081155, b"UI", b"1.2\0")) + SEQUENCE_END, UNDEFINED)
    check(SOP + explicit(0x00091010, b"UN", item(nested) + SEQUENCE_END, UNDEFINED) + STUDY, [])


def test_encapsulated_values_are_stepped_over() -> None:
    fragments = implicit(0xFFFEE000, b"") + implicit(0xFFFEE000, b"\xff\xd8" + bytes(90)) + SEQUENCE_END
    icon = explicit(0x7FE00010, b"OB", fragments, UNDEFINED)
    check(SOP + explicit(0x00091110, b"SQ", item(icon) + SEQUENCE_END, UNDEFINED) + STUDY, [])


@pytest.mark.parametrize("first", [b"", b"ISO_IR 100", b"x" * 16_000])
def test_explicit_declared_implicit(first: bytes) -> None:
    check(explicit(0x00080005, b"CS", first) + SOP + STUDY, ["VR_DECLARED_OTHER"], header.IMPLICIT)
    check(explicit(0x00080006, b"SQ", first) + SOP + STUDY, ["VR_DECLARED_OTHER"], header.IMPLICIT)


def test_an_explicit_sequence_declared_implicit() -> None:
    sequence = explicit(0x00080006, b"SQ", item(SOP) + SEQUENCE_END, UNDEFINED)
    check(sequence + SOP + STUDY, ["VR_DECLARED_OTHER"], header.IMPLICIT)


def test_implicit_declared_explicit() -> None:
    rest = implicit(0x00080018, b"1.2\0") + implicit(0x0020000D, b"1.2.3\0")
    check(rest, ["VR_DECLARED_OTHER"])
    check(implicit(0x00080006, item(rest) + SEQUENCE_END, UNDEFINED) + rest, ["VR_DECLARED_OTHER"])


def test_implicit_whose_length_looks_like_a_vr() -> None:
    # 0x5344 bytes: as letters "DS"
    check(implicit(0x00080006, bytes(0x5344)) + implicit(0x0020000D, b"1.2.3\0"), [], header.IMPLICIT)


def test_an_item_without_its_sequence() -> None:
    lost = implicit(0xFFFEE000, SOP) + implicit(0xFFFEE00D, b"") + SEQUENCE_END
    check(SOP + lost + STUDY, ["ORDER FFFE,E000", "ORDER FFFE,E00D", "ORDER FFFE,E0DD"])


def test_tags_that_come_twice_or_late() -> None:
    scanner = scan(SOP + explicit(0x00080018, b"UI", b"9.9\0") + STUDY + explicit(0x00080005, b"CS", b"ISO_IR 100"))
    assert scanner.remarks == ["ORDER 0008,0018", "ORDER 0008,0005"]
    assert scanner.value(0x00080018) == b"1.2\0"
    assert list(header.split_header(scanner.header())) == [0x00080005, 0x00080018, 0x0020000D]


def test_a_flood_of_one_tag_hides_no_other() -> None:
    data = SOP * 200_000
    started = time.thread_time()
    scanner = scan(data + STUDY)
    assert scanner.value(0x0020000D) == b"1.2.3\0"
    assert len(scanner.remarks) == 32
    assert time.thread_time() - started < 1


def test_long_values_are_left_out_and_remarked() -> None:
    scanner = scan(SOP + explicit(0x00104000, b"LT", b"x" * 16_386) + STUDY)
    assert scanner.remarks == ["VALUE_TOO_LONG 0010,4000"]
    assert list(header.split_header(scanner.header())) == [0x00080018, 0x0020000D]
    assert scanner.header() == scanner.header()
    longest = scan(SOP + explicit(0x00104000, b"LT", b"x" * 16_384) + STUDY)
    assert header.split_header(longest.header())[0x00104000] == (b"LT", b"x" * 16_384)


def test_the_header_is_bounded() -> None:
    wanted = {0x00100000 + 2 * i: b"LT" for i in range(30)}
    scanner = header.Scanner(header.EXPLICIT, wanted)
    scanner.feed(b"".join(explicit(tag, b"LT", b"x" * 16_384) for tag in wanted))
    scanner.finish()
    assert 240_000 < len(scanner.header()) <= 262_144
    assert [remark.split()[0] for remark in scanner.remarks] == ["VALUE_TOO_LONG"] * (
        30 - len(header.split_header(scanner.header()))
    )


@pytest.mark.parametrize(
    ("vr", "size"),
    [
        *((vr, 1) for vr in (b"LO", b"OB", b"UN", b"UI", b"PN")),
        *((vr, 2) for vr in (b"US", b"SS", b"AT", b"OW")),
        *((vr, 4) for vr in (b"UL", b"SL", b"FL", b"OL", b"OF")),
        *((vr, 8) for vr in (b"FD", b"OD", b"UV", b"SV", b"OV")),
    ],
)
def test_big_endian_numbers_are_turned(vr: bytes, size: int) -> None:
    value = bytes(range(16))
    long = vr[:1] == b"O" or vr in (b"UN", b"UV", b"SV")
    data = (
        struct.pack(">HH", 0x0028, 0x0106) + vr + (struct.pack(">HI", 0, 16) if long else struct.pack(">H", 16)) + value
    )
    wanted = {0x00280106: b"OB" if vr == b"UN" else vr}
    scanner = header.Scanner(header.BIG_ENDIAN, wanted)
    scanner.feed(data)
    scanner.finish()
    turned = b"".join(value[i : i + size][::-1] for i in range(0, 16, size))
    assert header.split_header(scanner.header())[0x00280106] == (wanted[0x00280106], turned)
    assert scanner.value(0x00280106) == value


def test_a_sequence_is_not_what_was_wanted() -> None:
    scanner = scan(SOP + explicit(0x00100020, b"SQ", implicit(0xFFFEE000, b"")) + STUDY)
    assert list(header.split_header(scanner.header())) == [0x00080018, 0x0020000D]


def test_wanted_is_checked() -> None:
    for vr in (b"", b"L", b"XX", b"LOO"):
        with pytest.raises(ValueError, match="wanted"):
            header.Scanner(header.EXPLICIT, {0x00100020: vr})
    with pytest.raises(ValueError, match="encoding"):
        header.Scanner(3, WANTED)


def test_a_long_sequence_in_small_pieces_takes_no_square_of_time() -> None:
    sequence = explicit(0x00081140, b"SQ", item(SOP) * 100_000 + SEQUENCE_END, UNDEFINED)
    started = time.thread_time()
    scanner = scan(SOP + sequence + STUDY, pieces=500)
    assert scanner.value(0x0020000D) == b"1.2.3\0"
    assert time.thread_time() - started < 1


ODD = [
    SOP,
    STUDY,
    explicit(0x00081140, b"SQ", item(SOP) + SEQUENCE_END, UNDEFINED),
    explicit(0x00091010, b"UN", item(implicit(0x00081155, b"1.2\0")) + SEQUENCE_END, UNDEFINED),
    implicit(0x00101010, b"045Y"),
    tag_of(0x00101020) + b"??\x02\x00ab",
    explicit(0x00280010, b"US", b"\x00\x02"),
    explicit(0x00290010, b"LO", b"end"),
    item(b""),
    SEQUENCE_END,
    b"\xff\xff\xff\xff",
]


@given(
    st.lists(st.one_of(st.sampled_from(ODD), st.binary(max_size=12)), max_size=12),
    st.sampled_from((header.IMPLICIT, header.EXPLICIT, header.BIG_ENDIAN)),
    st.integers(1, 40),
)
def test_pieces_change_nothing(parts: list[bytes], encoding: int, pieces: int) -> None:
    data = b"".join(parts)
    whole, cut = scan(data, encoding), scan(data, encoding, pieces)
    assert (cut.error, cut.remarks, cut.position) == (whole.error, whole.remarks, whole.position)
    assert cut.header() == whole.header()
    header.split_header(whole.header())


def test_every_order_of_what_is_wanted() -> None:
    elements = [explicit(tag, b"LO", b"%d " % i) for i, tag in enumerate(sorted(WANTED)[:5])]
    for order in itertools.permutations(elements):
        assert scan(b"".join(order)).header() == b"".join(elements)


def test_many_wanted_in_any_order() -> None:
    wanted = {0x00100000 + i: b"LO" for i in range(400)}
    elements = {tag: explicit(tag, b"LO", tag.to_bytes(4, "big")) for tag in wanted}
    order = list(wanted)
    random.Random(1).shuffle(order)
    scanner = header.Scanner(header.EXPLICIT, wanted)
    scanner.feed(b"".join(elements[tag] for tag in order))
    scanner.finish()
    assert scanner.header() == b"".join(elements.values())
    assert all(scanner.value(tag) == tag.to_bytes(4, "big") for tag in wanted)
