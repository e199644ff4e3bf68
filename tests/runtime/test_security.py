"""Authority, certificates, tokens, ticket keys."""

import json
import stat
import threading
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from runtime_support import INSTANCES, PROBE, Probe, World, text
from waiting import wait_for

from radmesh.runtime.clock import ManualClock, SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.security import GRANT_ISSUERS, TICKET_ISSUERS, Authority, Credentials, component_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "credentials"
    Authority(path, SystemClock()).issue(list(INSTANCES))
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path, instance: str) -> x509.SubjectAlternativeName:
    certificate = x509.load_pem_x509_certificate((folder / f"{instance}.pem").read_bytes())
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_secrets_are_for_the_owner_alone(folder: Path) -> None:
    assert mode(folder) == 0o700
    secret = [path for path in folder.iterdir() if path.suffix == ".key" or path.name.startswith("token.")]
    assert len(secret) == 1 + 2 * len(INSTANCES) + len(TICKET_ISSUERS) + len(GRANT_ISSUERS)
    assert {mode(path) for path in secret} == {0o600}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_servers_read_holds_no_token(folder: Path) -> None:
    shared = (folder / "tokens.json").read_text()
    tokens = [Credentials(folder, instance).token() for instance in INSTANCES]
    assert len(set(tokens)) == len(INSTANCES)
    assert all(len(bytes.fromhex(token)) == 32 for token in tokens)
    assert not any(token in shared for token in tokens)
    assert set(json.loads(shared)) == set(INSTANCES)


def test_a_certificate_names_component_instance_and_loopback(folder: Path) -> None:
    found = names(folder, "archive-server-0")
    hosts = {"archive-server", "archive-server-0", "archive-server-0.archive-server", "localhost"}
    assert set(found.get_values_for_type(x509.DNSName)) == hosts
    assert {str(address) for address in found.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    assert found.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://radmesh/archive-server/archive-server-0"
    ]


def test_certificates_are_of_p256_and_of_the_authority(folder: Path) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    for instance in INSTANCES:
        certificate = x509.load_pem_x509_certificate((folder / f"{instance}.pem").read_bytes())
        certificate.verify_directly_issued_by(authority)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"


def test_a_second_start_changes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    Authority(folder, SystemClock()).issue(list(INSTANCES))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_new_instance_gets_its_own(tmp_path: Path) -> None:
    clock = SystemClock()
    Authority(tmp_path, clock).issue(["archive-server-0"])
    old = Credentials(tmp_path, "archive-server-0")
    assert old.check_token("archive-server-0", old.token())
    Authority(tmp_path, clock).issue(["archive-server-0", "archive-server-1"])
    # The running server sees the new instance's token without a restart.
    assert old.check_token("archive-server-1", Credentials(tmp_path, "archive-server-1").token())


@pytest.mark.parametrize("missing", ["ca.pem", "archive-server-0.pem", "archive-server-0.key", "tokens.json"])
def test_what_a_crash_left_unfinished_is_made_again(tmp_path: Path, missing: str) -> None:
    clock = SystemClock()
    Authority(tmp_path, clock).issue(["archive-server-0"])
    (tmp_path / missing).unlink()
    Authority(tmp_path, clock).issue(["archive-server-0"])
    credentials = Credentials(tmp_path, "archive-server-0")
    credentials.check_certificate(clock.now())
    assert credentials.check_token("archive-server-0", credentials.token())
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    pem = (tmp_path / "archive-server-0.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    certificate.verify_directly_issued_by(authority)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((tmp_path / "archive-server-0.key").read_bytes(), None)
    assert key.public_key() == certificate.public_key()


def test_a_certificate_is_renewed_before_it_ends(tmp_path: Path) -> None:
    clock = ManualClock()
    Authority(tmp_path, clock).issue(["archive-server-0"])
    first = (tmp_path / "archive-server-0.pem").read_bytes()
    clock.advance(300 * 86400)
    Authority(tmp_path, clock).issue(["archive-server-0"])
    assert (tmp_path / "archive-server-0.pem").read_bytes() == first
    clock.advance(10 * 86400)
    Authority(tmp_path, clock).issue(["archive-server-0"])
    assert (tmp_path / "archive-server-0.pem").read_bytes() != first


@pytest.mark.parametrize("life", [timedelta(hours=24), timedelta(days=1000)])
def test_a_sixth_of_any_life_is_left_for_renewing(tmp_path: Path, life: timedelta) -> None:
    clock = ManualClock()
    assert Authority(tmp_path, clock, life).issue(["archive-server-0"]) == ["archive-server-0"]
    credentials = Credentials(tmp_path, "archive-server-0")
    assert credentials.certificate_times()[1] == clock.now() + life
    clock.advance(life.total_seconds() * 0.8)
    assert Authority(tmp_path, clock, life).issue(["archive-server-0"]) == []
    clock.advance(life.total_seconds() * 0.05)
    assert Authority(tmp_path, clock, life).issue(["archive-server-0"]) == ["archive-server-0"]
    assert credentials.certificate_times()[1] == clock.now() + life


def test_a_certificate_is_of_no_use_beyond_its_authority(tmp_path: Path) -> None:
    clock = ManualClock()
    Authority(tmp_path, clock)
    clock.advance(3600 * 86400)
    Authority(tmp_path, clock).issue(["archive-server-0"])
    assert Credentials(tmp_path, "archive-server-0").certificate_times()[1] == ManualClock().now() + timedelta(3650)


def test_key_and_certificate_are_read_as_a_pair(tmp_path: Path) -> None:
    """Whoever reads between the replacement of the one and of the other waits for the other."""
    Authority(tmp_path / "a", SystemClock()).issue(["archive-server-0"])
    Authority(tmp_path / "b", SystemClock()).issue(["archive-server-0"])
    credentials = Credentials(tmp_path / "a", "archive-server-0")
    old, new = (tmp_path / name / "archive-server-0.pem" for name in ("a", "b"))
    (tmp_path / "b" / "archive-server-0.key").replace(tmp_path / "a" / "archive-server-0.key")
    with pytest.raises(RadmeshError) as caught:
        credentials.certificate()
    assert caught.value.reason == "CERTIFICATE_INVALID"
    assert "archive-server-0.key is not the key of" in caught.value.message
    answers: list[bytes] = []
    reading = threading.Thread(target=lambda: answers.append(credentials.certificate()[1]))
    reading.start()
    chain = new.read_bytes()
    new.replace(old)
    reading.join(60)
    assert answers == [chain]


def test_channels_of_two_renewals_ago_are_closed(tmp_path: Path) -> None:
    """Each renewal opens new ones: they must not become more and more."""
    clock = ManualClock()
    world = World(tmp_path, "tls", clock)
    context = world.context("gateway-proxy")
    channels = []
    for _ in range(3):
        channels.append(context.channels.get("127.0.0.1:1"))
        assert context.channels.get("127.0.0.1:1") is channels[-1]
        clock.advance(310 * 86400)
        Authority(context.credentials.ca_path.parent, clock).issue(["gateway-proxy"])
    context.channels.get("127.0.0.1:1")
    call = "/radmesh.test.v1.Probe/Read"
    for channel, reason in zip(channels, ("closed", "closed", "UNAVAILABLE"), strict=True):
        with pytest.raises((ValueError, grpc.RpcError)) as caught:
            channel.unary_unary(call)(b"", timeout=30.0)
        assert reason in str(caught.value)
    world.close()


def test_a_clock_that_is_wrong_is_named(tmp_path: Path) -> None:
    clock = ManualClock()
    Authority(tmp_path, clock).issue(["archive-server-0"])
    credentials = Credentials(tmp_path, "archive-server-0")
    credentials.check_certificate(clock.now())
    for shift, words in (
        (timedelta(hours=-2), "is not valid before 2025-12-31T23:55:00"),
        (timedelta(days=400), "ended at"),
    ):
        with pytest.raises(RadmeshError) as caught:
            credentials.check_certificate(clock.now() + shift)
        assert caught.value.reason == "CERTIFICATE_INVALID"
        assert words in caught.value.message
        assert "clock" in caught.value.message


def test_a_server_does_not_start_with_a_certificate_of_the_future(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.advance(3600)
    world = World(tmp_path, "tls", clock)
    context = world.context("archive-server-0")
    clock.advance(-7200)
    with pytest.raises(RadmeshError) as caught:
        world.serve(context)
    assert caught.value.reason == "CERTIFICATE_INVALID"
    world.close()


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff\x00"]
)
def test_a_file_that_is_no_certificate_is_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "tls.crt"
    broken.write_bytes(content)
    with pytest.raises(RadmeshError) as caught:
        Credentials(folder, "archive-server-0", certificate=broken).check_certificate(SystemClock().now())
    assert caught.value.reason == "CERTIFICATE_INVALID"
    assert str(broken) in caught.value.message


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RadmeshError) as caught:
        Credentials(folder, "archive-server-0", authority=tmp_path / "ca.crt").certificate()
    assert caught.value.reason == "FILE_UNREADABLE"
    assert str(tmp_path / "ca.crt") in caught.value.message


def test_files_may_be_mounted_elsewhere(folder: Path, tmp_path: Path) -> None:
    for source, name in (
        ("ca.pem", "ca.crt"),
        ("archive-server-0.pem", "tls.crt"),
        ("archive-server-0.key", "tls.key"),
    ):
        (tmp_path / name).write_bytes((folder / source).read_bytes())
    mounted = Credentials(
        tmp_path / "nothing",
        "archive-server-0",
        authority=tmp_path / "ca.crt",
        certificate=tmp_path / "tls.crt",
        key=tmp_path / "tls.key",
    )
    assert mounted.certificate() == Credentials(folder, "archive-server-0").certificate()


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    """Server and client both."""
    world = World(tmp_path, "tls")
    server = world.context("archive-server-0")
    world.serve(server, (PROBE, Probe()))
    caller = world.context("gateway-proxy")
    client = caller.client(PROBE, "archive-server-0")
    assert client.Read(text("a")).value == "read a"
    served_before = serial(world)
    for instance in ("archive-server-0", "gateway-proxy"):
        (tmp_path / "credentials" / f"{instance}.pem").unlink()
    world.authority.issue(list(INSTANCES))
    assert serial(world) != served_before
    assert client.Read(text("b")).value == "read b"
    assert len(caller.channels._retired) == 1
    world.close()


def serial(world: World) -> bytes:
    """The certificate that the server shows to a new connection."""
    import ssl

    key, chain = (world.folder / "credentials" / f"network-gateway.{end}" for end in ("key", "pem"))
    context = ssl.create_default_context(cafile=str(world.folder / "credentials" / "ca.pem"))
    context.load_cert_chain(chain, key)
    import socket

    host, _, port = world.addresses["archive-server-0"].rpartition(":")
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def test_only_tls_1_2_and_later_is_spoken(tmp_path: Path) -> None:
    import socket
    import ssl
    import warnings

    world = World(tmp_path, "tls")
    world.serve(world.context("archive-server-0"))
    host, _, port = world.addresses["archive-server-0"].rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, int(port)), 5) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain)
    world.close()


# -- tokens and tickets ----------------------------------------------------------------------------------------------


@given(instance=st.text(max_size=20), token=st.text(max_size=80))
def test_no_other_token_passes(folder: Path, instance: str, token: str) -> None:
    assert not Credentials(folder, "database-server").check_token(instance, token)


def test_every_instance_verifies_tickets_of_both_issuers(folder: Path) -> None:
    for issuer in TICKET_ISSUERS:
        signature = Credentials(folder, issuer).ticket_sign(b"payload")
        assert len(signature) == 64
        for instance in INSTANCES:
            credentials = Credentials(folder, instance)
            assert credentials.ticket_verify(issuer, b"payload", signature)
            assert not credentials.ticket_verify(issuer, b"payloae", signature)
            assert not credentials.ticket_verify(issuer, b"payload", signature[:-1])
            assert not credentials.ticket_verify(issuer, b"payload", b"")
            other = next(name for name in TICKET_ISSUERS if name != issuer)
            assert not credentials.ticket_verify(other, b"payload", signature)


@pytest.mark.parametrize("issuer", ["", "archive-server", "../ca", "database-server-0"])
def test_nobody_else_issues_tickets(folder: Path, issuer: str) -> None:
    signature = Credentials(folder, "database-server").ticket_sign(b"x")
    assert not Credentials(folder, "archive-server-0").ticket_verify(issuer, b"x", signature)


def test_read_grants_have_keys_of_their_own(folder: Path) -> None:
    door, archive = Credentials(folder, "application-server"), Credentials(folder, "archive-server-0")
    signature = door.grant_sign(b"payload")
    assert archive.grant_verify("application-server", b"payload", signature)
    assert not archive.grant_verify("application-server", b"payloae", signature)
    assert not archive.grant_verify("database-server", b"payload", signature)
    # Whoever lets read cannot let store, and the other way round.
    assert not any(archive.ticket_verify(issuer, b"payload", signature) for issuer in (*TICKET_ISSUERS, *GRANT_ISSUERS))
    ticket = Credentials(folder, "database-server").ticket_sign(b"payload")
    assert not archive.grant_verify("application-server", b"payload", ticket)
    for sign in (door.ticket_sign, archive.grant_sign, Credentials(folder, "database-server").grant_sign):
        with pytest.raises(FileNotFoundError):
            sign(b"x")


def test_a_component_without_a_ticket_key_cannot_sign(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Credentials(folder, "archive-server-0").ticket_sign(b"x")


@pytest.mark.parametrize(
    ("instance", "component"),
    [("archive-server-0", "archive-server"), ("archive-server-12", "archive-server"), ("curator", "curator"), ("", "")],
)
def test_the_component_of_an_instance(instance: str, component: str) -> None:
    assert component_of(instance) == component


def test_tokens_are_checked_by_many_threads_while_the_file_changes(tmp_path: Path) -> None:
    Authority(tmp_path, SystemClock()).issue(["archive-server-0"])
    credentials = Credentials(tmp_path, "archive-server-0")
    token = credentials.token()
    failures: list[int] = []
    done = threading.Event()

    def check() -> None:
        while not done.is_set():
            if not credentials.check_token("archive-server-0", token):
                failures.append(1)

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(3):
        Authority(tmp_path, SystemClock()).issue([f"archive-server-{number + 1}"])
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert wait_for(
        lambda: credentials.check_token("archive-server-3", Credentials(tmp_path, "archive-server-3").token())
    )
