"""What every StudyStore does, whatever it is made of and wherever it lies."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from store_support import (
    CHUNK,
    IMPLICIT,
    all_rows,
    body,
    digest_of,
    header,
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
from radmesh.study_store import Outcome, Ref, Residence


def refused(call, *arguments, **named) -> str:
    """The reason for which a call is refused."""
    with pytest.raises(RadmeshError) as caught:
        call(*arguments, **named)
    return caught.value.reason


# -- storing and reading


@pytest.mark.parametrize("size", [0, 1, 4079, 4080, 4081, 9_000, CHUNK])
def test_a_small_object_comes_back(store, size):
    data = body(size)
    stored = put(store, header(), data, remarks=("BAD_VR 0010,1010", "ODD_LENGTH"), queryable=b"\x08\x00 header")
    assert stored.outcome is Outcome.STORED
    assert (stored.ref.study_hash, stored.ref.sequence) == (study_hash(uid("study", 0)), 1)
    assert read(store, stored.ref) == data
    row = store.row(stored.ref)
    assert (row.ref, row.header, row.length, row.sha256) == (stored.ref, header(), size, sha256(data))
    assert (row.queryable, row.remarks) == (b"\x08\x00 header", ("BAD_VR 0010,1010", "ODD_LENGTH"))
    assert row.receive_time.tzinfo is not None


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_stored(store, kind):
    data = body(9_000)
    assert read(store, put(store, header(), kind(data), sha256=sha256(data)).ref) == data


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])
def test_a_large_object_comes_back(store, size):
    data = body(size)
    ref = send(store, header(), data).ref
    with store.read(ref) as reader:
        assert (reader.size, reader.sha256, reader.residence) == (size, sha256(data), Residence.CACHE)
        pieces = list(reader)
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= CHUNK for piece in pieces)


@pytest.mark.parametrize("chunk", [1, 7_919, 16_384, 500_000])
def test_chunks_of_any_size_make_the_object(store, chunk):
    data = body(min(2 * CHUNK + 17, 300 * chunk))
    assert read(store, send(store, header(), data, chunk=chunk).ref) == data


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 0),
        (0, 1),
        (5, 0),
        (CHUNK - 1, 2),
        (CHUNK, 1),
        (CHUNK, CHUNK),
        (2 * CHUNK + 99, 0),
        (7, 1 << 40),
        (2 * CHUNK + 99, 1),
    ],
)
def test_a_range_is_read(store, offset, length):
    data = body(2 * CHUNK + 100)
    ref = send(store, header(), data).ref
    assert read(store, ref, offset, length) == data[offset : offset + length if length else None]


def test_a_range_beyond_the_object_is_refused(store):
    ref = put(store, header(), body(100)).ref
    empty = put(store, header(sop=1), b"").ref
    for offset, length in [(100, 0), (101, 1), (1 << 63, 1), (-1, 0), (0, -1)]:
        assert refused(store.read, ref, offset, length) == "RANGE_INVALID"
    assert refused(store.read, empty, 1) == "RANGE_INVALID"
    assert read(store, empty) == b""


def test_what_is_not_there_is_not_found(store):
    ref = put(store, header(), b"x").ref
    for missing in (
        replace(ref, sequence=2),
        replace(ref, sequence=0),
        replace(ref, generation=9),
        replace(ref, study_hash="0" * 32),
    ):
        for call in (store.row, store.read, store.residence):
            assert refused(call, missing) == "OBJECT_NOT_FOUND"
    assert store.rows("0" * 32, 1) == []


@pytest.mark.parametrize(
    "name", ["", "x", "0" * 31, "0" * 33, "z" * 32, "../../../../../../etc/passwd", "é" * 16, "\0" * 32]
)
def test_a_hostile_study_hash_is_not_found(store, name):
    put(store, header(), b"x")
    assert refused(store.row, Ref(name, 1, 1)) == "OBJECT_NOT_FOUND"
    assert refused(store.read, Ref(name, 1, 1)) == "OBJECT_NOT_FOUND"
    assert store.rows(name, 1) == []


@pytest.mark.parametrize(("generation", "sequence"), [(-1, 1), (1 << 32, 1), (1 << 64, 1), (1, -1), (1, 1 << 64)])
def test_hostile_numbers_are_not_found(store, generation, sequence):
    ref = put(store, header(), b"x").ref
    hostile = Ref(ref.study_hash, generation, sequence)
    assert refused(store.row, hostile) == "OBJECT_NOT_FOUND"
    assert refused(store.read, hostile) == "OBJECT_NOT_FOUND"


def test_an_object_that_is_being_received_is_not_visible(store):
    transfer = store.begin(transfer_id(1), header())
    transfer.write(0, body(CHUNK))
    transfer.wait(CHUNK, 10)
    assert all_rows(store) == []
    assert not any(last > registered for _, _, registered, last in store.unregistered())


def test_a_study_is_read_while_it_is_written(store):
    data = body(CHUNK + 1)
    ref = send(store, header(), data).ref
    with store.read(ref) as reader:
        pieces = iter(reader)
        first = next(pieces)
        for number in range(1, 20):
            put(store, header(sop=number), body(50_000, number))
        assert first + b"".join(pieces) == data


# -- what a transfer refuses


@pytest.mark.parametrize("offset", [1, CHUNK - 1, CHUNK + 1, 1 << 63, -1])
def test_another_offset_is_refused(store, offset):
    transfer = store.begin(transfer_id(1), header())
    assert refused(transfer.write, offset, b"x") == "OFFSET_UNEXPECTED"
    data = body(CHUNK + 2)
    transfer.write(0, data[:CHUNK])
    assert refused(transfer.write, max(offset, 0), b"x") == "OFFSET_UNEXPECTED"
    transfer.write(CHUNK, data[CHUNK:])
    assert read(store, transfer.commit(len(data), sha256(data), queryable=b"", remarks=()).ref) == data


def test_a_chunk_that_is_too_large_is_refused(store):
    transfer = store.begin(transfer_id(1), header())
    assert refused(transfer.write, 0, bytes(CHUNK + 1)) == "CHUNK_TOO_LARGE"
    assert refused(put, store, header(), bytes(CHUNK + 1)) == "CHUNK_TOO_LARGE"


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK + 1, 1 << 63])
def test_a_commit_of_another_length_is_refused_and_can_be_repeated(store, length):
    data = body(CHUNK)
    transfer = store.begin(transfer_id(1), header())
    transfer.write(0, data)
    assert refused(transfer.commit, length, sha256(data), queryable=b"", remarks=()) == "DIGEST_MISMATCH"
    assert all_rows(store) == []
    assert read(store, send(store, header(), data, 1).ref) == data


def test_a_transfer_id_of_another_object_is_refused(store):
    data = body(CHUNK + 10)
    put(store, header(sop="small"), b"small", "small")
    send(store, header(sop="large"), data, "large")
    transfer = store.begin(transfer_id("open"), header(sop="open"))
    transfer.write(0, data[:CHUNK])
    transfer.wait(CHUNK, 10)
    for name in ("small", "large", "open"):
        for other in (header(sop="other"), header(sop=name, transfer_syntax_uid=IMPLICIT)):
            assert refused(store.begin, transfer_id(name), other) == "TRANSFER_INVALID", name
    for name in ("small", "large"):
        assert refused(put, store, header(sop="other"), b"small", name) == "TRANSFER_INVALID"
        assert refused(put, store, header(sop=name), b"other bytes", name) == "TRANSFER_INVALID"
    assert len(all_rows(store)) == 2


# -- identity of content: SOP Instance UID, transfer syntax, SHA-256


@pytest.mark.parametrize("way", [put, send])
def test_the_same_again_is_already_there(store, way):
    data = body(3 * CHUNK if way is send else 9_000)
    first = way(store, header(), data)
    again = way(store, header(), data)
    assert (again.ref, again.outcome) == (first.ref, Outcome.ALREADY)
    assert [row.ref for row in all_rows(store)] == [first.ref]
    assert read(store, first.ref) == data


@pytest.mark.parametrize("way", [put, send])
def test_other_content_of_the_same_instance_is_kept_beside_it(store, way):
    first = way(store, header(), b"first")
    variant = way(store, header(), b"other")
    syntax = way(store, header(transfer_syntax_uid=IMPLICIT), b"first")
    assert [s.outcome for s in (first, variant, syntax)] == [Outcome.STORED, Outcome.VARIANT, Outcome.VARIANT]
    assert [read(store, s.ref) for s in (first, variant, syntax)] == [b"first", b"other", b"first"]
    assert way(store, header(), b"other").ref == variant.ref
    assert way(store, header(transfer_syntax_uid=IMPLICIT), b"first").ref == syntax.ref
    assert len(all_rows(store)) == 3


@pytest.mark.parametrize("way", [put, send])
def test_a_repeated_transfer_gets_the_same_object(store, opened, way):
    first = way(store, header(), b"data", "once")
    assert way(store, header(), b"data", "once").ref == first.ref
    store.close()
    store = opened()
    assert way(store, header(), b"data", "once").ref == first.ref
    assert store.begin(transfer_id("once"), header()).stored.ref == first.ref
    assert len(all_rows(store)) == 1


def test_the_same_at_the_same_moment_is_stored_once(store):
    data = body(9_000)
    results = []
    ready = threading.Barrier(8)

    def work(number):
        ready.wait()
        way = put if number % 2 else send
        results.append(way(store, header(), data))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({r.ref for r in results}) == 1
    assert sorted(r.outcome.name for r in results) == ["ALREADY"] * 7 + ["STORED"]
    assert len(all_rows(store)) == 1


# -- cuts and resumption


def test_a_cut_transfer_goes_on_where_it_is_durable(store):
    data = body(4 * CHUNK + 11)
    first = store.begin(transfer_id(1), header())
    first.write(0, data[:CHUNK])
    first.write(CHUNK, data[CHUNK : 2 * CHUNK])
    first.wait(2 * CHUNK, 10)
    second = store.begin(transfer_id(1), header())
    assert second.acknowledged_offset == 2 * CHUNK
    for call in (lambda: first.write(2 * CHUNK, b"x"), lambda: first.commit(0, b"", queryable=b"", remarks=())):
        assert refused(call) == "STREAM_REPLACED"
    first.abort()  # of what is no longer its own: nothing happens
    for offset in range(2 * CHUNK, len(data), CHUNK):
        second.write(offset, data[offset : offset + CHUNK])
    assert read(store, second.commit(len(data), sha256(data), queryable=b"", remarks=()).ref) == data


def test_a_transfer_goes_on_after_a_restart(store, opened):
    data = body(3 * CHUNK)
    transfer = store.begin(transfer_id(1), header())
    transfer.write(0, data[:CHUNK])
    transfer.wait(CHUNK, 10)
    store.close()
    store = opened()
    transfer = store.begin(transfer_id(1), replace(header(), verification=2))
    assert transfer.acknowledged_offset == CHUNK
    assert read(store, send(store, header(), data, 1).ref) == data


def test_an_old_transfer_is_forgotten(opened):
    clock = ManualClock()
    store = opened(clock=clock)
    transfer = store.begin(transfer_id(1), header())
    transfer.write(0, body(CHUNK))
    transfer.wait(CHUNK, 10)
    clock.advance(3000)
    assert store.begin(transfer_id(1), header()).acknowledged_offset == CHUNK
    clock.advance(4000)
    assert store.begin(transfer_id(1), header()).acknowledged_offset == 0


def test_a_cut_transfer_of_long_ago_is_dropped_at_start(opened):
    clock = ManualClock()
    store = opened(clock=clock)
    transfer = store.begin(transfer_id(1), header())
    transfer.write(0, body(CHUNK))
    transfer.wait(CHUNK, 10)
    store.close()
    clock.advance(4000)
    assert opened(clock=clock).begin(transfer_id(1), header()).acknowledged_offset == 0


def test_an_aborted_transfer_begins_anew(store):
    transfer = store.begin(transfer_id(1), header())
    transfer.write(0, body(CHUNK))
    transfer.abort()
    transfer.abort()
    again = store.begin(transfer_id(1), header())
    assert (again.acknowledged_offset, again.stored) == (0, None)
    data = body(CHUNK, "other")
    assert read(store, send(store, header(), data, 1).ref) == data


def test_a_cut_reader_and_an_idle_transfer_hold_nothing(store):
    ref = send(store, header(), body(2 * CHUNK)).ref
    reader = store.read(ref)
    next(iter(reader))
    del reader
    store.begin(transfer_id(1), header(sop=1))
    put(store, header(sop=2), b"x")


def test_records_in_flight_when_a_transfer_is_taken_over_are_no_harm(store):
    """The old stream waits for its records in one thread while the new one begins in another."""
    data = body(8 * CHUNK)
    for number in range(20):
        old = store.begin(transfer_id(number), header(sop=number))
        for offset in range(0, 4 * CHUNK, CHUNK):
            old.write(offset, data[offset : offset + CHUNK])
        waiting = threading.Thread(target=lambda old=old: suppressed(old.wait, 4 * CHUNK, 20))
        waiting.start()
        new = store.begin(transfer_id(number), header(sop=number))
        for offset in range(new.acknowledged_offset, len(data), CHUNK):
            new.write(offset, data[offset : offset + CHUNK])
        ref = new.commit(len(data), sha256(data), queryable=b"", remarks=()).ref
        waiting.join(60)
        assert not waiting.is_alive()
        assert digest_of(store, ref) == sha256(data)


def suppressed(call, *arguments):
    try:
        call(*arguments)
    except RadmeshError:
        return


# -- the index rows are the outbox


def test_rows_come_in_pages_in_the_order_of_commits(store):
    refs = [put(store, header(sop=n), b"%d" % n).ref for n in range(25)]
    name, generation = refs[0].study_hash, refs[0].generation
    assert [ref.sequence for ref in refs] == list(range(1, 26))
    assert [row.ref for row in store.rows(name, generation)] == refs
    assert [row.ref for row in store.rows(name, generation, after=20)] == refs[20:]
    assert [row.ref for row in store.rows(name, generation, after=3, limit=4)] == refs[3:7]
    assert store.rows(name, generation, after=25) == []


def test_studies_are_listed_in_order_and_from_anywhere(store):
    refs = sorted(put(store, header(study=n), b"x").ref for n in range(12))
    put(store, header(study=3, sop=2), b"y")
    states = list(store.studies())
    assert [(s.study_hash, s.generation) for s in states] == [(ref.study_hash, 1) for ref in refs]
    assert {s.study_instance_uid: s.last for s in states} == {uid("study", n): 1 + (n == 3) for n in range(12)}
    for number in (0, 5, 11):
        assert list(store.studies((refs[number].study_hash, 1))) == states[number + 1 :]
        assert store.generations(refs[number].study_hash) == [states[number]]
    assert store.generations("0" * 32) == store.generations("../") == []


def left(store) -> dict[tuple[str, int], tuple[int, int]]:
    """What waits to be registered."""
    return {(h, g): (registered, last) for h, g, registered, last in store.unregistered() if last > registered}


def test_what_is_not_registered_is_known_also_after_a_restart(store, opened):
    ref = put(store, header(), b"1").ref
    put(store, header(sop=1), b"2")
    other = put(store, header(study=1), b"3").ref
    key = (ref.study_hash, ref.generation)
    assert left(store) == {key: (0, 2), (other.study_hash, other.generation): (0, 1)}
    store.mark_registered(other.study_hash, other.generation, 1)
    store.mark_registered(*key, 1)
    assert left(store) == {key: (1, 2)}
    store.close()
    store = opened()
    assert left(store) == {key: (1, 2)}
    store.mark_registered(*key, 2)
    assert left(store) == {}
    put(store, header(sop=2), b"4")
    assert left(store) == {key: (2, 3)}
    store.close()
    assert left(opened()) == {key: (2, 3)}


def test_the_mark_moves_neither_back_nor_beyond_the_last_row(store, opened):
    ref = put(store, header(), b"1").ref
    put(store, header(sop=1), b"2")
    key = (ref.study_hash, ref.generation)
    store.mark_registered(*key, 2)
    store.mark_registered(*key, 1)
    assert left(store) == {}
    store.mark_registered(*key, 1 << 40)
    put(store, header(sop=2), b"3")
    assert left(store) == {key: (2, 3)}
    store.close()
    store = opened()
    assert left(store) == {key: (2, 3)}
    store.mark_registered(*key, 3)
    store.close()
    store = opened()
    store.mark_registered(*key, 1)
    store.close()
    assert left(opened()) == {}


def test_listeners_hear_of_every_commit(store):
    heard: list[Ref] = []
    store.on_commit(heard.append)
    refs = [put(store, header(), b"1").ref, send(store, header(sop=1), body(CHUNK + 1)).ref]
    assert wait_for(lambda: len(heard) == 2)
    assert heard == refs


def test_a_listener_that_fails_stops_nothing(store):
    def failing(_ref):
        raise ValueError("of the test")

    heard: list[Ref] = []
    store.on_commit(failing)
    store.on_commit(heard.append)
    refs = [put(store, header(sop=n), b"1").ref for n in range(3)]
    assert heard == refs


# -- residence, defects, eviction


def settle(store, *refs: Ref) -> None:
    """As the registration pump and the permanent tier do it."""
    store.set_permanent(list(refs))
    for ref in refs:
        store.mark_registered(ref.study_hash, ref.generation, ref.sequence)


def test_residence_is_known_for_each_object(store, opened):
    refs = [put(store, header(sop=n), b"%d" % n).ref for n in range(3)]
    key = (refs[0].study_hash, refs[0].generation)
    assert store.unsettled(*key) == refs
    store.set_permanent([refs[0], refs[2]])
    for _ in range(2):
        expected = [Residence.CACHE_AND_PERMANENT, Residence.CACHE, Residence.CACHE_AND_PERMANENT]
        assert [store.residence(ref) for ref in refs] == expected
        assert store.unsettled(*key) == [refs[1]]
        with store.read(refs[0]) as reader:
            assert reader.residence == Residence.CACHE_AND_PERMANENT
        store.close()
        store = opened()


def test_a_defect_is_remembered(store, opened):
    ref = put(store, header(), b"1").ref
    assert store.defect(ref) == ""
    store.set_checked(ref, "PIXELS_TRUNCATED")
    store.close()
    store = opened()
    assert store.defect(ref) == "PIXELS_TRUNCATED"
    assert read(store, ref) == b"1"


def test_only_what_is_permanent_and_registered_is_evicted(store):
    refs = [put(store, header(sop=n), b"%d" % n).ref for n in range(3)]
    key = (refs[0].study_hash, refs[0].generation)
    store.set_permanent(refs[:2])
    store.mark_registered(*key, 3)
    assert refused(store.evict, *key) == "NOT_PERMANENT"
    assert [read(store, ref) for ref in refs] == [b"0", b"1", b"2"]
    put(store, header(sop=3), b"late")
    assert refused(store.evict, "0" * 32, 1) == "STUDY_NOT_FOUND"


def test_an_evicted_study_keeps_its_rows(store, opened, root: Path):
    data = {n: body(n * 60_000, n) for n in range(1, 8)}
    refs = {n: put(store, header(sop=n), d, remarks=(f"R{n}",)).ref for n, d in data.items()}
    store.set_checked(refs[3], "DEFECT")
    rows = [store.row(ref) for ref in refs.values()]
    settle(store, *refs.values())
    key = (refs[1].study_hash, refs[1].generation)
    assert store.evict(*key) > sum(map(len, data.values()))
    for _ in range(2):
        assert [store.row(ref) for ref in refs.values()] == rows
        assert store.rows(*key, after=2, limit=3) == rows[2:5]
        assert all(store.residence(ref) is Residence.PERMANENT for ref in refs.values())
        assert store.defect(refs[3]) == "DEFECT"
        assert refused(store.read, refs[1]) == "OBJECT_NOT_FOUND"
        assert [(s.study_hash, s.generation, s.state, s.last) for s in store.studies()] == [(*key, "PERMANENT_ONLY", 7)]
        assert left(store) == {}
        store.close()
        store = opened()
    assert refused(store.residence, replace(refs[1], sequence=8)) == "OBJECT_NOT_FOUND"
    wait_for(lambda: not list((root / "trash").iterdir()))
    assert not list((root / "studies" / key[0][:2]).iterdir())


def test_a_late_image_opens_the_next_generation(store, opened):
    ref = put(store, header(), b"1").ref
    settle(store, ref)
    store.evict(ref.study_hash, ref.generation)
    late = put(store, header(sop=1), b"2").ref
    assert (late.generation, late.sequence) == (ref.generation + 1, 1)
    store.close()
    store = opened()
    later = put(store, header(sop=2), b"3").ref
    assert (later.generation, later.sequence) == (late.generation, 2)
    assert [row.ref for row in all_rows(store)] == [ref, late, later]
    settle(store, late, later)
    store.evict(late.study_hash, late.generation)
    assert put(store, header(sop=3), b"4").ref.generation == late.generation + 1


@pytest.mark.parametrize("way", [put, send])
def test_what_was_evicted_is_still_known_to_be_there(store, opened, way):
    """A modality that sends a study again after weeks stores nothing twice."""
    data = body(30_000)
    first = way(store, header(), data, "once")
    settle(store, first.ref)
    store.evict(first.ref.study_hash, first.ref.generation)
    for _ in range(2):
        assert way(store, header(), data, "once").ref == first.ref
        again = way(store, header(), data)
        assert (again.ref, again.outcome) == (first.ref, Outcome.ALREADY)
        assert refused(store.begin, transfer_id("once"), header(sop="other")) == "TRANSFER_INVALID"
        store.close()
        store = opened()
    assert way(store, header(), b"other").outcome is Outcome.VARIANT
    assert way(store, header(), data).ref == first.ref


def test_eviction_waits_for_no_transfer_and_breaks_none(store):
    ref = put(store, header(), b"1").ref
    settle(store, ref)
    data = body(2 * CHUNK)
    transfer = store.begin(transfer_id(1), header(sop=1))
    transfer.write(0, data[:CHUNK])
    transfer.wait(CHUNK, 10)
    assert refused(store.evict, ref.study_hash, ref.generation) == "STORE_BUSY"
    transfer.write(CHUNK, data[CHUNK:])
    assert read(store, transfer.commit(len(data), sha256(data), queryable=b"", remarks=()).ref) == data


def test_readers_see_an_eviction_as_not_found_and_nothing_worse(store):
    """Reading goes on while studies are evicted beneath it."""
    reasons: set[str] = set()
    failures: list[BaseException] = []
    done = threading.Event()
    current: list[Ref] = [put(store, header(sop="begin"), body(CHUNK)).ref]

    def reader():
        while not done.is_set():
            try:
                assert len(read(store, current[0])) == CHUNK
            except RadmeshError as error:
                reasons.add(error.reason)
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(60):
        ref = current[0]
        settle(store, ref)
        try:
            store.evict(ref.study_hash, ref.generation)
        except RadmeshError as error:
            assert error.reason == "STORE_BUSY"
        current[0] = put(store, header(sop=number), body(CHUNK, number)).ref
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert reasons <= {"OBJECT_NOT_FOUND", "STORE_BUSY"}


def test_a_drained_study_leaves_and_its_numbers_are_not_used_again(opened):
    store = opened(spool=True)
    first = put(store, header(), b"1").ref
    assert store.residence(first) is Residence.SPOOL
    store.remove_study(first.study_hash, first.generation, 1)
    store.remove_study(first.study_hash, first.generation, 1)
    assert all_rows(store) == []
    assert list(store.studies()) == []
    second = put(store, header(), b"2").ref
    assert second > first
    store.remove_study(second.study_hash, second.generation, 1)
    store.close()
    store = opened(spool=True)
    assert put(store, header(), b"3").ref > second


# -- starting, and room


def test_only_one_process_opens_a_store(store, opened):
    assert refused(opened) == "DATA_IN_USE"
    store.close()
    assert opened().epoch != store.epoch


def test_everything_is_there_after_a_restart(store, opened):
    small = {put(store, header(study=n % 3, sop=n), body(n * 997, n)).ref: body(n * 997, n) for n in range(40)}
    large = body(2 * CHUNK + 9)
    small[send(store, header(sop="large"), large).ref] = large
    rows = all_rows(store)
    store.close()
    store = opened()
    assert all_rows(store) == rows
    assert {row.ref: read(store, row.ref) for row in rows} == small


def test_below_the_reserve_nothing_is_taken_and_all_is_read(store, opened):
    ref = put(store, header(), b"1").ref
    transfer = store.begin(transfer_id(1), header(sop=1))
    transfer.write(0, body(CHUNK))
    transfer.wait(CHUNK, 10)
    store.close()
    store = opened(reserve=1 << 60)
    assert not store.accepting
    assert store.free_bytes() == 0
    assert refused(put, store, header(sop=2), b"2") == "STORAGE_FULL"
    assert refused(store.begin, transfer_id(2), header(sop=2)) == "STORAGE_FULL"
    assert read(store, ref) == b"1"
    store.mark_registered(ref.study_hash, ref.generation, 1)
    store.close()
    store = opened()
    assert store.accepting
    assert store.free_bytes() > 0
    assert put(store, header(sop=2), b"2").outcome is Outcome.STORED


@pytest.mark.parametrize("field", ["sha256", "transfer_id", "admission_key"])
@pytest.mark.parametrize("length", [0, 31, 33])
def test_values_of_a_wrong_length_are_refused(store, field, length):
    wrong = bytes(length)
    if field == "sha256":
        assert refused(put, store, header(), b"1", sha256=wrong) == "FIELD_INVALID"
        transfer = store.begin(transfer_id(1), header())
        transfer.write(0, b"1")
        assert refused(transfer.commit, 1, wrong, queryable=b"", remarks=()) == "FIELD_INVALID"
    elif field == "transfer_id":
        assert refused(store.begin, wrong, header()) == "FIELD_INVALID"
        assert (
            refused(store.put, wrong, header(), b"", sha256=sha256(b""), queryable=b"", remarks=()) == "FIELD_INVALID"
        )
    else:
        assert refused(put, store, header(admission_key=wrong), b"1") == "FIELD_INVALID"
    assert all_rows(store) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"study_instance_uid": ""},
        {"sop_instance_uid": ""},
        {"sop_instance_uid": "1" * 65},
        {"transfer_syntax_uid": "1" * 2000},
        {"calling_ae_title": "A" * 129},
        {"source_address": "\0"},
        {"verification": 256},
        {"verification": -1},
    ],
)
def test_a_hostile_header_is_refused(store, changes):
    for call in (lambda: put(store, header(**changes), b"1"), lambda: store.begin(transfer_id(1), header(**changes))):
        assert refused(call) == "FIELD_INVALID"
    assert all_rows(store) == []


def test_a_hostile_commit_is_refused(store):
    for changes in (
        {"queryable": bytes(262_145)},
        {"remarks": ("x",) * 65},
        {"remarks": ("x" * 129,)},
        {"remarks": ("\0",)},
        {"remarks": ("",)},
    ):
        assert refused(put, store, header(), b"1", **changes) == "FIELD_INVALID"
        assert refused(send, store, header(), b"1", **changes) == "FIELD_INVALID"
    assert all_rows(store) == []
    most = {"queryable": bytes(262_144), "remarks": ("x" * 128,) * 64}
    assert store.row(put(store, header(), b"1", **most).ref).remarks == most["remarks"]
