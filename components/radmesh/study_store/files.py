"""What LMDB's files need that LMDB does not do: room for the lock file, and pages up to the last one."""

import os
from pathlib import Path
from typing import Any, Final

# Two cache lines, and one for each of some 600 readers: more than a server has threads.
LOCK_BYTES: Final = 40_960
PAGE: Final = 4096


def prepare_lock(path: Path) -> None:
    """Give an environment's lock file its room on the disk.

    LMDB makes it sparse and writes to it through a map: on a full disk that is no error but SIGBUS.

    Raises:
        OSError: no room.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, LOCK_BYTES)
    finally:
        os.close(descriptor)


def extend_to_last_page(environment: Any, path: Path) -> None:
    """Make an open environment's file as long as its last page number says.

    A file that a disk or a person cut short is read through a map: beyond its end that is no error but SIGBUS. As a
    hole it is zeros: LMDB calls them corrupt, and digests differ.
    """
    needed = (environment.info()["last_pgno"] + 1) * PAGE
    if path.stat().st_size < needed:
        os.truncate(path, needed)
