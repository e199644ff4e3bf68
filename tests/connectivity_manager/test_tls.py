"""MLLP over TLS, as a domain is configured: who may send, whom reports go to, and certificates that are replaced."""

import io
import ssl
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from connectivity_mesh import World
from connectivity_support import orm
from cryptography.hazmat.primitives import serialization
from hl7_partners import free_port
from mllp_support import CLOCK, RawPeer
from waiting import wait_for

from radmesh.hl7.build import acknowledge
from radmesh.hl7.message import parse
from radmesh.hl7.mllp import MllpClient, MllpListener, Peer, frame
from radmesh.mesh import sections
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.security import Authority

TO_SEND, DELIVERED = 1, 2
STUDY = "2.25.1"


class Files:
    """The certificates of a folder: ca.pem, and <name>.pem with <name>.key of "radmesh" and "ris"."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        Authority(folder, SystemClock()).issue(["radmesh", "ris"])

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def client(self, name: str = "") -> ssl.SSLContext:
        """TLS of a sender, which shows the certificate of `name`."""
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        if name:
            context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        return context

    def server(self, *, mutual: bool = True) -> ssl.SSLContext:
        """TLS of a receiver."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.path("ca.pem"))
        context.load_cert_chain(self.path("ris.pem"), self.path("ris.key"))
        context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
        return context

    def ours(self) -> dict[str, Any]:
        """The settings of a domain."""
        return {
            "tls_certificate": self.path("radmesh.pem"),
            "tls_key": self.path("radmesh.key"),
            "tls_ca": self.path("ca.pem"),
        }


class Receiver:
    """A RIS that takes reports over TLS."""

    def __init__(self, tls: ssl.SSLContext, port: int = 0) -> None:
        self.subjects: list[str] = []
        self.listener = MllpListener(
            "127.0.0.1",
            port,
            self._take,
            log=Logger("test", "test-0", io.StringIO()),
            metrics=Metrics(),
            ssl_context=tls,
        )
        self.listener.start()

    def _take(self, raw: bytes, peer: Peer) -> bytes:
        self.subjects.append(peer.subject)
        return acknowledge(parse(raw), "AA", clock=CLOCK, control_id="R1")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "tls")


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**settings: Any) -> World:
        made.append(World(tmp_path / f"world{len(made)}", sections.Domain(name="default", **settings)))
        made[-1].start()
        return made[-1]

    yield make
    for world in made:
        world.close()


def sent(world: World, tls: ssl.SSLContext, accession: str) -> str:
    """Send an order; return MSA-1, or the reason why there is none."""
    raw = orm(accession, control_id=accession)
    client = MllpClient("127.0.0.1", world.port(), tls, ack_timeout=20)
    try:
        return client.exchange(raw, accession).get("MSA-1")
    except RadmeshError as error:
        return error.reason
    finally:
        client.close()


def fares(world: World) -> tuple[int, str]:
    return (world.told.delivered(STUDY) or [(0, "")])[-1]


def test_a_domain_takes_messages_over_tls_from_whoever_it_says(worlds: Callable[..., World], files: Files) -> None:
    world = worlds(hl7_tls="on", **files.ours())
    assert world.running["connectivity-manager-0"].endpoints()["hl7"].startswith("mllps://127.0.0.1:")
    assert sent(world, files.client(), "A1") == "AA"
    with RawPeer(world.port()) as plain:
        plain.send(frame(orm("A2")))
        assert plain.answer() is None
    mutual = worlds(hl7_tls="mutual", **files.ours())
    assert sent(mutual, files.client("ris"), "A1") == "AA"
    assert sent(mutual, files.client(), "A2") == "HL7_CONNECTION_LOST"
    stranger = Files(files.folder.parent / "other").client("ris")
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    assert sent(mutual, stranger, "A3") == "HL7_CONNECTION_LOST"
    assert mutual.domains()["default"].messages == world.domains()["default"].messages == 1


def test_nothing_older_than_tls_1_2_is_spoken(worlds: Callable[..., World], files: Files) -> None:
    world = worlds(hl7_tls="on", **files.ours())
    found = {}
    for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = files.client()
        # What a system of today would not even offer.
        client.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            client.minimum_version = client.maximum_version = version
        found[version.name] = sent(world, client, version.name)
    assert found == {"TLSv1_1": "HL7_CONNECTION_LOST", "TLSv1_2": "AA", "TLSv1_3": "AA"}


def test_reports_go_to_a_receiver_that_is_who_it_says(worlds: Callable[..., World], files: Files) -> None:
    receiver = Receiver(files.server())
    port = receiver.listener.port
    try:
        world = worlds(report_to=f"mllps://127.0.0.1:{port}", **files.ours())
        world.send_report(STUDY)
        wait_for(lambda: fares(world)[0] == DELIVERED)
        assert receiver.subjects == ["radmesh"]
        # It is certified by nobody who is named here, or by nobody at all.
        other = Files(files.folder.parent / "other")
        for settings in ({**files.ours(), "tls_ca": other.path("ca.pem")}, {}):
            wrong = worlds(report_to=f"mllps://127.0.0.1:{port}", **settings)
            wrong.send_report(STUDY)
            wait_for(lambda wrong=wrong: fares(wrong) == (TO_SEND, "HL7_CONNECTION_LOST"))  # type: ignore[misc]
        # It wants to know who sends.
        nobody = worlds(report_to=f"mllps://127.0.0.1:{port}", tls_ca=files.path("ca.pem"))
        nobody.send_report(STUDY)
        wait_for(lambda: fares(nobody) == (TO_SEND, "HL7_CONNECTION_LOST"))
        assert receiver.subjects == ["radmesh"]
    finally:
        receiver.listener.stop(1.0)


def test_certificates_that_are_replaced_are_used_without_a_restart(worlds: Callable[..., World], files: Files) -> None:
    other = Files(files.folder.parent / "other")
    port = free_port()
    world = worlds(hl7_tls="mutual", report_to=f"mllps://127.0.0.1:{port}", **files.ours())
    receiver = Receiver(other.server(), port)
    try:
        world.send_report(STUDY)
        wait_for(lambda: fares(world) == (TO_SEND, "HL7_CONNECTION_LOST"))
        assert sent(world, files.client("ris"), "A1") == "AA"
        # Half of a pair is not used: the old one goes on.
        (other.folder / "radmesh.pem").replace(files.folder / "radmesh.pem")
        log = world.mesh.folder / "connectivity-manager-0.log"
        wait_for(lambda: "certificates cannot be used" in log.read_text())
        assert sent(world, files.client("ris"), "A2") == "AA"
        (other.folder / "radmesh.key").replace(files.folder / "radmesh.key")
        (files.folder / "ca.pem").write_bytes((other.folder / "ca.pem").read_bytes())
        wait_for(lambda: sent(world, other.client("ris"), "A3") == "AA", 20)
        wait_for(lambda: fares(world)[0] == DELIVERED, 20)
    finally:
        receiver.listener.stop(1.0)


@pytest.mark.parametrize("broken", ["certificate", "key", "ca", "missing", "locked"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, files: Files, broken: str) -> None:
    settings = files.ours()
    if broken == "locked":
        path = files.folder / "radmesh.key"
        key: Any = serialization.load_pem_private_key(path.read_bytes(), None)
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))
    elif broken == "missing":
        settings["tls_ca"] = files.path("nowhere.pem")
    else:
        name = {"certificate": "radmesh.pem", "key": "radmesh.key", "ca": "ca.pem"}[broken]
        Path(files.path(name)).write_text("no PEM")
    world = World(tmp_path / "w", sections.Domain(name="default", hl7_tls="mutual", **settings))
    try:
        with pytest.raises(RadmeshError) as caught:
            world.start()
        assert caught.value.reason == "CONFIG_INVALID"
        wanted = "tls_ca" if broken in ("ca", "missing") else "tls_certificate, tls_key"
        assert caught.value.message.startswith(f"{wanted} of the domain default cannot be used")
    finally:
        world.close()
