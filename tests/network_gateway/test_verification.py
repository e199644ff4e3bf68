"""Verdicts: what ticket and database say, and what happens while a RIS, the database or the gateway is gone."""

import pytest
from database_support import at_once
from manager_support import order
from verification_support import World, study
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2 as db
from radmesh.network_gateway import verifier
from radmesh.network_gateway.policy import HELD, NOT_REQUIRED, PENDING, UNVERIFIED, VERIFIED
from radmesh.network_gateway.verifier import Verifier


@pytest.mark.parametrize(
    ("station", "accession", "patient", "state", "reason"),
    [
        ("CT1", "A1", "P1", VERIFIED, ""),
        ("CT1", "A1", "P2", HELD, "PATIENT_MISMATCH"),
        ("CT1", "A2", "P1", UNVERIFIED, "NO_ORDER"),
        ("CT1", "A3", "P1", HELD, "AMBIGUOUS"),
        ("REQUIRED", "A1", "P1", VERIFIED, ""),
        ("REQUIRED", "A2", "P1", HELD, "NO_ORDER"),
        ("BOTH", "A1", "P1", HELD, "DOMAIN_UNKNOWN"),
    ],
)
def test_the_ticket_says_it_and_so_does_the_database(
    world: World, station: str, accession: str, patient: str, state: int, reason: str
) -> None:
    twice = order("default", "A3", "P1"), order("default", "A3", "P1", name="Doe^Jane")
    world.manager.orders = [order("default", "A1", "P1"), *twice]
    one = study("s", station, accession, patient)
    assert world.admit(one).verification == state
    world.send(one)
    world.wait("s", state, reason)
    assert world.visible("s") == (state != HELD)
    (admission,) = world.admissions("s")
    assert list(admission.mismatched_keywords) == (["PatientID"] if reason == "PATIENT_MISMATCH" else [])
    assert admission.order_id == ("default/A1" if state == VERIFIED else "")
    if reason != "DOMAIN_UNKNOWN":
        asked = world.manager.asked[0]
        assert (asked.domain, asked.study_date, asked.modality) == ("default", "20260101", "CT")
        assert (asked.study_key, asked.patient_key) == ("accession else date+modality", "id")


def test_off_asks_nobody(world: World) -> None:
    one = study("s", "OFF")
    assert world.admit(one).verification == NOT_REQUIRED
    world.send(one)
    world.wait("s", NOT_REQUIRED)
    assert not world.manager.asked


def test_a_mesh_without_a_manager_asks_nobody_unless_it_must(world: World) -> None:
    del world.mesh.mesh.addresses["connectivity-manager-0"]
    world.mesh.stop("network-gateway")
    world.gateway()
    assert world.admit(study("a")).verification == NOT_REQUIRED
    assert world.admit(study("b", "REQUIRED")).verification == UNVERIFIED
    world.send(study("b", "REQUIRED"))
    world.wait("b", UNVERIFIED, "RIS_UNAVAILABLE")


def test_each_domain_is_asked_about_its_own(world: World) -> None:
    """The same accession number and Patient ID in two domains: two patients, each with its own order."""
    world.manager.orders = [order("default", "T1", "P1", name="Doe^John")]
    world.town.orders = [order("town", "T1", "P1", name="Roe^Jane")]
    for name, station in (("a", "CT1"), ("b", "TOWN"), ("c", "BOTH")):
        world.send(study(name, station, "T1", "P1"))
        world.wait(name, VERIFIED)
    assert [world.admissions(n)[0].domain for n in "abc"] == ["default", "town", "town"]
    assert [world.admissions(n)[0].order_id for n in "abc"] == ["default/T1", "town/T1", "town/T1"]
    # One that carries the other domain's issuer is nobody's.
    world.send(study("d", "CT1", "T1", "P1", IssuerOfPatientID="TOWN"))
    world.wait("d", HELD, "DOMAIN_UNKNOWN")
    found = [world.shown(name) for name in "abc"]
    assert [s.patient_name for s in found] == ["Doe^John", "Roe^Jane", "Roe^Jane"]
    queries = world.client("application-server", "QueryService")
    patients = queries.FindPatients(db.FindPatientsRequest(patient_id="P1"), timeout=30.0).patients
    assert sorted(p.study_count for p in patients) == [1, 2]


# -- a RIS that is late, silent, down, mad


def test_late_is_pending_and_the_verdict_follows(world: World) -> None:
    world.manager.orders = [order("default", "A1", "P1")]
    with world.manager.late():
        first = study("a")
        assert world.admit(first).verification == PENDING
        assert world.admit(study("b")).verification == PENDING
        world.send(first)
        world.wait("a", PENDING)
        assert world.visible("a")
    world.wait("a", VERIFIED)
    assert world.moves("a") == [("PENDING", "VERIFIED", "")]
    wait_for(lambda: world.admit(study("a")).verification == VERIFIED)


def test_silent_past_the_deadline_is_a_timeout_and_then_nobody_waits(world: World) -> None:
    world.mesh.stop("network-gateway")
    world.gateway(verify_deadline=0.3)
    world.manager.orders = [order("default", "A1", "P1")]
    with world.manager.late():
        world.send(study("a"))
        world.wait("a", UNVERIFIED, "TIMEOUT")
        asked = len(world.manager.asked)
        world.send(*(study(f"b{n}") for n in range(20)))
        assert world.admit(study("c", "CAREFUL")).verification == HELD
        for n in range(20):
            world.wait(f"b{n}", UNVERIFIED, "RIS_UNAVAILABLE")
        assert len(world.manager.asked) == asked, "a manager that was silent a moment ago is left alone"
        assert all(world.visible(f"b{n}") for n in range(20))
        alarms = [reason for reason, _, _ in world.mesh.contexts["network-gateway"].status.alarms()]
        assert "RIS_UNAVAILABLE" in alarms
    for name in ("a", *(f"b{n}" for n in range(20))):
        world.wait(name, VERIFIED)
    alarms = [reason for reason, _, _ in world.mesh.contexts["network-gateway"].status.alarms()]
    assert "RIS_UNAVAILABLE" not in alarms


@pytest.mark.parametrize("mood", ["nonsense", "other domain", "unavailable"])
def test_what_makes_no_sense_is_no_answer(world: World, mood: str) -> None:
    world.manager.orders = [order("default", "A1", "P1")]
    world.manager.mood = mood
    wait_for(lambda: world.admit(study("a")).verification == UNVERIFIED)
    world.send(study("a"), study("b", "CAREFUL"))
    world.wait("a", UNVERIFIED, "RIS_UNAVAILABLE")
    world.wait("b", HELD, "RIS_UNAVAILABLE")
    world.manager.mood = ""
    world.wait("a", VERIFIED)
    world.wait("b", VERIFIED)


def test_a_contradiction_is_not_forgotten_while_the_ris_is_down(world: World) -> None:
    world.manager.orders = [order("default", "A1", "P1")]
    world.send(study("a", patient="P9"))
    world.wait("a", HELD, "PATIENT_MISMATCH")
    world.manager.stop()
    world.release("a")
    assert world.is_("a", HELD, "PATIENT_MISMATCH")
    world.mesh.stop("network-gateway")
    world.gateway(verify_again=0.2)
    world.send(study("b"))
    world.wait("b", UNVERIFIED, "RIS_UNAVAILABLE")
    assert world.is_("a", HELD, "PATIENT_MISMATCH")
    assert world.moves("a")[-1][1] == "HELD"


# -- the database is down; the gateway dies


def test_without_the_database_the_ticket_carries_the_state(world: World) -> None:
    world.manager.orders = [order("default", "A1", "P1")]
    world.mesh.kill("database-server")
    stations = {"a": "CT1", "b": "CT1", "c": "REQUIRED"}
    items = [study("a"), study("b", patient="P2"), study("c", "REQUIRED", "A7")]
    assert [world.admit(one).verification for one in items] == [VERIFIED, HELD, HELD]
    assert {world.admit(one).store_id for one in items} == {"spool-0"}
    world.send(*items)
    world.mesh.database()
    world.wait("a", VERIFIED)
    world.wait("b", HELD, "PATIENT_MISMATCH")
    world.wait("c", HELD, "NO_ORDER")
    assert world.admissions("a")[0].order_id == "default/A1"
    assert [world.visible(name) for name in stations] == [True, False, False]


def test_a_gateway_that_dies_before_it_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a verdict was written down: the next gateway settles it."""
    world.manager.orders = [order("default", "A1", "P1")]
    monkeypatch.setattr(Verifier, "deliver", lambda *_args, **_more: None)
    world.send(study("a"), study("b", patient="P2"), study("c", "REQUIRED", "A7"))
    wait_for(lambda: all(world.admissions(name) for name in "abc"))
    world.mesh.kill("network-gateway")
    monkeypatch.undo()
    world.gateway()
    world.wait("a", VERIFIED)
    world.wait("b", HELD, "PATIENT_MISMATCH")
    world.wait("c", HELD, "NO_ORDER")


def test_a_late_verdict_does_not_undo_what_healed(world: World) -> None:
    one = study("a")
    with world.manager.late():
        assert world.admit(one).verification == PENDING
        world.send(one)
        world.wait("a", PENDING)
        asking = world.mesh.running["network-gateway"]._verifier
        # The manager has looked already, and found nothing; then the order came, and was told at once.
        real, world.manager.orders = world.manager.orders, [order("default", "A1", "P1")]
        world.manager.mood = ""
        world.release("a")
        world.wait("a", VERIFIED)
        world.manager.orders = real
    wait_for(lambda: not asking._running and not asking._outbox)
    assert world.is_("a", VERIFIED)


def test_more_at_once_than_may_be_asked_about(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are admitted at once all the same, and asked about later."""
    monkeypatch.setattr(verifier, "_MOST_RUNNING", 2)
    world.manager.orders = [order("default", "A1", "P1")]
    items = [study(n) for n in range(6)]
    with world.manager.late():
        assert {world.admit(one).verification for one in items} == {PENDING}
        assert len(world.mesh.running["network-gateway"]._verifier._running) == 2
        world.send(*items)
    for n in range(6):
        world.wait(n, VERIFIED)


def test_many_at_once(world: World) -> None:
    world.manager.orders = [order("default", f"A{n}", f"P{n}") for n in range(40)]
    items = [study(n, accession=f"A{n}", patient=f"P{n}") for n in range(40)]
    tickets = at_once(*(lambda one=one: world.admit(one) for one in items))
    assert {t.verification for t in tickets} <= {VERIFIED, PENDING}
    world.send(*items)
    for n in range(40):
        world.wait(n, VERIFIED)
