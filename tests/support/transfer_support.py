"""A small mesh for tests of transfer and archive: real servers and channels, a registry, a cutting proxy."""

import contextlib
import hashlib
import os
import secrets
import socket
import threading
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.runtime.clock import Clock, SystemClock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Status
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.rpc import Server
from radmesh.runtime.security import Authority, component_of
from radmesh.runtime.security import Credentials as MeshCredentials
from radmesh.study_store import LmdbStudyStore, ObjectHeader
from radmesh.transfer.model import Ticket

INSTANCES = ["archive-server-0", "archive-server-1", "gateway-proxy", "network-gateway", "database-server"]
INSTANCES += ["application-server", "curator-0", "curator-1", "connectivity-manager-0", "connectivity-manager-1"]
TRANSFER = transfer_pb2.DESCRIPTOR.services_by_name["TransferService"]
REGISTRY = database_pb2.DESCRIPTOR.services_by_name["RegistryService"]
CHUNK = 1_048_560


class Mesh:
    """Credentials and contexts of a cluster in one process, over unix sockets or mutual TLS."""

    def __init__(self, folder: Path, transport: str, clock: Clock | None = None, *, issue: bool = True) -> None:
        self.folder = folder
        self.transport = transport
        self.clock = clock or SystemClock()
        self.addresses: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self._contexts: list[Context] = []
        self._servers: list[Server] = []
        if issue:
            Authority(folder / "credentials", self.clock).issue(INSTANCES)

    def listen(self, instance: str) -> str:
        if self.transport == "tls":
            return "127.0.0.1:0"
        return f"unix:{self.folder}/{instance}.sock"

    def context(self, instance: str) -> Context:
        data = self.folder / instance
        data.mkdir(mode=0o700, exist_ok=True)
        log = (self.folder / f"{instance}.log").open("a")
        context = Context(
            component=component_of(instance),
            instance=instance,
            data=data,
            clock=self.clock,
            log=Logger(component_of(instance), instance, log),
            metrics=Metrics(),
            status=Status(self.clock),
            credentials=MeshCredentials(self.folder / "credentials", instance),
            listen=self.listen(instance),
            addresses=self.addresses,
            settings=self.settings,
        )
        self._contexts.append(context)
        return context

    def serve(self, context: Context, service: Any, implementation: Any, codecs: Any = None) -> Server:
        server = context.server(max_connection_age=None)
        server.add(service, implementation, codecs=codecs)
        if service is TRANSFER and codecs:
            for name in ("Put", "Read"):
                server.add_line(service.methods_by_name[name], getattr(implementation, name), codecs[name])
        server.start()
        self.addresses[context.component] = self.addresses[context.instance] = server.target
        self._servers.append(server)
        return server

    @staticmethod
    def cut_off(server: Server) -> None:
        """End a server as abruptly as a thread can: no drain, nothing told to those who watch its health."""
        if server._line is not None:
            server._line.stop(0)
        server._server.stop(0).wait(60)

    def ticket(self, store: Any, target: str, key: AdmissionKey, seconds: float = 60.0, **changes: Any) -> Ticket:
        """A ticket as the Database Server signs it."""
        ticket = common_pb2.Ticket(
            issuer="database-server",
            store_id=store.store_id,
            target=target,
            epoch=store.epoch,
            admission_key=key.digest(),
            study_instance_uid=key.study_instance_uid,
            verification=common_pb2.VERIFICATION_STATE_NOT_REQUIRED,
        )
        ticket.expire_time.FromDatetime(self.clock.now() + timedelta(seconds=seconds))
        ticket.MergeFrom(common_pb2.Ticket(**changes))
        payload = ticket.SerializeToString()
        signer = MeshCredentials(self.folder / "credentials", "database-server")
        return Ticket.parse(common_pb2.SignedTicket(payload=payload, signature=signer.ticket_sign(payload)))

    def close(self) -> None:
        for context in self._contexts:
            context.channels.close()
        for server in self._servers:
            self.cut_off(server)


class Registry:
    """RegistryService as a real server, without a database behind it: durable is what is in ``records``."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str, int, int], database_pb2.InstanceRecord] = {}
        self.updates: dict[tuple[str, str, int, int], database_pb2.InstanceUpdate] = {}
        self.heartbeats: list[database_pb2.HeartbeatRequest] = []
        self.batches: list[int] = []
        self.refuse_sequence = 0
        self.errors: deque[RadmeshError] = deque()

    @staticmethod
    def key(reference: common_pb2.ObjectReference) -> tuple[str, str, int, int]:
        return reference.store_id, reference.study_hash, reference.generation, reference.sequence

    def RegisterInstances(self, request: database_pb2.RegisterInstancesRequest, _call: Any) -> Any:
        if self.errors:
            raise self.errors.popleft()
        if not self.heartbeats:
            raise RadmeshError("STORE_UNKNOWN", "heartbeat first")
        if any(record.object.sequence == self.refuse_sequence for record in request.records):
            raise RadmeshError("FIELD_INVALID", "refused for the test")
        self.batches.append(len(request.records))
        for record in request.records:
            self.records[self.key(record.object)] = record
        return database_pb2.RegisterInstancesResponse(
            registrations=[database_pb2.Registration(outcome=1) for _ in request.records], revision=1
        )

    def UpdateInstances(self, request: database_pb2.UpdateInstancesRequest, _call: Any) -> Any:
        if self.errors:
            raise self.errors.popleft()
        for update in request.updates:
            assert self.key(update.object) in self.records
            self.updates[self.key(update.object)] = update
        return database_pb2.UpdateInstancesResponse()

    def Heartbeat(self, request: database_pb2.HeartbeatRequest, _call: Any) -> Any:
        self.heartbeats.append(request)
        return database_pb2.HeartbeatResponse()

    def ListStores(self, _request: Any, _call: Any) -> Any:
        return database_pb2.ListStoresResponse()

    def WaitRegistered(self, _request: Any, _call: Any) -> Any:
        return database_pb2.WaitRegisteredResponse()


class CutProxy:
    """Passes bytes between a client and ``target``, and cuts both sides after a number of them.

    ``cuts`` are consumed one a connection: (bytes from the client, bytes from the server) after which it is cut;
    None passes all. When they are used up everything passes.
    """

    def __init__(self, target: str, folder: Path, cuts: list[tuple[int, int] | None]) -> None:
        self._target, self._cuts = target, deque(cuts)
        self.connections = 0
        self._sockets: set[socket.socket] = set()
        if target.startswith("unix:"):
            path = str(folder / f"proxy-{secrets.token_hex(4)}.sock")
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self.target = f"unix:{path}"
        else:
            self._listener = socket.socket()
            self._listener.bind(("127.0.0.1", 0))
            self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                cut = self._cuts.popleft() if self._cuts else None
                try:
                    server = self._connect()
                except OSError:
                    client.close()
                    continue
                self._sockets |= {client, server}
                up, down = cut or (1 << 62, 1 << 62)
                threading.Thread(target=self._copy, args=(client, server, up), daemon=True).start()
                threading.Thread(target=self._copy, args=(server, client, down), daemon=True).start()

    def _connect(self) -> socket.socket:
        if self._target.startswith("unix:"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target.removeprefix("unix:"))
            return server
        host, _, port = self._target.rpartition(":")
        return socket.create_connection((host, int(port)))

    def _copy(self, source: socket.socket, sink: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while left > 0:
                data = source.recv(min(65536, left))
                if not data:
                    break
                sink.sendall(data)
                left -= len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()
        for end in tuple(self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def uid(*parts: object) -> str:
    """A UID of the test."""
    return "2.25." + str(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:12], "big"))


def admission_key(study: str, station: str = "CT1") -> AdmissionKey:
    return AdmissionKey(
        station=station,
        study_instance_uid=study,
        patient_id="P1",
        issuer_of_patient_id="",
        patient_name="Doe^Jo",
        patient_birth_date="19700101",
        accession_number="A1",
    )


def object_header(study: str, sop: str, key: AdmissionKey) -> ObjectHeader:
    return ObjectHeader(
        study_instance_uid=study,
        series_instance_uid=study + ".1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        sop_instance_uid=sop,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        calling_ae_title=key.station,
        called_ae_title="RADMESH",
        source_address="127.0.0.1",
        admission_key=key.digest(),
        verification=common_pb2.VERIFICATION_STATE_NOT_REQUIRED,
    )


def rss_anon(pid: int | None = None) -> int:
    """Anonymous resident memory of a process, bytes."""
    for line in Path(f"/proc/{pid or os.getpid()}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


@contextlib.contextmanager
def closing_all(*things: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for thing in things:
            with contextlib.suppress(Exception):
                thing.close()


def open_store(folder: Path, clock: Clock, store_id: str = "archive-0", **options: Any) -> LmdbStudyStore:
    """A store as the archive opens it; it takes objects though the disk of the tests may be nearly full."""
    return LmdbStudyStore(folder, store_id, clock, **{"reserve": 0, **options})
