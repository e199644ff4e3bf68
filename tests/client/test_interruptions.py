"""Ctrl-C, full disks, and a door that dies amid a file: nothing half is left, and every file is accounted for."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_support import COMMAND, RealCluster, data_set, environment, save
from waiting import wait_for

from radmesh.client import Cluster
from radmesh.client import cluster as module
from radmesh.client.shell import FAILED, INTERRUPTED, PARTIAL, UNREACHABLE, USAGE

LARGE = 24_000_000


@pytest.fixture(scope="module")
def large(cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A study of eight large instances (four are fetched at once) and a small one: data sets by SOP Instance UID."""
    folder = tmp_path_factory.mktemp("large")
    paths = [
        save(folder, 1, SOPInstanceUID=f"2.25.77.1.1.{n}", PixelData=bytes([n]) * LARGE, Rows=4000, Columns=3000)
        for n in range(8)
    ]
    paths.append(save(folder, 1, SOPInstanceUID="2.25.77.1.1.9"))
    assert cluster.run("store", folder).code == 0
    return {path.stem: data_set(path) for path in paths}


def start(cluster: RealCluster, *arguments: object, **options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=environment(RADMESH_DATA=str(cluster.data)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # type: ignore[call-overload]  # fmt: skip


def interrupt(process: "subprocess.Popen[str]", when) -> tuple[int, str, str]:
    """Send what Ctrl-C sends as soon as a condition holds; the process stands still meanwhile."""
    wait_for(when)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_ctrl_c_while_fetching_leaves_whole_files_alone(cluster, large, tmp_path):
    for attempt in range(50):
        out = tmp_path / f"out{attempt}"
        process = start(cluster, "get", "2.25.77.1", "--out", out)

        def amid(out: Path = out) -> bool:
            return out.exists() and any(p.stat().st_size > 100_000 for p in out.iterdir() if p.suffix == ".part")

        while not amid() and process.poll() is None:
            time.sleep(0.001)
        # Whoever looks may come too late: it has to stand still with much before it.
        process.send_signal(signal.SIGSTOP)
        if out.exists() and sum(p.suffix != ".part" for p in out.iterdir()) < 3:
            break
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
    code, said, err = interrupt(process, lambda: True)
    assert (code, said) == (INTERRUPTED, ""), err
    assert "Traceback" not in err
    left = {path.stem: data_set(path) for path in out.iterdir()}
    assert {uid: large[uid] for uid in left} == left
    assert len(left) < len(large)


def test_ctrl_c_while_storing_says_how_far_it_came(cluster, tmp_path):
    small, large = save(tmp_path, 50), save(tmp_path, 51, PixelData=bytes(LARGE), Rows=4000, Columns=3000)
    process = start(cluster, "store", small, *[large] * 200)
    code, said, err = interrupt(process, lambda: cluster.run("find", "--patient-id", "P50", "--json").json["studies"])
    assert (code, said) == (INTERRUPTED, "")
    assert "Traceback" not in err
    assert re.fullmatch(r"interrupted: \d+ of 201 files were answered; storing again goes on\n", err)
    assert cluster.run("store", small, "--json").json["results"][0]["outcome"] == "ALREADY"


def test_a_disk_that_is_full_is_said_and_what_fits_is_there(cluster, large, tmp_path):
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    process = start(cluster, "get", "2.25.77.1", "--out", tmp_path, preexec_fn=small_files_only)
    said, err = process.communicate(timeout=120)
    assert process.returncode == PARTIAL
    assert said == f"1 file in {tmp_path}, 8 failed\n"
    assert err.count(f"FILE_NOT_WRITTEN: cannot write {tmp_path}/2.25.77.1.1.") == 8
    assert "File too large" in err
    assert "FILE_NOT_WRITTEN: check the folder's permissions and room" in err
    assert [(path.stem, data_set(path)) for path in tmp_path.iterdir()] == [("2.25.77.1.1.9", large["2.25.77.1.1.9"])]


@pytest.mark.parametrize("arguments", [("find",), ("find", "--json"), ("status",), ("audit", "--json")])
def test_output_that_has_no_room_is_an_error(cluster, arguments):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], env=environment(RADMESH_DATA=str(cluster.data)),
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == FAILED
    assert done.stderr == (
        "radmesh: cannot write the output: No space left on device\n"
        "  FILE_NOT_WRITTEN: check the folder's permissions and room\n"
    )


def test_a_folder_without_files_is_said(cluster, tmp_path):
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "deep" / ".hidden").write_text("")
    answer = cluster.run("store", tmp_path, "--json")
    assert (answer.code, answer.reason) == (USAGE, "FOLDER_EMPTY")
    assert answer.json["error"]["message"] == f"there is no file in {tmp_path} to store"


# -- a door that dies


@contextmanager
def without_the_door(cluster: RealCluster) -> Iterator[None]:
    """The Application Server is killed, and comes back afterwards."""
    os.kill(cluster.process.pid, signal.SIGSTOP)
    try:
        kill_the_door(cluster)
        yield
    finally:
        os.kill(cluster.process.pid, signal.SIGCONT)
        wait_for(lambda: cluster.run("status").code == 0, 20)


def kill_the_door(cluster: RealCluster) -> None:
    ready = json.loads((cluster.data / "ready.json").read_bytes())
    for pid in ready["pids"]["application-server"]:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def _door(cluster: RealCluster) -> None:
    """The door is there: the test before may have killed it."""
    wait_for(lambda: cluster.run("find", "--json").code == 0, 30)


def test_a_read_goes_on_where_the_door_died(cluster, large):
    with cluster.client() as client:
        (instance,) = client.instances("2.25.77.1", sop_instance_uid="2.25.77.1.1.2")
        pieces = client.read("2.25.77.1", instance)
        received = [next(pieces)]
        kill_the_door(cluster)
        received += pieces
    assert b"".join(received) == large["2.25.77.1.1.2"]


def at_the_third(monkeypatch: pytest.MonkeyPatch, what) -> None:
    """Do something when two files were answered and a third is on its way."""
    answered: list[object] = []
    once, requests = Cluster._store_once, module._file_requests

    def watched(self, *arguments):
        for result in once(self, *arguments):
            answered.append(result)
            yield result

    done: list[int] = []

    def acting(label, path):
        for request in requests(label, path):
            yield request
            if path.stem.endswith(".2") and not done:
                done.append(1)
                wait_for(lambda: len(answered) == 2)
                what()

    monkeypatch.setattr(Cluster, "_store_once", watched)
    monkeypatch.setattr(module, "_file_requests", acting)


def several(folder: Path, number: int) -> list[Path]:
    pixels = os.urandom(320_000)
    return [
        save(folder, number, SOPInstanceUID=f"2.25.77.{number}.1.{n}", PixelData=pixels, Rows=400, Columns=400)
        for n in range(6)
    ]


def test_storing_goes_on_when_the_door_died(cluster, tmp_path, monkeypatch):
    paths = several(tmp_path, 60)
    at_the_third(monkeypatch, lambda: kill_the_door(cluster))
    answer = cluster.run("store", "--json", *paths)
    assert (answer.code, answer.json["stored"]) == (0, 6)
    assert [Path(r["path"]) for r in answer.json["results"]] == paths
    instances = cluster.run("show", "2.25.77.60", "--json").json["instances"]
    assert sorted(i["sop_instance_uid"] for i in instances) == [path.stem for path in paths]


def test_a_door_that_stays_away_leaves_an_account_of_every_file(cluster, tmp_path, monkeypatch):
    paths = several(tmp_path, 61)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.5)
    gone = without_the_door(cluster)
    at_the_third(monkeypatch, gone.__enter__)
    try:
        answer = cluster.run("store", "--json", *paths)
        assert cluster.run("find", "--json").code == UNREACHABLE
    finally:
        gone.__exit__(None, None, None)
    assert answer.code == PARTIAL
    assert [(r["path"], r["outcome"]) for r in answer.json["results"]] == [
        (str(path), "STORED" if n < 2 else "PEER_UNAVAILABLE") for n, path in enumerate(paths)
    ]
