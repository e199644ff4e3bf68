"""Stations outside, made by others: DCMTK's programs and pynetdicom, and what they see of a cluster."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster_support import RealCluster
from pydicom import dcmread
from pydicom.dataset import FileDataset

STATIONS = ("STORESCP", "PLAIN", "PYNET", "DEAD", "SLOW", "ORTHANC")


def free_ports() -> dict[str, int]:
    """A port for each station, which nobody has now."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in STATIONS]
    ports = {name: int(s.getsockname()[1]) for name, s in zip(STATIONS, taken, strict=True)}
    for server in taken:
        server.close()
    return ports


def configuration(ports: Mapping[str, int]) -> str:
    """[[stations]] that can be sent to."""
    grants = '["store", "query", "retrieve"]'
    return (
        "\n".join(
            f'[[stations]]\nae_title = "{name}"\ngrants = {grants}\nhost = "127.0.0.1"\nport = {port}\n'
            for name, port in ports.items()
        )
        + f"""
[[stations]]
ae_title = "HOLDER"
grants = {grants}
verification = "required"

[[stations]]
ae_title = "ROUTEDCT"
grants = {grants}
verification = "off"

[gateway]
route_quiet = "1s"
"""
    )


@dataclass
class Edge:
    """A cluster, and where its stations listen."""

    cluster: RealCluster
    ports: Mapping[str, int]
    folder: Path

    @property
    def port(self) -> int:
        """The DICOM port."""
        return int(self.cluster.ready["ports"]["dicom"])

    def store(self, *files: Path, calling: str = "MODALITY") -> None:
        """Send files with DCMTK's storescu, as they are."""
        done = dcmtk("storescu", "-R", "-aet", calling, "-aec", "RADMESH", *self.address, *files)
        assert done.returncode == 0, done.stdout

    @property
    def address(self) -> tuple[str, str]:
        """Host and port for a command line."""
        return "127.0.0.1", str(self.port)

    def ended(self, outcome: str) -> list[str]:
        """Log lines of associations that ended so."""
        logs = (self.cluster.data / "logs").glob("gateway-proxy*")
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return [line for line in lines if '"association ended"' in line and f'"outcome": "{outcome}"' in line]

    def move(self, destination: str, *keys: str, calling: str = "MOVER", root: str = "-S") -> "Moved":
        """Run movescu; keys as `level` and `name=value`."""
        options = [part for key in keys for part in ("-k", key)]
        done = dcmtk(
            "movescu", "-d", root, "-aet", calling, "-aec", "RADMESH", "-aem", destination, *options, *self.address
        )
        return Moved.of(done.stdout)

    def get(self, into: Path, *keys: str, calling: str = "GETTER", options: Sequence[str] = ()) -> "Moved":
        """Run getscu."""
        into.mkdir(exist_ok=True)
        named = [part for key in keys for part in ("-k", key)]
        sides = ("-aet", calling, "-aec", "RADMESH")
        done = dcmtk("getscu", "-d", "-S", *sides, "-od", into, *options, *named, *self.address)
        return Moved.of(done.stdout)


def present(program: str) -> str:
    """Where a third-party program is; without it the test is not run with PARTNERS=0, and fails otherwise."""
    found = shutil.which(program)
    if found is None and os.environ.get("PARTNERS") == "0":
        pytest.skip(f"PARTNERS=0, and {program} is not here")
    assert found, f"{program} is not here: make partners"
    return found


def dcmtk(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of DCMTK's programs."""
    return subprocess.run(
        [present(program), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip


@dataclass
class Moved:
    """What a C-MOVE or C-GET came to, as its last response says."""

    status: int
    numbers: dict[str, int]
    pending: int
    text: str

    @classmethod
    def of(cls, text: str) -> "Moved":
        """Read it from what DCMTK prints with -d."""
        statuses, numbers = [], {}
        for line in text.splitlines():
            name, _, value = line.removeprefix("D: ").removeprefix("I: ").partition(":")
            name = name.strip()
            if name == "DIMSE Status":
                statuses.append(int(value.split(":")[0], 16))
            elif name.endswith("Suboperations"):
                numbers[name.removesuffix("Suboperations").strip().lower()] = (
                    int(value) if value.strip().isdigit() else -1
                )
        assert statuses, text
        return cls(statuses[-1], numbers, sum(s == 0xFF00 for s in statuses), text)


@contextmanager
def storescp(folder: Path, port: int, *options: str) -> Iterator[Path]:
    """DCMTK's storescp, which writes what it gets to a folder, bit by bit as it came."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [present("storescp"), "-od", str(folder), *options, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: _answers(port))
        yield folder
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def until(holds: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.02)
    return found


def received(folder: Path) -> dict[str, FileDataset]:
    """What a station has, by SOP Instance UID."""
    return {str(ds.SOPInstanceUID): ds for ds in map(dcmread, sorted(folder.iterdir()))}
