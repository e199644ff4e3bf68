"""Users, sessions, the throttle, the first administrator, the audit table."""

import hashlib
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from database_support import Parts, at_once

from radmesh.database_server.accounts import ADMINISTRATOR, NONE, RADIOLOGIST, TECHNOLOGIST, Accounts
from radmesh.database_server.schema import sessions, users
from radmesh.runtime.errors import RadmeshError

PASSWORD = "correct horse battery"


def user(parts: Parts, name: str = "doe", role: int = RADIOLOGIST, password: str = PASSWORD) -> dict[str, Any]:
    return parts.accounts.create(name, "Jane Doe", role, password)


def reason_of(call: Any) -> str:
    with pytest.raises(RadmeshError) as error:
        call()
    return error.value.reason


# -- the first administrator


def test_the_first_start_makes_an_administrator(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADMESH_ADMIN_PASSWORD", raising=False)
    parts.accounts.ensure_administrator(tmp_path)
    path = tmp_path / "admin-password"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    password = path.read_text().strip()
    assert len(password) >= 20
    _, session = parts.accounts.sign_in("admin", password)
    assert session["user"]["role"] == ADMINISTRATOR
    # Once: a second start neither changes the password nor brings back a file that was removed.
    path.unlink()
    parts.accounts.ensure_administrator(tmp_path)
    assert not path.exists()
    parts.accounts.sign_in("admin", password)


def test_a_start_that_died_between_file_and_user_goes_on(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RADMESH_ADMIN_PASSWORD", raising=False)
    (tmp_path / "admin-password").write_text("the one of the first try\n")
    parts.accounts.ensure_administrator(tmp_path)
    parts.accounts.sign_in("admin", "the one of the first try")


def test_the_password_of_the_environment(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADMESH_ADMIN_PASSWORD", "from the environment")
    parts.accounts.ensure_administrator(tmp_path)
    parts.accounts.sign_in("admin", "from the environment")
    assert not (tmp_path / "admin-password").exists()


# -- users


def test_names_are_compared_without_regard_to_case(parts: Parts) -> None:
    assert user(parts, " Doe ")["name"] == "doe"
    assert reason_of(lambda: user(parts, "DOE")) == "USER_EXISTS"
    assert parts.accounts.sign_in("dOE", PASSWORD)[1]["user"]["name"] == "doe"


def test_what_a_user_must_be(parts: Parts) -> None:
    for name in ("", "a b", "a" * 65, "ärzte", "a\0b", "a/b", "a\nb"):
        assert reason_of(partial(user, parts, name)) == "FIELD_INVALID", name
    for password in ("", "short", "x" * 11, "x" * 1025):
        assert reason_of(partial(user, parts, password=password)) == "PASSWORD_WEAK"
    assert reason_of(lambda: user(parts, role=9)) == "FIELD_INVALID"
    user(parts, "a" * 64, password="x" * 12)
    user(parts, "b", password="x" * 1024)


def test_passwords_are_kept_as_argon2id_alone(parts: Parts) -> None:
    user(parts)
    kept = parts.rows(users)[0]["password_hash"]
    assert kept.startswith("$argon2id$")
    token, _ = parts.accounts.sign_in("doe", PASSWORD)
    assert token not in repr(parts.rows(sessions))
    assert bytes(parts.rows(sessions)[0]["digest"]) == hashlib.sha256(token.encode()).digest()


def test_users_are_listed_changed_and_removed(parts: Parts) -> None:
    for name in ("c", "a", "b"):
        user(parts, name)
    names, token = [], ""
    while True:
        rows, token = parts.accounts.users(2, token)
        names += [row["name"] for row in rows]
        if not token:
            break
    assert names == ["a", "b", "c"]
    changed = parts.accounts.update("A", display_name="", role=TECHNOLOGIST, password="")
    assert (changed["display_name"], changed["role"]) == ("", TECHNOLOGIST)
    assert parts.accounts.update("a", display_name=None, role=0, password="")["role"] == TECHNOLOGIST
    parts.accounts.delete("a")
    calls: tuple[Callable[[], Any], ...] = (
        lambda: parts.accounts.delete("a"),
        lambda: parts.accounts.update("a", display_name="x", role=0, password=""),
        lambda: parts.accounts.user("a\0"),
    )
    for call in calls:
        assert reason_of(call) == "USER_NOT_FOUND"


def test_the_last_administrator_stays(parts: Parts) -> None:
    user(parts, "a", ADMINISTRATOR)
    assert reason_of(lambda: parts.accounts.delete("a")) == "LAST_ADMINISTRATOR"
    demote: dict[str, Any] = {"display_name": None, "role": NONE, "password": ""}
    assert reason_of(lambda: parts.accounts.update("a", **demote)) == "LAST_ADMINISTRATOR"
    user(parts, "b", ADMINISTRATOR)
    answers = at_once(
        lambda: parts.accounts.update("a", **demote),
        lambda: parts.accounts.delete("b"),
    )
    refused = [answer.reason for answer in answers if isinstance(answer, RadmeshError)]
    assert refused == ["LAST_ADMINISTRATOR"]
    assert [row["role"] for row in parts.rows(users)].count(ADMINISTRATOR) == 1


# -- sessions


def test_a_session_has_the_role_as_it_is_now(parts: Parts) -> None:
    user(parts)
    token, session = parts.accounts.sign_in("doe", PASSWORD)
    assert len(token) >= 43
    assert parts.accounts.session(token)["session_id"] == session["session_id"]
    parts.accounts.update("doe", display_name=None, role=NONE, password="")
    assert parts.accounts.session(token)["user"]["role"] == NONE
    for wrong in ("", token[:-1], token + "x", "\0", "é"):
        assert reason_of(partial(parts.accounts.session, wrong)) == "SESSION_EXPIRED"
    parts.accounts.sign_out(token)
    parts.accounts.sign_out(token)
    assert reason_of(lambda: parts.accounts.session(token)) == "SESSION_EXPIRED"


def test_a_session_ends_with_its_user_and_password(parts: Parts) -> None:
    user(parts)
    token, _ = parts.accounts.sign_in("doe", PASSWORD)
    parts.accounts.update("doe", display_name=None, role=0, password="another password")
    assert reason_of(lambda: parts.accounts.session(token)) == "SESSION_EXPIRED"
    assert reason_of(lambda: parts.accounts.sign_in("doe", PASSWORD)) == "PASSWORD_WRONG"
    token, _ = parts.accounts.sign_in("doe", "another password")
    parts.accounts.delete("doe")
    user(parts)
    assert reason_of(lambda: parts.accounts.session(token)) == "SESSION_EXPIRED"


@pytest.mark.parametrize("seconds", [60.0, 600.0, 12 * 3600.0])
def test_a_session_lives_while_it_is_used(parts: Parts, seconds: float) -> None:
    accounts = Accounts(parts.database, parts.feed, parts.clock, seconds)
    user(parts)
    token, _ = accounts.sign_in("doe", PASSWORD)
    for _ in range(10):
        parts.advance(seconds / 2)
        expire = accounts.session(token)["expire_time"]
        assert expire >= parts.rows(sessions)[0]["expire_time"]
    parts.advance(seconds + 1)
    assert reason_of(lambda: accounts.session(token)) == "SESSION_EXPIRED"
    accounts.sign_in("doe", PASSWORD)
    assert len(parts.rows(sessions)) == 1


# -- the throttle


def test_guessing_is_slowed_down(parts: Parts) -> None:
    user(parts)
    for name in ("doe", "nobody"):
        for _ in range(10):
            assert reason_of(partial(parts.accounts.sign_in, name, "wrong")) == "PASSWORD_WRONG"
        with pytest.raises(RadmeshError) as error:
            parts.accounts.sign_in(name, PASSWORD)
        assert error.value.reason == "TOO_MANY_ATTEMPTS"
        assert 0 < int(error.value.metadata["retry_after_ms"]) <= 60_000
    user(parts, "roe")
    parts.accounts.sign_in("roe", PASSWORD)
    parts.advance(61)
    parts.accounts.sign_in("doe", PASSWORD)


def test_a_flood_of_guesses_is_not_faster(parts: Parts) -> None:
    """Guesses that come at once are counted before the first of them is answered."""
    user(parts)
    answers = at_once(*(lambda: parts.accounts.sign_in("doe", "wrong") for _ in range(30)))
    reasons = [answer.reason for answer in answers]
    assert reasons.count("PASSWORD_WRONG") <= 10
    assert reasons.count("TOO_MANY_ATTEMPTS") >= 20


def test_what_no_name_can_be_is_a_wrong_password(parts: Parts) -> None:
    for name in ("", "a\0b", "x" * 5000, "Ω", "' OR 1=1 --"):
        assert reason_of(partial(parts.accounts.sign_in, name, "wrong")) == "PASSWORD_WRONG", name
    user(parts)
    assert reason_of(lambda: parts.accounts.sign_in("doe", "x" * 100_000)) == "PASSWORD_WRONG"


# -- audit


def event(number: int, **values: Any) -> dict[str, Any]:
    return {
        "time": number,
        "action": "SIGN_IN",
        "actor": "doe",
        "source_address": "",
        "outcome": "SUCCESS",
        "object": "",
        "detail": "",
        **values,
    }


def test_audit_events_are_listed_newest_first(parts: Parts) -> None:
    parts.accounts.append_audit([event(n) for n in range(3)])
    parts.accounts.append_audit([event(3, action="STUDY_READ", object="1.2", actor="roe"), event(4, object="1.2")])
    parts.accounts.append_audit([])
    times, token = [], ""
    while True:
        rows, token = parts.accounts.audit("", "", "", 2, token)
        times += [row["time"] for row in rows]
        if not token:
            break
    assert times == [4, 3, 2, 1, 0]

    def listed(action: str = "", actor: str = "", thing: str = "") -> list[int]:
        return [row["time"] for row in parts.accounts.audit(action, actor, thing, 100, "")[0]]

    assert listed("STUDY_READ") == [3]
    assert listed(actor="doe") == [4, 2, 1, 0]
    assert listed(thing="1.2") == [4, 3]
    assert listed("SIGN_IN", thing="1.2") == [4]


def test_a_password_changed_while_it_is_checked(parts: Parts) -> None:
    user(parts)
    check = parts.accounts._check

    def slow(name: str, password: str) -> dict[str, Any]:
        row = check(name, password)
        parts.accounts.update("doe", display_name=None, role=0, password="another password")
        return row

    parts.accounts._check = slow  # type: ignore[method-assign]
    assert reason_of(lambda: parts.accounts.sign_in("doe", PASSWORD)) == "PASSWORD_WRONG"
    assert parts.rows(sessions) == []
