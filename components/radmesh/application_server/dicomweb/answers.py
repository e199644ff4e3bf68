"""Answers of DICOMweb as ASGI: short ones at once, long ones piece by piece, none for a client that has gone."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, Self

from radmesh.application_server.dicomweb.ranges import byte_range, has, range_holds
from radmesh.application_server.http.app import Door, Receive, Send
from radmesh.application_server.http.routes import Scope
from radmesh.transfer.codec import Buffer

Headers = list[tuple[bytes, bytes]]
# A browser keeps what it was given, and asks each time whether it may still show it.
PRIVATE: Final = (b"cache-control", b"private, no-cache")
_VARY: Final = (b"vary", b"accept, accept-encoding")
_CONDITIONS: Final = frozenset((b"if-none-match", b"if-range", b"range"))


class Representation:
    """What is answered: its headers, its entity tag, its size, and what of it is asked for.

    Attributes:
        status: 200, 206 or 304.
        start, end: the first byte that is sent, and that behind the last.
    """

    def __init__(self, scope: Scope, content_type: str, tag: str, size: int, *, ranges: bool = True) -> None:
        """Look at the conditions of the request.

        Raises:
            RadmeshError: RANGE_INVALID.
        """
        self.status, self.start, self.end = 200, 0, size
        asked = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _CONDITIONS}
        if asked and has(asked.get(b"if-none-match", ""), tag):
            self.status, self.end = 304, 0
            self.headers: Headers = [(b"etag", tag.encode("latin-1")), PRIVATE, _VARY]
            return
        if asked and ranges and range_holds(asked.get(b"if-range", ""), tag):
            part = byte_range(asked.get(b"range", ""), size)
            if part is not None:
                self.status, (self.start, self.end) = 206, part
        self.headers = list(_headers(content_type, tag, self.end - self.start, ranges=ranges))
        if self.status == 206:
            told = f"bytes {self.start}-{self.end - 1}/{size}"
            self.headers.append((b"content-range", told.encode("ascii")))


@lru_cache(4096)
def _headers(content_type: str, tag: str, length: int, *, ranges: bool) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"etag", tag.encode("latin-1")),
        PRIVATE,
        _VARY,
        (b"content-type", content_type.encode("latin-1")),
        (b"content-length", str(length).encode("ascii")),
        *([(b"accept-ranges", b"bytes")] if ranges else []),
    )


async def begin(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Send status and headers."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def go_on(send: Send, data: Buffer) -> None:
    """Send a part of the body."""
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def end(send: Send, data: Buffer = b"") -> None:
    """Send the last part of the body."""
    await send({"type": "http.response.body", "body": data})


class Departure:
    """Notices that the client has gone; use it as a context manager around a long answer."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()

    @property
    def gone(self) -> bool:
        """Whether the client has gone."""
        return self._task is not None and self._task.done()


async def stream(
    door: Door,
    receive: Receive,
    send: Send,
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    pieces: Iterator[Buffer],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Send pieces that are fetched in threads; `check`, called before each, raises when it must end.

    Nothing is sent before the first piece is there: what fails until then is told as an error.
    """

    def fetch() -> Buffer | None:
        check()
        return next(pieces, None)

    try:
        piece = await door.run(fetch)
        await begin(send, status, headers)
        async with Departure(receive) as departure:
            while piece is not None and not departure.gone:
                await go_on(send, piece)
                piece = await door.run(fetch)
            if not departure.gone:
                await end(send)
    finally:
        close: Any = getattr(pieces, "close", None)
        if close is not None:
            await door.run(close)
