"""Start and stop: services, groups of them, workers, and what a process says of itself."""

import enum
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Protocol

from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics


class Service(Protocol):
    """Something that runs."""

    def start(self) -> None:
        """Return when it serves."""
        ...

    def stop(self, grace: float) -> None:
        """Finish what has begun, for `grace` seconds at most, and end."""
        ...


class State(enum.Enum):
    """Where a service is in its life."""

    NEW = "NEW"
    STARTING = "STARTING"
    SERVING = "SERVING"
    DRAINING = "DRAINING"
    TERMINATED = "TERMINATED"


class Group:
    """Services that start in order and stop in reverse; a failed start stops what had started."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = list(services)
        self._running: list[Service] = []

    def start(self) -> None:
        """Start all."""
        try:
            for service in self._services:
                service.start()
                self._running.append(service)
        except BaseException:
            self.stop(1.0)
            raise

    def stop(self, grace: float) -> None:
        """Stop all, the last started first, in `grace` seconds together; one that fails does not keep the others up."""
        until = time.monotonic() + grace
        failures = []
        while self._running:
            try:
                self._running.pop().stop(max(0.0, until - time.monotonic()))
            except Exception as error:  # noqa: BLE001 - raised when the others have stopped
                failures.append(error)
        if failures:
            raise failures[0]


class Status:
    """What a component says of itself: state, figures, alarms. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._figures: dict[str, Callable[[], float]] = {}
        self._alarms: dict[str, tuple[str, datetime]] = {}
        self.start_time = clock.now()
        self.state = State.STARTING

    def figure(self, name: str, value: Callable[[], float]) -> None:
        """Show a figure; `value` is called when somebody asks."""
        with self._lock:
            self._figures[name] = value

    def raise_alarm(self, reason: str, message: str) -> None:
        """Show a condition that somebody should look at, until it is cleared."""
        with self._lock:
            since = self._alarms[reason][1] if reason in self._alarms else self._clock.now()
            self._alarms[reason] = (message, since)

    def clear_alarm(self, reason: str) -> None:
        """The condition is over."""
        with self._lock:
            self._alarms.pop(reason, None)

    def figures(self) -> dict[str, float]:
        """Return the figures as they are now; one that fails is left out: it must not hide the others."""
        with self._lock:
            sources = dict(self._figures)
        found = {}
        for name, source in sources.items():
            with suppress(Exception):
                found[name] = float(source())
        return found

    def alarms(self) -> list[tuple[str, str, datetime]]:
        """Return (reason, message, since) of every alarm."""
        with self._lock:
            return [(reason, message, since) for reason, (message, since) in self._alarms.items()]


_ALARMING_FAILURES = 3


class Worker:
    """A named thread that calls `step` again and again.

    `step` returns the seconds to wait before the next call; `wake` cuts the wait short. A `step` that raises is called
    again after a pause that grows to `most_pause`, with an alarm until it succeeds: a worker never dies silently.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float],
        *,
        clock: Clock,
        log: Logger,
        status: Status,
        metrics: Metrics,
        most_pause: float = 5.0,
    ) -> None:
        self.name = name
        self._step = step
        self._clock = clock
        self._log = log
        self._status = status
        self._failures = metrics.counter("radmesh_worker_failures").labels(name)
        self._most_pause = most_pause
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether a long step should end early."""
        return self._stop.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Call `step` now, or again if it is running."""
        self._wake.set()

    def stop(self, grace: float) -> None:
        """End the thread after the step that runs."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(grace)

    def _run(self) -> None:
        alarm = f"{self.name.upper().replace('-', '_')}_FAILING"
        pause, failures = 0.0, 0
        while not self._stop.is_set():
            self._wake.clear()
            try:
                wait = self._step()
                if failures:
                    self._status.clear_alarm(alarm)
                pause, failures = 0.0, 0
            except Exception as error:  # noqa: BLE001 - whatever it is, the worker goes on
                pause = min(max(0.05, pause * 2), self._most_pause)
                wait = pause
                failures += 1
                self._failures.inc()
                if isinstance(error, RadmeshError):
                    self._log.warning("worker failed", worker=self.name, reason=error.reason, text=error.message)
                    text = f"{error.reason}: {error.message}"
                else:
                    self._log.exception("worker failed", error, worker=self.name)
                    text = type(error).__name__
                # Others start, and start again: once or twice is nothing that somebody should look at.
                if failures >= _ALARMING_FAILURES:
                    self._status.raise_alarm(alarm, text)
            if not self._stop.is_set():
                self._clock.wait(self._wake, wait)
