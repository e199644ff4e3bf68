"""Pictures from web caches: read ahead, kept within bounds, and from another web cache when one fails."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from curator_support import Cluster, ct, pixels_of
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_for

from radmesh.api.common.v1 import common_pb2
from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server import pictures as module
from radmesh.application_server.dicomweb import forms
from radmesh.application_server.pictures import Frame, FrameCache, FrameSize, Picture, Pictures
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.codec import Bulk
from radmesh_native import htj2k
from radmesh_native.crc32c import crc32c

STUDY, SERIES = "2.25.77.1", "2.25.77.1.1"


def sop(number: int) -> str:
    return f"{SERIES}.{number}"


def reason(function, *arguments, **named):
    with pytest.raises(RadmeshError) as caught:
        function(*arguments, **named)
    return caught.value.reason


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    made.database()
    made.archive()
    yield made
    made.close()


@pytest.fixture
def reader(cluster) -> Iterator[Pictures]:
    made = Pictures(cluster.context("application-server"), cluster.curation(), 4 << 20, forms.around)
    yield made
    made.close()


def study(cluster: Cluster) -> database_pb2.Study:
    """The study, as soon as the database knows it."""
    queries = cluster.client("application-server", database_pb2, "QueryService", "database-server")
    request = database_pb2.FindStudiesRequest(study_instance_uids=[STUDY])
    return wait_for(lambda: queries.FindStudies(request).studies)[0]


def image(frame: Frame):
    return htj2k.decode(frame.data)


def test_frames_are_read_ahead_and_kept(cluster, reader):
    cluster.curator()
    cluster.send(*(ct(1, number) for number in range(1, 31)))
    cluster.curated(STUDY, 30)
    seen = study(cluster)
    first = reader.frame(seen, SERIES, sop(3), 1, held=False)
    assert np.array_equal(image(first), pixels_of(1, 3))
    found = reader.series(seen, SERIES, held=False)
    assert found.order == tuple(sop(number) for number in range(1, 31))
    # Those behind it come by themselves; those before it do not.
    last = found.find(sop(30), 1).key(1)
    assert wait_for(lambda: last in reader.cache)
    assert found.find(sop(2), 1).key(1) not in reader.cache
    # What is in memory needs nobody.
    cluster.kill("curator-0")
    assert np.array_equal(image(reader.frame(seen, SERIES, sop(30), 1, held=False)), pixels_of(1, 30))
    assert reader.known(seen, SERIES, held=False) is found
    # One that is not: no web cache answers.
    assert reason(reader.frame, seen, SERIES, sop(1), 1, held=False) in ("PEER_UNAVAILABLE", "PICTURES_PENDING")


def test_many_read_at_once(cluster, reader):
    cluster.curator()
    cluster.send(*(ct(1, number) for number in range(1, 41)))
    cluster.curated(STUDY, 40)
    seen = study(cluster)

    def once(number: int) -> list[Any]:
        try:
            return [image(reader.frame(seen, SERIES, sop(number), 1, held=False))]
        except RadmeshError as error:
            # On a busy machine a web cache may count as silent for a moment: whoever looks asks again.
            assert error.transient, error
            return []

    def read(number: int) -> bool:
        [found] = wait_for(lambda: once(number))
        return np.array_equal(found, pixels_of(1, number))

    with ThreadPoolExecutor(40) as pool:
        assert all(pool.map(read, [*range(1, 41), *range(40, 0, -1)]))
    assert not reader._coming


def test_what_is_not_there_is_told(cluster, reader):
    cluster.send(ct(1, 1))
    seen = study(cluster)
    assert reason(reader.frame, seen, SERIES, sop(1), 1, held=False) == "PICTURES_PENDING"
    assert reason(reader.locate, seen, sop(1), held=False) == "PICTURES_PENDING"
    cluster.curator()
    cluster.curated(STUDY, 1)
    # The study looks otherwise now.
    seen = study(cluster)
    assert reader.locate(seen, sop(1), held=False) == SERIES
    for frame in (0, 2, -1):
        assert reason(reader.frame, seen, SERIES, sop(1), frame, held=False) == "RENDITION_NOT_FOUND"
    picture, data = reader.part(seen, SERIES, sop(1), 1, lambda p: (0, p.frames[0].resolution_offsets[0]), held=False)
    levels = len(picture.frames[0].resolution_offsets) - 1
    assert htj2k.decode(data, reduce=levels).shape == (64 >> levels, 64 >> levels)


def test_another_web_cache_takes_over(cluster, reader):
    """Both have the study; one dies between two frames, and nobody notices."""
    cluster.curator(0)
    cluster.send(*(ct(1, number) for number in range(1, 6)))
    cluster.curated(STUDY, 5)
    seen = study(cluster)
    reader.frame(seen, SERIES, sop(5), 1, held=False)
    cluster.kill("curator-0")
    wait_for(lambda: not any(r.target for r in cluster.renditions(STUDY)))
    cluster.curator(1, patience=0.0)
    cluster.curated(STUDY, 5)
    cluster.curator(0)
    wait_for(lambda: sum(bool(r.target) for r in cluster.renditions(STUDY)) == 10)
    seen = study(cluster)

    def both() -> module.SeriesPictures | None:
        # What was said before is believed, for the study looks the same: it is asked anew.
        found = reader.series(seen, SERIES, held=False, after=time.monotonic())
        return found if all(len(found.pictures[sop(n)]) == 2 for n in range(1, 6)) else None

    found = wait_for(both)
    preferred = found.find(sop(1), 1).rendition.store_id
    cluster.kill(preferred)
    for number in range(1, 5):
        frame = reader.frame(seen, SERIES, sop(number), 1, held=False)
        assert np.array_equal(image(frame), pixels_of(1, number))


def test_what_was_made_anew_is_read_anew(cluster, reader, tmp_path):
    """A web cache that was wiped has other frames, though the study looks the same."""
    cluster.curator()
    cluster.send(*(ct(1, number) for number in range(1, 4)))
    cluster.curated(STUDY, 3)
    seen = study(cluster)
    found = reader.series(seen, SERIES, held=False)
    # As if another encoder had made them.
    others = {
        uid: tuple(Picture(p.rendition, (FrameSize(p.frames[0].size - 1),)) for p in pictures)
        for uid, pictures in found.pictures.items()
    }
    stale = module.SeriesPictures(STUDY, SERIES, found.order, others, {}, frozenset(), found.stores, time=found.time)
    reader._keep((STUDY, SERIES, False), module._look(seen), stale)
    assert np.array_equal(image(reader.frame(seen, SERIES, sop(2), 1, held=False)), pixels_of(1, 2))


# -- one stream --------------------------------------------------------------------------------------------------------


def wanted(*frames: bytes) -> list[module._Wanted]:
    identity = common_pb2.ContentIdentity(sop_instance_uid="1.2", sha256=b"s")
    rendition = database_pb2.Rendition(identity=identity, transfer_syntax_uid="1.2.3")
    picture = Picture(rendition, tuple(FrameSize(len(frame), (1, len(frame))) for frame in frames))
    return [module._Wanted(picture, number) for number in range(1, len(frames) + 1)]


def messages(frames, cuts):
    made = []
    for index, frame in enumerate(frames):
        edges = sorted({0, len(frame), *(cut % (len(frame) + 1) for cut in cuts)}) if frame else [0, 0]
        for start, end in itertools.pairwise(edges):
            fields = curator_pb2.ReadFramesResponse(index=index, offset=start, last=end == len(frame))
            if not start:
                fields.size, fields.transfer_syntax_uid = len(frame), "1.2.3"
                fields.resolution_offsets.extend((1, len(frame)))
            fields.crc32c = crc32c(frame[start:end])
            made.append(Bulk(fields, frame[start:end]))
    return made


FRAMES = st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5)


@given(FRAMES, st.lists(st.integers(0, 100), max_size=5))
def test_frames_are_put_together_however_they_are_cut(frames, cuts):
    got = [b""] * len(frames)
    for one, data, last in module._pieces(iter(messages(frames, cuts)), wanted(*frames)):
        got[one.number - 1] += data
        assert last == (len(got[one.number - 1]) == len(frames[one.number - 1]))
    assert got == frames


@given(FRAMES, st.lists(st.integers(0, 100), max_size=5), st.data())
def test_what_does_not_fit_is_never_served(frames, cuts, data):
    """Whatever a stream does wrong: no frame is given out that is not the one asked for."""
    stream = messages(frames, cuts)
    number = data.draw(st.integers(0, len(stream) - 1))
    wrong = data.draw(st.sampled_from(["lost", "twice", "byte", "size", "syntax", "index", "last", "end"]))
    fields, body = stream[number].fields, stream[number].data
    if wrong == "lost":
        del stream[number]
    elif wrong == "end":
        del stream[number:]
    elif wrong == "twice":
        stream.insert(number, stream[number])
    elif wrong == "byte":
        stream[number] = Bulk(fields, bytes([body[0] ^ 1]) + body[1:])
    elif wrong == "last":
        fields.last = not fields.last
    elif wrong == "index":
        fields.index += 1
    elif wrong == "size":
        fields.size += 1
    else:
        fields.transfer_syntax_uid = "1.2.4"
    got: dict[int, bytes] = {}
    whole: dict[int, bytes] = {}
    try:
        for one, piece, last in module._pieces(iter(stream), wanted(*frames)):
            got[one.number] = got.get(one.number, b"") + piece
            if last:
                whole[one.number] = got[one.number]
    except RadmeshError as error:
        assert error.reason in ("CHUNK_CORRUPT", "RENDITION_NOT_FOUND", "PEER_UNAVAILABLE")
    else:
        # Said of a message that is not the first of its frame, it means nothing.
        assert wrong in ("size", "syntax")
    assert all(frame == frames[number - 1] for number, frame in whole.items())


# -- memory ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=60))
def test_the_cache_has_bounds(puts):
    cache = FrameCache(100)
    for key, size in puts:
        cache.put((key,), Frame(bytes(size), 0, size, "1.2", ()))
        assert cache.bytes == sum(len(f.whole) for f in cache._frames.values()) <= 100
        if size <= 100:
            assert cache.get((key,)) is not None


def test_what_was_read_longest_ago_gives_way():
    cache = FrameCache(100)
    for key in "abc":
        cache.put((key,), Frame(bytes(40), 0, 40, "1.2", ()))
        cache.get(("a",))
    assert [key in cache for key in (("a",), ("b",), ("c",))] == [True, False, True]


def test_threads_are_given_back(cluster):
    before = threading.active_count()
    made = Pictures(cluster.context("application-server"), cluster.curation(), 1 << 20)
    made.close()
    assert threading.active_count() == before
