"""Who a token belongs to, for a moment: a cache in front of AccountService.GetSession."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from radmesh.runtime.clock import Clock

# A role change must be in force within 5 s (AS1); the cache holds half of that.
_KEEP_SECONDS = 2.5
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in person, with the role as it was at most 2.5 s ago."""

    session_id: str
    user: str
    role: str


class SessionCache:
    """Looks sessions up with `fetch`, and remembers each for 2.5 s. Refusals are not remembered."""

    def __init__(self, fetch: Callable[[str], Session], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, Session]] = OrderedDict()

    def get(self, token: str) -> Session:
        """Return the token's session.

        Raises:
            RadmeshError: SESSION_EXPIRED, and whatever the database's absence raises.
        """
        now = self._clock.monotonic()
        with self._lock:
            known = self._known.get(token)
        if known and now - known[0] < _KEEP_SECONDS:
            return known[1]
        session = self._fetch(token)
        with self._lock:
            self._known[token] = (now, session)
            self._known.move_to_end(token)
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
        return session

    def forget(self, token: str) -> None:
        """Drop a token that signed out."""
        with self._lock:
            self._known.pop(token, None)
