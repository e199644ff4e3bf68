"""The listener: uvicorn in a thread of its own, and the patience it has with clients.

uvicorn bounds neither the head of a request nor the time that a client takes, and a client without TLS on a TLS port
is told nothing. So connections are accepted here, given to uvicorn's protocol, and looked at once a second.
"""

import asyncio
import contextlib
import functools
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from radmesh.application_server.config import Http
from radmesh.application_server.http.app import Door
from radmesh.application_server.http.problems import phrase, problem
from radmesh.runtime.addresses import bracketed, is_loopback
from radmesh.runtime.errors import RadmeshError

HEAD_BYTES: Final = 32 << 10
HEADERS_MOST: Final = 100
_HEAD_SECONDS: Final = 10.0
# Of a request's body, what must come in each period, and what is thrown away after its answer.
_BODY_SECONDS: Final = 15.0
_BODY_BYTES: Final = 8 << 10
_DISCARD_SECONDS, _DISCARD_BYTES = 5.0, 16 << 20
# A client that does not read its answer.
_STALL_SECONDS: Final = 60.0
_KEEP_ALIVE_SECONDS: Final = 60
_TLS_SECONDS: Final = 10.0
_LINGER_SECONDS: Final = 1.0
_START_SECONDS: Final = 30.0
_TICK_SECONDS: Final = 1.0
_FIRST_OF_TLS: Final = b"\x16"


@functools.lru_cache(4096)
def _head(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, int | None, bool]:
    """Return a head without its last line, the length of what follows, and whether it says that it is the last."""
    lines, length, closes = [STATUS_LINE[status]], None, False
    for name, value in headers:
        if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
            raise ValueError("a header that HTTP cannot carry")
        if name == b"content-length":
            length = int(value)
        elif name == b"connection":
            closes = closes or b"close" in value.lower()
        lines += [name, b": ", value, b"\r\n"]
    return b"".join(lines), length, closes


class Cycle(RequestResponseCycle):
    """A request and its answer, whose head goes out in one piece with the first of its body: one call, one packet."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self._held = b""

    async def send(self, message: Any) -> None:
        """Take a message of ASGI."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            self._begin(message["status"], message["headers"])
        elif self.response_complete:
            raise RuntimeError("this was answered already")
        else:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        head, length, closes = _head(status, tuple(headers))
        self.response_started, self.waiting_for_100_continue = True, False
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            head += b"connection: close\r\n"
        bare = self.scope["method"] == "HEAD" or status in (204, 304)
        self.chunked_encoding = length is None and not bare
        self.expected_content_length = 0 if bare else length or 0
        if self.chunked_encoding:
            # What follows may take its time.
            self.transport.write(head + b"transfer-encoding: chunked\r\n\r\n")
        else:
            self._held = head + b"\r\n"

    def _go_on(self, body: Any, *, more: bool) -> None:
        size = len(body)
        pieces: list[Any] = []
        if self.chunked_encoding:
            if size:
                pieces += [b"%x\r\n" % size, body, b"\r\n"]
            if not more:
                pieces.append(b"0\r\n\r\n")
        else:
            if self._held:
                pieces.append(self._held)
                self._held = b""
            if size and self.scope["method"] != "HEAD":
                if size > self.expected_content_length:
                    raise RuntimeError("the answer is longer than was said")
                self.expected_content_length -= size
                pieces.append(body)
        if pieces:
            self.transport.writelines(pieces)
        if not more:
            if self.expected_content_length:
                raise RuntimeError("the answer is shorter than was said")
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


class Connection(HttpToolsProtocol):
    """One client's connection, with bounds."""

    def __init__(self, lost: Callable[[], None], **named: Any) -> None:
        super().__init__(**named)
        self._lost = lost
        self._in_head = False
        self._head_bytes = 0
        self._head_since = time.monotonic()
        self._in_body = False
        self._body_since = 0.0
        self._body_bytes = 0
        self._stalled_since = 0.0
        self._closing_since = 0.0
        self._too_large = False
        self._ended = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        super().connection_lost(exc)
        self._lost()

    # -- what comes

    def data_received(self, data: bytes) -> None:
        """Parse; a head that is too long is not kept."""
        if self._ended or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as any request; what would follow in the other protocol is not understood.
            return
        except httptools.HttpParserError:
            self._end(RadmeshError("FIELD_INVALID", "this is no HTTP/1.1 request"))
            return
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._too_large = True
        if self._too_large:
            text = f"a request has at most {HEADERS_MOST} headers, and {HEAD_BYTES} bytes before its body"
            self._end(RadmeshError("HEADERS_TOO_LARGE", text))

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes, self._head_since = 0, time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, and no trailer: that would change a request which was let in."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Answer the request."""
        self._in_head, self._in_body = False, True
        self._body_since, self._body_bytes = time.monotonic(), 0
        size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        self._too_large = size > HEAD_BYTES or len(self.headers) > HEADERS_MOST
        if not self._too_large:
            self._answer()

    def _answer(self) -> None:
        """Do what uvicorn's `on_headers_complete` does."""
        scope, version = self.scope, self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        if self.url.startswith(b"/") and b"#" not in self.url:
            path, _, query = self.url.partition(b"?")
        else:
            url = httptools.parse_url(self.url)
            path, query = url.path, url.query or b""
        scope["raw_path"], scope["query_string"] = path, query
        text = path.decode("ascii")
        scope["path"] = unquote(text) if "%" in text else text
        before: Any = self.cycle
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Take, or throw away, a piece of a body."""
        if self._too_large:
            return
        self._body_bytes += len(body)
        if not self._answering and self._body_bytes > _DISCARD_BYTES:
            self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._in_body = False
        if not self._too_large:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give what is left of the body a moment: who is still sending has to see the answer."""
        self._body_since, self._body_bytes = time.monotonic(), 0
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    # -- what goes

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written."""
        self._stalled_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has read."""
        self._stalled_since = 0.0
        super().resume_writing()

    # -- patience

    @property
    def _answering(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    @property
    def idle_since(self) -> float | None:
        """Since when the client asks for nothing; None while it does."""
        if (
            self._ended
            or self._in_head
            or self._in_body
            or (self.cycle is not None and not self.cycle.response_complete)
        ):
            return None
        return max(self._body_since, self._head_since)

    def look(self, now: float) -> None:
        """End the connection of a client that makes this server wait."""
        if self.transport.is_closing() or self._ended:
            self._closing_since = self._closing_since or now
            if now - self._closing_since > _STALL_SECONDS:
                self.transport.abort()
        elif self._stalled_since and now - self._stalled_since > _STALL_SECONDS:
            self.transport.abort()
        elif self._answering:
            if self._in_body and not self.flow.read_paused and now - self._body_since > _BODY_SECONDS:
                if self._body_bytes < _BODY_BYTES:
                    self._give_up()
                self._body_since, self._body_bytes = now, 0
        elif self._in_body:
            if now - self._body_since > _DISCARD_SECONDS:
                self.transport.abort()
        elif self._in_head and now - self._head_since > _HEAD_SECONDS:
            self._end(RadmeshError("REQUEST_SLOW", f"the request did not come within {_HEAD_SECONDS:.0f} s"))
        elif not self._in_head and now - max(self._body_since, self._head_since) > _KEEP_ALIVE_SECONDS:
            self.transport.close()

    def _give_up(self) -> None:
        """End a request whose body does not come; who waits for it is told that the client has gone."""
        if self.cycle.response_started:
            self.transport.abort()
            return
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self._say(
            RadmeshError("REQUEST_SLOW", f"of the body came less than {_BODY_BYTES} bytes in {_BODY_SECONDS:.0f} s")
        )

    def _end(self, error: RadmeshError) -> None:
        """Say what is wrong, unless an answer is under way, and end the connection."""
        if self._answering:
            self.transport.close()
            return
        self._say(error)

    def _say(self, error: RadmeshError) -> None:
        self._ended = True
        self.transport.write(_whole(error))
        # What is still being sent, and not read, would take the answer from the client.
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def _whole(error: RadmeshError) -> bytes:
    """Return a whole answer, which ends the connection."""
    response = problem(error)
    lines = [f"HTTP/1.1 {response.status_code} {phrase(response.status_code)}".encode()]
    lines += [name + b": " + value for name, value in (*response.raw_headers, (b"connection", b"close"))]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


class _Server(uvicorn.Server):
    """uvicorn's server, which takes its connections from here."""

    def __init__(self, config: uvicorn.Config, owner: "HttpServer", listener: socket.socket) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._owner = owner
        self._listener = listener
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        del sockets
        self.servers = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._owner.unexpected)
        self._background(self._accept())
        self._background(self._look())
        self.started = True
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and let what runs finish."""
        del sockets
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown([self._listener])

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            connections: list[Any] = list(self.server_state.connections)
            for connection in connections:
                try:
                    connection.look(now)
                except Exception as error:  # noqa: BLE001 - a defect with one connection is none of the others
                    self._owner.failed(error)
                    connection.transport.abort()
            self._owner.renew_certificate()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except Exception as error:  # noqa: BLE001 - a door that stops accepting would be none
                # No more descriptors, or the client has left already: the next may fare better.
                self._owner.failed(error)
                await asyncio.sleep(0.1)
                continue
            self._open += 1
            self._owner.count(self._open)
            self._background(self._greet(connection))

    def _closed(self) -> None:
        self._open -= 1
        self._owner.count(self._open)

    async def _greet(self, connection: socket.socket) -> None:
        """Make a connection one of uvicorn's, or tell the client why not."""
        loop = asyncio.get_running_loop()
        taken = False

        def make() -> Connection:
            return Connection(self._closed, config=self.config, server_state=self.server_state, app_state={})

        try:
            connection.setblocking(False)  # noqa: FBT003 - the standard library has no name for it
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = self._owner.tls
            if self._open > self._owner.most and not self._give_up_idle():
                error = RadmeshError("TOO_MANY_CALLS", f"{self._owner.most} connections are open: try again later")
                await _tell(connection, b"" if tls else _whole(error))
                return
            if tls is not None and await _first_byte(connection) != _FIRST_OF_TLS:
                await _tell(connection, _PLAIN)
                return
            options = {"ssl_handshake_timeout": _TLS_SECONDS, "ssl_shutdown_timeout": 5.0} if tls else {}
            await loop.connect_accepted_socket(make, connection, ssl=tls, **options)
            taken = True
        except (OSError, TimeoutError, ssl.SSLError, EOFError):
            # A client that left, or that speaks another TLS: it knows.
            pass
        finally:
            if not taken:
                connection.close()
                self._closed()

    def _give_up_idle(self) -> bool:
        """Close the connection that has been idle longest; return whether there was one."""
        connections: list[Any] = list(self.server_state.connections)
        idle = [(c.idle_since, c) for c in connections if c.idle_since and not c.transport.is_closing()]
        if not idle:
            return False
        min(idle, key=lambda pair: pair[0])[1].transport.close()
        return True


_PLAIN: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"this port speaks TLS only: use https://\n"
)


async def _first_byte(connection: socket.socket) -> bytes:
    """Wait for the first byte that a client sends, and leave it where it is.

    Raises:
        TimeoutError: it sends none.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(_TLS_SECONDS):
            await readable.wait()
    finally:
        loop.remove_reader(connection)
    return connection.recv(1, socket.MSG_PEEK)


async def _tell(connection: socket.socket, answer: bytes) -> None:
    """Send a last answer, and wait a moment for the client's end: what it sent unread would take the answer from it."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            await loop.sock_sendall(connection, answer)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, 65536):
                pass


class HttpServer:
    """The listener; `start` returns when it serves."""

    def __init__(self, config: Http, door: Door) -> None:
        self._config = config
        self.door = door
        self._log = door.context.log
        self.most = config.max_connections
        self.tls: ssl.SSLContext | None = None
        self._certificate: tuple[Path, Path] | None = None
        self._version: tuple[Any, ...] = ()
        self._looks = 0
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._gauge = door.context.metrics.gauge("radmesh_http_connections")
        self.port = 0
        if not is_loopback(config.bind) and not config.insecure_http:
            own = door.context.credentials.certificate_paths()
            self._certificate = (Path(config.certificate), Path(config.key)) if config.certificate else own

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"{'https' if self._certificate else 'http'}://{bracketed(self._config.bind)}:{self.port}"

    def start(self) -> None:
        """Listen and serve.

        Raises:
            RadmeshError: PORT_IN_USE, CERTIFICATE_INVALID.
        """
        if self._certificate is not None:
            try:
                self._load_certificate()
            except (OSError, ssl.SSLError) as error:
                text = f"{self._certificate[0]} and {self._certificate[1]} are no certificate and its key in PEM"
                raise RadmeshError("CERTIFICATE_INVALID", text) from error
        listener = _listen(self._config.bind, self._config.port)
        self.port = int(listener.getsockname()[1])
        # What it says would name paths, and so studies: the door logs requests itself.
        logging.getLogger("uvicorn").addHandler(logging.NullHandler())
        logging.getLogger("uvicorn").propagate = False
        config = uvicorn.Config(
            self.door,
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._server = _Server(config, self, listener)
        self._thread.start()
        if not self._server.ready.wait(_START_SECONDS):
            raise RadmeshError("INTERNAL", "the HTTP server did not start")

    def _run(self) -> None:
        assert self._server is not None
        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            runner.run(self._server.serve())

    def drain(self) -> None:
        """Take no new requests."""
        self.door.drain()

    def stop(self, grace: float) -> None:
        """Answer what was asked, for `grace` seconds, and end."""
        if self._server is None:
            return
        self.drain()
        self._server.config.timeout_graceful_shutdown = max(1, int(grace))
        self._server.should_exit = True
        self._thread.join(grace + 5)
        self.door.close()

    # -- for the loop

    def failed(self, error: Exception) -> None:
        """Log what went wrong with a connection."""
        if isinstance(error, OSError):
            self._log.warning("connection not accepted", error=error.strerror)
        else:
            self._log.exception("connection", error)

    def count(self, connections: int) -> None:
        """Note how many connections are open."""
        self._gauge.set(connections)

    def unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what no handler caught; asyncio's own words would quote objects."""
        error = context.get("exception")
        if error is None:
            self._log.warning("event loop", text=str(context.get("message", ""))[:200])
        elif not isinstance(error, OSError | asyncio.CancelledError):
            self._log.exception("event loop", error)

    def renew_certificate(self) -> None:
        """Take a certificate that was renewed; connections that are open keep theirs."""
        if self._certificate is None:
            return
        self._looks += 1
        with contextlib.suppress(OSError, ssl.SSLError):
            if _version(*self._certificate) != self._version:
                self._load_certificate()
                self._log.info("certificate renewed", door="http")

    def _load_certificate(self) -> None:
        assert self._certificate is not None
        version = _version(*self._certificate)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.set_alpn_protocols(["http/1.1"])
        # Two files that were not replaced together yet are an error, and looked at again in a second.
        tls.load_cert_chain(*self._certificate)
        self.tls, self._version = tls, version


def _version(*paths: Path) -> tuple[Any, ...]:
    return tuple((status.st_mtime_ns, status.st_ino) for status in map(os.stat, paths))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=512, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
        )
    except OSError as error:
        text = f"cannot listen on {host} port {port} ({error.strerror}): choose another port, or stop what has it"
        raise RadmeshError("PORT_IN_USE", text) from error
    listener.setblocking(False)  # noqa: FBT003 - the standard library has no name for it
    return listener
