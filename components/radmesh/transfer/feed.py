"""Follows the Database Server's change feed."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker

WATCH_SECONDS: Final = 10.0
"""A watch is asked for anew after so long: one that is lost without a word must not leave its follower deaf."""
_FEED: Final = database_pb2.DESCRIPTOR.services_by_name["FeedService"]


class Follower:
    """Calls `changed` with kind and key of every change, and `lost` when some may have been missed.

    Args:
        context: of the component that follows.
        name: of the worker.
        kinds: the changes that are wanted.
        changed: called for each, in order.
        lost: called after the feed was interrupted, and when it cannot go on where it was.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        kinds: Sequence[str],
        changed: Callable[[str, str], None],
        lost: Callable[[], None],
    ) -> None:
        self._kinds, self._changed, self._lost = tuple(kinds), changed, lost
        self._feed = context.client(_FEED, "database-server")
        self._revision = -1
        self._call: Any = None
        self._worker: Worker = context.worker(name, self._step, most_pause=1.0)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End."""
        call = self._call
        if call is not None:
            call.cancel()
        self._worker.stop(grace)

    def _step(self) -> float:
        try:
            # A revision that cannot be asks where the feed is.
            asked = self._revision if self._revision >= 0 else (1 << 62)
            request = database_pb2.WatchRequest(from_revision=asked, kinds=self._kinds)
            self._call = self._feed.Watch(request, timeout=WATCH_SECONDS)
            for change in self._call:
                self._changed(change.kind, change.key)
                self._revision = change.revision
        except RadmeshError as error:
            if self._worker.stopping or error.reason == "PEER_TIMEOUT":
                return 0.0  # in the second case it goes on at the revision that it has
            self._lost()
            if error.reason != "RESYNC":
                raise
            self._revision = int(error.metadata["revision"])
            return 0.0
        return 0.5
