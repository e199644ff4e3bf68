"""Settings of the Python interpreter for processes that serve."""

import gc
import sys
from typing import Final

# A thread that wakes up waits this long for one that computes: 5 ms, the default, is more than storing an object takes.
_SWITCH_SECONDS: Final = 0.0005
# Containers between two collections: nearly all that an object leaves behind is freed without one.
_CONTAINERS: Final = 5_000


def settle() -> None:
    """Call this when everything is loaded: what is there now is there for good, and is not looked at again."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_CONTAINERS, 20, 50)
