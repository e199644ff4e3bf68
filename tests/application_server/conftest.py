"""One real cluster for all."""

from collections.abc import Iterator

import pytest
from cluster_support import RealCluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    cluster = RealCluster(tmp_path_factory.mktemp("cluster") / "data")
    try:
        yield cluster
    finally:
        cluster.close()
