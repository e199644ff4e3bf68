"""`radmesh serve`: instances of components in this process, one or many with the same code."""

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radmesh.dicom.domains import DEFAULT
from radmesh.mesh import sections
from radmesh.mesh.modules import Module, Table
from radmesh.mesh.place import Lock, Place
from radmesh.runtime.config import Configuration

if TYPE_CHECKING:
    from radmesh.runtime.context import Context
    from radmesh.runtime.lifecycle import Service
    from radmesh.runtime.metrics import Metrics

# What a supervisor tells its child: "<starts> <hangs>".
COUNTS_VARIABLE = "RADMESH_COUNTS"
# A process that was killed may take a moment to let go of its locks; the supervisor tries more than once.
_LOCK_PATIENCE = 1.0
_REPORT_SECONDS = 0.5


class Notifier:
    """Tells the supervisor, a JSON object a line over an inherited pipe; without one, says nothing."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._last: dict[str, str] = {}
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - the standard library has no name for it
            # A supervisor that does not read must not keep a component from draining.
            os.set_blocking(descriptor, False)

    def tell(self, kind: str, **fields: Any) -> None:
        """Send a line, unless it says what the last of its kind said."""
        if self._descriptor is None:
            return
        line = json.dumps({"kind": kind, **fields})
        about = f"{kind} {fields.get('instance', '')}"
        if self._last.get(about) == line:
            return
        with suppress(OSError):
            os.write(self._descriptor, line.encode() + b"\n")
            self._last[about] = line


class Signals:
    """SIGTERM and SIGINT: the first says drain, the second ends the process there and then.

    So does the first while nothing is served: a start that hangs could not be stopped, and has nothing to finish.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.serving = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)

    def _received(self, _number: int, _frame: object) -> None:
        if self.stop.is_set() or not self.serving:
            os._exit(1 if self.stop.is_set() else 0)
        self.stop.set()


def die_with(parent: int) -> None:
    """End this process by SIGKILL as soon as the process `parent` has ended, however it ended."""
    import ctypes  # noqa: PLC0415 - only a supervised process needs it

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    # It may have ended before the call.
    if os.getppid() != parent:
        os._exit(1)


def targets(table: Table, names: Sequence[str], number: int) -> list[tuple[Module, str]]:
    """Return (module, instance) of what --target names, those that others need first.

    Raises:
        RadmeshError: CONFIG_INVALID.
    """
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    chosen: dict[str, Module] = {}
    for name in names:
        module = table.module_of(name)
        if module is None:
            raise RadmeshError(
                "CONFIG_INVALID", f"--target={name}: there is no such component; choose from {', '.join(table.by_name)}"
            )
        chosen[f"{name}-{number}" if module.numbered and name == module.component else name] = module
    order = [module for level in table.levels() for module in level]
    return sorted(((module, name) for name, module in chosen.items()), key=lambda pair: order.index(pair[0]))


def addresses(table: Table, configuration: Configuration, place: Place) -> dict[str, str]:
    """Return component or instance -> gRPC target: what [mesh.addresses] says, else this machine's sockets."""
    found: dict[str, str] = {}
    if configuration["mesh"].transport == "unix":
        for instance in table.instances(configuration):
            found[instance] = place.socket(instance)
    found |= configuration["mesh"].addresses
    for module in table.modules:
        first = next((name for name in module.instances(configuration) if name in found), None)
        if first is not None:
            found.setdefault(module.component, found[first])
    return found


def listen_at(configuration: Configuration, known: Mapping[str, str], instance: str, place: Place) -> str:
    """Return where an instance's own server listens."""
    mesh = configuration["mesh"]
    if mesh.listen:
        return str(mesh.listen)
    if mesh.transport == "unix":
        return place.socket(instance)
    return known.get(instance, "127.0.0.1:0")


def run(
    table: Table,
    configuration: Configuration,
    names: Sequence[str],
    *,
    number: int = 0,
    notify: int | None = None,
    parent: int | None = None,
) -> int:
    """Serve until told to stop; return the exit code.

    Args:
        table: the components there are.
        configuration: the settings.
        names: components or instances.
        number: number of the instance where a name of `names` has none.
        notify: file descriptor of the supervisor's pipe.
        parent: pid of the supervisor: this process ends with it.

    Raises:
        RadmeshError: as the components' start.
    """
    if parent is not None:
        die_with(parent)
    signals = Signals()
    notifier = Notifier(notify)
    try:
        return _run(table, configuration, targets(table, names, number), signals, notifier)
    except Exception as error:
        reason = getattr(error, "reason", "INTERNAL")
        message = getattr(error, "message", type(error).__name__)
        notifier.tell("failed", reason=reason, message=message, transient=getattr(error, "transient", False))
        raise


def _run(
    table: Table,
    configuration: Configuration,
    chosen: Sequence[tuple[Module, str]],
    signals: Signals,
    notifier: Notifier,
) -> int:
    from radmesh.runtime import interpreter  # noqa: PLC0415
    from radmesh.runtime.lifecycle import State  # noqa: PLC0415

    place = Place(Path(configuration["mesh"].data))
    place.make()
    locks = []
    for _, instance in chosen:
        lock = Lock(place.run / f"{instance}.lock")
        lock.take(f"{instance} in {place.data}", patience=_LOCK_PATIENCE)
        locks.append(lock)
    contexts = _contexts(table, configuration, place, [instance for _, instance in chosen])
    drain = configuration["mesh"].drain_timeout
    running: list[tuple[str, Service, Context]] = []
    _count_starts(contexts)
    certificates = {instance: Certificate(context) for instance, context in contexts.items()}
    try:
        for module, instance in chosen:
            context = contexts[instance]
            notifier.tell("starting", instance=instance)
            service = module.make(configuration, context)
            service.start()
            interpreter.settle()
            signals.serving = True
            context.status.state = State.SERVING
            context.log.info("serving", pid=os.getpid())
            running.append((instance, service, context))
        while True:
            for instance, service, context in running:
                certificates[instance].look()
                _report(notifier, instance, service, context)
            if signals.stop.wait(_REPORT_SECONDS):
                break
    finally:
        for instance, service, context in reversed(running):
            context.status.state = State.DRAINING
            notifier.tell("draining", instance=instance)
            service.stop(drain)
            context.channels.close()
            context.log.info("stopped")
    for lock in locks:
        lock.release()
    return 0


def _contexts(
    table: Table, configuration: Configuration, place: Place, instances: Sequence[str]
) -> "dict[str, Context]":
    from radmesh.runtime.clock import SystemClock  # noqa: PLC0415 - what only a serving process needs
    from radmesh.runtime.context import Context  # noqa: PLC0415
    from radmesh.runtime.lifecycle import Status  # noqa: PLC0415
    from radmesh.runtime.logs import Logger  # noqa: PLC0415
    from radmesh.runtime.metrics import Metrics  # noqa: PLC0415
    from radmesh.runtime.security import Credentials, component_of  # noqa: PLC0415

    mesh = configuration["mesh"]
    clock = SystemClock()
    metrics = Metrics()
    if mesh.metrics_port:
        host = str(mesh.listen).rpartition(":")[0] or "127.0.0.1"
        everything = table.instances(configuration)
        offset = everything.index(instances[0]) if instances[0] in everything and not mesh.listen else 0
        _serve_metrics(metrics, mesh.metrics_port + offset, host)
    folder = Path(mesh.credentials) if mesh.credentials else place.credentials
    known = addresses(table, configuration, place)
    settings = {
        "configuration": configuration,
        "stations": tuple(station.station() for station in configuration["stations"]),
        "routes": tuple(route.route() for route in configuration["routes"]),
        "domains": configuration["domains"] or (sections.Domain(name=DEFAULT),),
        "data": place.data,
    }
    return {
        instance: Context(
            component=component_of(instance),
            instance=instance,
            data=place.folder(instance),
            clock=clock,
            log=Logger(component_of(instance), instance),
            metrics=metrics,
            status=Status(clock),
            credentials=Credentials(folder, instance),
            listen=listen_at(configuration, known, instance, place),
            addresses=known,
            settings=settings,
            # One port a process: what several instances share says how the first is.
            health_listen=mesh.health_listen if instance == instances[0] else "",
            advertise=mesh.advertise,
            line_port=mesh.line_port,
        )
        for instance in instances
    }


class Certificate:
    """Says when the certificate of an instance ends: a log line when it was renewed, a metric, an alarm in time."""

    # Of its life, what is left when whoever renews certificates should have done so.
    _LATE = 1 / 12

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._end = context.metrics.gauge("radmesh_certificate_end_seconds").labels(context.instance)
        self._version: tuple[int, int] | None = None
        self._times: tuple[datetime, datetime] | None = None

    def look(self) -> None:
        """See whether there is a new one, or this one ends soon."""
        from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

        context = self._context
        try:
            version = context.credentials.certificate_version()
            if version != self._version:
                self._times = context.credentials.certificate_times()
                if self._version is not None:
                    until = self._times[1].isoformat(timespec="seconds")
                    context.log.info("certificate renewed", until=until)
                self._version = version
        except (OSError, RadmeshError):
            # On unix sockets none is needed; on TLS what needs one says so.
            return
        if self._times is None:
            return
        begin, end = self._times
        self._end.set(end.timestamp())
        if end - context.clock.now() < (end - begin) * self._LATE:
            until = end.isoformat(timespec="seconds")
            context.status.raise_alarm("CERTIFICATE_INVALID", f"the certificate ends at {until}: renew it")
        else:
            context.status.clear_alarm("CERTIFICATE_INVALID")


def _serve_metrics(metrics: "Metrics", port: int, host: str) -> None:
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415

    try:
        metrics.serve(port, host)
    except OSError as error:
        raise RadmeshError(
            "PORT_IN_USE", f"cannot serve /metrics on {host} port {port} ({error.strerror}): change mesh.metrics_port"
        ) from error


def _count_starts(contexts: "Mapping[str, Context]") -> None:
    """Show what the supervisor has counted."""
    counts = os.environ.get(COUNTS_VARIABLE, "").split()
    for instance, context in contexts.items():
        for name, count in zip(("radmesh_instance_starts", "radmesh_instance_hangs"), counts, strict=False):
            context.metrics.gauge(name).labels(instance).set(int(count))


def _report(notifier: Notifier, instance: str, service: "Service", context: "Context") -> None:
    """Say what the instance serves, its processes and its figures."""
    endpoints: Mapping[str, str] = getattr(service, "endpoints", dict)()
    pids = list(getattr(service, "pids", list)()) or [os.getpid()]
    health = context.servers[0].bound if context.servers else ""
    notifier.tell("ready", instance=instance, endpoints=dict(endpoints), pids=pids, health=health)
    figures = context.status.figures()
    alarms = sorted(reason for reason, _, _ in context.status.alarms())
    notifier.tell("figures", instance=instance, figures=figures, alarms=alarms)


def finish(code: int) -> None:
    """End the process without waiting for threads that gRPC keeps: all that matters has been stopped."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
