"""Stores on both back ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from connectivity_support import Desk
from postgres_support import Postgres

from radmesh.connectivity_manager.schema import MIGRATIONS
from radmesh.sql.engine import Database


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server, with a database "template" that has the present schema."""
    server = Postgres()
    try:
        server.run("CREATE DATABASE template")
        Database(server.url("template"), MIGRATIONS).close()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a store of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/connectivity.sqlite"
        return
    server: Postgres = request.getfixturevalue("postgres")
    made = server.create("template")
    yield made
    server.drop(made)


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
