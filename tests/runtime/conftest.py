"""Both transports under every test that asks for a world."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_support import TRANSPORTS, World


@pytest.fixture(params=TRANSPORTS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, request.param)
    yield made
    made.close()
