"""One real cluster, and one door in this process, for each module that asks for it."""

from collections.abc import Iterator

import pytest
from cluster_support import RealCluster
from http_support import HttpDoor, People, people_of


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
    yield people
    people.close()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpDoor]:
    door = HttpDoor(tmp_path_factory.mktemp("door"))
    yield door
    door.close()


@pytest.fixture(scope="module")
def visitors(door: HttpDoor) -> Iterator[People]:
    people = People(door.url, door.client("AccountService"))
    yield people
    people.close()
