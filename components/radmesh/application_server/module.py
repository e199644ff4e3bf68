"""Wires the Application Server."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from radmesh.api.application.v1 import application_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.application_server import service
from radmesh.application_server.audit import Audit
from radmesh.application_server.config import Section
from radmesh.application_server.ris import RisService, domains_of, managers_of
from radmesh.application_server.sessions import SessionCache
from radmesh.runtime.context import Context
from radmesh.runtime.rpc import MethodCodec, Person, Server
from radmesh.transfer.codec import decoder, encode
from radmesh.transfer.sender import Sender
from radmesh.transfer.tickets import TicketCache, admit_by

_DATABASE = database_pb2.DESCRIPTOR.services_by_name
_GATEWAY = gateway_pb2.DESCRIPTOR.services_by_name
_DOOR = application_pb2.DESCRIPTOR.services_by_name
_BULK = {
    "ReadInstance": MethodCodec(response_serializer=encode),
    "StoreInstances": MethodCodec(request_deserializer=decoder(application_pb2.StoreInstancesRequest)),
}


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class ApplicationServer:
    """The component: its own server within the mesh, and the clients' door."""

    def __init__(self, config: Section, context: Context) -> None:
        self._config = config
        self._context = context
        accounts = context.client(_DATABASE["AccountService"], "database-server")
        queries = context.client(_DATABASE["QueryService"], "database-server")
        studies = context.client(_DATABASE["StudyService"], "database-server")
        registry = context.client(_DATABASE["RegistryService"], "database-server")
        rejects = context.client(_GATEWAY["RejectService"], "network-gateway")

        def fetch(token: str) -> Person:
            session = accounts.GetSession(database_pb2.GetSessionRequest(token=token))
            role = database_pb2.Role.Name(session.user.role).removeprefix("ROLE_").lower()
            return Person(session.user.name, role, session.session_id, token)

        sessions = SessionCache(fetch, context.clock)
        audit = Audit(accounts, context.clock)
        tickets = TicketCache(context.clock)
        admit = admit_by(context)
        # Components have the address of one of their instances; each instance is listed once.
        by_target = {target: name for name, target in context.addresses.items()}
        instances: Mapping[str, str] = {name: target for target, name in sorted(by_target.items(), key=lambda p: p[1])}
        self._server: Server = context.server()
        self._door = Server(
            listen=f"{'[' + config.bind + ']' if ':' in config.bind else config.bind}:{config.port}",
            credentials=context.credentials,
            component=context.component,
            clock=context.clock,
            log=context.log,
            metrics=context.metrics,
            status=context.status,
            max_workers=config.max_calls,
            person_authenticator=sessions.get,
            door_tls=None if _is_loopback(config.bind) else self._certificate,
        )
        self._door.add(_DOOR["SessionService"], service.SessionService(accounts, sessions, audit))
        self._door.add(
            _DOOR["StudyService"],
            service.StudyService(
                context,
                queries,
                studies,
                registry,
                audit,
                sessions,
                lambda: Sender(context.line, admit, context.clock, tickets=tickets),
            ),
            codecs=_BULK,
        )
        self._door.add(
            _DOOR["RisService"],
            RisService(
                queries=queries,
                studies=studies,
                orders=context.client(_DATABASE["OrderService"], "database-server"),
                reports=context.client(_DATABASE["ReportService"], "database-server"),
                holds=context.client(_GATEWAY["HoldService"], "network-gateway"),
                managers=managers_of(context),
                domains=domains_of(context),
                audit=audit,
            ),
        )
        self._door.add(
            _DOOR["AdministrationService"],
            service.AdministrationService(context, accounts, registry, rejects, audit, instances),
        )

    def _certificate(self) -> tuple[bytes, bytes]:
        if self._config.certificate:
            return Path(self._config.key).read_bytes(), Path(self._config.certificate).read_bytes()
        key, chain, _ = self._context.credentials.certificate()
        return key, chain

    def endpoints(self) -> Mapping[str, str]:
        """Return where clients come in."""
        scheme = "grpc" if _is_loopback(self._config.bind) else "grpcs"
        return {"grpc": f"{scheme}://{self._door.target}"}

    def start(self) -> None:
        """Serve."""
        self._server.start()
        self._door.start()

    def stop(self, grace: float) -> None:
        """Answer what was asked, and end."""
        self._door.stop(grace)
        self._server.stop(1.0)


def module(config: Section, context: Context) -> ApplicationServer:
    """Return the component."""
    return ApplicationServer(config, context)
