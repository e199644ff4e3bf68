"""What no honest client sends, and clients that take their time: each gets an answer that says what is wrong, or is
let go; others are served meanwhile, and nothing grows."""

import json
import socket
import threading

import pytest
from cluster_support import run
from depth import examples
from http_support import PASSWORD, HttpDoor, People, everything
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_support import rss_anon
from waiting import wait_for

from radmesh.application_server.http import app, server

SESSION = b"/api/v1/session"


def asked(door: HttpDoor, *pieces: bytes, end: bool = False) -> tuple[int, str]:
    """Status and reason of what is answered to raw bytes, the first of several answers; (0, "") if it is none.

    `end`: what is sent ends there; else the request has to say that its connection does.
    """
    with door.connect() as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            # The door has ended it already; what it said may still be there.
            pass
        return parsed(everything(connection))


def parsed(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        return 0, ""
    status = int(head.split(b" ")[1])
    return status, json.loads(body)["reason"] if b"problem+json" in head and body else ""


def alive(door: HttpDoor) -> None:
    assert asked(door, b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") == (200, "")


@pytest.fixture
def quickly(monkeypatch):
    """A door with the patience of a moment."""
    for name in ("_HEAD_SECONDS", "_BODY_SECONDS", "_DISCARD_SECONDS", "_STALL_SECONDS", "_KEEP_ALIVE_SECONDS"):
        monkeypatch.setattr(server, name, 0.5)
    monkeypatch.setattr(server, "_TICK_SECONDS", 0.1)


# -- heads


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"A: " + b"x" * 40_000 + b"\r\n", (431, "HEADERS_TOO_LARGE")),
        (b"".join(b"A%d: x\r\n" % n for n in range(120)), (431, "HEADERS_TOO_LARGE")),
        (b"Cookie: " + b"radmesh_session=a; " * 1500 + b"\r\n", (401, "SESSION_EXPIRED")),
        (b"Authorization: Bearer " + b"x" * 30_000 + b"\r\n", (401, "SESSION_EXPIRED")),
        (b"Authorization: Bearer \xff\xfe\r\n", (401, "SESSION_EXPIRED")),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", (400, "FIELD_INVALID")),
        (b"Content-Length: -1\r\n", (400, "FIELD_INVALID")),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", (400, "FIELD_INVALID")),
        (b"No colon\r\n", (400, "FIELD_INVALID")),
        (b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n", (401, "SESSION_EXPIRED")),
    ],
)
def test_headers(door, head, expected):
    assert asked(door, b"GET /api/v1/studies HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + head + b"\r\n") == expected
    alive(door)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET /" + b"a" * 50_000 + b" HTTP/1.1", (431, "HEADERS_TOO_LARGE")),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", (404, "PATH_UNKNOWN")),
        (b"GET /../../etc/passwd HTTP/1.1", (404, "PATH_UNKNOWN")),
        (b"GET /api/v1/studies/%00 HTTP/1.1", (401, "SESSION_EXPIRED")),
        (b"GET /api/v1/studies/%ff%fe HTTP/1.1", (401, "SESSION_EXPIRED")),
        (b"GET //api/v1/studies HTTP/1.1", (404, "PATH_UNKNOWN")),
        (b"GET http://elsewhere.example/api/v1/studies HTTP/1.1", (401, "SESSION_EXPIRED")),
        (b"CONNECT elsewhere.example:443 HTTP/1.1", (400, "FIELD_INVALID")),
        (b"OPTIONS * HTTP/1.1", (404, "PATH_UNKNOWN")),
        (b"TRACE /api/v1/session HTTP/1.1", (405, "METHOD_NOT_ALLOWED")),
        (b"BREW /api/v1/session HTTP/1.1", (400, "FIELD_INVALID")),
        (b"GET /api/v1/session HTTP/3.0", (400, "FIELD_INVALID")),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400, "FIELD_INVALID")),
        (b"\x00" * 100, (400, "FIELD_INVALID")),
    ],
)
def test_request_lines(door, line, expected):
    assert asked(door, line + b"\r\nHost: a\r\nConnection: close\r\n\r\n") == expected
    alive(door)


def test_a_head_without_an_end_is_not_kept(door):
    before = rss_anon()
    pieces = [b"GET / HTTP/1.1\r\nA: "] + [b"x" * 65_536] * 1000
    assert asked(door, *pieces)[0] in (0, 431)
    assert rss_anon() - before < 32 << 20


@settings(max_examples=examples(150))
@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"", b"GET / HTTP/1.1\r\n", b"POST /api/v1/session HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n"]
    ),
)
def test_whatever_comes_it_lives(door, data, before):
    # None: it waits for more, and is told so by the end of what is sent.
    assert asked(door, before + data, end=True)[0] in (0, 200, 303, 400, 401, 404, 405, 415, 431)
    alive(door)


# -- bodies


def post(path: bytes, body: bytes, kind: bytes = b"application/json", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        path,
        kind,
        size,
        body,
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "FIELD_INVALID")),
        (b"", (400, "FIELD_INVALID")),
        (b"[]", (400, "FIELD_INVALID")),
        (b"null", (400, "FIELD_INVALID")),
        (b'{"user": 1, "password": "b"}', (400, "FIELD_INVALID")),
        (b'{"user": "a", "password": NaN}', (400, "FIELD_INVALID")),
        (b'{"user": "\xff", "password": "b"}', (400, "FIELD_INVALID")),
        (b'{"user": "\\ud800", "password": "b"}', (400, "FIELD_INVALID")),
        (b"[" * 8000, (400, "FIELD_INVALID")),
        (b'{"a":' * 1500, (400, "FIELD_INVALID")),
        (b'{"user": ' + b"9" * 6000 + b"}", (400, "FIELD_INVALID")),
        (b" " * 10_000, (413, "MESSAGE_TOO_LARGE")),
    ],
)
def test_bodies(door, body, expected):
    assert asked(door, post(SESSION, body)) == expected


@pytest.mark.parametrize(
    "kind",
    [
        b"text/plain",
        b"multipart/form-data; boundary=a",
        b"application/x-www-form-urlencoded",
        b"application/jsonp",
        b"",
    ],
)
def test_bodies_of_other_types(door, kind):
    assert asked(door, post(SESSION, b"{}", kind)) == (415, "MEDIA_TYPE_UNSUPPORTED")


def test_a_huge_body_is_refused_before_it_comes_and_thrown_away_if_it_does(door):
    before = rss_anon()
    assert asked(door, post(SESSION, b"{", length=10 << 30)) == (413, "MESSAGE_TOO_LARGE")
    pieces = [post(SESSION, b"", length=1 << 30)] + [b"x" * (1 << 20)] * 200
    assert asked(door, *pieces) in ((413, "MESSAGE_TOO_LARGE"), (0, ""))
    chunked = b"POST /api/v1/session HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    chunked += b"Transfer-Encoding: chunked\r\n\r\n"
    pieces = [chunked] + [b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"] * 200
    assert asked(door, *pieces) in ((413, "MESSAGE_TOO_LARGE"), (0, ""))
    assert rss_anon() - before < 64 << 20


def test_a_trailer_is_no_header(door, visitors):
    request = (
        b"POST /api/v1/session HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\nTrailer: authorization\r\n\r\n2\r\n{}\r\n0\r\n"
        + f"Authorization: Bearer {visitors.tokens['radiologist']}\r\n\r\n".encode()
    )
    assert asked(door, request) == (400, "FIELD_INVALID")
    request = request.replace(b"POST /api/v1/session", b"POST /api/v1/studies/1.2/reports")
    assert asked(door, request) == (401, "SESSION_EXPIRED")


def test_reports_that_are_too_long(visitors):
    def saved(text: str) -> tuple[int, str]:
        answer = visitors["radiologist"].post("/api/v1/studies/1.2/reports", json={"text": text})
        return answer.status_code, answer.json()["reason"]

    assert saved("\u20ac" * 800_000) == (413, "MESSAGE_TOO_LARGE")
    assert saved("a" * (256 << 10)) == (404, "STUDY_NOT_FOUND")


# -- parameters


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=-1", "limit=1001", "limit=abc", "limit=%D9%A1", "limit=" + "9" * 500, "limit=1&limit=2",
        "cursor=abc", "cursor=" + "A" * 3000, "cursor=:x", "cursor=patient_name:x", "text=a&cursor=verification:x",
        "cursor=WyJhIiwgWzEsIDJdXQ==", "study_date=2026", "study_date=20260101-2026", "study_date=a-b",
        "verification=MAYBE", "reading=UNSPECIFIED", "acquisition=1", "patient_name=%00", "patient_name=%FF",
        "patient_name=" + "x" * 1100, "unknown=1", "text=a&patient_id=b", "&".join(["modality=CT"] * 300),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be(visitors, query):
    answer = visitors["radiologist"].get(f"/api/v1/studies?{query}")
    assert (answer.status_code, answer.json()["reason"]) == (400, "FIELD_INVALID"), answer.text


@pytest.mark.parametrize(
    "uid", ["1..2", "abc", "1.2.3.", "1" * 65, "01.2", "1.2%2F3", "%2e%2e", "'; DROP TABLE studies"]
)
def test_uids_that_are_none(visitors, uid):
    for path in ("", "/history", "/reports"):
        answer = visitors["radiologist"].get(f"/api/v1/studies/{uid}{path}")
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["reason"] in ("FIELD_INVALID", "PATH_UNKNOWN", "STUDY_NOT_FOUND")


@settings(max_examples=examples(60))
@given(st.text(max_size=60), st.sampled_from(["text", "patient_name", "cursor", "study_date", "modality"]))
def test_whatever_is_asked_it_is_answered(visitors, value, name):
    answer = visitors["radiologist"].get("/api/v1/studies", params={name: value})
    assert answer.status_code in (200, 400), answer.text


# -- clients that take their time


@pytest.fixture
def patient_door(quickly, tmp_path_factory):
    door = HttpDoor(tmp_path_factory.mktemp("patient"), max_connections=8)
    yield door
    door.close()


def test_a_head_that_trickles_is_given_up(patient_door):
    with patient_door.connect() as connection:
        stop = threading.Event()

        def trickle() -> None:
            for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000:
                if stop.wait(0.05):
                    return
                try:
                    connection.sendall(bytes((byte,)))
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        assert parsed(everything(connection)) == (408, "REQUEST_SLOW")
        stop.set()
        thread.join()


def test_a_body_that_does_not_come_is_given_up(patient_door):
    assert_ends(patient_door, post(SESSION, b"{", length=100), (408, "REQUEST_SLOW"))
    # One whose answer was given before, too.
    assert_ends(
        patient_door,
        post(SESSION, b"{", length=10 << 30).replace(b"Connection: close\r\n", b""),
        (413, "MESSAGE_TOO_LARGE"),
    )


def test_a_body_that_comes_for_ever_is_given_up(door, monkeypatch):
    monkeypatch.setattr(app, "_BODY_SECONDS", 0.5)
    assert_ends(door, post(SESSION, b"{", length=100), (408, "REQUEST_SLOW"))


def assert_ends(door: HttpDoor, data: bytes, expected: tuple[int, str]) -> None:
    with door.connect() as connection:
        connection.sendall(data)
        assert parsed(everything(connection)) == expected


def test_who_says_nothing_is_let_go(patient_door):
    with patient_door.connect() as silent, patient_door.connect() as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in idle.recv(4096)
        assert everything(silent) == b""


def test_who_does_not_read_is_let_go(patient_door):
    visitors = People(patient_door.url, patient_door.client("AccountService"))
    token = visitors.tokens["radiologist"].encode()
    ask = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + token + b"\r\n\r\n"
    with patient_door.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.2)
        with pytest.raises(OSError, match=r"timed out|reset|pipe"):
            while True:
                connection.sendall(ask * 100)
        open_now = patient_door.server._http._server.server_state.connections
        wait_for(lambda: not open_now)
    visitors.close()


def test_more_connections_than_the_limit(patient_door, monkeypatch):
    monkeypatch.setattr(server, "_KEEP_ALIVE_SECONDS", 60)
    monkeypatch.setattr(server, "_HEAD_SECONDS", 60)
    idle = []
    for _ in range(20):
        connection = patient_door.connect()
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in connection.recv(4096)
        idle.append(connection)
    # Those that were idle longest have made room; the newest goes on.
    assert everything(idle[0]) == b""
    idle[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"200 OK" in idle[-1].recv(4096)
    for connection in idle:
        connection.close()
    busy = []

    def refused() -> bool:
        # One that is in the middle of a request is no idle one.
        connection = patient_door.connect()
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHos")
        connection.settimeout(0.2 + 0.01 * len(busy))
        busy.append(connection)
        try:
            return parsed(everything(connection)) == (429, "TOO_MANY_CALLS")
        except TimeoutError:
            return False

    wait_for(refused)
    for connection in busy:
        connection.close()
    wait_for(lambda: asked(patient_door, b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")[0] == 200)


def test_more_requests_than_the_limit_are_asked_to_come_back(tmp_path_factory, monkeypatch):
    door = HttpDoor(tmp_path_factory.mktemp("narrow"), max_requests=4)
    try:
        busy = [door.connect() for _ in range(4)]
        for connection in busy:
            # Each waits for a body: it runs.
            connection.sendall(post(SESSION, b"{", length=100))
        wait_for(lambda: door.server._http.door._running == 4)
        assert asked(door, b"GET /login HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") == (429, "TOO_MANY_CALLS")
        alive(door)
        for connection in busy:
            connection.close()
        wait_for(lambda: door.server._http.door._running == 0)
        assert asked(door, b"GET /api/v1/studies HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")[0] == 401
    finally:
        door.close()


# -- what is behind the door fails


def test_a_database_that_is_down_is_503_and_comes_back(tmp_path_factory):
    door = HttpDoor(tmp_path_factory.mktemp("down"))
    visitors = People(door.url, door.client("AccountService"))
    try:
        rita = visitors["radiologist"]
        assert rita.get("/api/v1/studies").status_code == 200
        door.components.stop("database-server", 0.5)
        answer = wait_for(lambda: (a := rita.get("/api/v1/studies")).status_code != 200 and a)
        assert (answer.status_code, answer.json()["reason"]) == (503, "PEER_UNAVAILABLE")
        assert int(answer.headers["retry-after"]) >= 1
        signing = visitors.anonymous().post("/api/v1/session", json={"user": "radiologist", "password": PASSWORD})
        assert signing.status_code == 503
        for path in ("/healthz", "/readyz", "/login"):
            assert visitors.anonymous().get(path).status_code == 200, path
        door.components.database()
        wait_for(lambda: rita.get("/api/v1/studies").status_code == 200, 20)
    finally:
        visitors.close()
        door.close()


def test_a_defect_is_500_with_an_incident_and_without_words(door, visitors, monkeypatch):
    # Not in the line that raises: a stack quotes that.
    secret = "Verysecret"

    def broken(_request, _call):
        raise ZeroDivisionError(secret)

    monkeypatch.setattr(door.server._http.door.administration, "GetClusterStatus", broken)
    answer = visitors["radiologist"].get("/api/v1/status")
    assert (answer.status_code, answer.json()["reason"]) == (500, "INTERNAL")
    assert answer.json()["incident"] in door.log.read_text()
    assert secret not in answer.text + door.log.read_text()


def test_settings_that_contradict_are_named(tmp_path):
    file = tmp_path / "radmesh.toml"
    file.write_text(f'[http]\nkey = "{file}"\nproxies = ["nowhere"]\nport = 70000\n')
    problems = run("config", "check", file, "--json").json["problems"]
    assert {problem["key"] for problem in problems} == {"http.proxies", "http.port"}
    file.write_text(f'[http]\nkey = "{file}"\n')
    (problem,) = run("config", "check", file, "--json").json["problems"]
    assert (problem["key"], problem["rule"]) == ("http.certificate", "certificate and key are given together")
