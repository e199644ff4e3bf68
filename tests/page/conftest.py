"""One Chromium and one cluster for a module; every visitor of a test is looked at when it ends."""

from collections.abc import Callable, Iterator

import pytest
from browser_support import Browsers, Visitor, browsers
from cluster_support import RealCluster, save
from http_support import PASSWORD, HttpDoor, People, people_of


@pytest.fixture(scope="module")
def browser() -> Iterator[Browsers]:
    # Of a module, not of the session: Playwright's loop runs in this thread, and other tests have loops of their own.
    with browsers() as opened:
        yield opened


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpDoor]:
    door = HttpDoor(tmp_path_factory.mktemp("door"))
    yield door
    door.close()


@pytest.fixture
def visit(browser: Browsers) -> Iterator[Callable[..., Visitor]]:
    """Opens a page; afterwards none has spoken to another host, broken the policy, or thrown."""
    yield browser.visitor
    for visitor in browser.leave():
        assert not visitor.faults
        assert visitor.hosts == {visitor.url.partition("://")[2]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "radmesh.toml").write_text(
        # What this user stores is held until its order comes.
        '[[stations]]\nae_title = "user:tom"\nverification = "required"\n\n[[stations]]\nae_title = "user:admin"\n'
    )
    cluster = RealCluster(folder / "data", "--config", str(folder / "radmesh.toml"))
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def people(cluster: RealCluster) -> Iterator[People]:
    people = people_of(cluster)
    people.add("tom", "technologist")
    yield people
    people.close()


@pytest.fixture(scope="module")
def store(cluster: RealCluster, people: People, tmp_path_factory) -> Callable[..., None]:
    folder = tmp_path_factory.mktemp("files")
    (folder / "secret").write_text(PASSWORD)

    def store(*numbers: int, by: str = "", **values: object) -> None:
        files = [save(folder, number, **{"AccessionNumber": f"A{number}"} | values) for number in numbers]
        person = ("--user", by, "--password-file", folder / "secret") if by else ()
        done = cluster.run("store", *files, *person)
        assert done.code == 0, done.err

    return store
