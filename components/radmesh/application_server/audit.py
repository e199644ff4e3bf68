"""The audit of what persons do (FEATURES AS5): written before the data is given."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.clock import Clock

# Reading a study is one act, not one per instance: the same act is written again after a minute.
_SAME_ACT_SECONDS = 60.0
_MOST = 10_000


class Audit:
    """Appends events to the Database Server's audit table; an access that cannot be audited does not happen."""

    def __init__(self, append: Callable[[database_pb2.AppendAuditRequest], object], clock: Clock) -> None:
        self._append = append
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def record(
        self,
        action: str,
        *,
        actor: str,
        source_address: str,
        outcome: str = "SUCCESS",
        object_id: str = "",
        detail: dict[str, object] | None = None,
    ) -> None:
        """Write one event.

        Raises:
            RadmeshError: PEER_UNAVAILABLE and the like: the caller must not go on.
        """
        stamp = Timestamp()
        stamp.FromDatetime(self._clock.now())
        event = database_pb2.AuditEvent(
            time=stamp,
            action=action,
            actor=actor,
            source_address=source_address,
            outcome=outcome,
            object=object_id,
            detail=json.dumps(detail) if detail else "",
        )
        self._append(database_pb2.AppendAuditRequest(events=[event]))

    def record_access(self, action: str, *, session_id: str, actor: str, source_address: str, study: str) -> None:
        """Write an access to a study, once a minute for the same session, action and study.

        Raises:
            RadmeshError: as `record`.
        """
        key = (session_id, action, study)
        now = self._clock.monotonic()
        with self._lock:
            last = self._recent.get(key)
            if last is not None and now - last < _SAME_ACT_SECONDS:
                return
        self.record(action, actor=actor, source_address=source_address, object_id=study)
        with self._lock:
            self._recent[key] = now
            self._recent.move_to_end(key)
            while len(self._recent) > _MOST:
                self._recent.popitem(last=False)
