"""uvicorn in a thread of its own, on a socket that was bound before."""

import asyncio
import logging
import socket
import threading
from typing import Any

import uvicorn

from radmesh.application_server.config import Http
from radmesh.application_server.http.app import Door
from radmesh.runtime.errors import RadmeshError

_START_SECONDS = 30.0


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class HttpServer:
    """The listener; `start` returns when it serves."""

    def __init__(self, config: Http, door: Door) -> None:
        self._config = config
        self._door = door
        self._socket: socket.socket | None = None
        self._server: _Uvicorn | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        """Where it is reached."""
        host = f"[{self._config.bind}]" if ":" in self._config.bind else self._config.bind
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen and serve.

        Raises:
            RadmeshError: PORT_IN_USE.
        """
        self._socket = _listen(self._config.bind, self._config.port)
        self.port = int(self._socket.getsockname()[1])
        # What it says would name paths, and so studies: the door logs requests itself.
        logging.getLogger("uvicorn").addHandler(logging.NullHandler())
        logging.getLogger("uvicorn").propagate = False
        options: dict[str, Any] = {
            "http": "httptools",
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,
            "timeout_keep_alive": 30,
        }
        self._server = _Uvicorn(uvicorn.Config(self._door, **options))
        self._thread.start()
        if not self._server.ready.wait(_START_SECONDS):
            raise RadmeshError("INTERNAL", "the HTTP server did not start")

    def _run(self) -> None:
        assert self._server is not None
        assert self._socket is not None
        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            runner.run(self._server.serve([self._socket]))

    def stop(self, grace: float) -> None:
        """Answer what was asked, for `grace` seconds, and end."""
        if self._server is None:
            return
        self._door.drain()
        self._server.config.timeout_graceful_shutdown = max(1, int(grace))
        self._server.should_exit = True
        self._thread.join(grace + 5)
        self._door.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=512, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
        )
    except OSError as error:
        text = f"cannot listen on {host} port {port} ({error.strerror}): choose another port, or stop what has it"
        raise RadmeshError("PORT_IN_USE", text) from error
