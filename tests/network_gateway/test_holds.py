"""Holds that people release: verified again, or answered for."""

from typing import Any

import pytest
from component_mesh import item
from database_support import uid
from manager_support import order
from verification_support import World, study
from waiting import wait_for

from radmesh.network_gateway.policy import HELD, UNVERIFIED, VERIFIED
from radmesh.runtime.errors import RadmeshError

# -- people


def test_release_verifies_again(world: World) -> None:
    world.send(study("a", "REQUIRED"))
    world.wait("a", HELD, "NO_ORDER")
    (same,) = world.release("a")
    assert (same.verification, same.reason) == (HELD, "NO_ORDER")
    world.manager.orders = [order("default", "A1", "P1")]
    (now,) = world.release("a")
    assert (now.verification, now.reason, now.order_id) == (VERIFIED, "", "default/A1")
    assert world.visible("a")
    key = study("a", "REQUIRED").key.digest().hex()
    assert world.audit("ADMISSION_VERIFIED_AGAIN") == [
        ("jane", uid("study", "a"), {"admission_key": key, "outcome": "VERIFIED"}),
        ("jane", uid("study", "a"), {"admission_key": key, "outcome": "NO_ORDER"}),
    ]


def test_a_person_answers_for_it_and_only_a_match_changes_that(world: World) -> None:
    world.manager.orders = [order("default", "A1", "P2")]
    world.send(study("a"), item("a", 2, station="CT1", AccessionNumber="A1", PatientID="P2", StudyDate="20260101"))
    world.wait("a", HELD, "PATIENT_MISMATCH")
    world.wait("a", VERIFIED)
    held = next(a for a in world.admissions("a") if a.verification == HELD)
    other = next(a for a in world.admissions("a") if a.verification == VERIFIED)
    (now,) = world.release(
        "a", override=True, override_reason="the patient was admitted twice", admission_key=held.admission_key_digest
    )
    assert (now.verification, now.reason) == (UNVERIFIED, "OVERRIDDEN")
    assert next(a for a in world.admissions("a") if a.order_id).revision == other.revision
    assert world.visible("a")
    ((actor, concerned, detail),) = world.audit("ADMISSION_OVERRIDDEN")
    assert (actor, concerned) == ("jane", uid("study", "a"))
    assert detail["reason"] == "the patient was admitted twice"
    assert detail["was"] == "PATIENT_MISMATCH"
    # Neither the same contradiction, nor a second override, nor the next object: only a match.
    world.release("a", admission_key=held.admission_key_digest)
    world.release("a", override=True, override_reason="again")
    world.order(order("default", "A1", "P2", name="Doe^Johnny"))
    world.send(item("a", 3, station="CT1", AccessionNumber="A1", PatientID="P1", StudyDate="20260101"))
    wait_for(lambda: sum(a.instance_count for a in world.admissions("a")) == 3)
    assert world.is_("a", UNVERIFIED, "OVERRIDDEN")
    assert len(world.audit("ADMISSION_OVERRIDDEN")) == 1
    world.order(order("default", "A1", "P1"))
    wait_for(lambda: not world.is_("a", UNVERIFIED, "OVERRIDDEN"))
    assert next(a for a in world.admissions("a") if a.admission_key.patient_id == "P1").verification == VERIFIED


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("nobody", {}, "STUDY_NOT_FOUND"),
        ("a", {"admission_key": b"x" * 32}, "ADMISSION_UNKNOWN"),
        ("a", {"override": True}, "OVERRIDE_REASON_MISSING"),
        ("a", {"override": True, "override_reason": "  "}, "OVERRIDE_REASON_MISSING"),
        ("a", {"override": True, "override_reason": "x" * 513}, "OVERRIDE_REASON_MISSING"),
    ],
)
def test_what_cannot_be_released_is_named(world: World, name: str, fields: dict[str, Any], reason: str) -> None:
    world.send(study("a", "REQUIRED"))
    world.wait("a", HELD, "NO_ORDER")
    with pytest.raises(RadmeshError) as caught:
        world.release(name, **fields)
    assert caught.value.reason == reason
    assert world.is_("a", HELD, "NO_ORDER")
