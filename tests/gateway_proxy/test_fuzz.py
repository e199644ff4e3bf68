"""Bytes of any kind: the edge ends or answers each connection, and goes on serving."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from depth import examples
from edge_mesh import World
from edge_support import LocalEdge
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_dicom import CT, DEFAULT_CONTEXTS, Client, associate_rq, image, message, pdu, store_rq

from radmesh.dicom.uids import transfer_syntax
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.dimse import CommandError, encode_response, parse_request
from radmesh_gateway_proxy.intake import Head, RefusedError

GOOD = associate_rq(DEFAULT_CONTEXTS) + message(1, store_rq(CT, "2.25.1.1.1"), image()) + pdu(5, bytes(4))


@pytest.fixture(scope="module")
def edge() -> Iterator[LocalEdge]:
    with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
        world = World(Path(folder))
        config = Section(port=0, artim_timeout=0.3, pdu_timeout=0.3, idle_timeout=0.3)
        with LocalEdge(config, make_store=world.intake(world.senders(resume_seconds=0.5))) as edge:
            yield edge
        world.close()


def send_all(edge: LocalEdge, data: bytes) -> None:
    """Send, say goodbye, and read until the other side closes."""
    with Client(edge.port, None, timeout=30) as client, contextlib.suppress(OSError):
        client.send(data)
        client.socket.shutdown(1)
        while client.socket.recv(65536):
            pass


def alive(edge: LocalEdge) -> None:
    with Client(edge.port) as client:
        assert client.echo() == 0
        client.release()
    assert "association failed" not in edge.output.getvalue()


@settings(max_examples=examples(150))
@given(data=st.data())
def test_a_damaged_conversation(edge: LocalEdge, data: st.DataObject) -> None:
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(damaged)))
    send_all(edge, bytes(damaged[: cut if data.draw(st.booleans()) else None]))
    alive(edge)


@settings(max_examples=examples(60))
@given(kinds=st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=60)), max_size=5), associated=st.booleans())
def test_pdus_of_any_kind(edge: LocalEdge, kinds: list[tuple[int, bytes]], associated: bool) -> None:
    head = associate_rq(DEFAULT_CONTEXTS) if associated else b""
    send_all(edge, head + b"".join(pdu(kind, body) for kind, body in kinds))
    alive(edge)


@settings(max_examples=examples(300))
@given(command=st.binary(max_size=200), has_data_set=st.booleans())
def test_any_command_set(command: bytes, has_data_set: bool) -> None:
    with contextlib.suppress(CommandError):
        parse_request(command, has_data_set=has_data_set)


@settings(max_examples=examples(300))
@given(data=st.data())
def test_a_damaged_data_set_is_read_or_refused(data: st.DataObject) -> None:
    uid = data.draw(
        st.sampled_from(["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"])
    )
    damaged = bytearray(image())
    for _ in range(data.draw(st.integers(0, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    size = data.draw(st.integers(1, 300))
    chunks = [cut[i : i + size] for i in range(0, len(cut), size)]
    head = Head(transfer_syntax(uid))
    request = parse_request(store_rq(CT, "2.25.1.1.1"), has_data_set=True)
    try:
        head.read(iter(chunks))
        head.queryable()
        head.check(request)
        tail = head.tail()
        for chunk in chunks if tail else ():
            tail.feed(chunk)  # type: ignore[union-attr]
        if tail is not None:
            tail.ends_inside()
    except RefusedError as refusal:
        assert encode_response(request, refusal.outcome)
        assert len(refusal.outcome.comment) <= 64
