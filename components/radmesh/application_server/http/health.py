"""What watches the door asks: is it alive, does it serve, its figures."""

import ipaddress
from collections.abc import Sequence

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from radmesh.application_server.http.app import Door, Request, header
from radmesh.application_server.http.routes import ANYBODY, Route
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import State


def routes(door: Door) -> Sequence[Route]:
    """Return /healthz, /readyz and /metrics."""

    async def alive(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_request: Request) -> Response:
        if door.context.status.state is not State.SERVING:
            raise RadmeshError("STARTING", f"this server is {door.context.status.state.value.lower()}")
        return PlainTextResponse("ok\n")

    async def metrics(request: Request) -> Response:
        if not door.config.metrics and not _from_this_machine(request):
            raise RadmeshError("CALLER_REFUSED", "metrics are told on this machine only: [http] metrics opens them")
        return Response(await door.run(generate_latest, door.context.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return (
        Route("GET", "/healthz", ANYBODY, alive, "200: the process answers."),
        Route("GET", "/readyz", ANYBODY, ready, "200: it serves; 503 while it starts or is being stopped."),
        Route("GET", "/metrics", ANYBODY, metrics, "Prometheus metrics, to this machine, or as `[http] metrics` says."),
    )


def _from_this_machine(request: Request) -> bool:
    # What came through a proxy on this machine came from elsewhere.
    if header(request.scope, b"x-forwarded-for") or header(request.scope, b"forwarded"):
        return False
    client = request.client
    return client is not None and ipaddress.ip_address(client.host).is_loopback
