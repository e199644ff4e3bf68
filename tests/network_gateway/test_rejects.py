"""The rejects store: bounded in count and bytes, durable, whole after a crash, safe to use from many threads."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from database_support import at_once

from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.network_gateway.rejects import Rejected, Rejects
from radmesh.network_gateway.service import RejectService
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError

HEADER = transfer_pb2.Header(
    calling_ae_title="CT1",
    source_address="127.0.0.1",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="2.25.1",
)
CALL: Any = None


class World:
    """A folder of rejects that is opened again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.alarms: list[str] = []
        self.rejects = self.open()

    def open(self, **bounds: int) -> Rejects:
        values = {"most_bytes": 1 << 20, "most_count": 10, "most_each": 1 << 16, **bounds}
        self.rejects = Rejects(self.folder, self.clock, alarm=lambda reason, _: self.alarms.append(reason), **values)
        return self.rejects

    def add(self, number: int, data: bytes = b"bytes", **changes: str) -> str:
        identifier = number.to_bytes(16, "big")
        incoming = self.rejects.open(identifier, HEADER)
        incoming.write(data)
        incoming.keep(**{"reason": "BAD_VR", "tag": "0010,1010", "message": "odd", **changes})
        self.clock.advance(1)
        return identifier.hex()

    def ids(self) -> list[int]:
        return [int(item.id, 16) for item in self.rejects.list("", 1000)]

    def read(self, number: int) -> bytes:
        return b"".join(self.rejects.read(self.rejects.get(number.to_bytes(16, "big").hex())))

    def files(self) -> int:
        return len(list(self.folder.iterdir()))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "rejects")


def test_comes_back_newest_first_also_after_a_restart(world: World) -> None:
    for number in range(5):
        world.add(number, bytes([number]) * 10)
    before = world.rejects.list("", 100)
    for _ in range(2):
        assert world.ids() == [4, 3, 2, 1, 0]
        assert world.read(3) == b"\3" * 10
        assert world.rejects.bytes == 50
        assert world.rejects.list("", 100) == before
        world.open()
    item = before[0]
    assert (item.calling_ae_title, item.reason, item.tag, item.message, item.length, item.cut) == (
        *("CT1", "BAD_VR", "0010,1010", "odd", 10),
        False,
    )


def test_the_oldest_give_way_by_count(world: World) -> None:
    for number in range(25):
        world.add(number)
    assert world.ids() == list(range(24, 14, -1))
    assert world.files() == 20
    assert world.rejects.dropped == 15
    assert set(world.alarms) == {"REJECTS_FULL"}


def test_the_oldest_give_way_by_bytes(world: World) -> None:
    world.open(most_bytes=1000, most_count=1000)
    for number in range(10):
        world.add(number, b"x" * 300)
    assert world.ids() == [9, 8, 7]
    assert world.rejects.bytes == 900
    world.add(10, b"x" * 5000)
    assert world.ids() == [10], "the newest is kept, whatever it takes"


def test_smaller_bounds_hold_from_the_start(world: World) -> None:
    for number in range(10):
        world.add(number, b"x" * 100)
    world.open(most_count=4)
    assert world.ids() == [9, 8, 7, 6]
    world.open(most_bytes=250)
    assert world.ids() == [9, 8]
    assert world.files() == 4


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3_000_000])
def test_what_is_too_long_is_cut_and_says_so(world: World, size: int) -> None:
    world.open(most_bytes=1 << 30)
    data = os.urandom(size)
    incoming = world.rejects.open(b"i" * 16, HEADER)
    for at in range(0, size, 10_000):
        incoming.write(memoryview(data)[at : at + 10_000])
    incoming.keep("BAD_VR", "", "")
    item = world.rejects.list("", 1)[0]
    assert (item.length, item.cut) == (min(size, 65_536), size > 65_536)
    assert b"".join(world.rejects.read(item)) == data[:65_536]


def test_what_a_crash_left_is_cleared(world: World) -> None:
    world.add(1)
    gone = world.add(2)
    (world.folder / f"{gone}.bin").unlink()  # a power cut may keep the name of one file and lose the other's
    short = world.add(3, b"12345")
    (world.folder / f"{short}.bin").write_bytes(b"12")
    world.rejects.open(b"half" * 4, HEADER).write(b"killed before it was kept")
    (world.folder / ".x.json.1.2.new").write_bytes(b"{")
    (world.folder / "torn.json").write_bytes(b'{"id": "to')
    (world.folder / "list.json").write_bytes(b"[]")
    (world.folder / "other.json").write_bytes(json.dumps({"id": 7}).encode())
    world.open()
    assert world.ids() == [1]
    assert world.files() == 2
    assert world.rejects.bytes == 5


def test_dropped_leaves_nothing(world: World) -> None:
    incoming = world.rejects.open(b"d" * 16, HEADER)
    incoming.write(b"x")
    incoming.drop()
    incoming.drop()
    assert (world.files(), world.ids()) == (0, [])


@pytest.mark.parametrize(("call", "count"), [("open", 3), ("write", 2), ("fsync", 4)])
def test_a_failing_disk_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch, call: str, count: int) -> None:
    """Also at a later call: the file's bytes are written, what vouches for them is not."""
    for passing in range(count):
        calls = iter(range(100))
        real = getattr(os, call)

        def failing(
            *arguments: Any, real: Any = real, calls: Any = calls, passing: int = passing, **options: Any
        ) -> Any:
            if next(calls) >= passing:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            with pytest.raises(RadmeshError) as caught:
                world.add(passing)
            assert caught.value.reason == "STORAGE_FULL"
        assert world.ids() == []
        assert world.rejects.bytes == 0
        assert list(world.folder.glob("*.bin")) == []
    world.open()
    assert world.files() == 0
    world.add(9)
    assert world.ids() == [9]


def test_deleted_is_gone(world: World) -> None:
    identifier = world.add(1)
    item = world.rejects.get(identifier)
    world.rejects.delete(identifier)
    assert (world.files(), world.rejects.bytes, world.ids()) == (0, 0, [])
    for call in (
        lambda: world.rejects.get(identifier),
        lambda: world.rejects.delete(identifier),
        lambda: list(world.rejects.read(item)),
    ):
        with pytest.raises(RadmeshError) as caught:
            call()
        assert caught.value.reason == "REJECT_NOT_FOUND"


@pytest.mark.parametrize("size", [1, 3, 4, 10, 0, 5000])
def test_pages(world: World, size: int) -> None:
    for number in range(10):
        world.add(number)
    service = RejectService(world.rejects)
    found: list[int] = []
    token = ""
    while True:
        answer = service.ListRejects(gateway_pb2.ListRejectsRequest(page_size=size, page_token=token), CALL)
        found += [int(reject.id, 16) for reject in answer.rejects]
        token = answer.next_page_token
        if not token:
            break
        # What the page ended with may be deleted before the next one is asked for.
        world.rejects.delete(answer.rejects[-1].id)
    assert found == list(range(9, -1, -1))


@pytest.mark.parametrize("change", [{"page_size": -1}, {"page_token": "nonsense"}, {"page_token": "1.2.3"}])
def test_impossible_pages(world: World, change: dict[str, Any]) -> None:
    with pytest.raises(RadmeshError) as caught:
        RejectService(world.rejects).ListRejects(gateway_pb2.ListRejectsRequest(**change), CALL)
    assert caught.value.reason == "FIELD_INVALID"


def test_read_by_the_service(world: World) -> None:
    data = os.urandom(2_500_000)
    world.open(most_bytes=1 << 30, most_each=1 << 30)
    identifier = world.add(1, data)
    empty = world.add(2, b"")
    service = RejectService(world.rejects)
    answers = list(service.ReadReject(gateway_pb2.ReadRejectRequest(id=identifier), CALL))
    assert b"".join(bytes(answer.data) for answer in answers) == data
    assert [answer.fields.reject.id for answer in answers] == [identifier, "", ""]
    assert answers[0].fields.reject.length == len(data)
    (only,) = service.ReadReject(gateway_pb2.ReadRejectRequest(id=empty), CALL)
    assert only.fields.reject.id == empty
    service.DeleteReject(gateway_pb2.DeleteRejectRequest(id=identifier), CALL)
    with pytest.raises(RadmeshError):
        list(service.ReadReject(gateway_pb2.ReadRejectRequest(id=identifier), CALL))


def test_many_at_once(world: World) -> None:
    world.open(most_count=7, most_bytes=2000)

    def work(thread: int) -> None:
        for number in range(15):
            identifier = (thread * 100 + number).to_bytes(16, "big")
            incoming = world.rejects.open(identifier, HEADER)
            incoming.write(bytes([thread]) * (100 + number))
            incoming.keep("BAD_VR", "", "")
            for item in world.rejects.list("", 3):
                _touch(world.rejects, item, delete=number % 5 == 0)

    assert at_once(*(lambda t=t: work(t) for t in range(8))) == [None] * 8
    items = world.rejects.list("", 1000)
    assert len(items) <= 7
    assert world.rejects.bytes == sum(item.length for item in items) <= 2000
    assert world.files() == 2 * len(items)
    for item in items:
        assert b"".join(world.rejects.read(item)) == bytes([int(item.id, 16) // 100]) * item.length
    kept = {item.id for item in items}
    world.open(most_count=7, most_bytes=2000)
    assert {item.id for item in world.rejects.list("", 1000)} == kept


def _touch(rejects: Rejects, item: Rejected, *, delete: bool) -> None:
    try:
        data = b"".join(rejects.read(item))
        assert len(data) == item.length
        if delete:
            rejects.delete(item.id)
    except RadmeshError as error:
        assert error.reason == "REJECT_NOT_FOUND"
