"""One generation of one study: an LMDB environment in a single file.

Keys begin with a letter that says what they are; numbers are big-endian, so that keys sort by them.

    m                           Study Instance UID
    r <object 8> <offset 8>     a record: data set bytes at that offset, at most 1,048,560
    x <sequence 8>              an index row: the object is committed and visible, and waits to be registered
    i <sha256(uid) 16> <seq 8>  (SHA-256, transfer syntax) of an instance: finds duplicates and variants
    t <transfer id 16>          sequence that a transfer was committed as: repeats are answered from it
    q <transfer id 16>          an unfinished transfer: object, acknowledged offset, time, what object it is
    p <sequence 8>              the object is in the permanent tier, verified there
    d <sequence 8>              pixel data was checked; the value is the defect, or empty

What stays of an evicted generation is such a file too, without records (r) and unfinished transfers (q).
"""

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import lmdb

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import rows
from radmesh.study_store.committer import Committer, Operation
from radmesh.study_store.files import extend_to_last_page, prepare_lock
from radmesh.study_store.store import Buffer, IndexRow, ObjectHeader, Outcome, Ref, Stored

MAP_SIZE: Final = 64 << 30
# An unfinished transfer may be resumed for this long.
RESUME_SECONDS: Final = 3600.0
SEQUENCE_MAX: Final = (1 << 64) - 1
# What an evicted generation keeps.
KEPT: Final = b"mxitpd"
COPY_BYTES: Final = 4 << 20

_NUMBER: Final = struct.Struct(">Q")
_PENDING: Final = struct.Struct(">QQd")


def _key(kind: bytes, number: int) -> bytes:
    return kind + _NUMBER.pack(number)


def record_key(number: int, offset: int) -> bytes:
    """Return the key of an object's record."""
    return b"r" + _NUMBER.pack(number) + _NUMBER.pack(offset)


@dataclass(frozen=True, slots=True)
class Content:
    """What an object is, and the transfer that brings it (what makes it the same as another: `identity`)."""

    transfer_id: bytes
    header: ObjectHeader
    length: int
    sha256: bytes

    def instance_key(self) -> bytes:
        """Return the beginning of the keys of all that has the SOP Instance UID."""
        return b"i" + hashlib.sha256(self.header.sop_instance_uid.encode()).digest()[:16]

    def identity(self) -> bytes:
        """Return the value that only the same content has under such a key."""
        return self.sha256 + self.header.transfer_syntax_uid.encode()


class Environment:
    """The open environment. `references` and `evicting` belong to the store, under its lock.

    `earlier` are numbers of the study's generations before this one; `rows_only` is true of an evicted one. `damaged`
    tells of which sequences the bytes are not what was committed.

    Raises:
        FileNotFoundError: there is no file, and `create` is false (LMDB would make one).
        lmdb.Error: the file is no environment.
    """

    def __init__(
        self,
        path: Path,
        study_hash: str,
        generation: int,
        *,
        commit: Callable[["Environment", list[Operation]], None],
        after: Callable[["Environment", list[Operation]], None],
        pool: ThreadPoolExecutor,
        damaged: Callable[[int], bool],
        create: bool = False,
        rows_only: bool = False,
        sync: bool = True,
    ) -> None:
        if not create and not path.stat().st_size:
            raise lmdb.InvalidError("the file is empty")
        self.path = path
        self.study_hash = study_hash
        self.generation = generation
        self.earlier: tuple[int, ...] = ()
        self.rows_only = rows_only
        self._damaged = damaged
        self.references = 0
        self.evicting = False
        self.sealed = False
        if not rows_only:
            prepare_lock(path.with_name(path.name + "-lock"))
        self.lmdb = lmdb.open(
            str(path),
            subdir=False,
            create=create,
            readonly=rows_only,
            lock=not rows_only,
            map_size=MAP_SIZE,
            max_dbs=0,
            max_readers=512,
            # Never anything else: an unsynced environment that is torn kills its reader by SIGBUS. Tests turn it off
            # to see that they would notice.
            sync=sync,
            metasync=sync,
            writemap=False,
            mode=0o600,
        )
        self.committer = Committer(lambda batch: commit(self, batch), lambda batch: after(self, batch), pool)
        self._lock = threading.Lock()
        try:
            if not create:
                extend_to_last_page(self.lmdb, path)
            self.last_sequence = self._last(b"x")
            self._next_sequence = self.last_sequence
            self._next_object = self._last(b"r") + 1
        except BaseException:
            self.lmdb.close()
            raise

    def _last(self, kind: bytes) -> int:
        """Return the greatest number behind `kind`; 0 if there is none."""
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            found = cursor.set_range(bytes((kind[0] + 1,)))
            if not (cursor.prev() if found else cursor.last()) or cursor.key()[:1] != kind:
                return 0
            return int(_NUMBER.unpack_from(cursor.key(), 1)[0])

    def close(self) -> None:
        """Close the file."""
        self.lmdb.close()

    def sync(self) -> None:
        """Make everything that is in the file durable."""
        self.lmdb.sync(True)  # noqa: FBT003 - lmdb's own signature

    def size(self) -> int:
        """Return the file's bytes on disk."""
        return self.path.stat().st_blocks * 512

    # -- what is in it

    def study_instance_uid(self) -> str:
        """Return the study's UID."""
        with self.lmdb.begin() as transaction:
            return (transaction.get(b"m") or b"").decode()

    def raw_row(self, sequence: int) -> bytes | None:
        """Return an encoded index row, or None."""
        return self.mark(b"x", sequence)

    def raw_rows(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return (sequence, encoded row) of rows behind `after`."""
        found: list[tuple[int, bytes]] = []
        if after >= SEQUENCE_MAX:
            return found
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(_key(b"x", max(0, after) + 1))
            while more and len(found) < limit and cursor.key()[:1] == b"x":
                found.append((_NUMBER.unpack_from(cursor.key(), 1)[0], cursor.value()))
                more = cursor.next()
        return found

    def unmarked(self, kind: bytes) -> list[int]:
        """Return the sequences of objects that do not have a mark (p, d), in order."""
        marked = set(self._sequences(kind))
        return [sequence for sequence in self._sequences(b"x") if sequence not in marked]

    def _sequences(self, kind: bytes) -> list[int]:
        found = []
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(kind)
            while more and cursor.key()[:1] == kind:
                found.append(_NUMBER.unpack_from(cursor.key(), 1)[0])
                more = cursor.next()
        return found

    def mark(self, kind: bytes, sequence: int) -> bytes | None:
        """Return the value of one entry that belongs to an object, or None."""
        if not 0 < sequence <= SEQUENCE_MAX:
            return None
        with self.lmdb.begin() as transaction:
            value: bytes | None = transaction.get(_key(kind, sequence))
            return value

    def set_marks(self, kind: bytes, values: dict[int, bytes], seconds: float) -> None:
        """Write marks of objects that are there; durable when it returns.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, COMMIT_FAILED, STORE_BUSY.
        """
        if not all(0 < sequence <= self.last_sequence for sequence in values):
            raise RadmeshError("OBJECT_NOT_FOUND", "the store has no such object")

        def apply(transaction: Any) -> None:
            for sequence, value in values.items():
                transaction.put(_key(kind, sequence), value)

        self.committer.run(Operation(apply, 0, mark=True), seconds)

    def records(self, number: int, offset: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of an object from `offset` to `end`. No transaction is open while the caller has them.

        Raises:
            RadmeshError: OBJECT_CORRUPT: a record is missing, or the file cannot be read.
        """
        while offset < end:
            try:
                piece = self._piece(number, offset, end)
            except lmdb.Error as error:
                raise RadmeshError("OBJECT_CORRUPT", "the study's cache file cannot be read") from error
            if not piece:
                raise RadmeshError("OBJECT_CORRUPT", "a record of the object is missing in the cache")
            offset += len(piece)
            yield piece

    def _piece(self, number: int, offset: int, end: int) -> bytes:
        """Return what the record that has `offset` has from there on; nothing if there is none."""
        with self.lmdb.begin(buffers=True) as transaction, transaction.cursor() as cursor:
            wanted = record_key(number, offset)
            found = cursor.set_range(wanted)
            if not found or bytes(cursor.key()) != wanted:
                # The range begins within a record.
                found = cursor.prev() if found else cursor.last()
            key = bytes(cursor.key()) if found else b""
            if key[:9] != wanted[:9]:
                return b""
            start = _NUMBER.unpack_from(key, 9)[0]
            return bytes(cursor.value()[offset - start : end - start])

    # -- what was there before

    def find(self, content: Content) -> tuple[int, Outcome] | None:
        """Return what is here of a content: (its sequence, STORED or ALREADY), or (0, VARIANT), or None.

        STORED: by this very transfer.

        Raises:
            RadmeshError: TRANSFER_INVALID: the transfer id was used for another object.
        """
        with self.lmdb.begin() as transaction:
            return self._find(transaction, content, content.instance_key(), content.identity())

    def _find(self, transaction: Any, content: Content, instance: bytes, identity: bytes) -> tuple[int, Outcome] | None:
        sequence = self._committed(transaction, content.transfer_id, content.header)
        if sequence:
            if rows.content(transaction.get(_key(b"x", sequence))) != (content.length, content.sha256):
                raise RadmeshError("TRANSFER_INVALID", "the transfer id was used for another object")
            return sequence, Outcome.STORED
        found = None
        with transaction.cursor() as cursor:
            more = cursor.set_range(instance)
            while more and cursor.key()[:17] == instance:
                if cursor.value() != identity:
                    found = (0, Outcome.VARIANT)
                elif not self._lost(transaction, sequence := _NUMBER.unpack_from(cursor.key(), 17)[0]):
                    return sequence, Outcome.ALREADY
                more = cursor.next()
        return found

    def _lost(self, transaction: Any, sequence: int) -> bool:
        """Whether an object has to be stored anew: it is damaged, and the permanent tier does not have it."""
        return self._damaged(sequence) and transaction.get(_key(b"p", sequence)) is None

    def committed(self, transfer_id: bytes, header: ObjectHeader) -> int:
        """Return the sequence that a transfer was committed as; 0 if it was not.

        Raises:
            RadmeshError: TRANSFER_INVALID: the id was used for another object.
        """
        with self.lmdb.begin() as transaction:
            return self._committed(transaction, transfer_id, header)

    def _committed(self, transaction: Any, transfer_id: bytes, header: ObjectHeader) -> int:
        raw = transaction.get(b"t" + transfer_id)
        if raw is None:
            return 0
        sequence = int(_NUMBER.unpack(raw)[0])
        if self._lost(transaction, sequence):
            return 0
        # The row may be of another transfer that had brought the same: its sender may differ, the instance may not.
        row, _ = rows.decode(Ref(self.study_hash, self.generation, sequence), transaction.get(_key(b"x", sequence)))
        if _instance(row.header) != _instance(header):
            raise RadmeshError("TRANSFER_INVALID", "the transfer id was used for another object")
        return sequence

    # -- transfers

    def pending(self, transfer_id: bytes, now: datetime) -> tuple[int, int, bytes] | None:
        """Return (object number, acknowledged offset, what object) of a transfer that can be resumed, or None."""
        with self.lmdb.begin() as transaction:
            raw = transaction.get(b"q" + transfer_id)
        if raw is None or _stale(raw, now):
            return None
        number, offset, _ = _PENDING.unpack_from(raw)
        return number, offset, raw[_PENDING.size :]

    def new_object(self) -> int:
        """Return an object number that nothing in this environment has."""
        with self._lock:
            number = self._next_object
            self._next_object += 1
            return number

    def unfinished(self) -> bool:
        """Whether there are records of transfers that did not end."""
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            return bool(cursor.set_range(b"q")) and cursor.key()[:1] == b"q"

    def drop_stale_transfers(self, now: datetime, alive: Container[bytes], seconds: float) -> None:
        """Remove records of transfers that nobody has gone on with, and of which none of `alive` is.

        Raises:
            RadmeshError: COMMIT_FAILED, STORE_BUSY.
        """
        stale: list[bytes] = []
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(b"q")
            while more and cursor.key()[:1] == b"q":
                if _stale(cursor.value(), now) and cursor.key()[1:] not in alive:
                    stale.append(cursor.key())
                more = cursor.next()
        for key in stale:

            def apply(transaction: Any, key: bytes = key) -> None:
                raw = transaction.get(key)
                if raw is not None and _stale(raw, now):
                    drop_records(transaction, _PENDING.unpack_from(raw)[0])
                    transaction.delete(key)

            self.committer.run(Operation(apply, 0), seconds)

    def write_record(
        self,
        transaction: Any,
        transfer_id: bytes,
        *,
        number: int,
        offset: int,
        data: Buffer,
        what: bytes,
        now: datetime,
    ) -> None:
        """Write a record, and that the transfer has come so far."""
        key = b"q" + transfer_id
        if not offset:
            # What a forgotten transfer of the same id had left.
            raw = transaction.get(key)
            if raw is not None:
                drop_records(transaction, _PENDING.unpack_from(raw)[0])
        transaction.put(record_key(number, offset), data)
        transaction.put(key, _PENDING.pack(number, offset + len(data), now.timestamp()) + what)

    # -- committing

    def begin_batch(self) -> None:
        """Take back sequences that a failed batch had taken: the numbers of rows have no gaps."""
        self._next_sequence = self.last_sequence

    def end_batch(self) -> None:
        """What the batch wrote is durable."""
        self.last_sequence = self._next_sequence

    def finish(
        self,
        transaction: Any,
        content: Content,
        *,
        number: int,
        queryable: bytes,
        remarks: tuple[str, ...],
        now: datetime,
        data: Buffer | None,
        variant: bool,
    ) -> Stored:
        """Make an object visible, or find that it is here already.

        `data`: all of a small object, not yet written. `variant`: an earlier generation has other content of it.
        """
        transfer_id = content.transfer_id
        instance, identity = content.instance_key(), content.identity()
        found = self._find(transaction, content, instance, identity)
        if found is not None and found[0]:
            sequence, outcome = found
            transaction.put(b"t" + transfer_id, _NUMBER.pack(sequence))
            if data is None:
                self.drop_transfer(transaction, transfer_id, number)
            return Stored(Ref(self.study_hash, self.generation, sequence), outcome)
        if data:
            transaction.put(record_key(number, 0), data)
        elif content.length and not self._complete(transaction, content, number):
            raise RadmeshError("COMMIT_FAILED", "not all of the object is here: send it again")
        sequence = self._next_sequence + 1
        ref = Ref(self.study_hash, self.generation, sequence)
        row = IndexRow(ref, content.header, content.length, content.sha256, queryable, now, remarks, transfer_id)
        transaction.put(_key(b"x", sequence), rows.encode(row, number))
        transaction.put(instance + _NUMBER.pack(sequence), identity)
        transaction.put(b"t" + transfer_id, _NUMBER.pack(sequence))
        if data is None:
            transaction.delete(b"q" + transfer_id)
        self._next_sequence = sequence
        return Stored(ref, Outcome.VARIANT if variant or found is not None else Outcome.STORED)

    def _complete(self, transaction: Any, content: Content, number: int) -> bool:
        """Whether the records of a large object are all there: the last thing that stands before an acknowledgement."""
        raw = transaction.get(b"q" + content.transfer_id)
        return raw is not None and _PENDING.unpack_from(raw)[:2] == (number, content.length)

    def drop_transfer(self, transaction: Any, transfer_id: bytes, number: int) -> None:
        """Remove the records of an unfinished transfer."""
        drop_records(transaction, number)
        transaction.delete(b"q" + transfer_id)

    # -- leaving

    def save_rows(self, path: Path) -> None:
        """Write what an evicted generation keeps to a file of its own; it is durable when it gets its name.

        Raises:
            OSError: the file system.
            lmdb.Error: the same.
        """
        partial = path.with_name(path.name + ".new")
        partial.unlink(missing_ok=True)
        copy = lmdb.open(str(partial), subdir=False, lock=False, map_size=MAP_SIZE, max_dbs=0, mode=0o600, sync=False)
        try:
            after: bytes | None = b""
            while after is not None:
                after = self._copy(copy, after)
        finally:
            copy.close()
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.rename(path)

    def _copy(self, copy: Any, after: bytes) -> bytes | None:
        """Copy some MiB of entries (all at once would be all in memory); return the key to go on at, or None."""
        with self.lmdb.begin() as source, source.cursor() as cursor, copy.begin(write=True) as target:
            size = 0
            more = cursor.set_range(after) if after else cursor.first()
            while more and size < COPY_BYTES:
                key = cursor.key()
                if key[0] not in KEPT:
                    # The next kind: records are many, and large.
                    more = cursor.set_range(bytes((key[0] + 1,)))
                    continue
                value = cursor.value()
                target.put(key, value, append=True)
                size += len(key) + len(value)
                more = cursor.next()
            return cursor.key() if more else None


def _instance(header: ObjectHeader) -> tuple[str, str]:
    return header.sop_instance_uid, header.transfer_syntax_uid


def _stale(pending: bytes, now: datetime) -> bool:
    # Far ahead of now is as old as far behind it: the clock was set back.
    return bool(abs(now.timestamp() - _PENDING.unpack_from(pending)[2]) > RESUME_SECONDS)


def drop_records(transaction: Any, number: int) -> None:
    """Remove the records of an object."""
    prefix = _key(b"r", number)
    with transaction.cursor() as cursor:
        more = cursor.set_range(prefix)
        while more and cursor.key()[:9] == prefix:
            more = cursor.delete()
