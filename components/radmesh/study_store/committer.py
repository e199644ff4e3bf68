"""Group commit for one environment: whoever finds nobody committing commits for all that wait.

A small object by a single sender costs no hand-over between threads; several senders of one study share a commit.
Work nobody waits for (chunks of a large object) is committed by a small pool, while more is being received.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from radmesh.runtime.errors import RadmeshError

BATCH_BYTES: Final = 8 * 1024 * 1024
BATCH_COUNT: Final = 64


class Budget:
    """Bytes uncommitted over all environments of a store, bounded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._condition = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes taken now."""
        return self._used

    def take(self, size: int, seconds: float) -> None:
        """Take room; waits for it.

        Raises:
            RadmeshError: STORE_BUSY after `seconds`.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._used + size <= self._most or self._used == 0, seconds):
                raise RadmeshError("STORE_BUSY", "too much is waiting to be written: the disk does not keep up")
            self._used += size

    def give(self, size: int) -> None:
        """Give room back."""
        with self._condition:
            self._used -= size
            self._condition.notify_all()


class Operation:
    """Something to do within a transaction: `apply(transaction)` gives its result.

    `apply` raises RadmeshError before it has written anything: that fails this operation and no other.
    """

    __slots__ = ("apply", "done", "error", "finished", "mark", "result", "size")

    def __init__(self, apply: Callable[[Any], Any], size: int, *, mark: bool = False) -> None:
        self.apply = apply
        self.size = size
        # It notes something of an object that is there: an environment that takes no objects takes it all the same.
        self.mark = mark
        self.result: Any = None
        self.error: RadmeshError | None = None
        self.finished = False
        # A lock is the cheapest thing to wait on: held until the operation is finished.
        self.done = threading.Lock()
        self.done.acquire()

    def run(self, transaction: Any) -> None:
        """Apply it, and let go of its data, which the transaction has."""
        try:
            self.result = self.apply(transaction)
        except RadmeshError as error:
            self.error = error
        finally:
            self.apply = _nothing

    def wait(self, seconds: float) -> Any:
        """Return the result; any number of threads may wait.

        Raises:
            RadmeshError: why it failed, or STORE_BUSY after `seconds`.
        """
        if not self.finished:
            if not self.done.acquire(timeout=max(0.0, seconds)):
                raise RadmeshError("STORE_BUSY", "a commit takes too long: the disk does not keep up")
            self.done.release()
        if self.error is not None:
            raise self.error
        return self.result


class Committer:
    """Applies operations in order, each batch in one transaction.

    `commit(operations)` runs a batch durably and fills in results, or raises for the whole batch. `after` is called
    with what was committed or has failed, before anybody who waits is told; it must not raise.
    """

    def __init__(
        self,
        commit: Callable[[list[Operation]], None],
        after: Callable[[list[Operation]], None],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._commit = commit
        self._after = after
        self._pool = pool
        self._lock = threading.Lock()
        self._queue: deque[Operation] = deque()
        # Exactly one thread commits, or is about to, while there is something to commit.
        self._leading = False

    def run(self, operation: Operation, seconds: float) -> Any:
        """Do an operation durably; in this thread, if nobody else commits.

        Raises:
            RadmeshError: as `Operation.wait`.
        """
        with self._lock:
            self._queue.append(operation)
            lead, self._leading = not self._leading, True
        if lead:
            self._lead(operation)
        return operation.wait(seconds)

    def submit(self, operation: Operation) -> None:
        """Do an operation soon."""
        with self._lock:
            self._queue.append(operation)
            lead, self._leading = not self._leading, True
        if lead:
            self._pool.submit(self._take_turn)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or being committed."""
        with self._lock:
            return not self._leading

    def _lead(self, operation: Operation) -> None:
        """Commit until `operation` is finished; what is queued behind it is left to the pool."""
        try:
            while not operation.finished:
                self._commit_batch()
        finally:
            self._pass_on()

    def _take_turn(self) -> None:
        """Commit one batch, then queue up behind the other environments: a fast sender does not starve the rest."""
        try:
            self._commit_batch()
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            self._leading = bool(self._queue)
            if self._leading:
                self._pool.submit(self._take_turn)

    def _commit_batch(self) -> None:
        batch: list[Operation] = []
        size = 0
        with self._lock:
            while self._queue and len(batch) < BATCH_COUNT and (not batch or size + self._queue[0].size <= BATCH_BYTES):
                operation = self._queue.popleft()
                size += operation.size
                batch.append(operation)
        try:
            self._commit(batch)
        except BaseException as error:
            failure = error if isinstance(error, RadmeshError) else _failure(error)
            for operation in batch:
                operation.error = failure
            if not isinstance(error, Exception):
                raise
        finally:
            self._after(batch)
            for operation in batch:
                operation.apply = _nothing  # lets go of the data
                operation.finished = True
                operation.done.release()


def _nothing(_transaction: Any) -> None:
    return


def _failure(error: BaseException) -> RadmeshError:
    return RadmeshError("COMMIT_FAILED", f"the commit failed with {type(error).__name__}: send the object again")
