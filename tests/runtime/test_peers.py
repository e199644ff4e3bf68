"""Peers that die, stand still or come back: real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import runtime_support
from depth import allowed
from runtime_support import PROBE, World, text
from waiting import wait_for

from radmesh.runtime.errors import RadmeshError

ROOT = Path(runtime_support.__file__).resolve().parents[2]


class Peer:
    """An archive server in a process of its own."""

    def __init__(self, world: World, listen: str = "") -> None:
        path = os.pathsep.join(str(ROOT / name) for name in ("components", "native", "gateway_proxy", "tests/support"))
        self.process = subprocess.Popen(
            [
                sys.executable,
                runtime_support.__file__,
                str(world.folder),
                "archive-server-0",
                listen or world.listen("archive-server-0"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self.process.stdout
        self.target = self.process.stdout.readline().strip()
        world.addresses["archive-server-0"] = self.target

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@pytest.fixture
def peer(world: World) -> Iterator[Peer]:
    made = Peer(world)
    yield made
    made.end()


def test_a_peer_that_stands_still_is_given_up_within_seconds(world: World, peer: Peer) -> None:
    """A stream without a deadline: keepalive alone ends it."""
    client = world.context("gateway-proxy").client(PROBE, "archive-server-0")

    def requests() -> Iterator[object]:
        yield text("a")
        time.sleep(0.2)
        yield text("hold")
        runtime_support.threading.Event().wait(60)

    answers = client.Talk(requests())
    assert next(answers).value == "heard a"
    peer.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(RadmeshError) as caught:
        next(answers)
    seconds = time.monotonic() - start
    assert caught.value.reason == "PEER_UNAVAILABLE"
    assert seconds < allowed(14), seconds
    print(f"a stopped peer was given up after {seconds:.1f} s over {world.transport}")
    peer.process.send_signal(signal.SIGCONT)
    wait_for(lambda: answers_again(client), 10)


def answers_again(client: object) -> bool:
    try:
        return bool(client.Write(text("b"), timeout=2))  # type: ignore[attr-defined]
    except RadmeshError:
        return False


def test_a_killed_peer_is_known_at_once_and_found_again(world: World, peer: Peer) -> None:
    client = world.context("gateway-proxy").client(PROBE, "archive-server-0")
    assert client.Read(text("a")).value == "read a"
    answers = client.Talk(iter([text("a"), text("hold")]))
    assert next(answers).value == "heard a"
    peer.end()
    start = time.monotonic()
    with pytest.raises(RadmeshError) as caught:
        next(answers)
    assert caught.value.reason == "PEER_UNAVAILABLE"
    with pytest.raises(RadmeshError) as caught:
        client.Write(text(""))
    assert caught.value.reason == "PEER_UNAVAILABLE"
    assert time.monotonic() - start < allowed(3)
    again = Peer(world, peer.target)
    try:
        assert again.target == peer.target
        wait_for(lambda: answers_again(client), 10)
    finally:
        again.end()
