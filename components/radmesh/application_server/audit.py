"""The audit of what persons do (FEATURES AS5): written before the data is given."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call

Answer = TypeVar("Answer")

# Reading a study is one act, not one per instance: the same act is written again after a minute.
_SAME_ACT_SECONDS: Final = 60.0
_MOST: Final = 10_000


class Audit:
    """Appends events to the Database Server's audit table; an access that cannot be audited does not happen."""

    def __init__(self, accounts: Any, clock: Clock) -> None:
        self._accounts = accounts
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def record(
        self,
        action: str,
        call: Call,
        *,
        actor: str = "",
        outcome: str = "SUCCESS",
        object_id: str = "",
        detail: dict[str, object] | None = None,
    ) -> None:
        """Write one event.

        Raises:
            RadmeshError: the database does not answer: the caller must not go on.
        """
        event = database_pb2.AuditEvent(
            action=action,
            actor=actor or (call.person.name if call.person else ""),
            source_address=call.peer,
            outcome=outcome,
            object=object_id,
            detail=json.dumps(detail) if detail else "",
        )
        event.time.FromDatetime(self._clock.now())
        self._accounts.AppendAudit(database_pb2.AppendAuditRequest(events=[event]))

    def knows(self, action: str, call: Call, study: str) -> bool:
        """Whether this access was written within the last minute: then `access` would write nothing."""
        return self._is_recent((_session(call), action, study, "SUCCESS"))

    def _is_recent(self, act: tuple[str, ...]) -> bool:
        with self._lock:
            last = self._recent.get(act)
        return last is not None and self._clock.monotonic() - last < _SAME_ACT_SECONDS

    def _once(self, act: tuple[str, ...], write: Callable[[], None]) -> None:
        if self._is_recent(act):
            return
        now = self._clock.monotonic()
        write()
        with self._lock:
            self._recent[act] = now
            self._recent.move_to_end(act)
            while len(self._recent) > _MOST:
                self._recent.popitem(last=False)

    def query(self, action: str, call: Call, request: Any, text: str = "") -> None:
        """Write a query, once a minute for the same session and question: a list renews itself while it is looked at.

        Raises:
            RadmeshError: as `record`.
        """
        self.asked(action, call, question_of(request, text))

    def asked(self, action: str, call: Call, question: str) -> None:
        """Write a query whose question (`question_of`) is known; as `query`.

        Raises:
            RadmeshError: as `record`.
        """
        self._once((_session(call), action, question), lambda: self.record(action, call))

    def knows_query(self, action: str, call: Call, question: str) -> bool:
        """Whether this query was written within the last minute: then `asked` would write nothing."""
        return self._is_recent((_session(call), action, question))

    def access(self, action: str, call: Call, study: str, *, outcome: str = "SUCCESS") -> None:
        """Write an access to a study, once a minute for the same session, action, study and outcome.

        Raises:
            RadmeshError: as `record`.
        """
        key = (_session(call), action, study, outcome)
        self._once(key, lambda: self.record(action, call, object_id=study, outcome=outcome))

    def refused(self, call: Call, what: str) -> None:
        """Write that somebody tried what the role does not allow, once a minute for the same; nothing comes of it.

        What cannot be written is refused all the same.
        """
        with suppress(RadmeshError):
            self.access("ACCESS_REFUSED", call, what, outcome="ROLE_REFUSED")

    def seen(self, action: str, call: Call, study: str, look: Callable[[], Answer]) -> Answer:
        """Return what `look` returns, once it is written that the caller sees it, or that there was nothing to see.

        Raises:
            RadmeshError: as `look`; as `record`.
        """
        try:
            answer = look()
        except RadmeshError as error:
            if error.reason == "STUDY_NOT_FOUND":
                self.access(action, call, study, outcome=error.reason)
            raise
        self.access(action, call, study)
        return answer


def question_of(request: Any, text: str = "") -> str:
    """Return what tells a query from all others."""
    return hashlib.sha256(request.SerializeToString(deterministic=True) + text.encode()).hexdigest()


def _session(call: Call) -> str:
    return call.person.session_id if call.person else ""
