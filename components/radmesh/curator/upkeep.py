"""Keeps the web cache within bounds, and what the database knows of it true."""

import secrets
import threading
from collections import OrderedDict, deque
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
_AGAIN_SECONDS: Final = 0.5
_EVICTED_AT_ONCE: Final = 50
_UNSURE_MOST: Final = 10_000
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
        self._damaged: OrderedDict[str, None] = OrderedDict()
        self._unsure: OrderedDict[str, None] = OrderedDict()
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

    def check(self, study_instance_uid: str = "") -> None:
        """Compare what is here of a study, or of all, with what the database knows: it may have been restored."""
        with self._lock:
            wanted = [study_instance_uid] if study_instance_uid else self._studies()
            if len(self._unsure) < _UNSURE_MOST or not study_instance_uid:
                self._unsure.update(dict.fromkeys(wanted))
        self._truth.wake()

    def look_for_room(self) -> None:
        """Something was added."""
        if self._cache.surplus():
            self._room.wake()

    def damaged(self, study_instance_uid: str) -> None:
        """Something of a study is not as it was made: all of it is dropped, and made again."""
        with self._lock:
            self._damaged[study_instance_uid] = None
        self._truth.wake()

    def wipe(self, study_instance_uid: str) -> tuple[int, int]:
        """Drop a study, or all, and have it made again; return how many studies, and their bytes.

        Raises:
            RadmeshError: the database does not answer; STORE_BUSY.
        """
        wanted = [study for study in self._studies() if study_instance_uid in ("", study)]
        count = size = 0
        try:
            for study in wanted:
                size += self._drop(study)
                count += 1
            if not study_instance_uid and not self._studies():
                # Whatever it still thinks is here.
                self._database.drop()
        finally:
            self._look(study_instance_uid)
        self._log.info("web cache was wiped", studies=count)
        return count, size

    def _drop(self, study_instance_uid: str) -> int:
        """Drop a study; who writes to it is told to let go."""
        until = self._clock.monotonic() + _WIPE_SECONDS
        while True:
            try:
                return self._forget(study_instance_uid)
            except RadmeshError as error:
                if error.reason != "STORE_BUSY" or self._clock.monotonic() > until:
                    raise
            self._give_back(study_instance_uid)
            self._clock.wait(self._never, 0.05)

    def _forget(self, study_instance_uid: str) -> int:
        """Drop a study's file, after the database has: nobody is to be sent for it any more when it goes."""
        with self._cache.alone(study_instance_uid) as drop:
            self._database.drop(study_instance_uid)
            size: int = drop()
            return size

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
                try:
                    surplus -= self._forget(study)
                except RadmeshError as error:
                    if error.reason != "STORE_BUSY":
                        raise
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
            self._look("")
        while self._gone:
            self._database.drop(self._gone[0])
            self._look(self._gone.popleft())
        while not self._truth.stopping:
            with self._lock:
                study = next(iter(self._damaged or self._unsure), None)
                damaged = study in self._damaged
            if study is None:
                break
            if damaged:
                self._log.warning("pictures are damaged, and made again")
                self._drop(study)
                self._look(study)
            elif not self._compare(study):
                return _AGAIN_SECONDS
            with self._lock:
                self._damaged.pop(study, None)
                self._unsure.pop(study, None)
        return _LOOK_SECONDS

    def _compare(self, study_instance_uid: str) -> bool:
        """Have the database know what is here of a study, and nothing that is not; return whether that was possible."""
        try:
            with self._cache.alone(study_instance_uid):
                self._tell(study_instance_uid)
        except RadmeshError as error:
            if error.reason == "STORE_BUSY":
                # Who works on it tells what is here; it is looked at again, after the others.
                with self._lock:
                    self._unsure.move_to_end(study_instance_uid)
                return False
            if error.reason == "RENDITION_DAMAGED":
                self._drop(study_instance_uid)
                self._look(study_instance_uid)
            elif error.reason != "STUDY_NOT_FOUND":
                raise
            # A study that is not known may come back; if it does not, it is evicted some day.
        return True

    def _tell(self, study_instance_uid: str) -> None:
        try:
            here = self._cache.contents(study_instance_uid)
        except RadmeshError as error:
            if error.reason != "RENDITION_NOT_FOUND":
                raise
            here = {}
        store_id = self._database.store_id
        known = {k.content for k in self._database.renditions(study_instance_uid) if k.store_id == store_id}
        if known - here.keys():
            self._database.drop(study_instance_uid)
            self._look(study_instance_uid)
            known = set()
        if missing := [rendition for content, rendition in here.items() if content not in known]:
            self._database.register(missing)
