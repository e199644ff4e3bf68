"""Objects whose bytes went bad in the cache: found, marked, stored anew, and said so until it is over."""

import errno
import os
import threading
from pathlib import Path

import pytest
from store_support import CHUNK, body, digest_of, header, put, read, send, sha256
from waiting import wait_for

from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import LmdbStudyStore, Outcome, Ref, Residence, environment


class Alarms:
    """What a store says."""

    def __init__(self) -> None:
        self.now: set[str] = set()
        self.texts: dict[str, str] = {}

    def options(self) -> dict[str, object]:
        return {"alarm": self.begin, "clear": self.now.discard}

    def begin(self, reason: str, text: str) -> None:
        self.now.add(reason)
        self.texts[reason] = text


@pytest.fixture
def alarms() -> Alarms:
    return Alarms()


def flip(root: Path, ref: Ref, data: bytes) -> None:
    """Flip bits of an object in its study's file, which may be open."""
    path = root / "studies" / ref.study_hash[:2] / f"{ref.study_hash}.{ref.generation}"
    raw = path.read_bytes()
    middle = data[len(data) // 2 :][:3000]
    at = raw.index(middle)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in middle[:8]))
        os.fsync(file.fileno())


def reason(call) -> str:
    with pytest.raises(RadmeshError) as caught:
        call()
    return caught.value.reason


@pytest.mark.parametrize("large", [False, True])
def test_what_is_damaged_is_stored_anew_and_read_in_its_place(opened, root, alarms, large):
    store = opened(**alarms.options())
    data = body(2 * CHUNK + 5 if large else 9_000)
    store_it = send if large else put
    ref = store_it(store, header(), data, "first").ref
    other = put(store, header(sop=1), body(9_000, 1)).ref
    flip(root, ref, data)
    assert store_it(store, header(), data).outcome is Outcome.ALREADY, "nobody knows yet"
    assert not store.damage.look_at(other)
    assert store.damage.look_at(ref)
    assert alarms.now == {"OBJECT_CORRUPT"}
    assert reason(lambda: read(store, ref)) == "OBJECT_CORRUPT", "bytes that are known to be wrong are not given away"
    assert store.residence(ref) is Residence.CACHE
    # Also the repetition of the transfer that had brought it.
    anew = store_it(store, header(), data, "first")
    assert (anew.outcome, anew.ref.generation) == (Outcome.STORED, 2)
    assert digest_of(store, ref) == digest_of(store, anew.ref) == sha256(data)
    wait_for(lambda: not alarms.now)
    again = store_it(store, header(), data)
    assert (again.outcome, again.ref) == (Outcome.ALREADY, anew.ref)
    assert [(h, g, last) for h, g, _, last in store.unregistered()] == [
        (ref.study_hash, 1, 2),
        (ref.study_hash, 2, 1),
    ]


def test_marks_outlive_the_process_and_end_with_the_damage(opened, root, alarms):
    store = opened()
    data = body(9_000)
    ref = put(store, header(), data).ref
    flip(root, ref, data)
    assert store.damage.look_at(ref)
    store.close()
    store = opened(**alarms.options())
    wait_for(lambda: alarms.now == {"OBJECT_CORRUPT"})
    anew = put(store, header(), data)
    assert (anew.outcome, anew.ref.generation) == (Outcome.STORED, 2)
    wait_for(lambda: not alarms.now)
    store.close()
    # The disk has what was stored again, as where a file was put back.
    flip_back = root / "studies" / ref.study_hash[:2] / f"{ref.study_hash}.1"
    raw = flip_back.read_bytes()
    middle = data[len(data) // 2 :][:3000]
    broken = bytes(byte ^ 0xFF for byte in middle[:8]) + middle[8:]
    flip_back.write_bytes(raw.replace(broken, middle))
    store = opened(**alarms.options())
    wait_for(lambda: not store.damage)
    assert read(store, ref) == data
    assert put(store, header(), data).ref == ref


def test_a_damaged_object_is_neither_copied_nor_keeps_others_from_leaving(opened, root, alarms):
    store = opened(**alarms.options())
    data = body(9_000, "damaged")
    refs = [put(store, header(sop=n), data if n == 1 else body(9_000, n)).ref for n in range(3)]
    flip(root, refs[1], data)
    assert store.damage.look_at(refs[1])
    assert store.unsettled(refs[0].study_hash, 1) == store.unchecked(refs[0].study_hash, 1) == [refs[0], refs[2]]
    store.set_permanent([refs[0], refs[2]])
    store.mark_registered(refs[0].study_hash, 1, 3)
    assert reason(lambda: store.evict(refs[0].study_hash, 1)) == "NOT_PERMANENT", "what is there is the only copy"
    anew = put(store, header(sop=1), data).ref
    store.evict(refs[0].study_hash, 1)
    assert read(store, refs[1]) == data
    store.set_permanent([anew])
    assert put(store, header(sop=1), data).ref == anew
    wait_for(lambda: not alarms.now)
    store.close()
    store = opened(**alarms.options())
    assert (read(store, refs[1]), store.damage.current(refs[1])) == (data, anew)


def test_what_is_permanent_is_not_stored_twice(opened, root, alarms):
    store = opened(**alarms.options())
    data = body(9_000)
    ref = put(store, header(), data).ref
    store.set_permanent([ref])
    flip(root, ref, data)
    store.damage.question(ref)
    wait_for(lambda: alarms.now == {"CACHE_COPY_LOST"})
    assert reason(lambda: read(store, ref)) == "OBJECT_CORRUPT"
    assert put(store, header(), data).ref == ref
    store.mark_registered(ref.study_hash, 1, 1)
    store.evict(ref.study_hash, 1)
    wait_for(lambda: not alarms.now and not store.damage)
    assert put(store, header(), data).ref == ref


def test_other_content_of_a_damaged_instance_is_a_variant(opened, root):
    store = opened()
    data = body(9_000)
    ref = put(store, header(), data).ref
    variant = put(store, header(), b"other")
    flip(root, ref, data)
    assert store.damage.look_at(ref)
    assert variant.outcome is Outcome.VARIANT
    assert put(store, header(), data).outcome is Outcome.VARIANT, "the same as where it had come first"
    assert put(store, header(), b"other").ref == variant.ref


def test_a_removed_generation_leaves_no_alarm(opened, root, alarms):
    store = opened(spool=True, **alarms.options())
    data = body(9_000)
    ref = put(store, header(), data).ref
    flip(root, ref, data)
    assert store.damage.look_at(ref)
    assert alarms.now == {"OBJECT_CORRUPT"}
    store.remove_study(ref.study_hash, 1, 1)
    assert (alarms.now, bool(store.damage)) == (set(), False)
    store.close()
    assert not opened(spool=True).damage


# -- what is said, and that it ends


def test_a_failed_commit_is_over_when_the_disk_takes_writes(opened, alarms, monkeypatch):
    monkeypatch.setattr(environment, "MAP_SIZE", 4 << 20)
    store = opened(**alarms.options())
    full = threading.Event()
    full.set()
    probe = store._catalogue.probe

    def failing() -> None:
        if full.is_set():
            raise RadmeshError("STORAGE_FULL", os.strerror(errno.ENOSPC))
        probe()

    monkeypatch.setattr(store._catalogue, "probe", failing)
    with pytest.raises(RadmeshError):
        for number in range(60):
            put(store, header(sop=number), body(300_000, number))
    wait_for(lambda: not store._hashing)
    assert alarms.now == {"COMMIT_FAILED"}, "what was committed is whole, and the disk is still full"
    store._sweep()
    assert alarms.now == {"COMMIT_FAILED"}
    full.clear()
    store._sweep()
    assert not alarms.now


def test_a_listener_that_works_again_is_no_alarm(opened, alarms):
    store = opened(**alarms.options())
    failing = True

    def listen(_ref: Ref) -> None:
        if failing:
            raise OSError

    store.on_commit(listen)
    put(store, header(sop=1), b"1")
    assert alarms.now == {"LISTENER_FAILED"}
    failing = False
    put(store, header(sop=2), b"2")
    assert not alarms.now


def test_an_alarm_lasts_while_it_holds_for_anything(opened, root, alarms):
    store: LmdbStudyStore = opened(**alarms.options())
    bodies = [body(9_000, n) for n in range(2)]
    refs = [put(store, header(study=n), data).ref for n, data in enumerate(bodies)]
    for ref, data in zip(refs, bodies, strict=True):
        flip(root, ref, data)
        assert store.damage.look_at(ref)
    assert put(store, header(study=0), bodies[0]).outcome is Outcome.STORED
    wait_for(lambda: store._alarms.about("OBJECT_CORRUPT") == [refs[1]])
    assert alarms.now == {"OBJECT_CORRUPT"}
    assert put(store, header(study=1), bodies[1]).outcome is Outcome.STORED
    wait_for(lambda: not alarms.now)
