"""Processes that are killed, disks that fail, damaged files: nothing acknowledged is lost or doubled."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import lmdb
import pytest
from store_support import (
    CHUNK,
    all_rows,
    body,
    digest_of,
    header,
    open_store,
    put,
    read,
    send,
    sha256,
    transfer_id,
    uid,
)
from waiting import wait_for

from radmesh.dicom.uids import study_hash
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import Outcome, Ref, Residence, environment, lmdb_store

HERE = Path(__file__).parent


def environment_of(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


# -- kill -9


def test_a_killed_process_loses_and_doubles_nothing(root):
    """Killed again and again at any moment; the next process goes on with the same store."""
    dice = random.Random(1)
    acknowledged: dict[Ref, tuple[str, str]] = {}
    for round_ in range(8):
        command = [sys.executable, str(HERE / "killed.py"), str(root), str(round_ // 2), str(round_ % 2 * 3)]
        with subprocess.Popen(command, env=environment_of(), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == '"open"\n'
            timer = threading.Timer(dice.uniform(0.02, 0.3), process.send_signal, (signal.SIGKILL,))
            timer.start()
            for line in process.stdout:
                if line.endswith("\n"):
                    place, sop, digest = json.loads(line)
                    acknowledged[Ref(*place)] = (sop, digest)
        assert process.returncode == -signal.SIGKILL
    store = open_store(root)
    count = Counter((row.header.sop_instance_uid, row.sha256) for row in all_rows(store))
    assert set(count.values()) == {1}
    for ref, (sop, digest) in acknowledged.items():
        assert store.row(ref).header.sop_instance_uid == sop
        assert digest_of(store, ref).hex() == digest
    offered = {(h, g): last for h, g, _, last in store.unregistered()}
    for row in all_rows(store):
        assert row.ref.sequence <= offered[row.ref.study_hash, row.ref.generation]
    assert len(acknowledged) > 100
    store.close()


# -- a disk that fails


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("faults") / "faults.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(made), str(HERE / "faults.c"), "-lpthread"]
    subprocess.run(command, check=True)
    return made


def test_a_failing_disk_fails_objects_and_loses_none(faults, root):
    """Writes, syncs and names that fail, of study files and of the catalogue; then the disk is well again."""
    root.mkdir()
    command = [sys.executable, str(HERE / "faulty.py"), str(root)]
    done = subprocess.run(
        command, env=environment_of(LD_PRELOAD=str(faults)), stdout=subprocess.PIPE, text=True, check=True
    )
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(case["hits"] > 0 for case in cases) > 30
    for case in cases:
        assert bool(case["hits"]) == bool(case["failed"]), case
        assert set(case["failed"]) <= {"COMMIT_FAILED", "STORAGE_FULL"}, case
        assert (case["unreadable"], case["lost"], case["again"]) == (0, 0, {}), case
        assert (case["acknowledged"], case["instances"], case["most"]) == (30, 31, 1), case
        assert "OBJECT_CORRUPT" not in case["alarms"], case


def test_a_full_environment_makes_place_for_the_next(opened, monkeypatch):
    monkeypatch.setattr(environment, "MAP_SIZE", 4 << 20)
    store = opened()
    stored, failed = {}, 0
    for number in range(60):
        data = body(300_000, number)
        try:
            stored[put(store, header(sop=number), data).ref] = data
        except RadmeshError as error:
            assert error.reason == "COMMIT_FAILED"
            failed += 1
            stored[put(store, header(sop=number), data).ref] = data
    assert 2 < failed < 10
    assert len({ref.generation for ref in stored}) == failed + 1
    assert all(read(store, ref) == data for ref, data in stored.items())
    wait_for(lambda: not store._suspect)
    again = put(store, header(sop=0), body(300_000, 0))
    assert again.outcome is Outcome.ALREADY
    assert len(all_rows(store)) == 60


def test_what_was_sealed_is_hashed_again_before_it_is_counted_on(opened, root, monkeypatch):
    """Also after a restart; what is damaged is no reason to say that an object is there already."""
    monkeypatch.setattr(environment, "MAP_SIZE", 4 << 20)
    store = opened()
    stored = {}
    with pytest.raises(RadmeshError):
        for number in range(60):
            stored[number] = put(store, header(sop=number), body(300_000, number)).ref
    store.close()
    path = file_of(root, stored[1])
    data = bytearray(path.read_bytes())
    data[data.index(body(300_000, 1)[4096:9000]) + 5] ^= 1
    path.write_bytes(data)
    alarms: list[str] = []
    store = opened(alarm=lambda reason, _text: alarms.append(reason))
    wait_for(lambda: "OBJECT_CORRUPT" in alarms)
    assert put(store, header(sop=1), body(300_000, 1)).ref == Ref(stored[1].study_hash, 2, 1)
    assert put(store, header(sop=2), body(300_000, 2)).ref == stored[2]


def test_what_was_sealed_becomes_permanent_and_leaves(opened, root, monkeypatch):
    """Else the cache of a disk that was full once could never be emptied."""
    monkeypatch.setattr(environment, "MAP_SIZE", 4 << 20)
    store = opened()
    refs = []
    with pytest.raises(RadmeshError):
        refs.extend(put(store, header(sop=number), body(300_000, number)).ref for number in range(60))
    put(store, header(sop="next"), b"next")
    for again in range(2):
        wait_for(lambda looked=store._hashing: not looked)
        assert store.unsettled(refs[0].study_hash, 1) == refs[again:]
        store.set_permanent(refs[again : again + 1])
        assert store.residence(refs[again]) is Residence.CACHE_AND_PERMANENT
        store.close()
        store = opened()
    wait_for(lambda: not store._hashing)
    store.set_permanent(refs)
    store.mark_registered(refs[0].study_hash, 1, len(refs))
    assert store.evict(refs[0].study_hash, 1) > 3_000_000
    assert put(store, header(sop=0), body(300_000, 0)).outcome is Outcome.ALREADY


def test_a_sealed_environment_is_not_written_before_it_was_hashed_again(opened, monkeypatch):
    monkeypatch.setattr(environment, "MAP_SIZE", 4 << 20)
    store = opened()
    hold = threading.Event()
    store._background.submit(hold.wait, 20)
    ref = put(store, header(), b"1").ref
    with pytest.raises(RadmeshError):
        send(store, header(sop=2), body(5 * CHUNK, 2), 2)
    for call in (lambda: store.set_permanent([ref]), lambda: store.unsettled(ref.study_hash, 1)):
        with pytest.raises(RadmeshError) as caught:
            call()
        assert caught.value.reason == "STORE_BUSY"
    hold.set()
    wait_for(lambda: not store._hashing)
    store.set_permanent([ref])
    assert store.unsettled(ref.study_hash, 1) == []


def test_a_transfer_in_a_sealed_environment_fails_and_begins_anew(opened, monkeypatch):
    monkeypatch.setattr(environment, "MAP_SIZE", 4 << 20)
    store = opened()
    data = body(3 * CHUNK)
    first = store.begin(transfer_id(1), header(sop=1))
    first.write(0, data[:CHUNK])
    first.wait(CHUNK, 10)
    with pytest.raises(RadmeshError) as caught:
        send(store, header(sop=2), body(4 * CHUNK, 2), 2)
    assert caught.value.reason == "COMMIT_FAILED"
    with pytest.raises(RadmeshError) as caught:
        for number in range(1, 3):
            first.write(number * CHUNK, data[number * CHUNK : (number + 1) * CHUNK])
        first.commit(len(data), sha256(data), queryable=b"", remarks=())
    assert caught.value.reason == "COMMIT_FAILED"
    ref = send(store, header(sop=1), data, 1).ref
    assert (ref.generation, digest_of(store, ref)) == (2, sha256(data))


# -- files that are gone or damaged


def file_of(root: Path, ref: Ref) -> Path:
    return root / "studies" / ref.study_hash[:2] / f"{ref.study_hash}.{ref.generation}"


def test_a_file_that_the_catalogue_does_not_know_is_adopted(store, opened, root):
    refs = [put(store, header(study=n, sop=n), body(5_000, n)).ref for n in range(5)]
    store.mark_registered(refs[0].study_hash, 1, 1)
    store.close()
    for path in (root / "catalogue").iterdir():
        path.unlink()
    store = opened()
    assert sorted(row.ref for row in all_rows(store)) == sorted(refs)
    assert [read(store, ref) for ref in refs] == [body(5_000, n) for n in range(5)]
    # It is not known what was registered: everything is again.
    assert sorted((h, g, r, last) for h, g, r, last in store.unregistered()) == sorted(
        (ref.study_hash, 1, 0, 1) for ref in refs
    )
    assert put(store, header(study=0, sop="new"), b"x").ref.sequence == 2


def test_what_was_evicted_is_known_without_the_catalogue(store, opened, root):
    ref = put(store, header(), b"1").ref
    store.set_permanent([ref])
    store.mark_registered(ref.study_hash, 1, 1)
    store.evict(ref.study_hash, 1)
    store.close()
    for path in (root / "catalogue").iterdir():
        path.unlink()
    store = opened()
    assert store.residence(ref) is Residence.PERMANENT
    assert put(store, header(), b"1").outcome is Outcome.ALREADY
    assert put(store, header(), b"2").ref == Ref(ref.study_hash, 2, 1)


@pytest.mark.parametrize("damage", [b"", b"x", bytes(8192), b"\xff" * 20_000])
def test_a_damaged_catalogue_is_made_anew_and_kept(store, opened, root, damage):
    ref = put(store, header(), b"1").ref
    store.close()
    (root / "catalogue" / "data.mdb").write_bytes(damage)
    alarms = []
    store = opened(alarm=lambda reason, _text: alarms.append(reason))
    assert read(store, ref) == b"1"
    assert alarms == (["CATALOGUE_REPLACED"] if damage else [])
    assert not damage or [p.read_bytes() for p in (root / "catalogue").glob("damaged-*")] == [damage]


@pytest.mark.parametrize("damage", [None, b"", b"x", bytes(8192), b"\xff" * 20_000])
@pytest.mark.parametrize("registered", [False, True])
def test_a_damaged_study_stops_nothing_else(store, opened, root, damage, registered):
    ref = put(store, header(study=0), b"1").ref
    other = put(store, header(study=1), b"2").ref
    if registered:
        store.mark_registered(ref.study_hash, 1, 1)
    store.close()
    if damage is None:
        file_of(root, ref).unlink()
    else:
        file_of(root, ref).write_bytes(damage)
    alarms = []
    store = opened(alarm=lambda reason, _text: alarms.append(reason))
    assert read(store, other) == b"2"
    with pytest.raises(RadmeshError) as caught:
        read(store, ref)
    assert caught.value.reason in ("OBJECT_NOT_FOUND", "OBJECT_CORRUPT")
    assert put(store, header(study=0, sop=1), b"3").outcome is Outcome.STORED
    assert put(store, header(study=1, sop=1), b"4").ref == Ref(other.study_hash, 1, 2)
    if damage is not None:
        # What cannot be read is left for people; nothing is written into it.
        assert file_of(root, ref).read_bytes() == damage
    if damage is not None or registered:
        assert set(alarms) == {"CACHE_COPY_LOST"}


def test_a_file_that_was_cut_short_is_corrupt_and_kills_nobody(store, opened, root):
    data = {n: body(100_000, n) for n in range(20)}
    refs = {n: put(store, header(sop=n), d).ref for n, d in data.items()}
    store.close()
    path = file_of(root, refs[0])
    os.truncate(path, path.stat().st_size // 2)
    store = opened()
    found = Counter()
    for n, ref in refs.items():
        try:
            found["good" if read(store, ref) == data[n] else "other"] += 1
        except RadmeshError as error:
            found[error.reason] += 1
    assert set(found) <= {"good", "other", "OBJECT_CORRUPT", "OBJECT_NOT_FOUND"}
    assert found["good"] < 20


def test_a_file_that_goes_while_the_store_is_open_is_not_made_again_empty(store, root):
    ref = put(store, header(), b"1").ref
    with store._lock:
        environment_ = store._open.pop((ref.study_hash, 1))
        del store._writable_now[ref.study_hash]
        environment_.close()
    file_of(root, ref).unlink()
    with pytest.raises(RadmeshError) as caught:
        store.row(ref)
    assert caught.value.reason == "OBJECT_NOT_FOUND"
    assert put(store, header(sop=1), b"2").ref == Ref(ref.study_hash, 2, 1)


def test_what_a_crash_left_half_made_is_swept(store, opened, root):
    ref = put(store, header(), b"1").ref
    store.close()
    folder = file_of(root, ref).parent
    for name in (f"{study_hash(uid('x'))}.1.new", f"{study_hash(uid('x'))}.1.new-lock"):
        (folder / name).write_bytes(b"half")
    (root / "trash" / "something").write_bytes(b"gone")
    (folder / "notes of somebody").write_bytes(b"kept")
    store = opened()
    assert read(store, ref) == b"1"
    assert sorted(p.name for p in folder.iterdir() if not p.name.endswith("-lock")) == [
        f"{ref.study_hash}.1",
        "notes of somebody",
    ]
    assert not list((root / "trash").iterdir())


@pytest.mark.parametrize("where", ["rows", "state", "renamed"])
def test_a_crash_within_an_eviction_is_finished(store, opened, root, where, monkeypatch):
    """The process ends after the rows were saved, after the state was, or after the file was renamed."""
    refs = [put(store, header(sop=n), body(9_000, n)).ref for n in range(3)]
    key = (refs[0].study_hash, 1)
    store.set_permanent(refs)
    store.mark_registered(*key, 3)

    class CrashError(BaseException):
        pass

    def crash(*_arguments, **_named):
        raise CrashError

    update = store._catalogue.update
    if where == "rows":
        monkeypatch.setattr(store._catalogue, "update", crash)
    elif where == "state":
        monkeypatch.setattr(store, "_to_trash", crash)
    else:
        monkeypatch.setattr(
            store._catalogue, "update", lambda *a, **n: crash() if n["state"] == "PERMANENT_ONLY" else update(*a, **n)
        )
    with pytest.raises(CrashError):
        store.evict(*key)
    monkeypatch.undo()
    store.close()
    store = opened()
    states = [state.state for state in store.studies()]
    assert states == (["OPEN"] if where == "rows" else ["PERMANENT_ONLY"])
    assert [row.ref for row in all_rows(store)] == refs
    late = put(store, header(sop="late"), b"late").ref
    assert late == (Ref(*key, 4) if where == "rows" else Ref(key[0], 2, 1))
    if where == "rows":
        assert [read(store, ref) for ref in refs] == [body(9_000, n) for n in range(3)]
        store.set_permanent([late])
        store.mark_registered(*key, 4)
    else:
        assert all(store.residence(ref) is Residence.PERMANENT for ref in refs)
        return
    store.evict(*key)
    assert len(all_rows(store)) == 4


@pytest.mark.parametrize("where", ["state", "renamed"])
def test_a_crash_within_a_removal_is_finished(opened, root, where, monkeypatch):
    store = opened(spool=True)
    ref = put(store, header(), b"1").ref
    put(store, header(study=1), b"2")

    class CrashError(BaseException):
        pass

    def crash(*_arguments, **_named):
        raise CrashError

    monkeypatch.setattr(*((store, "_to_trash") if where == "state" else (store._catalogue, "retire")), crash)
    with pytest.raises(CrashError):
        store.remove_study(ref.study_hash, 1, 1)
    monkeypatch.undo()
    store.close()
    alarms: list[str] = []
    store = opened(spool=True, alarm=lambda reason, _text: alarms.append(reason))
    assert [row.header.study_instance_uid for row in all_rows(store)] == [uid("study", 1)]
    assert not file_of(root, ref).exists()
    assert alarms == []
    assert put(store, header(), b"1").ref == Ref(ref.study_hash, 2, 1)


def test_more_than_was_to_leave_stays(store, opened, root):
    """Were something in a file that leaves which was not there when that was decided, it stays."""
    ref = put(store, header(), b"1").ref
    late = put(store, header(sop=1), b"2").ref
    store._catalogue.update(ref.study_hash, 1, state="REMOVED", last=1)
    store.close()
    store = opened()
    assert [read(store, one) for one in (ref, late)] == [b"1", b"2"]
    store._catalogue.update(ref.study_hash, 1, state="EVICTING", last=2)
    store.close()
    store = opened()  # without rows that were saved
    assert [read(store, one) for one in (ref, late)] == [b"1", b"2"]
    assert put(store, header(sop=2), b"3").ref == Ref(ref.study_hash, 2, 1)


def test_a_newer_format_is_not_touched(store, opened, root):
    put(store, header(), b"1")
    store.close()
    with lmdb.open(str(root / "catalogue"), map_size=1 << 30) as catalogue, catalogue.begin(write=True) as transaction:
        transaction.put(b"v", b"2")
    with pytest.raises(RadmeshError) as caught:
        opened()
    assert caught.value.reason == "DATA_IN_USE"


# -- bounds


def test_open_environments_are_bounded_also_while_nothing_is_registered(opened, monkeypatch):
    monkeypatch.setattr(lmdb_store, "OPEN_MAX", 16)
    store = opened()
    refs = {}
    for number in range(120):
        refs[number] = put(store, header(study=number), b"%d" % number).ref
        assert len(store._open) <= 16
    # Streams that were cut hold nothing for long either.
    for number in range(40):
        transfer = store.begin(transfer_id(number), header(study=number, sop="large"))
        transfer.write(0, body(1000, number))
        transfer.wait(1000, 10)
        transfer.active_at -= 100
    for number, ref in refs.items():
        assert read(store, ref) == b"%d" % number
        assert len(store._open) <= 17
    assert sum(last - registered for _, _, registered, last in store.unregistered()) == 120
    for number, ref in refs.items():
        store.mark_registered(ref.study_hash, 1, 1)
        assert put(store, header(study=number, sop=2), b"more").ref == Ref(ref.study_hash, 1, 2)
    store.close()
    store = opened()
    assert {(h, r, last) for h, _, r, last in store.unregistered()} == {(ref.study_hash, 1, 2) for ref in refs.values()}
    for number in range(40):
        assert store.begin(transfer_id(number), header(study=number, sop="large")).acknowledged_offset == 1000


def test_a_low_limit_of_files_is_enough(root):
    """Hundreds of studies in a process that may have 256 files open."""
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[3])))\n"
        "from pathlib import Path\n"
        "from store_support import header, open_store, put, read\n"
        "store = open_store(Path(sys.argv[1]))\n"
        "refs = [put(store, header(study=n), b'x').ref for n in range(300)]\n"
        "assert all(read(store, ref) == b'x' for ref in refs)\n"
        "store.close()\n"
    )
    hard = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for limit in (256, hard):
        command = [sys.executable, "-c", script, str(root / str(limit)), str(HERE.parent / "support"), str(limit)]
        root.mkdir(exist_ok=True)
        subprocess.run(command, env=environment_of(), check=True)


def test_a_large_object_passes_in_constant_memory(root):
    """256 MiB; 2 GiB with RADMESH_TEST_LARGE=1."""
    size = (2048 if os.environ.get("RADMESH_TEST_LARGE") else 256) << 20
    free = os.statvfs(root.parent)
    if free.f_bavail * free.f_frsize < 2 * size:
        pytest.skip("no room on the file system")
    script = (
        "import hashlib, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from store_support import CHUNK, body, header, open_store, rss_anon, transfer_id\n"
        "size = int(sys.argv[3])\n"
        "store = open_store(Path(sys.argv[1]))\n"
        "block, digest, most = body(CHUNK), hashlib.sha256(), 0\n"
        "transfer = store.begin(transfer_id(1), header())\n"
        "before = rss_anon()\n"
        "for offset in range(0, size, CHUNK):\n"
        "    data = (offset.to_bytes(8, 'big') + block)[: min(CHUNK, size - offset)]\n"
        "    digest.update(data)\n"
        "    transfer.write(offset, data)\n"
        "    most = max(most, rss_anon())\n"
        "ref = transfer.commit(size, digest.digest(), queryable=b'', remarks=()).ref\n"
        "again = hashlib.sha256()\n"
        "with store.read(ref) as reader:\n"
        "    for piece in reader:\n"
        "        again.update(piece)\n"
        "        most = max(most, rss_anon())\n"
        "assert again.digest() == digest.digest()\n"
        "store.close()\n"
        "print(most - before)\n"
    )
    command = [sys.executable, "-c", script, str(root), str(HERE.parent / "support"), str(size)]
    done = subprocess.run(command, env=environment_of(), check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) < 48 << 20  # two batches at most, and the pages of the one that is being committed


def test_a_fast_sender_does_not_eat_up_the_reserve(opened, root, monkeypatch):
    """Room is not measured for every object; what was taken since is counted. Eviction needs the reserve."""
    disk, reserve = 24 << 20, 4 << 20

    def free() -> int:
        return disk - sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())

    def statvfs(_path):
        return type("Figures", (), {"f_blocks": disk // 512, "f_frsize": 512, "f_bavail": free() // 512})

    monkeypatch.setattr(lmdb_store.os, "statvfs", statvfs)
    store = opened(reserve=reserve, clock=ManualClock())
    refs = []
    with pytest.raises(RadmeshError) as caught:
        refs.extend(put(store, header(sop=n), body(n * 7919 % 90_000, n)).ref for n in range(1000))
    assert caught.value.reason == "STORAGE_FULL"
    assert reserve - (1 << 20) < free() < reserve + (2 << 20)
    store.set_permanent(refs)
    store.mark_registered(refs[0].study_hash, 1, len(refs))
    store.evict(refs[0].study_hash, 1)
    wait_for(lambda: free() > 20 << 20)
    assert put(store, header(sop="next"), b"x").outcome is Outcome.STORED


def test_uncommitted_bytes_are_bounded_and_waited_for(store, monkeypatch):
    """A disk that stands still holds writers back, and lets them go with a reason."""
    monkeypatch.setattr("radmesh.study_store.lmdb_store.WAIT_SECONDS", 0.2)
    monkeypatch.setattr("radmesh.study_store.transfer.WAIT_SECONDS", 0.2)
    hold = threading.Event()
    commit = store._commit
    data = body(CHUNK)
    transfers = []
    for study in range(6):
        transfer = store.begin(transfer_id(study), header(study))
        transfers.append(transfer)
        there = transfer.environment
        there.committer._commit = lambda batch, there=there: (hold.wait(60), commit(there, batch))
        with pytest.raises(RadmeshError) as caught:
            for number in range(100):
                transfer.write(number * CHUNK, data)
        assert caught.value.reason == "STORE_BUSY"
        # None holds more than two batches.
        assert transfer._received <= 16 << 20
    assert 62 * CHUNK < store._budget.used <= 64 << 20
    hold.set()
    for transfer in transfers:
        transfer.wait(transfer._received, 20)
        assert transfer.acknowledged_offset == transfer._received
    assert store._budget.used == 0
    assert sum(transfer._received for transfer in transfers) > 60 * CHUNK


def test_a_write_that_waits_for_room_hears_why_there_is_none(store, monkeypatch):
    transfer = store.begin(transfer_id(1), header())
    begun, hold = threading.Event(), threading.Event()

    def failing(batch):
        begun.set()
        hold.wait(60)
        raise OSError(28, "No space left on device")

    transfer.environment.committer._commit = failing
    data = body(CHUNK)
    for number in range(16):
        transfer.write(number * CHUNK, data)
    begun.wait(60)
    threading.Timer(0.05, hold.set).start()
    with pytest.raises(RadmeshError) as caught:
        transfer.write(16 * CHUNK, data)
    assert caught.value.reason == "COMMIT_FAILED"
    with pytest.raises(RadmeshError):
        transfer.write(16 * CHUNK, data)
    wait_for(lambda: store._budget.used == 0)


def test_many_large_senders_all_get_on(store):
    """More senders than committing threads: none waits until another has ended."""
    data = body(6 * CHUNK)
    done: list[Ref] = []

    def work(number):
        done.append(send(store, header(study=number), data).ref)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(digest_of(store, ref) == sha256(data) for ref in done)
    assert len(done) == 12


def test_a_failed_batch_takes_no_numbers(store):
    """Something that raises within a transaction fails what is in it, and leaves no gap that others would wait for."""
    ref = put(store, header(), b"1").ref
    environment_ = store._writable_now[ref.study_hash]

    def failing(_transaction):
        environment_._next_sequence += 1
        raise MemoryError

    with pytest.raises(RadmeshError) as caught:
        environment_.committer.run(lmdb_store.Operation(failing, 0), 5)
    assert caught.value.reason == "COMMIT_FAILED"
    assert put(store, header(sop=1), b"2").ref == Ref(ref.study_hash, 2, 1)
    wait_for(lambda: not store._hashing)
    assert store.unsettled(ref.study_hash, 1) == [ref]
