"""Checks pixel data in quiet time. A defective instance is marked and reported, and served like any other."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from radmesh.archive_server.reports import Reporter, Reports
from radmesh.dicom.frame_decoder import FrameDecoder
from radmesh.dicom.image_check import check
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.study_store import LmdbStudyStore, Ref

# Where it is never quiet, an object that waits so long is checked all the same; one a second.
_LONGEST_WAIT: Final = 300.0
_OVERDUE_SECONDS: Final = 1.0
# While objects come in, what is being read waits so long for each megabyte.
_BUSY_SECONDS: Final = 0.5
_YIELD_SECONDS: Final = 0.05
_LOOK_SECONDS: Final = 1.0


class _StoppedError(Exception):
    """The archive stops: the object is checked after its next start."""


class Checks:
    """A worker.

    Args:
        context: of the archive.
        store: whose objects are checked; it remembers which were.
        read: opens an object.
        reports: what the database is to be told.
        reporter: tells it.
        quiet: seconds without intake after which there is time.
        idle_seconds: how long no object has come in.
        decoder: of first frames.
    """

    def __init__(
        self,
        context: Context,
        store: LmdbStudyStore,
        read: Callable[[Ref], Any],
        reports: Reports,
        reporter: Reporter,
        quiet: float,
        idle_seconds: Callable[[], float],
        decoder: FrameDecoder | None = None,
    ) -> None:
        self._clock = context.clock
        self._log = context.log
        self._store = store
        self._read = read
        self._reports = reports
        self._reporter = reporter
        self._quiet = quiet
        self._idle_seconds = idle_seconds
        self._decoder = decoder or FrameDecoder()
        self._lock = threading.Lock()
        # (study hash, generation) -> (first, last) time that something came of it since all of it was checked.
        self._waiting: OrderedDict[tuple[str, int], tuple[float, float]] = OrderedDict()
        self._never = threading.Event()
        self._scanned = False
        self._overdue_at = float("-inf")
        self.checked = 0
        self.defective = 0
        self._worker: Worker = context.worker("checks", self._step)

    def start(self) -> None:
        """Begin; what an earlier process left undone is found by looking."""
        self._store.on_commit(self._committed)
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End within the object that is being checked."""
        self._decoder.close()
        self._worker.stop(grace)

    def _committed(self, ref: Ref) -> None:
        now = self._clock.monotonic()
        key = (ref.study_hash, ref.generation)
        with self._lock:
            first, _ = self._waiting.get(key, (now, now))
            self._waiting[key] = (first, now)

    def _step(self) -> float:
        if not self._scanned:
            now = self._clock.monotonic()
            for state in self._store.studies():
                if state.state in ("OPEN", "SEALED") and state.last:
                    with self._lock:
                        self._waiting.setdefault((state.study_hash, state.generation), (now, now))
            self._scanned = True
        with self._lock:
            waiting = list(self._waiting.items())
        failure: Exception | None = None
        for key, times in waiting:
            try:
                if not self._check_generation(key, times[0]):
                    return _LOOK_SECONDS
            except _StoppedError:
                return 0.0
            except Exception as error:  # noqa: BLE001 - it keeps no other study from being checked, and is raised below
                failure = failure or error
                continue
            with self._lock:
                # Something that came meanwhile keeps it in the queue.
                if self._waiting.get(key) == times:
                    del self._waiting[key]
        if failure is not None:
            raise failure
        self._decoder.rest()
        return min(_LOOK_SECONDS, max(0.05, self._quiet / 2))

    def _check_generation(self, key: tuple[str, int], since: float) -> bool:
        """Check what was not; return whether there was time for all of it."""
        try:
            refs = self._store.unchecked(*key)
        except RadmeshError as error:
            if error.reason == "OBJECT_NOT_FOUND":
                return True
            raise
        failure: Exception | None = None
        for ref in refs:
            if not self._may_begin(since):
                return False
            try:
                self._check(ref)
            except _StoppedError:
                raise
            except Exception as error:  # noqa: BLE001 - it cannot be read or was not tried; the next may be
                # What has left the cache is checked no more.
                if not isinstance(error, RadmeshError) or error.reason != "OBJECT_NOT_FOUND":
                    failure = failure or error
        if failure is not None:
            raise failure
        return True

    def _may_begin(self, since: float) -> bool:
        if self._worker.stopping:
            raise _StoppedError
        if self._idle_seconds() >= self._quiet:
            return True
        now = self._clock.monotonic()
        if now - since < _LONGEST_WAIT or now - self._overdue_at < _OVERDUE_SECONDS:
            return False
        self._overdue_at = now
        return True

    def _check(self, ref: Ref) -> None:
        header = self._store.row(ref).header
        with self._read(ref) as reader:
            pieces = self._pieces(reader)
            defect = check(pieces, header.sop_class_uid, header.transfer_syntax_uid, self._decoder)
        if defect:
            with self._reports.changing([ref]):
                self._store.set_checked(ref, defect)
            self.defective += 1
            self._log.warning("defective pixel data", defect=defect, study_hash=ref.study_hash, sequence=ref.sequence)
            self._reporter.wake()
        else:
            self._store.set_checked(ref, "")
        self.checked += 1

    def _pieces(self, reader: Iterable[bytes]) -> Iterator[bytes]:
        for piece in reader:
            if self._worker.stopping:
                raise _StoppedError
            if self._idle_seconds() < _BUSY_SECONDS:
                self._clock.wait(self._never, _YIELD_SECONDS)
            yield piece
