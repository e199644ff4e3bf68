"""Wires the Application Server."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from radmesh.api.application.v1 import application_pb2
from radmesh.api.database.v1 import database_pb2, routing_pb2, stations_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.api.proxy.v1 import proxy_pb2
from radmesh.application_server import dicomweb, images, pages, service
from radmesh.application_server.audit import Audit
from radmesh.application_server.changes import StudyChanges, StudyWatches
from radmesh.application_server.config import Http, Section
from radmesh.application_server.dicomweb import forms
from radmesh.application_server.grants import ReadGrants
from radmesh.application_server.http import events, health, reading
from radmesh.application_server.http import sessions as http_sessions
from radmesh.application_server.http import studies as http_studies
from radmesh.application_server.http.app import Door
from radmesh.application_server.http.routes import Route
from radmesh.application_server.http.server import HttpServer
from radmesh.application_server.metadata import Metadata
from radmesh.application_server.pictures import Pictures
from radmesh.application_server.ris import RisService, domains_of, managers_of
from radmesh.application_server.sessions import SessionCache
from radmesh.runtime.addresses import bracketed, is_loopback
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import MethodCodec, Person, Server, callers_of
from radmesh.transfer.codec import decoder, encode
from radmesh.transfer.sender import Sender
from radmesh.transfer.tickets import TicketCache, admit_by

_DATABASE = {
    name: service
    for proto in (database_pb2, routing_pb2, stations_pb2)
    for name, service in proto.DESCRIPTOR.services_by_name.items()
}
_GATEWAY = gateway_pb2.DESCRIPTOR.services_by_name
_DOOR = application_pb2.DESCRIPTOR.services_by_name
_MEET_SECONDS = 5.0
_CURATE_ATTEMPTS = 30
_CURATE_SECONDS = 2.0
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
            if {"application-server", "*"} & {c for m in descriptor.methods for c in callers_of(m)}
        }
        accounts, queries, studies = stubs["AccountService"], stubs["QueryService"], stubs["StudyService"]
        registry = self._registry = stubs["RegistryService"]
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
            listen=f"{bracketed(config.bind)}:{config.port}",
            credentials=context.credentials,
            component=context.component,
            clock=context.clock,
            log=context.log,
            metrics=context.metrics,
            status=context.status,
            max_workers=config.max_calls,
            person_authenticator=sessions.get,
            door_tls=None if is_loopback(config.bind) else self._certificate,
            on_refused=audit.refused,
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
            stubs["JobService"],
            stubs["StationService"],
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

        # Not needed to start: a cluster without an edge serves its clients.
        def edge() -> Any:
            return context.client(proxy_pb2.DESCRIPTOR.services_by_name["EdgeService"], "gateway-proxy")

        administration = service.AdministrationService(
            context,
            accounts,
            registry,
            rejects,
            stubs["StationService"],
            stubs["RouteService"],
            context.client(_GATEWAY["RoutingService"], "network-gateway"),
            edge,
            audit,
            instances,
        )
        self._door.add(_DOOR["SessionService"], session_service)
        self._door.add(_DOOR["StudyService"], study_service, codecs=_BULK)
        self._door.add(_DOOR["RisService"], ris_service)
        self._door.add(_DOOR["AdministrationService"], administration)
        self._changes = StudyChanges(context, queries)
        self._jobs = stubs["JobService"]
        self._pictures = Pictures(
            context, stubs["CurationService"], config.frame_cache << 20, forms.around, self._have_curated
        )
        metadata = Metadata(self._pictures, studies)
        image_service = images.ImageService(
            pictures=self._pictures,
            metadata=metadata,
            queries=queries,
            curators=images.curators_of(context),
            audit=audit,
            sessions=sessions,
            grants=ReadGrants(context, queries, registry, audit),
            watches=StudyWatches(context, self._changes, sessions, config.max_calls // 2),
        )
        self._door.add(_DOOR["ImageService"], image_service, codecs=images.CODECS)
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
            door.mount(events.routes(door, self._changes))
            door.mount(dicomweb.routes(door, self._pictures, metadata))
            door.mount(pages.routes(door))
            self._http = HttpServer(http, door)

    def _have_curated(self, study_instance_uid: str) -> None:
        # The Curators' kind of job; nothing happens if there is such a job already.
        request = database_pb2.EnqueueJobRequest(kind="curate", key=study_instance_uid, max_attempts=_CURATE_ATTEMPTS)
        self._jobs.EnqueueJob(request, timeout=_CURATE_SECONDS)

    def _certificate(self) -> tuple[bytes, bytes]:
        if self._config.certificate:
            return Path(self._config.key).read_bytes(), Path(self._config.certificate).read_bytes()
        key, chain, _ = self._context.credentials.certificate()
        return key, chain

    @property
    def routes(self) -> Sequence[Route]:
        """What is served over HTTP."""
        return self._http.door.routes if self._http is not None else ()

    def endpoints(self) -> Mapping[str, str]:
        """Return where clients come in."""
        scheme = "grpc" if is_loopback(self._config.bind) else "grpcs"
        http = {"http": self._http.url} if self._http is not None else {}
        return {"grpc": f"{scheme}://{self._door.target}", **http}

    def start(self) -> None:
        """Serve."""
        self._server.start()
        self._meet_database()
        self._changes.start()
        self._door.start()
        if self._http is not None:
            self._http.start()

    def _meet_database(self) -> None:
        """Wait a moment for the Database Server: who comes first must not be told that it is not there yet."""
        clock, pause = self._context.clock, threading.Event()
        until = clock.monotonic() + _MEET_SECONDS
        while clock.monotonic() < until:
            try:
                self._registry.ListStores(database_pb2.ListStoresRequest(), timeout=1.0)
            except RadmeshError:
                clock.wait(pause, 0.05)
            else:
                return

    def stop(self, grace: float) -> None:
        """Answer what was asked, and end."""
        until = self._context.clock.monotonic() + grace
        if self._http is not None:
            self._http.drain()
        # Who watches goes first: a watch would last for ever.
        self._changes.stop(1.0)
        if self._http is not None:
            self._http.stop(grace)
        self._door.stop(max(1.0, until - self._context.clock.monotonic()))
        self._pictures.close()
        self._server.stop(1.0)


def module(config: Section, context: Context) -> ApplicationServer:
    """Return the component."""
    configured = context.settings.get("configuration")
    return ApplicationServer(config, context, configured["http"] if configured else None)
