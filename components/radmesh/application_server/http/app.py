"""The door itself: who calls, whether they may, what they are told when something is wrong."""

import asyncio
import functools
import gzip
import ipaddress
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import RedirectResponse, Response

from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.audit import Audit
from radmesh.application_server.config import Http
from radmesh.application_server.http.joined import Joined
from radmesh.application_server.http.problems import problem
from radmesh.application_server.http.routes import Route, Router, Scope
from radmesh.application_server.ris import RisService, may_reconcile
from radmesh.application_server.service import AdministrationService, SessionService, StudyService
from radmesh.application_server.sessions import SessionCache
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call, Person

Message = MutableMapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Message], Any]
Answer = TypeVar("Answer")

COOKIE: Final = "radmesh_session"
PROBES: Final = ("/healthz", "/readyz")
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
_LONGEST_TOKEN: Final = 256
# Who may see what, and as what it is shown, is asked again after this: a change is in force within 5 s (AS1).
_KEEP_SECONDS: Final = 2.5
_MOST_STUDIES: Final = 1000
_BODY_SECONDS: Final = 30.0
_COMPRESS_FROM: Final = 1400
JSON_MOST: Final = 64 << 10
_API_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""The Content-Security-Policy of pages: no inline script or style, WebAssembly for the decoder."""
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Request(StarletteRequest):
    """A request whose caller is known and may make it."""

    @property
    def call(self) -> Call:
        """The call, as the services of the gRPC door take it."""
        return call_of(self.scope)

    @property
    def person(self) -> Person:
        """Who calls; only of routes that need a session."""
        person = self.call.person
        assert person is not None
        return person

    async def bounded_body(self, most: int) -> bytes:
        """Return the body.

        Raises:
            RadmeshError: MESSAGE_TOO_LARGE, REQUEST_SLOW.
        """
        declared = self.headers.get("content-length", "")
        body = bytearray()
        try:
            if declared.isdecimal() and int(declared) > most:
                raise RadmeshError("MESSAGE_TOO_LARGE", f"the body has at most {most} bytes here")
            async with asyncio.timeout(_BODY_SECONDS):
                async for piece in self.stream():
                    body += piece
                    if len(body) > most:
                        raise RadmeshError("MESSAGE_TOO_LARGE", f"the body has at most {most} bytes here")
        except TimeoutError:
            raise RadmeshError("REQUEST_SLOW", f"the body did not come within {_BODY_SECONDS:.0f} s") from None
        return bytes(body)

    async def fields(self, most: int = JSON_MOST) -> dict[str, Any]:
        """Return the JSON object that the body is; an empty body is an empty object.

        Raises:
            RadmeshError: MEDIA_TYPE_UNSUPPORTED, MESSAGE_TOO_LARGE, REQUEST_SLOW, FIELD_INVALID.
        """
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await self.bounded_body(most)
        if not body and not kind:
            return {}
        # A form of another site can send other types, and not this one.
        if kind != "application/json":
            raise RadmeshError("MEDIA_TYPE_UNSUPPORTED", "the body must be application/json")
        try:
            fields = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise RadmeshError("FIELD_INVALID", "the body is no JSON in UTF-8") from None
        if not isinstance(fields, dict):
            raise RadmeshError("FIELD_INVALID", "the body must be a JSON object")
        return fields


def _no_number(name: str) -> Any:
    raise ValueError(name)


class _Exchange:
    """What `Call` asks of gRPC's context, of an HTTP request."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def peer(self) -> str:
        host = (self._scope.get("client") or ("", 0))[0]
        if not host:
            return ""
        return f"ipv6:[{host}]:0" if ":" in host else f"ipv4:{host}:0"

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._scope["headers"])

    def is_active(self) -> bool:
        return True

    def time_remaining(self) -> float | None:
        return None

    def add_callback(self, _function: Callable[[], None]) -> bool:
        return False


def call_of(scope: Scope) -> Call:
    """Return the call of a request that the door let in."""
    return cast("Call", scope["radmesh.call"])


def header(scope: Scope, name: bytes) -> str:
    """Return a header of a request; the first, if it is there twice."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def token_of(scope: Scope) -> tuple[str, bool]:
    """Return the session's token ("" = none), and whether a cookie brought it."""
    authorization = header(scope, b"authorization")
    if authorization:
        kind, _, token = authorization.partition(" ")
        return (token.strip() if kind.lower() == "bearer" else ""), False
    for name, value in scope["headers"]:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, token = pair.strip().partition("=")
                if key == COOKIE:
                    return token, True
    return "", False


def check_origin(scope: Scope, *, required: bool) -> None:
    """Return if the request comes from a page of this server: a cookie alone does not say so.

    Raises:
        RadmeshError: ORIGIN_REFUSED.
    """
    origin, host = header(scope, b"origin"), header(scope, b"host")
    if not origin and not required:
        return
    if not host or origin.partition("://")[2] != host:
        raise RadmeshError(
            "ORIGIN_REFUSED", "with a cookie, changes are taken from this server's own pages only: Origin must be Host"
        )


class Door:
    """An ASGI application; the services behind it are those of the gRPC door, with the same eyes, rights and audit."""

    def __init__(
        self,
        config: Http,
        context: Context,
        *,
        sessions: SessionCache,
        audit: Audit,
        session_service: SessionService,
        study_service: StudyService,
        ris_service: RisService,
        administration: AdministrationService,
        stubs: "dict[str, Any]",
    ) -> None:
        """Wire.

        Args:
            config: the settings.
            context: of the component.
            sessions: who a token belongs to.
            audit: where accesses are written.
            session_service: of the gRPC door, as the others.
            study_service: studies and instances.
            ris_service: holds, orders, reports.
            administration: users, audit, the cluster's status.
            stubs: blocking calls of the Database Server, by service: "QueryService", "StudyService", …
        """
        self.config = config
        self.context = context
        self._log = context.log
        self.sessions = sessions
        self.audit = audit
        self.session_service = session_service
        self.study_service = study_service
        self.ris_service = ris_service
        self.administration = administration
        self.stubs = stubs
        self.draining = False
        self._proxies = [ipaddress.ip_network(proxy, strict=False) for proxy in config.proxies]
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="http")
        self._running = 0
        self._seen: OrderedDict[tuple[bool, str], tuple[float, database_pb2.StudyDetail]] = OrderedDict()
        self._seconds = context.metrics.histogram("radmesh_http_seconds")
        self._timer = functools.cache(lambda path, status: self._seconds.labels(path, str(status)))
        self._router = Router(())
        self.joined = Joined()
        """Questions that several have at the same time."""

    def mount(self, routes: Iterable[Route]) -> None:
        """Serve more routes."""
        self._router = Router((*self._router.routes, *routes))

    @property
    def routes(self) -> Sequence[Route]:
        """Everything that is served."""
        return self._router.routes

    # -- for handlers -------------------------------------------------------------------------------------------------

    async def run(self, function: Callable[..., Answer], *arguments: Any, **named: Any) -> Answer:
        """Call what blocks, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(function, *arguments, **named))

    async def answer(self, request: Request, content: Any) -> Response:
        """Return an answer in JSON; a long one is compressed for who accepts gzip."""
        return _written(await self.run(encoded, content, compressed=_takes_gzip(request)))

    async def answer_query(self, request: Request, key: Hashable, find: Callable[[], Any]) -> Response:
        """Return what a blocking `find` finds, as `answer`; asked once for all who ask for `key` at the same time."""
        compressed = _takes_gzip(request)
        found = await self.joined.get(
            (key, compressed), lambda: self.run(lambda: encoded(find(), compressed=compressed))
        )
        return _written(found)

    async def note_query(self, call: Call, question: str) -> None:
        """Write a query for studies into the audit, once a minute for the same session and question.

        Raises:
            RadmeshError: it cannot be written: nothing may be answered.
        """
        if not self.audit.knows_query("STUDY_QUERY", call, question):
            await self.run(self.audit.asked, "STUDY_QUERY", call, question)

    async def study(
        self, call: Call, study_instance_uid: str, action: str = "STUDY_SHOW", *, fresh: bool = False
    ) -> database_pb2.StudyDetail:
        """Return a study as the caller may see it, which is audited; asked again after 2.5 s, audited after a minute.

        `fresh`: asked anew, as for who was told that it changed.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, also for one that is held, without the right `reconcile`.
        """
        person = call.person
        assert person is not None
        key = (may_reconcile(person), study_instance_uid)
        now = time.monotonic()
        known = self._seen.get(key)
        if known is not None and now - known[0] < _KEEP_SECONDS and not fresh:
            if not self.audit.knows(action, call, study_instance_uid):
                await self.run(self.audit.access, action, call, study_instance_uid)
            return known[1]
        request = database_pb2.GetStudyRequest(study_instance_uid=study_instance_uid, include_held=key[0])
        detail: database_pb2.StudyDetail = await self.run(
            self.audit.seen, action, call, study_instance_uid, lambda: self.stubs["QueryService"].GetStudy(request)
        )
        self._seen[key] = (now, detail)
        self._seen.move_to_end(key)
        while len(self._seen) > _MOST_STUDIES:
            self._seen.popitem(last=False)
        return detail

    async def authenticate(self, scope: Scope) -> Person:
        """Return who calls.

        Raises:
            RadmeshError: SESSION_EXPIRED; ORIGIN_REFUSED; the database does not answer.
        """
        token, cookie = token_of(scope)
        if not token or len(token) > _LONGEST_TOKEN:
            raise RadmeshError("SESSION_EXPIRED", "sign in first")
        if cookie and scope["method"] not in SAFE_METHODS:
            check_origin(scope, required=True)
        known = self.sessions.known(token)
        return known if known is not None else await self.run(self.sessions.get, token)

    # -- ASGI ---------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        if self._proxies:
            self._forwarded(scope)
        status = 0
        route: Route | None = None
        response: Response
        running = 1
        self._running += 1

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _secured(tuple(message.get("headers", ())), page=route is not None and route.page)
            await send(message)

        try:
            try:
                route, scope["path_params"] = self._router.find(scope["method"], scope["path"])
                await self._admit(scope, route)
                if route.lasting:
                    running = 0
                    self._running -= 1
                if route.raw:
                    await route.handler(scope, receive, answer)
                else:
                    response = await route.handler(Request(scope, receive, answer))
                    await response(scope, receive, answer)
            except ClientDisconnect:
                return
            except Exception as error:  # noqa: BLE001 - mapped to an answer
                failure = self._failure(error, scope, route)
                if status:
                    # What was begun cannot be taken back: the connection ends before its promised end.
                    raise ConnectionAbortedError from None
                if route is not None and route.page and failure.reason == "SESSION_EXPIRED":
                    to = quote(scope["path"], safe="/")
                    response = RedirectResponse(f"/login?to={to}", 303)
                else:
                    response = problem(failure)
                await response(scope, receive, answer)
        finally:
            self._running -= running
            self._observe(scope, route, status, time.perf_counter() - started)

    def _forwarded(self, scope: Scope) -> None:
        """Note who called, and how, where a proxy of ours says so: from the right, the first that is none of ours."""
        hops = [(scope.get("client") or ("", 0))[0]]
        # A header that is there twice is one list (RFC 9110 5.3): what a client wrote itself stands before the rest.
        values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        hops += [hop.strip() for hop in reversed(",".join(values).split(",")) if hop.strip()]
        for index, hop in enumerate(hops):
            try:
                address = ipaddress.ip_address(hop)
            except ValueError:
                return
            scope["client"] = (str(address), 0)
            if not any(address in network for network in self._proxies):
                return
            if index == 0 and header(scope, b"x-forwarded-proto") == "https":
                scope["scheme"] = "https"

    async def _admit(self, scope: Scope, route: Route) -> None:
        probe = route.path in PROBES
        if self.draining and not probe:
            raise RadmeshError("DRAINING", "this server is being stopped")
        if self._running > self.config.max_requests and not probe:
            raise RadmeshError(
                "TOO_MANY_CALLS",
                f"{self.config.max_requests} requests are running: try again later",
                metadata={"retry_after_ms": "1000"},
            )
        person = None
        if "anonymous" not in route.roles:
            try:
                person = await self.authenticate(scope)
            except RadmeshError as error:
                # A page is the same for everybody; it says itself that its data cannot be had.
                if not (route.page and error.transient):
                    raise
        call = scope["radmesh.call"] = Call("", "", person, cast("Any", _Exchange(scope)))
        if person is not None and not route.admits(person.role):
            await self.run(self.audit.refused, call, f"{route.method} {route.path}")
            raise RadmeshError("ROLE_REFUSED", f"the role {person.role} may not {route.method} {route.path}")

    def _failure(self, error: Exception, scope: Scope, route: Route | None) -> RadmeshError:
        if isinstance(error, RadmeshError):
            return error
        incident = secrets.token_hex(4)
        path = route.path if route else ""
        self._log.exception("request failed", error, method=scope["method"], route=path, incident=incident)
        return RadmeshError("INTERNAL", f"incident {incident}", metadata={"incident": incident})

    def _observe(self, scope: Scope, route: Route | None, status: int, seconds: float) -> None:
        path = route.path if route else "none"
        if route is None or not route.lasting:
            self._timer(path, status or 499).observe(seconds)
        if status < 400 and scope["method"] in SAFE_METHODS and not self.config.access_log:
            return
        call: Call | None = scope.get("radmesh.call")
        # The route, never the path or the query: these name studies and patients.
        self._log.info(
            "request",
            method=scope["method"],
            route=path,
            status=status,
            user=call.person.name if call and call.person else "",
            peer=(scope.get("client") or ("",))[0],
            ms=round(seconds * 1000, 1),
        )

    def drain(self) -> None:
        """Take no new requests."""
        self.draining = True

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@functools.lru_cache(256)
def _accepts_gzip(accepted: str) -> bool:
    """Return what an Accept-Encoding says of gzip (RFC 9110 12.5.3)."""
    for item in accepted.lower().split(",") if accepted else ():
        coding, _, weight = item.replace(" ", "").partition(";q=")
        if coding == "gzip":
            return weight.strip("0.") != "" or not weight
    return False


def _takes_gzip(request: Request) -> bool:
    return _accepts_gzip(request.headers.get("accept-encoding", ""))


def _written(made: tuple[bytes, bool]) -> Response:
    body, compressed = made
    headers = {"Vary": "Accept-Encoding"}
    if compressed:
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers, media_type="application/json")


def encoded(content: Any, *, compressed: bool) -> tuple[bytes, bool]:
    """Return JSON, and whether it is compressed: it is not worth it for all."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    if compressed and len(body) > _COMPRESS_FROM:
        return gzip.compress(body, 1, mtime=0), True
    return body, False


@functools.lru_cache(4096)
def _secured(headers: tuple[tuple[bytes, bytes], ...], *, page: bool) -> tuple[tuple[bytes, bytes], ...]:
    made = [*headers, *_HEADERS]
    names = {name for name, _ in made}
    if b"content-security-policy" not in names:
        made.append((b"content-security-policy", (PAGE_POLICY if page else _API_POLICY).encode()))
    if b"cache-control" not in names:
        made.append((b"cache-control", b"no-store"))
    return tuple(made)


def parameter_problem(name: str, rule: str) -> RadmeshError:
    """Return the error of a parameter or field that cannot be used."""
    return RadmeshError("FIELD_INVALID", f"{name}: {rule}", metadata={"field": name})
