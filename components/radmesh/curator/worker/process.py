"""The process that decodes and codes: what a decoder does to it happens to nothing else.

It is asked with a line of JSON and a data set, and answers with messages: a letter, a length, and so many bytes.
"""

import contextlib
import ctypes
import json
import logging
import os
import resource
import struct
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import BinaryIO, Final

NICE: Final = 10
# Processor time of one frame, or of a data set's head. Not time on the wall, which passes on a busy machine too.
CPU_SECONDS: Final = 60
# What the codec takes for the largest frame, twice that for what decodes it, and the interpreter with its libraries.
MEMORY: Final = 3 << 30
# The process ends with it when it is at fault itself, not a decoder.
OUR_FAULT: Final = 70

READY, BEGIN, DATA, END, METADATA, DONE, AGAIN, FAULT = b"R", b"F", b"D", b"E", b"M", b"I", b"X", b"T"
HEAD: Final = struct.Struct("<cI")
_PIECE: Final = 1 << 20


def _idle_io() -> None:
    # Where the disk's scheduler knows of that.
    who_process, idle, sys_ioprio_set = 1, 3 << 13, {"x86_64": 251, "aarch64": 30}.get(os.uname().machine)
    if sys_ioprio_set:
        ctypes.CDLL(None, use_errno=True).syscall(sys_ioprio_set, who_process, 0, idle)


def lower_priority() -> None:
    """This thread, and what it starts, comes after others on the processor and on the disk."""
    # On Linux a nice value is that of a thread.
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))
    _idle_io()


def _limit() -> None:
    lower_priority()
    # It holds nothing that others wait for: it may run when nobody else wants to, whatever comes in meanwhile.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _limit_next_frame() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS, hard))


class _Input:
    """The data set of one request; `drain` passes over what was not needed of it."""

    def __init__(self, requests: BinaryIO, size: int) -> None:
        self._requests = requests
        self._rest = size

    def __iter__(self) -> Iterator[bytes]:
        while self._rest:
            piece = self._requests.read(min(self._rest, _PIECE))
            if not piece:
                os._exit(0)  # nobody is there any more
            self._rest -= len(piece)
            yield piece

    def drain(self) -> None:
        for _ in self:
            pass


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more requests."""
    import warnings  # noqa: PLC0415

    # Loaded before the first frame's time runs, and pydicom with them.
    from radmesh.curator.worker import instance, metadata  # noqa: PLC0415
    from radmesh.dicom import pydicom_htj2k  # noqa: PLC0415

    pydicom_htj2k.register()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)

    def tell(kind: bytes, data: bytes = b"") -> None:
        answers.write(HEAD.pack(kind, len(data)))
        answers.write(data)
        answers.flush()

    tell(READY)
    while line := requests.readline():
        asked = json.loads(line)
        pieces = _Input(requests, asked["size"])
        _limit_next_frame()
        identity, wish = metadata.Identity(**asked["identity"]), instance.Wish(**asked["wish"])
        for message in instance.make(pieces, identity, asked["uid"], wish):
            if isinstance(message, bytes):
                tell(DATA, message)
            elif isinstance(message, instance.Begin):
                _limit_next_frame()
                tell(BEGIN, struct.pack("<I", message.frame))
            elif isinstance(message, instance.End):
                tell(END, struct.pack(f"<{len(message.offsets)}Q", *message.offsets))
            elif isinstance(message, instance.Metadata):
                tell(METADATA, message.data)
            elif isinstance(message, instance.Done):
                # What is after the pixels is nobody's business, but has to be read for the digest of the whole.
                pieces.drain()
                tell(DONE, json.dumps(dict(message.facts)).encode())
            else:
                pieces.drain()
                tell(AGAIN, json.dumps(asdict(message.wish)).encode())


def main() -> None:
    """The process."""
    # Decoders that print must not be taken for answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _limit()
        serve(sys.stdin.buffer, answers)
    except MemoryError:
        os._exit(1)  # over what was asked: it is tried once more, and then given up
    except BaseException as error:  # noqa: BLE001 - told, without a value of the data set; who asked tries again
        with contextlib.suppress(OSError):
            answers.write(HEAD.pack(FAULT, len(text := _where(error))) + text)
            answers.flush()
        os._exit(OUR_FAULT)


def _where(error: BaseException) -> bytes:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{type(error).__name__} at {', '.join(f'{f.name}:{f.lineno}' for f in last)}".encode()


if __name__ == "__main__":
    main()
