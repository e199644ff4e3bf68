"""The pictures of one study: an LMDB environment in a single file.

Keys begin with a letter that says what they are; numbers are big-endian, so that keys sort by them.

    m                                Study Instance UID
    o <object 8>                     an instance that is complete: its rendition, as JSON
    i <sha256(SOP UID) 16> <object>  finds the objects of an instance; the last is the newest content
    f <object 8> <frame 4>           a frame: size, resolution offsets, CRC-32C of its records
    r <object 8> <frame 4> <part 4>  a record of a frame, at most 1,048,560 bytes
    j <object 8> <part 4>            DICOM JSON of the instance, deflated
    q <object 8>                     an instance that has been begun: what is of it goes, unless `o` is there
    s <sha256(series UID) 16>        the series' metadata: digest of what it was made of, digest of the gzip
    d <sha256(series UID) 16> <part> gzip of it
"""

import hashlib
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb

from radmesh.curator.model import CHUNK, Content, Frame, FrameRange, Piece, Rendition
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store.files import extend_to_last_page, prepare_lock
from radmesh_native.crc32c import crc32c

_MAP_SIZE: Final = 64 << 30
_NUMBER: Final = struct.Struct(">Q")
_FRAME: Final = struct.Struct("<QBI")
# A commit: as much as this, or so many instances.
_COMMIT_BYTES: Final = 8 << 20
_COMMIT_COUNT: Final = 64
_LEVEL: Final = 6


def _key(kind: bytes, number: int, *parts: int) -> bytes:
    return kind + _NUMBER.pack(number) + b"".join(part.to_bytes(4, "big") for part in parts)


def _hash(uid: str) -> bytes:
    return hashlib.sha256(uid.encode()).digest()[:16]


def _encode(frame: Frame) -> bytes:
    head = _FRAME.pack(frame.size, len(frame.offsets), len(frame.checks))
    return head + struct.pack(f"<{len(frame.offsets)}Q{len(frame.checks)}I", *frame.offsets, *frame.checks)


def _decode(data: bytes) -> Frame:
    size, offsets, checks = _FRAME.unpack_from(data)
    values = struct.unpack_from(f"<{offsets}Q{checks}I", data, _FRAME.size)
    return Frame(size, values[:offsets], values[offsets:])


def _damaged() -> RadmeshError:
    return RadmeshError("RENDITION_DAMAGED", "what is in the web cache is not what was made: it is made again")


class StudyFile:
    """The open file. Readers take no lock; one thread writes at a time.

    Raises:
        FileNotFoundError: there is none, and `create` is false.
        lmdb.Error: it is no environment.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if not create and not path.stat().st_size:
            raise lmdb.InvalidError("the file is empty")
        self.path = path
        self.references = 0
        prepare_lock(path.with_name(path.name + "-lock"))
        self.lmdb = lmdb.open(
            str(path),
            subdir=False,
            create=create,
            map_size=_MAP_SIZE,
            max_dbs=0,
            max_readers=512,
            # Never without: a torn environment kills its reader by SIGBUS.
            sync=True,
            metasync=True,
            writemap=False,
            mode=0o600,
        )
        try:
            if not create:
                extend_to_last_page(self.lmdb, path)
            self._next = 1 + max(self._last(b"o"), self._last(b"q"))
        except BaseException:
            self.lmdb.close()
            raise
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        self.lmdb.close()

    def size(self) -> int:
        """Return the file's bytes on disk."""
        return self.path.stat().st_blocks * 512

    def _last(self, kind: bytes) -> int:
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            found = cursor.set_range(bytes((kind[0] + 1,)))
            if not (cursor.prev() if found else cursor.last()) or cursor.key()[:1] != kind:
                return 0
            return int(_NUMBER.unpack_from(cursor.key(), 1)[0])

    def new_object(self) -> int:
        """Return a number that nothing in this file has."""
        with self._lock:
            number = self._next
            self._next += 1
            return number

    # -- writing

    def write(self, operations: Iterable[Callable[[Any], None]]) -> None:
        """Do operations in one transaction; durable when it returns.

        Raises:
            RadmeshError: STORAGE_FULL, RENDITION_DAMAGED.
        """
        try:
            with self.lmdb.begin(write=True) as transaction:
                for operation in operations:
                    operation(transaction)
        except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError) as error:
            raise _damaged() from error
        except lmdb.Error as error:
            # What a full disk shows up as: ENOSPC, or EIO where a page could not be written.
            raise RadmeshError("STORAGE_FULL", "the web cache could not be written: see its file system") from error

    def set_study(self, study_instance_uid: str) -> None:
        """Say which study it is."""
        self.write([lambda transaction: transaction.put(b"m", study_instance_uid.encode())])

    def study_instance_uid(self) -> str:
        """Return which study it is."""
        with self.lmdb.begin() as transaction:
            return (transaction.get(b"m") or b"").decode()

    def clean(self) -> None:
        """Remove what was begun and not finished; nobody writes."""
        numbers = []
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(b"q")
            while more and cursor.key()[:1] == b"q":
                numbers.append(_NUMBER.unpack_from(cursor.key(), 1)[0])
                more = cursor.next()
        if numbers:
            self.write(partial(remove_object, number=number) for number in numbers)

    # -- reading

    def renditions(self, series_instance_uid: str = "") -> list[tuple[int, Rendition]]:
        """Return (object, rendition) of the newest content of each instance, by object."""
        found: dict[str, tuple[int, Rendition]] = {}
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(b"o")
            while more and cursor.key()[:1] == b"o":
                rendition = _rendition(cursor.value())
                if not series_instance_uid or rendition.series_instance_uid == series_instance_uid:
                    number = _NUMBER.unpack_from(cursor.key(), 1)[0]
                    found[rendition.content.sop_instance_uid] = (number, rendition)
                more = cursor.next()
        return sorted(found.values(), key=lambda pair: pair[0])

    def contents(self) -> dict[Content, Rendition]:
        """Return everything that is here, also of content that is no longer the newest."""
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            found = {}
            more = cursor.set_range(b"o")
            while more and cursor.key()[:1] == b"o":
                rendition = _rendition(cursor.value())
                found[rendition.content] = rendition
                more = cursor.next()
        return found

    def frames(self, number: int) -> Iterator[Frame]:
        """Yield the frames of an object, in order."""
        prefix = _key(b"f", number)
        after = prefix
        while True:
            # No transaction is open while the caller has them.
            page: list[Frame] = []
            with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
                more = cursor.set_range(after)
                while more and cursor.key()[:9] == prefix and len(page) < 1000:
                    page.append(_decode(cursor.value()))
                    after = cursor.key() + b"\0"
                    more = cursor.next()
            if not page:
                return
            yield from page

    def read(self, index: int, wanted: FrameRange) -> Iterator[Piece]:
        """Yield the bytes of a range.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, RANGE_INVALID, RENDITION_DAMAGED.
        """
        metadata = {"index": str(index)}
        with self.lmdb.begin() as transaction:
            found = self._find(transaction, wanted)
            raw = transaction.get(_key(b"f", found[0], wanted.frame)) if found else None
        if found is None or raw is None:
            raise RadmeshError("RENDITION_NOT_FOUND", "the web cache does not have the frame", metadata=metadata)
        number, rendition = found
        frame = _decode(raw)
        end = min(frame.size, wanted.offset + wanted.length) if wanted.length else frame.size
        if wanted.offset >= max(1, frame.size):
            raise RadmeshError("RANGE_INVALID", f"the frame has {frame.size} bytes", metadata=metadata)
        at = wanted.offset
        first: Frame | None = frame
        while first is not None or at < end:
            data, check = self._part(number, wanted.frame, frame, at, end)
            yield Piece(index, at, data, check, at + len(data) >= end, first, rendition.served_syntax if first else "")
            first = None
            at += len(data)

    def _part(self, number: int, frame_number: int, frame: Frame, at: int, end: int) -> tuple[bytes, int]:
        """Return bytes from `at` on, of one record, and their CRC-32C. The whole record is checked."""
        if not frame.size:
            return b"", 0
        part = at // CHUNK
        with self.lmdb.begin(buffers=True) as transaction:
            record = transaction.get(_key(b"r", number, frame_number, part))
            if record is None or part >= len(frame.checks) or crc32c(record) != frame.checks[part]:
                raise _damaged()
            start = at - part * CHUNK
            data = bytes(record[start : start + end - at])
        return data, frame.checks[part] if len(data) == len(record) else crc32c(data)

    @staticmethod
    def _find(transaction: Any, wanted: FrameRange) -> tuple[int, Rendition] | None:
        """Return the newest object with the content."""
        prefix = b"i" + _hash(wanted.sop_instance_uid)
        found = None
        with transaction.cursor() as cursor:
            more = cursor.set_range(prefix)
            while more and cursor.key()[: len(prefix)] == prefix:
                number = _NUMBER.unpack_from(cursor.key(), len(prefix))[0]
                if not wanted.sha256 or cursor.value() == wanted.sha256:
                    found = number
                more = cursor.next()
        return None if found is None else (found, _rendition(transaction.get(_key(b"o", found))))

    # -- metadata

    def series_metadata(self, series_instance_uid: str) -> tuple[str, int, list[bytes]]:
        """Return (tag, number of instances, parts of the gzip) of a series; made where what is here is older.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, RENDITION_DAMAGED.
        """
        objects = [number for number, _ in self.renditions(series_instance_uid)]
        if not objects:
            raise RadmeshError("RENDITION_NOT_FOUND", "the web cache has nothing of the series")
        made_of = hashlib.sha256(struct.pack(f">{len(objects)}Q", *objects)).digest()
        series = _hash(series_instance_uid)
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            head = transaction.get(b"s" + series) or b""
            parts = []
            if head[:32] == made_of:
                more = cursor.set_range(b"d" + series)
                while more and cursor.key()[:17] == b"d" + series:
                    parts.append(cursor.value())
                    more = cursor.next()
        if parts:
            tag = hashlib.sha256(b"".join(parts)).digest()
            if tag != head[32:64]:
                raise _damaged()
            return tag.hex()[:32], len(objects), parts
        return self._make_metadata(series, made_of, objects)

    def _make_metadata(self, series: bytes, made_of: bytes, objects: Sequence[int]) -> tuple[str, int, list[bytes]]:
        made, digest = bytearray(), hashlib.sha256()
        parts: list[bytes] = []
        # The time in a gzip header would change the tag.
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
        for position, number in enumerate(objects):
            made += packer.compress((b"," if position else b"[") + self._document(number))
            while len(made) >= CHUNK:
                parts.append(bytes(made[:CHUNK]))
                del made[:CHUNK]
        made += packer.compress(b"]") + packer.flush()
        parts += [bytes(made[start : start + CHUNK]) for start in range(0, len(made), CHUNK)]
        for part in parts:
            digest.update(part)

        def keep(transaction: Any) -> None:
            _remove(transaction, b"d" + series)
            for index, part in enumerate(parts):
                transaction.put(b"d" + series + index.to_bytes(4, "big"), part)
            transaction.put(b"s" + series, made_of + digest.digest())

        self.write([keep])
        return digest.hexdigest()[:32], len(objects), parts

    def _document(self, number: int) -> bytes:
        """The JSON object of an instance."""
        prefix = _key(b"j", number)
        packed = b""
        with self.lmdb.begin() as transaction, transaction.cursor() as cursor:
            more = cursor.set_range(prefix)
            while more and cursor.key()[:9] == prefix:
                packed += cursor.value()
                more = cursor.next()
        try:
            return zlib.decompress(packed)
        except zlib.error:
            raise _damaged() from None


def _rendition(data: bytes) -> Rendition:
    values = json.loads(data)
    content = values.pop("content")
    return Rendition(Content(content[0], content[1], bytes.fromhex(content[2])), **values)


def _remove(transaction: Any, prefix: bytes) -> None:
    with transaction.cursor() as cursor:
        more = cursor.set_range(prefix)
        while more and cursor.key()[: len(prefix)] == prefix:
            more = cursor.delete()


def remove_object(transaction: Any, number: int) -> None:
    """Remove all that is of an object that was not finished."""
    for kind in (b"q", b"f", b"r", b"j"):
        _remove(transaction, _key(kind, number))


class StudyWriter:
    """Adds instances to a study's file; several threads may, each to an instance of its own.

    Records go under an object number in as many transactions as needed; the last one writes what makes it visible.
    """

    def __init__(self, file: StudyFile) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._waiting: list[Callable[[Any], None]] = []
        self._size = 0
        self._finished: list[Rendition] = []
        self._durable: list[Rendition] = []
        self._failure: RadmeshError | None = None
        file.clean()

    def contents(self) -> dict[Content, Rendition]:
        """Return what is here already.

        Raises:
            RadmeshError: RENDITION_DAMAGED.
        """
        try:
            return self.file.contents()
        except (lmdb.Error, ValueError, KeyError, TypeError) as error:
            raise _damaged() from error

    def instance(self) -> "InstanceWriter":
        """Begin an instance."""
        return InstanceWriter(self, self.file.new_object())

    def add(self, operation: Callable[[Any], None], size: int, finished: Rendition | None = None) -> None:
        """Do an operation soon; durably where enough has come together.

        Raises:
            RadmeshError: STORAGE_FULL.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._waiting.append(operation)
            self._size += size
            if finished is not None:
                self._finished.append(finished)
            if self._size >= _COMMIT_BYTES or len(self._finished) >= _COMMIT_COUNT:
                self._commit()

    def flush(self) -> list[Rendition]:
        """Make everything durable; return the renditions that became so since the last call.

        Raises:
            RadmeshError: STORAGE_FULL.
        """
        with self._lock:
            self._commit()
            durable, self._durable = self._durable, []
            return durable

    def _commit(self) -> None:
        waiting, self._waiting, self._size = self._waiting, [], 0
        finished, self._finished = self._finished, []
        if self._failure is not None:
            raise self._failure
        if not waiting:
            return
        try:
            self.file.write(waiting)
        except RadmeshError as error:
            # What was begun lacks a part from now on: nothing more is added, and the next writer removes it.
            self._failure = error
            raise
        self._durable += finished


class InstanceWriter:
    """Takes an instance as a worker makes it (radmesh.curator.workers.Sink), then `finish` or `abort`."""

    def __init__(self, writer: StudyWriter, number: int) -> None:
        self._writer = writer
        self._number = number
        self._frame = 0
        self._part = 0
        self._size = 0
        self._checks: list[int] = []
        self._bytes = 0
        self._packer = zlib.compressobj(_LEVEL)
        self._packed = b""
        self._described = False
        key = _key(b"q", number)
        writer.add(lambda transaction: transaction.put(key, b""), 0)

    def begin(self, frame: int) -> None:
        """The data that follow are of this frame."""
        self._frame, self._part, self._size, self._checks = frame, 0, 0, []

    def data(self, data: bytes) -> None:
        """The next record of the frame: full, but for the last."""
        key = _key(b"r", self._number, self._frame, self._part)
        self._checks.append(crc32c(data))
        self._part += 1
        self._size += len(data)
        self._writer.add(lambda transaction: transaction.put(key, data), len(data))

    def end(self, offsets: tuple[int, ...]) -> None:
        """The frame is complete."""
        key = _key(b"f", self._number, self._frame)
        value = _encode(Frame(self._size, offsets, tuple(self._checks)))
        self._bytes += self._size
        self._writer.add(lambda transaction: transaction.put(key, value), len(value))

    @property
    def described(self) -> bool:
        """Whether there is a JSON object."""
        return self._described

    def metadata(self, data: bytes) -> None:
        """The next part of the JSON object."""
        self._described = True
        self._packed += self._packer.compress(data)

    def finish(self, rendition: Rendition) -> Rendition:
        """Make it visible with the next commit; return `rendition` with its bytes."""
        number = self._number
        values = asdict(rendition) | {"bytes": self._bytes}
        content = rendition.content
        values["content"] = [content.sop_instance_uid, content.transfer_syntax_uid, content.sha256.hex()]
        encoded = json.dumps(values, separators=(",", ":")).encode()
        packed = self._packed + self._packer.flush()

        def apply(transaction: Any) -> None:
            for part, start in enumerate(range(0, len(packed), CHUNK)):
                transaction.put(_key(b"j", number, part), packed[start : start + CHUNK])
            transaction.put(_key(b"o", number), encoded)
            transaction.put(b"i" + _hash(content.sop_instance_uid) + _NUMBER.pack(number), content.sha256)
            transaction.delete(_key(b"q", number))

        complete = _rendition(encoded)
        self._writer.add(apply, len(packed), complete)
        return complete

    def abort(self) -> None:
        """Drop what came of it."""
        self._writer.add(partial(remove_object, number=self._number), 0)
