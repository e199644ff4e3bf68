"""Merges of patients: what moves, what comes back, and what is impossible."""

from collections import Counter
from typing import Any

import pytest
from database_support import ALL, HELD, UNVERIFIED, VERIFIED, Parts, order, record, ris_patient, uid
from depth import examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from postgres_support import Postgres

from radmesh.database_server.orders import OrderFilter
from radmesh.database_server.registry import Record
from radmesh.database_server.schema import MIGRATIONS, corrections, merges, metadata, studies
from radmesh.dicom.domains import Domains, RisDomain
from radmesh.dicom.stations import Station
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

IDS = ("P1", "P2", "P3", "P4")


def study_of(parts: Parts, number: int, patient: str, *, order_of: str = "", **attributes: Any) -> Any:
    """Study `number` of a patient; verified by an order of `order_of`, if that is given."""
    values = {"PatientID": patient, "PatientName": f"Came^{patient}", "AccessionNumber": f"A{number}", **attributes}
    entry = record(study=number, sop=number, **values)
    parts.register(entry)
    if order_of:
        given = order(f"A{number}", ris_patient(order_of, f"Ris^{order_of}"))
        parts.say(order=given)
        parts.decide(entry, VERIFIED, order=given)
    return entry


def shown(parts: Parts, *numbers: int) -> list[tuple[str, str]]:
    return [(s["patient_id"], s["patient_name"]) for s in (parts.study(number) for number in numbers)]


def merge(parts: Parts, prior: str, surviving: str, domain: str = "default") -> None:
    parts.say(domain, merge=(ris_patient(prior, f"Ris^{prior}"), ris_patient(surviving, f"Ris^{surviving}")))


def listed(parts: Parts, domain: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        rows, token = parts.merges.listed(domain, 2, token)
        found += rows
        if not token:
            return found


def reason_of(parts: Parts, key: int) -> str:
    with pytest.raises(RadmeshError) as error:
        parts.merges.undo(key, "admin")
    return error.value.reason


def test_a_merge_moves_studies_and_orders_and_undo_gives_exactly_those_back(parts: Parts) -> None:
    study_of(parts, 0, "P1", order_of="P1")
    study_of(parts, 1, "P2", order_of="P2")
    parts.say(order=order("S1", ris_patient("P1", "Ris^P1"), scheduled_time="20260901"))
    before = parts.rows(studies)
    merge(parts, "P1", "P2")
    assert shown(parts, 0, 1) == [("P2", "Ris^P2"), ("P2", "Ris^P2")]
    assert parts.find(patient_id="P1") == []
    assert sorted(parts.find(patient_id="P2")) == sorted([uid("study", 0), uid("study", 1)])
    found, _ = parts.orders.find(OrderFilter(patient_id="P2"), 10, "")
    assert {row["accession_number"] for row in found} == {"A0", "A1", "S1"}
    assert {row["patient_name"] for row in found} == {"Ris^P2"}
    (row,) = listed(parts)
    assert (row["prior"]["patient_id"], row["surviving"]["patient_id"], row["study_count"]) == ("P1", "P2", 1)
    # What the modality said is kept.
    rows, _ = parts.statuses.corrections(uid("study", 0), 100, "")
    assert {r["keyword"]: r["original_value"] for r in rows if r["in_force"]}["PatientID"] == "P1"
    # What comes afterwards for the surviving patient was not moved, and is not given back.
    study_of(parts, 2, "P2", order_of="P2")
    revision = parts.feed.revision()
    undone = parts.merges.undo(row["id"], "admin")
    assert (undone["study_count"], undone["undo_actor"]) == (1, "admin")
    assert undone["undo_time"]
    assert parts.feed.revision() > revision
    assert shown(parts, 0, 1, 2) == [("P1", "Ris^P1"), ("P2", "Ris^P2"), ("P2", "Ris^P2")]
    found, _ = parts.orders.find(OrderFilter(patient_id="P1"), 10, "")
    assert {row["accession_number"] for row in found} == {"A0", "S1"}
    ignored = ("version", "patient")
    after = [row for row in parts.rows(studies) if row["study_instance_uid"] in (uid("study", 0), uid("study", 1))]
    assert [{k: v for k, v in row.items() if k not in ignored} for row in after] == [
        {k: v for k, v in row.items() if k not in ignored} for row in before
    ]
    assert reason_of(parts, row["id"]) == "MERGE_UNDONE"
    assert reason_of(parts, 4711) == "MERGE_NOT_FOUND"


@pytest.mark.parametrize("state", ["as it came", "UNVERIFIED", "HELD"])
def test_what_is_not_verified_is_of_a_patient_too(parts: Parts, state: str) -> None:
    entry = study_of(parts, 0, "P1")
    if state != "as it came":
        parts.decide(entry, HELD if state == "HELD" else UNVERIFIED, "NO_ORDER")
    merge(parts, "P1", "P2")
    assert shown(parts, 0) == [("P2", "Ris^P2")]
    assert parts.study()["order_id"] == ""
    (row,) = listed(parts)
    assert row["study_count"] == 1
    parts.merges.undo(row["id"], "admin")
    assert shown(parts, 0) == [("P1", "Came^P1")]
    assert not parts.study()["corrected"]


def test_what_comes_later_under_the_old_id_is_the_surviving_patient_s(parts: Parts) -> None:
    merge(parts, "P1", "P2")
    study_of(parts, 0, "P1")
    assert shown(parts, 0) == [("P2", "Ris^P2")]
    (row,) = listed(parts)
    assert row["study_count"] == 1
    parts.merges.undo(row["id"], "admin")
    assert shown(parts, 0) == [("P1", "Came^P1")]
    study_of(parts, 1, "P1")
    assert shown(parts, 1) == [("P1", "Came^P1")]


def test_chains_are_followed_and_undone_from_the_end(parts: Parts) -> None:
    for number, patient in enumerate(IDS):
        study_of(parts, number, patient, order_of=patient)
    merge(parts, "P1", "P2")
    merge(parts, "P2", "P3")
    merge(parts, "P4", "P3")
    assert shown(parts, 0, 1, 2, 3) == [("P3", "Ris^P3")] * 4
    fourth, second, first = (row["id"] for row in listed(parts))
    assert [row["study_count"] for row in listed(parts)] == [1, 2, 1]
    assert reason_of(parts, first) == "MERGE_BURIED"
    parts.merges.undo(fourth, "admin")
    assert shown(parts, 0, 1, 2, 3) == [("P3", "Ris^P3")] * 3 + [("P4", "Ris^P4")]
    parts.merges.undo(second, "admin")
    assert shown(parts, 0, 1, 2) == [("P2", "Ris^P2")] * 2 + [("P3", "Ris^P3")]
    parts.merges.undo(first, "admin")
    assert shown(parts, 0, 1, 2) == [("P1", "Ris^P1"), ("P2", "Ris^P2"), ("P3", "Ris^P3")]


@pytest.mark.parametrize(
    "told",
    [
        [("P1", "P1")],
        [("P1", "P2"), ("P1", "P2")],
        [("P1", "P2"), ("P2", "P1")],
        [("P1", "P2"), ("P2", "P3"), ("P3", "P1")],
        [("P1", "P2"), ("P2", "P3"), ("P1", "P3")],
    ],
)
def test_what_is_so_already_or_would_be_a_circle_has_no_effect(parts: Parts, told: list[tuple[str, str]]) -> None:
    for number, patient in enumerate(IDS):
        study_of(parts, number, patient, order_of=patient)
    for prior, surviving in told[:-1]:
        merge(parts, prior, surviving)
    before = parts.rows(merges), parts.rows(studies), parts.rows(corrections)
    merge(parts, *told[-1])
    assert (parts.rows(merges), parts.rows(studies), parts.rows(corrections)) == before


def test_after_undo_a_ris_may_merge_again(parts: Parts) -> None:
    study_of(parts, 0, "P1", order_of="P1")
    for _ in range(3):
        merge(parts, "P1", "P2")
        assert shown(parts, 0) == [("P2", "Ris^P2")]
        parts.merges.undo(listed(parts)[0]["id"], "admin")
        assert shown(parts, 0) == [("P1", "Ris^P1")]
    assert len(listed(parts)) == 3


def test_the_surviving_patient_is_as_the_merge_says(parts: Parts) -> None:
    study_of(parts, 0, "P1", order_of="P1")
    study_of(parts, 1, "P2", order_of="P2")
    parts.say(merge=(ris_patient("P1", "Ris^P1"), ris_patient("P2", "New^Name", sex="F")))
    assert shown(parts, 0, 1) == [("P2", "New^Name")] * 2
    assert [parts.study(number)["patient_sex"] for number in (0, 1)] == ["F", "F"]
    parts.say(patient=ris_patient("P2", "Newer^Name", sex="F"))
    assert shown(parts, 0, 1) == [("P2", "Newer^Name")] * 2
    # News of the prior patient meanwhile is seen when it is one again.
    parts.say(patient=ris_patient("P1", "Meanwhile^P1"))
    assert shown(parts, 0, 1) == [("P2", "Newer^Name")] * 2
    parts.merges.undo(listed(parts)[0]["id"], "admin")
    assert shown(parts, 0, 1) == [("P1", "Meanwhile^P1"), ("P2", "Newer^Name")]


def test_what_a_person_corrected_moves_with_its_correction(parts: Parts) -> None:
    study_of(parts, 0, "P1", order_of="P1")

    def correct(**values: str) -> None:
        parts.statuses.correct(uid("study", 0), values, source="user:doe", expected_version=0, actor="doe")

    correct(PatientName="Corrected^Name")
    merge(parts, "P1", "P2")
    assert shown(parts, 0) == [("P2", "Corrected^Name")]
    assert parts.find(patient_id="P2", patient_name="corrected*") == [uid("study", 0)]
    correct(PatientName="")
    assert shown(parts, 0) == [("P2", "Ris^P2")]
    parts.merges.undo(listed(parts)[0]["id"], "admin")
    assert shown(parts, 0) == [("P1", "Ris^P1")]


def test_a_study_that_found_another_order_meanwhile_is_not_given_back(parts: Parts) -> None:
    entry = study_of(parts, 0, "P1", order_of="P1")
    merge(parts, "P1", "P2")
    parts.decide(entry, VERIFIED, order=order("A9", ris_patient("P3", "Ris^P3")))
    assert shown(parts, 0) == [("P3", "Ris^P3")]
    parts.merges.undo(listed(parts)[0]["id"], "admin")
    assert shown(parts, 0) == [("P3", "Ris^P3")]


def test_an_issuer_that_only_one_side_names_is_no_other_patient(parts: Parts) -> None:
    """Most modalities name no issuer, most RIS do."""
    study_of(parts, 0, "P1")
    study_of(parts, 1, "P1", IssuerOfPatientID="HOSP")
    study_of(parts, 2, "P1", IssuerOfPatientID="ELSEWHERE")
    parts.say(merge=(ris_patient("P1", "Ris^P1", issuer="HOSP"), ris_patient("P2", "Ris^P2", issuer="HOSP")))
    assert shown(parts, 0, 1, 2) == [("P2", "Ris^P2"), ("P2", "Ris^P2"), ("P1", "Came^P1")]
    assert parts.study(0)["issuer_of_patient_id"] == "HOSP"
    parts.merges.undo(listed(parts)[0]["id"], "admin")
    assert shown(parts, 0, 1, 2) == [("P1", "Came^P1")] * 3


def test_of_two_patients_with_an_id_nobody_is_meant_who_names_no_issuer(parts: Parts) -> None:
    parts.say(patient=ris_patient("P1", "Ris^P1", issuer="OTHER"))
    study_of(parts, 0, "P1")
    parts.say(merge=(ris_patient("P1", "Ris^P1", issuer="HOSP"), ris_patient("P2", "Ris^P2", issuer="HOSP")))
    assert shown(parts, 0) == [("P1", "Came^P1")]


def test_merges_are_listed_newest_first_by_domain(parts: Parts) -> None:
    for number in range(5):
        merge(parts, f"X{number}", f"Y{number}", domain="town" if number % 2 else "default")
    assert [row["prior"]["patient_id"] for row in listed(parts)] == ["X4", "X3", "X2", "X1", "X0"]
    assert [row["prior"]["patient_id"] for row in listed(parts, "town")] == ["X3", "X1"]
    assert all(row["undo_time"] == 0 and row["time"] for row in listed(parts))


# -- whatever comes in whatever order


class Hospital(RuleBasedStateMachine):
    """Two domains with the same Patient IDs; what is shown is what a few lines of Python say."""

    database: Database
    stations = tuple(Station(f"S-{domain}", domain=domain) for domain in ("clinic", "town"))
    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.database.write(lambda c: [c.execute(table.delete()) for table in self._tables()])
        self.parts = Parts(self.database, domains=Domains(self.stations, [RisDomain("clinic"), RisDomain("town")]))
        self.count = 0
        # (domain, ID) -> who that is now; study -> (domain, ID, whose order it is verified by).
        self.into: dict[tuple[str, str], tuple[str, str]] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.studies: dict[int, tuple[str, str, str]] = {}
        self.merged: list[tuple[int, tuple[str, str], tuple[str, str]]] = []

    @staticmethod
    def _tables() -> list[Any]:
        return [t for t in reversed(metadata.sorted_tables) if t.name not in ("feed", "audit", "stores")]

    def root(self, who: tuple[str, str]) -> tuple[str, str]:
        while who in self.into:
            who = self.into[who]
        return who

    def person(self, who: tuple[str, str]) -> dict[str, str]:
        self.names.setdefault(who, f"Ris^{who[1]}")
        return ris_patient(who[1], self.names[who])

    @staticmethod
    def entry(number: int, domain: str, patient: str) -> Record:
        return record(
            study=number,
            sop=number,
            station=f"S-{domain}",
            PatientID=patient,
            PatientName=f"Came^{patient}",
            AccessionNumber=f"A{number}",
        )

    domains = st.sampled_from(("clinic", "town"))
    ids = st.sampled_from(IDS)

    @initialize()
    def begin(self) -> None:
        self.parts.beat()

    @rule(target=made, domain=domains, patient=ids, verified=st.booleans())
    def study(self, domain: str, patient: str, *, verified: bool) -> int:
        self.count += 1
        number = self.count
        entry = self.entry(number, domain, patient)
        self.parts.register(entry)
        if verified:
            given = order(f"A{number}", self.person((domain, patient)), domain=domain)
            self.parts.say(domain, order=given)
            self.parts.decide(entry, VERIFIED, order=given, domain=domain)
        self.studies[number] = (domain, patient, patient if verified else "")
        return number

    @rule(domain=domains, prior=ids, surviving=ids)
    def merge(self, domain: str, prior: str, surviving: str) -> None:
        one, other = (domain, prior), (domain, surviving)
        self.parts.say(domain, merge=(self.person(one), self.person(other)))
        before, after = self.root(one), self.root(other)
        if before != after:
            self.into[before] = after
            self.merged.append((self.parts.merges.listed("", 1, "")[0][0]["id"], before, after))

    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        if not self.merged:
            return
        key, prior, surviving = data.draw(st.sampled_from(self.merged))
        if surviving in self.into:
            assert reason_of(self.parts, key) == "MERGE_BURIED"
            return
        self.parts.merges.undo(key, "admin")
        assert reason_of(self.parts, key) == "MERGE_UNDONE"
        del self.into[prior]
        self.merged.remove((key, prior, surviving))

    @rule(domain=domains, patient=ids, name=st.sampled_from(("Doe^Jane", "Roe^Richard")))
    def rename(self, domain: str, patient: str, name: str) -> None:
        self.names[domain, patient] = name
        self.parts.say(domain, patient=ris_patient(patient, name))

    @rule(number=made)
    def again(self, number: int) -> None:
        """The same decision again; the manager names the surviving patient by now."""
        domain, patient, verified = self.studies[number]
        if verified:
            given = order(f"A{number}", self.person(self.root((domain, patient))), domain=domain)
            self.parts.decide(self.entry(number, domain, patient), VERIFIED, order=given, domain=domain)

    @invariant()
    def every_study_is_its_patient_s(self) -> None:
        shown = {number: self.parts.study(number) for number in self.studies}
        for number, (domain, patient, verified) in self.studies.items():
            now = self.root((domain, patient))
            name = self.names[now] if verified or now != (domain, patient) else f"Came^{patient}"
            study = shown[number]
            assert (study["domain"], study["patient_id"], study["patient_name"]) == (domain, now[1], name)
        for patient in IDS:
            theirs = [n for n, (d, p, _) in self.studies.items() if self.root((d, p))[1] == patient]
            assert sorted(self.parts.find(patient_id=patient)) == sorted(uid("study", n) for n in theirs)
        # Patients of two domains are two, whatever their ID.
        rows, _ = self.parts.queries.patients("", "", "", ALL, 100, "")
        assert sorted((row["patient_id"], row["study_count"]) for row in rows) == sorted(
            (who[1], count) for who, count in Counter(self.root((d, p)) for d, p, _ in self.studies.values()).items()
        )


@pytest.mark.parametrize("back_end", ["sqlite", "postgresql"])
def test_merges_in_any_order(back_end: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    if back_end == "sqlite":
        Hospital.database = Database(f"sqlite:///{tmp_path}/radmesh.sqlite", MIGRATIONS)
    else:
        server: Postgres = request.getfixturevalue("postgres")
        Hospital.database = Database(server.create("template"), MIGRATIONS)
    try:
        run_state_machine_as_test(
            Hospital,
            settings=settings(
                max_examples=examples(30 if back_end == "sqlite" else 15),
                stateful_step_count=14,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        Hospital.database.close()
