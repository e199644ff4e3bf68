"""Refused associations, and what was sent, go to the audit table: later, in batches, never in an association's way."""

import json
from queue import Empty, Full, Queue
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.context import Context
from radmesh_gateway_proxy.services.exchange import Peer, Sent

_MOST_WAITING = 1000
_MOST_AT_ONCE = 200
_PAUSE_SECONDS = 1.0


class Audit:
    """A bounded queue before AccountService.AppendAudit; what finds it full is counted in the next event."""

    def __init__(self, context: Context) -> None:
        self._clock = context.clock
        self._waiting: Queue[database_pb2.AuditEvent] = Queue(_MOST_WAITING)
        self._batch: list[database_pb2.AuditEvent] = []
        self._dropped = 0
        services = database_pb2.DESCRIPTOR.services_by_name
        self._accounts = context.client(services["AccountService"], "database-server")
        self._worker = context.worker("audit", self._step)

    def refused(self, peer: Peer, reason: str) -> None:
        """Note that a station was refused; returns at once."""
        self._note("ASSOCIATION_REFUSED", peer, reason, "", {"called_ae_title": peer.called_ae_title})

    def sent(self, peer: Peer, study_instance_uid: str, sent: Sent) -> None:
        """Note that a station had objects of a study sent (PS3.15 A.5.3.7, Instances Transferred); returns at once."""
        detail = {"destination": sent.destination, "instances": sent.instances, "failed": sent.failed}
        self._note("INSTANCES_SENT", peer, sent.reason or "SUCCESS", study_instance_uid, detail)

    def _note(self, action: str, peer: Peer, outcome: str, about: str, detail: dict[str, Any]) -> None:
        stamp = Timestamp()
        stamp.FromDatetime(self._clock.now())
        if self._dropped:
            detail["events_dropped_before"] = self._dropped
        event = database_pb2.AuditEvent(
            time=stamp,
            action=action,
            actor=peer.calling_ae_title,
            source_address=peer.address,
            outcome=outcome,
            object=about,
            detail=json.dumps(detail),
        )
        try:
            self._waiting.put_nowait(event)
        except Full:
            self._dropped += 1
            return
        self._dropped = 0
        self._worker.wake()

    def start(self) -> None:
        """Begin to write."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """Write what waits, and end."""
        self._worker.stop(grace)

    def _step(self) -> float:
        while len(self._batch) < _MOST_AT_ONCE:
            try:
                self._batch.append(self._waiting.get_nowait())
            except Empty:
                break
        if self._batch:
            # A batch that fails is kept, and tried again with the worker's back-off.
            self._accounts.AppendAudit(database_pb2.AppendAuditRequest(events=self._batch))
            self._batch = []
        return 0.0 if not self._waiting.empty() else _PAUSE_SECONDS
