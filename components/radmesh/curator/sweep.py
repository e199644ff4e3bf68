"""Finds work: what comes is told by the change feed, what was missed is found by looking."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from radmesh.curator.curation import Report
from radmesh.curator.database import SWEPT, DatabaseClient
from radmesh.curator.webcache import WebCache
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.transfer.feed import Follower

# What was looked at and found to want nothing that can be made is not looked at again so soon.
_SETTLED_SECONDS: Final = 600.0
_SETTLED_MOST: Final = 100_000
_PAGES_MOST: Final = 50
_QUEUED_MOST: Final = 200
_CHANGES_MOST: Final = 100_000
_BUSY_SECONDS: Final = 1.0
# An instance waits so often while what comes in leaves less than this part of the cores free.
_PAUSES_MOST: Final = 20
_FREE: Final = 0.15


class Sweep:
    """Workers that enqueue studies.

    Args:
        context: of the Curator.
        database: where jobs are.
        cache: with room for what is not asked for, or without.
        quiet: seconds after which work on a study begins.
        every: seconds between two looks at everything.
        busy_pause: seconds that an instance waits while objects come in.
        note: tells of a change of a study; whether it is being worked on here.
        wake: is called when there may be a job.
        lost: is called when changes may have been missed.
    """

    def __init__(
        self,
        context: Context,
        database: DatabaseClient,
        cache: WebCache,
        *,
        quiet: float,
        every: float,
        busy_pause: float,
        note: Callable[[str], bool],
        wake: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._clock = context.clock
        self._database = database
        self._cache = cache
        self._quiet = quiet
        self._every = every
        self._pause = busy_pause
        self._note = note
        self._wake = wake
        self._lock = threading.Lock()
        self._changed: OrderedDict[str, None] = OrderedDict()
        # Study -> until when a sweep passes it over.
        self._settled: OrderedDict[str, float] = OrderedDict()
        self._intake_at = float("-inf")
        self._never = threading.Event()
        self._enqueuer: Worker = context.worker("enqueue", self._enqueue, most_pause=5.0)
        self._sweeper: Worker = context.worker("sweep", self._sweep, most_pause=5.0)
        self._lost = lost
        self._follower = Follower(context, "feed", ("instances", "job"), self._change, self._missed)

    def start(self) -> None:
        """Begin."""
        self._follower.start()
        self._enqueuer.start()
        self._sweeper.start()

    def stop(self, grace: float) -> None:
        """End."""
        self._never.set()
        self._follower.stop(grace)
        self._enqueuer.stop(grace)
        self._sweeper.stop(grace)

    def look(self, study_instance_uid: str = "") -> None:
        """Look now; at one study, or at all."""
        with self._lock:
            if study_instance_uid:
                self._settled.pop(study_instance_uid, None)
                self._changed[study_instance_uid] = None
            else:
                self._settled.clear()
        self._enqueuer.wake()
        self._sweeper.wake()

    def settle(self, study_instance_uid: str, report: Report | None) -> None:
        """A job has ended: while nothing of the study comes, another would find nothing more to make."""
        if report is None or (report.made and not report.unreadable):
            return
        with self._lock:
            self._settled[study_instance_uid] = self._clock.monotonic() + _SETTLED_SECONDS
            self._settled.move_to_end(study_instance_uid)
            while len(self._settled) > _SETTLED_MOST:
                self._settled.popitem(last=False)

    def may_begin(self) -> None:
        """Wait a little while objects come in: they come first; longer while they need every core, not for ever."""
        for _ in range(_PAUSES_MOST if self._pause else 0):
            if self._clock.monotonic() - self._intake_at >= _BUSY_SECONDS:
                return
            free, every = _cores()
            self._clock.wait(self._never, self._pause)
            free, every = (now - then for now, then in zip(_cores(), (free, every), strict=True))
            if self._never.is_set() or free >= _FREE * every:
                return

    def _change(self, kind: str, key: str) -> None:
        if kind == "job":
            self._wake()
            return
        self._intake_at = self._clock.monotonic()
        if self._note(key):
            return
        with self._lock:
            self._settled.pop(key, None)
            self._changed[key] = None
            # What is forgotten here is found by the sweep.
            while len(self._changed) > _CHANGES_MOST:
                self._changed.popitem(last=False)
        self._enqueuer.wake()

    def _missed(self) -> None:
        self._sweeper.wake()
        self._lost()

    def _enqueue(self) -> float:
        while True:
            with self._lock:
                if not self._changed:
                    return self._every
                study, _ = self._changed.popitem(last=False)
            try:
                self._database.enqueue(study, self._quiet)
            except RadmeshError as error:
                if error.transient:
                    with self._lock:
                        self._changed[study] = None
                raise

    def _sweep(self) -> float:
        # Room that is nearly used up is for what comes, and for what is asked for.
        if self._cache.nearly_full:
            return self._every
        token, queued = "", 0
        for _ in range(_PAGES_MOST):
            studies, token = self._database.uncurated(token)
            now = self._clock.monotonic()
            with self._lock:
                wanted = [study for study in studies if self._settled.get(study, now) <= now]
            for study in wanted:
                self._database.enqueue(study, payload=SWEPT)
            queued += len(wanted)
            if not token or queued >= _QUEUED_MOST:
                break
        if queued:
            self._wake()
        return self._every


def _cores() -> tuple[int, int]:
    """Ticks that cores were free, and all ticks; what runs when nobody else wants to leaves its core free."""
    try:
        with open("/proc/stat", "rb") as file:  # noqa: PTH123 - read for every instance
            ticks = [int(value) for value in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    _, nice, _, idle, waiting, *_ = ticks
    return nice + idle + waiting, sum(ticks)
