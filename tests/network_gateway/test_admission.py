"""Admission with a real Database Server: who decides where an object goes, and what happens while nobody answers."""

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from component_mesh import Components, item
from database_support import at_once, uid
from waiting import wait_for, within

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.domains import Domains
from radmesh.network_gateway import admission
from radmesh.network_gateway.admission import Admission
from radmesh.network_gateway.placements import Memory
from radmesh.network_gateway.policy import Facts
from radmesh.network_gateway.verifier import Verifier
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Server
from radmesh.transfer.feed import Follower
from radmesh.transfer.model import Ticket

SPOOL = ("spool-0", "unix:/spool", b"s" * 16)
ISSUED = {"database-server": "database", "network-gateway": "gateway"}


class World:
    """A database, stores that only send heartbeats, and the gateway's admission without its servers."""

    def __init__(self, folder: Path, transport: str = "unix") -> None:
        self.mesh = Components(folder, transport)
        self.mesh.database(store_timeout=60)
        self.context = self.mesh.context("network-gateway")
        self.registry = self.mesh.client("archive-server-0", database_pb2, "RegistryService", "database-server")
        self.full = False
        self.patience = 0.0
        self.asked: list[str] = []
        self.servers: dict[int, Server] = {}
        self.memory: Memory
        self.open()

    def open(self) -> None:
        self.memory = Memory(self.context.data / "placements")
        self.admission = Admission(
            self.context,
            self.memory,
            Verifier(self.context, Domains.of({}), deadline=5.0, threads=2),
            place_timeout=2.0,
            verify_timeout=0.2,
            start_patience=self.patience,
            spool=lambda: None if self.full else SPOOL,
        )
        real = self.admission._placement

        class Counted:
            """The real service; says what it was asked."""

            def PlaceStudy(_, request: Any, **options: Any) -> Any:  # noqa: N805
                self.asked.append(request.admission_key.study_instance_uid)
                return real.PlaceStudy(request, **options)

        self.admission._placement = Counted()
        self.revocation = Follower(
            self.context, "revocation", ("hold", "store"), self.admission.changed, self.admission.forget
        )

    def start(self) -> None:
        self.admission.start()
        self.revocation.start()
        wait_for(lambda: self.revocation._revision >= 0)

    def stop(self) -> None:
        self.revocation.stop(2.0)
        self.admission.stop(2.0)
        self.memory.close()

    def beat(self, number: int = 0, *, accepting: bool = True, start: int = 0) -> None:
        """Say that a store is there; each start of it has an epoch of its own."""
        request = database_pb2.HeartbeatRequest(
            store_id=f"archive-{number}",
            kind=common_pb2.STORE_KIND_ARCHIVE,
            target=self.target(number),
            epoch=bytes([number, start]) * 8,
            free_bytes=10**12,
            accepting=accepting,
        )
        who = f"archive-server-{number}"
        self.mesh.client(who, database_pb2, "RegistryService", "database-server").Heartbeat(request, timeout=30.0)

    def target(self, number: int) -> str:
        return self.mesh.mesh.addresses[f"archive-server-{number}"]

    def serve(self, number: int = 0) -> None:
        """An archive that answers, and no more."""
        server = self.servers[number] = self.mesh.mesh.context(f"archive-server-{number}").server()
        server.start()

    def known(self, *numbers: int) -> None:
        """Wait until the gateway knows that these archives live."""
        self.admission._worker.wake()
        wait_for(lambda: {a.store_id for a in self.memory.archives if a.alive} == {f"archive-{n}" for n in numbers})

    def admit(self, study: object = "a", avoid: str = "", **changes: Any) -> Ticket:
        ticket = Ticket.parse(self.admission.admit(Facts(key(study, **changes)), avoid))
        assert self.context.credentials.ticket_verify(ticket.issuer, ticket.payload, ticket.signature)
        assert ticket.study_instance_uid == uid("study", study)
        assert ticket.admission_key == key(study, **changes).digest()
        return ticket

    def close(self) -> None:
        self.stop()
        for server in self.servers.values():
            server.stop(0)
        self.mesh.close()


def key(study: object = "a", **changes: Any) -> AdmissionKey:
    return item(study, 1, **changes).key


def where(ticket: Ticket) -> tuple[str, str]:
    return ticket.store_id, ISSUED[ticket.issuer]


@pytest.fixture
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="rm-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def world(folder: Path) -> Iterator[World]:
    made = World(folder)
    yield made
    made.close()


def database_down(world: World) -> None:
    world.mesh.kill("database-server")


def test_the_database_signs_and_the_ticket_is_kept(world: World) -> None:
    world.beat()
    first = world.admit()
    assert where(first) == ("archive-0", "database")
    assert (first.target, first.epoch) == (world.target(0), bytes(16))
    assert world.admit() == first
    assert len(world.asked) == 1
    other = world.admit(PatientName="Other^Patient")
    assert other.admission_key != first.admission_key
    assert len(world.asked) == 2
    assert world.mesh.places() == {uid("study", "a"): "archive-0"}


def test_a_ticket_that_ends_soon_is_not_given(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.beat()
    world.admit()
    now = world.context.clock.now()
    late = type("Late", (), {"now": lambda _: now.replace(year=now.year + 1)})()
    digest = key().digest()
    assert world.admission._known(digest)
    monkeypatch.setattr(world.admission, "_clock", late)
    assert world.admission._known(digest) is None


def test_twenty_at_once_are_one_question(world: World) -> None:
    world.beat()
    answers = at_once(*[world.admit] * 20)
    assert {where(t) for t in answers} == {("archive-0", "database")}
    assert len({t.payload for t in answers}) == 1
    assert len(world.asked) == 1
    assert not world.admission._asking


def test_twenty_at_once_share_the_answer_also_when_the_database_is_down(world: World) -> None:
    world.serve()
    world.beat()
    world.start()
    world.known(0)
    world.admit()
    database_down(world)
    world.admission.forget()
    world.asked.clear()
    answers = at_once(*[world.admit] * 20)
    assert {where(t) for t in answers} == {("archive-0", "gateway")}, "one question, one answer: the known placement"
    assert len(world.asked) == 1
    assert not world.admission._asking


def test_an_error_is_shared_too(world: World) -> None:
    database_down(world)
    world.full = True
    answers = at_once(*[world.admit] * 10)
    assert {getattr(a, "reason", a) for a in answers} == {"NO_STORE"}
    assert not world.admission._asking


def test_what_is_void_before_it_comes_is_not_kept(world: World) -> None:
    world.beat()
    real = world.admission._placement

    class Slow:
        """A hold comes while the answer is under way."""

        def PlaceStudy(self, request: Any, **options: Any) -> Any:
            answer = real.PlaceStudy(request, **options)
            world.admission.forget(request.admission_key.study_instance_uid)
            return answer

    world.admission._placement = Slow()
    world.admit()
    assert world.admission._known(key().digest()) is None


def test_avoid(world: World) -> None:
    world.beat(0)
    world.beat(1)
    first = world.admit()
    other = world.admit(avoid=first.store_id)
    assert other.store_id != first.store_id
    assert world.admit().store_id == other.store_id, "the new ticket is the one that is kept"


def test_the_only_archive_is_to_be_avoided(world: World) -> None:
    """It has no room for one large object, or has just died: the database would name it again."""
    world.beat()
    world.start()
    world.known(0)
    first = world.admit()
    assert where(first) == ("archive-0", "database")
    assert where(world.admit(avoid="archive-0")) == ("spool-0", "gateway")
    # The others of the study go on into the archive.
    assert world.admit() == first
    world.full = True
    assert where(world.admit(avoid="archive-0")) == ("archive-0", "database")


def test_the_first_archive_is_waited_for(world: World) -> None:
    """Right after a start: its heartbeat comes a moment after the first object."""
    world.patience = 60.0
    world.stop()
    world.open()

    def late() -> None:
        wait_for(lambda: len(world.asked) > 3)
        world.beat()

    first, _ = at_once(world.admit, late)
    assert where(first) == ("archive-0", "database")
    # From then on it is known that there is none at this moment.
    world.beat(accepting=False)
    world.admission.forget()
    before = len(world.asked)
    assert where(world.admit()) == ("spool-0", "gateway")
    assert len(world.asked) == before + 1


def test_the_first_archive_is_not_waited_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_FIRST_HEARTBEAT_SECONDS", 0.2)
    world.patience = 60.0
    world.stop()
    world.open()
    assert where(world.admit()) == ("spool-0", "gateway")
    assert len(world.asked) > 1


def test_no_archive_is_the_spool_and_full_is_no_store(world: World) -> None:
    ticket = world.admit()
    assert where(ticket) == ("spool-0", "gateway")
    assert (ticket.target, ticket.epoch) == SPOOL[1:]
    world.beat(0, accepting=False)
    assert where(world.admit()) == ("spool-0", "gateway")
    world.full = True
    with pytest.raises(RadmeshError) as caught:
        world.admit()
    assert caught.value.reason == "NO_STORE"
    world.beat(0)
    assert where(world.admit()) == ("archive-0", "database"), "as soon as there is an archive"


def test_database_down(world: World) -> None:
    world.serve()
    world.beat()
    world.start()
    world.known(0)
    world.admit("a")
    database_down(world)
    world.admission.forget()
    assert where(world.admit("a")) == ("archive-0", "gateway"), "the last known placement"
    assert where(world.admit("a")) == ("spool-0", "gateway"), "who asks again could not use it"
    assert where(world.admit("b")) == ("spool-0", "gateway"), "nothing is known"
    world.full = True
    for study in ("a", "b"):
        with pytest.raises(RadmeshError) as caught:
            world.admit(study)
        assert caught.value.reason == "NO_STORE"


def test_database_down_and_the_archive_is_to_be_avoided(world: World) -> None:
    world.beat()
    world.start()
    world.known(0)
    world.admit()
    database_down(world)
    assert where(world.admit(avoid="archive-0")) == ("spool-0", "gateway")


@pytest.mark.parametrize("how", ["silent", "gone", "full", "failed somebody"])
def test_both_are_down(world: World, how: str) -> None:
    """A known study goes to the spool at once, and the next ones without a look at the archive."""
    listener = socket.socket(socket.AF_UNIX)
    if how == "silent":
        listener.bind(world.target(0).removeprefix("unix:"))
        listener.listen(1)  # the kernel takes the connection, and nobody answers
    elif how != "gone":
        world.serve()
    world.beat(accepting=True)
    world.start()
    world.known(0)
    world.admit("a")
    world.admit("b")
    if how == "full":
        world.beat(accepting=False)
        wait_for(lambda: [a.accepting for a in world.memory.archives] == [False])
    database_down(world)
    world.admission.forget()
    if how == "failed somebody":
        assert where(world.admit("c", avoid="archive-0")) == ("spool-0", "gateway")
    assert where(world.admit("a")) == ("spool-0", "gateway")
    assert ("archive-0" in world.admission._failed) == (how != "full")
    failed = dict(world.admission._failed)
    assert where(world.admit("b")) == ("spool-0", "gateway")
    assert world.admission._failed == failed, "who was silent a moment ago is not asked again"
    listener.close()


def test_a_restart_without_the_database_still_knows(world: World) -> None:
    world.serve()
    world.beat()
    world.start()
    world.known(0)
    world.admit()
    database_down(world)
    world.stop()
    world.open()
    assert where(world.admit()) == ("archive-0", "gateway")
    world.mesh.database(store_timeout=60)
    world.beat()
    wait_for(lambda: where(world.admit()) == ("archive-0", "database"))


def test_a_change_of_stores_revokes_within_a_second(world: World) -> None:
    world.beat(0)
    world.start()
    world.known(0)
    world.admit()
    assert world.admission._known(key().digest())
    world.beat(0, accepting=False)
    within(lambda: world.admission._known(key().digest()) is None, 1.0)
    assert where(world.admit()) == ("spool-0", "gateway")


def test_a_restarted_archive_is_seen_without_the_feed(world: World) -> None:
    """The poll alone: a follower that was away when the archive began anew must not leave its tickets in use."""
    world.beat()
    world.admission.start()
    world.known(0)
    assert world.admit().epoch == bytes([0, 0]) * 8
    world.beat(start=1)
    wait_for(lambda: world.admit().epoch == bytes([0, 1]) * 8)


def test_a_hold_revokes_its_study_within_a_second(world: World) -> None:
    world.beat(0)
    world.start()
    world.known(0)
    wait_for(lambda: _watching(world))
    world.admit("a")
    world.admit("b")
    feed = world.mesh.running["database-server"]._feed
    feed.write(lambda _connection: (None, [("hold", uid("study", "a"))]))
    within(lambda: world.admission._known(key("a").digest()) is None, 1.0)
    assert world.admission._known(key("b").digest())


def _watching(world: World) -> bool:
    return world.revocation._call is not None and world.revocation._revision >= 0


def test_the_feed_goes_on_where_it_was_when_the_database_is_back(world: World) -> None:
    world.beat(0)
    world.start()
    world.known(0)
    world.admit()
    database_down(world)
    world.mesh.database(store_timeout=60)
    world.beat(0, accepting=False)
    wait_for(lambda: world.admission._known(key().digest()) is None)


def test_a_failing_disk_of_the_gateway_refuses_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.beat(0)

    def failing(*_: Any, **__: Any) -> Any:
        raise lmdb.DiskError("mdb_put: No space left on device")

    monkeypatch.setattr(world.memory, "place", failing)
    assert where(world.admit()) == ("archive-0", "database")


def test_what_is_kept_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_MOST", 3)
    world.beat(0)
    for study in range(6):
        world.admit(study)
    assert len(world.admission._tickets) == 3
    database_down(world)
    for study in range(6, 12):
        world.admit(study)
    assert len(world.admission._own) <= 3


@pytest.mark.parametrize("study", ["", "1" * 65])
def test_impossible_keys_are_refused_by_name(folder: Path, study: str) -> None:
    mesh = Components(folder)
    mesh.database()
    mesh.gateway()
    try:
        odd = AdmissionKey("CT1", study, "", "", "", "", "")
        wait_for(lambda: _reason(lambda: mesh.admit(odd)) == "FIELD_INVALID")
    finally:
        mesh.close()


def _reason(call: Callable[[], Any]) -> str:
    try:
        call()
    except RadmeshError as error:
        return error.reason
    return ""


@pytest.mark.parametrize("transport", ["unix", "tls"])
def test_the_whole_gateway(folder: Path, transport: str) -> None:
    mesh = Components(folder, transport)
    try:
        mesh.database()
        mesh.gateway()
        wait_for(lambda: _reason(lambda: mesh.admit(key())) == "")
        spooled = mesh.admit(key())
        assert where(spooled) == ("spool-0", "gateway")
        mesh.archive()
        wait_for(lambda: where(mesh.admit(key())) == ("archive-0", "database"))
        (committed,) = mesh.send(item("a", 1), by="gateway")
        assert committed.object.store_id == "archive-0"
    finally:
        mesh.close()
