"""Wires the Archive Server."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.archive_server.checks import Checks
from radmesh.archive_server.config import Section
from radmesh.archive_server.grants import LocalReads
from radmesh.archive_server.listener import Listener
from radmesh.archive_server.reading import Reading
from radmesh.archive_server.reports import Reporter, Reports
from radmesh.archive_server.service import ArchiveService
from radmesh.archive_server.tier import Tier
from radmesh.archive_server.tiering import Tiering
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Group
from radmesh.runtime.rpc import Server
from radmesh.study_store import LmdbStudyStore, Outcome, Ref, Residence
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.pump import Heartbeat, RegistrationPump
from radmesh.transfer.receiver import TransferReceiver


class ArchiveServer:
    """The component: cache, permanent tier, registration."""

    def __init__(self, config: Section, context: Context) -> None:
        number = context.instance.rpartition("-")[2]
        self._store = LmdbStudyStore(
            context.data / "cache",
            f"archive-{number if number.isdecimal() else '0'}",
            context.clock,
            reserve=config.reserve,
            alarm=context.status.raise_alarm,
            clear=context.status.clear_alarm,
        )
        root = Path(config.tier) if config.tier else context.data / "permanent"
        if not config.tier:
            root.mkdir(exist_ok=True, mode=0o700)
        tier = Tier(root, context.log)
        self._reports = Reports(context.data / "reports")
        reporter = Reporter(self._reports, self._describe, context)
        # No max_connection_age here: a connection that carries an object is not cut (CORRECTNESS rule 6).
        self._server: Server = context.server(max_workers=config.max_streams, max_connection_age=None)
        reading = Reading(self._store, tier)
        receiver = TransferReceiver(self._store, context.credentials, context.clock, read=reading)
        local_reads = LocalReads(context, self._store, tier, receiver.ReadRange)
        listener = Listener(config, context, local_reads)
        heartbeat = Heartbeat(
            self._store,
            context,
            common_pb2.STORE_KIND_ARCHIVE,
            lambda: self._server.target,
            put_target=lambda: self._server.line_target,
            client_url=lambda: listener.url,
        )
        pump = RegistrationPump(self._store, context, heartbeat=heartbeat)
        tiering = Tiering(context, self._store, tier, self._reports, reporter, config.quiet, receiver.idle_seconds)
        checks = self._checks = Checks(
            context, self._store, reading, self._reports, reporter, config.quiet, receiver.idle_seconds
        )

        @contextmanager
        def changing(refs: Sequence[Ref]) -> Iterator[None]:
            with self._reports.changing(refs):
                yield
            reporter.wake()

        for state in self._store.studies():
            if state.state == "LOST":
                self._reports.add(e.row.ref for e in tier.entries(state.study_hash, state.generation).values())

        receiver.serve(self._server)
        self._server.add(
            archive_pb2.DESCRIPTOR.services_by_name["ArchiveService"], ArchiveService(self._store, changing)
        )
        self._services = Group([local_reads, listener, heartbeat, pump, reporter, tiering, checks])
        figure = context.status.figure
        figure("objects", lambda: self._store.objects_committed)
        figure("megabytes", lambda: self._store.bytes_committed / 1e6)
        figure("permanent", lambda: tiering.copied)
        figure("defective", lambda: checks.defective)
        figure("unregistered", lambda: sum(max(0, last - done) for _, _, done, last in self._store.unregistered()))
        commit_seconds = context.metrics.histogram("radmesh_commit_seconds")
        self._store.on_commit_seconds = commit_seconds.observe
        objects = context.metrics.counter("radmesh_objects_committed")
        counted = {outcome: objects.labels(outcome.value) for outcome in Outcome}
        size_counter = context.metrics.counter("radmesh_bytes_committed")

        def stored(outcome: Outcome, size: int) -> None:
            counted[outcome].inc()
            if outcome is not Outcome.ALREADY:
                size_counter.inc(size)

        self._store.on_stored = stored

    def _describe(self, ref: Ref) -> database_pb2.InstanceUpdate | None:
        """Return an object's state for the database; None while it is not registered."""
        for study_hash, generation, registered, _ in self._store.unregistered():
            if (study_hash, generation) == (ref.study_hash, ref.generation) and ref.sequence > registered:
                return None
        try:
            residence = self._store.residence(ref)
            defect = "" if residence is Residence.PERMANENT else self._store.defect(ref)
        except RadmeshError:
            return None  # it cannot be read now: what is to be said of the others does not wait
        return database_pb2.InstanceUpdate(
            object=ObjectReference(self._store.store_id, ref.study_hash, ref.generation, ref.sequence).message(),
            residence=int(residence),  # type: ignore[arg-type]
            defect=defect,
        )

    def start(self) -> None:
        """Serve."""
        self._server.start()
        self._services.start()

    def stop(self, grace: float) -> None:
        """Finish what has begun."""
        self._server.stop(grace)
        self._services.stop(grace)
        self._store.close()
        self._reports.close()


def module(config: Section, context: Context) -> ArchiveServer:
    """Return the component."""
    return ArchiveServer(config, context)
