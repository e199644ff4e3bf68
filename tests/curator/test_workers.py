"""Processes that decode, and end over a frame: what they were doing is known, and nothing else is touched."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curator_support import FAULTS
from pixels_support import decoded, identity_of, make, open_file
from pydicom.data import get_testdata_file
from waiting import wait_for

from radmesh.curator.worker.instance import Wish
from radmesh.curator.workers import ClosedError, Worker, WorkerDiedError, WorkerUnavailableError
from radmesh.runtime.errors import RadmeshError


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def __iter__(self) -> Iterator[bytes]:
        for at in range(0, len(self.data), 1 << 16):
            yield self.data[at : at + (1 << 16)]


class Kept:
    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.text = b""

    def begin(self, frame: int) -> None:
        self.frames.append(b"")
        assert len(self.frames) == frame

    def data(self, data: bytes) -> None:
        self.frames[-1] += data

    def end(self, offsets: tuple[int, ...]) -> None:
        assert offsets[-1] == len(self.frames[-1])

    def metadata(self, data: bytes) -> None:
        self.text += data


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(("-P", "-c", FAULTS))
    yield made
    made.close()
    made.rest()


def ct(word: bytes = b"") -> tuple[bytes, str]:
    data, syntax = open_file(Path(str(get_testdata_file("CT_small.dcm"))))
    at = data.index(b"\xe0\x7f\x10\x00OW") + 12
    return data[:at] + word + data[at + len(word) :], syntax


def ask(worker: Worker, word: bytes = b"", sink: Any = None) -> Any:
    data, syntax = ct(word)
    return worker.make(Bytes(data), identity_of(data, syntax), syntax, Wish(), sink or Kept())


def test_a_process_does_what_the_functions_do(worker: Worker) -> None:
    sink = Kept()
    facts = ask(worker, sink=sink)
    here = make(*ct())
    assert (facts, sink.frames, sink.text) == (here.facts, here.frames, here.metadata)
    pid = worker.pid
    ask(worker)
    assert worker.pid == pid
    worker.rest()
    assert worker.pid == 0
    ask(worker)


@pytest.mark.parametrize(
    ("word", "how"),
    [
        (b"segfault", "signal 11"),
        (b"exit-now", "exit code 9"),
        (b"forever!", "signal 24"),
        (b"raising!", "exit code 70 LookupError at of_native:"),
    ],
)
def test_a_process_that_ends_over_a_frame(worker: Worker, word: bytes, how: str) -> None:
    with pytest.raises(WorkerDiedError) as died:
        ask(worker, word)
    assert (died.value.frame, died.value.killed) == (1, False)
    assert died.value.how.startswith(how)
    assert worker.pid == 0
    assert ask(worker)["state"] == 1


def test_a_frame_that_eats_memory_is_served_as_it_is(worker: Worker) -> None:
    sink = Kept()
    sink.end = lambda offsets: None  # type: ignore[method-assign]
    facts = ask(worker, b"eats-all", sink)
    assert (facts["state"], facts["reason"], facts["frame"]) == (3, "FRAME_TOO_LARGE", 1)
    assert sink.frames[0].startswith(b"eats-all")
    assert ask(worker)["state"] == 1


def test_a_process_that_stands_still_is_ended() -> None:
    worker = Worker(("-P", "-c", FAULTS), silent=1.0)
    with pytest.raises(WorkerDiedError, match="no answer in time") as died:
        ask(worker, b"sleeping")
    assert (died.value.frame, died.value.killed) == (1, False)
    worker.close()


def test_a_process_that_others_kill(worker: Worker) -> None:
    ask(worker)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            ask(worker, b"sleeping", sink)
        except BaseException as error:
            failures.append(error)

    sink = Kept()
    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: sink.frames)
    os.kill(worker.pid, signal.SIGKILL)
    thread.join(60)
    assert isinstance(failures[0], WorkerDiedError)
    assert failures[0].killed


def test_closing_ends_what_runs(worker: Worker) -> None:
    ask(worker)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            ask(worker, b"sleeping", sink)
        except BaseException as error:
            failures.append(error)

    sink = Kept()
    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: sink.frames)
    worker.close()
    thread.join(60)
    assert isinstance(failures[0], ClosedError)
    with pytest.raises(ClosedError):
        ask(worker)


class Broken(Bytes):
    def __iter__(self) -> Iterator[bytes]:
        yield self.data[: self.size // 2]
        raise RadmeshError("OBJECT_CORRUPT", "neither copy has the bytes")


def test_an_object_that_cannot_be_read_is_no_fault_of_the_process(worker: Worker) -> None:
    data, syntax = ct()
    with pytest.raises(RadmeshError, match="OBJECT_CORRUPT"):
        worker.make(Broken(data), identity_of(data, syntax), syntax, Wish(), Kept())
    assert ask(worker)["state"] == 1


class Full(Kept):
    def data(self, data: bytes) -> None:
        raise RadmeshError("STORAGE_FULL", "no room")


def test_a_sink_that_takes_no_more(worker: Worker) -> None:
    with pytest.raises(RadmeshError, match="STORAGE_FULL"):
        ask(worker, sink=Full())
    assert ask(worker)["state"] == 1


def test_what_does_not_start() -> None:
    worker = Worker(("-P", "-c", "raise SystemExit(3)"))
    with pytest.raises(WorkerUnavailableError):
        ask(worker)
    talks = Worker(("-P", "-c", "import os; os.write(1, b'X' * 4096)"))
    with pytest.raises(WorkerUnavailableError):
        ask(talks)


def test_a_process_is_last_in_line_and_knows_no_secrets(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADMESH_ADMIN_PASSWORD", "told in confidence")
    ask(worker)
    assert os.getpriority(os.PRIO_PROCESS, worker.pid) == max(10, os.getpriority(os.PRIO_PROCESS, 0))
    assert b"confidence" not in Path(f"/proc/{worker.pid}/environ").read_bytes()
    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    assert f"Max address space         {3 << 30}" in limits
    assert "Max file size             0 " in limits


def test_it_ends_with_who_asked() -> None:
    """A worker whose Curator is killed reads the end of its requests, or writes to nobody."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "import test_workers as t\n"
        "worker = t.Worker(); t.ask(worker); print(worker.pid, flush=True); sys.stdin.read()"
    )
    import subprocess
    import sys

    folders = f"{Path(__file__).parent}:{Path(__file__).parents[1] / 'support'}"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, folders], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_frames_of_any_length_pass(worker: Worker) -> None:
    """More than a pipe holds both ways, and nobody waits for the other."""
    data, syntax = open_file(Path(str(get_testdata_file("rtdose.dcm"))))
    sink = Kept()
    sink.end = lambda offsets: None  # type: ignore[method-assign]
    worker.make(Bytes(data), identity_of(data, syntax), syntax, Wish(), sink)
    assert sink.frames == make(data, syntax).frames
    rows = np.random.default_rng(1).integers(0, 4096, (2048, 2048)).astype("<u2")
    head, syntax = ct()
    at = head.index(b"\xe0\x7f\x10\x00OW")
    for tag in (b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00"):
        head = head.replace(tag + b"\x80\x00", tag + b"\x00\x08")
    large = head[: at + 8] + rows.nbytes.to_bytes(4, "little") + rows.tobytes()
    sink = Kept()
    worker.make(Bytes(large), identity_of(large, syntax), syntax, Wish(), sink)
    assert np.array_equal(decoded(sink.frames[0]), rows.view("i2"))
