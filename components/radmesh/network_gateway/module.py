"""Wires the Network Gateway."""

from radmesh.api.common.v1 import common_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.dicom.domains import Domains
from radmesh.network_gateway.admission import Admission
from radmesh.network_gateway.config import Section
from radmesh.network_gateway.drain import Drain
from radmesh.network_gateway.healing import Healing
from radmesh.network_gateway.holds import Holds
from radmesh.network_gateway.placements import Memory
from radmesh.network_gateway.rejects import Rejects
from radmesh.network_gateway.routing import Routing
from radmesh.network_gateway.service import AdmissionService, HoldService, RejectService, RoutingService
from radmesh.network_gateway.verifier import Verifier
from radmesh.runtime.context import Context
from radmesh.runtime.lifecycle import Group
from radmesh.runtime.rpc import Server
from radmesh.study_store import LmdbStudyStore
from radmesh.transfer.feed import Follower
from radmesh.transfer.pump import Heartbeat, RegistrationPump
from radmesh.transfer.receiver import TransferReceiver
from radmesh.transfer.stations import StationKeeper

_GATEWAY = gateway_pb2.DESCRIPTOR.services_by_name


class NetworkGateway:
    """The component: admission, verification, spool, rejects."""

    def __init__(self, config: Section, context: Context) -> None:
        self._context = context
        number = context.instance.rpartition("-")[2]
        self._spool = LmdbStudyStore(
            context.data / "spool",
            f"spool-{number if number.isdecimal() else '0'}",
            context.clock,
            reserve=config.reserve,
            spool=True,
            alarm=context.status.raise_alarm,
            clear=context.status.clear_alarm,
        )
        self._memory = Memory(context.data / "placements")
        self._rejects = Rejects(
            context.data / "rejects",
            context.clock,
            most_bytes=config.rejects_size,
            most_count=config.rejects_count,
            most_each=config.reject_size,
            alarm=context.status.raise_alarm,
        )
        self._server: Server = context.server(max_workers=config.max_streams, max_connection_age=None)
        domains = Domains.of(context.settings)
        verifier = self._verifier = Verifier(
            context,
            domains,
            deadline=config.verify_deadline,
            threads=config.verify_threads,
        )
        healing = Healing(context, domains, verifier, config.verify_again)
        admission = Admission(
            context,
            self._memory,
            verifier,
            place_timeout=config.place_timeout,
            verify_timeout=config.verify_timeout,
            start_patience=config.start_patience,
            spool=self._spool_place,
        )
        revocation = Follower(context, "revocation", ("hold", "store"), admission.changed, admission.forget)
        heartbeat = Heartbeat(
            self._spool,
            context,
            common_pb2.STORE_KIND_SPOOL,
            lambda: self._server.target,
            put_target=lambda: self._server.line_target,
        )
        pump = RegistrationPump(self._spool, context, heartbeat=heartbeat)
        drain = Drain(context, self._spool, self._memory)
        receiver = TransferReceiver(self._spool, context.credentials, context.clock, rejects=self._rejects.open)
        receiver.serve(self._server)
        self._server.add(_GATEWAY["AdmissionService"], AdmissionService(admission))
        self._server.add(_GATEWAY["HoldService"], HoldService(Holds(context, verifier)))
        self._server.add(_GATEWAY["RejectService"], RejectService(self._rejects), codecs=RejectService.codecs)
        stations = StationKeeper(context, domains.stations)
        routing = Routing(context, domains.stations, quiet=config.route_quiet, attempts=config.route_attempts)
        self._server.add(_GATEWAY["RoutingService"], RoutingService(routing))
        self._services = Group([stations, admission, revocation, verifier, healing, heartbeat, pump, drain, routing])
        figure = context.status.figure
        figure("healed", lambda: healing.healed)
        figure("rejects", lambda: len(self._rejects.list("", 1 << 30)))
        figure("spooled", lambda: sum(last for _, _, _, last in self._spool.unregistered()))
        figure("drained", lambda: drain.drained)
        figure("routed", lambda: routing.queued)

    def _spool_place(self) -> tuple[str, str, bytes] | None:
        return (self._spool.store_id, self._server.line_target, self._spool.epoch) if self._spool.accepting else None

    def start(self) -> None:
        """Serve."""
        self._server.start()
        self._services.start()

    def stop(self, grace: float) -> None:
        """Finish what has begun."""
        self._server.stop(grace)
        self._services.stop(grace)
        self._spool.close()
        self._memory.close()


def module(config: Section, context: Context) -> NetworkGateway:
    """Return the component."""
    return NetworkGateway(config, context)
