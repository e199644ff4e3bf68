"""HTTP/2 (RFC 9113) as far as gRPC needs it for one stream at a time on a connection, on a blocking socket.

The thread that has something to say says it, and waits on the socket itself: no queues, no hand-over between threads,
one `sendmsg` a message and no copy of its bytes. This is what a line (radmesh.runtime.line) is made of; everything
else in the mesh uses grpcio.
"""

import contextlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hpack

from radmesh_native import bulk

Buffer = bytes | bytearray | memoryview
Fields = Sequence[tuple[str, str]]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TICK_SECONDS: Final = 1.0
# Frame types (RFC 9113 6) and flags.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
# Settings (6.5.2).
# Not of the RFC, and unknown to others, who ignore it: a descriptor may come with the first header block.
_TAKES_DESCRIPTOR: Final = 0xF0CA
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _WINDOW, _FRAME_SIZE, _HEADER_LIST = range(1, 7)
# Errors (7).
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 0, 1, 3, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11
_WINDOW_MAX: Final = (1 << 31) - 1
_FRAME_MAX: Final = (1 << 24) - 1
_DEFAULT_WINDOW, _DEFAULT_FRAME = 65_535, 16_384
_HEADER_MAX: Final = 16_384
# Frames without data that a peer may send between two messages: more is an attack (CVE-2019-9512 and its kin).
_CONTROL_MAX: Final = 10_000
_BUFFER: Final = 1 << 16
_HEAD = struct.Struct(">HBBBL")  # length (24 bits), type, flags, stream
_PREFIX = struct.Struct(">BL")  # of a gRPC message: whether it is compressed, its length
_INT = struct.Struct("i")
_HEAD_AND_PREFIX = struct.Struct(">HBBBLBL")


class ClosedError(Exception):
    """The connection, or its stream, has ended: lost, closed by the other side, or given up here."""


class ProtocolError(Exception):
    """The other side broke a rule of HTTP/2; `code` is what it is told."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Headers:
    """A header block of the stream; with `end` nothing follows it."""

    fields: dict[str, str]
    end: bool


class End:
    """The other side has sent everything."""


END: Final = End()


class Connection:
    """One side of a connection. One thread uses it; `ping` may come from another.

    Args:
        sock: connected and blocking; with a receive and send timeout of TICK_SECONDS set by this class.
        message_max: bytes of a message; a longer one is a ProtocolError.
        tick: called about every second in which nothing comes or goes; raises to give up.
        client: whether this side begins streams.
    """

    def __init__(self, sock: Any, message_max: int, tick: Callable[[], None], *, client: bool) -> None:
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._message_max = message_max
        self._tick = tick
        self._client = client
        if self._tls:
            sock.settimeout(TICK_SECONDS)
        else:
            # Not settimeout: it would make the descriptor non-blocking, with a poll before each call.
            interval = struct.pack("ll", int(TICK_SECONDS), int(TICK_SECONDS % 1 * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._stop = 0
        self._decoder = hpack.Decoder(_HEADER_MAX)
        self._encoder = hpack.Encoder()
        self._encoder.header_table_size = 0  # stateless: nothing is gained from a table for two header blocks
        self.heard_at = time.monotonic()
        """When something came last, by time.monotonic."""
        self.stream = 0
        """The stream that is open; 0 = none."""
        self.settled = False
        """Whether the other side's settings have come."""
        self.takes_descriptor = False
        """Whether the other side takes a descriptor with the header block (a server on a unix socket, of this kind)."""
        self._welcome = not client and not self._tls and sock.family == socket.AF_UNIX
        self._descriptor = -1
        self.going_away = False
        """Whether the other side takes no further streams."""
        self._last_stream = 0
        self._window, self._stream_window, self._first_window = _DEFAULT_WINDOW, 0, _DEFAULT_WINDOW
        self._frame_max = _DEFAULT_FRAME
        self._received = self._stream_received = 0
        self._control = 0
        # The DATA frame that is being read: bytes left of it, then padding; whether it ends the stream.
        self._left = self._padding = 0
        self._ends = False
        self._prefix = bytearray()
        self._message: bytearray | None = None
        self._filled = 0
        # What came while this side waited for room to send.
        self._early: list[bytearray | Headers | End] = []

    # -- opening

    def open_client(self) -> None:
        """Say who begins, with settings that never make the other side wait."""
        self._send(PREFACE + self._first())

    def open_server(self) -> None:
        """Read the client's preface, and answer with settings."""
        if self._take(len(PREFACE)) != PREFACE:
            raise ProtocolError(PROTOCOL_ERROR, "no HTTP/2 preface")
        self._send(self._first())

    def _first(self) -> bytes:
        settings = {_WINDOW: _WINDOW_MAX, _FRAME_SIZE: _FRAME_MAX, _HEADER_LIST: _HEADER_MAX}
        # A second stream is refused at once: announced as the limit, gRPC would let it wait for the first one's end.
        settings |= {_ENABLE_PUSH: 0} if self._client else {_MAX_STREAMS: 100}
        settings |= {_TAKES_DESCRIPTOR: 1} if self._welcome else {}
        payload = b"".join(struct.pack(">HL", *setting) for setting in settings.items())
        update = struct.pack(">L", _WINDOW_MAX - _DEFAULT_WINDOW)
        return frame(SETTINGS, 0, 0, payload) + frame(WINDOW_UPDATE, 0, 0, update)

    def wait_settled(self) -> None:
        """Read until the other side's settings have come."""
        while not self.settled:
            self._frame()

    # -- sending

    def send_headers(self, fields: Fields, *, end: bool = False, begin: bool = False, descriptor: int = -1) -> None:
        """Send a header block; `begin` opens the next stream (1 is a client's first).

        `descriptor` is given to a server that takes one.
        """
        if begin:
            self._last_stream = self._last_stream + 2 if self._last_stream else 1
            self._open(self._last_stream)
        block = self._encoder.encode(fields, huffman=False)
        flags = _END_HEADERS | (_END_STREAM if end else 0)
        self._send(frame(HEADERS, flags, self.stream, block[:_DEFAULT_FRAME]), descriptor=descriptor)
        assert len(block) <= _DEFAULT_FRAME

    def send_message(self, *parts: Buffer) -> None:
        """Send one gRPC message, uncompressed: its parts, one after the other."""
        size = sum(map(len, parts))
        length = size + 5
        if length <= min(self._window, self._stream_window, self._frame_max):
            self._spend(length)
            self._send(_HEAD_AND_PREFIX.pack(length >> 8, length & 0xFF, DATA, 0, self.stream, 0, size), *parts)
            return
        pieces = [memoryview(_PREFIX.pack(0, size)), *(memoryview(part).cast("B") for part in parts)]
        while pieces:
            room = self._room()
            now: list[memoryview] = []
            size = 0
            while pieces and size < room:
                piece = pieces[0][: room - size]
                pieces[0] = pieces[0][len(piece) :]
                if not len(pieces[0]):
                    pieces.pop(0)
                now.append(piece)
                size += len(piece)
            self._spend(size)
            self._send(frame_head(DATA, 0, self.stream, size), *now)

    def send_end(self) -> None:
        """Say that this side has sent everything."""
        self._send(frame(DATA, _END_STREAM, self.stream, b""))

    def reset(self, code: int) -> None:
        """Give the stream up."""
        self._send(frame(RST_STREAM, 0, self.stream, struct.pack(">L", code)))

    def go_away(self, code: int = NO_ERROR) -> None:
        """Say that no further stream is taken."""
        self._send(frame(GOAWAY, 0, 0, struct.pack(">LL", self._last_stream, code)))

    def ping(self) -> None:
        """Send a PING without waiting: a sign of life, and a question for one. What does not fit is not sent."""
        ping = frame(PING, 0, 0, b"radmesh!")
        with contextlib.suppress(OSError, ValueError):
            if self._tls:
                self._sock.send(ping)
            else:
                self._sock.send(ping, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def take_descriptor(self) -> int:
        """Return the descriptor that came with the header block, which is then the caller's; -1 = none did."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Close the socket; a thread that waits on it gets ClosedError."""
        if self._descriptor >= 0:
            os.close(self.take_descriptor())
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        self._sock.close()

    @property
    def within(self) -> bool:
        """Whether a frame or message has begun to come."""
        return bool(self._left or self._message is not None or self._prefix or self._start != self._stop)

    def _room(self) -> int:
        while (room := min(self._window, self._stream_window, self._frame_max)) <= 0:
            event = self._frame()
            if event is not None:
                self._early.append(event)
                if len(self._early) > _CONTROL_MAX:
                    raise ProtocolError(ENHANCE_YOUR_CALM, "the other side sends and does not read")
        return room

    def _spend(self, size: int) -> None:
        self._window -= size
        self._stream_window -= size

    def _send(self, *parts: Buffer, descriptor: int = -1) -> None:
        left = list(parts)
        beside: Any = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(descriptor))] if descriptor >= 0 else ()
        while left:
            try:
                if self._tls:
                    # One record for small frames; the bytes of a large one are not joined to its head.
                    if len(left) > 1 and sum(map(len, left)) <= _DEFAULT_FRAME:
                        left = [b"".join(left)]
                    sent = self._sock.send(left[0]) if left[0] else 0
                else:
                    sent = self._sock.sendmsg(left, beside, socket.MSG_NOSIGNAL)
                    beside = ()
            except (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._listen()
                self._tick()
                continue
            except (OSError, ValueError) as error:
                raise ClosedError(type(error).__name__) from error
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = memoryview(left[0])[sent:]

    def _listen(self) -> None:
        """Look for signs of life of a peer that does not read; they are handled later."""
        if self._tls:
            return
        with contextlib.suppress(OSError, ValueError):
            if select.select([self._sock], [], [], 0)[0]:
                self._compact()
                if self._stop < _BUFFER:
                    got = self._sock.recv_into(self._view[self._stop :], 0, socket.MSG_DONTWAIT)
                    self._stop += got
                    if got:
                        self.heard_at = time.monotonic()

    # -- receiving

    def receive(self) -> bytearray | Headers | End:
        """Return what comes next on the stream: a header block, a message, or the end.

        On a server without a stream the next header block opens one.

        Raises:
            ClosedError: nothing comes any more.
            ProtocolError: the connection cannot go on.
        """
        if self._early:
            return self._early.pop(0)
        while True:
            event = self._frame()
            if event is not None:
                return event

    def _open(self, stream: int) -> None:
        self._welcome = False
        self.stream = self._last_stream = stream
        self._stream_window = self._first_window
        self._stream_received = 0
        self._prefix.clear()
        self._message = None

    def end_stream(self) -> None:
        """Both sides have ended the stream: a server waits for the next one."""
        self.stream = 0

    def _frame(self) -> bytearray | Headers | End | None:
        """Read on until something is complete; None = a frame that is none of the stream's."""
        if self._left or self._padding or self._ends:
            return self._data()
        self._need(_HEAD.size)
        high, low, kind, flags, stream = _HEAD.unpack_from(self._buffer, self._start)
        self._start += _HEAD.size
        length, stream = high << 8 | low, stream & _WINDOW_MAX
        if kind == DATA:
            return self._begin_data(flags, stream, length)
        self._control += 1
        if self._control > _CONTROL_MAX:
            raise ProtocolError(ENHANCE_YOUR_CALM, "too many frames without data")
        if length > _DEFAULT_FRAME:
            # Larger ones are allowed for data alone: this side has no use for them elsewhere.
            raise ProtocolError(FRAME_SIZE_ERROR, "frame too large")
        if kind == HEADERS:
            return self._headers(flags, stream, self._take(length))
        self._housekeeping(kind, flags, stream, self._take(length))
        return None

    def _housekeeping(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Frames that carry nothing of a call."""
        if kind == SETTINGS:
            self._settings(flags, stream, payload)
        elif kind == PING:
            if len(payload) != 8 or stream:
                raise ProtocolError(FRAME_SIZE_ERROR, "PING has 8 bytes, of no stream")
            if not flags & _ACK:
                self._send(frame(PING, _ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._window_update(stream, payload)
        elif kind == RST_STREAM:
            if len(payload) != 4 or not stream:
                raise ProtocolError(FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes, of a stream")
            if stream == self.stream:
                raise ClosedError(f"the stream was reset: {int.from_bytes(payload, 'big')}")
        elif kind == GOAWAY:
            if len(payload) < 8 or stream:
                raise ProtocolError(FRAME_SIZE_ERROR, "GOAWAY has at least 8 bytes, of no stream")
            self.going_away = True
            if int.from_bytes(payload[:4], "big") & _WINDOW_MAX < self.stream:
                raise ClosedError("the other side goes away")
        elif kind in (PUSH_PROMISE, CONTINUATION):
            raise ProtocolError(PROTOCOL_ERROR, "unexpected frame")

    def _begin_data(self, flags: int, stream: int, length: int) -> bytearray | Headers | End | None:
        self._received += length
        if self._received >= _WINDOW_MAX // 2:
            self._send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", self._received)))
            self._received = 0
        pad = 0
        if flags & _PADDED:
            if not length:
                raise ProtocolError(FRAME_SIZE_ERROR, "no room for the pad length")
            pad = self._take(1)[0]
            length -= 1
            if pad > length:
                raise ProtocolError(PROTOCOL_ERROR, "more padding than frame")
        if stream != self.stream or not stream:
            if not stream or stream > self._last_stream:
                raise ProtocolError(PROTOCOL_ERROR, "data of a stream that is not open")
            self._skip(length)  # of a stream that was given up
            return None
        self._stream_received += length
        if self._stream_received >= _WINDOW_MAX // 2:
            self._send(frame(WINDOW_UPDATE, 0, stream, struct.pack(">L", self._stream_received)))
            self._stream_received = 0
        self._left, self._padding, self._ends = length - pad, pad, bool(flags & _END_STREAM)
        return self._data()

    def _data(self) -> bytearray | End | None:
        """Go on within a DATA frame: to the end of a message, or of the frame."""
        while self._left:
            if self._message is None:
                part = self._take(min(5 - len(self._prefix), self._left))
                self._left -= len(part)
                self._prefix += part
                if len(self._prefix) < 5:
                    continue
                compressed, size = _PREFIX.unpack(self._prefix)
                if compressed:
                    raise ProtocolError(PROTOCOL_ERROR, "the message is compressed, and nothing was agreed")
                self._prefix.clear()
                if size > self._message_max:
                    raise ProtocolError(ENHANCE_YOUR_CALM, f"a message has at most {self._message_max} bytes")
                self._message, self._filled = bulk.room(size), 0
            message = self._message
            part_size = min(len(message) - self._filled, self._left)
            if part_size:
                self._read_into(memoryview(message)[self._filled : self._filled + part_size])
                self._filled += part_size
                self._left -= part_size
            if self._filled == len(message):
                self._message = None
                self._control = 0
                return message
        if self._padding:
            self._skip(self._padding)
            self._padding = 0
        if self._ends:
            self._ends = False
            if self._message is not None or self._prefix:
                raise ProtocolError(PROTOCOL_ERROR, "the stream ends within a message")
            return END
        return None

    def _headers(self, flags: int, stream: int, payload: bytes) -> Headers | None:
        pad = 0
        if flags & _PADDED:
            if not payload:
                raise ProtocolError(FRAME_SIZE_ERROR, "no room for the pad length")
            pad, payload = payload[0], payload[1:]
        if flags & _HAS_PRIORITY:
            payload = payload[5:]
        if pad > len(payload):
            raise ProtocolError(PROTOCOL_ERROR, "more padding than frame")
        block = payload[: len(payload) - pad]
        while not flags & _END_HEADERS:
            high, low, kind, more, which = _HEAD.unpack(self._take(9))
            length = high << 8 | low
            if kind != CONTINUATION or which & _WINDOW_MAX != stream or len(block) + length > 2 * _HEADER_MAX:
                raise ProtocolError(PROTOCOL_ERROR, "a header block is continued by nothing else, and has an end")
            block += self._take(length)
            self._control += 1
            if self._control > _CONTROL_MAX:
                raise ProtocolError(ENHANCE_YOUR_CALM, "too many frames without data")
            flags |= more & _END_HEADERS
        try:
            fields = {_text(name): _text(value) for name, value in self._decoder.decode(block, raw=True)}
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise ProtocolError(COMPRESSION_ERROR, "the header block cannot be read") from error
        end = bool(flags & _END_STREAM)
        if stream == self.stream and stream:
            return Headers(fields, end)
        if self._client or stream <= self._last_stream:
            if not stream or stream > self._last_stream:
                raise ProtocolError(PROTOCOL_ERROR, "a header block of no stream")
            return None  # of a stream that was given up
        if not stream % 2:
            raise ProtocolError(PROTOCOL_ERROR, "a client's streams have odd numbers")
        if self.stream:
            self._last_stream = stream
            self._send(frame(RST_STREAM, 0, stream, struct.pack(">L", REFUSED_STREAM)))
            return None
        self._open(stream)
        return Headers(fields, end)

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or len(payload) % 6 or (flags & _ACK and payload):
            raise ProtocolError(FRAME_SIZE_ERROR, "SETTINGS has pairs, of no stream")
        if flags & _ACK:
            return
        for name, value in struct.iter_unpack(">HL", payload):
            if name == _WINDOW:
                if value > _WINDOW_MAX:
                    raise ProtocolError(FLOW_CONTROL_ERROR, "the window is too large")
                self._stream_window += value - self._first_window
                self._first_window = value
            elif name == _FRAME_SIZE:
                if not _DEFAULT_FRAME <= value <= _FRAME_MAX:
                    raise ProtocolError(PROTOCOL_ERROR, "no such frame size")
                self._frame_max = value
            elif name == _TAKES_DESCRIPTOR:
                self.takes_descriptor = bool(value)
        self.settled = True
        self._send(frame(SETTINGS, _ACK, 0, b""))

    def _window_update(self, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        size = int.from_bytes(payload, "big") & _WINDOW_MAX
        if not size:
            raise ProtocolError(PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        if not stream:
            self._window += size
        elif stream == self.stream:
            self._stream_window += size
        if max(self._window, self._stream_window) > _WINDOW_MAX:
            raise ProtocolError(FLOW_CONTROL_ERROR, "the window is too large")

    # -- bytes

    def _compact(self) -> None:
        if self._start:
            self._buffer[: self._stop - self._start] = self._buffer[self._start : self._stop]
            self._stop -= self._start
            self._start = 0

    def _need(self, size: int) -> None:
        """Have `size` bytes, at most a buffer full, in the buffer."""
        while self._stop - self._start < size:
            if self._start == self._stop:
                self._start = self._stop = 0
            elif self._start + size > _BUFFER:
                self._compact()
            self._stop += self._receive(self._view[self._stop :] if self._stop else self._view, 0)

    def _take(self, size: int) -> bytes:
        """Return exactly `size` bytes, at most a buffer full."""
        self._need(size)
        taken = bytes(self._view[self._start : self._start + size])
        self._start += size
        return taken

    def _read_into(self, view: memoryview) -> None:
        """Fill `view`: what is there already, then straight from the socket."""
        ready = min(len(view), self._stop - self._start)
        if ready:
            view[:ready] = self._view[self._start : self._start + ready]
            self._start += ready
        done = ready
        while done < len(view):
            if len(view) - done < _BUFFER // 2:
                # A short rest comes with what follows it.
                self._start = self._stop = 0
                self._stop = self._receive(self._view, 0)
                part = min(len(view) - done, self._stop)
                view[done : done + part] = self._view[:part]
                self._start = part
                done += part
            else:
                done += self._receive(view[done:], socket.MSG_WAITALL)

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._take(min(size, _DEFAULT_FRAME)))

    def _receive(self, view: memoryview, flags: int) -> int:
        while True:
            try:
                if self._tls:
                    got: int = self._sock.recv_into(view)
                elif self._welcome:
                    got = self._receive_first(view, flags)
                else:
                    got = self._sock.recv_into(view, 0, flags)
            except (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._tick()
                continue
            except (OSError, ValueError) as error:
                raise ClosedError(type(error).__name__) from error
            if not got:
                raise ClosedError("the other side closed the connection")
            self.heard_at = time.monotonic()
            return got

    def _receive_first(self, view: memoryview, flags: int) -> int:
        """As recv_into; keeps the first descriptor that comes."""
        got, beside, _, _ = self._sock.recvmsg_into([view], socket.CMSG_LEN(_INT.size), flags | socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                for (descriptor,) in _INT.iter_unpack(data[: len(data) // _INT.size * _INT.size]):
                    if self._descriptor < 0:
                        self._descriptor = descriptor
                    else:
                        os.close(descriptor)
        return int(got)


def frame_head(kind: int, flags: int, stream: int, length: int) -> bytes:
    """Return the 9 bytes before a frame's payload."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame."""
    return frame_head(kind, flags, stream, len(payload)) + payload


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
