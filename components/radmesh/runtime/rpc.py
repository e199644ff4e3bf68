"""gRPC servers and channels of the mesh: identity, allow lists, errors, deadlines, health.

Servers are built from the service descriptors: the options `callers` and `roles` of each method (common/v1/access.proto) are the
allow list, so that what is written in the protos is what is enforced.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

import radmesh
from radmesh.api.common.v1 import access_pb2, common_pb2
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import State, Status
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.reasons import BY_CODE
from radmesh.runtime.security import Credentials, component_of

DOMAIN = "radmesh"
DEFAULT_DEADLINE = 10.0
MAX_MESSAGE = 4 * 1024 * 1024
_CALLER, _TOKEN = "radmesh-caller", "radmesh-token"
_KEEPALIVE_SECONDS, _KEEPALIVE_TIMEOUT = 5, 5
# MethodOptions.IdempotencyLevel
_NO_SIDE_EFFECTS, _IDEMPOTENT = 1, 2

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Person:
    """A signed-in person: who calls through the clients' door."""

    name: str
    role: str
    session_id: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as its implementation sees it.

    `caller` is a component ("" for a person's call), `instance` which one of it; `person` is set at the clients' door.
    """

    caller: str
    instance: str
    person: Person | None
    context: grpc.ServicerContext

    @property
    def peer(self) -> str:
        """Address of the other side, such as "127.0.0.1"; empty on a unix socket."""
        kind, _, rest = str(self.context.peer()).partition(":")
        return rest.rpartition(":")[0].strip("[]").replace("%5B", "").replace("%5D", "") if kind.startswith("ipv") else ""

    def is_active(self) -> bool:
        """Whether the caller still waits."""
        return bool(self.context.is_active())


@dataclass(frozen=True, slots=True)
class MethodCodec:
    """Codecs of a bulk method, in place of protobuf's: None keeps protobuf's."""

    request_deserializer: Callable[[bytes], Any] | None = None
    response_serializer: Callable[[Any], bytes] | None = None
    request_serializer: Callable[[Any], bytes] | None = None
    response_deserializer: Callable[[bytes], Any] | None = None


PersonAuthenticator = Callable[[str], Person]


def to_status(error: RadmeshError) -> Any:
    """Return the grpc.Status of an error: one google.rpc.ErrorInfo."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    code = error.code.value[0]
    return rpc_status.to_status(status_pb2.Status(code=code, message=error.message, details=[detail]))


def from_rpc_error(error: grpc.RpcError) -> RadmeshError:
    """Return what the other side said, or what its silence means."""
    if not isinstance(error, grpc.Call):
        return RadmeshError("PEER_UNAVAILABLE", "the connection is closed")
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    if status is not None:
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return RadmeshError(info.reason, status.message, metadata=dict(info.metadata))
    code = error.code()
    reason = BY_CODE.get(code, "INTERNAL")
    return RadmeshError(reason, f"the other side answered {code.name.lower().replace('_', ' ')}")


def callers_of(method: MethodDescriptor) -> tuple[str, ...]:
    """Return the components that may call the method."""
    return tuple(method.GetOptions().Extensions[access_pb2.callers])


def roles_of(method: MethodDescriptor) -> tuple[str, ...]:
    """Return the roles of persons that may call the method."""
    return tuple(method.GetOptions().Extensions[access_pb2.roles])


# -- servers --------------------------------------------------------------------------------------------------------------


class Server:
    """A gRPC server of one component.

    `listen` is "unix:/path" (callers show a token), or "host:port". On TCP callers show a certificate of the cluster, unless
    `person_authenticator` makes this the clients' door: then a bearer token is looked up, and TLS is `door_tls`.
    """

    def __init__(
        self,
        *,
        listen: str,
        credentials: Credentials,
        component: str,
        clock: Clock,
        log: Logger,
        metrics: Metrics,
        status: Status,
        max_workers: int = 64,
        max_connection_age: float | None = 300.0,
        person_authenticator: PersonAuthenticator | None = None,
        door_tls: tuple[bytes, bytes] | None = None,
    ) -> None:
        self._listen = listen
        self._credentials = credentials
        self._component = component
        self._clock = clock
        self._log = log
        self._seconds = metrics.histogram("radmesh_rpc_seconds")
        self._status = status
        self._person = person_authenticator
        self._door_tls = door_tls
        self._names: list[str] = []
        self.port = 0
        options: list[tuple[str, Any]] = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.keepalive_time_ms", _KEEPALIVE_SECONDS * 1000),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT * 1000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        if max_connection_age is not None:
            options += [
                ("grpc.max_connection_age_ms", int(max_connection_age * 1000)),
                ("grpc.max_connection_age_grace_ms", 60_000),
            ]
        # A stream occupies a thread; a few are kept for the calls that say how the server is.
        self._pool = ThreadPoolExecutor(max_workers + 8, thread_name_prefix="rpc")
        self._server = grpc.server(self._pool, options=options, maximum_concurrent_rpcs=max_workers + 8)
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1, thread_name_prefix="health")
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names.append(health.SERVICE_NAME)
        if person_authenticator is None:
            self.add(common_pb2.DESCRIPTOR.services_by_name["StatusService"], _StatusService(credentials, status))

    @property
    def target(self) -> str:
        """Where this server is reached."""
        return self._listen if self._listen.startswith("unix:") else f"{self._listen.rpartition(':')[0]}:{self.port}"

    def add(
        self, service: ServiceDescriptor, implementation: object, *, codecs: Mapping[str, MethodCodec] | None = None
    ) -> None:
        """Serve `service`: `implementation` has a method `(request or iterator, Call)` for every rpc, by its name."""
        handlers = {
            method.name: self._handler(method, getattr(implementation, method.name), (codecs or {}).get(method.name))
            for method in service.methods
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        self._names.append(service.full_name)

    def start(self) -> None:
        """Listen and serve.

        Raises:
            RadmeshError: PORT_IN_USE.
        """
        reflection.enable_server_reflection([*self._names, reflection.SERVICE_NAME], self._server)
        if self._listen.startswith("unix:"):
            # A socket that a killed process left behind; the data directory's lock says that nobody listens on it.
            Path(self._listen.removeprefix("unix:")).unlink(missing_ok=True)
        try:
            if self._listen.startswith("unix:") or (self._person is not None and self._door_tls is None):
                self.port = self._server.add_insecure_port(self._listen)
            elif self._door_tls is not None:
                self.port = self._server.add_secure_port(self._listen, grpc.ssl_server_credentials([self._door_tls]))
            else:
                self.port = self._server.add_secure_port(self._listen, self._mutual_tls())
        except RuntimeError as error:
            raise RadmeshError(
                "PORT_IN_USE", f"cannot listen on {self._listen}: choose another port, or stop what has it"
            ) from error
        self._server.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)

    def _set_health(self, state: Any) -> None:
        for name in ("", *self._names):
            self._health.set(name, state)

    def drain(self) -> None:
        """Tell the health service's watchers to go elsewhere; calls are still answered."""
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    def stop(self, grace: float) -> None:
        """Take no new calls; let those that run finish for `grace` seconds."""
        self.drain()
        self._server.stop(grace).wait(grace + 5)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _mutual_tls(self) -> grpc.ServerCredentials:
        version = self._credentials.certificate_version()

        def configuration() -> grpc.ServerCertificateConfiguration:
            key, chain, authority = self._credentials.certificate()
            return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authority)

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal version
            current = self._credentials.certificate_version()
            if current == version:
                return None
            version = current
            return configuration()

        return grpc.dynamic_ssl_server_credentials(configuration(), renewed, require_client_authentication=True)

    def _identify(self, method: MethodDescriptor, context: grpc.ServicerContext) -> Call:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        if self._person is not None:
            return self._identify_person(method, metadata, context)
        if self._listen.startswith("unix:"):
            instance = metadata.get(_CALLER, "")
            if not self._credentials.check_token(instance, metadata.get(_TOKEN, "")):
                raise RadmeshError("CALLER_UNKNOWN", "the call carries no token of this cluster")
        else:
            names = [name.decode() for name in context.auth_context().get("x509_subject_alternative_name", ())]
            instance = next((n.rpartition("/")[2] for n in names if n.startswith("spiffe://radmesh/")), "")
            if not instance:
                raise RadmeshError("CALLER_UNKNOWN", "the certificate names no component of this cluster")
        component = component_of(instance)
        allowed = callers_of(method)
        if component not in allowed and "*" not in allowed:
            raise RadmeshError("CALLER_REFUSED", f"{component} may not call {method.full_name}")
        return Call(component, instance, None, context)

    def _identify_person(
        self, method: MethodDescriptor, metadata: Mapping[str, str], context: grpc.ServicerContext
    ) -> Call:
        assert self._person is not None
        roles = roles_of(method)
        if "anonymous" in roles:
            return Call("", "", None, context)
        kind, _, token = metadata.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise RadmeshError("SESSION_EXPIRED", "sign in first")
        person = self._person(token)
        if person.role not in roles and not ("*" in roles and person.role != "none"):
            raise RadmeshError("ROLE_REFUSED", f"the role {person.role} may not call {method.name}")
        return Call("", "", person, context)

    def _handler(self, method: MethodDescriptor, implementation: Any, codec: MethodCodec | None) -> Any:
        name = method.full_name

        def failed(error: BaseException, context: grpc.ServicerContext) -> Any:
            if not isinstance(error, RadmeshError):
                incident = secrets.token_hex(4)
                self._log.exception("rpc failed", error, method=name, incident=incident)
                error = RadmeshError("INTERNAL", f"incident {incident}", metadata={"incident": incident})
            return error

        def observe(start: float, code: str) -> None:
            self._seconds.labels(name, code).observe(time.perf_counter() - start)

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            start = time.perf_counter()
            try:
                answer = implementation(request, self._identify(method, context))
            except Exception as error:  # noqa: BLE001 - mapped to a status
                failure = failed(error, context)
                observe(start, failure.reason)
                context.abort_with_status(to_status(failure))
            observe(start, "OK")
            return answer

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            start = time.perf_counter()
            try:
                yield from implementation(request, self._identify(method, context))
            except grpc.RpcError:
                # The caller went away while its messages were read: there is nobody to answer.
                observe(start, "CANCELLED")
                return
            except Exception as error:  # noqa: BLE001 - mapped to a status
                failure = failed(error, context)
                observe(start, failure.reason)
                context.abort_with_status(to_status(failure))
            observe(start, "OK")

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        codec = codec or MethodCodec()
        return make(
            stream if method.server_streaming else unary,
            request_deserializer=codec.request_deserializer or GetMessageClass(method.input_type).FromString,
            response_serializer=codec.response_serializer or GetMessageClass(method.output_type).SerializeToString,
        )


class _StatusService:
    """common.v1.StatusService, which every server of the mesh has."""

    def __init__(self, credentials: Credentials, status: Status) -> None:
        self._credentials = credentials
        self._status = status

    def GetStatus(self, _request: common_pb2.GetStatusRequest, _call: Call) -> common_pb2.ComponentStatus:
        """Answer what this process says of itself."""
        import os  # noqa: PLC0415 - for the pid alone

        alarms = self._status.alarms()
        state = self._status.state.value
        answer = common_pb2.ComponentStatus(
            component=self._credentials.component,
            instance=self._credentials.instance,
            version=radmesh.__version__,
            pid=os.getpid(),
            state="DEGRADED" if alarms and self._status.state is State.SERVING else state,
            figures=self._status.figures(),
        )
        answer.start_time.FromDatetime(self._status.start_time)
        for reason, message, since in alarms:
            alarm = answer.alarms.add(reason=reason, message=message)
            alarm.since.FromDatetime(since)
        return answer


# -- channels -------------------------------------------------------------------------------------------------------------


class _Identity(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the caller's token to every call (insecure channels take no call credentials)."""

    def __init__(self, instance: str, token: str) -> None:
        self._metadata = ((_CALLER, instance), (_TOKEN, token))

    def _add(self, details: Any) -> Any:
        return _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), *self._metadata),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """Add the token."""
        return continuation(self._add(details), request)

    intercept_unary_stream = intercept_unary_unary
    intercept_stream_unary = intercept_unary_unary
    intercept_stream_stream = intercept_unary_unary


@dataclass(frozen=True, slots=True)
class _Details(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


def open_channel(target: str, credentials: Credentials, *, own_connection: bool = False) -> grpc.Channel:
    """Open a channel with this instance's identity; `own_connection`: not shared with other channels to the target."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.keepalive_time_ms", _KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", _service_config()),
    ]
    if own_connection:
        options.append(("grpc.use_local_subchannel_pool", 1))
    if target.startswith("unix:"):
        channel = grpc.insecure_channel(target, options)
        return grpc.intercept_channel(channel, _Identity(credentials.instance, credentials.token()))
    key, chain, authority = credentials.certificate()
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authority, key, chain), options)


_methods: list[MethodDescriptor] = []


def _service_config() -> str:
    """Retries for methods that may be repeated, by their idempotency_level; health checks for replicated targets."""
    names = [
        {"service": m.containing_service.full_name, "method": m.name}
        for m in _methods
        if not m.client_streaming and m.GetOptions().idempotency_level in (_NO_SIDE_EFFECTS, _IDEMPOTENT)
    ]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    configuration: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
    if names:
        configuration["methodConfig"] = [{"name": names, "retryPolicy": retry}]
    return json.dumps(configuration)


def declare(*services: ServiceDescriptor) -> None:
    """Make services known to the retry policy of channels opened from now on."""
    for service in services:
        _methods.extend(m for m in service.methods if m not in _methods)


class Client:
    """Calls of one service over one channel: an attribute for every rpc, by its name.

    A unary rpc is `(request, timeout=10.0) -> response`; one that streams answers with an iterator. All raise RadmeshError.
    """

    def __init__(
        self, channel: grpc.Channel, service: ServiceDescriptor, *, codecs: Mapping[str, MethodCodec] | None = None
    ) -> None:
        for method in service.methods:
            setattr(self, method.name, _client_method(channel, service, method, (codecs or {}).get(method.name)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _client_method(
    channel: grpc.Channel, service: ServiceDescriptor, method: MethodDescriptor, codec: MethodCodec | None
) -> Callable[..., Any]:
    codec = codec or MethodCodec()
    make = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    raw: Any = make(
        f"/{service.full_name}/{method.name}",
        request_serializer=codec.request_serializer or GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=codec.response_deserializer or GetMessageClass(method.output_type).FromString,
    )

    def unary(request: Any, timeout: float = DEFAULT_DEADLINE) -> Any:
        try:
            return raw(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def stream(request: Any, timeout: float | None = None) -> "Answers":
        return Answers(raw(request, timeout=timeout))

    return stream if method.server_streaming else unary


class Answers:
    """The answers of a call that streams; `cancel` ends it."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> "Answers":
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()
