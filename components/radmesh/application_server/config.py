"""Settings of the Application Server."""

from dataclasses import dataclass
from pathlib import Path

from radmesh.runtime.config import setting


def _file(value: str) -> str | None:
    return None if not value or Path(value).is_file() else "must be a file that exists"


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
