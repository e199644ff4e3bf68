"""What the acceptor processes count, in memory they share with their parent.

Every process has a row that only it writes, so that one killed at any moment spoils nothing: the parent sets its
number of open associations to zero, and totals stay. A row is of 64 bit integers.
"""

import mmap
import os
import threading
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

STATUSES: Final = (
    *(0x0000, 0x0110, 0x0112, 0x0122, 0x0124, 0x0211, 0x0212, 0xA700, 0xA701, 0xA702, 0xA801, 0xA900, 0xB000, 0xC000),
    0xFE00,
)
OUTCOMES: Final = ("released", "aborted", "refused", "lost", "timeout")
SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, float("inf"))
COMMANDS: Final = (
    *(
        "C-STORE",
        "C-ECHO",
        "C-FIND",
        "C-GET",
        "C-MOVE",
        "N-EVENT-REPORT",
        "N-GET",
        "N-SET",
        "N-ACTION",
        "N-CREATE",
        "N-DELETE",
    ),
    "other",
)

OPEN: Final = 0
_PID: Final = 1
CONNECTIONS: Final = 2
BYTES: Final = 3
_OUTCOMES: Final = 4
_RESPONSES: Final = _OUTCOMES + len(OUTCOMES)
_OTHER_STATUS: Final = len(STATUSES)
_SECONDS: Final = _RESPONSES + len(COMMANDS) * (len(STATUSES) + 1)
_WIDTH: Final = _SECONDS + len(SECONDS)


class Board:
    """All rows. Made by the parent, opened by its children through the inherited descriptor."""

    def __init__(self, rows: int, descriptor: int | None = None) -> None:
        self.rows = rows
        size = rows * _WIDTH * 8
        if descriptor is None:
            descriptor = os.memfd_create("radmesh-associations")
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        self._cells = memoryview(mmap.mmap(descriptor, size)).cast("q")

    def get(self, row: int, column: int) -> int:
        """Return one cell."""
        return self._cells[row * _WIDTH + column]

    def add(self, row: int, column: int, amount: int) -> None:
        """Add to one cell; only the row's owner does, one thread at a time."""
        self._cells[row * _WIDTH + column] += amount

    def total(self, column: int) -> int:
        """Return the sum over all rows."""
        return sum(self._cells[column::_WIDTH])

    def totals(self, columns: Iterable[int]) -> int:
        """Return the sum of several columns over all rows."""
        return sum(self.total(column) for column in columns)

    def pids(self) -> list[int]:
        """Return the processes that serve, by row; 0 = none does."""
        return [self.get(row, _PID) for row in range(self.rows)]

    def begin(self, row: int, pid: int) -> None:
        """A process takes the row over."""
        for column in (OPEN, CONNECTIONS):
            self._cells[row * _WIDTH + column] = 0
        self._cells[row * _WIDTH + _PID] = pid

    def end(self, row: int) -> None:
        """The row's process is gone, and its associations with it."""
        self.begin(row, 0)

    @staticmethod
    def outcome(name: str) -> int:
        """Return the column of associations that ended so."""
        return _OUTCOMES + OUTCOMES.index(name)

    @staticmethod
    @lru_cache(64)
    def response(command: str, status: int) -> int:
        """Return the column of responses with this status; what is not listed counts as "other"."""
        known = STATUSES.index(status) if status in STATUSES else _OTHER_STATUS
        named = COMMANDS.index(command) if command in COMMANDS else len(COMMANDS) - 1
        return _RESPONSES + named * (len(STATUSES) + 1) + known

    @staticmethod
    def responses(command: str) -> list[tuple[str, int]]:
        """Return (status as text, column) of a command."""
        names = [*(f"0x{status:04X}" for status in STATUSES), "other"]
        first = _RESPONSES + COMMANDS.index(command) * len(names)
        return [(name, first + number) for number, name in enumerate(names)]

    @staticmethod
    def seconds() -> list[tuple[float, int]]:
        """Return (upper bound in seconds, column) of the time that C-STORE took."""
        return [(bound, _SECONDS + number) for number, bound in enumerate(SECONDS)]


class Tally:
    """One process's row. Thread-safe."""

    def __init__(self, board: Board, row: int, max_associations: int) -> None:
        self._board = board
        self._row = row
        self._most = max_associations
        self._lock = threading.Lock()

    def associate(self) -> bool:
        """Count one more open association; False if there are too many over all processes, and nothing was counted."""
        with self._lock:
            # First add, then look: two processes may both step back at the limit, but never both step over it.
            self._board.add(self._row, OPEN, 1)
            if self._board.total(OPEN) <= self._most:
                return True
            self._board.add(self._row, OPEN, -1)
            return False

    def dissociate(self) -> None:
        """Count one open association less."""
        self._add(OPEN, -1)

    def ended(self, outcome: str) -> None:
        """Count how an association ended."""
        self._add(self._board.outcome(outcome), 1)

    def responded(self, command: str, status: int) -> None:
        """Count a response."""
        self._add(self._board.response(command, status), 1)

    def stored(self, status: int, size: int, seconds: float) -> None:
        """Count a C-STORE: its response, the bytes of its data set, and how long it took."""
        with self._lock:
            self._board.add(self._row, self._board.response("C-STORE", status), 1)
            self._board.add(self._row, BYTES, size)
            self._board.add(self._row, _SECONDS + bisect_left(SECONDS, seconds), 1)

    def connected(self, number: int) -> None:
        """Count connections, associated or not, more (or less)."""
        self._add(CONNECTIONS, number)

    def is_least_busy(self) -> bool:
        """Whether no other process has fewer connections."""
        board = self._board
        own = board.get(self._row, CONNECTIONS)
        return all(board.get(row, CONNECTIONS) >= own for row, pid in enumerate(board.pids()) if pid)

    def _add(self, column: int, amount: int) -> None:
        with self._lock:
            self._board.add(self._row, column, amount)
