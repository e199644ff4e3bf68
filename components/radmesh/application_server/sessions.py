"""Who a token belongs to, for a moment: a cache in front of AccountService.GetSession."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final

from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Person

# A role change must be in force within 5 s (AS1); the cache holds half of that.
_KEEP_SECONDS: Final = 2.5
_MOST: Final = 10_000


class SessionCache:
    """Looks sessions up with `fetch`, and remembers each for 2.5 s. Refusals are not remembered."""

    def __init__(self, fetch: Callable[[str], Person], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, Person]] = OrderedDict()

    def get(self, token: str) -> Person:
        """Return the token's person.

        Raises:
            RadmeshError: SESSION_EXPIRED, and whatever the database's absence raises.
        """
        if (known := self.known(token)) is not None:
            return known
        now = self._clock.monotonic()
        person = self._fetch(token)
        with self._lock:
            self._known[token] = (now, person)
            self._known.move_to_end(token)
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
        return person

    def known(self, token: str) -> Person | None:
        """Return the token's person if that is known without asking."""
        with self._lock:
            known = self._known.get(token)
        return known[1] if known and self._clock.monotonic() - known[0] < _KEEP_SECONDS else None

    def permit(self, person: Person, roles: Collection[str]) -> "Permit":
        """Return what says during a long call whether it may go on."""
        return Permit(self, person, roles, self._clock)

    def forget(self, token: str) -> None:
        """Drop a token that signed out."""
        with self._lock:
            self._known.pop(token, None)


class Permit:
    """Whether a call that may last for hours may go on: its session, and the person's role, may end meanwhile (AS1)."""

    def __init__(self, sessions: SessionCache, person: Person, roles: Collection[str], clock: Clock) -> None:
        self._sessions = sessions
        self._token = person.token
        self._roles = roles
        self._clock = clock
        self._silent_until = 0.0

    def check(self) -> None:
        """Return if the call may go on; costs nothing most of the time.

        While the database is silent no role can have been changed, and what had begun goes on.

        Raises:
            RadmeshError: SESSION_EXPIRED, ROLE_REFUSED.
        """
        if self._clock.monotonic() < self._silent_until:
            return
        try:
            person = self._sessions.get(self._token)
        except RadmeshError as error:
            if not error.transient:
                raise
            self._silent_until = self._clock.monotonic() + _KEEP_SECONDS
            return
        if person.role not in self._roles and not ("*" in self._roles and person.role != "none"):
            raise RadmeshError("ROLE_REFUSED", f"the role has become {person.role}, which may not do this")
