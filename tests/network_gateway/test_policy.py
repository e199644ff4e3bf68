"""What becomes of an admission, as rules: the verdict of an answer, and which verdict changes what."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.stations import Station
from radmesh.network_gateway.policy import (
    HELD,
    NOT_REQUIRED,
    PENDING,
    UNKNOWN,
    UNVERIFIED,
    VERIFIED,
    Answer,
    Facts,
    Standing,
    Verdict,
    decide,
    supersedes,
)

ORDER = database_pb2.Order(order_id="default/A1", domain="default")
FACTS = Facts(AdmissionKey("CT1", "1.2.3"))
STATES = (NOT_REQUIRED, PENDING, VERIFIED, UNVERIFIED, HELD)
REASONS = (
    "",
    "NO_ORDER",
    "PATIENT_MISMATCH",
    "AMBIGUOUS",
    "DOMAIN_UNKNOWN",
    "RIS_UNAVAILABLE",
    "TIMEOUT",
    "OVERRIDDEN",
)


@pytest.mark.parametrize(
    ("outcome", "required", "hold", "state"),
    [
        ("MATCH", False, False, VERIFIED),
        ("MATCH", True, True, VERIFIED),
        ("NO_ORDER", False, True, UNVERIFIED),
        ("NO_ORDER", True, False, HELD),
        ("PATIENT_MISMATCH", False, False, HELD),
        ("AMBIGUOUS", False, False, HELD),
        ("RIS_UNAVAILABLE", True, False, UNVERIFIED),
        ("RIS_UNAVAILABLE", False, True, HELD),
        ("TIMEOUT", True, False, UNVERIFIED),
        ("TIMEOUT", False, True, HELD),
    ],
)
def test_the_verdict_of_an_answer(outcome: str, *, required: bool, hold: bool, state: int) -> None:
    station = Station(
        "CT1",
        verification="required" if required else "advisory",
        on_ris_unavailable="hold" if hold else "mark",
    )
    order = ORDER if outcome == "MATCH" else None
    verdict = decide(station, "default", Answer(outcome, order, mismatched=("PatientID",)))
    assert (verdict.state, verdict.domain) == (state, "default")
    assert verdict.reason == ("" if outcome == "MATCH" else outcome)
    assert verdict.order is order


def standing(state: int, reason: str = "", order: str = "", mismatched: tuple[str, ...] = ()) -> Standing:
    return Standing(FACTS, b"d" * 32, state, reason, "default", mismatched, order)


NOBODY = Verdict(UNVERIFIED, "RIS_UNAVAILABLE", "default")
NONE = Verdict(UNVERIFIED, "NO_ORDER", "default")
OTHER = Verdict(HELD, "PATIENT_MISMATCH", "default", ("PatientID", "PatientName"), candidates=("default/A1",))
RENAMED = Verdict(HELD, "PATIENT_MISMATCH", "default", ("PatientName",), candidates=("default/A1",))
SEVERAL = Verdict(HELD, "AMBIGUOUS", "default", candidates=("default/A1", "default/A2"))
MATCHED = Verdict(VERIFIED, "", "default", order=ORDER)


@pytest.mark.parametrize(
    ("verdict", "before", "changes"),
    [
        (NOBODY, standing(PENDING), True),
        (NOBODY, standing(UNVERIFIED), True),
        (NOBODY, standing(UNVERIFIED, "TIMEOUT"), False),
        (NOBODY, standing(HELD, "RIS_UNAVAILABLE"), True),
        # A contradiction is not forgotten because the RIS is silent now.
        (NOBODY, standing(HELD, "PATIENT_MISMATCH"), False),
        (NOBODY, standing(UNVERIFIED, "NO_ORDER"), False),
        (NOBODY, standing(VERIFIED, order="default/A1"), False),
        (NOBODY, standing(NOT_REQUIRED), False),
        (NONE, standing(PENDING), True),
        (NONE, standing(UNVERIFIED, "RIS_UNAVAILABLE"), True),
        (NONE, standing(UNVERIFIED, "NO_ORDER"), False),
        (NONE, standing(HELD, "NO_ORDER"), True),
        (NONE, standing(HELD, "PATIENT_MISMATCH"), True),
        (NONE, standing(UNVERIFIED, "OVERRIDDEN"), False),
        (NONE, standing(VERIFIED, order="default/A1"), False),
        (OTHER, standing(UNVERIFIED, "NO_ORDER"), True),
        (OTHER, standing(HELD, "PATIENT_MISMATCH", mismatched=("PatientID", "PatientName")), False),
        (OTHER, standing(HELD, "PATIENT_MISMATCH", mismatched=("PatientName",)), True),
        (OTHER, standing(UNVERIFIED, "OVERRIDDEN"), False),
        (OTHER, standing(VERIFIED, order="default/A1"), True),
        (OTHER, standing(VERIFIED, order="default/A7"), False),
        (RENAMED, standing(VERIFIED, order="default/A1"), False),
        (SEVERAL, standing(UNVERIFIED, "NO_ORDER"), True),
        (SEVERAL, standing(VERIFIED, order="default/A1"), False),
        (MATCHED, standing(HELD, "PATIENT_MISMATCH"), True),
        (MATCHED, standing(UNVERIFIED, "OVERRIDDEN"), True),
        (Verdict(NOT_REQUIRED), standing(PENDING), True),
        (Verdict(NOT_REQUIRED), standing(HELD, "PATIENT_MISMATCH"), False),
        (Verdict(HELD, "DOMAIN_UNKNOWN"), standing(UNVERIFIED, "NO_ORDER"), True),
    ],
)
def test_which_verdict_changes_what(verdict: Verdict, before: Standing, *, changes: bool) -> None:
    assert supersedes(verdict, before, "id") == changes


def test_where_only_names_are_compared_a_new_name_is_another_patient() -> None:
    assert supersedes(RENAMED, standing(VERIFIED, order="default/A1"), "name")


VERDICTS = st.builds(
    Verdict,
    st.sampled_from([s for s in STATES if s != PENDING]),
    st.sampled_from(REASONS),
    st.just("default"),
    candidates=st.sampled_from([(), ("default/A1",), ("default/A2",)]),
    mismatched=st.sampled_from([(), ("PatientID",), ("PatientName",)]),
)
STANDINGS = st.builds(standing, st.sampled_from(STATES), st.sampled_from(REASONS), st.sampled_from(["", "default/A1"]))
KEYS = st.sampled_from(["id", "name", "id+name"])


@given(VERDICTS, STANDINGS, KEYS)
def test_silence_shows_nothing_and_the_same_again_changes_nothing(verdict: Verdict, before: Standing, key: str) -> None:
    changes = supersedes(verdict, before, key)
    if verdict.reason in UNKNOWN and verdict.state in (UNVERIFIED, HELD):
        assert not (changes and before.state == HELD and before.reason not in ("", *UNKNOWN))
    if before.reason == "OVERRIDDEN" or before.state == VERIFIED:
        assert not changes or verdict.state == VERIFIED or verdict.reason == "PATIENT_MISMATCH"
    if changes and verdict.state != VERIFIED:
        after = Standing(FACTS, before.digest, verdict.state, verdict.reason, "default", verdict.mismatched)
        assert not supersedes(verdict, after, key), "each heals once"


def test_a_domain_that_goes_down_and_comes_back_for_ever_writes_each_word_once() -> None:
    now = standing(PENDING)
    moves = 0
    for verdict in itertools.islice(itertools.cycle((NOBODY, Verdict(UNVERIFIED, "TIMEOUT", "default"))), 20):
        if supersedes(verdict, now, "id"):
            moves += 1
            now = standing(verdict.state, verdict.reason)
    assert moves == 1
