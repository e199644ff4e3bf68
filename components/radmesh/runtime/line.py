"""Lines: bulk streams of the mesh, without grpcio's hand-overs between threads.

A line is one bidirectional streaming rpc on a connection of its own, in plain gRPC over HTTP/2: any gRPC program can
be the other side. What grpcio costs such a call (two thousand instructions are few, but five threads a message are
many) is most of what a small image costs; here the thread that has an object writes it, and reads the answer.

On a unix socket a line may have a *window*: memory of the caller's, which it gives to the server as it opens the line.
What lies there need not go through the socket: a message says how much of it there is. When it may be written again
is for who uses it to know; a line that is lost takes its window with it, so that a server that was given up for dead
never sees other bytes in it than those it was told of.

Identity is that of every call (radmesh.runtime.rpc): a token on a unix socket, a certificate elsewhere.
"""

import base64
import contextlib
import fcntl
import mmap
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import MethodDescriptor

from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.http2 import (
    TICK_SECONDS,
    Buffer,
    ClosedError,
    Connection,
    End,
    Headers,
    ProtocolError,
)
from radmesh.runtime.security import Credentials

MESSAGE_MAX: Final = 4 << 20
CONNECT_SECONDS: Final = 2.0
SILENCE_SECONDS: Final = 8.0
"""A peer that gives no sign of life for so long is lost. One that works gives one every two seconds."""
ANSWER_SECONDS: Final = 90.0
WINDOW_BYTES: Final = 1 << 20
_PULSE_SECONDS: Final = 2.0
_MESSAGE_SECONDS: Final = 30.0
_BACKLOG: Final = 128
_BEGIN: Final = ((":status", "200"), ("content-type", "application/grpc"))
_CALLER, _TOKEN = "radmesh-caller", "radmesh-token"
_LOST: Final = (ClosedError, ProtocolError, RadmeshError)


def address_of(target: str) -> str | tuple[str, int]:
    """Return the path of a unix socket, or (host, port), of a gRPC target.

    Raises:
        RadmeshError: TARGET_INVALID.
    """
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        return path.removeprefix("//") if path.startswith("//") else path
    name = target.rpartition("/")[2] if target.startswith("dns:") else target
    host, _, port = name.removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise RadmeshError("TARGET_INVALID", "a target is unix:/path or host:port")
    return unquote(host).strip("[]"), int(port)


def _tune(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A cut line that nobody writes on is noticed too.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)


def tls_context(credentials: Credentials, *, server: bool) -> ssl.SSLContext:
    """Return mutual TLS with this instance's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    certificate, key = credentials.certificate_paths()
    context.load_verify_locations(credentials.ca_path)
    context.load_cert_chain(certificate, key)
    return context


# -- the side that calls -----------------------------------------------------------------------------------------------


class Line:
    """One call of a streaming rpc. One thread uses it.

    Args:
        target: where its server listens.
        path: of the rpc, such as "/radmesh.api.transfer.v1.TransferService/Put".
        credentials: who calls.
        answer_seconds: longest wait for an answer.
        window: whether it is to have one, where it can.

    Raises:
        RadmeshError: PEER_UNAVAILABLE, PEER_TIMEOUT.
    """

    def __init__(
        self,
        target: str,
        path: str,
        credentials: Credentials,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        window: bool = False,
    ) -> None:
        self._answer_seconds = answer_seconds
        self._waiting_since: float | None = None
        self._pinged_at = 0.0
        self._answered = False
        self.alive = False
        """Whether something can be sent."""
        self.window: mmap.mmap | None = None
        """Memory that the server sees too; None = it does not."""
        sock = self._connect(target, credentials)
        self._connection = Connection(sock, MESSAGE_MAX, self._tick, client=True)
        self.alive = True
        self._waiting_since = time.monotonic()
        fields = [
            (":method", "POST"),
            (":scheme", "https" if isinstance(sock, ssl.SSLSocket) else "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        if not isinstance(sock, ssl.SSLSocket):
            fields += [(_CALLER, credentials.instance), (_TOKEN, credentials.token())]
        try:
            self._connection.open_client()
            self._connection.wait_settled()
            self._begin(fields, window=window)
        except _LOST as error:
            self._fail(error)
        self._waiting_since = None

    @staticmethod
    def _connect(target: str, credentials: Credentials) -> Any:
        address = address_of(target)
        try:
            if isinstance(address, str):
                sock = socket.socket(socket.AF_UNIX)
                try:
                    sock.settimeout(CONNECT_SECONDS)
                    sock.connect(address)
                    sock.settimeout(None)
                    _tune(sock)
                except BaseException:
                    sock.close()
                    raise
                return sock
            plain = socket.create_connection(address, CONNECT_SECONDS)
            try:
                _tune(plain)
                return tls_context(credentials, server=False).wrap_socket(plain, server_hostname=address[0])
            except BaseException:
                plain.close()
                raise
        except TimeoutError as error:
            raise RadmeshError("PEER_TIMEOUT", "the other side does not take connections") from error
        except OSError as error:
            raise RadmeshError("PEER_UNAVAILABLE", "the other side cannot be reached") from error

    def _begin(self, fields: list[tuple[str, str]], *, window: bool) -> None:
        descriptor, view = _window() if window and self._connection.takes_descriptor else (-1, None)
        try:
            self._connection.send_headers(fields, begin=True, descriptor=descriptor)
            self.window = view
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def send(self, *parts: Buffer) -> None:
        """Send one message: its parts, one after the other.

        Raises:
            RadmeshError: the line is lost, or what the server said when it ended the call.
        """
        try:
            self._connection.send_message(*parts)
        except _LOST as error:
            self._fail(error)

    def receive(self) -> bytearray:
        """Return the next answer.

        Raises:
            RadmeshError: the line is lost, or what the server said when it ended the call.
        """
        self._waiting_since = time.monotonic()
        try:
            while not isinstance(event := self._connection.receive(), bytearray):
                if isinstance(event, End):
                    raise ClosedError("the answers end without a status")
                if event.end:
                    self._ended(event.fields)
                if event.fields.get(":status") != "200":
                    raise ClosedError("the other side does not speak gRPC")
        except _LOST as error:
            self._fail(error)
        self._waiting_since = None
        return event

    def close(self) -> None:
        """End the call: what was sent before is still read by the server."""
        if self.alive:
            self.alive = False
            with contextlib.suppress(ClosedError, RadmeshError):
                self._connection.send_end()
        self._connection.close()

    def _ended(self, fields: Mapping[str, str]) -> NoReturn:
        from radmesh.runtime.rpc import from_status  # noqa: PLC0415 - it imports this module

        self.alive = False
        self._connection.close()
        code = fields.get("grpc-status", "")
        if code == "0":
            raise RadmeshError("PEER_UNAVAILABLE", "the other side ended the stream")
        raise from_status(
            int(code) if code.isdecimal() else grpc.StatusCode.UNKNOWN.value[0],
            unquote(fields.get("grpc-message", "")),
            _binary(fields.get("grpc-status-details-bin", "")),
        )

    def _tick(self) -> None:
        now = time.monotonic()
        since = self._waiting_since
        if since is not None and now - since > self._answer_seconds:
            raise RadmeshError("PEER_TIMEOUT", "the other side did not answer in time")
        silent = now - max(self._connection.heard_at, since or 0.0)
        if silent > SILENCE_SECONDS:
            raise RadmeshError("PEER_TIMEOUT", "the other side gives no sign of life")
        if silent > _PULSE_SECONDS - TICK_SECONDS / 2:
            self._connection.ping()

    def _fail(self, error: Exception) -> NoReturn:
        self.alive = False
        if not isinstance(error, RadmeshError):
            self._last_words(error)
        self._connection.close()
        raise error

    def _last_words(self, error: Exception) -> NoReturn:
        """A server that ends a call says why, before it closes; that may still be here to read."""
        try:
            if isinstance(error, ClosedError) and self._connection.stream:
                while True:
                    event = self._connection.receive()
                    if isinstance(event, Headers) and event.end:
                        self._ended(event.fields)
        except (ClosedError, ProtocolError):
            pass
        finally:
            self._connection.close()
        raise RadmeshError("PEER_UNAVAILABLE", f"the line was lost: {error}") from error


def _window() -> tuple[int, mmap.mmap | None]:
    """Return memory that can be shown to another process, and never shrinks under it; -1, None if there is none."""
    descriptor = -1
    try:
        descriptor = os.memfd_create("radmesh-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(descriptor, WINDOW_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor, mmap.mmap(descriptor, WINDOW_BYTES)
    except OSError:
        if descriptor >= 0:
            os.close(descriptor)
        return -1, None


def _view_of(descriptor: int) -> memoryview | None:
    """Map the window of a caller; None where it is none: what could shrink would be SIGBUS for its reader."""
    try:
        size = os.fstat(descriptor).st_size
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK or not 0 < size <= MESSAGE_MAX:
            return None
        return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def _binary(value: str) -> bytes:
    with contextlib.suppress(ValueError):
        return base64.b64decode(value.partition(",")[0] + "==")
    return b""


# -- the side that serves ----------------------------------------------------------------------------------------------

Identify = Callable[[MethodDescriptor, Mapping[str, str], tuple[str, ...]], Any]
Behaviour = Callable[[Iterator[bytearray], Any, memoryview | None], Iterator[Sequence[Buffer]]]


class LineServer:
    """Serves streaming rpcs, a thread for each connection.

    Args:
        listen: "unix:/path", or "host:port" (mutual TLS).
        identify: from metadata, and the names in the certificate, who calls; raises RadmeshError.
        failure: what the caller is told of an exception in an rpc.
        credentials: this server's.
        most: connections at once for each rpc; more are told TOO_MANY_CALLS.
    """

    def __init__(
        self,
        listen: str,
        *,
        identify: Identify,
        failure: Callable[[Exception, str], RadmeshError],
        credentials: Credentials,
        most: int,
    ) -> None:
        self._listen = listen
        self.rpcs: dict[str, tuple[MethodDescriptor, Behaviour]] = {}
        self.identify, self.failure = identify, failure
        self._credentials = credentials
        self._most = most
        self._lock = threading.Lock()
        self._live: set[_Served] = set()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._tls: tuple[tuple[int, int], ssl.SSLContext] | None = None
        self.target = ""

    def add(self, method: MethodDescriptor, behaviour: Behaviour) -> None:
        """Serve an rpc; `behaviour` answers the messages of a call with serialised messages, in parts; it may raise.

        Its last argument is the caller's window.
        """
        self.rpcs[f"/{method.containing_service.full_name}/{method.name}"] = (method, behaviour)

    def start(self) -> None:
        """Listen.

        Raises:
            RadmeshError: PORT_IN_USE.
        """
        address = address_of(self._listen)
        try:
            if isinstance(address, str):
                # A socket that a killed process left behind; the data directory's lock says that nobody listens on it.
                Path(address).unlink(missing_ok=True)
                self._listener = socket.socket(socket.AF_UNIX)
                self._listener.bind(address)
                self._listener.listen(_BACKLOG)
                self.target = f"unix:{address}"
            else:
                self._listener = socket.create_server(
                    address, backlog=_BACKLOG, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET
                )
                self.target = f"{self._listen.rpartition(':')[0]}:{self._listener.getsockname()[1]}"
        except OSError as error:
            raise RadmeshError(
                "PORT_IN_USE", f"cannot listen on {self._listen}: {os.strerror(error.errno or 0)}"
            ) from error
        threading.Thread(target=self._accept, args=(self._listener,), name="line-accept", daemon=True).start()
        threading.Thread(target=self._pulse, name="line-pulse", daemon=True).start()

    def stop(self, grace: float) -> None:
        """Take no more; what is being answered is finished, for `grace` seconds."""
        self._stopping.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        until = time.monotonic() + grace
        with self._lock:
            live = list(self._live)
        for served in live:
            served.leave()
        for served in live:
            served.thread.join(max(0.0, until - time.monotonic()))
            served.cut()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                if not self._stopping.wait(0.05):
                    continue  # out of descriptors, most likely
                return
            _tune(sock)
            with self._lock:
                # Begun under the lock, so that `stop` finds nobody who has not begun.
                room = self._most * len(self.rpcs) + 8 - len(self._live)
                begun = room > 0 and not self._stopping.is_set() and self._begin(sock)
            if not begun:
                sock.close()

    def _begin(self, sock: socket.socket) -> bool:
        served = _Served(self, sock)
        try:
            served.thread.start()
        except RuntimeError:
            return False  # out of threads
        self._live.add(served)
        return True

    def gone(self, served: "_Served") -> None:
        """A connection has ended."""
        with self._lock:
            self._live.discard(served)

    def _pulse(self) -> None:
        """Give signs of life for those who work on something long: their callers would give them up for dead."""
        while not self._stopping.wait(_PULSE_SECONDS):
            with self._lock:
                live = list(self._live)
            for served in live:
                served.pulse()

    def tls(self) -> ssl.SSLContext:
        """Return the TLS of the moment: a renewed certificate is in the next handshake."""
        version = self._credentials.certificate_version()
        with self._lock:
            if self._tls is None or self._tls[0] != version:
                self._tls = (version, tls_context(self._credentials, server=True))
            return self._tls[1]

    def crowded(self, path: str) -> bool:
        """Whether more call an rpc than may: who reads keeps nobody from storing."""
        with self._lock:
            return sum(served.path == path for served in self._live) > self._most


class _Served:
    """One connection."""

    def __init__(self, server: LineServer, sock: socket.socket) -> None:
        self._server = server
        self.path = ""
        """Of the rpc that is, or was last, called."""
        self._sock: Any = sock
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._busy_since: float | None = None
        self._leaving = False
        self.thread = threading.Thread(target=self._run, name="line", daemon=True)

    # From other threads

    def pulse(self) -> None:
        """Send a sign of life, if this connection's own thread does not."""
        with self._lock:
            since = self._busy_since
            if since is not None and time.monotonic() - since >= _PULSE_SECONDS / 2 and self._connection is not None:
                self._connection.ping()

    def leave(self) -> None:
        """End between two messages."""
        with self._lock:
            self._leaving = True
            if self._busy_since is None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._sock, socket.SHUT_RD)

    def cut(self) -> None:
        """End now."""
        with contextlib.suppress(OSError):
            # Not the SSLSocket's own, which takes its state away under the thread that uses it.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    # Its own

    def _run(self) -> None:
        server = self._server
        names: tuple[str, ...] = ()
        try:
            if self._sock.family != socket.AF_UNIX:
                self._sock.settimeout(CONNECT_SECONDS * 2)
                self._sock = server.tls().wrap_socket(self._sock, server_side=True)
                certificate: Any = self._sock.getpeercert()
                names = tuple(value for _, value in certificate.get("subjectAltName", ()))
            connection = self._connection = Connection(self._sock, MESSAGE_MAX, self._tick, client=False)
            connection.open_server()
            while not self._leaving:
                event = connection.receive()
                if isinstance(event, Headers):
                    self._call(connection, event, names)
        except ProtocolError as error:
            if self._connection is not None:
                with contextlib.suppress(ClosedError):
                    self._connection.go_away(error.code)
        except (ClosedError, OSError):
            pass
        finally:
            server.gone(self)
            if self._connection is not None:
                self._connection.close()
            self._sock.close()

    def _tick(self) -> None:
        connection = self._connection
        if self._leaving:
            raise ClosedError("draining")
        if connection is not None and connection.within and time.monotonic() - connection.heard_at > _MESSAGE_SECONDS:
            raise ClosedError("the rest of the message does not come")

    def _call(self, connection: Connection, headers: Headers, names: tuple[str, ...]) -> None:
        server = self._server
        answered = False
        failure: RadmeshError | None = None
        try:
            method, behaviour = self._called(headers.fields)
            call = server.identify(method, headers.fields, names)
            self._set_busy(busy=True)
            descriptor = connection.take_descriptor()
            window = _view_of(descriptor) if descriptor >= 0 else None
            for answer in behaviour(self._messages(connection, headers), call, window):
                if not answered:
                    connection.send_headers(_BEGIN)
                    answered = True
                with self._lock:
                    connection.send_message(*answer)
        except (ClosedError, ProtocolError):
            raise
        except Exception as error:  # noqa: BLE001 - mapped to a status
            failure = server.failure(error, headers.fields.get(":path", "").lstrip("/").replace("/", "."))
        self._set_busy(busy=False)
        connection.send_headers([*(() if answered else _BEGIN), *_trailers(failure)], end=True)
        connection.end_stream()

    def _called(self, fields: Mapping[str, str]) -> tuple[MethodDescriptor, Behaviour]:
        server = self._server
        rpc = server.rpcs.get(fields.get(":path", ""))
        if rpc is None:
            raise RadmeshError("METHOD_UNKNOWN", f"this line serves {' and '.join(server.rpcs)} alone")
        if not fields.get("content-type", "").startswith("application/grpc"):
            raise RadmeshError("FIELD_INVALID", "content-type: application/grpc")
        self.path = fields[":path"]
        if server.crowded(self.path):
            raise RadmeshError("TOO_MANY_CALLS", "too many lines are open: try again later")
        return rpc

    def _messages(self, connection: Connection, headers: Headers) -> Iterator[bytearray]:
        while not headers.end:
            self._set_busy(busy=False)
            event = connection.receive()
            self._set_busy(busy=True)
            if isinstance(event, bytearray):
                yield event
            elif isinstance(event, End) or event.end:
                return

    def _set_busy(self, *, busy: bool) -> None:
        with self._lock:
            if not busy and self._leaving:
                raise ClosedError("draining")
            self._busy_since = time.monotonic() if busy else None


def _trailers(failure: RadmeshError | None) -> list[tuple[str, str]]:
    from radmesh.runtime.rpc import to_status  # noqa: PLC0415 - it imports this module

    if failure is None:
        return [("grpc-status", "0")]
    status = to_status(failure)
    fields = [("grpc-status", str(status.code.value[0])), ("grpc-message", _percent(status.details))]
    for key, value in status.trailing_metadata:
        text = base64.b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
        fields.append((key, text))
    return fields


def _percent(text: str) -> str:
    return "".join(chr(b) if 0x20 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in text.encode())
