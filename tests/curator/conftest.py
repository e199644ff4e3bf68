"""A database and an archive, for Curators."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from curator_support import Cluster


@pytest.fixture(params=["unix"])
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(tmp_path, request.param)
    made.database(store_timeout=4.0)
    made.archive()
    yield made
    made.close()
