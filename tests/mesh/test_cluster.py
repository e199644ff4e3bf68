"""The real components under `radmesh up`: they start, come back on their ports, and drain."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from radmesh.mesh.modules import TABLE

FREE_PORTS = dict.fromkeys(("RADMESH_DICOM_PORT", "RADMESH_GRPC_PORT", "RADMESH_HTTP_PORT", "RADMESH_HL7_PORT"), "0")


def environment() -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if not k.startswith("RADMESH_")}, **FREE_PORTS}


def radmesh(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "radmesh.mesh", *arguments, "--data", str(data)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


class Up:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "radmesh.mesh", "up", "--data", str(data)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def ready(self, condition: Callable[[dict[str, Any]], bool] = lambda _ready: True) -> dict[str, Any]:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self.process.poll() is None, self.process.stdout and self.process.stdout.read()
            try:
                ready: dict[str, Any] = json.loads((self.data / "ready.json").read_bytes())
            except FileNotFoundError:
                ready = {}
            if ready and condition(ready):
                return ready
            time.sleep(0.02)
        pytest.fail("not ready within 60 s")


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
    assert (ready["ports"]["http"], ready["ports"]["dicom_tls"]) == (None, None)
    for component in ready["pids"]:
        victim = ready["pids"][component][-1]
        os.kill(victim, signal.SIGKILL)
        count = len(ready["pids"][component])
        after = up.ready(lambda r, c=component, v=victim, n=count: back(r, c, v, n))
        assert after["ports"] == ready["ports"]
        ready = after
    # An acceptor that was killed leaves an alarm for ten seconds: then all is as it was.
    until = time.monotonic() + 30
    while (status := radmesh(up.data, "status", "--json")).returncode == 1:
        assert time.monotonic() < until, status.stdout
    assert status.returncode == 0, status.stderr
    assert radmesh(up.data, "find").returncode == 0
    password = up.data / "admin-password"
    assert password.stat().st_mode & 0o777 == 0o600
    up.process.terminate()
    output, _ = up.process.communicate(timeout=30)
    assert up.process.returncode == 0
    assert password.read_text().strip() not in output
    assert f"password in {password}" in output
    assert not (up.data / "ready.json").exists()
    wrong = radmesh(up.data, "status", "--json")
    assert wrong.returncode == 3


def test_a_wrong_password_is_4(up, tmp_path):
    up.ready()
    wrong = tmp_path / "wrong"
    wrong.write_text("not it")
    refused = radmesh(up.data, "find", "--json", "--password-file", str(wrong))
    assert refused.returncode == 4
    assert json.loads(refused.stdout)["error"]["reason"] == "PASSWORD_WRONG"
