"""/api/v1/events: which studies changed, as it happens, as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Final

from starlette.responses import Response, StreamingResponse

from radmesh.application_server.changes import StudyChanges, Watcher
from radmesh.application_server.http.app import Door, Request
from radmesh.application_server.http.parameters import Query
from radmesh.application_server.http.routes import PERSONS, Route
from radmesh.application_server.ris import may_reconcile
from radmesh.runtime.errors import RadmeshError

# How often it is looked whether the session, and its right, are still there (AS1: 5 s, of which the cache has half).
_CHECK_SECONDS: Final = 2.0
# How often something is sent, so that proxies between know that the stream lives.
_BEAT_SECONDS: Final = 10.0


class _Waker(Watcher):
    """A watcher that wakes a coroutine, in place of a thread that waits."""

    def __init__(self, changes: StudyChanges, *, reconcile: bool) -> None:
        super().__init__(changes, reconcile=reconcile)
        self.something = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def tell(self, changed: dict[str, bool]) -> None:
        super().tell(changed)
        self._wake()

    def lose(self) -> None:
        super().lose()
        self._wake()

    def _wake(self) -> None:
        # A loop that has ended has nobody to be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.something.set)


def routes(door: Door, changes: StudyChanges) -> Sequence[Route]:
    """Return /api/v1/events."""

    async def watch(request: Request) -> Response:
        Query(request)
        if changes.watching >= door.config.max_watchers:
            raise RadmeshError(
                "TOO_MANY_CALLS",
                f"{door.config.max_watchers} clients watch: try again later",
                metadata={"retry_after_ms": "10000"},
            )
        headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
        return StreamingResponse(_stream(door, changes, request), media_type="text/event-stream", headers=headers)

    return (
        Route(
            "GET",
            "/api/v1/events",
            PERSONS,
            watch,
            'Server-sent events: `studies` with `{"study_instance_uids": […]}` within a second of a change, `resync` '
            "where anything may have changed.",
            lasting=True,
        ),
    )


async def _stream(door: Door, changes: StudyChanges, request: Request) -> AsyncIterator[bytes]:
    permit = door.sessions.permit(request.person, PERSONS)
    clock = asyncio.get_running_loop().time
    # Said when it is watched already: whoever reads then misses nothing.
    begin = b"retry: 1000\n: radmesh tells which studies change\n\n"
    while not door.draining:
        with _Waker(changes, reconcile=may_reconcile(request.person)) as watcher:
            yield begin
            beat = clock() + _BEAT_SECONDS
            while not door.draining:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_SECONDS):
                        await watcher.something.wait()
                try:
                    await door.run(permit.check)
                except RadmeshError:
                    # Whoever asks again is told why.
                    return
                person = door.sessions.known(request.person.token) or request.person
                watcher.reconcile = may_reconcile(person)
                watcher.something.clear()
                try:
                    studies = watcher.take(0)
                except RadmeshError:
                    begin = b"event: resync\ndata: {}\n\n"
                    break
                if studies:
                    data = json.dumps({"study_instance_uids": studies})
                    yield f"event: studies\ndata: {data}\n\n".encode()
                elif clock() >= beat:
                    yield b": still here\n\n"
                else:
                    continue
                beat = clock() + _BEAT_SECONDS
