"""Makes what a store has committed known to the Database Server, and tells it that the store lives.

The index rows are the outbox (CORRECTNESS.md 4): the pump reads rows behind ``registered_seq``, and moves that
mark only after the database's durable answer. A database that is down stops no modality; everything is
registered when it is back.
"""

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.study_store import IndexRow, Ref, StudyStore

BATCH: Final = 256
BATCH_BYTES: Final = 2 << 20
"""Headers in one message, which may have 4 MiB."""
POLL_SECONDS: Final = 2.0
"""Commits wake the pump; this finds what a lost signal missed."""
LINGER_SECONDS: Final = 0.02
"""Rows that come this close together travel together …"""
LINGER_MOST_SECONDS: Final = 0.25
"""… for so long at most: a batch costs the database about as much as ten of its rows."""
CALL_SECONDS: Final = 10.0
LATE_SECONDS: Final = 30.0
HEARTBEAT_SECONDS: Final = 1.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SERVICE: Final = database_pb2.DESCRIPTOR.services_by_name["RegistryService"]


class RegistrationPump:
    """A service with one thread; ``wait_empty`` is for a drain and for tests."""

    def __init__(self, store: StudyStore, context: Context, *, heartbeat: "Heartbeat | None" = None) -> None:
        self._store = store
        self._context = context
        self._clock = context.clock
        self._registry = context.client(SERVICE, "database-server")
        self._heartbeat = heartbeat
        self._registered = context.metrics.counter("radmesh_objects_registered")
        self._late_since: float | None = None
        self._blocked: set[tuple[str, int]] = set()
        self._commits = 0
        self._never = threading.Event()
        self._empty = threading.Event()
        self._worker: Worker = context.worker("registration-pump", self._step, most_pause=1.0)

    def start(self) -> None:
        """Go on from ``registered_seq`` of every study."""
        self._store.on_commit(self._committed)
        self._worker.start()

    def stop(self, grace: float) -> None:
        """Register what is there, for ``grace`` seconds at most, and end."""
        self.wait_empty(min(grace, 2.0))
        self._worker.stop(grace)

    def wake(self) -> None:
        """Look now."""
        self._worker.wake()

    def wait_empty(self, seconds: float) -> bool:
        """Wait until nothing is unregistered; False: some still is."""
        until = self._clock.monotonic() + seconds
        while any(last > registered for _, _, registered, last in self._store.unregistered()):
            self._empty.clear()
            self._worker.wake()
            self._empty.wait(0.05)
            if self._clock.monotonic() > until:
                return False
        return True

    def _committed(self, _ref: Ref) -> None:
        self._commits += 1
        self._worker.wake()

    def _step(self) -> float:
        self._linger()
        self._blocked.clear()
        try:
            self._register()
        except RadmeshError as error:
            self._late()
            if error.reason == "STORE_UNKNOWN" and self._heartbeat is not None:
                self._heartbeat.beat()
            raise
        if self._blocked:
            self._late()
            return POLL_SECONDS
        self._late_since = None
        self._context.status.clear_alarm("REGISTRATION_LATE")
        self._empty.set()
        return POLL_SECONDS

    def _linger(self) -> None:
        """Wait until no more rows come, for a moment at most."""
        until = self._clock.monotonic() + LINGER_MOST_SECONDS
        seen = -1
        while seen != self._commits and self._clock.monotonic() < until:
            seen = self._commits
            self._clock.wait(self._never, LINGER_SECONDS)

    def _late(self) -> None:
        now = self._clock.monotonic()
        if self._late_since is None:
            self._late_since = now
        if now - self._late_since > LATE_SECONDS:
            self._context.status.raise_alarm(
                "REGISTRATION_LATE", "the database takes no registrations: objects are safe, but are not found yet"
            )

    def _register(self) -> None:
        """Register all that is there."""
        batch: list[IndexRow] = []
        size = 0
        for study_hash, generation, registered, last in self._store.unregistered():
            after = registered
            while after < last and not self._worker.stopping:
                try:
                    rows = self._store.rows(study_hash, generation, after=after, limit=BATCH)
                except RadmeshError as error:
                    # One study that cannot be read keeps no other from being found.
                    self._block(study_hash, generation, "rows cannot be read", error)
                    break
                if not rows:
                    break
                after = rows[-1].ref.sequence
                for row in rows:
                    if len(batch) >= BATCH or (batch and size + len(row.queryable) > BATCH_BYTES):
                        self._send(batch)
                        batch, size = [], 0
                    batch.append(row)
                    size += len(row.queryable) + 512
        self._send(batch)

    def _block(self, study_hash: str, generation: int, why: str, error: RadmeshError) -> None:
        self._blocked.add((study_hash, generation))
        self._context.log.warning(
            "registration waits", why=why, reason=error.reason, study_hash=study_hash, generation=generation
        )

    def _send(self, batch: list[IndexRow]) -> None:
        """Register a batch durably, then move the marks. Behind a refused row nothing of its study is sent."""
        batch = [row for row in batch if (row.ref.study_hash, row.ref.generation) not in self._blocked]
        if not batch:
            return
        request = database_pb2.RegisterInstancesRequest(records=[record(self._store.store_id, row) for row in batch])
        try:
            self._registry.RegisterInstances(request, timeout=CALL_SECONDS)
        except RadmeshError as error:
            if error.transient or error.reason in ("STORE_UNKNOWN", "INTERNAL", "CALLER_UNKNOWN", "CALLER_REFUSED"):
                raise
            if len(batch) > 1:
                for row in batch:
                    self._send([row])
                return
            ref = batch[0].ref
            self._block(ref.study_hash, ref.generation, "refused", error)
            return
        marks = {(row.ref.study_hash, row.ref.generation): row.ref.sequence for row in batch}
        for (study_hash, generation), sequence in marks.items():
            self._store.mark_registered(study_hash, generation, sequence)
        self._registered.inc(len(batch))


class Heartbeat:
    """Announces the store to the Database Server every second.

    Args:
        store: what is announced.
        context: of the component that owns it.
        kind: radmesh.api.common.v1.StoreKind.
        target: where the store is reached.
        put_target: where its Put line is.
        client_url: where local clients read from it.
        accepting: whether it takes new objects; the store's own ``accepting`` is asked too.
    """

    def __init__(
        self,
        store: StudyStore,
        context: Context,
        kind: Any,
        target: Callable[[], str],
        *,
        put_target: Callable[[], str] = str,
        client_url: Callable[[], str] = str,
        accepting: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store, self._kind, self._accepting = store, kind, accepting
        self._target, self._put_target, self._client_url = target, put_target, client_url
        self._status = context.status
        self._gauge = context.metrics.gauge("radmesh_objects_unregistered")
        self._registry = context.client(SERVICE, "database-server")
        self._worker: Worker = context.worker("heartbeat", self._step, most_pause=HEARTBEAT_SECONDS)

    def start(self) -> None:
        """Begin. The first is sent here: who starts after this store can have studies placed in it."""
        with contextlib.suppress(RadmeshError):
            self.beat()
        self._worker.start()

    def stop(self, grace: float) -> None:
        """Say that nothing more is accepted, and end."""
        self._accepting = _no
        self._worker.stop(grace)
        try:
            self.beat(timeout=min(1.0, grace))
        except RadmeshError:
            return  # the database notices the silence

    def beat(self, timeout: float = 2.0) -> None:
        """Send one.

        Raises:
            RadmeshError: the database does not answer.
        """
        store = self._store
        unregistered = sum(max(0, last - registered) for _, _, registered, last in store.unregistered())
        self._gauge.set(unregistered)
        accepting = bool(store.accepting and self._accepting())
        if store.accepting:
            self._status.clear_alarm("STORAGE_FULL")
        else:
            self._status.raise_alarm("STORAGE_FULL", "no room above the reserve: the store takes no new objects")
        self._registry.Heartbeat(
            database_pb2.HeartbeatRequest(
                store_id=store.store_id,
                kind=self._kind,
                target=self._target(),
                put_target=self._put_target(),
                client_url=self._client_url(),
                epoch=store.epoch,
                free_bytes=store.free_bytes(),
                accepting=accepting,
                unregistered=unregistered,
            ),
            timeout=timeout,
        )

    def _step(self) -> float:
        self.beat()
        return HEARTBEAT_SECONDS


def _no() -> bool:
    return False


def record(store_id: str, row: IndexRow) -> database_pb2.InstanceRecord:
    """An index row as the database gets it: patient, study, series and instance can be built from it alone."""
    header, ref = row.header, row.ref
    seconds, micros = divmod((row.receive_time - _EPOCH) // timedelta(microseconds=1), 1_000_000)
    return database_pb2.InstanceRecord(
        object=common_pb2.ObjectReference(
            store_id=store_id, study_hash=ref.study_hash, generation=ref.generation, sequence=ref.sequence
        ),
        identity=common_pb2.ContentIdentity(
            sop_instance_uid=header.sop_instance_uid,
            transfer_syntax_uid=header.transfer_syntax_uid,
            sha256=row.sha256,
        ),
        length=row.length,
        header=row.queryable,
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        sop_class_uid=header.sop_class_uid,
        calling_ae_title=header.calling_ae_title,
        called_ae_title=header.called_ae_title,
        source_address=header.source_address,
        admission_key=header.admission_key,
        verification=header.verification,  # type: ignore[arg-type]
        remarks=row.remarks,
        receive_time=Timestamp(seconds=seconds, nanos=micros * 1000),
    )
