"""Wires the Database Server."""

from radmesh.api.database.v1 import database_pb2
from radmesh.database_server import service
from radmesh.database_server.accounts import Accounts
from radmesh.database_server.config import Section
from radmesh.database_server.feed import Feed
from radmesh.database_server.jobs import Jobs
from radmesh.database_server.placement import Placement
from radmesh.database_server.queries import Queries
from radmesh.database_server.registry import Registry
from radmesh.database_server.schema import MIGRATIONS
from radmesh.database_server.statuses import Statuses
from radmesh.runtime.context import Context
from radmesh.runtime.rpc import Server
from radmesh.sql.engine import Database

_SERVICES = database_pb2.DESCRIPTOR.services_by_name


class DatabaseServer:
    """The component: a database, and the services over it."""

    def __init__(self, config: Section, context: Context) -> None:
        self._context = context
        self._database = Database(config.url or f"sqlite:///{context.data / 'radmesh.sqlite'}", MIGRATIONS)
        clock = context.clock
        self._feed = Feed(self._database, clock, config.history)
        registry = Registry(self._database, self._feed, clock, config.store_timeout)
        queries = Queries(self._database)
        accounts = Accounts(self._database, self._feed, clock, config.session)
        accounts.ensure_administrator(context.data.parent)
        self._server: Server = context.server(max_workers=128)
        for name, implementation in (
            ("RegistryService", service.RegistryService(registry)),
            (
                "PlacementService",
                service.PlacementService(
                    Placement(self._database, registry, clock), self._feed, context.credentials, clock
                ),
            ),
            ("QueryService", service.QueryService(queries, clock, config.store_timeout)),
            ("StudyService", service.StudyService(Statuses(self._database, self._feed, clock), queries)),
            ("JobService", service.JobService(Jobs(self._database, self._feed, clock))),
            ("FeedService", service.FeedService(self._feed)),
            ("AccountService", service.AccountService(accounts)),
        ):
            self._server.add(_SERVICES[name], implementation)
        context.status.figure("revision", self._feed.revision)

    def start(self) -> None:
        """Serve."""
        self._server.start()

    def stop(self, grace: float) -> None:
        """Answer what was asked, and end."""
        self._feed.stop()
        self._server.stop(grace)
        self._database.close()


def module(config: Section, context: Context) -> DatabaseServer:
    """Return the component."""
    return DatabaseServer(config, context)
