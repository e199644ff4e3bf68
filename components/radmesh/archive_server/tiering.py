"""Copies quiet studies to the permanent tier, while nothing else is to be done.

For each object: written, synced, read back from the disk, hashed; then its name and its line in the manifest are made
durable, and only then does the store say that a permanent copy exists. Each step may be repeated after a crash.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from radmesh.archive_server.reports import Reporter, Reports
from radmesh.archive_server.tier import Entry, Tier
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.study_store import LmdbStudyStore, Ref

# Objects settled together: names and manifest are synced once for them.
_BATCH: Final = 32
# A study that never falls quiet is copied all the same after this time.
_LONGEST_WAIT: Final = 300.0
# While objects come in, copying waits between two of its own: intake has the disk and the processor.
_BUSY_SECONDS: Final = 0.5
_YIELD_SECONDS: Final = 0.25
_LOOK_SECONDS: Final = 1.0


class Tiering:
    """A worker. `idle_seconds` tells how long no object has come in."""

    def __init__(
        self,
        context: Context,
        store: LmdbStudyStore,
        tier: Tier,
        reports: Reports,
        reporter: Reporter,
        quiet: float,
        idle_seconds: Callable[[], float],
    ) -> None:
        self._clock = context.clock
        self._log = context.log
        self._status = context.status
        self._counter = context.metrics.counter("radmesh_objects_permanent")
        self._store = store
        self._tier = tier
        self._reports = reports
        self._reporter = reporter
        self._quiet = quiet
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        # (study hash, generation) -> (first, last) time that something came of it since it was settled.
        self._waiting: OrderedDict[tuple[str, int], tuple[float, float]] = OrderedDict()
        self._never = threading.Event()
        self._scanned = False
        self.copied = 0
        self._worker: Worker = context.worker("tiering", self._step)

    def start(self) -> None:
        """Begin; what an earlier process left undone is found by looking."""
        self._store.on_commit(self._committed)
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End after the object that is being copied."""
        self._worker.stop(grace)

    def _committed(self, ref: Ref) -> None:
        now = self._clock.monotonic()
        key = (ref.study_hash, ref.generation)
        with self._lock:
            first, _ = self._waiting.get(key, (now, now))
            self._waiting[key] = (first, now)

    def _step(self) -> float:
        if not self._scanned:
            for state in self._store.studies():
                if self._worker.stopping:
                    return 0.0
                if state.state in ("OPEN", "SEALED") and state.last:
                    with self._lock:
                        self._waiting.setdefault((state.study_hash, state.generation), (0.0, 0.0))
            self._scanned = True
        now = self._clock.monotonic()
        with self._lock:
            due = [k for k, (a, b) in self._waiting.items() if now - b >= self._quiet or now - a >= _LONGEST_WAIT]
        # What cannot be copied keeps no other study, and no other object of its own, from the tier.
        failure: RadmeshError | None = None
        for key in due:
            if self._worker.stopping:
                return 0.0
            with self._lock:
                before = self._waiting.get(key)
            try:
                settled = self._settle(*key)
            except RadmeshError as error:
                failure = failure or error
                continue
            if settled:
                with self._lock:
                    # Something that came meanwhile keeps it in the queue.
                    if self._waiting.get(key) == before:
                        self._waiting.pop(key, None)
        if failure is not None:
            raise failure
        self._status.clear_alarm("TIER_FAILED")
        return min(_LOOK_SECONDS, max(0.05, self._quiet / 2))

    def _settle(self, study_hash: str, generation: int) -> bool:
        """Copy what is missing of a generation; return whether all is there now."""
        try:
            missing = self._store.unsettled(study_hash, generation)
        except RadmeshError as error:
            if error.reason == "OBJECT_NOT_FOUND":
                return True
            raise
        batch: list[Entry] = []
        failure: RadmeshError | None = None
        for ref in missing:
            self._yield()
            if self._worker.stopping:
                break
            try:
                batch.append(self._copy(ref))
            except RadmeshError as error:
                if error.reason == "OBJECT_CORRUPT" and self._store.damage.look_at(ref):
                    continue  # marked and told of: it is not tried again, and does not keep its study from being done
                self._status.raise_alarm(
                    "TIER_FAILED", f"an object cannot be copied to the permanent tier: {error.reason}"
                )
                failure = failure or error
                if error.reason == "TIER_FAILED":
                    break
                continue
            if len(batch) == _BATCH:
                self._finish(batch)
                batch = []
        if batch:
            self._finish(batch)
        if failure is not None:
            raise failure
        return not self._worker.stopping

    def _copy(self, ref: Ref) -> Entry:
        with self._store.read(ref) as reader:
            return self._tier.write(self._store.row(ref), reader)

    def _finish(self, batch: list[Entry]) -> None:
        refs = [entry.row.ref for entry in batch]
        self._tier.settle(batch)
        with self._reports.changing(refs):
            self._store.set_permanent(refs)
        self.copied += len(refs)
        self._counter.inc(len(refs))
        self._reporter.wake()

    def _yield(self) -> None:
        """Wait a moment while objects come in, so that copying takes a small share of the machine."""
        if self._idle_seconds() < _BUSY_SECONDS and not self._worker.stopping:
            self._clock.wait(self._never, _YIELD_SECONDS)
