"""Settings of the Application Server."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from radmesh.runtime.config import setting


def _file(value: str) -> str | None:
    return None if not value or Path(value).is_file() else "must be a file that exists"


def _network(value: str) -> str | None:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return 'must be an IP address or network, such as "10.1.2.3" or "10.1.0.0/16"'
    return None


@dataclass(frozen=True, slots=True)
class Section:
    """[grpc]: the door for the `radmesh` command and for Python clients."""

    port: int = setting(
        50051,
        doc="TCP port of the clients' gRPC services; 0 = any free one.",
        env="RADMESH_GRPC_PORT",
        minimum=0,
        maximum=65535,
    )
    bind: str = setting(
        "127.0.0.1", doc="Address to listen on. Beyond loopback the door speaks TLS only.", env="RADMESH_BIND"
    )
    certificate: str = setting(
        "", doc="PEM file of the door's certificate chain; empty = one of the cluster's own authority.", rule=_file
    )
    key: str = setting("", doc="PEM file of the key of `certificate`.", rule=_file)
    max_calls: int = setting(64, doc="Calls served at one time; more are refused for now.", minimum=4, maximum=1000)
    frame_cache: int = setting(
        256, doc="MiB of memory for frames that were read lately; of this door and of HTTP.", minimum=1, maximum=1 << 20
    )


@dataclass(frozen=True, slots=True)
class Http:
    """[http]: the door for browsers, DICOMweb and JSON."""

    port: int = setting(
        8080, doc="TCP port of HTTP; 0 = any free one.", env="RADMESH_HTTP_PORT", minimum=0, maximum=65535
    )
    bind: str = setting(
        "127.0.0.1", doc="Address to listen on. Beyond loopback the door speaks TLS only.", env="RADMESH_BIND"
    )
    insecure_http: bool = setting(
        default=False,
        doc="Beyond loopback too, speak no TLS: for a proxy that ends it in front of this door.",
        env="RADMESH_INSECURE_HTTP",
    )
    certificate: str = setting(
        "", doc="PEM file of the door's certificate chain; empty = that of [grpc], else the cluster's own.", rule=_file
    )
    key: str = setting("", doc="PEM file of the key of `certificate`.", rule=_file)
    proxies: tuple[str, ...] = setting(
        (),
        doc="Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.",
        rule=_network,
        maximum=64,
    )
    max_connections: int = setting(
        1000, doc="Connections open at one time; for one more, an idle one is closed.", minimum=4, maximum=100_000
    )
    max_requests: int = setting(
        256, doc="Requests answered at one time; more are asked to come back.", minimum=4, maximum=10_000
    )
    max_watchers: int = setting(
        256,
        doc="Clients that are told of changes as they happen; more are asked to come back.",
        minimum=1,
        maximum=10_000,
    )
    threads: int = setting(32, doc="Threads that ask the other components.", minimum=2, maximum=1000)
    metrics: bool = setting(default=False, doc="Serve /metrics to everybody, not to this machine alone.")
    access_log: bool = setting(
        default=False, doc="Log every request; else those that change something, or fail. Neither names a patient."
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between the settings."""
        if bool(self.certificate) != bool(self.key):
            yield "key" if self.certificate else "certificate", "certificate and key are given together"
