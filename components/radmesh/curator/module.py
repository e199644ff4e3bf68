"""Wires a Curator."""

import os
from typing import Final

from radmesh.api.curator.v1 import curator_pb2
from radmesh.curator.config import Section
from radmesh.curator.curation import Curation, Report
from radmesh.curator.database import DatabaseClient
from radmesh.curator.jobs import Jobs
from radmesh.curator.service import CODECS, WebCacheService
from radmesh.curator.sweep import Sweep
from radmesh.curator.upkeep import Upkeep
from radmesh.curator.webcache import WebCache
from radmesh.curator.workers import Workers
from radmesh.runtime.context import Context
from radmesh.runtime.lifecycle import Group
from radmesh.runtime.rpc import Server

_SERVICE: Final = curator_pb2.DESCRIPTOR.services_by_name["WebCacheService"]


class Curator:
    """The component: web cache, and the work on it."""

    def __init__(self, config: Section, context: Context) -> None:
        cache = self._cache = WebCache(
            context.data / "webcache", context.clock, context.log, size=config.size, reserve=config.reserve
        )
        database = DatabaseClient(context)
        self._workers = Workers(config.threads or os.cpu_count() or 1)
        self._server: Server = context.server()
        self._sweep = Sweep(
            context,
            database,
            cache,
            quiet=config.quiet,
            every=config.sweep,
            busy_pause=config.busy_pause,
            note=self._note,
            wake=self._wake,
            lost=self._check,
        )
        self._curation = Curation(
            context, database, cache, self._workers, self._sweep.may_begin, self._damaged, config.patience
        )
        self._jobs = Jobs(context, database, self._curation, self._workers, self._done, lambda: cache.nearly_full)
        self._upkeep = Upkeep(
            context,
            database,
            cache,
            target=lambda: self._server.target,
            give_back=self._jobs.give_back,
            look=self._sweep.look,
        )
        self._server.add(
            _SERVICE,
            WebCacheService(cache, context.instance, self._upkeep.damaged, self._upkeep.check, self._upkeep.wipe),
            codecs=CODECS,
        )
        self._services = Group([self._upkeep, self._sweep, self._jobs])
        figure = context.status.figure
        figure("made", lambda: self._curation.made)
        figure("studies", lambda: len(cache.studies()))
        figure("megabytes", lambda: cache.used() / 1e6)
        figure("working", self._jobs.active)

    # The sweep, the jobs and the upkeep know of each other.

    def _note(self, study_instance_uid: str) -> bool:
        return self._jobs.note(study_instance_uid)

    def _wake(self) -> None:
        self._jobs.wake()

    def _check(self) -> None:
        self._upkeep.check()

    def _done(self, study_instance_uid: str, report: Report | None) -> None:
        self._sweep.settle(study_instance_uid, report)
        self._upkeep.look_for_room()

    def _damaged(self, study_instance_uid: str) -> None:
        self._upkeep.damaged(study_instance_uid)

    def start(self) -> None:
        """Serve."""
        self._server.start()
        self._services.start()

    def stop(self, grace: float) -> None:
        """Give back what is under way, finish what is being sent, and end."""
        self._workers.close()
        self._services.stop(grace)
        self._curation.close()
        self._server.stop(grace)
        self._cache.close()

    def pids(self) -> list[int]:
        """Return the processes: this one, and those that decode."""
        return [os.getpid(), *(worker.pid for worker in self._workers.all if worker.pid)]


def module(config: Section, context: Context) -> Curator:
    """Return the component."""
    return Curator(config, context)
