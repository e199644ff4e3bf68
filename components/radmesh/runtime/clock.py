"""Time comes in as an argument, so that tests need not wait."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """Return the time of day, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until `event` is set, or for `seconds`; return whether it is set."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the time of day."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the event."""
        return event.wait(seconds)


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._condition = threading.Condition()

    def now(self) -> datetime:
        """Return the time the test has set."""
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Return the seconds the test has let pass."""
        return self._elapsed

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the test has moved the clock that far, or the event is set."""
        until = self._elapsed + seconds
        with self._condition:
            while not event.is_set() and self._elapsed < until:
                self._condition.wait(0.02)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._condition:
            self._elapsed += seconds
            self._condition.notify_all()
