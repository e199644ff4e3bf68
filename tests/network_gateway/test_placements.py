"""What the gateway remembers while the database is silent."""

from pathlib import Path

import pytest
from database_support import at_once, uid

from radmesh.network_gateway.placements import Archive, Memory

A = Archive("archive-0", "unix:/a", "00" * 16, alive=True, accepting=True)
B = Archive("archive-1", "unix:/b", "11" * 16, alive=False, accepting=True)


def test_is_there_after_a_restart(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "placements")
    assert not memory.archives
    assert memory.placement(uid(1)) == ""
    memory.set_archives([A, B])
    memory.place(uid(1), "archive-0")
    memory.place(uid(2), "archive-0")
    memory.place(uid(2), "archive-1")
    for _ in range(2):
        assert list(memory.archives) == [A, B]
        assert [memory.placement(uid(n)) for n in range(4)] == ["", "archive-0", "archive-1", ""]
        memory.close()
        memory = Memory(tmp_path / "placements")
    memory.set_archives([B])
    assert list(memory.archives) == [B]
    memory.close()


@pytest.mark.parametrize("odd", ["", "\0stores", "é" * 64, "𝄞" * 64, "x" * 64, "1.2\0"])
def test_no_study_uid_is_too_odd(tmp_path: Path, odd: str) -> None:
    memory = Memory(tmp_path / "placements")
    memory.set_archives([A])
    memory.place(odd, "archive-0")
    assert memory.placement(odd) == "archive-0"
    memory.close()
    again = Memory(tmp_path / "placements")
    assert list(again.archives) == [A]
    assert again.placement(odd) == "archive-0"
    again.close()


def test_many_at_once(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "placements")

    def work(thread: int) -> None:
        for number in range(10):
            memory.place(uid(number), f"archive-{number}")
            memory.set_archives([A, B][thread % 2 :])
            assert memory.placement(uid(number)) == f"archive-{number}"

    assert at_once(*(lambda t=t: work(t) for t in range(4))) == [None] * 4
    memory.close()
