"""Servers and channels, the same suite over unix sockets with tokens and over mutual TLS."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from depth import allowed
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from runtime_support import PACKAGE, PROBE, SECOND, Probe, Second, World, text
from waiting import wait_for

from radmesh.api.common.v1 import common_pb2
from radmesh.runtime import rpc
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError

STATUS = common_pb2.DESCRIPTOR.services_by_name["StatusService"]


class Pair:
    """A server with a Probe, and a client that is the gateway proxy."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self.probe = Probe()
        self.second = Second()
        self.at = world.context("archive-server-0")
        self.server = world.serve(self.at, (PROBE, self.probe), (SECOND, self.second), **options)
        self.caller = world.context("gateway-proxy")
        self.client = self.caller.client(PROBE, "archive-server-0")

    def as_instance(self, instance: str) -> tuple[Context, Any]:
        context = self.world.context(instance)
        return context, context.client(PROBE, "archive-server-0")


@pytest.fixture
def pair(world: World) -> Pair:
    return Pair(world)


def refused(reason: str, call: Callable[[], Any]) -> RadmeshError:
    with pytest.raises(RadmeshError) as caught:
        call()
    assert caught.value.reason == reason, caught.value
    return caught.value


# -- calls of every kind -----------------------------------------------------------------------------------------------


def test_calls_of_every_kind_pass(pair: Pair) -> None:
    assert pair.client.Read(text("a")).value == "read a"
    assert [answer.value for answer in pair.client.List(text("3"))] == ["0", "1", "2"]
    assert pair.client.Collect(iter([text("a"), text("b")])).value == "a b"
    assert [answer.value for answer in pair.client.Talk(iter([text("a"), text("b")]))] == ["heard a", "heard b"]


def test_a_call_knows_its_caller(pair: Pair) -> None:
    _, client = pair.as_instance("network-gateway")
    assert client.Anybody(text("")).value == "network-gateway network-gateway"
    pair.client.Read(text(""), timeout=3)
    call = pair.probe.calls[-1][1]
    assert (call.caller, call.instance, call.person) == ("gateway-proxy", "gateway-proxy", None)
    assert call.peer == ("" if pair.world.transport == "unix" else "127.0.0.1")


def test_a_numbered_instance_is_of_its_component(pair: Pair) -> None:
    _, client = pair.as_instance("archive-server-0")
    assert client.Anybody(text("")).value == "archive-server archive-server-0"


def test_the_remaining_time_is_known(pair: Pair) -> None:
    left: list[float | None] = []
    pair.probe.queue = [lambda: left.append(pair.probe.calls[-1][1].time_remaining())] * 2
    pair.client.Read(text(""), timeout=3)
    assert left[0] is not None
    assert 1 < left[0] <= 3
    list(pair.client.List(text("0")))
    assert left[1] is None


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_known_caller_that_is_not_listed_is_refused(pair: Pair) -> None:
    _, client = pair.as_instance("network-gateway")
    for call in (
        lambda: client.Read(text("")),
        lambda: client.Write(text("")),
        lambda: next(client.List(text("1"))),
        lambda: client.Collect(iter([text("")])),
        lambda: next(client.Talk(iter([text("")]))),
    ):
        error = refused("CALLER_REFUSED", call)
        assert error.code == grpc.StatusCode.PERMISSION_DENIED
    assert pair.probe.calls == []


def test_an_rpc_without_callers_is_closed_to_all(pair: Pair) -> None:
    for instance in ("gateway-proxy", "archive-server-0", "database-server"):
        refused("CALLER_REFUSED", lambda instance=instance: pair.as_instance(instance)[1].Nobody(text("")))


def test_a_refusal_is_logged_with_who_and_what(pair: Pair) -> None:
    _, client = pair.as_instance("network-gateway")
    refused("CALLER_REFUSED", lambda: client.Read(text("")))
    line = wait_for(lambda: pair.world.lines("archive-server-0"))[-1]
    assert line["level"] == "WARNING"
    assert (line["message"], line["reason"], line["method"]) == (
        "call refused",
        "CALLER_REFUSED",
        f"{PACKAGE}.Probe.Read",
    )
    assert line["caller"] == "network-gateway"


def bare_channel(pair: Pair, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> Callable[[], Any]:
    """A caller that does not use the runtime."""
    if pair.world.transport == "unix":
        channel = grpc.insecure_channel(pair.server.target)
    else:
        key, chain, authority = pair.caller.credentials.certificate()
        channel = grpc.secure_channel(pair.server.target, grpc.ssl_channel_credentials(authority, key, chain))
    raw = channel.unary_unary(f"/{PACKAGE}.Probe/Read", StringValue.SerializeToString, StringValue.FromString)

    def call() -> Any:
        with channel:
            try:
                return raw(text(""), metadata=metadata, timeout=30)
            except grpc.RpcError as error:
                raise rpc.from_rpc_error(error) from None

    return call


HOSTILE = [
    (),
    (("radmesh-caller", "gateway-proxy"),),
    (("radmesh-token", "0" * 64),),
    (("radmesh-caller", "gateway-proxy"), ("radmesh-token", "0" * 64)),
    (("radmesh-caller", ""), ("radmesh-token", "")),
    (("radmesh-caller", "../../ca"), ("radmesh-token", "x" * 4000)),
    (("radmesh-caller", "gateway-proxy "), ("radmesh-token", "%00")),
    (("radmesh-caller", "nobody"), ("radmesh-token", "")),
    (("radmesh-caller-bin", b"gateway-proxy"), ("radmesh-token-bin", b"\xff\x00")),
    (("authorization", "Bearer x"),),
]


@pytest.mark.parametrize("metadata", HOSTILE)
@pytest.mark.parametrize("world", ["unix"], indirect=True)
def test_a_socket_is_worth_nothing_without_the_token(world: World, metadata: Any) -> None:
    pair = Pair(world)
    refused("CALLER_UNKNOWN", bare_channel(pair, metadata))
    assert pair.probe.calls == []


@pytest.mark.parametrize("world", ["unix"], indirect=True)
def test_the_token_of_one_does_not_make_another(world: World) -> None:
    pair = Pair(world)
    token = world.credentials("network-gateway").token()
    refused("CALLER_UNKNOWN", bare_channel(pair, (("radmesh-caller", "gateway-proxy"), ("radmesh-token", token))))
    own = world.credentials("gateway-proxy").token()
    both = (("radmesh-caller", "gateway-proxy"), ("radmesh-token", own))
    assert bare_channel(pair, both)().value == "read "


@pytest.mark.parametrize("world", ["tls"], indirect=True)
def test_metadata_says_nothing_over_tls(world: World) -> None:
    pair = Pair(world)
    claim = (("radmesh-caller", "database-server"), ("radmesh-token", world.credentials("database-server").token()))
    assert bare_channel(pair, claim)().value == "read "
    assert pair.probe.calls[-1][1].caller == "gateway-proxy"


@pytest.mark.parametrize("world", ["tls"], indirect=True)
def test_tls_needs_a_certificate_of_this_cluster(world: World, tmp_path: Any) -> None:
    pair = Pair(world)
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other", "tls")
    key, chain, foreign = other.credentials("gateway-proxy").certificate()
    _, _, authority = pair.caller.credentials.certificate()
    for credentials in (
        grpc.ssl_channel_credentials(authority),
        grpc.ssl_channel_credentials(authority, key, chain),
        grpc.ssl_channel_credentials(foreign, *pair.caller.credentials.certificate()[:2]),
    ):
        with grpc.secure_channel(pair.server.target, credentials) as channel:
            raw = channel.unary_unary(f"/{PACKAGE}.Probe/Read", StringValue.SerializeToString, StringValue.FromString)
            with pytest.raises(grpc.RpcError) as caught:
                raw(text(""), timeout=30)
            assert rpc.from_rpc_error(caught.value).reason in ("PEER_UNAVAILABLE", "PEER_TIMEOUT")
    with grpc.insecure_channel(pair.server.target) as channel:
        raw = channel.unary_unary(f"/{PACKAGE}.Probe/Read", StringValue.SerializeToString, StringValue.FromString)
        with pytest.raises(grpc.RpcError):
            raw(text(""), timeout=30)
    assert pair.probe.calls == []


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_error_passes_with_reason_text_and_metadata(pair: Pair) -> None:
    pair.probe.queue = [RadmeshError("OFFSET_UNEXPECTED", "go on elsewhere", metadata={"offset": "17"})]
    error = refused("OFFSET_UNEXPECTED", lambda: pair.client.Write(text("")))
    assert (error.message, error.metadata) == ("go on elsewhere", {"offset": "17"})
    assert error.code == grpc.StatusCode.OUT_OF_RANGE


def test_an_error_in_the_middle_of_a_stream_passes(pair: Pair) -> None:
    answers = pair.client.Talk(iter([text("a"), text("fail"), text("b")]))
    assert next(answers).value == "heard a"
    refused("STORAGE_FULL", lambda: next(answers))


def test_a_status_carries_exactly_one_error_info(pair: Pair) -> None:
    from grpc_status import rpc_status

    channel = pair.caller.channels.get(pair.server.target)
    raw = channel.unary_unary(f"/{PACKAGE}.Probe/Nobody", StringValue.SerializeToString, StringValue.FromString)
    with pytest.raises(grpc.RpcError) as caught:
        raw(text(""), timeout=30)
    status = rpc_status.from_call(caught.value)
    assert [detail.type_url for detail in status.details] == ["type.googleapis.com/google.rpc.ErrorInfo"]


def test_a_defect_is_internal_with_an_incident_and_without_its_text(pair: Pair) -> None:
    pair.probe.queue = [ValueError("Doe^John")]
    error = refused("INTERNAL", lambda: pair.client.Write(text("")))
    assert "Doe" not in error.message
    line = wait_for(lambda: pair.world.lines("archive-server-0"))[-1]
    assert line["incident"] == error.metadata["incident"]
    assert line["error"] == "ValueError"
    assert "runtime_support" in line["stack"]
    assert "Doe" not in pair.world.logs["archive-server-0"].getvalue()


@pytest.mark.parametrize(
    ("message", "metadata"),
    [
        ("x" * 200_000, {}),
        ("ä" * 5_000, {}),
        ("cut \udc80 here", {}),
        ("", {"field": "y" * 200_000}),
        ("", {"offset": 17}),
        ("line\nbreak \x00 %41", {"field": "ü\n"}),
    ],
)
def test_an_error_passes_whatever_its_text_holds(pair: Pair, message: str, metadata: Any) -> None:
    pair.probe.queue = [RadmeshError("FIELD_INVALID", message, metadata=metadata)]
    error = refused("FIELD_INVALID", lambda: pair.client.Write(text("")))
    assert error.message[:100] == message.replace("\udc80", "?")[:100]
    assert set(error.metadata) == set(metadata)


def test_what_a_peer_of_a_peer_says_is_passed_on(pair: Pair) -> None:
    """A component that does not wrap a failed call of its own still gives its caller the reason."""
    other, client = pair.as_instance("network-gateway")
    channel = other.channels.get(pair.server.target)
    raw = channel.unary_unary(f"/{PACKAGE}.Probe/Nobody", StringValue.SerializeToString, StringValue.FromString)

    def nested() -> None:
        raw(text(""), timeout=30)

    pair.probe.queue = [nested]
    refused("CALLER_REFUSED", lambda: pair.client.Write(text("")))
    pair.probe.queue = [nested]
    refused("CALLER_REFUSED", lambda: list(pair.client.List(text("3"))))
    assert client is not None


def test_bytes_that_are_no_message_are_the_callers_fault(pair: Pair) -> None:
    channel = pair.caller.channels.get(pair.server.target)
    for path, make in (("Write", channel.unary_unary), ("List", channel.unary_stream)):
        raw = make(f"/{PACKAGE}.Probe/{path}", bytes, bytes)
        with pytest.raises(grpc.RpcError) as caught:
            list(raw(b"\xff\xff\xff", timeout=30))
        assert rpc.from_rpc_error(caught.value).reason == "FIELD_INVALID"
    for path, make in (("Collect", channel.stream_unary), ("Talk", channel.stream_stream)):
        raw = make(f"/{PACKAGE}.Probe/{path}", bytes, bytes)
        with pytest.raises(grpc.RpcError) as caught:
            list(raw(iter([b"\xff\xff\xff"]), timeout=30))
        assert rpc.from_rpc_error(caught.value).reason == "FIELD_INVALID"
    assert pair.client.Read(text("a")).value == "read a"


def test_a_message_that_is_too_long_is_named_and_not_taken_for_load(pair: Pair) -> None:
    refused("MESSAGE_TOO_LARGE", lambda: pair.client.Write(text("x" * (rpc.MAX_MESSAGE + 1))))
    refused("MESSAGE_TOO_LARGE", lambda: list(pair.client.List(text("x" * (rpc.MAX_MESSAGE + 1)))))
    refused("MESSAGE_TOO_LARGE", lambda: pair.client.Read(text("long")))
    assert pair.client.Read(text("a")).value == "read a"


def test_an_unknown_rpc_is_an_error_not_a_hang(pair: Pair) -> None:
    channel = pair.caller.channels.get(pair.server.target)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{PACKAGE}.Probe/Missing")(b"", timeout=30)
    assert rpc.from_rpc_error(caught.value).reason == "INTERNAL"


def test_a_caller_that_goes_away_ends_the_stream_at_the_server(pair: Pair) -> None:
    end = threading.Event()

    def requests() -> Iterator[StringValue]:
        yield text("a")
        end.wait(10)

    answers = pair.client.Talk(requests())
    assert next(answers).value == "heard a"
    answers.cancel()
    assert pair.probe.closed.wait(5)
    end.set()
    refused("CANCELLED", lambda: next(answers))
    # gRPC may end the requests an instant before it says that the caller has left: then the call has simply ended.
    wait_for(lambda: count(pair, "Talk", "CANCELLED") + count(pair, "Talk", "OK") == 1)


def count(pair: Pair, method: str, code: str) -> float:
    labels = {"method": f"{PACKAGE}.Probe.{method}", "code": code}
    return pair.at.metrics.registry.get_sample_value("radmesh_rpc_seconds_count", labels) or 0.0


def test_calls_are_measured_by_their_outcome(pair: Pair) -> None:
    pair.client.Read(text(""))
    list(pair.client.List(text("2")))
    refused("CALLER_REFUSED", lambda: pair.client.Nobody(text("")))
    wait_for(
        lambda: (
            (count(pair, "Read", "OK"), count(pair, "List", "OK"), count(pair, "Nobody", "CALLER_REFUSED")) == (1, 1, 1)
        )
    )


# -- deadlines, retries, limits ----------------------------------------------------------------------------------------


def test_a_call_ends_at_its_deadline(pair: Pair) -> None:
    pair.probe.queue = [lambda: pair.probe.hold.wait(10)]
    start = time.monotonic()
    refused("PEER_TIMEOUT", lambda: pair.client.Write(text(""), timeout=0.3))
    assert time.monotonic() - start < allowed(3)
    pair.probe.hold.set()


def test_a_call_without_a_deadline_has_one_nevertheless(pair: Pair) -> None:
    left: list[float | None] = []
    pair.probe.queue = [lambda: left.append(pair.probe.calls[-1][1].time_remaining())]
    pair.client.Write(text(""))
    assert left[0] is not None
    assert 5 < left[0] <= rpc.DEFAULT_DEADLINE


@pytest.mark.parametrize("method", ["Read", "Put"])
def test_what_may_be_repeated_is_repeated(pair: Pair, method: str) -> None:
    pair.probe.queue = [RadmeshError("STARTING", "not yet") for _ in range(2)]
    assert getattr(pair.client, method)(text("a")).value.endswith(" a")
    assert pair.probe.names() == [method] * 3


def test_a_stream_is_called_once(pair: Pair) -> None:
    """Who follows one begins again where it was; gRPC's own repeating may wait for ever."""
    pair.probe.queue = [RadmeshError("STARTING", "not yet")]
    refused("STARTING", lambda: list(pair.client.List(text("2"))))
    assert pair.probe.names() == ["List"]


def test_what_may_not_be_repeated_is_called_once(pair: Pair) -> None:
    pair.probe.queue = [RadmeshError("STARTING", "not yet")]
    refused("STARTING", lambda: pair.client.Write(text("a")))
    assert pair.probe.names() == ["Write"]


def test_only_unavailability_is_a_cause_to_repeat(pair: Pair) -> None:
    pair.probe.queue = [RadmeshError("STUDY_NOT_FOUND", "no such study")]
    refused("STUDY_NOT_FOUND", lambda: pair.client.Read(text("a")))
    assert pair.probe.names() == ["Read"]


def test_repeating_ends(pair: Pair) -> None:
    pair.probe.queue = [RadmeshError("STARTING", "not yet") for _ in range(50)]
    refused("STARTING", lambda: pair.client.Read(text("a")))
    assert 2 <= len(pair.probe.calls) <= 5


def test_a_second_service_of_the_same_peer_is_repeated_too(pair: Pair) -> None:
    pair.client.Read(text("a"))
    second = pair.caller.client(SECOND, "archive-server-0")
    pair.second.errors = [RadmeshError("STARTING", "not yet")]
    assert second.Read(text("a")).value == "second a"


def test_too_many_calls_are_refused_and_status_is_still_told(world: World) -> None:
    pair = Pair(world, max_workers=4)
    streams = []
    for _ in range(4):
        answers = pair.client.Talk(endless())
        assert next(answers).value == "heard a"
        streams.append(answers)
    try:
        for _ in range(20):
            error = refused("TOO_MANY_CALLS", lambda: pair.client.Write(text("")))
            assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(error.metadata["retry_after_ms"]) > 0
            refused("TOO_MANY_CALLS", lambda: next(pair.client.Talk(endless())))
        status = pair.caller.client(STATUS, "archive-server-0").GetStatus(common_pb2.GetStatusRequest())
        assert status.instance == "archive-server-0"
        assert health(pair) == health_pb2.HealthCheckResponse.SERVING
    finally:
        for answers in streams:
            answers.cancel()
    wait_for(pair.probe.closed.is_set)
    wait_for(lambda: succeeds(lambda: pair.client.Write(text("a"))))


def endless() -> Iterator[StringValue]:
    yield text("a")
    threading.Event().wait(8)


def succeeds(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RadmeshError:
        return False
    return True


def test_many_streams_at_once(world: World) -> None:
    pair = Pair(world, max_workers=200)
    streams = [pair.client.Talk(endless()) for _ in range(150)]
    assert [next(answers).value for answers in streams] == ["heard a"] * 150
    for answers in streams:
        answers.cancel()


# -- health, status, reflection ----------------------------------------------------------------------------------------


def health(pair: Pair, service: str = "") -> Any:
    stub = health_pb2_grpc.HealthStub(pair.caller.channels.get(pair.server.target))
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status


def test_health_is_told_of_the_whole_and_of_every_service(pair: Pair) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    names = ("", f"{PACKAGE}.Probe", f"{PACKAGE}.Second", "radmesh.api.common.v1.StatusService")
    assert [health(pair, name) for name in names] == [serving] * 4
    with pytest.raises(grpc.RpcError) as caught:
        health(pair, "nothing")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_draining_flips_health_and_what_runs_finishes(pair: Pair) -> None:
    talk = pair.client.Talk(hold_then_end(pair))
    assert next(talk).value == "heard a"
    watch = health_pb2_grpc.HealthStub(pair.caller.channels.get(pair.server.target)).Watch(
        health_pb2.HealthCheckRequest(service=""), timeout=20
    )
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    stopper = threading.Thread(target=pair.server.stop, args=(10,))
    stopper.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert stopper.is_alive()
    pair.probe.hold.set()
    assert [answer.value for answer in talk] == ["heard hold", "heard b"]
    stopper.join(10)
    assert not stopper.is_alive()
    refused("PEER_UNAVAILABLE", lambda: pair.client.Write(text("")))


def hold_then_end(pair: Pair) -> Iterator[StringValue]:
    yield text("a")
    yield text("hold")
    pair.probe.hold.wait(10)
    yield text("b")


def test_stop_does_not_wait_for_those_who_watch(pair: Pair) -> None:
    pair.client.Read(text("a"))
    start = time.monotonic()
    pair.server.stop(10)
    assert time.monotonic() - start < allowed(3)


def test_watchers_that_come_and_go_do_not_stop_a_server(pair: Pair) -> None:
    """Seen with grpcio-health-checking: a watcher that leaves while a state is set makes the server stand still."""
    for _ in range(15):
        channel = pair.caller.channels.new(pair.server.target)
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=20)
            for _ in range(4)
        ]
        assert next(watches[0]).status == health_pb2.HealthCheckResponse.SERVING
        closer = threading.Thread(target=channel.close)
        closer.start()
        pair.server.drain()
        pair.server._health.set([""], health_pb2.HealthCheckResponse.SERVING)
        closer.join()
    assert health(pair) == health_pb2.HealthCheckResponse.SERVING


def test_stop_ends_what_does_not_finish_in_time(pair: Pair) -> None:
    talk = pair.client.Talk(endless())
    next(talk)
    start = time.monotonic()
    pair.server.stop(0.3)
    assert time.monotonic() - start < allowed(3)
    with pytest.raises(RadmeshError):
        next(talk)


def test_a_peer_that_comes_back_at_its_address_is_found_again(pair: Pair) -> None:
    pair.client.Read(text("a"))
    listen = pair.server.target
    pair.server.stop(0)
    context = pair.world.context("archive-server-0")
    object.__setattr__(context, "listen", listen)
    pair.world.serve(context, (PROBE, pair.probe))
    wait_for(lambda: succeeds(lambda: pair.client.Read(text("b"))), 5)


def test_connections_that_grow_old_are_changed_without_a_failed_call(world: World) -> None:
    pair = Pair(world, max_connection_age=0.4)
    talk = pair.client.Talk(hold_then_end(pair))
    assert next(talk).value == "heard a"
    until = time.monotonic() + 2
    while time.monotonic() < until:
        assert pair.client.Write(text("a")).value == "wrote a"
    pair.probe.hold.set()
    assert [answer.value for answer in talk] == ["heard hold", "heard b"]


def test_status_tells_figures_and_alarms(pair: Pair) -> None:
    pair.at.status.figure("objects", lambda: 12)
    pair.at.status.raise_alarm("STORAGE_FULL", "4 % left")
    status = pair.caller.client(STATUS, "archive-server-0").GetStatus(common_pb2.GetStatusRequest())
    assert (status.component, status.instance, status.state) == ("archive-server", "archive-server-0", "DEGRADED")
    assert dict(status.figures) == {"objects": 12.0}
    assert [(alarm.reason, alarm.message) for alarm in status.alarms] == [("STORAGE_FULL", "4 % left")]
    pair.at.status.clear_alarm("STORAGE_FULL")
    again = pair.caller.client(STATUS, "archive-server-0").GetStatus(common_pb2.GetStatusRequest())
    assert again.state == "SERVING"


def test_reflection_lists_the_services(pair: Pair) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(pair.caller.channels.get(pair.server.target))
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=30)))
    names = {service.name for service in answer.list_services_response.service}
    assert {f"{PACKAGE}.Probe", "grpc.health.v1.Health", "radmesh.api.common.v1.StatusService"} <= names


def test_a_plaintext_port_tells_health_and_nothing_else(world: World) -> None:
    """What a kubelet probes: it has no certificate (KEP-2727)."""
    pair = Pair(world, health_listen="127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{pair.server.health_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=f"{PACKAGE}.Probe")
        assert stub.Check(request, timeout=30).status == health_pb2.HealthCheckResponse.SERVING
        raw = channel.unary_unary(f"/{PACKAGE}.Probe/Read", StringValue.SerializeToString, StringValue.FromString)
        with pytest.raises(grpc.RpcError) as caught:
            raw(text(""), timeout=30)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        pair.server.drain()
        assert stub.Check(request, timeout=30).status == health_pb2.HealthCheckResponse.NOT_SERVING


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["tls"], indirect=True)
def test_a_port_in_use_is_named(world: World) -> None:
    pair = Pair(world)
    context = pair.world.context("archive-server-0")
    object.__setattr__(context, "listen", pair.server.target)
    error = refused("PORT_IN_USE", lambda: pair.world.serve(context))
    assert pair.server.target in error.message


@pytest.mark.parametrize("world", ["unix"], indirect=True)
def test_a_socket_that_a_killed_process_left_is_replaced(world: World) -> None:
    (world.folder / "archive-server-0.sock").touch()
    assert Pair(world).client.Read(text("a")).value == "read a"


def test_an_address_that_nobody_knows_is_named(pair: Pair) -> None:
    error = refused("COMPONENT_UNKNOWN", lambda: pair.caller.client(PROBE, "curator"))
    assert "curator" in error.message


def test_nobody_there_is_unavailable_at_once(world: World) -> None:
    context = world.context("gateway-proxy")
    where = f"unix:{world.folder}/nobody.sock" if world.transport == "unix" else "127.0.0.1:1"
    start = time.monotonic()
    error = refused("PEER_UNAVAILABLE", lambda: context.client(PROBE, where).Write(text("")))
    assert error.transient
    assert time.monotonic() - start < allowed(3)


@pytest.mark.parametrize("world", ["unix"], indirect=True)
def test_print_the_time_of_a_small_call(world: World) -> None:
    pair = Pair(world)
    seconds = []
    for _ in range(500):
        start = time.perf_counter()
        pair.client.Read(text("a"))
        seconds.append(time.perf_counter() - start)
    p99 = sorted(seconds)[int(0.99 * len(seconds))]
    print(f"unary over unix socket with token: p50 {statistics.median(seconds) * 1e6:.0f} us, p99 {p99 * 1e6:.0f} us")
