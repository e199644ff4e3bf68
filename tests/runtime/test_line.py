"""Lines against grpcio on either side, against peers that break every rule, and against silence."""

import contextlib
import fcntl
import os
import queue
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from depth import examples
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_support import PROBE, TRANSPORTS, World
from waiting import wait_for

from radmesh.runtime import http2, line
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.line import Line, address_of
from radmesh.runtime.rpc import MethodCodec, Server, from_rpc_error

TALK = PROBE.methods_by_name["Talk"]
PATH = f"/{TALK.containing_service.full_name}/Talk"


class Probe:
    """Answers each message; some words do something else."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.go = threading.Event()

    def Talk(self, requests: Iterator[Any], call: Any) -> Iterator[StringValue]:
        try:
            for request in requests:
                word = request.value
                if word == "refuse":
                    raise RadmeshError("STORAGE_FULL", "no room: é % \n", metadata={"room": "0"})
                if word == "break":
                    raise ValueError("secret")
                if word == "wait":
                    self.go.wait(60)
                if word == "window":
                    word = "none" if call.window is None else bytes(call.window[:6]).decode()
                if word == "silence":
                    continue
                yield StringValue(value=f"{call.caller}:{len(word)}" if len(word) > 100 else f"{call.caller}:{word}")
        finally:
            self.ended.set()

    def __getattr__(self, name: str) -> Any:
        return lambda request, call: request


class Lines:
    """A server with a line, and who calls it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.probe = Probe()
        context = world.context("archive-server-0")
        self.server: Server = context.server(max_workers=6)
        self.server.add(PROBE, self.probe)
        self.server.add_line(TALK, self.probe.Talk, MethodCodec(request_deserializer=parse))
        self.server.start()
        self._lines: list[Line] = []

    def line(self, instance: str = "gateway-proxy", target: str = "", **options: Any) -> Line:
        made = Line(target or self.server.line_target, PATH, self.world.context(instance).credentials, **options)
        self._lines.append(made)
        return made

    def socket(self) -> socket.socket:
        address = address_of(self.server.line_target)
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.settimeout(20)
        sock.connect(address)
        return sock

    def close(self) -> None:
        self.probe.go.set()
        for made in self._lines:
            made.close()
        self.server.stop(1)


def parse(data: bytes) -> StringValue:
    return StringValue.FromString(bytes(data))


def say(made: Line, word: str) -> None:
    made.send(StringValue(value=word).SerializeToString())


def hear(made: Line) -> str:
    return str(StringValue.FromString(bytes(made.receive())).value)


def ask(made: Line, word: str) -> str:
    say(made, word)
    return hear(made)


@pytest.fixture
def make_world() -> Iterator[Callable[[str], World]]:
    with contextlib.ExitStack() as stack:

        def make(transport: str) -> World:
            # A short path, for the names of unix sockets.
            world = World(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rm-"))), transport)
            stack.callback(world.close)
            return world

        yield make


@pytest.fixture(params=TRANSPORTS)
def lines(request: pytest.FixtureRequest, make_world: Callable[[str], World]) -> Iterator[Lines]:
    made = Lines(make_world(request.param))
    yield made
    made.close()


@pytest.fixture
def unix(make_world: Callable[[str], World]) -> Iterator[Lines]:
    made = Lines(make_world("unix"))
    yield made
    made.close()


def test_messages_of_every_size_both_ways(lines: Lines) -> None:
    for target in (lines.server.line_target, lines.server.target):
        made = lines.line(target=target)
        for size in (101, 16_000, 16_384, 65_535, 65_536, 300_000, 1_048_576, 4_000_000):
            assert ask(made, "x" * size) == f"gateway-proxy:{size}"
        assert ask(made, "") == "gateway-proxy:"


def test_parts_are_one_message(lines: Lines) -> None:
    for target in (lines.server.line_target, lines.server.target):
        made = lines.line(target=target)
        whole = StringValue(value="y" * 500_000).SerializeToString()
        made.send(whole[:3], b"", memoryview(whole)[3:250_000], bytearray(whole[250_000:]))
        assert hear(made) == "gateway-proxy:500000"


def test_a_window_shows_what_is_written_there(unix: Lines) -> None:
    assert unix.line().window is None
    made = unix.line(window=True)
    assert made.window is not None
    for word in (b"first!", b"second"):
        made.window[:6] = word
        assert ask(made, "window") == f"gateway-proxy:{word.decode()}"
    # grpcio takes no descriptor, and is not given one.
    assert unix.line(target=unix.server.target, window=True).window is None


def test_over_tls_there_is_no_window(make_world: Callable[[str], World]) -> None:
    lines = Lines(make_world("tls"))
    made = lines.line(window=True)
    assert made.window is None
    assert ask(made, "window") == "gateway-proxy:none"
    lines.close()


def test_what_may_shrink_is_no_window(unix: Lines) -> None:
    credentials = unix.world.context("gateway-proxy").credentials
    fields = [(":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "localhost")]
    fields += [("te", "trailers"), ("content-type", "application/grpc")]
    fields += [("radmesh-caller", credentials.instance), ("radmesh-token", credentials.token())]
    shrinking = os.memfd_create("shrinking", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(shrinking, b"shown!")
    sealed = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(sealed, b"sealed")
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    empty = os.memfd_create("empty", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(empty, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    reader, writer = os.pipe()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for descriptor, seen in ((shrinking, "none"), (empty, "none"), (writer, "none"), (sealed, "sealed")):
        connection = http2.Connection(unix.socket(), line.MESSAGE_MAX, lambda: None, client=True)
        # One too many, with the preface: it is closed.
        connection._send(http2.PREFACE + connection._first(), descriptor=descriptor)
        connection.wait_settled()
        connection.send_headers(fields, begin=True, descriptor=sealed)
        connection.send_message(StringValue(value="window").SerializeToString())
        while not isinstance(event := connection.receive(), bytearray):
            pass
        assert parse(event).value == f"gateway-proxy:{seen}"
        connection.close()
    wait_for(
        lambda: len(list(Path("/proc/self/fd").iterdir())) == before, what="descriptors that came with lines are closed"
    )
    for descriptor in (shrinking, sealed, empty, reader, writer):
        os.close(descriptor)


def test_grpcio_calls_a_line(lines: Lines) -> None:
    channel = lines.world.context("gateway-proxy").channels.get(lines.server.line_target)
    talk: Any = channel.stream_stream(
        PATH, request_serializer=StringValue.SerializeToString, response_deserializer=StringValue.FromString
    )
    for _ in range(3):  # one stream after another on grpcio's one connection
        words = ["a", "b" * 200_000, "c" * 3_000_000]
        answers = [a.value for a in talk(iter([StringValue(value=w) for w in words]), timeout=20)]
        assert answers == ["gateway-proxy:a", "gateway-proxy:200000", "gateway-proxy:3000000"]
    with pytest.raises(grpc.RpcError) as caught:
        list(talk(iter([StringValue(value="refuse")]), timeout=20))
    error = from_rpc_error(caught.value)
    assert (error.reason, error.message, error.metadata) == ("STORAGE_FULL", "no room: é % \n", {"room": "0"})


def test_a_second_stream_on_the_connection_is_refused_at_once(unix: Lines) -> None:
    channel = unix.world.context("gateway-proxy").channels.get(unix.server.line_target)
    talk: Any = channel.stream_stream(
        PATH, request_serializer=StringValue.SerializeToString, response_deserializer=StringValue.FromString
    )
    words: queue.SimpleQueue[StringValue | None] = queue.SimpleQueue()
    first = talk(iter(words.get, None), timeout=30)
    words.put(StringValue(value="one"))
    assert next(first).value == "gateway-proxy:one"
    with pytest.raises(grpc.RpcError) as caught:
        list(talk(iter([StringValue(value="two")]), timeout=30))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    words.put(StringValue(value="three"))
    assert next(first).value == "gateway-proxy:three"
    words.put(None)
    assert list(first) == []


@pytest.mark.parametrize("where", ["line", "grpcio"])
def test_what_the_server_says_when_it_ends_the_call(lines: Lines, where: str) -> None:
    target = lines.server.line_target if where == "line" else lines.server.target
    made = lines.line(target=target)
    assert ask(made, "hello") == "gateway-proxy:hello"
    with pytest.raises(RadmeshError) as caught:
        ask(made, "refuse")
    assert (caught.value.reason, caught.value.message) == ("STORAGE_FULL", "no room: é % \n")
    assert caught.value.metadata == {"room": "0"}
    assert not made.alive
    with pytest.raises(RadmeshError) as caught:
        ask(lines.line(target=target), "break")
    assert caught.value.reason == "INTERNAL"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("where", ["line", "grpcio"])
def test_who_may_not_call(lines: Lines, where: str) -> None:
    target = lines.server.line_target if where == "line" else lines.server.target
    for instance in ("database-server", "application-server", "network-gateway"):
        with pytest.raises(RadmeshError) as caught:
            ask(lines.line(instance, target), "hello")
        assert caught.value.reason == "CALLER_REFUSED"
    path = f"/{TALK.containing_service.full_name}/Nothing"
    made = Line(target, path, lines.world.context("gateway-proxy").credentials)
    with pytest.raises(RadmeshError):
        ask(made, "hello")


def test_a_token_of_another_cluster(unix: Lines, make_world: Callable[[str], World]) -> None:
    stranger = make_world("unix").context("gateway-proxy").credentials
    with pytest.raises(RadmeshError) as caught:
        ask(Line(unix.server.line_target, PATH, stranger), "hello")
    assert caught.value.reason == "CALLER_UNKNOWN"


def test_a_certificate_of_another_cluster(make_world: Callable[[str], World]) -> None:
    lines = Lines(make_world("tls"))
    with pytest.raises(RadmeshError) as caught:
        ask(Line(lines.server.line_target, PATH, make_world("tls").context("gateway-proxy").credentials), "hello")
    assert caught.value.reason == "PEER_UNAVAILABLE"
    plain = lines.socket()
    plain.sendall(http2.PREFACE + b"\0" * 9)
    drain(plain)
    assert ask(lines.line(), "still here") == "gateway-proxy:still here"
    plain.close()
    lines.close()


def test_nobody_there(unix: Lines) -> None:
    credentials = unix.world.context("gateway-proxy").credentials
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for target in ("unix:/nowhere/at.all", f"127.0.0.1:{port}"):
        with pytest.raises(RadmeshError) as caught:
            Line(target, PATH, credentials)
        assert caught.value.reason == "PEER_UNAVAILABLE"
    with pytest.raises(RadmeshError) as caught:
        Line("somewhere", PATH, credentials)
    assert caught.value.reason == "TARGET_INVALID"


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("unix:/a/b", "/a/b"),
        ("unix:///a/b", "/a/b"),
        ("10.0.0.1:7", ("10.0.0.1", 7)),
        ("dns:///archive-server-0.archive:7000", ("archive-server-0.archive", 7000)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_targets(target: str, address: Any) -> None:
    assert address_of(target) == address


def test_too_many_lines(unix: Lines) -> None:
    made = [unix.line() for _ in range(6)]
    assert [ask(m, "here") for m in made] == ["gateway-proxy:here"] * 6
    with pytest.raises(RadmeshError) as caught:
        ask(unix.line(), "one more")
    assert caught.value.reason == "TOO_MANY_CALLS"
    made.pop().close()
    deadline = time.monotonic() + 60
    while True:
        try:
            assert ask(unix.line(), "now") == "gateway-proxy:now"
            break
        except RadmeshError:
            assert time.monotonic() < deadline


def test_a_busy_server_gives_signs_of_life(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "SILENCE_SECONDS", 3.5)
    made = lines.line()
    assert ask(made, "hello") == "gateway-proxy:hello"
    timer = threading.Timer(5, lines.probe.go.set)
    timer.start()
    assert ask(made, "wait") == "gateway-proxy:wait"
    timer.join()


def test_an_answer_that_does_not_come(unix: Lines) -> None:
    made = unix.line(answer_seconds=1.5)
    with pytest.raises(RadmeshError) as caught:
        ask(made, "silence")
    assert caught.value.reason == "PEER_TIMEOUT"


def test_a_server_that_stands_still_is_lost(unix: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it can give no sign: while it is asked, and while it does not read."""
    monkeypatch.setattr(line, "SILENCE_SECONDS", 3.0)
    folder = str(unix.world.folder)
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), *(p for p in sys.path if p)]!r}
from test_line import serve
serve({folder!r})
"""
    unix.server.stop(0)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        target = process.stdout.readline().strip()
        made = [unix.line(target=target) for _ in range(2)]
        assert [ask(m, "hello") for m in made] == ["gateway-proxy:hello"] * 2
        process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            pass
        with pytest.raises(RadmeshError) as caught:
            ask(made[0], "are you there")
        assert caught.value.reason == "PEER_TIMEOUT"
        with pytest.raises(RadmeshError) as caught:
            for _ in range(100):
                say(made[1], "x" * 1_000_000)
        assert caught.value.reason == "PEER_TIMEOUT"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()  # type: ignore[union-attr]


def serve(folder: str) -> None:
    """Serve a line until the end of standard input."""
    lines = Lines(World(Path(folder), "unix"))
    print(lines.server.line_target, flush=True)
    sys.stdin.read()


def test_a_caller_that_leaves_ends_the_call(lines: Lines) -> None:
    made = lines.line()
    assert ask(made, "hello") == "gateway-proxy:hello"
    made.close()
    assert lines.probe.ended.wait(60)


def test_stop_ends_between_two_messages(lines: Lines) -> None:
    made = lines.line()
    assert ask(made, "hello") == "gateway-proxy:hello"
    waiting = lines.line()
    say(waiting, "wait")
    stopper = threading.Thread(target=lines.server.stop, args=(10,))
    stopper.start()
    with pytest.raises(RadmeshError) as caught:
        while True:
            ask(made, "more")
    assert caught.value.reason == "PEER_UNAVAILABLE"
    lines.probe.go.set()
    # What was being worked on is answered.
    assert hear(waiting) == "gateway-proxy:wait"
    stopper.join(60)
    assert not stopper.is_alive()


# -- peers that break the rules


def header_block(*fields: tuple[str, str]) -> bytes:
    import hpack

    common = [(":method", "POST"), (":path", PATH), ("content-type", "application/grpc+proto")]
    return bytes(hpack.Encoder().encode([*common, *fields]))


def known_block(lines: Lines) -> bytes:
    credentials = lines.world.context("gateway-proxy").credentials
    return header_block(("radmesh-caller", credentials.instance), ("radmesh-token", credentials.token()))


HELLO = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"")
MESSAGE = b"\0" + struct.pack(">L", 7) + StringValue(value="hello").SerializeToString()

KNOWN = b"<a stream of one who may call>"
BROKEN = {
    "no preface": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(100),
    "a frame that is too large": HELLO + http2.frame_head(http2.SETTINGS, 0, 0, 1 << 20) + bytes(1 << 16),
    "settings of a stream": HELLO + http2.frame(http2.SETTINGS, 0, 1, b""),
    "settings cut": HELLO + http2.frame(http2.SETTINGS, 0, 0, bytes(7)),
    "a window too large": HELLO + http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 4, 1 << 31)),
    "a frame size that is none": HELLO + http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 5, 1)),
    "a ping cut": HELLO + http2.frame(http2.PING, 0, 0, b"abc"),
    "an update of nothing": HELLO + http2.frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)),
    "a window that overflows": HELLO + http2.frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "data of no stream": HELLO + http2.frame(http2.DATA, 0, 1, MESSAGE),
    "a push": HELLO + http2.frame(http2.PUSH_PROMISE, 4, 1, bytes(8)),
    "a continuation of nothing": HELLO + http2.frame(http2.CONTINUATION, 4, 1, b""),
    "headers of an even stream": HELLO + http2.frame(http2.HEADERS, 4, 2, header_block()),
    "headers that cannot be read": HELLO + http2.frame(http2.HEADERS, 4, 1, b"\xff" * 50),
    "headers without end": HELLO
    + http2.frame(http2.HEADERS, 0, 1, bytes(16_000))
    + http2.frame(http2.CONTINUATION, 0, 1, bytes(16_000)) * 4,
    "headers cut by another frame": HELLO
    + http2.frame(http2.HEADERS, 0, 1, b"")
    + http2.frame(http2.PING, 0, 0, bytes(8)),
    "padding beyond the frame": HELLO + http2.frame(http2.HEADERS, 4 | 8, 1, b"\xff" + header_block()),
    "a compressed message": KNOWN + http2.frame(http2.DATA, 0, 1, b"\1" + MESSAGE[1:]),
    "a message that is too large": KNOWN + http2.frame(http2.DATA, 0, 1, b"\0\xff\xff\xff\xff"),
    "an end within a message": KNOWN + http2.frame(http2.DATA, 1, 1, MESSAGE[:-1]),
    "a flood of settings": HELLO + http2.frame(http2.SETTINGS, 0, 0, b"") * 11_000,
    "a flood of resets": HELLO + http2.frame(http2.RST_STREAM, 0, 1, bytes(4)) * 11_000,
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_rule_ends_the_connection_and_nothing_else(unix: Lines, name: str) -> None:
    other = unix.line()
    sock = unix.socket()
    reader = threading.Thread(target=drain, args=(sock,))
    reader.start()
    with contextlib.suppress(ConnectionError):
        opening = HELLO + http2.frame(http2.HEADERS, 4, 1, known_block(unix))
        sock.sendall(BROKEN[name].replace(KNOWN, opening))
    reader.join(60)
    assert not reader.is_alive(), "the server closes"
    sock.close()
    assert ask(other, "hello") == "gateway-proxy:hello"


def drain(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass


def test_padding_priority_and_small_frames_are_understood(unix: Lines) -> None:
    block = known_block(unix)
    sock = unix.socket()
    half = len(block) // 2
    data = HELLO
    data += http2.frame(http2.HEADERS, 8 | 0x20, 1, b"\3" + bytes(5) + block[:half] + bytes(3))
    data += http2.frame(http2.CONTINUATION, 4, 1, block[half:])
    data += http2.frame(http2.PRIORITY, 0, 1, bytes(5))
    data += http2.frame(0xEE, 0, 1, b"an unknown frame")
    for byte in MESSAGE:
        data += http2.frame(http2.DATA, 8, 1, b"\2" + bytes([byte]) + bytes(2))
    data += http2.frame(http2.DATA, 8 | 1, 1, b"\4" + bytes(4))
    for start in range(0, len(data), 7):
        sock.sendall(data[start : start + 7])
    received = b""
    while b"grpc-status" not in received:
        part = sock.recv(65536)
        assert part, received
        received += part
    assert b"gateway-proxy:hello" in received
    sock.close()


@settings(max_examples=examples(60), derandomize=True)
@given(st.data())
def test_flipped_bytes_end_at_most_their_own_connection(unix: Lines, data: st.DataObject) -> None:
    opening = HELLO + http2.frame(http2.HEADERS, 4, 1, known_block(unix))
    whole = bytearray(opening + http2.frame(http2.DATA, 0, 1, MESSAGE) * 3 + http2.frame(http2.DATA, 1, 1, b""))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    sock = unix.socket()
    with contextlib.suppress(ConnectionError):
        sock.sendall(whole[: data.draw(st.integers(1, len(whole)))])
        sock.shutdown(socket.SHUT_WR)
    drain(sock)
    sock.close()


def test_after_all_that_the_server_serves(unix: Lines) -> None:
    choose = random.Random(7)
    for _ in range(30):
        sock = unix.socket()
        with contextlib.suppress(ConnectionError):
            sock.sendall(HELLO + os.urandom(choose.randrange(2000)))
            sock.shutdown(socket.SHUT_WR)
        drain(sock)
        sock.close()
    assert ask(unix.line(), "hello") == "gateway-proxy:hello"
