"""What tests of the Network Gateway share: a small mesh with managers, and a hospital that sends HL7."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from verification_support import Hospital, World


@pytest.fixture
def world() -> Iterator[World]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="rm-", dir=memory if memory.is_dir() else None))
    made = World(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def hospital(world: World) -> Iterator[Hospital]:
    made = Hospital(world)
    yield made
    made.stop()
