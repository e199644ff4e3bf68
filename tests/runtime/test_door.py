"""The clients' door: persons, their roles, and TLS."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from runtime_support import DOOR, PACKAGE, PROBE, Door, Probe, World, text

from radmesh.runtime import rpc
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics

SECRET = "Doe^John"
ROLES = ("none", "technologist", "radiologist", "administrator")


def person(token: str) -> rpc.Person:
    if token == "broken":
        raise RuntimeError(SECRET)
    if token not in ROLES:
        raise RadmeshError("SESSION_EXPIRED", "sign in again")
    return rpc.Person(f"user-{token}", token, "session", token)


class Served:
    def __init__(self, folder: Path, tls: Any = None) -> None:
        self.world = World(folder, "unix")
        context = self.world.context("application-server")
        self.log = io.StringIO()
        self.server = rpc.Server(
            listen="127.0.0.1:0",
            credentials=context.credentials,
            component="application-server",
            clock=context.clock,
            log=Logger("application-server", "application-server", self.log),
            metrics=Metrics(),
            status=context.status,
            person_authenticator=person,
            door_tls=tls,
        )
        self.server.add(DOOR, Door())
        self.server.add(PROBE, Probe())
        self.server.start()

    def call(self, method: str, *metadata: tuple[str, str], service: str = "Door") -> str:
        with grpc.insecure_channel(self.server.target) as channel:
            return call(channel, method, *metadata, service=service)


def call(channel: grpc.Channel, method: str, *metadata: tuple[str, str], service: str = "Door") -> str:
    raw = channel.unary_unary(f"/{PACKAGE}.{service}/{method}", StringValue.SerializeToString, StringValue.FromString)
    try:
        return str(raw(text(""), metadata=metadata, timeout=30.0).value)
    except grpc.RpcError as error:
        raise rpc.from_rpc_error(error) from None


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.server.stop(0)


def refused(reason: str, function: Callable[[], Any]) -> RadmeshError:
    with pytest.raises(RadmeshError) as caught:
        function()
    assert caught.value.reason == reason, caught.value
    return caught.value


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


ALLOWED = {
    "SignIn": ROLES,
    "Session": ROLES,
    "Look": ("technologist", "radiologist", "administrator"),
    "Administer": ("administrator",),
    "Closed": (),
}


@pytest.mark.parametrize("method", ALLOWED)
@pytest.mark.parametrize("role", ROLES)
def test_every_role_gets_what_the_proto_says(door: Served, method: str, role: str) -> None:
    if role in ALLOWED[method]:
        who = "nobody" if method == "SignIn" else f"user-{role} {role}"
        assert door.call(method, bearer(role)) == who
    else:
        refused("ROLE_REFUSED", lambda: door.call(method, bearer(role)))


def test_before_sign_in_only_what_is_anonymous_is_open(door: Served) -> None:
    assert door.call("SignIn") == "nobody"
    for method in ("Session", "Look", "Administer", "Closed"):
        refused("SESSION_EXPIRED", lambda method=method: door.call(method))


@pytest.mark.parametrize(
    "metadata",
    [
        ("authorization", "Basic administrator"),
        ("authorization", "administrator"),
        ("authorization", "Bearer "),
        ("authorization", "Bearer " + "x" * 5000),
        ("authorization", "Bearer none administrator"),
        ("radmesh-caller", "gateway-proxy"),
    ],
)
def test_what_is_no_session_is_none(door: Served, metadata: tuple[str, str]) -> None:
    refused("SESSION_EXPIRED", lambda: door.call("Look", metadata))


def test_a_components_token_opens_no_door(door: Served) -> None:
    token = door.world.credentials("gateway-proxy").token()
    both = (("radmesh-caller", "gateway-proxy"), ("radmesh-token", token))
    refused("SESSION_EXPIRED", lambda: door.call("Closed", *both))
    refused("SESSION_EXPIRED", lambda: door.call("Read", *both, service="Probe"))
    refused("ROLE_REFUSED", lambda: door.call("Read", bearer("administrator"), service="Probe"))


def test_a_defect_of_the_authenticator_opens_nothing(door: Served) -> None:
    error = refused("INTERNAL", lambda: door.call("Look", bearer("broken")))
    assert SECRET not in error.message
    assert SECRET not in door.log.getvalue()


def test_the_door_tells_its_health(door: Served) -> None:
    with grpc.insecure_channel(door.server.target) as channel:
        request = health_pb2.HealthCheckRequest(service=f"{PACKAGE}.Door")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=30.0)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_tls_at_the_door_needs_no_certificate_and_takes_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    served = Served(
        tmp_path,
        lambda: ((folder / "application-server.key").read_bytes(), (folder / "application-server.pem").read_bytes()),
    )
    authority = (folder / "ca.pem").read_bytes()

    def connect() -> str:
        options = [("grpc.use_local_subchannel_pool", 1)]
        credentials = grpc.ssl_channel_credentials(authority)
        with grpc.secure_channel(served.server.target, credentials, options) as channel:
            return call(channel, "Look", bearer("radiologist"))

    assert connect() == "user-radiologist radiologist"
    (folder / "application-server.pem").unlink()
    served.world.authority.issue(["application-server"])
    assert connect() == "user-radiologist radiologist"
    with pytest.raises(RadmeshError):
        served.call("SignIn")
    served.server.stop(0)
