"""What a Curator asks and tells the Database Server."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any, Final

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2 as pb
from radmesh.curator.messages import content_of, rendition_message
from radmesh.curator.model import Content, Rendition
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.reader import Location

KIND: Final = "curate"
SWEPT: Final = '{"swept": true}'
_SERVICES: Final = pb.DESCRIPTOR.services_by_name
_REGISTERED_AT_ONCE: Final = 500
_SECONDS: Final = 10.0
_DROP_SECONDS: Final = 300.0
# A job that is tried so often and does not end is left; the sweep takes its study up later.
_ATTEMPTS: Final = 30
# Where an object is read from first.
_BEST: Final = (
    common_pb2.RESIDENCE_CACHE_AND_PERMANENT,
    common_pb2.RESIDENCE_CACHE,
    common_pb2.RESIDENCE_SPOOL,
    common_pb2.RESIDENCE_PERMANENT,
)


@dataclass(frozen=True, slots=True)
class Instance:
    """A current instance, and the copies of it that can be reached, best first."""

    content: Content
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    locations: tuple[Location, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A rendition that the database knows; `alive`: its web cache is not silent."""

    content: Content
    store_id: str
    alive: bool


class DatabaseClient:
    """Calls of the Database Server, in values.

    All raise RadmeshError as radmesh.api.database.v1 says.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.store_id = context.instance
        self._query = context.client(_SERVICES["QueryService"], "database-server")
        self._curation = context.client(_SERVICES["CurationService"], "database-server")
        self._registry = context.client(_SERVICES["RegistryService"], "database-server")
        self._jobs = context.client(_SERVICES["JobService"], "database-server")

    # -- studies

    def instances(self, study_instance_uid: str) -> Iterator[Instance]:
        """Yield the current instances of a study, held or not."""
        request = pb.FindInstancesRequest(study_instance_uid=study_instance_uid, include_held=True)
        while True:
            answer = self._query.FindInstances(request, timeout=_SECONDS)
            for found in answer.instances:
                yield self._instance(study_instance_uid, found)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def _instance(self, study_instance_uid: str, found: pb.Instance) -> Instance:
        copies = [place for place in found.locations if place.target and place.residence in _BEST]
        copies.sort(key=lambda place: _BEST.index(place.residence))
        return Instance(
            content_of(found.identity),
            study_instance_uid,
            found.series_instance_uid,
            found.sop_class_uid,
            tuple(
                Location(self._context.channels.get(place.target), ObjectReference.of(place.object)) for place in copies
            ),
        )

    def uncurated(self, page_token: str = "") -> tuple[list[str], str]:
        """Return a page of studies that want pictures, oldest first, and the next page's token."""
        answer = self._curation.FindUncurated(pb.FindUncuratedRequest(page_token=page_token), timeout=_SECONDS)
        return list(answer.study_instance_uids), answer.next_page_token

    # -- renditions

    def renditions(self, study_instance_uid: str) -> Iterator[Known]:
        """Yield what web caches have of the current instances of a study."""
        request = pb.FindRenditionsRequest(study_instance_uid=study_instance_uid, include_held=True)
        while True:
            answer = self._curation.FindRenditions(request, timeout=_SECONDS)
            for found in answer.renditions:
                yield Known(content_of(found.identity), found.store_id, bool(found.target))
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def register(self, renditions: Sequence[Rendition]) -> None:
        """Make renditions of this web cache known."""
        for start in range(0, len(renditions), _REGISTERED_AT_ONCE):
            some = renditions[start : start + _REGISTERED_AT_ONCE]
            messages = [rendition_message(rendition, self.store_id) for rendition in some]
            self._curation.RegisterRenditions(pb.RegisterRenditionsRequest(renditions=messages), timeout=_SECONDS)

    def drop(self, study_instance_uid: str = "") -> None:
        """Have the database forget what this web cache had of a study, or of all."""
        request = pb.DropRenditionsRequest(store_id=self.store_id, study_instance_uid=study_instance_uid)
        self._curation.DropRenditions(request, timeout=_SECONDS if study_instance_uid else _DROP_SECONDS)

    # -- web caches

    def beat(self, target: str, epoch: bytes, free: int, *, accepting: bool, timeout: float = 2.0) -> None:
        """Say that this web cache lives."""
        request = pb.HeartbeatRequest(
            store_id=self.store_id,
            kind=common_pb2.STORE_KIND_WEB_CACHE,
            target=target,
            epoch=epoch,
            free_bytes=free,
            accepting=accepting,
        )
        self._registry.Heartbeat(request, timeout=timeout)

    def resting(self, patience: float) -> set[str]:
        """Return web caches that are silent, and not for long: they are expected back."""
        since = self._context.clock.now() - timedelta(seconds=patience)
        return {
            store.store_id
            for store in self._registry.ListStores(pb.ListStoresRequest(), timeout=_SECONDS).stores
            if store.kind == common_pb2.STORE_KIND_WEB_CACHE
            and not store.alive
            and store.heartbeat_time.ToDatetime(UTC) > since
        }

    # -- jobs

    def enqueue(self, study_instance_uid: str, delay: float = 0.0, payload: str = "") -> None:
        """Have a study curated; nothing if a job of it waits or runs. `payload` SWEPT: nobody asked for it."""
        request = pb.EnqueueJobRequest(kind=KIND, key=study_instance_uid, max_attempts=_ATTEMPTS, payload=payload)
        request.delay.FromTimedelta(timedelta(seconds=delay))
        self._jobs.EnqueueJob(request, timeout=_SECONDS)

    def lease(self, count: int, seconds: float) -> list[Any]:
        """Take up to `count` jobs."""
        request = pb.LeaseJobsRequest(kinds=[KIND], owner=self._context.instance, count=count)
        request.lease.FromTimedelta(timedelta(seconds=seconds))
        return list(self._jobs.LeaseJobs(request, timeout=_SECONDS).jobs)

    def give_back_own(self) -> None:
        """Give back the jobs that are leased under this name."""
        request = pb.ListJobsRequest(kind=KIND, state=pb.JOB_STATE_LEASED, page_size=1000)
        while True:
            answer = self._jobs.ListJobs(request, timeout=_SECONDS)
            for job in answer.jobs:
                if job.owner == self.store_id:
                    with suppress(RadmeshError):
                        self.finish(job.id, job.fence, pb.JOB_STATE_QUEUED)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def renew(self, job_id: int, fence: int, seconds: float) -> None:
        """Prolong a lease."""
        request = pb.RenewJobRequest(id=job_id, fence=fence)
        request.lease.FromTimedelta(timedelta(seconds=seconds))
        self._jobs.RenewJob(request, timeout=_SECONDS)

    def finish(
        self, job_id: int, fence: int, state: int, *, reason: str = "", message: str = "", delay: float = 0.0
    ) -> None:
        """End a job, or give it back."""
        request = pb.FinishJobRequest(
            id=job_id,
            fence=fence,
            state=state,  # type: ignore[arg-type] # numbers are the proto's
            reason=reason,
            message=message,
        )
        request.retry_delay.FromTimedelta(timedelta(seconds=delay))
        self._jobs.FinishJob(request, timeout=_SECONDS)
