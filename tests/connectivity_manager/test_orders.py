"""What messages do to orders and patients, and what a study finds of them afterwards. All of it within a domain."""

import pytest
import sqlalchemy as sa
from connectivity_support import (
    CANCELLED,
    COMPLETED,
    DEAD,
    DONE,
    IGNORED,
    IN_PROGRESS,
    SCHEDULED,
    Desk,
    a40,
    adt,
    code,
    error,
    message,
    msh,
    orm,
    pid,
)
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh.connectivity_manager.matching import Person, Policy
from radmesh.connectivity_manager.schema import messages, orders, patients
from radmesh.hl7.orders import Patient


def listed(desk: Desk, *names: str) -> list[tuple]:
    """Columns of every order."""
    return [tuple(row[name] for name in names) for row in desk.rows(orders)]


# Orders


def test_an_order_changes_and_keeps_what_a_message_does_not_say(desk):
    desk.accepted(orm("A1", study="2.25.1"))
    desk.accepted(orm("A1", control="XO", modality="", scheduled="202601031500"))
    (told, last) = (event.order for event in desk.told())
    assert (last.order_id, last.modality, last.study_instance_uid) == (told.order_id, "CT", "2.25.1")
    assert (last.scheduled_time, last.status) == ("202601031500", SCHEDULED)


@pytest.mark.parametrize(
    ("control", "status", "expected"),
    [
        ("NW", "", SCHEDULED),
        ("SC", "IP", IN_PROGRESS),
        ("SC", "CM", COMPLETED),
        ("SC", "", SCHEDULED),
        ("CA", "", CANCELLED),
        ("DC", "", CANCELLED),
        ("OC", "", CANCELLED),
    ],
)
def test_the_status_of_an_order(desk, control, status, expected):
    desk.accepted(orm("A1"))
    desk.accepted(orm("A1", control=control, status=status))
    assert listed(desk, "status") == [(expected,)]
    assert desk.told()[-1].order.status == expected
    # Who did not hear of it before learns it from the first message.
    desk.accepted(orm("A2", control=control, status=status))
    assert listed(desk, "status") == [(expected,)] * 2


def test_a_cancelled_order_is_found_by_nobody_until_it_is_ordered_again(desk):
    desk.accepted(orm("A1", study="2.25.1"))
    desk.accepted(orm("A1", control="CA"))
    assert desk.found(accession_number="A1", study_instance_uid="2.25.1") == ("NO_ORDER", [])
    assert desk.found(study_date="20260102", modality="CT") == ("NO_ORDER", [])
    desk.accepted(orm("A1"))
    assert desk.found(accession_number="A1") == ("MATCH", ["clinic/A1"])


def test_what_changes_nothing_is_ignored(desk):
    desk.accepted(orm("A1", control="UC"))
    assert listed(desk, "id") == []
    assert [row["state"] for row in desk.rows(messages)] == [IGNORED]


def test_a_status_without_an_accession_number_finds_its_order_and_does_not_rename_it(desk):
    """Many senders leave OBR-18 out of later messages: the filler number stands where the accession number would."""
    desk.accepted(orm("A1", filler="F7", placer="PL7"))
    desk.accepted(message(msh("ORM^O01"), pid(), "ORC|SC|PL7|F7||CM", "OBR|1|PL7|F7|CTABD"))
    assert listed(desk, "accession_number", "status") == [("A1", COMPLETED)]
    desk.accepted(message(msh("ORM^O01"), pid(), "ORC|SC|PL7|||IP", "OBR|1|PL7||CTABD"))
    assert listed(desk, "accession_number") == [("A1",)]


def test_an_accession_number_that_comes_later_is_the_order_s(desk):
    desk.accepted(message(msh("ORM^O01"), pid(), "ORC|NW|PL7|F7", "OBR|1|PL7|F7|CTABD"))
    desk.accepted(orm("A1", filler="F7"))
    assert listed(desk, "accession_number", "order_id") == [("A1", "clinic/F7")]
    assert desk.found(accession_number="A1") == ("MATCH", ["clinic/F7"])


def test_an_accession_number_is_corrected(desk):
    desk.accepted(orm("A1", filler="F7"))
    desk.accepted(orm("A2", control="XO", filler="F7"))
    assert listed(desk, "accession_number") == [("A2",)]
    # A new order is no correction.
    desk.accepted(orm("A3", filler="F7"))
    assert listed(desk, "accession_number") == [("A2",), ("A3",)]


def steps(*pairs: tuple[str, str], control: str = "NW") -> bytes:
    """An OMI^O23: steps with their accession numbers and Study UIDs under one order."""
    ipc = [f"IPC|{accession}|RP|{uid}|SPS|CT" for accession, uid in pairs]
    return message(msh("OMI^O23"), pid(), f"ORC|{control}|PL1|F1", "OBR|1|PL1|F1|CTABD^CT", *ipc)


def test_several_procedures_of_one_order_stay_several(desk):
    for _ in range(2):
        desk.accepted(steps(("A1", "2.25.1"), ("A2", "2.25.2"), ("A2", "2.25.3")))
        assert listed(desk, "accession_number", "study_instance_uid") == [
            ("A1", "2.25.1"),
            ("A2", "2.25.2"),
            ("A2", "2.25.3"),
        ]
    assert listed(desk, "order_id") == [("clinic/A1",), ("clinic/A2",), ("clinic/A2#2",)]
    assert desk.found(accession_number="A2", study_instance_uid="2.25.3") == ("MATCH", ["clinic/A2#2"])
    assert desk.found(accession_number="A2", study_instance_uid="2.25.9")[0] == "AMBIGUOUS"
    # A cancellation of the whole, by its filler number alone.
    desk.accepted(message(msh("ORM^O01"), pid(), "ORC|CA|PL1|F1", "OBR|1|PL1|F1|X^Y"))
    assert listed(desk, "status") == [(CANCELLED,)] * 3
    assert listed(desk, "accession_number") == [("A1",), ("A2",), ("A2",)]
    assert [event.order.status for event in desk.told()[-3:]] == [CANCELLED] * 3


def test_a_study_uid_is_corrected(desk):
    desk.accepted(orm("A1", study="2.25.1"))
    desk.accepted(orm("A1", study="2.25.2", control="XO"))
    assert listed(desk, "study_instance_uid") == [("2.25.2",)]


def test_an_order_moves_to_another_patient(desk):
    desk.accepted(orm("A1", pid("P1")))
    desk.accepted(orm("A1", pid("P2", "Roe^Jane"), control="XO"))
    assert desk.found(accession_number="A1")[0] == "PATIENT_MISMATCH"
    assert desk.found(patient=Person("P2"), accession_number="A1") == ("MATCH", ["clinic/A1"])
    assert desk.told()[-1].order.patient.patient_id == "P2"


# Patients


def test_demographics_of_an_order_are_told_of_the_patient_too(desk):
    desk.accepted(orm("A1"))
    desk.accepted(orm("A2", pid("P1", "Doe-Roe^John")))
    kinds = [event.WhichOneof("event") for event in desk.told()]
    assert kinds == ["order", "patient", "order"]
    assert desk.told()[1].patient.patient_name == "Doe-Roe^John"


def test_null_deletes_and_empty_leaves(desk):
    desk.accepted(adt("A04", pid("P1", "Doe^John", birth="19700101")))
    desk.accepted(adt("A08", 'PID|1||P1||||""'))
    (row,) = desk.rows(patients)
    assert (row["patient_name"], row["patient_birth_date"], row["patient_sex"]) == ("Doe^John", "", "M")


def test_one_id_of_two_issuers_is_two_patients(desk):
    desk.accepted(orm("A1", pid("P1", "Doe^John", "X")))
    desk.accepted(orm("A2", pid("P1", "Roe^Jane", "Y")))
    assert len(desk.rows(patients)) == 2
    assert desk.found(patient=Person("P1", "X"), accession_number="A1")[0] == "MATCH"
    assert desk.found(patient=Person("P1", "Y"), accession_number="A1")[0] == "PATIENT_MISMATCH"
    # An object that names no issuer contradicts none.
    assert desk.found(patient=Person("P1"), accession_number="A1")[0] == "MATCH"


# Merges

DAY = {"study_date": "20260102", "modality": "CT"}


@pytest.mark.parametrize("trigger", ["A40", "A47", "A18", "A34"])
def test_a_merged_patient_is_found_by_both_ids(desk, trigger):
    desk.accepted(orm("A1", pid("OLD")))
    desk.accepted(a40("OLD", "NEW", trigger))
    merge = desk.told()[-1].merge
    assert (merge.prior.patient_id, merge.surviving.patient_id) == ("OLD", "NEW")
    for patient in (Person("OLD"), Person("NEW")):
        assert desk.found(patient=patient, accession_number="A1") == ("MATCH", ["clinic/A1"])
        assert desk.found(patient=patient, **DAY) == ("MATCH", ["clinic/A1"])
    # What is said of the old one later is said of the new one.
    desk.accepted(orm("A2", pid("OLD", "Doe^Johnny"), scheduled="20260105"))
    assert desk.told()[-1].order.patient.patient_id == "NEW"
    assert desk.found(patient=Person("NEW"), accession_number="A2")[0] == "MATCH"


def test_a_merge_said_twice_has_one_effect(desk):
    desk.accepted(orm("A1", pid("OLD")))
    desk.accepted(a40("OLD", "NEW"))
    before = len(desk.told())
    desk.accepted(a40("OLD", "NEW"))
    assert len(desk.told()) == before
    assert [row["state"] for row in desk.rows(messages)] == [DONE, DONE, IGNORED]


def test_merges_in_a_row(desk):
    desk.accepted(orm("A1", pid("P1")))
    desk.accepted(a40("P1", "P2"))
    desk.accepted(a40("P2", "P3"))
    for name in ("P1", "P2", "P3"):
        assert desk.found(patient=Person(name), accession_number="A1")[0] == "MATCH"
    # The prior ones are named once more with who survived: it was so already.
    desk.accepted(a40("P1", "P3"))
    desk.accepted(a40("P2", "P1"))
    assert [event.WhichOneof("event") for event in desk.told()] == ["order", "merge", "merge"]
    # A merge into one that was merged is a merge into who that is now.
    desk.accepted(a40("P4", "P2"))
    assert desk.told()[-1].merge.surviving.patient_id == "P3"
    assert desk.found(patient=Person("P4"), accession_number="A1")[0] == "MATCH"


@pytest.mark.parametrize("pair", [("P3", "P1"), ("P3", "P2"), ("P1", "P4"), ("P2", "P4")])
def test_a_merge_that_contradicts_another_is_a_dead_letter(desk, pair):
    """To follow it would join patients whom nobody said to be one."""
    desk.accepted(orm("A1", pid("P1")))
    desk.accepted(a40("P1", "P2"))
    desk.accepted(a40("P2", "P3"))
    before = desk.rows(patients)
    answer = desk.tell(a40(*pair))
    assert code(answer) == "AE"
    assert error(answer) == ("HL7_FIELD_INVALID", "MRG-1", "102")
    assert desk.rows(patients) == before
    assert desk.rows(messages)[-1]["state"] == DEAD
    assert len(desk.told()) == 3


# Merges that are undone, as the Database Server tells


def undo(desk: Desk, merge: str, prior: str, issuer: str = "") -> bool:
    return desk.database.write(lambda c: desk.orders.undo_merge(c, "clinic", merge, Patient(prior, issuer)))


def found(desk: Desk, patient: str, accession: str) -> tuple[str, str]:
    """(outcome, ID of the order's patient now) of a study that names a patient."""
    verified = desk.verify(patient=Person(patient), accession_number=accession)
    return verified.result.outcome.name, verified.orders[0]["patient"].patient_id


def test_an_undone_merge_gives_the_prior_patient_its_orders_back(desk):
    desk.accepted(orm("A1", pid("P1", "Doe^One")))
    desk.accepted(orm("A2", pid("P2", "Roe^Two")))
    desk.accepted(a40("P1", "P2"))
    # What comes meanwhile is of whom it names; what it names anew stays with the ID under which it came.
    desk.accepted(orm("A3", pid("P1")))
    desk.accepted(orm("A4", pid("P2")))
    desk.accepted(orm("A1", pid("P2"), control="XO"))
    assert [found(desk, one, f"A{n}") for one in ("P1", "P2") for n in (1, 2, 3, 4)] == [("MATCH", "P2")] * 8
    told = len(desk.told())
    assert undo(desk, "1@1", "P1")
    assert [found(desk, "P1", accession) for accession in ("A1", "A2", "A3", "A4")] == [
        ("MATCH", "P1"),
        ("PATIENT_MISMATCH", "P2"),
        ("MATCH", "P1"),
        ("PATIENT_MISMATCH", "P2"),
    ]
    assert found(desk, "P2", "A1") == ("PATIENT_MISMATCH", "P1")
    news = desk.told()[told:]
    assert [event.WhichOneof("event") for event in news] == ["patient", "order", "order"]
    assert (news[0].patient.patient_id, news[0].patient.patient_name) == ("P1", "Doe^One")
    assert [(e.order.accession_number, e.order.patient.patient_id) for e in news[1:]] == [("A1", "P1"), ("A3", "P1")]
    # From now on the prior ID is a patient of its own.
    desk.accepted(orm("A5", pid("P1", "Doe^One")))
    desk.accepted(adt("A08", pid("P1", "Doe^Newly")))
    assert found(desk, "P1", "A5") == ("MATCH", "P1")
    assert [row["patient_name"] for row in desk.rows(patients)] == ["Doe^Newly", "Doe^John"]


def test_an_undo_that_comes_twice_undoes_no_later_merge(desk):
    desk.accepted(orm("A1", pid("P1")))
    desk.accepted(a40("P1", "P2"))
    assert undo(desk, "1@1", "P1")
    assert not undo(desk, "1@1", "P1")
    told = len(desk.told())
    desk.accepted(a40("P1", "P2"))
    assert [event.WhichOneof("event") for event in desk.told()[told:]] == ["merge"]
    assert not undo(desk, "1@1", "P1")
    assert found(desk, "P1", "A1") == ("MATCH", "P2")
    assert undo(desk, "2@9", "P1")
    assert found(desk, "P1", "A1") == ("MATCH", "P1")
    # Of nobody, and of one who is merged into nobody.
    told = len(desk.told())
    assert not undo(desk, "3@1", "P7")
    assert not undo(desk, "4@1", "P2")
    assert not undo(desk, "5@1", "P1", "OTHER")
    assert len(desk.told()) == told


def test_chains_are_undone_from_their_end(desk):
    for n in (1, 2, 3, 4):
        desk.accepted(orm(f"A{n}", pid(f"P{n}")))
    desk.accepted(a40("P1", "P2"))
    desk.accepted(a40("P4", "P2"))
    desk.accepted(a40("P2", "P3"))
    assert [found(desk, f"P{n}", f"A{n}")[1] for n in (1, 2, 3, 4)] == ["P3"] * 4
    undo(desk, "3@1", "P2")
    assert [found(desk, f"P{n}", f"A{n}")[1] for n in (1, 2, 3, 4)] == ["P2", "P2", "P3", "P2"]
    undo(desk, "1@1", "P1")
    assert [found(desk, f"P{n}", f"A{n}")[1] for n in (1, 2, 3, 4)] == ["P1", "P2", "P3", "P2"]
    desk.accepted(a40("P2", "P1"))
    assert [found(desk, f"P{n}", f"A{n}")[1] for n in (1, 2, 3, 4)] == ["P1", "P1", "P3", "P1"]


def test_an_id_that_changes_its_issuer(desk):
    desk.accepted(orm("A1", pid("P1", issuer="X")))
    desk.accepted(a40("P1^^^X", "P1^^^Y"))
    for issuer in ("X", "Y", ""):
        assert desk.found(patient=Person("P1", issuer), accession_number="A1")[0] == "MATCH", issuer
    assert desk.found(patient=Person("P1", "Z"), accession_number="A1")[0] == "PATIENT_MISMATCH"


def test_of_two_patients_with_one_id_nobody_guesses(desk):
    """P1 of issuer X is merged, P1 of issuer Y is not: an object with P1 and no issuer may be either."""
    desk.accepted(adt("A04", pid("P1", issuer="Y")))
    desk.accepted(orm("A1", pid("NEW", issuer="X")))
    desk.accepted(a40("P1^^^X", "NEW^^^X"))
    assert desk.found(patient=Person("P1"), accession_number="A1")[0] == "PATIENT_MISMATCH"
    assert desk.found(patient=Person("P1", "X"), accession_number="A1")[0] == "MATCH"


# What is older


def test_an_older_message_does_not_undo_a_newer_one(desk):
    desk.accepted(orm("A1", pid("P1", "Newer^N"), time="20260102020000", modality="MR"))
    desk.accepted(orm("A1", pid("P1", "Older^O"), time="20260101120000", modality="CT"))
    assert listed(desk, "modality") == [("MR",)]
    assert desk.rows(patients)[0]["patient_name"] == "Newer^N"
    assert len(desk.told()) == 1
    desk.accepted(adt("A08", pid("P1", "Older^O"), time="20260101120000"))
    assert desk.told()[-1].patient.patient_name == "Newer^N"


def test_the_hour_that_comes_twice_loses_nothing(desk):
    """Local clocks go back an hour in autumn: what comes then is not old."""
    desk.accepted(orm("A1", time="20260102025959"))
    desk.accepted(orm("A1", time="20260102020000", control="CA"))
    assert listed(desk, "status") == [(CANCELLED,)]


def test_with_a_zone_the_order_is_exact(desk):
    desk.accepted(orm("A1", time="20260102020000+0100", modality="MR"))  # 01:00 UTC
    desk.accepted(orm("A1", time="20260102005900+0000", modality="CT"))
    assert listed(desk, "modality") == [("MR",)]
    desk.accepted(orm("A1", time="20260101230100-0200", modality="CT"))  # 01:01 UTC
    assert listed(desk, "modality") == [("CT",)]


@pytest.mark.parametrize("time", ["20990101000000", "20260231120000", "2026", "", "yesterday", "99999999999999"])
def test_a_time_that_is_none_makes_nothing_old(desk, time):
    desk.accepted(orm("A1", time=time))
    desk.accepted(orm("A1", modality="MR"))
    assert listed(desk, "modality") == [("MR",)]
    desk.accepted(orm("A1", time=time, modality="US"))
    assert listed(desk, "modality") == [("US",)]


# Finding


def test_a_name_as_key_finds_among_thousands_of_a_day(desk):
    desk.accepted(orm("FIRST", pid("P8", "First^One")))
    (row,) = desk.rows(orders)
    (person,) = desk.rows(patients)

    def fill(c) -> None:
        people = [{**person, "id": 1000 + n, "patient_id": f"Q{n}", "patient_name": f"Q{n}^X"} for n in range(3000)]
        c.execute(sa.insert(patients), people)
        c.execute(
            sa.insert(orders),
            [{**row, "id": 1000 + n, "order_id": f"clinic/B{n}", "patient": 1000 + n} for n in range(3000)],
        )

    desk.database.write(fill)
    policy = Policy(study_key="date+modality", patient_key="name")
    for name, found in (("FIRST^ONE", "FIRST"), ("Q7^X", "B7"), ("Q2999^X", "B2999")):
        assert desk.found(patient=Person("", "", name), policy=policy, **DAY) == ("MATCH", [f"clinic/{found}"])


def test_a_merge_with_the_same_name_is_found_by_name(desk):
    desk.accepted(orm("A1", pid("OLD", "Doe^John")))
    desk.accepted(a40("OLD", "NEW"))
    policy = Policy(patient_key="id+name")
    assert desk.found(patient=Person("OLD", "", "DOE^JOHN"), policy=policy, **DAY) == ("MATCH", ["clinic/A1"])


# Two domains never join

IDS = st.sampled_from(["P1", "P2", "P1^^^X", "P1^^^TOWN"])
SAID = st.one_of(
    st.builds(
        lambda a, p, s, c: orm(a, pid(p), s, c),
        st.sampled_from(["A1", "A2"]),
        IDS,
        st.sampled_from(["", "2.25.1", "2.25.2"]),
        st.sampled_from(["NW", "XO", "CA"]),
    ),
    st.builds(lambda p, n: adt("A08", pid(p, n)), IDS, st.sampled_from(["Doe^John", "Roe^Jane"])),
    st.builds(a40, IDS, IDS),
)
SCRIPT = st.lists(st.tuples(st.sampled_from(["clinic", "town"]), SAID), max_size=8)
ASKED = {"accession_number": "A1", "study_instance_uid": "2.25.1", **DAY}


def state(desk: Desk, domain: str) -> list:
    """All that a domain has and answers, without the numbers of rows."""
    people = {row["id"]: (row["patient_id"], row["issuer_of_patient_id"]) for row in desk.rows(patients)}
    numbers = ("id", "patient", "merged_into", "named", "surviving")
    kept: list = [
        [
            {
                **{name: value for name, value in row.items() if name not in numbers},
                "whose": [people.get(row[name]) for name in numbers[1:] if name in row],
            }
            for row in desk.rows(table)
            if row["domain"] == domain
        ]
        for table in (patients, orders)
    ]
    answers = []
    for patient in (Person("P1"), Person("P2"), Person("P1", "X"), Person("P1", "TOWN", "Doe^John")):
        for policy in (Policy(), Policy(patient_key="name"), Policy(accession_identifies_patient=True)):
            verified = desk.verify(domain, patient, policy, **ASKED)
            assert all(order["domain"] == domain for order in verified.orders)
            answers.append((verified.result.outcome, [o["order_id"] for o in verified.orders]))
    return [kept, answers]


@pytest.fixture(scope="module")
def desks(tmp_path_factory):
    """Three stores of the same two domains, each cleared by who uses it."""
    folder = tmp_path_factory.mktemp("domains")
    made = [Desk(f"sqlite:///{folder}/{n}.sqlite", ("clinic", "CLINIC"), ("town", "TOWN")) for n in range(3)]
    yield made
    for desk in made:
        desk.close()


@settings(max_examples=examples(25))
@given(SCRIPT)
def test_two_domains_with_the_same_ids_and_accession_numbers_never_join(desks, script):
    """What one domain says changes nothing of the other: alone, it has and answers the same."""
    both, *others = desks
    both.clear()
    for domain, raw in script:
        both.tell(raw, domain)
    for domain, alone in zip(("clinic", "town"), others, strict=True):
        alone.clear()
        for _, raw in (pair for pair in script if pair[0] == domain):
            alone.tell(raw, domain)
        assert state(both, domain) == state(alone, domain)
        assert all(event.domain == domain for event in alone.told())


@settings(max_examples=examples(30))
@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from("ABCD")), max_size=8))
def test_merges_never_form_a_circle_and_join_only_what_was_said(desks, pairs):
    desk = desks[0]
    desk.clear()
    for name in "ABCD":
        desk.accepted(orm(f"N{name}", pid(name)))
    said = {name: name for name in "ABCD"}  # who each one is, by the messages that were accepted
    for prior, surviving in pairs:
        if code(desk.tell(a40(prior, surviving))) == "AA":
            old, new = said[prior], said[surviving]
            said = {name: new if now == old else now for name, now in said.items()}
        else:
            # Refused only where it contradicts.
            assert said[prior] != prior or said[surviving] == prior
    for name in "ABCD":
        for other in "ABCD":
            outcome, _ = desk.found(patient=Person(name), accession_number=f"N{other}")
            assert (outcome == "MATCH") is (said[name] == said[other]), (name, other)


@given(
    script=st.lists(
        st.tuples(st.sampled_from(["merge", "undo", "order"]), st.integers(0, 4), st.integers(0, 4)), max_size=14
    )
)
@settings(max_examples=examples(60))
def test_merges_and_undos_in_any_order_agree_with_a_tree(desks, script):
    """A tree of direct merges, which is what an undo takes an edge from."""
    desk = desks[0]
    desk.clear()
    parent: dict[int, int] = {}

    def root(n: int) -> int:
        return root(parent[n]) if n in parent else n

    named: dict[str, int] = {}
    for number, (what, one, other) in enumerate(script):
        if what == "order":
            desk.accepted(orm(f"A{number}", pid(f"P{one}"), filler=f"F{number}"))
            named[f"A{number}"] = one
        elif what == "merge":
            merged = code(desk.tell(a40(f"P{one}", f"P{other}"))) == "AA"
            into = root(other)
            assert merged == (one not in (other, into) and (one not in parent or root(one) == into))
            if merged and one not in parent:
                parent[one] = into
        elif root(one) == parent.get(one):
            # Only what no later merge has buried can be undone.
            assert undo(desk, f"{number}@1", f"P{one}", "CLINIC")
            del parent[one]
    for accession, one in named.items():
        assert found(desk, f"P{one}", accession) == ("MATCH", f"P{root(one)}")
