"""A large object on its way in: its chunks are committed while more of it is received."""

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store.checks import check_commit
from radmesh.study_store.committer import BATCH_BYTES, Operation
from radmesh.study_store.environment import Content, Environment
from radmesh.study_store.rows import encode_header
from radmesh.study_store.store import CHUNK_MAX, Buffer, ObjectHeader, Stored

if TYPE_CHECKING:
    from radmesh.study_store.lmdb_store import LmdbStudyStore

WAIT_SECONDS: Final = 30.0
# Two batches: one comes while the other is committed. More would wait in memory, and make nothing faster.
WINDOW: Final = 2 * BATCH_BYTES


class LmdbTransfer:
    """One thread uses it; `let_go` and `replace` come from others.

    The environment stays open until the transfer ends, is replaced, or was idle for long.
    """

    def __init__(
        self,
        store: "LmdbStudyStore",
        environment: Environment,
        transfer_id: bytes,
        header: ObjectHeader,
        *,
        number: int,
        offset: int,
        release: Callable[[Environment], None],
    ) -> None:
        self.transfer_id = transfer_id
        self.stored: Stored | None = None
        self.environment = environment
        self.number = number
        self.active_at = store.clock.monotonic()
        self._store = store
        self._header = header
        self._what = encode_header(header)
        self._release = release
        self._received = offset
        self._acknowledged = offset
        # (bytes received with it, operation) of what is not known to be durable.
        self._operations: deque[tuple[int, Operation]] = deque()
        self._lock = threading.Lock()
        self._ended = False

    def let_go(self) -> bool:
        """Release the environment; the transfer cannot be used any more. False: it had ended."""
        with self._lock:
            ended, self._ended = self._ended, True
        if not ended:
            self._release(self.environment)
        return not ended

    def replace(self) -> None:
        """A newer stream takes the transfer over: what is queued is finished first."""
        with self._lock:
            operations = list(self._operations)
        for _, operation in operations:
            try:
                operation.wait(WAIT_SECONDS)
            except RadmeshError:
                break
        self.let_go()

    def _check(self) -> None:
        if self._ended and self.environment.sealed:
            raise RadmeshError("COMMIT_FAILED", "the study's environment takes no more: send the object again")
        if self._ended:
            raise RadmeshError("STREAM_REPLACED", "the transfer was taken over, has ended, or was idle for too long")
        self.active_at = self._store.clock.monotonic()

    @property
    def acknowledged_offset(self) -> int:
        """Bytes that are durable."""
        with self._lock:
            return self._acknowledge()

    def _acknowledge(self) -> int:
        while self._operations and self._operations[0][1].finished and self._operations[0][1].error is None:
            self._acknowledged = self._operations.popleft()[0]
        return self._acknowledged

    def _wait_for_room(self, size: int) -> None:
        """Wait until so many bytes more are not too many that are not durable; what fails meanwhile is left to find."""
        while True:
            with self._lock:
                if self._received + size - self._acknowledge() <= WINDOW or not self._operations:
                    return
                first = self._operations[0][1]
            if first.error is not None:
                return
            try:
                first.wait(WAIT_SECONDS)
            except RadmeshError:
                if not first.finished:
                    raise

    def _raise_failed(self) -> None:
        with self._lock:
            self._acknowledge()
            # What is behind one that failed fails with it: the first tells.
            failed = self._operations[0][1].error if self._operations else None
        if failed is not None:
            self._store.end_transfer(self)
            raise failed

    def write(self, offset: int, data: Buffer) -> None:
        """Take the next bytes."""
        self._check()
        if offset != self._received:
            raise RadmeshError("OFFSET_UNEXPECTED", f"the transfer has {self._received} bytes: go on there")
        size = len(data)
        if size > CHUNK_MAX:
            raise RadmeshError("CHUNK_TOO_LARGE", f"at most {CHUNK_MAX} bytes at once")
        if not size:
            return
        self._wait_for_room(size)
        self._raise_failed()
        store, environment = self._store, self.environment
        operation = Operation(
            lambda transaction: environment.write_record(
                transaction,
                self.transfer_id,
                number=self.number,
                offset=offset,
                data=data,
                what=self._what,
                now=store.clock.now(),
            ),
            size,
        )
        store.take_room(size)
        store.note_unfinished(environment)
        with self._lock:
            self._operations.append((offset + size, operation))
            self._received += size
        environment.committer.submit(operation)

    def wait(self, offset: int, seconds: float) -> None:
        """Wait until the bytes before `offset` are durable."""
        until = self._store.clock.monotonic() + seconds
        with self._lock:
            operations = list(self._operations)
        for end, operation in operations:
            operation.wait(until - self._store.clock.monotonic())
            if end >= offset:
                break

    def commit(self, length: int, sha256: bytes, *, queryable: bytes, remarks: tuple[str, ...]) -> Stored:
        """Make the object visible."""
        self._check()
        check_commit(sha256, queryable, remarks)
        if length != self._received:
            raise RadmeshError("DIGEST_MISMATCH", f"the transfer has {self._received} bytes, its commit says {length}")
        self._raise_failed()
        environment, number = self.environment, self.number
        content = Content(self.transfer_id, self._header, length, sha256)
        known = self._store.find_earlier(environment, content)
        if isinstance(known, Stored):
            self.abort()
            self.stored = known
            self._store.count(known, length)
            return known
        operation = Operation(
            lambda transaction: environment.finish(
                transaction,
                content,
                number=number,
                queryable=queryable,
                remarks=tuple(remarks),
                now=self._store.clock.now(),
                data=None,
                variant=known,
            ),
            0,
        )
        # Operations run in order; one before that failed has sealed the environment, and this one fails with it.
        stored: Stored = environment.committer.run(operation, WAIT_SECONDS)
        self.stored = stored
        self._store.count(stored, length)
        self._store.end_transfer(self)
        return stored

    def abort(self) -> None:
        """Drop what was received."""
        if self._ended:
            return
        environment = self.environment
        operation = Operation(
            lambda transaction: environment.drop_transfer(transaction, self.transfer_id, self.number), 0
        )
        try:
            environment.committer.run(operation, WAIT_SECONDS)
        finally:
            self._store.end_transfer(self)
