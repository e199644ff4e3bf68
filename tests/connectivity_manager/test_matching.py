"""What a study is compared with, and when it is the order's: pure functions, every study key and every patient key."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh.connectivity_manager.matching import (
    CANDIDATES_MOST,
    OrderKeys,
    Outcome,
    Person,
    Policy,
    Result,
    StudyKeys,
    differences,
    match,
    same_name,
)
from radmesh.dicom.stations import PATIENT_KEYS, STUDY_KEYS

DOE, ROE = Person("P1", "", "Doe^John"), Person("P2", "", "Roe^Jane")
DAY = "20260102"


def order(handle: int = 1, patient: Person = DOE, **more: str) -> OrderKeys:
    values = {"accession_number": f"A{handle}", "scheduled_date": DAY, "modality": "CT", **more}
    return OrderKeys(handle, patient, **values)


def study(patient: Person = DOE, **more: str) -> StudyKeys:
    return StudyKeys(patient, **{"study_instance_uid": "2.25.1", "study_date": DAY, "modality": "CT", **more})


def compare(keys: StudyKeys, *orders: OrderKeys, policy: Policy | None = None) -> Result:
    """Look the study up in a list of orders, as the store does."""
    return match(
        keys,
        policy or Policy(),
        by_uid=lambda: [o for o in orders if o.study_instance_uid == keys.study_instance_uid],
        by_accession=lambda: [o for o in orders if o.accession_number == keys.accession_number],
        by_patient_and_date=lambda: [o for o in orders if o.scheduled_date == keys.study_date],
    )


def outcome(keys: StudyKeys, *orders: OrderKeys, policy: Policy | None = None) -> tuple[Outcome, list[int]]:
    result = compare(keys, *orders, policy=policy)
    return result.outcome, [o.handle for o in result.orders]


# Study keys


def test_the_order_with_the_study_uid_goes_first():
    named = order(2, study_instance_uid="2.25.1", accession_number="OTHER")
    assert outcome(study(accession_number="A1"), order(1), named) == (Outcome.MATCH, [2])


def test_the_patient_must_agree_whatever_was_found():
    named = order(2, ROE, study_instance_uid="2.25.1")
    # An order of the right patient elsewhere does not heal what the Study UID says.
    assert outcome(study(accession_number="A1"), order(1), named) == (Outcome.PATIENT_MISMATCH, [2])
    result = compare(study(accession_number="A1"), order(1, ROE))
    assert (result.outcome, result.mismatched) == (Outcome.PATIENT_MISMATCH, ("PatientID",))
    assert outcome(study(), order(1, ROE)) == (Outcome.NO_ORDER, [])


BY_ACCESSION, BY_DATE, BY_BOTH = order(1, scheduled_date="20250101"), order(2), order(3, modality="MR")


@pytest.mark.parametrize(
    ("study_key", "accession", "found"),
    [
        ("accession", "A1", [1]),
        ("accession", "", []),
        ("accession", "A9", []),
        ("date", "", [2]),  # of two, the one of the study's modality
        ("date", "A1", [2]),
        ("date+modality", "", [2]),
        ("accession else date", "A1", [1]),
        ("accession else date", "", [2]),
        ("accession else date+modality", "A1", [1]),
        ("accession else date+modality", "", [2]),
    ],
)
def test_every_study_key(study_key, accession, found):
    policy = Policy(study_key=study_key)
    got = outcome(study(accession_number=accession), BY_ACCESSION, BY_DATE, BY_BOTH, policy=policy)
    assert got == (Outcome.MATCH if found else Outcome.NO_ORDER, found)


@pytest.mark.parametrize("study_key", ["accession else date", "accession else date+modality"])
def test_an_order_with_another_accession_number_is_another_order(study_key):
    """The study's own order may still come: it must not be taken for the patient's other one of that day."""
    policy = Policy(study_key=study_key)
    assert outcome(study(accession_number="A9"), order(1), policy=policy) == (Outcome.NO_ORDER, [])
    # An order that has no number contradicts none.
    assert outcome(study(accession_number="A9"), order(1, accession_number=""), policy=policy) == (Outcome.MATCH, [1])


def test_a_modality_that_the_order_does_not_say_is_any():
    policy = Policy(study_key="date+modality")
    assert outcome(study(), order(1, modality=""), policy=policy) == (Outcome.MATCH, [1])
    assert outcome(study(modality="MR"), order(1), policy=policy) == (Outcome.NO_ORDER, [])
    assert outcome(study(modality="MR"), order(1), policy=Policy(study_key="date")) == (Outcome.MATCH, [1])


def test_a_study_without_a_date_or_of_another_day_is_not_found_by_date():
    policy = Policy(study_key="date")
    assert outcome(study(study_date=""), order(1), policy=policy) == (Outcome.NO_ORDER, [])
    assert outcome(study(study_date="20260103"), order(1), policy=policy) == (Outcome.NO_ORDER, [])


def test_several_orders_that_agree_are_narrowed_and_else_ambiguous():
    one, other = (order(n, accession_number="A", modality=m) for n, m in ((1, "CT"), (2, "MR")))
    keys = study(accession_number="A")
    assert outcome(keys, one, other) == (Outcome.MATCH, [1])
    assert outcome(keys, one, replace(other, modality="CT")) == (Outcome.AMBIGUOUS, [1, 2])
    late = replace(other, modality="CT", scheduled_date="20260103")
    assert outcome(keys, one, late) == (Outcome.MATCH, [1])
    # One of several whose patient disagrees is no candidate.
    assert outcome(keys, one, replace(other, patient=ROE, modality="CT")) == (Outcome.MATCH, [1])


def test_candidates_are_bounded():
    many = [order(n, accession_number="A") for n in range(50)]
    result = compare(study(accession_number="A"), *many)
    assert (result.outcome, len(result.orders)) == (Outcome.AMBIGUOUS, CANDIDATES_MOST)
    result = compare(study(ROE, accession_number="A"), *many)
    assert (result.outcome, len(result.orders)) == (Outcome.PATIENT_MISMATCH, CANDIDATES_MOST)


# Patient keys


@pytest.mark.parametrize(
    ("patient_key", "differs"),
    [
        ("id", {"id": ["PatientID"], "name": [], "issuer": ["IssuerOfPatientID"]}),
        ("name", {"id": [], "name": ["PatientName"], "issuer": []}),
        ("id+name", {"id": ["PatientID"], "name": ["PatientName"], "issuer": ["IssuerOfPatientID"]}),
    ],
)
def test_every_patient_key(patient_key, differs):
    policy = Policy(patient_key=patient_key)
    ours = Person("P1", "A", "Doe^John")
    others = {
        "id": replace(ours, patient_id="P2"),
        "name": replace(ours, patient_name="Roe^Jane"),
        "issuer": replace(ours, issuer_of_patient_id="B"),
    }
    assert differences(ours, ours, policy) == ()
    for what, other in others.items():
        assert list(differences(ours, other, policy)) == differs[what], what
    # An issuer that one of the two does not say contradicts nothing.
    assert differences(ours, replace(ours, issuer_of_patient_id=""), policy) == ()


@pytest.mark.parametrize("patient_key", PATIENT_KEYS)
def test_nobody_is_not_nobody(patient_key):
    """Two that lack what is compared do not agree."""
    assert differences(Person(), Person(), Policy(patient_key=patient_key))


def test_an_accession_number_alone_identifies_only_where_it_is_set():
    unsafe = Policy(accession_identifies_patient=True)
    assert outcome(study(ROE, accession_number="A1"), order(1), policy=unsafe) == (Outcome.MATCH, [1])
    assert outcome(study(ROE, accession_number="A1"), order(1))[0] is Outcome.PATIENT_MISMATCH
    # A Study UID alone does not.
    named = order(1, study_instance_uid="2.25.1")
    assert outcome(study(ROE), named, policy=unsafe)[0] is Outcome.PATIENT_MISMATCH
    assert outcome(study(ROE, accession_number="A9"), named, policy=unsafe)[0] is Outcome.PATIENT_MISMATCH
    # And where the number says nothing, the patient does.
    assert outcome(study(accession_number="A9"), named, policy=unsafe) == (Outcome.MATCH, [1])
    assert outcome(study(), order(1), policy=unsafe) == (Outcome.MATCH, [1])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Doe^John", "DOE^JOHN", True),
        ("Doe^John^^^", "Doe^John", True),
        ("Doe^John ", " doe ^ john", True),
        ("\uff24\uff4f\uff45^John", "Doe^John", True),  # full width
        ("Müller^Jörg", "MU\u0308LLER^JO\u0308RG", True),  # composed or not
        ("Strasse^A", "Straße^A", True),
        ("Müller^Jörg", "Muller^Jorg", False),
        ("Doe^John", "Doe^Jane", False),
        ("Doe^John", "John^Doe", False),
        ("Doe^John^Q", "Doe^John", False),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "YAMADA^TAROU", True),
        ("=山田^太郎", "Yamada^Tarou=山田^太郎", True),
        ("Yamada^Tarou=山田^太郎", "Yamada^Tarou=山本^次郎", True),  # one group that both have is enough
        ("Yamada^Tarou", "=山田^太郎", False),
        ("", "", False),
        ("", "Doe^John", False),
        ("^^", "^^", False),
    ],
)
def test_names_are_compared_as_people_read_them(one, other, same):
    assert same_name(one, other) is same
    assert same_name(other, one) is same


# Properties

IDS = st.sampled_from(["", "P1", "P2"])
PEOPLE = st.builds(
    Person, IDS, st.sampled_from(["", "I1", "I2"]), st.sampled_from(["", "Doe^John", "doe^john", "Roe^Jane"])
)
ORDERS = st.lists(
    st.builds(
        OrderKeys,
        st.just(0),
        PEOPLE,
        st.sampled_from(["", "A1", "A2"]),
        st.sampled_from(["", "2.25.1", "2.25.2"]),
        st.sampled_from(["", DAY, "20260103"]),
        st.sampled_from(["", "CT", "MR"]),
    ),
    max_size=6,
).map(lambda orders: [replace(o, handle=n) for n, o in enumerate(orders)])
STUDIES = st.builds(
    StudyKeys,
    PEOPLE,
    st.sampled_from(["", "2.25.1"]),
    st.sampled_from(["", "A1"]),
    st.sampled_from(["", DAY]),
    st.sampled_from(["", "CT"]),
)
POLICIES = st.builds(Policy, st.sampled_from(STUDY_KEYS), st.sampled_from(PATIENT_KEYS), st.booleans())


@given(STUDIES, ORDERS, POLICIES)
def test_what_matches_agrees_and_what_contradicts_is_named(keys, orders, policy):
    result = compare(keys, *orders, policy=policy)
    agreeing = [
        o
        for o in result.orders
        if not differences(keys.patient, o.patient, policy)
        or (policy.accession_identifies_patient and keys.accession_number == o.accession_number != "")
    ]
    by_key = [
        o
        for o in result.orders
        if keys.study_instance_uid == o.study_instance_uid != ""
        or ("accession" in policy.study_key and keys.accession_number == o.accession_number != "")
        or ("date" in policy.study_key and keys.study_date == o.scheduled_date != "")
    ]
    assert by_key == list(result.orders)
    if result.outcome is Outcome.MATCH:
        assert len(result.orders) == 1
        assert agreeing == list(result.orders)
    elif result.outcome is Outcome.AMBIGUOUS:
        assert len(result.orders) > 1
        assert agreeing == list(result.orders)
    elif result.outcome is Outcome.PATIENT_MISMATCH:
        assert result.orders
        assert not agreeing
    else:
        assert not result.orders
    assert bool(result.mismatched) is (result.outcome is Outcome.PATIENT_MISMATCH)


@given(STUDIES, ORDERS, POLICIES, st.randoms())
def test_the_order_of_the_orders_does_not_matter(keys, orders, policy, rng):
    shuffled = list(orders)
    rng.shuffle(shuffled)
    one, other = compare(keys, *orders, policy=policy), compare(keys, *shuffled, policy=policy)
    assert one.outcome is other.outcome
    assert set(one.orders) == set(other.orders)
