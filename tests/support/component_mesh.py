"""Database server, archive servers and network gateway as they are wired, in one process, over either transport."""

import contextlib
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from database_support import header as header_blob
from database_support import new_sqlite, uid
from transfer_support import Mesh, object_header

from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.archive_server import config as archive_config
from radmesh.archive_server import module as archive_module
from radmesh.database_server import config as database_config
from radmesh.database_server import module as database_module
from radmesh.database_server.schema import instances, locations, placements
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.header import QueryableHeader
from radmesh.dicom.uids import study_hash
from radmesh.network_gateway import config as gateway_config
from radmesh.network_gateway import module as gateway_module
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import ObjectHeader, Ref
from radmesh.transfer.model import Committed, ObjectReference, Ticket, key_message
from radmesh.transfer.reader import read_range
from radmesh.transfer.sender import Sender
from radmesh.transfer.tickets import Admission, TicketCache

CACHE, BOTH, PERMANENT, SPOOL = (
    common_pb2.RESIDENCE_CACHE,
    common_pb2.RESIDENCE_CACHE_AND_PERMANENT,
    common_pb2.RESIDENCE_PERMANENT,
    common_pb2.RESIDENCE_SPOOL,
)


@dataclass(frozen=True)
class Item:
    """An object to be sent."""

    header: ObjectHeader
    key: AdmissionKey
    queryable: bytes
    data: bytes

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    @property
    def sop(self) -> str:
        return self.header.sop_instance_uid


def item(study: object, sop: object, data: bytes | None = None, station: str = "CT1", **attributes: Any) -> Item:
    """Object `sop` of study `study`."""
    study_uid, sop_uid = uid("study", study), uid("sop", study, sop)
    blob = header_blob(
        **{
            "StudyInstanceUID": study_uid,
            "SeriesInstanceUID": study_uid + ".1",
            "SOPInstanceUID": sop_uid,
            "PatientID": f"P{study}",
            "PatientName": "Doe^John",
            "Modality": "CT",
            **attributes,
        }
    )
    key = AdmissionKey.of(station, QueryableHeader.parse(blob))
    return Item(object_header(study_uid, sop_uid, key), key, blob, os.urandom(3000) if data is None else data)


class _Listening(Mesh):
    """Servers come back at the same address, also over TLS."""

    def listen(self, instance: str) -> str:
        if self.transport == "unix":
            return super().listen(instance)
        if instance not in self.addresses:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.addresses[instance] = f"127.0.0.1:{free.getsockname()[1]}"
        return self.addresses[instance]


class Components:
    """The components; each is started, stopped and killed by its instance's name."""

    def __init__(self, folder: Path, transport: str = "unix") -> None:
        self.mesh = _Listening(folder, transport)
        for instance in ("database-server", "archive-server-0", "archive-server-1", "network-gateway"):
            self.mesh.addresses[instance] = self.mesh.listen(instance)
        self.running: dict[str, Any] = {}
        self.contexts: dict[str, Context] = {}
        self._clients: dict[str, Context] = {}
        self._senders: list[Sender] = []

    # -- processes

    def start(self, instance: str = "", **settings: Any) -> Any:
        context = self.contexts[instance] = self.mesh.context(instance)
        made: Any
        if instance == "database-server":
            new_sqlite(context.data)
            made = database_module.module(database_config.Section(**{"store_timeout": 1.5, **settings}), context)
        elif instance == "network-gateway":
            made = gateway_module.module(
                gateway_config.Section(**{"reserve": 0, "start_patience": 0.0, **settings}), context
            )
        else:
            made = archive_module.module(archive_config.Section(**{"reserve": 0, "quiet": 0.05, **settings}), context)
        made.start()
        self.running[instance] = made
        return made

    def database(self, **settings: Any) -> Any:
        return self.start("database-server", **settings)

    def archive(self, number: int = 0, **settings: Any) -> Any:
        return self.start(f"archive-server-{number}", **settings)

    def gateway(self, **settings: Any) -> Any:
        return self.start("network-gateway", **settings)

    def stop(self, instance: str, grace: float = 3.0) -> None:
        self.running.pop(instance).stop(grace)
        self.contexts[instance].channels.close()

    def kill(self, instance: str) -> None:
        """As abruptly as a thread can: no drain, no last words."""
        made = self.running[instance]
        Mesh.cut_off(made._server)
        with contextlib.suppress(Exception):
            self.stop(instance, 0.0)

    def close(self) -> None:
        for sender in self._senders:
            sender.close()
        for instance in list(self.running)[::-1]:
            self.stop(instance, 1.0)
        for context in self._clients.values():
            context.channels.close()
        self.mesh.close()

    # -- calls

    def context(self, instance: str) -> Context:
        if instance not in self._clients:
            self._clients[instance] = self.mesh.context(instance)
        return self._clients[instance]

    def client(self, caller: str, module: Any, service: str, where: str, **options: Any) -> Any:
        return self.context(caller).client(
            module.DESCRIPTOR.services_by_name[service], self.mesh.addresses[where], **options
        )

    def archive_service(self, number: int = 0) -> Any:
        return self.client("application-server", archive_pb2, "ArchiveService", f"archive-server-{number}")

    def place(self, key: AdmissionKey, avoid: str = "") -> Ticket:
        placement = self.client("network-gateway", database_pb2, "PlacementService", "database-server")
        request = database_pb2.PlaceStudyRequest(
            admission_key=key_message(key),
            verification=common_pb2.VERIFICATION_STATE_NOT_REQUIRED,
            avoid_store_id=avoid,
        )
        return Ticket.parse(placement.PlaceStudy(request, timeout=30.0).ticket)

    def admit(self, key: AdmissionKey, avoid: str = "", header: bytes = b"", address: str = "") -> Ticket:
        admission = self.client("gateway-proxy", gateway_pb2, "AdmissionService", "network-gateway")
        request = gateway_pb2.AdmitRequest(
            admission_key=key_message(key), avoid_store_id=avoid, header=header, source_address=address
        )
        return Ticket.parse(admission.Admit(request, timeout=30.0).ticket)

    def sender(self, by: str = "database", **options: Any) -> Sender:
        """A sender with tickets of the database, or of the gateway."""

        def ask(admission: Admission) -> Ticket:
            if by == "database":
                return self.place(admission.key, admission.avoid_store_id)
            where = admission.header.source_address
            return self.admit(admission.key, admission.avoid_store_id, admission.queryable, where)

        sender = Sender(
            self.context("gateway-proxy").line,
            ask,
            self.mesh.clock,
            tickets=TicketCache(self.mesh.clock),
            **options,
        )
        self._senders.append(sender)
        return sender

    def send(self, *items: Item, by: str = "database") -> list[Committed]:
        sender = self.sender(by)
        return [
            sender.send(i.header, i.key, i.data, sha256=i.sha256, queryable=i.queryable, remarks=("SEEN",))
            for i in items
        ]

    def read(self, where: ObjectReference, offset: int = 0, length: int = 0) -> tuple[bytes, int]:
        """Bytes and residence of an object, from its store."""
        kind, _, number = where.store_id.partition("-")
        instance = f"archive-server-{number}" if kind == "archive" else "network-gateway"
        channel = self.context("application-server").channels.get(self.mesh.addresses[instance])
        with read_range(channel, where, offset, length) as reader:
            return b"".join(bytes(piece) for piece in reader), reader.residence

    def evict(self, study: object, number: int = 0) -> int:
        request = archive_pb2.EvictStudyRequest(study_instance_uid=uid("study", study))
        while True:
            try:
                return int(self.archive_service(number).EvictStudy(request, timeout=30.0).bytes)
            except RadmeshError as error:
                if error.reason != "PEER_UNAVAILABLE":
                    raise  # else it was started a moment ago

    # -- what the database knows

    def _rows(self, query: Any) -> list[dict[str, Any]]:
        with self.running["database-server"]._database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def locations(self, study: object) -> list[dict[str, Any]]:
        """Every registered copy of a study's instances, in order of sequence."""
        query = sa.select(locations, instances.c.sop_instance_uid, instances.c.sha256).join(instances)
        query = query.where(locations.c.study_hash == study_hash(uid("study", study)))
        return self._rows(query.order_by(locations.c.store_id, locations.c.generation, locations.c.sequence))

    def residences(self, study: object) -> list[int]:
        return [int(row["residence"]) for row in self.locations(study)]

    def places(self) -> dict[str, str]:
        return {row["study_instance_uid"]: row["store_id"] for row in self._rows(sa.select(placements))}


def refs(committed: list[Committed]) -> list[Ref]:
    return [c.object.ref for c in committed]
