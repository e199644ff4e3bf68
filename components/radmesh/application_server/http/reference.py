"""docs/reference/http.md, made from the table of routes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from radmesh.application_server.config import Http, Section
from radmesh.application_server.http.routes import Route
from radmesh.application_server.http.server import HEAD_BYTES, HEADERS_MOST
from radmesh.application_server.module import ApplicationServer
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.context import Context
from radmesh.runtime.lifecycle import Status
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.security import Credentials

_OTHERS: Final = ("archive-server", "connectivity-manager-0", "database-server", "network-gateway")
_HEAD: Final = f"""\
# HTTP

Made by `make docs` from the table of routes, which the door enforces. `ready.json` says where it is (`urls.http`).
Beyond loopback it speaks TLS alone, with the certificate of the cluster's own authority (`ca_certificate` in
`ready.json`) or one that `[http]` names; `--insecure-http` is for a proxy in front that ends TLS, whose address
belongs under `[http] proxies`.

**Who calls.** `POST /api/v1/session` with `{{"user", "password"}}` answers with a cookie for browsers, and with
`"token": true` with a token too, which goes into `Authorization: Bearer …`. Without either a request gets 401,
without the right to it 403; a change of role is in force within 5 s. `*` = every role but none. With the cookie,
what changes something has to come from a page of the same server: `Origin` must be `Host`.

**Errors** are `application/problem+json` (RFC 9457) with `status`, `detail`, `reason` and `remedy`;
[errors](../errors.md) lists the reasons. 429 and 503 carry `Retry-After`.

**JSON.** Names are those of the [protos](../../protos/radmesh/api); states are short (`HELD`), times RFC 3339,
digests hexadecimal. A list gives `next_cursor`, which goes into `cursor`; empty = that was all. Bodies are
`application/json`; unknown parameters and fields are errors.

**Bounds.** A request has at most {HEADERS_MOST} headers, {HEAD_BYTES >> 10} KiB before its body, and seconds to
arrive; bodies, requests at one time and connections are bounded too (`[http]` in [the configuration](config.md)).

| method | path | who | what |
| --- | --- | --- | --- |
"""


def routes() -> Sequence[Route]:
    """Return every route, of a server that is wired and never started."""
    clock = SystemClock()
    instance = "application-server"
    context = Context(
        component=instance,
        instance=instance,
        data=Path(),
        clock=clock,
        log=Logger(instance, instance, io.StringIO()),
        metrics=Metrics(),
        status=Status(clock),
        credentials=Credentials(Path(), instance),
        listen="127.0.0.1:0",
        addresses=dict.fromkeys(_OTHERS, "unix:nowhere"),
    )
    return ApplicationServer(Section(port=0), context, Http(port=0)).routes


def document() -> str:
    """Return the page."""
    rows = sorted(routes(), key=lambda route: (route.path, route.method))
    return _HEAD + "".join(f"| {r.method} | `{r.path}` | {', '.join(r.roles)} | {r.doc} |\n" for r in rows)
