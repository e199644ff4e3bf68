"""The upper layer's loop: what happens between two bytes, and messages that are longer than a buffer."""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Buffer

from radmesh_native import dul

HOUR = 3_600_000
COMMAND = dul.encode_command({0x0002: b"1.2", 0x0100: b"\x01\x00", 0x0110: b"\x07\x00", 0x0800: b"\x00\x00"})

Pair = tuple[socket.socket, socket.socket]


def pdv(context: int, flags: int, fragment: bytes) -> bytes:
    return struct.pack(">IBB", len(fragment) + 2, context, flags) + fragment


def p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BxI", 4, len(body)) + body


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def tcp_pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


def queued(sock: socket.socket, size: int) -> None:
    """Wait until the socket has at least so many bytes to read."""
    deadline = time.monotonic() + 60
    while len(sock.recv(size, socket.MSG_PEEK)) < size:
        assert time.monotonic() < deadline


def test_a_burst_behind_half_a_header(tcp_pair: Pair) -> None:
    # More than the loop's own buffer, when some bytes of a header wait in it.
    ours, theirs = tcp_pair
    c = dul.Connection(ours.fileno())
    data = os.urandom(4 * 131_066)
    wire = p_data(pdv(1, 3, COMMAND)) + b"".join(
        p_data(pdv(1, 2 if i == 3 else 0, data[i * 131_066 : (i + 1) * 131_066])) for i in range(4)
    )
    theirs.sendall(wire[:3])
    assert c.receive(HOUR, 20) == (dul.TIMEOUT, True)
    sender = threading.Thread(target=theirs.sendall, args=(wire[3:],))
    sender.start()
    queued(ours, 65_536)
    assert c.receive(5000, 5000)[:2] == (dul.COMMAND, 1)
    assert c.receive(5000, 5000) == (dul.DATA, 1, data, True)
    sender.join()


def test_idle_is_since_the_last_byte(pair: Pair) -> None:
    # One chunk takes longer than idle_ms to come, but the peer is never silent for so long.
    ours, theirs = pair
    c = dul.Connection(ours.fileno(), tcp=False)
    theirs.sendall(p_data(pdv(1, 3, COMMAND)))
    assert c.receive(5000, 5000)[0] == dul.COMMAND

    def send() -> None:
        for i in range(8):
            time.sleep(0.05)
            theirs.sendall(p_data(pdv(1, 2 if i == 7 else 0, b"x" * 10)))

    sender = threading.Thread(target=send)
    sender.start()
    assert c.receive(200, 5000) == (dul.DATA, 1, b"x" * 80, True)
    sender.join()


def test_the_time_of_a_pdu_stands_still_while_we_are_busy(pair: Pair) -> None:
    ours, theirs = pair
    c = dul.Connection(ours.fileno(), tcp=False, chunk_size=10)
    whole = p_data(pdv(1, 2, b"x" * 20))
    theirs.sendall(p_data(pdv(1, 3, COMMAND)) + whole[:-5])
    assert c.receive(60_000, 1000)[0] == dul.COMMAND
    assert c.receive(60_000, 1000)[0] == dul.DATA
    time.sleep(1.2)  # the store behind us was slow: not the peer's fault
    late = threading.Timer(0.02, theirs.sendall, args=(whole[-5:],))
    late.start()
    assert c.receive(60_000, 1000) == (dul.DATA, 1, b"x" * 10, True)
    late.join()


def test_a_wake_within_a_pdu_costs_nothing(pair: Pair) -> None:
    ours, theirs = pair
    read, write = os.pipe()
    try:
        c = dul.Connection(ours.fileno(), tcp=False, wake_fd=read)
        os.write(write, b"x")  # and nobody reads it: it says that the process drains
        theirs.sendall(p_data(pdv(1, 3, COMMAND))[:9])
        before = time.thread_time()
        assert c.receive(HOUR, 300) == (dul.TIMEOUT, True)
        assert time.thread_time() - before < 0.1
        theirs.sendall(p_data(pdv(1, 3, COMMAND))[9:])
        assert c.receive(HOUR, 300)[0] == dul.COMMAND
        assert c.receive(HOUR, 300) == (dul.WOKEN,)
    finally:
        os.close(read)
        os.close(write)


def test_what_was_invalid_stays_invalid(pair: Pair) -> None:
    ours, theirs = pair
    c = dul.Connection(ours.fileno(), tcp=False)
    theirs.sendall(p_data(pdv(1, 2, b"data of no command")) + struct.pack(">BxI", 5, 4) + bytes(4))
    first = c.receive(100, 100)
    assert first[:2] == (dul.INVALID, 2)
    assert c.receive(100, 100) == first


def test_a_data_set_is_sent_piece_by_piece(pair: Pair) -> None:
    # An object of any size goes out in constant memory: the command with the first piece, then the others.
    ours, theirs = pair
    sender, receiver = dul.Connection(ours.fileno(), tcp=False), dul.Connection(theirs.fileno(), tcp=False)
    pieces = [os.urandom(n) for n in (50_000, 0, 70_001, 3)]

    def send() -> None:
        sender.send_message(3, COMMAND, pieces[0], 16_384, 5000, last=False)
        for i, piece in enumerate(pieces[1:], 1):
            sender.send_message(3, None, piece, 16_384, 5000, last=i == len(pieces) - 1)

    thread = threading.Thread(target=send)
    thread.start()
    assert receiver.receive(5000, 5000) == (dul.COMMAND, 3, COMMAND, True)
    assert receiver.receive(5000, 5000) == (dul.DATA, 3, b"".join(pieces), True)
    thread.join()


@pytest.mark.parametrize("most", [32, 33, 1000, 0])
def test_no_pdu_is_longer_than_the_peer_takes(pair: Pair, most: int) -> None:
    ours, theirs = pair
    data = os.urandom(40_000)
    thread = threading.Thread(
        target=dul.Connection(ours.fileno(), tcp=False).send_message, args=(1, COMMAND, data, most, 5000)
    )
    thread.start()
    stream = theirs.makefile("rb")
    received, command, last = b"", b"", False
    while not last:
        length = struct.unpack(">I", stream.read(6)[2:])[0]
        assert length <= (most or 1 << 20)
        body = stream.read(length)
        size, context, flags = struct.unpack_from(">IBB", body)
        assert (size, context) == (length - 4, 1)
        if flags & 1:
            command += body[6:]
        else:
            received += body[6:]
        last = flags == 2
    thread.join()
    assert (command, received) == (COMMAND, data)


def test_an_empty_data_set(pair: Pair) -> None:
    ours, theirs = pair
    dul.Connection(ours.fileno(), tcp=False).send_message(1, COMMAND, b"", 16_384, 1000)
    c = dul.Connection(theirs.fileno(), tcp=False)
    assert c.receive(1000, 1000)[0] == dul.COMMAND
    assert c.receive(1000, 1000) == (dul.DATA, 1, b"", True)


def test_buffers_of_any_kind(pair: Pair) -> None:
    ours, theirs = pair
    c = dul.Connection(ours.fileno(), tcp=False)
    c.send(
        [
            b"ab",
            bytearray(b"cd"),
            memoryview(b"xefx")[1:3],
            b"",
            memoryview(struct.pack("<2H", 0x6867, 0x6A69)).cast("H"),
        ],
        1000,
    )
    assert theirs.recv(100) == b"abcdefghij"
    with pytest.raises((BufferError, ValueError)):
        c.send([memoryview(b"abcdef")[::2]], 1000)


def test_the_peer_goes_away_within_a_data_set(pair: Pair) -> None:
    ours, theirs = pair
    c = dul.Connection(ours.fileno(), tcp=False)
    theirs.sendall(p_data(pdv(1, 3, COMMAND)) + p_data(pdv(1, 0, b"half")))
    theirs.close()
    assert c.receive(1000, 1000)[0] == dul.COMMAND
    assert c.receive(1000, 1000) == (dul.CLOSED, False)


def test_a_reset_is_the_end(tcp_pair: Pair) -> None:
    ours, theirs = tcp_pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    select.select([ours], [], [], 5)
    assert dul.Connection(ours.fileno()).receive(1000, 1000)[0] == dul.CLOSED


def test_several_messages_in_one_segment(pair: Pair) -> None:
    ours, theirs = pair
    c = dul.Connection(ours.fileno(), tcp=False)
    theirs.sendall(p_data(pdv(1, 3, COMMAND), pdv(1, 2, b"one"), pdv(3, 3, COMMAND), pdv(3, 0, b"t"), pdv(3, 2, b"wo")))
    assert c.receive(1000, 1000) == (dul.COMMAND, 1, COMMAND, True)
    assert c.receive(1000, 1000) == (dul.DATA, 1, b"one", True)
    assert c.receive(1000, 1000) == (dul.COMMAND, 3, COMMAND, True)
    assert c.receive(1000, 1000) == (dul.DATA, 3, b"two", True)
    assert c.receive(10, 1000) == (dul.TIMEOUT, False)


def test_settings_are_checked(pair: Pair) -> None:
    ours, _ = pair
    for size in (0, 1_048_561):
        with pytest.raises(ValueError, match="chunk_size"):
            dul.Connection(ours.fileno(), chunk_size=size)
    with pytest.raises(ValueError, match="peer_max_pdu"):
        dul.Connection(ours.fileno(), tcp=False).send_message(1, COMMAND, None, 31, 1000)


@pytest.mark.parametrize("elements", [{-1: b""}, {0x10000: b""}, {2: b"x" * 70_000}])
def test_what_is_no_command_is_not_encoded(elements: dict[int, bytes]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        dul.encode_command(elements)


@given(st.dictionaries(st.integers(1, 0xFFFF), st.binary(max_size=40), max_size=12))
def test_a_command_comes_back(elements: dict[int, bytes]) -> None:
    encoded = dul.encode_command(elements)
    parsed = dul.parse_command(encoded)
    assert parsed.pop(0) == struct.pack("<I", len(encoded) - 12)
    assert parsed.keys() == elements.keys()
    for element, value in elements.items():
        assert parsed[element] == value + (b" " if element in (0x0600, 0x0902, 0x1030) else b"\0") * (len(value) & 1)
    assert dul.encode_command(dul.parse_command(encoded)) == encoded


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([p_data(pdv(1, 3, COMMAND)), p_data(pdv(1, 2, b"x"))])))
)
def test_noise_ends(pieces: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"".join(pieces))
        theirs.close()
        c = dul.Connection(ours.fileno(), tcp=False, chunk_size=7)
        for _ in range(10_000):
            if c.receive(100, 100)[0] in (dul.CLOSED, dul.INVALID):
                return
    pytest.fail("it never ends")


def test_throughput(tcp_pair: Pair) -> None:
    # A figure to look at (pytest -s), no mark: 200 objects of 0.5 MB over loopback, as a modality sends them.
    ours, theirs = tcp_pair
    data = os.urandom(525_000)
    piece = 131_066
    wire = p_data(pdv(1, 3, COMMAND)) + b"".join(
        p_data(pdv(1, 2 if i + piece >= len(data) else 0, data[i : i + piece])) for i in range(0, len(data), piece)
    )
    sender = threading.Thread(target=lambda: [theirs.sendall(wire) for _ in range(200)])
    c = dul.Connection(ours.fileno())
    started, busy = time.perf_counter(), time.thread_time()
    sender.start()
    for _ in range(200):
        assert c.receive(5000, 5000)[0] == dul.COMMAND
        assert c.receive(5000, 5000)[2:] == (data, True)
    seconds, busy = time.perf_counter() - started, time.thread_time() - busy
    sender.join()
    print(f"\n200 objects of {len(data):,} bytes: {200 / seconds:.0f}/s, {busy / 200 * 1e6:.0f} us of CPU each")


@pytest.mark.parametrize("peer_max_pdu", [0, 32, 1000])
def test_rows_are_messages_with_one_command(peer_max_pdu: int) -> None:
    rows: list[Buffer] = [b"a", bytearray(b"b" * 26), memoryview(b"c" * 5000), b""]
    command = dul.encode_command({0x0100: b"\x20\x80", 0x0800: b"\x01\x00"})
    here, there = socket.socketpair()
    with here, there:
        sender, receiver = dul.Connection(here.fileno(), tcp=False), dul.Connection(there.fileno(), tcp=False)
        sender.send_rows(5, command, rows, peer_max_pdu, 1000)
        for row in rows:
            assert receiver.receive(1000, 1000) == (dul.COMMAND, 5, command, True)
            data, last = b"", False
            while not last:
                kind, context, piece, last = receiver.receive(1000, 1000)
                assert (kind, context) == (dul.DATA, 5)
                data += piece
            assert data == row
        sender.send_rows(5, command, [], peer_max_pdu, 1000)
        assert receiver.receive(0, 0)[0] == dul.TIMEOUT


def test_rows_are_bounded() -> None:
    here, there = socket.socketpair()
    with here, there:
        sender = dul.Connection(here.fileno(), tcp=False)
        with pytest.raises(ValueError, match="16 MiB"):
            sender.send_rows(1, b"", [bytes((16 << 20) + 1)], 0, 1000)
        with pytest.raises(ValueError, match="64 MiB"):
            sender.send_rows(1, b"", [bytes(16 << 20)] * 4, 0, 1000)
        with pytest.raises(ValueError, match="peer_max_pdu"):
            sender.send_rows(1, b"", [], 31, 1000)
        with pytest.raises(TimeoutError):
            sender.send_rows(1, b"", [bytes(8 << 20)], 0, 10)
        there.close()
        with pytest.raises(ConnectionError):
            sender.send_rows(1, b"", [b"x"], 0, 1000)
