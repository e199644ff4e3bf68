"""`radmesh certificates`: the credentials of a cluster in a folder, and in Secrets of Kubernetes.

What needs only the API runs against a real one too, if RADMESH_TEST_KUBERNETES is "host:port" of one and
RADMESH_TEST_ACCOUNT a folder with token, ca.crt and namespace of an account that may do with its Secrets what it likes.
"""

import base64
import http.client
import json
import os
import ssl
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cluster_support import refused, run
from cryptography import x509
from kubernetes_api import KubernetesApi

from radmesh.mesh import certificates, kubernetes
from radmesh.mesh.certificates import AUTHORITY, keep
from radmesh.mesh.kubernetes import ConflictError, Secrets
from radmesh.mesh.modules import TABLE
from radmesh.runtime.clock import ManualClock, SystemClock
from radmesh.runtime.security import Credentials, component_of

LIFE = timedelta(days=60)
INSTANCES = ["database-server", "archive-server-0", "archive-server-1", "network-gateway", "gateway-proxy"]
NAMES = {AUTHORITY, *(f"radmesh-{name}" for name in map(component_of, INSTANCES))}
REAL = os.environ.get("RADMESH_TEST_KUBERNETES", "")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    api = KubernetesApi(tmp_path / "api")
    yield api
    api.close()


@pytest.fixture(params=["stand-in", "real"] if REAL else ["stand-in"])
def secrets(request: pytest.FixtureRequest) -> Secrets:
    if request.param == "stand-in":
        api = request.getfixturevalue("api")
        return Secrets(api.host, api.port, api.account)
    host, _, port = REAL.rpartition(":")
    found = Secrets(host, int(port), Path(os.environ["RADMESH_TEST_ACCOUNT"]))
    for name in sorted(NAMES):
        remove(found, name)
    return found


def remove(secrets: Secrets, name: str) -> None:
    connection = http.client.HTTPSConnection(
        secrets._host, secrets._port, timeout=30, context=ssl.create_default_context(cafile=secrets._account / "ca.crt")
    )
    token = (secrets._account / "token").read_text()
    path = f"/api/v1/namespaces/{secrets.namespace}/secrets/{name}"
    connection.request("DELETE", path, headers={"Authorization": f"Bearer {token}"})
    assert connection.getresponse().status in (200, 404)
    connection.close()


def contents(secrets: Secrets) -> dict[str, dict[str, bytes]]:
    return {name: dict(secrets.get(name).data) for name in NAMES}


def serials(secrets: Secrets, component: str) -> dict[str, int]:
    data = secrets.get(f"radmesh-{component}").data
    return {
        name: x509.load_pem_x509_certificate(pem).serial_number
        for name, pem in data.items()
        if name.endswith(".pem") and name != "ca.pem"
    }


def test_each_component_gets_what_is_its_own(secrets):
    made = keep(secrets, INSTANCES, SystemClock(), LIFE)
    assert made.certificates == INSTANCES
    assert set(made.secrets) == NAMES
    found = contents(secrets)
    public = {"ca.pem", *(name for name in found[AUTHORITY] if name.endswith(".pub"))}
    assert {"ticket.database-server.pub", "ticket.network-gateway.pub"} < public
    own = {
        "database-server": {"database-server.pem", "database-server.key", "ticket.database-server.key"},
        "archive-server": {f"archive-server-{n}.{end}" for n in (0, 1) for end in ("pem", "key")},
        "network-gateway": {"network-gateway.pem", "network-gateway.key", "ticket.network-gateway.key"},
        "gateway-proxy": {"gateway-proxy.pem", "gateway-proxy.key"},
    }
    for component, names in own.items():
        assert set(found[f"radmesh-{component}"]) == public | names
    assert not [name for name in found[AUTHORITY] if name.startswith("token")]
    authority = x509.load_pem_x509_certificate(found[AUTHORITY]["ca.pem"])
    for name, data in found.items():
        for file, content in data.items():
            assert content == found[AUTHORITY][file], (name, file)
            if file.endswith(".pem") and file != "ca.pem":
                x509.load_pem_x509_certificate(content).verify_directly_issued_by(authority)


def test_a_mounted_secret_is_a_credentials_folder(secrets, tmp_path):
    keep(secrets, INSTANCES, SystemClock(), LIFE)
    for name, data in secrets.get("radmesh-network-gateway").data.items():
        (tmp_path / name).write_bytes(data)
    mounted = Credentials(tmp_path, "network-gateway")
    mounted.check_certificate(SystemClock().now())
    assert mounted.ticket_verify("network-gateway", b"payload", mounted.ticket_sign(b"payload"))


def test_a_second_run_writes_nothing(secrets):
    keep(secrets, INSTANCES, SystemClock(), LIFE)
    before = contents(secrets)
    made = keep(secrets, INSTANCES, SystemClock(), LIFE)
    assert (made.certificates, made.secrets) == ([], [])
    assert contents(secrets) == before


def test_what_ends_soon_is_made_anew_by_the_same_authority(secrets):
    clock = ManualClock(SystemClock().now())
    keep(secrets, INSTANCES, clock, LIFE)
    before, serial = contents(secrets), serials(secrets, "archive-server")
    clock.advance((LIFE * 0.9).total_seconds())
    made = keep(secrets, INSTANCES, clock, LIFE)
    assert made.certificates == INSTANCES
    assert set(made.secrets) == NAMES
    after = contents(secrets)
    for name in ("ca.pem", "ca.key", "ticket.database-server.key"):
        assert after[AUTHORITY][name] == before[AUTHORITY][name]
    assert serials(secrets, "archive-server").keys() == serial.keys()
    assert not set(serials(secrets, "archive-server").values()) & set(serial.values())


def test_one_more_archive_server(secrets):
    keep(secrets, INSTANCES, SystemClock(), LIFE)
    serial = serials(secrets, "archive-server")
    made = keep(secrets, [*INSTANCES, "archive-server-2"], SystemClock(), LIFE)
    assert made.certificates == ["archive-server-2"]
    assert made.secrets == [AUTHORITY, "radmesh-archive-server"]
    assert serials(secrets, "archive-server").items() > serial.items()


def test_what_was_read_is_replaced_in_that_version_only(secrets):
    old = secrets.get(AUTHORITY)
    secrets.put(old, {"a": b"1"})
    with pytest.raises(ConflictError):
        secrets.put(old, {"a": b"2"})
    read = secrets.get(AUTHORITY)
    assert read.ours
    secrets.put(read, {"a": b"3"})
    with pytest.raises(ConflictError):
        secrets.put(read, {"a": b"4"})
    remove(secrets, AUTHORITY)
    with pytest.raises(ConflictError):
        secrets.put(read, {"a": b"5"})


def test_two_runs_at_once_make_one_cluster(secrets):
    barrier, failures = threading.Barrier(3), []

    def work() -> None:
        barrier.wait()
        try:
            keep(secrets, INSTANCES, SystemClock(), LIFE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = contents(secrets)
    for data in found.values():
        assert data
        assert all(content == found[AUTHORITY][name] for name, content in data.items())


def test_a_run_that_dies_between_two_secrets_is_gone_on_with(api):
    secrets = Secrets(api.host, api.port, api.account)
    api.refused["radmesh-archive-server"] = (503, b"{}")
    with refused("PEER_UNAVAILABLE"):
        keep(secrets, INSTANCES, SystemClock(), LIFE)
    before = secrets.get(AUTHORITY).data
    assert before["ca.key"]
    api.refused.clear()
    made = keep(secrets, INSTANCES, SystemClock(), LIFE)
    assert made.certificates == []
    assert "radmesh-archive-server" in made.secrets
    assert secrets.get(AUTHORITY).data == before


@pytest.mark.parametrize("lost", ["all", "ca.key"])
def test_a_lost_authority_is_not_replaced_by_another(api, lost):
    secrets = Secrets(api.host, api.port, api.account)
    keep(secrets, INSTANCES, SystemClock(), LIFE)
    if lost == "all":
        del api.secrets[AUTHORITY]
    else:
        del api.secrets[AUTHORITY]["data"][lost]
    before = json.dumps(api.secrets)
    with refused("AUTHORITY_LOST"):
        keep(secrets, INSTANCES, SystemClock(), LIFE)
    assert json.dumps(api.secrets) == before


def test_a_secret_of_somebody_else_is_left_alone(api):
    secrets = Secrets(api.host, api.port, api.account)
    theirs = {"metadata": {"name": "radmesh-gateway-proxy", "resourceVersion": "7"}, "data": {"x": ""}}
    api.secrets["radmesh-gateway-proxy"] = theirs
    with refused("SECRET_FOREIGN"):
        keep(secrets, INSTANCES, SystemClock(), LIFE)
    assert api.secrets == {"radmesh-gateway-proxy": theirs}


def test_labels_of_others_stay(api):
    secrets = Secrets(api.host, api.port, api.account)
    keep(secrets, INSTANCES, SystemClock(), LIFE)
    api.secrets["radmesh-archive-server"]["metadata"]["labels"]["backup"] = "yes"
    keep(secrets, [*INSTANCES, "archive-server-2"], SystemClock(), LIFE)
    assert api.secrets["radmesh-archive-server"]["metadata"]["labels"]["backup"] == "yes"
    assert "archive-server-2.key" in secrets.get("radmesh-archive-server").data


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((403, b"{}"), "SECRETS_REFUSED"),
        ((401, b"{}"), "SECRETS_REFUSED"),
        ((302, b""), "SECRETS_REFUSED"),
        ((500, b"{}"), "PEER_UNAVAILABLE"),
        ((429, b"{}"), "PEER_UNAVAILABLE"),
        ((200, b"<html>"), "PEER_UNAVAILABLE"),
        ((200, b"[]"), "PEER_UNAVAILABLE"),
    ],
)
def test_answers_of_a_server_in_trouble(api, answer, reason):
    api.answer = answer
    with refused(reason):
        keep(Secrets(api.host, api.port, api.account), INSTANCES, SystemClock(), LIFE)
    assert not api.secrets


def test_a_namespace_that_does_not_exist(api):
    (api.account / "namespace").write_text("elsewhere")
    with refused("SECRETS_REFUSED"):
        keep(Secrets(api.host, api.port, api.account), INSTANCES, SystemClock(), LIFE)


def test_a_server_that_is_not_there_or_not_the_right_one(api, tmp_path):
    good = Secrets(api.host, api.port, api.account)
    certificates.make(tmp_path / "other", ["api"], SystemClock(), LIFE)
    (api.account / "ca.crt").write_bytes((tmp_path / "other/ca.pem").read_bytes())
    with refused("PEER_UNAVAILABLE"):
        Secrets(api.host, api.port, api.account).get(AUTHORITY)
    good.get(AUTHORITY)
    api.close()
    with refused("PEER_UNAVAILABLE"):
        good.get(AUTHORITY)


def test_the_account_s_token_may_change(api):
    secrets = Secrets(api.host, api.port, api.account)
    secrets.get(AUTHORITY)
    api.token = "second"
    with refused("SECRETS_REFUSED"):
        secrets.get(AUTHORITY)
    (api.account / "token").write_text("second\n")
    secrets.get(AUTHORITY)


def test_the_command_in_a_pod(api, tmp_path, monkeypatch):
    monkeypatch.setattr(kubernetes, "ACCOUNT", api.account)
    file = tmp_path / "radmesh.toml"
    file.write_text("[mesh]\narchive_servers = 2\n")
    where: dict[str, Any] = {"KUBERNETES_SERVICE_HOST": api.host, "KUBERNETES_SERVICE_PORT": str(api.port)}
    first = run("certificates", "--kubernetes", "--config", file, **where)
    assert first.code == 0, first.err
    assert "archive-server-1" in first.out
    second = run("certificates", "--kubernetes", "--config", file, "--json", **where)
    assert second.json == {"certificates": [], "secrets": []}
    assert set(api.secrets) == {AUTHORITY, *(f"radmesh-{component}" for component in TABLE.by_name)}
    files = {base64.b64decode(data) for secret in api.secrets.values() for data in secret["data"].values()}
    assert all(files)


def test_the_command_outside_of_a_pod(tmp_path):
    answer = run("certificates", "--kubernetes", "--json", KUBERNETES_SERVICE_HOST="")
    assert (answer.code, answer.reason) == (2, "FILE_UNREADABLE")


def test_the_command_in_a_folder(tmp_path):
    folder = tmp_path / "credentials"
    first = run("certificates", "--json", RADMESH_CREDENTIALS=str(folder))
    assert (first.code, first.json["secrets"]) == (0, [])
    assert set(map(component_of, first.json["certificates"])) == set(TABLE.by_name)
    for instance in first.json["certificates"]:
        Credentials(folder, instance).check_certificate(SystemClock().now())
    again = run("certificates", RADMESH_CREDENTIALS=str(folder))
    assert (again.code, again.out) == (0, "certificates made: none, all are good\n")
    assert {path.name for path in run_default(tmp_path).iterdir()} == {path.name for path in folder.iterdir()}


def run_default(tmp_path: Path) -> Path:
    assert run("certificates", "--data", tmp_path / "data").code == 0
    return tmp_path / "data/credentials"
