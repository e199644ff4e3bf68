"""Sender and receiver against each other, over both transports, and against plain protobuf."""

import hashlib
import mmap
import os
import secrets
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from transfer_support import CHUNK, TRANSFER, Mesh, admission_key, object_header, uid
from waiting import wait_for

from radmesh.api.common.v1 import common_pb2
from radmesh.api.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.line import Line
from radmesh.runtime.rpc import from_rpc_error
from radmesh.study_store import Outcome
from radmesh.transfer.model import key_message
from radmesh.transfer.reader import read_range
from radmesh.transfer.sender import NO_STORE_SECONDS, KeepBudget, Sender, _cut, _header, _Object
from radmesh_native.crc32c import crc32c

SIZES = [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5_000_003]


def send(sender: Any, world: Any, data: bytes, *name: object, pieces: int = 1_000_000, **changes: Any) -> Any:
    sender.begin(world.header(*name), changes.get("key", world.key))
    for start in range(0, len(data), pieces):
        sender.write(data[start : start + pieces])
    return sender.commit(changes.get("sha256", hashlib.sha256(data).digest()), b"header", ["BAD_VR 0010,1010"])


@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back(world: Any, size: int) -> None:
    data = os.urandom(size)
    committed = send(world.sender(), world, data, size)
    assert committed.outcome is Outcome.STORED
    assert committed.object.store_id == "archive-0"
    read = read_range(world.client.channels.get(world.target), committed.object)
    assert b"".join(read) == data
    assert (read.size, read.sha256) == (size, hashlib.sha256(data).digest())


def test_again_is_already_and_other_content_a_variant(unix_world: Any) -> None:
    world = unix_world
    sender = world.sender()
    first = send(sender, world, b"abc")
    again = send(sender, world, b"abc")
    assert again.outcome is Outcome.ALREADY
    assert again.object == first.object
    assert send(sender, world, b"abd").outcome is Outcome.VARIANT
    assert len(world.admissions) == 1, "the ticket serves the study's other objects"


def test_pieces_of_any_size_are_cut_into_chunks(unix_world: Any) -> None:
    world = unix_world
    data = os.urandom(2 * CHUNK + 77_777)
    for pieces in (16_384, CHUNK - 3, CHUNK, CHUNK + 5, len(data)):
        committed = send(world.sender(), world, data, pieces, pieces=pieces)
        assert world.read(committed.object.ref) == data


def test_a_cut_chunk_is_not_copied_when_it_is_whole(unix_world: Any) -> None:
    whole = os.urandom(CHUNK)
    o = _Object(b"", unix_world.header(), unix_world.key, b"", b"", held=deque([whole, b"x"]), held_size=CHUNK + 1)
    assert _cut(o) == [whole]
    assert list(o.held) == [b"x"]
    o.held, o.held_size = deque([b"y"] * 5000), 5000
    assert _cut(o) == [b"y" * 5000]


class Plain:
    """A Put stream of the generated stub: protobuf's own encoding."""

    def __init__(self, world: Any) -> None:
        self.world = world
        # grpcio's client, at grpcio's server or at a line, which has one stream a connection.
        self.channel = world.client.channels.new(world.put_target)
        stub = transfer_pb2_grpc.TransferServiceStub(self.channel)
        self.requests: Any = None
        import queue

        self.requests = queue.SimpleQueue()
        self.call = stub.Put(iter(self.requests.get, None), timeout=30)

    def ask(self, **fields: Any) -> transfer_pb2.PutResponse:
        self.requests.put(transfer_pb2.PutRequest(**fields))
        return next(self.call)

    def header(self, ticket: Any = None, **changes: Any) -> transfer_pb2.Header:
        world = self.world
        ticket = ticket or world.mesh.ticket(world.store, world.target, world.key)
        header = _header(world.header(secrets.token_hex(4)), world.key, ticket)
        header.MergeFrom(transfer_pb2.Header(**changes))
        return header

    def commit(self, data: bytes, **changes: Any) -> transfer_pb2.Commit:
        fields = {"length": len(data), "sha256": hashlib.sha256(data).digest(), "header": b"h", "crc32c": crc32c(data)}
        fields |= changes
        return transfer_pb2.Commit(**fields)

    def close(self) -> None:
        self.requests.put(None)
        self.call.cancel()
        self.channel.close()


@pytest.fixture
def plain(world: Any) -> Iterator[Plain]:
    client = Plain(world)
    yield client
    client.close()


def window_of(sender: Sender) -> Any:
    (stream,) = sender._streams.values()
    return stream._line.window


def test_an_object_lies_in_the_window(unix_world: Any) -> None:
    world = unix_world
    sender = world.sender()
    first, second = os.urandom(CHUNK), os.urandom(200_000)
    committed = send(sender, world, first, 1, pieces=131_066)
    window = window_of(sender)
    assert window[:CHUNK] == first
    again = send(sender, world, second, 2)
    assert window[: len(second)] == second
    assert (world.read(committed.object.ref), world.read(again.object.ref)) == (first, second)


def test_a_window_that_the_store_may_still_read_is_left_to_it(unix_world: Any) -> None:
    world = unix_world
    sender, data = world.sender(), os.urandom(100_000)
    send(sender, world, data, 1)
    window = window_of(sender)
    world.store._reserve, world.store._free_at = 1 << 62, -1.0
    with pytest.raises(RadmeshError) as caught:
        send(sender, world, data[::-1], 2)
    assert caught.value.reason == "STORAGE_FULL"
    world.store._reserve, world.store._free_at = 0, -1.0
    committed = send(sender, world, data[1:], 3)
    assert window_of(sender) is not window
    assert window[: len(data)] == data[::-1]
    assert world.read(committed.object.ref) == data[1:]


def test_a_ticket_that_has_expired_costs_no_window(unix_world: Any) -> None:
    world = unix_world
    lives = iter((60.0, -1.0, 60.0))
    sender = world.sender(
        admit=lambda admission: world.mesh.ticket(world.store, world.route, admission.key, seconds=next(lives))
    )
    send(sender, world, os.urandom(100_000), 1)
    window, data = window_of(sender), os.urandom(100_000)
    sender._tickets.clear()
    committed = send(sender, world, data, 2)
    assert window_of(sender) is window
    assert world.read(committed.object.ref) == data


def test_a_window_that_is_not_there(plain: Plain) -> None:
    data = os.urandom(100_000)
    fields: Any = {"commit": plain.commit(data), "crc32c": crc32c(data)}
    for changes, reason in (({"window": len(data)}, "CHUNK_CORRUPT"), ({"window": 1, "offset": 7}, "FIELD_INVALID")):
        answer = plain.ask(transfer_id=secrets.token_bytes(16), header=plain.header(), **fields, **changes)
        assert answer.failed.reason == reason
    answer = plain.ask(transfer_id=secrets.token_bytes(16), header=plain.header(), window=len(data))
    assert answer.failed.reason == "FIELD_INVALID"
    answer = plain.ask(transfer_id=secrets.token_bytes(16), header=plain.header(), data=data, **fields)
    assert answer.committed.object.store_id == "archive-0"


def test_a_window_that_is_lost_on_the_way_is_not_used_again(unix_world: Any) -> None:
    """As with a program in between that hands on bytes, and no descriptors."""
    world = unix_world
    sender, data = world.sender(), os.urandom(100_000)
    send(sender, world, data, 1)
    (stream,) = sender._streams.values()
    assert stream._line.window is not None
    stream._line.window = mmap.mmap(-1, 1 << 20)
    committed = send(sender, world, data[::-1], 2)
    assert sender._streams[world.put_target] is stream
    assert stream._line.window is None
    assert world.read(committed.object.ref) == data[::-1]


def test_a_plain_protobuf_client_puts_and_reads(plain: Plain) -> None:
    data = os.urandom(500_000)
    answer = plain.ask(
        transfer_id=secrets.token_bytes(16),
        header=plain.header(),
        commit=plain.commit(data),
        data=data,
        crc32c=crc32c(data),
    )
    stub = transfer_pb2_grpc.TransferServiceStub(plain.world.client.channels.get(plain.world.target))
    messages = list(stub.ReadRange(transfer_pb2.ReadRangeRequest(object=answer.committed.object, offset=7), timeout=30))
    assert b"".join(message.data for message in messages) == data[7:]
    assert messages[0].size == len(data)
    assert messages[0].crc32c == crc32c(messages[0].data)


def test_our_sender_speaks_to_a_plain_protobuf_server(folder: Any) -> None:
    class Server:
        def Put(self, requests: Iterator[transfer_pb2.PutRequest], _call: Any) -> Iterator[transfer_pb2.PutResponse]:
            got = b""
            for request in requests:
                assert crc32c(request.data) == request.crc32c
                got += request.data
                if request.HasField("commit"):
                    assert hashlib.sha256(got).digest() == request.commit.sha256
                    reference = common_pb2.ObjectReference(store_id="archive-0", sequence=len(got))
                    committed = transfer_pb2.Committed(object=reference, outcome=1)
                    yield transfer_pb2.PutResponse(transfer_id=request.transfer_id, committed=committed)

        def ReadRange(self, _request: Any, _call: Any) -> Iterator[Any]:
            yield transfer_pb2.ReadRangeResponse(
                offset=0, size=3, sha256=hashlib.sha256(b"abc").digest(), crc32c=crc32c(b"abc"), data=b"abc"
            )

        Read = ReadRange

    mesh = Mesh(folder, "unix")
    server = mesh.serve(mesh.context("archive-server-0"), TRANSFER, Server())
    client = mesh.context("gateway-proxy")
    key = admission_key(uid("s"))

    class Store:
        store_id, epoch = "archive-0", b"e" * 16

    sender = Sender(client.line, lambda a: mesh.ticket(Store, server.target, a.key), mesh.clock)
    data = os.urandom(3_000_000)
    sha256 = hashlib.sha256(data).digest()
    committed = sender.send(object_header(uid("s"), uid("i"), key), key, data, sha256=sha256, queryable=b"")
    assert committed.object.sequence == len(data)
    assert b"".join(read_range(client.channels.get(server.target), committed.object)) == b"abc"
    sender.close()
    mesh.close()


def failed(answer: transfer_pb2.PutResponse) -> str:
    assert answer.HasField("failed"), answer
    assert answer.failed.code
    return answer.failed.reason


def test_bytes_that_changed_on_their_way_are_refused(unix_world: Any) -> None:
    """What is written is compared with what was joined: a chunk's own CRC-32C is right here."""
    world, data = unix_world, bytearray(os.urandom(2 * CHUNK))
    sender = world.sender()
    sender.begin(world.header(), world.key)
    sender.write(data)
    data[-1] ^= 1  # of what is held back for the commit
    with pytest.raises(RadmeshError) as caught:
        sender.commit(hashlib.sha256(data).digest())
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert send(sender, world, bytes(data)).outcome is Outcome.STORED


def test_chunks_that_do_not_make_up_the_object_are_refused(plain: Plain) -> None:
    first, second = os.urandom(CHUNK), os.urandom(1000)
    for check, reason in ((0, "DIGEST_MISMATCH"), (crc32c(second + first), "DIGEST_MISMATCH"), (None, "")):
        identifier = secrets.token_bytes(16)
        assert plain.ask(transfer_id=identifier, header=plain.header()).progress.acknowledged_offset == 0
        plain.requests.put(transfer_pb2.PutRequest(transfer_id=identifier, data=first, crc32c=crc32c(first)))
        commit = plain.commit(first + second, **({} if check is None else {"crc32c": check}))
        fields = {"offset": CHUNK, "data": second, "crc32c": crc32c(second), "commit": commit}
        answer = plain.ask(transfer_id=identifier, **fields)
        while answer.HasField("progress"):
            answer = next(plain.call)
        assert answer.failed.reason == reason, check


def test_bad_input_fails_one_object_and_the_stream_lives_on(plain: Plain) -> None:
    world, data, crc = plain.world, b"abc", crc32c(b"abc")
    other = admission_key(world.study, station="OTHER")
    elsewhere = admission_key(uid("elsewhere"))
    ticket, target, store = world.mesh.ticket, world.target, world.store
    forged = ticket(store, target, world.key)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("CHUNK_CORRUPT", {"crc32c": crc ^ 1}),
        ("DIGEST_MISMATCH", {"commit": plain.commit(data, length=4)}),
        ("FIELD_INVALID", {"commit": plain.commit(data, sha256=b"short")}),
        ("FIELD_INVALID", {"commit": plain.commit(data, header=bytes(262_145))}),
        ("FIELD_INVALID", {"commit": plain.commit(data, remarks=["x"] * 65)}),
        ("FIELD_INVALID", {"transfer_id": b"short"}),
        ("FIELD_INVALID", {"header": plain.header(sop_instance_uid="1" * 65)}),
        ("FIELD_INVALID", {"header": plain.header(calling_ae_title="A" * 129)}),
        ("TICKET_STALE", {"header": plain.header(ticket(store, target, world.key, epoch=b"old" * 5 + b"!"))}),
        ("TICKET_STALE", {"header": plain.header(ticket(store, target, world.key, store_id="archive-9"))}),
        ("TICKET_STALE", {"header": plain.header(ticket(store, target, world.key, seconds=-1))}),
        ("TICKET_INVALID", {"header": plain.header(ticket(store, target, other))}),
        ("TICKET_INVALID", {"header": plain.header(ticket(store, target, elsewhere))}),
        ("TICKET_INVALID", {"header": plain.header(admission_key=key_message(other))}),
        ("TICKET_INVALID", {"header": plain.header(study_instance_uid=uid("elsewhere"))}),
        (
            "TICKET_INVALID",
            {
                "header": plain.header(
                    ticket=common_of(forged.payload, bytes((forged.signature[0] ^ 1,)) + forged.signature[1:])
                )
            },
        ),
        ("TICKET_INVALID", {"header": plain.header(ticket(store, target, world.key, issuer="archive-server"))}),
        ("TICKET_INVALID", {"header": plain.header(ticket=common_of(b"\xff" * 40, bytes(64)))}),
        ("TICKET_INVALID", {"header": plain.header(ticket=common_of(bytes(5000), bytes(64)))}),
    ]
    for reason, changes in cases:
        fields = {
            "transfer_id": secrets.token_bytes(16),
            "header": plain.header(),
            "commit": plain.commit(data),
            "data": data,
            "crc32c": crc,
            **changes,
        }
        answer = plain.ask(**fields)
        assert answer.failed.reason == reason, (reason, changes)
    header = plain.header()
    header.ClearField("ticket")
    assert failed(plain.ask(transfer_id=secrets.token_bytes(16), header=header)) == "TICKET_INVALID"
    assert failed(plain.ask(transfer_id=secrets.token_bytes(16), data=data)) == "TRANSFER_INVALID"
    good = plain.ask(
        transfer_id=secrets.token_bytes(16), header=plain.header(), commit=plain.commit(data), data=data, crc32c=crc
    )
    assert good.HasField("committed")


def common_of(payload: bytes, signature: bytes) -> Any:
    class Fake:
        def message(self) -> common_pb2.SignedTicket:
            return common_pb2.SignedTicket(payload=payload, signature=signature)

    return Fake()


def test_a_chunk_that_is_too_large_ends_the_stream(plain: Plain) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        plain.ask(transfer_id=secrets.token_bytes(16), header=plain.header(), data=bytes(CHUNK + 1))
    assert from_rpc_error(caught.value).reason == "CHUNK_TOO_LARGE"


def test_offsets_must_follow_each_other(plain: Plain) -> None:
    identifier = secrets.token_bytes(16)
    answer = plain.ask(transfer_id=identifier, header=plain.header())
    assert answer.progress.acknowledged_offset == 0
    answer = plain.ask(transfer_id=identifier, offset=10, data=b"abc", crc32c=crc32c(b"abc"))
    assert failed(answer) == "OFFSET_UNEXPECTED"


def test_an_aborted_transfer_stores_nothing(plain: Plain) -> None:
    identifier = secrets.token_bytes(16)
    plain.ask(transfer_id=identifier, header=plain.header())
    assert failed(plain.ask(transfer_id=identifier, abort=transfer_pb2.Abort())) == "TRANSFER_ABORTED"
    assert plain.ask(transfer_id=identifier, header=plain.header()).progress.acknowledged_offset == 0


def test_an_object_that_has_begun_finishes_though_its_ticket_expires(plain: Plain) -> None:
    world = plain.world
    data = os.urandom(2 * CHUNK)
    header = plain.header(world.mesh.ticket(world.store, world.target, world.key, seconds=0.5))
    identifier = secrets.token_bytes(16)
    plain.ask(transfer_id=identifier, header=header)
    plain.requests.put(transfer_pb2.PutRequest(transfer_id=identifier, data=data[:CHUNK], crc32c=crc32c(data[:CHUNK])))
    ticket = common_pb2.Ticket.FromString(header.ticket.payload)
    wait_for(lambda: ticket.expire_time.ToDatetime() < world.mesh.clock.now().replace(tzinfo=None))
    again = Plain(world)

    def resumed() -> int:
        answer = again.ask(transfer_id=identifier, header=header)
        return 0 if answer.HasField("failed") else answer.progress.acknowledged_offset

    assert wait_for(resumed) == CHUNK
    answer = again.ask(
        transfer_id=identifier, offset=CHUNK, data=data[CHUNK:], crc32c=crc32c(data[CHUNK:]), commit=again.commit(data)
    )
    assert answer.HasField("committed")
    again.close()


def test_a_stale_ticket_is_renewed_by_the_sender(unix_world: Any) -> None:
    world = unix_world
    sender = world.sender()
    send(sender, world, b"one", 1)
    world.restart()
    assert send(sender, world, b"two", 2).outcome is Outcome.STORED
    assert len(world.admissions) == 2


def test_a_sender_gives_up_on_a_ticket_for_another_key(unix_world: Any) -> None:
    world = unix_world
    other = admission_key(world.study, station="OTHER")
    sender = world.sender(admit=lambda a: world.mesh.ticket(world.store, world.target, other))
    with pytest.raises(RadmeshError) as caught:
        send(sender, world, b"abc")
    assert caught.value.reason == "TICKET_INVALID"


def test_the_window_is_bounded_by_the_budget(unix_world: Any) -> None:
    world = unix_world
    budget = KeepBudget(limit=1)
    data = os.urandom(20 * CHUNK)
    sender = world.sender(budget=budget)
    most = 0
    sender.begin(world.header(), world.key)
    for start in range(0, len(data), CHUNK):
        sender.write(data[start : start + CHUNK])
        base, kept = sender.kept()
        assert base + sum(map(len, kept)) == start + CHUNK
        most = max(most, budget._used)
    committed = sender.commit(hashlib.sha256(data).digest())
    assert most <= 6 << 20
    assert budget._used == 0
    assert world.read(committed.object.ref) == data


def test_a_store_that_does_not_answer_is_a_timeout(folder: Any) -> None:
    class Silent:
        def Put(self, requests: Iterator[Any], _call: Any) -> Iterator[Any]:
            for _ in requests:
                pass
            yield from ()

        def ReadRange(self, _request: Any, _call: Any) -> Iterator[Any]:
            yield from ()

        Read = ReadRange

    class Store:
        store_id, epoch = "archive-0", b"e" * 16

    mesh = Mesh(folder, "unix")
    server = mesh.serve(mesh.context("archive-server-0"), TRANSFER, Silent())
    client = mesh.context("gateway-proxy")
    key = admission_key(uid("s"))
    sender = Sender(
        lambda target, path, **_: Line(target, path, client.credentials, answer_seconds=1.0),
        lambda a: mesh.ticket(Store, server.target, a.key),
        mesh.clock,
        resume_seconds=0.1,
    )
    with pytest.raises(RadmeshError) as caught:
        sender.send(
            object_header(uid("s"), uid("i"), key), key, b"abc", sha256=hashlib.sha256(b"abc").digest(), queryable=b""
        )
    assert caught.value.reason == "PEER_TIMEOUT"
    sender.close()
    mesh.close()


def test_that_no_store_has_room_is_told_soon(folder: Any, unix_world: Any) -> None:
    """A store that comes back within seconds is worth waiting for, a full one is not."""
    world = unix_world

    class Jumping(SystemClock):
        passed = 0.0

        def monotonic(self) -> float:
            return self.passed

        def wait(self, event: threading.Event, seconds: float) -> bool:
            self.passed += seconds
            return event.is_set()

    def admit(_admission: Any) -> Any:
        raise RadmeshError("NO_STORE", "no archive answers and the spool is full")

    clock = Jumping()
    sender = Sender(world.mesh.context("gateway-proxy").line, admit, clock)
    with pytest.raises(RadmeshError) as caught:
        send(sender, world, b"abc")
    assert caught.value.reason == "NO_STORE"
    assert NO_STORE_SECONDS <= clock.passed < NO_STORE_SECONDS + 1.5


def test_a_full_store_sends_the_object_elsewhere_or_fails(folder: Any, unix_world: Any) -> None:
    world = unix_world

    class Full:
        store_id, epoch = "archive-9", world.store.epoch
        put = begin = staticmethod(lambda *_a, **_k: (_ for _ in ()).throw(RadmeshError("STORAGE_FULL", "no room")))
        read = None

    from radmesh.transfer.receiver import TransferReceiver

    context = world.mesh.context("archive-server-1")
    receiver = TransferReceiver(Full(), context.credentials, world.mesh.clock, read=lambda *_: None)
    full = world.mesh.serve(context, TRANSFER, receiver, receiver.codecs)
    asked = []

    def admit(admission: Any) -> Any:
        asked.append(admission.avoid_store_id)
        if admission.avoid_store_id == "archive-9" and len(asked) < 3:
            return world.mesh.ticket(world.store, world.target, admission.key)
        return world.mesh.ticket(Full, full.target, admission.key)

    sender = world.sender(admit=admit)
    assert send(sender, world, os.urandom(2_500_000)).object.store_id == "archive-0"
    assert asked == ["", "archive-9"]
    sender = world.sender(admit=admit)
    with pytest.raises(RadmeshError) as caught:
        send(sender, world, b"abc", 2)
    assert caught.value.reason == "STORAGE_FULL"
    assert asked[2:] == ["", "archive-9"]
