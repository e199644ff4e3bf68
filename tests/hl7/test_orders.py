"""Orders, demographics and merges, in DICOM's terms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.hl7.message import parse
from radmesh.hl7.orders import (
    DEFAULT_PATHS,
    Mapping,
    MergeEvent,
    Patient,
    PatientEvent,
    read_order,
    read_patient_event,
    subject,
)
from radmesh.runtime.errors import RadmeshError

PID = "PID|1||P1^^^CLINIC^MR||Muster^Max^M.^jun.^Dr.||19700131|M"


def hl7(*segments: str, kind: str = "ORM^O01^ORM_O01", version: str = "2.5.1"):
    header = f"MSH|^~\\&|RIS|CLINIC|RADMESH|PACS|2026||{kind}|1|P|{version}||||||UNICODE UTF-8"
    return parse("\r".join((header, *segments, "")).encode())


def one(*segments: str, mapping: Mapping | None = None, **more):
    events = read_order(hl7(*segments, **more), mapping)
    assert len(events) == 1
    return events[0]


def obr(**fields: str) -> str:
    return "|".join(["OBR", *(fields.get(f"f{n}", "") for n in range(1, 51))])


def location_of(call) -> tuple[str, str]:
    with pytest.raises(RadmeshError) as caught:
        call()
    return caught.value.reason, caught.value.metadata["location"]


def test_an_imaging_order_says_all():
    event = one(
        PID,
        "PV1|1|O||||||007^Referrer^Rita^^^Dr.",
        "ORC|NW|PL1^RIS|FI1^RIS||SC",
        "TQ1|1||||||20260102101500+0100",
        "OBR|1|PL1|FI1|CT1^CT head^L",
        "IPC|ACC1|RP1|1.2.3^RIS|SPS1|CT|||ROOM|CT_AET~CT_AET2",
        kind="OMI^O23^OMI_O23",
    )
    assert event.patient == Patient("P1", "CLINIC", "", "", "Muster^Max^M.^Dr.^jun.", "19700131", "M")
    assert (event.action, event.status) == ("NEW", "SCHEDULED")
    assert (event.accession_number, event.placer_order_number, event.filler_order_number) == ("ACC1", "PL1", "FI1")
    assert (event.study_instance_uid, event.requested_procedure_id, event.scheduled_procedure_step_id) == (
        "1.2.3",
        "RP1",
        "SPS1",
    )
    assert (event.procedure_code, event.procedure_description, event.procedure_code_scheme) == ("CT1", "CT head", "L")
    assert (event.modality, event.station_ae_title, event.scheduled_time) == ("CT", "CT_AET", "20260102101500")
    assert event.referring_physician_name == "Referrer^Rita^^Dr."
    assert event.remarks == ()


def test_a_general_order_says_it_in_the_fields_of_its_time():
    event = one(
        PID,
        "ORC|NW|PL1|FI1||||^^^202601020930^^S",
        obr(f2="PL1", f3="FI1", f4="CT1^CT head^L", f18="ACC1", f19="RP1", f20="SPS1", f24="CT", f44="CTX^CT skull^L"),
        "ZDS|1.2.3^RIS^Application^DICOM",
        version="2.3.1",
    )
    assert (event.accession_number, event.study_instance_uid, event.modality) == ("ACC1", "1.2.3", "CT")
    assert (event.requested_procedure_id, event.scheduled_procedure_step_id) == ("RP1", "SPS1")
    assert (event.procedure_code, event.procedure_description) == ("CTX", "CT skull")
    assert (event.scheduled_time, event.status) == ("202601020930", "SCHEDULED")


@pytest.mark.parametrize(
    ("fields", "ipc", "accession"),
    [
        ({"f3": "FI1", "f18": "OBR18"}, "IPC1", "IPC1"),
        ({"f3": "FI1", "f18": "OBR18"}, "", "OBR18"),
        ({"f3": "FI1^RIS"}, "", "FI1"),
        ({"f2": "PL1"}, "", ""),
    ],
)
def test_where_the_accession_number_comes_from(fields, ipc, accession):
    assert one(PID, "ORC|NW", obr(**fields), f"IPC|{ipc}").accession_number == accession


@pytest.mark.parametrize(
    ("orc", "obr_25", "action", "status"),
    [
        ("NW|||||", "", "NEW", "SCHEDULED"),
        ("NW||||CM", "", "NEW", "COMPLETED"),
        ("XO||||", "", "CHANGE", ""),
        ("XO||||IP", "", "CHANGE", "IN_PROGRESS"),
        ("SC||||CM", "S", "CHANGE", "COMPLETED"),
        ("SC||||", "F", "CHANGE", "COMPLETED"),
        ("SC||||", "I", "CHANGE", "IN_PROGRESS"),
        ("SC||||", "X", "CHANGE", "CANCELLED"),
        ("SC||||DC", "", "CHANGE", "CANCELLED"),
        ("SC||||??", "F", "CHANGE", ""),
        ("CA||||SC", "", "CANCEL", "CANCELLED"),
        ("OC||||", "", "CANCEL", "CANCELLED"),
        ("DC||||", "F", "CANCEL", "CANCELLED"),
        ("ca||||", "", "CANCEL", "CANCELLED"),
    ],
)
def test_what_becomes_of_an_order(orc, obr_25, action, status):
    event = one(PID, f"ORC|{orc}", obr(f3="FI1", f25=obr_25))
    assert (event.action, event.status) == (action, status)


def test_what_could_not_be_done_changes_nothing():
    assert read_order(hl7(PID, "ORC|UC|A1", "ORC|UA|A2", "OBR|1|A2")) == []


def test_several_orders_of_a_message():
    events = read_order(
        hl7(
            PID,
            "ORC|NW|A1|F1",
            obr(f18="ACC1"),
            "ORC|CA|A2|F2",
            obr(f18="ACC2"),
            obr(f2="A3", f18="ACC3"),
            "PID|1||P2||Other",
            obr(f18="ACC4"),
        )
    )
    assert [(e.accession_number, e.action, e.patient.patient_id) for e in events] == [
        ("ACC1", "NEW", "P1"),
        ("ACC2", "CANCEL", "P1"),
        ("ACC3", "CANCEL", "P1"),
        ("ACC4", "CHANGE", "P2"),
    ]
    assert [e.placer_order_number for e in events] == ["A1", "A2", "A3", ""]


def test_the_steps_of_one_procedure_are_one_order_and_share_its_study():
    steps = (PID, "ORC|NW|A1", obr(f18="ACC1", f20="S1"), "ORC|NW|A1", obr(f18="ACC1", f20="S2"), "ZDS|1.2.3")
    event = one(*steps)
    assert (event.study_instance_uid, event.scheduled_procedure_step_id) == ("1.2.3", "S1")
    event = one(PID, "ORC|CA|A1", obr(f18="ACC1", f20="S1"), "ORC|NW|A1", obr(f18="ACC1", f20="S2"))
    assert (event.action, event.scheduled_procedure_step_id) == ("NEW", "S2")
    # Another order of the message has no part in the ZDS.
    other = read_order(hl7(PID, "ORC|NW|A1", obr(f18="ACC1"), "ORC|NW|A2", obr(f18="ACC2"), "ZDS|1.2.3"))
    assert [e.study_instance_uid for e in other] == ["", "1.2.3"]
    two = read_order(hl7(PID, "ORC|NW|A1", "OBR|1|A1", "IPC|ACC1||1.2.3", "IPC|ACC2||1.2.4"))
    assert [(e.accession_number, e.study_instance_uid) for e in two] == [("ACC1", "1.2.3"), ("ACC2", "1.2.4")]


def test_what_is_missing_is_named():
    assert location_of(lambda: read_order(hl7("ORC|NW|A1"))) == ("HL7_SEGMENT_MISSING", "PID")
    assert location_of(lambda: read_order(hl7())) == ("HL7_SEGMENT_MISSING", "PID")
    assert location_of(lambda: read_order(hl7(PID))) == ("HL7_SEGMENT_MISSING", "ORC")
    assert location_of(lambda: read_order(hl7("PID|1||^^^CLINIC", "ORC|NW|A1"))) == ("HL7_FIELD_MISSING", "PID-3")
    assert location_of(lambda: read_order(hl7(PID, "ORC|NW", "OBR|1"))) == ("HL7_FIELD_MISSING", "OBR-3")
    assert location_of(lambda: read_order(hl7(f"PID|1||{'9' * 251}", "ORC|NW|A1"))) == ("HL7_FIELD_INVALID", "PID-3")
    assert location_of(lambda: read_order(hl7(r"PID|1||P\X00\1", "ORC|NW|A1"))) == ("HL7_FIELD_INVALID", "PID-3")
    assert location_of(lambda: read_order(hl7(PID, r"ORC|NW|A\X0D\1"))) == ("HL7_FIELD_INVALID", "ORC-2")


def test_values_of_lesser_weight_are_left_out_with_a_remark():
    event = one(
        "PID|1||P1||Muster||Aug 15, 1942|male",
        "ORC|NW|A1",
        obr(f18="ACC1", f24="MRI", f36="20261399"),
        "ZDS|1.2.x",
    )
    assert (event.study_instance_uid, event.scheduled_time) == ("", "")
    assert (event.patient.patient_birth_date, event.patient.patient_sex) == ("", "")
    assert event.modality == "MR"
    assert len(event.remarks) == 4
    assert not any("1942" in r or "male" in r for r in event.remarks)


@pytest.mark.parametrize(
    ("said", "date"),
    [("19700131", "19700131"), ("197001312359-0500", "19700131"), ("1970-01-31", "19700131"), ("1970", ""),
     ("197001", ""), ("00000000", ""), ("19700230", ""), ("", ""), ('""', "")],
)  # fmt: skip
def test_birth_dates(said, date):
    assert one(f"PID|1||P1||X||{said}", "ORC|NW|A1").patient.patient_birth_date == date


@pytest.mark.parametrize(
    ("said", "sex"), [("M", "M"), ("f", "F"), ("O", "O"), ("A", "O"), ("N", "O"), ("U", ""), ("", "")]
)
def test_sexes(said, sex):
    assert one(f"PID|1||P1||X|||{said}", "ORC|NW|A1").patient.patient_sex == sex


# Patients


@pytest.mark.parametrize(
    ("ids", "issuer", "chosen"),
    [
        ("1^^^A^SS~2^^^B^MR~3^^^C^PI", "", ("2", "B")),
        ("1^^^A^SS~2^^^B^MR~3^^^C^PI", "C", ("3", "C")),
        ("1^^^A&1.2.3&ISO^SS~2^^^B^MR", "1.2.3", ("1", "A")),
        ("1^^^A^SS~2^^^B^NH", "", ("1", "A")),
        ("^^^A^MR~2", "", ("2", "")),
        ("1^5^M11", "CLINIC", ("1", "CLINIC")),
        ("1^^^&1.2.3&ISO^MR", "CLINIC", ("1", "1.2.3")),
        ("1^^^B", "CLINIC", ("1", "B")),
    ],
)
def test_which_patient_id_is_taken(ids, issuer, chosen):
    patient = one(f"PID|1||{ids}", "ORC|NW|A1", mapping=Mapping(issuer=issuer)).patient
    assert (patient.patient_id, patient.issuer_of_patient_id) == chosen


def test_the_universal_id_of_the_issuer_is_kept():
    patient = one("PID|1||1^^^A&1.2.3&ISO^MR", "ORC|NW|A1").patient
    assert (patient.issuer_universal_id, patient.issuer_universal_id_type) == ("1.2.3", "ISO")


def test_old_versions_have_the_id_in_pid_2():
    assert one("PID|1|P2", "ORC|NW|A1", version="2.1").patient.patient_id == "P2"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Muster^Max", "Muster^Max"),
        ("van Beethoven&van&Beethoven^Ludwig^^^^PhD", "van Beethoven^Ludwig^^^PhD"),
        ("Muster^Max^^jun.^Dr.^MD", "Muster^Max^^Dr.^jun. MD"),
        ("Yamada^Tarou^^^^^L^A~山田^太郎^^^^^L^I~ヤマダ^タロウ^^^^^L^P", "Yamada^Tarou=山田^太郎=ヤマダ^タロウ"),
        ("山田^太郎^^^^^L^I", "=山田^太郎"),
        ("Alias^A^^^^^A~Muster^Max^^^^^L", "Muster^Max"),
        ("Alias^A^^^^^A", "Alias^A"),
        (r"Mus\S\ter=X\E\Y^Max", "Mus ter X Y^Max"),
        ("  Muster  von  ^ Max ", "Muster von^Max"),
        ("", ""),
        ('""', ""),
    ],
)
def test_names_become_dicoms(said, name):
    assert one(f"PID|1||P1||{said}", "ORC|NW|A1").patient.patient_name == name


def test_what_the_sender_wants_deleted_is_told_from_what_it_leaves():
    event = read_patient_event(hl7('PID|1||P1||Muster||""|', kind="ADT^A08"))
    assert isinstance(event, PatientEvent)
    assert event.trigger == "A08"
    assert event.patient.cleared == ("patient_birth_date",)


def test_a_merge_names_both_and_more_than_one():
    event = read_patient_event(
        hl7(
            "PID|1||NEW^^^CLINIC||Muster",
            "MRG|OLD^^^CLINIC||||||Alt^Max",
            "PID|2||N2",
            "PV1|1",
            "MRG|O2",
            "MRG|O3",
            kind="ADT^A40^ADT_A39",
        ),
        Mapping(issuer="DEFAULT"),
    )
    assert isinstance(event, MergeEvent)
    assert [(m.prior.patient_id, m.prior.issuer_of_patient_id, m.surviving.patient_id) for m in event.merges] == [
        ("OLD", "CLINIC", "NEW"),
        ("O2", "DEFAULT", "N2"),
        ("O3", "DEFAULT", "N2"),
    ]
    assert event.merges[0].prior.patient_name == "Alt^Max"


@pytest.mark.parametrize("trigger", ["A40", "A47"])
def test_of_several_ids_those_of_one_issuer_belong_together(trigger):
    event = read_patient_event(
        hl7("PID|1||1^^^A^MR~2^^^B^MR~3^^^C^PI||X", "MRG|9^^^X^MR~8^^^B^MR", kind=f"ADT^{trigger}"), Mapping(issuer="A")
    )
    merge = event.merges[0]
    assert (merge.prior.patient_id, merge.surviving.patient_id, merge.surviving.issuer_of_patient_id) == ("8", "2", "B")
    # An ID without an issuer is of the surviving one's.
    event = read_patient_event(hl7("PID|1||1^^^A^MR", "MRG|9", kind=f"ADT^{trigger}"))
    assert event.merges[0].prior.issuer_of_patient_id == "A"


def test_a_merge_that_cannot_be_is_named():
    def reading(*segments):
        return lambda: read_patient_event(hl7(*segments, kind="ADT^A40"))

    assert location_of(reading("MRG|1")) == ("HL7_SEGMENT_MISSING", "PID")
    assert location_of(reading("PID|1||1")) == ("HL7_SEGMENT_MISSING", "MRG")
    assert location_of(reading("PID|1||1", "MRG|2", "PID|1||3")) == ("HL7_SEGMENT_MISSING", "MRG(2)")
    assert location_of(reading("PID|1||1", "MRG|")) == ("HL7_FIELD_MISSING", "MRG-1")
    assert location_of(reading("PID|1||1^^^A", "MRG|1^^^A")) == ("HL7_FIELD_INVALID", "MRG-1")
    assert location_of(lambda: read_patient_event(hl7(kind="ADT^A08"))) == ("HL7_SEGMENT_MISSING", "PID")
    # The same number of another issuer is another patient.
    assert len(reading("PID|1||1^^^A", "MRG|1^^^B")().merges) == 1
    assert reading("PID|1||1", "MRG||||2")().merges[0].prior.patient_id == "2"


# Mapping


def test_a_domain_can_say_where_its_values_are():
    mapping = Mapping(
        paths={
            "accession_number": ["ZOR-3", "ORC-3"],
            "modality": ["ZOR-4.2.2"],
            "patient_id": ["PID-4"],
            "station_ae_title": ["NTE-3"],
        }
    )
    segments = ("PID|1||P3|P4^^^OLD", "ORC|NW|A1|F1", obr(f18="ACC", f24="CT"), "ZOR|||Z3|a^b&MR", "NTE|1||AET")
    event = one(*segments, mapping=mapping)
    assert (event.accession_number, event.modality, event.station_ae_title) == ("Z3", "MR", "AET")
    assert (event.patient.patient_id, event.patient.issuer_of_patient_id) == ("P4", "OLD")
    assert one(*segments[:3], mapping=mapping).accession_number == "F1"
    assert location_of(lambda: read_order(hl7("PID|1||P3", "ORC|NW|A1"), mapping)) == ("HL7_FIELD_MISSING", "PID-4")


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        ({"accession": ["OBR-18"]}, "one of accession_number"),
        ({"accession_number": "OBR-18"}, "a list"),
        ({"accession_number": []}, "a list"),
        ({"accession_number": ["OBR.18"]}, "no path"),
        ({"patient_id": ["MRG-1"]}, "read from PID"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_told(paths, text):
    with pytest.raises(ValueError, match=text):
        Mapping(paths=paths)


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("ORM^O01", "ORDER"), ("OMI^O23^OMI_O23", "ORDER"), ("OMG^O19", "ORDER"), ("ORM", "ORDER"),
        ("ADT^A01", "PATIENT"), ("ADT^A04", "PATIENT"), ("ADT^A05", "PATIENT"), ("ADT^A08", "PATIENT"),
        ("ADT^A31", "PATIENT"),
        ("ADT^A40", "MERGE"), ("ADT^A47", "MERGE"), ("ADT^A03", ""), ("ADT^A45", ""),
        ("ORU^R01", "REPORT"), ("SIU^S12", ""), ("", ""),
    ],
)  # fmt: skip
def test_what_a_message_is_about(kind, about):
    assert subject(hl7(kind=kind)) == about


def test_an_acknowledgement_is_one_whatever_its_type():
    assert subject(hl7("MSA|AA|1", kind="ACK")) == subject(hl7("MSA|AA|1", kind="ORR^O02")) == "ACKNOWLEDGEMENT"


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(
    st.lists(
        st.tuples(st.sampled_from(["PID", "ORC", "OBR", "IPC", "ZDS", "TQ1", "PV1"]), st.lists(TEXT, max_size=10)),
        max_size=8,
    )
)
def test_whatever_an_order_holds_is_text_that_a_database_takes(segments):
    lines = [PID, "ORC|NW|A1", *("|".join((name, *fields)) for name, fields in segments)]
    try:
        events = read_order(hl7(*lines))
    except RadmeshError as error:
        assert error.metadata["location"]
        return
    for event in events:
        for name in (*DEFAULT_PATHS, "action", "status"):
            value = getattr(event, name) if hasattr(event, name) else getattr(event.patient, name)
            assert "\x00" not in value
            value.encode()
            assert len(value) <= 1024
