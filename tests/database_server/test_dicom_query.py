"""C-FIND over the tables: levels and unique keys, matching, counts, what is held, rows as pydicom reads them."""

import contextlib
import io
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from database_support import HELD, Parts, order, record, ris_patient, uid
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from radmesh.api.database.v1 import dicom_query_pb2 as pb
from radmesh.database_server import dicom_query
from radmesh.database_server.dicom_query import DicomQueries, Query
from radmesh.database_server.dicom_query_model import ATTRIBUTES, UNIQUE
from radmesh.database_server.dicom_query_service import AT_ONCE, DicomQueryService
from radmesh.database_server.dicom_worklist import Worklist
from radmesh.database_server.paging import Pages
from radmesh.database_server.queries import Viewer
from radmesh.dicom.identifier import Key, RowWriter, read_identifier, vr_of, write_identifier
from radmesh.runtime.errors import RadmeshError

TAGS = {attribute.keyword: attribute.tag for attribute in ATTRIBUTES}
PATIENT_ROOT, STUDY_ROOT, PATIENT_STUDY_ONLY = 1, 2, 3


def rows_of(data: list[bytes], *, implicit: bool) -> list[Dataset]:
    return [read_dataset(io.BytesIO(row), is_implicit_VR=implicit, is_little_endian=True) for row in data]


def find(
    parts: Parts,
    level: str = "STUDY",
    model: int = STUDY_ROOT,
    station: str = "",
    implicit: bool = False,
    more: dict[str, Any] | None = None,
    **keys: str,
) -> list[Dataset]:
    """The rows of a query, by keywords."""
    query = Query(
        model=model,
        level=level,
        keys=tuple(Key(TAGS[keyword], vr_of(TAGS[keyword]), value) for keyword, value in keys.items()),
        viewer=Viewer(station),
        implicit=implicit,
        **(more or {}),
    )
    batches = list(DicomQueries(parts.database).find(query).batches())
    return rows_of([row for batch in batches for row in batch.rows], implicit=implicit)


def numbers(rows: list[Dataset]) -> set[int]:
    known = {uid("study", number): number for number in range(50)}
    return {known[row.StudyInstanceUID] for row in rows}


def refused(parts: Parts, *args: Any, **keys: Any) -> tuple[str, str]:
    with pytest.raises(RadmeshError) as caught:
        find(parts, *args, **keys)
    return caught.value.reason, caught.value.metadata["tag"]


def several(parts: Parts, *attributes: dict[str, Any]) -> None:
    parts.register(*(record(study=number, sop=number, **values) for number, values in enumerate(attributes)))


# -- levels and unique keys


def test_each_level_of_each_model(parts: Parts) -> None:
    parts.register(
        record(0, 0, series=0, Modality="CT"),
        record(0, 1, series=1, Modality="SR"),
        record(1, 2, PatientID="P0", Modality="MR"),
    )
    person = find(
        parts,
        "PATIENT",
        PATIENT_ROOT,
        PatientID="P0",
        PatientName="",
        NumberOfPatientRelatedStudies="",
        NumberOfPatientRelatedSeries="",
        NumberOfPatientRelatedInstances="",
    )
    assert len(person) == 1
    row = person[0]
    assert (row.QueryRetrieveLevel, row.PatientID, row.PatientName) == ("PATIENT", "P0", "Doe^John")
    counts = (
        row.NumberOfPatientRelatedStudies,
        row.NumberOfPatientRelatedSeries,
        row.NumberOfPatientRelatedInstances,
    )
    assert counts == (2, 3, 3)
    for model in (PATIENT_ROOT, PATIENT_STUDY_ONLY):
        rows = find(parts, "STUDY", model, PatientID="P0", ModalitiesInStudy="")
        assert sorted(str(row.ModalitiesInStudy) for row in rows) == ["MR", "['CT', 'SR']"]
    rows = find(parts, "SERIES", PatientID="P0", StudyInstanceUID=uid("study", 0), Modality="")
    assert {row.SeriesInstanceUID: row.Modality for row in rows} == {
        uid("series", 0, 0): "CT",
        uid("series", 0, 1): "SR",
    }
    rows = find(
        parts,
        "IMAGE",
        StudyInstanceUID=uid("study", 0),
        SeriesInstanceUID=uid("series", 0, 1),
        Rows="",
        Columns="",
        NumberOfFrames="",
        SOPClassUID="",
        InstanceNumber="",
    )
    assert [(row.SOPInstanceUID, row.Rows, row.Columns, row.InstanceNumber) for row in rows] == [
        (uid("sop", 1), 512, 256, 1)
    ]
    assert rows[0].NumberOfFrames is None


def test_unique_keys_of_the_levels_above_are_needed(parts: Parts) -> None:
    study = uid("study", 0)
    missing = "UNIQUE_KEY_MISSING"
    assert refused(parts, "STUDY", PATIENT_ROOT, StudyDate="") == (missing, "00100020")
    assert refused(parts, "STUDY", PATIENT_ROOT, PatientID="P*") == (missing, "00100020")
    assert refused(parts, "SERIES", Modality="CT") == (missing, "0020000D")
    assert refused(parts, "SERIES", StudyInstanceUID="*") == (missing, "0020000D")
    assert refused(parts, "SERIES", StudyInstanceUID=f"{study}\\1.2") == (missing, "0020000D")
    assert refused(parts, "SERIES", PATIENT_ROOT, StudyInstanceUID=study) == (missing, "00100020")
    assert refused(parts, "IMAGE", StudyInstanceUID=study) == (missing, "0020000E")
    for level, model in (("PATIENT", STUDY_ROOT), ("SERIES", PATIENT_STUDY_ONLY), ("", STUDY_ROOT), ("study", 2)):
        assert refused(parts, level, model) == ("QUERY_LEVEL_INVALID", "00080052")
    assert find(parts, "STUDY", STUDY_ROOT) == []


def test_relational_queries_need_none(parts: Parts) -> None:
    several(parts, {"Modality": "CT"}, {"Modality": "MR"})
    rows = find(parts, "SERIES", more={"relational": True}, Modality="MR", StudyInstanceUID="")
    assert numbers(rows) == {1}
    rows = find(parts, "IMAGE", PATIENT_ROOT, more={"relational": True}, PatientID="P0", StudyInstanceUID="")
    assert numbers(rows) == {0}


# -- matching


def test_matching(parts: Parts) -> None:
    several(
        parts,
        {"StudyDate": "20260101", "StudyTime": "083000", "AccessionNumber": "A1", "StudyDescription": "HEAD"},
        {"StudyDate": "20260102", "StudyTime": "093000.5", "AccessionNumber": "A2", "ReferringPhysicianName": "Á^B"},
        {"StudyDate": "20260103", "StudyTime": "1030", "AccessionNumber": "B1", "Modality": "MR"},
        {
            "StudyDate": "",
            "StudyTime": "",
            "AccessionNumber": "",
            "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        },
    )
    cases: tuple[tuple[dict[str, Any], set[int]], ...] = (
        ({}, {0, 1, 2, 3}),
        ({"AccessionNumber": "*"}, {0, 1, 2, 3}),
        ({"AccessionNumber": "A*"}, {0, 1}),
        ({"AccessionNumber": "?1"}, {0, 2}),
        ({"AccessionNumber": "a1"}, set()),
        ({"AccessionNumber": "A1 \\B1"}, {0, 2}),
        ({"StudyDate": "20260102"}, {1}),
        ({"StudyDate": "2026.01.02"}, {1}),
        ({"StudyDate": "20260102-"}, {1, 2}),
        ({"StudyDate": "-20260102"}, {0, 1}),
        ({"StudyDate": "20260101-20260102"}, {0, 1}),
        ({"StudyTime": "0800-0930"}, {0, 1}),
        ({"StudyTime": "0931-"}, {2}),
        ({"StudyTime": "093000.5"}, {1}),
        ({"ModalitiesInStudy": "MR"}, {2}),
        ({"ModalitiesInStudy": "CT\\MR"}, {0, 1, 2, 3}),
        ({"StudyInstanceUID": f"{uid('study', 0)}\\{uid('study', 2)}\\1.2.3"}, {0, 2}),
        ({"PatientName": "山田*"}, {3}),
        ({"PatientName": "yamada^tarou"}, {3}),
        ({"ReferringPhysicianName": "á*"}, {1}),
        ({"StudyDescription": "H?AD"}, {0}),
        ({"NumberOfStudyRelatedInstances": "1"}, {0, 1, 2, 3}),
        ({"NumberOfStudyRelatedInstances": "2"}, set()),
    )
    for keys, wanted in cases:
        assert numbers(find(parts, **keys)) == wanted, keys


def test_dates_and_times_of_acr_nema(parts: Parts) -> None:
    several(
        parts,
        {"StudyDate": "1994.01.30", "StudyTime": "10:15:00", "PatientBirthDate": "1950.12.31"},
        {"StudyDate": "19940201"},
        {"StudyDate": "1993.12.31"},
        {"StudyDate": "1995.01.01"},
    )
    for value, wanted in (
        ("19940130", {0}),
        ("1994.01.30", {0}),
        ("19940101-19940131", {0}),
        ("19940131-", {1, 3}),
        ("-19940129", {2}),
        ("19931231-19941231", {0, 1, 2}),
    ):
        assert numbers(find(parts, StudyDate=value)) == wanted, value
    (row,) = find(parts, StudyDate="19940130", StudyTime="101500", PatientBirthDate="")
    assert (row.StudyDate, row.StudyTime, row.PatientBirthDate) == ("19940130", "101500", "19501231")


def test_combined_date_and_time(parts: Parts) -> None:
    several(
        parts,
        {"StudyDate": "20260101", "StudyTime": "083000"},
        {"StudyDate": "20260102", "StudyTime": "070000"},
        {"StudyDate": "20260103", "StudyTime": "120000"},
    )
    keys: dict[str, Any] = {"StudyDate": "20260101-20260103", "StudyTime": "0800-1000"}
    assert numbers(find(parts, **keys)) == {0}
    assert numbers(find(parts, more={"combined_date_time": True}, **keys)) == {0, 1}


def test_a_study_is_found_by_what_it_says_of_a_patient_who_was_called_otherwise_before(parts: Parts) -> None:
    others: dict[str, Any] = {"PatientName": "Roe^Jane", "PatientSex": "F", "PatientBirthDate": "19700101"}
    several(parts, {"PatientID": "P"}, {"PatientID": "P", **others}, {"PatientID": "P", **others})
    for keyword, value in others.items():
        one: dict[str, Any] = {keyword: value}
        assert numbers(find(parts, **one)) == {1, 2}, keyword
    assert numbers(find(parts, PatientID="P")) == {0, 1, 2}
    (person,) = find(parts, "PATIENT", PATIENT_ROOT, PatientID="P", NumberOfPatientRelatedStudies="")
    assert person.NumberOfPatientRelatedStudies == 3


def test_who_has_no_given_name_is_found_by_a_star_for_it(parts: Parts) -> None:
    several(
        parts,
        {"PatientName": "Doe", "ReferringPhysicianName": "Who^^"},
        {"PatientName": "Doe^A"},
        {"PatientName": "Doering"},
    )
    assert numbers(find(parts, PatientName="DOE^*")) == {0, 1}
    assert numbers(find(parts, PatientName="D?E^^*")) == {0}
    assert numbers(find(parts, ReferringPhysicianName="who^*")) == {0}


def test_what_images_have_of_their_own(parts: Parts) -> None:
    several(
        parts,
        {"BitsAllocated": 16, "AcquisitionNumber": 3, "ContentDate": "20260105", "ContentTime": "10:11:12"},
        {"BitsAllocated": 8, "ContentDate": "20260106"},
    )
    images: Any = {"level": "IMAGE", "more": {"relational": True}, "StudyInstanceUID": ""}
    for keyword, value in (("BitsAllocated", "16"), ("AcquisitionNumber", "03"), ("ContentDate", "-20260105")):
        one: dict[str, Any] = {keyword: value}
        assert numbers(find(parts, **images, **one)) == {0}, keyword
    asked: Any = {"BitsAllocated": "", "ContentTime": "1011-1012", "AcquisitionNumber": ""}
    (row,) = find(parts, **images, **asked)
    assert (row.BitsAllocated, row.AcquisitionNumber, row.ContentTime) == (16, 3, "101112")


def test_fuzzy_names_are_an_option(parts: Parts) -> None:
    several(parts, {"PatientName": "Müller^Eva"}, {"PatientName": "Muller^Eva"}, {"PatientName": "Maier^Eva"})
    assert numbers(find(parts, PatientName="Mueller eva")) == set()
    fuzzy: dict[str, Any] = {"fuzzy": True}
    assert numbers(find(parts, more=fuzzy, PatientName="Mueller eva")) == {0, 1}
    assert numbers(find(parts, more=fuzzy, PatientName="Eva", PatientID="P2")) == {2}
    # Too little to be nearly something.
    assert numbers(find(parts, more=fuzzy, PatientName="M*")) == {0, 1, 2}
    people = find(parts, "PATIENT", PATIENT_ROOT, more=fuzzy, PatientName="Muler", PatientID="")
    assert {row.PatientID for row in people} == {"P0", "P1"}


def test_what_indexes_find_and_what_is_walked_through_is_the_same(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_query, "_PAGES", (2, 3))
    names = ("Doe^John", "Doe^Jane", "Li^Wei", "Doering^A")
    several(
        parts, *({"PatientName": names[n % 4], "PatientID": f"Q{n}", "AccessionNumber": f"A{n}"} for n in range(12))
    )
    answers = []
    for few in (2000, 0):
        monkeypatch.setattr(dicom_query, "FEW", few)
        keys: Any = ({"PatientName": "do*"}, {"PatientName": "li*"}, {"PatientID": "Q1*"}, {"AccessionNumber": "A?"})
        answers.append([numbers(find(parts, **one)) for one in keys])
        people = find(parts, "PATIENT", PATIENT_ROOT, PatientName="doe^*", PatientID="")
        answers[-1].append({int(row.PatientID[1:]) for row in people})
    assert answers[0] == answers[1]
    assert answers[0][:3] == [{n for n in range(12) if n % 4 != 2}, {2, 6, 10}, {1, 10, 11}]
    assert answers[0][4] == {n for n in range(12) if n % 4 < 2}


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyDate", "2026"),
        ("StudyDate", "-"),
        ("StudyTime", "8h30"),
        ("StudyInstanceUID", "1.2.*"),
        ("PatientID", "x" * 2000),
    ],
)
def test_values_that_are_none(parts: Parts, keyword: str, value: str) -> None:
    assert refused(parts, **{keyword: value}) == ("QUERY_KEY_INVALID", f"{TAGS[keyword]:08X}")


def test_what_is_in_the_header_alone(parts: Parts) -> None:
    several(parts, {"InstitutionName": "Städtische Klinik", "PatientAge": "040Y"}, {"InstitutionName": "Elsewhere"})
    key: dict[str, Any] = {"StudyInstanceUID": uid("study", 0)}
    assert find(parts, "SERIES", InstitutionName="", **key)[0].InstitutionName == "Städtische Klinik"
    assert len(find(parts, "SERIES", InstitutionName="St*", **key)) == 1
    assert find(parts, "SERIES", InstitutionName="El*", **key) == []
    assert find(parts, PatientAge="", **key)[0].PatientAge == "040Y"


def test_keys_of_no_level_are_left_out(parts: Parts) -> None:
    several(parts, {})
    query = Query(
        STUDY_ROOT, "STUDY", (Key(0x00420011, "OB"), Key(TAGS["StudyDate"], "DA"), Key(0x00090010, "UN", "X"))
    )
    found = DicomQueries(parts.database).find(query)
    assert found.keys_unsupported
    (row,) = rows_of([row for batch in found.batches() for row in batch.rows], implicit=False)
    assert [element.keyword for element in row] == [
        "SpecificCharacterSet",
        "StudyDate",
        "QueryRetrieveLevel",
        "StudyInstanceUID",
    ]


# -- what is held (CORRECTNESS rule 12)


def test_a_station_sees_what_it_sent_and_nobody_else_what_is_held(parts: Parts) -> None:
    held: dict[str, Any] = {"changes": {"verification": HELD}}
    parts.register(
        record(0, 0, station="CT1"),
        record(0, 1, series=1, station="CT2", Modality="MR", PatientName="Other^One", **held),
        record(1, 2, station="CT2", **held),
    )
    key: dict[str, Any]
    counts: dict[str, Any] = {
        "ModalitiesInStudy": "",
        "NumberOfStudyRelatedInstances": "",
        "NumberOfStudyRelatedSeries": "",
    }
    for station in ("", "CT1"):
        (row,) = find(parts, station=station, **counts)
        assert row.ModalitiesInStudy == "CT"
        assert (row.NumberOfStudyRelatedSeries, row.NumberOfStudyRelatedInstances) == (1, 1)
        key = {"StudyInstanceUID": uid("study", 0)}
        assert [r.Modality for r in find(parts, "SERIES", station=station, Modality="", **key)] == ["CT"]
        key |= {"SeriesInstanceUID": uid("series", 0, 1)}
        assert find(parts, "IMAGE", station=station, **key) == []
        assert numbers(find(parts, station=station, ModalitiesInStudy="MR")) == set()
        people = find(parts, "PATIENT", PATIENT_ROOT, station=station, PatientID="*", NumberOfPatientRelatedStudies="")
        assert [(p.PatientID, p.NumberOfPatientRelatedStudies) for p in people] == [("P0", 1)]
    rows = find(parts, station="CT2", **counts)
    assert numbers(rows) == {0, 1}
    by_study = {row.StudyInstanceUID: row for row in rows}
    assert by_study[uid("study", 0)].NumberOfStudyRelatedInstances == 2
    key = {"StudyInstanceUID": uid("study", 0), "SeriesInstanceUID": uid("series", 0, 1)}
    assert len(find(parts, "IMAGE", station="CT2", **key)) == 1


def test_counts_of_a_series_that_is_partly_held(parts: Parts) -> None:
    parts.register(
        record(0, 0), record(0, 1), record(0, 2, station="CT2", PatientName="X", changes={"verification": HELD})
    )
    key: dict[str, Any] = {"StudyInstanceUID": uid("study", 0), "NumberOfSeriesRelatedInstances": "", "SOPClassUID": ""}
    for station, count in (("", 2), ("CT2", 3)):
        (row,) = find(parts, "SERIES", station=station, InstitutionName="", **key)
        assert (row.NumberOfSeriesRelatedInstances, row.InstitutionName) == (count, "")


# -- rows


@pytest.mark.parametrize("implicit", [False, True])
def test_specific_character_set_is_true(parts: Parts, implicit: bool) -> None:
    several(parts, {"PatientName": "Plain^Name"}, {"PatientName": "Äneas^Ö"}, {"PatientName": "山田^太郎"})
    for asked, sets in (
        ("", {0: None, 1: "ISO_IR 192", 2: "ISO_IR 192"}),
        ("ISO_IR 100", {0: None, 1: "ISO_IR 100", 2: "ISO_IR 192"}),
    ):
        rows = find(parts, implicit=implicit, more={"character_set": asked}, PatientName="", StudyInstanceUID="")
        known = {uid("study", number): number for number in range(3)}
        assert {known[row.StudyInstanceUID]: row.SpecificCharacterSet or None for row in rows} == sets
        assert {str(row.PatientName) for row in rows} == {"Plain^Name", "Äneas^Ö", "山田^太郎"}


def test_pages_leave_nothing_out_and_the_limit_says_so(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_query, "_PAGES", (2, 3))
    several(parts, *({"StudyDate": f"2026010{number % 4 + 1}", "PatientID": f"Q{number}"} for number in range(12)))
    assert numbers(find(parts)) == set(range(12))
    people = find(parts, "PATIENT", PATIENT_ROOT, PatientID="")
    assert {row.PatientID for row in people} == {f"Q{number}" for number in range(12)}
    series = find(parts, "SERIES", more={"relational": True}, StudyInstanceUID="")
    images = find(parts, "IMAGE", more={"relational": True}, StudyInstanceUID="")
    assert numbers(series) == numbers(images) == set(range(12))
    assert len(series) == len(images) == 12
    for limit in (1, 2, 5, 11, 12):
        batches = list(DicomQueries(parts.database).find(Query(STUDY_ROOT, "STUDY", (), limit=limit)).batches())
        assert sum(len(batch.rows) for batch in batches) == min(limit, 12)
        assert batches[-1].limited == (limit < 12)


def test_every_attribute_is_told_and_can_be_matched(parts: Parts) -> None:
    several(parts, {})
    unique: dict[str, Any] = {a.keyword: "" for a in ATTRIBUTES}
    unique |= {"PatientID": "P0", "StudyInstanceUID": uid("study", 0), "SeriesInstanceUID": uid("series", 0, 0)}
    (row,) = find(parts, "IMAGE", PATIENT_ROOT, **unique)
    assert {element.keyword for element in row} == {*unique, "SpecificCharacterSet", "QueryRetrieveLevel"}
    for attribute in ATTRIBUTES:
        if (value := row[attribute.tag].value) not in (None, ""):
            again = find(parts, "IMAGE", PATIENT_ROOT, **{**unique, attribute.keyword: str(value)})
            assert len(again) == 1, attribute.keyword
    assert set(UNIQUE.values()) <= {a.tag for a in ATTRIBUTES}


def test_a_page_that_takes_long_pulses_and_is_ended(parts: Parts) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(connection: sa.Connection) -> None:
        begun.set()
        try:
            connection.exec_driver_sql(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000000) "
                "SELECT count(*) FROM n"
            )
        finally:
            ended.set()

    with Pages(parts.database) as pages:
        assert next(pages.read(endless)) is None
        assert begun.wait(30)
    assert ended.wait(30)


def test_queries_at_once_are_bounded_and_leave_room_again(parts: Parts) -> None:
    several(parts, {})
    service: Any = DicomQueryService(DicomQueries(parts.database), Worklist(parts.database, parts.orders))
    request = pb.FindRequest(model=pb.QUERY_MODEL_STUDY_ROOT, level="STUDY")
    open_ = [service.Find(request, None) for _ in range(AT_ONCE)]
    assert all(len(next(answers).identifiers) == 1 for answers in open_)
    with pytest.raises(RadmeshError, match="TOO_MANY_CALLS"):
        next(service.Find(request, None))
    open_.pop().close()
    assert len(list(service.FindWorklist(pb.FindWorklistRequest(), None))) == 1
    assert sum(len(answer.identifiers) for answer in service.Find(request, None)) == 1


# -- identifiers


def test_identifiers_are_read_as_they_were_written() -> None:
    step = [(0x00080060, "CS", "CT"), (0x00400002, "DA", "20260101-")]
    elements: list[Any] = [(0x00100010, "PN", "Ö*"), (0x00280010, "US", 512), (0x00400100, "SQ", [step])]
    for implicit in (False, True):
        data = write_identifier(elements, implicit=implicit, character_set="ISO_IR 100")
        read = read_identifier(data, implicit=implicit)
        assert read.character_set == "ISO_IR 100"
        assert read.value(0x00100010) == "Ö*"
        assert read.value(0x00280010) == "512"
        assert read.keys[2].items == (Key(0x00080060, "CS", "CT"), Key(0x00400002, "DA", "20260101-"))
        for cut in range(1, len(data)):
            try:
                read_identifier(data[:cut], implicit=implicit)
            except RadmeshError as error:
                assert error.reason == "IDENTIFIER_INVALID"
    assert RowWriter([], implicit=True, character_set="").write([]) == bytes.fromhex("0800050000000000")


@pytest.mark.parametrize(
    "data",
    [
        b"\x08\x00\x52\x00XX\x02\x00ST",
        b"\x40\x00\x00\x01SQ\0\0\xff\xff\xff\xff"
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x40\x00\x00\x01SQ\0\0\xff\xff\xff\xff" * 20,
        b"\x10\x00\x20\x00LO\x00\x00" * 600,
        b"\x10\x00\x20\x00LO\xff\xff",
    ],
)
def test_identifiers_that_are_none(data: bytes) -> None:
    with pytest.raises(RadmeshError) as caught:
        read_identifier(data, implicit=False)
    assert caught.value.reason == "IDENTIFIER_INVALID"


@given(data=st.binary(max_size=200), implicit=st.booleans())
def test_whatever_comes_is_read_or_refused(data: bytes, implicit: bool) -> None:
    with contextlib.suppress(RadmeshError):
        read_identifier(data, implicit=implicit)


_TEXTS = st.text(st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters="\\"), max_size=20)


@given(name=_TEXTS, station=_TEXTS, code=st.integers(0, 65535), implicit=st.booleans(), depth=st.integers(0, 5))
def test_what_is_written_is_read(name: str, station: str, code: int, implicit: bool, depth: int) -> None:
    inner: list[Any] = [(0x00081010, "SH", station), (0x00280010, "US", code)]
    for _ in range(depth):
        inner = [(0x00400100, "SQ", [inner])]
    elements: list[Any] = [(0x00100010, "PN", name), (0x00400100, "SQ", [inner])]
    read = read_identifier(write_identifier(elements, implicit=implicit, character_set="GB18030"), implicit=implicit)
    assert read.value(0x00100010) == name.strip(" ")
    keys = read.keys[-1].items
    for _ in range(depth):
        keys = keys[0].items
    assert [key.value for key in keys] == [station.strip(" "), str(code)]


# -- the worklist

SPS, TIME = 0x00400100, "20260111140000"


def worklist(parts: Parts, *keys: Key, limit: int = 100, implicit: bool = False) -> list[Dataset]:
    found = Worklist(parts.database, parts.orders).find(keys, implicit=implicit, character_set="", limit=limit)
    return rows_of([row for batch in found.batches() for row in batch.rows], implicit=implicit)


def step(**values: str) -> Key:
    tags = {"Modality": 0x00080060, "StationAE": 0x00400001, "Date": 0x00400002, "Time": 0x00400003, "Id": 0x00400009}
    return Key(SPS, "SQ", "", tuple(Key(tags[name], vr_of(tags[name]), value) for name, value in values.items()))


ACCESSION = Key(0x00080050, "SH")


@pytest.fixture
def scheduled(parts: Parts) -> Parts:
    for told in (
        order(
            "A1", ris_patient("P1", "Müller^Ü"), scheduled_time="202601100930", modality="CT", station_ae_title="CT1"
        ),
        order(
            "A2",
            ris_patient("P2"),
            scheduled_time=TIME,
            modality="MR",
            procedure_code="X1",
            procedure_code_scheme="99RIS",
            scheduled_procedure_step_id="SPS2",
        ),
        order("A3", ris_patient("P3"), scheduled_time="20260110", modality="CT", status=4),
    ):
        parts.say(order=told)
    return parts


@pytest.mark.parametrize("implicit", [False, True])
def test_the_worklist_is_what_is_scheduled(scheduled: Parts, implicit: bool) -> None:
    def found(*keys: Key) -> list[str]:
        return [row.AccessionNumber for row in worklist(scheduled, ACCESSION, *keys, implicit=implicit)]

    assert found() == ["A1", "A2"]
    for wanted, accessions in (
        (step(), ["A1", "A2"]),
        (step(Modality="MR"), ["A2"]),
        (step(Modality="CT\\MR"), ["A1", "A2"]),
        (step(StationAE="CT1"), ["A1"]),
        (step(Date="20260110"), ["A1"]),
        (step(Date="20260111-"), ["A2"]),
        (step(Date="20260110-20260111", Time="1000-1500"), ["A2"]),
        (step(Date="20260110-20260111", Time="0900-1200"), ["A1"]),
        (step(Time="1400-1500"), ["A2"]),
        (Key(0x00100020, "LO", "P2"), ["A2"]),
        (Key(0x00100010, "PN", "MÜLLER*"), ["A1"]),
        (Key(0x00401001, "SH", "A*"), ["A1", "A2"]),
        (Key(0x00402016, "LO", "nothing"), []),
    ):
        assert found(wanted) == accessions, wanted


def test_a_minimal_query_with_an_empty_sequence_is_told_all_of_the_step(scheduled: Parts) -> None:
    row = worklist(scheduled, Key(SPS, "SQ"), Key(0x0020000D, "UI"), Key(0x00321064, "SQ"))[1]
    (told,) = row.ScheduledProcedureStepSequence
    assert (told.Modality, told.ScheduledProcedureStepStartDate, told.ScheduledProcedureStepStartTime) == (
        "MR",
        "20260111",
        "140000",
    )
    for (code,) in (told.ScheduledProtocolCodeSequence, row.RequestedProcedureCodeSequence):
        assert (code.CodeValue, code.CodingSchemeDesignator) == ("X1", "99RIS")
    assert told.ScheduledProcedureStepID == "SPS2"
    again = worklist(scheduled, Key(SPS, "SQ"), Key(0x0020000D, "UI"))[1]
    assert row.StudyInstanceUID == again.StudyInstanceUID
    assert row.StudyInstanceUID.is_valid
    assert len(worklist(scheduled, ACCESSION, limit=1)) == 1


def test_values_of_the_worklist_that_are_none(scheduled: Parts) -> None:
    for wanted in (step(Date="tomorrow"), step(Date="20260110", Time="noon"), Key(0x00100030, "DA", "1970")):
        with pytest.raises(RadmeshError) as caught:
            worklist(scheduled, wanted)
        assert caught.value.reason == "QUERY_KEY_INVALID"
