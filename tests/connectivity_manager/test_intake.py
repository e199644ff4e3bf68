"""What comes in: committed with all that it does, answered, and known again when it comes once more."""

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa
from connectivity_support import DEAD, DONE, IGNORED, NOW, Desk, a40, adt, code, error, message, msh, obr, orm, pid
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh.connectivity_manager.intake import last_message
from radmesh.connectivity_manager.schema import events, messages, orders, patients
from radmesh.hl7.message import parse
from radmesh.runtime.errors import RadmeshError

WEEK = timedelta(days=7).total_seconds()


def effects(desk: Desk) -> tuple[int, int, int]:
    """How many patients, orders and events there are."""
    return len(desk.rows(patients)), len(desk.rows(orders)), len(desk.rows(events))


def logged(desk: Desk) -> list[tuple[int, str, str]]:
    """(state, ack_code, reason) of every message."""
    return [(row["state"], row["ack_code"], row["reason"]) for row in desk.rows(messages)]


# Accepted


def test_an_order_is_in_the_log_in_the_store_and_in_the_outbox(desk):
    raw = orm("A1", study="2.25.7", control_id="M1")
    answer = desk.accepted(raw)
    assert answer.get("MSA-2") == "M1"
    (row,) = desk.rows(messages)
    assert (row["type"], row["control_id"], row["sending_application"], row["sending_facility"]) == (
        "ORM^O01", "M1", "RIS", "CLINIC",
    )  # fmt: skip
    assert (bytes(row["raw"]), bytes(row["ack"])) == (raw, answer.raw)
    assert logged(desk) == [(DONE, "AA", "")]
    (event,) = desk.told()
    assert event.domain == "clinic"
    assert (event.order.order_id, event.order.accession_number) == ("clinic/A1", "A1")
    assert (event.order.patient.patient_id, event.order.patient.patient_name) == ("P1", "Doe^John")
    assert event.order.study_instance_uid == "2.25.7"
    assert desk.committed == 1
    assert desk.found(accession_number="A1") == ("MATCH", ["clinic/A1"])


@pytest.mark.parametrize("trigger", ["A01", "A04", "A05", "A08", "A31"])
def test_demographics(desk, trigger):
    desk.accepted(orm("A1"))
    desk.accepted(adt(trigger, pid("P1", "Doe-Roe^John")))
    assert desk.told()[-1].patient.patient_name == "Doe-Roe^John"
    assert desk.verify(accession_number="A1").orders[0]["patient"].patient_name == "Doe-Roe^John"


@pytest.mark.parametrize("kind", ["OMI^O23^OMI_O23", "OMG^O19^OMG_O19", "ORM_O01", "ORM"])
def test_every_kind_of_order(desk, kind):
    desk.accepted(message(msh(kind), pid(), obr("A1")))
    assert desk.found(accession_number="A1") == ("MATCH", ["clinic/A1"])


def test_what_concerns_nobody_here_is_accepted_and_ignored(desk):
    desk.accepted(message(msh("ORU^R01"), pid(), "OBR|1|||CT", "OBX|1|TX|||Text"))
    desk.accepted(adt("A60"))
    assert logged(desk) == [(IGNORED, "AA", "")] * 2
    assert effects(desk) == (0, 0, 0)


# The same message again


def test_a_replay_gets_the_same_answer_and_has_no_second_effect(desk, url):
    raw = orm("A1", control_id="M1")
    first = desk.tell(raw)
    before = effects(desk)
    desk.clock.advance(WEEK - 1)
    assert desk.tell(raw) == first
    assert desk.tell(orm("A1", control_id="M1", time="20260102030500")) == first  # MSH-7 is the time of sending
    # Another process knows it too.
    other = Desk(url, clock=desk.clock)
    assert other.tell(raw) == first
    other.close()
    (row,) = desk.rows(messages)
    assert row["replays"] == 3
    assert effects(desk) == before


def test_after_seven_days_it_is_a_new_message(desk):
    raw = orm("A1", control_id="M1")
    first = desk.tell(raw)
    desk.clock.advance(WEEK + 1)
    assert desk.tell(raw) != first
    assert len(desk.rows(messages)) == 2


def test_an_id_used_twice_is_another_message(desk):
    first, second = (desk.accepted(orm(accession, control_id="M1")) for accession in ("A1", "A2"))
    assert first.control_id != second.control_id
    assert [row["accession_number"] for row in desk.rows(orders)] == ["A1", "A2"]
    # Each of them is known again.
    assert desk.tell(orm("A1", control_id="M1")) == first.raw
    assert desk.tell(orm("A2", control_id="M1")) == second.raw


def test_a_message_without_an_id_is_always_new(desk):
    assert desk.tell(orm("A1", control_id="")) != desk.tell(orm("A1", control_id=""))
    assert len(desk.rows(messages)) == 2
    assert len(desk.rows(orders)) == 1


@pytest.mark.parametrize("field", [{"f3": "OTHER"}, {"f4": "OTHER"}])
def test_another_sender_is_another_message(desk, field):
    assert desk.tell(orm("A1", control_id="M1")) != desk.tell(orm("A1", control_id="M1", **field))
    assert len(desk.rows(messages)) == 2


def test_another_domain_is_another_message(url):
    desk = Desk(url, "clinic", "town")
    raw = orm("A1", control_id="M1")
    assert desk.tell(raw, "clinic") != desk.tell(raw, "town")
    assert [row["domain"] for row in desk.rows(orders)] == ["clinic", "town"]
    desk.close()


def test_the_same_message_on_many_connections_at_once_has_one_effect(desk):
    raw, answers = orm("A1", control_id="M1"), []
    ready = threading.Barrier(8)

    def send() -> None:
        ready.wait()
        answers.append(desk.tell(raw))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert effects(desk) == (1, 1, 1)
    (row,) = desk.rows(messages)
    assert row["replays"] == 7


# Refused


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (message(msh("ORM^O01"), obr("A1")), ("AE", "HL7_SEGMENT_MISSING", "PID", "100")),
        (message(msh("ADT^A08"), "EVN|A08"), ("AE", "HL7_SEGMENT_MISSING", "PID", "100")),
        (message(msh("ORM^O01"), "PID|1||^^^X", obr("A1")), ("AE", "HL7_FIELD_MISSING", "PID-3", "101")),
        (message(msh("ORM^O01"), pid()), ("AE", "HL7_SEGMENT_MISSING", "ORC", "100")),
        (message(msh("ORM^O01"), pid(), "ORC|NW", "OBR|1"), ("AE", "HL7_FIELD_MISSING", "OBR-3", "101")),
        (message(msh("ORM^O01"), pid("P" * 300), obr("A1")), ("AE", "HL7_FIELD_INVALID", "PID-3", "102")),
        (message(msh("ADT^A40"), pid()), ("AE", "HL7_SEGMENT_MISSING", "MRG", "100")),
        (a40("P1", "P1"), ("AE", "HL7_FIELD_INVALID", "MRG-1", "102")),
        (message(msh("XYZ^X01"), pid()), ("AR", "HL7_TYPE_UNKNOWN", "MSH-9", "200")),
        (message(msh(""), pid()), ("AR", "HL7_TYPE_UNKNOWN", "MSH-9", "200")),
        (b"GET / HTTP/1.1\r\n", ("AR", "HL7_NOT_A_MESSAGE", "", "100")),
        (b"", ("AR", "HL7_NOT_A_MESSAGE", "", "100")),
    ],
)
def test_what_cannot_take_effect_is_named_kept_and_has_none(desk, raw, expected):
    answer = desk.tell(raw)
    reason, place, condition = error(answer)
    assert (code(answer), reason, place, condition) == expected
    assert logged(desk) == [(DEAD, expected[0], reason)]
    assert effects(desk) == (0, 0, 0)
    (row,) = desk.rows(messages)
    assert bytes(row["raw"]) == raw
    assert row["error"]
    assert reason in desk.log.getvalue()
    # The next one is served.
    desk.accepted(orm("A1"))


def test_one_bad_order_of_a_message_leaves_nothing_behind(desk):
    raw = message(msh("ORM^O01"), pid("P7"), obr("A1"), "ORC|NW", "OBR|1")
    assert code(desk.tell(raw)) == "AE"
    assert effects(desk) == (0, 0, 0)


def test_the_orders_of_a_message_are_bounded(local):
    """One message is one transaction, and those of other domains wait for it."""
    groups = [pid(f"P{n}") + "\r" + obr(f"A{n}") for n in range(1001)]
    answer = local.tell(message(msh("ORM^O01"), *groups))
    assert (code(answer), error(answer)[:2]) == ("AE", ("HL7_FIELD_INVALID", "ORC"))
    assert effects(local) == (0, 0, 0)
    local.accepted(message(msh("ORM^O01"), *groups[:1000]))
    assert effects(local) == (1000, 1000, 1000)


def test_log_and_errors_tell_nothing_of_the_patient(local):
    local.accepted(orm("A1", pid("SECRETID", "Secret^Name")))
    local.tell(message(msh("ORM^O01"), pid("SECRETID", "Secret^Name"), "ORC|NW", "OBR|1"))
    local.tell(message(msh("ADT^A40"), pid("SECRETID", "Secret^Name"), "MRG|SECRETID"))
    told = local.log.getvalue() + "".join(row["error"] for row in local.rows(messages))
    assert "secret" not in told.lower()


# How it is asked for


@pytest.mark.parametrize(
    ("wish", "good", "bad"),
    [
        ({}, "AA", "AE"),
        ({"f15": "AL"}, "CA", "CE"),
        ({"f15": "AL", "f16": "AL"}, "CA", "CE"),
        ({"f15": "NE", "f16": "AL"}, "AA", "AE"),
        ({"f15": "NE", "f16": "NE"}, None, None),
        ({"f15": "ER"}, None, "CE"),
        ({"f15": "SU"}, "CA", None),
    ],
)
def test_the_sender_says_which_answer_it_wants(local, wish, good, bad):
    raw = orm("A1", control_id="M1", **wish)
    for _ in range(2):  # a replay too
        answer = local.tell(raw)
        assert (code(answer) if answer else None) == good
    refused = local.tell(message(msh("ORM^O01", **wish), obr("A2")))
    assert (code(refused) if refused else None) == bad
    assert [row["state"] for row in local.rows(messages)] == [DONE, DEAD]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("UNICODE UTF-8", "utf-8"),
        ("8859/1", "latin-1"),
        ("8859/1", "utf-8"),  # declared wrongly
        ("UNICODE UTF-8", "latin-1"),
        ("", "utf-8"),
        ("ASCII", "utf-8"),
        ("NONSENSE", "utf-8"),
    ],
)
def test_a_wrong_character_set_costs_no_order(local, declared, encoding):
    text = orm("A1", pid("P1", "Müller^Jörg"), f18=declared).decode()
    local.accepted(text.encode(encoding))
    assert local.verify(accession_number="A1").orders[0]["patient"].patient_name == "Müller^Jörg"


def test_a_batch_is_answered_as_a_batch(desk):
    batch = (
        b"FHS|^~\\&|RIS\rBHS|^~\\&|RIS\r"
        + orm("A1", control_id="B1")
        + message(msh("ORM^O01", control_id="B2"), obr("A2"))
        + orm("A3", control_id="B3")
        + b"BTS|3\rFTS|1\r"
    )
    answer = desk.tell(batch)
    assert answer is not None
    said = [line.split("|")[1:3] for line in answer.decode().split("\r") if line.startswith("MSA")]
    assert said == [["AA", "B1"], ["AE", "B2"], ["AA", "B3"]]
    assert answer.rstrip(b"\r").endswith(b"BTS|3")
    assert [row["accession_number"] for row in desk.rows(orders)] == ["A1", "A3"]
    # All of it once more: the same answers, nothing else.
    before = effects(desk)
    assert desk.tell(batch) == answer
    assert effects(desk) == before
    assert len(desk.rows(messages)) == 3


# When the store fails


def test_a_full_disk_acknowledges_nothing_and_the_next_try_is_as_the_first(tmp_path):
    """The page limit is SQLite's own way to be full."""
    desk = Desk(f"sqlite:///{tmp_path}/connectivity.sqlite")

    def limit(pages: int) -> None:
        with desk.database.engine.connect() as c:
            c.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with desk.database.engine.connect() as c:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar_one()
    limit(pages)
    big = orm("A1", control_id="M1") + b"NTE|1||" + b"x" * 1_000_000 + b"\r"
    with pytest.raises(RadmeshError) as caught:
        desk.tell(big)
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert desk.rows(messages) == []
    assert effects(desk) == (0, 0, 0)
    limit(1 << 30)
    assert code(desk.tell(big)) == "AA"
    assert effects(desk) == (1, 1, 1)
    desk.close()


def test_what_fails_last_takes_back_all_of_the_message(local):
    with local.database.engine.begin() as c:
        c.exec_driver_sql("CREATE TRIGGER no BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'P1'); END")
    with pytest.raises(RadmeshError) as caught:
        local.tell(orm("A1"))
    assert "P1" not in caught.value.message
    assert effects(local) == (0, 0, 0)
    with local.database.engine.begin() as c:
        c.exec_driver_sql("DROP TRIGGER no")
    local.accepted(orm("A1"))
    assert [event.sequence for event in local.told()] == [1]


# Dead letters


def test_a_dead_letter_takes_effect_when_its_cause_is_mended(desk, url):
    raw = message(msh("ORM^O01", control_id="M1"), pid(), "ORC|NW", "OBR|1||||||||||||||||||||||||||||||||||NUMBER")
    first = desk.tell(raw)
    assert error(first)[0] == "HL7_FIELD_MISSING"
    key = desk.rows(messages)[0]["id"]
    assert desk.replay(key).state == DEAD
    assert desk.tell(raw) == first
    from radmesh.hl7.orders import Mapping

    mended = Desk(url, clock=desk.clock, mapping=Mapping(paths={"accession_number": ["OBR-35"]}))
    assert mended.replay(key).state == DONE
    (row,) = mended.rows(messages)
    assert (row["state"], row["reason"], row["error"], row["attempts"]) == (DONE, "", "", 3)
    assert mended.found(accession_number="NUMBER") == ("MATCH", ["clinic/NUMBER"])
    # The sender that tries it again hears that all is well now, and again.
    assert code(mended.tell(raw)) == "AA"
    assert mended.tell(raw) == mended.tell(raw)
    assert len(mended.told()) == 1
    mended.close()


def test_a_sender_that_repeats_a_dead_letter_is_heard_when_its_cause_is_mended(desk, url):
    from radmesh.hl7.orders import Mapping

    raw = message(msh("ORM^O01", control_id="M1"), pid(), "ORC|NW", "OBR|1||||||||||||||||||||||||||||||||||NUMBER")
    assert code(desk.tell(raw)) == "AE"
    mended = Desk(url, clock=desk.clock, mapping=Mapping(paths={"accession_number": ["OBR-35"]}))
    answer = mended.tell(raw)
    assert code(answer) == "AA"
    assert mended.tell(raw) == answer
    (row,) = mended.rows(messages)
    assert (row["state"], row["ack_code"]) == (DONE, "AA")
    assert len(mended.told()) == 1
    mended.close()


def test_when_the_last_message_came_is_known_after_a_restart(desk, url):
    assert last_message(desk.database, "clinic") is None
    desk.tell(orm("A1"))
    assert desk.intakes["clinic"].last_message_at == last_message(desk.database, "clinic") == NOW
    assert last_message(desk.database, "town") is None


# Anything at all

PIECES = st.sampled_from(
    [
        "MSH|^~\\&|RIS|CLINIC|RADMESH||20260102030405||ORM^O01|M1|P|2.5.1",
        "MSH|^~\\&|||||||ADT^A40|M2|P|2.5.1",
        "MSH|^~\\&|||||||ADT^A08|M3|P|2.3|||AL|NE",
        "PID|1||P1^^^A~P2^^^B||Doe^John||19700101|M",
        'PID|1||P3||""||""|""',
        "PID|1||||",
        "MRG|P2^^^B",
        "MRG|P3",
        "MRG|P1",
        "ORC|NW|PL1|F1",
        "ORC|CA|PL1|F1||CA",
        "ORC|XO||F2",
        "OBR|1|PL1|F1|CT^Head||||||||||||||A1||||||CT",
        "OBR|2||F2|\\X00\\\\XD800\\\\.br\\\\Z\\",
        "IPC|A1|RP1|2.25.1|SP1|CT",
        "IPC|A2|RP2|2.25.2|SP1|MR",
        "ZDS|2.25.3^x",
        "NTE|1||\u0000\ud7ff\U0001f600",
        "ZZZ",
        "",
    ]
)


@settings(max_examples=examples(60))
@given(st.lists(PIECES, max_size=8), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=3))
def test_whatever_comes_is_answered_once_and_in_the_log(desk, pieces, changes):
    raw = bytearray("\r".join(pieces).encode())
    for where, what in changes:
        raw[where % (len(raw) + 1) : where % (len(raw) + 1)] = what
    before = sum(1 + row["replays"] for row in desk.rows(messages))
    answer = desk.tell(bytes(raw))
    if answer is not None and not answer.startswith(b"BHS"):
        assert parse(answer).get("MSA-1") in ("AA", "AE", "AR", "CA", "CE", "CR")
    assert sum(1 + row["replays"] + row["attempts"] for row in desk.rows(messages)) > before or answer == b""
    # Whatever was said, the patients form no circle, and every order has one.
    known = {row["id"]: row for row in desk.rows(patients)}
    for row in known.values():
        assert not row["merged_into"] or not known[row["merged_into"]]["merged_into"]
    for row in desk.rows(orders):
        assert not known[row["patient"]]["merged_into"]


def test_the_table_has_no_more_than_it_says(local):
    """The log keeps bounded texts; the message itself is kept whole."""
    raw = orm("A1", control_id="M" * 5000, f3="S" * 5000)
    local.accepted(raw)
    (row,) = local.rows(messages)
    assert max(len(str(row[name])) for name in row if name not in ("raw", "ack")) <= 250
    assert bytes(row["raw"]) == raw
    assert local.tell(raw) == bytes(row["ack"])
    with local.database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(messages)).scalar_one() == 1
