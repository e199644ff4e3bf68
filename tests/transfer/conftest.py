"""One archive's TransferService over a real store, and senders to it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transfer_support import TRANSFER, Mesh, admission_key, object_header, open_store, uid

from radmesh.transfer.receiver import TransferReceiver
from radmesh.transfer.sender import Sender
from radmesh.transfer.tickets import Admission


class World:
    """A store served at ``target``; ``route`` is what tickets name, such as a cutting proxy before it."""

    def __init__(self, folder: Path, transport: str) -> None:
        self.mesh = Mesh(folder, transport.partition("-")[0])
        # The sender speaks to a line, or to grpcio's own server.
        self.grpcio = transport.endswith("-grpcio")
        self.context = self.mesh.context("archive-server-0")
        self.client = self.mesh.context("gateway-proxy")
        self.store = open_store(folder / "store", self.mesh.clock)
        self.receiver = TransferReceiver(self.store, self.context.credentials, self.mesh.clock)
        self.server = self.mesh.serve(self.context, TRANSFER, self.receiver, self.receiver.codecs)
        self._addresses()
        self.admissions: list[Admission] = []
        self._senders: list[Sender] = []
        self.study = uid("study", folder)
        self.key = admission_key(self.study)

    def restart(self) -> None:
        """The process of the store ends and comes back at the same address."""
        self.mesh.cut_off(self.server)
        self.store.close()
        self.store = open_store(self.mesh.folder / "store", self.mesh.clock)
        self.receiver = TransferReceiver(self.store, self.context.credentials, self.mesh.clock)
        self.server = self.mesh.serve(self.context, TRANSFER, self.receiver, self.receiver.codecs)
        self._addresses()

    def _addresses(self) -> None:
        self.target = self.server.target
        self.put_target = self.route = self.server.target if self.grpcio else self.server.line_target

    def admit(self, admission: Admission) -> Any:
        self.admissions.append(admission)
        return self.mesh.ticket(self.store, self.route, admission.key)

    def sender(self, **options: Any) -> Sender:
        sender = Sender(self.client.line, options.pop("admit", self.admit), self.mesh.clock, **options)
        self._senders.append(sender)
        return sender

    def header(self, *name: object) -> Any:
        return object_header(self.study, uid("sop", self.mesh.folder, *name), self.key)

    def read(self, ref: Any) -> bytes:
        with self.store.read(ref) as reader:
            return b"".join(reader)

    def close(self) -> None:
        for sender in self._senders:
            sender.close()
        self.mesh.close()
        self.store.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    # In memory where there is such a place, and short, for the names of unix sockets.
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="rm-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["unix", "tls", "unix-grpcio", "tls-grpcio"])
def world(request: pytest.FixtureRequest, folder: Path) -> Iterator[World]:
    world = World(folder, request.param)
    yield world
    world.close()


@pytest.fixture
def unix_world(folder: Path) -> Iterator[World]:
    world = World(folder, "unix")
    yield world
    world.close()
