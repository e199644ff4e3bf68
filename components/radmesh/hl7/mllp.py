"""MLLP (HL7 v2 Transport Specification: MLLP, Release 1): frames, a listener, a client.

A frame is 0x0B, the message, 0x1C 0x0D. Whatever a peer sends, a listener lives and goes on answering; whatever a peer
answers, a client takes it only for the message that it names.
"""

import contextlib
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from radmesh.hl7 import charsets
from radmesh.hl7.build import refusal
from radmesh.hl7.message import Message, parse
from radmesh.runtime.clock import Clock, SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics

START: Final = b"\x0b"
END: Final = b"\x1c\r"
MAX_MESSAGE_BYTES: Final = 16 << 20
_READ: Final = 65_536
# Of a message that is too long: enough for its MSH.
_HEAD: Final = 4_096
# A wait looks this often whether it should end; ends of connections and of the listener wake it at once.
_SLICE: Final = 1.0
_BEGINS: Final = re.compile(rb"\x0b[\s\xef\xbb\xbf]*(?=(?:MSH|FHS|BHS)[^A-Za-z0-9])")
_MSA: Final = re.compile(rb"[\r\n]MSA[^A-Za-z0-9]([AC][AER])")
_BARE: Final = re.compile(rb"(?:MSH|FHS|BHS)[^A-Za-z0-9]")


def frame(message: bytes) -> bytes:
    """Return the frame of a message."""
    return START + message + END


@dataclass(frozen=True, slots=True)
class TooLong:
    """A message that was longer than `limit` bytes: its first bytes, the rest is dropped."""

    head: bytes
    limit: int


class FrameReader:
    """Takes the bytes of a connection and gives messages; holds at most `max_bytes` of one.

    Any 0x1C ends a message, as MLLP allows it nowhere else (in UTF-16 and UTF-32, which MLLP has no place for, 0x1C
    0x0D does); a missing 0x0D, and line ends between frames, do no harm. Where two messages begin in one frame, the
    first was cut off: it is dropped and counted in `halves`.
    """

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES, *, loose: bool = False) -> None:
        """Make a reader.

        Args:
            max_bytes: longest message.
            loose: a message whose 0x0B is missing is taken too.
        """
        self._max = max_bytes
        self._loose = loose
        self._buffer = bytearray()
        self._scanned = 0
        self._open = False
        self._dropping: bytes | None = None
        self.halves = 0

    @property
    def pending(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._open

    def feed(self, data: bytes) -> list[bytes | TooLong]:
        """Take bytes; return the messages that they complete, in order."""
        self._buffer += data
        done: list[bytes | TooLong] = []
        while self._begin():
            end, after = self._end()
            if end < 0:
                self._bound()
                break
            whole = bytes(self._buffer[:end])
            self._forget(after)
            self._open = False
            if self._dropping is not None or len(whole) > self._max:
                done.append(TooLong((self._dropping or whole)[:_HEAD], self._max))
                self._dropping = None
            else:
                done.append(self._last(whole))
        return done

    def _begin(self) -> bool:
        """Drop what stands before a message; return whether one is open."""
        if self._open:
            return True
        start = self._buffer.find(START)
        if self._loose and (bare := _BARE.search(self._buffer, 0, start if start >= 0 else len(self._buffer))):
            self._forget(bare.start())
            self._open = True
        elif start >= 0:
            self._forget(start + 1)
            self._open = True
        else:
            # Without a start, four bytes may still become one.
            self._forget(max(0, len(self._buffer) - 4) if self._loose else len(self._buffer))
        return self._open

    def _end(self) -> tuple[int, int]:
        """Return where the message ends, and where what follows begins; (-1, -1): not yet."""
        wide = self._dropping is None and charsets.wide_codec(bytes(self._buffer[:16]))
        mark = END if wide else END[:1]
        end = self._buffer.find(mark, max(0, self._scanned - 1))
        self._scanned = len(self._buffer)
        return (end, end + len(mark)) if end >= 0 else (-1, -1)

    def _bound(self) -> None:
        """Of a message that is too long, keep the head alone."""
        if self._dropping is None and len(self._buffer) > self._max + 1:
            self._dropping = bytes(self._buffer[:_HEAD])
        if self._dropping is not None:
            self._forget(len(self._buffer) - 1)

    def _last(self, whole: bytes) -> bytes:
        starts = [m.end() for m in _BEGINS.finditer(whole)]
        self.halves += len(starts)
        return whole[starts[-1] :] if starts else whole

    def _forget(self, count: int) -> None:
        del self._buffer[:count]
        self._scanned = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end; `subject` is that of its certificate, if it showed one."""

    address: str
    port: int
    subject: str = ""


Handler = Callable[[bytes, Peer], bytes | None]


class MllpListener:
    """Listens for HL7 messages on one port: a thread a connection, one message after the other on each.

    The next message of a connection is read when the answer to the last is sent: whoever waits for its acknowledgement
    knows what was committed. Nothing that a peer sends ends a listener.
    """

    def __init__(
        self,
        bind: str,
        port: int,
        handle: Handler,
        *,
        log: Logger,
        metrics: Metrics,
        domain: str = "",
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 256,
        idle_timeout: float = 3600.0,
        message_timeout: float = 60.0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        loose: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """Make a listener; `start` binds it.

        Args:
            bind: address, such as "127.0.0.1", "0.0.0.0" or "::" (both families).
            port: port; 0 = any free one.
            handle: takes a message's bytes and its peer, returns the answer's bytes or None for none. It is called by
                several threads. What it raises becomes an AE (AR for what can never be taken), with an incident number
                if it is no RadmeshError.
            log: where to write.
            metrics: where to count.
            domain: label of the counts and log lines.
            ssl_context: for MLLP over TLS.
            max_connections: at more, the one that is idle longest gives way.
            idle_timeout: seconds without a message after which a connection is closed.
            message_timeout: seconds that a message may take from its first byte to its last, and its answer to be read.
            max_message_bytes: a longer message is answered with AR, and the connection goes on.
            loose: a message whose 0x0B is missing is taken too.
            clock: for tests.
        """
        self._bind, self._asked, self._port = bind, port, 0
        self.handle, self.log, self.metrics, self.domain = handle, log, metrics, domain
        self.ssl_context = ssl_context
        self.idle_timeout, self.message_timeout = idle_timeout, message_timeout
        self.max_message_bytes, self.loose = max_message_bytes, loose
        self.clock = clock or SystemClock()
        self._max = max_connections
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._live: dict[_Connection, None] = {}
        self._ended = threading.Condition()
        self.stopping = False

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before the start."""
        return self._port

    def start(self) -> None:
        """Listen.

        Raises:
            RadmeshError: PORT_IN_USE.
        """
        family = socket.AF_INET6 if ":" in self._bind else socket.AF_INET
        try:
            self._socket = socket.create_server(
                (self._bind, self._asked), family=family, backlog=128, dualstack_ipv6=self._bind == "::"
            )
        except OSError as error:
            text = f"cannot listen for HL7 on {self._bind}:{self._asked} ({error.strerror}): choose another hl7_port"
            raise RadmeshError("PORT_IN_USE", text) from error
        self._port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name=f"mllp-{self.port}", daemon=True)
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Take no more messages, let those in hand be answered for `grace` seconds, close."""
        self.stopping = True
        if self._socket is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        with self._ended:
            for connection in self._live:
                connection.stop_reading()
            self._ended.wait_for(lambda: not self._live, grace)
            for connection in self._live:
                connection.cut()
            self._ended.wait_for(lambda: not self._live, 1.0)

    def _accept(self) -> None:
        assert self._socket is not None
        pause = threading.Event()
        while not self.stopping:
            try:
                accepted, address = self._socket.accept()
            except OSError as error:
                if not self.stopping:
                    self.log.warning("cannot accept", domain=self.domain, error=str(error.strerror))
                    self.clock.wait(pause, 0.05)  # out of descriptors, most likely
                continue
            connection = _Connection(self, accepted, Peer(str(address[0]).removeprefix("::ffff:"), int(address[1])))
            if not self._make_room():
                self.log.warning(
                    "hl7 connection refused: too many", domain=self.domain, address=connection.peer.address
                )
                accepted.close()
                continue
            with self._ended:
                self._live[connection] = None
            self._gauge.inc()
            try:
                threading.Thread(target=connection.run, name="mllp", daemon=True).start()
            except RuntimeError:
                self.log.warning("cannot start a thread", domain=self.domain, connections=len(self._live))
                accepted.close()
                self.forget(connection)

    @property
    def _gauge(self) -> Any:
        return self.metrics.gauge("radmesh_hl7_connections").labels(self.domain)

    def _make_room(self) -> bool:
        """Keep the listener reachable: peers that forgot their connections give way to one that comes."""
        with self._ended:
            if len(self._live) < self._max:
                return True
            idle = [c for c in self._live if c.idle]
            if not idle:
                return False
            oldest = min(idle, key=lambda c: c.since)
            oldest.cut()
            return self._ended.wait_for(lambda: oldest not in self._live, 1.0)

    def forget(self, connection: "_Connection") -> None:
        """A connection has ended."""
        self._gauge.dec()
        with self._ended:
            self._live.pop(connection, None)
            self._ended.notify_all()

    def count(self, outcome: str) -> None:
        """Count a message by what came of it."""
        self.metrics.counter("radmesh_hl7_messages").labels(self.domain, outcome).inc()


class _Connection:
    """One peer's connection, and the thread that serves it."""

    def __init__(self, listener: MllpListener, accepted: socket.socket, peer: Peer) -> None:
        self._listener = listener
        self._log = listener.log
        self._socket = accepted
        self.peer = peer
        self.idle = True
        self.since = listener.clock.monotonic()

    def run(self) -> None:
        """Serve until the peer is gone, silent or wrong."""
        reader = FrameReader(self._listener.max_message_bytes, loose=self._listener.loose)
        try:
            self._socket.settimeout(_SLICE)
            _tune(self._socket)
            self._secure()
            while data := self._receive(reader.pending):
                items = reader.feed(data)
                self._count_halves(reader)
                if not all(self._answer(item) for item in items):
                    break
                if items or not reader.pending:
                    self._rest(idle=not reader.pending)
        except OSError as error:  # TLS too
            self._log.info(
                "hl7 connection lost",
                domain=self._listener.domain,
                address=self.peer.address,
                error=error.strerror or type(error).__name__,
            )
        finally:
            reader.halves += reader.pending
            self._count_halves(reader)
            self._socket.close()
            self._listener.forget(self)

    def _rest(self, *, idle: bool) -> None:
        self.idle = idle
        self.since = self._listener.clock.monotonic()

    def _secure(self) -> None:
        if self._listener.ssl_context is None:
            return
        self._socket.settimeout(self._listener.message_timeout)
        secured = self._listener.ssl_context.wrap_socket(self._socket, server_side=True)
        self._socket = secured
        certificate = secured.getpeercert() or {}
        subject: Any = certificate.get("subject", ())
        names = {name: value for part in subject for name, value in part}
        self.peer = Peer(self.peer.address, self.peer.port, str(names.get("commonName", "")))
        secured.settimeout(_SLICE)

    def _receive(self, pending: bool) -> bytes:  # noqa: FBT001 - the reader's state
        """Return bytes; b"" when the peer has ended, or was silent for too long."""
        if pending and self.idle:
            self._rest(idle=False)
        limit = self._listener.message_timeout if pending else self._listener.idle_timeout
        while not self._listener.stopping:
            if self._listener.clock.monotonic() - self.since >= limit:
                return b""
            with contextlib.suppress(TimeoutError):
                return self._socket.recv(_READ)
        return b""

    def _count_halves(self, reader: FrameReader) -> None:
        if reader.halves:
            self._log.warning(
                "half a message was dropped",
                domain=self._listener.domain,
                address=self.peer.address,
                messages=reader.halves,
            )
            for _ in range(reader.halves):
                self._listener.count("HALF")
            reader.halves = 0

    def _answer(self, item: bytes | TooLong) -> bool:
        """Handle a message and answer it; return whether to go on."""
        if self._listener.stopping:
            return False
        self.idle = False
        began = self._listener.clock.monotonic()
        answer = self._too_long(item) if isinstance(item, TooLong) else self._handled(item)
        found = _MSA.search(answer) if answer else None
        self._listener.count(found[1].decode("ascii") if found else "NONE" if answer is None else "BATCH")
        seconds = self._listener.clock.monotonic() - began
        self._listener.metrics.histogram("radmesh_hl7_seconds").labels(self._listener.domain).observe(seconds)
        if answer is not None:
            self._socket.settimeout(self._listener.message_timeout)
            self._socket.sendall(frame(answer))
            self._socket.settimeout(_SLICE)
        return True

    def _handled(self, message: bytes) -> bytes | None:
        try:
            return self._listener.handle(message, self.peer)
        except RadmeshError as error:
            self._log.warning(
                "hl7 message had no effect",
                domain=self._listener.domain,
                address=self.peer.address,
                reason=error.reason,
                location=error.metadata.get("location", ""),
            )
            return self._refusal(message, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the peer gets an answer
            incident = secrets.token_hex(4)
            self._log.exception(
                "hl7 handler failed", error, domain=self._listener.domain, address=self.peer.address, incident=incident
            )
            internal = RadmeshError("INTERNAL", f"incident {incident}", metadata={"incident": incident})
            return self._refusal(message, internal)

    def _too_long(self, item: TooLong) -> bytes | None:
        self._log.warning(
            "hl7 message is too long", domain=self._listener.domain, address=self.peer.address, limit=item.limit
        )
        text = f"the message is longer than {item.limit} bytes: send less at once"
        return self._refusal(item.head, RadmeshError("HL7_MESSAGE_TOO_LARGE", text))

    def _refusal(self, message: bytes, error: RadmeshError) -> bytes | None:
        try:
            read: Message | None = parse(message)
        except RadmeshError:
            read = None
        return refusal(read, error, clock=self._listener.clock, control_id=secrets.token_hex(8))

    def stop_reading(self) -> None:
        """Let the thread see the end of the connection, but still send its answer."""
        # The plain socket's: that of TLS would go on unencrypted.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RD)

    def cut(self) -> None:
        """End it now."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _tune(connection: socket.socket) -> None:
    """Send answers at once; notice a peer whose machine is gone within two minutes."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class AckError(RadmeshError):
    """The receiver answered for the message, and did not accept it; `acknowledgement` is the answer."""

    def __init__(self, reason: str, message: str, acknowledgement: Message) -> None:
        code = acknowledgement.get("MSA-1")
        place = acknowledgement.segment("ERR")
        said = place.field(3).value if place else ""
        super().__init__(reason, message, metadata={"code": code[:2], "condition": said[:20]})
        self.acknowledgement = acknowledgement


class MllpClient:
    """Sends messages to one receiver over one connection, which it opens when needed. For one thread at a time.

    An acknowledgement counts for the message whose control ID it names, and for no other: one that comes late finds its
    connection closed.
    """

    def __init__(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
        connect_timeout: float = 5.0,
        ack_timeout: float = 30.0,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        clock: Clock | None = None,
    ) -> None:
        """Make a client; nothing is opened yet. Timeouts are in seconds."""
        self._host, self._port = host, port
        self._ssl_context = ssl_context
        self._connect_timeout, self._ack_timeout = connect_timeout, ack_timeout
        self._max = max_message_bytes
        self._clock = clock or SystemClock()
        self._socket: socket.socket | None = None

    def exchange(self, message: bytes, control_id: str) -> Message:
        """Send a message and return its acknowledgement (AA or CA).

        Raises:
            RadmeshError: HL7_CONNECTION_LOST, HL7_ACK_TIMEOUT, HL7_ACK_FOREIGN (something else was answered): whether
                the message was taken is not known, send the same bytes again.
            AckError: HL7_REFUSED (AR, CR), HL7_ERROR (AE, CE, or no code of the standard).
        """
        connection = self._ready()
        kept = False
        try:
            # Time for the receiver to take the message, then time for its answer.
            connection.settimeout(self._ack_timeout)
            connection.sendall(frame(message))
            acknowledgement, alone = self._await(connection, control_id)
            kept = alone
        except TimeoutError:
            raise self._late() from None
        except OSError as error:
            raise self._lost(error) from error
        finally:
            if not kept:
                self.close()
        code = acknowledgement.get("MSA-1").strip().upper()
        if code in ("AA", "CA"):
            return acknowledgement
        if code in ("AR", "CR"):
            raise AckError("HL7_REFUSED", f"the receiver rejected the message ({code})", acknowledgement)
        said = code if code in ("AE", "CE") else "no code of the standard"
        raise AckError("HL7_ERROR", f"the receiver could not apply the message ({said})", acknowledgement)

    def close(self) -> None:
        """Close the connection, if one is open."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """Let an exchange that another thread waits in end with HL7_CONNECTION_LOST."""
        # Closing is left to that thread: the descriptor is in its use.
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _ready(self) -> socket.socket:
        """Return a connection on which nothing waits to be read."""
        if self._socket is not None and not _is_silent(self._socket):
            self.close()
        if self._socket is None:
            try:
                connection = socket.create_connection((self._host, self._port), self._connect_timeout)
                _tune(connection)
                if self._ssl_context is not None:
                    connection = self._ssl_context.wrap_socket(connection, server_hostname=self._host)
            except OSError as error:
                raise self._lost(error) from error
            self._socket = connection
        return self._socket

    def _await(self, connection: socket.socket, control_id: str) -> tuple[Message, bool]:
        """Return the acknowledgement, and whether nothing came with it."""
        reader = FrameReader(self._max)
        until = self._clock.monotonic() + self._ack_timeout
        while True:
            left = until - self._clock.monotonic()
            if left <= 0:
                raise self._late()
            connection.settimeout(min(left, _SLICE))
            try:
                data = connection.recv(_READ)
            except TimeoutError:
                continue
            if not data:
                raise ConnectionResetError("the receiver closed the connection before it answered")
            items = reader.feed(data)
            if items:
                return self._matched(items[0], control_id), len(items) == 1 and not reader.pending

    def _matched(self, item: bytes | TooLong, control_id: str) -> Message:
        try:
            answer = parse(item if isinstance(item, bytes) else item.head)
        except RadmeshError:
            answer = None
        if answer is None or answer.get("MSA-2").strip() != control_id:
            text = "the receiver answered for another message: the answer was dropped and the connection closed"
            raise RadmeshError("HL7_ACK_FOREIGN", text)
        return answer

    def _late(self) -> RadmeshError:
        return RadmeshError("HL7_ACK_TIMEOUT", f"no acknowledgement within {self._ack_timeout:g} s")

    def _lost(self, error: OSError) -> RadmeshError:
        what = error.strerror or str(error) or type(error).__name__
        return RadmeshError("HL7_CONNECTION_LOST", f"no connection to {self._host}:{self._port}: {what}")


def _is_silent(connection: socket.socket) -> bool:
    """Whether the connection is open and nothing has come since the last answer."""
    connection.settimeout(0)
    try:
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    return False
