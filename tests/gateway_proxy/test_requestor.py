"""Associations that we open, with peers that do as they should, and with peers that do not."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from edge_support import LocalEdge

from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy import pdus
from radmesh_gateway_proxy.dimse import Element, us
from radmesh_gateway_proxy.negotiation import AcceptedContext
from radmesh_gateway_proxy.objects import Item, context_for, proposals
from radmesh_gateway_proxy.pdus import (
    AssociateAccept,
    AssociateReject,
    ContextReply,
    ContextResult,
    ProposedContext,
    UserInformation,
)
from radmesh_gateway_proxy.requestor import MOST_CONTEXTS, Requestor, Target
from radmesh_native.dul import encode_command

CT, ECHO = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
EXPLICIT, IMPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
CONTEXTS = (ProposedContext(1, CT, (EXPLICIT,)), ProposedContext(3, ECHO, (IMPLICIT,)))
ACCEPT = AssociateAccept(
    "STATION",
    "RADMESH",
    (ContextReply(1, ContextResult.ACCEPTANCE, EXPLICIT), ContextReply(3, ContextResult.ACCEPTANCE, IMPLICIT)),
    UserInformation(16_384),
)


def target(port: int) -> Target:
    return Target("127.0.0.1", port, "STATION", "RADMESH", 2.0, 2.0, 2.0)


@contextmanager
def station(behave: Callable[[socket.socket], object]) -> Iterator[int]:
    """A peer that reads an A-ASSOCIATE-RQ, and then does as it is told."""
    server = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            read_pdu(connection)
            behave(connection)
            done.wait(10)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(server.getsockname()[1])
    finally:
        done.set()
        server.close()
        thread.join(10)


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    head = connection.recv(6, socket.MSG_WAITALL)
    return head[0], connection.recv(struct.unpack(">H", head[4:])[0], socket.MSG_WAITALL)


def accepted_then(*pdus_to_send: bytes, accept: AssociateAccept = ACCEPT) -> Callable[[socket.socket], object]:
    """Accept; answer the first P-DATA-TF with these."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(pdus.encode_associate_accept(accept))
        if pdus_to_send:
            read_pdu(connection)
            connection.sendall(b"".join(pdus_to_send))

    return behave


def p_data(context: int, command: bytes) -> bytes:
    return struct.pack(">BxIIBB", 4, len(command) + 6, len(command) + 2, context, 3) + command


def response(**changes: bytes) -> bytes:
    elements = {0x0100: us(0x8030), 0x0120: us(1), 0x0800: us(0x0101), 0x0900: us(0)}
    return p_data(3, encode_command(elements | {int(name[1:], 16): value for name, value in changes.items()}))


def echo(port: int) -> int:
    with Requestor(target(port), CONTEXTS) as association:
        return association.echo().status


def test_our_own_acceptor_takes_what_we_send() -> None:
    with LocalEdge() as edge:
        with Requestor(target(edge.port), CONTEXTS) as association:
            assert association.echo().status == 0
            context = association.context_of(CT, (EXPLICIT,))
            assert context == AcceptedContext(1, CT, EXPLICIT)
            pieces = [b"a" * 1_000_000, b"b" * 300_000, b"c"]
            answer = association.store(context, "1.2.3", pieces, originator=("MOVER", 77))
            assert answer.status == 0
            assert association.store(context, "1.2.4", []).status == 0
        assert edge.ended()[0]["outcome"] == "released"
    kept, empty = edge.kept
    assert (kept.size, kept.request.affected_sop_instance_uid) == (1_300_001, "1.2.3")
    assert kept.request.text(Element.MOVE_ORIGINATOR_AE_TITLE) == "MOVER"
    assert kept.request.number(Element.MOVE_ORIGINATOR_MESSAGE_ID) == 77
    assert empty.size == 0


def test_an_object_that_breaks_off_aborts_the_association() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a" * 100_000
        yield b"b"
        raise RadmeshError("OBJECT_CORRUPT", "it is")

    with LocalEdge() as edge:
        with Requestor(target(edge.port), CONTEXTS) as association:
            context = association.context_of(CT)
            assert context is not None
            with pytest.raises(RadmeshError, match="OBJECT_CORRUPT"):
                association.store(context, "1.2.3", broken())
            assert not association.established
            with pytest.raises(RadmeshError, match="STATION_ABORTED"):
                association.store(context, "1.2.3", [b""])
        assert edge.ended()[0]["outcome"] == "aborted"
    assert not edge.kept


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (lambda c: c.sendall(pdus.encode_associate_reject(AssociateReject(1, 1, 7))), "STATION_REFUSED"),
        (lambda c: c.sendall(pdus.encode_abort(pdus.Abort(2, 0))), "STATION_ABORTED"),
        (lambda c: c.close(), "STATION_ABORTED"),
        (lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "STATION_ABORTED"),
        (lambda c: c.sendall(b"\x02\x00\x7f\xff\xff\xff"), "STATION_ABORTED"),
        (lambda c: None, "STATION_SILENT"),
        (accepted_then(accept=replace(ACCEPT, contexts=())), "STATION_REFUSED"),
        (accepted_then(accept=replace(ACCEPT, user=UserInformation(8))), "STATION_ABORTED"),
        # A transfer syntax that was not offered is not spoken.
        (
            accepted_then(accept=replace(ACCEPT, contexts=(ContextReply(3, ContextResult.ACCEPTANCE, RLE),))),
            "STATION_REFUSED",
        ),
        (accepted_then(pdus.encode_abort(pdus.Abort(0, 0))), "STATION_ABORTED"),
        (accepted_then(pdus.RELEASE_REQUEST), "STATION_ABORTED"),
        (accepted_then(p_data(3, encode_command({0x0100: us(0x30), 0x0110: us(1)}))), "STATION_ABORTED"),
        (accepted_then(response(e0120=us(2))), "STATION_ABORTED"),
        (accepted_then(response(e0100=us(0x8001))), "STATION_ABORTED"),
        (accepted_then(response(e0900=b"")), "STATION_ABORTED"),
        (accepted_then(b"\x04\x00\x00\x00\x00\x02ab"), "STATION_ABORTED"),
        (accepted_then(response()[:9]), "STATION_SILENT"),
    ],
)
def test_a_peer_that_errs_is_named(behave: Callable[[socket.socket], object], reason: str) -> None:
    with station(behave) as port, pytest.raises(RadmeshError) as error:
        echo(port)
    assert error.value.reason == reason


def test_a_status_of_the_peer_is_handed_on() -> None:
    with station(accepted_then(response(e0900=us(0x0122), e0902=b"no"))) as port:
        assert echo(port) == 0x0122


def test_what_is_called_between_can_end_it() -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(StopError):
        Requestor(target(server.getsockname()[1]), CONTEXTS, between=stop)


def item(sop_class: str, syntax: str) -> Item:
    return Item(sop_class, "1.2", syntax, 1, (), ())


def test_an_association_proposes_as_stored_and_what_everybody_can_read() -> None:
    contexts, number = proposals([item(CT, RLE), item(CT, EXPLICIT), item(CT, RLE)])
    assert number == 3
    assert [(c.context_id, c.abstract_syntax, c.transfer_syntaxes) for c in contexts] == [
        (1, CT, (RLE,)),
        (3, CT, (EXPLICIT, IMPLICIT)),
        (5, CT, (EXPLICIT,)),
    ]
    preferred, _ = proposals([item(CT, RLE)], (EXPLICIT,))
    assert [c.transfer_syntaxes for c in preferred] == [(EXPLICIT,), (EXPLICIT, IMPLICIT)]


def test_what_does_not_fit_one_association_goes_in_the_next() -> None:
    items = [item(f"1.2.3.{n}", EXPLICIT) for n in range(100)]
    contexts, number = proposals(items)
    assert (len(contexts), number) == (MOST_CONTEXTS, MOST_CONTEXTS // 2)
    assert proposals(items[number:])[1] == 100 - number


def test_an_object_goes_as_stored_or_as_what_it_can_be_made() -> None:
    def accepted(*syntaxes: str) -> list[AcceptedContext]:
        return [AcceptedContext(2 * n + 1, CT, syntax) for n, syntax in enumerate(syntaxes)]

    assert context_for(item(CT, RLE), accepted(EXPLICIT, RLE)).transfer_syntax == RLE
    assert context_for(item(CT, RLE), accepted(IMPLICIT, EXPLICIT)).transfer_syntax == EXPLICIT
    assert context_for(item(CT, EXPLICIT), accepted(RLE, IMPLICIT)).transfer_syntax == IMPLICIT
    assert context_for(item(CT, EXPLICIT), accepted(EXPLICIT, IMPLICIT), (IMPLICIT,)).transfer_syntax == IMPLICIT
    for of_class, syntaxes in ((CT, (RLE,)), ("1.2.3", (EXPLICIT,)), (CT, ())):
        with pytest.raises(RadmeshError, match="STATION_REFUSED"):
            context_for(item(of_class, EXPLICIT), accepted(*syntaxes))
