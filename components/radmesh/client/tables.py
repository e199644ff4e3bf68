"""Tables for people: as wide as the terminal, and what is for copying is never cut."""

import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_GAP: Final = "  "
_SHORTEST: Final = 8


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    `right`: numbers. `below`: in a terminal too narrow for the table, on a line of its own under its row; UIDs are, for
    they are never cut. `cut`: text that may be shortened when even that does not help.
    """

    name: str
    right: bool = False
    below: bool = False
    cut: bool = False


def width() -> int:
    """Return the columns of the terminal; of a file or a pipe, more than anybody needs."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 100_000


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in printable(text)
    )


def printable(text: str) -> str:
    """Return a text without what a terminal would obey; it may come from anywhere."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _shortened(text: str, columns: int) -> str:
    if columns_of(text) <= columns:
        return text
    while text and columns_of(text) > columns - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def _padded(text: str, columns: int, *, right: bool) -> str:
    room = " " * (columns - columns_of(text))
    return room + text if right else text + room


def lines(columns: Sequence[Column], rows: Iterable[Sequence[str]], room: int) -> list[str]:
    """Return the lines of a table in `room` columns, its header first; columns without any value are left out.

    What does not fit goes below its row, then texts are cut, widest first.
    """
    cells = [[printable(cell).strip() for cell in row] for row in rows]
    shown = [n for n in range(len(columns)) if any(row[n] for row in cells)]
    below: list[int] = []

    def widths() -> dict[int, int]:
        return {n: max(columns_of(columns[n].name), *(columns_of(row[n]) for row in cells)) for n in shown}

    def excess(wide: dict[int, int]) -> int:
        return sum(wide.values()) + len(_GAP) * (len(wide) - 1) - room

    for number in reversed(range(len(columns))):
        if number in shown and columns[number].below and excess(widths()) > 0:
            shown.remove(number)
            below.insert(0, number)
    wide = widths()
    cuttable = [n for n in shown if columns[n].cut]
    while cuttable and excess(wide) > 0:
        widest = max(cuttable, key=lambda n: wide[n])
        if wide[widest] <= _SHORTEST:
            break
        wide[widest] -= 1

    def line(texts: Sequence[str]) -> str:
        return _GAP.join(
            _padded(_shortened(texts[n], wide[n]) if columns[n].cut else texts[n], wide[n], right=columns[n].right)
            for n in shown
        ).rstrip()

    made = [line([column.name for column in columns])] if shown else []
    for row in cells:
        made.append(line(row))
        made += [f"{_GAP}{row[n]}" for n in below if row[n]]
    return made


def facts(pairs: Iterable[tuple[str, str]], room: int) -> list[str]:
    """Return the lines of names and texts, those without a text left out; a text goes on below itself, at its words."""
    said = [(name, printable(text).strip()) for name, text in pairs if text.strip()]
    left = max((len(name) for name, _ in said), default=0) + len(_GAP)
    made: list[str] = []
    for name, text in said:
        wrapped = textwrap.wrap(text, max(room - left, 20), break_long_words=False, break_on_hyphens=False)
        made += [f"{name if n == 0 else '':{left}}{part}" for n, part in enumerate(wrapped)]
    return made


def show(title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    if title:
        print(f"\n{title}")  # noqa: T201
    header, *body = lines(columns, rows, width()) or [""]
    bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if any(column.name for column in columns):
        print(f"\x1b[1m{header}\x1b[0m" if bold else header)  # noqa: T201
    for line in body:
        print(line)  # noqa: T201
