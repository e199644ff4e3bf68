"""A service with an rpc of every kind, made of descriptors; instances that serve and call it on either transport.

Run as a program it serves one instance until it is killed: `python runtime_support.py FOLDER INSTANCE LISTEN`.
"""

import contextlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue

from radmesh.api.common.v1 import access_pb2
from radmesh.runtime import rpc
from radmesh.runtime.clock import Clock, SystemClock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import State, Status
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.security import Authority, Credentials, component_of

INSTANCES = ("gateway-proxy", "network-gateway", "database-server", "archive-server-0", "application-server")
TRANSPORTS = ("unix", "tls")
PACKAGE = "radmesh.test.v1"

_UNKNOWN, _NO_SIDE_EFFECTS, _IDEMPOTENT = 0, 1, 2


def _describe() -> Any:
    """Return the file of the services Probe (for components) and Door (for persons)."""
    file = descriptor_pb2.FileDescriptorProto(
        name="radmesh/test/v1/probe.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto", "radmesh/api/common/v1/access.proto"],
    )

    def method(service: Any, name: str, kind: str = "uu", level: int = 0, **access: Sequence[str]) -> None:
        made = service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=kind[0] == "s",
            server_streaming=kind[1] == "s",
        )
        if level:
            made.options.idempotency_level = level
        made.options.Extensions[access_pb2.callers].extend(access.get("callers", ()))
        made.options.Extensions[access_pb2.roles].extend(access.get("roles", ()))

    probe = file.service.add(name="Probe")
    method(probe, "Read", level=_NO_SIDE_EFFECTS, callers=["gateway-proxy"])
    method(probe, "Put", level=_IDEMPOTENT, callers=["gateway-proxy"])
    method(probe, "Write", callers=["gateway-proxy"])
    method(probe, "Anybody", callers=["*"])
    method(probe, "Nobody")
    method(probe, "List", "us", _NO_SIDE_EFFECTS, callers=["gateway-proxy"])
    method(probe, "Collect", "su", callers=["gateway-proxy"])
    method(probe, "Talk", "ss", callers=["gateway-proxy"])
    second = file.service.add(name="Second")
    method(second, "Read", level=_NO_SIDE_EFFECTS, callers=["gateway-proxy"])
    door = file.service.add(name="Door")
    method(door, "SignIn", roles=["anonymous"])
    method(door, "Session", roles=["none", "*"])
    method(door, "Look", roles=["*"])
    method(door, "Administer", roles=["administrator"])
    method(door, "Closed", callers=["*"])
    pool = descriptor_pool.Default()
    return pool.AddSerializedFile(file.SerializeToString()) or pool.FindFileByName(file.name)


FILE = _describe()
PROBE, SECOND, DOOR = (FILE.services_by_name[name] for name in ("Probe", "Second", "Door"))


def text(value: str) -> StringValue:
    return StringValue(value=value)


class Probe:
    """Answers, and does what `queue` says first: raise an exception, or call a function."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, rpc.Call]] = []
        self.queue: list[BaseException | Callable[[], object]] = []
        self.closed = threading.Event()
        self.hold = threading.Event()

    def _begin(self, name: str, call: rpc.Call) -> None:
        self.calls.append((name, call))
        if self.queue:
            first = self.queue.pop(0)
            if isinstance(first, BaseException):
                raise first
            first()

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def Read(self, request: StringValue, call: rpc.Call) -> StringValue:
        self._begin("Read", call)
        if request.value == "long":
            return text("x" * 5_000_000)
        return text(f"read {request.value}")

    def Put(self, request: StringValue, call: rpc.Call) -> StringValue:
        self._begin("Put", call)
        return text(f"put {request.value}")

    def Write(self, request: StringValue, call: rpc.Call) -> StringValue:
        self._begin("Write", call)
        return text(f"wrote {request.value}")

    def Anybody(self, _request: StringValue, call: rpc.Call) -> StringValue:
        self._begin("Anybody", call)
        return text(f"{call.caller} {call.instance}")

    def Nobody(self, _request: StringValue, call: rpc.Call) -> StringValue:
        self._begin("Nobody", call)
        return text("")

    def List(self, request: StringValue, call: rpc.Call) -> Iterator[StringValue]:
        self._begin("List", call)
        yield from (text(str(number)) for number in range(int(request.value)))
        self._begin("end of List", call)

    def Collect(self, requests: Iterator[StringValue], call: rpc.Call) -> StringValue:
        self._begin("Collect", call)
        return text(" ".join(request.value for request in requests))

    def Talk(self, requests: Iterator[StringValue], call: rpc.Call) -> Iterator[StringValue]:
        self._begin("Talk", call)
        try:
            for request in requests:
                if request.value == "fail":
                    raise RadmeshError("STORAGE_FULL", "no room")
                if request.value == "hold":
                    self.hold.wait(20)
                yield text(f"heard {request.value}")
        finally:
            self.closed.set()


class Second:
    def __init__(self) -> None:
        self.errors: list[RadmeshError] = []

    def Read(self, request: StringValue, _call: rpc.Call) -> StringValue:
        if self.errors:
            raise self.errors.pop(0)
        return text(f"second {request.value}")


class Door:
    """Echoes who called."""

    def _who(self, _request: StringValue, call: rpc.Call) -> StringValue:
        return text(f"{call.person.name} {call.person.role}" if call.person else "nobody")

    SignIn = Session = Look = Administer = Closed = _who


class World:
    """Instances of one cluster in one process."""

    def __init__(self, folder: Path, transport: str, clock: Clock | None = None) -> None:
        self.folder, self.transport = folder, transport
        self.clock = clock or SystemClock()
        self.addresses: dict[str, str] = {}
        self.logs: dict[str, io.StringIO] = {}
        self._ends: list[Callable[[], object]] = []
        self.authority = Authority(folder / "credentials", self.clock)
        self.authority.issue(list(INSTANCES))

    def listen(self, instance: str) -> str:
        return f"unix:{self.folder}/{instance}.sock" if self.transport == "unix" else "127.0.0.1:0"

    def credentials(self, instance: str) -> Credentials:
        return Credentials(self.folder / "credentials", instance)

    def context(self, instance: str) -> Context:
        self.logs[instance] = io.StringIO()
        status = Status(self.clock)
        status.state = State.SERVING
        context = Context(
            component=component_of(instance),
            instance=instance,
            data=self.folder,
            clock=self.clock,
            log=Logger(component_of(instance), instance, self.logs[instance]),
            metrics=Metrics(),
            status=status,
            credentials=self.credentials(instance),
            listen=self.listen(instance),
            addresses=self.addresses,
        )
        self._ends.append(context.channels.close)
        return context

    def lines(self, instance: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.logs[instance].getvalue().splitlines()]

    def serve(self, context: Context, *services: tuple[Any, object], **options: Any) -> rpc.Server:
        server = context.server(**options)
        for service, implementation in services:
            server.add(service, implementation)
        server.start()
        self.addresses[context.component] = self.addresses[context.instance] = server.target
        self._ends.append(lambda: server.stop(0))
        return server

    def close(self) -> None:
        while self._ends:
            self._ends.pop()()


def main() -> None:
    """Serve Probe until killed."""
    folder, instance, listen = sys.argv[1:]
    context = Context(
        component=component_of(instance),
        instance=instance,
        data=Path(folder),
        clock=SystemClock(),
        log=Logger(component_of(instance), instance),
        metrics=Metrics(),
        status=Status(SystemClock()),
        credentials=Credentials(Path(folder) / "credentials", instance),
        listen=listen,
        addresses={},
    )
    server = context.server()
    server.add(PROBE, Probe())
    server.start()
    print(server.target, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main()
