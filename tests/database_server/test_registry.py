"""Registration: what a record is compared with what is known, what is counted, and that no record stops the others."""

import random
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from database_support import (
    ALL,
    ALREADY,
    ANYBODY,
    HELD,
    JPEG,
    NEW,
    OTHER_STUDY,
    SPOOL,
    UNVERIFIED,
    VARIANT,
    VERIFIED,
    Parts,
    at_once,
    element,
    header,
    meeting,
    order,
    record,
    ris_patient,
    uid,
)
from depth import allowed, times
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh.database_server.registry import Record, _Parsed
from radmesh.database_server.schema import (
    MIGRATIONS,
    admissions,
    instances,
    locations,
    marks,
    metadata,
    patients,
    series,
    studies,
)
from radmesh.database_server.texts import name_key
from radmesh.dicom.domains import Domains, RisDomain
from radmesh.dicom.header import TAGS
from radmesh.dicom.stations import Station
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

TRANSFER_SYNTAX, HEADER = 1, 2


def test_everything_is_built_from_the_records(parts: Parts) -> None:
    description: dict[str, Any] = {
        "StudyDescription": "Schädel",
        "AccessionNumber": "A1",
        "StudyID": "7",
        "PatientSex": "M",
    }
    one = record(sop=1, PatientBirthDate="19700101", ReferringPhysicianName="Who^Doctor", **description)
    two = record(sop=2, series=1, Modality="SR", SeriesNumber=2, PatientBirthDate="19700101", **description)
    assert parts.register(one, two) == [(NEW, 0), (NEW, 0)]
    study = parts.study()
    expected = {
        "patient_id": "P0",
        "patient_name": "Doe^John",
        "patient_birth_date": "19700101",
        "patient_sex": "M",
        "accession_number": "A1",
        "study_date": "20260101",
        "study_id": "7",
        "study_description": "Schädel",
        "referring_physician_name": "Who^Doctor",
        "modalities": ["CT", "SR"],
        "series_count": 2,
        "instance_count": 2,
        "bytes": 2000,
        "stations": ["CT1"],
        "corrected": False,
    }
    assert {key: study[key] for key in expected} == expected
    assert [(row["modality"], row["instance_count"]) for row in parts.queries.series(study, viewer=ALL)] == [
        ("CT", 1),
        ("SR", 1),
    ]
    instance = parts.instances(sop_instance_uid=uid("sop", 1))[0]
    assert (instance["rows"], instance["columns"], instance["number_of_frames"]) == (512, 256, 0)
    assert [(p["store_id"], p["sequence"]) for p in instance["locations"]] == [("archive-0", 2)]


def test_the_same_call_twice_changes_nothing(parts: Parts) -> None:
    batch = [record(sop=sop) for sop in range(5)]
    assert parts.register(*batch) == [(NEW, 0)] * 5
    before = {table.name: parts.rows(table) for table in (patients, studies, series, admissions, instances, locations)}
    assert parts.register(*batch) == [(ALREADY, 0)] * 5
    assert before == {
        table.name: parts.rows(table) for table in (patients, studies, series, admissions, instances, locations)
    }


def test_a_copy_elsewhere_adds_a_location(parts: Parts) -> None:
    parts.register(record(sop=1))
    assert parts.register(record(sop=1, store_id="archive-1")) == [(ALREADY, 0)]
    assert [p["store_id"] for p in parts.instances()[0]["locations"]] == ["archive-0", "archive-1"]
    assert parts.study()["instance_count"] == 1


def test_other_content_is_kept_beside_the_first(parts: Parts) -> None:
    first = record(sop=1)
    syntax = record(sop=1, sequence=3, content="jpeg", changes={"transfer_syntax_uid": JPEG})
    changed = record(sop=1, sequence=4, content="header")
    assert parts.register(first, syntax, changed) == [(NEW, 0), (VARIANT, TRANSFER_SYNTAX), (VARIANT, HEADER)]
    assert [(row["current"], row["variant"]) for row in parts.instances()] == [(True, 0), (False, 1), (False, 2)]
    assert [row["sha256"] for row in parts.instances(variants=False)] == [first.sha256]
    study = parts.study()
    assert (study["instance_count"], study["variant_count"], study["bytes"]) == (1, 2, 1000)
    # In whatever order they are told again, the first stays current.
    assert parts.register(changed, syntax, first) == [(ALREADY, 0)] * 3
    assert [row["sha256"] for row in parts.instances(variants=False)] == [first.sha256]


def test_a_uid_in_another_study_is_kept_and_can_be_found(parts: Parts) -> None:
    parts.register(record(study=0, sop=1))
    assert parts.register(record(study=1, sop=1, content="other")) == [(OTHER_STUDY, 0)]
    assert [row["current"] for row in parts.instances(study=1)] == [False]
    assert parts.study(1)["instance_count"] == 0
    # What was acknowledged is found by everybody who may see the study, though it is the study's only object.
    assert [row["current"] for row in parts.instances(study=1, viewer=ANYBODY)] == [False]


def test_all_records_or_none(parts: Parts) -> None:
    parts.register(record(sop=0))
    with pytest.raises(RadmeshError) as error:
        parts.registry.register([record(sop=1), record(sop=2, store_id="archive-1")])
    assert error.value.reason == "FIELD_INVALID"
    with pytest.raises(RadmeshError) as error:
        parts.registry.register([record(sop=1, store_id="nobody")])
    assert error.value.reason == "STORE_UNKNOWN"
    assert len(parts.rows(instances)) == 1


def test_patients_are_told_by_id_and_issuer(parts: Parts) -> None:
    same: dict[str, Any] = {"PatientID": "1", "IssuerOfPatientID": "A"}
    parts.register(
        record(study=0, sop=0, **same),
        record(study=1, sop=1, **same),
        record(study=2, sop=2, PatientID="1", IssuerOfPatientID="B"),
        record(study=3, sop=3, PatientID="1"),
        record(study=4, sop=4, PatientID=""),
        record(study=5, sop=5, PatientID=""),
    )
    patient = {row["study_instance_uid"]: row["patient"] for row in parts.rows(studies)}
    of = [patient[uid("study", number)] for number in range(6)]
    assert of[0] == of[1]
    assert len(set(of)) == 5


# -- bad input


def _poisoned() -> list[tuple[str, bytes]]:
    """Headers that a station can bring about: each has to be registered, with what can be made of it."""
    good = header(PatientID="P", StudyDate="20260101")
    # Of letters that do not compress: PostgreSQL takes only so much into an index.
    long = "".join(chr(number) for number in random.Random(1).choices(range(0x4E00, 0x9FA5), k=4000))
    return [
        ("none", b""),
        ("garbage", b"\xff" * 100),
        ("cut", good[:-3]),
        # A VR of PS3.5 that is not the element's own: the scan lets it pass as declared.
        ("name as OB", header({"PatientName": b"OB"}, PatientName="Doe^John", PatientID="P")),
        ("name as SQ", header({"PatientName": b"SQ"}, PatientName="Doe^John", PatientID="P")),
        ("name as UV", header({"PatientName": b"UV"}, PatientName="Doe^John", PatientID="P")),
        ("name as UN", header({"PatientName": b"UN"}, PatientName="Doe^John", PatientID="P")),
        ("name as UT", header({"PatientName": b"UT"}, PatientName="x" * 16000, PatientID="P")),
        ("rows are huge", header({"Rows": b"DS"}, Rows=b"9e99")),
        ("rows are negative", header({"Rows": b"SL"}, Rows=b"\xff\xff\xff\xff")),
        ("rows are long", header({"Rows": b"UL"}, Rows=b"\xff\xff\xff\xff")),
        ("frames are huge", header(NumberOfFrames=b"99999999999999999999")),
        ("number is huge", header(InstanceNumber=b"9" * 4000, SeriesNumber=b"9" * 4000)),
        ("NUL within", header(PatientID=b"a\0b", StudyDescription=b"c\0d", PatientName=b"e\0f")),
        ("no such charset", header(SpecificCharacterSet="ISO_IR 4711", PatientName=b"M\xfcller")),
        ("wrong charset", header(SpecificCharacterSet="ISO_IR 192", PatientName=b"M\xfcller")),
        ("everything is long", header({}, **dict.fromkeys(_TEXTS, long))),
        ("modality is many", header(Modality=b"CT\\MR\\" + b"X" * 100)),
    ]


_TEXTS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "SeriesDescription",
    "StationName",
    "Manufacturer",
)


def test_no_header_stops_a_registration(parts: Parts) -> None:
    for number, (name, blob) in enumerate(_poisoned()):
        batch = [
            record(study=("before", number), sop=("before", number)),
            record(study=name, sop=name, changes={"header": blob}),
            record(study=("behind", number), sop=("behind", number)),
        ]
        assert parts.register(*batch) == [(NEW, 0)] * 3, name
        found = parts.instances(study=name)[0]
        for field in ("rows", "columns", "number_of_frames"):
            assert 0 <= found[field] < 1 << 31, name
        assert parts.study(name)["study_instance_uid"] == uid("study", name)


def test_a_wrong_vr_still_gives_the_name(parts: Parts) -> None:
    parts.register(record(changes={"header": header({"PatientName": b"UN"}, PatientName="Doe^Jane", PatientID="P")}))
    assert parts.study()["patient_name"] == "Doe^Jane"


def test_names_in_their_character_sets(parts: Parts) -> None:
    names = (
        ("ISO_IR 100", b"M\xfcller^Anna", "Müller^Anna"),
        (
            "ISO_IR 144",
            b"\xbb\xee\xda\xd5\xdc\xd1\xe3\xe0\xd3",
            b"\xbb\xee\xda\xd5\xdc\xd1\xe3\xe0\xd3".decode("iso8859-5"),
        ),
        ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        ("GB18030", "王^小东".encode("gb18030"), "王^小东"),
    )
    for number, (charset, raw, name) in enumerate(names):
        parts.register(record(study=number, sop=number, SpecificCharacterSet=charset, PatientName=raw))
        assert parts.study(number)["patient_name"] == name


@given(st.binary(max_size=200))
def test_any_bytes_as_header(blob: bytes) -> None:
    _Parsed(replace(record(), header=blob))


@given(
    st.sampled_from(sorted(TAGS)),
    st.sampled_from([b"OB", b"UN", b"SQ", b"LO", b"DS", b"US", b"SV"]),
    st.binary(max_size=80),
)
def test_any_element_of_any_vr(keyword: str, vr: bytes, value: bytes) -> None:
    parsed = _Parsed(replace(record(), header=element(TAGS[keyword], vr, value)))
    assert all("\0" not in text for text in (*parsed.text.values(), *parsed.own.values()))
    assert all(0 <= number < 1 << 31 for number in (parsed.rows, parsed.columns, parsed.frames))


@given(st.text())
def test_a_name_key_is_stable(name: str) -> None:
    key = name_key(name)
    assert key.startswith("=")
    assert key.endswith("=")
    assert name_key(key.strip("=")) == key or not key.strip("=")


# -- counters


def _recount(parts: Parts) -> None:
    """Every figure that is kept beside the rows is what the rows say."""
    rows = parts.rows(instances)
    held = {row["id"] for row in parts.rows(admissions) if row["verification"] == HELD}
    kinds: dict[int, set[str]] = defaultdict(set)
    for one in parts.rows(series):
        kinds[one["study"]].add(one["modality"])
        mine = [row for row in rows if row["series"] == one["id"] and row["current"]]
        assert one["instance_count"] == len(mine)
    for study in parts.rows(studies):
        mine = [row for row in rows if row["study"] == study["id"]]
        current = [row for row in mine if row["current"]]
        assert len({row["sop_instance_uid"] for row in current}) == len(current)
        assert study["instance_count"] == len(current)
        assert study["bytes"] == sum(row["length"] for row in current)
        assert study["variant_count"] == len(mine) - len(current)
        assert study["held_count"] == sum(row["admission"] in held for row in current)
        assert study["defective_count"] == sum(bool(row["defect"]) for row in current)
        assert study["series_count"] == sum(one["study"] == study["id"] for one in parts.rows(series))
        assert set(study["modalities"].strip("\\").split("\\")) == kinds[study["id"]]
        assert study["last_receive_time"] == max(row["receive_time"] for row in mine)


def _any_record(choose: random.Random, sequence: int) -> Record:
    return record(
        study=choose.randrange(3),
        sop=choose.randrange(12),
        series=choose.randrange(2),
        sequence=sequence,
        store_id=choose.choice(("archive-0", "archive-1")),
        content=choose.randrange(2),
        station=choose.choice(("CT1", "CT2")),
        Modality=choose.choice(("CT", "MR")),
        changes={"receive_time": choose.randrange(1, 1000), "verification": choose.choice((1, 1, 3, HELD))},
    )


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_what_the_rows_say(parts: Parts, seed: int) -> None:
    choose = random.Random(seed)
    sequence = 0
    for _ in range(15):
        store = choose.choice(("archive-0", "archive-1"))
        batch = []
        for _ in range(choose.randrange(1, 8)):
            sequence += 1
            batch.append(replace(_any_record(choose, sequence), store_id=store))
        parts.register(*batch)
        if choose.random() < 0.5:
            parts.register(*batch)
        defects = ("PIXEL_DATA_SHORT", "", "FRAME_UNDECODABLE")
        parts.registry.update([_update(one, defect=choose.choice(defects)) for one in choose.choices(batch, k=3)])
        admission = choose.choice(parts.rows(admissions))
        study = next(row for row in parts.rows(studies) if row["id"] == admission["study"])
        state = choose.choice((HELD, VERIFIED, UNVERIFIED))
        parts.hold(study["study_instance_uid"], bytes(admission["digest"]), state, "NO_ORDER", "test")
    _recount(parts)


# -- whose a study is


def test_the_same_patient_id_in_two_domains_never_joins(database: Database) -> None:
    """Every way in which stations, issuers and IDs meet: a patient is of one numbering, and that is of one domain."""
    names = ("clinic", "town", "village")
    domains = Domains(
        [Station(f"S-{name}", domain=name) for name in names],
        [RisDomain("clinic", issuer="CLINIC"), RisDomain("town", issuer="TOWN"), RisDomain("village")],
    )
    parts = Parts(database, domains=domains)
    owners = {"CLINIC": "clinic", "TOWN": "town"}
    ways = [
        (name, issuer, patient)
        for name in names
        for issuer in ("", "CLINIC", "TOWN", "ELSEWHERE")
        for patient in ("7", "8", "")
    ]
    parts.register(
        *(
            record(study=n, sop=n, station=f"S-{name}", PatientID=patient, IssuerOfPatientID=issuer)
            for n, (name, issuer, patient) in enumerate(ways)
        )
    )
    expected: dict[tuple[object, ...], list[int]] = defaultdict(list)
    found: dict[int, list[int]] = defaultdict(list)
    for number, (name, issuer, patient) in enumerate(ways):
        study = parts.study(number)
        # A station that names another domain's issuer is of neither: its study is held.
        assert study["domain"] == ("" if owners.get(issuer, name) != name else name)
        assert study["issuer_of_patient_id"] == (issuer or domains.issuer_of(name))
        numbering = owners.get(issuer) or (name, issuer)
        expected[(owners.get(issuer, name) if not issuer else numbering, patient) if patient else (number,)].append(
            number
        )
        found[study["patient"]].append(number)
    assert sorted(found.values()) == sorted(expected.values())
    for together in found.values():
        assert len({parts.study(number)["domain"] for number in together} - {""}) <= 1
    for patient in "78":
        rows, _ = parts.queries.patients(patient, "", "", ALL, 100, "")
        # Clinic, town and village, and somebody's own numbering in each of them.
        assert (len(rows), sum(row["study_count"] for row in rows)) == (6, 12)


@pytest.mark.parametrize("domain", ["clinic", "town"])
def test_merges_and_orders_of_a_domain_touch_no_other(database: Database, domain: str) -> None:
    names = ("clinic", "town")
    domains = Domains([Station(f"S-{name}", domain=name) for name in names], [RisDomain(name) for name in names])
    parts = Parts(database, domains=domains)
    entries = {
        name: record(study=name, sop=n, station=f"S-{name}", PatientID="7", AccessionNumber="A1")
        for n, name in enumerate(names)
    }
    parts.register(*entries.values())
    for name, entry in entries.items():
        parts.decide(entry, VERIFIED, order=order("A1", ris_patient("7", f"Ris^{name}"), domain=name), domain=name)
    parts.say(domain, patient=ris_patient("7", "Renamed^One"))
    parts.say(domain, merge=(ris_patient("7"), ris_patient("8", "Merged^One")))
    for name in entries:
        shown = parts.study(name)
        expected = ("8", "Merged^One") if name == domain else ("7", f"Ris^{name}")
        assert (shown["patient_id"], shown["patient_name"]) == expected


# -- two stores at once (on PostgreSQL transactions run side by side)


def _two_stores(parts: Parts, one: Record, two: Record) -> list[Any]:
    for entry in (one, two):
        parts.beat(entry.store_id)
    with meeting(parts.database, "INSERT INTO instances"):
        return at_once(lambda: parts.register(one), lambda: parts.register(two))


def test_the_same_object_from_two_stores_at_once(parts: Parts) -> None:
    parts.register(record(sop=0))
    answers = _two_stores(parts, record(sop=1), record(sop=1, store_id="archive-1"))
    assert sorted(map(repr, answers)) == sorted(map(repr, ([(NEW, 0)], [(ALREADY, 0)])))
    assert len(parts.instances(sop_instance_uid=uid("sop", 1))[0]["locations"]) == 2
    _recount(parts)


def test_one_uid_with_two_contents_from_two_stores_at_once(parts: Parts) -> None:
    parts.register(record(sop=0))
    answers = _two_stores(parts, record(sop=1), record(sop=1, store_id="archive-1", content="other"))
    assert sorted(map(repr, answers)) == sorted(map(repr, ([(NEW, 0)], [(VARIANT, HEADER)])))
    assert [row["current"] for row in parts.instances(sop_instance_uid=uid("sop", 1))] == [True, False]
    _recount(parts)


def test_a_new_study_from_two_stores_at_once(parts: Parts) -> None:
    answers = _two_stores(parts, record(sop=0), record(sop=1, series=1, Modality="MR", store_id="archive-1"))
    assert answers == [[(NEW, 0)], [(NEW, 0)]]
    assert parts.study()["instance_count"] == 2
    _recount(parts)


def test_a_hold_while_more_of_it_arrives(parts: Parts) -> None:
    first = record(sop=0)
    parts.register(first)

    def hold() -> Any:
        return parts.hold(first.study_instance_uid, first.admission_key, HELD, "PATIENT_MISMATCH", "test")

    with meeting(parts.database, ("INSERT INTO instances", "UPDATE admissions")):
        answers = at_once(lambda: parts.register(record(sop=1)), hold)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    _recount(parts)


def test_many_writers(parts: Parts) -> None:
    def store(number: int) -> Any:
        def run() -> None:
            for sop in range(12):
                parts.register(
                    record(study=sop % 3, sop=sop, series=sop % 2, store_id=f"archive-{number}", sequence=sop + 1)
                )

        return run

    for number in range(4):
        parts.beat(f"archive-{number}")
    assert at_once(*map(store, range(4))) == [None] * 4
    assert len(parts.rows(instances)) == 12
    assert len(parts.rows(locations)) == 48
    _recount(parts)


# -- what stores find out later


def _update(entry: Record, *, residence: int = 0, defect: str = "", removed: bool = False) -> dict[str, Any]:
    return {
        "store_id": entry.store_id,
        "study_hash": entry.study_hash,
        "generation": entry.generation,
        "sequence": entry.sequence,
        "residence": residence,
        "defect": defect,
        "removed": removed,
    }


def test_residence_and_defects(parts: Parts) -> None:
    entry = record(sop=1)
    parts.register(entry)
    parts.registry.update([_update(entry, residence=2, defect="PIXEL_DATA_SHORT")])
    parts.registry.update([_update(entry)])
    found = parts.instances()[0]
    assert (found["locations"][0]["residence"], found["defect"]) == (2, "PIXEL_DATA_SHORT")
    _recount(parts)
    with pytest.raises(RadmeshError) as error:
        parts.registry.update([_update(entry, residence=3), _update(record(sop=9), residence=2)])
    assert error.value.reason == "OBJECT_NOT_FOUND"
    assert parts.instances()[0]["locations"][0]["residence"] == 2


def test_what_is_said_several_times_at_once(parts: Parts) -> None:
    first, second = record(sop=1), record(sop=1, store_id="archive-1")
    parts.register(first)
    parts.register(second)
    parts.registry.update(
        [
            _update(first, residence=2, defect="PIXEL_DATA_SHORT"),
            _update(second, defect="FRAME_UNDECODABLE"),
            _update(first, residence=3),
        ]
    )
    found = parts.instances()[0]
    assert found["defect"] == "FRAME_UNDECODABLE"
    assert {place["store_id"]: place["residence"] for place in found["locations"]} == {"archive-0": 3, "archive-1": 1}
    _recount(parts)
    with pytest.raises(RadmeshError) as error:
        parts.registry.update([_update(second, removed=True), _update(second, residence=2)])
    assert error.value.reason == "OBJECT_NOT_FOUND"
    with pytest.raises(RadmeshError) as error:
        parts.registry.update([_update(second, removed=True), _update(first, removed=True)])
    assert error.value.reason == "LAST_COPY"
    assert len(parts.instances()[0]["locations"]) == 2
    parts.registry.update([_update(second, removed=True), _update(second, removed=True)])
    assert [place["store_id"] for place in parts.instances()[0]["locations"]] == ["archive-0"]


def test_a_spool_drains_but_the_last_copy_stays(parts: Parts) -> None:
    spooled = record(sop=1, store_id="spool-0", changes={"residence": 4})
    parts.register(spooled)
    with pytest.raises(RadmeshError) as error:
        parts.registry.update([_update(spooled, removed=True)])
    assert error.value.reason == "LAST_COPY"
    parts.register(record(sop=1))
    parts.registry.update([_update(spooled, removed=True)])
    parts.registry.update([_update(spooled, removed=True)])
    assert [p["store_id"] for p in parts.instances()[0]["locations"]] == ["archive-0"]


def test_two_copies_that_leave_at_once_leave_one(parts: Parts) -> None:
    copies = [record(sop=1, store_id=store) for store in ("spool-0", "spool-1")]
    for copy in copies:
        parts.register(copy)
    with meeting(parts.database, "DELETE FROM locations"):
        answers = at_once(*(lambda c=copy: parts.registry.update([_update(c, removed=True)]) for copy in copies))
    refused = [answer for answer in answers if isinstance(answer, RadmeshError)]
    assert [error.reason for error in refused] == ["LAST_COPY"]
    assert len(parts.rows(locations)) == 1


# -- marks


def _mark(entry: Record) -> tuple[str, str, int, int]:
    return entry.store_id, entry.study_hash, entry.generation, entry.sequence


def test_marks_tell_what_is_registered(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(4)]
    parts.register(*entries[:2])
    assert parts.registry.missing([_mark(entry) for entry in entries]) == [_mark(entry) for entry in entries[2:]]
    # A repeat of what was earlier takes nothing back.
    parts.register(entries[0])
    assert parts.registry.missing([_mark(entries[1])]) == []
    assert parts.registry.missing([("archive-9", "0" * 32, 1, 1)]) == [("archive-9", "0" * 32, 1, 1)]


def test_everything_up_to_a_mark_has_to_be_there(parts: Parts) -> None:
    entries = [record(sop=sop) for sop in range(6)]
    parts.register(entries[0], entries[2])
    assert parts.registry.missing([_mark(entries[2])]) == [_mark(entries[2])]
    parts.register(entries[4], entries[3])
    parts.register(entries[1])
    assert parts.registry.missing([_mark(entries[4])]) == []
    assert parts.registry.missing([_mark(entries[5])]) == [_mark(entries[5])]
    assert [row["registered"] for row in parts.rows(marks)] == [5]


def test_a_waiter_is_woken_by_a_registration(database: Database) -> None:
    parts = Parts(database, SystemClock())
    entry = record(sop=0)
    parts.beat()
    began = time.monotonic()
    answers = at_once(lambda: parts.registry.wait_registered([_mark(entry)], 60.0), lambda: parts.register(entry))
    assert answers[0] == []
    assert time.monotonic() - began < allowed(5)
    late = record(sop=9)
    began = time.monotonic()
    assert parts.registry.wait_registered([_mark(late)], 0.2) == [_mark(late)]
    assert 0.15 < time.monotonic() - began < allowed(2)


def test_a_waiter_does_not_hold_up_a_drain(database: Database) -> None:
    parts = Parts(database, SystemClock())
    parts.feed.stop()
    began = time.monotonic()
    late = record(sop=9)
    assert parts.registry.wait_registered([_mark(late)], 60.0) == [_mark(late)]
    assert time.monotonic() - began < allowed(5)


# -- stores


def test_heartbeats(parts: Parts) -> None:
    parts.beat("archive-0", free=5)
    parts.beat("spool-0", SPOOL)
    before = parts.feed.revision()
    parts.beat("archive-0", free=4)
    assert parts.feed.revision() == before
    parts.beat("archive-0", accepting=False)
    assert parts.feed.revision() == before + 1
    parts.advance(2.9)
    assert [(store["store_id"], store["alive"]) for store in parts.registry.stores()] == [
        ("archive-0", True),
        ("spool-0", True),
    ]
    parts.advance(0.2)
    parts.beat("spool-0", SPOOL)
    assert [store["alive"] for store in parts.registry.stores()] == [False, True]


@settings(max_examples=times(6, 3))
@given(data=st.data())
def test_registered_in_any_pieces_it_is_the_same(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """However a store's rows are cut into requests, and whichever are repeated, the tables end up the same."""
    entries = [record(study=sop % 2, sop=sop % 5, content=sop % 3, sequence=sop + 1) for sop in range(10)]
    folder = tmp_path_factory.mktemp("pieces")
    ends = []
    for number in range(2):
        database = Database(f"sqlite:///{folder}/{number}.sqlite", MIGRATIONS)
        parts = Parts(database)
        rest = list(entries)
        while rest:
            size = data.draw(st.integers(1, 4)) if number else len(rest)
            piece, rest = rest[:size], rest[size:]
            parts.register(*piece)
            if number and data.draw(st.booleans()):
                parts.register(*piece)
        ends.append(
            {
                table.name: [{k: v for k, v in row.items() if k not in ("id", "version")} for row in parts.rows(table)]
                for table in metadata.sorted_tables
                if table.name in ("studies", "series", "instances", "locations", "marks")
            }
        )
        database.close()
    assert ends[0] == ends[1]
