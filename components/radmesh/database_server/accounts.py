"""Users, sessions and the audit table."""

import hashlib
import os
import re
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import argon2
import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.queries import Cursor, page
from radmesh.database_server.schema import audit, sessions, users
from radmesh.database_server.texts import clean
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import write_atomic
from radmesh.sql.engine import Database, micros, time_of

NONE, TECHNOLOGIST, RADIOLOGIST, ADMINISTRATOR = 1, 2, 3, 4
_NAME: Final = re.compile(r"[a-z0-9._@-]{1,64}")
_ATTEMPTS, _ATTEMPT_SECONDS, _PAUSE_SECONDS = 10, 300.0, 60.0
# A session's use is written at most once in this time.
_TOUCH: Final = timedelta(minutes=5)


class Accounts:
    """Who may sign in, and who has."""

    def __init__(self, database: Database, feed: Feed, clock: Clock, session_seconds: float) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._session = timedelta(seconds=session_seconds)
        self._hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        # Verified against when there is no such user: the answer takes as long as for one that exists.
        self._nobody = self._hasher.hash(secrets.token_hex(16))
        # Hashing takes memory: a flood of sign-ins must not take all of it.
        self._hashing = threading.BoundedSemaphore(4)
        self._guessing = tuple(threading.Lock() for _ in range(64))
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def ensure_administrator(self, folder: Path) -> None:
        """At the first start make the user admin, with RADMESH_ADMIN_PASSWORD or a random one in folder/admin-password.

        Raises:
            RadmeshError: PASSWORD_WEAK.
        """
        with self._database.read() as connection:
            if connection.execute(sa.select(users.c.name).limit(1)).first() is not None:
                return
        password = os.environ.get("RADMESH_ADMIN_PASSWORD", "")
        given = bool(password)
        if not given:
            path = folder / "admin-password"
            # A start that was killed between the file and the user goes on with the password of the file.
            password = path.read_text().strip() if path.exists() else secrets.token_urlsafe(18)
            write_atomic(path, (password + "\n").encode())
        self.create("admin", "Administrator", ADMINISTRATOR, password, least=1 if given else 12)

    # -- users

    def _check_name(self, name: str) -> str:
        name = name.strip().lower()
        if _NAME.fullmatch(name) is None:
            raise RadmeshError(
                "FIELD_INVALID", "name: 1 to 64 characters of a-z, 0-9, '.', '_', '-', '@'", metadata={"field": "name"}
            )
        return name

    def _hash(self, password: str, least: int = 12) -> str:
        if not least <= len(password) <= 1024:
            raise RadmeshError("PASSWORD_WEAK", "a password has 12 to 1,024 characters")
        with self._hashing:
            return self._hasher.hash(password)

    def create(self, name: str, display_name: str, role: int, password: str, *, least: int = 12) -> dict[str, Any]:
        """Add a user.

        Raises:
            RadmeshError: FIELD_INVALID, PASSWORD_WEAK, USER_EXISTS.
        """
        name = self._check_name(name)
        if not NONE <= role <= ADMINISTRATOR:
            raise RadmeshError(
                "FIELD_INVALID", "role: none, technologist, radiologist, administrator", metadata={"field": "role"}
            )
        password_hash = self._hash(password, least)

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            values = {
                "name": name,
                "display_name": clean(display_name, 256),
                "role": role,
                "password_hash": password_hash,
                "create_time": micros(self._clock.now()),
            }
            if not self._database.add(connection, users, values):
                raise RadmeshError("USER_EXISTS", f"there is a user {name} already")
            return None, [("user", name)]

        self._feed.write(work)
        return self.user(name)

    def user(self, name: str) -> dict[str, Any]:
        """Return a user.

        Raises:
            RadmeshError: USER_NOT_FOUND.
        """
        name = name.strip().lower()
        row = None
        if _NAME.fullmatch(name):
            with self._database.read() as connection:
                row = connection.execute(sa.select(users).where(users.c.name == name)).mappings().first()
        if row is None:
            raise RadmeshError("USER_NOT_FOUND", "there is no such user")
        return dict(row)

    def users(self, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of users by name, and the next token."""
        cursor = Cursor("users")
        position = cursor.read(token) or [""]
        with self._database.read() as connection:
            query = sa.select(users).where(users.c.name > position[0]).order_by(users.c.name).limit(size + 1)
            rows = [dict(row) for row in connection.execute(query).mappings()]
        more = len(rows) > size
        rows = rows[:size]
        return rows, cursor.write(rows[-1]["name"]) if more else ""

    def _keep_an_administrator(self, connection: sa.Connection, name: str) -> None:
        query = sa.select(users.c.name).where(users.c.role == ADMINISTRATOR)
        others = connection.execute(query if self._database.sqlite else query.with_for_update()).scalars().all()
        if name in others and len(others) == 1:
            raise RadmeshError("LAST_ADMINISTRATOR", f"{name} is the only administrator")

    def update(self, name: str, *, display_name: str | None, role: int, password: str) -> dict[str, Any]:
        """Change a user; a new password ends the user's sessions.

        Raises:
            RadmeshError: USER_NOT_FOUND, PASSWORD_WEAK, LAST_ADMINISTRATOR, FIELD_INVALID.
        """
        name = self.user(name)["name"]
        values: dict[str, Any] = {}
        if display_name is not None:
            values["display_name"] = clean(display_name, 256)
        if password:
            values["password_hash"] = self._hash(password)
        if role:
            if not NONE <= role <= ADMINISTRATOR:
                raise RadmeshError("FIELD_INVALID", "role: no such role", metadata={"field": "role"})
            values["role"] = role

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            if role and role != ADMINISTRATOR:
                self._keep_an_administrator(connection, name)
            if values:
                connection.execute(sa.update(users).where(users.c.name == name).values(values))
            if password:
                connection.execute(sa.delete(sessions).where(sessions.c.user_name == name))
            return None, [("user", name)]

        self._feed.write(work)
        return self.user(name)

    def delete(self, name: str) -> None:
        """Remove a user and the user's sessions.

        Raises:
            RadmeshError: USER_NOT_FOUND, LAST_ADMINISTRATOR.
        """
        name = self.user(name)["name"]

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            self._keep_an_administrator(connection, name)
            connection.execute(sa.delete(sessions).where(sessions.c.user_name == name))
            connection.execute(sa.delete(users).where(users.c.name == name))
            return None, [("user", name)]

        self._feed.write(work)

    # -- sessions

    def _throttle(self, name: str) -> None:
        now = self._clock.monotonic()
        with self._lock:
            failures = self._failures.get(name)
            while failures and now - failures[0] > _ATTEMPT_SECONDS:
                failures.popleft()
            if failures and len(failures) >= _ATTEMPTS and now - failures[-1] < _PAUSE_SECONDS:
                left = int((_PAUSE_SECONDS - (now - failures[-1])) * 1000)
                raise RadmeshError(
                    "TOO_MANY_ATTEMPTS",
                    "too many wrong passwords: wait a minute",
                    metadata={"retry_after_ms": str(left)},
                )

    def _failed(self, name: str) -> None:
        with self._lock:
            self._failures.setdefault(name, deque(maxlen=_ATTEMPTS)).append(self._clock.monotonic())
            self._failures.move_to_end(name)
            while len(self._failures) > 10_000:
                self._failures.popitem(last=False)

    def sign_in(self, name: str, password: str) -> tuple[str, dict[str, Any]]:
        """Check a password; return a token, and the session.

        Raises:
            RadmeshError: PASSWORD_WRONG, TOO_MANY_ATTEMPTS.
        """
        name = name.strip().lower()[:65]
        # One guess at a name at a time: those that come at once must not all pass before the first has failed.
        with self._guessing[hash(name) % len(self._guessing)]:
            self._throttle(name)
            user = self._check(name, password)
        token = secrets.token_urlsafe(32)
        now = self._clock.now()
        session = {
            "digest": hashlib.sha256(token.encode()).digest(),
            "session_id": secrets.token_hex(8),
            "user_name": name,
            "expire_time": micros(now + self._session),
        }

        def work(connection: sa.Connection) -> None:
            query = sa.select(users.c.password_hash).where(users.c.name == name)
            kept = connection.execute(query if self._database.sqlite else query.with_for_update()).scalar()
            if kept != user["password_hash"]:
                raise RadmeshError("PASSWORD_WRONG", "the password was changed meanwhile")
            connection.execute(sa.delete(sessions).where(sessions.c.expire_time < micros(now)))
            connection.execute(sa.insert(sessions).values(session))
            connection.execute(sa.update(users).where(users.c.name == name).values(last_sign_in_time=micros(now)))

        self._database.write(work)
        return token, {**session, "user": self.user(name)}

    def _check(self, name: str, password: str) -> dict[str, Any]:
        try:
            user = self.user(name)
        except RadmeshError as error:
            if error.reason != "USER_NOT_FOUND":
                raise
            user = {"password_hash": self._nobody}
        try:
            with self._hashing:
                self._hasher.verify(user["password_hash"], password[:1024])
        except argon2.exceptions.Argon2Error:
            right = False
        else:
            right = "name" in user
        if not right:
            self._failed(name)
            raise RadmeshError("PASSWORD_WRONG", "name or password is wrong")
        with self._lock:
            self._failures.pop(name, None)
        return user

    def session(self, token: str) -> dict[str, Any]:
        """Return a token's session, with the user as it is now.

        Raises:
            RadmeshError: SESSION_EXPIRED.
        """
        digest = hashlib.sha256(token.encode()).digest()
        now = self._clock.now()
        with self._database.read() as connection:
            row = connection.execute(sa.select(sessions).where(sessions.c.digest == digest)).mappings().first()
            user = (
                connection.execute(sa.select(users).where(users.c.name == row["user_name"])).mappings().first()
                if row
                else None
            )
        if row is None or user is None or time_of(row["expire_time"]) <= now:
            raise RadmeshError("SESSION_EXPIRED", "the session has ended: sign in again")
        expire = now + self._session
        until = row["expire_time"]
        if expire - time_of(row["expire_time"]) > min(_TOUCH, self._session / 10):
            until = micros(expire)
            self._database.write(
                lambda c: c.execute(sa.update(sessions).where(sessions.c.digest == digest).values(expire_time=until))
            )
        return {**row, "expire_time": until, "user": dict(user)}

    def sign_out(self, token: str) -> None:
        """End a session."""
        digest = hashlib.sha256(token.encode()).digest()
        self._database.write(lambda c: c.execute(sa.delete(sessions).where(sessions.c.digest == digest)))

    # -- audit

    def append_audit(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Add events; durable when it returns."""
        if events:
            rows = [dict(event) for event in events]
            self._database.write(lambda c: c.execute(sa.insert(audit), rows))

    def audit(self, action: str, actor: str, object_id: str, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of events, newest first, and the next token."""
        cursor = Cursor(("audit", action, actor, object_id))
        position = cursor.read(token)
        conditions = []
        for column, value in ((audit.c.action, action), (audit.c.actor, actor), (audit.c.object, object_id)):
            if value:
                conditions.append(column == value)
        if position:
            conditions.append(audit.c.id < position[0])
        with self._database.read() as connection:
            query = sa.select(audit).where(*conditions).order_by(audit.c.id.desc()).limit(size + 1)
            found = [dict(row) for row in connection.execute(query).mappings()]
        rows, more = page(found, size, "detail")
        return rows, cursor.write(rows[-1]["id"]) if more else ""
