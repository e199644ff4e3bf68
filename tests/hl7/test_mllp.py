"""Frames cut anywhere; a listener that outlives whatever comes; a client that takes no answer but its own."""

import socket
import ssl
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mllp_support import CLOCK, RawPeer, accept, listening, next_frame, order, receiver
from waiting import wait_for

from radmesh.hl7 import charsets
from radmesh.hl7.build import acknowledge
from radmesh.hl7.message import parse
from radmesh.hl7.mllp import AckError, FrameReader, MllpClient, MllpListener, TooLong, frame
from radmesh.runtime.clock import ManualClock, SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.security import Authority

# Frames


# UTF-16 and UTF-32 end by two bytes.
CONTENT = (
    st.binary(max_size=60)
    .map(lambda b: b.replace(b"\x1c", b"").replace(b"\x0b", b""))
    .filter(lambda b: not charsets.wide_codec(b))
)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"", b"\r\n", b"\n", b"noise"]), CONTENT, st.sampled_from([b"\x1c\r", b"\x1c"]))
    ),
    st.lists(st.integers(1, 7), min_size=1),
)
def test_frames_are_the_same_wherever_the_bytes_are_cut(sent, cuts):
    stream = b"".join(before + b"\x0b" + content + end for before, content, end in sent)
    reader = FrameReader()
    got = []
    position = 0
    while position < len(stream):
        size = cuts[position % len(cuts)]
        got += reader.feed(stream[position : position + size])
        position += size
    assert got == [content for _, content, _ in sent]
    assert not reader.pending
    assert reader.halves == 0


@given(st.lists(st.binary(max_size=50), max_size=20), st.booleans())
def test_no_bytes_break_the_frame_reader(chunks, loose):
    reader = FrameReader(20, loose=loose)
    for chunk in chunks:
        for item in reader.feed(chunk):
            assert isinstance(item, TooLong) or len(item) <= 20
        assert len(reader._buffer) <= 21
    # Whatever came, the next whole message is read.
    reader.feed(b"\x1c\r")
    assert reader.feed(frame(b"MSH|x"))[-1] == b"MSH|x"


def test_a_message_that_is_too_long_is_told_once_and_the_next_is_read():
    reader = FrameReader(100)
    assert reader.feed(frame(b"MSH|" + b"x" * 96)) == [b"MSH|" + b"x" * 96]
    long = b"MSH|" + b"x" * 100_000
    assert reader.feed(frame(long) + frame(b"MSH|2")) == [TooLong(long[:4096], 100), b"MSH|2"]
    got = []
    for start in range(0, len(long) + 3, 1000):
        got += reader.feed(frame(long)[start : start + 1000])
        assert len(reader._buffer) <= 1001
    assert got == [TooLong(long[:999], 100)]


def test_of_a_half_message_and_a_whole_one_the_whole_one_is_read():
    reader = FrameReader()
    assert reader.feed(b"\x0bMSH|^~\\&|cut off\rPI" + frame(b"MSH|^~\\&|whole\r")) == [b"MSH|^~\\&|whole\r"]
    assert reader.halves == 1
    # A vertical tab in a text is none.
    assert reader.feed(frame(b"MSH|a\x0bb MSH\r")) == [b"MSH|a\x0bb MSH\r"]
    assert reader.halves == 1


def test_a_message_without_its_first_byte_is_read_where_that_is_allowed():
    whole = b"MSH|^~\\&|x\r"
    assert FrameReader().feed(whole + b"\x1c\r") == []
    for size in (1, 2, 5, 100):
        reader = FrameReader(loose=True)
        stream = b"\r\n" + whole + b"\x1c\r" + frame(whole)
        got = [f for at in range(0, len(stream), size) for f in reader.feed(stream[at : at + size])]
        assert got == [whole, whole]


def test_a_quotation_mark_in_utf_16_ends_no_message():
    text = "MSH|^~\\&|“quoted”\r"
    for codec in ("utf-16", "utf-16-be", "utf-16-le"):
        assert FrameReader().feed(frame(text.encode(codec))) == [text.encode(codec)]


# Listener


def test_messages_are_answered_one_after_the_other():
    seen = []

    def handle(raw, peer):
        seen.append((parse(raw).control_id, peer.address))
        return accept(raw, peer)

    with listening(handle) as it, RawPeer(it.listener.port) as peer:
        peer.send(b"".join(frame(order(str(n))) for n in range(20)))
        assert [parse(peer.answer()).get("MSA-2") for _ in range(20)] == [str(n) for n in range(20)]
        assert seen == [(str(n), "127.0.0.1") for n in range(20)]
        assert it.count("AA") == 20
        assert it.metrics.registry.get_sample_value("radmesh_hl7_seconds_count", {"domain": "clinic"}) == 20


def test_the_next_message_waits_for_the_answer_to_the_last():
    in_hand, go_on = threading.Event(), threading.Event()
    seen = []

    def handle(raw, peer):
        seen.append(parse(raw).control_id)
        in_hand.set()
        assert go_on.wait(60)
        return accept(raw, peer)

    with listening(handle) as it, RawPeer(it.listener.port) as peer:
        peer.send(frame(order("1")) + frame(order("2")))
        assert in_hand.wait(60)
        assert seen == ["1"]
        go_on.set()
        assert [parse(peer.answer()).get("MSA-2") for _ in range(2)] == ["1", "2"]


def test_an_answer_comes_whatever_the_handler_does():
    def handle(raw, peer):
        wish = parse(raw).control_id
        if wish == "defect":
            raise ValueError(raw)
        if wish == "field":
            raise RadmeshError("HL7_FIELD_INVALID", "no good", metadata={"location": "PID-3"})
        if wish == "type":
            raise RadmeshError("HL7_TYPE_UNKNOWN", "not for us")
        return None if wish == "none" else accept(raw, peer)

    with listening(handle) as it, RawPeer(it.listener.port) as peer:
        answer = parse(peer.ask(order("defect")))
        assert (answer.get("MSA-1"), answer.get("MSA-2")) == ("AE", "defect")
        incident = next(line["incident"] for line in it.log if line["message"] == "hl7 handler failed")
        assert incident in answer.get("ERR-8")
        assert "Muster" not in it.log_text
        answer = parse(peer.ask(order("field")))
        assert (answer.get("MSA-1"), answer.get("ERR-3"), answer.get("ERR-5")) == ("AE", "102", "HL7_FIELD_INVALID")
        assert answer.segment("ERR").field(2).plain == "PID^1^3"
        assert parse(peer.ask(order("type"))).get("MSA-1") == "AR"
        peer.send(frame(order("none")))
        assert parse(peer.ask(order("fine"))).get("MSA-2") == "fine"
        answer = parse(peer.ask(b"hello"))
        assert (answer.get("MSA-1"), answer.get("ERR-5")) == ("AR", "HL7_NOT_A_MESSAGE")
        assert [it.count(c) for c in ("AA", "AE", "AR", "NONE")] == [1, 2, 2, 1]


def test_a_message_that_is_too_long_is_refused_and_the_connection_goes_on():
    with listening(max_message_bytes=1000) as it, RawPeer(it.listener.port) as peer:
        answer = parse(peer.ask(order("long", "NTE|1||" + "x" * 200_000)))
        assert (answer.get("MSA-1"), answer.get("MSA-2")) == ("AR", "long")
        assert answer.get("ERR-5") == "HL7_MESSAGE_TOO_LARGE"
        assert "1000 bytes" in answer.get("ERR-8")
        assert parse(peer.ask(order("next"))).get("MSA-1") == "AA"


def test_half_a_message_is_dropped_and_counted():
    with listening() as it:
        with RawPeer(it.listener.port) as peer:
            peer.send(frame(order("1"))[:-20])
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.answer() is None
        assert it.count("HALF") == 1
        line = next(line for line in it.log if line["message"] == "half a message was dropped")
        assert (line["domain"], line["messages"]) == ("clinic", 1)
        assert "Muster" not in it.log_text
        with RawPeer(it.listener.port) as peer:
            assert parse(peer.ask(order("2"))).get("MSA-2") == "2"


def test_silent_peers_are_left_after_a_time():
    clock = ManualClock()
    with listening(clock=clock, idle_timeout=3600, message_timeout=60) as it:
        idle, slow = RawPeer(it.listener.port), RawPeer(it.listener.port)
        assert idle.ask(order("1"))
        assert slow.ask(order("2"))
        wait_for(lambda: all(c.idle for c in it.listener._live))
        slow.send(b"\x0bMSH|")
        wait_for(lambda: any(not c.idle for c in it.listener._live))
        clock.advance(61)
        assert slow.answer() is None
        assert it.count("HALF") == 1
        assert idle.ask(order("3"))
        wait_for(lambda: all(c.idle for c in it.listener._live))
        clock.advance(3601)
        assert idle.answer() is None
        wait_for(lambda: it.open == 0)


def test_one_that_forgot_its_connections_locks_nobody_out():
    with listening(max_connections=3) as it:
        peers = [RawPeer(it.listener.port) for _ in range(8)]
        for number, peer in enumerate(peers[-3:]):
            assert parse(peer.ask(order(str(number)))).get("MSA-2") == str(number)
        assert all(peer.answer() is None for peer in peers[:5])
        for peer in peers:
            peer.close()
        wait_for(lambda: it.open == 0)


def test_connections_that_work_give_way_to_nobody():
    in_hand, go_on = threading.Semaphore(0), threading.Event()

    def handle(raw, peer):
        in_hand.release()
        assert go_on.wait(60)
        return accept(raw, peer)

    with listening(handle, max_connections=2) as it:
        busy = [RawPeer(it.listener.port) for _ in range(2)]
        for peer in busy:
            peer.send(frame(order()))
            assert in_hand.acquire(timeout=20)
        assert RawPeer(it.listener.port).answer() is None
        assert "too many" in it.log_text
        go_on.set()
        assert all(parse(peer.answer()).get("MSA-1") == "AA" for peer in busy)


def test_a_stop_lets_the_message_in_hand_be_answered_and_takes_no_other():
    in_hand, go_on = threading.Event(), threading.Event()
    seen = []

    def handle(raw, peer):
        seen.append(raw)
        in_hand.set()
        assert go_on.wait(60)
        return accept(raw, peer)

    with listening(handle) as it, RawPeer(it.listener.port) as peer, RawPeer(it.listener.port) as idle:
        peer.send(frame(order("1")) + frame(order("2")))
        assert in_hand.wait(60)
        stopping = threading.Thread(target=it.listener.stop, args=(20.0,))
        stopping.start()
        assert idle.answer() is None
        go_on.set()
        assert parse(peer.answer()).get("MSA-2") == "1"
        assert peer.answer() is None
        stopping.join(60)
        assert not stopping.is_alive()
        assert len(seen) == 1
        with pytest.raises(OSError, match=r"refused|reset"):
            RawPeer(it.listener.port)


@pytest.mark.parametrize(
    "rude", [b"\x0b", b"\x1c\r" * 50, bytes(range(256)) * 40, b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.0\r\n\r\n"]
)
def test_nothing_ends_the_listener(rude):
    with listening() as it:
        for _ in range(3):
            peer = RawPeer(it.listener.port)
            peer.send(rude)
            # Reset, not closed: the answer has nowhere to go.
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            peer.close()
        with RawPeer(it.listener.port) as peer:
            assert parse(peer.ask(order("alive"))).get("MSA-2") == "alive"
        wait_for(lambda: it.open == 0)


def test_a_port_that_is_taken_is_named():
    with listening() as it:
        other = MllpListener("127.0.0.1", it.listener.port, accept, log=it.listener.log, metrics=it.metrics)
        with pytest.raises(RadmeshError) as caught:
            other.start()
        assert caught.value.reason == "PORT_IN_USE"
        assert str(it.listener.port) in caught.value.message
        other.stop(0)


def test_over_tls_with_certificates_on_both_sides(tmp_path):
    Authority(tmp_path, SystemClock()).issue(["connectivity-manager-0", "ris-0"])
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "ca.pem"))
    server.load_cert_chain(tmp_path / "connectivity-manager-0.pem", tmp_path / "connectivity-manager-0.key")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    client.load_cert_chain(tmp_path / "ris-0.pem", tmp_path / "ris-0.key")
    stranger = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    subjects = []

    def handle(raw, peer):
        subjects.append(peer.subject)
        return accept(raw, peer)

    with listening(handle, ssl_context=server) as it:
        sender = MllpClient("127.0.0.1", it.listener.port, client, ack_timeout=20)
        for control_id in ("1", "2"):
            assert sender.exchange(order(control_id), control_id).get("MSA-1") == "AA"
        sender.close()
        assert subjects == ["ris-0", "ris-0"]
        with pytest.raises(RadmeshError) as caught:
            MllpClient("127.0.0.1", it.listener.port, stranger, ack_timeout=20).exchange(order(), "1")
        assert caught.value.reason == "HL7_CONNECTION_LOST"
        with RawPeer(it.listener.port) as plain:
            plain.send(frame(order()))
            assert plain.answer() is None
        assert len(subjects) == 2
        assert MllpClient("127.0.0.1", it.listener.port, client, ack_timeout=20).exchange(order(), "1")


# Client


def answer_to(raw: bytes, code: str = "AA", control_id: str = "") -> bytes:
    answer = acknowledge(parse(raw), code, clock=CLOCK, control_id="R1")
    return (
        frame(answer.replace(b"|" + parse(raw).control_id.encode(), b"|" + control_id.encode(), 1))
        if control_id
        else frame(answer)
    )


def reason_of(client, message, control_id):
    with pytest.raises(RadmeshError) as caught:
        client.exchange(message, control_id)
    return caught.value.reason


def test_one_connection_serves_many_messages():
    with listening() as it:
        client = MllpClient("127.0.0.1", it.listener.port)
        for n in range(10):
            assert client.exchange(order(str(n)), str(n)).get("MSA-2") == str(n)
        assert it.open == 1
        client.close()
        wait_for(lambda: it.open == 0)


@pytest.mark.parametrize(
    ("code", "reason"), [("AR", "HL7_REFUSED"), ("CR", "HL7_REFUSED"), ("AE", "HL7_ERROR"), ("CE", "HL7_ERROR")]
)
def test_a_refusal_brings_its_answer(code, reason):
    def handle(raw, _peer):
        return acknowledge(parse(raw), code, clock=CLOCK, control_id="R1", text="full")

    with listening(handle) as it:
        client = MllpClient("127.0.0.1", it.listener.port)
        with pytest.raises(AckError) as caught:
            client.exchange(order("7"), "7")
        assert (caught.value.reason, caught.value.metadata["code"]) == (reason, code)
        assert caught.value.acknowledgement.get("MSA-3") == "full"
        client.close()


def test_a_commit_acknowledgement_is_one():
    with receiver(lambda c, _: c.sendall(answer_to(next_frame(c), "CA"))) as port:
        assert MllpClient("127.0.0.1", port).exchange(order("1"), "1").get("MSA-1") == "CA"


def test_an_answer_to_another_message_counts_for_none():
    connections = []

    def serve(connection, number):
        connections.append(number)
        raw = next_frame(connection)
        connection.sendall(answer_to(raw, control_id="other") if number == 0 else answer_to(raw))
        assert next_frame(connection) is None

    with receiver(serve) as port:
        client = MllpClient("127.0.0.1", port, ack_timeout=20)
        assert reason_of(client, order("1"), "1") == "HL7_ACK_FOREIGN"
        assert client.exchange(order("1"), "1").get("MSA-2") == "1"
        client.close()
    assert connections == [0, 1]


def test_a_late_answer_is_not_taken_for_the_next_message():
    clock = ManualClock()
    late, sent = threading.Event(), threading.Event()

    def serve(connection, number):
        raw = next_frame(connection)
        if number == 0:
            late.set()
            assert sent.wait(60)
            connection.sendall(answer_to(raw))
        else:
            connection.sendall(answer_to(raw))
        assert next_frame(connection) is None

    with receiver(serve) as port:
        client = MllpClient("127.0.0.1", port, ack_timeout=30, clock=clock)
        threading.Thread(target=lambda: late.wait(60) and clock.advance(31)).start()
        assert reason_of(client, order("1"), "1") == "HL7_ACK_TIMEOUT"
        sent.set()
        assert client.exchange(order("2"), "2").get("MSA-2") == "2"
        client.close()


def test_what_comes_unasked_closes_the_connection_before_the_next_message():
    connections = []
    unasked = threading.Event()

    def serve(connection, number):
        connections.append(number)
        raw = next_frame(connection)
        connection.sendall(answer_to(raw))
        if number == 0:
            # As though the acknowledgement of an earlier attempt came now: for the very message that is sent next.
            connection.sendall(answer_to(order("2"), "AR"))
            unasked.set()
        assert next_frame(connection) is None

    with receiver(serve) as port:
        client = MllpClient("127.0.0.1", port, ack_timeout=20)
        client.exchange(order("1"), "1")
        assert unasked.wait(60)
        assert client.exchange(order("2"), "2").get("MSA-1") == "AA"
        client.close()
    assert connections == [0, 1]


def test_no_answer_or_nonsense_is_an_error_and_the_next_exchange_goes_on():
    def serve(connection, number):
        raw = next_frame(connection)
        if number == 0:
            connection.sendall(answer_to(raw)[:-5])  # cut off
        elif number == 1:
            connection.sendall(frame(b"what?"))
            assert next_frame(connection) is None
        else:
            connection.sendall(b"\r\n" + answer_to(raw))

    with receiver(serve) as port:
        client = MllpClient("127.0.0.1", port, ack_timeout=20)
        assert reason_of(client, order("1"), "1") == "HL7_CONNECTION_LOST"
        assert reason_of(client, order("1"), "1") == "HL7_ACK_FOREIGN"
        assert client.exchange(order("1"), "1").get("MSA-1") == "AA"
        client.close()
    assert reason_of(MllpClient("127.0.0.1", port, connect_timeout=5), order("1"), "1") == "HL7_CONNECTION_LOST"


def test_an_acknowledgement_without_a_code_of_the_standard_is_an_error():
    def serve(connection, _):
        connection.sendall(answer_to(next_frame(connection)).replace(b"|AA|", b"|OK|"))

    with receiver(serve) as port:
        assert reason_of(MllpClient("127.0.0.1", port), order("1"), "1") == "HL7_ERROR"


def test_a_wait_can_be_ended():
    waiting = threading.Event()

    def serve(connection, _):
        next_frame(connection)
        waiting.set()
        assert next_frame(connection) is None

    with receiver(serve) as port:
        client = MllpClient("127.0.0.1", port, ack_timeout=600)
        ending = threading.Thread(target=lambda: waiting.wait(60) and client.abort())
        ending.start()
        assert reason_of(client, order("1"), "1") == "HL7_CONNECTION_LOST"
        ending.join()
