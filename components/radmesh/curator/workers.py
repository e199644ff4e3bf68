"""Runs worker processes (radmesh.curator.worker.process), and bears whatever becomes of them."""

import contextlib
import json
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from radmesh.curator.worker import process as protocol
from radmesh.curator.worker.instance import CHUNK, Wish
from radmesh.curator.worker.metadata import Identity

# Nothing is written and nothing read for so long: it hangs. Frames have a limit of processor time besides.
SILENT_SECONDS: Final = 300.0
COMMAND: Final = ("-P", "-m", "radmesh.curator.worker.process")
_START_SECONDS: Final = 120.0
_ENDING_SECONDS: Final = 5.0
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
# Messages but data are short.
_MESSAGE_MOST: Final = CHUNK


class WorkerUnavailableError(Exception):
    """No process could be started: try again later."""


class WorkerDiedError(Exception):
    """The process ended, or was ended, over `frame`; 0: before the first.

    `how` is for a log; `killed`: somebody else did it, such as a kernel that has no memory left.
    """

    def __init__(self, frame: int, how: str = "", *, killed: bool = False) -> None:
        super().__init__(f"the worker ended over frame {frame}: {how}")
        self.frame = frame
        self.how = how
        self.killed = killed


class _EndedError(Exception):
    """There are no more answers."""


class ClosedError(Exception):
    """The Curator stops."""


class DataSet(Protocol):
    """A data set that can be read: its bytes and, in order, their pieces."""

    size: int

    def __iter__(self) -> Iterator[Any]: ...


class Sink(Protocol):
    """Takes what is made of an instance, in this order."""

    def begin(self, frame: int) -> None:
        """The data that follow are of this frame, from 1."""
        ...

    def data(self, data: bytes) -> None:
        """The next chunk of the frame."""
        ...

    def end(self, offsets: tuple[int, ...]) -> None:
        """The frame is complete."""
        ...

    def metadata(self, data: bytes) -> None:
        """The next part of the JSON object."""
        ...


class Worker:
    """One process, started when it is needed and used again. One thread uses it."""

    def __init__(self, command: tuple[str, ...] = COMMAND, silent: float = SILENT_SECONDS) -> None:
        self._command = command
        self._silent_seconds = silent
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._moved = 0.0
        self._late = False

    @property
    def pid(self) -> int:
        """Of the process; 0: none runs."""
        process = self._process
        return process.pid if process is not None else 0

    def make(self, source: DataSet, identity: Identity, uid: str, wish: Wish, sink: Sink) -> dict[str, Any] | Wish:
        """Make an instance; return its facts, or how it is to be made instead.

        Raises:
            WorkerDiedError, WorkerUnavailableError, ClosedError, what `source` and `sink` raise.
        """
        process = self._running()
        asked = {"size": source.size, "identity": asdict(identity), "uid": uid, "wish": asdict(wish)}
        feeding = _Feeding(process, json.dumps(asked).encode() + b"\n", source, self._touch)
        self._touch()
        frame = 0
        whole = False
        try:
            feeding.start()
            with self._watched(process, self._silent_seconds):
                while True:
                    kind, data = self._message(process)
                    self._touch()
                    if kind == protocol.DATA:
                        sink.data(data)
                    elif kind == protocol.BEGIN:
                        (frame,) = struct.unpack("<I", data)
                        sink.begin(frame)
                    elif kind == protocol.END:
                        sink.end(struct.unpack(f"<{len(data) // 8}Q", data))
                    elif kind == protocol.METADATA:
                        sink.metadata(data)
                    elif kind in (protocol.DONE, protocol.AGAIN):
                        break
                    else:
                        # It is about to end.
                        process.wait(_ENDING_SECONDS)
                        raise _EndedError(data.decode(errors="replace"))
            feeding.finish()
            whole = True
        except (OSError, _EndedError, subprocess.TimeoutExpired) as error:
            code = self._end()
            feeding.finish()  # the source failed: that is no fault of the process
            if self._closed:
                raise ClosedError from error
            killed = code == -signal.SIGKILL and not self._late
            how = "no answer in time" if self._late else f"exit code {code}" if code >= 0 else f"signal {-code}"
            raise WorkerDiedError(frame, f"{how} {error}".strip(), killed=killed) from error
        finally:
            if not whole:
                self._end()
                feeding.stop()
        return json.loads(data) if kind == protocol.DONE else Wish(**json.loads(data))

    def rest(self) -> None:
        """End the process, whose memory others can use."""
        self._end()

    def close(self) -> None:
        """End the process for good; from any thread."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()

    def _touch(self) -> None:
        self._moved = time.monotonic()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if self._closed:
            raise ClosedError
        # Nothing of what this process was told in confidence; one thread for numerical libraries.
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            self._process = process = subprocess.Popen(  # noqa: S603 - the command line is made here
                [sys.executable, *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        except OSError as error:
            raise WorkerUnavailableError(os.strerror(error.errno or 0).lower()) from error
        try:
            self._touch()
            with self._watched(process, _START_SECONDS):
                ready = self._message(process)[0] == protocol.READY
        except (OSError, _EndedError):
            ready = False
        if not ready:
            self._end()
            if self._closed:
                raise ClosedError
            raise WorkerUnavailableError("the process that decodes does not start")
        return process

    @staticmethod
    def _message(process: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
        assert process.stdout is not None
        head = process.stdout.read(protocol.HEAD.size)
        if len(head) < protocol.HEAD.size:
            raise _EndedError
        kind, size = protocol.HEAD.unpack(head)
        if size > _MESSAGE_MOST:
            raise _EndedError
        data = process.stdout.read(size)
        if len(data) < size:
            raise _EndedError
        return kind, data

    @contextmanager
    def _watched(self, process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[None]:
        """Kill the process when nothing moves for `seconds`."""
        done = threading.Event()
        self._late = False

        def watch() -> None:
            while not done.wait(min(seconds, 5.0)):
                if _waits_for_a_core(process.pid):
                    self._touch()  # others go first, however long; how much it may compute is bounded elsewhere
                elif time.monotonic() - self._moved > seconds:
                    self._late = True
                    process.kill()
                    return

        watcher = threading.Thread(target=watch, name="worker-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _end(self) -> int:
        """End the process, if it has not ended; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that has closed its answers is about to end by itself, and says how.
            process.wait(_ENDING_SECONDS if process.poll() is None and self._silent(process) else 0)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written has no reader
                    pipe.close()
        return process.returncode

    @staticmethod
    def _silent(process: "subprocess.Popen[bytes]") -> bool:
        """Whether the process has closed its end of the answers."""
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))


def _waits_for_a_core(pid: int) -> bool:
    """Whether a process runs, or would if it were let."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"R"
    except (OSError, IndexError):
        return False


class _Feeding:
    """Writes a request to a process while its answers are read."""

    def __init__(self, process: "subprocess.Popen[bytes]", head: bytes, source: DataSet, touch: Any) -> None:
        assert process.stdin is not None
        self._pipe = process.stdin
        self._head = head
        self._source = source
        self._touch = touch
        self._failure: BaseException | None = None
        self._stopped = False
        self._process = process
        self._thread = threading.Thread(target=self._run, name="worker-feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._pipe.write(self._head)
            for piece in self._source:
                self._touch()
                if self._stopped:
                    return
                self._pipe.write(piece)
                self._touch()
            self._pipe.flush()
        except (BrokenPipeError, ValueError):
            return  # it has ended: who reads its answers says so
        except BaseException as error:  # noqa: BLE001 - raised where the answers are read
            self._failure = error
            # It would wait for the rest for ever.
            self._process.kill()

    def finish(self) -> None:
        """Wait until all is written; raise what the source raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()


class Workers:
    """A number of workers, for as many threads."""

    def __init__(self, count: int) -> None:
        self.all = [Worker() for _ in range(count)]
        self._free: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self.all:
            self._free.put(worker)

    @contextmanager
    def one(self) -> Iterator[Worker]:
        """A worker that nobody else uses."""
        worker = self._free.get()
        try:
            yield worker
        finally:
            self._free.put(worker)

    def rest(self) -> None:
        """End the processes that nobody uses."""
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for worker in idle:
            worker.rest()
            self._free.put(worker)

    def close(self) -> None:
        """End all."""
        for worker in self.all:
            worker.close()
