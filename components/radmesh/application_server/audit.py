"""The audit of what persons do (FEATURES AS5): written before the data is given."""

import json
import threading
from collections import OrderedDict
from typing import Any, Final

from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.clock import Clock
from radmesh.runtime.rpc import Call

# Reading a study is one act, not one per instance: the same act is written again after a minute.
_SAME_ACT_SECONDS: Final = 60.0
_MOST: Final = 10_000


class Audit:
    """Appends events to the Database Server's audit table; an access that cannot be audited does not happen."""

    def __init__(self, accounts: Any, clock: Clock) -> None:
        self._accounts = accounts
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: OrderedDict[tuple[str, str, str], float] = OrderedDict()

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
        with self._lock:
            last = self._recent.get(_key(action, call, study))
        return last is not None and self._clock.monotonic() - last < _SAME_ACT_SECONDS

    def access(self, action: str, call: Call, study: str) -> None:
        """Write an access to a study, once a minute for the same session, action and study.

        Raises:
            RadmeshError: as `record`.
        """
        if self.knows(action, call, study):
            return
        key, now = _key(action, call, study), self._clock.monotonic()
        self.record(action, call, object_id=study)
        with self._lock:
            self._recent[key] = now
            self._recent.move_to_end(key)
            while len(self._recent) > _MOST:
                self._recent.popitem(last=False)


def _key(action: str, call: Call, study: str) -> tuple[str, str, str]:
    return (call.person.session_id if call.person else "", action, study)
