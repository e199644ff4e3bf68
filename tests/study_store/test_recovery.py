"""Starts on what is damaged, foreign or full: the store opens, and nothing that was acknowledged is given up."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
from store_support import CHUNK, all_rows, body, header, put, read, transfer_id, uid
from waiting import wait_for

from radmesh.dicom.uids import study_hash
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import Outcome, Ref, environment
from radmesh.study_store.environment import Environment


def file_of(root: Path, ref: Ref) -> Path:
    return root / "studies" / ref.study_hash[:2] / f"{ref.study_hash}.{ref.generation}"


@pytest.mark.parametrize("pages", [range(2, 40), range(3, 40, 2), None])
def test_a_catalogue_with_damage_inside_is_made_anew(store, opened, root, pages):
    """It opens, and only later a page is found to be none: no start may fail by that, today or for ever."""
    refs = {n: put(store, header(study=n), b"%d" % n).ref for n in range(80)}
    store.close()
    path = root / "catalogue" / "data.mdb"
    if pages is None:
        os.truncate(path, 4096 * 3)
    else:
        size = path.stat().st_size
        with path.open("r+b") as file:
            for page in pages:
                file.seek(4096 * page)
                file.write(bytes(4096))
            file.truncate(size)
    # LMDB may end the process that meets such a page; the next start does without.
    script = f"import sys; sys.path[:] = {sys.path!r}; from pathlib import Path; from store_support import open_store\n"
    script += f"store = open_store(Path({str(root)!r})); print(store._catalogue.replaced); store.close()"
    first = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    if first.returncode == 0:
        assert first.stdout == "True\n"
        assert not (root / "catalogue" / "starting").exists()
    else:
        assert -first.returncode in (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV), first.stderr
    alarms: list[str] = []
    store = opened(alarm=lambda reason, _text: alarms.append(reason))
    assert alarms == ([] if first.returncode == 0 else ["CATALOGUE_REPLACED"])
    assert all(read(store, ref) == b"%d" % n for n, ref in refs.items())
    assert {(h, g): last for h, g, _, last in store.unregistered()} == {(ref.study_hash, 1): 1 for ref in refs.values()}
    assert list((root / "catalogue").glob("damaged-*"))
    store.close()
    assert len(all_rows(opened())) == 80


def test_a_start_that_was_cut_short_says_nothing_of_the_catalogue(store, opened, root):
    ref = put(store, header(), b"1").ref
    store.mark_registered(ref.study_hash, 1, 1)
    store.close()
    (root / "catalogue" / "starting").touch()
    store = opened()
    assert not store._catalogue.replaced
    assert not (root / "catalogue" / "starting").exists()
    assert store.generations(ref.study_hash)[0].registered == 1


def test_foreign_files_among_the_studies(store, opened, root):
    ref = put(store, header(), b"1").ref
    store.close()
    strangers = [
        root / "studies" / "lost+found",
        root / "rows" / ".DS_Store",
        file_of(root, ref).with_name(f"{'z' * 32}.1"),
        file_of(root, ref).with_name(f"{ref.study_hash}.0"),
        file_of(root, ref).with_name(f"{ref.study_hash}.99999999999999999999"),
        file_of(root, ref).with_name(f"{ref.study_hash}.x"),
    ]
    for path in strangers:
        path.write_bytes(b"kept")
    store = opened()
    assert read(store, ref) == b"1"
    assert [row.ref for row in all_rows(store)] == [ref]
    assert all(path.read_bytes() == b"kept" for path in strangers)


def test_a_start_on_a_full_disk_with_unfinished_transfers(opened, monkeypatch):
    """What nobody resumes is dropped later; the store serves what it has."""
    store = opened()
    ref = put(store, header(), b"1").ref
    transfer = store.begin(transfer_id(1), header(sop=1))
    transfer.write(0, body(CHUNK))
    transfer.wait(CHUNK, 10)
    store.close()
    drop = Environment.drop_stale_transfers

    def full(*_arguments):
        raise RadmeshError("STORAGE_FULL", os.strerror(28))

    monkeypatch.setattr(Environment, "drop_stale_transfers", full)
    store = opened()
    assert read(store, ref) == b"1"
    monkeypatch.setattr(Environment, "drop_stale_transfers", drop)
    monkeypatch.setattr(environment, "RESUME_SECONDS", -1.0)
    store._sweep()
    with store.environment(ref) as there:
        assert not there.unfinished()


def test_a_sync_that_fails_at_the_start_seals_and_loses_nothing(opened, monkeypatch):
    store = opened()
    ref = put(store, header(), b"1").ref
    store.close()

    def failing(_self):
        raise lmdb.Error(os.strerror(5))

    alarms: set[str] = set()
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "sync", failing)
        store = opened(alarm=lambda reason, _text: alarms.add(reason), clear=alarms.discard)
    wait_for(lambda: not store._hashing)
    assert "CACHE_COPY_LOST" not in alarms
    assert read(store, ref) == b"1"
    assert put(store, header(), b"1").ref == ref
    assert put(store, header(sop=2), b"2").ref == Ref(ref.study_hash, 2, 1)
    assert {(h, g, last) for h, g, _, last in store.unregistered()} >= {(ref.study_hash, 1, 1)}


def test_a_file_that_was_put_back_serves_again(store, opened, root):
    """After a start without it, or with what could not be opened: as where a disk was not mounted, or was copied."""
    refs = [put(store, header(study=n), b"%d" % n).ref for n in range(2)]
    for ref in refs:
        store.mark_registered(ref.study_hash, 1, 1)
    store.close()
    kept = {ref: file_of(root, ref).read_bytes() for ref in refs}
    file_of(root, refs[0]).unlink()
    file_of(root, refs[1]).write_bytes(b"rubbish")
    store = opened()
    for ref in refs:
        with pytest.raises(RadmeshError):
            read(store, ref)
    late = put(store, header(study=0, sop="late"), b"late").ref
    assert late.generation == 2
    store.close()
    for ref in refs:
        file_of(root, ref).write_bytes(kept[ref])
    store = opened()
    wait_for(lambda: not store._hashing)
    assert [read(store, ref) for ref in refs] == [b"0", b"1"]
    assert put(store, header(study=0), b"0").ref == refs[0]
    assert store.unsettled(refs[0].study_hash, 1) == [refs[0]]
    assert put(store, header(study=1, sop="new"), b"new").ref.generation == 2
    assert read(store, late) == b"late"


def test_a_row_that_cannot_be_read_keeps_no_other_from_being_registered(opened):
    alarms: set[str] = set()
    store = opened(alarm=lambda reason, _text: alarms.add(reason), clear=alarms.discard)
    refs = [put(store, header(sop=n), b"%d" % n).ref for n in range(5)]
    with store.environment(refs[0]) as there, there.lmdb.begin(write=True) as transaction:
        for number in (2, 3):
            key = b"x" + number.to_bytes(8, "big")
            transaction.put(key, transaction.get(key)[:50])
    assert [row.ref.sequence for row in store.rows(refs[0].study_hash, 1, limit=2)] == [1, 4]
    assert [row.ref.sequence for row in store.rows(refs[0].study_hash, 1, after=1, limit=1)] == [4]
    wait_for(lambda: alarms == {"OBJECT_CORRUPT"})
    # One after the other is found, and written down.
    wait_for(lambda: store.unsettled(refs[0].study_hash, 1) == [refs[0], refs[3], refs[4]])
    assert put(store, header(sop=1), b"1").outcome is Outcome.STORED
    assert put(store, header(sop=4), b"4").ref == refs[4]


def test_a_row_of_a_newer_version_is_no_damage(opened):
    store = opened()
    ref = put(store, header(), b"1").ref
    with store.environment(ref) as there, there.lmdb.begin(write=True) as transaction:
        key = b"x" + (1).to_bytes(8, "big")
        transaction.put(key, b"\x02" + transaction.get(key)[1:])
    with pytest.raises(RadmeshError) as caught:
        store.rows(ref.study_hash, 1)
    assert caught.value.reason == "OBJECT_CORRUPT"
    assert not store.damage
    assert study_hash(uid("study", 0)) == ref.study_hash
