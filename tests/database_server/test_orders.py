"""What managers tell: in order, once, all or none; the worklist."""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from database_support import HELD, UNVERIFIED, VERIFIED, Parts, at_once, order, plans, record, ris_patient, uid

from radmesh.database_server.orders import OrderFilter, RisEvent
from radmesh.database_server.schema import (
    MIGRATIONS,
    admissions,
    changes,
    corrections,
    managers,
    orders,
    patients,
    studies,
)
from radmesh.database_server.texts import name_key
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

EPOCH = b"e" * 16
OTHER = b"f" * 16


def event(sequence: int, accession: str = "", **values: Any) -> RisEvent:
    given = values or {"order": order(accession or f"A{sequence}")}
    return RisEvent(sequence, "default", **given)


def apply(parts: Parts, *events: RisEvent, manager: str = "connectivity-manager-0", epoch: bytes = EPOCH) -> int:
    last, _ = parts.orders.apply(manager, epoch, events)
    return last


def known(parts: Parts) -> list[str]:
    return [row["accession_number"] for row in parts.rows(orders)]


def told(parts: Parts, after: int = 0) -> list[tuple[str, str]]:
    return [(row["kind"], row["key"]) for row in parts.rows(changes) if row["revision"] > after]


# -- in order, each once


def test_events_are_applied_in_order_each_once(parts: Parts) -> None:
    assert apply(parts, event(1), event(2)) == 2
    revision = parts.feed.revision()
    # Told again, as after an answer that was lost: nothing happens twice.
    assert apply(parts, event(1), event(2)) == 2
    assert parts.feed.revision() == revision
    assert apply(parts, event(2), event(3)) == 3
    assert known(parts) == ["A1", "A2", "A3"]
    assert told(parts, revision) == [("order", "default A3")]


def test_a_gap_is_refused_with_the_event_that_is_expected(parts: Parts) -> None:
    for first, expected in ((2, "1"), (1, ""), (3, "2")):
        if not expected:
            apply(parts, event(first))
            continue
        with pytest.raises(RadmeshError) as error:
            apply(parts, event(first))
        assert error.value.reason == "EVENT_GAP"
        assert error.value.metadata == {"sequence": expected}
    assert known(parts) == ["A1"]


def test_all_or_none(parts: Parts) -> None:
    revision = parts.feed.revision()
    for events in ((event(1), event(3)), (event(1), event(2), event(4)), (event(2), event(1))):
        with pytest.raises(RadmeshError) as error:
            apply(parts, *events)
        assert error.value.reason == "EVENT_GAP"
    assert (known(parts), parts.rows(managers), parts.feed.revision()) == ([], [], revision)


def test_a_manager_with_a_new_store_begins_again(parts: Parts) -> None:
    apply(parts, event(1), event(2))
    with pytest.raises(RadmeshError) as error:
        apply(parts, event(3, "X"), epoch=OTHER)
    assert error.value.metadata == {"sequence": "1"}
    # What was refused did not change whose turn it is.
    assert apply(parts, event(3)) == 3
    assert apply(parts, event(1, "B1"), epoch=OTHER) == 1
    assert known(parts) == ["A1", "A2", "A3", "B1"]
    # A request of the old store that was long under way has no effect, and does not confuse the new one.
    assert apply(parts, event(1, "stale"), event(2, "stale")) == 3
    assert apply(parts, event(2, "B2"), epoch=OTHER) == 2
    assert "stale" not in known(parts)


def test_managers_have_sequences_of_their_own(parts: Parts) -> None:
    assert apply(parts, event(1)) == 1
    assert apply(parts, event(1, "B1"), manager="connectivity-manager-1") == 1
    assert apply(parts, event(2)) == 2
    assert apply(parts, event(2, "B2"), manager="connectivity-manager-1") == 2


def test_the_same_events_at_once_are_applied_once(parts: Parts) -> None:
    answers = at_once(*[lambda: apply(parts, event(1), event(2))] * 4)
    assert answers == [2] * 4
    assert told(parts) == [("order", "default A1"), ("order", "default A2")]


def test_the_sequence_outlives_the_process(url: str) -> None:
    for number in (1, 2, 3):
        database = Database(url, MIGRATIONS)
        assert apply(Parts(database), event(number)) == number
        database.close()


def test_each_event_is_told_to_the_feed(parts: Parts) -> None:
    apply(
        parts,
        event(1, order=order("A1", ris_patient("P1"))),
        event(2, patient=ris_patient("P1", "Doe^New")),
        event(3, merge=(ris_patient("P1"), ris_patient("P2"))),
        event(4, available=False),
        event(5, available=True),
        # An event of a kind that is not known yet is passed over.
        RisEvent(6, "default"),
    )
    assert told(parts)[:4] == [
        ("order", "default A1"),
        ("patient", "default P1"),
        ("patient", "default P2"),
        ("domain", "default"),
    ] or {*told(parts)} == {
        ("order", "default A1"),
        ("patient", "default P1"),
        ("patient", "default P2"),
        ("domain", "default"),
    }
    assert apply(parts, event(7)) == 7


def test_nothing_that_a_ris_says_stops_the_rest(parts: Parts) -> None:
    """An event that cannot be applied would stand before all that follow, for ever."""
    choose = random.Random(5)
    # What no compression makes short: more than an index takes on PostgreSQL.
    long = "".join(chr(choose.randrange(0x4E00, 0x9FA5)) for _ in range(6000))
    values = dict.fromkeys(
        (
            "order_id",
            "accession_number",
            "placer_order_number",
            "filler_order_number",
            "study_instance_uid",
            "scheduled_time",
            "modality",
            "station_ae_title",
            "procedure_code",
            "procedure_description",
            "requested_procedure_id",
            "referring_physician_name",
        ),
        long,
    )
    odd = {**order("A", ris_patient(long, long, long, long, long)), **values, "status": 77}
    empty = dict.fromkeys(odd, "") | {"status": 0, "update_time": 0}
    apply(
        parts,
        event(1, order=odd),
        event(2, order={**odd, "order_id": long + "x"}),
        event(3, order=empty),
        event(4, patient=ris_patient(long, long, long, long, long)),
        event(5, patient=ris_patient("", "")),
        event(6, merge=(ris_patient(long), ris_patient("P1"))),
        event(7, merge=(ris_patient(""), ris_patient("P1"))),
        event(8, merge=(ris_patient("P1"), ris_patient("P1"))),
        event(9, order=order("Z\0Z", ris_patient("P\0", "Doe\0^X"))),
        event(10, patient=ris_patient(long + "y", long)),
    )
    assert apply(parts, event(11)) == 11
    rows, _ = parts.orders.find(OrderFilter(), 100, "")
    assert "A11" in [row["accession_number"] for row in rows]
    # Two that differ behind what is kept are two.
    assert len({row["order_id"] for row in rows}) == len(rows) == 4


# -- what an event changes


def verified(parts: Parts, number: int = 0, patient: str = "P", **attributes: Any) -> Any:
    """Study `number`, verified by the order A<number> of `patient`."""
    values = {"PatientID": patient, "PatientName": "DOE^JON", "AccessionNumber": f"A{number}", **attributes}
    entry = record(study=number, sop=number, **values)
    parts.register(entry)
    parts.decide(entry, VERIFIED, order=order(f"A{number}", ris_patient(patient, "Doe^John")))
    return entry


def laid(parts: Parts, study: object = 0) -> dict[str, tuple[str, str, str]]:
    rows, _ = parts.statuses.corrections(uid("study", study), 1000, "")
    return {r["keyword"]: (r["original_value"], r["value"], r["source"]) for r in rows if r["in_force"]}


def test_an_order_is_kept_as_it_was_told_last(parts: Parts) -> None:
    first = order("A1", ris_patient("P1", "Doe^John"), modality="CT", scheduled_time="20260102030405")
    parts.say(order=first)
    parts.say(order={**first, "patient": None, **ris_patient("P2", "Roe^Jane"), "status": 4, "modality": "MR"})
    (row,) = parts.rows(orders)
    assert (row["status"], row["modality"], row["domain"], row["order_id"]) == (4, "MR", "default", "default/A1")
    (found,), _ = parts.orders.find(OrderFilter(accession_number="A1"), 10, "")
    assert (found["patient_id"], found["patient_name"]) == ("P2", "Roe^Jane")


def test_the_domain_is_that_of_the_event(parts: Parts) -> None:
    parts.say("town", order=order("A1", domain="clinic"))
    assert [row["domain"] for row in parts.rows(orders)] == ["town"]


def test_new_demographics_reach_the_orders_and_the_verified_studies(parts: Parts) -> None:
    first, second = verified(parts, 0), verified(parts, 1, PatientName="Doe^John")
    other, open_ = record(study=2, sop=2, PatientID="P", AccessionNumber="A2"), record(study=3, sop=3, PatientID="P")
    parts.register(other, open_)
    parts.decide(other, UNVERIFIED, "NO_ORDER")
    parts.say(order=order("A0", ris_patient("P", "Doe^John")))
    before = parts.feed.revision()
    parts.say(patient=ris_patient("P", "Roe^Jane", birth="19800101", sex="F"))
    (found,), _ = parts.orders.find(OrderFilter(accession_number="A0"), 10, "")
    assert (found["patient_name"], found["patient_sex"]) == ("Roe^Jane", "F")
    for number, came in ((0, "DOE^JON"), (1, "Doe^John")):
        study = parts.study(number)
        assert (study["patient_name"], study["patient_birth_date"], study["patient_sex"]) == (
            "Roe^Jane",
            "19800101",
            "F",
        )
        assert laid(parts, number)["PatientName"] == (came, "Roe^Jane", "ris:default")
    # Who is not verified is shown as the study came.
    assert [parts.study(number)["patient_name"] for number in (2, 3)] == ["Doe^John"] * 2
    changed = {key for kind, key in told(parts, before) if kind == "correction"}
    assert changed == {first.study_instance_uid, second.study_instance_uid}
    # The same again changes nothing.
    studies_before, corrections_before = parts.rows(studies), parts.rows(corrections)
    parts.say(patient=ris_patient("P", "Roe^Jane", birth="19800101", sex="F"))
    assert (parts.rows(studies), parts.rows(corrections)) == (studies_before, corrections_before)
    # And back: what came is shown again where it says the same.
    parts.say(patient=ris_patient("P", "Doe^John", birth="", sex=""))
    assert parts.study(1)["patient_name"] == "Doe^John"
    assert laid(parts, 1) == {}
    assert not parts.study(1)["corrected"]


def test_another_domain_s_patient_of_the_same_id_is_somebody_else(parts: Parts) -> None:
    entry = verified(parts)
    before = parts.study()["version"]
    parts.say("town", patient=ris_patient("P", "Somebody^Else"))
    parts.say("town", order=order("A0", ris_patient("P", "Somebody^Else"), domain="town"))
    assert (parts.study()["patient_name"], parts.study()["version"]) == ("Doe^John", before)
    assert parts.study()["study_instance_uid"] == entry.study_instance_uid


def test_an_order_that_is_somebody_else_s_now_renames_no_study(parts: Parts) -> None:
    """The images are of whom they say; whether the order is still theirs is for verification to find out."""
    verified(parts)
    parts.say(order=order("A0", ris_patient("P2", "Roe^Richard")))
    study = parts.study()
    assert (study["patient_id"], study["patient_name"]) == ("P", "Doe^John")
    # New demographics of the same patient, told with the order, are shown.
    parts.say(order=order("A0", ris_patient("P", "Doe^Jonathan")))
    assert parts.study()["patient_name"] == "Doe^Jonathan"


def test_a_decision_makes_its_order_known(parts: Parts) -> None:
    """Also where the manager's event is still under way: whoever reports needs the order."""
    entry = record(AccessionNumber="A1")
    parts.register(entry)
    parts.decide(entry, VERIFIED, order=order("A1", ris_patient("P0", "Doe^Ris"), procedure_code="CTABD"))
    found = parts.orders.order("default/A1")
    assert found is not None
    assert (found["procedure_code"], found["patient_name"], found["domain"]) == ("CTABD", "Doe^Ris", "default")
    assert parts.orders.order("default/A2") is None


# -- the worklist


def numbers(parts: Parts, size: int = 3, **wanted: Any) -> list[str]:
    """Accession numbers, page by page."""
    found: list[str] = []
    token = ""
    while True:
        rows, token = parts.orders.find(OrderFilter(**wanted), size, token)
        assert len(rows) <= size
        found += [row["accession_number"] for row in rows]
        if not token:
            return found


WORKLIST = [
    ("A1", "P1", "Müller^Jörg", "20260102080000", "CT", "CT1", 1),
    ("A2", "P2", "Yamada^Tarou=山田^太郎=やまだ^たろう", "20260102", "MR", "MR1", 1),
    ("A3", "P1", "Müller^Jörg", "20260102093000", "CT", "CT2", 2),
    ("A4", "Q1", "Doe^Jane", "202601031200", "CT", "CT1", 3),
    ("B5", "Q2", "Doe^John", "", "US", "", 4),
    ("B6", "Q2", "Doe^John", "20251231235959", "", "CT1", 1),
]


@pytest.fixture
def worklist(parts: Parts) -> Parts:
    for accession, patient, name, when, modality, station, status in WORKLIST:
        given = order(
            accession,
            ris_patient(patient, name),
            scheduled_time=when,
            modality=modality,
            station_ae_title=station,
            status=status,
        )
        parts.say(order=given)
    parts.say("town", order=order("A1", ris_patient("P1", "Town^Other"), domain="town", scheduled_time="20260104"))
    return parts


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ["B5", "B6", "A2", "A1", "A3", "A4", "A1"]),
        ({"domain": "default"}, ["B5", "B6", "A2", "A1", "A3", "A4"]),
        ({"accession_number": "A1"}, ["A1", "A1"]),
        ({"accession_number": "A1", "domain": "town"}, ["A1"]),
        ({"accession_number": "B*"}, ["B5", "B6"]),
        ({"accession_number": "?2"}, ["A2"]),
        ({"accession_number": "*"}, ["B5", "B6", "A2", "A1", "A3", "A4", "A1"]),
        ({"order_id": "town/A1"}, ["A1"]),
        ({"order_id": "default/B*"}, ["B5", "B6"]),
        ({"patient_id": "P1"}, ["A1", "A3", "A1"]),
        ({"patient_id": "Q?"}, ["B5", "B6", "A4"]),
        ({"patient_name": "müller^jörg"}, ["A1", "A3"]),
        ({"patient_name": "MÜLLER*"}, ["A1", "A3"]),
        ({"patient_name": "山田*"}, ["A2"]),
        ({"patient_name": "*たろう"}, ["A2"]),
        ({"patient_name": "Doe^J???"}, ["B5", "B6", "A4"]),
        ({"patient_name": "Doe^J??"}, []),
        ({"patient_name": "Doe"}, []),
        # A wildcard stays within its component group.
        ({"patient_name": "Yamada*たろう"}, []),
        ({"modality": "CT"}, ["A1", "A3", "A4"]),
        ({"station_ae_title": "CT1"}, ["B6", "A1", "A4"]),
        ({"station_ae_title": "CT?"}, ["B6", "A1", "A3", "A4"]),
        ({"statuses": (1,)}, ["B6", "A2", "A1", "A1"]),
        ({"statuses": (3, 2, 4)}, ["B5", "A3", "A4"]),
        ({"scheduled_from": "20260102", "scheduled_to": "20260102"}, ["A2", "A1", "A3"]),
        # That has no time of day: it may be any.
        ({"scheduled_from": "202601020830", "scheduled_to": "20260102093000"}, ["A2", "A3"]),
        ({"scheduled_from": "20260103"}, ["A4", "A1"]),
        ({"scheduled_to": "20260102080000"}, ["B6", "A2", "A1"]),
        ({"scheduled_to": "2026010207"}, ["B6", "A2"]),
        ({"patient_id": "P1", "modality": "CT", "scheduled_from": "20260102090000"}, ["A3"]),
        ({"accession_number": "%"}, []),
        ({"patient_name": "_____^j%"}, []),
    ],
)
def test_orders_are_found_by_scheduled_time(worklist: Parts, wanted: dict[str, Any], expected: list[str]) -> None:
    for size in (1, 3, 100):
        assert numbers(worklist, size, **wanted) == expected


def test_a_token_goes_on_with_its_own_query(worklist: Parts) -> None:
    _, token = worklist.orders.find(OrderFilter(modality="CT"), 1, "")
    with pytest.raises(RadmeshError) as error:
        worklist.orders.find(OrderFilter(modality="MR"), 1, token)
    assert error.value.reason == "FIELD_INVALID"


def test_orders_and_admissions_are_looked_up_at_any_size(parts: Parts) -> None:
    """No query reads a table from end to end, and none sorts what it does not need."""
    choose = random.Random(1)
    names = ["".join(choose.choices("abcdefghij", k=12)) for _ in range(20_000)]
    parts.register(record())
    parts.say(order=order("A", ris_patient("P")))
    (study,), (row,) = parts.rows(studies), parts.rows(orders)
    (admission,) = parts.rows(admissions)
    person = parts.rows(patients)[0]

    def several(table: sa.Table, like: dict[str, Any], make: Callable[[int, str], dict[str, Any]]) -> None:
        rows = [{**like, "id": n, **make(n, name)} for n, name in enumerate(names, 100)]
        parts.database.write(lambda c: c.execute(sa.insert(table), rows))

    several(
        patients,
        person,
        lambda n, name: {"identity": str(n), "patient_id": f"P{n}", "patient_name": name, "name_key": name_key(name)},
    )
    several(studies, study, lambda n, _: {"patient": n, "study_instance_uid": f"1.2.{n}", "accession_number": f"A{n}"})
    several(
        admissions,
        admission,
        lambda n, _: {
            "study": n,
            "digest": n.to_bytes(32),
            "accession_number": f"A{n}",
            "patient_id": f"P{n}",
            "verification": VERIFIED if n % 1000 else HELD,
            "reason": "" if n % 1000 else "NO_ORDER",
        },
    )
    several(
        orders,
        row,
        lambda n, _: {
            "order_id": f"default/A{n}",
            "accession_number": f"A{n}",
            "scheduled_time": f"2026{n % 12 + 1:02}{n % 28 + 1:02}080000",
            "modality": "CT" if n % 500 else "PT",
            "station_ae_title": f"CT{n % 500}",
            "status": 3 if n % 100 else 1,
            "patient": n,
            "shown": n,
        },
    )
    with parts.database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql("ANALYZE" if parts.database.sqlite else "VACUUM ANALYZE")

    def by(**wanted: Any) -> Callable[[], Any]:
        return lambda: parts.orders.find(OrderFilter(**wanted), 100, "")

    def admitted(**wanted: Any) -> Callable[[], Any]:
        return lambda: parts.listed(100, **wanted)

    day = {"scheduled_from": "20260401", "scheduled_to": "20260401"}
    for name, call in {
        "all": by(),
        "accession": by(accession_number="A5"),
        "accession of a domain": by(domain="default", accession_number="A5"),
        "order": by(order_id="default/A5"),
        "patient": by(patient_id="P5"),
        "name": by(patient_name="cdefgh*"),
        "infix of a name": by(patient_name="*cdefgh*"),
        "day": by(**day),
        "until": by(scheduled_to="20260101"),
        "day and modality": by(modality="CT", **day),
        "a rare modality": by(modality="PT"),
        "station": by(station_ae_title="CT5"),
        "scheduled": by(statuses=(1,)),
        "open": by(statuses=(1, 2)),
        "held": admitted(verifications=(HELD,)),
        "not verified": admitted(verifications=(UNVERIFIED, HELD)),
        "reason": admitted(reason="RIS_UNAVAILABLE"),
        "held for a reason": admitted(verifications=(HELD,), reason="NO_ORDER"),
        "held in a domain": admitted(verifications=(HELD,), domain="town"),
        "admissions by accession": admitted(accession_number="A5"),
        "admissions by patient": admitted(patient_id="P5"),
    }.items():
        for plan in plans(parts.database, call):
            # An index in the answer's own order may be read until the page is full, and not behind a filter.
            assert not re.search(r"Seq Scan on (orders|admissions|patients|studies)\b", plan), f"{name}:\n{plan}"
            assert not re.search(r"SCAN (orders|admissions|patients|studies)$", plan, re.MULTILINE), f"{name}:\n{plan}"
            if name != "all":
                whole = re.search(r"SCAN (orders|admissions|patients|studies) USING", plan)
                assert not whole, f"{name}:\n{plan}"
                assert not re.search(r"Index (Only )?Scan using \S+ on (orders|admissions) .*\n *Filter:", plan), (
                    f"{name}:\n{plan}"
                )
