"""Beyond loopback: TLS alone, with the cluster's certificate or another, which may be renewed; proxies in front."""

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cluster_support import RealCluster, refused
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from http_support import PASSWORD, HttpDoor, People, curl, everything
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.http import server
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.security import Authority

EVERYWHERE = "0.0.0.0"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    cluster = RealCluster(tmp_path_factory.mktemp("cluster") / "data", "--bind", EVERYWHERE)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def url(cluster: RealCluster) -> str:
    found: str = cluster.ready["urls"]["http"]
    assert found == f"https://127.0.0.1:{cluster.ready['ports']['http']}"
    return found


def test_curl_with_the_authority(cluster, url):
    ca = cluster.ready["ca_certificate"]
    assert curl("--cacert", ca, f"{url}/healthz") == "ok\n"
    assert curl("--cacert", ca, f"{url.replace('127.0.0.1', 'localhost')}/healthz") == "ok\n"
    assert "certificate" in curl(f"{url}/healthz")
    assert "curl: (35)" in curl("--cacert", ca, "--tls-max", "1.1", f"{url}/healthz")


def test_the_cookie_is_for_tls_alone(cluster, url):
    password = (cluster.data / "admin-password").read_text().strip()
    context = ssl.create_default_context(cafile=cluster.ready["ca_certificate"])
    with httpx.Client(base_url=url, verify=context) as client:
        answer = client.post("/api/v1/session", json={"user": "admin", "password": password})
        assert "secure" in answer.headers["set-cookie"].lower()
        assert client.get("/api/v1/session").json()["user"] == "admin"
        assert client.delete("/api/v1/session", headers={"origin": url}).status_code == 204


def test_who_comes_without_tls_is_told_in_one_line(cluster, url):
    plain = url.replace("https", "http")
    assert curl(f"{plain}/healthz") == "this port speaks TLS only: use https://\n"
    assert curl("--json", json.dumps({"user": "a" * 100_000}), f"{plain}/api/v1/session").startswith(
        "this port speaks TLS only"
    )
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(b"rubbish")
        assert everything(connection).endswith(b"use https://\n")


def test_who_begins_tls_and_goes_on_with_rubbish_or_not_at_all_is_let_go(cluster, url):
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01\x00\x05rubbish and more of it")
        assert len(everything(connection)) < 100
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(50)]
    for connection in silent[:25]:
        connection.sendall(b"\x16")
    assert curl("--cacert", cluster.ready["ca_certificate"], f"{url}/healthz") == "ok\n"
    for connection in silent:
        connection.close()


def test_metrics_are_told_on_this_machine_alone(cluster, url):
    ca = ("--cacert", cluster.ready["ca_certificate"])
    assert "radmesh_http_seconds_count" in curl(*ca, f"{url}/metrics")
    assert json.loads(curl(*ca, "-H", "X-Forwarded-For: 127.0.0.1", f"{url}/metrics"))["reason"] == "CALLER_REFUSED"
    here = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    for address in here[:1]:
        answer = curl("-k", f"https://{address}:{url.rpartition(':')[2]}/metrics")
        assert json.loads(answer)["reason"] == "CALLER_REFUSED"


# -- certificates of somebody else, and renewed ones


def issue(folder: Path) -> tuple[Path, Path]:
    """A certificate and its key, of an authority of their own."""
    Authority(folder, SystemClock()).issue(["application-server"])
    return folder / "application-server.pem", folder / "application-server.key"


def fingerprint(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain, context.wrap_socket(plain) as connection:
        found = connection.getpeercert(binary_form=True)
        assert found
        return found


def test_a_renewed_certificate_is_shown_without_a_restart_and_a_half_renewed_one_is_not(tmp_path):
    first, second = issue(tmp_path / "first"), issue(tmp_path / "second")
    mine = tuple(tmp_path / name for name in ("door.pem", "door.key"))
    for source, target in zip(first, mine, strict=True):
        shutil.copy(source, target)
    door = HttpDoor(tmp_path / "door", bind=EVERYWHERE, certificate=str(mine[0]), key=str(mine[1]))
    try:
        before = fingerprint(door.port)
        assert before == x509.load_pem_x509_certificate(first[0].read_bytes()).public_bytes(Encoding.DER)
        context = ssl.create_default_context(cafile=str(tmp_path / "first" / "ca.pem"))
        with httpx.Client(base_url=f"https://127.0.0.1:{door.port}", verify=context) as client:
            assert client.get("/healthz").status_code == 200
            shutil.copy(second[0], tmp_path / "new")
            (tmp_path / "new").replace(mine[0])
            looked = door.server._http._looks
            wait_for(lambda: door.server._http._looks > looked + 1)
            assert fingerprint(door.port) == before
            shutil.copy(second[1], tmp_path / "new")
            (tmp_path / "new").replace(mine[1])
            wait_for(lambda: fingerprint(door.port) != before)
            # What was open goes on.
            assert client.get("/healthz").status_code == 200
        assert curl("--cacert", tmp_path / "second" / "ca.pem", f"https://127.0.0.1:{door.port}/healthz") == "ok\n"
    finally:
        door.close()


# -- behind a proxy


def source_addresses(door: HttpDoor) -> list[str]:
    request = database_pb2.ListAuditRequest(action="SIGN_IN", page_size=1)
    return [event.source_address for event in door.client("AccountService").ListAudit(request).events]


@pytest.mark.parametrize(
    ("proxies", "cases"),
    [
        ((), {"10.9.8.7": "127.0.0.1"}),
        (
            ("127.0.0.1",),
            {
                "10.9.8.7": "10.9.8.7",
                # What the client wrote itself is further left than what our proxy saw.
                "192.0.2.1, 10.9.8.7": "10.9.8.7",
                "192.0.2.1; 10.9.8.7": "10.9.8.7",
                "fd00::1": "fd00::1",
                "nonsense": "127.0.0.1",
                "": "127.0.0.1",
            },
        ),
        (("127.0.0.0/8", "10.0.0.0/8"), {"192.0.2.1, 10.9.8.7": "192.0.2.1"}),
    ],
)
def test_a_proxy_that_ends_tls_says_who_called(tmp_path, proxies, cases):
    door = HttpDoor(tmp_path / "door", bind=EVERYWHERE, insecure_http=True, proxies=proxies)
    visitors = People(f"http://127.0.0.1:{door.port}", door.client("AccountService"))
    try:
        assert door.url.startswith("http://")
        for forwarded, believed in cases.items():
            headers = [("x-forwarded-for", hop) for hop in forwarded.split("; ")] + [("x-forwarded-proto", "https")]
            body = {"user": "radiologist", "password": PASSWORD}
            answer = visitors.anonymous().post("/api/v1/session", json=body, headers=headers)
            assert ("secure" in answer.headers["set-cookie"].lower()) == bool(proxies)
            assert source_addresses(door) == [believed]
    finally:
        visitors.close()
        door.close()


def test_insecure_http_is_an_option_of_the_command(tmp_path):
    cluster = RealCluster(tmp_path / "data", "--set", f"http.bind={EVERYWHERE}", "--insecure-http")
    try:
        port = int(cluster.ready["ports"]["http"])
        assert cluster.ready["urls"]["http"] == f"http://127.0.0.1:{port}"
        assert curl(f"http://127.0.0.1:{port}/readyz") == "ok\n"
        with refused("PORT_IN_USE"):
            server._listen("127.0.0.1", port)
    finally:
        cluster.close()
