import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_support import folder, open_store, places

from radmesh.study_store.lmdb_store import LmdbStudyStore

Open = Callable[..., LmdbStudyStore]


@pytest.fixture(params=list(places()), ids=lambda place: place.rpartition("/")[2] or "disk")
def root(request: Any, tmp_path: Path) -> Iterator[Path]:
    """Where a store is: on a disk and in memory."""
    made = folder(request.param, tmp_path)
    yield made / "store"
    if made != tmp_path:
        shutil.rmtree(made)


@pytest.fixture
def opened(root: Path) -> Iterator[Open]:
    """Opens the store at `root`; at the end all that are still open are closed."""
    stores: list[LmdbStudyStore] = []

    def make(**options: Any) -> LmdbStudyStore:
        stores.append(open_store(root, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> LmdbStudyStore:
    return opened()
