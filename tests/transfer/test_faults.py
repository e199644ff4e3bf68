"""Connections cut anywhere, stores that come and go: every object is there once, whole."""

import hashlib
import os
from typing import Any

import pytest
from depth import times
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_support import CHUNK, CutProxy, uid

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import Outcome
from radmesh.transfer.reader import Location, read_object, read_range

BIG = os.urandom(3 * CHUNK + 12_345)
SMALL = os.urandom(300_000)
FEW = settings(max_examples=times(10, 5), derandomize=True)


def everything(world: Any) -> list[Any]:
    from radmesh.dicom.uids import study_hash

    return world.store.rows(study_hash(world.study), 1)


def put(world: Any, data: bytes, *name: object, **options: Any) -> Any:
    sender = world.sender(**options)
    sender.begin(world.header(*name), world.key)
    for start in range(0, len(data), 400_000):
        sender.write(data[start : start + 400_000])
    committed = sender.commit(hashlib.sha256(data).digest(), b"header")
    sender.close()
    return committed


@FEW
@given(up=st.lists(st.integers(0, len(BIG) + 20_000), min_size=1, max_size=3), down=st.integers(0, 3_000))
def test_cut_anywhere_while_a_large_object_is_sent(world: Any, up: list[int], down: int) -> None:
    before = len(everything(world))
    proxy = CutProxy(world.put_target, world.mesh.folder, [(n, 1 << 40) for n in up] + [(1 << 40, down)])
    world.route = proxy.target
    committed = put(world, BIG, uid(up, down, before))
    assert world.read(committed.object.ref) == BIG
    assert len(everything(world)) == before + 1
    proxy.close()


@FEW
@given(up=st.integers(0, len(SMALL) + 5_000), down=st.integers(0, 1_500))
def test_cut_anywhere_while_a_small_object_is_sent(world: Any, up: int, down: int) -> None:
    before = len(everything(world))
    proxy = CutProxy(world.put_target, world.mesh.folder, [(up, 1 << 40), (1 << 40, down)])
    world.route = proxy.target
    committed = put(world, SMALL, uid(up, down, before))
    assert world.read(committed.object.ref) == SMALL
    assert len(everything(world)) == before + 1
    proxy.close()


@FEW
@given(cuts=st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, len(BIG))), min_size=1, max_size=2))
def test_a_read_goes_on_after_a_cut(world: Any, cuts: list[tuple[int, int]]) -> None:
    committed = put(world, BIG, "read")
    proxy = CutProxy(world.target, world.mesh.folder, list(cuts))
    channel = world.client.channels.new(proxy.target)
    assert b"".join(read_range(channel, committed.object)) == BIG
    channel.close()
    proxy.close()


@FEW
@given(offset=st.integers(0, len(BIG) - 1), length=st.integers(0, len(BIG) + 5))
def test_any_range_is_read(unix_world: Any, offset: int, length: int) -> None:
    world = unix_world
    committed = put(world, BIG, "read")
    read = read_range(world.client.channels.get(world.target), committed.object, offset, length)
    assert b"".join(read) == (BIG[offset : offset + length] if length else BIG[offset:])


def test_a_resumed_transfer_sends_only_what_is_missing(unix_world: Any) -> None:
    world = unix_world
    # Cut after two chunks: what was durable then is not sent again.
    proxy = CutProxy(world.put_target, world.mesh.folder, [(int(2.5 * CHUNK), 1 << 40)])
    world.route = proxy.target
    committed = put(world, BIG)
    assert proxy.connections == 2
    assert world.read(committed.object.ref) == BIG


def test_a_store_that_is_gone_fails_the_object_after_the_resume_time(unix_world: Any) -> None:
    world = unix_world
    world.mesh.cut_off(world.server)
    with pytest.raises(RadmeshError) as caught:
        put(world, SMALL, resume_seconds=0.4)
    assert caught.value.reason == "PEER_UNAVAILABLE"
    world.restart()
    assert put(world, SMALL).outcome is Outcome.STORED


def test_a_restarted_store_knows_what_it_stored(unix_world: Any) -> None:
    world = unix_world
    first = put(world, SMALL, "same")
    world.restart()
    again = put(world, SMALL, "same")
    assert again.outcome is Outcome.ALREADY
    assert again.object == first.object
    assert len(everything(world)) == 1


def test_a_reader_takes_the_next_location(unix_world: Any) -> None:
    from dataclasses import replace

    world = unix_world
    committed = put(world, BIG)
    channel = world.client.channels.get(world.target)
    nowhere = world.client.channels.new(f"unix:{world.mesh.folder}/nobody.sock")
    unknown = replace(committed.object, sequence=999)
    locations = [Location(nowhere, committed.object), Location(channel, unknown), Location(channel, committed.object)]
    with read_object(locations) as read:
        assert b"".join(read) == BIG
    with pytest.raises(RadmeshError) as caught:
        read_object([Location(channel, unknown)])
    assert caught.value.reason == "OBJECT_NOT_FOUND"
    with pytest.raises(RadmeshError) as caught:
        read_object([Location(channel, committed.object)], offset=len(BIG) + 1)
    assert caught.value.reason == "RANGE_INVALID"
    with pytest.raises(RadmeshError) as caught:
        read_object([])
    assert caught.value.reason == "OBJECT_NOT_FOUND"
    nowhere.close()
