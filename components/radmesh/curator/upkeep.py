"""Keeps the web cache within bounds, and what the database knows of it true."""

import secrets
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from radmesh.curator.database import DatabaseClient
from radmesh.curator.webcache import WebCache
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker

_BEAT_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 5.0
_EVICTED_AT_ONCE: Final = 50
# A study that is being written to lets go of it within so long.
_WIPE_SECONDS: Final = 20.0


class Upkeep:
    """Workers: heartbeat, room, and whether the database and the files agree.

    Args:
        context: of the Curator.
        database: whom it is told.
        cache: what is kept.
        target: where it is served.
        give_back: ends work on a study.
        look: has a study, or all, looked at anew.
    """

    def __init__(
        self,
        context: Context,
        database: DatabaseClient,
        cache: WebCache,
        *,
        target: Callable[[], str],
        give_back: Callable[[str], None],
        look: Callable[[str], None],
    ) -> None:
        self._clock = context.clock
        self._log = context.log
        self._status = context.status
        self._database = database
        self._cache = cache
        self._target = target
        self._give_back = give_back
        self._look = look
        self._epoch = secrets.token_bytes(16)
        self._accepting = True
        self._lock = threading.Lock()
        # Everything the database has of this web cache is to be dropped first: its files are not these.
        self._anew = cache.new
        self._gone: deque[str] = deque(cache.lost)
        self._damaged: set[str] = set()
        self._unsure: deque[str] = deque()
        self._evicted = context.metrics.counter("radmesh_webcache_evictions")
        self._bytes = context.metrics.gauge("radmesh_webcache_bytes")
        self._never = threading.Event()
        self._heart: Worker = context.worker("heartbeat", self._beat, most_pause=_BEAT_SECONDS)
        self._room: Worker = context.worker("room", self._make_room, most_pause=5.0)
        self._truth: Worker = context.worker("truth", self._agree, most_pause=5.0)
        self.check()

    def start(self) -> None:
        """Begin; the first heartbeat is sent here."""
        with suppress(RadmeshError):
            self._beat()
        self._heart.start()
        self._truth.start()
        self._room.start()

    def stop(self, grace: float) -> None:
        """Say that nothing more is made, and end."""
        self._never.set()
        self._accepting = False
        self._room.stop(grace)
        self._truth.stop(grace)
        self._heart.stop(grace)

    def check(self) -> None:
        """Compare all that is here with what the database knows: it may have been restored."""
        with self._lock:
            waiting = set(self._unsure)
            self._unsure.extend(
                s.study_instance_uid for s in self._cache.studies() if s.study_instance_uid not in waiting
            )
        self._truth.wake()

    def damaged(self, study_instance_uid: str) -> None:
        """Something of a study is not as it was made: all of it is dropped, and made again."""
        with self._lock:
            self._damaged.add(study_instance_uid)
        self._truth.wake()

    def wipe(self, study_instance_uid: str) -> tuple[int, int]:
        """Drop a study, or all, and have it made again; return how many studies, and their bytes.

        Raises:
            RadmeshError: the database does not answer; STORE_BUSY.
        """
        wanted = [
            s.study_instance_uid for s in self._cache.studies() if study_instance_uid in ("", s.study_instance_uid)
        ]
        if not study_instance_uid:
            self._database.drop()
        count = size = 0
        try:
            for study in wanted:
                size += self._drop(study)
                count += 1
        finally:
            self._look(study_instance_uid)
        self._log.info("web cache was wiped", studies=count)
        return count, size

    def _drop(self, study_instance_uid: str) -> int:
        """Drop a study; who writes to it is told to let go."""
        until = self._clock.monotonic() + _WIPE_SECONDS
        while True:
            self._database.drop(study_instance_uid)
            try:
                return self._cache.drop(study_instance_uid)
            except RadmeshError as error:
                if error.reason != "STORE_BUSY" or self._clock.monotonic() > until:
                    raise
            self._give_back(study_instance_uid)
            self._clock.wait(self._never, 0.05)

    def _studies(self) -> list[str]:
        return [study.study_instance_uid for study in self._cache.studies()]

    # -- workers

    def _beat(self) -> float:
        free = self._cache.free()
        self._database.beat(self._target(), self._epoch, free, accepting=self._accepting and free > 0)
        return _BEAT_SECONDS

    def _make_room(self) -> float:
        self._cache.remember_reads()
        self._bytes.set(self._cache.used())
        wanted = surplus = self._cache.surplus()
        while surplus > 0:
            candidates = self._cache.candidates(_EVICTED_AT_ONCE)
            if not candidates:
                break
            for study in candidates:
                if surplus <= 0 or self._room.stopping:
                    break
                # Nobody is to be sent for it any more when it goes.
                self._database.drop(study)
                try:
                    surplus -= self._cache.drop(study)
                except RadmeshError as error:
                    if error.reason != "STORE_BUSY":
                        raise
                    self._look(study)
                    continue
                self._evicted.inc()
        if wanted and self._cache.surplus():
            self._status.raise_alarm("STORAGE_FULL", "the web cache has no room, and nothing that could go")
        else:
            self._status.clear_alarm("STORAGE_FULL")
        return _LOOK_SECONDS

    def _agree(self) -> float:
        if self._anew:
            self._database.drop()
            self._anew = False
        while self._gone:
            self._database.drop(self._gone[0])
            self._gone.popleft()
        while not self._truth.stopping:
            with self._lock:
                damaged = next(iter(self._damaged), None)
                unsure = self._unsure[0] if self._unsure and damaged is None else None
            if damaged is not None:
                self._log.warning("pictures are damaged, and made again")
                self._drop(damaged)
                with self._lock:
                    self._damaged.discard(damaged)
                self._look(damaged)
            elif unsure is not None:
                self._compare(unsure)
                with self._lock:
                    self._unsure.popleft()
            else:
                break
        return _LOOK_SECONDS

    def _compare(self, study_instance_uid: str) -> None:
        """Have the database know what is here of a study, and nothing that is not."""
        try:
            here = self._cache.contents(study_instance_uid)
            known = {
                one.content
                for one in self._database.renditions(study_instance_uid)
                if one.store_id == self._database.store_id
            }
        except RadmeshError as error:
            if error.reason == "RENDITION_DAMAGED":
                self._drop(study_instance_uid)
                self._look(study_instance_uid)
            elif error.reason not in ("STUDY_NOT_FOUND", "RENDITION_NOT_FOUND"):
                raise
            return  # a study that is not known may come back; if it does not, it is evicted some day
        if known - here.keys():
            self._database.drop(study_instance_uid)
            known = set()
        if missing := [rendition for content, rendition in here.items() if content not in known]:
            self._database.register(missing)
