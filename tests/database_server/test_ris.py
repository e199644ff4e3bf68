"""Orders, verification, merges and reports, on both back ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from database_support import (
    ALL,
    HELD,
    PENDING,
    UNVERIFIED,
    VERIFIED,
    Parts,
    record,
    uid,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from radmesh.database_server.orders import OrderFilter, RisEvent
from radmesh.database_server.queries import Viewer
from radmesh.database_server.reports import Reports
from radmesh.database_server.schema import (
    MIGRATIONS,
    admissions,
    corrections,
    history,
    merges,
    outbox,
    patients,
    studies,
    verdicts,
)
from radmesh.database_server.verification import Decision
from radmesh.dicom.domains import Domains, RisDomain
from radmesh.dicom.stations import Station
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

EPOCH = b"e" * 16
CT1, CT2 = Viewer(station="CT1"), Viewer(station="CT2")


def order(
    accession: str = "A1", patient_id: str = "P0", name: str = "Ris^Jane", domain: str = "default", **more: Any
) -> Any:
    return {
        "order_id": f"{domain}/{accession}",
        "domain": domain,
        "accession_number": accession,
        "patient_id": patient_id,
        "issuer_of_patient_id": "",
        "patient_name": name,
        "patient_birth_date": "19700101",
        "patient_sex": "F",
        "status": 1,
        "scheduled_time": "20260101100000",
        **more,
    }


def person(patient_id: str, name: str = "Ris^Jane") -> dict[str, str]:
    return {
        "patient_id": patient_id,
        "issuer_of_patient_id": "",
        "patient_name": name,
        "patient_birth_date": "19700101",
        "patient_sex": "F",
    }


def decide(parts: Parts, entry: Any, verification: int, reason: str = "", **more: Any) -> bool:
    decision = Decision(
        entry.study_instance_uid, entry.admission_key, verification, reason, domain="default", actor="gateway", **more
    )
    return parts.verifications.decide(decision)[2]


def reason_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(RadmeshError) as caught:
        call(*arguments, **options)
    return caught.value.reason


def moves(parts: Parts, axis: str = "verification") -> list[tuple[str, str, str]]:
    return [(h["from_state"], h["to_state"], h["reason"]) for h in parts.rows(history) if h["axis"] == axis]


def tell(parts: Parts, *news: RisEvent, manager: str = "m0", epoch: bytes = EPOCH) -> int:
    return parts.orders.apply(manager, epoch, news)[0]


# -- verification


def test_a_match_shows_the_ris_and_keeps_what_the_modality_said(parts: Parts) -> None:
    entry = record(PatientID="P0", PatientName="Modality^Jane", AccessionNumber="A1")
    parts.register(entry)
    assert decide(parts, entry, VERIFIED, order=order())
    study = parts.study()
    assert (study["patient_name"], study["patient_sex"], study["order_id"]) == ("Ris^Jane", "F", "default/A1")
    assert (study["verification"], bool(study["corrected"])) == (VERIFIED, True)
    kept = {c["keyword"]: c["original_value"] for c in parts.rows(corrections) if c["in_force"]}
    assert kept["PatientName"] == "Modality^Jane"
    assert "PatientID" not in kept, "the modality said the same"
    assert parts.find(patient_name="ris*") == [uid("study", 0)]
    assert parts.find(patient_name="modality*") == []
    # The same again writes nothing.
    before = parts.rows(history), parts.feed.revision()
    assert not decide(parts, entry, VERIFIED, order=order())
    assert (parts.rows(history), parts.feed.revision()) == before


def test_a_decision_before_the_object_is_applied_when_it_comes(parts: Parts) -> None:
    entry = record(changes={"verification": PENDING})
    assert decide(parts, entry, HELD, "NO_ORDER")
    assert not decide(parts, entry, HELD, "NO_ORDER")
    assert parts.verifications.known(entry.study_instance_uid, entry.admission_key) == HELD
    parts.register(entry)
    assert parts.rows(verdicts) == []
    assert parts.find(viewer=ALL) == [uid("study", 0)]
    assert parts.find(viewer=Viewer()) == []
    assert parts.find(viewer=CT1) == [uid("study", 0)]
    assert parts.find(viewer=CT2) == []
    assert decide(parts, entry, VERIFIED, order=order())
    assert parts.find(viewer=Viewer()) == [uid("study", 0)]


def test_a_ticket_that_says_verified_waits_for_the_decision(parts: Parts) -> None:
    entry = record(changes={"verification": VERIFIED})
    parts.register(entry)
    assert parts.study()["verification"] == PENDING
    assert parts.verifications.known(entry.study_instance_uid, entry.admission_key) == 0
    assert decide(parts, entry, VERIFIED, order=order())
    assert parts.study()["verification"] == VERIFIED


def test_a_late_object_of_another_patient_is_held_alone(parts: Parts) -> None:
    first, late = record(), record(sop=1, PatientID="OTHER", PatientName="Other^One")
    parts.register(first)
    decide(parts, first, VERIFIED, order=order())
    decide(parts, late, HELD, "PATIENT_MISMATCH", mismatched=("PatientID",))
    parts.register(late)
    seen = parts.study(viewer=Viewer())
    assert (seen["verification"], seen["instance_count"]) == (VERIFIED, 1)
    every = parts.study()
    assert (every["verification"], every["instance_count"]) == (HELD, 2)
    rows, _ = parts.admissions(verifications=(HELD,))
    assert [(r["mismatched"], r["patient_id"], r["instance_count"]) for r in rows] == [("PatientID", "OTHER", 1)]


def test_after_an_override_only_an_order_counts(parts: Parts) -> None:
    entry = record()
    parts.register(entry)
    decide(parts, entry, HELD, "NO_ORDER")
    assert decide(parts, entry, UNVERIFIED, "OVERRIDDEN", note="emergency")
    assert not decide(parts, entry, HELD, "NO_ORDER")
    assert not decide(parts, entry, UNVERIFIED, "RIS_UNAVAILABLE")
    assert parts.study()["verification_reason"] == "OVERRIDDEN"
    assert moves(parts)[-1][2] == "OVERRIDDEN: emergency"
    assert decide(parts, entry, VERIFIED, order=order())


def test_what_a_person_corrected_stays(parts: Parts) -> None:
    entry = record(PatientName="Modality^Jane")
    parts.register(entry)
    parts.statuses.correct(
        entry.study_instance_uid, {"PatientName": "Person^Jane"}, source="user:ann", expected_version=0, actor="ann"
    )
    decide(parts, entry, VERIFIED, order=order())
    assert parts.study()["patient_name"] == "Person^Jane"


def test_bad_decisions(parts: Parts) -> None:
    entry = record()
    parts.register(entry)
    assert reason_of(decide, parts, entry, 9) == "FIELD_INVALID"
    assert reason_of(decide, parts, entry, HELD) == "FIELD_INVALID"
    decide(parts, entry, HELD, "NO_ORDER")
    assert reason_of(decide, parts, entry, VERIFIED, order=order(), expected_revision=7) == "VERSION_CONFLICT"


def test_the_same_patient_id_in_two_domains_never_joins(parts: Parts) -> None:
    domains = Domains(
        [Station("CT1", domain="north"), Station("CT2", domain="south")], [RisDomain("north"), RisDomain("south")]
    )
    parts.registry.domains = parts.statuses.domains = domains
    north, south = record(study=1, station="CT1", PatientID="7"), record(study=2, station="CT2", PatientID="7")
    parts.register(north, south)
    assert {parts.study(n)["domain"] for n in (1, 2)} == {"north", "south"}
    assert len({s["patient"] for s in parts.rows(studies)}) == 2
    for entry, domain in ((north, "north"), (south, "south")):
        parts.verifications.decide(
            Decision(
                entry.study_instance_uid,
                entry.admission_key,
                VERIFIED,
                domain=domain,
                order=order(patient_id="7", domain=domain),
            )
        )
    assert len({s["patient"] for s in parts.rows(studies)}) == 2


# -- events of a RIS


def test_events_are_applied_once_in_order_and_whole(parts: Parts) -> None:
    one, two = RisEvent(1, "default", order=order("A1")), RisEvent(2, "default", order=order("A2"))
    assert tell(parts, one) == 1
    revision = parts.feed.revision()
    assert tell(parts, one) == 1
    assert parts.feed.revision() == revision
    assert reason_of(tell, parts, RisEvent(4, "default", order=order("A4"))) == "EVENT_GAP"
    assert tell(parts, one, two, RisEvent(3, "default", available=True)) == 3
    assert [r["accession_number"] for r in parts.orders.find(OrderFilter(), 10, "")[0]] == ["A1", "A2"]
    # Another epoch begins again; another manager has numbers of its own.
    assert tell(parts, RisEvent(1, "default", order=order("A9")), epoch=b"f" * 16) == 1
    assert tell(parts, RisEvent(1, "town", order=order("A1", domain="town")), manager="m1") == 1


def test_orders_are_found(parts: Parts) -> None:
    news = [
        RisEvent(
            n + 1, "default", order=order(f"A{n}", f"P{n % 3}", scheduled_time=f"202601{n + 1:02d}0900", modality="CT")
        )
        for n in range(9)
    ]
    tell(parts, *news)

    def find(**wanted: Any) -> list[str]:
        found, token = [], ""
        while True:
            rows, token = parts.orders.find(OrderFilter(**wanted), 2, token)
            found += [row["accession_number"] for row in rows]
            if not token:
                return found

    assert find() == [f"A{n}" for n in range(9)]
    assert find(patient_id="P1") == ["A1", "A4", "A7"]
    assert find(scheduled_from="20260103", scheduled_to="20260104") == ["A2", "A3"]
    assert find(accession_number="A?", patient_name="ris^*", modality="CT") == [f"A{n}" for n in range(9)]
    assert find(patient_name="nobody") == []
    assert find(statuses=(4,)) == []


def test_new_demographics_reach_verified_studies(parts: Parts) -> None:
    entry = record(PatientID="P0", PatientName="Modality^Jane")
    parts.register(entry)
    tell(parts, RisEvent(1, "default", order=order()))
    decide(parts, entry, VERIFIED, order=order())
    tell(parts, RisEvent(2, "default", patient=person("P0", "Married^Jane")))
    assert parts.study()["patient_name"] == "Married^Jane"
    tell(parts, RisEvent(3, "default", order=order(name="Ris^Janet")))
    assert parts.study()["patient_name"] == "Ris^Janet"
    # What is not linked shows what came.
    other = record(study=1, PatientID="P0", PatientName="Modality^Jane")
    parts.register(other)
    assert parts.study(1)["patient_name"] == "Modality^Jane"


# -- merges


def merged(parts: Parts, number: int, prior: str, surviving: str) -> None:
    tell(parts, RisEvent(number, "default", merge=(person(prior), person(surviving))))


def verified(parts: Parts, study: int, patient_id: str) -> None:
    entry = record(study=study, sop=study, PatientID=patient_id, AccessionNumber=f"A{study}")
    parts.register(entry)
    decide(parts, entry, VERIFIED, order=order(f"A{study}", patient_id))


def test_a_merge_moves_studies_and_an_undo_gives_them_back(parts: Parts) -> None:
    verified(parts, 1, "OLD")
    verified(parts, 2, "NEW")
    merged(parts, 1, "OLD", "NEW")
    assert sorted(parts.find(patient_id="NEW")) == sorted([uid("study", 1), uid("study", 2)])
    assert parts.find(patient_id="OLD") == []
    count = len(parts.rows(merges))
    merged(parts, 2, "OLD", "NEW")
    assert len(parts.rows(merges)) == count, "the same again has no effect"
    (row,) = parts.orders.merges("", 10, "")[0]
    assert (row["prior"]["patient_id"], row["surviving"]["patient_id"], row["study_count"]) == ("OLD", "NEW", 1)
    parts.orders.undo(row["id"], "ann")
    assert parts.find(patient_id="OLD") == [uid("study", 1)]
    assert parts.find(patient_id="NEW") == [uid("study", 2)]
    assert reason_of(parts.orders.undo, row["id"], "ann") == "MERGE_UNDONE"
    assert reason_of(parts.orders.undo, 999, "ann") == "MERGE_NOT_FOUND"


def test_a_buried_merge_is_undone_after_the_later_one(parts: Parts) -> None:
    verified(parts, 1, "A")
    merged(parts, 1, "A", "B")
    merged(parts, 2, "B", "C")
    first, second = sorted(row["id"] for row in parts.rows(merges))
    assert reason_of(parts.orders.undo, first, "ann") == "MERGE_BURIED"
    parts.orders.undo(second, "ann")
    parts.orders.undo(first, "ann")
    assert parts.find(patient_id="A") == [uid("study", 1)]


def test_a_study_that_comes_after_a_merge_is_the_surviving_patients(parts: Parts) -> None:
    merged(parts, 1, "OLD", "NEW")
    verified(parts, 1, "OLD")
    assert parts.study(1)["patient"] == next(
        p["id"] for p in parts.rows(patients) if p["patient_id"] == "NEW" and p["identity"].startswith("ris")
    )


def test_merges_never_make_a_circle(tmp_path: Path) -> None:
    sqlite = Parts(Database(f"sqlite:///{tmp_path}/x.sqlite", MIGRATIONS))

    class Merging(RuleBasedStateMachine):
        @rule(prior=st.sampled_from("ABCDE"), surviving=st.sampled_from("ABCDE"))
        def merge(self, prior: str, surviving: str) -> None:
            parts_number[0] += 1
            merged(sqlite, parts_number[0], prior, surviving)

        @rule(pick=st.integers(0, 9))
        def undo(self, pick: int) -> None:
            live = [row["id"] for row in sqlite.rows(merges) if not row["undo_time"]]
            if live:
                try:
                    sqlite.orders.undo(live[pick % len(live)], "ann")
                except RadmeshError as error:
                    assert error.reason == "MERGE_BURIED"

        @invariant()
        def everybody_is_somebody(self) -> None:
            following = {row["prior"]: row["surviving"] for row in sqlite.rows(merges) if not row["undo_time"]}
            for prior, surviving in following.items():
                seen, now = {prior}, surviving
                while now in following:
                    assert now not in seen
                    seen.add(now)
                    now = following[now]
                assert now not in seen

    parts_number = [0]
    run_state_machine_as_test(
        Merging,
        settings=settings(
            max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    sqlite.database.close()


# -- reports


def test_a_report_from_draft_to_addendum(parts: Parts) -> None:
    parts.register(record())
    study = uid("study", 0)
    reports: Reports = parts.reports
    assert reason_of(reports.save, study, " \n", transcribed=False, actor="ann", expected_version=0) == "REPORT_EMPTY"
    assert (
        reason_of(reports.save, study, "x" * 300_000, transcribed=False, actor="a", expected_version=0)
        == "REPORT_TOO_LONG"
    )
    assert reason_of(reports.save, "1.2.3", "x", transcribed=False, actor="a", expected_version=0) == "STUDY_NOT_FOUND"
    assert reason_of(reports.approve, study, 0, "ann") == "REPORT_NOT_FOUND"
    draft = reports.save(study, "first", transcribed=False, actor="ann", expected_version=0)
    assert (draft["version"], draft["state"], parts.study()["reading"]) == (1, 1, 2)
    assert reports.save(study, "second", transcribed=True, actor="ann", expected_version=1)["text"] == "second"
    assert parts.study()["reading"] == 3
    approved = reports.approve(study, 0, "bob")
    assert (approved["state"], approved["approver"], approved["delivery"]) == (2, "bob", 1)
    assert parts.study()["reading"] == 4
    assert [(o["topic"], o["key"], o["payload"]) for o in parts.rows(outbox)] == [("report", study, "1")]
    assert reports.approve(study, 0, "eve")["approver"] == "bob"
    assert len(parts.rows(outbox)) == 1, "the same again changes nothing"
    addendum = reports.save(study, "and", transcribed=False, actor="ann", expected_version=0)
    assert (addendum["version"], parts.study()["reading"]) == (2, 5)
    assert reason_of(reports.save, study, "x", transcribed=False, actor="a", expected_version=1) == "VERSION_CONFLICT"
    reports.approve(study, 2, "bob")
    assert [r["version"] for r in reports.list(study, 0, 10, "")[0]] == [2, 1]
    assert [json.loads(o["payload"]) for o in parts.rows(outbox)] == [1, 2]
    reports.deliver(study, 1, 2, "", "R1")
    reports.deliver(study, 1, 2, "", "R1")
    assert [r["version"] for r in reports.list("", 2, 10, "")[0]] == [1]
    assert reason_of(reports.deliver, study, 9, 2, "", "R1") == "REPORT_NOT_FOUND"


def test_a_held_study_is_not_reported_on(parts: Parts) -> None:
    entry = record()
    parts.register(entry)
    decide(parts, entry, HELD, "NO_ORDER")
    assert (
        reason_of(parts.reports.save, uid("study", 0), "x", transcribed=False, actor="a", expected_version=0)
        == "STUDY_HELD"
    )


def test_admissions_by_what_a_ris_says(parts: Parts) -> None:
    for number in range(5):
        parts.register(record(study=number, sop=number, PatientID=f"P{number % 2}", AccessionNumber=f"A{number}"))
    from radmesh.database_server.verification import AdmissionFilter

    rows, _ = parts.verifications.admissions(AdmissionFilter(patient_id="P1"), 10, "")
    assert [r["accession_number"] for r in rows] == ["A1", "A3"]
    rows, token = parts.verifications.admissions(AdmissionFilter(domain="default"), 3, "")
    more, _ = parts.verifications.admissions(AdmissionFilter(domain="default"), 3, token)
    assert [r["accession_number"] for r in rows + more] == [f"A{n}" for n in range(5)]
    assert len(parts.rows(admissions)) == 5
