"""What was decided about an admission: by whom, when, once; before its objects or after them; what it shows."""

from functools import partial
from typing import Any

import pytest
from database_support import (
    ALL,
    ANYBODY,
    HELD,
    NOT_REQUIRED,
    PENDING,
    UNVERIFIED,
    VERIFIED,
    Parts,
    at_once,
    decision,
    meeting,
    order,
    record,
    ris_patient,
    uid,
)

from radmesh.database_server.queries import Viewer
from radmesh.database_server.schema import admissions, corrections, studies, verdicts
from radmesh.database_server.verification import AdmissionFilter
from radmesh.runtime.errors import RadmeshError

STUDY = uid("study", 0)
RIS = ris_patient("P0", "Doe^Jonathan^Quincy", birth="19700101", sex="M")


def history(parts: Parts, axis: str = "verification", study: object = 0) -> list[tuple[str, str, str, str]]:
    rows, _ = parts.statuses.history(uid("study", study), 100, "")
    return [(r["from_state"], r["to_state"], r["reason"], r["actor"]) for r in rows if r["axis"] == axis]


def laid(parts: Parts, study: object = 0) -> dict[str, tuple[str, str, str]]:
    """What lies over a study: keyword -> (what came, what is shown, who says so)."""
    rows, _ = parts.statuses.corrections(uid("study", study), 1000, "")
    return {r["keyword"]: (r["original_value"], r["value"], r["source"]) for r in rows if r["in_force"]}


def reason_of(call: Any) -> str:
    with pytest.raises(RadmeshError) as error:
        call()
    return error.value.reason


# -- verified


def test_the_ris_is_shown_and_what_the_modality_said_is_kept(parts: Parts) -> None:
    entry = record(PatientName="DOE^JON", PatientBirthDate="19700102", AccessionNumber="A1")
    parts.register(entry)
    count, revision, changed = parts.decide(entry, VERIFIED, order=order("A1", RIS))
    assert (count, changed) == (1, True)
    study = parts.study(0, ANYBODY)
    assert (study["patient_name"], study["patient_birth_date"], study["patient_sex"]) == (
        "Doe^Jonathan^Quincy",
        "19700101",
        "M",
    )
    assert (study["verification"], study["order_id"], study["domain"], study["corrected"]) == (
        VERIFIED,
        "default/A1",
        "default",
        True,
    )
    assert laid(parts) == {
        "PatientName": ("DOE^JON", "Doe^Jonathan^Quincy", "ris:default"),
        "PatientBirthDate": ("19700102", "19700101", "ris:default"),
        "PatientSex": ("", "M", "ris:default"),
    }
    assert parts.find(patient_name="*jonathan*") == [STUDY]
    assert parts.find(patient_name="doe^jon") == []
    assert history(parts) == [("NOT_REQUIRED", "VERIFIED", "", "gateway")]
    # The same again is nothing: no history, no revision, no version.
    before = parts.rows(studies), parts.rows(admissions), parts.rows(corrections)
    assert parts.decide(entry, VERIFIED, order=order("A1", RIS)) == (1, revision, False)
    assert (parts.rows(studies), parts.rows(admissions), parts.rows(corrections)) == before
    assert parts.feed.revision() == revision


def test_what_the_ris_does_not_say_stays_as_it_came(parts: Parts) -> None:
    entry = record(PatientName="Doe^John", PatientBirthDate="19700102", PatientSex="M", AccessionNumber="")
    parts.register(entry)
    parts.decide(entry, VERIFIED, order=order("A1", ris_patient("P0", "Doe^John", birth="", sex="")))
    study = parts.study()
    assert (study["patient_birth_date"], study["patient_sex"]) == ("19700102", "M")
    # An accession number that came by the date is the order's.
    assert laid(parts) == {"AccessionNumber": ("", "A1", "ris:default")}
    assert study["accession_number"] == "A1"


def test_studies_of_one_patient_do_not_lend_each_other_what_came(parts: Parts) -> None:
    # Of neither does the RIS know when the patient was born.
    patient = ris_patient("P", "Doe^John", birth="", sex="")
    entries = [
        record(study=n, sop=n, PatientID="P", PatientBirthDate=f"1970010{n}", AccessionNumber=f"A{n}") for n in (1, 2)
    ]
    parts.register(*entries)
    for number, entry in enumerate(entries, 1):
        parts.decide(entry, VERIFIED, order=order(f"A{number}", patient))
    assert [parts.study(n)["patient_birth_date"] for n in (1, 2)] == ["19700101", "19700102"]
    # Then it does, and still knows what came.
    parts.say(patient=ris_patient("P", "Doe^John", birth="19710101", sex=""))
    assert [laid(parts, n)["PatientBirthDate"][:2] for n in (1, 2)] == [
        ("19700101", "19710101"),
        ("19700102", "19710101"),
    ]
    assert [parts.study(n)["patient_birth_date"] for n in (1, 2)] == ["19710101"] * 2


def test_what_a_person_corrected_stays_until_that_person_takes_it_back(parts: Parts) -> None:
    entry = record(PatientName="DOE^JON", AccessionNumber="A1")
    parts.register(entry)

    def correct(**values: str) -> None:
        parts.statuses.correct(STUDY, values, source="user:doe", expected_version=0, actor="doe")

    correct(PatientName="Doe^Corrected")
    parts.decide(entry, VERIFIED, order=order("A1", RIS))
    assert parts.study()["patient_name"] == "Doe^Corrected"
    assert parts.study()["patient_sex"] == "M"
    parts.say(patient=ris_patient("P0", "Doe^New", birth="19700101", sex="M"))
    assert parts.study()["patient_name"] == "Doe^Corrected"
    assert laid(parts)["PatientName"] == ("DOE^JON", "Doe^Corrected", "user:doe")
    # Then the RIS is heard again.
    correct(PatientName="")
    assert parts.study()["patient_name"] == "Doe^New"
    assert laid(parts)["PatientName"] == ("DOE^JON", "Doe^New", "ris:default")
    # And a person may correct what the RIS says.
    correct(PatientSex="F")
    assert laid(parts)["PatientSex"] == ("", "F", "user:doe")
    parts.decide(entry, VERIFIED, order=order("A1", RIS))
    assert parts.study()["patient_sex"] == "F"


def test_who_is_no_longer_verified_shows_no_ris(parts: Parts) -> None:
    entry = record(PatientName="DOE^JON", AccessionNumber="A1")
    parts.register(entry)
    parts.decide(entry, VERIFIED, order=order("A1", RIS))
    parts.decide(entry, HELD, "PATIENT_MISMATCH", mismatched=("PatientID",))
    study = parts.study()
    assert (study["patient_name"], study["order_id"], study["corrected"]) == ("DOE^JON", "", False)
    assert laid(parts) == {}
    (row,) = parts.listed()
    assert (row["order_id"], row["mismatched"]) == ("", "PatientID")
    # What is told of the order meanwhile is not told of the study, until it is verified again.
    parts.say(order=order("A1", ris_patient("P0", "Doe^Meanwhile")))
    assert parts.study()["patient_name"] == "DOE^JON"
    parts.decide(entry, VERIFIED, order=order("A1", RIS))
    assert parts.study()["patient_name"] == "Doe^Meanwhile"
    assert [move[1] for move in history(parts)] == ["VERIFIED", "HELD", "VERIFIED"]


def test_another_order_is_linked_with_its_patient(parts: Parts) -> None:
    entry = record(AccessionNumber="A1")
    parts.register(entry)
    parts.decide(entry, VERIFIED, order=order("A1", RIS))
    assert parts.decide(entry, VERIFIED, order=order("A2", ris_patient("P2", "Doe^Two")))[2]
    study = parts.study()
    assert (study["order_id"], study["patient_name"], study["accession_number"]) == ("default/A2", "Doe^Two", "A2")
    assert study["patient_id"] == "P2"
    # It was verified before: only what is shown has changed.
    assert [move[1] for move in history(parts)] == ["VERIFIED"]


# -- before the objects


def test_a_decision_waits_for_its_objects(parts: Parts) -> None:
    entry = record(PatientName="DOE^JON", AccessionNumber="A1", changes={"verification": PENDING})
    count, _, changed = parts.decide(entry, VERIFIED, order=order("A1", RIS))
    assert (count, changed) == (0, True)
    assert parts.decide(entry, VERIFIED, order=order("A1", RIS))[2] is False
    parts.advance(10)
    parts.register(entry)
    study = parts.study(0, ANYBODY)
    assert (study["verification"], study["patient_name"], study["order_id"]) == (
        VERIFIED,
        "Doe^Jonathan^Quincy",
        "default/A1",
    )
    assert history(parts) == [("PENDING", "VERIFIED", "", "gateway")]
    assert parts.rows(verdicts) == []
    assert parts.decide(entry, VERIFIED, order=order("A1", RIS))[2] is False


@pytest.mark.parametrize(
    ("ticket", "state", "reason", "seen"),
    [
        (NOT_REQUIRED, HELD, "NO_ORDER", False),
        (VERIFIED, HELD, "PATIENT_MISMATCH", False),
        (HELD, UNVERIFIED, "RIS_UNAVAILABLE", True),
        (UNVERIFIED, NOT_REQUIRED, "", True),
        (PENDING, PENDING, "", True),
    ],
)
def test_a_decision_goes_before_what_the_ticket_said(
    parts: Parts, ticket: int, state: int, reason: str, *, seen: bool
) -> None:
    entry = record(changes={"verification": ticket})
    parts.decide(entry, state, reason)
    parts.register(entry)
    study = parts.study()
    assert (study["verification"], study["verification_reason"]) == (state, reason)
    assert study["held_count"] == (not seen)
    assert bool(parts.find(viewer=ANYBODY)) is seen
    # Also for what comes later under the same key.
    parts.register(record(sop=1, changes={"verification": ticket}))
    assert bool(parts.find(viewer=ANYBODY)) is seen
    assert parts.study()["held_count"] == (0 if seen else 2)


def test_without_a_decision_a_ticket_that_says_no_reason_is_pending(parts: Parts) -> None:
    # The order it was verified by, or why it was not, is not known: it is asked for again.
    for number, state in enumerate((VERIFIED, UNVERIFIED)):
        parts.register(record(study=number, sop=number, changes={"verification": state}))
        assert (parts.study(number)["verification"], parts.study(number)["verification_reason"]) == (PENDING, "")
    for number, state in enumerate((NOT_REQUIRED, PENDING, HELD), 2):
        parts.register(record(study=number, sop=number, changes={"verification": state}))
        assert parts.study(number)["verification"] == state


def test_the_last_decision_before_the_objects_counts(parts: Parts) -> None:
    entry = record()
    for state, reason in ((HELD, "NO_ORDER"), (UNVERIFIED, "TIMEOUT"), (HELD, "AMBIGUOUS")):
        assert parts.decide(entry, state, reason)[2]
    assert parts.decide(entry, HELD, "AMBIGUOUS")[2] is False
    parts.register(entry)
    assert (parts.study()["verification"], parts.study()["verification_reason"]) == (HELD, "AMBIGUOUS")
    assert [move[1:3] for move in history(parts)] == [("HELD", "AMBIGUOUS")]


def test_decisions_of_one_study_do_not_mix(parts: Parts) -> None:
    one, other = record(sop=0), record(sop=1, PatientName="Roe")
    parts.decide(one, VERIFIED, order=order("A1", RIS))
    parts.decide(other, HELD, "PATIENT_MISMATCH")
    parts.register(one, other, record(study=1, sop=2, PatientID="P0"))
    assert [row["verification"] for row in parts.listed()] == [VERIFIED, HELD, NOT_REQUIRED]
    assert parts.study(0, ANYBODY)["verification"] == VERIFIED
    assert parts.study(0, ALL)["verification"] == HELD


def test_a_decision_and_its_objects_at_once(parts: Parts) -> None:
    """Whichever is first, the decision counts."""
    for number in range(6):
        entry = record(study=number, sop=number, changes={"verification": PENDING})
        parts.beat()
        with meeting(parts.database, ("INSERT INTO admissions", "INSERT INTO verdicts"), seconds=0.3):
            answers = at_once(
                partial(parts.register, entry),
                partial(parts.decide, entry, VERIFIED, order=order(f"A{number}", RIS)),
            )
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        assert parts.study(number)["verification"] == VERIFIED
    assert parts.rows(verdicts) == []


def test_what_never_comes_is_forgotten(parts: Parts) -> None:
    parts.decide(record(), HELD, "NO_ORDER")
    parts.advance(20 * 86_400)
    parts.decide(record(study=1), HELD, "NO_ORDER")
    parts.verifications.prune()
    assert len(parts.rows(verdicts)) == 2
    parts.advance(20 * 86_400)
    parts.verifications.prune()
    assert [row["study_instance_uid"] for row in parts.rows(verdicts)] == [uid("study", 1)]


def test_the_next_ticket_knows_it(parts: Parts) -> None:
    entry = record(changes={"verification": PENDING})

    def known() -> int:
        return parts.verifications.known(entry.study_instance_uid, entry.admission_key)

    assert known() == 0
    parts.decide(entry, HELD, "NO_ORDER")
    assert known() == HELD
    parts.register(entry)
    assert known() == HELD
    parts.decide(entry, VERIFIED, order=order("A1", RIS))
    assert known() == VERIFIED
    # Of an admission that nobody has decided about, and of another key of the study, nothing is known.
    parts.register(record(study=1, sop=1))
    other = record(study=1, sop=1)
    assert parts.verifications.known(other.study_instance_uid, other.admission_key) == 0
    assert parts.verifications.known(entry.study_instance_uid, other.admission_key) == 0


# -- a person's word


@pytest.mark.parametrize("registered", [False, True])
def test_after_a_person_s_word_only_an_order_counts(parts: Parts, *, registered: bool) -> None:
    entry = record()
    if registered:
        parts.register(entry)
    parts.decide(entry, HELD, "NO_ORDER")
    assert parts.decide(entry, UNVERIFIED, "OVERRIDDEN", actor="admin", note="same person, asked the ward")[2]
    for state, reason in ((HELD, "NO_ORDER"), (HELD, "AMBIGUOUS"), (UNVERIFIED, "TIMEOUT"), (NOT_REQUIRED, "")):
        assert parts.decide(entry, state, reason)[2] is False
    parts.register(entry)
    assert (parts.study(0, ANYBODY)["verification"], parts.study()["verification_reason"]) == (UNVERIFIED, "OVERRIDDEN")
    assert history(parts)[-1][1:] == ("UNVERIFIED", "OVERRIDDEN: same person, asked the ward", "admin")
    assert parts.decide(entry, VERIFIED, order=order("A1", RIS))[2]
    assert parts.study()["verification"] == VERIFIED


def test_a_person_s_word_is_in_the_history_also_where_something_else_is_worse(parts: Parts) -> None:
    one, other = record(sop=0), record(sop=1, PatientName="Roe")
    parts.register(one, other)
    parts.decide(one, HELD, "PATIENT_MISMATCH")
    parts.decide(other, HELD, "PATIENT_MISMATCH")
    parts.decide(one, UNVERIFIED, "OVERRIDDEN", actor="admin", note="asked the ward")
    assert parts.study()["verification"] == HELD
    assert ("OVERRIDDEN: asked the ward", "admin") in [move[2:] for move in history(parts)]


# -- two at once


def test_revisions_keep_two_deciders_apart(parts: Parts) -> None:
    entry = record()
    parts.register(entry)
    parts.decide(entry, HELD, "NO_ORDER")
    (row,) = parts.listed()
    revision = row["revision"]
    assert revision > 0
    answers = at_once(
        lambda: parts.decide(entry, VERIFIED, order=order("A1", RIS), expected_revision=revision),
        lambda: parts.decide(entry, UNVERIFIED, "OVERRIDDEN", expected_revision=revision),
    )
    refused = [answer for answer in answers if isinstance(answer, RadmeshError)]
    assert [error.reason for error in refused] == ["VERSION_CONFLICT"]
    assert parts.listed()[0]["revision"] == revision + 1
    # It was seen as it is: nothing changes, nobody is refused.
    state, reason = parts.listed()[0]["verification"], parts.listed()[0]["reason"]
    given = order("A1", RIS) if state == VERIFIED else None
    assert parts.decide(entry, state, reason, order=given, expected_revision=revision + 1)[2] is False


def test_what_cannot_be_decided(parts: Parts) -> None:
    entry = record()
    parts.register(entry)
    for state, reason in ((0, ""), (9, ""), (HELD, ""), (UNVERIFIED, "")):
        assert reason_of(lambda state=state, reason=reason: parts.decide(entry, state, reason)) == "FIELD_INVALID"
    assert parts.study()["verification"] == NOT_REQUIRED


# -- a late object of another patient


def test_a_late_object_of_another_patient_is_held_alone(parts: Parts) -> None:
    good = [record(sop=n, AccessionNumber="A1") for n in range(2)]
    late = record(sop=2, series=1, PatientID="P8", PatientName="Roe^Eight", AccessionNumber="A1", Modality="MR")
    parts.register(*good)
    parts.decide(good[0], VERIFIED, order=order("A1", RIS))
    parts.decide(late, HELD, "PATIENT_MISMATCH", mismatched=("PatientID", "PatientName"))
    parts.register(late)
    for viewer in (ANYBODY, Viewer("CT2")):
        study = parts.study(0, viewer)
        assert (study["verification"], study["instance_count"], study["series_count"], study["modalities"]) == (
            VERIFIED,
            2,
            1,
            ["CT"],
        )
        assert study["patient_name"] == "Doe^Jonathan^Quincy"
        assert len(parts.instances(0, viewer)) == 2
    for viewer in (Viewer("CT1"), ALL):
        study = parts.study(0, viewer)
        assert (study["verification"], study["verification_reason"]) == (HELD, "PATIENT_MISMATCH")
        assert (study["instance_count"], study["modalities"]) == (3, ["CT", "MR"])
        assert sorted(row["verification"] for row in parts.instances(0, viewer)) == [VERIFIED, VERIFIED, HELD]
    # More of both kinds comes.
    parts.register(record(sop=3, AccessionNumber="A1"))
    parts.register(record(sop=4, series=1, PatientID="P8", PatientName="Roe^Eight", AccessionNumber="A1"))
    assert parts.study(0, ANYBODY)["instance_count"] == 3
    assert parts.study(0, ALL)["held_count"] == 2
    # The order stays whose it is.
    assert parts.study()["order_id"] == "default/A1"


def test_what_is_held_is_not_shown_by_its_demographics(parts: Parts) -> None:
    """Also where the wrong patient's object came first."""
    wrong = record(sop=0, PatientID="X", PatientName="Wrong^One", AccessionNumber="AX")
    parts.register(wrong)
    parts.decide(wrong, HELD, "PATIENT_MISMATCH")
    parts.register(record(sop=1, PatientName="Right^One", AccessionNumber="A1"))
    study = parts.study(0, ANYBODY)
    assert (study["patient_id"], study["patient_name"], study["accession_number"]) == ("P0", "Right^One", "A1")
    assert parts.find(viewer=ANYBODY, patient_name="wrong*") == []
    assert parts.find(viewer=ANYBODY, patient_id="X") == []
    assert parts.find(viewer=ANYBODY, accession_number="AX") == []
    rows, _ = parts.queries.patients("", "", "", ANYBODY, 10, "")
    assert [(row["patient_id"], row["study_count"]) for row in rows] == [("P0", 1)]


# -- lists


def test_admissions_are_listed_oldest_first_with_what_is_compared(parts: Parts) -> None:
    entries = [
        record(
            study=n,
            sop=n,
            PatientID=f"P{n % 2}",
            PatientSex="F",
            StudyDescription="Head",
            AccessionNumber=f"A{n}",
            changes={"source_address": "10.0.0.7"},
        )
        for n in range(6)
    ]
    parts.register(*entries)
    for entry, state, reason in (
        (entries[0], HELD, "NO_ORDER"),
        (entries[1], UNVERIFIED, "NO_ORDER"),
        (entries[2], HELD, "PATIENT_MISMATCH"),
        (entries[3], UNVERIFIED, "RIS_UNAVAILABLE"),
    ):
        parts.decide(entry, state, reason, domain="town" if entry is entries[3] else "default")
    parts.decide(entries[4], VERIFIED, order=order("A4", ris_patient("P0", "Doe^Ris", sex="M")))

    def listed(**wanted: Any) -> list[int]:
        rows = parts.listed(**wanted)
        return [[e.study_instance_uid for e in entries].index(row["study_instance_uid"]) for row in rows]

    assert listed() == [0, 1, 2, 3, 4, 5]
    assert listed(verifications=(HELD, UNVERIFIED)) == [0, 1, 2, 3]
    assert listed(verifications=(HELD,)) == [0, 2]
    assert listed(reason="NO_ORDER") == [0, 1]
    assert listed(reason="NO_ORDER", verifications=(HELD,)) == [0]
    assert listed(domain="town") == [3]
    assert listed(domain="default", verifications=(UNVERIFIED,)) == [1]
    assert listed(accession_number="A4") == [4]
    assert listed(patient_id="P1") == [1, 3, 5]
    assert listed(patient_id="P1", domain="default") == [1, 5]
    assert listed(study_instance_uid=uid("study", 5)) == [5]
    assert listed(accession_number="nobody's") == []
    (row,) = parts.listed(accession_number="A4")
    # What the modality said, not what is shown: that is what is compared.
    assert (row["patient_sex"], row["study_date"], row["source_address"]) == ("F", "20260101", "10.0.0.7")
    assert (row["study_description"], row["order_id"], row["instance_count"]) == ("Head", "default/A4", 1)
    assert row["modalities"] in ("\\CT\\", ["CT"])
    # A token goes on with its own query alone.
    _, token = parts.verifications.admissions(AdmissionFilter(verifications=(HELD,)), 1, "")
    assert token
    assert (
        reason_of(lambda: parts.verifications.admissions(AdmissionFilter(verifications=(PENDING,)), 1, token))
        == "FIELD_INVALID"
    )


def test_pages_of_several_states_join(parts: Parts) -> None:
    states = [HELD, UNVERIFIED, PENDING, UNVERIFIED, HELD, VERIFIED, HELD, PENDING, UNVERIFIED]
    for number, state in enumerate(states):
        entry = record(study=number, sop=number, changes={"verification": state})
        parts.register(entry)
        if state == UNVERIFIED:
            parts.decide(entry, UNVERIFIED, "NO_ORDER")
    for wanted in ((HELD, UNVERIFIED), (PENDING,), (PENDING, HELD, UNVERIFIED), ()):
        rows = parts.listed(2, verifications=wanted)
        expected = [
            number
            for number, state in enumerate(states)
            if not wanted or state in wanted or (state == VERIFIED and PENDING in wanted)
        ]
        assert [row["study_instance_uid"] for row in rows] == [uid("study", number) for number in expected]


def test_decision_is_kept_whole(parts: Parts) -> None:
    """What waits for its objects is what would have been applied to them."""
    came: dict[str, Any] = {"PatientID": "P0", "PatientName": "DOE^JON", "AccessionNumber": "A1"}
    one, other = (record(study=n, sop=n, **came) for n in (0, 1))
    given: dict[str, Any] = {"order": order("A1", RIS), "domain": "default", "actor": "x"}
    parts.decide(one, VERIFIED, **given)
    parts.register(one, other)
    parts.decide(other, VERIFIED, **given)
    first, second = (parts.study(n) for n in (0, 1))
    ignored = {"id", "study_instance_uid", "version", "last_receive_time", "first_receive_time"}
    assert {k: v for k, v in first.items() if k not in ignored} == {k: v for k, v in second.items() if k not in ignored}
    assert laid(parts, 0) == laid(parts, 1)
    assert decision(one, VERIFIED, **given) == decision(one, VERIFIED, **given)
