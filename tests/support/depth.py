"""How deep the tests dig: RADMESH_TEST_DEPTH=full, or ci (the default): everything is proved, less often."""

import os

FULL = os.environ.get("RADMESH_TEST_DEPTH", "ci") == "full"


def times(full: int, ci: int) -> int:
    """How often something is done."""
    return full if FULL else ci


def examples(full: int) -> int:
    """How many examples Hypothesis makes."""
    return times(full, max(5, full // 3))


def allowed(seconds: float) -> float:
    """How long it may take what is promised within `seconds`: five times as long where other tests run beside it."""
    return seconds if FULL else 5 * seconds
