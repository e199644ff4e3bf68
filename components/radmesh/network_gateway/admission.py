"""Admission: a ticket for every object whose header can be read. Never refused; where it goes depends on who answers.

In order: the Database Server's placement; while that is silent, the last placement it made; the gateway's own spool.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any, Final

import lmdb

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.network_gateway.placements import Archive, Memory
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.transfer.model import key_message

TICKET_SECONDS: Final = 60
# A database that answered so lately is slow, not silent: it is worth waiting for, rather than moving objects later.
_LATELY: Final = timedelta(seconds=2.5)
_PATIENCE: Final = 2.0
# A ticket is given to callers while it lasts this much longer: they keep it for a while too.
_MARGIN: Final = timedelta(seconds=20)
_MOST: Final = 4096
_SERVICES = database_pb2.DESCRIPTOR.services_by_name


def verification_of(_key: AdmissionKey) -> common_pb2.VerificationState:
    """Return the verification that an object begins with: nobody is asked until a HIS/RIS is connected."""
    return common_pb2.VERIFICATION_STATE_NOT_REQUIRED


class Admission:
    """Gives tickets. Thread-safe.

    Args:
        context: of the gateway.
        memory: what is known while the database is silent.
        place_timeout: seconds that a database has which did not answer lately.
        spool: returns (store id, target, epoch) of the spool, or None when it is full.
    """

    def __init__(
        self,
        context: Context,
        memory: Memory,
        place_timeout: float,
        spool: Callable[[], tuple[str, str, bytes] | None],
    ) -> None:
        self._context = context
        self._memory = memory
        self._timeout = place_timeout
        self._spool = spool
        self._placement = context.client(_SERVICES["PlacementService"], "database-server")
        self._registry = context.client(_SERVICES["RegistryService"], "database-server")
        self._admissions = context.metrics.counter("radmesh_admissions")
        self._lock = threading.Lock()
        self._tickets: OrderedDict[bytes, tuple[datetime, common_pb2.SignedTicket, str]] = OrderedDict()
        self._asking: dict[tuple[bytes, str], Future[common_pb2.SignedTicket]] = {}
        self._revocations = 0
        self._own: OrderedDict[bytes, datetime] = OrderedDict()
        self._heard: datetime | None = None
        self._worker: Worker = context.worker("stores", self._step, most_pause=1.0)

    def start(self) -> None:
        """Begin to follow the stores."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End."""
        self._worker.stop(grace)

    def _step(self) -> float:
        try:
            answer = self._registry.ListStores(database_pb2.ListStoresRequest(), timeout=1.0)
        except RadmeshError:
            self._heard = None
            raise
        self._heard = self._context.clock.now()
        self._memory.set_archives(
            [
                Archive(s.store_id, s.target, s.epoch.hex(), s.alive, s.accepting, s.put_target)
                for s in answer.stores
                if s.kind == common_pb2.STORE_KIND_ARCHIVE
            ]
        )
        return 1.0

    # -- tickets

    def admit(self, key: AdmissionKey, avoid: str = "") -> common_pb2.SignedTicket:
        """Return a ticket.

        Raises:
            RadmeshError: NO_STORE: no archive answers and the spool is full.
        """
        digest = key.digest()
        # One question a key: associations that begin together share the answer, also that of a silent database.
        with self._lock:
            answer = self._asking.get((digest, avoid))
            mine = answer is None
            if answer is None:
                answer = self._asking[digest, avoid] = Future()
        if mine:
            try:
                answer.set_result((None if avoid else self._known(digest)) or self._ask(key, digest, avoid))
            except BaseException as error:  # noqa: BLE001 - raised below, in all who wait
                answer.set_exception(error)
            finally:
                with self._lock:
                    del self._asking[digest, avoid]
        return answer.result()

    def _known(self, digest: bytes) -> common_pb2.SignedTicket | None:
        with self._lock:
            found = self._tickets.get(digest)
            if found is None or found[0] - _MARGIN <= self._context.clock.now():
                self._tickets.pop(digest, None)
                return None
            return found[1]

    def _remember(self, digest: bytes, ticket: common_pb2.SignedTicket, study: str, revocations: int) -> None:
        expire = common_pb2.Ticket.FromString(ticket.payload).expire_time
        with self._lock:
            if revocations != self._revocations:
                return  # it may be older than what made tickets void: it is used once
            self._tickets[digest] = (expire.ToDatetime(self._context.clock.now().tzinfo), ticket, study)
            while len(self._tickets) > _MOST:
                self._tickets.popitem(last=False)

    def forget(self, study_instance_uid: str = "") -> None:
        """Revoke the tickets of a study, or all."""
        with self._lock:
            self._revocations += 1
            gone = [
                d for d, (_, _, study) in self._tickets.items() if not study_instance_uid or study == study_instance_uid
            ]
            for digest in gone:
                del self._tickets[digest]

    def _ask(self, key: AdmissionKey, digest: bytes, avoid: str) -> common_pb2.SignedTicket:
        request = database_pb2.PlaceStudyRequest(
            admission_key=key_message(key), verification=verification_of(key), avoid_store_id=avoid
        )
        revocations = self._revocations
        heard = self._heard
        lately = heard is not None and self._context.clock.now() - heard < _LATELY
        try:
            timeout = max(self._timeout, _PATIENCE) if lately else self._timeout
            ticket: common_pb2.SignedTicket = self._placement.PlaceStudy(request, timeout=timeout).ticket
        except RadmeshError as error:
            if error.reason == "NO_ARCHIVE":
                return self._to_spool(key, digest)
            if not error.transient and error.reason not in ("INTERNAL", "CANCELLED"):
                raise
            self._heard = None
            self._context.log.warning("database does not place studies", reason=error.reason)
            return self._without_database(key, digest, avoid)
        store_id = common_pb2.Ticket.FromString(ticket.payload).store_id
        if store_id == avoid and self._spool() is not None:
            # The only archive, which has no room for this object or is just dying: the database knows neither yet.
            return self._to_spool(key, digest)
        self._remember(digest, ticket, key.study_instance_uid, revocations)
        try:
            self._memory.place(key.study_instance_uid, store_id)
        except lmdb.Error as error:
            # The archive takes the object all the same.
            self._context.log.warning("a placement cannot be remembered", error=type(error).__name__)
        self._admissions.labels("archive").inc()
        return ticket

    def _without_database(self, key: AdmissionKey, digest: bytes, avoid: str) -> common_pb2.SignedTicket:
        """The last known placement, once: who asks again so soon could not use it."""
        placed = self._memory.placement(key.study_instance_uid)
        archive = next((a for a in self._memory.archives if a.store_id == placed and a.alive), None)
        now = self._context.clock.now()
        with self._lock:
            last = self._own.get(digest)
            self._own[digest] = now
            while len(self._own) > _MOST:
                self._own.popitem(last=False)
        again = last is not None and now - last < timedelta(seconds=TICKET_SECONDS // 2)
        if archive is None or placed == avoid or again:
            return self._to_spool(key, digest)
        self._admissions.labels("known").inc()
        return self._sign(
            key, digest, archive.store_id, archive.put_target or archive.target, bytes.fromhex(archive.epoch)
        )

    def _to_spool(self, key: AdmissionKey, digest: bytes) -> common_pb2.SignedTicket:
        spool = self._spool()
        if spool is None:
            raise RadmeshError("NO_STORE", "no archive answers and the spool is full: try again later")
        self._admissions.labels("spool").inc()
        return self._sign(key, digest, *spool)

    def _sign(
        self, key: AdmissionKey, digest: bytes, store_id: str, target: str, epoch: bytes
    ) -> common_pb2.SignedTicket:
        ticket = common_pb2.Ticket(
            issuer="network-gateway",
            store_id=store_id,
            target=target,
            epoch=epoch,
            admission_key=digest,
            study_instance_uid=key.study_instance_uid,
            verification=verification_of(key),
        )
        # Short: as soon as the database is back, it decides.
        ticket.expire_time.FromDatetime(self._context.clock.now() + timedelta(seconds=TICKET_SECONDS // 2))
        payload = ticket.SerializeToString()
        return common_pb2.SignedTicket(payload=payload, signature=self._context.credentials.ticket_sign(payload))


class Revocation:
    """Follows the change feed: a hold or a change of stores makes tickets void."""

    def __init__(self, context: Context, admission: Admission) -> None:
        self._admission = admission
        self._feed = context.client(_SERVICES["FeedService"], "database-server")
        self._revision = -1
        self._call: Any = None
        self._worker: Worker = context.worker("revocation", self._step, most_pause=1.0)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End."""
        call = self._call
        if call is not None:
            call.cancel()
        self._worker.stop(grace)

    def _step(self) -> float:
        try:
            # A revision that cannot be asks where the feed is.
            asked = self._revision if self._revision >= 0 else (1 << 62)
            self._call = self._feed.Watch(database_pb2.WatchRequest(from_revision=asked, kinds=("hold", "store")))
            for change in self._call:
                self._admission.forget(change.key if change.kind == "hold" else "")
                self._revision = change.revision
        except RadmeshError as error:
            if self._worker.stopping:
                return 0.0
            # What was missed is not known: all tickets are void.
            self._admission.forget()
            if error.reason != "RESYNC":
                raise
            self._revision = int(error.metadata["revision"])
            return 0.0
        return 0.5
