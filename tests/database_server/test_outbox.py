"""The outbox: order for each key, again after a failure, and a crash that neither loses nor doubles an effect."""

import threading
from collections import defaultdict

import pytest
import sqlalchemy as sa
from database_support import Parts

from radmesh.database_server.schema import outbox as table
from radmesh.sql import outbox
from radmesh.sql.outbox import Dispatcher


class Receiver:
    """A consumer that is idempotent by what a row says, and fails when told to."""

    def __init__(self) -> None:
        self.effects: dict[str, list[str]] = defaultdict(list)
        self.calls: list[tuple[int, str, str]] = []
        self.fails: set[str] = set()
        self._done: set[tuple[str, str]] = set()

    def __call__(self, number: int, key: str, payload: str) -> None:
        self.calls.append((number, key, payload))
        if key in self.fails:
            raise ConnectionError("nobody there, and a patient's name")
        if (key, payload) not in self._done:
            self._done.add((key, payload))
            self.effects[key].append(payload)


def add(parts: Parts, key: str, *payloads: str, topic: str = "reports") -> None:
    def work(connection: sa.Connection) -> None:
        for payload in payloads:
            outbox.append(connection, table, topic, key, payload)

    parts.database.write(work)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def dispatcher(parts: Parts, receiver: Receiver) -> Dispatcher:
    return Dispatcher(parts.database, parts.clock, table, "reports", receiver)


def test_rows_go_out_in_order_and_are_gone(parts: Parts, receiver: Receiver, dispatcher: Dispatcher) -> None:
    add(parts, "a", "1", "2")
    add(parts, "b", "1")
    add(parts, "a", "3")
    add(parts, "a", "x", topic="other")
    assert dispatcher.step() > 0
    assert receiver.effects == {"a": ["1", "2", "3"], "b": ["1"]}
    assert [row["topic"] for row in parts.rows(table)] == ["other"]


def test_a_decision_that_failed_tells_nothing(parts: Parts, receiver: Receiver, dispatcher: Dispatcher) -> None:
    def work(connection: sa.Connection) -> None:
        outbox.append(connection, table, "reports", "a", "1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parts.database.write(work)
    dispatcher.step()
    assert receiver.calls == []


def test_a_receiver_that_fails_gets_it_again(parts: Parts, receiver: Receiver, dispatcher: Dispatcher) -> None:
    add(parts, "bad", "1", "2")
    add(parts, "good", "1", "2")
    receiver.fails.add("bad")
    dispatcher.step()
    # One key's failure holds up its own rows, and no other's.
    assert receiver.effects == {"good": ["1", "2"]}
    assert [payload for _, key, payload in receiver.calls if key == "bad"] == ["1"]
    pauses = []
    for _ in range(12):
        before = len(receiver.calls)
        waited = 0
        while len(receiver.calls) == before:
            parts.advance(0.5)
            waited += 1
            dispatcher.step()
        pauses.append(waited * 0.5)
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == 300.0
    # What is kept of an error is its kind: its text may hold what a patient is called.
    assert parts.rows(table)[0]["error"] == "ConnectionError"
    receiver.fails.clear()
    parts.advance(300)
    dispatcher.step()
    assert receiver.effects["bad"] == ["1", "2"]
    assert parts.rows(table) == []


def test_a_crash_between_effect_and_removal_doubles_nothing(parts: Parts, receiver: Receiver) -> None:
    add(parts, "a", "1", "2")

    class Crash(BaseException):
        pass

    def dies(number: int, key: str, payload: str) -> None:
        receiver(number, key, payload)
        raise Crash

    with pytest.raises(Crash):
        Dispatcher(parts.database, parts.clock, table, "reports", dies).step()
    assert receiver.effects == {"a": ["1"]}
    Dispatcher(parts.database, parts.clock, table, "reports", receiver).step()
    assert receiver.effects == {"a": ["1", "2"]}
    assert [payload for _, _, payload in receiver.calls] == ["1", "1", "2"]
    assert len({number for number, _, _ in receiver.calls}) == 2


def test_rows_that_come_meanwhile(parts: Parts, receiver: Receiver, dispatcher: Dispatcher) -> None:
    def write() -> None:
        for number in range(30):
            add(parts, str(number % 3), str(number))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        dispatcher.step()
    writer.join(60)
    dispatcher.step()
    for key in "012":
        assert receiver.effects[key] == [str(n) for n in range(30) if str(n % 3) == key]
