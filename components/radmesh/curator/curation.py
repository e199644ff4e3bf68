"""Makes the pictures of one study."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from radmesh.curator.database import DatabaseClient, Instance
from radmesh.curator.model import Content, Rendition
from radmesh.curator.study_file import InstanceWriter, StudyWriter
from radmesh.curator.webcache import WebCache
from radmesh.curator.worker.instance import Wish
from radmesh.curator.worker.metadata import Identity
from radmesh.curator.worker.process import lower_priority
from radmesh.curator.worker.table import State
from radmesh.curator.workers import Worker, WorkerDiedError, Workers, WorkerUnavailableError
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.reader import ObjectRead

# What is made is told so often, and after each commit.
_TELL_SECONDS: Final = 1.0
# A frame over which so many processes ended is at fault.
_DEATHS_MOST, _KILLS_MOST = 2, 5
# By the table, with the depth that was seen, passed through, original: each with the deaths that there may be.
_TRIES_MOST: Final = 24
_UNREADABLE: Final = frozenset(("OBJECT_CORRUPT", "RANGE_INVALID"))
# Pixel data is not what it says it is; all other reasons are the table's.
CORRUPT: Final = frozenset(
    (
        "DATA_SET_UNREADABLE",
        "FRAGMENTS_BROKEN",
        "FRAME_UNDECODABLE",
        "PALETTE_UNUSABLE",
        "PIXELS_UNDESCRIBED",
        "PIXEL_DATA_MISSING",
        "PIXEL_DATA_SHORT",
    )
)


class StoppedError(Exception):
    """The job was lost, or this Curator stops."""


@dataclass(slots=True)
class Report:
    """What became of a study: instances made, and what is wrong with some, as (reason, SOP Instance UID, frame)."""

    made: int = 0
    corrupt: list[tuple[str, str, int]] = field(default_factory=list)
    unreadable: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def problem(self) -> tuple[str, str]:
        """Reason and text of what is wrong; empty: nothing."""
        wrong = [*self.unreadable, *self.corrupt]
        if not wrong:
            return "", ""
        reason, uid, frame = wrong[0]
        text = f"object {uid}" + (f", frame {frame}" if frame else "")
        return reason, text + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")


class Curation:
    """Makes studies; each call from a thread of its own.

    Args:
        context: of the Curator.
        database: whom it is told.
        cache: where it is kept.
        workers: who make it, at most so many instances at one time.
        may_begin: waits until there is time for another instance.
        damaged: is called with a study whose file cannot be used as it is.
        patience: seconds for which what a silent web cache has is not made again.
    """

    def __init__(
        self,
        context: Context,
        database: DatabaseClient,
        cache: WebCache,
        workers: Workers,
        may_begin: Callable[[], None],
        damaged: Callable[[str], None],
        patience: float,
    ) -> None:
        self._context = context
        self._log = context.log
        self._database = database
        self._cache = cache
        self._workers = workers
        self._may_begin = may_begin
        self._damaged = damaged
        self._patience = patience
        self._pool = ThreadPoolExecutor(len(workers.all), thread_name_prefix="make", initializer=lower_priority)
        counter = context.metrics.counter
        self._instances = counter("radmesh_renditions")
        self._read = counter("radmesh_curator_read_bytes")
        self._kept = counter("radmesh_curator_kept_bytes")
        self._deaths = counter("radmesh_curator_worker_deaths")
        self.made = 0

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def run(self, study_instance_uid: str, stopped: Callable[[], bool]) -> Report:
        """Make what a study lacks, until it lacks nothing.

        Raises:
            StoppedError: as soon as `stopped` is true.
            RadmeshError: it cannot be gone on with now.
        """
        report = Report()
        left: set[Content] = set()
        while todo := [i for i in self._lacking(study_instance_uid) if i.content not in left]:
            if stopped():
                raise StoppedError
            if not self._cache.free():
                raise RadmeshError("STORAGE_FULL", "the web cache has no room")
            try:
                with self._cache.writer(study_instance_uid) as writer:
                    left |= self._make_all(todo, writer, report, stopped)
                    self._prepare(writer, {instance.series_instance_uid for instance in todo})
            except RadmeshError as error:
                if error.reason == "RENDITION_DAMAGED":
                    self._damaged(study_instance_uid)
                raise
        return report

    def _lacking(self, study_instance_uid: str) -> list[Instance]:
        """Return current instances that no web cache has, or none that lives or is expected back."""
        try:
            current = list(self._database.instances(study_instance_uid))
            known = list(self._database.renditions(study_instance_uid))
        except RadmeshError as error:
            if error.reason != "STUDY_NOT_FOUND":
                raise
            return []
        silent = {one.store_id for one in known if not one.alive}
        expected = self._database.resting(self._patience) if silent else set()
        there = {one.content for one in known if one.alive or one.store_id in expected}
        return [instance for instance in current if instance.content not in there]

    def _prepare(self, writer: StudyWriter, series: Iterable[str]) -> None:
        """Make the metadata of series now: who asks for them first does not wait."""
        for uid in series:
            with suppress(RadmeshError):
                writer.file.series_metadata(uid)

    def _make_all(
        self, todo: Sequence[Instance], writer: StudyWriter, report: Report, stopped: Callable[[], bool]
    ) -> set[Content]:
        """Make instances; return those that could not be read."""
        here = writer.contents()
        self._database.register([here[i.content] for i in todo if i.content in here])
        waiting = [instance for instance in reversed(todo) if instance.content not in here]
        running: dict[Future[Rendition], Instance] = {}
        left: set[Content] = set()
        given_up = threading.Event()
        told_at = self._context.clock.monotonic()
        try:
            while waiting or running:
                if stopped():
                    raise StoppedError
                # One more than there are workers: none waits for this thread.
                while waiting and len(running) <= len(self._workers.all):
                    instance = waiting.pop()
                    running[self._pool.submit(self._make, instance, writer, given_up)] = instance
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    instance = running.pop(future)
                    self._note(future, instance, report, left)
                if self._context.clock.monotonic() - told_at >= _TELL_SECONDS:
                    self._tell(writer)
                    told_at = self._context.clock.monotonic()
        except BaseException:
            given_up.set()
            for future in running:
                future.cancel()
            wait(running)
            # What is complete is kept, where it can be.
            for future, instance in running.items():
                with suppress(Exception, CancelledError):
                    self._note(future, instance, report, left)
            with suppress(RadmeshError):
                self._tell(writer)
            raise
        self._tell(writer)
        return left

    def _note(self, future: "Future[Rendition]", instance: Instance, report: Report, left: set[Content]) -> None:
        try:
            rendition = future.result()
        except RadmeshError as error:
            if error.reason not in _UNREADABLE:
                raise
            left.add(instance.content)
            report.unreadable.append((error.reason, instance.content.sop_instance_uid, 0))
            self._log.warning("object cannot be read", reason=error.reason, text=error.message)
            return
        report.made += 1
        self.made += 1
        self._instances.labels(State(rendition.state).name).inc()
        if rendition.reason in CORRUPT:
            report.corrupt.append((rendition.reason, instance.content.sop_instance_uid, rendition.frame))

    def _tell(self, writer: StudyWriter) -> None:
        durable = writer.flush()
        self._kept.inc(sum(rendition.bytes for rendition in durable))
        self._database.register(durable)

    # -- one instance, in a thread of the pool

    def _make(self, instance: Instance, writer: StudyWriter, given_up: threading.Event) -> Rendition:
        self._may_begin()
        wish, deaths = Wish(), 0
        with self._workers.one() as worker:
            for _ in range(_TRIES_MOST):
                if given_up.is_set():
                    raise StoppedError
                sink = writer.instance()
                try:
                    answer = self._ask(worker, instance, wish, sink, given_up)
                except WorkerDiedError as died:
                    sink.abort()
                    self._deaths.inc()
                    deaths += 1
                    self._log.warning("worker ended over a frame", frame=died.frame, how=died.how, tries=deaths)
                    # Who is killed from outside may have been in the way of others.
                    if deaths < (_KILLS_MOST if died.killed else _DEATHS_MOST):
                        continue
                    if not died.frame or wish.state:
                        answer = _nothing("DATA_SET_UNREADABLE", died.frame)
                        sink = writer.instance()
                    else:
                        wish, deaths = Wish(State.ORIGINAL, "FRAME_UNDECODABLE", died.frame), 0
                        continue
                except WorkerUnavailableError as error:
                    sink.abort()
                    raise RadmeshError("PEER_UNAVAILABLE", str(error)) from error
                except BaseException:
                    with suppress(RadmeshError):
                        sink.abort()
                    raise
                if isinstance(answer, Wish):
                    sink.abort()
                    wish = answer
                    continue
                if not sink.described:
                    sink.metadata(_identity(instance).document())
                return sink.finish(_rendition(instance, answer))
        raise RadmeshError("INTERNAL", "an instance was made too often")

    def _ask(
        self, worker: Worker, instance: Instance, wish: Wish, sink: InstanceWriter, given_up: threading.Event
    ) -> dict[str, Any] | Wish:
        if not instance.locations:
            raise RadmeshError("PEER_UNAVAILABLE", "no store that has the object can be reached")
        with ObjectRead(instance.locations) as read:
            if read.sha256 != instance.content.sha256:
                raise RadmeshError("OBJECT_CORRUPT", "the store has other bytes under the object's name")
            self._read.inc(read.size)
            source = _Source(read, given_up)
            return worker.make(source, _identity(instance), instance.content.transfer_syntax_uid, wish, sink)


class _Source:
    """An object that is being read; ends when nobody wants it any more."""

    def __init__(self, read: ObjectRead, given_up: threading.Event) -> None:
        self.size = read.size
        self._read = read
        self._given_up = given_up

    def __iter__(self) -> Any:
        for piece in self._read:
            if self._given_up.is_set():
                raise StoppedError
            yield piece


def _rendition(instance: Instance, facts: dict[str, Any]) -> Rendition:
    facts = dict(facts)
    facts["served_syntax"] = facts.pop("transfer_syntax_uid")
    return Rendition(instance.content, instance.study_instance_uid, instance.series_instance_uid, **facts)


def _nothing(reason: str, frame: int) -> dict[str, Any]:
    return {"state": int(State.NONE), "reason": reason, "frame": frame, "transfer_syntax_uid": ""}


def _identity(instance: Instance) -> Identity:
    return Identity(
        instance.study_instance_uid,
        instance.series_instance_uid,
        instance.sop_class_uid,
        instance.content.sop_instance_uid,
    )
