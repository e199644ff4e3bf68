"""Local clients at a real Archive Server beside a real Database Server: what a grant lets, and what ends it."""

import base64
import hashlib
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from component_mesh import PERMANENT, Components, Item, item
from database_support import HELD, uid
from depth import allowed, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_support import CHUNK
from waiting import wait_for

from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.archive_server.grants import GrantCheck
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import from_rpc_error
from radmesh.transfer.codec import TRANSFER_CODECS
from radmesh.transfer.model import ObjectReference, key_message

PASSWORD = "correct horse battery"
READ = archive_pb2.DESCRIPTOR.services_by_name["ReadService"].methods_by_name["ReadRange"]
NONE, TECHNOLOGIST, RADIOLOGIST = 1, 2, 3
# Long enough that nothing along the way holds all of it: two windows of HTTP/2 and more.
LONG = 96 * CHUNK


class Site:
    """Database and archive; persons who sign in; grants as an Application Server signs them."""

    def __init__(self, folder: Path) -> None:
        self.mesh = Components(folder)
        self.mesh.database()
        self.mesh.archive(quiet=3600.0)
        self.accounts = self.mesh.client("application-server", database_pb2, "AccountService", "database-server")
        self.registry = self.mesh.client("application-server", database_pb2, "RegistryService", "database-server")
        self.studies = self.mesh.client("network-gateway", database_pb2, "StudyService", "database-server")
        self.add("tech", TECHNOLOGIST)
        self.add("rad", RADIOLOGIST)
        wait_for(lambda: self.store.client_url)
        self._channels: dict[str, grpc.Channel] = {}

    def add(self, name: str, role: int) -> None:
        self.accounts.CreateUser(database_pb2.CreateUserRequest(name=name, role=role, password=PASSWORD))  # type: ignore[arg-type]

    @property
    def store(self) -> database_pb2.Store:
        stores = self.registry.ListStores(database_pb2.ListStoresRequest()).stores
        return next(s for s in stores if s.store_id == "archive-0") if stores else database_pb2.Store()

    def sign_in(self, name: str = "rad") -> str:
        return str(self.accounts.SignIn(database_pb2.SignInRequest(name=name, password=PASSWORD)).token)

    def grant(self, token: str, study: object = "a", by: str = "application-server", **changes: Any) -> bytes:
        return self.signed(self.claims(token, study, **changes), by)

    def claims(self, token: str, study: object = "a", seconds: float = 60.0, **changes: Any) -> archive_pb2.Grant:
        store = self.store
        made = archive_pb2.Grant(
            issuer="application-server",
            store_id=store.store_id,
            epoch=store.epoch,
            study_instance_uid=uid("study", study),
            user="rad",
            session_digest=hashlib.sha256(token.encode()).digest(),
        )
        made.expire_time.FromDatetime(self.mesh.mesh.clock.now() + timedelta(seconds=seconds))
        made.MergeFrom(archive_pb2.Grant(**changes))
        return made

    def signed(self, claims: archive_pb2.Grant, by: str = "application-server") -> bytes:
        payload = claims.SerializeToString()
        credentials = self.mesh.context(by).credentials
        sign = credentials.grant_sign if by == "application-server" else credentials.ticket_sign
        return archive_pb2.SignedGrant(payload=payload, signature=sign(payload)).SerializeToString()

    def channel(self) -> grpc.Channel:
        url = self.store.client_url
        if url not in self._channels:
            assert url.startswith("grpc://127.0.0.1:")
            self._channels[url] = grpc.insecure_channel(url.removeprefix("grpc://"))
        return self._channels[url]

    def call(self, grant: bytes | str, where: ObjectReference, offset: int = 0, length: int = 0) -> Any:
        text = grant if isinstance(grant, str) else f"Grant {base64.b64encode(grant).decode()}"
        method = self.channel().unary_stream(
            f"/{READ.containing_service.full_name}/ReadRange",
            request_serializer=transfer_pb2.ReadRangeRequest.SerializeToString,
            response_deserializer=TRANSFER_CODECS["ReadRange"].response_deserializer,
        )
        request = transfer_pb2.ReadRangeRequest(object=where.message(), offset=offset, length=length)
        return method(request, metadata=(("authorization", text),) if text else None, timeout=60.0)

    def read(self, grant: bytes | str, where: ObjectReference, offset: int = 0, length: int = 0) -> bytes:
        try:
            return b"".join(bytes(message.data) for message in self.call(grant, where, offset, length))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def refusal(self, grant: bytes | str, where: ObjectReference) -> str:
        try:
            self.read(grant, where)
        except RadmeshError as error:
            return error.reason
        return "nothing"

    def stored(self, *items: Item) -> list[ObjectReference]:
        committed = [c.object for c in self.mesh.send(*items)]
        registered = self.mesh.running["archive-server-0"]._store.unregistered
        wait_for(lambda: all(done == last for _, _, done, last in registered()))
        return committed

    def hold(self, held: Item, verification: int = HELD) -> None:
        request = database_pb2.SetVerificationRequest(
            admission_key=key_message(held.key),
            verification=verification,
            reason="PATIENT_MISMATCH",  # type: ignore[arg-type]
        )
        self.studies.SetVerification(request)

    def audit(self, study: object = "a") -> list[tuple[str, str, str]]:
        request = database_pb2.ListAuditRequest(object=uid("study", study), action="STUDY_READ")
        return [(e.actor, e.outcome, e.source_address) for e in self.accounts.ListAudit(request).events]

    def set_role(self, role: int, name: str = "rad") -> None:
        self.accounts.UpdateUser(database_pb2.UpdateUserRequest(name=name, role=role))  # type: ignore[arg-type]

    def sign_out(self, token: str) -> None:
        self.accounts.SignOut(database_pb2.SignOutRequest(token=token))

    def delete(self, name: str = "rad") -> None:
        self.accounts.DeleteUser(database_pb2.DeleteUserRequest(name=name))

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self.mesh.close()


@pytest.fixture
def site() -> Iterator[Site]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="rm-", dir=memory if memory.is_dir() else None))
    made = Site(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_what_a_grant_is_for(site: Site) -> None:
    items = [item("a", n, os.urandom(size)) for n, size in enumerate([0, 1, 3000, 2 * CHUNK + 7])]
    places = site.stored(*items)
    grant = site.grant(site.sign_in())
    assert [site.read(grant, place) for place in places] == [i.data for i in items]
    for offset, length in [(0, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (5, 0)]:
        whole = items[-1].data
        assert site.read(grant, places[-1], offset, length) == whole[offset : offset + length if length else None]
    assert site.audit() == [("rad", "SUCCESS", "127.0.0.1")], "once a minute, whatever is read"
    with pytest.raises(RadmeshError, match="RANGE_INVALID"):
        site.read(grant, places[1], 10)
    missing = ObjectReference("archive-0", places[0].study_hash, 1, 99)
    assert site.refusal(grant, missing) == "OBJECT_NOT_FOUND"
    assert site.refusal(grant, ObjectReference("archive-1", places[0].study_hash, 1, 1)) == "OBJECT_NOT_FOUND"


def test_grants_that_are_none(site: Site) -> None:
    (mine,), (other,) = site.stored(item("a", 1)), site.stored(item("b", 1))
    token = site.sign_in()
    good = site.grant(token)
    assert site.refusal(good, mine) == "nothing"
    payload = archive_pb2.SignedGrant.FromString(good).payload
    flipped = bytearray(good)
    flipped[-1] ^= 1
    claims = site.claims(token)
    resigned = archive_pb2.SignedGrant(
        payload=site.claims(token, "b").SerializeToString(),
        signature=archive_pb2.SignedGrant.FromString(good).signature,
    )
    bad: dict[str, bytes | str] = {
        "none": "",
        "a session's token": f"Bearer {token}",
        "no base64": "Grant *",
        "empty": "Grant ",
        "too long": f"Grant {base64.b64encode(good * 20).decode()}",
        "no message": "Grant " + base64.b64encode(b"\xff" * 40).decode(),
        "unsigned": archive_pb2.SignedGrant(payload=payload).SerializeToString(),
        "flipped": bytes(flipped),
        "signed for other claims": resigned.SerializeToString(),
        "by the key of tickets": site.grant(token, by="database-server"),
        "issuer of tickets": site.grant(token, by="database-server", issuer="database-server"),
        "issuer of nothing": site.grant(token, issuer="../archive-server-0"),
        "of another archive": site.grant(token, store_id="archive-1"),
        "of an earlier start": site.grant(token, epoch=b"e" * 16),
        "expired": site.grant(token, seconds=-0.001),
        "of nobody's session": site.grant("x" * 43),
        "of no session": site.signed(archive_pb2.Grant(**{**_fields(claims), "session_digest": b""})),
    }
    assert {name: site.refusal(grant, mine) for name, grant in bad.items()} == dict.fromkeys(bad, "GRANT_INVALID")
    assert site.refusal(good, other) == "GRANT_INVALID", "of another study"
    assert site.refusal(site.grant(token, "b"), mine) == "GRANT_INVALID"
    # Once for each of three sessions: what is signed names somebody, whatever else is wrong with it.
    assert sorted(site.audit("a")) == [("rad", "GRANT_INVALID", "127.0.0.1")] * 3 + [("rad", "SUCCESS", "127.0.0.1")]
    assert site.refusal(good, mine) == "nothing", "it still serves"


def _fields(message: Any) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


@settings(max_examples=examples(300))
@given(st.one_of(st.binary(max_size=300).map(lambda b: "Grant " + base64.b64encode(b).decode()), st.text(max_size=60)))
def test_no_text_is_a_grant(text: str) -> None:
    class NoKeys:
        def grant_verify(self, *_: Any) -> bool:
            return False

    check = GrantCheck(NoKeys(), SystemClock(), "archive-0", b"e" * 16)  # type: ignore[arg-type]
    with pytest.raises(RadmeshError) as error:
        check(text)
    assert error.value.reason == "GRANT_INVALID"


def test_a_grant_of_before_a_restart_is_void(site: Site) -> None:
    (place,) = site.stored(item("a", 1))
    token = site.sign_in()
    old = site.grant(token)
    epoch = site.store.epoch
    site.mesh.stop("archive-server-0")
    site.mesh.archive(quiet=3600.0)
    wait_for(lambda: site.store.epoch != epoch)
    assert site.refusal(old, place) == "GRANT_INVALID"
    assert site.refusal(site.grant(token), place) == "nothing"


@pytest.mark.parametrize("end", ["sign-out", "role", "removed"])
def test_what_is_replayed_after_the_right_has_ended(site: Site, end: str) -> None:
    (place,) = site.stored(item("a", 1))
    token = site.sign_in()
    grant = site.grant(token)
    assert site.refusal(grant, place) == "nothing"
    began = time.monotonic()
    {"sign-out": lambda: site.sign_out(token), "role": lambda: site.set_role(NONE), "removed": site.delete}[end]()
    wait_for(lambda: site.refusal(grant, place) == "GRANT_INVALID")
    assert time.monotonic() - began < allowed(5)
    wait_for(lambda: ("rad", "GRANT_INVALID", "127.0.0.1") in site.audit())
    # A grant that was never used is not let in for a moment either.
    assert site.refusal(site.grant(token), place) == "GRANT_INVALID"


def test_what_is_held_is_for_those_who_reconcile(site: Site) -> None:
    open_, held = item("a", 1), item("a", 2, station="CT2")
    places = site.stored(open_, held)
    site.hold(held)
    radiologist, technologist = site.grant(site.sign_in()), site.grant(site.sign_in("tech"), user="tech")
    assert [site.refusal(technologist, place) for place in places] == ["nothing"] * 2
    assert [site.refusal(radiologist, place) for place in places] == ["nothing", "OBJECT_NOT_FOUND"]
    # The same as for what is not there, even though it can be guessed where it is.
    site.set_role(RADIOLOGIST, "tech")
    wait_for(lambda: site.refusal(technologist, places[1]) == "OBJECT_NOT_FOUND")
    assert site.refusal(technologist, places[0]) == "nothing"


def test_what_the_database_does_not_know_yet_is_not_there(site: Site) -> None:
    (place,) = site.stored(item("a", 1))
    grant = site.grant(site.sign_in())
    pump = site.mesh.running["archive-server-0"]._services._services[3]
    pump._worker.stop(5.0)
    late = item("a", 2)
    (unregistered,) = [c.object for c in site.mesh.send(late)]
    assert site.refusal(grant, place) == "nothing"
    assert site.refusal(grant, unregistered) == "OBJECT_NOT_FOUND"


def test_an_evicted_study_is_read_from_the_tier(site: Site) -> None:
    site.mesh.stop("archive-server-0")
    site.mesh.archive(quiet=0.05)
    it = item("a", 1, os.urandom(CHUNK + 5))
    (place,) = site.stored(it)
    wait_for(lambda: site.mesh.residences("a") != [1])
    site.mesh.evict("a")
    wait_for(lambda: site.mesh.residences("a") == [PERMANENT])
    wait_for(lambda: site.store.alive)
    assert site.read(site.grant(site.sign_in()), place) == it.data


def test_without_the_database_nothing_begins(site: Site) -> None:
    (place,) = site.stored(item("a", 1))
    token = site.sign_in()
    grant = site.grant(token)
    channel = site.channel()
    site.mesh.kill("database-server")
    reads = lambda: _outcome(site, channel, grant, place)  # noqa: E731
    assert reads() == "PEER_UNAVAILABLE", "it could not be audited"
    site.mesh.database()
    wait_for(lambda: reads() == "nothing")


def _outcome(site: Site, channel: grpc.Channel, grant: bytes, place: ObjectReference) -> str:
    site.channel = lambda: channel  # type: ignore[method-assign]
    return site.refusal(grant, place)


class LongRead(threading.Thread):
    """Reads a long object, slowly or not at all after the first piece, and notes when and how it ended."""

    def __init__(self, call: Any, seconds: float) -> None:
        super().__init__(daemon=True)
        self._call, self._seconds = call, seconds
        self.received, self.ended, self.reason = 0, 0.0, ""
        self.begun = threading.Event()
        self._never = threading.Event()

    def run(self) -> None:
        try:
            for message in self._call:
                self.received += len(message.data)
                self.begun.set()
                self._never.wait(self._seconds)
        except grpc.RpcError as error:
            self.reason = from_rpc_error(error).reason
        self.ended = time.monotonic()


def long_read(site: Site, name: str = "rad", study: object = "a", seconds: float = 0.2) -> tuple[LongRead, str, Item]:
    it = item(study, 1, bytes(LONG))
    (place,) = site.stored(it)
    token = site.sign_in(name)
    thread = LongRead(site.call(site.grant(token, study, user=name), place), seconds)
    thread.start()
    assert thread.begun.wait(60)
    return thread, token, it


def test_long_reads_end_with_the_right_to_them(site: Site) -> None:
    """All at once, for each takes seconds; the last is never taken from, and held up by nobody but its reader."""
    ends: dict[str, Callable[[str, Item], None]] = {
        "sign-out": lambda token, _: site.sign_out(token),
        "role": lambda _token, _item: site.set_role(NONE, "role"),
        "removed": lambda _token, _item: site.delete("removed"),
        "held": lambda _token, it: site.hold(it),
        "stuck": lambda token, _: site.sign_out(token),
    }
    for name in ends:
        site.add(name, RADIOLOGIST)
    reads = {name: long_read(site, name, name, 3600.0 if name == "stuck" else 0.2) for name in ends}
    reader, _, held = long_read(site, "tech", "tech", 0.04)
    running = lambda: site.mesh.contexts["archive-server-0"].status.figures()["local_reads"]  # noqa: E731
    assert running() == len(reads) + 1
    began = time.monotonic()
    for name, (_, token, it) in reads.items():
        ends[name](token, it)
    site.hold(held)
    for name, (thread, _, _) in reads.items():
        if name != "stuck":
            thread.join(60)
            assert (name, thread.reason) == (name, "GRANT_INVALID")
            assert thread.ended - began < 5
            assert thread.received < LONG
    wait_for(lambda: running() <= 1)
    assert time.monotonic() - began < allowed(5)
    # Who has the right `reconcile` reads on when the study is held.
    reader.join(60)
    assert (reader.received, reader.reason) == (LONG, "")


def test_a_read_that_cannot_be_confirmed_ends(site: Site) -> None:
    thread, _, _ = long_read(site)
    began = time.monotonic()
    site.mesh.kill("database-server")
    thread.join(60)
    assert thread.ended - began < 5
    assert thread.reason in ("PEER_UNAVAILABLE", "CANCELLED")
    site.mesh.database()


def test_a_restarted_database_ends_no_read(site: Site) -> None:
    thread, _, _ = long_read(site, seconds=0.04)
    site.mesh.kill("database-server")
    site.mesh.database()
    thread.join(60)
    assert (thread.received, thread.reason) == (LONG, "")


def test_a_port_that_is_taken_stops_no_archive(site: Site) -> None:
    site.mesh.stop("archive-server-0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        site.mesh.archive(quiet=3600.0, client_port=port)
        status = site.mesh.contexts["archive-server-0"].status
        assert [reason for reason, _, _ in status.alarms()] == ["PORT_IN_USE"]
        wait_for(lambda: site.store.alive and not site.store.client_url)
        (place,) = site.stored(item("a", 1))
        assert site.mesh.read(place)[0]
    wait_for(lambda: site.store.client_url == f"grpc://127.0.0.1:{port}")
    assert not status.alarms()
    assert site.refusal(site.grant(site.sign_in()), place) == "nothing"


def test_nowhere_means_nowhere(site: Site) -> None:
    site.mesh.stop("archive-server-0")
    site.mesh.archive(client_bind="")
    wait_for(lambda: site.store.alive)
    assert site.store.client_url == ""


def test_beyond_loopback_it_is_tls(site: Site) -> None:
    site.mesh.stop("archive-server-0")
    site.mesh.archive(quiet=3600.0, client_bind="0.0.0.0")
    wait_for(lambda: site.store.client_url.startswith("grpcs://"))
    host, _, port = site.store.client_url.removeprefix("grpcs://").rpartition(":")
    assert host == socket.getfqdn()
    (place,) = site.stored(item("a", 1))
    ca = (site.mesh.mesh.folder / "credentials" / "ca.pem").read_bytes()
    target = f"127.0.0.1:{port}"
    grant = site.grant(site.sign_in())
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(ca)) as channel:
        assert _outcome(site, channel, grant, place) == "nothing"
    with grpc.insecure_channel(target) as channel:
        assert _outcome(site, channel, grant, place) == "PEER_UNAVAILABLE"
    context = ssl.create_default_context(cadata=ca.decode())
    with socket.create_connection(("127.0.0.1", int(port)), 5) as plain:
        assert context.wrap_socket(plain, server_hostname="archive-server-0").version() == "TLSv1.3"
