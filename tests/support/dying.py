"""Runs `radmesh` until it comes to a given step of its database, and dies there by SIGKILL.

    dying.py '["before INSERT INTO messages"]' serve …

The step is "<when> <how the statement begins>": "before" it is executed, "uncommitted" after it and before its
transaction commits, "committed" when that is durable. The first that is reached counts.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

import sqlalchemy as sa

from radmesh.sql import engine

_steps = [tuple(step.split(" ", 1)) for step in json.loads(sys.argv[1])]
_reached = threading.local()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is(when: str, statement: str) -> bool:
    return any(when == step[0] and statement.lstrip().startswith(step[1]) for step in _steps)


def _before(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
    if _is("before", statement):
        _die()


def _after(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
    for when in ("uncommitted", "committed"):
        if _is(when, statement):
            setattr(_reached, when, True)


def _commit(_connection: Any) -> None:
    if getattr(_reached, "uncommitted", False):
        _die()


def _watched(write: Any) -> Any:
    def watched(self: Any, work: Any) -> Any:
        result = write(self, work)
        if getattr(_reached, "committed", False):
            _die()
        return result

    return watched


if __name__ == "__main__":
    if _steps:
        sa.event.listen(sa.engine.Engine, "before_cursor_execute", _before)
        sa.event.listen(sa.engine.Engine, "after_cursor_execute", _after)
        sa.event.listen(sa.engine.Engine, "commit", _commit)
        engine.Database.write = _watched(engine.Database.write)  # type: ignore[method-assign]
    from radmesh.mesh.cli import main

    sys.exit(main(sys.argv[2:]))
