"""Both back ends under every test that asks for a database; the run says how many tests each had, and fails at none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from database_support import Parts, new_sqlite
from postgres_support import Postgres

from radmesh.database_server.schema import MIGRATIONS
from radmesh.sql.engine import Database

BACK_ENDS = ("sqlite", "postgresql")
FOLDER = Path(__file__).parent
_ran = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ran] = dict.fromkeys(BACK_ENDS, 0)


def pytest_runtest_call(item: Any) -> None:
    back_end = getattr(item, "callspec", None) and item.callspec.params.get("back_end")
    if back_end:
        item.config.stash.setdefault(_ran, dict.fromkeys(BACK_ENDS, 0))[back_end] += 1


def _selected_as_a_whole(config: pytest.Config) -> bool:
    options = config.option
    if options.keyword or options.collectonly or getattr(options, "lf", False) or options.deselect:
        return False
    given = [Path(config.invocation_params.dir, argument).resolve() for argument in config.args if "::" not in argument]
    return any(FOLDER.is_relative_to(path) for path in given)


def _missing(config: pytest.Config) -> list[str]:
    ran = config.stash.get(_ran, dict.fromkeys(BACK_ENDS, 0))
    return [name for name, count in ran.items() if not count] if _selected_as_a_whole(config) else []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    ran = config.stash.get(_ran, {})
    if not any(ran.values()) and not _missing(config):
        return
    terminalreporter.write_sep("-", "database back ends")
    for name, count in ran.items():
        terminalreporter.write_line(f"{name}: {count} tests")
    for name in _missing(config):
        terminalreporter.write_line(f"FAILED: no test ran on {name}", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _missing(session.config) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(back_end: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of the test's own, migrated."""
    if back_end == "sqlite":
        yield new_sqlite(tmp_path)
        return
    server: Postgres = request.getfixturevalue("postgres")
    made = server.create("template")
    yield made
    server.drop(made)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url, MIGRATIONS)
    yield opened
    opened.close()


@pytest.fixture
def parts(database: Database) -> Parts:
    return Parts(database)
