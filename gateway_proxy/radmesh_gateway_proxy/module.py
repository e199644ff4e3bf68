"""The gateway proxy's face."""

from collections.abc import Mapping, Sequence

from radmesh.runtime.context import Context
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.supervisor import Supervisor


class GatewayProxy:
    """The acceptors, and the server that says how they do."""

    def __init__(self, config: Section, context: Context) -> None:
        self._supervisor = Supervisor(config, context.settings.get("stations", ()), context)
        self._server = context.server(max_workers=8)

    def start(self) -> None:
        """Return when associations are accepted.

        Raises:
            RadmeshError: PORT_IN_USE, PEER_TIMEOUT.
        """
        self._supervisor.start()
        try:
            self._server.start()
        except BaseException:
            self._supervisor.stop(0.0)
            raise

    def stop(self, grace: float) -> None:
        """Let associations finish, then end."""
        self._server.drain()
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
