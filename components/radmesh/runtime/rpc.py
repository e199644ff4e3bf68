"""gRPC servers and channels of the mesh: identity, allow lists, errors, deadlines, health.

Servers are built from the service descriptors: the options `callers` and `roles` of each method
(common/v1/access.proto) are the allow list, so that what is written in the protos is what is enforced.
"""

import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

import radmesh
from radmesh.api.common.v1 import access_pb2, common_pb2
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.health import NOT_SERVING, SERVICE, SERVING, Health
from radmesh.runtime.http2 import Buffer
from radmesh.runtime.lifecycle import State, Status
from radmesh.runtime.line import LineServer
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.reasons import BY_CODE
from radmesh.runtime.security import Credentials, component_of

DOMAIN = "radmesh"
DEFAULT_DEADLINE = 10.0
MAX_MESSAGE = 4 * 1024 * 1024
# A status travels in HTTP/2 trailers, of which gRPC takes 8 KiB: bytes of its text, of a value, number of values.
_MAX_TEXT, _MAX_VALUE, _MAX_VALUES = 1000, 200, 10
_RETRY_AFTER_MS = 200
_CALLER, _TOKEN = "radmesh-caller", "radmesh-token"
# A peer that stands still is given up after 5 to 10 s. Without the ping timeout, gRPC waits for it for a minute.
_KEEPALIVE: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_EVERYWHERE = ("0.0.0.0", "[::]", "::")  # noqa: S104 - recognised, not listened at
_FOR_EVER = 10 * 365 * 86400
# MethodOptions.IdempotencyLevel
_NO_SIDE_EFFECTS, _IDEMPOTENT = 1, 2
_STATUS = common_pb2.DESCRIPTOR.services_by_name["StatusService"]

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

    `caller` is a component ("" for a person's call), `instance` which one of it; `person` is set at the clients' door;
    `window` is memory of the caller's that it may speak of (radmesh.runtime.line), on a line that has one.
    """

    caller: str
    instance: str
    person: Person | None
    context: grpc.ServicerContext
    window: memoryview | None = None

    @property
    def peer(self) -> str:
        """Address of the other side, such as "127.0.0.1"; empty on a unix socket."""
        kind, _, rest = unquote(str(self.context.peer())).partition(":")
        return rest.rpartition(":")[0].strip("[]") if kind.startswith("ipv") else ""

    @property
    def metadata(self) -> dict[str, str]:
        """What the caller sent beside the request; of a repeated key the last value."""
        return {key: value for key, value in self.context.invocation_metadata() if isinstance(value, str)}

    def is_active(self) -> bool:
        """Whether the caller still waits."""
        return bool(self.context.is_active())

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller stops waiting; None if it waits for ever."""
        seconds = self.context.time_remaining()
        # gRPC says "for ever" as a time in the far future.
        return None if seconds is None or seconds > _FOR_EVER else float(seconds)

    def add_callback(self, function: Callable[[], None]) -> bool:
        """Call `function` when the call has ended, however it ended; return False if it has ended already."""
        return bool(self.context.add_callback(function))


@dataclass(frozen=True, slots=True)
class MethodCodec:
    """Codecs of a bulk method, in place of protobuf's: None keeps protobuf's."""

    request_deserializer: Callable[[bytes], Any] | None = None
    response_serializer: Callable[[Any], bytes] | None = None
    request_serializer: Callable[[Any], bytes] | None = None
    response_deserializer: Callable[[bytes], Any] | None = None
    response_parts: Callable[[Any], Sequence[Buffer]] | None = None
    """What `response_serializer` makes, in parts: for a line, which writes them as they lie."""


PersonAuthenticator = Callable[[str], Person]

# Answers of a component that does serve: the caller's channel is not to ask again, which would take up its deadline.
_FINAL = frozenset(("NO_ARCHIVE", "NO_STORE", "RIS_UNAVAILABLE"))


def to_status(error: RadmeshError) -> Any:
    """Return the grpc.Status of an error: one google.rpc.ErrorInfo. Texts that do not fit are cut, never the reason."""
    metadata = {key: _cut(value, _MAX_VALUE) for key, value in list(error.metadata.items())[:_MAX_VALUES]}
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    status = status_pb2.Status(code=error.code.value[0], message=_cut(error.message, _MAX_TEXT), details=[detail])
    answer: Any = rpc_status.to_status(status)
    if error.reason not in _FINAL:
        return answer
    return answer._replace(trailing_metadata=(*answer.trailing_metadata, ("grpc-retry-pushback-ms", "-1")))


def _cut(text: object, most: int) -> str:
    return str(text).encode(errors="replace")[:most].decode(errors="ignore")


def from_rpc_error(error: Exception) -> RadmeshError:
    """Return what the other side said in a grpc.RpcError, or what its silence means."""
    if not isinstance(error, grpc.Call):
        return RadmeshError("PEER_UNAVAILABLE", "the connection is closed")
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    return _from_details(error.code(), status)


def from_status(code: int, message: str, details: bytes) -> RadmeshError:
    """Return what a status means: google.rpc.Code, its text, and the serialised google.rpc.Status beside it."""
    known = next((c for c in grpc.StatusCode if c.value[0] == code), grpc.StatusCode.UNKNOWN)
    status = None
    if details:
        try:
            status = status_pb2.Status.FromString(details)
        except DecodeError:
            status = None
        else:
            status.message = status.message or message
    return _from_details(known, status)


def _from_details(code: grpc.StatusCode, status: Any) -> RadmeshError:
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return RadmeshError(info.reason, status.message, metadata=dict(info.metadata))
    reason = BY_CODE.get(code, "INTERNAL")
    return RadmeshError(reason, f"the other side answered {code.name.lower().replace('_', ' ')}")


def callers_of(method: MethodDescriptor) -> tuple[str, ...]:
    """Return the components that may call the method."""
    options: Any = method.GetOptions()
    return tuple(options.Extensions[access_pb2.callers])


def roles_of(method: MethodDescriptor) -> tuple[str, ...]:
    """Return the roles of persons that may call the method."""
    options: Any = method.GetOptions()
    return tuple(options.Extensions[access_pb2.roles])


# -- servers -----------------------------------------------------------------------------------------------------------


class Server:
    """A gRPC server of one component.

    `listen` is "unix:/path" (callers show a token), or "host:port". On TCP callers show a certificate of the cluster,
    unless `person_authenticator` makes this the clients' door: then a bearer token is looked up, and TLS is what
    `door_tls` gives as (key, certificate chain), asked again at every handshake; without it there is none; and
    `on_refused` hears of calls that a person's role does not allow, and what was called.
    Of `max_workers` calls at once each has a thread; more are refused. `health_listen` is a second, plaintext
    "host:port" that tells health and nothing else, for who has no certificate, such as a kubelet. `advertise` is the
    host that others are told, `line_port` the port of the line on TCP.
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
        door_tls: Callable[[], tuple[bytes, bytes]] | None = None,
        on_refused: Callable[[Call, str], None] = lambda _call, _what: None,
        health_listen: str = "",
        advertise: str = "",
        line_port: int = 0,
    ) -> None:
        self._listen = listen
        self._advertise = advertise
        self._line_port = line_port
        self._credentials = credentials
        self._component = component
        self._clock = clock
        self._log = log
        self._seconds = metrics.histogram("radmesh_rpc_seconds")
        self._status = status
        self._person = person_authenticator
        self._door_tls = door_tls
        self._on_refused = on_refused
        self._names: list[str] = []
        self.port = 0
        options: list[tuple[str, Any]] = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            *_KEEPALIVE,
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        if max_connection_age is not None:
            options += [
                ("grpc.max_connection_age_ms", int(max_connection_age * 1000)),
                ("grpc.max_connection_age_grace_ms", 60_000),
            ]
        self._max_calls, self._calls = max_workers, 0
        self._lock = threading.Lock()
        # A stream occupies a thread; the spare ones tell who comes too much that there is no room. gRPC's own limit
        # says it without a reason, and is there for a flood only.
        self._pool = ThreadPoolExecutor(max_workers + 8, thread_name_prefix="rpc")
        self._server = grpc.server(self._pool, options=options, maximum_concurrent_rpcs=max_workers + 1000)
        self._health = Health()
        self._health.add_to(self._server)
        self._names.append(SERVICE)
        self._line: LineServer | None = None
        self._health_listen = health_listen
        self._health_server: grpc.Server | None = None
        self.health_port = 0
        if person_authenticator is None:
            self.add(_STATUS, _StatusService(credentials, status))

    @property
    def target(self) -> str:
        """Where this server is reached."""
        return self._told(self.bound)

    @property
    def bound(self) -> str:
        """Where this server listens."""
        return self._listen if self._listen.startswith("unix:") else f"{self._listen.rpartition(':')[0]}:{self.port}"

    def _told(self, bound: str) -> str:
        """Return what others are told of an address here: "all addresses" is none to connect to."""
        if bound.startswith("unix:"):
            return bound
        host, _, port = bound.rpartition(":")
        if self._advertise:
            host = self._advertise
        elif host in _EVERYWHERE and self._person is None:
            host = _own_name()
        return f"{host}:{port}"

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

    def add_line(self, method: MethodDescriptor, implementation: Any, codec: MethodCodec, *, listen: str = "") -> None:
        """Serve a streaming rpc on lines too (radmesh.runtime.line): beside the socket, or at the first's `listen`."""
        if not listen:
            if self._listen.startswith("unix:"):
                listen = f"{self._listen}.line"
            else:
                listen = f"{self._listen.rpartition(':')[0]}:{self._line_port}"
        name = method.full_name
        argument = _argument(method, codec)
        serialize = codec.response_serializer or GetMessageClass(method.output_type).SerializeToString
        parts = codec.response_parts or (lambda answer: (serialize(answer),))

        def behaviour(
            messages: Iterator[bytearray], call: Call, window: memoryview | None
        ) -> Iterator[Sequence[Buffer]]:
            start, code = time.perf_counter(), "CANCELLED"
            try:
                yield from map(parts, implementation(argument(messages), replace(call, window=window)))
                code = "OK"
            except RadmeshError as error:
                code = error.reason
                raise
            finally:
                self._seconds.labels(name, code).observe(time.perf_counter() - start)

        if self._line is None:
            self._line = LineServer(
                listen,
                identify=self._identify_component,
                failure=lambda error, called: self._failure(error, called, None),
                credentials=self._credentials,
                most=self._max_calls,
            )
        self._line.add(method, behaviour)

    @property
    def line_target(self) -> str:
        """Where the line is reached; the server's own target, where the same rpc is served, if there is none."""
        return self._told(self._line.target) if self._line is not None else self.target

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
                self.port = self._server.add_secure_port(self._listen, _door_credentials(self._door_tls))
            else:
                self._credentials.check_certificate(self._clock.now())
                self.port = self._server.add_secure_port(self._listen, self._mutual_tls())
        except RuntimeError as error:
            raise RadmeshError(
                "PORT_IN_USE", f"cannot listen on {self._listen}: choose another port, or stop what has it"
            ) from error
        if self._health_listen:
            self._start_health_server()
        if self._line is not None:
            self._line.start()
        self._server.start()
        self._health.set(("", *self._names), SERVING)

    def _start_health_server(self) -> None:
        server = grpc.server(self._health.pool, options=[("grpc.so_reuseport", 0)])
        self._health.add_to(server)
        try:
            self.health_port = server.add_insecure_port(self._health_listen)
        except RuntimeError as error:
            raise RadmeshError("PORT_IN_USE", f"cannot listen on {self._health_listen}: choose another port") from error
        server.start()
        self._health_server = server

    def drain(self) -> None:
        """Tell the health service's watchers to go elsewhere; calls are still answered."""
        self._health.set(("", *self._names), NOT_SERVING)

    def stop(self, grace: float) -> None:
        """Take no new calls; let those that run finish for `grace` seconds."""
        self.drain()
        ended = self._server.stop(grace)
        if self._line is not None:
            self._line.stop(grace)
        self._health.end()
        ended.wait(grace + 5)
        if self._health_server is not None:
            self._health_server.stop(0).wait(5)
        self._health.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _mutual_tls(self) -> grpc.ServerCredentials:
        version = self._credentials.certificate_version()

        def configuration() -> grpc.ServerCertificateConfiguration:
            key, chain, authority = self._credentials.certificate()
            return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=authority)

        def renewed() -> Any:
            nonlocal version
            current = self._credentials.certificate_version()
            if current == version:
                return None
            fresh = configuration()
            version = current
            return fresh

        return grpc.dynamic_ssl_server_credentials(configuration(), renewed, require_client_authentication=True)

    def _identify(self, method: MethodDescriptor, context: grpc.ServicerContext) -> Call:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        if self._person is not None:
            return self._identify_person(method, metadata, context)
        names: tuple[str, ...] = ()
        if not self._listen.startswith("unix:"):
            peer: Mapping[str, Any] = context.auth_context()
            names = tuple(n.decode(errors="replace") for n in peer.get("x509_subject_alternative_name", ()))
        return self._identify_component(method, metadata, names, context)

    def _identify_component(
        self, method: MethodDescriptor, metadata: Mapping[str, str], names: tuple[str, ...], context: Any = None
    ) -> Call:
        if self._listen.startswith("unix:"):
            instance = metadata.get(_CALLER, "")
            if not self._credentials.check_token(instance, metadata.get(_TOKEN, "")):
                raise RadmeshError("CALLER_UNKNOWN", "the call carries no token of this cluster")
        else:
            instance = next((n.rpartition("/")[2] for n in names if n.startswith("spiffe://radmesh/")), "")
            if not instance:
                raise RadmeshError("CALLER_UNKNOWN", "the certificate names no component of this cluster")
        component = component_of(instance)
        allowed = callers_of(method)
        if component not in allowed and "*" not in allowed:
            text = f"{component} may not call {method.full_name}"
            raise RadmeshError("CALLER_REFUSED", text, metadata={"caller": instance})
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
        call = Call("", "", person, context)
        if person.role not in roles and not ("*" in roles and person.role != "none"):
            self._on_refused(call, method.name)
            raise RadmeshError("ROLE_REFUSED", f"the role {person.role} may not call {method.name}")
        return call

    @contextmanager
    def _admitted(self, method: MethodDescriptor, context: grpc.ServicerContext) -> Iterator[Call]:
        """Give the call its place among those that run at once."""
        call = self._identify(method, context)
        with self._lock:
            if self._calls >= self._max_calls and method.containing_service is not _STATUS:
                raise RadmeshError(
                    "TOO_MANY_CALLS",
                    f"{self._max_calls} calls are running: try again later",
                    metadata={"retry_after_ms": str(_RETRY_AFTER_MS)},
                )
            self._calls += 1
        try:
            yield call
        finally:
            with self._lock:
                self._calls -= 1

    def _failure(self, error: Exception, method: str, context: grpc.ServicerContext | None) -> RadmeshError:
        """Return what the caller is told of an exception."""
        if isinstance(error, grpc.Call):
            # Raised by a call that the implementation made.
            error = from_rpc_error(error)
        elif isinstance(error, grpc.RpcError):
            error = RadmeshError("CANCELLED", "the caller left")
        if not isinstance(error, RadmeshError):
            incident = secrets.token_hex(4)
            self._log.exception("rpc failed", error, method=method, incident=incident)
            return RadmeshError("INTERNAL", f"incident {incident}", metadata={"incident": incident})
        if error.reason in ("CALLER_UNKNOWN", "CALLER_REFUSED"):
            self._log.warning(
                "call refused",
                method=method,
                reason=error.reason,
                caller=error.metadata.get("caller", ""),
                peer=context.peer() if context is not None else "",
            )
        return error

    def _handler(self, method: MethodDescriptor, implementation: Any, codec: MethodCodec | None) -> Any:
        name = method.full_name
        codec = codec or MethodCodec()
        argument = _argument(method, codec)
        serialize = codec.response_serializer or GetMessageClass(method.output_type).SerializeToString

        def observe(start: float, code: str) -> None:
            self._seconds.labels(name, code).observe(time.perf_counter() - start)

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            start, code = time.perf_counter(), "OK"
            try:
                with self._admitted(method, context) as call:
                    return _fitting(serialize(implementation(argument(request), call)))
            except Exception as error:  # noqa: BLE001 - mapped to a status
                failure = self._failure(error, name, context)
                code = failure.reason
            finally:
                observe(start, code)
            return context.abort_with_status(to_status(failure))

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            # A caller that leaves ends this generator where it stands.
            start, code = time.perf_counter(), "CANCELLED"
            try:
                with self._admitted(method, context) as call:
                    for answer in implementation(argument(request), call):
                        yield _fitting(serialize(answer))
            except Exception as error:  # noqa: BLE001 - mapped to a status
                failure = self._failure(error, name, context)
                code = failure.reason
            else:
                # Requests end, without an error, for a caller that has left too.
                code = "OK" if context.is_active() else "CANCELLED"
                return
            finally:
                observe(start, code)
            context.abort_with_status(to_status(failure))

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        behaviour: Any = stream if method.server_streaming else unary
        if method.containing_service is _STATUS:
            behaviour.experimental_thread_pool = self._health.pool
        return make(behaviour)


@functools.cache
def _own_name() -> str:
    # Asked once: a name server may take its time.
    return socket.getfqdn()


def _door_credentials(source: Callable[[], tuple[bytes, bytes]]) -> grpc.ServerCredentials:
    last = source()

    def renewed() -> Any:
        nonlocal last
        if (pair := source()) == last:
            return None
        last = pair
        return grpc.ssl_server_certificate_configuration([pair])

    first = grpc.ssl_server_certificate_configuration([last])
    return grpc.dynamic_ssl_server_credentials(first, renewed, require_client_authentication=False)


def _argument(method: MethodDescriptor, codec: MethodCodec) -> Callable[[Any], Any]:
    """Return what makes the message, or the iterator of messages, of what gRPC hands over.

    gRPC is given bytes and gives bytes: what it finds wrong with a message it says without a reason.
    """
    parse = codec.request_deserializer or GetMessageClass(method.input_type).FromString

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except RadmeshError:
            raise
        except Exception as error:
            raise RadmeshError("FIELD_INVALID", f"the message is no {method.input_type.full_name}") from error

    return (lambda requests: map(read, requests)) if method.client_streaming else read


def _fitting(data: bytes) -> bytes:
    if len(data) > MAX_MESSAGE:
        raise RadmeshError("MESSAGE_TOO_LARGE", f"a message of {len(data)} bytes is over {MAX_MESSAGE}: ask for less")
    return data


class _StatusService:
    """common.v1.StatusService, which every server of the mesh has."""

    def __init__(self, credentials: Credentials, status: Status) -> None:
        self._credentials = credentials
        self._status = status

    def GetStatus(self, _request: common_pb2.GetStatusRequest, _call: Call) -> common_pb2.ComponentStatus:
        """Answer what this process says of itself."""
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


# -- channels ----------------------------------------------------------------------------------------------------------


class _Identity(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg] # generic in the stubs only
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg] # generic in the stubs only
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg] # generic in the stubs only
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg] # generic in the stubs only
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

    intercept_unary_stream = intercept_unary_unary  # type: ignore[assignment]
    intercept_stream_unary = intercept_unary_unary  # type: ignore[assignment]
    intercept_stream_stream = intercept_unary_unary  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class _Details(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


def open_channel(
    target: str,
    credentials: Credentials,
    *,
    service: ServiceDescriptor | None = None,
    own_connection: bool = False,
) -> grpc.Channel:
    """Open a channel with this instance's identity.

    Methods of `service` that may be repeated are. `own_connection`: not shared with other channels to the target.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        *_KEEPALIVE,
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", _service_config(service)),
    ]
    if own_connection:
        options.append(("grpc.use_local_subchannel_pool", 1))
    if target.startswith("unix:"):
        channel = grpc.insecure_channel(target, options)
        return grpc.intercept_channel(channel, _Identity(credentials.instance, credentials.token()))
    key, chain, authority = credentials.certificate()
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authority, key, chain), options)


def _service_config(service: ServiceDescriptor | None) -> str:
    """Retries for methods that may be repeated, by their idempotency_level; health checks for replicated targets.

    Never of those that stream answers: where the server dies before the first, gRPC repeats the call, and now and then
    waits for its end for ever. Whoever follows a stream begins again itself.
    """
    names = [
        {"service": method.containing_service.full_name, "method": method.name}
        for method in (service.methods if service else ())
        if not (method.client_streaming or method.server_streaming)
        and method.GetOptions().idempotency_level in (_NO_SIDE_EFFECTS, _IDEMPOTENT)
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


class Client:
    """Calls of one service: an attribute for every rpc, by its name.

    A unary rpc is `(request, timeout=10.0) -> response`; one that streams answers with an iterator. All raise
    RadmeshError. `channel` may be a function that returns the channel of the moment.
    """

    def __init__(
        self,
        channel: grpc.Channel | Callable[[], grpc.Channel],
        service: ServiceDescriptor,
        *,
        codecs: Mapping[str, MethodCodec] | None = None,
    ) -> None:
        source = channel if callable(channel) else lambda: channel
        for method in service.methods:
            setattr(self, method.name, _client_method(source, method, (codecs or {}).get(method.name)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _client_method(
    source: Callable[[], grpc.Channel], method: MethodDescriptor, codec: MethodCodec | None
) -> Callable[..., Any]:
    codec = codec or MethodCodec()
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    serialize = codec.request_serializer or GetMessageClass(method.input_type).SerializeToString
    path = f"/{method.containing_service.full_name}/{method.name}"
    made: tuple[grpc.Channel | None, Any] = (None, None)

    def begin(request: Any, timeout: float | None) -> Any:
        nonlocal made
        channel = source()
        if made[0] is not channel:
            raw = getattr(channel, kind)(
                path,
                request_serializer=serialize if method.client_streaming else None,
                response_deserializer=codec.response_deserializer or GetMessageClass(method.output_type).FromString,
            )
            made = (channel, raw)
        try:
            return made[1](request if method.client_streaming else _fitting(serialize(request)), timeout=timeout)
        except ValueError as error:
            # So grpc says that the channel was closed, by this process as it ends.
            raise RadmeshError("PEER_UNAVAILABLE", "the connection is closed") from error

    def unary(request: Any, timeout: float = DEFAULT_DEADLINE) -> Any:
        try:
            return begin(request, timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def stream(request: Any, timeout: float | None = None) -> "Answers":
        return Answers(begin(request, timeout))

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
