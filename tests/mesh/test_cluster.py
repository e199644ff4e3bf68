"""The real components under `radmesh up`: they start, come back on their ports, and drain."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.mesh.modules import TABLE
from radmesh.runtime import rpc
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.line import Line
from radmesh.runtime.security import Authority, Credentials

FREE_PORTS = dict.fromkeys(map("RADMESH_{}_PORT".format, ("DICOM", "DICOM_TLS", "GRPC", "HTTP", "HL7")), "0")


def environment() -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if not k.startswith("RADMESH_")}, **FREE_PORTS}


def radmesh(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "radmesh.mesh", *arguments, "--data", str(data)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=180, check=False)


class Up:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "radmesh.mesh", "up", "--data", str(data)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def ready(self, condition: Callable[[dict[str, Any]], bool] = lambda _ready: True) -> dict[str, Any]:
        until = time.monotonic() + 180
        while time.monotonic() < until:
            assert self.process.poll() is None, self.process.stdout and self.process.stdout.read()
            try:
                ready: dict[str, Any] = json.loads((self.data / "ready.json").read_bytes())
            except FileNotFoundError:
                ready = {}
            if ready and condition(ready):
                return ready
            time.sleep(0.02)
        pytest.fail("not ready within 180 s")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path / "data")
    yield up
    if up.process.poll() is None:
        up.process.kill()
    up.process.communicate()


def back(ready: dict[str, Any], component: str, victim: int, count: int) -> bool:
    """Whether a component has all its processes again, and the killed one is gone."""
    return (
        all(ready["pids"].values())
        and victim not in itertools.chain(*ready["pids"].values())
        and len(ready["pids"][component]) == count
    )


def test_the_whole_cluster(up):
    ready = up.ready()
    assert set(ready["pids"]) == set(TABLE.by_name)
    assert len(ready["pids"]["gateway-proxy"]) >= 3
    assert ready["ports"]["dicom"]
    assert ready["urls"]["grpc"] == f"grpc://127.0.0.1:{ready['ports']['grpc']}"
    assert ready["urls"]["http"] == f"http://127.0.0.1:{ready['ports']['http']}"
    assert ready["ports"]["dicom_tls"] not in (None, 0, ready["ports"]["dicom"])
    for component in ready["pids"]:
        victim = ready["pids"][component][-1]
        os.kill(victim, signal.SIGKILL)
        count = len(ready["pids"][component])
        after = up.ready(lambda r, c=component, v=victim, n=count: back(r, c, v, n))
        assert after["ports"] == ready["ports"]
        ready = after
    # An acceptor that was killed leaves an alarm for ten seconds: then all is as it was.
    until = time.monotonic() + 60
    while (status := radmesh(up.data, "status", "--json")).returncode == 1:
        assert time.monotonic() < until, status.stdout
    assert status.returncode == 0, status.stderr
    assert radmesh(up.data, "find").returncode == 0
    password = up.data / "admin-password"
    assert password.stat().st_mode & 0o777 == 0o600
    up.process.terminate()
    output, _ = up.process.communicate(timeout=120)
    assert up.process.returncode == 0
    assert password.read_text().strip() not in output
    assert f"password in {password}" in output
    assert not (up.data / "ready.json").exists()
    wrong = radmesh(up.data, "status", "--json")
    assert wrong.returncode == 3


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Starts components, each in a process and a data folder of its own; credentials are shared, as a Secret is."""
    Authority(tmp_path / "credentials", SystemClock()).issue(["database-server", "archive-server-0", "network-gateway"])
    running: list[subprocess.Popen[str]] = []

    def start(component: str, **settings: object) -> None:
        settings = {
            "credentials": tmp_path / "credentials",
            "transport": "tls",
            "data": tmp_path / component,
            **settings,
        }
        command = [sys.executable, "-P", "-m", "radmesh.mesh", "serve", f"--target={component}"]
        command += [f"--set=mesh.{name.replace('__', '.')}={value}" for name, value in settings.items()]
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert json.loads(line)["message"] == "serving", line + process.stderr.read()

    yield start
    for process in reversed(running):
        process.terminate()
        process.communicate(timeout=120)


def test_a_pod_tells_others_where_it_is_and_a_kubelet_that_it_lives(tmp_path, pods):
    """It listens on all addresses; nobody could connect to that name."""
    database, archive, line, health = free_ports(4)
    pods("database-server", listen=f"127.0.0.1:{database}")
    there = {"addresses__database-server": f"127.0.0.1:{database}"}
    pods(
        "archive-server",
        listen=f"0.0.0.0:{archive}",
        advertise="localhost",
        line_port=line,
        health_listen=f"127.0.0.1:{health}",
        **there,
    )
    credentials = Credentials(tmp_path / "credentials", "network-gateway")
    with rpc.open_channel(f"127.0.0.1:{database}", credentials) as channel:
        registry = rpc.Client(channel, database_pb2.DESCRIPTOR.services_by_name["RegistryService"])
        (store,) = registry.ListStores(database_pb2.ListStoresRequest()).stores
    assert (store.alive, store.target, store.put_target) == (True, f"localhost:{archive}", f"localhost:{line}")
    with rpc.open_channel(store.target, credentials) as channel:
        client = rpc.Client(channel, common_pb2.DESCRIPTOR.services_by_name["StatusService"])
        assert client.GetStatus(common_pb2.GetStatusRequest()).instance == "archive-server-0"
    Line(store.put_target, "/radmesh.api.transfer.v1.TransferService/Put", credentials).close()
    with grpc.insecure_channel(f"127.0.0.1:{health}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=30.0)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        status = channel.unary_unary("/radmesh.api.common.v1.StatusService/GetStatus")
        with pytest.raises(grpc.RpcError) as caught:
            status(b"", timeout=30.0)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_all_addresses_are_told_as_the_name_of_the_machine(tmp_path, pods):
    database, archive = free_ports(2)
    pods("database-server", listen=f"127.0.0.1:{database}")
    pods("archive-server", listen=f"0.0.0.0:{archive}", **{"addresses__database-server": f"127.0.0.1:{database}"})
    credentials = Credentials(tmp_path / "credentials", "network-gateway")
    with rpc.open_channel(f"127.0.0.1:{database}", credentials) as channel:
        registry = rpc.Client(channel, database_pb2.DESCRIPTOR.services_by_name["RegistryService"])
        (store,) = registry.ListStores(database_pb2.ListStoresRequest()).stores
    assert store.target == f"{socket.getfqdn()}:{archive}"
    assert store.put_target.rpartition(":")[0] == socket.getfqdn()


def test_a_wrong_password_is_4(up, tmp_path):
    up.ready()
    wrong = tmp_path / "wrong"
    wrong.write_text("not it")
    refused = radmesh(up.data, "find", "--json", "--password-file", str(wrong))
    assert refused.returncode == 4
    assert json.loads(refused.stdout)["error"]["reason"] == "PASSWORD_WRONG"
