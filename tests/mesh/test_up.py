"""`radmesh up` and `serve` with real processes: ready.json, restarts, ports, drain, and no process left behind."""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import waiting
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from depth import allowed

from radmesh.api.common.v1 import common_pb2
from radmesh.mesh.place import Place
from radmesh.runtime import rpc
from radmesh.runtime.clock import ManualClock, SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.security import Authority, Credentials

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    return waiting.wait_for(condition, what=what)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Cluster:
    """A `radmesh up` of this test, and everything that it ever said of its processes."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.process: subprocess.Popen[str] | None = None
        self.seen: set[int] = set()

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RADMESH_")}
        return {**kept, "RADMESH_MODULES": "mesh_support:TABLE", "PYTHONPATH": str(SUPPORT), **more}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "radmesh.mesh", *arguments]

    def start(self, *arguments: str, **environment: str) -> "Cluster":
        self.process = subprocess.Popen(
            self.command("up", "--data", str(self.data), *arguments),
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self

    def up(self, *arguments: str, **environment: str) -> dict[str, Any]:
        self.start(*arguments, **environment)
        return self.ready()

    def ready(self, condition: Callable[[dict[str, Any]], bool] = lambda _ready: True) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            assert self.process is not None
            assert self.process.poll() is None, self.process.stdout and self.process.stdout.read()
            try:
                ready: dict[str, Any] = json.loads((self.data / "ready.json").read_bytes())
            except FileNotFoundError:
                return None
            self.seen.update(pid for pids in ready["pids"].values() for pid in pids)
            return ready if ready["pid"] == self.process.pid and condition(ready) else None

        return wait_for(look, "ready.json")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        assert self.process is not None
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output

    def nobody_left(self) -> bool:
        return not any(alive(pid) for pid in self.seen)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "data")
    yield cluster
    if cluster.process is not None and cluster.process.poll() is None:
        cluster.process.kill()
        cluster.process.communicate()
    wait_for(cluster.nobody_left, "the end of every process")


def test_a_cluster_starts_says_so_and_drains(cluster, tmp_path):
    ready = cluster.up()
    assert set(ready) == {"version", "pid", "ae_title", "ports", "urls", "pids", "ca_certificate"}
    assert ready["ae_title"] == "RADMESH"
    assert set(ready["ports"]) == {"dicom", "dicom_tls", "hl7", "http", "grpc"}
    port = ready["ports"]["dicom"]
    assert ready["ports"] == {"dicom": port, "dicom_tls": None, "hl7": None, "http": port, "grpc": None}
    assert ready["urls"] == {"http": f"http://127.0.0.1:{port}/", "grpc": None}
    assert {name: len(pids) for name, pids in ready["pids"].items()} == {
        "database-server": 1,
        "archive-server": 1,
        "edge": 2,
    }
    assert all(alive(pid) for pids in ready["pids"].values() for pid in pids)
    assert Path(ready["ca_certificate"]).read_bytes().startswith(b"-----BEGIN CERTIFICATE")
    socket.create_connection(("127.0.0.1", ready["ports"]["dicom"]), 5).close()
    for folder in (cluster.data, cluster.data / "run", cluster.data / "credentials", cluster.data / "logs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    code, output = cluster.stop()
    assert code == 0
    assert not (cluster.data / "ready.json").exists()
    assert cluster.nobody_left()
    assert f"{cluster.data}" in output


def status_of(cluster: Cluster, instance: str, caller: str = "edge", transport: str = "") -> common_pb2.ComponentStatus:
    credentials = Credentials(cluster.data / "credentials", caller)
    target = transport or f"unix:{cluster.data}/run/{instance}.sock"
    with rpc.open_channel(target, credentials) as channel:
        client = rpc.Client(channel, common_pb2.DESCRIPTOR.services_by_name["StatusService"])
        return client.GetStatus(common_pb2.GetStatusRequest())


def test_components_are_reached_over_unix_sockets(cluster):
    ready = cluster.up()
    answer = status_of(cluster, "archive-server-0")
    assert (answer.component, answer.instance, answer.state) == ("archive-server", "archive-server-0", "SERVING")
    assert [answer.pid] == ready["pids"]["archive-server"]
    assert answer.figures["answer"] == 42.0


def address_of(pid: int, instance: str) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    setting = f"--set=mesh.addresses.{instance}="
    return next(argument.removeprefix(setting) for argument in command if argument.startswith(setting))


def test_components_are_reached_over_mutual_tls(cluster):
    ready = cluster.up("--transport", "tls")
    (pid,) = ready["pids"]["archive-server"]
    address = address_of(pid, "archive-server-0")
    assert status_of(cluster, "archive-server-0", transport=address).pid == pid
    with pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(grpc.insecure_channel(address)).result(timeout=0.5)
    assert not list((cluster.data / "run").glob("*.sock"))


@pytest.mark.parametrize("victim", ["database-server", "archive-server", "edge"])
def test_a_killed_child_comes_back_on_its_port(cluster, victim):
    before = cluster.up()
    os.kill(before["pids"][victim][0], signal.SIGKILL)
    after = cluster.ready(lambda r: r["pids"][victim] and r["pids"][victim] != before["pids"][victim])
    assert after["ports"] == before["ports"]
    assert all(alive(pid) for pids in after["pids"].values() for pid in pids)
    assert {k: v for k, v in after["pids"].items() if k != victim} == {
        k: v for k, v in before["pids"].items() if k != victim
    }
    # What the dead one had started is gone too.
    wait_for(lambda: not any(alive(pid) for pid in before["pids"][victim]), "the end of the old processes")
    assert cluster.stop()[0] == 0


def test_a_child_killed_again_and_again_comes_back(cluster):
    ready = cluster.up()
    for _ in range(4):
        pids = ready["pids"]["edge"]
        os.kill(pids[0], signal.SIGKILL)
        ready = cluster.ready(lambda r, old=pids: r["pids"]["edge"] and r["pids"]["edge"] != old)
    assert cluster.stop()[0] == 0


def test_no_child_outlives_a_killed_supervisor_and_the_next_one_starts(cluster):
    cluster.up("--dicom-port", "0")
    cluster.process.kill()
    cluster.process.communicate()
    # At once: the next one must cope with processes that are just dying.
    old = set(cluster.seen)
    ready = cluster.up()
    assert not any(alive(pid) for pid in old)
    assert ready["pid"] == cluster.process.pid
    assert cluster.stop()[0] == 0


def test_two_clusters_in_one_directory(cluster):
    cluster.up()
    second = subprocess.run(
        cluster.command("up", "--data", str(cluster.data)),
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode == 1
    assert f"is in use by process {cluster.process.pid}: stop it, or choose another --data" in second.stderr
    assert "Traceback" not in second.stderr
    # A single component is refused too.
    third = subprocess.run(
        cluster.command("serve", "--target=database-server", "--data", str(cluster.data)),
        env=cluster.environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert third.returncode == 1
    assert "database-server in" in third.stderr
    assert cluster.ready()["pid"] == cluster.process.pid


def test_a_port_that_nobody_serves_is_said(cluster):
    """Whether a part that is not there yet has a setting for it, or not; whoever chose none hears nothing."""
    cluster.up("--dicom-tls-port", "0", "--dicom-port", "0", RADMESH_GRPC_PORT="0", RADMESH_HL7_PORT="")
    _, output = cluster.stop()
    lines = [line.split(maxsplit=1) for line in output.splitlines() if "not served" in line]
    assert lines == [
        ["dicom_tls", "not served: RADMESH_DICOM_TLS_PORT has no effect in this version"],
        ["grpc", "not served: RADMESH_GRPC_PORT has no effect in this version"],
    ]


def test_a_port_in_use_is_said(cluster):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster.start("--dicom-port", str(port))
        output, _ = cluster.process.communicate(timeout=120)
    assert cluster.process.returncode == 1
    assert f"edge cannot start: cannot listen on port {port}" in output
    assert "PORT_IN_USE" in output
    assert "Traceback" not in output
    assert not (cluster.data / "ready.json").exists()


def test_a_child_that_hangs_at_start_is_killed_and_named(cluster):
    cluster.start("--set", "mesh.start_timeout=3s", EDGE_FAULT="hang")
    lines = iter(cluster.process.stdout.readline, "")
    assert f"edge: not ready after 3 s, killed; see {cluster.data}/logs/edge.log\n" in lines
    assert "edge: ended (killed by SIGKILL); starts again\n" in lines
    assert not (cluster.data / "ready.json").exists()
    # One that hangs is not waited for: it has begun nothing.
    begin = time.monotonic()
    assert cluster.stop()[0] == 0
    assert time.monotonic() - begin < allowed(5)


def test_a_child_that_ends_at_start_is_started_with_pauses(cluster):
    cluster.start(EDGE_FAULT="exit")
    lines = (line for line in iter(cluster.process.stdout.readline, "") if "edge" in line)
    times = []
    for line in itertools.islice(lines, 5):
        assert line == "edge: ended (exit code 7); starts again\n"
        times.append(time.monotonic())
    # From start to start: at once, then 0.2, 0.4, 0.8 s at least.
    assert times[-1] - times[0] > 1.2
    assert cluster.stop()[0] == 0


def test_a_child_that_does_not_hear_is_killed_after_the_drain(cluster):
    cluster.up("--set", "mesh.drain_timeout=0s", EDGE_FAULT="deaf")
    begin = time.monotonic()
    code, output = cluster.stop()
    assert code == 1
    assert "killed: edge\n" in output
    assert time.monotonic() - begin < allowed(10)
    assert cluster.nobody_left()


def test_a_second_signal_ends_it_at_once(cluster):
    cluster.up("--set", "mesh.drain_timeout=60s", EDGE_FAULT="deaf")
    cluster.process.send_signal(signal.SIGINT)
    assert any("draining" in line for line in iter(cluster.process.stdout.readline, ""))
    begin = time.monotonic()
    code, _ = cluster.stop(signal.SIGINT)
    assert code == 1
    assert time.monotonic() - begin < allowed(5)


def test_all_addresses_are_told_as_one_that_can_be_used(cluster):
    ready = cluster.up("--bind", "0.0.0.0")
    assert ready["urls"]["http"] == f"http://127.0.0.1:{ready['ports']['http']}/"


def test_settings_reach_the_children(cluster, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[mesh]\narchive_servers = 2\n[dicom]\nae_title = "FILE"\n')
    ready = cluster.up("--config", str(file), RADMESH_AE_TITLE="ENV", RADMESH_ADMIN_PASSWORD="correct horse battery")
    assert ready["ae_title"] == "ENV"
    assert len(ready["pids"]["archive-server"]) == 2
    code, _ = cluster.stop()
    assert code == 0
    # The password reaches the component that makes the first administrator, and nobody else.
    assert (cluster.data / "database-server" / "stopped").read_text() == "correct horse battery"
    assert (cluster.data / "archive-server-0" / "stopped").read_text() == ""


def test_one_process_with_many_components(cluster):
    cluster.up()
    assert cluster.stop()[0] == 0
    process = subprocess.Popen(
        cluster.command("serve", "--target=edge,archive-server,database-server", "--data", str(cluster.data)),
        env=cluster.environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = [json.loads(process.stderr.readline()) for _ in range(3)]
    assert [(line["message"], line["instance"], line["pid"]) for line in lines] == [
        ("serving", name, process.pid) for name in ("database-server", "archive-server-0", "edge")
    ]
    assert status_of(cluster, "archive-server-0").pid == process.pid
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 0
    assert [json.loads(line)["instance"] for line in rest.splitlines()] == [
        "edge",
        "archive-server-0",
        "database-server",
    ]


def test_a_long_path_gets_short_sockets(cluster):
    cluster.data = cluster.data.parent / ("x" * 120) / "data"
    cluster.up()
    answer = status_of(cluster, "database-server", transport=Place(cluster.data).socket("database-server"))
    assert answer.instance == "database-server"


def test_logs_are_put_aside_by_size(cluster):
    cluster.data.mkdir(parents=True)
    logs = cluster.data / "logs"
    logs.mkdir()
    (logs / "edge.log").write_bytes(b"3" * 2000)
    (logs / "edge.log.1").write_bytes(b"2")
    (logs / "edge.log.3").write_bytes(b"0")
    cluster.up("--set", "mesh.log_size=1KiB")
    assert (logs / "edge.log.1").read_bytes() == b"3" * 2000
    assert (logs / "edge.log.2").read_bytes() == b"2"
    assert b"serving" in (logs / "edge.log").read_bytes()


def test_the_view_of_a_terminal(cluster):
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        cluster.command("up", "--data", str(cluster.data)),
        env=cluster.environment(TERM="xterm", COLUMNS="110"), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def shows(*words: bytes) -> bool:
        nonlocal seen
        try:
            seen += os.read(ours, 65536)
        except OSError:
            return True
        return all(word in seen for word in words)

    wait_for(
        lambda: shows(b"database-server", b"serving", b"answer 42", b"AE title RADMESH", b"radmesh status"), "the view"
    )
    process.send_signal(signal.SIGINT)
    wait_for(lambda: shows(b"stopped\r\n"), "the end")
    assert process.wait(60) == 0
    os.close(ours)


def test_a_closed_terminal_drains(cluster):
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *cluster.command("up", "--data", str(cluster.data))],
        env=cluster.environment(TERM="xterm"), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    cluster.process = process
    cluster.ready()
    os.close(ours)
    assert process.wait(60) == 0
    assert cluster.nobody_left()


def test_nobody_reads_the_console(cluster):
    cluster.start()
    cluster.process.stdout.readline()
    cluster.process.stdout.close()
    ready = cluster.ready()
    os.kill(ready["pids"]["edge"][0], signal.SIGKILL)
    cluster.ready(lambda r: r["pids"]["edge"] and r["pids"]["edge"] != ready["pids"]["edge"])
    cluster.process.terminate()
    assert cluster.process.wait(60) == 0


def certificate_of(address: str, credentials: Path) -> bytes:
    """What a server shows to who connects now."""
    context = ssl.create_default_context(cafile=credentials / "ca.pem")
    context.load_cert_chain(credentials / "edge.pem", credentials / "edge.key")
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def ends(pem: bytes) -> float:
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


def metrics_port() -> int:
    """The first of 16 ports that are free, for each process of the mesh its own; no outgoing connection takes them."""
    for _ in range(100):
        first = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 16):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise AssertionError("no ports are free")


def test_certificates_are_renewed_while_all_runs(cluster):
    """In the servers' next handshakes, in their metrics and logs; nothing is restarted."""
    metrics = metrics_port()
    settings = ("mesh.certificate_life=8s", f"mesh.metrics_port={metrics}")
    before = cluster.up("--transport", "tls", *(f"--set={setting}" for setting in settings))
    credentials = cluster.data / "credentials"
    address = address_of(before["pids"]["archive-server"][0], "archive-server-0")
    # The file has the authority's behind it: only a parser of certificates tells where the first ends.
    found = x509.load_pem_x509_certificate((credentials / "archive-server-0.pem").read_bytes())
    first, end = found.public_bytes(serialization.Encoding.DER), found.not_valid_after_utc.timestamp()

    def renewed() -> bool:
        with contextlib.suppress(OSError):
            return certificate_of(address, credentials) != first
        return False

    wait_for(renewed, "another certificate at the same server")
    wait_for(lambda: time.time() > end, "the end of the first")
    wait_for(lambda: answers(lambda: status_of(cluster, "archive-server-0", transport=address)), "an answer")
    line = next(line for line in cluster.process.stdout if line.startswith("certificates renewed: "))
    assert set(line.split(": ")[1].strip().split(", ")) <= {"database-server", "archive-server-0", "edge"}
    name = b'radmesh_certificate_end_seconds{instance="archive-server-0"} '

    def shown() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics + 1}/metrics", timeout=30.0) as answer:
            return next(float(row[len(name) :]) for row in answer if row.startswith(name))

    wait_for(lambda: shown() > end, "the metric")
    logged = [json.loads(line) for line in (cluster.data / "logs" / "archive-server-0.log").read_text().splitlines()]
    assert "certificate renewed" in {entry["message"] for entry in logged}
    assert cluster.ready()["pids"] == before["pids"]
    assert cluster.stop()[0] == 0


def answers(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RadmeshError:
        return False
    return True


def test_certificates_that_ended_while_the_cluster_was_down(cluster):
    instances = ["database-server", "archive-server-0", "edge"]
    clock = ManualClock(datetime.now(UTC) - timedelta(days=366))
    Authority(cluster.data / "credentials", clock).issue(instances)
    cluster.up("--transport", "tls")
    for instance in instances:
        assert ends((cluster.data / "credentials" / f"{instance}.pem").read_bytes()) > time.time() + 300 * 86400
    assert cluster.stop()[0] == 0


def test_certificates_that_cannot_be_renewed_end_nothing(cluster):
    cluster.up("--set=mesh.certificate_life=6s")
    authority = cluster.data / "credentials" / "ca.key"
    authority.rename(authority.with_name("aside"))
    line = next(line for line in cluster.process.stdout if "cannot be renewed" in line)
    assert line.startswith(f"certificates cannot be renewed in {cluster.data / 'credentials'}: ")
    authority.with_name("aside").rename(authority)
    assert any(line.startswith("certificates renewed: ") for line in cluster.process.stdout)
    assert cluster.stop()[0] == 0


def test_a_certificate_that_nobody_renews_is_an_alarm(cluster):
    """As where another than `radmesh up` has to: shown while the component runs, and over when there is a new one."""
    folder = cluster.data / "credentials"
    clock = ManualClock(datetime.now(UTC) - timedelta(days=360))
    Authority(folder, clock).issue(["database-server", "edge"])
    process = subprocess.Popen(
        cluster.command("serve", "--target=database-server", "--data", str(cluster.data)),
        env=cluster.environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stderr.readline()

    def alarms() -> list[str]:
        return [alarm.reason for alarm in status_of(cluster, "database-server").alarms]

    wait_for(lambda: alarms() == ["CERTIFICATE_INVALID"], "the alarm")
    Authority(folder, SystemClock()).issue(["database-server", "edge"])
    wait_for(lambda: alarms() == [], "its end")
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 0


@pytest.mark.parametrize("transport", ["unix", "tls"])
def test_a_child_that_stands_still_is_started_again(cluster, transport):
    """It has been ready, its process is there, its socket takes connections; and nothing is answered."""
    metrics = metrics_port()
    settings = ("mesh.hang_timeout=2s", f"mesh.metrics_port={metrics}")
    before = cluster.up("--transport", transport, *(f"--set={setting}" for setting in settings))
    (stopped,) = before["pids"]["archive-server"]
    os.kill(stopped, signal.SIGSTOP)
    after = cluster.ready(lambda r: r["pids"]["archive-server"] and r["pids"]["archive-server"] != [stopped])
    assert not alive(stopped)
    assert {k: v for k, v in after["pids"].items() if k != "archive-server"} == {
        k: v for k, v in before["pids"].items() if k != "archive-server"
    }
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics + 1}/metrics", timeout=30.0) as answer:
        rows = answer.read().decode().splitlines()
    assert 'radmesh_instance_starts{instance="archive-server-0"} 2.0' in rows
    assert 'radmesh_instance_hangs{instance="archive-server-0"} 1.0' in rows
    code, output = cluster.stop()
    assert code == 0
    said = [line for line in output.splitlines() if line.startswith("archive-server-0: ")]
    assert [re.sub(r"\d+ s|pid \d+|see .*", "…", line) for line in said] == [
        "archive-server-0: has not answered for …",
        "archive-server-0: does not answer, for … now, killed; …",
        "archive-server-0: ended (killed by SIGKILL); starts again",
        "archive-server-0: serves again, …",
    ]


def test_a_child_that_computes_is_waited_for(cluster):
    """No thread of it answers for three times the patience: it is busy, not stuck."""
    before = cluster.up("--set=mesh.hang_timeout=2s")
    os.kill(before["pids"]["archive-server"][0], signal.SIGUSR1)
    lines = (line for line in cluster.process.stdout if line.startswith("archive-server-0: "))
    assert next(lines).startswith("archive-server-0: has not answered for")
    assert next(lines) == "archive-server-0: answers again\n"
    assert cluster.ready()["pids"] == before["pids"]
    assert cluster.stop()[0] == 0


def test_metrics(cluster):
    cluster.up()
    assert cluster.stop()[0] == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = cluster.command("serve", "--target=database-server", "--data", str(cluster.data))
        command += ["--set", f"mesh.metrics_port={port}"]
        refused = subprocess.run(
            command, env=cluster.environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert refused.returncode == 1
        assert "PORT_IN_USE" in refused.stderr
    process = subprocess.Popen(command, env=cluster.environment(), stderr=subprocess.PIPE, text=True)
    process.stderr.readline()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30.0) as answer:
        assert b"radmesh_rpc_seconds" in answer.read()
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 0
