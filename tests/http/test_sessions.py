"""Signing in and out: cookies for browsers, tokens for programs, and who may use which from where."""

import json
from http.cookies import SimpleCookie

import httpx
import pytest
from http_support import PASSWORD, curl

from radmesh.api.database.v1 import database_pb2

SESSION = "/api/v1/session"


def sign_in(
    client: httpx.Client, user: str = "radiologist", password: str = PASSWORD, **more: object
) -> httpx.Response:
    return client.post(SESSION, json={"user": user, "password": password, **more})


def audited(door, action):
    found = door.client("AccountService").ListAudit(database_pb2.ListAuditRequest(action=action, page_size=5))
    return [(event.actor, event.outcome, event.source_address) for event in found.events]


def test_refusals_and_what_is_not_there_are_audited(door, visitors):
    """Once a minute for the same: who asks again and again fills nothing."""
    for _ in range(3):
        assert visitors["radiologist"].get("/api/v1/holds").status_code == 403
        assert visitors["radiologist"].get("/api/v1/studies/1.2.3").status_code == 404
        assert visitors["radiologist"].get("/api/v1/studies").status_code == 200
    assert [(actor, outcome) for actor, outcome, _ in audited(door, "ACCESS_REFUSED")] == [
        ("radiologist", "ROLE_REFUSED")
    ]
    assert [(actor, outcome) for actor, outcome, _ in audited(door, "STUDY_SHOW")] == [
        ("radiologist", "STUDY_NOT_FOUND")
    ]
    assert [(actor, outcome) for actor, outcome, _ in audited(door, "STUDY_QUERY")] == [("radiologist", "SUCCESS")]


def test_a_browser_gets_a_cookie_and_no_token(visitors):
    answer = sign_in(visitors.anonymous())
    assert answer.status_code == 200
    assert {**answer.json(), "expires": ""} == {
        "user": "radiologist",
        "display_name": "",
        "role": "radiologist",
        "expires": "",
    }
    cookie = SimpleCookie(answer.headers["set-cookie"])["radmesh_session"]
    assert (cookie["httponly"], cookie["samesite"].lower(), cookie["path"], cookie["domain"]) == (
        True,
        "strict",
        "/",
        "",
    )
    assert 0 < int(cookie["max-age"]) <= 86400
    # Without TLS a browser would never send it back.
    assert not cookie["secure"]


def test_a_cookie_and_a_bearer_token_say_who_it_is_until_signing_out(visitors):
    browser = visitors.browser("radiologist")
    assert browser.get(SESSION).json()["user"] == "radiologist"
    token = sign_in(visitors.anonymous(), token=True).json()["token"]
    program = visitors.anonymous()
    program.headers["authorization"] = f"Bearer {token}"
    assert program.get(SESSION).json()["role"] == "radiologist"
    for client in (browser, program):
        cookies = dict(client.cookies)
        gone = client.delete(SESSION)
        assert gone.status_code == 204
        client.cookies.update(cookies)
        again = client.get(SESSION)
        assert (again.status_code, again.json()["reason"]) == (401, "SESSION_EXPIRED")


def test_a_bearer_token_goes_before_a_cookie(visitors):
    browser = visitors.browser("radiologist")
    answer = browser.get(SESSION, headers={"authorization": f"Bearer {visitors.tokens['technologist']}"})
    assert answer.json()["user"] == "technologist"
    assert browser.get(SESSION, headers={"authorization": "Bearer nobody"}).status_code == 401
    assert browser.get(SESSION, headers={"authorization": "Basic YTpi"}).status_code == 401


def test_curl_keeps_the_cookie(door, visitors, tmp_path):
    jar = tmp_path / "jar"
    body = json.dumps({"user": "radiologist", "password": PASSWORD})
    curl("-c", jar, "--json", body, door.url + SESSION)
    assert json.loads(curl("-b", jar, door.url + SESSION))["user"] == "radiologist"
    assert json.loads(curl("-b", jar, "-X", "DELETE", door.url + SESSION))["reason"] == "ORIGIN_REFUSED"
    assert curl("-b", jar, "-X", "DELETE", "-H", f"Origin: {door.url}", door.url + SESSION) == ""
    assert json.loads(curl("-b", jar, door.url + SESSION))["reason"] == "SESSION_EXPIRED"


def test_a_wrong_password_is_401_and_in_the_audit_as_is_a_right_one(door, visitors):
    refused = sign_in(visitors.anonymous(), password="not this one at all")
    assert (refused.status_code, refused.json()["reason"]) == (401, "PASSWORD_WRONG")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert "set-cookie" not in refused.headers
    sign_in(visitors.anonymous())
    assert audited(door, "SIGN_IN")[:2] == [
        ("radiologist", "SUCCESS", "127.0.0.1"),
        ("radiologist", "PASSWORD_WRONG", "127.0.0.1"),
    ]


def test_who_tries_too_often_is_told_when_to_come_back(visitors):
    for _ in range(11):
        answer = sign_in(visitors.anonymous(), user="somebody", password="guess")
    assert (answer.status_code, answer.json()["reason"]) == (429, "TOO_MANY_ATTEMPTS")
    assert 0 < int(answer.headers["retry-after"]) <= 60


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", None])
def test_another_sites_page_changes_nothing_with_the_cookie(visitors, origin):
    browser = visitors.browser("radiologist")
    del browser.headers["origin"]
    answer = browser.delete(SESSION, headers={"origin": origin} if origin else {})
    assert (answer.status_code, answer.json()["reason"]) == (403, "ORIGIN_REFUSED")
    assert browser.get(SESSION).status_code == 200
    # A token is sent by who has it, from wherever.
    with_token = visitors["radiologist"].post(
        "/api/v1/studies/1.2/reports", json={"text": "a"}, headers={"origin": origin or ""}
    )
    assert with_token.json()["reason"] == "STUDY_NOT_FOUND"


def test_another_sites_page_signs_nobody_in(visitors):
    client = visitors.anonymous()
    client.headers["origin"] = "http://evil.example"
    assert sign_in(client).json()["reason"] == "ORIGIN_REFUSED"
    form = visitors.anonymous().post(SESSION, data={"user": "radiologist", "password": PASSWORD})
    assert (form.status_code, form.json()["reason"]) == (415, "MEDIA_TYPE_UNSUPPORTED")
    plain = visitors.anonymous().post(
        SESSION, content=b'{"user":"a","password":"b"}', headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 415


def test_every_answer_has_the_headers_that_browsers_heed(visitors):
    for path in (SESSION, "/healthz", "/nowhere", "/api/v1/studies"):
        headers = visitors["radiologist"].get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "'unsafe-inline'" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_the_log_names_neither_study_nor_patient(door, visitors):
    client = visitors["radiologist"]
    client.get("/api/v1/studies", params={"patient_name": "Verysecret^Name"})
    client.get("/api/v1/studies/1.2.3.4.5.6.7")
    client.post("/api/v1/studies/1.2.3.4.5.6.7/reports", json={"text": "Verysecret finding"})
    text = door.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"route": "/api/v1/studies/{study}", "status": 404, "user": "radiologist"}.items() <= next(
        line for line in reversed(lines) if line.get("method") == "GET"
    ).items()
    for secret in ("Verysecret", "1.2.3.4.5.6.7", PASSWORD, *visitors.tokens.values()):
        assert secret not in text
