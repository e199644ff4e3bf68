"""Competes for jobs, and does them: any number of Curators may."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from radmesh.api.database.v1 import database_pb2
from radmesh.curator.curation import Curation, Report, StoppedError
from radmesh.curator.database import SWEPT, DatabaseClient
from radmesh.curator.worker.process import lower_priority
from radmesh.curator.workers import ClosedError, Workers
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker

LEASE_SECONDS: Final = 60.0
RENEW_SECONDS: Final = LEASE_SECONDS / 3
_POLL_SECONDS: Final = 2.0
_SOON_SECONDS: Final = 0.25
# After a failure that may pass; doubled with each attempt.
_RETRY_SECONDS, _RETRY_MOST = 1.0, 30.0
_RESTING_SECONDS: Final = 30.0


@dataclass(slots=True)
class _Job:
    id: int
    fence: int
    attempt: int
    study: str
    swept: bool
    until: float
    lost: bool = False
    given_back: bool = False
    seen: bool = field(default=False)


class Jobs:
    """Leases, does and ends jobs; `done` is called with each study and what became of it.

    Args:
        context: of the Curator.
        database: where jobs are.
        curation: does them.
        workers: rest when there is nothing to do.
        done: (study, report); no report: there may be more to do.
        full: whether there is room only for what comes and what is asked for.
    """

    def __init__(
        self,
        context: Context,
        database: DatabaseClient,
        curation: Curation,
        workers: Workers,
        done: Callable[[str, Report | None], None],
        full: Callable[[], bool],
    ) -> None:
        self._clock = context.clock
        self._log = context.log
        self._database = database
        self._curation = curation
        self._workers = workers
        self._done = done
        self._full = full
        self._most = len(workers.all)
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._active: dict[int, _Job] = {}
        self._stopping = False
        self._reclaimed = False
        self._woken_at = float("-inf")
        self._idle_since = self._clock.monotonic()
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="job", initializer=lower_priority)
        self._seconds = context.metrics.histogram("radmesh_curate_seconds")
        self._worker: Worker = context.worker("jobs", self._lease)
        self._renewer: Worker = context.worker("leases", self._renew, most_pause=1.0)

    def start(self) -> None:
        """Begin."""
        self._worker.start()
        self._renewer.start()

    def stop(self, grace: float) -> None:
        """Give back what runs, and end."""
        self._stopping = True
        self._worker.stop(grace)
        with self._lock:
            self._ended.wait_for(lambda: not self._active, grace)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._renewer.stop(grace)

    def wake(self) -> None:
        """There may be a job, now or soon."""
        self._woken_at = self._clock.monotonic()
        self._worker.wake()

    def active(self) -> int:
        """Return how many jobs run here."""
        return len(self._active)

    def note(self, study_instance_uid: str) -> bool:
        """Something of a study came; return whether it is being worked on here, and is looked at again afterwards."""
        with self._lock:
            for job in self._active.values():
                if job.study == study_instance_uid:
                    job.seen = True
                    return True
        return False

    def give_back(self, study_instance_uid: str) -> None:
        """End work on a study, or on all, for now; others or this Curator begin anew."""
        with self._lock:
            for job in self._active.values():
                if study_instance_uid in ("", job.study):
                    job.given_back = True

    # -- leases

    def _lease(self) -> float:
        if not self._reclaimed:
            # What an earlier process of this name had: it is no more, for two never have one folder.
            self._database.give_back_own()
            self._reclaimed = True
        with self._lock:
            free = self._most - len(self._active)
        now = self._clock.monotonic()
        if free:
            jobs = self._database.lease(free, LEASE_SECONDS)
            for job in jobs:
                self._take(_Job(job.id, job.fence, job.attempt, job.key, job.payload == SWEPT, now + LEASE_SECONDS))
            if jobs:
                self._idle_since = now
            elif free == self._most and now - self._idle_since > _RESTING_SECONDS:
                self._workers.rest()
        # A job that was told of becomes due without another word.
        return _SOON_SECONDS if now - self._woken_at < _POLL_SECONDS else _POLL_SECONDS

    def _take(self, job: _Job) -> None:
        with self._lock:
            self._active[job.id] = job
        self._pool.submit(self._do, job)

    def _renew(self) -> float:
        with self._lock:
            jobs = list(self._active.values())
        for job in jobs:
            now = self._clock.monotonic()
            try:
                self._database.renew(job.id, job.fence, LEASE_SECONDS)
                job.until = now + LEASE_SECONDS
            except RadmeshError as error:
                # While nobody answers, the lease lasts as long as it lasts.
                job.lost |= error.reason in ("JOB_LOST", "JOB_NOT_FOUND") or now >= job.until
        return RENEW_SECONDS if not any(self._clock.monotonic() >= j.until - RENEW_SECONDS for j in jobs) else 1.0

    # -- one job

    def _do(self, job: _Job) -> None:
        begun = self._clock.monotonic()
        report: Report | None = None
        try:
            report = self._run(job)
        except Exception as error:  # noqa: BLE001 - the lease runs out, and another takes the job
            self._log.exception("job was not ended", error)
        finally:
            with self._lock:
                self._active.pop(job.id, None)
                self._ended.notify_all()
            self._seconds.observe(self._clock.monotonic() - begun)
            self._done(job.study, report)
            if job.seen:
                self._again(job.study)
            self._worker.wake()

    def _run(self, job: _Job) -> Report | None:
        states: Any = database_pb2
        try:
            job.seen = False
            if job.swept and self._full():
                # Room is for what comes, and what is asked for.
                self._end(job, states.JOB_STATE_SUCCEEDED)
                return None
            report = self._curation.run(job.study, lambda: job.lost or job.given_back or self._stopping)
        except (StoppedError, ClosedError):
            if not job.lost:
                self._end(job, states.JOB_STATE_QUEUED)
            return None
        except RadmeshError as error:
            self._log.warning("study waits", reason=error.reason, text=error.message, attempt=job.attempt)
            delay = min(_RETRY_SECONDS * 2 ** min(job.attempt - 1, 10), _RETRY_MOST)
            self._end(job, states.JOB_STATE_QUEUED, error.reason, error.message, delay)
            return None
        reason, message = report.problem
        self._end(job, states.JOB_STATE_FAILED if reason else states.JOB_STATE_SUCCEEDED, reason, message)
        return report

    def _end(self, job: _Job, state: int, reason: str = "", message: str = "", delay: float = 0.0) -> None:
        try:
            self._database.finish(job.id, job.fence, state, reason=reason, message=message, delay=delay)
        except RadmeshError as error:
            if error.reason not in ("JOB_LOST", "JOB_NOT_FOUND"):
                raise

    def _again(self, study: str) -> None:
        try:
            self._database.enqueue(study)
        except RadmeshError:
            return  # the sweep finds it
