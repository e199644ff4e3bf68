"""The permanent tier: a directory tree of DICOM Part 10 files that needs no radmesh to be read.

    <tier>/<2 hex>/<study hash>/<generation>-<sequence>.dcm     one object
    <tier>/<2 hex>/<study hash>/<generation>.manifest           index rows, a JSON object a line

Names come from object ids, never from raw UIDs. A file gets its name by link(2) after it was written, synced,
read back from the disk and hashed, and no file is ever replaced.
"""

import base64
import contextlib
import hashlib
import json
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from radmesh.api.common.v1 import common_pb2
from radmesh.dicom import part10
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.files import sync_directory
from radmesh.runtime.logs import Logger
from radmesh.study_store import IndexRow, ObjectHeader, Ref
from radmesh_native.crc32c import crc32c

BLOCK: Final = 1_048_560
MANIFESTS_CACHED: Final = 8
CHECKS_CACHED: Final = 64
"""Generations of which only the CRC-32C are kept: a few bytes an object."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of the tier: its index row, and the CRC-32C of every 1,048,560 bytes of its data set."""

    row: IndexRow
    checks: Sequence[int]


class Tier:
    """The tree under ``root``. Thread-safe for readers beside one writer."""

    def __init__(self, root: Path, log: Logger) -> None:
        self.root = root
        self._log = log
        self._lock = threading.Lock()
        self._manifests: OrderedDict[tuple[str, int], tuple[tuple[int, int], dict[int, Entry]]] = OrderedDict()
        self._checks: OrderedDict[tuple[str, int], dict[int, Sequence[int]]] = OrderedDict()

    # -- names

    def _folder(self, study_hash: str) -> Path:
        return self.root / study_hash[:2] / study_hash

    def path(self, ref: Ref) -> Path:
        """The file of an object."""
        return self._folder(ref.study_hash) / f"{ref.generation}-{ref.sequence}.dcm"

    def _manifest(self, study_hash: str, generation: int) -> Path:
        return self._folder(study_hash) / f"{generation}.manifest"

    # -- writing

    def write(self, row: IndexRow, data: Iterable[bytes | memoryview]) -> Entry:
        """Write an object, read it back from the disk, compare its digest, and give it its name.

        The name is durable after ``settle``. A file that a crash left behind under the name is adopted if it is
        whole, else set aside.

        Raises:
            RadmeshError: TIER_FAILED (the file system), OBJECT_CORRUPT (what came back is not what was stored).
        """
        final = self.path(row.ref)
        with _failing("write"):
            self._make(final.parent)
            if final.exists():
                entry = self._verified(row, final)
                if entry is not None:
                    return entry
                self._set_aside(final)
            partial = final.with_name(f".{final.name}.part")
            partial.unlink(missing_ok=True)  # of ours, and never more than a part
            try:
                entry = self._written(row, data, partial)
                os.link(partial, final)  # never replaces
            except BaseException:
                # What is half keeps no room: the disk may be full.
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
            partial.unlink()
        return entry

    def _written(self, row: IndexRow, data: Iterable[bytes | memoryview], partial: Path) -> Entry:
        """Write an object's file, durable, and read it back."""
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            _write_all(descriptor, _meta(row))
            for piece in data:
                _write_all(descriptor, piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        entry = self._verified(row, partial)
        if entry is None:
            raise RadmeshError("OBJECT_CORRUPT", "what came back from the permanent tier is not what was stored")
        return entry

    def settle(self, entries: Sequence[Entry]) -> None:
        """Make names and manifest lines of one generation durable.

        Raises:
            RadmeshError: TIER_FAILED.
        """
        ref = entries[0].row.ref
        manifest = self._manifest(ref.study_hash, ref.generation)
        with _failing("sync"):
            descriptor = os.open(manifest, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            try:
                size = os.fstat(descriptor).st_size
                torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
                lines = b"".join(_line(entry) for entry in entries)
                _write_all(descriptor, b"\n" + lines if torn else lines)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_directory(manifest.parent)

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder != self.root:
            self._make(folder.parent)
        folder.mkdir(mode=0o750, exist_ok=True)
        sync_directory(folder.parent)

    def _set_aside(self, path: Path) -> None:
        for number in range(1000):
            aside = path.with_name(f"{path.stem}.aside-{number}")
            with contextlib.suppress(FileExistsError):
                os.link(path, aside)
                path.unlink()
                self._log.warning("a file of the permanent tier is not what it should be, set aside", file=aside.name)
                return
        raise RadmeshError("TIER_FAILED", "too many files were set aside in one study: look at the disk")

    def _verified(self, row: IndexRow, path: Path) -> Entry | None:
        """Read a file with the page cache dropped; its entry if the data set is that of the row."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            begin = _begin(descriptor, row.length)
            if begin < 0:
                return None
            digest = hashlib.sha256()
            checks = array("I")
            for offset in range(0, row.length, BLOCK):
                data = os.pread(descriptor, min(BLOCK, row.length - offset), begin + offset)
                digest.update(data)
                checks.append(crc32c(data))
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        return Entry(row, checks) if digest.digest() == row.sha256 else None

    # -- reading

    def entries(self, study_hash: str, generation: int) -> dict[int, Entry]:
        """What the manifest of a generation says, by sequence; empty if there is none."""
        path = self._manifest(study_hash, generation)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return {}
        state = (stat.st_mtime_ns, stat.st_size)
        key = (study_hash, generation)
        with self._lock:
            known = self._manifests.get(key)
            if known is not None and known[0] == state:
                self._manifests.move_to_end(key)
                return known[1]
        entries = {}
        for line in path.read_bytes().split(b"\n"):
            entry = _entry(study_hash, generation, line)
            if entry is not None:
                entries[entry.row.ref.sequence] = entry
        with self._lock:
            self._manifests[key] = (state, entries)
            while len(self._manifests) > MANIFESTS_CACHED:
                self._manifests.popitem(last=False)
            self._checks[key] = {sequence: entry.checks for sequence, entry in entries.items()}
            while len(self._checks) > CHECKS_CACHED:
                self._checks.popitem(last=False)
        return entries

    def checks(self, ref: Ref) -> Sequence[int] | None:
        """CRC-32C of every 1,048,560 bytes of an object; None if the tier does not have it."""
        key = (ref.study_hash, ref.generation)
        with self._lock:
            found = self._checks.get(key, {}).get(ref.sequence)
            if found is not None:
                self._checks.move_to_end(key)
        if found is None:
            # A tier that cannot be read now keeps nobody from the cache.
            with contextlib.suppress(OSError):
                entry = self.entries(*key).get(ref.sequence)
                found = None if entry is None else entry.checks
        return found

    def entry(self, ref: Ref) -> Entry:
        """One object of the tier.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND.
        """
        entry = self.entries(ref.study_hash, ref.generation).get(ref.sequence)
        if entry is None:
            raise RadmeshError("OBJECT_NOT_FOUND", "the permanent tier does not have the object")
        return entry

    def read(self, ref: Ref, offset: int = 0, length: int = 0) -> "TierReader":
        """Open a part of an object; every block is checked as it is read.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, RANGE_INVALID, OBJECT_CORRUPT (file gone or of a wrong size).
        """
        return TierReader(self.path(ref), self.entry(ref), offset, length)


class TierReader:
    """Iterates bytes of one object, at most 1,048,560 at a time; a context manager.

    Attributes:
        size: bytes of the whole object.
        sha256: of the whole object.
        residence: RESIDENCE_PERMANENT.
    """

    residence = common_pb2.RESIDENCE_PERMANENT
    verified: Final = True

    def __init__(self, path: Path, entry: Entry, offset: int, length: int) -> None:
        row = entry.row
        self.size, self.sha256 = row.length, row.sha256
        if offset < 0 or length < 0 or offset > self.size or (offset == self.size and self.size):
            raise RadmeshError("RANGE_INVALID", f"the object has {self.size} bytes")
        self._checks = entry.checks
        self._at = offset
        self._end = min(self.size, offset + length) if length else self.size
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._begin = _begin(self._descriptor, self.size)
        except OSError as error:
            raise _corrupt("is gone") from error
        if self._begin < 0:
            self.close()
            raise _corrupt("has another size")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __iter__(self) -> Iterator[bytes]:
        while self._at < self._end:
            block = self._at // BLOCK
            start = block * BLOCK
            try:
                data = os.pread(self._descriptor, min(BLOCK, self.size - start), self._begin + start)
            except OSError as error:
                raise _corrupt("cannot be read") from error
            if block >= len(self._checks) or crc32c(data) != self._checks[block]:
                raise _corrupt("has other bytes than were written")
            piece = data[self._at - start : self._end - start]
            self._at += len(piece)
            yield piece


def _corrupt(what: str) -> RadmeshError:
    return RadmeshError("OBJECT_CORRUPT", f"the file in the permanent tier {what}: look at its disk")


def _meta(row: IndexRow) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1)."""
    header = row.header
    return part10.preamble_and_meta(
        sop_class_uid=header.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid,
        transfer_syntax_uid=header.transfer_syntax_uid,
        source_ae_title=header.calling_ae_title,
    )


def _begin(descriptor: int, length: int) -> int:
    """Offset of the data set, which ends with the file; -1: it cannot be there. Meta information differs by version."""
    begin = os.fstat(descriptor).st_size - length
    return begin if begin > 132 and os.pread(descriptor, 4, 128) == b"DICM" else -1


def _line(entry: Entry) -> bytes:
    row = entry.row
    fields: dict[str, Any] = {
        "sequence": row.ref.sequence,
        "length": row.length,
        "sha256": row.sha256.hex(),
        "crc32c": list(entry.checks),
        "receive_time": row.receive_time.isoformat(),
        "transfer_id": row.transfer_id.hex(),
        "remarks": list(row.remarks),
        "queryable": base64.b64encode(row.queryable).decode(),
        **asdict(row.header),
        "admission_key": row.header.admission_key.hex(),
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _entry(study_hash: str, generation: int, line: bytes) -> Entry | None:
    """A line's entry; None for a line that a crash tore."""
    try:
        fields = json.loads(line)
        checks = array("I", fields.pop("crc32c"))
        row = IndexRow(
            ref=Ref(study_hash, generation, fields.pop("sequence")),
            length=fields.pop("length"),
            sha256=bytes.fromhex(fields.pop("sha256")),
            receive_time=datetime.fromisoformat(fields.pop("receive_time")),
            transfer_id=bytes.fromhex(fields.pop("transfer_id")),
            remarks=tuple(fields.pop("remarks")),
            queryable=base64.b64decode(fields.pop("queryable")),
            header=ObjectHeader(**{**fields, "admission_key": bytes.fromhex(fields["admission_key"])}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return Entry(row, checks)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = os.strerror(error.errno or 0).lower()
        raise RadmeshError("TIER_FAILED", f"cannot {what} in the permanent tier: {name}") from error
