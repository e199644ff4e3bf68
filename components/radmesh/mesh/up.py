"""`radmesh up`: a whole cluster on this machine, a process for every instance, watched over by this one.

One thread does everything: it waits for lines of the children's pipes, for signals (SIGCHLD among them) and for the
next thing that is due. It has no gRPC, so that it starts its children within a tenth of a second. The children get
SIGKILL from the kernel when their starter ends, and the kernel means the *thread* that started them: another reason for
there being one.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import radmesh
from radmesh.mesh.modules import PORTS, Module, Table
from radmesh.mesh.place import Lock, Place
from radmesh.mesh.pulse import Pulse
from radmesh.mesh.serve import COUNTS_VARIABLE
from radmesh.runtime.config import Configuration
from radmesh.runtime.files import write_atomic

# glibc: large messages are built in place instead of being mapped and unmapped for every call.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "536870912",
    "MALLOC_TOP_PAD_": "16777216",
}
_PAUSE_FIRST, _PAUSE_MOST, _HEALTHY_SECONDS = 0.2, 1.0, 30.0
# Starts that are tried before a child that never served is given up, unless what it says may pass by itself. A port or
# a directory may still be held by a process that is just dying.
_MOST_STARTS = {"CONFIG_INVALID": 1, "PASSWORD_WEAK": 1, "DATA_IN_USE": 10, "CERTIFICATE_INVALID": 10}
_MOST_STARTS_ELSE = 4
_KILL_AFTER = 5.0
_LOGS_KEPT = 3
# How often it is seen whether certificates end soon; after a failure, and of lives of days or less, more often.
_RENEW_SECONDS, _RENEW_AGAIN_SECONDS, _RENEWALS_A_LIFE = 12 * 3600.0, 60.0, 24
_LONGEST_LINE = 1 << 20


@dataclass
class Child:
    """An instance: its process now, and what it last said."""

    module: Module
    instance: str
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    unread: bytes = b""
    state: str = "WAITING"
    start_time: float = 0.0
    ready_time: float = 0.0
    was_ready: bool = False
    starts: int = 0
    pause: float = 0.0
    due: float = 0.0
    failures: int = 0
    failure: tuple[str, str] | None = None
    may_pass: bool = False
    pids: list[int] = field(default_factory=list)
    endpoints: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    health: str = ""
    silent: float = 0.0
    hangs: int = 0


class View:
    """What people see; console.py has the one for terminals."""

    def event(self, text: str) -> None:
        """Something happened."""
        try:
            print(text, flush=True)  # noqa: T201 - the console is what this is for
        except (OSError, ValueError):
            # Nobody reads any more, as in `radmesh up | head`: the cluster runs on.
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - it is kept until the process ends

    def show(self, children: Sequence[Child], now: float) -> None:
        """Show how it is now."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Supervisor:
    """Starts the children, restarts those that die, and stops them."""

    def __init__(
        self,
        table: Table,
        configuration: Configuration,
        *,
        arguments: Sequence[str] = (),
        flags: Mapping[str, str] | None = None,
        view: View | None = None,
    ) -> None:
        """Prepare.

        Args:
            table: the components there are.
            configuration: the settings, as this process read them.
            arguments: what the children's command lines must repeat, such as --config.
            flags: what the command line set, by the names of `radmesh.runtime.config.load`.
            view: where to show what happens.
        """
        self._schema = table.schema()
        self._configuration = configuration
        self._mesh = configuration["mesh"]
        self._arguments = list(arguments)
        self._flags = dict(flags or {})
        self._view = view or View()
        self._place = Place(Path(self._mesh.data))
        self._levels = [
            [Child(module, name) for module in level for name in module.instances(configuration)]
            for level in table.levels()
        ]
        self._children = [child for level in self._levels for child in level]
        self._selector = selectors.DefaultSelector()
        self._signals = 0
        self._begin = time.monotonic()
        self._renew_every = min(_RENEW_SECONDS, self._mesh.certificate_life / _RENEWALS_A_LIFE)
        self._renew = self._begin + self._renew_every
        self._pulse = Pulse(self._place.credentials, self._mesh.hang_timeout) if self._mesh.hang_timeout else None
        self._announced = False
        self._written: bytes | None = None

    def run(self) -> int:
        """Run until told to stop; return the exit code.

        Raises:
            RadmeshError: DATA_IN_USE, PORT_IN_USE, CONFIG_INVALID and what else makes a start hopeless.
        """
        self._place.make()
        lock = Lock(self._place.run / "up.lock")
        lock.take(f"{self._place.data}")
        self._remove_ready()
        with self._handling_signals():
            try:
                self._prepare()
                if self._pulse is not None:
                    self._pulse.start()
                while not self._signals:
                    self._start_due()
                    self._end_hanging()
                    self._turn(self._next_due())
                    self._announce()
                return self._drain()
            finally:
                # Also where something failed: then nobody has asked for the end yet.
                self._signals += 1
                if self._pulse is not None:
                    self._pulse.stop()
                self._end(self._children)
                self._remove_ready()
                self._view.close()
                self._selector.close()
                lock.release()

    # -- before the first child ---------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        names = [child.instance for child in self._children]
        folder = self._place.credentials
        wanted = ["ca.pem", "tokens.json", *(f"{kind}{name}{end}" for name in names for kind, end in _FILES)]
        if not all((folder / name).exists() for name in wanted):
            self._issue()
        else:
            # What is there lets the children start; what ends soon is renewed right after.
            self._renew = self._begin + min(5.0, self._renew_every)
        if self._mesh.transport == "tls":
            for name in names:
                if name not in self._mesh.addresses:
                    self._flags[f"mesh.addresses.{name}"] = f"127.0.0.1:{_free_port()}"

    def _issue(self) -> list[str]:
        from radmesh.runtime.clock import SystemClock  # noqa: PLC0415 - cryptography takes 60 ms to import
        from radmesh.runtime.security import Authority  # noqa: PLC0415

        life = timedelta(seconds=self._mesh.certificate_life)
        names = [child.instance for child in self._children]
        self._renew = time.monotonic() + self._renew_every
        return Authority(self._place.credentials, SystemClock(), life).issue(names)

    def _renew_certificates(self) -> None:
        """Make certificates that end soon anew. What runs takes them by itself; a failure here ends nothing."""
        try:
            made = self._issue()
        except (OSError, ValueError) as error:
            self._renew = time.monotonic() + min(_RENEW_AGAIN_SECONDS, self._renew_every)
            self._view.event(f"certificates cannot be renewed in {self._place.credentials}: {error}; tried again")
        else:
            if made:
                self._view.event(f"certificates renewed: {', '.join(made)}")

    # -- children -----------------------------------------------------------------------------------------------------

    def _start(self, child: Child) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        command = [sys.executable, "-P", "-m", "radmesh.mesh", "serve", f"--target={child.instance}"]
        command += [*self._arguments, f"--notify={writing}", f"--parent={os.getpid()}"]
        settings = {**self._flags, "RADMESH_DATA": str(self._place.data), **self._bound_ports()}
        command += [f"--set={name}={value}" for name, value in settings.items()]
        environment = {**os.environ, **MALLOC, COUNTS_VARIABLE: f"{child.starts + 1} {child.hangs}"}
        if not child.module.makes_administrator:
            environment.pop("RADMESH_ADMIN_PASSWORD", None)
        with _open_log(self._place.logs / f"{child.instance}.log", self._mesh.log_size) as log:
            # A group of its own: Ctrl-C is for this process, and what the child started can be ended with it.
            child.process = subprocess.Popen(  # noqa: S603 - the command line is made here
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(writing,),
                process_group=0,
            )
        os.close(writing)
        child.pipe, child.unread = reading, b""
        self._selector.register(reading, selectors.EVENT_READ, child)
        child.state, child.start_time, child.ready_time, child.failure = "STARTING", time.monotonic(), 0.0, None
        child.starts += 1
        child.pids = [child.process.pid]

    def _bound_ports(self) -> dict[str, str]:
        """Return the ports that were bound once: a child that comes back binds them again."""
        endpoints = {name: url for child in self._children for name, url in child.endpoints.items()}
        return {
            PORTS[name]: str(_port(url))
            for name, url in endpoints.items()
            if name in PORTS and self._schema.by_variable(PORTS[name])
        }

    def _start_due(self) -> None:
        now = time.monotonic()
        if now > self._renew:
            self._renew_certificates()
        for child in self._children:
            if child.process is None and child.due <= now:
                self._start(child)
            elif child.state == "STARTING" and now - child.start_time > self._mesh.start_timeout:
                self._view.event(
                    f"{child.instance}: not ready after {self._mesh.start_timeout:g} s, killed; "
                    f"see {self._place.logs / child.instance}.log"
                )
                self._kill(child)

    def _end_hanging(self) -> None:
        """Say who does not answer, and end who has not for too long."""
        if self._pulse is None:
            return
        now = time.monotonic()
        for child in self._children:
            if child.state != "SERVING" or child.process is None or not child.health:
                self._pulse.forget(child.instance)
                continue
            beat = self._pulse.watch(child.instance, child.process.pid, child.health)
            silent, patience = beat.silence(now), self._mesh.hang_timeout
            if child.silent and not silent:
                self._view.event(f"{child.instance}: answers again")
            elif silent > patience / 2 and child.silent <= patience / 2:
                self._view.event(f"{child.instance}: has not answered for {silent:.0f} s")
            child.silent = silent if silent > patience / 2 else 0.0
            if beat.hangs(now, patience):
                self._view.event(
                    f"{child.instance}: does not answer, for {silent:.0f} s now, killed; "
                    f"see {self._place.logs / child.instance}.log"
                )
                child.hangs += 1
                child.health, child.silent = "", 0.0
                self._kill(child)

    def _next_due(self) -> float:
        """Return the seconds until something is due, one at most (the view shows time)."""
        now = time.monotonic()
        times: list[float] = [self._renew, *(child.due for child in self._children if child.process is None)]
        times += [
            child.start_time + self._mesh.start_timeout + 0.01 for child in self._children if child.state == "STARTING"
        ]
        return max(0.0, min(1.0, *(when - now for when in times)))

    def _turn(self, seconds: float) -> None:
        """Wait for what happens next, and see to it."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, 4096)
            else:
                self._read(key.data)
        for child in self._children:
            if child.process is not None and _has_ended(child.process.pid):
                self._read(child)
                self._ended(child)
        self._view.show(self._children, time.monotonic())

    def _read(self, child: Child) -> None:
        while child.pipe >= 0:
            try:
                data = os.read(child.pipe, 65536)
            except BlockingIOError:
                return
            if not data:
                self._close_pipe(child)
                return
            *lines, child.unread = (child.unread + data).split(b"\n")
            if len(child.unread) > _LONGEST_LINE:
                child.unread = b""
            for line in lines:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    self._said(child, json.loads(line))

    def _said(self, child: Child, said: Mapping[str, Any]) -> None:
        kind = said["kind"]
        if kind == "ready":
            first = child.state != "SERVING"
            child.state = "SERVING"
            child.endpoints = dict(said["endpoints"])
            child.pids = list(said["pids"])
            child.health = str(said.get("health", ""))
            if first:
                child.ready_time = time.monotonic()
                child.was_ready = True
                child.failures = 0
                if self._announced:
                    self._view.event(f"{child.instance}: serves again, pid {child.pids[0]}")
            if self._announced:
                self._write_ready()
        elif kind == "figures":
            child.figures, child.alarms = dict(said["figures"]), list(said["alarms"])
        elif kind == "failed":
            child.may_pass = bool(said["transient"])
            child.failure = (str(said["reason"]), str(said["message"]))
            if child.failure[0] == "CERTIFICATE_INVALID":
                # It ended while the cluster was down.
                self._renew = 0.0
        elif kind == "draining":
            child.state = "DRAINING"

    def _ended(self, child: Child) -> None:
        process = child.process
        assert process is not None
        # Whatever it had started ends too; the group's number is not given away before its leader is waited for.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        self._close_pipe(child)
        now = time.monotonic()
        child.process, child.pids, child.figures, child.alarms = None, [], {}, []
        child.health, child.silent = "", 0.0
        if self._signals:
            child.state = "STOPPED"
            return
        served = child.ready_time and now - child.ready_time
        child.state = "WAITING"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._view.event(
            f"{child.instance}: ended ({': '.join(child.failure) if child.failure else how}); starts again"
        )
        if served > _HEALTHY_SECONDS or child.starts == 1:
            # At once; the next time not before a pause has passed since this start.
            child.pause, child.due = _PAUSE_FIRST, now
        else:
            child.due = max(now, child.start_time + child.pause)
            child.pause = min(child.pause * 2 or _PAUSE_FIRST, _PAUSE_MOST)
        if self._announced:
            self._write_ready()
        self._give_up(child)

    def _give_up(self, child: Child) -> None:
        """Raise if a child that never was ready can not be."""
        if child.failure is None or child.was_ready:
            return
        reason, message = child.failure
        child.failures += 1
        if not child.may_pass and child.failures >= _MOST_STARTS.get(reason, _MOST_STARTS_ELSE):
            from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415 - brings gRPC

            log = self._place.logs / f"{child.instance}.log"
            raise RadmeshError(reason, f"{child.instance} cannot start: {message}; its log is {log}")

    def _close_pipe(self, child: Child) -> None:
        if child.pipe >= 0:
            self._selector.unregister(child.pipe)
            os.close(child.pipe)
            child.pipe = -1

    def _kill(self, child: Child) -> None:
        if child.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _drain(self) -> int:
        """Stop the children, those that need others first; return the exit code."""
        self._remove_ready()
        self._view.event("draining; once more ends it at once")
        code = 0
        for level in reversed(self._levels):
            code = max(code, self._drain_level([child for child in level if child.process is not None]))
        self._view.event("stopped")
        return code

    def _drain_level(self, level: Sequence[Child]) -> int:
        for child in level:
            assert child.process is not None
            child.state = "DRAINING"
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.process.pid, signal.SIGTERM)
        until = time.monotonic() + self._mesh.drain_timeout + _KILL_AFTER
        while any(child.process is not None for child in level):
            if self._signals > 1 or time.monotonic() > until:
                late = [child.instance for child in level if child.process is not None]
                self._view.event(f"killed: {', '.join(late)}")
                self._end(self._children if self._signals > 1 else level)
                return 1
            self._turn(0.1)
        return 0

    def _end(self, children: Sequence[Child]) -> None:
        """Kill children, and wait until they have ended."""
        for child in children:
            self._kill(child)
        for child in children:
            if child.process is not None and _has_ended(child.process.pid, seconds=_KILL_AFTER):
                self._ended(child)

    # -- ready.json ---------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        if self._announced or any(child.state != "SERVING" for child in self._children):
            return
        self._announced = True
        self._write_ready()
        ready = self.ready()
        seconds = time.monotonic() - self._begin
        lines = [
            f"radmesh {radmesh.__version__} serves: {len(self._children)} components, {seconds:.1f} s",
            *self._described(ready),
            f"  process    {os.getpid()}",
            f"  data       {self._place.data}",
        ]
        if self._place.admin_password.exists():
            lines.append(f"  sign in    user admin, password in {self._place.admin_password}")
        data = "" if self._mesh.data == "radmesh-data" else f" --data {self._mesh.data}"
        lines.append(f"  try        radmesh status{data}")
        for line in lines:
            self._view.event(line)

    def _described(self, ready: Mapping[str, Any]) -> Iterator[str]:
        if ready["ports"]["dicom"]:
            yield f"  DICOM      AE title {ready['ae_title']}, port {ready['ports']['dicom']}"
        for child in self._children:
            for name, url in child.endpoints.items():
                if name != "dicom":
                    yield f"  {name:<10} {_from_here(url)}"
        for name, variable in self._asked_for():
            if ready["ports"][name] is None:
                yield f"  {name:<10} not served: {variable} has no effect in this version"

    def _asked_for(self) -> Iterator[tuple[str, str]]:
        """Yield the ports that somebody chose, and how the setting is called."""
        for name, variable in PORTS.items():
            # What no part has a setting for is not in the configuration.
            keys = self._schema.by_variable(variable)
            if any(key in self._configuration.sources for key in keys) or (not keys and os.environ.get(variable)):
                yield name, variable

    def ready(self) -> dict[str, Any]:
        """Return what ready.json says."""
        endpoints = {name: _from_here(url) for child in self._children for name, url in child.endpoints.items()}
        # One port a RIS domain: that of the first is "hl7", those of others have their domain's name.
        domains = {name: _port(url) for name, url in endpoints.items() if name.startswith("hl7_")}
        pids: dict[str, list[int]] = {}
        for child in self._children:
            pids.setdefault(child.module.component, []).extend(child.pids if child.state == "SERVING" else [])
        return {
            "version": radmesh.__version__,
            "pid": os.getpid(),
            "ae_title": self._ae_title(),
            "ports": {name: _port(endpoints[name]) if name in endpoints else None for name in PORTS} | domains,
            "urls": {name: endpoints.get(name) for name in ("http", "grpc")},
            "pids": pids,
            "ca_certificate": str(self._place.credentials / "ca.pem"),
        }

    def _ae_title(self) -> str:
        dicom = self._configuration.sections.get("dicom")
        return str(getattr(dicom, "ae_title", "RADMESH"))

    def _write_ready(self) -> None:
        data = json.dumps(self.ready(), indent=2).encode() + b"\n"
        if data == self._written or self._signals:
            return
        self._written = data
        try:
            write_atomic(self._place.ready, data)
        except OSError as error:
            # A full disk: the old file would name processes that are gone.
            self._written = None
            self._view.event(f"cannot write {self._place.ready}: {error.strerror}")
            self._remove_ready()

    def _remove_ready(self) -> None:
        with contextlib.suppress(OSError):
            self._place.ready.unlink(missing_ok=True)

    # -- signals ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        reading, writing = socket.socketpair()
        reading.setblocking(False)  # noqa: FBT003
        writing.setblocking(False)  # noqa: FBT003
        self._selector.register(reading, selectors.EVENT_READ, None)

        def stop(_number: int, _frame: object) -> None:
            self._signals += 1

        handlers: dict[int, Callable[[int, Any], None]] = {signal.SIGCHLD: lambda _number, _frame: None}
        handlers |= dict.fromkeys((signal.SIGTERM, signal.SIGINT), stop)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handlers[signal.SIGHUP] = stop
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            reading.close()
            writing.close()


_FILES = (("", ".pem"), ("", ".key"), ("token.", ""))


def _has_ended(pid: int, *, seconds: float = 0.0) -> bool:
    """Return whether a child has ended, leaving it to be waited for."""
    until = time.monotonic() + seconds
    while True:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.005)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].rstrip("/"))


def _from_here(url: str) -> str:
    """Return a URL for clients on this machine: "all addresses" is none to connect to, and is in no certificate."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _open_log(path: Path, most: int) -> Any:
    """Open a log for appending; one that has grown too large is put aside first."""
    if path.exists() and path.stat().st_size > most:
        for number in range(_LOGS_KEPT, 0, -1):
            older = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            if older.exists():
                older.replace(path.with_name(f"{path.name}.{number}"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab", buffering=0)
