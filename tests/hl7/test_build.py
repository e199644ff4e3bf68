"""What radmesh says: hl7apy accepts it strictly, our own reader reads it back."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from depth import examples
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message as Hl7apyMessage
from hl7apy.parser import parse_message, parse_segments
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh.hl7.build import (
    ErrLocation,
    ReportMessage,
    acknowledge,
    acknowledgement_code,
    batch_acknowledgement,
    refusal,
    report,
)
from radmesh.hl7.message import parse, split_batch
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError

CLOCK = ManualClock(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
VERSIONS = ("2.2", "2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.8", "2.8.2")


def message(version: str = "2.5.1", *, charset: str = "", ask: str = "|", msh_2: str = "^~\\&", text: str = "ORM^O01"):
    sender = "RIS^1.2^ISO" if version > "2.2" else "RIS"
    raw = f"MSH|{msh_2}|{sender}|CLINIC|RADMESH|PACS|2026||{text}|id-4711|P|{version}|||{ask}||{charset}\rPID|1||P1\r"
    return parse(raw.encode("utf-8" if "8859" not in charset else "latin-1"))


def acknowledged(*arguments, **more):
    return acknowledge(*arguments, clock=CLOCK, control_id="R1", **more)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("code", ["AA", "AE", "CR"])
def test_hl7apy_accepts_acknowledgements_of_every_version_strictly(version, code):
    error = ErrLocation("PID-3", "101", "E", "HL7_FIELD_MISSING", "PID-3 has no patient ID") if code != "AA" else None
    octets = acknowledged(message(version), code, error=error, text="why" if error else "")
    built = Hl7apyMessage("ACK", version=version, validation_level=VALIDATION_LEVEL.STRICT)
    built.children = parse_segments(
        octets.decode(), version, None, VALIDATION_LEVEL.STRICT, built.reference, find_groups=True
    )
    assert built.validate()
    assert (built.msa.msa_1.value, built.msa.msa_2.value) == (code, "id-4711")


def test_an_acknowledgement_goes_back_to_who_sent():
    answer = acknowledged(message(), "AA")
    assert answer == (
        b"MSH|^~\\&|RADMESH|PACS|RIS^1.2^ISO|CLINIC|20260102030405+0000||ACK^O01^ACK|R1|P|2.5.1\rMSA|AA|id-4711\r"
    )
    named = parse(acknowledged(message(), "AA", sending=("A|B", "C")))
    assert (named.sending_application, named.sending_facility) == ("A|B", "C")


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("2.1", "ACK"),
        ("2.2", "ACK"),
        ("2.3.1", "ACK^O01"),
        ("2.4", "ACK^O01^ACK"),
        ("2.5^^", "ACK^O01^ACK"),
        ("9", "ACK^O01^ACK"),
    ],
)
def test_the_message_type_is_that_of_the_version(version, kind):
    answer = parse(acknowledged(message(version), "AA"))
    assert answer.header.field(9).plain == kind
    assert answer.header.field(12).plain == version
    assert acknowledged(message("2.5", text="ZZZ_Z01^^"), "AA").split(b"|")[8] == b"ACK^Z01^ACK"
    assert acknowledged(message("2.3", text="???"), "AA").split(b"|")[8] == b"ACK"


def test_an_error_names_its_place_as_the_version_has_it():
    error = ErrLocation("PID(2)-3(4).5", "102", "E", "HL7_FIELD_INVALID", "no good")
    err = parse(acknowledged(message("2.5"), "AE", error=error)).segment("ERR")
    assert err.field(2).plain == "PID^2^3^4^5"
    assert err.field(3).plain == "102^Data type error^HL70357"
    assert (err.field(4).value, err.field(5).value, err.field(8).value) == ("E", "HL7_FIELD_INVALID", "no good")
    old = parse(acknowledged(message("2.3"), "AE", error=error, text="no good"))
    assert old.segment("ERR").text == "ERR|PID^2^3^102&Data type error&HL70357"
    assert old.get("MSA-3") == "no good"
    assert parse(acknowledged(message(), "AE", error=ErrLocation("PID"))).segment("ERR").field(2).plain == "PID^1"
    assert parse(acknowledged(message(), "AE", error=ErrLocation("nowhere"))).segment("ERR").field(2).text == ""


def test_the_answer_speaks_the_senders_separators_and_set():
    raw = "MSH#@%$*#Röntgen##ICH####ORM@O01#Nr$T$ü@1#P#2.5######8859/1\r".encode("latin-1")
    octets = acknowledged(parse(raw), "AE", text="a # b")
    assert octets.startswith(b"MSH#@%$*#ICH##R\xf6ntgen#")
    assert b"#8859/1\rMSA#AE#Nr$T$\xfc@1#a $F$ b\r" in octets
    assert parse(octets).charset == "8859/1"
    assert parse(octets).sending_application == "ICH"
    without = parse(acknowledged(message(msh_2="^~&"), "AA"))
    assert (without.get("MSH-2"), without.get("MSA-2")) == ("^~\\&", "id-4711")
    truncating = parse(acknowledged(message("2.7", msh_2="^~\\&#"), "AA"))
    assert truncating.get("MSH-2") == "^~\\&#"


@pytest.mark.parametrize(
    ("ask", "codes"),
    [
        ("|", ("AA", "AE", "AR")),
        ("AL|NE", ("CA", "CE", "CR")),
        ("AL|AL", ("CA", "CE", "CR")),
        ("NE|AL", ("AA", "AE", "AR")),
        ("ER|NE", ("", "CE", "CR")),
        ("SU|NE", ("CA", "", "")),
        ("|ER", ("", "AE", "AR")),
        ("NE|NE", ("", "", "")),
        ("what|", ("CA", "CE", "CR")),
    ],
)
def test_the_sender_says_whether_and_how_it_is_answered(ask, codes):
    assert tuple(acknowledgement_code(message(ask=ask), outcome) for outcome in "AER") == codes


def test_a_refusal_says_whether_it_is_for_ever():
    def code_of(reason, read):
        answer = refusal(read, RadmeshError(reason, "why", metadata={"location": "PID-3"}), clock=CLOCK, control_id="R")
        return answer and parse(answer).get("MSA-1")

    assert code_of("HL7_FIELD_INVALID", message()) == "AE"
    assert code_of("HL7_FIELD_INVALID", message(ask="AL|")) == "CE"
    assert code_of("HL7_TYPE_UNKNOWN", message()) == "AR"
    assert code_of("STORAGE_FULL", message()) == "AE"
    assert code_of("HL7_NOT_A_MESSAGE", None) == "AR"
    assert code_of("HL7_FIELD_INVALID", message(ask="NE|NE")) is None


def test_the_answer_to_a_batch_is_one():
    answers = [acknowledged(message(), "AA"), acknowledged(message(), "AE")]
    octets = batch_acknowledgement(answers)
    assert split_batch(octets) == answers
    assert octets.endswith(b"BTS|2\r")


@given(st.binary(max_size=60), st.text(st.characters(exclude_categories=("Cs",)), max_size=200))
def test_whatever_the_message_its_answer_can_be_read(junk, text):
    raw = b"MSH|^~\\&|a" + junk.replace(b"\r", b"").replace(b"\n", b"")
    read = parse(raw)
    answer = parse(acknowledged(read, "AE", text=text, error=ErrLocation("PID-3", text=text)))
    assert answer.get("MSA-1") == "AE"
    assert answer.control_id == "R1"
    assert len(answer.all_segments) == 3


# Reports

REPORT = ReportMessage(
    control_id="R-4711-1",
    time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))),
    patient_id="P1",
    study_instance_uid="1.2.826.0.1.3680043",
    text="Befund:\n\nKein Nachweis | von ^ & ~ \\ Frakturen.\n" + "wort " * 200 + "\n",
    sending=("RADMESH", "PACS"),
    receiving=("RIS", "CLINIC"),
    issuer_of_patient_id="CLINIC",
    patient_name="Müller^Jörg^K.^Dr.^jun.",
    patient_birth_date="19700101",
    patient_sex="M",
    placer_order_number="PL1",
    filler_order_number="FI1",
    accession_number="ACC1",
    requested_procedure_id="RP1",
    procedure_code="CT1",
    procedure_code_scheme="L",
    procedure_description="CT Schädel",
    study_time="20260102",
    radiologist_id="r1",
    radiologist_name="Kühn^Anna",
)


@pytest.mark.parametrize("version", ["2.3.1", "2.4", "2.5", "2.5.1", "2.6"])
def test_reports_of_every_version_read_back(version):
    octets = report(replace(REPORT, hl7_version=version))
    read = parse(octets)
    assert (read.remarks, read.charset) == ((), "UNICODE UTF-8")
    assert (str(read.type), read.control_id, read.version) == ("ORU^R01", "R-4711-1", version)
    assert read.time == "20260102030405+0100"
    assert (read.get("PID-3"), read.get("PID-3.4"), read.get("PID-7"), read.get("PID-8")) == (
        "P1",
        "CLINIC",
        "19700101",
        "M",
    )
    assert [c.value for c in read.segment("PID").field(5).components] == ["Müller", "Jörg", "K.", "jun.", "Dr."]
    paths = (
        "OBR-2",
        "OBR-3",
        "OBR-18",
        "OBR-19",
        "OBR-4",
        "OBR-4.2",
        "OBR-25",
        "OBR-32.1.1",
        "OBR-32.1.2",
        "OBR-32.1.3",
    )
    assert [read.get(p) for p in paths] == ["PL1", "FI1", "ACC1", "RP1", "CT1", "CT Schädel", "F", "r1", "Kühn", "Anna"]
    assert (read.get("OBX-3"), read.get("OBX-5")) == ("113014", "1.2.826.0.1.3680043")
    lines = [s.field(5).plain for s in read.segments("OBX")[1:]]
    assert "\n".join(lines) + "\n" == REPORT.text
    assert {s.field(11).value for s in read.segments("OBX")} == {"F"}
    # hl7apy itself, reading it as a stranger would.
    assert parse_message(octets.decode()).msh.msh_10.value == "R-4711-1"


def test_the_same_report_always_has_the_same_bytes():
    assert report(REPORT) == report(replace(REPORT))
    assert report(REPORT) != report(replace(REPORT, control_id="R-4711-2"))


def test_the_status_tells_what_it_is():
    for status, said in (("P", "P"), ("F", "F"), ("C", "C"), ("A", "C")):
        read = parse(report(replace(REPORT, status=status)))
        assert {read.get("OBR-25"), *(s.field(11).value for s in read.segments("OBX"))} == {said}
    assert parse(report(replace(REPORT, status="A"))).get("OBX(2)-3") == "55107-7"
    with pytest.raises(RadmeshError):
        report(replace(REPORT, status="X"))


def test_a_report_without_order_and_name_is_valid_too():
    bare = ReportMessage("1", datetime(2026, 1, 2, tzinfo=UTC), "P1", "1.2.3", "nothing")
    read = parse(report(bare))
    assert (read.get("PID-5.7"), read.get("OBR-4"), read.get("OBR-3")) == ("U", "18748-4", "")


def test_a_name_in_three_scripts():
    read = parse(report(replace(REPORT, patient_name="Yamada^Tarou=山田^太郎=やまだ^たろう")))
    names = read.segment("PID").field(5).repetitions
    assert [n.component(1).value for n in names] == ["Yamada", "山田", "やまだ"]
    assert [n.component(8).value for n in names] == ["A", "I", "P"]


def test_the_wanted_set_is_taken_where_the_text_fits():
    german = parse(report(replace(REPORT, charset="8859/1")))
    assert (german.get("MSH-18"), german.charset, german.get("PID-5")) == ("8859/1", "8859/1", "Müller")
    greek = parse(report(replace(REPORT, charset="8859/1", text="Ω")))
    assert (greek.get("MSH-18"), greek.get("OBX(2)-5")) == ("UNICODE UTF-8", "Ω")
    kanji = report(
        replace(REPORT, charset="~ISO IR87", patient_name="山田", procedure_description="", radiologist_name="")
    )
    assert parse(kanji).get("PID-5") == "山田"
    assert b"|~ISO IR87~ISO IR159\r" in kanji
    assert b"MSH" in report(replace(REPORT, charset="nonsense"))


def test_what_the_version_cannot_say_is_an_error_without_values():
    for wrong in (
        replace(REPORT, hl7_version="2.3"),
        replace(REPORT, hl7_version="9.9"),
        replace(REPORT, patient_id=""),
        replace(REPORT, control_id=""),
        replace(REPORT, accession_number="SECRET" * 100),
    ):
        with pytest.raises(RadmeshError) as caught:
            report(wrong)
        assert caught.value.reason == "HL7_REPORT_INVALID"
        assert "SECRET" not in str(caught.value)


def test_a_long_paragraph_is_cut_at_a_blank_and_loses_nothing():
    for text in ("word " * 15_000, "x" * 70_000):
        lines = [s.field(5).plain for s in parse(report(replace(REPORT, text=text))).segments("OBX")[1:]]
        assert len(lines) == 3
        assert "".join(lines).rstrip() == text.rstrip()


@settings(max_examples=examples(40))
@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=80),
    st.lists(st.sampled_from("|^~&\\FSTREX.br04 "), max_size=30),
)
def test_any_text_arrives_as_it_was_written(text, escapes):
    said = text + "".join(escapes)
    line = parse(report(replace(REPORT, text=said))).segments("OBX")[1].field(5)
    assert line.value.rstrip() == ("" if said == '""' else said.rstrip())
