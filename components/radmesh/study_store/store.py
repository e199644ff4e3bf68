"""What a study store is, whatever it is made of."""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, Self

# A chunk, and a record: 256 whole LMDB pages less the 16 bytes of an overflow page's header.
CHUNK_MAX: Final = 1_048_560

Buffer = bytes | bytearray | memoryview


class Outcome(enum.Enum):
    """What an object was, compared with what its study's environment already had."""

    STORED = "STORED"
    ALREADY = "ALREADY"
    VARIANT = "VARIANT"


class Residence(enum.IntEnum):
    """Where copies of an object are; numbers as in common.v1.Residence."""

    CACHE = 1
    CACHE_AND_PERMANENT = 2
    PERMANENT = 3
    SPOOL = 4


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """One stored object within its store. `generation` and `sequence` begin at 1."""

    study_hash: str
    generation: int
    sequence: int


@dataclass(frozen=True, slots=True)
class ObjectHeader:
    """What is known of an object before its bytes. `admission_key` is the key's digest, 32 bytes."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str
    source_address: str
    admission_key: bytes
    verification: int


@dataclass(frozen=True, slots=True)
class Stored:
    """An object is durable."""

    ref: Ref
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class IndexRow:
    """All that the store knows of a committed object: the database can build the study from such rows alone.

    `queryable` is the queryable header (Explicit VR Little Endian), `length` the bytes of the data set.
    """

    ref: Ref
    header: ObjectHeader
    length: int
    sha256: bytes
    queryable: bytes
    receive_time: datetime
    remarks: tuple[str, ...]
    transfer_id: bytes


@dataclass(frozen=True, slots=True)
class StudyState:
    """One generation of a study: its environment, or what is left of it."""

    study_hash: str
    generation: int
    study_instance_uid: str
    state: str
    registered: int
    last: int
    bytes: int


class ObjectReader(Protocol):
    """A part of an object, opened: iterates its bytes in order, at most 1,048,560 at a time; a context manager.

    `verified`: what it yields was compared with CRC-32Cs that were taken when the object's SHA-256 was verified.
    """

    size: int
    sha256: bytes
    residence: int

    @property
    def verified(self) -> bool: ...  # noqa: D102 - said above

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __iter__(self) -> Iterator[bytes]: ...


class Transfer(Protocol):
    """An object that is being received. One thread uses it; a newer one of the same id takes it over."""

    transfer_id: bytes
    stored: Stored | None

    @property
    def acknowledged_offset(self) -> int:
        """Bytes that are durable."""
        ...

    def write(self, offset: int, data: Buffer) -> None:
        """Take the bytes at `offset`, at most 1,048,560; blocks while too much is uncommitted.

        Raises:
            RadmeshError: OFFSET_UNEXPECTED, STREAM_REPLACED, STORAGE_FULL, STORE_BUSY, COMMIT_FAILED.
        """
        ...

    def wait(self, offset: int, seconds: float) -> None:
        """Wait until the bytes before `offset` are durable.

        Raises:
            RadmeshError: STORE_BUSY after `seconds`, COMMIT_FAILED.
        """
        ...

    def commit(self, length: int, sha256: bytes, *, queryable: bytes, remarks: tuple[str, ...]) -> Stored:
        """Make the object visible; durable when it returns.

        Raises:
            RadmeshError: DIGEST_MISMATCH (other length), COMMIT_FAILED, STREAM_REPLACED, STORE_BUSY.
        """
        ...

    def abort(self) -> None:
        """Drop what was received."""
        ...


class StudyStore(Protocol):
    """Stores immutable objects, by study. Thread-safe. Acknowledged is durable (CORRECTNESS.md 1 to 5)."""

    store_id: str
    epoch: bytes

    @property
    def accepting(self) -> bool:
        """Whether there is room above the reserve."""
        ...

    def free_bytes(self) -> int:
        """Room above the reserve, in bytes."""
        ...

    def begin(self, transfer_id: bytes, header: ObjectHeader) -> Transfer:
        """Begin a transfer, or go on with it.

        Raises:
            RadmeshError: TRANSFER_INVALID (the id is of another object), STORAGE_FULL.
        """
        ...

    def put(
        self,
        transfer_id: bytes,
        header: ObjectHeader,
        data: Buffer,
        *,
        sha256: bytes,
        queryable: bytes,
        remarks: tuple[str, ...],
    ) -> Stored:
        """Store a whole object of at most 1,048,560 bytes; durable when it returns.

        Raises:
            RadmeshError: TRANSFER_INVALID, STORAGE_FULL, COMMIT_FAILED, STORE_BUSY.
        """
        ...

    def read(self, ref: Ref, offset: int = 0, length: int = 0) -> ObjectReader:
        """Open a part of an object; length 0 = to the end.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, RANGE_INVALID.
        """
        ...

    def row(self, ref: Ref) -> IndexRow:
        """Return an index row.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND.
        """
        ...

    def rows(self, study_hash: str, generation: int, after: int = 0, limit: int = 256) -> list[IndexRow]:
        """Return rows with a greater sequence than `after`, in order."""
        ...

    def studies(self, after: tuple[str, int] = ("", 0)) -> Iterator[StudyState]:
        """Yield every generation of every study behind (study hash, generation), in that order."""
        ...

    def generations(self, study_hash: str) -> list[StudyState]:
        """Return every generation of one study, in order; none if there is no such study."""
        ...

    def unregistered(self) -> list[tuple[str, int, int, int]]:
        """Return (study hash, generation, registered sequence, last sequence) of what may have unregistered rows."""
        ...

    def mark_registered(self, study_hash: str, generation: int, sequence: int) -> None:
        """Remember that the database has everything up to `sequence`. Never moves back."""
        ...

    def residence(self, ref: Ref) -> Residence:
        """Return where copies of an object are.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND.
        """
        ...

    def set_permanent(self, refs: list[Ref]) -> None:
        """Remember that objects are in the permanent tier, verified; durable when it returns."""
        ...

    def defect(self, ref: Ref) -> str:
        """Return why an object's pixel data is defective; empty if it was checked and is not, or was not checked."""
        ...

    def set_checked(self, ref: Ref, defect: str) -> None:
        """Remember that pixel data was checked; durable when it returns."""
        ...

    def unsettled(self, study_hash: str, generation: int) -> list[Ref]:
        """Return objects that are not yet in the permanent tier, in order."""
        ...

    def evict(self, study_hash: str, generation: int) -> int:
        """Drop a generation's environment and keep its rows; return the bytes given back.

        Raises:
            RadmeshError: NOT_PERMANENT, STUDY_NOT_FOUND, STORE_BUSY.
        """
        ...

    def remove_study(self, study_hash: str, generation: int, last: int) -> None:
        """Drop a generation whose every object, up to sequence `last`, is durable elsewhere (a drained spool).

        Raises:
            RadmeshError: STORE_BUSY: it is in use, or has more objects.
        """
        ...

    def on_commit(self, callback: Callable[[Ref], None]) -> None:
        """Call `callback` after each durable commit; a hint, from any thread."""
        ...

    def close(self) -> None:
        """Finish what was begun and let go of the files."""
        ...
