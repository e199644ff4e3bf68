"""What is on the disk after the power went: replays a trace of recorder.c up to any operation.

The model is the least that POSIX promises. Of a file there is what was synced, and of what was written since any half
of its 4 KiB pieces. A name (create, rename, unlink) is there for sure after its folder was synced; before, each may
have happened or not. A rename is one step. A 4 KiB piece is whole, and a sync does not lie.
"""

import json
import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OPEN, CLOSE, WRITE, TRUNCATE, EXTEND, SYNC, RENAME, UNLINK, MKDIR, RMDIR, LINK, ACK, START = range(1, 14)
RECORD = struct.Struct("<B3xiQQII")
PIECE = 4096


@dataclass(slots=True)
class Operation:
    kind: int
    fd: int
    a: int
    b: int
    first: bytes
    second: bytes


def operations(trace: Path) -> list[Operation]:
    """Read a trace."""
    data = trace.read_bytes()
    found = []
    at = 0
    while at < len(data):
        kind, fd, a, b, n1, n2 = RECORD.unpack_from(data, at)
        at += RECORD.size
        found.append(Operation(kind, fd, a, b, data[at : at + n1], data[at + n1 : at + n1 + n2]))
        at += n1 + n2
    return found


@dataclass(slots=True)
class Change:
    """Not synced yet: `data` at `offset`, or (data None) a size. `forced`: it was synced by itself (O_DSYNC)."""

    offset: int
    data: bytes | None
    forced: bool = False


@dataclass(eq=False, slots=True)
class File:
    durable: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.changes:
            apply(self.durable, change.offset, change.data)
        self.changes.clear()

    def after_cut(self, dice: random.Random, mood: float) -> bytearray:
        content = bytearray(self.durable)
        for change in self.changes:
            if change.data is None or change.forced:
                if change.forced or dice.random() < mood:
                    apply(content, change.offset, change.data)
                continue
            at = change.offset
            while at < change.offset + len(change.data):
                end = min((at // PIECE + 1) * PIECE, change.offset + len(change.data))
                if dice.random() < mood:
                    apply(content, at, change.data[at - change.offset : end - change.offset])
                at = end
        return content


def apply(content: bytearray, offset: int, data: bytes | None) -> None:
    size = offset if data is None else offset + len(data)
    if len(content) < size:
        content.extend(bytes(size - len(content)))
    if data is None:
        del content[size:]
    else:
        content[offset:size] = data


@dataclass(eq=False, slots=True)
class Folder:
    names: dict[str, "File | Folder"] = field(default_factory=dict)


@dataclass(slots=True)
class Naming:
    """A step that names or un-names: in each folder, name → node or None. Durable when all its folders were synced."""

    steps: list[tuple[Folder, str, "File | Folder | None"]]
    unsynced: set[Folder]


class Disk:
    """The disk beneath `root`, as it is and as it would be."""

    def __init__(self, root: str) -> None:
        self._root_path = root
        self._root = Folder()
        # Folder.names is what is durable; the process sees this.
        self._current: dict[str, File | Folder] = {root: self._root}
        self._namings: list[Naming] = []
        self._open: dict[int, tuple[File | Folder, int]] = {}
        self.acknowledged: list[Any] = []

    def do(self, operation: Operation) -> None:
        """One operation of the trace happens."""
        kind = operation.kind
        if kind == START:
            self._open.clear()
        elif kind == ACK:
            self.acknowledged += [json.loads(line) for line in operation.first.splitlines()]
        elif kind == OPEN:
            self._do_open(operation)
        elif kind == CLOSE:
            self._open.pop(operation.fd, None)
        elif kind in (WRITE, TRUNCATE, EXTEND, SYNC):
            self._do_data(operation)
        else:
            self._do_name(operation)

    def _do_open(self, operation: Operation) -> None:
        path, flags = operation.first.decode(), operation.a
        node = self._current.get(path)
        if node is None:
            assert flags & os.O_CREAT, path
            node = File()
            self._name([(path, node)])
        self._open[operation.fd] = (node, flags)
        if flags & os.O_TRUNC and isinstance(node, File):
            node.changes.append(Change(0, None))

    def _do_data(self, operation: Operation) -> None:
        node, flags = self._open[operation.fd]
        if operation.kind == SYNC:
            if isinstance(node, File):
                node.sync()
            else:
                self._sync_names(node)
            return
        assert isinstance(node, File)
        if operation.kind == WRITE:
            forced = bool(flags & os.O_DSYNC)
            node.changes.append(Change(operation.a, operation.first, forced))
        elif operation.kind == TRUNCATE:
            node.changes.append(Change(operation.a, None))
        else:
            node.changes.append(Change(operation.a, b""))

    def _do_name(self, operation: Operation) -> None:
        first, second = operation.first.decode(), operation.second.decode()
        if operation.kind == MKDIR:
            self._name([(first, Folder())])
        elif operation.kind in (UNLINK, RMDIR):
            self._name([(first, None)])
        elif operation.kind == LINK:
            self._name([(second, self._current[first])])
        elif operation.kind == RENAME:
            assert isinstance(self._current[first], File)
            self._name([(first, None), (second, self._current[first])])

    def _name(self, changes: list[tuple[str, File | Folder | None]]) -> None:
        steps = []
        for path, node in changes:
            parent = self._current[str(Path(path).parent)]
            assert isinstance(parent, Folder)
            steps.append((parent, Path(path).name, node))
            if node is None:
                del self._current[path]
            else:
                self._current[path] = node
        self._namings.append(Naming(steps, {folder for folder, _, _ in steps}))

    def _sync_names(self, folder: Folder) -> None:
        for naming in self._namings:
            naming.unsynced.discard(folder)
        while self._namings and not self._namings[0].unsynced:
            for parent, name, node in self._namings.pop(0).steps:
                _set(parent.names, name, node)

    def cut(self, target: Path, seed: object) -> None:
        """Write into `target` what is on the disk if the power goes now."""
        dice = random.Random(repr(seed))
        # Nothing, everything, or some of what is not synced.
        mood = dice.choice((0.0, 1.0, 0.5, 0.5, 0.5, 0.9))
        folders: dict[Folder, dict[str, File | Folder]] = {}
        for naming in self._namings:
            if not naming.unsynced or dice.random() < mood:
                for folder, name, node in naming.steps:
                    _set(folders.setdefault(folder, dict(folder.names)), name, node)
        self._write(self._root, target, folders, lambda file: file.after_cut(dice, mood))

    def write_all(self, target: Path) -> None:
        """Write into `target` what the process sees: a trace that missed something differs from the real files."""
        for path, node in self._current.items():
            place = target / os.path.relpath(path, self._root_path)
            if isinstance(node, Folder):
                place.mkdir(parents=True, exist_ok=True)
        for path, node in self._current.items():
            if isinstance(node, File):
                content = bytearray(node.durable)
                for change in node.changes:
                    apply(content, change.offset, change.data)
                (target / os.path.relpath(path, self._root_path)).write_bytes(content)

    def _write(self, folder: Folder, target: Path, folders: Any, content: Any) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for name, node in sorted(folders.get(folder, folder.names).items()):
            if isinstance(node, Folder):
                self._write(node, target / name, folders, content)
            else:
                (target / name).write_bytes(content(node))


def _set(names: dict[str, File | Folder], name: str, node: File | Folder | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def cuts(trace: list[Operation], count: int, seed: object) -> Iterator[int]:
    """Return `count` operations before which the power goes, rising: anywhere, and right behind acknowledgements.

    What an acknowledgement relies on is at stake most just after it was given.
    """
    dice = random.Random(repr(seed))
    behind = [number + 1 for number, operation in enumerate(trace) if operation.kind == ACK]
    chosen = {
        dice.choice(behind) if dice.random() < 0.5 else dice.randrange(1, len(trace) + 1) for _ in range(count * 2)
    }
    return iter(sorted(dice.sample(sorted(chosen), min(count, len(chosen)))))
