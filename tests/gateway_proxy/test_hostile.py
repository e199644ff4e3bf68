"""Peers that mean no good, against the processes of the edge: they live, answer as they should, and keep nothing."""

import contextlib
import os
import socket
import ssl
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from depth import times
from edge_mesh import World
from raw_dicom import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    CT,
    DEFAULT_CONTEXTS,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    Client,
    associate_rq,
    echo_rq,
    explicit,
    image,
    message,
    pdu,
    pdv,
    store_rq,
)
from transfer_support import rss_anon
from waiting import wait_for

from radmesh_gateway_proxy.supervisor import Supervisor
from radmesh_native import header as native

ARTIM, PDU_TIMEOUT, IDLE = 1.0, 2.0, 2.5


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
        world = World(Path(folder))
        yield world
        world.close()


@pytest.fixture(scope="module")
def supervisor(world: World) -> Iterator[Supervisor]:
    """An edge of two processes that loses patience soon."""
    made = world.supervisor(artim_timeout=ARTIM, pdu_timeout=PDU_TIMEOUT, idle_timeout=IDLE)
    made.start()
    yield made
    made.stop(0.1)


@pytest.fixture(scope="module")
def patient(world: World) -> Iterator[Supervisor]:
    """An edge as it is by default."""
    made = world.supervisor()
    made.start()
    yield made
    made.stop(0.1)


@pytest.fixture(autouse=True)
def lives(supervisor: Supervisor) -> Iterator[None]:
    """Whatever a test sends: the same processes serve on, and have nothing open that they had not before."""
    before = acceptors(supervisor)
    yield
    assert acceptors(supervisor) == before
    with Client(supervisor.port) as client:
        assert client.echo() == 0
        client.release()
    wait_for(lambda: supervisor._board.total(0) == 0)


def acceptors(supervisor: Supervisor) -> list[int]:
    return list(supervisor.pids())[1:]


# -- every PDU in every state that a requestor can bring the acceptor into (PS3.8 table 9-10)

CLOSED = (0, b"")
USER_ABORT = (ABORT, bytes(4))
UNEXPECTED = (ABORT, bytes((0, 0, 2, 2)))
UNRECOGNIZED = (ABORT, bytes((0, 0, 2, 1)))
IGNORED = (-1, b"")
ACCEPTED, ANSWERED, RELEASED = (ASSOCIATE_AC, b"*"), (P_DATA, b"*"), (RELEASE_RP, bytes(4))
ACCEPT = pdu(ASSOCIATE_AC, associate_rq(())[6:])
PDUS = {
    "A-ASSOCIATE-RQ": associate_rq(DEFAULT_CONTEXTS),
    "A-ASSOCIATE-AC": ACCEPT,
    "A-ASSOCIATE-RJ": pdu(ASSOCIATE_RJ, bytes((0, 1, 1, 1))),
    "P-DATA-TF": message(3, echo_rq()),
    "A-RELEASE-RQ": pdu(RELEASE_RQ, bytes(4)),
    "A-RELEASE-RP": pdu(RELEASE_RP, bytes(4)),
    "A-ABORT": pdu(ABORT, bytes(4)),
    "0x00": pdu(0, bytes(4)),
    "0x08": pdu(8, bytes(4)),
    "0xFF": pdu(255, bytes(4)),
}
BEGUN = message(1, store_rq(CT, "2.25.1.1.1")) + pdu(P_DATA, pdv(1, 0, image()))
# State: what brings it about, how many PDUs that is answered with, and what each PDU is answered with.
STATES = {
    "Sta2": (b"", 0, (ACCEPTED, *[USER_ABORT] * 5, CLOSED, *[USER_ABORT] * 3)),
    "Sta6": (
        associate_rq(DEFAULT_CONTEXTS),
        1,
        (*[UNEXPECTED] * 3, ANSWERED, RELEASED, UNEXPECTED, CLOSED, *[UNRECOGNIZED] * 3),
    ),
    "Sta6, within a data set": (
        associate_rq(DEFAULT_CONTEXTS) + BEGUN,
        1,
        (*[UNEXPECTED] * 4, RELEASED, UNEXPECTED, CLOSED, *[UNRECOGNIZED] * 3),
    ),
    "Sta13": (
        associate_rq(DEFAULT_CONTEXTS) + pdu(RELEASE_RQ, bytes(4)),
        2,
        (UNEXPECTED, *[IGNORED] * 5, CLOSED, *[UNRECOGNIZED] * 3),
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_every_pdu_in_every_state(supervisor: Supervisor, state: str) -> None:
    before, answers, expected = STATES[state]
    waiting = []
    for (name, sent), (kind, body) in zip(PDUS.items(), expected, strict=True):
        client = Client(supervisor.port, None, timeout=60)
        client.send(before)
        for _ in range(answers):
            client.pdu()
        client.send(sent)
        if kind > 0:
            got = client.pdu()
            assert got == (kind, got[1] if body == b"*" else body), name
        if kind in (ASSOCIATE_AC, P_DATA):
            client.abort()
        else:
            waiting.append((name, client))
    # And then it waits for the end of the connection, no longer than ARTIM, without a word more.
    for name, client in waiting:
        assert client.closed(), name
        client.close()


# -- data sets


def nested(tag: int, levels: int, *, undefined: bool, implicit: bool = False) -> bytes:
    """A sequence in a sequence in a sequence."""
    inner = b""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (b"" if implicit else b"SQ\0\0")
    if undefined:
        opened = head + struct.pack("<IHHI", 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
        closed = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        return opened * levels + closed * levels
    pieces, size = [], 0
    for _ in range(levels):
        pieces.append(head + struct.pack("<IHHI", size + 8, 0xFFFE, 0xE000, size))
        size += len(pieces[-1])
    return inner.join(reversed(pieces))


def with_element(tag: int, raw: bytes, sop: str) -> bytes:
    """An image with an element, as it stands, where it belongs."""
    before = {t: e for t, e in native.split_header(image("2.25.400", sop)).items() if t < tag}
    after = {t: e for t, e in native.split_header(image("2.25.400", sop)).items() if t > tag}
    return (
        explicit(*((t, vr.decode(), value) for t, (vr, value) in before.items()))
        + raw
        + explicit(*((t, vr.decode(), value) for t, (vr, value) in after.items()))
    )


def declared(tag: int, vr: bytes, length: int, value: bytes) -> bytes:
    """An element whose header says what it likes."""
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length) + value


def short(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


HEAD, TAIL = 0x00081140, 0x00400275
LEVELS = times(full=100_000, ci=5_000)
UNDEFINED = 0xFFFFFFFF
# What is sent, and what it is answered with: status, the beginning of the comment, and a remark on what is stored.
DATA_SETS: dict[str, tuple[int, bytes, int, str, str]] = {
    "deep, defined lengths, in the head": (HEAD, nested(HEAD, LEVELS, undefined=False), 0, "", ""),
    "deep, undefined lengths, in the head": (
        HEAD, nested(HEAD, LEVELS, undefined=True), 0xC000, "DATA_SET_UNREADABLE", "",
    ),
    "deep, defined lengths, behind": (TAIL, nested(TAIL, LEVELS, undefined=False), 0, "", ""),
    "deep, undefined lengths, behind": (
        TAIL, nested(TAIL, LEVELS, undefined=True), 0, "", "DATA_SET_UNREADABLE 0040,0275",
    ),
    "deep, never closed": (
        TAIL, nested(TAIL, LEVELS, undefined=True)[: LEVELS * 20], 0, "", "DATA_SET_UNREADABLE 0040,0275",
    ),
    "as deep as is followed, never closed": (TAIL, nested(TAIL, 20, undefined=True)[:400], 0xC000, "DATA_SET_TRUN", ""),
    "4 GiB declared in the head": (HEAD, declared(HEAD, b"UN", 0xFFFFFFF0, b"abcd"), 0xC000, "DATA_SET_TRUNCATED", ""),
    "4 GiB declared behind": (TAIL, declared(TAIL, b"OB", 0xFFFFFFFE, b"abcd"), 0xC000, "DATA_SET_TRUNCATED", ""),
    "an item longer than its sequence": (
        HEAD, declared(HEAD, b"SQ", 8, struct.pack("<HHI", 0xFFFE, 0xE000, 1 << 20)), 0, "", "",
    ),
    "an item longer than all": (
        HEAD, declared(HEAD, b"SQ", UNDEFINED, struct.pack("<HHI", 0xFFFE, 0xE000, 1 << 30)), 0xC000, "DATA_SET_", "",
    ),
    "a sequence of something else": (
        HEAD, declared(HEAD, b"SQ", UNDEFINED, short(0x00100020, b"LO", b"X ")), 0xC000, "DATA_SET_UNREADABLE", "",
    ),
    "an odd length": (0x00081030, short(0x00081030, b"LO", b"odd"), 0, "", ""),
    "a wrong group length": (0x00080000, short(0x00080000, b"UL", struct.pack("<I", 7)), 0, "", ""),
    "a group length of 4 GiB": (0x00080000, short(0x00080000, b"UL", b"\xff\xff\xff\xff"), 0, "", ""),
    "a group length of 2 bytes": (0x00080000, short(0x00080000, b"UL", b"\1\0"), 0, "", ""),
    "no VR of any": (
        0x00081030, struct.pack("<HH4sI", 8, 0x1030, b"\xff\xff\xff\xff", UNDEFINED), 0xC000, "BAD_VR", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets(world: World, supervisor: Supervisor, name: str) -> None:
    world.rejects.clear()
    tag, raw, status, comment, remark = DATA_SETS[name]
    sop = f"2.25.400.{list(DATA_SETS).index(name)}"
    data = with_element(tag, raw, sop)
    with Client(supervisor.port, timeout=60) as client:
        response = client.store(data, sop)
        assert (response.status, response.comment[: len(comment)]) == (status, comment)
        client.release()
    if status:
        assert [(bytes(reject.data), reject.reason) for reject in world.rejects] == [
            (data, response.comment.partition(":")[0])
        ]
    else:
        row, stored = world.stored(sop)
        assert stored == data
        assert row.remarks == ((remark,) if remark else ())


def test_what_hostile_data_sets_cost(world: World, supervisor: Supervisor) -> None:
    """Neither depth nor what is announced is paid for in memory, nor a bomb in anything but its own time."""
    contexts = ((1, CT, (EXPLICIT,)), (3, CT, (DEFLATED,)), (5, CT, (IMPLICIT,)))
    size = times(full=3 << 30, ci=256 << 20)
    block = bytes(16 << 20)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    begin = image("2.25.401", "2.25.401.1", pixels=0)[:-4] + struct.pack("<I", size)
    bomb = deflater.compress(begin) + b"".join(deflater.compress(block) for _ in range(size // len(block)))
    bomb += deflater.flush()
    empty = explicit((0x7FE10010, "LO", b"x ")) + short(0x7FE11001, b"LO", b"") * (times(full=512, ci=2) << 20)
    crumbs = deflated(image("2.25.401", "2.25.401.2") + empty)
    with Client(supervisor.port, contexts, timeout=600) as client:
        assert client.store(image("2.25.401", "2.25.401.0"), "2.25.401.0").status == 0
        before = sum(rss_anon(pid) for pid in acceptors(supervisor))
        assert client.store(bomb, "2.25.401.1", context=3).status == 0
        assert client.store(crumbs, "2.25.401.2", context=3).status == 0
        grown = sum(rss_anon(pid) for pid in acceptors(supervisor)) - before
        client.release()
    assert grown < 64 << 20
    assert world.stored("2.25.401.1")[1] == bomb
    row, stored = world.stored("2.25.401.2")
    assert stored == crumbs
    assert row.remarks == ("DEFLATED_TOO_MUCH",)  # of so many elements not all are looked at


# -- time, and numbers


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def held(port: int) -> int:
    """Connections at a port that a process still holds: those that only the kernel remembers have no inode."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[1].rpartition(":")[2], 16) == port and row[3] != "0A" and row[9] != "0" for row in rows)


STALLS: dict[str, bytes] = {
    "says nothing": b"",
    "within a request": associate_rq(DEFAULT_CONTEXTS)[:70],
    "within a PDU's header": associate_rq(DEFAULT_CONTEXTS) + message(1, store_rq(CT, "2.25.1.1.1"))[:3],
    "within a command": associate_rq(DEFAULT_CONTEXTS) + message(1, store_rq(CT, "2.25.1.1.1"))[:40],
    "within a P-DATA-TF": associate_rq(DEFAULT_CONTEXTS) + message(1, store_rq(CT, "2.25.1.1.1"), image())[:500],
    "between two fragments": associate_rq(DEFAULT_CONTEXTS) + BEGUN,
    "within a large object": (
        associate_rq(DEFAULT_CONTEXTS) + message(1, store_rq(CT, "2.25.1.1.1"), image(pixels=3 << 20))[: 2 << 20]
    ),
}


def test_who_stops_anywhere_is_ended_and_nothing_stays_open(world: World, supervisor: Supervisor) -> None:
    def stalled() -> None:
        peers = []
        for sent in STALLS.values():
            for _ in range(3):
                peers.append(Client(supervisor.port, None, timeout=60))
                peers[-1].send(sent)
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                while peer.socket.recv(65536):
                    pass
        # The peers hold their ends open: it is this side that let go.
        wait_for(lambda: supervisor._board.total(0) == 0)
        seen.append(peers)

    seen: list[list[Client]] = []
    stalled()  # what is opened to the stores stays open for the next object
    before = sum(map(threads, acceptors(supervisor)))
    stalled()
    wait_for(lambda: held(supervisor.port) == 0)
    wait_for(lambda: sum(map(threads, acceptors(supervisor))) <= before)
    for peer in (peer for peers in seen for peer in peers):
        peer.close()
    assert all(row.header.sop_instance_uid != "2.25.1.1.1" for row in world.rows())


def test_a_slow_sender_and_a_fast_one(world: World, patient: Supervisor) -> None:
    """Some bytes at a time, each piece in time: it gets there, and keeps nobody waiting."""
    data = message(1, store_rq(CT, "2.25.405.1"), image("2.25.405", "2.25.405.1"), max_pdu=64)
    slow, done = Client(patient.port, timeout=60), threading.Event()
    stored = [0, 0]

    def drip() -> None:
        for at in range(0, len(data), 8):
            slow.send(data[at : at + 8])
            done.wait(0.01)

    thread = threading.Thread(target=drip)
    thread.start()
    fast = [Client(patient.port, timeout=60) for _ in range(2)]  # one in each process
    number = 0
    while thread.is_alive():
        for index, client in enumerate(fast):
            number += 1
            sop = f"2.25.403.9{number}"
            assert client.store(image("2.25.403", sop), sop).status == 0
            stored[index] += 1
    thread.join()
    assert slow.response().status == 0
    for client in (slow, *fast):
        client.release()
    assert world.stored("2.25.405.1")[0].remarks == ()
    assert min(stored) >= 5


def test_two_hundred_associations_at_once(world: World, patient: Supervisor) -> None:
    """None is refused, each is answered: half of them store, half echo, all together."""
    clients = [Client(patient.port, timeout=60, calling=f"SCU{n}") for n in range(200)]
    assert all(client.answer[0] == ASSOCIATE_AC for client in clients)
    assert patient._board.total(0) == 200
    before = len(world.rows())
    for number, client in enumerate(clients):
        sop = f"2.25.404.{number}"
        client.send(message(3, echo_rq()) if number % 2 else message(1, store_rq(CT, sop), image("2.25.404", sop)))
    assert {client.response().status for client in clients} == {0}
    for client in clients:
        client.release()
    assert len(world.rows()) - before == 100


# -- TLS


def tls_address(supervisor: Supervisor) -> tuple[str, int]:
    return "127.0.0.1", int(supervisor.endpoints()["dicom_tls"].rpartition(":")[2])


def hello() -> bytes:
    """What a client begins a handshake with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def over_tls(supervisor: Supervisor) -> bool:
    """Whether a peer with good manners gets in over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(tls_address(supervisor), timeout=30) as plain,
            context.wrap_socket(plain) as tls,
        ):
            tls.sendall(associate_rq(DEFAULT_CONTEXTS))
            return tls.recv(1) == bytes((ASSOCIATE_AC,))
    except OSError:
        return False


GARBAGE: dict[str, Callable[[], bytes]] = {
    "a record of noise": lambda: b"\x16\x03\x01\x02\x00" + os.urandom(512),
    "a record of 64 KiB announced": lambda: b"\x16\x03\x03\xff\xff" + bytes(100),
    "a hello cut": lambda: hello()[:100],
    "a hello, and noise": lambda: hello() + os.urandom(1000),
    "an alert": lambda: b"\x15\x03\x03\x00\x02\x02\x28",
}


Heard = tuple[Supervisor, Callable[[], list[str]]]


@pytest.fixture
def hear(world: World, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], Heard]]:
    """Starts an edge, and gives what it says of who comes to its port for TLS."""
    started, lines = list[Supervisor](), list[str]()

    def refused() -> list[str]:
        lines.extend(line for line in capfd.readouterr().err.splitlines() if "TLS refused" in line)
        return lines

    def start() -> Heard:
        started.append(world.supervisor(artim_timeout=ARTIM))
        started[0].start()
        return started[0], refused

    yield start
    for supervisor in started:
        supervisor.stop(0.1)


def test_tls_garbage_gives_a_line_each(hear: Callable[[], Heard]) -> None:
    supervisor, refused = hear()
    for made in GARBAGE.values():
        with socket.create_connection(tls_address(supervisor), timeout=60) as peer:
            peer.sendall(made())
            with contextlib.suppress(ConnectionError):
                while peer.recv(4096):
                    pass
    wait_for(lambda: len(refused()) >= len(GARBAGE))
    assert over_tls(supervisor)
    assert len(refused()) == len(GARBAGE)


def test_half_handshakes_lock_nobody_out(hear: Callable[[], Heard]) -> None:
    """There are more of them than may be under way: the oldest go, and say why; the rest goes when its time is over."""
    supervisor, refused = hear()
    peers = [socket.create_connection(tls_address(supervisor), timeout=60) for _ in range(times(full=2000, ci=400))]
    for peer in peers[::2]:
        with contextlib.suppress(ConnectionError):
            peer.sendall(hello()[:50])
    assert over_tls(supervisor)
    for peer in peers:
        with contextlib.suppress(ConnectionError):
            while peer.recv(4096):
                pass
        peer.close()
    wait_for(
        lambda: {"nothing came in time", "this was the oldest"} <= {line.rpartition(": ")[2][:-2] for line in refused()}
    )
