"""What stands behind the DICOM edge, in this process: a served store, a gateway that gives tickets."""

import hashlib
from pathlib import Path
from typing import Any

from transfer_support import TRANSFER, Mesh, Registry

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2, stations_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.dicom.stations import Station
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import IndexRow
from radmesh.study_store.lmdb_store import LmdbStudyStore
from radmesh.transfer.model import key_of
from radmesh.transfer.receiver import TransferReceiver
from radmesh.transfer.sender import Sender
from radmesh.transfer.tickets import TicketCache, admit_by
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.intake import Intake, Senders
from radmesh_gateway_proxy.services.exchange import Peer
from radmesh_gateway_proxy.supervisor import Supervisor

REGISTRY = database_pb2.DESCRIPTOR.services_by_name["RegistryService"]
ACCOUNTS = database_pb2.DESCRIPTOR.services_by_name["AccountService"]
STATIONS = stations_pb2.DESCRIPTOR.services_by_name["StationService"]
ADMISSION = gateway_pb2.DESCRIPTOR.services_by_name["AdmissionService"]


class Rejected:
    """One reject: what it was, why, and its bytes."""

    def __init__(self, world: "World", header: transfer_pb2.Header) -> None:
        self.world = world
        self.header = header
        self.data = bytearray()
        self.reason = self.tag = self.message = ""
        self.cut = False

    def write(self, data: Any) -> None:
        self.data += data

    def keep(self, reason: str, tag: str, message: str, *, cut: bool = False) -> None:
        self.reason, self.tag, self.message, self.cut = reason, tag, message, cut
        self.world.rejects.append(self)

    def drop(self) -> None:
        self.world.dropped.append(self)


class Waits(Registry):
    """The registry; says which marks were waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[common_pb2.CommitMark] = []

    def WaitRegistered(self, request: database_pb2.WaitRegisteredRequest, _call: Any) -> Any:
        self.waited += request.marks
        return database_pb2.WaitRegisteredResponse()


class Accounts:
    """Of AccountService only the audit."""

    def __init__(self) -> None:
        self.events: list[database_pb2.AuditEvent] = []

    def AppendAudit(self, request: database_pb2.AppendAuditRequest, _call: Any) -> Any:
        self.events += request.events
        return database_pb2.AppendAuditResponse()

    def __getattr__(self, name: str) -> Any:
        if name[0].isupper():
            return lambda *_: (_ for _ in ()).throw(RadmeshError("INTERNAL", "not in this test"))
        raise AttributeError(name)


class Stations:
    """The registry of stations, with no news."""

    def ListStations(self, _request: stations_pb2.ListStationsRequest, _call: Any) -> Any:
        return stations_pb2.ListStationsResponse(version=1, unchanged=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(Accounts(), name)


class World:
    """Archive, gateway and database of a small mesh."""

    def __init__(self, folder: Path, transport: str = "unix") -> None:
        self.folder = folder
        self.rejects: list[Rejected] = []
        self.dropped: list[Rejected] = []
        self.admissions: list[gateway_pb2.AdmitRequest] = []
        self.refuse: list[RadmeshError] = []
        self.mesh = Mesh(folder, transport)
        archive = self.mesh.context("archive-server-0")
        self.store = LmdbStudyStore(folder / "store", "archive-0", self.mesh.clock, reserve=0)
        self.receiver = TransferReceiver(self.store, archive.credentials, self.mesh.clock)
        self.server = self.mesh.serve(archive, TRANSFER, self.receiver, self.receiver.codecs)
        self.registry, self.accounts = Waits(), Accounts()
        database = self.mesh.context("database-server")
        self._serve(
            database, (REGISTRY, self.registry, None), (ACCOUNTS, self.accounts, None), (STATIONS, Stations(), None)
        )
        gateway = self.mesh.context("network-gateway")
        spool = LmdbStudyStore(folder / "spool", "spool-0", self.mesh.clock, reserve=0, spool=True)
        self.spool = spool
        rejecting = TransferReceiver(
            spool, gateway.credentials, self.mesh.clock, rejects=lambda _id, header: Rejected(self, header)
        )
        self._serve(gateway, (ADMISSION, self, None), (TRANSFER, rejecting, rejecting.codecs))
        self.context = self.mesh.context("gateway-proxy")
        self._senders: list[Senders] = []

    def _serve(self, context: Any, *services: Any) -> None:
        server = context.server(max_connection_age=None)
        for service, implementation, codecs in services:
            server.add(service, implementation, codecs=codecs)
        server.start()
        self.mesh.addresses[context.component] = self.mesh.addresses[context.instance] = server.target
        self.mesh._servers.append(server)

    def Admit(self, request: gateway_pb2.AdmitRequest, _call: Any) -> gateway_pb2.AdmitResponse:
        self.admissions.append(request)
        if self.refuse:
            raise self.refuse[0]
        ticket = self.mesh.ticket(self.store, self.server.target, key_of(request.admission_key))
        return gateway_pb2.AdmitResponse(ticket=ticket.message())

    def senders(self, most: int = 8, **options: Any) -> Senders:
        tickets = TicketCache(self.mesh.clock)
        admit = admit_by(self.context)
        senders = Senders(lambda: Sender(self.context.line, admit, self.mesh.clock, tickets=tickets, **options), most)
        self._senders.append(senders)
        return senders

    def intake(self, senders: Senders) -> Any:
        """What LocalEdge makes stores with."""
        client = self.context.client(REGISTRY, "database-server")

        def wait(marks: Any, seconds: float) -> None:
            messages = [common_pb2.CommitMark(store_id=m.store_id, sequence=m.sequence) for m in marks]
            client.WaitRegistered(database_pb2.WaitRegisteredRequest(marks=messages), timeout=seconds)

        def make(peer: Peer) -> Intake:
            return Intake(peer, senders, self.context.target("network-gateway"), wait, self.context.log)

        return make

    def supervisor(self, stations: tuple[Station, ...] = (), **settings: Any) -> Supervisor:
        section = Section(**{"port": 0, "tls_port": 0, "processes": 2, **settings})
        return Supervisor(section, stations, self.context)

    def rows(self) -> list[IndexRow]:
        """Every object that is stored."""
        found: list[IndexRow] = []
        for study in self.store.studies():
            found += self.store.rows(study.study_hash, study.generation)
        return found

    def stored(self, sop_instance: str) -> tuple[IndexRow, bytes]:
        """The row and bytes of one stored object."""
        (row,) = [row for row in self.rows() if row.header.sop_instance_uid == sop_instance]
        with self.store.read(row.ref) as reader:
            data = b"".join(reader)
        assert row.sha256 == hashlib.sha256(data).digest()
        assert row.length == len(data)
        return row, data

    def close(self) -> None:
        for senders in self._senders:
            senders.close()
        self.mesh.close()
        self.store.close()
        self.spool.close()
