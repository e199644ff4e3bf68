"""Wires a Connectivity Manager: the domains that name its number, each with a listener and a delivery of its own."""

import contextlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.api.connectivity.v1 import connectivity_pb2
from radmesh.connectivity_manager import service
from radmesh.connectivity_manager.config import Section
from radmesh.connectivity_manager.delivery import Delivery
from radmesh.connectivity_manager.intake import DEAD, DONE, IGNORED, IN, OUT, Intake, last_message
from radmesh.connectivity_manager.orders import Orders
from radmesh.connectivity_manager.publishing import Events, Publisher
from radmesh.connectivity_manager.schema import MIGRATIONS, messages
from radmesh.connectivity_manager.tls import Certificates
from radmesh.hl7.mllp import MllpListener
from radmesh.hl7.orders import Mapping as Paths
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.runtime.rpc import Server
from radmesh.sql.engine import Database, micros

_SERVICES: Final = connectivity_pb2.DESCRIPTOR.services_by_name
_PRUNED_AT_ONCE: Final = 1000
_PRUNE_SECONDS: Final = 600.0


class ConnectivityManager:
    """The component."""

    def __init__(self, config: Section, context: Context) -> None:
        self._config = config
        self._context = context
        self._database = Database(config.url or f"sqlite:///{context.data / 'connectivity.sqlite'}", MIGRATIONS)
        events = Events(context.clock)
        orders = Orders(self._database, events, context.clock)
        self._events = events
        self._publisher = Publisher(self._database, events, context)
        self._teller = service.Teller(self._database, context)
        self._domains: dict[str, service.Domain] = {}
        self._listeners: list[tuple[service.Domain, MllpListener]] = []
        self._certificates: list[Certificates] = []
        every = context.settings["domains"]
        for number, settings in enumerate(every):
            if settings.manager == _number(context.instance):
                self._add(settings, orders, first=number == 0)
        self._server: Server = context.server()
        self._server.add(
            _SERVICES["ConnectivityService"],
            service.ConnectivityService(self._domains, orders, self._database, context.instance, self._changed),
        )
        self._server.add(
            _SERVICES["MessageService"], service.MessageService(self._domains, self._database, context, self._changed)
        )
        self._known: dict[str, bool] = {}
        self._feeds: Worker = context.worker("feeds", self._look)
        self._prune: Worker = context.worker("log", self._prune_log)
        figure = context.status.figure
        figure("events_waiting", self._publisher.waiting)
        figure("dead_letters", self._dead_letters)

    def _add(self, settings: Any, orders: Orders, *, first: bool) -> None:
        context, config = self._context, self._config
        intake = Intake(
            settings.name,
            Paths(settings.issuer, settings.paths()),
            self._database,
            orders,
            context.clock,
            context.log,
            self._publisher.wake,
        )
        intake.last_message_at = last_message(self._database, settings.name)
        tls = Certificates(settings)
        self._certificates.append(tls)
        delivery = Delivery(settings, self._database, context, config.ack_timeout, self._teller.wake, tls=tls.receiver)
        domain = service.Domain(settings, intake, delivery, context.clock)
        self._domains[settings.name] = domain
        listener = MllpListener(
            config.bind,
            settings.hl7_port or (config.hl7_port if first else 0),
            intake.handle,
            log=context.log,
            metrics=context.metrics,
            domain=settings.name,
            ssl_context=tls.listener,
            max_connections=config.max_connections,
            idle_timeout=config.idle_timeout,
            max_message_bytes=config.message_size,
            clock=context.clock,
        )
        self._listeners.append((domain, listener))

    def _changed(self) -> None:
        self._publisher.wake()
        for domain in self._domains.values():
            domain.delivery.wake()

    def endpoints(self) -> Mapping[str, str]:
        """Return where each domain's RIS sends to."""
        host = self._config.bind
        shown = f"[{host}]" if ":" in host else host
        first = self._context.settings["domains"][0].name
        return {
            "hl7" if domain.name == first else f"hl7_{domain.name}": f"{domain.scheme}://{shown}:{domain.port}"
            for domain in self._domains.values()
            if domain.port
        }

    def start(self) -> None:
        """Serve."""
        self._server.start()
        # The first event of a process says no more than the state of a domain: see Publisher.
        with contextlib.suppress(RadmeshError):
            self._watch_feeds()
        self._publisher.start()
        self._teller.start()
        self._listen()
        for domain, _ in self._listeners:
            domain.delivery.start()
        self._feeds.start()
        self._prune.start()

    def stop(self, grace: float) -> None:
        """Answer what came in, and end."""
        self._feeds.stop(grace)
        for domain, listener in self._listeners:
            listener.stop(grace)
            domain.delivery.stop(grace)
        self._prune.stop(grace)
        self._server.stop(grace)
        self._teller.stop(grace)
        self._publisher.stop(grace)
        self._database.close()

    def _listen(self) -> None:
        """Open the ports that are not open yet; one that is taken is an alarm, and leaves the other domains alone.

        Raises:
            RadmeshError: PORT_IN_USE: there is none that could be opened.
        """
        taken: list[RadmeshError] = []
        for domain, listener in self._listeners:
            if domain.port:
                continue
            try:
                listener.start()
            except RadmeshError as error:
                taken.append(error)
            else:
                domain.port = listener.port
        if not taken:
            self._context.status.clear_alarm("PORT_IN_USE")
        elif len(taken) == len(self._listeners):
            raise taken[0]
        else:
            self._context.status.raise_alarm("PORT_IN_USE", "; ".join(error.message for error in taken))

    def _look(self) -> float:
        self._watch_feeds()
        self._listen()
        for tls in self._certificates:
            tls.renew(self._context.log)
        return 1.0

    def _watch_feeds(self) -> None:
        """Tell when a domain becomes available: what waited for it is verified again. After a start, all are new."""
        for domain in self._domains.values():
            available = domain.available
            if self._known.get(domain.name) == available:
                continue
            self._tell(domain.name, available=available)
            self._known[domain.name] = available
            self._publisher.wake()
            if not available:
                self._context.log.warning("feed is silent", domain=domain.name)
        silent = sorted(name for name, available in self._known.items() if not available)
        if silent:
            self._context.status.raise_alarm("RIS_UNAVAILABLE", f"no message came in time: {', '.join(silent)}")
        else:
            self._context.status.clear_alarm("RIS_UNAVAILABLE")

    def _tell(self, domain: str, *, available: bool) -> None:
        self._database.write(lambda c: self._events.append(c, domain, available=available))

    def _prune_log(self) -> float:
        """Forget messages that are done and old, a few at a time."""
        oldest = micros(self._context.clock.now() - timedelta(seconds=self._config.keep))
        old = (
            sa.select(messages.c.id)
            .where(messages.c.state.in_((DONE, IGNORED)), messages.c.time < oldest, messages.c.direction == IN)
            .limit(_PRUNED_AT_ONCE)
        )
        gone = self._database.write(lambda c: c.execute(sa.delete(messages).where(messages.c.id.in_(old))).rowcount)
        return 1.0 if gone == _PRUNED_AT_ONCE else _PRUNE_SECONDS

    def _dead_letters(self) -> int:
        with self._database.read() as c:
            # By the index: the figure is asked for all the time, and the log is long.
            dead = sa.and_(
                messages.c.domain.in_(self._domains), messages.c.direction.in_((IN, OUT)), messages.c.state == DEAD
            )
            return int(c.execute(sa.select(sa.func.count()).select_from(messages).where(dead)).scalar_one())


def _number(instance: str) -> int:
    number = instance.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def module(config: Section, context: Context) -> ConnectivityManager:
    """Return the component.

    Raises:
        RadmeshError: CONFIG_INVALID: a domain's mapping or its certificates cannot be used.
    """
    try:
        return ConnectivityManager(config, context)
    except ValueError as error:
        raise RadmeshError("CONFIG_INVALID", str(error)) from error
