"""Wires the Application Server."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from radmesh.api.application.v1 import application_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.application_server import service
from radmesh.application_server.audit import Audit
from radmesh.application_server.config import Http, Section, is_loopback
from radmesh.application_server.http import health, reading
from radmesh.application_server.http import sessions as http_sessions
from radmesh.application_server.http import studies as http_studies
from radmesh.application_server.http.app import Door
from radmesh.application_server.http.server import HttpServer
from radmesh.application_server.ris import RisService, domains_of, managers_of
from radmesh.application_server.sessions import SessionCache
from radmesh.runtime.context import Context
from radmesh.runtime.rpc import MethodCodec, Person, Server, callers_of
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


class ApplicationServer:
    """The component: its own server within the mesh, and the clients' door."""

    def __init__(self, config: Section, context: Context, http: Http | None = None) -> None:
        self._config = config
        self._context = context
        stubs = {
            name: context.client(descriptor, "database-server")
            for name, descriptor in _DATABASE.items()
            if "application-server" in {c for m in descriptor.methods for c in callers_of(m)} or name == "FeedService"
        }
        accounts, queries, studies = stubs["AccountService"], stubs["QueryService"], stubs["StudyService"]
        registry = stubs["RegistryService"]
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
            door_tls=None if is_loopback(config.bind) else self._certificate,
        )
        session_service = service.SessionService(accounts, sessions, audit)
        study_service = service.StudyService(
            context,
            queries,
            studies,
            registry,
            audit,
            sessions,
            lambda: Sender(context.line, admit, context.clock, tickets=tickets),
        )
        ris_service = RisService(
            queries=queries,
            studies=studies,
            orders=stubs["OrderService"],
            reports=stubs["ReportService"],
            holds=context.client(_GATEWAY["HoldService"], "network-gateway"),
            managers=managers_of(context),
            domains=domains_of(context),
            audit=audit,
        )
        administration = service.AdministrationService(context, accounts, registry, rejects, audit, instances)
        self._door.add(_DOOR["SessionService"], session_service)
        self._door.add(_DOOR["StudyService"], study_service, codecs=_BULK)
        self._door.add(_DOOR["RisService"], ris_service)
        self._door.add(_DOOR["AdministrationService"], administration)
        self._http: HttpServer | None = None
        if http is not None:
            if not http.certificate and config.certificate:
                http = replace(http, certificate=config.certificate, key=config.key)
            door = Door(
                http,
                context,
                sessions=sessions,
                audit=audit,
                session_service=session_service,
                study_service=study_service,
                ris_service=ris_service,
                administration=administration,
                stubs=stubs,
            )
            door.mount(health.routes(door))
            door.mount(http_sessions.routes(door))
            door.mount(http_studies.routes(door))
            door.mount(reading.routes(door))
            for name in ("dicomweb", "pages"):
                mounted = importlib.import_module(f"{__package__}.{name}")
                if hasattr(mounted, "routes"):
                    door.mount(mounted.routes(door))
            self._http = HttpServer(http, door)

    def _certificate(self) -> tuple[bytes, bytes]:
        if self._config.certificate:
            return Path(self._config.key).read_bytes(), Path(self._config.certificate).read_bytes()
        key, chain, _ = self._context.credentials.certificate()
        return key, chain

    def endpoints(self) -> Mapping[str, str]:
        """Return where clients come in."""
        scheme = "grpc" if is_loopback(self._config.bind) else "grpcs"
        http = {"http": self._http.url} if self._http is not None else {}
        return {"grpc": f"{scheme}://{self._door.target}", **http}

    def start(self) -> None:
        """Serve."""
        self._server.start()
        self._door.start()
        if self._http is not None:
            self._http.start()

    def stop(self, grace: float) -> None:
        """Answer what was asked, and end."""
        if self._http is not None:
            self._http.stop(grace)
        self._door.stop(grace)
        self._server.stop(1.0)


def module(config: Section, context: Context) -> ApplicationServer:
    """Return the component."""
    configured = context.settings.get("configuration")
    return ApplicationServer(config, context, configured["http"] if configured else None)
