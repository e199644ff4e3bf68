"""The catalogue: which generations of which studies there are, and how much of each is registered."""

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import lmdb

# OPEN: the environment takes objects. SEALED: it is read only, after a failed commit. EVICTING: on its way to the
# trash.
# PERMANENT_ONLY: the environment is gone, its rows are kept. LOST: its file is gone, and nobody here removed it.
# REMOVED: its objects are elsewhere; the row stays, so that its number and its sequences are never used again.
OPEN: Final = "OPEN"
SEALED: Final = "SEALED"
EVICTING: Final = "EVICTING"
PERMANENT_ONLY: Final = "PERMANENT_ONLY"
LOST: Final = "LOST"
REMOVED: Final = "REMOVED"
STATES: Final = (OPEN, SEALED, EVICTING, PERMANENT_ONLY, LOST, REMOVED)

_ROW: Final = struct.Struct(">BQQQ")
_KEY: Final = struct.Struct(">c16sI")


@dataclass(frozen=True, slots=True)
class Generation:
    """A row of the catalogue; `last`, `bytes`: exact once the environment is gone, else as last registered."""

    study_hash: str
    number: int
    study_instance_uid: str
    state: str = OPEN
    registered: int = 0
    last: int = 0
    bytes: int = 0


class Catalogue:
    """A small LMDB environment; every change is durable when it returns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        self._environment = lmdb.open(str(folder), map_size=16 << 30, max_dbs=0, sync=True, metasync=True)
        self._lock = threading.Lock()

    def get(self, study_hash: str, number: int) -> Generation | None:
        """Return a generation's row, or None."""
        with self._environment.begin() as transaction:
            raw = transaction.get(_key(b"s", study_hash, number))
        return None if raw is None else _decode(study_hash, number, raw)

    def latest(self, study_hash: str) -> Generation | None:
        """Return the row of a study's last generation, or None."""
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            found = cursor.set_range(_key(b"s", study_hash, 0xFFFFFFFF))
            if not (cursor.prev() if found else cursor.last()):
                return None
            kind, raw_hash, number = _KEY.unpack(cursor.key())
            if kind != b"s" or raw_hash.hex() != study_hash:
                return None
            return _decode(study_hash, number, cursor.value())

    def put(self, *generations: Generation, mark: bool | None = None) -> None:
        """Write rows; `mark` also sets or drops their mark "may have unregistered rows"."""
        with self._environment.begin(write=True) as transaction:
            for g in generations:
                raw = _ROW.pack(STATES.index(g.state), g.registered, g.last, g.bytes) + g.study_instance_uid.encode()
                transaction.put(_key(b"s", g.study_hash, g.number), raw)
                if mark:
                    transaction.put(_key(b"u", g.study_hash, g.number), b"")
                elif mark is False:
                    transaction.delete(_key(b"u", g.study_hash, g.number))

    def drop(self, study_hash: str, number: int) -> None:
        """Remove a row: of a generation that never had an object, or whose objects are elsewhere."""
        with self._environment.begin(write=True) as transaction:
            transaction.delete(_key(b"s", study_hash, number))
            transaction.delete(_key(b"u", study_hash, number))

    def update(self, study_hash: str, number: int, **changes: object) -> Generation | None:
        """Change fields of a row; None if there is none."""
        with self._lock:
            current = self.get(study_hash, number)
            if current is None:
                return None
            changed = replace(current, **changes)  # type: ignore[arg-type]
            self.put(changed)
            return changed

    def all(self) -> Iterator[Generation]:
        """Yield every row, by hash and number; pages of it, so that no reader stays open."""
        after = b"s"
        while True:
            page: list[Generation] = []
            with self._environment.begin() as transaction, transaction.cursor() as cursor:
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
        """Return the generations that may have unregistered rows."""
        found = []
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(b"u")
            while more and cursor.key()[:1] == b"u":
                _, raw_hash, number = _KEY.unpack(cursor.key())
                found.append((raw_hash.hex(), number))
                more = cursor.next()
        return found

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()


def _key(kind: bytes, study_hash: str, number: int) -> bytes:
    return _KEY.pack(kind, bytes.fromhex(study_hash), number)


def _decode(study_hash: str, number: int, raw: bytes) -> Generation:
    state, registered, last, size = _ROW.unpack_from(raw)
    return Generation(study_hash, number, bytes(raw[_ROW.size :]).decode(), STATES[state], registered, last, size)
