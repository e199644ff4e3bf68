"""kill -9 of the real process at every step: what was acknowledged is there, what was not is done once."""

import pytest
from connectivity_mesh import Process
from connectivity_support import a40, code, orm, pid
from waiting import wait_for

from radmesh.runtime.errors import RadmeshError

pytestmark = pytest.mark.timeout(600)


def told(process: Process, *accessions: str) -> None:
    """Wait until the database was told of exactly these orders, in this order."""
    wait_for(lambda: process.told.accessions == list(accessions), 30)
    (last,) = process.told.last.values()
    assert last[1] == len(process.told.events)


# Intake


@pytest.mark.parametrize(
    "step",
    ["before INSERT INTO orders", "uncommitted INSERT INTO messages", "committed INSERT INTO messages"],
)
def test_a_message_that_was_not_answered_has_one_effect_when_it_comes_again(processes, step):
    """ "committed" is between commit and acknowledgement: the replay gets the answer that was never sent."""
    process = processes()
    process.start(dies=[step])
    raw = orm("A1", control_id="M1")
    assert process.tell(raw) is None  # the process, and so the connection, ended
    process.died()
    process.start()
    listed = process.messages()
    assert [(m.ack_code, m.replays) for m in listed] == ([("AA", 0)] if step.startswith("committed") else [])
    answer = process.tell(raw)
    assert code(answer) == "AA"
    (message,) = process.messages()
    assert process.message(message.id).ack == answer
    assert message.replays == (1 if step.startswith("committed") else 0)
    assert process.tell(raw) == answer
    told(process, "A1")
    assert process.verify(patient_id="P1", accession_number="A1").orders[0].order_id == "default/A1"


def test_what_was_acknowledged_outlives_a_kill_at_any_moment(processes):
    """A sender that sends until it is answered, while the process is killed again and again."""
    process = processes()
    numbers = [f"A{n}" for n in range(60)]
    answers = {}
    process.start()
    for n, number in enumerate(numbers):
        raw = orm(number, pid(f"P{n}"), control_id=f"M{n}")
        while number not in answers:
            try:
                answer = process.tell(raw)
            except OSError:
                answer = None
            if answer is None:
                process.died()
                process.start()
                continue
            answers[number] = answer
        if n % 20 == 10:
            assert process.process is not None
            process.process.kill()
    assert {code(answer) for answer in answers.values()} == {"AA"}
    told(process, *numbers)
    assert {m.control_id for m in process.messages()} == {f"M{n}" for n in range(60)}
    for n in range(60):
        assert process.tell(orm(f"A{n}", pid(f"P{n}"), control_id=f"M{n}")) == answers[f"A{n}"]


# Publishing


@pytest.mark.parametrize(
    "step", ["before DELETE FROM events", "uncommitted DELETE FROM events", "committed DELETE FROM events"]
)
def test_events_are_told_once_though_the_teller_dies_at_any_step(processes, step):
    process = processes()
    process.told.stop()
    process.start()
    for raw in (orm("A1"), orm("A2"), a40("P1", "P9")):
        assert code(process.tell(raw)) == "AA"
    process.kill()
    process.told.start()
    process.start(dies=[step])
    process.died()
    process.start()
    assert code(process.tell(orm("A3", pid("P3")))) == "AA"
    told(process, "A1", "A2", "A3")
    assert process.told.kinds == ["order", "order", "merge", "order"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_events_are_told_once_though_the_database_dies_at_any_step(processes, when):
    """It dies before it has applied them, and after that but before it has answered."""
    process = processes()
    process.start()
    deaths = 3

    def die(_name: str) -> None:
        nonlocal deaths
        if deaths:
            deaths -= 1
            raise RadmeshError("DATABASE_UNAVAILABLE", "it died")

    setattr(process.told, when, die)
    for n in range(5):
        assert code(process.tell(orm(f"A{n}"))) == "AA"
    told(process, *(f"A{n}" for n in range(5)))
    assert not deaths
