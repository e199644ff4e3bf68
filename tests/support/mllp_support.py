"""HL7 over real sockets: listeners whose log and counts can be read, peers that misbehave on purpose."""

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from radmesh.hl7.build import acknowledge
from radmesh.hl7.message import parse
from radmesh.hl7.mllp import FrameReader, MllpListener, Peer, frame
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics

CLOCK = SystemClock()


def order(control_id: str = "1", more: str = "") -> bytes:
    """Return a small ORM^O01."""
    return (
        f"MSH|^~\\&|RIS|CLINIC|RADMESH||20260102030405||ORM^O01|{control_id}|P|2.5.1\r"
        f"PID|1||P1^^^CLINIC||Muster^Max\rORC|NW|A1\rOBR|1|A1||CT\r{more}"
    ).encode()


def accept(raw: bytes, _peer: Peer) -> bytes:
    """Answer AA."""
    return acknowledge(parse(raw), "AA", clock=CLOCK, control_id="R1")


class Listening:
    """A listener with its log and its counts."""

    def __init__(self, handle: Callable[[bytes, Peer], bytes | None] = accept, **settings: Any) -> None:
        self._stream = io.StringIO()
        self.metrics = Metrics()
        self.listener = MllpListener(
            "127.0.0.1",
            0,
            handle,
            log=Logger("test", "test-0", self._stream),
            metrics=self.metrics,
            domain="clinic",
            **settings,
        )

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    @property
    def log_text(self) -> str:
        return self._stream.getvalue()

    def count(self, outcome: str) -> float:
        labels = {"domain": "clinic", "outcome": outcome}
        return self.metrics.registry.get_sample_value("radmesh_hl7_messages_total", labels) or 0.0

    @property
    def open(self) -> float:
        return self.metrics.registry.get_sample_value("radmesh_hl7_connections", {"domain": "clinic"}) or 0.0


@contextmanager
def listening(handle: Callable[[bytes, Peer], bytes | None] = accept, **settings: Any) -> Iterator[Listening]:
    made = Listening(handle, **settings)
    made.listener.start()
    try:
        yield made
    finally:
        made.listener.stop(5.0)


class RawPeer:
    """Sends what it is told, byte for byte, and reads frames."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20.0)
        self._reader = FrameReader()
        self._frames: list[bytes] = []

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def answer(self) -> bytes | None:
        """Return the next message; None when the connection ends."""
        while not self._frames:
            try:
                data = self.socket.recv(65_536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames += [f for f in self._reader.feed(data) if isinstance(f, bytes)]
        return self._frames.pop(0)

    def ask(self, message: bytes) -> bytes | None:
        self.send(frame(message))
        return self.answer()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def receiver(serve: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """Run a receiver that does `serve(connection, number from 0)` for each connection; yields its port."""
    server = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def run() -> None:
        number = 0
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.settimeout(20.0)
            threads.append(threading.Thread(target=_served, args=(serve, connection, number)))
            threads[-1].start()
            number += 1

    accepting = threading.Thread(target=run)
    accepting.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        accepting.join()
        for thread in threads:
            thread.join()


def _served(serve: Callable[[socket.socket, int], None], connection: socket.socket, number: int) -> None:
    with connection:
        try:
            serve(connection, number)
        except OSError:
            return  # the peer closed first: its right


def next_frame(connection: socket.socket) -> bytes | None:
    """Read one message of a connection that carries one at a time; None at its end."""
    reader = FrameReader()
    while data := connection.recv(65_536):
        if frames := reader.feed(data):
            assert isinstance(frames[0], bytes)
            return frames[0]
    return None
