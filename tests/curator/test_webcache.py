"""The web cache's files: what is complete is visible, what was begun is gone, what is damaged is never served."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from radmesh.curator.model import CHUNK, Content, FrameRange, Rendition
from radmesh.curator.study_file import StudyWriter
from radmesh.curator.webcache import WebCache
from radmesh.dicom.uids import study_hash
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh_native.crc32c import crc32c

STUDY, SERIES = "2.25.1", "2.25.1.1"
LOG = Logger("curator", "curator-0", io.StringIO())


def open_cache(folder: Path, **options: Any) -> WebCache:
    return WebCache(folder / "cache", options.pop("clock", None) or ManualClock(), LOG, **options)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[WebCache]:
    made = open_cache(tmp_path)
    yield made
    made.close()


def content(number: int, version: int = 1) -> Content:
    return Content(f"2.25.1.1.{number}", "1.2.840.10008.1.2.1", bytes([number, version]) * 16)


def add(
    writer: StudyWriter, number: int, *frames: bytes, study: str = STUDY, series: str = SERIES, version: int = 1
) -> Rendition:
    sink = writer.instance()
    for index, frame in enumerate(frames, 1):
        sink.begin(index)
        for start in range(0, len(frame), CHUNK):
            sink.data(frame[start : start + CHUNK])
        sink.end((len(frame) // 4, len(frame)))
    sink.metadata(json.dumps({"00080018": {"vr": "UI", "Value": [content(number).sop_instance_uid]}}).encode())
    rendition = Rendition(content(number, version), study, series, 1, number_of_frames=len(frames), served_syntax="1.2")
    return sink.finish(rendition)


def put(cache: WebCache, number: int = 1, *frames: bytes, study: str = STUDY) -> Rendition:
    with cache.writer(study) as writer:
        add(writer, number, *(frames or (b"pixels" * 100,)), study=study)
        (rendition,) = writer.flush()
    return rendition


def read(cache: WebCache, number: int = 1, frame: int = 1, study: str = STUDY, **part: Any) -> bytes:
    wanted = FrameRange(content(number).sop_instance_uid, part.pop("sha256", b""), frame, **part)
    pieces = list(cache.read(study, [wanted]))
    at = part.get("offset", 0)
    for piece in pieces:
        assert piece.offset == at
        assert piece.check == crc32c(piece.data)
        at += len(piece.data)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[0].frame is not None
    return b"".join(piece.data for piece in pieces)


def refused(reason: str, call: Any) -> RadmeshError:
    with pytest.raises(RadmeshError) as refusal:
        call()
    assert refusal.value.reason == reason
    return refusal.value


def test_frames_come_out_as_they_went_in(cache: WebCache, tmp_path: Path) -> None:
    large = os.urandom(2 * CHUNK + 17)
    rendition = put(cache, 1, b"first", large, b"")
    assert rendition.bytes == 5 + len(large)
    for _ in range(2):
        assert [read(cache, frame=n) for n in (1, 2, 3)] == [b"first", large, b""]
        for offset, length in ((0, 10), (CHUNK - 5, 10), (CHUNK, CHUNK), (len(large) - 1, 0), (7, 1 << 40)):
            end = offset + length if length else len(large)
            assert read(cache, frame=2, offset=offset, length=length) == large[offset:end]
        ((made, frames),) = [(r, list(f)) for r, f in cache.manifest(STUDY)]
        assert made == rendition
        assert [(f.size, f.offsets) for f in frames] == [
            (5, (1, 5)),
            (len(large), (len(large) // 4, len(large))),
            (0, (0, 0)),
        ]
        cache.close()
        cache = open_cache(tmp_path)


def test_what_is_not_there_says_which(cache: WebCache) -> None:
    put(cache)
    there, sop = FrameRange(content(1).sop_instance_uid, b"", 1), content(1).sop_instance_uid
    for wrong in (FrameRange("2.25.9", b"", 1), FrameRange(sop, b"", 2), FrameRange(sop, bytes(32), 1)):
        got: list[Any] = []
        error = refused(
            "RENDITION_NOT_FOUND", lambda wrong=wrong, got=got: got.extend(cache.read(STUDY, [there, wrong]))
        )
        assert error.metadata["index"] == "1"
    error = refused("RANGE_INVALID", lambda: list(cache.read(STUDY, [there, FrameRange(sop, b"", 1, 600)])))
    assert error.metadata["index"] == "1"
    error = refused("RENDITION_NOT_FOUND", lambda: list(cache.read("2.25.9", [there])))
    assert error.metadata["index"] == "0"
    refused("RENDITION_NOT_FOUND", lambda: cache.series_metadata(STUDY, "2.25.9"))


def test_other_content_is_another_picture(cache: WebCache) -> None:
    with cache.writer(STUDY) as writer:
        add(writer, 1, b"first")
        add(writer, 1, b"second", version=2)
        assert len(writer.flush()) == 2
    assert read(cache) == b"second"
    assert read(cache, sha256=content(1, 1).sha256) == b"first"
    assert read(cache, sha256=content(1, 2).sha256) == b"second"
    assert [rendition.content for rendition, _ in cache.manifest(STUDY)] == [content(1, 2)]
    assert set(cache.contents(STUDY)) == {content(1, 1), content(1, 2)}


def test_series_metadata_follows_what_is_there(cache: WebCache) -> None:
    with cache.writer(STUDY) as writer:
        for number in (1, 2, 3):
            add(writer, number, b"x")
        add(writer, 4, b"x", series="2.25.1.2")
        writer.flush()
        tag, count, parts = cache.series_metadata(STUDY, SERIES)
        assert count == len(json.loads(gzip.decompress(b"".join(parts)))) == 3
        assert cache.series_metadata(STUDY, SERIES) == (tag, count, parts)
        add(writer, 5, b"x")
        writer.flush()
    again, count, parts = cache.series_metadata(STUDY, SERIES)
    assert (again != tag, count) == (True, 4)
    found = [one["00080018"]["Value"][0] for one in json.loads(gzip.decompress(b"".join(parts)))]
    assert found == [content(n).sop_instance_uid for n in (1, 2, 3, 5)]


def test_what_was_not_finished_is_nowhere(cache: WebCache) -> None:
    with cache.writer(STUDY) as writer:
        half = writer.instance()
        half.begin(1)
        half.data(bytes(CHUNK))
        writer.flush()
        dropped = writer.instance()
        dropped.begin(1)
        dropped.data(bytes(CHUNK))
        writer.flush()
        dropped.abort()
        writer.flush()
        file = writer.file
        with file.lmdb.begin() as transaction:
            assert {key[:1] for key, _ in transaction.cursor()} == {b"m", b"q", b"r"}
    with cache.writer(STUDY), file.lmdb.begin() as transaction:
        # The next to write removes what the last one left.
        assert {key[:1] for key, _ in transaction.cursor()} == {b"m"}
    assert list(cache.manifest(STUDY)) == []


def test_a_process_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "import test_webcache as t; from pathlib import Path\n"
        "cache = t.open_cache(Path(sys.argv[2]))\n"
        "with cache.writer(t.STUDY) as writer:\n"
        "    for number in range(1, 250):\n"
        "        t.add(writer, number, bytes([number]) * 100_000)\n"
        "        for made in writer.flush(): print(made.content.sop_instance_uid, flush=True)\n"
    )
    folders = f"{Path(__file__).parent}:{Path(__file__).parents[1] / 'support'}"
    process = subprocess.Popen([sys.executable, "-c", code, folders, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    process.wait()
    cache = open_cache(tmp_path)
    there = {rendition.content.sop_instance_uid for rendition, _ in cache.manifest(STUDY)}
    assert there >= set(told)
    assert len(there) - len(told) in (0, 1)
    for number in range(1, len(there) + 1):
        assert read(cache, number) == bytes([number]) * 100_000
    put(cache, 250)
    cache.close()


def test_a_changed_record_is_noticed_and_nothing_else(cache: WebCache, tmp_path: Path) -> None:
    put(cache, 1, b"A" * 5000)
    put(cache, 2, b"B" * 5000)
    cache.close()
    (path,) = (tmp_path / "cache").glob("*.study")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"A" * 100, b"A" * 99 + b"C", 1))
    cache = open_cache(tmp_path)
    refused("RENDITION_DAMAGED", lambda: read(cache, 1))
    refused("RENDITION_DAMAGED", lambda: read(cache, 1, offset=4000, length=5))
    assert read(cache, 2) == b"B" * 5000
    cache.close()


@pytest.mark.parametrize("harm", ["cut", "empty", "foreign", "gone"])
def test_a_file_that_cannot_be_used(tmp_path: Path, harm: str) -> None:
    cache = open_cache(tmp_path)
    put(cache, 1, b"A" * 50_000)
    put(cache, 1, b"B" * 50_000, study="2.25.2")
    cache.close()
    (path,) = (tmp_path / "cache").glob(f"{study_hash(STUDY)}.*.study")
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": path.read_bytes()[:9000], "empty": b"", "foreign": b"no environment " * 1000}[harm])
    cache = open_cache(tmp_path)
    if harm in ("empty", "gone"):
        assert cache.lost == [STUDY]
        refused("RENDITION_NOT_FOUND", lambda: read(cache))
    else:
        refused("RENDITION_DAMAGED", lambda: read(cache))
        with cache.alone(STUDY) as drop:
            drop()
    assert read(cache, study="2.25.2") == b"B" * 50_000
    put(cache, 1, b"again")
    assert read(cache) == b"again"
    cache.close()


def test_a_damaged_catalogue_begins_anew(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    assert cache.new
    put(cache)
    cache.close()
    cache = open_cache(tmp_path)
    assert not cache.new
    cache.close()
    (tmp_path / "cache" / "catalogue.mdb").write_bytes(b"not a catalogue" * 1000)
    cache = open_cache(tmp_path)
    assert cache.new
    assert cache.studies() == []
    assert not list((tmp_path / "cache").glob("*.study*"))
    put(cache)
    cache.close()


def test_who_reads_a_study_reads_on_when_it_is_dropped(cache: WebCache, tmp_path: Path) -> None:
    large = os.urandom(3 * CHUNK)
    put(cache, 1, large)
    pieces = cache.read(STUDY, [FrameRange(content(1).sop_instance_uid, b"", 1)])
    got = [next(pieces).data]
    with cache.alone(STUDY) as drop:
        assert drop() > len(large)
    refused("RENDITION_NOT_FOUND", lambda: read(cache))
    assert not list((tmp_path / "cache").glob("*.study*"))
    put(cache, 1, b"the next")
    got += [piece.data for piece in pieces]
    assert b"".join(got) == large
    assert read(cache) == b"the next"


def test_one_at_a_time_has_a_study(cache: WebCache) -> None:
    with cache.writer(STUDY):
        with pytest.raises(RadmeshError, match="STORE_BUSY"), cache.alone(STUDY):
            pass
        entered = threading.Event()

        def write() -> None:
            with cache.writer(STUDY):
                entered.set()

        thread = threading.Thread(target=write)
        thread.start()
        put(cache, study="2.25.2")
        assert not entered.is_set()
    thread.join(60)
    assert entered.is_set()


def test_several_threads_write_instances_of_one_study(cache: WebCache) -> None:
    with cache.writer(STUDY) as writer:

        def write(first: int) -> None:
            for number in range(first, first + 40):
                add(writer, number, bytes([number]) * 300_000)

        threads = [threading.Thread(target=write, args=(n,)) for n in (0, 40, 80)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(writer.flush()) == 120
    for number in range(120):
        assert read(cache, number) == bytes([number]) * 300_000


def test_after_a_write_that_failed_nothing_is_added(cache: WebCache) -> None:
    """An instance of which a part was lost must never become visible."""
    with cache.writer(STUDY) as writer:
        sink = writer.instance()
        sink.begin(1)
        sink.data(b"first record")
        writer.add(lambda transaction: transaction.put(b"x" * 600, b""), 0)
        refused("STORAGE_FULL", writer.flush)
        refused("STORAGE_FULL", lambda: sink.end((12,)))
        refused("STORAGE_FULL", writer.flush)
    assert list(cache.manifest(STUDY)) == []


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path) -> None:
    clock = ManualClock()
    cache = open_cache(tmp_path, clock=clock, size=600_000)
    for number in range(1, 5):
        clock.advance(10)
        put(cache, 1, os.urandom(100_000), study=f"2.25.{number}")
    assert cache.surplus() == 0
    clock.advance(10)
    read(cache, study="2.25.1")
    clock.advance(100)
    cache.remember_reads()
    cache.close()
    cache = open_cache(tmp_path, clock=clock, size=600_000)
    assert cache.candidates(9) == ["2.25.2", "2.25.3", "2.25.4", "2.25.1"]
    for number in range(5, 8):
        clock.advance(10)
        put(cache, 1, os.urandom(100_000), study=f"2.25.{number}")
    assert cache.used() > 600_000
    assert cache.free() == 0
    assert cache.nearly_full
    surplus = cache.surplus()
    assert cache.used() - 600_000 < surplus < cache.used()
    with cache.writer("2.25.2"):
        assert cache.candidates(2) == ["2.25.3", "2.25.4"]
    cache.close()


def test_the_reserve_of_the_file_system_counts(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, reserve=1 << 60)
    assert cache.free() == 0
    assert cache.surplus() == 0
    put(cache)
    assert 0 < cache.surplus() <= cache.used()
    cache.close()
