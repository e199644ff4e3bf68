"""Errors as HTTP answers: application/problem+json (RFC 9457), with the reason that every protocol has."""

import json
import math
from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from radmesh.runtime.errors import RadmeshError

MEDIA_TYPE: Final = "application/problem+json"
_RETRY_STATUSES: Final = (429, 503)


def problem(error: RadmeshError) -> Response:
    """Return the answer that says what an error is: its status, reason, cause and remedy."""
    definition = error.definition
    body = {
        "title": phrase(definition.http_status),
        "status": definition.http_status,
        "detail": error.message,
        "reason": error.reason,
        "remedy": definition.remedy,
        **{key: value for key, value in error.metadata.items() if key not in _OWN},
    }
    headers = {"Cache-Control": "no-store"}
    if definition.http_status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="radmesh"'
    if "allow" in error.metadata:
        headers["Allow"] = error.metadata["allow"]
    if "retry_after_ms" in error.metadata or definition.http_status in _RETRY_STATUSES:
        headers["Retry-After"] = str(retry_after(error))
    return Response(json.dumps(body), definition.http_status, headers, MEDIA_TYPE)


_OWN: Final = ("title", "status", "detail", "reason", "remedy", "type", "instance")


def retry_after(error: RadmeshError) -> int:
    """Return the whole seconds after which to try again."""
    try:
        return max(1, min(3600, math.ceil(int(error.metadata.get("retry_after_ms", 1000)) / 1000)))
    except ValueError:
        return 1


def phrase(status: int) -> str:
    """Return the standard's words for a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Error"
