"""The standard health service, grpc.health.v1.

That of grpcio-health-checking holds its lock while it sends. A watcher that leaves at this moment makes the server's
own thread wait for the lock, which then never sees that the message was sent: the server stands still for good. Every
channel of the mesh watches, so this one sends without a lock that the server's thread could need.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

SERVICE = "grpc.health.v1.Health"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
# Watchers whose connection is stuck must not hold up a drain.
_SEND_SECONDS = 1.0


class _Watcher:
    """One who is told of changes of `service`."""

    def __init__(self, service: str, send: Callable[[Any], None]) -> None:
        # `send(None)` ends the call.
        self.service = service
        self._send = send
        self._lock = threading.Lock()
        self._last: int | None = None
        self._ended = False

    def push(self, state: Callable[[str], int]) -> None:
        """Send the state as it is now, unless it was the last one sent."""
        with self._lock:
            now = state(self.service)
            if now != self._last and not self._ended:
                self._last = now
                self._send(health_pb2.HealthCheckResponse(status=now))

    def end(self) -> None:
        """End the call."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._send(None)


class Health:
    """States of services, told on demand and at every change.

    `pool` has threads that calls of other services cannot take.
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="health")
        self._lock = threading.Lock()
        self._states: dict[str, int] = {}
        self._watchers: set[_Watcher] = set()

    def set(self, services: Iterable[str], state: int) -> None:
        """Set the state of services, and tell who watches."""
        with self._lock:
            self._states.update(dict.fromkeys(services, state))
            watchers = list(self._watchers)
        wait([self.pool.submit(watcher.push, self._state) for watcher in watchers], timeout=_SEND_SECONDS)

    def add_to(self, server: grpc.Server) -> None:
        """Serve grpc.health.v1.Health on `server`."""

        def check(request: Any, context: grpc.ServicerContext) -> Any:
            state = self._state(request.service)
            if state == _UNKNOWN:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            return health_pb2.HealthCheckResponse(status=state)

        def list_all(_request: Any, _context: grpc.ServicerContext) -> Any:
            with self._lock:
                states = dict(self._states)
            return health_pb2.HealthListResponse(
                statuses={name: health_pb2.HealthCheckResponse(status=state) for name, state in states.items()}
            )

        def watch(request: Any, context: grpc.ServicerContext, send_response_callback: Callable[[Any], None]) -> None:
            watcher = _Watcher(request.service, send_response_callback)
            with self._lock:
                self._watchers.add(watcher)
            if not context.add_callback(lambda: self._leave(watcher)):
                self._leave(watcher)
            watcher.push(self._state)

        behaviours: tuple[Any, ...] = (check, list_all, watch)
        for behaviour in behaviours:
            behaviour.experimental_thread_pool = self.pool
        # The call lasts beyond the function: no thread waits for a watcher.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        handlers = {
            "Check": _handler(grpc.unary_unary_rpc_method_handler, check, "HealthCheck"),
            "List": _handler(grpc.unary_unary_rpc_method_handler, list_all, "HealthList"),
            "Watch": _handler(grpc.unary_stream_rpc_method_handler, watch, "HealthCheck"),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def end(self) -> None:
        """End the watches: a server that stops would wait for them as for any call that runs."""
        with self._lock:
            watchers = list(self._watchers)
        wait([self.pool.submit(watcher.end) for watcher in watchers], timeout=_SEND_SECONDS)

    def _state(self, service: str) -> int:
        with self._lock:
            return self._states.get(service, int(_UNKNOWN))

    def _leave(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def _handler(make: Any, behaviour: Any, kind: str) -> Any:
    return make(
        behaviour,
        request_deserializer=getattr(health_pb2, f"{kind}Request").FromString,
        response_serializer=getattr(health_pb2, f"{kind}Response").SerializeToString,
    )
