"""Which studies changed, for those who watch: one follower of the change feed for all of them."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final, Self

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.ris import may_reconcile
from radmesh.application_server.sessions import SessionCache
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.runtime.rpc import Call, roles_of
from radmesh.transfer.feed import WATCH_SECONDS

# Their key is the Study Instance UID.
KINDS: Final = ("instances", "study", "hold", "correction", "report", "rendition")
HEARTBEAT_SECONDS: Final = 10.0
# How long changes are gathered before they are told.
_GATHER_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 1.0
_AT_ONCE: Final = 500
_WAITING_MAX: Final = 10_000
_SEEN_MAX: Final = 100_000
_NOW: Final = 1 << 62
_WATCHERS: Final = roles_of(pb.DESCRIPTOR.services_by_name["ImageService"].methods_by_name["WatchStudies"])


class Watcher:
    """Gathers the studies that changed until they are taken; a context manager. Thread-safe, bounded."""

    def __init__(self, changes: "StudyChanges", *, reconcile: bool) -> None:
        self.reconcile = reconcile
        """Whether it is told of what is held; may be changed while it watches."""
        self._changes = changes
        self._condition = threading.Condition()
        self._waiting: dict[str, bool] = {}
        self._lost = False

    def __enter__(self) -> Self:
        self._changes.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.remove(self)

    def tell(self, changed: dict[str, bool]) -> None:
        """Add studies, each with whether everybody may know of it."""
        with self._condition:
            self._waiting.update(changed)
            self._lost = self._lost or len(self._waiting) > _WAITING_MAX
            self._condition.notify_all()

    def lose(self) -> None:
        """Some changes are not known: whoever watches has to look at everything again."""
        with self._condition:
            self._lost = True
            self._condition.notify_all()

    def take(self, seconds: float) -> list[str]:
        """Return studies that changed, as soon as there are some; none after `seconds`.

        Raises:
            RadmeshError: RESYNC: changes were missed; look at all, and watch anew.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._lost or self._waiting, seconds)
            if self._lost:
                raise RadmeshError("RESYNC", "changes were missed: read what you show again, then watch")
            taken = [uid for uid, public in self._waiting.items() if public or self.reconcile]
            self._waiting.clear()
            return taken


class StudyChanges:
    """Follows the change feed, and tells watchers.

    Whoever has no right `reconcile` is not told of a study that is held, unless it was seen before: then it has gone.

    Args:
        context: of the Application Server.
        queries: calls of QueryService.
    """

    def __init__(self, context: Context, queries: Any) -> None:
        self._queries = queries
        self._feed = context.client(database_pb2.DESCRIPTOR.services_by_name["FeedService"], "database-server")
        self._lock = threading.Lock()
        self._watchers: set[Watcher] = set()
        self._changed: dict[str, None] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._revision = _NOW
        self._call: Any = None
        self._follower: Worker = context.worker("study-changes", self._follow, most_pause=1.0)
        self._teller: Worker = context.worker("study-watchers", self._tell, most_pause=1.0)

    def start(self) -> None:
        """Begin."""
        self._follower.start()
        self._teller.start()

    def stop(self, grace: float) -> None:
        """End, and end who watches."""
        call = self._call
        if call is not None:
            call.cancel()
        self._follower.stop(grace)
        self._teller.stop(grace)
        self._lose()

    def watcher(self, *, reconcile: bool) -> Watcher:
        """Return a watcher; it gathers while it is entered."""
        return Watcher(self, reconcile=reconcile)

    def add(self, watcher: Watcher) -> None:
        """Tell a watcher from now on."""
        with self._lock:
            self._watchers.add(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Tell it no more."""
        with self._lock:
            self._watchers.discard(watcher)

    @property
    def watching(self) -> int:
        """How many watch."""
        return len(self._watchers)

    def _lose(self) -> None:
        with self._lock:
            self._changed.clear()
            for watcher in self._watchers:
                watcher.lose()

    def _follow(self) -> float:
        try:
            # A revision that cannot be asks where the feed is.
            request = database_pb2.WatchRequest(from_revision=self._revision, kinds=KINDS)
            self._call = self._feed.Watch(request, timeout=WATCH_SECONDS)
            for change in self._call:
                self._revision = change.revision
                self._note(change.key)
        except RadmeshError as error:
            if self._follower.stopping or error.reason == "PEER_TIMEOUT":
                return 0.0  # in the second case it goes on at the revision that it has
            if error.reason != "RESYNC":
                raise  # and goes on at the revision that it has
            self._lose()
            self._revision = int(error.metadata["revision"])
            return 0.0
        return 0.5

    def _note(self, study_instance_uid: str) -> None:
        with self._lock:
            first = not self._changed
            self._changed[study_instance_uid] = None
            full = len(self._changed) > _WAITING_MAX
        if full:
            self._lose()
        elif first:
            self._teller.wake()

    def _tell(self) -> float:
        with self._lock:
            uids = list(self._changed)[:_AT_ONCE]
            # Taken away before it is looked at: what changes meanwhile is told again.
            for uid in uids:
                del self._changed[uid]
        if not uids:
            return _LOOK_SECONDS
        wanted = database_pb2.FindStudiesRequest(study_instance_uids=uids, page_size=len(uids))
        try:
            visible = {study.study_instance_uid for study in self._queries.FindStudies(wanted).studies}
        except RadmeshError:
            with self._lock:
                self._changed.update(dict.fromkeys(uids))
            raise
        changed = {uid: uid in visible or uid in self._seen for uid in uids}
        for uid in uids:
            self._seen.pop(uid, None)
            if uid in visible:
                self._seen[uid] = None
        while len(self._seen) > _SEEN_MAX:
            self._seen.popitem(last=False)
        with self._lock:
            for watcher in self._watchers:
                watcher.tell(changed)
        return _GATHER_SECONDS


class StudyWatches:
    """ImageService.WatchStudies.

    Args:
        context: of the Application Server.
        changes: what is watched.
        sessions: of the door: a watch ends with its session.
        most: watches at one time; each has a thread of the door.
    """

    def __init__(self, context: Context, changes: StudyChanges, sessions: SessionCache, most: int) -> None:
        self._clock = context.clock
        self._changes, self._sessions = changes, sessions
        # HTTP has watchers of its own, which take no threads.
        self._places = threading.BoundedSemaphore(most)
        self._most = most

    def WatchStudies(self, _request: pb.WatchStudiesRequest, call: Call) -> Iterator[pb.WatchStudiesResponse]:
        """Stream the UIDs of studies that changed."""
        if not self._places.acquire(blocking=False):
            raise RadmeshError(
                "TOO_MANY_CALLS",
                f"{self._most} clients are watching: try again later",
                metadata={"retry_after_ms": "5000"},
            )
        try:
            yield from self._watch(call)
        finally:
            self._places.release()

    def _watch(self, call: Call) -> Iterator[pb.WatchStudiesResponse]:
        assert call.person is not None
        person = call.person
        permit = self._sessions.permit(person, _WATCHERS)
        with self._changes.watcher(reconcile=may_reconcile(person)) as watcher:
            yield pb.WatchStudiesResponse()
            told = self._clock.monotonic()
            while call.is_active():
                permit.check()
                person = self._sessions.known(person.token) or person
                watcher.reconcile = may_reconcile(person)
                studies = watcher.take(_LOOK_SECONDS)
                if studies or self._clock.monotonic() - told >= HEARTBEAT_SECONDS:
                    yield pb.WatchStudiesResponse(study_instance_uids=studies)
                    told = self._clock.monotonic()
