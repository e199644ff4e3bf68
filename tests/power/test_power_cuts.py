"""The power goes at any moment: what was acknowledged is there, once, and whole.

A real process writes through the StudyStore, recorded by recorder.c; the disk it would leave is made for each cut
(power_cuts.py), and another process recovers it and compares (checker.py). That the test would notice is shown with a
writer that does not sync.
"""

import contextlib
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from depth import times
from power_cuts import Disk, cuts, operations

HERE = Path(__file__).parent
SEEDS = int(os.environ.get("POWER_SEEDS", times(2, 1)))
CUTS = int(os.environ.get("POWER_CUTS", times(50, 25)))


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: Any) -> Path:
    """The recorder, compiled."""
    made = tmp_path_factory.mktemp("recorder") / "recorder.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(made), str(HERE / "recorder.c"), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return made


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder in memory, if there is one: the disk is a model anyway."""
    made = Path(tempfile.mkdtemp(prefix="radmesh-power-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield made
    shutil.rmtree(made)


def record(recorder: Path, work: Path, seed: str, how: str = "", *, steps: int = 8, kill: bool = True) -> Path:
    """Run the writer, killed once in between; returns the trace."""
    trace = work / "trace"
    environment = {
        **os.environ,
        "LD_PRELOAD": str(recorder),
        "RECORD_ROOT": str(work / "disk"),
        "RECORD_LOG": str(trace),
        "RECORD_ACKS": str(work / "acks"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    (work / "disk").mkdir()
    dice = random.Random(seed)
    begin = 0
    while begin < steps:
        command = [sys.executable, str(HERE / "writer.py"), str(work / "disk" / "store"), str(work / "acks")]
        command += [seed, how, str(begin), str(steps)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = begin + dice.randrange(2, 5) if kill else steps
            for line in process.stdout:
                begin = int(line) + 1
                if begin == last and begin < steps:
                    # In the middle of the next step, wherever that is.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(dice.random() * 0.02)
                    process.send_signal(signal.SIGKILL)
                    kill = False
        assert process.returncode in (0, -signal.SIGKILL)
    return trace


class Checker:
    """A process that recovers one tree after another; when it dies another takes over."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, root: Path, acknowledged: list[Any]) -> tuple[list[str], int]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "checker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"root": str(root), "acknowledged": acknowledged}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self._process = None
            return [f"the reader died: {process.wait(60)}"], 0
        answer = json.loads(line)
        return answer["faults"], answer["objects"]

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate(timeout=20)


def cut_everywhere(work: Path, trace: Path, seed: str, count: int) -> dict[str, Any]:
    """Cut, recover, compare; returns the counts, and what was found wrong."""
    recorded = operations(trace)
    disk = Disk(str(work / "disk"))
    done = 0
    counts: dict[str, Any] = {"operations": len(recorded), "cuts": 0, "objects": 0, "faults": []}
    with contextlib.closing(Checker()) as check:
        for cut in cuts(recorded, count, seed):
            for operation in recorded[done:cut]:
                disk.do(operation)
            done = cut
            target = work / "cut"
            disk.cut(target, (seed, cut))
            faults, objects = check(target / "store", disk.acknowledged)
            counts["cuts"] += 1
            counts["objects"] += objects
            counts["faults"] += [f"cut {cut}: {fault}" for fault in faults]
            shutil.rmtree(target)
    return counts


def say(capsys: Any, what: str, counts: dict[str, Any]) -> None:
    with capsys.disabled():
        print(
            f"\npower: {what}: {counts['operations']} operations, {counts['cuts']} cuts, {counts['objects']} "
            f"acknowledged or registered objects looked for, {len(counts['faults'])} faults"
        )


def test_the_trace_misses_nothing(recorder, work):
    """Replayed to its end it gives the files that are there, but for those that are written through a map."""
    trace = record(recorder, work, "whole", steps=4)
    disk = Disk(str(work / "disk"))
    for operation in operations(trace):
        disk.do(operation)
    disk.write_all(work / "replayed")
    compared = 0
    for real in (work / "disk").rglob("*"):
        again = work / "replayed" / real.relative_to(work / "disk")
        assert again.exists(), real
        if real.is_file() and not real.name.endswith(("-lock", "lock.mdb")):
            assert filecmp.cmp(real, again, shallow=False), real
            compared += 1
    assert compared > 5
    assert sum(1 for _ in (work / "replayed").rglob("*")) == sum(1 for _ in (work / "disk").rglob("*"))


@pytest.mark.parametrize("seed", [f"seed {number}" for number in range(SEEDS)])
def test_nothing_acknowledged_is_lost(recorder, work, seed, capsys):
    counts = cut_everywhere(work, record(recorder, work, seed), seed, CUTS)
    say(capsys, seed, counts)
    assert counts["faults"] == []
    assert counts["objects"] > 20 * counts["cuts"]


def test_what_counts_as_registered_is_in_the_database(recorder, work, capsys):
    """Store and database on one disk: the store's mark is never ahead of the database's durable answer."""
    counts = cut_everywhere(work, record(recorder, work, "database", "database", steps=5), "database", CUTS // 2)
    say(capsys, "with the database", counts)
    assert counts["faults"] == []


@pytest.mark.parametrize("fault", ["nosync", "nodirsync", "nonamesync", "markfirst"])
def test_a_writer_that_does_not_sync_is_found_out(recorder, work, fault, capsys):
    counts = cut_everywhere(work, record(recorder, work, fault, fault, steps=4, kill=False), fault, times(20, 12))
    say(capsys, f"negative control, {fault}", counts)
    assert counts["faults"]
