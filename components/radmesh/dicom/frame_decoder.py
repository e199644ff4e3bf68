"""Decodes frames to see whether they can be decoded, in a process of its own.

Decoders are written in C and meet whatever was sent: what they do to their process must not happen to an archive. The
process is started once and used again; when it ends over a frame, a fresh one tries the frame a second time.
"""

import contextlib
import json
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

# Processor time of one frame. Not time on the wall, which passes on a busy machine too.
CPU_SECONDS: Final = 10
WALL_SECONDS: Final = 300.0
START_SECONDS: Final = 120.0
# What openjpeg takes for the largest frame that is tried, and what the interpreter and its libraries have mapped.
MEMORY: Final = 3 << 30
_NICE: Final = 15
# The process ends with it when it is at fault itself, not a decoder.
_OUR_FAULT: Final = 70

_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL")

_READY, _DECODED, _FAILED, _UNABLE = b"R", b"+", b"-", b"?"


class DecoderUnavailableError(Exception):
    """A frame was not tried: the process does not start, does not answer, or was closed. Try again later."""


class FrameDecoder:
    """Thread-safe; one frame at a time."""

    def __init__(self, command: tuple[str, ...] = ("-P", "-m", "radmesh.dicom.frame_decoder")) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def __call__(self, frame: bytes | bytearray, values: Mapping[str, Any]) -> bool | None:
        """Return whether one encoded frame can be decoded; None: no decoder is here for what it is.

        Args:
            frame: the frame's fragments, joined.
            values: `uid` (transfer syntax) and pydicom's options for its decoders: rows, columns, …

        Raises:
            DecoderUnavailableError: it was not tried.
        """
        head = json.dumps({**values, "length": len(frame)}).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                answer = self._ask(self._running(), head, frame)
                if answer:
                    return {_DECODED: True, _FAILED: False}.get(answer)
            return False

    @property
    def pid(self) -> int:
        """Of the process; 0: none runs."""
        process = self._process
        return process.pid if process is not None else 0

    def rest(self) -> None:
        """End the process, whose memory others can use; the next frame starts another."""
        with self._lock:
            self._end()

    def close(self) -> None:
        """End the process; a frame that is being decoded was not tried."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if self._closed:
            raise DecoderUnavailableError("closed")
        # Nothing of what this process was told in confidence. One thread is enough for numerical libraries, whose
        # buffers would count against the memory limit.
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
            raise DecoderUnavailableError(os.strerror(error.errno or 0).lower()) from error
        if self._exchange(process, (), START_SECONDS) != _READY:
            self._end()
            raise DecoderUnavailableError("the process that decodes does not start")
        return process

    def _ask(self, process: "subprocess.Popen[bytes]", head: bytes, frame: bytes | bytearray) -> bytes:
        """Return the answer; empty: the process has ended over the frame."""
        answer = self._exchange(process, (head, frame), WALL_SECONDS)
        if not answer:
            self._end()
        return answer

    def _exchange(
        self, process: "subprocess.Popen[bytes]", parts: tuple[bytes | bytearray, ...], seconds: float
    ) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        answer = b""
        try:
            # Closing kills the process that it finds, and this one may have come after that.
            if not self._closed:
                for part in parts:
                    process.stdin.write(part)
                process.stdin.flush()
                answer = process.stdout.read(1)
        except OSError:
            pass  # it has ended
        try:
            if answer:
                return answer
            if self._closed:
                process.kill()
            fault = process.wait() == _OUR_FAULT
        finally:
            timer.cancel()
        if self._closed or late.is_set() or fault:
            self._end()
            raise DecoderUnavailableError(
                "closed" if self._closed else "no answer in time" if late.is_set() else "the process that decodes fails"
            )
        return b""

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written has no reader
                    pipe.close()
        process.wait()


def _limit() -> None:
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _limit_next_frame() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS, hard))


def decode(frame: bytes, values: Mapping[str, Any]) -> bytes:
    """Decode one frame here; return "+" (it can be), "-" (it cannot) or "?" (there is no decoder for it)."""
    from pydicom.encaps import encapsulate  # noqa: PLC0415 - not in the process that asks
    from pydicom.pixels import get_decoder  # noqa: PLC0415
    from pydicom.pixels.decoders.base import DecodeRunner  # noqa: PLC0415
    from pydicom.uid import UID  # noqa: PLC0415

    options = {**values, "number_of_frames": 1, "pixel_keyword": "PixelData"}
    uid = options.pop("uid")
    try:
        decoder = get_decoder(uid)
        if not decoder.is_available:
            return _UNABLE
        source = encapsulate([frame], has_bot=False)
        # What the data set says of the frame does not fit together: that says nothing of the frame.
        runner = DecodeRunner(UID(uid))
        runner.set_source(source)
        runner.set_options(**options)
        runner.validate()
    except Exception:  # noqa: BLE001
        return _UNABLE
    try:
        decoder.as_array(source, index=0, raw=True, **options)
    except (MemoryError, NotImplementedError):
        return _UNABLE
    except BaseException:  # noqa: BLE001 - each plugin raises what it likes; a panic in Rust is no Exception
        return _FAILED
    return _DECODED


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more requests."""
    import warnings  # noqa: PLC0415

    # Loaded before the first frame's time runs, and pydicom with it.
    from radmesh.dicom import pydicom_htj2k  # noqa: PLC0415

    pydicom_htj2k.register()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    answers.write(_READY)
    answers.flush()
    while line := requests.readline():
        values = json.loads(line)
        length = values.pop("length")
        frame = requests.read(length)
        if len(frame) < length:
            return
        _limit_next_frame()
        answers.write(decode(frame, values))
        answers.flush()


def main() -> None:
    """The process."""
    # Decoders that print must not be taken for answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _limit()
        serve(sys.stdin.buffer, answers)
    except BaseException:  # noqa: BLE001 - whatever it is, no frame is to be blamed
        os._exit(_OUR_FAULT)


if __name__ == "__main__":
    main()
