"""Local clients read from an archive with a read grant of an Application Server (archive.v1.ReadService).

A grant says who may read what. Whether that is still so, the Database Server is asked: before a read begins, and again
every two seconds while it lasts. What cannot be confirmed for longer is dropped like what was revoked, so that no read
outlives the right to it by 5 s, whoever is silent.
"""

import base64
import binascii
import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.message import DecodeError

from radmesh.api.application.v1 import application_pb2
from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.archive_server.tier import Tier
from radmesh.dicom.uids import study_hash
from radmesh.runtime.clock import Clock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.runtime.rpc import Call, roles_of
from radmesh.runtime.security import Credentials
from radmesh.study_store import LmdbStudyStore, Ref
from radmesh.transfer.codec import Bulk
from radmesh.transfer.model import ObjectReference

# Base64 in the metadata; a grant has some 250 bytes.
GRANT_MAX: Final = 2048
# Fresh: nobody is asked. Beyond the last, plus the time of one question, a read is dropped: 5 s in all.
FRESH_SECONDS: Final = 2.0
STUCK_SECONDS: Final = 2.5
UNCONFIRMED_SECONDS: Final = 3.5
ASK_SECONDS: Final = 1.0
STEP_SECONDS: Final = 0.25
# A client that takes nothing for so long gives its place to others.
IDLE_SECONDS: Final = 60.0
AUDIT_SECONDS: Final = 60.0
REMEMBERED_MAX: Final = 4096

_APPLICATION: Final = application_pb2.DESCRIPTOR.services_by_name
_READERS: Final = roles_of(_APPLICATION["ImageService"].methods_by_name["GetReadGrant"])
_RECONCILERS: Final = roles_of(_APPLICATION["RisService"].methods_by_name["ListAdmissions"])
_DATABASE: Final = database_pb2.DESCRIPTOR.services_by_name

Read = Callable[[transfer_pb2.ReadRangeRequest, Any], Iterator[Bulk[transfer_pb2.ReadRangeResponse]]]


def _invalid(why: str) -> RadmeshError:
    return RadmeshError("GRANT_INVALID", f"{why}: ask the Application Server for a grant")


@dataclass(frozen=True, slots=True)
class Grant:
    """Who may read what, until when."""

    user: str
    study_instance_uid: str
    study_hash: str
    session_digest: bytes
    expire_time: datetime


class GrantCheck:
    """Reads grants for one archive; the signature is verified once a grant. Thread-safe, bounded."""

    def __init__(self, credentials: Credentials, clock: Clock, store_id: str, epoch: bytes) -> None:
        self._credentials, self._clock = credentials, clock
        self._store_id, self._epoch = store_id, epoch
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Grant] = OrderedDict()

    def __call__(self, authorization: str) -> Grant:
        """Return the grant in the metadata `authorization: Grant <base64>`.

        Raises:
            RadmeshError: GRANT_INVALID.
        """
        kind, _, text = authorization.partition(" ")
        if kind.lower() != "grant" or not 0 < len(text) <= GRANT_MAX:
            raise _invalid("the call carries no grant")
        with self._lock:
            grant = self._known.get(text)
        if grant is None:
            grant = self._read(text)
            with self._lock:
                self._known[text] = grant
                if len(self._known) > REMEMBERED_MAX:
                    self._known.popitem(last=False)
        if grant.expire_time <= self._clock.now():
            raise _invalid("the grant has expired")
        return grant

    def _read(self, text: str) -> Grant:
        try:
            signed = archive_pb2.SignedGrant.FromString(base64.b64decode(text, validate=True))
            grant = archive_pb2.Grant.FromString(signed.payload)
            expire_time = grant.expire_time.ToDatetime(UTC)
        except (binascii.Error, DecodeError, ValueError) as error:
            raise _invalid("the grant cannot be read") from error
        try:
            good = self._credentials.grant_verify(grant.issuer, signed.payload, signed.signature)
        except OSError as error:
            raise _invalid("this archive has no key to verify grants with") from error
        if not good:
            raise _invalid("the grant was not signed by its issuer")
        if grant.store_id != self._store_id:
            raise _invalid("the grant is for another archive")
        if grant.epoch != self._epoch:
            raise _invalid("the archive was restarted since the grant was given")
        return Grant(
            grant.user,
            grant.study_instance_uid,
            study_hash(grant.study_instance_uid),
            grant.session_digest,
            expire_time,
        )


@dataclass(frozen=True, slots=True)
class _Right:
    """What the Database Server said, and when."""

    time: float
    role: int
    held: bool

    @property
    def may_read(self) -> bool:
        return self._is_of(_READERS)

    @property
    def sees(self) -> bool:
        """Whether the instances are not held, or the person has the right `reconcile`."""
        return not self.held or self._is_of(_RECONCILERS)

    def _is_of(self, roles: tuple[str, ...]) -> bool:
        name = database_pb2.Role.Name(self.role).removeprefix("ROLE_").lower()
        return name in roles or ("*" in roles and name not in ("none", "unspecified"))


_Key = tuple[bytes, str, bytes]


class Rights:
    """What a session may see of a study, as the Database Server said some moments ago. Thread-safe, bounded."""

    def __init__(self, context: Context) -> None:
        self._clock = context.clock
        self._grants = context.client(_DATABASE["GrantService"], "database-server")
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, _Right] = OrderedDict()

    def age(self, grant: Grant, admission_key: bytes) -> float:
        """Return the seconds since the last answer."""
        with self._lock:
            right = self._known.get((grant.session_digest, grant.study_instance_uid, admission_key))
        return self._clock.monotonic() - right.time if right else float("inf")

    def confirm(self, grant: Grant, admission_key: bytes) -> bool:
        """Return whether the instances with this admission key may be seen; asks if that is not known freshly.

        Raises:
            RadmeshError: GRANT_INVALID: session or role has ended; PEER_UNAVAILABLE: nobody can say.
        """
        key = (grant.session_digest, grant.study_instance_uid, admission_key)
        with self._lock:
            right = self._known.get(key)
        begin = self._clock.monotonic()
        if right is None or begin - right.time > FRESH_SECONDS:
            try:
                right = self._ask(key, begin)
            except RadmeshError as error:
                if error.reason == "SESSION_EXPIRED":
                    with self._lock:
                        self._known.pop(key, None)
                    raise _invalid("the session has ended") from error
                # For a moment the last answer stands, for databases are restarted.
                if right is None or self._clock.monotonic() - right.time > UNCONFIRMED_SECONDS:
                    raise RadmeshError(
                        "PEER_UNAVAILABLE", "the right to read cannot be confirmed: the database does not answer"
                    ) from error
        if not right.may_read:
            raise _invalid("the role no longer lets read")
        return right.sees

    def _ask(self, key: _Key, begin: float) -> _Right:
        session_digest, study_instance_uid, admission_key = key
        request = database_pb2.CheckGrantRequest(
            session_digest=session_digest, study_instance_uid=study_instance_uid, admission_key=admission_key
        )
        answer = self._grants.CheckGrant(request, timeout=ASK_SECONDS)
        # Good from the moment of the question: what changed later is not in the answer.
        right = _Right(begin, answer.role, answer.held)
        with self._lock:
            self._known[key] = right
            self._known.move_to_end(key)
            if len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        return right


class Accesses:
    """The audit of local reads: once a minute for the same session, study and outcome. Thread-safe, bounded."""

    def __init__(self, context: Context, store_id: str) -> None:
        self._clock = context.clock
        self._accounts = context.client(_DATABASE["AccountService"], "database-server")
        self._detail = json.dumps({"archive": store_id})
        self._lock = threading.Lock()
        self._recent: OrderedDict[tuple[bytes, str, str], float] = OrderedDict()

    def record(self, grant: Grant, source_address: str, outcome: str = "SUCCESS") -> None:
        """Write an access.

        Raises:
            RadmeshError: the database does not answer: nothing may be given.
        """
        key = (grant.session_digest, grant.study_instance_uid, outcome)
        now = self._clock.monotonic()
        with self._lock:
            if now - self._recent.get(key, float("-inf")) < AUDIT_SECONDS:
                return
        event = database_pb2.AuditEvent(
            action="STUDY_READ",
            actor=grant.user,
            source_address=source_address,
            outcome=outcome,
            object=grant.study_instance_uid,
            detail=self._detail,
        )
        event.time.FromDatetime(self._clock.now())
        self._accounts.AppendAudit(database_pb2.AppendAuditRequest(events=[event]))
        with self._lock:
            self._recent[key] = now
            self._recent.move_to_end(key)
            if len(self._recent) > REMEMBERED_MAX:
                self._recent.popitem(last=False)


class _Reading:
    """A read that is under way. Its thread checks the right; where that is stuck, the worker does."""

    __slots__ = ("admission_key", "call", "grant", "moved")

    def __init__(self, grant: Grant, admission_key: bytes, call: Call, now: float) -> None:
        self.grant, self.admission_key, self.call, self.moved = grant, admission_key, call, now


class LocalReads:
    """archive.v1.ReadService, and the worker that ends what may not go on.

    Args:
        context: of the archive.
        store: what is read from.
        tier: where the rows of lost cache copies are.
        read: TransferService.ReadRange.
    """

    def __init__(self, context: Context, store: LmdbStudyStore, tier: Tier, read: Read) -> None:
        self._clock, self._log = context.clock, context.log
        self._store, self._tier, self._read = store, tier, read
        self._check = GrantCheck(context.credentials, context.clock, store.store_id, store.epoch)
        self._rights = Rights(context)
        self._accesses = Accesses(context, store.store_id)
        self._lock = threading.Lock()
        self._running: set[_Reading] = set()
        self._worker: Worker = context.worker("local-reads", self._step, most_pause=STEP_SECONDS)
        context.status.figure("local_reads", lambda: len(self._running))

    def start(self) -> None:
        """Begin to watch."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End."""
        self._worker.stop(grace)

    def ReadRange(
        self, request: transfer_pb2.ReadRangeRequest, call: Call
    ) -> Iterator[Bulk[transfer_pb2.ReadRangeResponse]]:
        """Read a part of an object of the grant's study."""
        try:
            grant = self._check(call.metadata.get("authorization", ""))
        except RadmeshError as error:
            self._log.warning("grant refused", text=error.message, peer=call.peer)
            raise
        try:
            admission_key = self._may_begin(grant, ObjectReference.of(request.object))
        except RadmeshError as error:
            # Whoever may not read is told so even where that cannot be written down.
            if error.reason == "GRANT_INVALID":
                with contextlib.suppress(RadmeshError):
                    self._accesses.record(grant, call.peer, error.reason)
            raise
        self._accesses.record(grant, call.peer)
        reading = _Reading(grant, admission_key, call, self._clock.monotonic())
        with self._lock:
            self._running.add(reading)
        try:
            for message in self._read(request, call):
                self._may_go_on(reading)
                yield message
                reading.moved = self._clock.monotonic()
        finally:
            with self._lock:
                self._running.discard(reading)

    def _may_begin(self, grant: Grant, where: ObjectReference) -> bytes:
        """Return the object's admission key.

        Raises:
            RadmeshError: GRANT_INVALID; OBJECT_NOT_FOUND, also for what the grant's person does not see.
        """
        if where.study_hash != grant.study_hash:
            raise _invalid("the grant is for another study")
        admission_key = self._admission_key(where.ref) if where.store_id == self._store.store_id else b""
        if not self._rights.confirm(grant, admission_key):
            raise RadmeshError("OBJECT_NOT_FOUND", "the study has no such object here")
        return admission_key

    def _admission_key(self, ref: Ref) -> bytes:
        """Return an object's admission key; empty if there is none, or if the database does not know of it yet."""
        registered = next(
            (s.registered for s in self._store.generations(ref.study_hash) if s.generation == ref.generation), 0
        )
        if not 0 < ref.sequence <= registered:
            return b""
        try:
            return self._store.row(ref).header.admission_key
        except RadmeshError as error:
            if error.reason not in ("OBJECT_NOT_FOUND", "OBJECT_CORRUPT"):
                raise
        with contextlib.suppress(RadmeshError):
            return self._tier.entry(ref).row.header.admission_key
        return b""

    def _may_go_on(self, reading: _Reading) -> None:
        if not self._rights.confirm(reading.grant, reading.admission_key):
            raise _invalid("what is read was held meanwhile")

    def _step(self) -> float:
        with self._lock:
            running = list(self._running)
        for reading in running:
            if self._has_ended(reading):
                reading.call.context.cancel()  # type: ignore[no-untyped-call]
        return STEP_SECONDS

    def _has_ended(self, reading: _Reading) -> bool:
        age = self._rights.age(reading.grant, reading.admission_key)
        if age > UNCONFIRMED_SECONDS or self._clock.monotonic() - reading.moved > IDLE_SECONDS:
            return True
        if age > STUCK_SECONDS:
            try:
                self._may_go_on(reading)
            except RadmeshError:
                return True
        return False
