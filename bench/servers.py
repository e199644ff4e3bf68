"""Start and stop what is measured: radmesh, and the peers (Debian's orthanc and dcmtk).

A peer is "tuned" with TCP_NODELAY=1 in its environment (DCMTK reads it) and PDUs of 128 KiB, or "as shipped".
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """A server under load."""

    name: str
    port: int
    ae_title: str
    pid: int
    data: Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"bench: {process.args!r} ended at once with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    sys.exit(f"bench: {process.args!r} does not listen on {port}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def radmesh(data: Path, *, transport: str = "unix", extra: tuple[str, ...] = ()) -> Iterator[Running]:
    """A whole cluster as `make up` ships it."""
    shutil.rmtree(data, ignore_errors=True)
    command = Path(sys.executable).with_name("radmesh")
    process = subprocess.Popen(
        [
            command,
            "up",
            "--data",
            data,
            "--dicom-port",
            "0",
            "--grpc-port",
            "0",
            "--hl7-port",
            "0",
            "--transport",
            transport,
            *extra,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ready = data / "ready.json"
        deadline = time.monotonic() + 30
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench: radmesh up is not ready; see {data}/logs")
            time.sleep(0.05)
        facts = json.loads(ready.read_bytes())
        yield Running("radmesh", facts["ports"]["dicom"], facts["ae_title"], process.pid, data)
    finally:
        stop(process)
        shutil.rmtree(data, ignore_errors=True)


@contextlib.contextmanager
def peer(name: str, data: Path, *, tuned: bool, to: tuple[str, int] | None = None) -> Iterator[Running]:
    """orthanc, storescp or dcmqrscp; `to` is the AE title and port of a station that it moves to."""
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    port = free_port()
    environment = {**os.environ, **({"TCP_NODELAY": "1"} if tuned else {})}
    if name == "orthanc":
        configuration = {
            "StorageDirectory": str(data),
            "IndexDirectory": str(data),
            "DicomPort": port,
            "HttpPort": free_port(),
            "DicomAet": "ORTHANC",
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomModalities": {"sink": [to[0], "127.0.0.1", to[1]]} if to else {},
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            **({"MaximumPduLength": 131072} if tuned else {}),
        }
        (data / "orthanc.json").write_text(json.dumps(configuration))
        command, ae_title = [shutil.which("Orthanc") or "Orthanc", str(data / "orthanc.json")], "ORTHANC"
    elif name == "storescp":
        pdu = ["-pdu", "131072"] if tuned else []
        command, ae_title = ["storescp", "--fork", *pdu, "-aet", "STORESCP", "-od", str(data), str(port)], "STORESCP"
    else:
        (data / "db").mkdir()
        (data / "dcmqrscp.cfg").write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = {131072 if tuned else 16384}\nMaxAssociations = 16\n"
            f"HostTable BEGIN\n{f'sink = ({to[0]}, 127.0.0.1, {to[1]})' if to else ''}\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\nQRSCP {data}/db RW (500, 10000mb) ANY\nAETable END\n"
        )
        command, ae_title = ["dcmqrscp", "-c", str(data / "dcmqrscp.cfg")], "QRSCP"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield Running(name + ("" if tuned else " as shipped"), port, ae_title, process.pid, data)
    finally:
        stop(process)
        shutil.rmtree(data, ignore_errors=True)


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process and all below it, ended children included."""
    total, waiting, ticks = 0.0, [pid], os.sysconf("SC_CLK_TCK")
    while waiting:
        current = waiting.pop()
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{current}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15])) / ticks
            for children in Path(f"/proc/{current}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
    return total
