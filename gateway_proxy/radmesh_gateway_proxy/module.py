"""The gateway proxy's face."""

from collections.abc import Mapping, Sequence

from radmesh.api.proxy.v1 import proxy_pb2
from radmesh.dicom.stations import Stations
from radmesh.runtime.context import Context
from radmesh.runtime.lifecycle import Group
from radmesh.transfer.stations import StationKeeper
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.sends import Sends
from radmesh_gateway_proxy.service import EdgeService
from radmesh_gateway_proxy.services.asking import Asker
from radmesh_gateway_proxy.services.availability import Notifier
from radmesh_gateway_proxy.services.commitment import Reporter
from radmesh_gateway_proxy.services.step_forwarding import Forwarder
from radmesh_gateway_proxy.supervisor import Supervisor

_EDGE = proxy_pb2.DESCRIPTOR.services_by_name["EdgeService"]


class GatewayProxy:
    """The acceptors, what is sent to stations, and the server that says how they do."""

    def __init__(self, config: Section, context: Context) -> None:
        configured = context.settings.get("stations", ())
        self._supervisor = Supervisor(config, configured, context)
        stations = Stations(configured)
        self._workers = Group(
            [
                StationKeeper(context, stations),
                *(worker(config, context, stations) for worker in (Reporter, Asker, Notifier, Forwarder)),
            ]
        )
        self._sends = Sends(config, context)
        self._server = context.server(max_workers=8)
        self._server.add(_EDGE, EdgeService(config, context, stations))

    def start(self) -> None:
        """Return when associations are accepted.

        Raises:
            RadmeshError: PORT_IN_USE, PEER_TIMEOUT.
        """
        self._supervisor.start()
        try:
            self._server.start()
            self._workers.start()
        except BaseException:
            self._supervisor.stop(0.0)
            raise
        self._sends.start()

    def stop(self, grace: float) -> None:
        """Let associations finish, then end."""
        self._server.drain()
        self._workers.stop(min(grace, 2.0))
        self._sends.stop(1.0)
        self._supervisor.stop(grace)
        self._server.stop(0.5)

    def endpoints(self) -> Mapping[str, str]:
        """Return what is served to the outside."""
        return self._supervisor.endpoints()

    def pids(self) -> Sequence[int]:
        """Return the processes, this one first."""
        return self._supervisor.pids()


def module(config: Section, context: Context) -> GatewayProxy:
    """Wire the gateway proxy."""
    return GatewayProxy(config, context)
