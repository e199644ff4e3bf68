"""One real cluster for all tests of the DICOM edge, and stations that it sends to."""

from collections.abc import Iterator

import pytest
from cluster_support import RealCluster
from station_support import Edge, configuration, free_ports


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    ports = free_ports()
    (folder / "radmesh.toml").write_text(configuration(ports))
    cluster = RealCluster(folder / "data", "--config", str(folder / "radmesh.toml"))
    try:
        yield Edge(cluster, ports, folder)
    finally:
        cluster.close()
