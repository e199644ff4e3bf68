"""Clients of the HTTP door: people who are signed in, curl, raw sockets; a door in this process on a real database."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from cluster_support import RealCluster
from component_mesh import Components

from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.config import Http, Section
from radmesh.application_server.module import ApplicationServer
from radmesh.runtime.lifecycle import State

PASSWORD = "correct horse battery"
ROLES = ("none", "technologist", "radiologist", "administrator")


class People:
    """Users of every role, named as their role, each with a session."""

    def __init__(self, url: str, accounts: Any, **options: Any) -> None:
        self.url = url
        self._accounts = accounts
        self._options = options
        self._clients: list[httpx.Client] = []
        self._signed_in: dict[str, httpx.Client] = {}
        self.tokens: dict[str, str] = {}
        for role in ROLES:
            self.add(role, role)

    def add(self, name: str, role: str) -> str:
        """Add a user; return a token."""
        self._accounts.CreateUser(
            database_pb2.CreateUserRequest(name=name, role=f"ROLE_{role.upper()}", password=PASSWORD)
        )
        answer = self.anonymous().post(
            "/api/v1/session", json={"user": name, "password": PASSWORD, "token": True}, cookies=None
        )
        assert answer.status_code == 200, answer.text
        self.tokens[name] = answer.json()["token"]
        return self.tokens[name]

    def become(self, name: str, role: str) -> None:
        self._accounts.UpdateUser(database_pb2.UpdateUserRequest(name=name, role=f"ROLE_{role.upper()}"))

    def anonymous(self) -> httpx.Client:
        """Somebody who is not signed in."""
        client = httpx.Client(base_url=self.url, timeout=30, **self._options)
        self._clients.append(client)
        return client

    def __getitem__(self, name: str) -> httpx.Client:
        """The client with the bearer token of `name`."""
        if name not in self._signed_in:
            self._signed_in[name] = self.anonymous()
            self._signed_in[name].headers["authorization"] = f"Bearer {self.tokens[name]}"
        return self._signed_in[name]

    def browser(self, name: str) -> httpx.Client:
        """A client with the cookie of a new session of `name`, which sends Origin as browsers do."""
        client = self.anonymous()
        client.headers["origin"] = self.url
        answer = client.post("/api/v1/session", json={"user": name, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


def people_of(cluster: RealCluster) -> People:
    return People(cluster.ready["urls"]["http"], cluster.inside("AccountService"))


class HttpDoor:
    """The Application Server in this process, with a Database Server beside it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.components = Components(folder)
        self.components.database()
        for name in ("connectivity-manager", "connectivity-manager-0"):
            self.components.mesh.addresses[name] = self.components.mesh.listen(name)
        self.context = self.components.mesh.context("application-server")
        self.server = ApplicationServer(Section(port=0), self.context, Http(port=0, **settings))
        self.server.start()
        self.context.status.state = State.SERVING
        self.url = self.server.endpoints()["http"]
        self.port = int(self.url.rpartition(":")[2])
        self.log = folder / "application-server.log"

    def client(self, service: str) -> Any:
        return self.components.client("application-server", database_pb2, service, "database-server")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def close(self) -> None:
        self.server.stop(2.0)
        self.context.channels.close()
        self.components.close()


def curl(*arguments: object) -> str:
    """What curl prints."""
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "30", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def everything(connection: socket.socket) -> bytes:
    """What the other side sends until it ends the connection."""
    received = bytearray()
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def events(response: httpx.Response) -> Iterator[tuple[str, str]]:
    """(event, data) of a stream; ("", comment) of what only says that it lives."""
    name = ""
    for line in response.iter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, value
        elif not key and value:
            yield "", value


def elapsed(since: float) -> float:
    return time.monotonic() - since
