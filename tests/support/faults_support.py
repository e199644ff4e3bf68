"""A whole cluster as a user runs it, for tests that break it; and senders that send until they are answered."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import raw_dicom
from cluster_support import FREE_PORTS, environment
from waiting import wait_for

from radmesh.client import Cluster
from radmesh.runtime.errors import RadmeshError

RADMESH = Path(sys.executable).with_name("radmesh")
SHM = Path("/dev/shm")


class Running:
    """`radmesh up` on a data directory of its own; ends with the test."""

    def __init__(self, *arguments: str, room: Mapping[str, int] | None = None) -> None:
        """Start it; `room`: bytes of a file system of its own for an instance, by its name. Only root can have one."""
        self.data = Path(tempfile.mkdtemp(prefix="rm-", dir=SHM if SHM.is_dir() else None))
        self.arguments = arguments
        self._rooms = dict(room or {})
        for instance, size in self._rooms.items():
            folder = self.data / instance
            folder.mkdir(mode=0o700)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder], check=True)
        self._ports: tuple[str, ...] = ()
        self._environment = environment(**FREE_PORTS)
        self.start()

    def start(self) -> None:
        (self.data / "ready.json").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [RADMESH, "up", "--data", self.data, *self._ports, *self.arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
        )
        wait_for(lambda: bool(self.ready()) or self.process.poll() is not None, 180, "radmesh up is ready")
        ports = self.ready()["ports"]
        self._ports = ("--dicom-port", str(ports["dicom"]), "--grpc-port", str(ports["grpc"]))

    def ready(self) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads((self.data / "ready.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return facts

    @property
    def dicom_port(self) -> int:
        return int(self._ports[1])

    def pids(self, component: str) -> list[int]:
        return list(self.ready().get("pids", {}).get(component, ()))

    def make_room(self, instance: str, size: int) -> None:
        """Let the file system of an instance grow to `size` bytes."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.data / instance], check=True)

    @contextmanager
    def without(self, how: str, *components: str) -> Iterator[None]:
        """Take components away: "silent" ones stand still, "gone" ones are killed and not started again meanwhile."""
        pids = [self.pids(component)[0] for component in components]
        # The supervisor cannot start what is gone while it stands still itself.
        still = pids if how == "silent" else [self.process.pid]
        for pid in still:
            os.kill(pid, signal.SIGSTOP)
        try:
            if how == "gone":
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            yield
        finally:
            for pid in still:
                os.kill(pid, signal.SIGCONT)
        if how == "gone":
            for component, pid in zip(components, pids, strict=True):
                wait_for(lambda c=component, p=pid: {p} != set(self.pids(c)) != set(), 30, f"{component} is back")

    def cluster(self) -> Cluster:
        """Sign in; a component that was away may be out of reach for another moment."""

        def signed_in() -> Cluster | None:
            try:
                return Cluster.local(self.data, password=(self.data / "admin-password").read_text().strip())
            except RadmeshError as error:
                if not error.transient:
                    raise
                return None

        return cast("Cluster", wait_for(signed_in, 10, "somebody can sign in"))

    def logs(self) -> str:
        """The last lines of every log, for a test that failed."""
        return "\n".join(
            f"{path.name}: {line[:300]}"
            for path in sorted((self.data / "logs").glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()[-5:]
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.logs())
        if self.process.poll() is None:
            self.stop()
        for instance in self._rooms:
            subprocess.run(["umount", "-l", self.data / instance], check=False)
        shutil.rmtree(self.data, ignore_errors=True)


@dataclass(frozen=True)
class Item:
    study: str
    sop_instance_uid: str
    data_set: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data_set).hexdigest()


def make_items(count: int, seed: int, *, studies: int = 5, large: int = 0) -> list[Item]:
    """Objects of a few kB to 200 kB; `large`: bytes of the pixel data of one in fifty."""
    rng = random.Random(seed)
    items = []
    for number in range(count):
        study = f"2.25.{seed}.{number % studies + 1}"
        uid = f"{study}.7.{number + 1}"
        pixels = large if large and number % 50 == 25 else rng.choice((2048, 16384, 65536, 196608))
        head = raw_dicom.image(study, uid, pixels=pixels)
        # Every object has bytes of its own: one that was stored under another's name would be seen.
        items.append(Item(study, uid, head[:-64] + rng.randbytes(64)))
    return items


@dataclass
class Sending:
    """Senders that reconnect and send again until each object is answered with success."""

    port: int
    items: list[Item]
    associations: int = 4
    patience: float = 300.0
    acknowledged: dict[str, Item] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    resent: int = 0
    gate: threading.Semaphore | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(self.items[k :: self.associations],), daemon=True)
            for k in range(self.associations)
        ]

    @property
    def studies(self) -> list[str]:
        return sorted({item.study for item in self.items})

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.1, until - time.monotonic()))
            assert not thread.is_alive(), "a sender is still not answered"

    def _run(self, items: list[Item]) -> None:
        client: raw_dicom.Client | None = None
        for item in items:
            if self.gate is not None:
                self.gate.acquire()
            until = time.monotonic() + self.patience
            tries = 0
            while time.monotonic() < until:
                try:
                    if client is None:
                        client = raw_dicom.Client(self.port, timeout=30.0)
                        if not client.accepted:
                            raise ConnectionError("refused")
                    tries += 1
                    status = client.store(item.data_set, item.sop_instance_uid).status
                except (OSError, AssertionError, IndexError):
                    if client is not None:
                        client.close()
                    client = None
                    time.sleep(0.05)
                    continue
                with self._lock:
                    self.statuses[status] = self.statuses.get(status, 0) + 1
                    if status == 0:
                        self.acknowledged[item.sop_instance_uid] = item
                        self.resent += tries - 1
                if status == 0:
                    break
                time.sleep(0.1)
        if client is not None:
            with suppress(OSError, AssertionError):
                client.release()


def send(running: Running, items: list[Item], *, seconds: float = 300.0, **settings: Any) -> Sending:
    """Send, and wait until every object is answered."""
    sending = Sending(running.dicom_port, items, **settings)
    sending.start()
    sending.join(seconds)
    return sending


def residences(running: Running, sending: Sending) -> dict[str, int]:
    """How many copies of the studies that were sent are where."""
    counts: dict[str, int] = {}
    with running.cluster() as cluster:
        for study in cluster.find(study_instance_uids=sending.studies):
            for instance in cluster.instances(study.study_instance_uid, variants=True):
                for place in instance.locations:
                    kind = f"{place.store_id.split('-')[0]} {place.residence}"
                    counts[kind] = counts.get(kind, 0) + 1
    return counts


def check_everything(
    running: Running, sending: Sending, *, seconds: float = 10.0, read: int = 40, readable: set[str] | None = None
) -> dict[str, int]:
    """Every acknowledged object is there exactly once, as it was sent; nothing else is in these studies.

    `read`: how many are read back; `readable`: which can be, if not all.
    """
    found: dict[str, list[Any]] = {}
    with running.cluster() as cluster:

        def all_there() -> bool:
            found.clear()
            for study in cluster.find(study_instance_uids=sending.studies):
                for instance in cluster.instances(study.study_instance_uid, variants=True):
                    found.setdefault(instance.sop_instance_uid, []).append((study.study_instance_uid, instance))
            return set(sending.acknowledged) <= set(found)

        wait_for(all_there, seconds, "every acknowledged object is registered")
        sent = {item.sop_instance_uid: item for item in sending.items}
        for uid, there in found.items():
            assert len(there) == 1, f"{uid} is there {len(there)} times"
            assert there[0][1].sha256 == sent[uid].sha256
            assert there[0][1].locations
        choice = sorted(set(sending.acknowledged) if readable is None else readable)
        for uid in random.Random(1).sample(choice, min(read, len(choice))):
            study, instance = found[uid][0]
            assert b"".join(cluster.read(study, instance)) == sent[uid].data_set
    return {"acknowledged": len(sending.acknowledged), "found": len(found), "resent": sending.resent}
