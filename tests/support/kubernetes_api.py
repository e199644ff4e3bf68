"""The Secrets part of Kubernetes' API, over HTTPS, with versions, conflicts and the answers of a server in trouble.

`tests/mesh/test_certificates.py` runs the same against a real API server where RADMESH_TEST_KUBERNETES names one.
"""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from radmesh.runtime.clock import SystemClock
from radmesh.runtime.security import Authority

NAMESPACE = "radmesh"


class KubernetesApi:
    """Secrets in memory. `account` is what a pod of it finds as its service account."""

    def __init__(self, folder: Path) -> None:
        self.account = folder / "account"
        self.account.mkdir(parents=True)
        Authority(folder / "tls", SystemClock()).issue(["api"])
        (self.account / "ca.crt").write_bytes((folder / "tls/ca.pem").read_bytes())
        (self.account / "namespace").write_text(NAMESPACE)
        self.token = "first"
        (self.account / "token").write_text(self.token)
        self.secrets: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, tuple[int, bytes]] = {}
        """Name of a Secret -> status and body that every write of it is answered with."""
        self.answer: tuple[int, bytes] | None = None
        """What everything is answered with."""
        self._lock = threading.Lock()
        self._revision = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = api.respond(self.command, self.path, self.headers["Authorization"], body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None:
                pass

        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "tls/api.pem", folder / "tls/api.key")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.host, self.port = "127.0.0.1", int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def respond(self, method: str, path: str, authorization: str, body: bytes) -> tuple[int, bytes]:
        base, _, name = path.removeprefix("/api/v1/namespaces/").partition("/secrets")
        if self.answer is not None:
            return self.answer
        if authorization != f"Bearer {self.token}" or base != NAMESPACE:
            return (401 if base == NAMESPACE else 403), b'{"kind": "Status"}'
        with self._lock:
            return self._write(method, json.loads(body)) if body else self._read(method, name.removeprefix("/"))

    def _read(self, method: str, name: str) -> tuple[int, bytes]:
        if name not in self.secrets:
            return 404, b"{}"
        return 200, json.dumps(self.secrets.pop(name) if method == "DELETE" else self.secrets[name]).encode()

    def _write(self, method: str, document: dict[str, Any]) -> tuple[int, bytes]:
        name, version = document["metadata"]["name"], document["metadata"].get("resourceVersion")
        known = self.secrets.get(name)
        if name in self.refused:
            return self.refused[name]
        if known is None and method == "PUT":
            return 404, b"{}"
        if known is not None and (method == "POST" or version != known["metadata"]["resourceVersion"]):
            return 409, b"{}"
        self._revision += 1
        document["metadata"]["resourceVersion"] = str(self._revision)
        self.secrets[name] = document
        return 201 if method == "POST" else 200, json.dumps(document).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
