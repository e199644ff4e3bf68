"""The upper layer's loop over real sockets: fragments cut anywhere, hostile lengths, timeouts, constant memory."""

import contextlib
import os
import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radmesh_native import dul

HOUR = 3_600_000


def element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def store_command(*, data_set: bool = True) -> bytes:
    return dul.encode_command(
        {
            0x0002: b"1.2.840.10008.5.1.4.1.1.2",
            0x0100: b"\x01\x00",
            0x0110: b"\x07\x00",
            0x0800: b"\x00\x00" if data_set else b"\x01\x01",
        }
    )


def pdv(context: int, flags: int, fragment: bytes) -> bytes:
    return struct.pack(">IBB", len(fragment) + 2, context, flags) + fragment


def p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BxI", 4, len(body)) + body


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def connection(sock: socket.socket, **settings: int) -> dul.Connection:
    return dul.Connection(sock.fileno(), tcp=False, **settings)


def drain(c: dul.Connection) -> list[tuple]:
    events = []
    while True:
        event = c.receive(5000, 5000)
        events.append(event)
        if event[0] in (dul.CLOSED, dul.INVALID, dul.TIMEOUT):
            return events


def test_known_command_round_trip():
    elements = {0x0002: b"1.2.3", 0x0110: b"\x07\x00", 0x0800: b"\x01\x01"}
    encoded = dul.encode_command(elements)
    # (0000,0000) UL 4: the bytes that follow
    assert encoded[:12] == b"\0\0\0\0\4\0\0\0" + struct.pack("<I", len(encoded) - 12)
    parsed = dul.parse_command(encoded)
    assert parsed[0x0002] == b"1.2.3\0"
    assert parsed[0x0110] == b"\x07\x00"


@given(st.binary(max_size=200))
def test_parse_command_never_crashes(data):
    with contextlib.suppress(ValueError):
        dul.parse_command(data)


@given(
    data=st.binary(min_size=0, max_size=400),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    fragment=st.integers(1, 100),
    chunk=st.integers(1, 150),
)
def test_fragments_cut_anywhere_give_the_same_message(data, cuts, fragment, chunk):
    command = store_command()
    pieces = [data[i : i + fragment] for i in range(0, len(data), fragment)] or [b""]
    wire = p_data(pdv(1, 3, command))
    wire += b"".join(p_data(pdv(1, 2 if i == len(pieces) - 1 else 0, piece)) for i, piece in enumerate(pieces))
    wire += struct.pack(">BxI", 5, 4) + bytes(4)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def send() -> None:
            position, k = 0, 0
            while position < len(wire):
                n = cuts[k % len(cuts)]
                theirs.sendall(wire[position : position + n])
                position += n
                k += 1
            theirs.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        events = drain(connection(ours, chunk_size=chunk))
        thread.join()
    assert events[0] == (dul.COMMAND, 1, command, True)
    chunks = [event for event in events if event[0] == dul.DATA]
    assert b"".join(event[2] for event in chunks) == data
    assert all(len(event[2]) <= chunk for event in chunks)
    assert [event[3] for event in chunks] == [False] * (len(chunks) - 1) + [True]
    assert events[-2] == (dul.PDU, 5, bytes(4))
    assert events[-1] == (dul.CLOSED, True)


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (struct.pack(">BxI", 4, 1 << 30), 6),  # 1 GiB announced
        (struct.pack(">BxI", 1, 1 << 30), 6),
        (struct.pack(">BxI", 9, 4) + bytes(4), 1),  # no such PDU
        (struct.pack(">BxI", 4, 3) + bytes(3), 6),  # no room for a PDV
        (p_data(struct.pack(">IBB", 100, 1, 3) + b"ab"), 6),  # PDV longer than its PDU
        (p_data(struct.pack(">IBB", 1, 1, 3)), 6),
        (p_data(pdv(2, 3, store_command())), 6),  # even context
        (p_data(pdv(1, 0, b"data")), 2),  # a data set that no command announced
        (p_data(pdv(1, 3, store_command(data_set=False))) + p_data(pdv(1, 2, b"data")), 2),
        (p_data(pdv(1, 3, store_command()), pdv(3, 2, b"data")), 2),  # of another context
        (p_data(pdv(1, 3, store_command()), pdv(1, 3, store_command())), 2),
        (b"".join(p_data(pdv(1, 1, bytes(60000))) for _ in range(3)), 6),  # a command without end
    ],
)
def test_hostile_input_is_invalid(pair, wire, reason):
    ours, theirs = pair
    threading.Thread(target=theirs.sendall, args=(wire,), daemon=True).start()
    events = drain(connection(ours))
    assert events[-1][:2] == (dul.INVALID, reason)


def test_a_fragment_as_long_as_numbers_go_is_none_of_a_command(pair):
    """Its length and that of the fragment before are 0 together, in 32 bits."""
    ours, theirs = pair
    theirs.sendall(p_data(pdv(1, 1, bytes(40))) + struct.pack(">BxIIBB", 4, 0xFFFFFFFF, 0xFFFFFFFB, 1, 1) + bytes(6000))
    theirs.shutdown(socket.SHUT_WR)
    assert drain(connection(ours, max_pdu=0)) == [(dul.INVALID, 6, "command set too long")]


def test_idle_times_out(pair):
    ours, _ = pair
    assert connection(ours).receive(30, HOUR) == (dul.TIMEOUT, False)


def test_half_a_pdu_times_out(pair):
    ours, theirs = pair
    theirs.sendall(struct.pack(">BxI", 1, 1000) + bytes(100))
    assert connection(ours).receive(HOUR, 50) == (dul.TIMEOUT, True)


def test_half_a_header_times_out(pair):
    ours, theirs = pair
    theirs.sendall(b"\x04\x00\x00")
    assert connection(ours).receive(HOUR, 50) == (dul.TIMEOUT, True)


def test_woken(pair):
    ours, _ = pair
    read, write = os.pipe()
    c = connection(ours, wake_fd=read)
    os.write(write, b"x")
    assert c.receive(HOUR, HOUR) == (dul.WOKEN,)
    os.close(read)
    os.close(write)


def test_send_message_is_cut_to_what_the_peer_takes(pair):
    ours, theirs = pair
    command, data = store_command(), os.urandom(100_000)
    thread = threading.Thread(target=connection(ours).send_message, args=(5, command, data, 16384, 5000))
    thread.start()
    c = connection(theirs, max_pdu=16384)
    assert c.receive(5000, 5000) == (dul.COMMAND, 5, command, True)
    kind, context, received, last = c.receive(5000, 5000)
    thread.join()
    assert (kind, context, last) == (dul.DATA, 5, True)
    assert received == data


def test_a_peer_that_does_not_read_times_out(pair):
    ours, _ = pair
    with pytest.raises(TimeoutError):
        connection(ours).send([bytes(10_000_000)], 100)


def test_a_peer_that_is_gone(pair):
    ours, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionError):
        connection(ours).send([b"x"], 100)


def rss_anon() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_a_large_data_set_takes_one_chunk_of_memory(pair):
    ours, theirs = pair
    piece = bytes(131066)
    count = 1500  # 197 MB

    def send() -> None:
        theirs.sendall(p_data(pdv(1, 3, store_command())))
        for i in range(count):
            theirs.sendall(p_data(pdv(1, 2 if i == count - 1 else 0, piece)))

    thread = threading.Thread(target=send)
    thread.start()
    c = connection(ours)
    assert c.receive(5000, 5000)[0] == dul.COMMAND
    before, most, total = rss_anon(), 0, 0
    while True:
        kind, _, data, last = c.receive(5000, 5000)
        assert kind == dul.DATA
        total += len(data)
        most = max(most, rss_anon())
        if last:
            break
    thread.join()
    assert total == count * len(piece)
    assert most - before < 16 * 1024 * 1024
