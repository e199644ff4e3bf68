"""How long a client goes on with what may yet succeed."""

import random
import time
from typing import Final

import grpc

from radmesh.runtime.errors import RadmeshError

RETRY_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.2


def may_repeat(failure: RadmeshError, deadline: float) -> bool:
    """Whether the same call may succeed now; waits before it says so, as long as the cluster asks for."""
    if failure.code != grpc.StatusCode.UNAVAILABLE and failure.reason != "TOO_MANY_CALLS":
        return False
    asked = failure.metadata.get("retry_after_ms", "")
    seconds = min(int(asked) / 1000 if asked.isdecimal() else _PAUSE_SECONDS, RETRY_SECONDS)
    # All who were sent away together must not come back together.
    seconds *= random.uniform(1.0, 1.5)  # noqa: S311 - no secret
    if time.monotonic() + seconds > deadline:
        return False
    time.sleep(seconds)
    return True
