"""Every HTTP route and every rpc of the gRPC door, by who asks: nobody, who may nothing, who may other things, who may.

The tables are the code's own, so that what is added later is walked too.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import httpx
import pytest
from depth import allowed
from google.protobuf.message_factory import GetMessageClass
from http_support import ROLES, People
from waiting import within

from radmesh.api.application.v1 import application_pb2
from radmesh.application_server.http import reference
from radmesh.application_server.http.routes import Route
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import from_rpc_error, roles_of

ROUTES = tuple(reference.routes())
METHODS = tuple(
    method for service in application_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods
)
# What a parameter of a path is made to be; whatever else there is, is a number.
VALUES = {"study": "1.2.3", "series": "1.2.3.4", "instance": "1.2.3.4.5", "version": "1", "frames": "1"}


def admits(roles: Sequence[str], role: str) -> bool:
    return role in roles or "anonymous" in roles or ("*" in roles and role != "none")


def ask(client: httpx.Client, route: Route) -> tuple[int, str]:
    """Status and reason of a request that is as good as any, but for who asks."""
    path = route.path
    for part in [part for part in path.split("/") if part.startswith("{")]:
        path = path.replace(part, VALUES.get(part.strip("{*}"), "1"))
    body: dict[str, Any] = {"json": {}} if route.method in ("POST", "PUT", "PATCH") else {}
    with client.stream(route.method, path, **body) as answer:
        if not answer.headers.get("content-type", "").startswith("application/problem+json"):
            return answer.status_code, ""
        answer.read()
        return answer.status_code, answer.json()["reason"]


def described(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_the_table_is_there_and_says_who(people):
    assert len(ROUTES) > 15
    assert {role for route in ROUTES for role in route.roles} <= {*ROLES, "*", "anonymous"}
    assert all(route.roles and route.doc for route in ROUTES)
    # Whoever is not signed in sees no more than this.
    anonymous = {described(route) for route in ROUTES if "anonymous" in route.roles}
    assert {path for path in anonymous if "/api/" in path or "/dicom-web" in path} == {"POST /api/v1/session"}


@pytest.mark.parametrize("route", [r for r in ROUTES if "anonymous" not in r.roles], ids=described)
def test_nobody_is_401(people, route):
    client = people.anonymous()
    for _ in range(2):
        assert ask(client, route) == ((303, "") if route.page else (401, "SESSION_EXPIRED"))
        client.headers["authorization"] = "Bearer made-up"


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if "anonymous" not in r.roles and r.method != "DELETE"], ids=described
)
def test_every_route_with_every_role(people, route):
    for role in ROLES:
        status, reason = ask(people[role], route)
        if admits(route.roles, role):
            assert status not in (401, 403), (role, status, reason)
        else:
            assert (status, reason) == (403, "ROLE_REFUSED"), role


def test_who_signs_out_is_out(people):
    """DELETE of the session, which the walk above leaves out: it would end the session that walks."""
    for role in ROLES:
        people.add(f"{role}.2", role)
        client = people[f"{role}.2"]
        assert client.delete("/api/v1/session").status_code == 204
        assert client.get("/api/v1/session").status_code == 401


# -- the gRPC door


@pytest.fixture(scope="module")
def channel(cluster) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(cluster.target) as channel:
        yield channel


def call(channel: grpc.Channel, method: Any, token: str = "") -> str:
    """The reason of the failure of an rpc with an empty request; empty if it did not fail."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    raw: Any = getattr(channel, kind)(f"/{method.containing_service.full_name}/{method.name}")
    request = GetMessageClass(method.input_type)().SerializeToString()
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    answer = raw(iter([request]) if method.client_streaming else request, timeout=30, metadata=metadata)
    try:
        if method.server_streaming:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        return from_rpc_error(error).reason
    return ""


def outcome(channel: grpc.Channel, method: Any, token: str = "") -> str:
    try:
        return call(channel, method, token)
    except grpc.RpcError as error:
        return from_rpc_error(error).reason
    except RadmeshError as error:
        return error.reason


def test_every_rpc_without_a_token(channel):
    for method in METHODS:
        if "anonymous" not in roles_of(method):
            assert outcome(channel, method) == "SESSION_EXPIRED", method.full_name
            assert outcome(channel, method, "made-up") == "SESSION_EXPIRED", method.full_name


@pytest.mark.parametrize("method", [m for m in METHODS if m.name != "SignOut"], ids=lambda m: m.name)
def test_every_rpc_with_every_role(people, channel, method):
    for role in ROLES:
        found = outcome(channel, method, people.tokens[role])
        if admits(roles_of(method), role):
            assert found not in ("SESSION_EXPIRED", "ROLE_REFUSED", "CALLER_REFUSED"), (role, found)
        else:
            assert found == "ROLE_REFUSED", role


# -- what changes meanwhile (FEATURES AS1: 5 s)


def within_five_seconds(condition: Any) -> None:
    within(condition, 5)


def test_a_change_of_role_is_in_force_within_five_seconds_at_both_doors(people: People, channel):
    token = people.add("ruth", "radiologist")
    ruth = people["ruth"]
    listed = next(method for method in METHODS if method.name == "FindStudies")
    users = next(method for method in METHODS if method.name == "ListUsers")

    def both() -> tuple[int, str]:
        return ruth.get("/api/v1/studies").status_code, outcome(channel, listed, token)

    assert both() == (200, "")
    people.become("ruth", "none")
    within_five_seconds(lambda: both() == (403, "ROLE_REFUSED"))
    people.become("ruth", "technologist")
    within_five_seconds(lambda: both() == (200, "") and ruth.get("/api/v1/holds").status_code == 200)
    assert outcome(channel, users, token) == "ROLE_REFUSED"
    people.become("ruth", "administrator")
    within_five_seconds(lambda: outcome(channel, users, token) == "")
    people.become("ruth", "none")
    within_five_seconds(lambda: both() == (403, "ROLE_REFUSED") and outcome(channel, users, token) == "ROLE_REFUSED")


def test_a_stream_of_events_ends_when_its_right_does(people: People):
    people.add("eva", "radiologist")
    with people["eva"].stream("GET", "/api/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 1000"
        people.become("eva", "none")
        until = time.monotonic() + allowed(5)
        # Ends: whoever would read for longer gets nothing more.
        for _ in lines:
            assert time.monotonic() < until
    assert time.monotonic() < until
    assert people["eva"].get("/api/v1/events").status_code == 403
