"""Finding: wildcards, names in any script, pages, whose eyes are looking, and the indexes that keep it fast."""

import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from database_support import (
    ALL,
    ANYBODY,
    HELD,
    PENDING,
    UNVERIFIED,
    VERIFIED,
    Parts,
    record,
    uid,
)
from hypothesis import given
from hypothesis import strategies as st

from radmesh.database_server import queries
from radmesh.database_server.prepared import Prepared
from radmesh.database_server.queries import Cursor, StudyFilter, Viewer, like_pattern, name_matches
from radmesh.database_server.schema import MIGRATIONS, patients, studies
from radmesh.database_server.texts import name_key
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database


def studies_of(parts: Parts, *attributes: dict[str, Any]) -> None:
    """One study with one instance for each set of attributes."""
    parts.register(*(record(study=number, sop=number, **values) for number, values in enumerate(attributes)))


def found(parts: Parts, **wanted: Any) -> set[int]:
    """The numbers of the studies that a query finds."""
    numbers = {uid("study", number): number for number in range(100)}
    return {numbers[one] for one in parts.find(**wanted)}


# -- matching


def test_keys_and_wildcards(parts: Parts) -> None:
    studies_of(
        parts,
        {"PatientID": "123", "AccessionNumber": "A_1", "StudyDescription": "HEAD 100%"},
        {"PatientID": "1234", "AccessionNumber": "AX1", "StudyDescription": "head 1000"},
        {"PatientID": "923", "IssuerOfPatientID": "B", "AccessionNumber": "a_1", "StudyDescription": "C:\\x"},
    )
    for wanted, numbers in (
        ({"patient_id": "123"}, {0}),
        ({"patient_id": "123*"}, {0, 1}),
        ({"patient_id": "?23"}, {0, 2}),
        ({"patient_id": "*2*"}, {0, 1, 2}),
        ({"patient_id": "*"}, {0, 1, 2}),
        ({"issuer_of_patient_id": "B"}, {2}),
        # SQL's own wildcards are letters here, and case counts in all but names.
        ({"accession_number": "A_1"}, {0}),
        ({"accession_number": "A_?"}, {0}),
        ({"accession_number": "?_1"}, {0, 2}),
        ({"study_description": "*100%"}, {0}),
        ({"study_description": "C:\\*"}, {2}),
        ({"study_description": "%"}, set()),
        ({"patient_id": "123", "accession_number": "AX1"}, set()),
        ({"patient_id": "1\x0023"}, {0}),
    ):
        assert found(parts, **wanted) == numbers, wanted


def test_dates_and_modalities(parts: Parts) -> None:
    studies_of(
        parts,
        {"StudyDate": "20260101", "Modality": "CT"},
        {"StudyDate": "20260201", "Modality": "MR"},
        {"StudyDate": "20260301", "Modality": "M"},
        {"StudyDate": "", "Modality": ""},
    )
    for wanted, numbers in (
        ({"study_date_from": "20260201"}, {1, 2}),
        ({"study_date_to": "20260201"}, {0, 1}),
        ({"study_date_from": "20260201", "study_date_to": "20260201"}, {1}),
        ({"modalities": ("M",)}, {2}),
        ({"modalities": ("MR", "CT")}, {0, 1}),
        ({"modalities": ("%",)}, set()),
        ({"study_instance_uids": (uid("study", 1), uid("study", 3), "1.2")}, {1, 3}),
        ({}, {0, 1, 2, 3}),
    ):
        assert found(parts, **wanted) == numbers, wanted
    assert parts.find()[:3] == [uid("study", number) for number in (2, 1, 0)]


def _wide(text: str) -> str:
    """Latin letters as Japanese systems write them (U+FF01 and on)."""
    return "".join(letter if letter == "^" else chr(ord(letter) + 0xFEE0) for letter in text)


def test_names_match_in_any_script_case_and_width(parts: Parts) -> None:
    studies_of(
        parts,
        {"PatientName": "Doe^John"},
        {"PatientName": "DOE^JANE^^^"},
        {"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
        {"PatientName": "Straße^Groß"},
        {"PatientName": _wide("MULLER^A")},
        {"PatientName": "D_e^50%"},
        {"PatientName": 'O"Hara'},
        {"PatientName": ""},
    )
    for name, numbers in (
        ("Doe^John", {0}),
        ("doe^john", {0}),
        ("doe*", {0, 1}),
        ("*jo*", {0}),
        ("*J?n*", {1}),
        ("d?e*", {0, 1, 5}),
        ("d_e*", {5}),
        ("*50%", {5}),
        ("yamada*", {2}),
        ("山田^太郎", {2}),
        ("*山*", {2}),
        ("やまだ*", {2}),
        ("yamada^tarou=山田^太郎", {2}),
        ("doe^john=山田^太郎", set()),
        ("STRASSE*", {3}),
        ("straße^groß", {3}),
        ("muller^a", {4}),
        (_wide("doe") + "*", {0, 1}),
        ('o"hara', {6}),
        ('*"h*', {6}),
        ("*", {0, 1, 2, 3, 4, 5, 6, 7}),
        ("nobody", set()),
        ("' OR 1=1 --", set()),
    ):
        assert found(parts, patient_name=name) == numbers, name


def test_what_indexes_find_and_what_is_walked_through_is_the_same(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("Doe^John", "Doe^Jane", "Li^Wei", "Doering^A")
    parts.register(*(record(n, n, PatientName=names[n % 4], StudyDate=f"202601{n + 1:02d}") for n in range(12)))
    wanted: list[dict[str, Any]] = [
        {"patient_name": "do*"},
        {"patient_name": "doe^*"},
        {"patient_id": "P1*"},
        {"patient_id": "*1", "patient_name": "*doe*"},
        {"patient_name": "?i*", "study_date_from": "20260105"},
        {"patient_name": "Nobody*"},
    ]
    answers = []
    for few in (2000, 0):
        monkeypatch.setattr(queries, "FEW", few)
        answers.append([parts.find(3, **one) for one in wanted])
    assert answers[0] == answers[1]
    found = [{n for n in range(12) if uid("study", n) in each} for each in answers[0]]
    assert found == [{0, 1, 3, 4, 5, 7, 8, 9, 11}, {0, 1, 4, 5, 8, 9}, {1, 10, 11}, {1, 11}, {6, 10}, set()]


def test_a_pattern_does_not_reach_from_one_component_group_into_the_next(parts: Parts) -> None:
    studies_of(parts, {"PatientName": "Adams^Ann=Buzz^Zoe"})
    assert found(parts, patient_name="adams*zoe") == set()
    assert found(parts, patient_name="adams*ann") == {0}
    assert found(parts, patient_name="adams^ann?buzz*") == set()


_LETTERS = st.text("abÄß山^= *?%_\\'\"", max_size=8)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path_factory.mktemp('names')}/names.sqlite", MIGRATIONS)
    yield opened
    opened.close()


@given(name=_LETTERS, wanted=_LETTERS)
def test_names_match_as_ps3_4_says(names: Database, name: str, wanted: str) -> None:
    """The condition in SQL is the one that a regular expression for each component group gives."""
    key = name_key(name)
    with names.engine.connect() as connection, connection.begin() as transaction:
        connection.execute(sa.insert(patients).values(identity="x", patient_name=name, name_key=key))
        query = sa.select(sa.func.count()).select_from(patients).where(name_matches(names, wanted))
        matched = connection.execute(query).scalar() == 1
        transaction.rollback()
    groups = key[1:-1].split("=")
    asked = [group for group in (g.rstrip("^ ") for g in _folded(wanted).split("=")) if group.strip("*")]
    assert matched == all(any(re.fullmatch(_regular(a), group, re.DOTALL) for group in groups) for a in asked)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _regular(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)


def _queries(database: Database) -> Any:
    return Parts(database).queries


def test_patterns_escape_what_sql_would_read() -> None:
    assert like_pattern(r"a*b?c%d_e\f") == r"a%b_c\%d\_e\\f"


# -- pages


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_pages_hold_every_study_once(parts: Parts, size: int) -> None:
    choose = random.Random(size)
    days = ["", "20260101", "20260102", "20260103"]
    studies_of(parts, *({"StudyDate": choose.choice(days)} for _ in range(17)))
    listed = parts.find(size=size)
    assert len(listed) == len(set(listed)) == 17
    days_of = {row["study_instance_uid"]: row["study_date"] for row in parts.rows(studies)}
    assert [days_of[one] for one in listed] == sorted(days_of.values(), reverse=True)


def test_a_study_that_arrives_meanwhile_disturbs_no_page(parts: Parts) -> None:
    studies_of(parts, *({"StudyDate": "20260101"} for _ in range(6)))
    rows, token = parts.queries.studies(StudyFilter(), 3, "")
    parts.register(record(study=50, sop=50, StudyDate="20270101"))
    rest, end = parts.queries.studies(StudyFilter(), 3, token)
    assert end == ""
    assert {row["study_instance_uid"] for row in rows + rest} == {uid("study", number) for number in range(6)}


def test_instances_come_by_series_number_and_uid(parts: Parts) -> None:
    numbers = [7, "", 2, -1, 7, "x"]
    parts.register(
        *(
            record(sop=sop, series=sop % 2, InstanceNumber=number, sequence=sop + 1)
            for sop, number in enumerate(numbers)
        ),
        record(sop=0, content=1, sequence=10, InstanceNumber=7),
    )
    listed = parts.instances(size=2)
    order = [(row["series_instance_uid"], row["sort_number"], row["sop_instance_uid"]) for row in listed]
    assert order == sorted(order)
    assert len(listed) == 7
    assert [row["current"] for row in listed if row["sop_instance_uid"] == uid("sop", 0)] == [True, False]
    assert len(parts.instances(variants=False)) == 6
    assert len(parts.instances(series_instance_uid=uid("series", 0, 1))) == 3
    assert len(parts.instances(sop_instance_uid=uid("sop", 0), variants=False)) == 1
    assert parts.instances(series_instance_uid="1.2.3") == []
    with pytest.raises(RadmeshError) as error:
        parts.instances(study="none")
    assert error.value.reason == "STUDY_NOT_FOUND"


def test_patients(parts: Parts) -> None:
    studies_of(
        parts,
        {"PatientID": "1", "PatientName": "Doe^John"},
        {"PatientID": "1", "PatientName": "Doe^John"},
        {"PatientID": "1", "IssuerOfPatientID": "B", "PatientName": "Roe"},
        {"PatientID": "2", "PatientName": "Doe^Jane"},
    )

    def listed(patient_id: str = "", issuer: str = "", name: str = "") -> list[tuple[str, str, int]]:
        rows: list[dict[str, Any]] = []
        token = ""
        while True:
            page, token = parts.queries.patients(patient_id, issuer, name, ANYBODY, 1, token)
            rows += page
            if not token:
                return [(row["patient_id"], row["issuer_of_patient_id"], row["study_count"]) for row in rows]

    assert listed() == [("1", "", 2), ("2", "", 1), ("1", "B", 1)]
    assert listed(patient_id="1") == [("1", "", 2), ("1", "B", 1)]
    assert listed(issuer="B") == [("1", "B", 1)]
    assert listed(name="doe*") == [("1", "", 2), ("2", "", 1)]


def test_a_token_belongs_to_its_query(parts: Parts) -> None:
    studies_of(parts, {}, {}, {})
    _, token = parts.queries.studies(StudyFilter(), 1, "")
    calls: tuple[Callable[[], Any], ...] = (
        lambda: parts.queries.studies(StudyFilter(patient_id="*1"), 1, token),
        lambda: parts.queries.studies(StudyFilter(viewer=ALL), 1, token),
        lambda: parts.queries.patients("", "", "", ANYBODY, 1, token),
        lambda: parts.jobs.list("", 0, 1, token),
    )
    for call in calls:
        with pytest.raises(RadmeshError) as error:
            call()
        assert (error.value.reason, error.value.metadata["field"]) == ("FIELD_INVALID", "page_token")


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1")), st.just("W1tb" * 100_000)))
def test_what_is_no_token_is_refused(token: str) -> None:
    cursor = Cursor("query")
    if token:
        with pytest.raises(RadmeshError) as error:
            cursor.read(token)
        assert error.value.reason == "FIELD_INVALID"


@given(st.lists(st.one_of(st.text(), st.integers(0, 1 << 60)), min_size=1, max_size=5))
def test_a_token_gives_its_position_back(position: list[Any]) -> None:
    assert Cursor("query").read(Cursor("query").write(*position)) == position


# -- whose eyes (CORRECTNESS rule 12)


@pytest.fixture
def partly_held(parts: Parts) -> Parts:
    """Study 0: two CT of CT1, seen by all, and of MR1 an MR image and a variant that are held. Study 1: wholly held."""
    parts.register(
        record(sop=0, station="CT1"),
        record(sop=1, station="CT1"),
        record(sop=2, series=1, station="MR1", Modality="MR", PatientName="Roe^Richard"),
        record(sop=2, series=1, station="MR1", Modality="MR", PatientName="Roe^Richard", content=1, sequence=9),
        record(study=1, sop=3, station="MR1", PatientID="X"),
    )
    for study, name in ((0, "Roe^Richard"), (1, "Doe^John")):
        for row, _ in ((row, name) for row in _admissions(parts, study) if row["station"] == "MR1"):
            parts.hold(uid("study", study), bytes(row["digest"]), HELD, "PATIENT_MISMATCH", "test")
    parts.registry.update(
        [
            {
                "store_id": "archive-0",
                "study_hash": record().study_hash,
                "generation": 1,
                "sequence": 3,
                "residence": 0,
                "defect": "PIXEL_DATA_SHORT",
                "removed": False,
            }
        ]
    )
    return parts


def _admissions(parts: Parts, study: object) -> list[dict[str, Any]]:
    rows, _ = parts.admissions(uid("study", study), (), 100, "")
    return rows


def _figures(study: dict[str, Any]) -> dict[str, Any]:
    return {
        key: study[key]
        for key in (
            "instance_count",
            "series_count",
            "bytes",
            "modalities",
            "stations",
            "variant_count",
            "defective_count",
        )
    }


def test_an_ordinary_viewer_sees_nothing_of_what_is_held(partly_held: Parts) -> None:
    study = partly_held.study(0, ANYBODY)
    assert _figures(study) == {
        "instance_count": 2,
        "series_count": 1,
        "bytes": 2000,
        "modalities": ["CT"],
        "stations": ["CT1"],
        "variant_count": 0,
        "defective_count": 0,
    }
    assert (study["verification"], study["verification_reason"]) == (1, "")
    assert {row["sop_instance_uid"] for row in partly_held.instances(0, ANYBODY)} == {uid("sop", 0), uid("sop", 1)}
    assert len(partly_held.queries.series(study, ANYBODY)) == 1
    assert partly_held.find() == [uid("study", 0)]
    with pytest.raises(RadmeshError) as error:
        partly_held.study(1, ANYBODY)
    assert error.value.reason == "STUDY_NOT_FOUND"
    rows, _ = partly_held.queries.patients("", "", "", ANYBODY, 10, "")
    assert [(row["patient_id"], row["study_count"]) for row in rows] == [("P0", 1)]


def test_a_query_finds_nothing_by_what_is_held(partly_held: Parts) -> None:
    for viewer, finds in ((ANYBODY, []), (Viewer(station="CT1"), []), (ALL, [uid("study", 0)])):
        assert partly_held.find(viewer=viewer, modalities=("MR",)) == finds
    assert partly_held.find(verification=HELD) == []
    assert partly_held.find(verification=1) == [uid("study", 0)]
    assert set(partly_held.find(verification=HELD, viewer=ALL)) == {uid("study", 0), uid("study", 1)}


def test_a_station_sees_what_it_sent(partly_held: Parts) -> None:
    sender, other = Viewer(station="MR1"), Viewer(station="CT1")
    assert _figures(partly_held.study(0, sender)) == {
        "instance_count": 3,
        "series_count": 2,
        "bytes": 3000,
        "modalities": ["CT", "MR"],
        "stations": ["CT1", "MR1"],
        "variant_count": 1,
        "defective_count": 1,
    }
    assert len(partly_held.instances(0, sender)) == 4
    assert set(partly_held.find(viewer=sender)) == {uid("study", 0), uid("study", 1)}
    assert _figures(partly_held.study(0, other)) == _figures(partly_held.study(0, ANYBODY))
    assert partly_held.study(0, other)["verification"] == 1
    assert len(partly_held.instances(0, other)) == 2
    assert partly_held.find(viewer=other) == [uid("study", 0)]


def test_who_may_reconcile_sees_all(partly_held: Parts) -> None:
    study = partly_held.study(0, ALL)
    assert (study["instance_count"], study["variant_count"], study["defective_count"]) == (3, 1, 1)
    assert (study["verification"], study["verification_reason"]) == (HELD, "PATIENT_MISMATCH")
    assert len(partly_held.instances(0, ALL)) == 4


def test_what_is_seen_of_a_partly_held_study_is_its_worst(parts: Parts) -> None:
    states = {"S1": VERIFIED, "S2": PENDING, "S3": HELD}
    for sop, (station, state) in enumerate(states.items()):
        parts.register(record(sop=sop, station=station))
        digest = record(sop=sop, station=station).admission_key
        parts.hold(uid("study", 0), digest, state, "NO_ORDER" if state == HELD else "", "test")
    assert parts.study(0, ANYBODY)["verification"] == PENDING
    entry = record(sop=9, station="S4")
    parts.register(entry)
    parts.hold(uid("study", 0), entry.admission_key, UNVERIFIED, "TIMEOUT", "test")
    assert parts.study(0, ANYBODY)["verification"] == UNVERIFIED


def test_release_shows_it_again(partly_held: Parts) -> None:
    for row in _admissions(partly_held, 0):
        partly_held.hold(uid("study", 0), bytes(row["digest"]), VERIFIED, "", "test")
    assert partly_held.study(0, ANYBODY)["instance_count"] == 3
    assert len(partly_held.instances(0, ANYBODY)) == 4


# -- corrections in answers


def test_answers_are_corrected_and_found_by_what_they_say(parts: Parts) -> None:
    studies_of(parts, {"PatientName": "Wrong^Name", "PatientID": "1"}, {"PatientName": "Other"})
    parts.statuses.correct(
        uid("study", 0),
        {"PatientName": "Right^Name", "PatientID": "2"},
        source="user:admin",
        expected_version=0,
        actor="admin",
    )
    study = parts.study(0)
    assert (study["patient_name"], study["patient_id"], study["corrected"]) == ("Right^Name", "2", True)
    assert found(parts, patient_name="right*") == {0}
    assert found(parts, patient_id="2") == {0}
    assert found(parts, patient_name="wrong*") == set()
    assert found(parts, patient_id="1") == set()


# -- indexes


def _plan(parts: Parts, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """How the back end runs the first statement of a query."""
    statements: list[tuple[str, Any]] = []
    run = Prepared.execute

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        statements.append((statement, parameters))

    def note_prepared(self: Prepared, cursor: Any, parameters: Any) -> None:
        statements.append((self.sql, parameters))
        run(self, cursor, parameters)

    sa.event.listen(parts.database.engine, "before_cursor_execute", note)
    with monkeypatch.context() as patched:
        patched.setattr(Prepared, "execute", note_prepared)
        call()
    sa.event.remove(parts.database.engine, "before_cursor_execute", note)
    statement, parameters = next(entry for entry in statements if entry[0].startswith("SELECT"))
    with parts.database.engine.connect() as connection:
        if parts.database.sqlite:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            return "\n".join(row[3] for row in rows)
        return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))


def test_keyed_queries_use_their_indexes(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = random.Random(1)
    parts.register(record())
    study = {k: v for k, v in parts.rows(studies)[0].items() if k not in ("id", "patient", "study_instance_uid")}
    # As many as make a planner choose by cost.
    names = ["".join(choose.choices("abcdefghij", k=12)) for _ in range(20_000)]

    def fill(connection: sa.Connection) -> None:
        connection.execute(
            sa.insert(patients),
            [
                {
                    "id": n,
                    "identity": str(n),
                    "who": f"id{n}",
                    "patient_id": f"P{n}",
                    "patient_name": name,
                    "name_key": name_key(name),
                }
                for n, name in enumerate(names, 10)
            ],
        )
        connection.execute(
            sa.insert(studies),
            [
                {
                    **study,
                    "id": n,
                    "patient": n,
                    "study_instance_uid": f"1.2.{n}",
                    "accession_number": f"A{n}",
                    "study_date": f"20{n % 20 + 10}{n % 12 + 1:02}{n % 28 + 1:02}",
                }
                for n in range(10, 20_010)
            ],
        )

    parts.database.write(fill)
    with parts.database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql("ANALYZE" if parts.database.sqlite else "VACUUM ANALYZE")

    def studies_by(**wanted: Any) -> Callable[[], Any]:
        return lambda: parts.queries.studies(StudyFilter(**wanted), 100, "")

    trigrams = "patient_names" if parts.database.sqlite else "ix_patients_name_trgm"
    for name, call, index in (
        ("patient ID", studies_by(patient_id="P5"), "patients_patient_id|patients_id_prefix"),
        ("patient ID prefix", studies_by(patient_id="P5*"), "patients_patient_id|patients_id_prefix"),
        ("accession number", studies_by(accession_number="A5"), "ix_studies_accession_number"),
        ("study UID", studies_by(study_instance_uids=("1.2",)), "study_instance_uid|sqlite_autoindex_studies_1"),
        ("dates", studies_by(study_date_from="20260401", study_date_to="20260401"), "ix_studies_newest"),
        ("newest", studies_by(), "ix_studies_newest"),
        ("infix of a name", studies_by(patient_name="*cdefgh*"), trigrams),
        ("name prefix", studies_by(patient_name="cdefgh*"), trigrams),
        ("instances", lambda: parts.instances(0), "study_instance_uid|sqlite_autoindex_studies_1"),
        ("patients", partial(parts.queries.patients, "", "", "", ANYBODY, 100, ""), "ix_patients_who"),
        (
            "a patient",
            partial(parts.queries.patients, "P5", "", "", ANYBODY, 100, ""),
            "patients_patient_id|patients_id",
        ),
    ):
        plan = _plan(parts, call, monkeypatch)
        assert re.search(index, plan), f"{name}:\n{plan}"
        assert not re.search(r"Seq Scan on (studies|patients)", plan), f"{name}:\n{plan}"
        if parts.database.sqlite:
            # "SCAN … USING INDEX" in order of the answer is what keeps the newest 100 cheap.
            assert not re.search(r"SCAN (studies|patients)$", plan, re.MULTILINE), f"{name}:\n{plan}"
