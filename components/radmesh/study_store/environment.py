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
"""

import hashlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import lmdb

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import rows
from radmesh.study_store.committer import Committer, Operation
from radmesh.study_store.store import Buffer, IndexRow, ObjectHeader, Outcome, Ref, Stored

MAP_SIZE: Final = 64 << 30
# An unfinished transfer may be resumed for this long.
RESUME_SECONDS: Final = 3600.0

_NUMBER: Final = struct.Struct(">Q")
_PENDING: Final = struct.Struct(">QQd")


def _key(kind: bytes, number: int) -> bytes:
    return kind + _NUMBER.pack(number)


def record_key(number: int, offset: int) -> bytes:
    """Return the key of an object's record."""
    return b"r" + _NUMBER.pack(number) + _NUMBER.pack(offset)


class Environment:
    """The open environment. `references` and `evicting` belong to the store, under its lock."""

    def __init__(
        self,
        path: Path,
        study_hash: str,
        generation: int,
        *,
        commit: Callable[["Environment", list[Operation]], None],
        after: Callable[["Environment", list[Operation]], None],
        pool: ThreadPoolExecutor,
        create: bool = False,
        sync: bool = True,
    ) -> None:
        self.path = path
        self.study_hash = study_hash
        self.generation = generation
        self.references = 0
        self.evicting = False
        self.sealed = False
        self.lmdb = lmdb.open(
            str(path),
            subdir=False,
            create=create,
            map_size=MAP_SIZE,
            max_dbs=0,
            max_readers=512,
            # Never anything else: an unsynced environment that is torn kills its reader by SIGBUS. Tests turn it off
            # to see
            # that they would notice.
            sync=sync,
            metasync=sync,
            writemap=False,
            mode=0o600,
        )
        self.committer = Committer(lambda batch: commit(self, batch), lambda batch: after(self, batch), pool)
        self._lock = threading.Lock()
        self.last_sequence = self._last(b"x")
        self._next_object = self._last(b"r") + 1
        self.bytes_before = 0

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

    def size(self) -> int:
        """Return the file's bytes on disk."""
        return self.path.stat().st_blocks * 512

    # -- what is in it

    def study_instance_uid(self) -> str:
        """Return the study's UID; empty if the environment was never begun."""
        with self.lmdb.begin() as transaction:
            return (transaction.get(b"m") or b"").decode()

    def raw_row(self, sequence: int) -> bytes | None:
        """Return an encoded index row, or None."""
        with self.lmdb.begin() as transaction:
            raw: bytes | None = transaction.get(_key(b"x", sequence))
            return raw

    def raw_rows(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return (sequence, encoded row) of rows behind `after`."""
        found: list[tuple[int, bytes]] = []
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(_key(b"x", after + 1))
            while more and len(found) < limit and cursor.key()[:1] == b"x":
                found.append((_NUMBER.unpack_from(cursor.key(), 1)[0], cursor.value()))
                more = cursor.next()
        return found

    def marks(self, kind: bytes) -> dict[int, bytes]:
        """Return {sequence: value} of all marks of a kind (p, d)."""
        found = {}
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(kind)
            while more and cursor.key()[:1] == kind:
                found[_NUMBER.unpack_from(cursor.key(), 1)[0]] = cursor.value()
                more = cursor.next()
        return found

    def mark(self, kind: bytes, sequence: int) -> bytes | None:
        """Return one mark's value, or None."""
        with self.lmdb.begin() as transaction:
            value: bytes | None = transaction.get(_key(kind, sequence))
            return value

    def set_marks(self, kind: bytes, values: dict[int, bytes], seconds: float) -> None:
        """Write marks; durable when it returns."""

        def apply(transaction: Any) -> None:
            for sequence, value in values.items():
                transaction.put(_key(kind, sequence), value)

        self.committer.run(Operation(apply, 64 * len(values)), seconds)

    def records(self, number: int, offset: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of an object from `offset` to `end`. No transaction is open while the caller has them.

        Raises:
            RadmeshError: OBJECT_CORRUPT: a record is missing.
        """
        while offset < end:
            with self.lmdb.begin(buffers=True) as transaction, transaction.cursor() as cursor:
                wanted = record_key(number, offset)
                found = cursor.set_range(wanted)
                if not found or bytes(cursor.key()) != wanted:
                    # The range begins within a record.
                    found = cursor.prev() if found else cursor.last()
                key = bytes(cursor.key()) if found else b""
                start = _NUMBER.unpack_from(key, 9)[0] if key[:9] == _key(b"r", number) else -1
                value = cursor.value()
                if start < 0 or offset - start >= len(value):
                    raise RadmeshError("OBJECT_CORRUPT", "a record of the object is missing in the cache")
                piece = bytes(value[offset - start : end - start])
                del value
            offset += len(piece)
            yield piece

    # -- transfers

    def committed(self, transfer_id: bytes) -> int | None:
        """Return the sequence a transfer was committed as, or None."""
        with self.lmdb.begin() as transaction:
            raw = transaction.get(b"t" + transfer_id)
        return None if raw is None else int(_NUMBER.unpack(raw)[0])

    def pending(self, transfer_id: bytes) -> tuple[int, int, bytes] | None:
        """Return (object number, acknowledged offset, what object) of an unfinished transfer, or None."""
        with self.lmdb.begin() as transaction:
            raw = transaction.get(b"q" + transfer_id)
        if raw is None:
            return None
        number, offset, _ = _PENDING.unpack_from(raw)
        return number, offset, raw[_PENDING.size :]

    def new_object(self) -> int:
        """Return an object number of this environment that was not used before."""
        with self._lock:
            number = self._next_object
            self._next_object += 1
            return number

    def drop_stale_transfers(self, now: float, seconds: float) -> None:
        """Remove records of transfers that nobody has gone on with."""
        stale: list[tuple[bytes, int]] = []
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(b"q")
            while more and cursor.key()[:1] == b"q":
                number, _, last = _PENDING.unpack_from(cursor.value())
                # A time ahead of now comes from a clock that was set back: it counts as old.
                if not 0 <= now - last <= RESUME_SECONDS:
                    stale.append((cursor.key(), number))
                more = cursor.next()
        for key, number in stale:

            def apply(transaction: Any, key: bytes = key, number: int = number) -> None:
                drop_records(transaction, number)
                transaction.delete(key)

            self.committer.run(Operation(apply, 0), seconds)

    def write_record(
        self, transaction: Any, transfer_id: bytes, number: int, offset: int, data: Buffer, what: bytes
    ) -> None:
        """Write a record, and that the transfer has come so far."""
        transaction.put(record_key(number, offset), data)
        transaction.put(b"q" + transfer_id, _PENDING.pack(number, offset + len(data), time.time()) + what)

    def finish(
        self,
        transaction: Any,
        *,
        transfer_id: bytes,
        number: int,
        header: ObjectHeader,
        length: int,
        sha256: bytes,
        queryable: bytes,
        remarks: tuple[str, ...],
        now: datetime,
        data: Buffer | None,
    ) -> Stored:
        """Make an object visible, or find that it is here already. `data`: all of a small object, not yet written."""
        raw = transaction.get(b"t" + transfer_id)
        if raw is not None:
            sequence = _NUMBER.unpack(raw)[0]
            row = transaction.get(_key(b"x", sequence))
            if rows.content(row) != (length, sha256):
                raise RadmeshError("TRANSFER_INVALID", "the transfer id was used for another object")
            return Stored(Ref(self.study_hash, self.generation, sequence), Outcome.STORED)
        instance = b"i" + hashlib.sha256(header.sop_instance_uid.encode()).digest()[:16]
        identity = sha256 + header.transfer_syntax_uid.encode()
        outcome = Outcome.STORED
        with transaction.cursor() as cursor:
            more = cursor.set_range(instance)
            while more and cursor.key()[:17] == instance:
                if cursor.value() == identity:
                    sequence = _NUMBER.unpack_from(cursor.key(), 17)[0]
                    transaction.put(b"t" + transfer_id, _NUMBER.pack(sequence))
                    if data is None:
                        drop_records(transaction, number)
                        transaction.delete(b"q" + transfer_id)
                    return Stored(Ref(self.study_hash, self.generation, sequence), Outcome.ALREADY)
                outcome = Outcome.VARIANT
                more = cursor.next()
        if data is not None and length:
            transaction.put(record_key(number, 0), data)
        sequence = self.last_sequence + 1
        ref = Ref(self.study_hash, self.generation, sequence)
        row = IndexRow(ref, header, length, sha256, queryable, now, remarks, transfer_id)
        transaction.put(_key(b"x", sequence), rows.encode(row, number), append=False)
        transaction.put(instance + _NUMBER.pack(sequence), identity)
        transaction.put(b"t" + transfer_id, _NUMBER.pack(sequence))
        if data is None:
            transaction.delete(b"q" + transfer_id)
        # If this transaction fails, the environment is sealed: the gap in the numbers is never seen.
        self.last_sequence = sequence
        return Stored(ref, outcome)


def drop_records(transaction: Any, number: int) -> None:
    """Remove the records of an object."""
    prefix = _key(b"r", number)
    with transaction.cursor() as cursor:
        more = cursor.set_range(prefix)
        while more and cursor.key()[:9] == prefix:
            more = cursor.delete()
