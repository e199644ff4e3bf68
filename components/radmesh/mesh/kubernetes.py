"""Secrets of Kubernetes, as a pod with a service account reads and writes them: its API over HTTPS, nothing more."""

import base64
import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from radmesh.runtime.errors import RadmeshError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABELS: Final = {"app.kubernetes.io/managed-by": "radmesh", "app.kubernetes.io/part-of": "radmesh"}
_SECONDS: Final = 10.0
# A Secret holds 1 MiB at most, a third more in base64.
_MOST_BYTES: Final = 4 << 20


class ConflictError(Exception):
    """Somebody else has written the Secret since it was read."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A Secret. `kept` is what the API said of it beside its data; empty = it is not there yet."""

    name: str
    data: Mapping[str, bytes]
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether radmesh made it."""
        labels = self.kept.get("metadata", {}).get("labels") or {}
        return not self.kept or labels.items() >= LABELS.items()


class Secrets:
    """The Secrets of one namespace. `account` is the folder of the service account: token, ca.crt, namespace."""

    def __init__(self, host: str, port: int, account: Path) -> None:
        self._host, self._port, self._account = host, port, account
        try:
            self.namespace = (account / "namespace").read_text().strip()
            self._tls = ssl.create_default_context(cafile=account / "ca.crt")
        except OSError as error:
            raise RadmeshError(
                "FILE_UNREADABLE",
                f"cannot read the service account in {account} ({error.strerror}): run this in a pod that mounts one",
            ) from error

    @classmethod
    def of_this_pod(cls) -> "Secrets":
        """Return those of the namespace that this pod is in.

        Raises:
            RadmeshError: FILE_UNREADABLE: this is no pod, or it has no service account.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not port.isdecimal():
            raise RadmeshError(
                "FILE_UNREADABLE", "KUBERNETES_SERVICE_HOST and _PORT name no API server: run this in a pod"
            )
        return cls(host, int(port), ACCOUNT)

    def get(self, name: str) -> Secret:
        """Return a Secret; one that is not there is empty.

        Raises:
            RadmeshError: SECRETS_REFUSED, PEER_UNAVAILABLE.
        """
        found = self._call("GET", f"/{name}")
        if found is None:
            return Secret(name, {})
        data = found.pop("data", None) or {}
        return Secret(name, {key: base64.b64decode(value) for key, value in data.items()}, found)

    def put(self, secret: Secret, data: Mapping[str, bytes]) -> None:
        """Make `secret`, as it was read, hold `data` and nothing else.

        Raises:
            ConflictError: it was written or removed meanwhile: read it again.
            RadmeshError: SECRETS_REFUSED, PEER_UNAVAILABLE.
        """
        document = {
            **secret.kept,
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": secret.kept.get("metadata") or {"name": secret.name, "labels": LABELS},
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }
        # What was read is replaced in that version only: the API server compares resourceVersion.
        method, path = ("PUT", f"/{secret.name}") if secret.kept else ("POST", "")
        if self._call(method, path, document) is None:
            raise ConflictError

    def _call(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the answer; None if there is no such Secret."""
        path = f"/api/v1/namespaces/{self.namespace}/secrets{path}"
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=_SECONDS, context=self._tls)
        try:
            # Tokens are replaced while a pod runs.
            headers = {"Authorization": f"Bearer {(self._account / 'token').read_text().strip()}"}
            body = None
            if document is not None:
                body, headers["Content-Type"] = json.dumps(document), "application/json"
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read(_MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            where = f"{self._host}:{self._port}"
            raise RadmeshError(
                "PEER_UNAVAILABLE", f"the API server at {where} does not answer ({type(error).__name__})"
            ) from error
        finally:
            connection.close()
        if answer.status == http.HTTPStatus.NOT_FOUND and method != "POST":
            return None
        if answer.status == http.HTTPStatus.CONFLICT:
            raise ConflictError
        if answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR or answer.status == http.HTTPStatus.TOO_MANY_REQUESTS:
            raise RadmeshError("PEER_UNAVAILABLE", f"the API server answered {answer.status} {answer.reason}")
        if answer.status not in (http.HTTPStatus.OK, http.HTTPStatus.CREATED):
            raise RadmeshError(
                "SECRETS_REFUSED",
                f"the API server answered {answer.status} {answer.reason} to {method} {path}",
                metadata={"status": str(answer.status)},
            )
        try:
            parsed = json.loads(content)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise RadmeshError("PEER_UNAVAILABLE", "what answers in the API server's place is none")
        return parsed
