"""The reader: odd separators, ends, batches, nulls, groups, types; any bytes at all."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.hl7 import message as message_module
from radmesh.hl7.escapes import Separators, escape, unescape
from radmesh.hl7.message import MessageType, parse, split_batch
from radmesh.hl7.orders import read_order, read_patient_event, subject
from radmesh.runtime.errors import RadmeshError

ORDER = (
    rb"MSH|^~\&|RIS|CLINIC|RADMESH|PACS|20260102030405+0100||ORM^O01^ORM_O01|4711|P|2.5.1|||AL|NE||8859/1" + b"\r"
    b"PID|1||P1^^^CLINIC&1.2.3&ISO^MR~P2^^^STATE^SS||Muster^Max\r"
    b"ORC|NW|A1|F1||SC\r"
    b"OBR|1|A1|F1|CT1^CT head^L\r"
    b"ORC|NW|A2|F2||SC\r"
    b"OBR|1|A2|F2|CT2^CT neck^L\r"
    b"OBR|2|A3|F3|CT3^CT chest^L\r"
    b"ZDS|1.2.3^RIS^Application^DICOM\r"
)


def header(**fields: str) -> bytes:
    parts = ["MSH", "^~\\&", *(fields.get(f"f{n}", "") for n in range(3, 20))]
    return "|".join(parts).encode() + b"\r"


def test_the_header_says_who_what_and_when():
    read = parse(ORDER)
    assert read.type == MessageType("ORM", "O01", "ORM_O01")
    assert str(read.type) == "ORM^O01"
    assert (read.sending_application, read.sending_facility) == ("RIS", "CLINIC")
    assert (read.receiving_application, read.receiving_facility) == ("RADMESH", "PACS")
    assert (read.control_id, read.version, read.time) == ("4711", "2.5.1", "20260102030405+0100")
    assert (read.accept_ack_type, read.application_ack_type) == ("AL", "NE")
    assert (read.charset, read.remarks, read.raw) == ("8859/1", (), ORDER)


def test_values_are_found_by_path():
    read = parse(ORDER)
    assert read.get("PID-3") == "P1"
    assert read.get("PID-3.4") == "CLINIC"
    assert read.get("PID-3.4.2") == "1.2.3"
    assert read.get("PID-3(2).1") == "P2"
    assert read.get("PID-3(3)") == read.get("PID-99") == read.get("ZZZ-1") == read.get("PID-3.9.9") == ""
    assert read.get("OBR(3)-4.2") == "CT chest"
    assert (read.get("MSH-1"), read.get("MSH-2"), read.get("MSH-3")) == ("|", "^~\\&", "RIS")
    assert [c.value for c in read.segments("OBR")[0].field(4).components] == ["CT1", "CT head", "L"]
    for wrong in ("PID", "PID-0", "pid-3", "PID-3.", "PID-3(0)", "PID-99999"):
        with pytest.raises(ValueError, match="no path"):
            read.get(wrong)


def test_groups_begin_at_an_orc_or_at_an_obr_of_its_own():
    names = [[s.name for s in group] for group in parse(ORDER).groups(("ORC", "OBR"))]
    assert names == [["ORC", "OBR"], ["ORC", "OBR"], ["OBR", "ZDS"]]
    assert [len(g) for g in parse(ORDER).groups(("PID",))] == [7]
    assert parse(ORDER).groups(("MRG",)) == []


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("ORM^O01^ORM_O01", ("ORM", "O01", "ORM_O01")),
        ("ORM^O01", ("ORM", "O01", "")),
        ("ORM", ("ORM", "", "")),
        ("ORM_O01", ("ORM", "O01", "ORM_O01")),
        ("^ORM_O01", ("ORM", "O01", "ORM_O01")),
        ("orm^o01", ("ORM", "O01", "")),
        ("", ("", "", "")),
    ],
)
def test_message_types_in_all_forms(said, read):
    assert parse(header(f9=said)).type == MessageType(*read)


def test_an_adt_without_trigger_takes_the_events():
    assert parse(header(f9="ADT") + b"EVN|A08|2026\r").type == MessageType("ADT", "A08", "")


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\r\n \t", b"\x00\x0b"])
def test_any_line_end_and_blanks_before(end, before):
    read = parse(before + ORDER.replace(b"\r", end))
    assert [s.name for s in read.all_segments] == ["MSH", "PID", "ORC", "OBR", "ORC", "OBR", "OBR", "ZDS"]
    assert read.get("ZDS-1") == "1.2.3"
    assert read.get("OBR(3)-4.3") == "L"


def test_a_line_that_begins_no_segment_belongs_to_the_one_before():
    text = b"OBX|1|TX|R||first line\nsecond line\r\nThe|third|x\r  NTE|1\rX\r"
    read = parse(ORDER + text)
    assert read.segment("OBX").field(5).value.startswith("first line\nsecond line\nThe")
    assert read.segment("NTE").text == "NTE|1\nX"


def test_odd_separators_are_read_as_they_are():
    read = parse(rb"MSH^~|\&^LAB^HERE^^^^^ORU~R01^7^P^2.4" + b"\rPID^1^^A~B|C\r")
    assert read.type == MessageType("ORU", "R01", "")
    assert read.control_id == "7"
    assert [r.value for r in read.segment("PID").field(3).repetitions] == ["A", "C"]
    assert read.remarks == ()


@pytest.mark.parametrize(
    ("said", "separators"),
    [
        (r"MSH|^~\&|X", Separators()),
        (r"MSH|^~\&#|X", Separators(truncation="#")),
        ("MSH|^~&|X", Separators(escape="")),
        (r"MSH|^~\\&|X", Separators()),
        ("MSH|||X", Separators()),
        ("MSH", Separators()),
        ("MSH|^|X", Separators()),
        (r"MSH|^&&^|X", Separators("|", "^", "&", "\\", "~")),
        ("MSH|0000|X", Separators()),
        (r"MSH|@%\&|X", Separators(component="@", repetition="%")),
    ],
)
def test_encoding_characters_that_make_no_sense_are_as_usual(said, separators):
    assert Separators.read(said) == separators


def test_null_is_not_empty():
    read = parse(ORDER + b'PV1|""||a^""^c\r')
    pv1 = read.segment("PV1")
    assert pv1.field(1).is_null
    assert not pv1.field(2).is_null
    assert pv1.field(3).component(2).is_null
    assert pv1.field(1).value == pv1.field(2).value == read.get("PV1-3.2") == pv1.field(1).plain == ""
    assert pv1.field(3).component(3).value == "c"
    assert pv1.field(2).repetitions == ()


def test_the_digest_leaves_out_the_time_and_nothing_else():
    later = ORDER.replace(b"20260102030405+0100", b"20260102040000")
    empty = ORDER.replace(b"20260102030405+0100", b"")
    assert parse(ORDER).digest() == parse(later).digest() == parse(empty).digest()
    expected = hashlib.sha256(empty).digest()
    assert parse(ORDER).digest() == expected
    assert parse(ORDER).digest(()) == hashlib.sha256(ORDER).digest()
    for other in (ORDER.replace(b"4711", b"4712"), ORDER.replace(b"|SC", b"|CA", 1), ORDER + b"\r"):
        assert parse(other).digest() != expected
    assert parse(ORDER).digest(("MSH-7", "PID-5")) == parse(ORDER.replace(b"Muster^Max", b"X")).digest(
        ("PID-5", "MSH-7")
    )
    assert parse(b"MSH|^~\\&|X").digest(("MSH-7", "PID-3")) == hashlib.sha256(b"MSH|^~\\&|X").digest()


def test_a_batch_is_split_into_its_messages():
    one, two = ORDER, ORDER.replace(b"4711", b"4712")
    batch = b"FHS|^~\\&|F\rBHS|^~\\&|B\r" + one + two + b"BTS|2\rFTS|1\r"
    assert split_batch(batch) == [one, two]
    assert split_batch(one + two) == [one, two]
    assert split_batch(one) == [one]
    assert [parse(m).control_id for m in split_batch(batch.replace(b"\r", b"\n"))] == ["4711", "4712"]
    assert parse(batch).control_id == "4711"
    assert split_batch(b"BHS|^~\\&|\rBTS|0\r") == [b"BHS|^~\\&|\rBTS|0\r"]


def test_utf_16_is_read_with_and_without_byte_order_mark():
    text = "MSH|^~\\&|RIS|||||||1|P|2.5||||||UNICODE UTF-16\rPID|1||P1||山田^太郎\r"
    for raw in (text.encode("utf-16"), text.encode("utf-16-be"), text.encode("utf-16-le")):
        read = parse(raw)
        assert read.get("PID-5.2") == "太郎"
        assert read.charset == "UNICODE UTF-16"
        assert split_batch(raw) == [raw]
        assert read.digest() == parse(raw).digest()


@pytest.mark.parametrize(
    "raw",
    [b"", b" ", b"PID|1||P1\r", b"\x00" * 99, b"GET / HTTP/1.1\r\n\r\n", b"<?xml?><MSH>", b"MSHA|x", b"BHS|^~\\&|\r"],
)
def test_what_does_not_begin_as_a_message_is_none(raw):
    with pytest.raises(RadmeshError) as caught:
        parse(raw)
    assert caught.value.reason == "HL7_NOT_A_MESSAGE"


def test_lengths_are_bounded(monkeypatch):
    monkeypatch.setattr(message_module, "MAX_SEGMENTS", 50)
    read = parse(header() + b"NTE|1\r" * 100)
    assert len(read.all_segments) == 50
    assert "more than 50 segments" in read.remarks[0]
    wide = parse(header() + b"PID" + b"|x" * 10_000)
    assert wide.segment("PID").field(4_000).value == "x"
    assert wide.segment("PID").field(9_000).value == ""
    many = parse(header() + b"PID|" + b"~" * 10_000)
    assert len(many.segment("PID").field(1).repetitions) == message_module.MAX_PARTS


# Escapes


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\F\b\S\c\T\d\R\e\E\f", "a|b^c&d~e\\f"),
        (r"one\.br\two\.sp2\three\.sk3\four\.in+4\\.ti-2\five\.fi\\.nf\\.ce\six", "one\ntwo\n\nthree   fourfive\nsix"),
        (r"\H\bold\N\ text", "bold text"),
        (r"\X41\\X4a4B\ \XE4\ ", "AJK \xe4 "),
        (r"C:\temp\file", r"C:\temp\file"),
        (r"50\50, \Zxx\ and \X4\ end\ ".strip(), r"50\50, \Zxx\ and \X4\ end" + "\\"),
        ("\\", "\\"),
        (r"\F", r"\F"),
        (r"\E\F\E\ ", r"\F\ "),
        (r"\P\ ", "# "),
        ("plain", "plain"),
    ],
)
def test_escapes(written, meant):
    assert unescape(written, Separators(), "8859/1") == meant


SEPARATORS = st.sampled_from(
    [Separators(), Separators(truncation="#"), Separators("^", "~", "|"), Separators("|", "@", "%", "$", "!")]
)


@given(st.text(st.characters(exclude_categories=("Cs",))), SEPARATORS)
def test_what_is_escaped_reads_back(text, separators):
    written = escape(text, separators)
    assert unescape(written, separators, "UNICODE UTF-8") == text.replace("\r\n", "\n").replace("\r", "\n")
    for separator in (separators.field, separators.component, separators.repetition, separators.subcomponent):
        assert separator not in written
    assert not any(c < " " for c in written)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=1, max_size=6), SEPARATORS)
def test_a_message_of_escaped_values_reads_back(values, separators):
    escaped = [escape(v, separators) for v in values]
    mark = separators.field
    text = f"MSH{mark}{separators.encoding_characters}{mark * 16}UNICODE UTF-8\rZZZ{mark}" + mark.join(escaped)
    segment = parse(text.encode()).segment("ZZZ")
    meant = [v.replace("\r\n", "\n").replace("\r", "\n") for v in values]
    got = [segment.field(n).value for n in range(1, len(values) + 1)]
    # The last ends with the line: blanks after it are none of its own. Two quotation marks are null.
    assert [g.rstrip() for g in got] == ["" if m == '""' else m.rstrip() for m in meant]


# Any bytes


@given(
    st.sampled_from([b"", b"MSH", b"MSH|", b"MSH|^~\\&|", header(f9="ORM^O01"), header(f9="ADT^A40"), ORDER]),
    st.lists(st.sampled_from([b"PID|", b"\r", b"\n", b"|", b"^", b"&", b"\\", b"~", b"ORC|NW", b"MRG|", b"\x1b$B"])),
    st.binary(max_size=200),
)
def test_no_bytes_break_the_reader(start, middle, end):
    raw = start + b"".join(middle) + end
    try:
        read = parse(raw)
    except RadmeshError as error:
        assert error.reason == "HL7_NOT_A_MESSAGE"
        return
    assert read.raw in (raw, *split_batch(raw))
    assert len(read.digest()) == 32
    for segment in read.all_segments:
        segment.text.encode()
        for number in range(30):
            for repetition in segment.field(number).repetitions:
                assert all(isinstance(s, str) for c in repetition.components for s in c.subcomponents)
    assert sum(len(g) for g in read.groups(("MSH",))) == len(read.all_segments)
    for understand in (read_order, read_patient_event):
        try:
            understand(read)
        except RadmeshError as error:
            assert error.reason in ("HL7_SEGMENT_MISSING", "HL7_FIELD_MISSING", "HL7_FIELD_INVALID")
            assert error.metadata["location"]
    assert isinstance(subject(read), str)
