"""Associations over real sockets: what a peer sees, whatever it sends."""

import gc
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from depth import allowed
from edge_support import LocalEdge
from raw_dicom import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    CT,
    EXPLICIT,
    P_DATA,
    RELEASE_RQ,
    Client,
    associate_rq,
    command,
    echo_rq,
    image,
    message,
    pdu,
    pdv,
    store_rq,
    us,
)
from waiting import wait_for

from radmesh.dicom.stations import Station
from radmesh_gateway_proxy.association import Association
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.dimse import Outcome

# Source 0: service user; source 2: service provider (PS3.8 table 9-26).
USER_ABORT = (ABORT, bytes((0, 0, 0, 0)))


def provider_abort(reason: int) -> tuple[int, bytes]:
    return ABORT, bytes((0, 0, 2, reason))


@pytest.fixture
def edge() -> Iterator[LocalEdge]:
    with LocalEdge() as edge:
        yield edge


def quick(**settings: float) -> LocalEdge:
    return LocalEdge(Section(port=0, **settings))  # type: ignore[arg-type]


def test_echo_store_release(edge: LocalEdge) -> None:
    client = Client(edge.port)
    assert client.accepted == {1: EXPLICIT, 3: "1.2.840.10008.1.2"}
    assert client.echo() == 0
    data = image()
    response = client.store(data)
    assert response.status == 0
    assert response.elements[0x0100] == us(0x8001)
    assert response.elements[0x0120] == us(1)
    assert response.elements[0x0800] == us(0x0101)
    assert response.elements[0x1000].rstrip(b"\0") == b"2.25.1.1.1"
    client.release()
    (ended,) = edge.ended()
    assert (ended["outcome"], ended["objects"]) == ("released", 1)
    assert edge.kept[0].sha256 == hashlib.sha256(data).hexdigest()
    assert edge.stores[0].waited == 2.0
    assert edge.stores[0].closed
    assert edge.board.total(0) == 0


@pytest.mark.parametrize("max_pdu", [64, 4096, 131072])
def test_fragments_of_any_size(edge: LocalEdge, max_pdu: int) -> None:
    data = image(pixels=32 * 1000)
    with Client(edge.port) as client:
        assert client.store(data, max_pdu=max_pdu).status == 0
        client.release()
    assert edge.kept[0].sha256 == hashlib.sha256(data).hexdigest()


def test_pipelined_requests_are_answered_in_order(edge: LocalEdge) -> None:
    with Client(edge.port) as client:
        client.send(
            b"".join(message(1, store_rq(CT, f"2.25.{n}", n), image(sop_instance=f"2.25.{n}")) for n in range(1, 9))
        )
        assert [client.response().elements[0x0120] for _ in range(8)] == [us(n) for n in range(1, 9)]
        client.release()


def test_unrecognized_operation_keeps_the_association(edge: LocalEdge) -> None:
    find = command({0x0002: CT.encode(), 0x0100: us(0x20), 0x0110: us(7), 0x0700: us(0), 0x0800: us(1)})
    with Client(edge.port) as client:
        client.send(message(1, find, image()))
        response = client.response()
        assert (response.status, response.offending) == (0x0211, "0000,0100")
        assert response.elements[0x0100] == us(0x8020)
        client.send(message(1, command({0x0100: us(0x0FFF), 0x0120: us(1), 0x0800: us(0x0101)})))  # C-CANCEL
        assert client.echo() == 0
        client.release()


def test_echo_of_another_class(edge: LocalEdge) -> None:
    with Client(edge.port) as client:
        client.send(message(1, echo_rq(sop_class=CT)))
        assert client.response().status == 0x0122
        client.release()


def test_a_refused_object_is_read_to_its_end(edge: LocalEdge) -> None:
    edge.outcomes.append(Outcome(0xA700, "STORE_BUSY: try again", (0x0008, 0x0018)))
    with Client(edge.port) as client:
        response = client.store(image(pixels=32 * 2000))
        assert (response.status, response.comment, response.offending) == (0xA700, "STORE_BUSY: try again", "0008,0018")
        assert client.store(image()).status == 0
        client.release()


def test_abort_in_the_middle_of_an_object(edge: LocalEdge) -> None:
    client = Client(edge.port)
    client.send(message(1, store_rq(CT, "2.25.1"), image(pixels=32000))[:20000])
    client.send(b"")
    client.abort()
    (ended,) = edge.ended()
    assert ended["outcome"] in ("lost", "aborted")
    assert edge.kept == []
    assert edge.stores[0].closed


def test_release_in_the_middle_of_an_object_stores_nothing(edge: LocalEdge) -> None:
    with Client(edge.port) as client:
        client.send(pdu(P_DATA, pdv(1, 3, store_rq(CT, "2.25.1"))) + pdu(P_DATA, pdv(1, 0, image())))
        client.release()
    edge.ended()
    assert edge.kept == []


# What is malformed is aborted, with the reason of PS3.8 table 9-26.


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(pdu(0x09, b""), 1, id="unrecognized PDU"),
        pytest.param(struct.pack(">BxI", P_DATA, 1 << 30), 6, id="1 GiB announced"),
        pytest.param(struct.pack(">BxI", RELEASE_RQ, 1 << 30), 6, id="1 GiB release"),
        pytest.param(pdu(RELEASE_RQ, b"abc"), 6, id="release of 3 bytes"),
        pytest.param(associate_rq(((1, CT, (EXPLICIT,)),)), 2, id="second A-ASSOCIATE-RQ"),
        pytest.param(pdu(ASSOCIATE_RJ, bytes(4)), 2, id="A-ASSOCIATE-RJ"),
        pytest.param(pdu(P_DATA, pdv(1, 2, b"data")), 2, id="data set without a command"),
        pytest.param(pdu(P_DATA, pdv(99, 3, echo_rq())), 6, id="context that was not accepted"),
        pytest.param(pdu(P_DATA, struct.pack(">IBB", 1 << 20, 1, 3)), 6, id="PDV longer than its PDU"),
        pytest.param(pdu(P_DATA, pdv(1, 3, store_rq(CT, "2.1")) + pdv(1, 3, echo_rq())), 2, id="command in a data set"),
    ],
)
def test_invalid_pdus_are_aborted(edge: LocalEdge, sent: bytes, reason: int) -> None:
    with Client(edge.port) as client:
        client.send(sent)
        assert client.pdu() == provider_abort(reason)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.closed()
    assert edge.ended()[0]["outcome"] == "aborted"


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"\0\0\0\1\xff\xff\0\0", id="cut element"),
        pytest.param(command({0x0110: us(1), 0x0800: us(0x0101)}), id="no command field"),
        pytest.param(command({0x0100: us(0x30), 0x0800: us(0x0101)}), id="no message id"),
        pytest.param(command({0x0100: us(0x8030), 0x0110: us(1), 0x0800: us(0x0101)}), id="a response"),
    ],
)
def test_unusable_commands_are_aborted(edge: LocalEdge, bad: bytes) -> None:
    with Client(edge.port) as client:
        client.send(pdu(P_DATA, pdv(1, 3, bad)))
        assert client.pdu() == USER_ABORT


def test_what_comes_first_must_be_an_association_request(edge: LocalEdge) -> None:
    for first in (
        pdu(RELEASE_RQ, bytes(4)),
        pdu(P_DATA, pdv(1, 3, echo_rq())),
        pdu(0xFF, b""),
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        with Client(edge.port, None) as client:
            client.send(first)
            assert client.pdu() == USER_ABORT  # AA-1
    with Client(edge.port, None) as client:
        client.send(pdu(1, bytes(68 - 1)))
        assert client.pdu() == USER_ABORT


# Who may come in


def test_rejections() -> None:
    with LocalEdge(Section(port=0, require_called_ae=True)) as edge:
        assert Client(edge.port, called="OTHER").answer == (ASSOCIATE_RJ, bytes((0, 1, 1, 7)))
        assert Client(edge.port).answer[0] == ASSOCIATE_AC
    version = bytearray(associate_rq(((1, CT, (EXPLICIT,)),)))
    version[6:8] = b"\0\2"
    name = associate_rq(((1, CT, (EXPLICIT,)),)).replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9")
    with LocalEdge() as edge:
        for request, answer in ((bytes(version), (0, 1, 2, 2)), (name, (0, 1, 1, 2))):
            with Client(edge.port, None) as client:
                client.send(request)
                assert client.pdu() == (ASSOCIATE_RJ, bytes(answer))
    assert edge.kept == []


def test_too_many_associations_are_refused_as_transient() -> None:
    with LocalEdge(Section(port=0, max_associations=2)) as edge:
        first, second = Client(edge.port), Client(edge.port)
        assert Client(edge.port).answer == (ASSOCIATE_RJ, bytes((0, 2, 3, 2)))
        first.release()
        edge.ended(2)
        with Client(edge.port) as third:
            assert third.echo() == 0
        second.abort()


def test_unknown_stations_are_refused_and_audited() -> None:
    stations = (Station("CT1", ("127.0.0.0/8",)), Station("WS1", grants=("query",)), Station("FAR", ("10.1.2.3",)))
    with LocalEdge(Section(port=0, check_stations="on"), stations) as edge:
        assert Client(edge.port, calling="NOBODY").answer == (ASSOCIATE_RJ, bytes((0, 1, 1, 3)))
        assert Client(edge.port, calling="FAR").answer == (ASSOCIATE_RJ, bytes((0, 1, 1, 3)))
        assert [(peer.calling_ae_title, reason) for peer, reason in edge.audited] == [
            ("NOBODY", "STATION_UNKNOWN"),
            ("FAR", "STATION_UNKNOWN"),
        ]
        with Client(edge.port, calling="CT1") as client:
            assert client.store(image()).status == 0
        with Client(edge.port, calling="WS1") as client:
            assert client.echo() == 0
            response = client.store(image())
            assert response.status == 0x0124
            assert response.comment.startswith("GRANT_MISSING")
            client.release()
    assert len(edge.kept) == 1


# Time

# Announces a command of 10,000 bytes, which do not come.
HALF_A_PDU = struct.pack(">BxIIBB", P_DATA, 10_006, 10_002, 1, 3)


def test_a_connection_that_says_nothing_is_closed() -> None:
    with quick(artim_timeout=0.2) as edge, Client(edge.port, None) as client:
        assert client.closed()


def test_half_a_request_is_closed() -> None:
    with quick(artim_timeout=0.3) as edge, Client(edge.port, None) as client:
        client.send(associate_rq(((1, CT, (EXPLICIT,)),))[:100])
        assert client.closed()


def test_half_a_pdu_is_cut_by_its_own_time() -> None:
    with quick(pdu_timeout=0.3) as edge, Client(edge.port) as client:
        client.send(HALF_A_PDU + bytes(100))
        assert client.pdu() == USER_ABORT
        assert edge.board.total(0) in (0, 1)
        client.close()
        assert edge.ended()[0]["outcome"] == "timeout"


def test_slowloris_is_cut() -> None:
    with quick(pdu_timeout=0.5) as edge, Client(edge.port) as client:
        stop = threading.Event()

        def drip() -> None:
            for byte in HALF_A_PDU + bytes(10_000):
                try:
                    client.send(bytes((byte,)))
                except OSError:
                    return
                if stop.wait(0.02):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        start = time.monotonic()
        assert client.pdu() == USER_ABORT
        assert time.monotonic() - start < allowed(3)
        stop.set()
        thread.join()


def test_an_idle_association_is_aborted() -> None:
    with quick(idle_timeout=0.2) as edge, Client(edge.port) as client:
        assert client.pdu() == USER_ABORT


def test_a_peer_that_never_closes_is_left_after_artim() -> None:
    with quick(artim_timeout=0.3) as edge, Client(edge.port) as client:
        client.send(pdu(RELEASE_RQ, bytes(4)))
        client.pdu()
        assert client.closed()
        assert edge.ended()[0]["outcome"] == "released"


def test_after_an_invalid_pdu_the_rest_is_ignored_until_artim() -> None:
    with quick(artim_timeout=0.4) as edge, Client(edge.port) as client:
        client.send(pdu(0x77, b""))
        assert client.pdu() == provider_abort(1)
        for _ in range(5):
            client.send(bytes(1000))
        assert client.closed()


def test_a_peer_that_does_not_read_is_cut() -> None:
    with quick(pdu_timeout=0.3, artim_timeout=0.3, idle_timeout=1.0) as edge:
        client = Client(edge.port)
        client.socket.settimeout(5)
        request = message(3, echo_rq())

        def flood() -> None:
            while True:
                client.send(request * 100)

        with pytest.raises(OSError):  # noqa: PT011 - which one is up to the kernel
            flood()
        assert edge.ended()[0]["outcome"] in ("timeout", "lost")


def test_drain_lets_an_object_finish_and_ends_the_idle() -> None:
    with LocalEdge() as edge:
        idle, busy = Client(edge.port), Client(edge.port)
        data = image(pixels=32 * 100)
        sent = message(1, store_rq(CT, "2.25.1.1.1"), data, max_pdu=1024)
        busy.send(sent[:1500])
        edge.draining.begin(5.0)
        assert idle.pdu() == USER_ABORT
        busy.send(sent[1500:])
        assert busy.response().status == 0
        assert busy.pdu() == USER_ABORT
        with Client(edge.port, None) as late:
            late.send(associate_rq(((1, CT, (EXPLICIT,)),)))
            assert late.closed() or late.answer[0] != ASSOCIATE_AC
        assert len(edge.kept) == 1


# Cost


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def rss_anon() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_a_hundred_idle_associations_cost_nothing(edge: LocalEdge) -> None:
    clients = [Client(edge.port) for _ in range(100)]
    assert clients[-1].echo() == 0
    before = cpu_seconds()
    time.sleep(1.0)
    assert cpu_seconds() - before < 0.1
    assert clients[0].echo() == 0
    for client in clients:
        client.close()
    edge.ended(100)


def test_announced_lengths_cost_no_memory(edge: LocalEdge) -> None:
    before = rss_anon()
    clients = []
    for _ in range(50):
        client = Client(edge.port, None)
        client.send(struct.pack(">BxI", 1, 1 << 20) + bytes(100))  # the most that is taken
        clients.append(client)
    assert Client(edge.port).echo() == 0
    assert rss_anon() - before < 30 << 20
    for client in clients:
        client.close()


def test_more_than_1024_descriptors(edge: LocalEdge) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("the hard limit of descriptors is too low here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    held = [os.dup(0) for _ in range(1100)]
    try:
        with Client(edge.port) as client:
            assert client.store(image()).status == 0
            client.release()
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_two_associations_at_once(edge: LocalEdge) -> None:
    first, second = Client(edge.port), Client(edge.port)
    data = image(pixels=3200)
    half = message(1, store_rq(CT, "2.25.1.1.1"), data)
    first.send(half[:1000])
    assert second.store(image()).status == 0
    first.send(half[1000:])
    assert first.response().status == 0
    first.release()
    second.release()


def test_no_patient_in_the_log(edge: LocalEdge) -> None:
    with Client(edge.port) as client:
        client.store(image())
        client.release()
    edge.ended()
    assert "Test^Patient" not in edge.output.getvalue()
    assert "2.25.1" not in edge.output.getvalue()


def test_what_a_connection_had_is_freed_when_it_ends() -> None:
    """Its buffers would wait for a collection otherwise, and probes come by the thousand."""

    def alive() -> int:
        return sum(isinstance(one, Association) for one in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        with LocalEdge() as edge:
            for _ in range(20):
                socket.create_connection(("127.0.0.1", edge.port)).close()
            with Client(edge.port) as client:
                assert client.store(image()).status == 0
                client.release()
            with Client(edge.port) as client:
                assert client.echo() == 0
                client.abort()
            edge.ended(2)
            # But for the last one, which the thread that accepts still has.
            wait_for(lambda: alive() <= before + 1, what="associations are freed")
    finally:
        gc.enable()
