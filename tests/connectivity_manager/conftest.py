"""Stores on both back ends."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from connectivity_mesh import Process
from connectivity_support import Desk
from postgres_support import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a store on a server of the tests' own."""
    server = Postgres()
    try:
        yield server.create()
    finally:
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that is empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/connectivity.sqlite"
    found: str = request.getfixturevalue("postgres")
    desk = Desk(found)
    desk.clear()
    desk.close()
    return found


@pytest.fixture
def desk(url: str) -> Iterator[Desk]:
    """One domain, "clinic", without an issuer."""
    opened = Desk(url)
    yield opened
    opened.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Desk]:
    """The same on SQLite alone, for what has nothing to do with the back end."""
    opened = Desk(f"sqlite:///{tmp_path}/connectivity.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Make a manager in a process of its own, with the domains of a piece of TOML."""
    made: list[Process] = []

    def make(domains: str = "") -> Process:
        made.append(Process(tmp_path, domains))
        return made[-1]

    yield make
    for process in made:
        process.close()
