"""Whether children that serve still answer: the standard health service is asked now and then.

In a thread of its own, which starts no process, and without gRPC: the supervisor has neither time to wait nor that.
"""

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from radmesh.runtime.http2 import ClosedError, Connection, ProtocolError

# Seconds between two questions, and for an answer; a fraction of the patience where that is short.
_ASK_SECONDS: Final = 5.0
_ASKS: Final = 4
# How much longer one is waited for that moves: it computes, or waits for a disk.
_MOVING: Final = 5
# The share of one processor from which on a process moves. gRPC's own threads take less while all else stands still.
_MOVING_SHARE: Final = 0.02
_PATH: Final = "/grpc.health.v1.Health/Check"


@dataclass(slots=True)
class Beat:
    """A process that is asked. Written by the asking thread alone."""

    pid: int
    target: str
    heard_at: float
    seen_at: float
    processor_seconds: float
    unanswered: int = 0
    moved: bool = False

    def silence(self, now: float) -> float:
        """Return for how long it has not answered; 0 if the last question was answered."""
        return now - self.heard_at if self.unanswered else 0.0

    def hangs(self, now: float, patience: float) -> bool:
        """Return whether it is to be given up.

        Questions count beside the time: of a machine that slept, the time is gone and nobody was asked.
        """
        limit = patience * _MOVING if self.moved else patience
        return self.unanswered >= _ASKS and self.silence(now) > limit and not _waits_for_disk(self.pid)


class Pulse:
    """Asks what `watch` names, one after the other."""

    def __init__(self, credentials: Path, patience: float) -> None:
        self._credentials = credentials
        self._seconds = min(_ASK_SECONDS, patience / _ASKS)
        self._beats: dict[str, Beat] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def watch(self, instance: str, pid: int, target: str) -> Beat:
        """Ask an instance from now on; return what is known of the process that it is now."""
        beat = self._beats.get(instance)
        if beat is None or beat.pid != pid:
            now = time.monotonic()
            beat = self._beats[instance] = Beat(pid, target, now, now, _processor_seconds(pid))
        return beat

    def forget(self, instance: str) -> None:
        """Ask it no more."""
        self._beats.pop(instance, None)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(self._seconds):
            for instance, beat in list(self._beats.items()):
                if self._ask(instance, beat.target):
                    beat.unanswered, beat.moved, beat.heard_at = 0, False, time.monotonic()
                else:
                    beat.moved = beat.moved or _waits_for_disk(beat.pid) or self._computed(beat)
                    beat.unanswered += 1
                beat.seen_at, beat.processor_seconds = time.monotonic(), _processor_seconds(beat.pid)

    @staticmethod
    def _computed(beat: Beat) -> bool:
        used = _processor_seconds(beat.pid) - beat.processor_seconds
        return used > _MOVING_SHARE * (time.monotonic() - beat.seen_at)

    def _ask(self, instance: str, target: str) -> bool:
        """Return whether there is an answer: also one that says "not serving" comes from somebody alive."""
        until = time.monotonic() + self._seconds

        def tick() -> None:
            if time.monotonic() > until or self._end.is_set():
                raise ClosedError("no answer in time")

        try:
            sock = self._connect(instance, target)
            connection = Connection(sock, 4096, tick, client=True)
            try:
                connection.open_client()
                connection.wait_settled()
                scheme = "https" if isinstance(sock, ssl.SSLSocket) else "http"
                fields = [(":method", "POST"), (":scheme", scheme), (":path", _PATH), (":authority", "localhost")]
                connection.send_headers([*fields, ("te", "trailers"), ("content-type", "application/grpc")], begin=True)
                connection.send_message(b"")
                connection.send_end()
                connection.receive()
            finally:
                connection.close()
        except (OSError, ValueError, ClosedError, ProtocolError):
            return False
        return True

    def _connect(self, instance: str, target: str) -> Any:
        if target.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(self._seconds)
                sock.connect(target.removeprefix("unix:"))
                sock.settimeout(None)
            except BaseException:
                sock.close()
                raise
            return sock
        context = ssl.create_default_context(cafile=self._credentials / "ca.pem")
        context.load_cert_chain(self._credentials / f"{instance}.pem", self._credentials / f"{instance}.key")
        context.set_alpn_protocols(["h2"])
        host, _, port = target.rpartition(":")
        plain = socket.create_connection((host.strip("[]"), int(port)), self._seconds)
        try:
            return context.wrap_socket(plain, server_hostname=instance)
        except BaseException:
            plain.close()
            raise


def _processor_seconds(pid: int) -> float:
    """Return the processor time of a process; 0 if it is gone."""
    for fields in _figures(Path(f"/proc/{pid}")):
        # utime and stime (proc(5)); the first of these fields is the third there.
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _waits_for_disk(pid: int) -> bool:
    """Return whether a thread of a process cannot be interrupted now: SIGKILL would not end it either."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return False
    return any(fields[0] == "D" for thread in threads for fields in _figures(thread))


def _figures(folder: Path) -> Iterator[list[str]]:
    """Yield the fields of a `stat` file behind the name, which may hold anything; none if it is gone."""
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return
    yield text.rpartition(")")[2].split()
