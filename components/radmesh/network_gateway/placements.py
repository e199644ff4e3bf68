"""What the gateway remembers of stores and placements, for when the Database Server does not answer; durable."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import lmdb

_STORES: Final = b"stores"
_STUDY: Final = b"study "


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive as it was last heard of."""

    store_id: str
    target: str
    epoch: str
    alive: bool
    accepting: bool
    put_target: str = ""


class Memory:
    """A small LMDB environment: Study Instance UID -> store, and the list of archives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._environment = lmdb.open(str(folder), map_size=1 << 32, max_dbs=0, sync=True, metasync=True)
        self._lock = threading.Lock()
        self._archives: tuple[Archive, ...] = ()
        with self._environment.begin() as transaction:
            raw = transaction.get(_STORES)
        if raw:
            self._archives = tuple(Archive(**fields) for fields in json.loads(raw))

    @property
    def archives(self) -> tuple[Archive, ...]:
        """The archives, as last heard of."""
        return self._archives

    def set_archives(self, archives: Sequence[Archive]) -> None:
        """Remember the archives; written only when something changed."""
        with self._lock:
            if tuple(archives) == self._archives:
                return
            self._archives = tuple(archives)
            with self._environment.begin(write=True) as transaction:
                transaction.put(_STORES, json.dumps([asdict(a) for a in archives]).encode())

    def place(self, study_instance_uid: str, store_id: str) -> None:
        """Remember where a study goes."""
        if self.placement(study_instance_uid) != store_id:
            with self._environment.begin(write=True) as transaction:
                transaction.put(_STUDY + study_instance_uid.encode(), store_id.encode())

    def placement(self, study_instance_uid: str) -> str:
        """Return where a study went; empty if that is not known."""
        with self._environment.begin() as transaction:
            raw: Any = transaction.get(_STUDY + study_instance_uid.encode())
        return raw.decode() if raw else ""

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()
