"""The catalogue: which generations of which studies there are, and how much of each is registered.

Were it lost, the files themselves would be adopted, and everything in them registered once more.
"""

import contextlib
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import lmdb

from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import sync_directory
from radmesh.study_store.files import extend_to_last_page, prepare_lock
from radmesh.study_store.store import Ref

# OPEN: the environment takes objects. SEALED: it takes no more, after a failed commit. EVICTING: on its way to the
# trash. PERMANENT_ONLY: the environment is gone, its rows are kept. LOST: its file is gone, or none that can be opened,
# and nobody here removed it. REMOVED: its objects are elsewhere, and its file is being removed.
OPEN: Final = "OPEN"
SEALED: Final = "SEALED"
EVICTING: Final = "EVICTING"
PERMANENT_ONLY: Final = "PERMANENT_ONLY"
LOST: Final = "LOST"
REMOVED: Final = "REMOVED"
# A state is kept as its place in this: append only.
STATES: Final = (OPEN, SEALED, EVICTING, PERMANENT_ONLY, LOST, REMOVED)
IN_CACHE: Final = (OPEN, SEALED)
ROWS_ONLY: Final = (EVICTING, PERMANENT_ONLY)

MAP_SIZE: Final = 16 << 30
NUMBER_MAX: Final = 0xFFFFFFFF
_VERSION: Final = b"1"
_ROW: Final = struct.Struct(">BQQQ")
_KEY: Final = struct.Struct(">c16sI")
_HASH: Final = re.compile(r"[0-9a-f]{32}")
_WAIT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Generation:
    """A row of the catalogue. `last`, `bytes`: exact once the environment is gone, else as of the last registration."""

    study_hash: str
    number: int
    study_instance_uid: str
    state: str = OPEN
    registered: int = 0
    last: int = 0
    bytes: int = 0


class Catalogue:
    """A small LMDB environment; every change is durable when it returns.

        s <hash 16> <number 4>      a generation's row
        z <hash 16> <number 4=0>    greatest number of the study's generations that were removed: it is not used again
        b <hash 16> <number 4> <sequence 8>     an object that is damaged: its bytes are not what was committed
        u <hash 16> <number 4>      the mark "may have rows to register, or transfers to drop": looked into at start
        v                           version of the format
        w                           nothing: written to see whether the disk takes writes

    Any call raises RadmeshError (COMMIT_FAILED, STORAGE_FULL) when the file system fails; the next one opens the
    environment anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._condition = threading.Condition()
        self._users = 0
        self._broken = False
        self._environment: Any = None
        self.replaced = False
        """Whether there was a catalogue that could not be opened, and a new one was begun."""
        folder.mkdir(exist_ok=True, mode=0o700)
        # There while a start goes on. LMDB ends the process that meets a page which is none: no start may for ever.
        self._starting = folder / "starting"
        if self._starting.exists() and not _survived(folder):
            self.replaced = True
            self._set_aside()
        self._starting.touch()
        try:
            self._environment = self._open()
            _check_whole(self._environment)
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError, ValueError):
            # Half made when the power went, or damaged. It is kept for people; the store finds its files without it.
            if self._environment is not None:
                self._environment.close()
            self.replaced = True
            self._set_aside()
            self._environment = self._open()
        sync_directory(folder)

    def _open(self) -> Any:
        prepare_lock(self._folder / "lock.mdb")
        environment = lmdb.open(str(self._folder), map_size=MAP_SIZE, max_dbs=0, sync=True, metasync=True, mode=0o700)
        try:
            extend_to_last_page(environment, self._folder / "data.mdb")
            _check_version(environment)
        except BaseException:
            environment.close()
            raise
        return environment

    def _set_aside(self) -> None:
        number = 1
        while (aside := self._folder / f"damaged-{number}.mdb").exists():
            number += 1
        (self._folder / "data.mdb").rename(aside)

    def started(self) -> None:
        """Whoever relies on it has found all that is needed: the start is over."""
        self._starting.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _use(self) -> Iterator[Any]:
        """The environment, which nobody closes meanwhile."""
        with self._condition:
            if self._broken and self._condition.wait_for(lambda: not self._users, _WAIT_SECONDS) and self._broken:
                self._environment.close()
                try:
                    self._environment = self._open()
                except (lmdb.Error, OSError) as error:
                    raise _failure(error) from error
                self._broken = False
            self._users += 1
        try:
            yield self._environment
        except (lmdb.Error, OSError) as error:
            self._broken = True
            raise _failure(error) from error
        finally:
            with self._condition:
                self._users -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def _write(self) -> Iterator[Any]:
        """A write transaction: what is read in it cannot change before it is committed."""
        with self._use() as environment, environment.begin(write=True) as transaction:
            yield transaction

    # -- reading

    def get(self, study_hash: str, number: int) -> Generation | None:
        """Return a generation's row, or None: also of what can be no name of one."""
        if not _HASH.fullmatch(study_hash) or not 0 < number <= NUMBER_MAX:
            return None
        with self._use() as environment, environment.begin() as transaction:
            raw = transaction.get(_key(b"s", study_hash, number))
        return None if raw is None else _decode(study_hash, number, raw)

    def generations(self, study_hash: str) -> list[Generation]:
        """Return the rows of a study, in order."""
        found: list[Generation] = []
        if not _HASH.fullmatch(study_hash):
            return found
        prefix = _key(b"s", study_hash, 0)[:17]
        with self._use() as environment, environment.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(prefix)
            while more and cursor.key()[:17] == prefix:
                found.append(_decode(study_hash, _KEY.unpack(cursor.key())[2], cursor.value()))
                more = cursor.next()
        return found

    def next_number(self, study_hash: str) -> int:
        """Return the number of a study's next generation: one that none ever had."""
        with self._use() as environment, environment.begin() as transaction:
            removed = int.from_bytes(transaction.get(_key(b"z", study_hash, 0)) or b"", "big")
        return max([removed, *(g.number for g in self.generations(study_hash))]) + 1

    def all(self, behind: tuple[str, int] = ("", 0)) -> Iterator[Generation]:
        """Yield every row behind one, by hash and number; pages of it, so that no reader stays open."""
        after = _key(b"s", *behind) + b"\0" if _HASH.fullmatch(behind[0]) else b"s"
        while True:
            page: list[Generation] = []
            with self._use() as environment, environment.begin() as transaction, transaction.cursor() as cursor:
                more = cursor.set_range(after)
                while more and cursor.key()[:1] == b"s" and len(page) < 1000:
                    _, raw_hash, number = _KEY.unpack(cursor.key())
                    page.append(_decode(raw_hash.hex(), number, cursor.value()))
                    more = cursor.next()
            if not page:
                return
            yield from page
            after = _key(b"s", page[-1].study_hash, page[-1].number) + b"\0"

    def marked(self) -> list[tuple[str, int]]:
        """Return the generations that have the mark."""
        found = []
        with self._use() as environment, environment.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(b"u")
            while more and cursor.key()[:1] == b"u":
                _, raw_hash, number = _KEY.unpack(cursor.key())
                found.append((raw_hash.hex(), number))
                more = cursor.next()
        return found

    def damaged(self) -> list[Ref]:
        """Return the objects that are damaged."""
        found = []
        with self._use() as environment, environment.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(b"b")
            while more and cursor.key()[:1] == b"b":
                found.append(_ref(cursor.key()))
                more = cursor.next()
        return found

    # -- writing

    def mark_damaged(self, ref: Ref, *, damaged: bool = True) -> None:
        """Say that an object is damaged, or is not."""
        key = _key(b"b", ref.study_hash, ref.generation) + ref.sequence.to_bytes(8, "big")
        with self._write() as transaction:
            if damaged:
                transaction.put(key, b"")
            else:
                transaction.delete(key)

    def add(self, generation: Generation, *, mark: bool) -> None:
        """Write the row of a new generation."""
        with self._write() as transaction:
            transaction.put(_key(b"s", generation.study_hash, generation.number), _encode(generation))
            if mark:
                transaction.put(_key(b"u", generation.study_hash, generation.number), b"")

    def mark(self, study_hash: str, number: int) -> None:
        """Set the mark."""
        with self._write() as transaction:
            transaction.put(_key(b"u", study_hash, number), b"")

    def probe(self) -> None:
        """Write something, durably: raises where the file system does not take it."""
        with self._write() as transaction:
            transaction.put(b"w", _VERSION)

    def unmark(self, keys: list[tuple[str, int]]) -> None:
        """Drop marks."""
        with self._write() as transaction:
            for study_hash, number in keys:
                transaction.delete(_key(b"u", study_hash, number))

    def update(self, study_hash: str, number: int, *, unmark: bool = False, **changes: object) -> Generation | None:
        """Change fields of a row; None if there is none."""
        with self._write() as transaction:
            return _change(transaction, study_hash, number, changes, unmark=unmark)

    def register(self, study_hash: str, number: int, sequence: int, last: int, *, unmark: bool) -> None:
        """Move the registered sequence forward; never back."""
        with self._write() as transaction:
            raw = transaction.get(_key(b"s", study_hash, number))
            if raw is not None:
                registered = max(_decode(study_hash, number, raw).registered, sequence)
                _change(transaction, study_hash, number, {"registered": registered, "last": last}, unmark=unmark)

    def retire(self, study_hash: str, number: int) -> None:
        """Drop the row of a generation that was removed; its number is remembered."""
        with self._write() as transaction:
            transaction.delete(_key(b"s", study_hash, number))
            transaction.delete(_key(b"u", study_hash, number))
            prefix = _key(b"b", study_hash, number)
            with transaction.cursor() as cursor:
                more = cursor.set_range(prefix)
                while more and cursor.key().startswith(prefix):
                    more = cursor.delete()
            removed = int.from_bytes(transaction.get(_key(b"z", study_hash, 0)) or b"", "big")
            transaction.put(_key(b"z", study_hash, 0), max(removed, number).to_bytes(4, "big"))

    def close(self) -> None:
        """Close the environment."""
        with self._condition:
            self._condition.wait_for(lambda: not self._users, _WAIT_SECONDS)
            self._environment.close()


def _check_version(environment: Any) -> None:
    with environment.begin() as transaction:
        version = transaction.get(b"v")
    if version is None:
        with environment.begin(write=True) as transaction:
            transaction.put(b"v", _VERSION)
    elif version != _VERSION:
        raise RadmeshError("DATA_IN_USE", "the store was written by a newer radmesh: start that one")


def _check_whole(environment: Any) -> None:
    """Read everything once: a damaged page is found now, when all can be made anew, and not in the midst of work.

    Raises:
        lmdb.Error: a page is none.
        ValueError: an entry is none.
    """
    with environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
        entries = environment.stat()["entries"]
        for key, value in cursor:
            entries -= 1
            if bytes(key[:1]) == b"s":
                _, raw_hash, number = _KEY.unpack(key)
                _decode(bytes(raw_hash).hex(), number, value)
    if entries:
        raise ValueError("not all entries are there")


def _survived(folder: Path) -> bool:
    """Return whether another process can read everything without being ended by it."""
    command = [sys.executable, "-P", "-m", "radmesh.study_store.catalogue", str(folder)]
    code = subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode  # noqa: S603 - our own
    return -code not in (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV)


def _change(
    transaction: Any, study_hash: str, number: int, changes: dict[str, Any], *, unmark: bool
) -> Generation | None:
    raw = transaction.get(_key(b"s", study_hash, number))
    if raw is None:
        return None
    changed = replace(_decode(study_hash, number, raw), **changes)
    transaction.put(_key(b"s", study_hash, number), _encode(changed))
    if unmark:
        transaction.delete(_key(b"u", study_hash, number))
    return changed


def _failure(error: Exception) -> RadmeshError:
    if "No space left" in str(error):
        return RadmeshError("STORAGE_FULL", "the store's file system is full")
    return RadmeshError("COMMIT_FAILED", f"the store's catalogue failed: {type(error).__name__}")


def _key(kind: bytes, study_hash: str, number: int) -> bytes:
    return _KEY.pack(kind, bytes.fromhex(study_hash), number)


def _ref(key: bytes) -> Ref:
    _, raw_hash, number = _KEY.unpack_from(key)
    return Ref(raw_hash.hex(), number, int.from_bytes(key[_KEY.size :], "big"))


def _encode(g: Generation) -> bytes:
    return _ROW.pack(STATES.index(g.state), g.registered, g.last, g.bytes) + g.study_instance_uid.encode()


def _decode(study_hash: str, number: int, raw: bytes) -> Generation:
    try:
        state, registered, last, size = _ROW.unpack_from(raw)
        STATES[state]
    except (struct.error, IndexError) as error:
        raise ValueError("a row of the catalogue is none") from error
    return Generation(study_hash, number, bytes(raw[_ROW.size :]).decode(), STATES[state], registered, last, size)


if __name__ == "__main__":
    with contextlib.closing(lmdb.open(sys.argv[1], map_size=MAP_SIZE, readonly=True, lock=False)) as opened:
        _check_whole(opened)
