"""A real Archive Server beside a real Database Server: from Put to the permanent tier, evicted, damaged, restarted."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from component_mesh import BOTH, CACHE, PERMANENT, Components, item, refs
from database_support import uid
from transfer_support import CHUNK
from waiting import comes, wait_for

from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.archive_server.reports import Reports
from radmesh.archive_server.tier import Tier
from radmesh.dicom.uids import study_hash
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import Outcome, Ref

NEVER = 3600.0


@pytest.fixture
def folder() -> Iterator[Path]:
    # In memory where there is such a place, and short, for the names of unix sockets.
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="rm-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def mesh(folder: Path) -> Iterator[Components]:
    made = Components(folder)
    made.database()
    yield made
    made.close()


@pytest.fixture(params=["unix", "tls"])
def either(request: pytest.FixtureRequest, folder: Path) -> Iterator[Components]:
    made = Components(folder, request.param)
    made.database()
    yield made
    made.close()


def placed(mesh: Components) -> None:
    """Wait until the database gives studies to the archive."""
    wait_for(lambda: _places(mesh))


def _places(mesh: Components) -> bool:
    try:
        mesh.place(item("probe", 0).key)
    except RadmeshError as error:
        assert error.reason == "NO_ARCHIVE"
        return False
    return True


def reason(call: Callable[[], Any]) -> str:
    with pytest.raises(RadmeshError) as caught:
        call()
    return caught.value.reason


def alarms(mesh: Components) -> set[str]:
    return {alarm for alarm, _, _ in mesh.contexts["archive-server-0"].status.alarms()}


def damage(mesh: Components, sought: bytes, number: int = 0) -> None:
    """Flip bits in every place of the cache files that has these bytes; the archive is stopped."""
    hits = 0
    for path in (mesh.mesh.folder / f"archive-server-{number}" / "cache" / "studies").rglob("*.*"):
        if path.is_file() and not path.name.endswith("-lock"):
            raw = bytearray(path.read_bytes())
            at = raw.find(sought)
            while at >= 0:
                raw[at] ^= 0xFF
                hits += 1
                at = raw.find(sought, at + 1)
            path.write_bytes(raw)
    assert hits


def test_from_put_to_the_tier_and_out_of_the_cache(either: Components) -> None:
    mesh = either
    mesh.archive(quiet=1.0)
    placed(mesh)
    items = [item("a", n, os.urandom(size)) for n, size in enumerate([0, 1, 3000, CHUNK, 2 * CHUNK + 7])]
    committed = mesh.send(*items)
    assert [c.outcome for c in committed] == [Outcome.STORED] * 5
    metrics = mesh.contexts["archive-server-0"].metrics.registry
    assert mesh.send(items[2])[0].outcome is Outcome.ALREADY
    assert {
        outcome: metrics.get_sample_value("radmesh_objects_committed_total", {"outcome": outcome})
        for outcome in ("STORED", "ALREADY")
    } == {"STORED": 5, "ALREADY": 1}
    assert metrics.get_sample_value("radmesh_bytes_committed_total") == sum(len(i.data) for i in items)
    assert reason(lambda: mesh.evict("a")) == "NOT_PERMANENT"
    wait_for(lambda: mesh.residences("a") == [BOTH] * 5)
    for i, c in zip(items, committed, strict=True):
        assert mesh.read(c.object) == (i.data, BOTH)
    assert mesh.evict("a") > 2 * CHUNK
    wait_for(lambda: mesh.residences("a") == [PERMANENT] * 5)
    for i, c in zip(items, committed, strict=True):
        assert mesh.read(c.object) == (i.data, PERMANENT)
    large = committed[-1].object
    for offset, length in [(0, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (5, 0), (2 * CHUNK, 0)]:
        assert mesh.read(large, offset, length)[0] == items[-1].data[offset : offset + length if length else None]
    assert reason(lambda: mesh.read(large, 10 * CHUNK)) == "RANGE_INVALID"
    assert mesh.evict("a") == 0, "again is a no-op"
    assert [row["sha256"] for row in mesh.locations("a")] == [i.sha256 for i in items]


def test_a_late_image_opens_the_next_generation(mesh: Components) -> None:
    mesh.archive()
    placed(mesh)
    first, late = item("a", 1), item("a", 2)
    (one,) = mesh.send(first)
    wait_for(lambda: mesh.residences("a") == [BOTH])
    mesh.evict("a")
    two, again = mesh.send(late, first)
    assert (one.object.generation, two.object.generation) == (1, 2)
    assert (again.outcome, again.object) == (Outcome.ALREADY, one.object)
    wait_for(lambda: mesh.residences("a") == [PERMANENT, BOTH])
    assert mesh.read(one.object) == (first.data, PERMANENT)
    assert mesh.read(two.object) == (late.data, BOTH)
    mesh.evict("a")
    wait_for(lambda: mesh.residences("a") == [PERMANENT, PERMANENT])
    mesh.stop("archive-server-0")
    mesh.archive()
    for c, i in ((one, first), (two, late)):
        assert mesh.read(c.object) == (i.data, PERMANENT)


def test_a_cache_file_that_is_gone_is_served_by_the_tier(mesh: Components) -> None:
    mesh.archive()
    placed(mesh)
    items = [item("a", n) for n in range(3)]
    committed = mesh.send(*items)
    wait_for(lambda: mesh.residences("a") == [BOTH] * 3)
    mesh.stop("archive-server-0")
    for path in (mesh.mesh.folder / "archive-server-0" / "cache" / "studies").rglob(
        f"{refs(committed)[0].study_hash}*"
    ):
        path.unlink()
    # Also what the database never heard of does not keep it from hearing of the others.
    reports = Reports(mesh.mesh.folder / "archive-server-0" / "reports")
    reports.add([Ref(refs(committed)[0].study_hash, 1, 77), Ref("0" * 32, 1, 1)])
    reports.close()
    mesh.archive()
    assert "CACHE_COPY_LOST" in alarms(mesh)
    for i, c in zip(items, committed, strict=True):
        assert mesh.read(c.object) == (i.data, PERMANENT)
    wait_for(lambda: mesh.residences("a") == [PERMANENT] * 3)
    placed(mesh)
    (late,) = mesh.send(item("a", 9))
    assert late.object.generation == 2
    wait_for(lambda: mesh.residences("a") == [PERMANENT] * 3 + [BOTH])


@pytest.mark.parametrize("told", ["nothing", "reports"])
def test_killed_between_settle_and_what_the_store_is_told(mesh: Components, told: str) -> None:
    archive = mesh.archive(quiet=NEVER)
    placed(mesh)
    items = [item("a", n) for n in range(3)]
    committed = mesh.send(*items)
    wait_for(lambda: mesh.residences("a") == [CACHE] * 3)
    tier = Tier(mesh.mesh.folder / "archive-server-0" / "permanent", mesh.contexts["archive-server-0"].log)
    entries = []
    for ref in refs(committed):
        with archive._store.read(ref) as reader:
            entries.append(tier.write(archive._store.row(ref), reader))
    tier.settle(entries)
    if told == "reports":
        archive._reports.add(refs(committed))
    mesh.kill("archive-server-0")
    mesh.archive()
    wait_for(lambda: mesh.residences("a") == [BOTH] * 3)
    assert len(list(tier.root.rglob("*.dcm"))) == 3
    assert len(list(tier.root.rglob("*.aside*"))) == 0
    mesh.evict("a")
    for i, c in zip(items, committed, strict=True):
        assert mesh.read(c.object) == (i.data, PERMANENT)


def test_a_damaged_record_of_the_cache(mesh: Components) -> None:
    mesh.archive()
    placed(mesh)
    whole, large = item("a", 1), item("a", 2, os.urandom(3 * CHUNK))
    committed = mesh.send(whole, large)
    wait_for(lambda: mesh.residences("a") == [BOTH] * 2)
    mesh.stop("archive-server-0")
    damage(mesh, large.data[CHUNK + 5000 : CHUNK + 5064])
    mesh.archive()
    assert mesh.read(committed[0].object)[0] == whole.data
    assert mesh.read(committed[1].object)[0] == large.data
    assert mesh.read(committed[1].object, 5, CHUNK + 9000)[0] == large.data[5 : CHUNK + 9005]
    wait_for(lambda: alarms(mesh) == {"CACHE_COPY_LOST"})
    assert mesh.read(committed[1].object) == (large.data, PERMANENT), "no more from the cache"
    assert [c.outcome for c in mesh.send(whole, large)] == [Outcome.ALREADY] * 2
    mesh.evict("a")
    wait_for(lambda: not alarms(mesh))
    assert mesh.read(committed[1].object) == (large.data, PERMANENT)


def test_a_damaged_object_keeps_no_other_from_the_tier(mesh: Components) -> None:
    mesh.archive(quiet=NEVER)
    placed(mesh)
    bad = [item("a", n, os.urandom(5000)) for n in range(3)]
    good = [item(study, 1) for study in ("b", "c", "d")]
    committed = mesh.send(*bad, *good)
    wait_for(lambda: mesh.residences("a") == [CACHE] * 3)
    mesh.stop("archive-server-0")
    damage(mesh, bad[1].data[1000:1064])
    mesh.archive()
    for study in ("b", "c", "d"):
        wait_for(lambda study=study: mesh.residences(study) == [BOTH])  # type: ignore[misc]
    wait_for(lambda: mesh.residences("a") == [BOTH, CACHE, BOTH])
    wait_for(lambda: alarms(mesh) == {"OBJECT_CORRUPT"})
    assert reason(lambda: mesh.evict("a")) == "NOT_PERMANENT"
    assert reason(lambda: mesh.read(committed[1].object)) == "OBJECT_CORRUPT"
    # The modality sends it again: it is stored, since what is there is not what was sent.
    again = mesh.send(*bad)
    assert [c.outcome for c in again] == [Outcome.ALREADY, Outcome.STORED, Outcome.ALREADY]
    wait_for(lambda: not alarms(mesh))
    for place in (committed[1].object, again[1].object):
        assert mesh.read(place)[0] == bad[1].data
    wait_for(lambda: mesh.residences("a")[3:] == [BOTH])
    mesh.evict("a")
    wait_for(lambda: mesh.residences("a") == [PERMANENT] * 4)
    for place in (committed[1].object, again[1].object):
        assert mesh.read(place) == (bad[1].data, PERMANENT)
    assert mesh.send(bad[1])[0].object == again[1].object


def test_what_is_to_be_reported_outlives_restarts_without_a_database(mesh: Components) -> None:
    archive = mesh.archive()
    placed(mesh)
    committed = mesh.send(item("a", 1), item("a", 2))
    wait_for(lambda: mesh.residences("a") == [BOTH] * 2)
    mesh.stop("database-server")
    mesh.evict("a")
    assert len(archive._reports) == 2
    mesh.stop("archive-server-0")
    archive = mesh.archive()
    assert len(archive._reports) == 2
    mesh.kill("archive-server-0")
    mesh.database()
    archive = mesh.archive()
    wait_for(lambda: mesh.residences("a") == [PERMANENT] * 2)
    wait_for(lambda: len(archive._reports) == 0)
    assert mesh.read(committed[0].object)[1] == PERMANENT


def test_killed_between_an_eviction_and_its_report(mesh: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = mesh.archive()
    placed(mesh)
    mesh.send(item("a", 1), item("a", 2))
    wait_for(lambda: mesh.residences("a") == [BOTH] * 2)
    wait_for(lambda: len(archive._reports) == 0)
    real = archive._store.evict

    def evict(*arguments: Any) -> int:
        real(*arguments)
        raise SystemError("killed")

    monkeypatch.setattr(archive._store, "evict", evict)
    assert reason(lambda: mesh.evict("a")) == "INTERNAL"
    mesh.kill("archive-server-0")
    mesh.archive()
    wait_for(lambda: mesh.residences("a") == [PERMANENT] * 2)


@pytest.mark.parametrize("change", ["set_permanent", "evict"])
def test_a_report_under_way_does_not_swallow_a_change(
    mesh: Components, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The reporter looks at an object just before it changes, and forgets it just after."""
    archive = mesh.archive(quiet=NEVER if change == "set_permanent" else 0.05)
    placed(mesh)
    mesh.send(item("a", 1))
    before, after = (CACHE, BOTH) if change == "set_permanent" else (BOTH, PERMANENT)
    wait_for(lambda: mesh.residences("a") == [before])
    wait_for(lambda: not len(archive._reports))
    tiering = next(s for s in archive._services._services if type(s).__name__ == "Tiering")
    reporter = next(s for s in archive._services._services if type(s).__name__ == "Reporter")
    real = getattr(archive._store, change)
    calls: list[int] = []

    def changing(*arguments: Any) -> Any:
        # Meanwhile the reporter runs: what it says now is what was before.
        reporter.wake()
        comes(lambda: not len(archive._reports), 0.5)
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(archive._store, change, changing)
    if change == "evict":
        mesh.evict("a")
    else:
        tiering._quiet = 0.0
        tiering._worker.wake()
    wait_for(lambda: mesh.residences("a") == [after])
    assert len(calls) == 1


def test_no_room_above_the_reserve(mesh: Components) -> None:
    archive = mesh.archive(reserve=1 << 60)
    registry = mesh.client("network-gateway", database_pb2, "RegistryService", "database-server")
    stores = wait_for(lambda: list(registry.ListStores(database_pb2.ListStoresRequest(), timeout=30.0).stores))
    assert [(s.store_id, s.alive, s.accepting, s.free_bytes) for s in stores] == [("archive-0", True, False, 0)]
    assert reason(lambda: mesh.place(item("a", 1).key)) == "NO_ARCHIVE"
    assert "STORAGE_FULL" in alarms(mesh)
    mesh.stop("archive-server-0")
    assert archive is not mesh.archive()
    placed(mesh)
    mesh.send(item("a", 1))


def test_a_full_tier_loses_nothing_and_goes_on(mesh: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = mesh.archive(quiet=NEVER)
    placed(mesh)
    items = [item(study, 1) for study in "abc"]
    committed = mesh.send(*items)
    for study in "abc":
        wait_for(lambda study=study: mesh.residences(study) == [CACHE])  # type: ignore[misc]
    tiering = next(s for s in archive._services._services if type(s).__name__ == "Tiering")
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "link", full)
        tiering._quiet = 0.0
        tiering._worker.wake()
        status = mesh.contexts["archive-server-0"].status
        wait_for(lambda: "TIER_FAILED" in {alarm for alarm, _, _ in status.alarms()})
        assert mesh.read(committed[0].object) == (items[0].data, CACHE)
    for study in "abc":
        wait_for(lambda study=study: mesh.residences(study) == [BOTH])  # type: ignore[misc]
    wait_for(lambda: "TIER_FAILED" not in {alarm for alarm, _, _ in status.alarms()})


def test_pages_of_objects_and_studies(mesh: Components) -> None:
    mesh.archive()
    placed(mesh)
    first = mesh.send(*(item("a", n) for n in range(5)))
    wait_for(lambda: mesh.residences("a") == [BOTH] * 5)
    mesh.evict("a")
    committed = first + mesh.send(*(item("a", n) for n in range(5, 12)))
    for study in "bcdefg":
        mesh.send(item(study, 1))
    wait_for(lambda: mesh.residences("a") == [PERMANENT] * 5 + [BOTH] * 7)
    service = mesh.archive_service()
    for size in (1, 2, 5, 6, 12, 0, 100_000):
        found: list[Any] = []
        token = ""
        while True:
            request = archive_pb2.ListObjectsRequest(
                study_hash=study_hash(uid("study", "a")), page_size=size, page_token=token
            )
            answer = service.ListObjects(request, timeout=30.0)
            found += answer.objects
            token = answer.next_page_token
            if not token:
                break
            assert len(answer.objects) == size
        assert [o.object for o in found] == [c.object.message() for c in committed]
        assert [o.residence for o in found] == [PERMANENT] * 5 + [BOTH] * 7
        assert all(o.registered for o in found)
        assert all(o.length == 3000 for o in found)
    for size in (1, 3, 8, 0):
        studies: list[Any] = []
        token = ""
        while True:
            listing = service.ListStudies(
                archive_pb2.ListStudiesRequest(page_size=size, page_token=token), timeout=30.0
            )
            studies += listing.studies
            token = listing.next_page_token
            if not token:
                break
        assert [s.study_hash for s in studies] == sorted(
            [study_hash(uid("study", s)) for s in "abcdefg"] + [study_hash(uid("study", "a"))]
        )
        assert sum(s.objects for s in studies if s.study_instance_uid == uid("study", "a")) == 12
    for request in (
        archive_pb2.ListObjectsRequest(study_hash="../" * 10 + "ab"),
        archive_pb2.ListObjectsRequest(study_hash="0" * 32, page_size=-1),
        archive_pb2.ListObjectsRequest(study_hash="0" * 32, page_token="x.y"),
    ):
        assert reason(lambda request=request: service.ListObjects(request, timeout=30.0)) == "FIELD_INVALID"  # type: ignore[misc]
    unknown = archive_pb2.ListObjectsRequest(study_hash="0" * 32)
    assert reason(lambda: service.ListObjects(unknown, timeout=30.0)) == "STUDY_NOT_FOUND"
    assert reason(lambda: mesh.evict("unknown")) == "STUDY_NOT_FOUND"


def test_reports_keep_what_was_added_again(tmp_path: Path) -> None:
    reports = Reports(tmp_path / "reports")
    those = [Ref("ab" * 16, 1, n) for n in range(1, 600)]
    reports.add(those)
    reports.add(those[:3])
    assert len(reports) == 599
    page = reports.first(256)
    assert [ref for ref, _ in page] == those[:256]
    assert [ref for ref, _ in reports.first(1000, page[-1][0])] == those[256:]
    reports.add(those[1:2])
    reports.remove(page)
    assert [ref for ref, _ in reports.first(2)] == [those[1], those[256]]
    reports.close()
    again = Reports(tmp_path / "reports")
    assert len(again) == 599 - 255
    again.close()
    with pytest.raises(lmdb.Error):
        again.first(1)
