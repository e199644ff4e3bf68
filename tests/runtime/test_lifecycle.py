"""Groups, workers, status, clocks."""

import io
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from depth import allowed
from waiting import wait_for

from radmesh.runtime.clock import Clock, ManualClock, SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Group, Status, Worker
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics


class Part:
    def __init__(self, name: str, events: list[str], *, fails: str = "", seconds: float = 0.0) -> None:
        self.name, self.events, self.fails, self.seconds = name, events, fails, seconds

    def start(self) -> None:
        if self.fails == "start":
            raise RadmeshError("PORT_IN_USE", "taken")
        self.events.append(f"start {self.name}")

    def stop(self, grace: float) -> None:
        self.events.append(f"stop {self.name}")
        if self.fails == "stop":
            raise RuntimeError(self.name)
        time.sleep(min(grace, self.seconds))


def test_a_group_starts_in_order_and_stops_in_reverse() -> None:
    events: list[str] = []
    group = Group([Part("a", events), Part("b", events)])
    group.start()
    group.stop(1)
    group.stop(1)
    assert events == ["start a", "start b", "stop b", "stop a"]


def test_a_failed_start_stops_what_had_started() -> None:
    events: list[str] = []
    group = Group([Part("a", events), Part("b", events), Part("c", events, fails="start"), Part("d", events)])
    with pytest.raises(RadmeshError, match="PORT_IN_USE"):
        group.start()
    assert events == ["start a", "start b", "stop b", "stop a"]


def test_a_part_that_fails_to_stop_keeps_no_other_up() -> None:
    events: list[str] = []
    group = Group([Part("a", events), Part("b", events, fails="stop"), Part("c", events)])
    group.start()
    with pytest.raises(RuntimeError, match="b"):
        group.stop(1)
    assert events[3:] == ["stop c", "stop b", "stop a"]


def test_the_grace_is_for_the_whole_group() -> None:
    group = Group([Part(str(number), [], seconds=10) for number in range(5)])
    group.start()
    start = time.monotonic()
    group.stop(0.4)
    assert 0.3 < time.monotonic() - start < allowed(1.2)


# -- workers ---------------------------------------------------------------------------------------------------------


class Bench:
    """A worker whose steps a test decides."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.status = Status(clock)
        self.metrics = Metrics()
        self.log = io.StringIO()
        self.calls = 0
        self.failures: list[Exception] = []
        self.wait = 1000.0
        self.worker = Worker(
            "registration-pump",
            self._step,
            clock=clock,
            log=Logger("archive-server", "archive-server-0", self.log),
            status=self.status,
            metrics=self.metrics,
            **options,
        )

    def _step(self) -> float:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.wait


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(SystemClock(), most_pause=0.1)
    yield made
    made.worker.stop(5)
    assert not made.worker._thread.is_alive()


def test_a_worker_steps_when_woken(bench: Bench) -> None:
    bench.worker.start()
    wait_for(lambda: bench.calls == 1)
    bench.worker.wake()
    wait_for(lambda: bench.calls == 2)


def test_a_worker_steps_again_by_itself() -> None:
    clock = ManualClock()
    bench = Bench(clock)
    bench.wait = 60
    bench.worker.start()
    wait_for(lambda: bench.calls == 1)
    clock.advance(59)
    assert bench.calls == 1
    clock.advance(2)
    wait_for(lambda: bench.calls == 2)
    bench.worker.stop(5)


def test_a_worker_survives_whatever_its_step_raises(bench: Bench) -> None:
    bench.failures = [RadmeshError("PEER_UNAVAILABLE", "gone"), ValueError("Doe^John"), KeyError("x")]
    seen: list[str] = []
    bench.status.clear_alarm = lambda reason, clear=bench.status.clear_alarm: (seen.append(reason), clear(reason))[1]  # type: ignore[method-assign]
    bench.worker.start()
    wait_for(lambda: bench.calls == 4)
    wait_for(lambda: seen == ["REGISTRATION_PUMP_FAILING"])
    assert bench.status.alarms() == []
    value = bench.metrics.registry.get_sample_value("radmesh_worker_failures_total", {"worker": "registration-pump"})
    assert value == 3
    lines = [json.loads(line) for line in bench.log.getvalue().splitlines()]
    assert [line.get("reason", line.get("error")) for line in lines] == ["PEER_UNAVAILABLE", "ValueError", "KeyError"]
    assert "Doe" not in bench.log.getvalue()


def test_a_worker_that_keeps_failing_keeps_its_alarm_and_does_not_spin() -> None:
    bench = Bench(SystemClock(), most_pause=0.2)
    bench.failures = [RadmeshError("STORAGE_FULL", "no room") for _ in range(1000)]
    bench.worker.start()
    alarm = wait_for(bench.status.alarms)[0]
    assert alarm[:2] == ("REGISTRATION_PUMP_FAILING", "STORAGE_FULL: no room")
    threading.Event().wait(0.8)
    assert bench.calls < 12
    assert bench.status.alarms()[0][2] == alarm[2]
    bench.worker.stop(5)


def test_a_worker_stops_during_a_long_wait_and_before_its_start(bench: Bench) -> None:
    bench.worker.start()
    wait_for(lambda: bench.calls == 1)
    start = time.monotonic()
    bench.worker.stop(5)
    assert time.monotonic() - start < allowed(1)
    never = Bench(SystemClock())
    never.worker.stop(1)
    assert never.calls == 0


# -- status and clocks -----------------------------------------------------------------------------------------------


def test_a_figure_that_fails_hides_no_other() -> None:
    status = Status(SystemClock())
    status.figure("broken", lambda: 1 / 0)
    status.figure("objects", lambda: 3)
    assert status.figures() == {"objects": 3.0}


def test_an_alarm_keeps_the_time_it_began() -> None:
    clock = ManualClock()
    status = Status(clock)
    begin = clock.now()
    status.raise_alarm("STORAGE_FULL", "5 % left")
    clock.advance(60)
    status.raise_alarm("STORAGE_FULL", "4 % left")
    assert status.alarms() == [("STORAGE_FULL", "4 % left", begin)]
    status.clear_alarm("STORAGE_FULL")
    status.clear_alarm("STORAGE_FULL")
    assert status.alarms() == []


def test_the_manual_clock_moves_when_told() -> None:
    clock = ManualClock()
    begin = clock.now()
    event = threading.Event()
    waited: list[bool] = []
    thread = threading.Thread(target=lambda: waited.append(clock.wait(event, 10)))
    thread.start()
    clock.advance(11)
    thread.join(60)
    assert waited == [False]
    assert clock.now() - begin == timedelta(seconds=11)
    event.set()
    assert clock.wait(event, 1000)


def test_the_systems_clock_is_aware_and_in_utc() -> None:
    assert SystemClock().now().utcoffset() == timedelta(0)
    event = threading.Event()
    assert not SystemClock().wait(event, 0.001)
