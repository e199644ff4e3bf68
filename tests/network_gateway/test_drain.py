"""The spool empties into the archives: in order, each object once, whatever ends the gateway in between."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from component_mesh import BOTH, SPOOL, Components, Item, item
from database_support import uid
from transfer_support import CHUNK
from waiting import wait_for

from radmesh.dicom.uids import study_hash
from radmesh.network_gateway.drain import Drain
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import Committed


@pytest.fixture
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="rm-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def mesh(folder: Path) -> Iterator[Components]:
    made = Components(folder)
    made.database()
    made.gateway()
    wait_for(lambda: _admits(made))
    yield made
    made.close()


def _admits(mesh: Components) -> bool:
    try:
        return mesh.admit(item("probe", 0).key).store_id == "spool-0"
    except RadmeshError:
        return False


def spooled(mesh: Components, *items: Item) -> list[Committed]:
    committed = mesh.send(*items, by="gateway")
    assert {c.object.store_id for c in committed} == {"spool-0"}
    return committed


def in_archive(mesh: Components, study: object, items: list[Item]) -> None:
    """All are in the archive and permanent, once, in order, as they were sent; nothing is left of them in the spool."""
    wait_for(lambda: mesh.residences(study) == [BOTH] * len(items), 20)
    rows = mesh.locations(study)
    assert [row["store_id"] for row in rows] == ["archive-0"] * len(items)
    assert [row["sop_instance_uid"] for row in rows] == [i.sop for i in items]
    assert [row["sha256"] for row in rows] == [i.sha256 for i in items]
    wait_for(lambda: not spool_files(mesh, study))


def spool_files(mesh: Components, study: object) -> list[Path]:
    root = mesh.mesh.folder / "network-gateway" / "spool" / "studies"
    return list(root.rglob(f"{study_hash(uid('study', study))}.*"))


def drain(mesh: Components) -> Drain:
    services = mesh.running["network-gateway"]._services._services
    return next(service for service in services if isinstance(service, Drain))


def test_drains_in_order_each_once(mesh: Components) -> None:
    a = [item("a", n) for n in range(8)] + [item("a", "large", b"x" * (2 * CHUNK + 5))]
    b = [item("b", n) for n in range(3)]
    committed = spooled(mesh, *a, *b)
    wait_for(lambda: mesh.residences("a") == [SPOOL] * 9)
    assert mesh.read(committed[8].object) == (a[8].data, SPOOL), "what is spooled can be read"
    archive = mesh.archive()
    in_archive(mesh, "a", a)
    in_archive(mesh, "b", b)
    assert drain(mesh).drained == 12
    assert [row.remarks for row in archive._store.rows(study_hash(uid("study", "a")), 1)] == [("SEEN",)] * 9
    # The next that is spooled of the study is another generation.
    mesh.stop("archive-server-0")
    wait_for(lambda: _admits(mesh))
    late = item("a", "late")
    (again,) = spooled(mesh, late)
    assert (again.object.generation, again.object.sequence) == (2, 1)
    mesh.archive()
    in_archive(mesh, "a", [*a, late])


STEPS = ["begin", "commit", "check", "registered", "removed", "remove_study before", "remove_study after"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(mesh: Components, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    items = [item("a", n) for n in range(3)]
    spooled(mesh, *items)
    wait_for(lambda: mesh.residences("a") == [SPOOL] * 3)
    ended: list[str] = []

    def ends(thing: Any, name: str, *, before: bool = False) -> None:
        real = getattr(thing, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if ended:
                raise RadmeshError("INTERNAL", "it is dead")
            answer = None if before else real(*arguments, **options)
            ended.append(step)
            del answer
            raise RadmeshError("INTERNAL", "killed for the test")

        monkeypatch.setattr(thing, name, call)

    now = drain(mesh)
    if step in ("begin", "commit"):
        from radmesh.transfer.sender import Sender

        real = getattr(Sender, step)

        def call(sender: Any, *arguments: Any, **options: Any) -> Any:
            if sender is not now._sender:
                return real(sender, *arguments, **options)
            if not ended:
                real(sender, *arguments, **options)
            ended.append(step)
            raise RadmeshError("INTERNAL", "killed for the test")

        monkeypatch.setattr(Sender, step, call)
    elif step == "check":
        ends(now, "_check")
    elif step in ("registered", "removed"):
        # A client gives its calls by name, so it is wrapped as a whole.
        name = "WaitRegistered" if step == "registered" else "UpdateInstances"
        registry = now._registry

        class Ends:
            def __getattr__(self, asked: str) -> Any:
                return getattr(registry, asked)

        wrapped: Any = Ends()
        setattr(wrapped, name, getattr(registry, name))
        ends(wrapped, name)
        monkeypatch.setattr(now, "_registry", wrapped)
    else:
        ends(now._spool, "remove_study", before=step.endswith("before"))
    mesh.archive()
    wait_for(lambda: ended, 15)
    mesh.kill("network-gateway")
    monkeypatch.undo()
    mesh.gateway()
    in_archive(mesh, "a", items)


def test_a_new_object_during_the_drain_is_not_lost(mesh: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item("a", n) for n in range(3)]
    spooled(mesh, *items)
    wait_for(lambda: mesh.residences("a") == [SPOOL] * 3)
    late = item("a", "late")
    now = drain(mesh)
    real = now._spool.remove_study
    came: list[Any] = []

    def remove(study: str, generation: int, last: int) -> None:
        if not came:
            # An association that still has a ticket into the spool.
            came.append(
                now._spool.put(
                    b"late" * 4, late.header, late.data, sha256=late.sha256, queryable=late.queryable, remarks=()
                )
            )
        real(study, generation, last)

    monkeypatch.setattr(now._spool, "remove_study", remove)
    mesh.archive()
    in_archive(mesh, "a", [*items, late])
    assert came


def test_a_study_that_cannot_be_moved_keeps_no_other(mesh: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = [[item(study, n) for n in range(2)] for study in "abcd"]
    for items in studies:
        spooled(mesh, *items)
    for study in "abcd":
        wait_for(lambda study=study: mesh.residences(study) == [SPOOL] * 2)  # type: ignore[misc]
    now = drain(mesh)
    real = now._move
    broken = {study_hash(uid("study", study)) for study in "ac"}

    def move(row: Any) -> None:
        if row.ref.study_hash in broken:
            raise RadmeshError("OBJECT_CORRUPT", "for the test")
        real(row)

    monkeypatch.setattr(now, "_move", move)
    mesh.archive()
    in_archive(mesh, "b", studies[1])
    in_archive(mesh, "d", studies[3])
    assert mesh.residences("a") == [SPOOL] * 2
    broken.clear()
    in_archive(mesh, "a", studies[0])
    in_archive(mesh, "c", studies[2])


def test_what_the_archive_has_already_is_there_once(mesh: Components) -> None:
    one, two = item("a", 1), item("a", 2)
    mesh.archive()
    wait_for(lambda: mesh.admit(one.key).store_id == "archive-0")
    mesh.send(one, by="gateway")
    mesh.stop("archive-server-0")
    wait_for(lambda: _admits(mesh))
    spooled(mesh, one, two)
    mesh.archive()
    in_archive(mesh, "a", [one, two])


def test_a_queryable_header_that_says_nothing_drains_too(mesh: Components) -> None:
    odd = replace(item("a", 1), queryable=b"")
    spooled(mesh, odd)
    wait_for(lambda: mesh.residences("a") == [SPOOL])
    mesh.archive()
    in_archive(mesh, "a", [odd])


def test_a_spooled_object_that_rotted_is_found_out(mesh: Components) -> None:
    """What does not hash in the archive is looked at in the spool, and said to be damaged there."""
    rotten, sound = item("rotten", 0), item("sound", 0)
    spooled(mesh, rotten, sound)
    wait_for(lambda: mesh.residences("rotten") == [SPOOL] and mesh.residences("sound") == [SPOOL])
    (path,) = (p for p in spool_files(mesh, "rotten") if not p.name.endswith("-lock"))
    at = path.read_bytes().find(rotten.data[-64:])
    assert at > 0
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([rotten.data[-64] ^ 1]))
    mesh.archive()
    in_archive(mesh, "sound", [sound])
    damage = drain(mesh)._spool.damage
    wait_for(lambda: [ref.study_hash for ref in damage.refs()] == [study_hash(uid("study", "rotten"))])
    assert mesh.residences("rotten") == [SPOOL]
