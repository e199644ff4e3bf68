"""The DICOM edge in this process, without a mesh behind it: what is stored is kept in a list."""

import hashlib
import io
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from radmesh.dicom.stations import GRANTS, Station, Stations, match
from radmesh.dicom.transcoding import Transcoder
from radmesh.runtime.context import Context
from radmesh.runtime.logs import Logger
from radmesh_gateway_proxy.acceptor import Draining
from radmesh_gateway_proxy.association import Association, Store
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.dimse import SUCCESS, Outcome, Request
from radmesh_gateway_proxy.negotiation import AcceptedContext, Negotiator, Policy
from radmesh_gateway_proxy.services.exchange import Peer, Sent
from radmesh_gateway_proxy.services.registry import abstract_syntaxes, extended
from radmesh_gateway_proxy.sop_classes import storage_sop_classes, transfer_syntaxes
from radmesh_gateway_proxy.tally import Board, Tally


@dataclass
class Kept:
    """What a store saw of one object."""

    request: Request
    context: AcceptedContext
    size: int
    sha256: str


@dataclass
class KeepingStore:
    """Keeps digests; `fail` is taken once, before anything is read."""

    edge: "LocalEdge"
    waited: float = 0.0
    closed: bool = False

    def store(self, request: Request, context: AcceptedContext, chunks: Iterator[bytes]) -> Outcome:
        if self.edge.outcomes:
            return self.edge.outcomes.pop(0)
        digest, size = hashlib.sha256(), 0
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
        self.edge.kept.append(Kept(request, context, size, digest.hexdigest()))
        return SUCCESS

    def wait_registered(self, seconds: float) -> None:
        self.waited = seconds

    def close(self) -> None:
        self.closed = True


@dataclass
class LocalEdge:
    """An acceptor with threads, as a process of the real one has them."""

    config: Section = field(default_factory=lambda: Section(port=0))
    stations: tuple[Station, ...] = ()
    outcomes: list[Outcome] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    audited: list[tuple[Peer, str]] = field(default_factory=list)
    stores: list[KeepingStore] = field(default_factory=list)
    make_store: Callable[[Peer], Store] | None = None
    mesh: Context | None = None

    def __post_init__(self) -> None:
        self.transcoder = Transcoder()
        self.output = io.StringIO()
        self.log = Logger("gateway-proxy", "gateway-proxy", self.output)
        self.board = Board(1)
        self.board.begin(0, 1)
        self.tally = Tally(self.board, 0, self.config.max_associations)
        self.draining = Draining()
        self.negotiator = Negotiator(
            Policy(
                storage_sop_classes() | set(self.config.private_sop_classes),
                transfer_syntaxes(),
                abstract_syntaxes(),
                extended(),
                ae_title=self.config.ae_title,
                require_called_ae=self.config.require_called_ae,
                max_pdu=self.config.max_pdu,
            )
        )
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self.listener.accept()
            except OSError:
                return
            association = Association(connection, address[0], self)
            thread = threading.Thread(target=association.run, daemon=True)
            thread.start()
            self.threads.append(thread)

    def grants(self, calling_ae_title: str, address: str, certificate: str = "") -> Collection[str] | None:
        check = self.config.check_stations
        if check == "off" or (check == "auto" and ipaddress.ip_address(address).is_loopback):
            return GRANTS
        station = match(self.stations, calling_ae_title, address)
        return None if station is None or station.certificate not in ("", certificate) else station.grants

    @property
    def context(self) -> Context:
        assert self.mesh is not None, "this edge has no mesh behind it"
        return self.mesh

    def station(self, ae_title: str, address: str) -> Station | None:
        return match(self.stations, ae_title, address)

    def destination(self, ae_title: str) -> Station | None:
        return Stations(self.stations).lookup(ae_title)

    def sent(self, peer: Peer, study_instance_uid: str, sent: Sent) -> None:
        self.audited.append((peer, f"{study_instance_uid} {sent}"))

    def refused(self, peer: Peer, reason: str) -> None:
        self.audited.append((peer, reason))

    def store(self, peer: Peer) -> Store:
        if self.make_store is not None:
            return self.make_store(peer)
        self.stores.append(KeepingStore(self))
        return self.stores[-1]

    def ended(self, count: int = 1, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Log lines of associations that ended, as soon as there are so many."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            lines = [json.loads(line) for line in self.output.getvalue().splitlines()]
            ended = [line for line in lines if line["message"] == "association ended"]
            if len(ended) >= count:
                return ended
            time.sleep(0.005)
        raise AssertionError(f"{count} associations did not end: {self.output.getvalue()}")

    def close(self) -> None:
        self.listener.close()
        self.transcoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
