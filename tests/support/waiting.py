"""Waiting for what will be true."""

import threading
import time
from collections.abc import Callable
from typing import Any

from depth import FULL

_LEAST = 60.0


def wait_for(condition: Callable[[], Any], seconds: float = _LEAST, what: str = "") -> Any:
    """Return the condition's value as soon as it is true.

    A minute is given at least: how fast something is, on a machine that does other things too, is no test's business.
    """
    return _true(condition, max(seconds, _LEAST), what)


def within(condition: Callable[[], Any], seconds: float) -> Any:
    """As `wait_for`, for what is promised within `seconds`: judged at full depth, with a quiet machine, alone."""
    return _true(condition, seconds if FULL else max(seconds, _LEAST), f"promised within {seconds} s")


def comes(condition: Callable[[], Any], seconds: float) -> bool:
    """Whether it becomes true within `seconds`: for what should not."""
    try:
        return bool(_true(condition, seconds, ""))
    except AssertionError:
        return False


def _true(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    never = threading.Event()
    until = time.monotonic() + seconds
    # Longer and longer, and longer than the question takes: asking must not starve what it waits for.
    pause = 0.005
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        if now > until:
            raise AssertionError(f"not true within {seconds} s: {what or condition}")
        never.wait(max(pause, min(2 * (now - asked), 1.0)))
        pause = min(pause * 1.2, 0.2)
