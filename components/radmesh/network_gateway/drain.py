"""Empties the spool into archives: an object is transferred, read back, registered, and only then leaves the spool.

Every step may be repeated: an archive that has the object already says so, a registration is idempotent, and what was
removed stays removed. Objects of a study go in the order in which they came.
"""

import hashlib
from dataclasses import replace
from typing import Any, Final

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.header import QueryableHeader
from radmesh.network_gateway.placements import Memory
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.study_store import IndexRow, LmdbStudyStore
from radmesh.transfer.model import ObjectReference, Ticket, key_message
from radmesh.transfer.reader import read_range
from radmesh.transfer.sender import Sender
from radmesh.transfer.tickets import Admission, TicketCache

_SERVICES = database_pb2.DESCRIPTOR.services_by_name
_LOOK_SECONDS: Final = 1.0
_CALL_SECONDS: Final = 10.0


class Drain:
    """A worker with a sender of its own."""

    def __init__(self, context: Context, spool: LmdbStudyStore, memory: Memory) -> None:
        self._context = context
        self._spool = spool
        self._memory = memory
        self._placement = context.client(_SERVICES["PlacementService"], "database-server")
        self._registry = context.client(_SERVICES["RegistryService"], "database-server")
        self._tickets = TicketCache(context.clock)
        self._sender: Sender | None = None
        self.drained = 0
        self._worker: Worker = context.worker("drain", self._step)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End after the object that is under way."""
        self._worker.stop(grace)
        if self._sender is not None:
            self._sender.close()

    def _step(self) -> float:
        if not any(a.alive and a.accepting for a in self._memory.archives):
            return _LOOK_SECONDS
        failure: RadmeshError | None = None
        for state in self._spool.studies():
            if self._worker.stopping:
                return 0.0
            if state.state in ("OPEN", "SEALED") and state.last and state.registered >= state.last:
                try:
                    self._drain(state.study_hash, state.generation, state.last)
                except RadmeshError as error:
                    if error.transient or error.reason == "NO_ARCHIVE":
                        raise
                    # A study that cannot be moved keeps no other in the spool.
                    failure = failure or error
        if failure is not None:
            raise failure
        return _LOOK_SECONDS

    def _drain(self, study_hash: str, generation: int, last: int) -> None:
        """Move one generation; a study that is still being received is left for the next look."""
        after = 0
        while rows := self._spool.rows(study_hash, generation, after=after):
            for row in rows:
                if self._worker.stopping:
                    return
                self._move(row)
                after = row.ref.sequence
        if after == last:
            try:
                self._spool.remove_study(study_hash, generation, last)
            except RadmeshError as error:
                if error.reason != "STORE_BUSY":
                    raise

    def _move(self, row: IndexRow) -> None:
        sender = self._sender
        if sender is None:
            sender = self._sender = Sender(self._context.line, self._admit, self._context.clock, tickets=self._tickets)
        key = _key(row)
        sender.begin(row.header, key, row.queryable)
        digest = hashlib.sha256()
        with self._spool.read(row.ref) as reader:
            for data in reader:
                digest.update(data)
                sender.write(data)
        if digest.digest() != row.sha256:
            sender.abort()
            # The store says so where it is asked what is the matter, and a re-send heals it.
            self._spool.damage.question(row.ref)
            raise RadmeshError("OBJECT_CORRUPT", "the spool's copy is not what was received: send the object again")
        committed = sender.commit(row.sha256, row.queryable, row.remarks)
        self._check(row, committed.object)
        mark = common_pb2.CommitMark(
            store_id=committed.object.store_id,
            study_hash=committed.object.study_hash,
            generation=committed.object.generation,
            sequence=committed.object.sequence,
        )
        answer = self._registry.WaitRegistered(database_pb2.WaitRegisteredRequest(marks=[mark]), timeout=_CALL_SECONDS)
        if answer.missing:
            raise RadmeshError("REGISTRATION_LATE", "the archive's copy is not registered yet: the spool keeps its own")
        gone = database_pb2.InstanceUpdate(
            object=ObjectReference(
                self._spool.store_id, row.ref.study_hash, row.ref.generation, row.ref.sequence
            ).message(),
            removed=True,
        )
        self._registry.UpdateInstances(database_pb2.UpdateInstancesRequest(updates=[gone]), timeout=_CALL_SECONDS)
        self.drained += 1

    def _check(self, row: IndexRow, where: ObjectReference) -> None:
        """Read the archive's copy back and compare its digest with what was received."""
        archive = next((a for a in self._memory.archives if a.store_id == where.store_id), None)
        if archive is None:
            raise RadmeshError("STORE_UNKNOWN", "the archive is not known yet: the copy is checked later")
        channel = self._context.channels.get(archive.target)
        with read_range(channel, where) as reader:
            for _ in reader:
                pass
            if reader.sha256 != row.sha256 or reader.size != row.length:
                raise RadmeshError("OBJECT_CORRUPT", "the archive's copy is not what was spooled")

    def _admit(self, admission: Admission) -> Ticket:
        """Only into an archive: the spool must not drain into itself."""
        request = database_pb2.PlaceStudyRequest(
            admission_key=key_message(admission.key),
            verification=admission.header.verification,  # type: ignore[arg-type]
            avoid_store_id=admission.avoid_store_id,
        )
        answer: Any = self._placement.PlaceStudy(request, timeout=2.0)
        return Ticket.parse(answer.ticket)


def _key(row: IndexRow) -> AdmissionKey:
    """The admission key of a spooled object; its study is known also where the queryable header does not name it."""
    key = AdmissionKey.of(row.header.calling_ae_title, QueryableHeader.parse(row.queryable))
    return replace(key, study_instance_uid=row.header.study_instance_uid)
