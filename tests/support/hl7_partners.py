"""Other people's HL7 programs: python-hl7's mllp_send and receiver, node-hl7-client and node-hl7-server."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hl7.mllp
import pytest

import hl7

ROOT = Path(__file__).resolve().parents[2]
MLLP_SEND = Path(sys.executable).with_name("mllp_send")
_MODULES = ROOT / ".venv" / "partners" / "node_modules"
_SCRIPTS = ROOT / "tests" / "partners"


def mllp_send(port: int, path: Path) -> str:
    """Send a file of messages with python-hl7's command; return what it prints, the answers."""
    done = subprocess.run(
        [MLLP_SEND, "-p", str(port), "--loose", "-f", str(path), "127.0.0.1"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def node(script: str, *arguments: object) -> tuple[list[str], dict[str, str]]:
    """Return command line and environment of a script; where node is not to be had, the test is not run."""
    if not shutil.which("node") or not _MODULES.is_dir():
        if os.environ.get("PARTNERS") == "0":
            pytest.skip("PARTNERS=0, and node-hl7-client is not here")
        pytest.fail("node-hl7-client is not here: tools/partners installs it")
    return ["node", str(_SCRIPTS / script), *map(str, arguments)], {**os.environ, "NODE_PATH": str(_MODULES)}


def node_send(port: int, *paths: Path) -> list[str]:
    """Send files with node-hl7-client, a message each; return the answers."""
    command, environment = node("send.cjs", port, *paths)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def control_ids(messages: Sequence[str]) -> list[str]:
    """MSH-10 of each."""
    return [text.split("\r")[0].split("|")[9] for text in messages]


class Received:
    """What a receiver was sent: messages in order, each with the code that answered it ("-" = nothing did)."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    @property
    def ids(self) -> list[str]:
        return control_ids([message for _, message in self.all])

    @property
    def accepted(self) -> list[str]:
        """Messages that were answered with AA."""
        return [message for code, message in self.all if code == "AA"]


class PythonReceiver(Received):
    """python-hl7's MLLP server on `port`.

    `plan` says how the first messages are answered; those after it get AA. "AE" and "AR" are codes, "-" is no answer,
    "late" one that comes with the next, "other" the acknowledgement of another message, "close" a closed connection.
    """

    def __init__(self, port: int, plan: Sequence[str] = ()) -> None:
        super().__init__()
        self.port = port
        self._plan = list(plan)
        self._late: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        assert started.wait(60)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(
            hl7.mllp.start_hl7_server(self._serve, "127.0.0.1", self.port, encoding="utf-8")
        )
        started.set()
        self._loop.run_forever()
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            self._loop.run_until_complete(asyncio.gather(*self._connections, return_exceptions=True))
        self._loop.run_until_complete(self._server.wait_closed())
        self._loop.close()

    async def _serve(self, reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await reader.readmessage()
                code = self._plan.pop(0) if self._plan else "AA"
                self.all.append((code, str(message)))
                if code == "close":
                    break
                for late in self._late:
                    writer.writemessage(late)
                self._late.clear()
                if code == "late":
                    self._late.append(message.create_ack("AA"))
                elif code == "other":
                    other = message.create_ack("AA")
                    other.segment("MSA")[2] = "OTHER"
                    writer.writemessage(other)
                elif code != "-":
                    writer.writemessage(message.create_ack(code))
                await writer.drain()
        writer.close()
        self._connections.discard(task)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        assert not self._thread.is_alive()


class NodeReceiver(Received):
    """node-hl7-server on `port`, a process; `plan` as that of PythonReceiver, codes and "-" only."""

    def __init__(self, port: int, plan: Sequence[str] = ()) -> None:
        super().__init__()
        self.port = port
        command, environment = node("receive.cjs", port, *plan)
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline()) == {"listen": port}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            self.all.append((said["code"], said["message"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait(60)
        self._reader.join(60)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def receiving(kind: type[Any], port: int, plan: Sequence[str] = ()) -> Iterator[Any]:
    receiver = kind(port, plan)
    try:
        yield receiver
    finally:
        receiver.close()
