"""Sessions are remembered for a moment, audited acts are written once a minute, and never after the fact."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from radmesh.application_server.audit import Audit
from radmesh.application_server.sessions import SessionCache
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Person


@dataclass
class Accounts:
    """Keeps what is appended, or fails."""

    events: list[Any] = field(default_factory=list)
    fails: bool = False

    def AppendAudit(self, request: Any) -> None:
        if self.fails:
            raise RadmeshError("PEER_UNAVAILABLE", "down")
        self.events += request.events


def call(session: str = "s1") -> Any:
    return SimpleNamespace(person=Person("jo", "radiologist", session), peer="192.0.2.1")


def test_a_session_is_asked_for_again_after_two_and_a_half_seconds():
    clock, asked = ManualClock(), []
    cache = SessionCache(lambda token: asked.append(token) or Person(token, "none", token), clock)
    for _ in range(3):
        cache.get("a")
    assert asked == ["a"]
    clock.advance(2.6)
    cache.get("a")
    cache.forget("a")
    cache.get("a")
    assert asked == ["a"] * 3


def test_a_refusal_is_not_remembered():
    def refuse(_token):
        raise RadmeshError("SESSION_EXPIRED", "sign in")

    cache = SessionCache(refuse, ManualClock())
    for _ in range(2):
        with pytest.raises(RadmeshError):
            cache.get("a")


def test_the_same_access_is_written_once_a_minute():
    clock, accounts = ManualClock(), Accounts()
    audit = Audit(accounts, clock)
    for _ in range(3):
        audit.access("STUDY_READ", call(), "1.2")
    audit.access("STUDY_READ", call("s2"), "1.2")
    audit.access("STUDY_SHOW", call(), "1.2")
    assert [(e.action, e.object, e.actor, e.source_address) for e in accounts.events] == [
        ("STUDY_READ", "1.2", "jo", "192.0.2.1"),
        ("STUDY_READ", "1.2", "jo", "192.0.2.1"),
        ("STUDY_SHOW", "1.2", "jo", "192.0.2.1"),
    ]
    clock.advance(61)
    audit.access("STUDY_READ", call(), "1.2")
    assert len(accounts.events) == 4


def test_what_cannot_be_audited_does_not_happen_and_is_tried_again():
    accounts = Accounts(fails=True)
    audit = Audit(accounts, ManualClock())
    with pytest.raises(RadmeshError):
        audit.access("STUDY_READ", call(), "1.2")
    accounts.fails = False
    audit.access("STUDY_READ", call(), "1.2")
    assert len(accounts.events) == 1


def test_a_permit_ends_with_the_role_or_the_session_and_outlives_a_silent_database():
    clock, says = ManualClock(), ["radiologist"]
    person = Person("jo", "radiologist", "s1", "token")

    def fetch(_token: str) -> Person:
        if says[0] in ("SESSION_EXPIRED", "PEER_TIMEOUT"):
            raise RadmeshError(says[0], "no")
        return Person("jo", says[0], "s1", "token")

    sessions = SessionCache(fetch, clock)
    everybody, storers = sessions.permit(person, ("*",)), sessions.permit(person, ("technologist", "radiologist"))
    for says[0], everybody_may, storers_may in (
        ("radiologist", True, True),
        ("technologist", True, True),
        ("PEER_TIMEOUT", True, True),
        ("administrator", True, False),
        ("none", False, False),
        ("SESSION_EXPIRED", False, False),
    ):
        clock.advance(2.6)
        for permit, may in ((everybody, everybody_may), (storers, storers_may)):
            if may:
                permit.check()
            else:
                with pytest.raises(RadmeshError, match=r"SESSION_EXPIRED|ROLE_REFUSED"):
                    permit.check()


def test_a_silent_database_is_asked_by_a_permit_once_in_a_while():
    clock, asked = ManualClock(), []

    def fetch(token: str) -> Person:
        asked.append(token)
        raise RadmeshError("PEER_TIMEOUT", "silent")

    permit = SessionCache(fetch, clock).permit(Person("jo", "radiologist", "s1", "token"), ("*",))
    for _ in range(3):
        permit.check()
    assert asked == ["token"]
    clock.advance(2.6)
    permit.check()
    assert asked == ["token"] * 2
