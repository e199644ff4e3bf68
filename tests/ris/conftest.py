"""One hospital for all: what ends in it is started again, and each test has patients of its own."""

from collections.abc import Iterator

import pytest
from ris_support import Hospital


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path_factory.mktemp("hospital") / "data")
    try:
        yield hospital
    finally:
        hospital.close()
