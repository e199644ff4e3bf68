"""The three axes, holds, and the corrections overlay."""

from typing import Any

import pytest
from database_support import ANYBODY, HELD, NOT_REQUIRED, PENDING, UNVERIFIED, VERIFIED, Parts, at_once, record, uid

from radmesh.database_server.schema import admissions, corrections, patients, studies
from radmesh.database_server.statuses import AXES
from radmesh.runtime.errors import RadmeshError

STUDY = uid("study", 0)
# CORRECTNESS rule 9, and what follows from it: (axis, from) -> to.
LEGAL = {
    ("acquisition", "SCHEDULED"): {"STARTED", "COMPLETED", "DISCONTINUED"},
    ("acquisition", "STARTED"): {"COMPLETED", "DISCONTINUED"},
    ("acquisition", "COMPLETED"): {"STARTED"},
    ("acquisition", "DISCONTINUED"): {"STARTED"},
    ("verification", "NOT_REQUIRED"): {"PENDING", "VERIFIED", "UNVERIFIED", "HELD"},
    ("verification", "PENDING"): {"VERIFIED", "UNVERIFIED", "HELD", "NOT_REQUIRED"},
    ("verification", "VERIFIED"): {"PENDING", "UNVERIFIED", "HELD"},
    ("verification", "UNVERIFIED"): {"PENDING", "VERIFIED", "HELD"},
    ("verification", "HELD"): {"PENDING", "VERIFIED", "UNVERIFIED"},
    ("reading", "NEW"): {"DICTATED"},
    ("reading", "DICTATED"): {"TRANSCRIBED", "APPROVED"},
    ("reading", "TRANSCRIBED"): {"APPROVED", "DICTATED"},
    ("reading", "APPROVED"): {"ADDENDUM"},
    ("reading", "ADDENDUM"): {"APPROVED"},
}


def move(parts: Parts, axis: str, to: str, **options: Any) -> None:
    number = AXES[axis].states.index(to)
    parts.statuses.move(
        STUDY, axis, number, **{"reason": "NO_ORDER", "expected_version": 0, "actor": "test", **options}
    )


def put(parts: Parts, axis: str, state: str) -> None:
    """Put the study into a state, whatever moves are legal."""
    number = AXES[axis].states.index(state)
    parts.database.write(
        lambda c: c.execute(studies.update().values({axis: number, "verification_reason": "NO_ORDER"}))
    )
    if axis == "verification":
        parts.database.write(lambda c: c.execute(admissions.update().values(verification=number, reason="NO_ORDER")))


@pytest.mark.parametrize("axis", AXES)
def test_every_move_from_every_state(parts: Parts, axis: str) -> None:
    parts.register(record())
    states = AXES[axis].states[1:]
    for before in states:
        for after in states:
            put(parts, axis, before)
            version = parts.study()["version"]
            if after == before:
                move(parts, axis, after)
                assert parts.study()["version"] == version
            elif after in LEGAL[axis, before]:
                move(parts, axis, after)
                assert AXES[axis].states[parts.study()[axis]] == after
                assert parts.study()["version"] == version + 1
            else:
                with pytest.raises(RadmeshError) as error:
                    move(parts, axis, after)
                assert error.value.reason == "STATUS_ILLEGAL"
                assert error.value.metadata == {"axis": axis, "from": before, "to": after}
                assert AXES[axis].states[parts.study()[axis]] == before


def test_the_axes_are_independent_and_have_histories(parts: Parts) -> None:
    parts.register(record())
    move(parts, "reading", "DICTATED", actor="doe")
    parts.advance(5)
    move(parts, "verification", "UNVERIFIED", reason="RIS_UNAVAILABLE")
    move(parts, "reading", "APPROVED")
    entries: list[dict[str, Any]] = []
    token = ""
    while True:
        page, token = parts.statuses.history(STUDY, 2, token)
        entries += page
        if not token:
            break
    assert [(e["axis"], e["from_state"], e["to_state"], e["reason"], e["actor"]) for e in entries] == [
        ("reading", "NEW", "DICTATED", "NO_ORDER", "doe"),
        ("verification", "NOT_REQUIRED", "UNVERIFIED", "RIS_UNAVAILABLE", "test"),
        ("reading", "DICTATED", "APPROVED", "NO_ORDER", "test"),
    ]
    assert [e["version"] for e in entries] == sorted({e["version"] for e in entries})
    assert entries[1]["time"] - entries[0]["time"] == 5_000_000
    assert parts.study()["acquisition"] == 3


def test_versions_keep_two_writers_apart(parts: Parts) -> None:
    parts.register(record())
    version = parts.study()["version"]
    answers = at_once(
        lambda: move(parts, "reading", "DICTATED", expected_version=version),
        lambda: move(parts, "acquisition", "STARTED", expected_version=version),
    )
    refused = [answer for answer in answers if isinstance(answer, RadmeshError)]
    assert [error.reason for error in refused] == ["VERSION_CONFLICT"]
    assert parts.study()["version"] == version + 1
    assert refused[0].metadata["version"] == str(version + 1)


def test_what_cannot_be_asked(parts: Parts) -> None:
    with pytest.raises(RadmeshError) as error:
        move(parts, "reading", "DICTATED")
    assert error.value.reason == "STUDY_NOT_FOUND"
    parts.register(record())
    for state in ("UNVERIFIED", "HELD"):
        with pytest.raises(RadmeshError) as error:
            move(parts, "verification", state, reason="")
        assert error.value.metadata["field"] == "reason"
    with pytest.raises(RadmeshError) as error:
        parts.statuses.move(STUDY, "reading", 77, reason="", expected_version=0, actor="test")
    assert error.value.reason == "FIELD_INVALID"


def test_another_reason_for_the_same_state_is_kept(parts: Parts) -> None:
    parts.register(record())
    move(parts, "verification", "HELD", reason="NO_ORDER")
    move(parts, "verification", "HELD", reason="PATIENT_MISMATCH")
    assert parts.study()["verification_reason"] == "PATIENT_MISMATCH"
    rows, _ = parts.statuses.history(STUDY, 100, "")
    assert [row["reason"] for row in rows] == ["NO_ORDER", "PATIENT_MISMATCH"]


# -- holds


def hold(parts: Parts, entry: Any, state: int, reason: str = "PATIENT_MISMATCH") -> tuple[int, int]:
    return parts.hold(entry.study_instance_uid, entry.admission_key, state, reason, "gateway")


def test_a_study_is_as_bad_as_its_worst_admission(parts: Parts) -> None:
    good, late = record(sop=0), record(sop=1, PatientName="Roe^Richard")
    parts.register(good, late)
    assert hold(parts, good, VERIFIED, "")[0] == 1
    assert parts.study()["verification"] == VERIFIED
    assert hold(parts, late, HELD)[0] == 1
    assert (parts.study()["verification"], parts.study()["verification_reason"]) == (HELD, "PATIENT_MISMATCH")
    # The late object alone is held.
    assert parts.study(0, ANYBODY)["verification"] == VERIFIED
    assert [row["sop_instance_uid"] for row in parts.instances(0, ANYBODY)] == [good.sop_instance_uid]
    hold(parts, late, UNVERIFIED, "TIMEOUT")
    assert parts.study()["verification"] == UNVERIFIED
    hold(parts, late, VERIFIED, "")
    assert (parts.study()["verification"], parts.study()["verification_reason"]) == (VERIFIED, "")
    rows, _ = parts.statuses.history(STUDY, 100, "")
    assert [row["to_state"] for row in rows] == ["VERIFIED", "HELD", "UNVERIFIED", "VERIFIED"]


def test_the_same_hold_twice_is_one(parts: Parts) -> None:
    entry = record()
    parts.register(entry)
    first = hold(parts, entry, HELD)
    version = parts.study()["version"]
    assert hold(parts, entry, HELD) == first
    assert parts.study()["version"] == version


def test_what_arrives_later_under_a_held_key_is_held(parts: Parts) -> None:
    parts.register(record(sop=0))
    hold(parts, record(sop=0), HELD)
    # The ticket it came with said otherwise; the database's row decides.
    parts.register(record(sop=1, changes={"verification": VERIFIED}))
    with pytest.raises(RadmeshError):
        parts.study(0, ANYBODY)
    hold(parts, record(sop=0), VERIFIED, "")
    assert parts.study(0, ANYBODY)["instance_count"] == 2


def test_a_hold_in_no_state_is_refused(parts: Parts) -> None:
    with pytest.raises(RadmeshError) as error:
        hold(parts, record(), 9)
    assert error.value.reason == "FIELD_INVALID"


def test_admissions_are_listed(parts: Parts) -> None:
    for number in range(5):
        parts.register(record(study=number, sop=number, PatientBirthDate="19700101", AccessionNumber=f"A{number}"))
    hold(parts, record(study=3, sop=3, PatientBirthDate="19700101", AccessionNumber="A3"), HELD)
    rows: list[dict[str, Any]] = []
    token = ""
    while True:
        page, token = parts.admissions("", (), 2, token)
        rows += page
        if not token:
            break
    assert [row["accession_number"] for row in rows] == [f"A{number}" for number in range(5)]
    assert all(row["instance_count"] == 1 and row["station"] == "CT1" for row in rows)
    held, _ = parts.admissions("", (HELD,), 10, "")
    assert [(row["study_instance_uid"], row["reason"]) for row in held] == [(uid("study", 3), "PATIENT_MISMATCH")]
    mine, _ = parts.admissions(uid("study", 4), (), 10, "")
    assert [row["patient_birth_date"] for row in mine] == ["19700101"]


def test_setting_the_whole_study_sets_each_of_its_keys(parts: Parts) -> None:
    parts.register(record(sop=0), record(sop=1, station="MR1"))
    hold(parts, record(sop=1, station="MR1"), HELD)
    move(parts, "verification", "VERIFIED", reason="")
    rows, _ = parts.admissions(STUDY, (), 10, "")
    assert [row["verification"] for row in rows] == [VERIFIED, VERIFIED]
    assert parts.study(0, ANYBODY)["instance_count"] == 2
    move(parts, "verification", "HELD", reason="PATIENT_MISMATCH")
    with pytest.raises(RadmeshError):
        parts.study(0, ANYBODY)
    assert NOT_REQUIRED < PENDING < VERIFIED


# -- corrections


def correct(parts: Parts, version: int = 0, **values: str) -> None:
    parts.statuses.correct(STUDY, values, source="user:doe", expected_version=version, actor="doe")


def test_corrections_lie_over_what_came(parts: Parts) -> None:
    parts.register(record(PatientName="Wrong^Name", AccessionNumber="A1"), record(study=1, sop=1, PatientID="P0"))
    correct(parts, PatientName="Right^Name", AccessionNumber="A2")
    correct(parts, PatientName="Righter^Name")
    study = parts.study()
    assert (study["patient_name"], study["accession_number"], study["corrected"]) == ("Righter^Name", "A2", True)
    # Another study of the patient, whom it called otherwise, and the patient as received stay as they are.
    assert parts.study(1)["patient_name"] == "Doe^John"
    assert [row["patient_name"] for row in parts.rows(patients) if row["identity"].startswith("id")] == ["Wrong^Name"]
    rows, _ = parts.statuses.corrections(STUDY, 10, "")
    assert [(r["keyword"], r["original_value"], r["value"], r["in_force"]) for r in rows] == [
        ("PatientName", "Wrong^Name", "Righter^Name", True),
        ("PatientName", "Wrong^Name", "Right^Name", False),
        ("AccessionNumber", "A1", "A2", True),
    ]


def test_an_empty_value_takes_a_correction_away(parts: Parts) -> None:
    parts.register(record(PatientName="Wrong^Name", AccessionNumber="A1"))
    correct(parts, PatientName="Right^Name", AccessionNumber="A2", PatientID="7")
    correct(parts, PatientName="", AccessionNumber="")
    study = parts.study()
    assert (study["patient_name"], study["accession_number"], study["patient_id"]) == ("Wrong^Name", "A1", "7")
    assert study["corrected"]
    correct(parts, PatientID="")
    assert (parts.study()["patient_id"], parts.study()["corrected"]) == ("P0", False)
    assert not any(row["in_force"] for row in parts.rows(corrections))
    version = parts.study()["version"]
    correct(parts, PatientID="")
    assert parts.study()["version"] == version
    assert parts.find(patient_id="P0") == [STUDY]


def test_corrections_are_versioned_and_bounded(parts: Parts) -> None:
    with pytest.raises(RadmeshError) as error:
        correct(parts, PatientName="X")
    assert error.value.reason == "STUDY_NOT_FOUND"
    parts.register(record())
    version = parts.study()["version"]
    correct(parts, version, PatientName="X\0" + "漢" * 5000, PatientID="".join(map(chr, range(0x4E00, 0x5E00))))
    assert len(parts.study()["patient_name"]) == 1024
    with pytest.raises(RadmeshError) as error:
        correct(parts, version, PatientName="Y")
    assert error.value.reason == "VERSION_CONFLICT"
    for values in ({}, {"Rows": "1"}):
        with pytest.raises(RadmeshError) as error:
            correct(parts, 0, **values)
        assert error.value.reason == "FIELD_INVALID"


def test_a_correction_is_in_the_history_without_its_value(parts: Parts) -> None:
    parts.register(record())
    correct(parts, PatientName="Secret^Name")
    correct(parts, PatientName="")
    rows, _ = parts.statuses.history(STUDY, 10, "")
    assert [(r["axis"], r["from_state"], r["to_state"]) for r in rows] == [
        ("correction", "PatientName", "set"),
        ("correction", "PatientName", "removed"),
    ]
    assert "Secret" not in repr(rows)
