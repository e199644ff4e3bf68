"""What tests of the study store share: headers, bytes, and the questions that every store must answer right."""

import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from radmesh.runtime.clock import Clock, SystemClock
from radmesh.study_store import IndexRow, ObjectHeader, Ref, Stored, StudyStore
from radmesh.study_store.lmdb_store import LmdbStudyStore

CHUNK = 1_048_560
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def uid(*parts: object) -> str:
    """A UID of the test."""
    return "2.25." + str(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:12], "big"))


def header(study: object = 0, sop: object = 0, **changes: Any) -> ObjectHeader:
    """The header of instance `sop` of study `study`."""
    return replace(
        ObjectHeader(
            study_instance_uid=uid("study", study),
            series_instance_uid=uid("series", study),
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            sop_instance_uid=uid("sop", study, sop),
            transfer_syntax_uid=EXPLICIT,
            calling_ae_title="CT1",
            called_ae_title="RADMESH",
            source_address="127.0.0.1",
            admission_key=hashlib.sha256(b"key").digest(),
            verification=1,
        ),
        **changes,
    )


def transfer_id(*parts: object) -> bytes:
    """A transfer id of the test: the same for the same parts."""
    return hashlib.sha256(repr(("transfer", *parts)).encode()).digest()[:16]


def body(size: int, seed: object = 0) -> bytes:
    """Bytes that no other seed gives."""
    return random.Random(repr((size, seed))).randbytes(size)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def open_store(root: Path, clock: Clock | None = None, **options: Any) -> LmdbStudyStore:
    """A store that takes everything the file system has room for."""
    return LmdbStudyStore(root, "archive-0", clock or SystemClock(), **{"reserve": 0, **options})


def put(store: StudyStore, head: ObjectHeader, data: bytes, name: object = None, **changes: Any) -> Stored:
    """Store a small object under a transfer id of its own, or that of `name`."""
    number = os.urandom(16) if name is None else transfer_id(name)
    values: dict[str, Any] = {"sha256": sha256(data), "queryable": b"q" * 40, "remarks": (), **changes}
    return store.put(number, head, data, **values)


def send(
    store: StudyStore, head: ObjectHeader, data: bytes, name: object = None, *, chunk: int = CHUNK, **changes: Any
) -> Stored:
    """Store an object in chunks; goes on where the transfer is."""
    transfer = store.begin(os.urandom(16) if name is None else transfer_id(name), head)
    if transfer.stored is not None:
        return transfer.stored
    for offset in range(transfer.acknowledged_offset, len(data), chunk):
        transfer.write(offset, data[offset : offset + chunk])
    values: dict[str, Any] = {"queryable": b"q" * 40, "remarks": (), **changes}
    return transfer.commit(len(data), sha256(data), **values)


def read(store: StudyStore, ref: Ref, offset: int = 0, length: int = 0) -> bytes:
    """A range of an object."""
    with store.read(ref, offset, length) as reader:
        return b"".join(reader)


def all_rows(store: StudyStore) -> list[IndexRow]:
    """Every index row of the store, fetched in pages."""
    found: list[IndexRow] = []
    for state in store.studies():
        after = 0
        while page := store.rows(state.study_hash, state.generation, after=after, limit=7):
            found += page
            after = page[-1].ref.sequence
    return found


def digest_of(store: StudyStore, ref: Ref) -> bytes:
    """The SHA-256 of what is read."""
    digest = hashlib.sha256()
    with store.read(ref) as reader:
        for piece in reader:
            digest.update(piece)
    return digest.digest()


def rss_anon() -> int:
    """Anonymous resident memory of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel shows no RssAnon")


def places() -> Iterator[str]:
    """Kinds of file system that a store is tested on: "" is where pytest keeps its files."""
    yield ""
    if os.access("/dev/shm", os.W_OK):
        yield "/dev/shm"


def folder(place: str, otherwise: Path) -> Path:
    """A new folder on that file system; the caller removes one that is not under `otherwise`."""
    return Path(tempfile.mkdtemp(prefix="radmesh-test-", dir=place)) if place else otherwise
