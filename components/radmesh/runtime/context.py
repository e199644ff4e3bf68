"""What a component is given when it is wired."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from radmesh.runtime import rpc
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Status, Worker
from radmesh.runtime.line import Line
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.security import Credentials


class Channels:
    """The channels of one process, one a target and service."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], tuple[tuple[int, int], grpc.Channel]] = {}
        self._retired: list[tuple[tuple[int, int], grpc.Channel]] = []

    def get(self, target: str, service: ServiceDescriptor | None = None) -> grpc.Channel:
        """Return the channel to `target`; with `service`, one that repeats what may be repeated.

        gRPC reads a client's certificate once, so a channel whose certificate was renewed is put aside for a new one;
        what runs on it has until the next renewal to finish.
        """
        version = (0, 0) if target.startswith("unix:") else self._credentials.certificate_version()
        key = (target, service.full_name if service else "")
        with self._lock:
            known = self._open.get(key)
            if known is not None and known[0] == version:
                return known[1]
            if known is not None:
                self._retire(version, known[1])
            channel = rpc.open_channel(target, self._credentials, service=service)
            self._open[key] = (version, channel)
            return channel

    def _retire(self, version: tuple[int, int], channel: grpc.Channel) -> None:
        for replaced_by, old in self._retired:
            if replaced_by != version:
                old.close()
        self._retired = [entry for entry in self._retired if entry[0] == version]
        self._retired.append((version, channel))

    def new(self, target: str) -> grpc.Channel:
        """Open a channel with a connection of its own, for a bulk stream; the caller closes it."""
        return rpc.open_channel(target, self._credentials, own_connection=True)

    def close(self) -> None:
        """Close all."""
        with self._lock:
            for _, channel in (*self._open.values(), *self._retired):
                channel.close()
            self._open.clear()
            self._retired.clear()


@dataclass(frozen=True)
class Context:
    """One instance of a component: who it is, where it keeps its data, how it reaches the others.

    `listen` is where its own server listens, `health_listen` where it tells its health in plaintext too ("" = nowhere),
    `advertise` the host that others are told ("" = that of `listen`), `line_port` the port of its line on TCP (0 = any
    free one); `addresses` maps components and instances to gRPC targets.
    """

    component: str
    instance: str
    data: Path
    clock: Clock
    log: Logger
    metrics: Metrics
    status: Status
    credentials: Credentials
    listen: str
    addresses: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    health_listen: str = ""
    advertise: str = ""
    line_port: int = 0
    channels: Channels = field(init=False)
    servers: list[rpc.Server] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", Channels(self.credentials))

    def target(self, component: str) -> str:
        """Return where a component is reached.

        Raises:
            RadmeshError: COMPONENT_UNKNOWN.
        """
        try:
            return self.addresses[component]
        except KeyError:
            raise RadmeshError("COMPONENT_UNKNOWN", f"no address of {component}: name it in [mesh.addresses]") from None

    def client(
        self, service: ServiceDescriptor, where: str, *, codecs: Mapping[str, rpc.MethodCodec] | None = None
    ) -> Any:
        """Return the calls of `service` at a component, or at a target such as "unix:/…" or "host:port"."""
        target = where if ":" in where else self.target(where)
        return rpc.Client(lambda: self.channels.get(target, service), service, codecs=codecs)

    def line(self, target: str, path: str, *, window: bool = False) -> Line:
        """Open a line to `target` (radmesh.runtime.line), with a window if it can have one; the caller closes it.

        Raises:
            RadmeshError: PEER_UNAVAILABLE, PEER_TIMEOUT.
        """
        return Line(target, path, self.credentials, window=window)

    def server(
        self, *, max_workers: int = 64, max_connection_age: float | None = 300.0, health_listen: str = ""
    ) -> rpc.Server:
        """Return this instance's server; add services, then start it."""
        server = rpc.Server(
            listen=self.listen,
            credentials=self.credentials,
            component=self.component,
            clock=self.clock,
            log=self.log,
            metrics=self.metrics,
            status=self.status,
            max_workers=max_workers,
            max_connection_age=max_connection_age,
            health_listen=health_listen or self.health_listen,
            advertise=self.advertise,
            line_port=self.line_port,
        )
        self.servers.append(server)
        return server

    def worker(self, name: str, step: Any, *, most_pause: float = 5.0) -> Worker:
        """Return a worker of this component."""
        return Worker(
            name,
            step,
            clock=self.clock,
            log=self.log,
            status=self.status,
            metrics=self.metrics,
            most_pause=most_pause,
        )
