"""What was not verified is verified again: by orders, patients, a RIS that is back, and now and then."""

import pytest
from component_mesh import item
from connectivity_support import a40, adt, orm, pid
from database_support import uid
from depth import times
from manager_support import order
from verification_support import Hospital, World, study
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2 as db
from radmesh.network_gateway import healing
from radmesh.network_gateway.policy import HELD, UNVERIFIED, VERIFIED

STUDIES = times(100, 40)


def test_the_ris_is_down_while_a_hundred_studies_come(world: World) -> None:
    """Modalities notice nothing; all are visible and marked; all heal, in the order in which they came, each once."""
    names = [f"s{n}" for n in range(STUDIES)]
    world.manager.stop()
    world.send(*(study(name, accession=f"A{n}", patient=f"P{n}") for n, name in enumerate(names)))
    for name in names:
        world.wait(name, UNVERIFIED, "RIS_UNAVAILABLE")
    assert all(world.visible(name) for name in names)
    world.manager.orders = [order("default", f"A{n}", f"P{n}") for n in range(STUDIES)]
    world.manager.asked.clear()
    world.manager.start()
    wait_for(lambda: len(world.admissions(verifications=[VERIFIED])) == STUDIES)
    told = [request.keys.accession_number for request in world.manager.asked]
    # Who is asked on a busy machine may be late, and is asked again.
    assert list(dict.fromkeys(told)) == [f"A{n}" for n in range(STUDIES)], "in order"
    for name in names:
        moves = world.moves(name)
        assert moves[-1][1:] == ("VERIFIED", "")
        assert len([m for m in moves if m[1] == "VERIFIED"]) == 1
        assert len(moves) <= 3
    # The next looks at everything find nothing to do.
    revisions = [a.revision for a in world.admissions()]
    world.mesh.stop("network-gateway")
    world.gateway(verify_again=0.2)
    world.event(patient=db.RisPatient(patient_id="P1"))
    world.send(study("after", accession="A1", patient="P1"))
    world.wait("after", VERIFIED)
    assert [a.revision for a in world.admissions()][:STUDIES] == revisions


# -- healing by orders


def test_an_order_that_comes_late(world: World) -> None:
    world.send(study("a", "REQUIRED"), study("b"))
    world.wait("a", HELD, "NO_ORDER")
    world.wait("b", UNVERIFIED, "NO_ORDER")
    assert not world.visible("a")
    world.order(order("default", "A1", "P1"))
    world.wait("a", VERIFIED)
    world.wait("b", VERIFIED)
    assert world.visible("a")


def test_an_order_that_comes_before_the_study_is_registered(world: World) -> None:
    """The verdict is given, the object still under way: the order must not be missed."""
    one = study("a")
    assert world.admit(one).verification == UNVERIFIED
    world.order(order("default", "A1", "P1"))
    wait_for(lambda: len(world.manager.asked) > 1)
    world.send(one)
    world.wait("a", VERIFIED)


def test_an_order_is_corrected(world: World) -> None:
    world.order(order("default", "A1", "P2"))
    world.send(study("a"))
    world.wait("a", HELD, "PATIENT_MISMATCH")
    world.order(order("default", "A1", "P1"))
    world.wait("a", VERIFIED)
    # It was meant for somebody else after all.
    world.order(order("default", "A1", "P3"))
    world.wait("a", HELD, "PATIENT_MISMATCH")
    world.order(order("default", "A1", "P1"))
    world.wait("a", VERIFIED)


def test_an_order_that_names_the_study_or_only_its_patient(world: World) -> None:
    """Orders whose accession number is another than the object's: found by Study UID and patient."""
    world.send(study("a", accession="", patient="P5"), study("b", accession="X", patient="P6"))
    world.wait("a", UNVERIFIED, "NO_ORDER")
    world.wait("b", UNVERIFIED, "NO_ORDER")
    world.manager.asked.clear()
    world.event(order=order("default", "A8", "P5"))
    world.event(order=order("default", "A9", "P7", study_instance_uid=uid("study", "b")))
    wait_for(lambda: {r.keys.study_instance_uid for r in world.manager.asked} == {uid("study", "a"), uid("study", "b")})


def test_a_patient_that_changes(world: World) -> None:
    world.send(study("a"), study("b", patient="P2"))
    world.wait("a", UNVERIFIED, "NO_ORDER")
    world.wait("b", UNVERIFIED, "NO_ORDER")
    world.manager.asked.clear()
    world.manager.orders = [order("default", "A1", "P1")]
    world.event(patient=db.RisPatient(patient_id="P1", patient_name="Doe^John"))
    world.wait("a", VERIFIED)
    assert {r.keys.patient_id for r in world.manager.asked} == {"P1"}


def test_a_late_object_of_another_patient_is_held_alone(world: World) -> None:
    world.manager.orders = [order("default", "A1", "P1")]
    world.send(study("a"))
    world.wait("a", VERIFIED)
    world.send(item("a", 2, station="CT1", AccessionNumber="A1", PatientID="P9", StudyDate="20260101"))
    world.wait("a", HELD, "PATIENT_MISMATCH")
    assert sorted(a.verification for a in world.admissions("a")) == [VERIFIED, HELD]
    assert world.visible("a"), "the study stays readable"


def test_an_order_without_an_accession_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change does not say which it was: everything is looked at soon."""
    monkeypatch.setattr(healing, "_SOON_SECONDS", 0.1)
    world.send(study("a", accession=""))
    world.wait("a", UNVERIFIED, "NO_ORDER")
    world.manager.orders = [order("default", "", "P1", order_id="default/F1#1")]
    world.event(order=world.manager.orders[0])
    world.wait("a", VERIFIED)


def test_more_changes_than_can_be_looked_at_one_by_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healing, "_MOST", 3)
    world.send(*(study(n, accession=f"A{n}") for n in range(10)))
    for n in range(10):
        world.wait(n, UNVERIFIED, "NO_ORDER")
    with world.manager.late():
        # One look is under way and does not end: the others wait, and are too many.
        world.event(patient=db.RisPatient(patient_id="P1"))
        wait_for(lambda: len(world.manager.asked) > 10)
        world.event(*({"patient": db.RisPatient(patient_id=f"X{n}")} for n in range(10)))
        world.manager.orders = [order("default", f"A{n}", "P1") for n in range(10)]
    for n in range(10):
        world.wait(n, VERIFIED)


def test_a_change_of_another_domain_concerns_nobody_here(world: World) -> None:
    world.send(study("a"), study("b", "TOWN"))
    world.wait("a", UNVERIFIED, "NO_ORDER")
    world.wait("b", UNVERIFIED, "NO_ORDER")
    asked = len(world.manager.asked)
    world.town.orders = [order("town", "A1", "P1")]
    world.manager.orders = [order("default", "A1", "P1")]
    world.event(order=world.town.orders[0], domain="town", manager="connectivity-manager-1")
    world.wait("b", VERIFIED)
    assert len(world.manager.asked) == asked
    assert world.is_("a", UNVERIFIED, "NO_ORDER")


def test_the_database_goes_and_comes_while_orders_come(world: World) -> None:
    """Changes that nobody was told of, for the feed was cut."""
    world.send(study("a"), study("b", accession="A2"))
    world.wait("a", UNVERIFIED, "NO_ORDER")
    world.wait("b", UNVERIFIED, "NO_ORDER")
    # The feed is being followed: only what was can be cut.
    asked = len(world.manager.asked)
    world.event(patient=db.RisPatient(patient_id="P1", patient_name="Doe^John"))
    wait_for(lambda: len(world.manager.asked) >= asked + 2)
    world.mesh.kill("database-server")
    world.manager.orders = [order("default", "A1", "P1"), order("default", "A2", "P1")]
    world.mesh.database()
    world.wait("a", VERIFIED)
    world.wait("b", VERIFIED)


def test_everything_is_looked_at_now_and_then(world: World) -> None:
    """An order of which nobody told the database."""
    world.mesh.stop("network-gateway")
    world.gateway(verify_again=0.2)
    world.send(study("a"))
    world.wait("a", UNVERIFIED, "NO_ORDER")
    world.manager.orders = [order("default", "A1", "P1")]
    world.wait("a", VERIFIED)


def test_a_real_manager(world: World, hospital: Hospital) -> None:
    """Orders by HL7: before the study, after it, corrected; the RIS's demographics are shown."""
    hospital.say(orm("A1", pid("P1", "Verified^Name")))
    world.send(study("a"), study("b", "REQUIRED", "A2", "P2"), study("c", accession="A1", patient="P3"))
    world.wait("a", VERIFIED)
    world.wait("b", HELD, "NO_ORDER")
    world.wait("c", HELD, "PATIENT_MISMATCH")
    shown = world.shown("a")
    assert (shown.patient_name, shown.corrected, shown.order_id) == ("Verified^Name", True, "default/A1")
    hospital.say(orm("A2", pid("P9")))
    world.wait("b", HELD, "PATIENT_MISMATCH")
    hospital.say(orm("A2", pid("P2", "Late^Order"), control="XO"))
    world.wait("b", VERIFIED)
    assert world.shown("b").patient_name == "Late^Order"
    hospital.say(adt("A08", pid("P2", "New^Name")))
    wait_for(lambda: world.shown("b").patient_name == "New^Name")
    assert world.is_("b", VERIFIED)


def test_a_real_manager_merges_patients(world: World, hospital: Hospital) -> None:
    """The modality still has the old ID: the order's patient was merged, and the study agrees after all."""
    hospital.say(orm("A1", pid("P1")))
    world.send(study("a", patient="P0"))
    world.wait("a", HELD, "PATIENT_MISMATCH")
    hospital.say(a40("P0", "P1"))
    world.wait("a", VERIFIED)
    assert world.shown("a").patient_id == "P1"


def test_a_real_manager_that_is_down_for_a_while(world: World, hospital: Hospital) -> None:
    hospital.say(*(orm(f"A{n}", pid(f"P{n}")) for n in range(10)))
    # All are told: none of their events comes after the restart, and heals one study before its turn.
    orders = world.client("network-gateway", "OrderService")
    wait_for(lambda: len(orders.FindOrders(db.FindOrdersRequest(), timeout=30.0).orders) == 10)
    hospital.stop()
    names = [f"s{n}" for n in range(10)]
    world.send(*(study(name, accession=f"A{n}", patient=f"P{n}") for n, name in enumerate(names)))
    for name in names:
        world.wait(name, UNVERIFIED, "RIS_UNAVAILABLE")
    hospital.start()
    for name in names:
        world.wait(name, VERIFIED)
        assert [m[1] for m in world.moves(name)].count("VERIFIED") == 1
    times = [a.update_time.ToMicroseconds() for a in world.admissions()]
    assert times == sorted(times), "in order"
