"""The parent of the acceptor processes: opens the port, starts them, starts them again, ends them."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from radmesh.dicom.stations import Station
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.acceptor import Settings
from radmesh_gateway_proxy.certificates import certificates_of
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.tally import BYTES, COMMANDS, OPEN, OUTCOMES, Board

# Children of a parent that was killed end with it, but a moment later.
_PORT_PATIENCE: Final = 5.0
_START_PATIENCE: Final = 60.0
_BACKLOG: Final = 1024
_PAUSE_FIRST, _PAUSE_MOST = 0.1, 1.0
_HEALTHY_SECONDS: Final = 10.0
_TURN_SECONDS: Final = 0.1
_PUBLISH_SECONDS: Final = 1.0
_KILL_AFTER: Final = 3.0


@dataclass
class _Child:
    row: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    pause: float = 0.0


class Supervisor:
    """Runs the acceptors of a gateway proxy."""

    def __init__(self, config: Section, stations: Sequence[Station], context: Context) -> None:
        self._config = config
        self._stations = tuple(stations)
        self._context = context
        self._log = context.log
        rows = config.processes or max(2, os.cpu_count() or 1)
        self._board = Board(rows)
        self._children = [_Child(row) for row in range(rows)]
        self._listener: socket.socket | None = None
        self._tls_listener: socket.socket | None = None
        self._grace: float | None = None
        self._wake = threading.Event()
        # Not a Worker: a child dies with the thread that started it (PR_SET_PDEATHSIG), so that must outlive all.
        self._thread = threading.Thread(target=self._run, name="acceptors", daemon=True)
        self._published: dict[int, int] = {}
        self._publisher = context.worker("publish", self._publish)
        self._show_figures()

    def start(self) -> None:
        """Listen, and return when every acceptor serves.

        Raises:
            RadmeshError: PORT_IN_USE; PEER_TIMEOUT when the acceptors do not come up.
        """
        self._listener = self._listen(self._config.port, "--dicom-port")
        self._tls_listener = self._listen_tls()
        self._thread.start()
        until = time.monotonic() + _START_PATIENCE
        while not all(self._board.pids()):
            if time.monotonic() > until:
                self.stop(0.0)
                raise RadmeshError("PEER_TIMEOUT", "the acceptor processes do not start: look at the log before this")
            time.sleep(0.01)
        self._publisher.start()

    def stop(self, grace: float) -> None:
        """Let associations finish for so long, then end all acceptors."""
        self._grace = grace
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(grace + 2 * _KILL_AFTER)
        for listener in (self._listener, self._tls_listener):
            if listener is not None:
                listener.close()
        self._publisher.stop(1.0)
        self._publish()

    @property
    def port(self) -> int:
        """The TCP port that is served."""
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    def endpoints(self) -> Mapping[str, str]:
        """Return what is served to the outside."""
        host = f"[{self._config.bind}]" if ":" in self._config.bind else self._config.bind
        found = {"dicom": f"dicom://{host}:{self.port}"}
        if self._tls_listener is not None:
            found["dicom_tls"] = f"dicoms://{host}:{self._tls_listener.getsockname()[1]}"
        return found

    def pids(self) -> Sequence[int]:
        """Return this process and its acceptors."""
        return [os.getpid(), *(pid for pid in self._board.pids() if pid)]

    def _listen_tls(self) -> socket.socket | None:
        """Return the listener of the port for TLS; None = it is not served.

        Raises:
            RadmeshError: CONFIG_INVALID, PORT_IN_USE, where a certificate is configured.
        """
        if not self._config.tls:
            return None
        try:
            certificates_of(self._config, self._context)
            return self._listen(self._config.tls_port, "--dicom-tls-port")
        except RadmeshError as error:
            if self._config.tls_certificate:
                if self._listener is not None:
                    self._listener.close()
                raise
            self._log.warning("DICOM over TLS is not served", reason=error.reason, text=error.message)
            return None

    def _listen(self, port: int, option: str) -> socket.socket:
        bind = self._config.bind
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        until = time.monotonic() + (_PORT_PATIENCE if port else 0.0)
        while True:
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                listener.bind((bind, port))
                listener.listen(_BACKLOG)
            except OSError as error:
                listener.close()
                if time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                text = f"cannot listen for DICOM on {bind} port {port} ({os.strerror(error.errno or 0).lower()})"
                raise RadmeshError("PORT_IN_USE", f"{text}: choose another with {option}") from error
            return listener

    # The acceptors

    def _run(self) -> None:
        while self._grace is None:
            for child in self._children:
                self._tend(child)
            self._wake.wait(_TURN_SECONDS)
        self._drain(self._grace)

    def _tend(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is not None and child.process.poll() is not None:
            code = child.process.returncode
            self._board.end(child.row)
            self._close(child)
            healthy = now - child.started > _HEALTHY_SECONDS
            child.pause = 0.0 if healthy else min(max(_PAUSE_FIRST, 2 * child.pause), _PAUSE_MOST)
            child.due = now + child.pause
            self._log.error("acceptor ended, starts again", code=code, pause=child.pause)
            self._context.status.raise_alarm("ACCEPTOR_FAILING", f"an acceptor process ended with {code}")
        if child.process is None and now >= child.due:
            self._spawn(child)
        elif child.process is not None and now - child.started > _HEALTHY_SECONDS and child.pause:
            child.pause = 0.0
        if all(c.process is not None and not c.pause for c in self._children):
            self._context.status.clear_alarm("ACCEPTOR_FAILING")

    def _spawn(self, child: _Child) -> None:
        assert self._listener is not None
        settings = Settings(
            section=self._config,
            stations=self._stations,
            instance=self._context.instance,
            component=self._context.component,
            data=str(self._context.data),
            credentials=str(self._context.credentials.ca_path.parent),
            addresses=self._context.addresses,
            listener=self._listener.fileno(),
            tls_listener=-1 if self._tls_listener is None else self._tls_listener.fileno(),
            board=self._board.descriptor,
            rows=self._board.rows,
            row=child.row,
            parent=os.getpid(),
        )
        child.started = time.monotonic()
        try:
            child.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "radmesh_gateway_proxy.acceptor"],
                stdin=subprocess.PIPE,
                pass_fds=tuple(fd for fd in (settings.listener, settings.tls_listener, settings.board) if fd >= 0),
            )
            assert child.process.stdin is not None
            child.process.stdin.write(settings.to_json().encode() + b"\n")
            child.process.stdin.flush()
        except OSError as error:
            child.due = child.started + _PAUSE_MOST
            self._log.error("cannot start an acceptor", error=os.strerror(error.errno or 0))

    def _close(self, child: _Child) -> None:
        if child.process is not None and child.process.stdin is not None:
            with contextlib.suppress(OSError):  # what was still to be written has no reader
                child.process.stdin.close()
        child.process = None

    def _drain(self, grace: float) -> None:
        running = [child for child in self._children if child.process is not None]
        for child in running:
            assert child.process is not None
            assert child.process.stdin is not None
            try:
                child.process.stdin.write(b"drain %.3f\n" % grace)
                child.process.stdin.flush()
            except OSError:
                continue  # it has ended already
        until = time.monotonic() + grace + _KILL_AFTER
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._log.error("acceptor killed: it did not end in time")
                child.process.kill()
                child.process.wait()
            self._board.end(child.row)
            self._close(child)

    # Figures

    def _show_figures(self) -> None:
        board, show = self._board, self._context.status.figure
        show("associations_open", lambda: board.total(OPEN))
        show("associations_total", lambda: board.totals(board.outcome(o) for o in OUTCOMES) + board.total(OPEN))
        show("associations_refused", lambda: board.total(board.outcome("refused")))
        show("bytes_received", lambda: board.total(BYTES))
        for status, column in board.responses("C-STORE"):
            name = "objects_stored" if status == "0x0000" else f"store_responses_{status}"
            show(name, lambda column=column: board.total(column))  # type: ignore[misc]

    def _publish(self) -> float:
        """Carry what the acceptors counted into this process's metrics."""
        board, metrics = self._board, self._context.metrics
        metrics.gauge("radmesh_associations_open").set(board.total(OPEN))
        for outcome in OUTCOMES:
            metrics.counter("radmesh_associations").labels(outcome).inc(self._since(board.outcome(outcome)))
        for command in COMMANDS:
            for status, column in board.responses(command):
                metrics.counter("radmesh_dimse_responses").labels(command, status).inc(self._since(column))
        metrics.counter("radmesh_intake_bytes").inc(self._since(BYTES))
        seconds = metrics.histogram("radmesh_intake_seconds")
        for bound, column in board.seconds():
            for _ in range(self._since(column)):
                seconds.observe(bound)
        return _PUBLISH_SECONDS

    def _since(self, column: int) -> int:
        """Return by how much a column grew since the last call."""
        now = self._board.total(column)
        grown = now - self._published.get(column, 0)
        self._published[column] = now
        return grown
