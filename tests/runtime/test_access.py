"""Every rpc of the protos with every component's identity and every role: let in or refused as the proto says."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import runtime_support
from google.protobuf.message_factory import GetMessageClass
from runtime_support import World

from radmesh.runtime import rpc
from radmesh.runtime.errors import RadmeshError

PROTOS = Path(runtime_support.__file__).resolve().parents[2] / "protos"
COMPONENTS = (
    "gateway-proxy",
    "network-gateway",
    "database-server",
    "archive-server",
    "application-server",
    "curator",
    "connectivity-manager",
)
ROLES = ("none", "technologist", "radiologist", "administrator")


def services(*, door: bool) -> list[Any]:
    found: list[Any] = []
    for proto in sorted(PROTOS.rglob("*.proto")):
        name = ".".join((*proto.relative_to(PROTOS).parts[:-1], f"{proto.stem}_pb2"))
        found += importlib.import_module(name).DESCRIPTOR.services_by_name.values()
    return [s for s in found if (".application." in s.full_name) == door and s.name != "StatusService"]


class Reached:
    """Answers every call with an error that no refusal has."""

    def __getattr__(self, name: str) -> Any:
        def method(_request: Any, _call: rpc.Call) -> Any:
            raise RadmeshError("JOB_LOST", "reached")

        def stream(request: Any, call: rpc.Call) -> Iterator[Any]:
            yield method(request, call)

        return stream if name in STREAMS else method


STREAMS = {
    method.name
    for door in (False, True)
    for service in services(door=door)
    for method in service.methods
    if method.server_streaming
}


def outcome(channel: grpc.Channel, method: Any, metadata: Any = ()) -> str:
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    raw: Any = getattr(channel, kind)(f"/{method.containing_service.full_name}/{method.name}")
    request = GetMessageClass(method.input_type)().SerializeToString()
    try:
        answer = raw(iter([request]) if method.client_streaming else request, timeout=30, metadata=metadata)
        list(answer)
    except grpc.RpcError as error:
        return rpc.from_rpc_error(error).reason
    raise AssertionError("nothing answers without an error here")


def test_every_rpc_with_every_components_identity(world: World) -> None:
    world.authority.issue(list(COMPONENTS))
    everything = services(door=False)
    server = world.serve(world.context("archive-server-0"), *((service, Reached()) for service in everything))
    allowed = refused = 0
    for component in COMPONENTS:
        channel = world.context(component).channels.get(server.target)
        for method in (method for service in everything for method in service.methods):
            callers = rpc.callers_of(method)
            expected = "JOB_LOST" if component in callers or "*" in callers else "CALLER_REFUSED"
            assert outcome(channel, method) == expected, f"{component} {method.full_name}"
            allowed += expected == "JOB_LOST"
            refused += expected != "JOB_LOST"
    print(f"{world.transport}: {allowed} allowed, {refused} refused")
    assert min(allowed, refused) > 50


@pytest.mark.parametrize("world", ["unix"], indirect=True)
def test_every_rpc_of_the_door_with_every_role(world: World) -> None:
    context = world.context("application-server")
    server = rpc.Server(
        listen="127.0.0.1:0",
        credentials=context.credentials,
        component="application-server",
        clock=context.clock,
        log=context.log,
        metrics=context.metrics,
        status=context.status,
        person_authenticator=lambda token: rpc.Person("user", token, "session"),
    )
    everything = services(door=True)
    for service in everything:
        server.add(service, Reached())
    server.start()
    with grpc.insecure_channel(server.target) as channel:
        for method in (method for service in everything for method in service.methods):
            roles = rpc.roles_of(method)
            for role in ROLES:
                open_to = role in roles or "anonymous" in roles or ("*" in roles and role != "none")
                found = outcome(channel, method, (("authorization", f"Bearer {role}"),))
                assert found == ("JOB_LOST" if open_to else "ROLE_REFUSED"), f"{role} {method.full_name}"
            found = outcome(channel, method)
            assert found == ("JOB_LOST" if "anonymous" in roles else "SESSION_EXPIRED"), method.full_name
    server.stop(0)
