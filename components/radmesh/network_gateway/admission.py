"""Admission: a ticket for every object whose header can be read. Never refused; where it goes depends on who answers.

In order: the Database Server's placement; while that is silent, the last placement it made, if that archive answers;
the gateway's own spool. The RIS is asked meanwhile: a ticket carries what it said in time.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Final

import lmdb

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.network_gateway.placements import Archive, Memory
from radmesh.network_gateway.policy import PENDING, Facts
from radmesh.network_gateway.verifier import Check, Verifier
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
# An archive that failed somebody, or was found silent, is left alone for so long while the database cannot tell.
_FAILED_SECONDS: Final = 5.0
_PROBE_SECONDS: Final = 0.5
# Right after a start, archives have not all said that they are there.
_FIRST_HEARTBEAT_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.05
_SERVICES = database_pb2.DESCRIPTOR.services_by_name
_STATUS = common_pb2.DESCRIPTOR.services_by_name["StatusService"]


class Admission:
    """Gives tickets. Thread-safe.

    Args:
        context: of the gateway.
        memory: what is known while the database is silent.
        verifier: asks the RIS.
        place_timeout: seconds that a database has which did not answer lately.
        verify_timeout: seconds that an admission waits for the RIS.
        start_patience: seconds after the start in which the first archive is waited for.
        spool: returns (store id, target, epoch) of the spool, or None when it is full.
    """

    def __init__(
        self,
        context: Context,
        memory: Memory,
        verifier: Verifier,
        *,
        place_timeout: float,
        verify_timeout: float,
        start_patience: float,
        spool: Callable[[], tuple[str, str, bytes] | None],
    ) -> None:
        self._context = context
        self._clock = context.clock
        self._memory = memory
        self._verifier = verifier
        self._timeout = place_timeout
        self._verify_timeout = verify_timeout
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
        self._failed: dict[str, float] = {}
        self._patient_until = context.clock.monotonic() + start_patience
        self._archive_seen = False
        self._never = threading.Event()
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
        self._heard = self._clock.now()
        before = {archive.store_id: archive.epoch for archive in self._memory.archives}
        found = [
            Archive(s.store_id, s.target, s.epoch.hex(), s.alive, s.accepting, s.put_target)
            for s in answer.stores
            if s.kind == common_pb2.STORE_KIND_ARCHIVE
        ]
        self._memory.set_archives(found)
        if any(before.get(archive.store_id, archive.epoch) != archive.epoch for archive in found):
            # A store that was restarted takes none of its tickets; the feed may have been away when it said so.
            self.forget()
        return 1.0

    # -- tickets

    def admit(self, facts: Facts, avoid: str = "") -> common_pb2.SignedTicket:
        """Return a ticket for the objects of an admission key; `avoid` is a store that failed the caller.

        Raises:
            RadmeshError: NO_STORE: no archive answers and the spool is full.
        """
        if any(archive.store_id == avoid for archive in self._memory.archives):
            self._failed[avoid] = self._clock.monotonic()
        digest = facts.key.digest()
        # One question a key: associations that begin together share the answer, also that of a silent database.
        with self._lock:
            answer = self._asking.get((digest, avoid))
            mine = answer is None
            if answer is None:
                answer = self._asking[digest, avoid] = Future()
        if mine:
            try:
                answer.set_result((None if avoid else self._known(digest)) or self._ask(facts, digest, avoid))
            except BaseException as error:  # noqa: BLE001 - raised below, in all who wait
                answer.set_exception(error)
            finally:
                with self._lock:
                    del self._asking[digest, avoid]
        return answer.result()

    def _known(self, digest: bytes) -> common_pb2.SignedTicket | None:
        with self._lock:
            found = self._tickets.get(digest)
            if found is None or found[0] - _MARGIN <= self._clock.now():
                self._tickets.pop(digest, None)
                return None
            return found[1]

    def _remember(self, digest: bytes, ticket: common_pb2.SignedTicket, study: str, revocations: int) -> None:
        expire = common_pb2.Ticket.FromString(ticket.payload).expire_time
        with self._lock:
            if revocations != self._revocations:
                return  # it may be older than what made tickets void: it is used once
            self._tickets[digest] = (expire.ToDatetime(self._clock.now().tzinfo), ticket, study)
            while len(self._tickets) > _MOST:
                self._tickets.popitem(last=False)

    def changed(self, kind: str, key: str) -> None:
        """Take a change of the feed: a hold makes the study's tickets void, a change of stores all."""
        self.forget(key if kind == "hold" else "")

    def forget(self, study_instance_uid: str = "") -> None:
        """Revoke the tickets of a study, or all."""
        with self._lock:
            self._revocations += 1
            gone = [
                d for d, (_, _, study) in self._tickets.items() if not study_instance_uid or study == study_instance_uid
            ]
            for digest in gone:
                del self._tickets[digest]

    def _ask(self, facts: Facts, digest: bytes, avoid: str) -> common_pb2.SignedTicket:
        check = self._verifier.begin(facts)
        until = self._clock.monotonic() + self._verify_timeout
        study = facts.key.study_instance_uid
        revocations = self._revocations
        try:
            ticket = self._place(check, avoid)
        except RadmeshError as error:
            if error.reason == "NO_ARCHIVE":
                return self._to_spool(check, digest, until)
            if not error.transient and error.reason not in ("INTERNAL", "CANCELLED"):
                raise
            self._heard = None
            self._context.log.warning("database does not place studies", reason=error.reason)
            return self._without_database(check, digest, until, avoid)
        placed = common_pb2.Ticket.FromString(ticket.payload)
        if placed.store_id == avoid and self._spool() is not None:
            # The only archive, which has no room for this object or is just dying: the database knows neither yet.
            return self._to_spool(check, digest, until)
        if placed.verification == PENDING:
            self._verifier.deliver(check, first=True)
            placed.verification = self._state(check, until)
            if placed.verification != PENDING:
                placed.issuer = "network-gateway"
                ticket = self._signed(placed)
        self._remember(digest, ticket, study, revocations)
        try:
            self._memory.place(study, placed.store_id)
        except lmdb.Error as error:
            # The archive takes the object all the same.
            self._context.log.warning("a placement cannot be remembered", error=type(error).__name__)
        self._admissions.labels("archive").inc()
        return ticket

    def _place(self, check: Check, avoid: str) -> common_pb2.SignedTicket:
        """Ask the database. Right after a start, wait a little for it, and for the first archive to announce itself.

        Raises:
            RadmeshError: NO_ARCHIVE, or it does not answer.
        """
        request = database_pb2.PlaceStudyRequest(
            admission_key=key_message(check.facts.key),
            verification=check.state,  # type: ignore[arg-type]
            avoid_store_id=avoid,
        )
        heard = self._heard
        lately = heard is not None and self._clock.now() - heard < _LATELY
        until = min(self._patient_until, self._clock.monotonic() + _FIRST_HEARTBEAT_SECONDS)
        starting = not self._archive_seen and self._clock.monotonic() < until
        timeout = max(self._timeout, _PATIENCE) if lately or starting else self._timeout
        while True:
            try:
                ticket: common_pb2.SignedTicket = self._placement.PlaceStudy(request, timeout=timeout).ticket
            except RadmeshError as error:
                waits = error.reason == "NO_ARCHIVE" or error.transient
                if not waits or self._archive_seen or self._clock.monotonic() > until:
                    raise
                self._clock.wait(self._never, _POLL_SECONDS)
            else:
                self._archive_seen = True
                return ticket

    def _state(self, check: Check, until: float) -> common_pb2.VerificationState:
        """What is known of the verification, for which no longer is waited than until then."""
        verdict = check.wait(until - self._clock.monotonic())
        if verdict is None:
            self._verifier.was_late(check)
        return check.state if verdict is None else verdict.state  # type: ignore[return-value]

    def _without_database(self, check: Check, digest: bytes, until: float, avoid: str) -> common_pb2.SignedTicket:
        """The last known placement, once: who asks again so soon could not use it."""
        placed = self._memory.placement(check.facts.key.study_instance_uid)
        archive = next((a for a in self._memory.archives if a.store_id == placed and a.alive and a.accepting), None)
        now = self._clock.now()
        with self._lock:
            last = self._own.get(digest)
            self._own[digest] = now
            while len(self._own) > _MOST:
                self._own.popitem(last=False)
        again = last is not None and now - last < timedelta(seconds=TICKET_SECONDS // 2)
        if archive is None or placed == avoid or again or not self._answers(archive):
            return self._to_spool(check, digest, until)
        self._admissions.labels("known").inc()
        target = archive.put_target or archive.target
        return self._sign(check, digest, until, archive.store_id, target, bytes.fromhex(archive.epoch))

    def _answers(self, archive: Archive) -> bool:
        """Whether an archive answers: while the database is silent, its heartbeats say nothing."""
        failed = self._failed.get(archive.store_id)
        if failed is not None and self._clock.monotonic() - failed < _FAILED_SECONDS:
            return False
        try:
            self._context.client(_STATUS, archive.target).GetStatus(
                common_pb2.GetStatusRequest(), timeout=_PROBE_SECONDS
            )
        except RadmeshError:
            self._failed[archive.store_id] = self._clock.monotonic()
            return False
        return True

    def _to_spool(self, check: Check, digest: bytes, until: float) -> common_pb2.SignedTicket:
        spool = self._spool()
        if spool is None:
            raise RadmeshError("NO_STORE", "no archive answers and the spool is full: try again later")
        self._admissions.labels("spool").inc()
        return self._sign(check, digest, until, *spool)

    def _sign(
        self, check: Check, digest: bytes, until: float, store_id: str, target: str, epoch: bytes
    ) -> common_pb2.SignedTicket:
        self._verifier.deliver(check, first=False)
        ticket = common_pb2.Ticket(
            issuer="network-gateway",
            store_id=store_id,
            target=target,
            epoch=epoch,
            admission_key=digest,
            study_instance_uid=check.facts.key.study_instance_uid,
            verification=self._state(check, until),
        )
        # Short: as soon as the database is back, it decides.
        ticket.expire_time.FromDatetime(self._clock.now() + timedelta(seconds=TICKET_SECONDS // 2))
        return self._signed(ticket)

    def _signed(self, ticket: common_pb2.Ticket) -> common_pb2.SignedTicket:
        payload = ticket.SerializeToString()
        return common_pb2.SignedTicket(payload=payload, signature=self._context.credentials.ticket_sign(payload))
