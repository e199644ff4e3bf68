"""Wires the Database Server."""

from typing import Any, Final

import sqlalchemy as sa

from radmesh.api.connectivity.v1 import connectivity_pb2
from radmesh.api.database.v1 import (
    commitment_pb2,
    database_pb2,
    dicom_query_pb2,
    procedure_step_pb2,
    routing_pb2,
    stations_pb2,
)
from radmesh.database_server import service
from radmesh.database_server.accounts import Accounts
from radmesh.database_server.commitment import Commitments, CommitmentService
from radmesh.database_server.config import Section
from radmesh.database_server.dicom_query import DicomQueries
from radmesh.database_server.dicom_query_service import DicomQueryService
from radmesh.database_server.dicom_worklist import Worklist
from radmesh.database_server.feed import Feed
from radmesh.database_server.grants import GrantService
from radmesh.database_server.jobs import Jobs
from radmesh.database_server.merges import TOPIC as UNDO_TOPIC
from radmesh.database_server.merges import Merges
from radmesh.database_server.orders import Orders
from radmesh.database_server.overlay import Overlay
from radmesh.database_server.people import People
from radmesh.database_server.placement import Placement
from radmesh.database_server.procedure_steps import ProcedureSteps, ProcedureStepService
from radmesh.database_server.queries import Queries
from radmesh.database_server.registry import Registry
from radmesh.database_server.renditions import Renditions
from radmesh.database_server.reports import TOPIC, Reports
from radmesh.database_server.routing import Routing
from radmesh.database_server.routing_service import RouteService
from radmesh.database_server.schema import MIGRATIONS, outbox, studies
from radmesh.database_server.station_commitment import StationCommitments, StationCommitmentService
from radmesh.database_server.stations import StationRegistry, StationService
from radmesh.database_server.statuses import Statuses
from radmesh.database_server.verification import Verifications
from radmesh.dicom.domains import Domains
from radmesh.runtime.context import Context
from radmesh.runtime.lifecycle import Worker
from radmesh.runtime.rpc import Server
from radmesh.sql.engine import Database
from radmesh.sql.outbox import Consumer, Dispatcher

_SERVICES: Final = {
    name: service
    for proto in (commitment_pb2, database_pb2, procedure_step_pb2, routing_pb2, stations_pb2)
    for name, service in proto.DESCRIPTOR.services_by_name.items()
}
_PRUNE_SECONDS: Final = 3600.0
_CONNECTIVITY: Final = connectivity_pb2.DESCRIPTOR.services_by_name["ConnectivityService"]


class DatabaseServer:
    """The component: a database, and the services over it."""

    def __init__(self, config: Section, context: Context) -> None:
        self._context = context
        self._database = Database(config.url or f"sqlite:///{context.data / 'radmesh.sqlite'}", MIGRATIONS)
        clock = context.clock
        self._feed = Feed(self._database, clock, config.history)
        self._domains = Domains.of(context.settings)
        registered = StationRegistry(self._database, self._feed, clock, self._domains)
        registered.fill(context.settings.get("stations", ()))
        people = People(self._database, self._domains)
        overlay = Overlay(self._database, clock, people)
        statuses = Statuses(self._database, self._feed, clock, overlay)
        merges = Merges(self._database, self._feed, clock, overlay)
        orders = Orders(self._database, self._feed, overlay, merges)
        verifications = Verifications(self._database, self._feed, clock, overlay, orders)
        registry = Registry(self._database, self._feed, clock, config.store_timeout, people, verifications)
        reports = Reports(self._database, self._feed, clock, statuses)
        queries = Queries(self._database, registry.living_since)
        renditions = Renditions(self._database, self._feed, clock, queries, registry.living_since)
        jobs = Jobs(self._database, self._feed, clock)
        routing = Routing(
            self._database,
            self._feed,
            clock,
            queries,
            lambda: self._with("availability"),
        )
        routing.fill(context.settings.get("routes", ()))
        jobs.failed = routing.gave_up
        steps = ProcedureSteps(self._database, self._feed, clock, statuses, lambda: self._with("mpps"))
        commitments = Commitments(self._database, clock, jobs, config.store_timeout)
        accounts = Accounts(self._database, self._feed, clock, config.session)
        accounts.ensure_administrator(context.data.parent)
        self._server: Server = context.server(max_workers=128)
        for name, implementation in (
            ("RegistryService", service.RegistryService(registry)),
            (
                "PlacementService",
                service.PlacementService(
                    Placement(self._database, registry, clock), verifications, self._feed, context.credentials, clock
                ),
            ),
            ("QueryService", service.QueryService(queries, clock, config.store_timeout)),
            ("StudyService", service.StudyService(statuses, queries, verifications)),
            ("OrderService", service.OrderService(orders, merges)),
            ("ReportService", service.ReportService(reports)),
            ("JobService", service.JobService(jobs)),
            ("CurationService", service.CurationService(renditions)),
            ("FeedService", service.FeedService(self._feed)),
            ("AccountService", service.AccountService(accounts)),
            ("GrantService", GrantService(self._database, clock)),
            ("StationService", StationService(registered)),
            ("CommitmentService", CommitmentService(commitments)),
            ("ProcedureStepService", ProcedureStepService(steps)),
            ("RouteService", RouteService(routing)),
            (
                "StationCommitmentService",
                StationCommitmentService(StationCommitments(self._database, self._feed, clock)),
            ),
        ):
            self._server.add(_SERVICES[name], implementation)
        self._server.add(
            dicom_query_pb2.DESCRIPTOR.services_by_name["DicomQueryService"],
            DicomQueryService(DicomQueries(self._database), Worklist(self._database, orders)),
        )
        sender = service.ReportSender(reports, orders, queries, self._manager)
        undone = service.UndoTeller(merges, self._manager)
        self._tellers = [self._teller(name, sender, undone) for name in (*self._domains.names, "")]
        reports.wake = merges.wake = self._wake

        def look() -> float:
            # A domain that is served now was not, or not so, when an earlier process ran.
            more = verifications.prune() or renditions.prune() or reports.send_again(self._served())
            return 0.0 if more else _PRUNE_SECONDS

        self._prune: Worker = context.worker("verdicts", look)
        self._routing: Worker = context.worker("routing", routing.step)
        context.status.figure("revision", self._feed.revision)

    def _with(self, option: str) -> set[str]:
        """Return the AE titles of the stations with an option."""
        return {station.ae_title.strip() for station in self._domains.stations.current if option in station.options}

    def _manager(self, domain: str) -> Any:
        """Return the calls of the Connectivity Manager that serves a domain; None if nobody does."""
        instance = self._domains.manager_of(domain)
        return self._context.client(_CONNECTIVITY, instance) if instance in self._context.addresses else None

    def _served(self) -> list[str]:
        return [name for name in self._domains.names if self._domains.manager_of(name) in self._context.addresses]

    def _teller(self, domain: str, sender: Consumer, undone: Consumer) -> Worker:
        """Return the worker that tells a domain's manager what concerns it; of "": whatever no domain is known for.

        Each has its own: a manager that hangs keeps no other domain waiting.
        """
        domains = (domain,) if domain else self._domains.names
        of_study = sa.exists().where(studies.c.study_instance_uid == outbox.c.key, studies.c.domain.in_(domains))
        of_key = outbox.c.key.in_(domains)
        dispatchers = [
            Dispatcher(self._database, self._context.clock, outbox, topic, consumer, where if domain else ~where)
            for topic, consumer, where in ((TOPIC, sender, of_study), (UNDO_TOPIC, undone, of_key))
        ]
        name = f"teller-{domain}" if domain else "teller"
        return self._context.worker(name, lambda: min([dispatcher.step() for dispatcher in dispatchers]))

    def _wake(self) -> None:
        for teller in self._tellers:
            teller.wake()

    def start(self) -> None:
        """Serve."""
        self._server.start()
        for teller in self._tellers:
            teller.start()
        self._prune.start()
        self._routing.start()

    def stop(self, grace: float) -> None:
        """Answer what was asked, and end."""
        self._feed.stop()
        self._server.stop(grace)
        for teller in self._tellers:
            teller.stop(grace)
        self._prune.stop(grace)
        self._routing.stop(grace)
        self._database.close()


def module(config: Section, context: Context) -> DatabaseServer:
    """Return the component."""
    return DatabaseServer(config, context)
