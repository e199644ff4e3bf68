"""The rejects store: bytes that could not be stored as DICOM objects, kept for people to look at; bounded.

<folder>/<id>.json   what it was and why it was rejected; written last, so that it vouches for the bytes
<folder>/<id>.bin    the bytes
"""

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import sync_directory, write_atomic
from radmesh.study_store import CHUNK_MAX
from radmesh.study_store.store import Buffer

_TEXT: Final = 64
_IDENTIFIER: Final = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A reject. `receive_time` is microseconds since 1970 UTC."""

    id: str
    receive_time: int
    calling_ae_title: str
    source_address: str
    reason: str
    tag: str
    message: str
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    length: int
    cut: bool

    @property
    def position(self) -> str:
        """Where it is in the list."""
        return f"{self.receive_time}.{self.id}"

    @property
    def time(self) -> datetime:
        """When it came."""
        return datetime.fromtimestamp(self.receive_time / 1e6, UTC)


class Rejects:
    """The store. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        most_bytes: int,
        most_count: int,
        most_each: int,
        alarm: Callable[[str, str], None],
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._most_bytes, self._most_count, self.most_each = most_bytes, most_count, most_each
        self._alarm = alarm
        self._lock = threading.Lock()
        self._items: OrderedDict[str, Rejected] = OrderedDict()
        self.bytes = 0
        self.dropped = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for path in folder.iterdir():
            if path.suffix == ".json":
                item = _read(path)
                if item is None:
                    path.unlink()
                    path.with_suffix(".bin").unlink(missing_ok=True)
                else:
                    found.append(item)
        for path in folder.iterdir():
            if path.suffix != ".json" and not path.with_suffix(".json").exists():
                path.unlink()  # it was not kept
        for item in sorted(found, key=lambda r: r.receive_time):
            self._items[item.id] = item
            self.bytes += item.length
        self._make_room()

    def open(self, identifier: bytes, header: transfer_pb2.Header) -> "Incoming":
        """Begin to take a reject."""
        return Incoming(self, self._folder, identifier.hex(), header)

    def now(self) -> int:
        """Return the time as rejects keep it."""
        return int(self._clock.now().timestamp() * 1e6)

    def keep(self, item: Rejected) -> None:
        """Make a reject known whose bytes are durable; the oldest give way."""
        write_atomic(self._folder / f"{item.id}.json", json.dumps(asdict(item)).encode())
        with self._lock:
            replaced = self._items.pop(item.id, None)
            self.bytes += item.length - (replaced.length if replaced else 0)
            self._items[item.id] = item
        self._make_room()

    def _make_room(self) -> None:
        over = []
        with self._lock:
            while len(self._items) > self._most_count or (self.bytes > self._most_bytes and len(self._items) > 1):
                _, oldest = self._items.popitem(last=False)
                self.bytes -= oldest.length
                over.append(oldest)
            self.dropped += len(over)
        for oldest in over:
            self._remove(oldest.id)
        if over:
            self._alarm("REJECTS_FULL", "the rejects store is full: the oldest gave way")

    def _remove(self, identifier: str) -> None:
        (self._folder / f"{identifier}.json").unlink(missing_ok=True)
        (self._folder / f"{identifier}.bin").unlink(missing_ok=True)

    def list(self, before: str, limit: int) -> list[Rejected]:
        """Return rejects, newest first, behind the position `before`, whether or not that one still is there.

        Raises:
            RadmeshError: FIELD_INVALID.
        """
        with self._lock:
            items = sorted(self._items.values(), key=lambda item: (item.receive_time, item.id), reverse=True)
        if before:
            time, _, identifier = before.partition(".")
            if not time.isdecimal() or not _IDENTIFIER.fullmatch(identifier):
                raise RadmeshError("FIELD_INVALID", "page_token: of another query", metadata={"field": "page_token"})
            position = (int(time), identifier)
            items = [item for item in items if (item.receive_time, item.id) < position]
        return items[:limit]

    def get(self, identifier: str) -> Rejected:
        """Return a reject.

        Raises:
            RadmeshError: REJECT_NOT_FOUND.
        """
        with self._lock:
            item = self._items.get(identifier)
        if item is None:
            raise RadmeshError("REJECT_NOT_FOUND", "there is no such reject")
        return item

    def read(self, item: Rejected) -> Iterator[bytes]:
        """Yield the bytes of a reject."""
        try:
            with (self._folder / f"{item.id}.bin").open("rb") as file:
                while data := file.read(CHUNK_MAX):
                    yield data
        except FileNotFoundError:
            raise RadmeshError("REJECT_NOT_FOUND", "the reject gave way to newer ones") from None

    def delete(self, identifier: str) -> None:
        """Remove a reject.

        Raises:
            RadmeshError: REJECT_NOT_FOUND.
        """
        item = self.get(identifier)
        with self._lock:
            if self._items.pop(identifier, None) is not None:
                self.bytes -= item.length
        self._remove(identifier)


def _read(path: Path) -> Rejected | None:
    """What a reject's file says; None if it does not vouch for the bytes beside it."""
    try:
        item = Rejected(**json.loads(path.read_bytes()))
        whole = item.id == path.stem and path.with_suffix(".bin").stat().st_size == item.length
    except (ValueError, TypeError, FileNotFoundError):
        return None
    return item if whole else None


class Incoming:
    """A reject that is being received."""

    def __init__(self, rejects: Rejects, folder: Path, identifier: str, header: transfer_pb2.Header) -> None:
        self._rejects = rejects
        self._folder = folder
        self._id = identifier
        self._header = header
        self._path = folder / f"{identifier}.bin"
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RadmeshError("STORAGE_FULL", "the rejects store cannot be written") from error
        self._length = 0
        self._cut = False
        self._open = True

    def write(self, data: Buffer) -> None:
        """Take the next bytes; what is beyond the bound is dropped."""
        view = memoryview(data)
        room = self._rejects.most_each - self._length
        if len(view) > room:
            self._cut = True
            view = view[:room]
        try:
            while view:
                n = os.write(self._file, view)
                self._length += n
                view = view[n:]
        except OSError as error:
            self.drop()
            raise RadmeshError("STORAGE_FULL", "the rejects store cannot be written") from error

    def keep(self, reason: str, tag: str, message: str, *, cut: bool = False) -> None:
        """Make it durable; `cut`: its sender had no more than its beginning."""
        header = self._header
        try:
            os.fsync(self._file)
            self._close()
            sync_directory(self._folder)
            self._rejects.keep(
                Rejected(
                    id=self._id,
                    receive_time=self._rejects.now(),
                    calling_ae_title=header.calling_ae_title[:_TEXT],
                    source_address=header.source_address[:_TEXT],
                    reason=reason,
                    tag=tag,
                    message=message,
                    transfer_syntax_uid=header.transfer_syntax_uid[:_TEXT],
                    sop_class_uid=header.sop_class_uid[:_TEXT],
                    sop_instance_uid=header.sop_instance_uid[:_TEXT],
                    length=self._length,
                    cut=self._cut or cut,
                )
            )
        except OSError as error:
            self._close()
            self._path.unlink(missing_ok=True)
            raise RadmeshError("STORAGE_FULL", "the rejects store cannot be written") from error

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file)

    def drop(self) -> None:
        """Forget it."""
        if self._open:
            self._close()
            self._path.unlink(missing_ok=True)
