"""Ranges of objects whose records are of any size, checked block by block."""

from pathlib import Path
from typing import Any

import pytest
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from store_support import body, header, open_store, send

from radmesh.archive_server import reading, tier
from radmesh.archive_server.reading import Reading
from radmesh.archive_server.tier import Tier


class Log:
    def warning(self, *_: Any, **__: Any) -> None:
        raise AssertionError("nothing is wrong here")


@settings(max_examples=examples(60))
@given(
    size=st.integers(0, 100),
    chunk=st.integers(1, 40),
    ranges=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 110)), max_size=8),
)
def test_any_range_of_any_records(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    chunk: int,
    ranges: list[tuple[int, int]],
) -> None:
    """A transfer that was resumed leaves records that end anywhere; blocks of 16 bytes here."""
    monkeypatch.setattr(reading, "BLOCK", 16)
    monkeypatch.setattr(tier, "BLOCK", 16)
    folder: Path = tmp_path_factory.mktemp("reading")
    (folder / "tier").mkdir()
    store, permanent = open_store(folder / "store", sync=False), Tier(folder / "tier", Log())  # type: ignore[arg-type]
    data = body(size)
    ref = send(store, header(), data, chunk=chunk).ref
    read = Reading(store, permanent)
    try:
        for copied in (False, True):
            if copied:
                with store.read(ref) as reader:
                    permanent.settle([permanent.write(store.row(ref), reader)])
                store.set_permanent([ref])
            for offset, length in [(0, 0), *((o, n) for o, n in ranges if o < size)]:
                with read(ref, offset, length) as reader:
                    assert b"".join(reader) == data[offset : offset + length if length else None]
    finally:
        store.close()
