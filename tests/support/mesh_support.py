"""A small cluster of real processes for the tests of the mesh: named by RADMESH_MODULES=mesh_support:TABLE.

Its components serve nothing but what every server serves (health, reflection, StatusService); `edge` also has a
listening socket and a process of its own, as the gateway proxy has.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

from radmesh.mesh.modules import Module, Table
from radmesh.runtime.config import setting
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError


@dataclass(frozen=True)
class Edge:
    """[dicom]: settings of the edge."""

    port: int = setting(0, doc="Port.", env="RADMESH_DICOM_PORT", minimum=0, maximum=65535)
    tls_port: int = setting(2762, doc="Not served.", env="RADMESH_DICOM_TLS_PORT", minimum=0, maximum=65535)
    bind: str = setting("127.0.0.1", doc="Address.", env="RADMESH_BIND")
    ae_title: str = setting("RADMESH", doc="AE title.", env="RADMESH_AE_TITLE")
    fault: str = setting("", doc="What goes wrong: hang at start, exit at start, ignore SIGTERM.", env="EDGE_FAULT")


class Quiet:
    """A component that only says how it is."""

    def __init__(self, _config: object, context: Context) -> None:
        self._context = context
        self._server = context.server(max_workers=4)
        context.status.figure("answer", lambda: 42.0)

    def start(self) -> None:
        signal.signal(signal.SIGUSR1, self._compute)
        (self._context.data / "starts").open("a").write(f"{os.getpid()}\n")
        self._server.start()

    def _compute(self, *_: object) -> None:
        """As a library that computes for seconds without letting another thread run."""
        sys.setswitchinterval(1000)
        until = time.monotonic() + 6
        while time.monotonic() < until:
            pass
        sys.setswitchinterval(0.005)

    def stop(self, grace: float) -> None:
        (self._context.data / "stopped").write_text(os.environ.get("RADMESH_ADMIN_PASSWORD", ""))
        self._server.stop(grace)


class EdgeService:
    """A listening socket, and a helper process."""

    def __init__(self, config: Edge, context: Context) -> None:
        self._config = config
        self._context = context
        self._helper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        fault = self._config.fault
        if fault == "hang":
            threading.Event().wait()
        if fault == "exit":
            os._exit(7)
        if fault == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((self._config.bind, self._config.port))
        except OSError as error:
            raise RadmeshError("PORT_IN_USE", f"cannot listen on port {self._config.port}: {error.strerror}") from error
        self._socket.listen()
        code = (
            "import sys; from radmesh.mesh.serve import die_with\n"
            "die_with(int(sys.argv[1])); print(flush=True); sys.stdin.read()"
        )
        self._helper = subprocess.Popen(
            [sys.executable, "-c", code, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._helper.stdout is not None
        self._helper.stdout.readline()

    def stop(self, _grace: float) -> None:
        assert self._helper is not None
        self._helper.kill()
        self._helper.wait()
        self._socket.close()

    def endpoints(self) -> dict[str, str]:
        port = self._socket.getsockname()[1]
        return {"dicom": f"dicom://{self._config.bind}:{port}", "http": f"http://{self._config.bind}:{port}/"}

    def pids(self) -> list[int]:
        assert self._helper is not None
        return [os.getpid(), self._helper.pid]


TABLE = Table(
    (
        Module("database-server", "mesh_support:Quiet", makes_administrator=True),
        Module("archive-server", "mesh_support:Quiet", needs=("database-server",), numbered=True),
        Module("edge", "mesh_support:EdgeService", "dicom", "mesh_support:Edge", needs=("archive-server",)),
    )
)
