"""A RIS that receives reports, and does what a test says with each."""

import contextlib
import socket
import threading
from collections.abc import Sequence
from typing import Self

from mllp_support import CLOCK

from radmesh.hl7.build import acknowledge
from radmesh.hl7.message import parse
from radmesh.hl7.mllp import FrameReader, frame


class Ris:
    """Listens on `port`, and follows `plan` for the first messages, an entry each; what comes after gets AA.

    "AA", "AE", "AR", "CA", "CE", "CR" are answers. Others are mishaps: "silent" (no answer), "late" (its AA comes when
    the next message has come), "other" (AA for another message), "twice" (two AAs), "half" (half an AA, then the end),
    "close" (the end), "nonsense" (no HL7), "bytes" (an AA in single bytes).
    """

    def __init__(self, port: int = 0, plan: Sequence[str] = ()) -> None:
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = int(self._server.getsockname()[1])
        self.plan = list(plan)
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._late: list[tuple[socket.socket, bytes]] = []
        self.got: list[tuple[str, bytes]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def raws(self) -> list[bytes]:
        """All that came, in order."""
        return [raw for _, raw in self.got]

    @property
    def accepted(self) -> list[bytes]:
        """What was answered with AA or CA."""
        return [raw for done, raw in self.got if done in ("AA", "CA", "bytes", "twice")]

    @property
    def ids(self) -> list[str]:
        """MSH-10 of all that came."""
        return [parse(raw).control_id for raw in self.raws]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        reader = FrameReader()
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65_536):
                for raw in reader.feed(data):
                    assert isinstance(raw, bytes)
                    if not self._answer(connection, raw):
                        return

    def _answer(self, connection: socket.socket, raw: bytes) -> bool:
        with self._lock:
            what = self.plan.pop(0) if self.plan else "AA"
            self.got.append((what, raw))
            late, self._late = self._late, []
        for sink, answer in late:
            with contextlib.suppress(OSError):
                sink.sendall(answer)
        message = parse(raw)
        code = what if what in ("AE", "AR", "CA", "CE", "CR") else "AA"
        answer = frame(acknowledge(message, code, clock=CLOCK, control_id="R1"))
        if what == "other":
            answer = answer.replace(message.control_id.encode(), b"OTHER")
        if what == "late":
            self._late.append((connection, answer))
        elif what == "nonsense":
            connection.sendall(frame(b"HTTP/1.1 400 Bad Request"))
        elif what == "half":
            connection.sendall(answer[: len(answer) // 2])
        elif what == "bytes":
            for n in range(len(answer)):
                connection.sendall(answer[n : n + 1])
        elif what not in ("silent", "close"):
            connection.sendall(answer * (2 if what == "twice" else 1))
        return what not in ("close", "half")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
