"""DICOM over TLS: DCMTK and pynetdicom as stations, whoever comes without TLS, and certificates that change."""

import hashlib
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from edge_mesh import World
from pydicom.data import get_testdata_file
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from raw_dicom import CT, associate_rq, image, message, store_rq
from waiting import wait_for

from radmesh.dicom.stations import GRANTS, Station
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.pdus import ProposedContext
from radmesh_gateway_proxy.requestor import Requestor, Target
from radmesh_gateway_proxy.supervisor import Supervisor
from radmesh_gateway_proxy.tls import Tunnel, dialer

FILE = str(get_testdata_file("CT_small.dcm"))
Run = Callable[..., Supervisor]


def certificate(folder: Path, name: str) -> tuple[Path, Path, str]:
    """A self-signed certificate: its file, that of its key, and its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(pem))
    paths[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return *paths, made.fingerprint(hashes.SHA256()).hex()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
        world = World(Path(folder))
        yield world
        world.close()


@pytest.fixture
def run(world: World) -> Iterator[Run]:
    running: list[Supervisor] = []

    def start(stations: tuple[Station, ...] = (), **settings: Any) -> Supervisor:
        supervisor = world.supervisor(stations, processes=1, **settings)
        supervisor.start()
        running.append(supervisor)
        return supervisor

    yield start
    for supervisor in running:
        supervisor.stop(0.1)


def tls_port(supervisor: Supervisor) -> str:
    return supervisor.endpoints()["dicom_tls"].rpartition(":")[2]


def dcmtk(program: str, *arguments: object) -> tuple[int, str]:
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout + done.stderr


def context(authority: Path, *own: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(authority))
    if own:
        made.load_cert_chain(*map(str, own))
    return made


def echo(port: str, tls: ssl.SSLContext, calling: str = "WS1") -> int | None:
    """The status of a C-ECHO of pynetdicom; None = it got no association."""
    ae = AE(calling)
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", int(port), tls_args=(tls, "localhost"))
    try:
        return int(association.send_c_echo().Status) if association.is_established else None
    finally:
        if association.is_established:
            association.release()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_stations_of_others_store_over_tls(world: World, run: Run) -> None:
    """With the certificate that the cluster makes for itself, and nothing configured."""
    supervisor = run()
    authority = world.context.credentials.ca_path
    for profile in ("+py", "+px"):
        code, said = dcmtk("echoscu", "-v", profile, "+tla", "+cf", authority, "localhost", tls_port(supervisor))
        assert code == 0, said
    code, said = dcmtk("storescu", "+tla", "+cf", authority, "-aet", "CT1", "localhost", tls_port(supervisor), FILE)
    assert code == 0, said
    assert len(world.rows()) == 1
    assert echo(tls_port(supervisor), context(authority)) == 0
    with socket.create_connection(("127.0.0.1", int(tls_port(supervisor)))) as plain:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            old.wrap_socket(plain)


def test_who_comes_without_tls_gives_one_clear_line(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    supervisor = run()
    code, _ = dcmtk("echoscu", "localhost", tls_port(supervisor))
    assert code
    with socket.create_connection(("127.0.0.1", int(tls_port(supervisor)))) as web:
        web.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with suppress(ConnectionResetError):
            assert web.recv(1) == b""
    lines: list[str] = []

    def said() -> bool:
        lines.extend(line for line in capfd.readouterr().err.splitlines() if "TLS refused" in line)
        return len(lines) == 2

    wait_for(said)
    assert "DICOM without TLS on the port for TLS: turn TLS on there, or have it use the port without" in lines[0]
    assert "something other than TLS" in lines[1]
    assert dcmtk("echoscu", "localhost", supervisor.port)[0] == 0


def test_certificates_of_stations_are_asked_for_and_told_apart(world: World, run: Run, tmp_path: Path) -> None:
    good, good_key, fingerprint = certificate(tmp_path, "good")
    other, other_key, _ = certificate(tmp_path, "other")
    both, authority = tmp_path / "both.pem", world.context.credentials.ca_path
    both.write_bytes(good.read_bytes() + other.read_bytes())
    supervisor = run(
        (Station("CT1", grants=GRANTS, certificate=fingerprint), Station("WS1", grants=GRANTS)),
        check_stations="on",
        tls_clients="optional",
        tls_ca=str(both),
    )
    port = tls_port(supervisor)
    assert echo(port, context(authority, good, good_key), "CT1") == 0
    assert echo(port, context(authority, other, other_key), "CT1") is None
    assert echo(port, context(authority), "CT1") is None
    assert echo(port, context(authority), "WS1") == 0
    assert dcmtk("echoscu", "-aet", "CT1", "localhost", supervisor.port)[0]
    assert dcmtk("echoscu", "-aet", "WS1", "localhost", supervisor.port)[0] == 0
    required = run((), tls_clients="required", tls_ca=str(good))
    arguments = ("+cf", authority, "localhost", tls_port(required))
    assert dcmtk("echoscu", "+tls", good_key, good, *arguments)[0] == 0
    assert dcmtk("echoscu", "+tls", other_key, other, *arguments)[0]
    assert dcmtk("echoscu", "+tla", *arguments)[0]


def test_a_certificate_that_is_replaced_is_shown_at_the_next_connection(run: Run, tmp_path: Path) -> None:
    first, first_key, _ = certificate(tmp_path, "first")
    second, second_key, _ = certificate(tmp_path, "second")
    pem, key = tmp_path / "ours.pem", tmp_path / "ours.key"
    pem.write_bytes(first.read_bytes())
    key.write_bytes(first_key.read_bytes())
    port = tls_port(run(tls_certificate=str(pem), tls_key=str(key)))
    assert echo(port, context(first)) == 0
    pem.write_bytes(second.read_bytes())  # of a pair of which one half is old the earlier one is served
    assert echo(port, context(first)) == 0
    key.write_bytes(second_key.read_bytes())
    assert echo(port, context(second)) == 0
    with pytest.raises(RadmeshError, match="tls_certificate, tls_key") as broken:
        run(tls_certificate=str(pem), tls_key=str(first_key))
    assert broken.value.reason == "CONFIG_INVALID"


def tunnelled(world: World, flush: float = 1.0) -> tuple[ssl.SSLSocket, Tunnel]:
    """Two ends of a TLS connection, the second within a tunnel."""
    chain, key = world.context.credentials.certificate_paths()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(chain, key)
    listener = socket.create_server(("127.0.0.1", 0))
    outside = socket.create_connection(listener.getsockname())
    inside, _ = listener.accept()
    listener.close()
    made: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: made.append(serving.wrap_socket(inside, server_side=True)))
    thread.start()
    client = context(world.context.credentials.ca_path).wrap_socket(outside, server_hostname="localhost")
    thread.join()
    tunnel = Tunnel(made[0], flush)
    tunnel.start()
    return client, tunnel


def test_a_tunnel_carries_everything_both_ways_and_ends_with_either_end(world: World) -> None:
    client, tunnel = tunnelled(world)
    data = bytes(range(256)) * 6_000
    sender = threading.Thread(target=lambda: tunnel.inner.sendall(data))
    sender.start()
    back = threading.Thread(target=lambda: client.sendall(data))
    came = hashlib.sha256()
    back.start()
    left = len(data)
    while left:
        piece = tunnel.inner.recv(1 << 16)
        came.update(piece)
        left -= len(piece)
    back.join()
    out = b""
    while len(out) < len(data):
        out += client.recv(1 << 16)
    sender.join()
    assert came.digest() == hashlib.sha256(data).digest()
    assert out == data
    tunnel.inner.sendall(b"last words")
    tunnel.inner.close()
    assert client.recv(100) == b"last words"
    assert client.recv(100) == b""
    tunnel.join()
    assert not tunnel._thread.is_alive()
    client.close()
    client, tunnel = tunnelled(world)
    client.sendall(b"bye")
    client.close()
    assert tunnel.inner.recv(100) == b"bye"
    assert tunnel.inner.recv(100) == b""
    tunnel.inner.close()
    tunnel.join()
    assert not tunnel._thread.is_alive()


def test_a_peer_that_reads_nothing_does_not_keep_a_tunnel_open(world: World) -> None:
    client, tunnel = tunnelled(world, flush=0.2)
    tunnel.inner.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            tunnel.inner.send(b"x" * 65536)
    tunnel.inner.close()
    tunnel.join()
    assert not tunnel._thread.is_alive()
    client.close()


def test_a_large_object_passes_whole(world: World, run: Run) -> None:
    supervisor = run()
    data = image("2.25.300", "2.25.300.1", pixels=4_000_000)
    with socket.create_connection(("127.0.0.1", int(tls_port(supervisor)))) as plain:
        tls = context(world.context.credentials.ca_path).wrap_socket(plain, server_hostname="localhost")
        tls.sendall(associate_rq([(1, CT, ["1.2.840.10008.1.2.1"])]))
        assert tls.recv(1) == b"\2"
        tls.sendall(message(1, store_rq(CT, "2.25.300.1"), data))
        wait_for(lambda: "2.25.300.1" in [row.header.sop_instance_uid for row in world.rows()])
        tls.close()
    assert world.stored("2.25.300.1")[1] == data


def test_stations_are_called_over_tls_and_known_by_their_certificate(world: World, tmp_path: Path) -> None:
    """pynetdicom as the station, which asks for our certificate too."""
    theirs, key, fingerprint = certificate(tmp_path, "station")
    other = certificate(tmp_path, "other")[0]
    chain, own_key = world.context.credentials.certificate_paths()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(theirs, key)
    serving.load_verify_locations(world.context.credentials.ca_path)
    serving.verify_mode = ssl.CERT_REQUIRED
    ae = AE("WS1")
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", 0), block=False, ssl_context=serving)
    port = int(server.socket.getsockname()[1])

    def echo_of(authorities: Path | None, shown: str = "") -> int:
        tls = dialer(chain, own_key, authorities, shown)
        target = Target("localhost", port, "WS1", "RADMESH", connect_seconds=5.0, tls=tls)
        with Requestor(target, [ProposedContext(1, Verification, ("1.2.840.10008.1.2",))]) as requestor:
            return requestor.echo().status

    try:
        assert echo_of(theirs) == 0
        assert echo_of(None, fingerprint) == 0
        for authorities, shown in ((other, ""), (None, ""), (None, "0" * 64)):
            with pytest.raises(RadmeshError) as refused:
                echo_of(authorities, shown)
            assert refused.value.reason == "STATION_REFUSED"
    finally:
        server.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Target("localhost", silent.getsockname()[1], "WS1", "RADMESH", connect_seconds=0.3)
        with pytest.raises(RadmeshError) as late:
            Requestor(replace(target, tls=dialer(chain, own_key, theirs, "")), [])
        assert late.value.reason == "STATION_SILENT"
