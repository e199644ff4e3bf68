"""Requests that come before the answers to those before them: an Asynchronous Operations Window (PS3.7 D.3.3.3)."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_mesh import World
from edge_support import LocalEdge
from raw_dicom import ASSOCIATE_AC, CT, EXPLICIT, RELEASE_RP, RELEASE_RQ, Client, echo_rq, image, message, pdu, store_rq

from radmesh.dicom.uids import VERIFICATION_SOP_CLASS
from radmesh_gateway_proxy.pdus import (
    AssociateRequest,
    ProposedContext,
    UserInformation,
    encode_associate_request,
    parse_associate_accept,
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    # Not pytest's own folder: a path of a unix socket is short.
    with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
        world = World(Path(folder))
        yield world
        world.close()


@pytest.fixture
def edge(world: World) -> Iterator[LocalEdge]:
    with LocalEdge(make_store=world.intake(world.senders(resume_seconds=0.5))) as edge:
        yield edge


def connected(edge: LocalEdge, operations: int = 0) -> Client:
    """A client that may have so many requests open; 0 = as many as it likes."""
    client = Client(edge.port, None)
    contexts = (ProposedContext(1, CT, (EXPLICIT,)), ProposedContext(3, VERIFICATION_SOP_CLASS, (EXPLICIT,)))
    user = UserInformation(131072, "1.2.3", async_window=(operations, 1))
    client.send(encode_associate_request(AssociateRequest("RADMESH", "MODALITY", contexts, user)))
    kind, body = client.pdu()
    assert kind == ASSOCIATE_AC
    assert parse_associate_accept(body).user.async_window == (operations or 8, 1)
    return client


def answers(client: Client, count: int) -> list[tuple[int, int]]:
    """Message ID Being Responded To, and status, of so many responses."""
    responses = [client.response() for _ in range(count)]
    return [(int.from_bytes(response.elements[0x0120], "little"), response.status) for response in responses]


def test_requests_of_every_kind_are_answered_in_their_order(world: World, edge: LocalEdge) -> None:
    study = "2.25.300"
    sizes = [512, 200_000, 3 << 20, 512, 512, 18 << 20, *[4096] * 30]
    objects = {f"{study}.{n}": image(study, f"{study}.{n}", pixels=size) for n, size in enumerate(sizes)}
    requests = [message(1, store_rq(CT, uid, n), data) for n, (uid, data) in enumerate(objects.items(), 1)]
    # Of another instance than the command says: refused; and what is no C-STORE.
    requests.insert(4, message(1, store_rq(CT, "2.25.300.999", 100), image(study, "2.25.300.998")))
    requests.insert(8, message(3, echo_rq()))
    with connected(edge) as client:
        client.send(b"".join(requests) + pdu(RELEASE_RQ, bytes(4)))
        found = answers(client, len(requests))
        assert client.pdu() == (RELEASE_RP, bytes(4))
    numbers = [number for number, _ in found]
    assert numbers[:4] == [1, 2, 3, 4]
    assert (numbers[4], found[4][1]) == (100, 0xA900)
    assert numbers[5:8] == [5, 6, 7]
    assert numbers[9:] == list(range(8, len(objects) + 1))
    assert {status for number, status in found if number != 100} == {0}
    for uid, data in objects.items():
        assert world.stored(uid)[1] == data
    # The release waited for the last of them.
    rows = [row.ref.sequence for row in world.rows() if row.header.study_instance_uid == study]
    assert world.registry.waited[-1].sequence == max(rows)
    assert edge.ended()[0]["objects"] == len(objects)


def test_what_is_durable_is_answered_while_the_next_one_hangs(edge: LocalEdge) -> None:
    """A station may wait for an answer before it goes on in the middle of a data set."""
    study = "2.25.301"
    with connected(edge, 2) as client:
        second = message(1, store_rq(CT, f"{study}.2", 2), image(study, f"{study}.2", pixels=400_000))
        for cut in (7, 300, 200_000):
            first = message(1, store_rq(CT, f"{study}.1.{cut}", 1), image(study, f"{study}.1.{cut}"))
            client.send(first + second[:cut])
            assert answers(client, 1) == [(1, 0)]
            client.send(second[cut:])
            assert answers(client, 1) == [(2, 0)]
        client.release()


def test_one_sender_is_enough_for_many_requests(world: World) -> None:
    study = "2.25.302"
    senders = world.senders(most=1)
    with LocalEdge(make_store=world.intake(senders)) as edge, connected(edge) as client, connected(edge) as other:
        for part in range(0, 20, 5):
            for number in range(part, part + 5):
                for one, who in ((client, 1), (other, 2)):
                    uid = f"{study}.{who}.{number}"
                    one.send(message(1, store_rq(CT, uid, number), image(study, uid, pixels=20_000)))
        for one in (client, other):
            assert answers(one, 20) == [(number, 0) for number in range(20)]
            one.release()
    assert senders.spare() is not None
    assert senders.spare() is None


def test_who_leaves_has_stored_what_was_whole(world: World, edge: LocalEdge) -> None:
    study = "2.25.303"
    client = connected(edge)
    for number in range(5):
        uid = f"{study}.{number}"
        client.send(message(1, store_rq(CT, uid, number), image(study, uid, pixels=100_000)))
    client.abort()
    (line,) = edge.ended()
    stored = [row for row in world.rows() if row.header.study_instance_uid == study]
    assert len(stored) == line["objects"]
    with Client(edge.port) as again:
        uid = f"{study}.9"
        assert again.store(image(study, uid), uid).status == 0
