"""Whole objects, one after another, over a line."""

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transfer_support import CHUNK, TRANSFER, Mesh

from radmesh.api.common.v1 import common_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.codec import PUT, TRANSFER_CODECS, Bulk
from radmesh.transfer.model import ObjectReference
from radmesh.transfer.reader import LineReader, LineTo, Location, read_object
from radmesh_native.crc32c import crc32c

SIZES = (1, 0, 70_000, CHUNK, CHUNK + 1, 3_000_001)


def store(world: Any, size: int) -> tuple[ObjectReference, bytes]:
    data = os.urandom(size)
    sender = world.sender()
    sender.begin(world.header(size), world.key)
    sender.write(data)
    return sender.commit(hashlib.sha256(data).digest(), b"header", []).object, data


def test_objects_come_in_the_order_in_which_they_were_asked_for(world: Any) -> None:
    stored = [store(world, size) for size in SIZES]
    reader = LineReader(LineTo(world.put_target, world.client.line))
    for _ in range(3):
        for reference, data in stored:
            reader.ask(reference, len(data))
        for _, data in stored:
            assert b"".join(reader.take()) == data
    reader.close()


def test_what_cannot_be_read_is_said_and_the_next_one_follows(world: Any) -> None:
    reference, data = store(world, 5000)
    reader = LineReader(LineTo(world.put_target, world.client.line))
    elsewhere = ObjectReference("archive-7", reference.study_hash, reference.generation, reference.sequence)
    missing = ObjectReference("archive-0", reference.study_hash, reference.generation, 99)
    for asked in (missing, reference, elsewhere, reference):
        reader.ask(asked, len(data))
    for found in (False, True, False, True):
        if found:
            assert b"".join(reader.take()) == data
        else:
            with pytest.raises(RadmeshError) as caught:
                reader.take()
            assert caught.value.reason == "OBJECT_NOT_FOUND"
    reader.close()


def test_a_store_that_ends_is_told_of(unix_world: Any) -> None:
    reference, data = store(unix_world, 5000)
    reader = LineReader(LineTo(unix_world.put_target, unix_world.client.line))
    reader.ask(reference, len(data))
    assert b"".join(reader.take()) == data
    unix_world.mesh.cut_off(unix_world.server)
    with pytest.raises(RadmeshError) as caught:
        for _ in range(2):
            reader.ask(reference, len(data))
            reader.take()
    assert caught.value.reason == "PEER_UNAVAILABLE"
    reader.close()


def test_who_reads_keeps_nobody_from_storing(folder: Any) -> None:
    """As many lines may be open for each rpc as there are calls."""
    mesh = Mesh(folder, "unix")
    context = mesh.context("archive-server-0")
    server = context.server(max_workers=4)
    fields = answer()
    fields.ClearField("data")
    answers = {"Put": transfer_pb2.PutResponse(), "Read": Bulk(fields, b"abc")}
    for name, one in answers.items():
        store = Store(lambda one=one: [one])  # type: ignore[misc]
        server.add_line(TRANSFER.methods_by_name[name], store.Read, TRANSFER_CODECS[name])
    server.start()
    target = LineTo(server.line_target, mesh.context("gateway-proxy").line)
    reference = ObjectReference.of(common_pb2.ObjectReference(store_id="archive-0", sequence=1))

    def reads() -> LineReader:
        reader = LineReader(target)
        reader.ask(reference, 3)
        assert b"".join(reader.take()) == b"abc"
        return reader

    open_now: list[Any] = [reads() for _ in range(4)]
    with pytest.raises(RadmeshError) as caught:
        reads()
    assert caught.value.reason == "TOO_MANY_CALLS"
    for _ in range(4):
        line = target.lines(server.line_target, PUT)
        line.send(b"")
        assert line.receive() == b""
        open_now.append(line)
    for one in open_now:
        one.close()
    server.stop(1)
    mesh.close()


def ranges(data: bytes, *, verified: bool, cut: int = 0) -> Callable[[Any, Any], Iterator[Any]]:
    """ReadRange of a store that answers a byte at a time; `cut`: it breaks off there, once."""
    cuts = [cut] if cut else []

    def read(request: transfer_pb2.ReadRangeRequest, _call: Any) -> Iterator[Any]:
        end = request.offset + request.length if request.length else len(data)
        for at in range(request.offset, end):
            if cuts and at == cuts[0]:
                raise RadmeshError("OBJECT_CORRUPT", "not here")
            yield transfer_pb2.ReadRangeResponse(
                offset=at,
                size=len(data),
                sha256=hashlib.sha256(b"0123456789").digest(),
                verified=verified,
                crc32c=crc32c(data[at : at + 1]),
                data=data[at : at + 1],
            )

    return read


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (ranges(b"0123456789", verified=True), None, ""),
        (ranges(b"0123456789", verified=False), None, ""),
        # What a store has compared is not hashed once more.
        (ranges(b"x123456789", verified=True), None, ""),
        (ranges(b"x123456789", verified=False), None, "OBJECT_CORRUPT"),
        (ranges(b"0123456789", verified=True, cut=4), ranges(b"0123456789", verified=True), ""),
        # One that has not is read from its beginning for its SHA-256.
        (ranges(b"0123456789", verified=True, cut=4), ranges(b"0123456789", verified=False), ""),
        (ranges(b"0123456789", verified=True, cut=4), ranges(b"0123x56789", verified=False), "OBJECT_CORRUPT"),
        (ranges(b"0123456789", verified=False, cut=4), ranges(b"0123456789", verified=True), ""),
        (ranges(b"0123456789", verified=False, cut=4), ranges(b"0123456x89", verified=True), "OBJECT_CORRUPT"),
    ],
)
def test_what_a_store_has_not_compared_is_hashed(folder: Any, first: Any, second: Any, reason: str) -> None:
    mesh = Mesh(folder, "unix")
    places = []
    for number, answers in enumerate((first, second)):
        if answers is not None:
            store = Store(list)
            store.ReadRange = answers  # type: ignore[method-assign]
            server = mesh.serve(mesh.context(f"archive-server-{number}"), TRANSFER, store)
            reference = ObjectReference(f"archive-{number}", "a" * 32, 1, 1)
            places.append(Location(mesh.context("gateway-proxy").channels.get(server.target), reference))
    try:
        if reason:
            with pytest.raises(RadmeshError) as caught:
                b"".join(read_object(places))
            assert caught.value.reason == reason
        else:
            assert len(b"".join(read_object(places))) == 10
    finally:
        mesh.close()


class Store:
    """Plain protobuf, on grpcio: answers each request with what it is given."""

    def __init__(self, answers: Callable[[], list[transfer_pb2.ReadResponse]]) -> None:
        self.answers = answers

    def Read(self, requests: Iterator[Any], _call: Any) -> Iterator[Any]:
        for _ in requests:
            yield from self.answers()

    Put = ReadRange = Read


def answer(data: bytes = b"abc", **changes: Any) -> transfer_pb2.ReadResponse:
    fields: dict[str, Any] = {"size": 3, "crc32c": crc32c(data), "sha256": hashlib.sha256(b"abc").digest()}
    return transfer_pb2.ReadResponse(data=data, **{**fields, **changes})


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([answer()], ""),
        ([answer(b"a"), answer(b"bc", offset=1)], ""),
        ([answer(sha256=hashlib.sha256(b"abd").digest())], "OBJECT_CORRUPT"),
        # The store has compared it already.
        ([answer(sha256=hashlib.sha256(b"abd").digest(), verified=True)], ""),
        ([answer(b"a", sha256=bytes(32), verified=True), answer(b"bc", offset=1)], "OBJECT_CORRUPT"),
        ([answer(crc32c=7)], "CHUNK_CORRUPT"),
        ([answer(b"a"), answer(b"bc", offset=2)], "CHUNK_CORRUPT"),
        ([answer(b"abcd")], "CHUNK_CORRUPT"),
        ([answer(size=4)], "CHUNK_CORRUPT"),
        ([answer(b"")], "CHUNK_CORRUPT"),
        (
            [answer(b"a"), transfer_pb2.ReadResponse(failed=transfer_pb2.Failed(reason="OBJECT_CORRUPT"))],
            "OBJECT_CORRUPT",
        ),
    ],
)
def test_answers_that_do_not_fit_are_no_object(folder: Any, answers: list[Any], reason: str) -> None:
    mesh = Mesh(folder, "unix")
    server = mesh.serve(mesh.context("archive-server-0"), TRANSFER, Store(lambda: answers))
    reader = LineReader(LineTo(server.target, mesh.context("gateway-proxy").line))
    reference = ObjectReference.of(common_pb2.ObjectReference(store_id="archive-0", sequence=1))
    try:
        reader.ask(reference, 3)
        if reason:
            with pytest.raises(RadmeshError) as caught:
                reader.take()
            assert caught.value.reason == reason
        else:
            assert b"".join(reader.take()) == b"abc"
    finally:
        reader.close()
        mesh.close()
