"""What leaves is read ahead from a real store: in order, within bounds, whatever becomes of the line."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_mesh import World
from transfer_support import CHUNK, TRANSFER, admission_key, object_header, uid
from waiting import wait_for

from radmesh.dicom.transcoding import Transcoder
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.reader import LineTo, Location
from radmesh_gateway_proxy import objects
from radmesh_gateway_proxy.negotiation import AcceptedContext
from radmesh_gateway_proxy.objects import Item, Outgoing

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
CONTEXT = AcceptedContext(1, CT, EXPLICIT)


@pytest.fixture(params=["unix", "tls"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("w"), request.param)
    yield world
    world.close()


def stored(world: World, *sizes: int) -> list[tuple[Item, bytes]]:
    """Objects in the store, each with where it is."""
    study = uid("study", world.folder)
    key = admission_key(study)
    sender = world.senders().borrow()
    found = []
    line = LineTo(world.server.line_target, world.context.line)
    for number, size in enumerate(sizes):
        data = os.urandom(size)
        header = object_header(study, uid("sop", number), key)
        sha256 = hashlib.sha256(data).digest()
        committed = sender.send(header, key, data, sha256=sha256, queryable=b"")
        place = Location(world.context.channels.get(world.server.target), committed.object, line)
        found.append((Item(CT, uid("sop", number), EXPLICIT, size, (place,), ()), data))
    return found


def outgoing(items: list[Item], **options: object) -> Outgoing:
    return Outgoing(items, lambda _item: CONTEXT, Transcoder(), **options)  # type: ignore[arg-type]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "outgoing"]


def test_objects_of_every_size_leave_in_order(world: World) -> None:
    expected = stored(world, 1000, 0, 5 * CHUNK, 70_000, 4 << 20, *[300_000] * 60, (4 << 20) + 1)
    with outgoing([item for item, _ in expected]) as leaving:
        for prepared, (item, data) in zip(leaving, expected, strict=True):
            assert prepared.failure is None
            assert prepared.item is item
            assert b"".join(prepared.pieces) == data
    wait_for(lambda: not readers())


def test_what_is_read_ahead_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first is being sent: so many objects, so many bytes; nothing is asked for that has no room."""
    expected = stored(world, *[600_000] * 40)
    most = objects._MOST_BYTES // 600_000
    with outgoing([item for item, _ in expected]) as leaving:
        coming = iter(leaving)
        next(coming)
        wait_for(lambda: len(leaving._ready) == min(most, objects._MOST_AHEAD) - 1)
        assert leaving._held <= objects._MOST_BYTES
        assert not [reader for reader in leaving._readers.values() if reader is not None and reader._asked]
        assert len(list(coming)) == 39
    monkeypatch.setattr(objects, "_MOST_BYTES", 1000)
    with outgoing([item for item, _ in expected]) as leaving:
        coming = iter(leaving)
        next(coming)
        assert not leaving._ready
        assert len(list(coming)) == 39


def test_who_wants_no_more_leaves_nothing_behind(world: World) -> None:
    expected = stored(world, *[600_000] * 40)
    with outgoing([item for item, _ in expected]) as leaving:
        next(iter(leaving))
    wait_for(lambda: not readers())
    assert not leaving._ready


def test_one_that_is_not_there_fails_alone(world: World) -> None:
    expected = stored(world, *[1000] * 5)
    items = [item for item, _ in expected]
    (place,) = items[2].locations
    gone = ObjectReference(place.object.store_id, place.object.study_hash, place.object.generation, 99)
    items[2] = Item(CT, "1.2.3", EXPLICIT, 1000, (Location(place.channel, gone, place.line),), ())
    items.append(Item(CT, "1.2.4", EXPLICIT, 1000, (), ()))
    with outgoing(items) as leaving:
        found = list(leaving)
    failures = [prepared.failure.reason if prepared.failure else "" for prepared in found]
    assert failures == ["", "", "OBJECT_NOT_FOUND", "", "", "PEER_UNAVAILABLE"]
    assert b"".join(found[3].pieces) == expected[3][1]


def test_another_size_than_was_registered_is_read_by_itself(world: World) -> None:
    """The line is given up with it, and those behind it come too."""
    expected = stored(world, *[1000] * 6)
    items = [item for item, _ in expected]
    items[1] = Item(CT, items[1].sop_instance_uid, EXPLICIT, 999, items[1].locations, ())
    with outgoing(items) as leaving:
        assert [b"".join(prepared.pieces) for prepared in leaving] == [data for _, data in expected]


def test_a_store_that_restarts_is_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, "unix")
    try:
        expected = stored(world, *[600_000] * 40)
        with outgoing([item for item, _ in expected]) as leaving:
            for number, (prepared, (_, data)) in enumerate(zip(leaving, expected, strict=True)):
                if number == 3:
                    world.mesh.cut_off(world.server)
                    world.server = world.mesh.serve(
                        world.mesh.context("archive-server-0"), TRANSFER, world.receiver, world.receiver.codecs
                    )
                assert prepared.failure is None
                assert b"".join(prepared.pieces) == data
    finally:
        world.close()


def test_who_waits_may_give_up(world: World) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    ((item, _),) = stored(world, 1000)
    held = threading.Event()

    def choose(_item: Item) -> AcceptedContext:
        held.wait(30)
        return CONTEXT

    with Outgoing([item], choose, Transcoder(), between=stop) as leaving, pytest.raises(StopError):
        next(iter(leaving))
    held.set()
    wait_for(lambda: not readers())


def test_what_goes_wrong_on_the_reading_thread_is_told(world: World) -> None:
    def choose(_item: Item) -> AcceptedContext:
        raise KeyError

    ((item, _),) = stored(world, 1000)
    with Outgoing([item], choose, Transcoder()) as leaving, pytest.raises(KeyError):
        list(leaving)


def test_who_takes_nothing_of_it_gets_the_next(world: World) -> None:
    def choose(item: Item) -> AcceptedContext:
        if item.length == 1:
            raise RadmeshError("STATION_REFUSED", "no")
        return CONTEXT

    expected = stored(world, 1000, 1, 2000)
    with Outgoing([item for item, _ in expected], choose, Transcoder()) as leaving:
        assert [bool(prepared.failure) for prepared in leaving] == [False, True, False]
