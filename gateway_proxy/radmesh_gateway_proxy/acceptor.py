"""An acceptor process: shares one listening socket with its siblings, has a thread for each connection.

Started by `supervisor.Supervisor` as ``python -m radmesh_gateway_proxy.acceptor``, never forked. On standard input come
its settings as one line of JSON, then nothing until "drain SECONDS"; its end means that the parent is gone.
"""

import ctypes
import dataclasses
import ipaddress
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.stations import GRANTS, Station, Stations
from radmesh.dicom.transcoding import Transcoder
from radmesh.runtime import interpreter
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Status
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.security import Credentials
from radmesh.transfer.sender import KeepBudget, Sender
from radmesh.transfer.stations import StationKeeper
from radmesh.transfer.tickets import TicketCache, admit_by
from radmesh_gateway_proxy.association import Association
from radmesh_gateway_proxy.audit import Audit
from radmesh_gateway_proxy.certificates import certificates_of
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.intake import Intake, Mark, Senders
from radmesh_gateway_proxy.negotiation import Negotiator, Policy
from radmesh_gateway_proxy.services.exchange import Peer, Sent
from radmesh_gateway_proxy.services.registry import abstract_syntaxes, extended, reported
from radmesh_gateway_proxy.sop_classes import storage_sop_classes, transfer_syntaxes
from radmesh_gateway_proxy.tally import Board, Tally
from radmesh_gateway_proxy.tls import Tunnel, accept

# Connections beyond the associations that may be open: those that have not asked yet, or are closing.
_YOUNG: Final = 128
_STACK: Final = 1 << 20
# For so long a process leaves a connection to a less busy sibling before it takes it after all.
_DEFERENCE_SECONDS: Final = 0.002
_DEFAULT_GRACE: Final = 10.0
_KEEP_BYTES: Final = 256 << 20
_REGISTERED_AT_MOST: Final = 1024
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True)
class Settings:
    """What the parent tells an acceptor. Descriptors are inherited."""

    section: Section
    stations: tuple[Station, ...]
    instance: str
    component: str
    data: str
    credentials: str
    addresses: Mapping[str, str]
    listener: int
    tls_listener: int  # -1 = TLS is not served
    board: int
    rows: int
    row: int
    parent: int

    def to_json(self) -> str:
        """Return the settings on one line."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["section"] = _plain(self.section)
        fields["stations"] = [_plain(station) for station in self.stations]
        fields["addresses"] = dict(self.addresses)
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: bytes) -> "Settings":
        """Return the settings of a line."""
        fields = json.loads(line)
        fields["section"] = Section(**_frozen(fields["section"]))
        fields["stations"] = tuple(Station(**_frozen(station)) for station in fields["stations"])
        return cls(**fields)


def _plain(instance: Any) -> dict[str, Any]:
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}


def _frozen(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


class Draining:
    """Whether and until when this process drains; waits in native/ are woken through `wake_fd`."""

    def __init__(self) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.until: float | None = None

    def begin(self, seconds: float) -> None:
        """Let associations finish for so long."""
        if self.until is None:
            self.until = time.monotonic() + seconds
            os.eventfd_write(self.wake_fd, 1)


class Acceptor:
    """One process's share of the edge."""

    def __init__(
        self,
        settings: Settings,
        context: Context,
        listener: socket.socket,
        tally: Tally,
        tls_listener: socket.socket | None = None,
    ) -> None:
        self.config = settings.section
        self.context = context
        self.log = context.log
        self.tally = tally
        self.draining = Draining()
        self.transcoder = Transcoder()
        self.negotiator = Negotiator(
            Policy(
                storage_sop_classes() | set(self.config.private_sop_classes),
                transfer_syntaxes(),
                abstract_syntaxes(),
                extended(),
                reported(),
                ae_title=self.config.ae_title,
                require_called_ae=self.config.require_called_ae,
                max_pdu=self.config.max_pdu,
            )
        )
        self.stations = Stations(settings.stations)
        self._keeper = StationKeeper(context, self.stations)
        self._listener = listener
        self._tls_listener = tls_listener
        self._certificates = certificates_of(self.config, context) if tls_listener is not None else None
        self._lock = threading.Lock()
        # A handshake takes a thread, and its peer is nobody yet: of too many the oldest may not go on, so that nobody
        # is locked out.
        self._handshakes: dict[object, bool] = {}
        self._live: dict[Association, None] = {}
        self._ended = threading.Condition(self._lock)
        self._audit = Audit(context)
        services = database_pb2.DESCRIPTOR.services_by_name
        self._registry = context.client(services["RegistryService"], "database-server")
        self._rejects = context.target("network-gateway")
        admit, tickets = admit_by(context), TicketCache(context.clock)
        budget = KeepBudget(_KEEP_BYTES // settings.rows)
        self._senders = Senders(
            lambda: Sender(context.line, admit, context.clock, tickets=tickets, budget=budget),
            max(1, self.config.streams // settings.rows),
        )

    # What an association needs

    def grants(self, calling_ae_title: str, address: str, certificate: str = "") -> Collection[str] | None:
        """Return what a station may do; None if it is unknown, and stations are checked."""
        check = self.config.check_stations
        if check == "off" or (check == "auto" and ipaddress.ip_address(address).is_loopback):
            return GRANTS
        station = self.stations.match(calling_ae_title, address)
        if station is None or station.certificate not in ("", certificate):
            return None
        return station.grants

    def station(self, ae_title: str, address: str) -> Station | None:
        """Return the station that calls itself so from there; None if none is known."""
        return self.stations.match(ae_title, address)

    def destination(self, ae_title: str) -> Station | None:
        """Return the station that takes associations under this AE title; None if none is known that does."""
        return self.stations.lookup(ae_title)

    def refused(self, peer: Peer, reason: str) -> None:
        """Write to the log and the audit that a station was refused."""
        self.log.warning(
            "association refused", calling_ae_title=peer.calling_ae_title, address=peer.address, reason=reason
        )
        self._audit.refused(peer, reason)

    def sent(self, peer: Peer, study_instance_uid: str, sent: Sent) -> None:
        """Write to the audit what of a study was sent for a station."""
        self._audit.sent(peer, study_instance_uid, sent)

    def store(self, peer: Peer) -> Intake:
        """Return what takes the objects of one association."""
        return Intake(peer, self._senders, self._rejects, self._wait_registered, self.log)

    def _wait_registered(self, marks: Sequence[Mark], seconds: float) -> None:
        until = time.monotonic() + seconds
        for first in range(0, len(marks), _REGISTERED_AT_MOST):
            part = marks[first : first + _REGISTERED_AT_MOST]
            request = database_pb2.WaitRegisteredRequest(
                marks=[
                    common_pb2.CommitMark(
                        store_id=m.store_id, study_hash=m.study_hash, generation=m.generation, sequence=m.sequence
                    )
                    for m in part
                ]
            )
            left = until - time.monotonic()
            if left <= 0:
                return
            try:
                missing = self._registry.WaitRegistered(request, timeout=left).missing
            except RadmeshError as error:
                # What was acknowledged is durable, and will be registered; the release does not wait for a database.
                self.log.warning("registration not awaited", reason=error.reason)
                return
            if missing:
                self.log.warning("registration is late", studies=len(missing))

    # Accepting

    def run(self, commands: int) -> None:
        """Accept until told to drain, then let associations finish.

        Args:
            commands: descriptor on which the parent's lines come.
        """
        self._audit.start()
        self._keeper.start()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        if self._tls_listener is not None:
            poll.register(self._tls_listener, select.POLLIN)
        poll.register(commands, select.POLLIN)
        while self.draining.until is None:
            for descriptor, _ in poll.poll(500):
                if descriptor == commands:
                    self._command(commands)
                elif self._tls_listener is not None and descriptor == self._tls_listener.fileno():
                    self._accept(self._tls_listener, self._begin_tls)
                else:
                    self._accept(self._listener, self._begin)
        self._listener.close()
        if self._tls_listener is not None:
            self._tls_listener.close()
        self._drain()

    def _command(self, commands: int) -> None:
        line = os.read(commands, 256).decode("ascii", "replace").split()
        if not line:
            os._exit(1)  # the parent is gone, and whoever takes its place wants the port
        if line[0] == "drain":
            self.draining.begin(float(line[1]))

    def _accept(self, listener: socket.socket, begin: Callable[[socket.socket, str], None]) -> None:
        until = time.monotonic() + _DEFERENCE_SECONDS
        while not self.tally.is_least_busy() and time.monotonic() < until:
            time.sleep(_DEFERENCE_SECONDS / 4)
        try:
            connection, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # a sibling took it, or it is gone
        except OSError as error:
            self.log.warning("cannot accept", error=os.strerror(error.errno or 0))
            time.sleep(0.05)  # out of descriptors, most likely
            return
        begin(connection, str(address[0]).removeprefix("::ffff:"))

    def _begin_tls(self, connection: socket.socket, address: str) -> None:
        mark = object()
        with self._lock:
            if len(self._handshakes) >= 2 * _YOUNG:
                connection.close()
                return
            if len(self._handshakes) >= _YOUNG:
                oldest = next((each for each, goes_on in self._handshakes.items() if goes_on), mark)
                self._handshakes[oldest] = False
            self._handshakes[mark] = True
        try:
            threading.Thread(
                target=self._shake_hands, args=(connection, address, mark), name="tls-begin", daemon=True
            ).start()
        except RuntimeError:
            with self._lock:
                del self._handshakes[mark]
            self.log.warning("cannot start a thread", connections=len(self._live))
            connection.close()

    def _shake_hands(self, connection: socket.socket, address: str, mark: object) -> None:
        assert self._certificates is not None

        def between() -> None:
            if not self._handshakes[mark]:
                raise RadmeshError("TLS_REFUSED", f"more than {_YOUNG} handshakes at once: this was the oldest")

        try:
            wrapped = accept(connection, self._certificates.context(), self.config.artim_timeout, between)
            tunnel = Tunnel(wrapped, self.config.pdu_timeout)
        except RadmeshError as error:
            self.log.warning("TLS refused", address=address, text=error.message)
            connection.close()
            return
        finally:
            with self._lock:
                del self._handshakes[mark]
        tunnel.start()
        self._begin(tunnel.inner, address, tunnel.certificate)

    def _begin(self, connection: socket.socket, address: str, certificate: str = "") -> None:
        association = Association(connection, address, self, certificate)
        self._make_room()
        self.tally.connected(1)
        with self._lock:
            self._live[association] = None
        try:
            threading.Thread(target=self._serve, args=(association,), name="association", daemon=True).start()
        except RuntimeError:
            self.log.warning("cannot start a thread", connections=len(self._live))
            self._forget(association)
            connection.close()

    def _make_room(self) -> None:
        """End the oldest connection that is no association, when there are too many: probes lock nobody out."""
        with self._lock:
            if len(self._live) < self.config.max_associations + _YOUNG:
                return
            oldest = next((a for a in self._live if not a.established), None)
        if oldest is not None:
            oldest.cut()

    def _serve(self, association: Association) -> None:
        try:
            association.run()
        finally:
            self._forget(association)

    def _forget(self, association: Association) -> None:
        self.tally.connected(-1)
        with self._ended:
            self._live.pop(association, None)
            self._ended.notify_all()

    def _drain(self) -> None:
        assert self.draining.until is not None
        # A little longer than the associations have, so that they say goodbye themselves.
        with self._ended:
            self._ended.wait_for(lambda: not self._live, max(0.0, self.draining.until - time.monotonic()) + 1.0)
        self._senders.close()
        self.transcoder.close()
        self._keeper.stop(0.5)
        self._audit.stop(1.0)


def _die_with(parent: int) -> None:
    """End this process as soon as its parent has ended, however that ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main() -> int:
    """Serve as the settings on standard input say."""
    # Without a buffer, which would take what follows the line from those who wait for it.
    with open(0, "rb", buffering=0, closefd=False) as stream:
        settings = Settings.from_json(stream.readline())
    _die_with(settings.parent)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(_STACK)
    clock = SystemClock()
    context = Context(
        component=settings.component,
        instance=settings.instance,
        data=Path(settings.data),
        clock=clock,
        log=Logger(settings.component, settings.instance),
        metrics=Metrics(),
        status=Status(clock),
        credentials=Credentials(Path(settings.credentials), settings.instance),
        listen="",
        addresses=settings.addresses,
    )
    listener = socket.socket(fileno=settings.listener)
    listener.setblocking(False)  # noqa: FBT003 - the standard library has no name for it
    tls_listener = socket.socket(fileno=settings.tls_listener) if settings.tls_listener >= 0 else None
    if tls_listener is not None:
        tls_listener.setblocking(False)  # noqa: FBT003 - the standard library has no name for it
    board = Board(settings.rows, settings.board)
    tally = Tally(board, settings.row, settings.section.max_associations)
    acceptor = Acceptor(settings, context, listener, tally, tls_listener)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: acceptor.draining.begin(_DEFAULT_GRACE))
    interpreter.settle()
    board.begin(settings.row, os.getpid())
    try:
        acceptor.run(0)
    finally:
        board.end(settings.row)
        context.channels.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
