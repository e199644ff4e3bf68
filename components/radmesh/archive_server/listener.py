"""Where local clients come in: gRPC for persons, beside the archive's own server within the mesh."""

import socket
from typing import Any, Final

from radmesh.api.archive.v1 import archive_pb2
from radmesh.archive_server.config import Section
from radmesh.archive_server.grants import LocalReads
from radmesh.runtime.addresses import bracketed, is_loopback
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.runtime.rpc import Server
from radmesh.transfer.codec import TRANSFER_CODECS

_SERVICE: Final = archive_pb2.DESCRIPTOR.services_by_name["ReadService"]
_EVERYWHERE: Final = ("0.0.0.0", "::", "[::]")  # noqa: S104 - recognised, not listened at
_AGAIN_SECONDS: Final = 2.0
_LONG: Final = 3600.0


class Listener:
    """Serves ReadService where `[archive] client_bind` says, over TLS beyond loopback.

    A port that is taken is tried again: an archive does not depend on it.
    """

    def __init__(self, config: Section, context: Context, reads: LocalReads) -> None:
        self._host, self._port, self._most = config.client_bind, config.client_port, config.client_max_streams
        self._context, self._reads = context, reads
        self._server: Server | None = None
        self._worker: Worker = context.worker("local-clients", self._step)

    @property
    def url(self) -> str:
        """Where it is reached; empty while it is not."""
        if self._server is None:
            return ""
        return f"{'grpc' if is_loopback(self._host) else 'grpcs'}://{self._server.target}"

    def start(self) -> None:
        """Listen."""
        if self._host:
            self._step()
            self._worker.start()

    def stop(self, grace: float) -> None:
        """Take no new reads; let those that run finish for `grace` seconds."""
        self._worker.stop(grace)
        if self._server is not None:
            self._server.stop(grace)

    def _step(self) -> float:
        if self._server is not None:
            return _LONG
        server = self._make()
        try:
            server.start()
        except RadmeshError as error:
            server.stop(0)
            if error.reason != "PORT_IN_USE":
                raise
            self._context.status.raise_alarm(error.reason, f"local clients are not served: {error.message}")
            return _AGAIN_SECONDS
        self._context.status.clear_alarm("PORT_IN_USE")
        self._server = server
        return _LONG

    def _make(self) -> Server:
        context, loopback = self._context, is_loopback(self._host)
        advertise = "" if loopback else context.advertise
        if not advertise and self._host in _EVERYWHERE:
            advertise = socket.getfqdn()
        server = Server(
            listen=f"{bracketed(self._host)}:{self._port}",
            credentials=context.credentials,
            component=context.component,
            clock=context.clock,
            log=context.log,
            metrics=context.metrics,
            status=context.status,
            max_workers=self._most,
            person_authenticator=_nobody,
            door_tls=None if loopback else self._certificate,
            advertise=advertise,
        )
        server.add(_SERVICE, self._reads, codecs={"ReadRange": TRANSFER_CODECS["ReadRange"]})
        return server

    def _certificate(self) -> tuple[bytes, bytes]:
        key, chain, _ = self._context.credentials.certificate()
        return key, chain


def _nobody(_token: str) -> Any:
    # Sessions are the Application Server's affair: here everything is said by a grant.
    raise RadmeshError("SESSION_EXPIRED", "sign in at an Application Server")
