"""Settings of the Application Server."""

from dataclasses import dataclass

from radmesh.runtime.config import setting


@dataclass(frozen=True)
class Section:
    """[grpc]: the door for the `radmesh` command and Python clients."""

    port: int = setting(
        50051, doc="TCP port of the clients' gRPC services; 0 = any free one.", env="RADMESH_GRPC_PORT", minimum=0, maximum=65535
    )
    bind: str = setting("127.0.0.1", doc="Address to listen on. Beyond loopback the door speaks TLS only.", env="RADMESH_BIND")
    certificate: str = setting("", doc="PEM file of the door's certificate chain; empty = one made by the cluster's own authority.")
    key: str = setting("", doc="PEM file of the certificate's private key.")
    max_streams: int = setting(
        64, doc="Calls that may run at once; more are answered with TOO_MANY_CALLS.", minimum=4, maximum=1000
    )
