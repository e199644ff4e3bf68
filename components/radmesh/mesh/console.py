"""The one view of what runs where, for a terminal."""

import contextlib
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from radmesh.mesh.up import Child, View

_COLOURS = {"SERVING": "green", "STARTING": "yellow", "WAITING": "red", "DRAINING": "yellow", "STOPPED": "dim"}
_MOST_FIGURES = 5
_REFRESH_SECONDS = 0.5


class LiveView(View):
    """A table that stays at the bottom, with what happens above it."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(), auto_refresh=False)
        self._live.start()
        self._shown = 0.0
        self._states: list[str] = []

    def event(self, text: str) -> None:
        """Print above the table."""
        with contextlib.suppress(OSError):  # the terminal has gone
            self._live.console.print(escape(text), highlight=False, soft_wrap=True)

    def show(self, children: Sequence[Child], now: float) -> None:
        """Show the table, twice a second at most unless a state has changed."""
        states = [child.state for child in children]
        if states == self._states and now - self._shown < _REFRESH_SECONDS:
            return
        self._states, self._shown = states, now
        with contextlib.suppress(OSError):
            self._live.update(table(children, now), refresh=True)

    def close(self) -> None:
        """Leave the last table where it is."""
        with contextlib.suppress(OSError):
            self._live.stop()


def table(children: Sequence[Child], now: float) -> Table:
    """Return the table of all instances."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("instance", "pid", "state", "up", "restarts", "figures"):
        grid.add_column(
            title, justify="right" if title in ("pid", "up", "restarts") else "left", no_wrap=title != "figures"
        )
    for child in children:
        figures = [f"{name} {value:,.15g}" for name, value in list(child.figures.items())[:_MOST_FIGURES]]
        silent = [f"[red]silent {child.silent:.0f} s[/red]"] if child.silent else []
        about = [*silent, *(f"[red]{escape(alarm)}[/red]" for alarm in child.alarms), *map(escape, figures)]
        grid.add_row(
            child.instance,
            " ".join(map(str, child.pids)) or "-",
            f"[{_COLOURS[child.state]}]{child.state.lower()}[/]",
            _duration(now - child.ready_time) if child.state == "SERVING" else "-",
            str(max(0, child.starts - 1)),
            "  ".join(about),
        )
    return grid


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return time.strftime("%M:%S", time.gmtime(seconds))
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"
