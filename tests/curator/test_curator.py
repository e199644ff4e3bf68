"""Images through archive and database into the web cache, and out of it again; and what may come between."""

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curator_support import CODED, FAULTS, NONE, ORIGINAL, PASSED, Cluster, ct, item_of, pixels_of
from pixels_support import make, open_file
from pydicom.data import get_testdata_file
from transfer_support import wait_for

from radmesh.api.common.v1 import common_pb2
from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.curator.database import SWEPT
from radmesh.curator.workers import Worker
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.model import key_message
from radmesh_native import htj2k

SUCCEEDED, FAILED = 3, 4


@pytest.fixture(params=["unix"])
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(tmp_path, request.param)
    made.database(store_timeout=4.0)
    made.archive()
    yield made
    made.close()


def study_of(number: int) -> str:
    return f"2.25.77.{number}"


def check(cluster: Cluster, study: int, *numbers: int, curator: int = 0) -> None:
    """These images of a study are served as they are."""
    for number in numbers:
        _, stream = cluster.frame(study_of(study), f"{study_of(study)}.1.{number}", number=curator)
        assert np.array_equal(htj2k.decode(stream, max_samples=64 * 64), pixels_of(study, number))


def files(cluster: Cluster, number: int = 0) -> list[Path]:
    return sorted((cluster.mesh.folder / f"curator-{number}" / "webcache").glob("*.study"))


@pytest.mark.parametrize("cluster", ["unix", "tls"], indirect=True)
def test_a_study_is_coded_and_served(cluster: Cluster) -> None:
    cluster.curator()
    items = [ct(1, number) for number in range(1, 6)]
    cluster.send(*items)
    study = study_of(1)
    made = cluster.curated(study, 5)
    for number, item in enumerate(items, 1):
        rendition = made[item.sop]
        assert (rendition.state, rendition.reason, rendition.number_of_frames) == (CODED, "", 1)
        assert rendition.transfer_syntax_uid == "1.2.840.10008.1.2.4.202"
        assert rendition.identity.sha256 == item.sha256
        first, stream = cluster.frame(study, item.sop)
        assert first.size == len(stream) == rendition.bytes
        assert np.array_equal(htj2k.decode(stream, max_samples=64 * 64), pixels_of(1, number))
        levels = len(first.resolution_offsets) - 1
        small = cluster.frame(study, item.sop, length=first.resolution_offsets[0])[1]
        assert len(small) == first.resolution_offsets[0]
        assert htj2k.decode(small, reduce=levels).shape == (64 >> levels, 64 >> levels)
    job = cluster.job_ended(study)
    assert (job.state, job.reason) == (SUCCEEDED, "")
    head, packed = cluster.metadata(study, study + ".1")
    found = json.loads(gzip.decompress(packed))
    assert head.instance_count == len(found) == 5
    assert {one["00080018"]["Value"][0] for one in found} == set(made)
    assert all(one["00083002"]["Value"] == ["1.2.840.10008.1.2.4.202"] for one in found)
    request = curator_pb2.GetManifestRequest(study_instance_uid=study)
    (answer,) = cluster.web_cache().GetManifest(request)
    assert {i.rendition.identity.sop_instance_uid: i.frames[0].size for i in answer.instances} == {
        uid: rendition.bytes for uid, rendition in made.items()
    }


def test_every_kind_of_object_has_its_rendition(cluster: Cluster) -> None:
    """Coded, passed through, original and none, over the wire as in this process."""
    names = (
        "CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "JPEG-lossy.dcm", "JPEG2000.dcm", "rtdose.dcm",
        "liver.dcm", "rtplan.dcm", "US1_UNCR.dcm", "examples_palette.dcm", "color3d_jpeg_baseline.dcm",
        "MR_truncated.dcm", "ExplVR_BigEnd.dcm", "image_dfl.dcm", "emri_small_jpeg_ls_lossless.dcm", "waveform_ecg.dcm",
    )  # fmt: skip
    cluster.curator()
    items = {}
    for name in names:
        path = get_testdata_file(name)
        if path is None:
            continue
        item = item_of(*open_file(Path(str(path))))
        if item.header.study_instance_uid and item.header.series_instance_uid:
            items[item.sop] = item
    cluster.send(*items.values())
    states = set()
    for sop, item in items.items():
        study = item.header.study_instance_uid
        (rendition,) = [
            r for r in wait_for(lambda study=study: cluster.renditions(study), 30) if r.identity.sop_instance_uid == sop
        ]
        here = make(item.data, item.header.transfer_syntax_uid, item.header.sop_class_uid)
        assert {field: getattr(rendition, field) for field in here.facts} == here.facts
        assert rendition.bytes == sum(map(len, here.frames))
        for number, frame in enumerate(here.frames if rendition.state != NONE else (), 1):
            first, served = cluster.frame(study, sop, number, sha256=item.sha256)
            assert served == frame
            assert first.transfer_syntax_uid == rendition.transfer_syntax_uid
            assert tuple(first.resolution_offsets) == here.offsets[number - 1]
        _, packed = cluster.metadata(study, item.header.series_instance_uid)
        assert json.loads(here.metadata) in json.loads(gzip.decompress(packed))
        states.add(rendition.state)
    assert states == {CODED, PASSED, ORIGINAL, NONE}


def test_images_that_come_later_are_made_too(cluster: Cluster) -> None:
    curator = cluster.curator()
    for number in range(1, 7):
        cluster.send(ct(1, number))
        cluster.curated(study_of(1), number)
    wait_for(lambda: not curator._jobs.active())
    check(cluster, 1, *range(1, 7))
    assert curator._curation.made == 6
    head, _ = cluster.metadata(study_of(1), study_of(1) + ".1")
    assert head.instance_count == 6


def test_what_came_while_nobody_curated_is_found(cluster: Cluster) -> None:
    cluster.send(ct(1, 1), ct(2, 1))
    cluster.curator()
    for study in (1, 2):
        cluster.curated(study_of(study), 1)
        check(cluster, study, 1)


def test_corrupt_pixels_are_the_affair_of_their_instance(cluster: Cluster) -> None:
    cluster.curator()
    short = ct(1, 2)
    data = short.data[:-100]
    cluster.send(ct(1, 1), item_of(data), ct(1, 3))
    made = cluster.curated(study_of(1), 3)
    assert [(made[f"{study_of(1)}.1.{n}"].state, made[f"{study_of(1)}.1.{n}"].reason) for n in (1, 2, 3)] == [
        (CODED, ""),
        (NONE, "PIXEL_DATA_SHORT"),
        (CODED, ""),
    ]
    job = cluster.job_ended(study_of(1))
    assert (job.state, job.reason, job.message) == (FAILED, "PIXEL_DATA_SHORT", f"object {short.sop}, frame 1")
    check(cluster, 1, 1, 3)
    # It is not tried again and again.
    assert [job.attempt for job in cluster.jobs()] == [1]


def test_frames_over_which_workers_end(cluster: Cluster) -> None:
    curator = cluster.curator()
    curator._workers.all[0]._command = ("-P", "-c", FAULTS)
    words = {2: b"segfault", 3: b"exit-now", 4: b"raising!", 5: b"eats-all"}
    items = []
    for number in range(1, 7):
        pixels = pixels_of(1, number)
        if number in words:
            pixels[0, :4] = np.frombuffer(words[number], "<u2")
        items.append(ct(1, number, pixels))
    cluster.send(*items)
    made = cluster.curated(study_of(1), 6)
    for number, item in enumerate(items, 1):
        rendition = made[item.sop]
        if number not in words:
            assert rendition.state == CODED
            continue
        reason = "FRAME_TOO_LARGE" if number == 5 else "FRAME_UNDECODABLE"
        assert (rendition.state, rendition.reason, rendition.frame) == (ORIGINAL, reason, 1)
        assert cluster.frame(study_of(1), item.sop)[1] in item.data
    job = cluster.job_ended(study_of(1))
    assert (job.state, job.reason) == (FAILED, "FRAME_UNDECODABLE")
    assert job.message.endswith(", frame 1, and 2 more")
    check(cluster, 1, 1, 6)


def test_a_held_study_is_curated(cluster: Cluster) -> None:
    cluster.curator()
    item = ct(1, 1)
    holds = cluster.client("network-gateway", database_pb2, "StudyService", "database-server")
    holds.SetVerification(
        database_pb2.SetVerificationRequest(
            admission_key=key_message(item.key),
            verification=common_pb2.VERIFICATION_STATE_HELD,
            reason="NO_ORDER",
            actor="test",
        )
    )
    cluster.send(item)
    assert cluster.curated(study_of(1), 1)
    find = database_pb2.FindStudiesRequest(study_instance_uids=[study_of(1)])
    query = cluster.client("application-server", database_pb2, "QueryService", "database-server")
    assert not query.FindStudies(find).studies
    check(cluster, 1, 1)


# -- outages -----------------------------------------------------------------------------------------------------------


def test_an_archive_that_is_away_is_waited_for(cluster: Cluster) -> None:
    cluster.send(*(ct(1, number) for number in range(1, 4)))
    cluster.stop("archive-server-0")
    curator = cluster.curator()
    wait_for(lambda: any(job.reason for job in cluster.jobs()), 30)
    assert not cluster.renditions(study_of(1))
    cluster.archive()
    cluster.curated(study_of(1), 3)
    check(cluster, 1, 1, 2, 3)
    assert curator._curation.made == 3


def test_a_database_that_is_away_is_told_later(cluster: Cluster) -> None:
    curator = cluster.curator()
    cluster.send(ct(1, 1))
    cluster.curated(study_of(1), 1)
    cluster.kill("database-server")
    check(cluster, 1, 1)
    cluster.database(store_timeout=4.0)
    cluster.send(ct(1, 2))
    cluster.curated(study_of(1), 2)
    assert curator._curation.made == 2


def test_after_a_restart_nothing_is_made_again(cluster: Cluster) -> None:
    cluster.curator()
    cluster.send(*(ct(1, number) for number in range(1, 4)))
    cluster.curated(study_of(1), 3)
    cluster.stop("curator-0")
    curator = cluster.curator()
    cluster.curated(study_of(1), 3)
    check(cluster, 1, 1, 2, 3)
    wait_for(lambda: not curator._upkeep._unsure)
    assert curator._curation.made == 0


def test_a_database_that_was_restored_hears_of_what_is_there(cluster: Cluster) -> None:
    cluster.send(ct(1, 1), ct(2, 1))
    folder = cluster.mesh.folder / "database-server"
    unregistered = cluster.running["archive-server-0"]._store.unregistered
    wait_for(lambda: all(registered == last for _, _, registered, last in unregistered()))
    cluster.stop("database-server")
    shutil.copytree(folder, folder.with_name("backup"))
    cluster.database(store_timeout=4.0)
    curator = cluster.curator()
    for study in (1, 2):
        cluster.curated(study_of(study), 1)
    cluster.stop("database-server")
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("backup"), folder)
    cluster.database(store_timeout=4.0)
    for study in (1, 2):
        cluster.curated(study_of(study), 1)
        check(cluster, study, 1)
    assert curator._curation.made == 2


@pytest.mark.parametrize("what", ["all", "file"])
def test_pictures_that_were_lost_are_made_again(cluster: Cluster, what: str) -> None:
    cluster.curator()
    cluster.send(ct(1, 1), ct(2, 1))
    for study in (1, 2):
        cluster.curated(study_of(study), 1)
    cluster.stop("curator-0")
    folder = cluster.mesh.folder / "curator-0" / "webcache"
    if what == "all":
        shutil.rmtree(folder)
    else:
        files(cluster)[0].unlink()
    curator = cluster.curator()
    wait_for(lambda: curator._curation.made == (2 if what == "all" else 1), 30)
    for study in (1, 2):
        cluster.curated(study_of(study), 1)
        check(cluster, study, 1)


def test_what_the_database_wrongly_sends_for_is_forgotten_and_made(cluster: Cluster) -> None:
    curator = cluster.curator()
    cluster.send(ct(1, 1))
    cluster.curated(study_of(1), 1)
    wait_for(lambda: not curator._jobs.active())
    # As if a file had gone without a word.
    with curator._cache.alone(study_of(1)) as drop:
        drop()
    with pytest.raises(RadmeshError, match="RENDITION_NOT_FOUND"):
        check(cluster, 1, 1)
    wait_for(lambda: curator._curation.made == 2, 30)
    cluster.curated(study_of(1), 1)
    check(cluster, 1, 1)


def test_bytes_that_went_bad_on_the_disk_are_never_served(cluster: Cluster) -> None:
    curator = cluster.curator()
    cluster.send(ct(1, 1), ct(1, 2))
    cluster.curated(study_of(1), 2)
    _, stream = cluster.frame(study_of(1), f"{study_of(1)}.1.1")
    wait_for(lambda: not curator._jobs.active())
    (path,) = files(cluster)
    at = path.read_bytes().index(stream[100:200])
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"bad")
    with pytest.raises(RadmeshError) as refusal:
        check(cluster, 1, 1)
    assert (refusal.value.reason, refusal.value.metadata["index"]) == ("RENDITION_NOT_FOUND", "0")
    wait_for(lambda: curator._curation.made == 4, 30)
    cluster.curated(study_of(1), 2)
    check(cluster, 1, 1, 2)


# -- wiping and room ---------------------------------------------------------------------------------------------------


def wipe(cluster: Cluster, study: str = "") -> Any:
    return cluster.web_cache().Wipe(curator_pb2.WipeRequest(study_instance_uid=study), timeout=60)


def test_wiped_pictures_are_made_again(cluster: Cluster) -> None:
    curator = cluster.curator()
    cluster.send(*(ct(study, 1) for study in (1, 2, 3)))
    for study in (1, 2, 3):
        cluster.curated(study_of(study), 1)
    answer = wipe(cluster, study_of(2))
    assert answer.studies == 1
    assert answer.bytes > 0
    wait_for(lambda: curator._curation.made == 4, 30)
    answer = wipe(cluster)
    assert answer.studies >= 2
    wait_for(lambda: curator._curation.made >= 6, 30)
    for study in (1, 2, 3):
        cluster.curated(study_of(study), 1)
        check(cluster, study, 1)
    assert wipe(cluster, "2.25.99").studies == 0


def test_a_study_is_wiped_while_it_is_worked_on(cluster: Cluster) -> None:
    curator = cluster.curator(busy_pause=0.2)
    cluster.send(*(ct(1, number) for number in range(1, 21)))
    wait_for(lambda: curator._curation.made >= 3)
    assert wipe(cluster, study_of(1)).studies == 1
    cluster.curated(study_of(1), 20, 60)
    check(cluster, 1, *range(1, 21))
    assert all(job.state in (SUCCEEDED, 1, 2) for job in cluster.jobs())


def test_the_bound_of_a_web_cache_is_kept(cluster: Cluster) -> None:
    """What was not looked at for longest goes, and is not fetched back until somebody asks for it."""
    noise = np.random.default_rng(1)
    # About 70 kB each on the disk: there is room for some fourteen.
    curator = cluster.curator(size=1_000_000)
    for study in range(1, 21):
        cluster.send(ct(study, 1, noise.integers(0, 4096, (150, 150)).astype("<u2")))
        wait_for(lambda study=study: curator._curation.made >= study, 30)
        wait_for(lambda: curator._cache.used() <= 1_000_000)
    cluster.curated(study_of(20), 1)
    wait_for(lambda: not curator._jobs.active() and curator._cache.surplus() == 0)
    left = {s.study_instance_uid for s in curator._cache.studies()}
    assert study_of(1) not in left
    for study in range(1, 21):
        assert bool(cluster.renditions(study_of(study))) == (study_of(study) in left)
    assert len(files(cluster)) == len(left)
    # A sweep does not bring back what has gone.
    service = cluster.client("application-server", database_pb2, "JobService", "database-server")
    service.EnqueueJob(database_pb2.EnqueueJobRequest(kind="curate", key=study_of(2), payload=SWEPT))
    assert cluster.job_ended(study_of(2)).state == SUCCEEDED
    assert curator._curation.made == 20
    assert not cluster.renditions(study_of(2))
    service.EnqueueJob(database_pb2.EnqueueJobRequest(kind="curate", key=study_of(1)))
    cluster.curated(study_of(1), 1)


def test_without_room_a_study_waits(cluster: Cluster) -> None:
    curator = cluster.curator(reserve=1 << 60)
    cluster.send(ct(1, 1))
    wait_for(lambda: [job.reason for job in cluster.jobs()] == ["STORAGE_FULL"], 30)
    assert not files(cluster)
    stores = cluster.client("application-server", database_pb2, "RegistryService", "database-server")
    found = {s.store_id: s for s in stores.ListStores(database_pb2.ListStoresRequest()).stores}
    assert not found["curator-0"].accepting
    curator._cache._reserve = 0
    cluster.curated(study_of(1), 1)
    check(cluster, 1, 1)


# -- several -----------------------------------------------------------------------------------------------------------


def test_two_curators_share_the_work_and_nothing_is_made_twice(cluster: Cluster) -> None:
    curators = [cluster.curator(number, busy_pause=0.01) for number in range(2)]
    cluster.send(*(ct(study, number) for study in range(1, 13) for number in range(1, 4)))
    for study in range(1, 13):
        cluster.curated(study_of(study), 3, 60)
    wait_for(lambda: not any(c._jobs.active() for c in curators))
    made = [c._curation.made for c in curators]
    assert sum(made) == 36
    assert all(made)
    for study in range(1, 13):
        renditions = cluster.renditions(study_of(study))
        assert len(renditions) == 3
        for rendition in renditions:
            number = int(rendition.identity.sop_instance_uid.rpartition(".")[2])
            check(cluster, study, number, curator=int(rendition.store_id[-1]))


def test_what_a_silent_curator_had_is_expected_back_for_a_while(cluster: Cluster) -> None:
    cluster.curator(0)
    cluster.send(*(ct(1, number) for number in range(1, 4)))
    cluster.curated(study_of(1), 3)
    cluster.stop("curator-0")
    wait_for(lambda: not any(r.target for r in cluster.renditions(study_of(1))))
    patient = cluster.curator(1, patience=3600.0)
    cluster.send(ct(1, 4))
    cluster.curated(study_of(1), 1)
    wait_for(lambda: not patient._jobs.active())
    assert patient._curation.made == 1
    cluster.stop("curator-1")
    hasty = cluster.curator(1, patience=0.0)
    wait_for(lambda: hasty._curation.made == 3, 30)
    cluster.curated(study_of(1), 4)
    check(cluster, 1, 1, 2, 3, 4, curator=1)


def test_a_job_that_was_lost_is_dropped(cluster: Cluster) -> None:
    """Somebody else has it: this Curator ends its work, tells nobody that it failed, and drops nothing."""
    curator = cluster.curator(busy_pause=0.2)
    cluster.send(*(ct(1, number) for number in range(1, 16)))
    wait_for(lambda: curator._curation.made >= 2)
    ((_, job),) = curator._jobs._active.items()
    finish = cluster.client("application-server", database_pb2, "JobService", "database-server").FinishJob
    finish(database_pb2.FinishJobRequest(id=job.id, fence=job.fence, state=SUCCEEDED))
    curator._jobs._renew()
    assert job.lost
    wait_for(lambda: job.id not in curator._jobs._active, 30)
    assert [(j.id, j.state) for j in cluster.jobs() if j.id == job.id] == [(job.id, SUCCEEDED)]
    # What had come meanwhile was noted, and found.
    cluster.curated(study_of(1), 15, 60)
    assert curator._curation.made == 15


def test_intake_goes_first(cluster: Cluster) -> None:
    """While objects come each instance waits a little, and what works here is last in line."""
    curator = cluster.curator(busy_pause=60.0)
    cluster.send(ct(1, 1))
    wait_for(curator._jobs.active)
    assert curator._curation.made == 0
    wait_for(lambda: curator._curation._pool._threads)
    threads = [*curator._jobs._pool._threads, *curator._curation._pool._threads]
    assert [os.getpriority(os.PRIO_PROCESS, thread.native_id) for thread in threads] == [max(10, os.nice(0))] * 2
    assert curator._sweep._pause == 60.0
    curator._sweep._never.set()
    cluster.curated(study_of(1), 1)


def test_a_damaged_file_is_replaced_when_it_is_added_to(cluster: Cluster) -> None:
    cluster.curator()
    cluster.send(ct(1, 1))
    cluster.curated(study_of(1), 1)
    cluster.stop("curator-0")
    files(cluster)[0].write_bytes(b"no environment " * 4000)
    cluster.send(ct(1, 2))
    curator = cluster.curator()
    cluster.curated(study_of(1), 2, 60)
    check(cluster, 1, 1, 2)
    assert curator._curation.made == 2


def test_many_frames_fit_into_messages(cluster: Cluster) -> None:
    cluster.curator()
    frames = np.arange(20_000 * 4, dtype="<u2").reshape(20_000, 2, 2) & 0xFFF
    item = ct(1, 1, frames, NumberOfFrames=20_000)
    cluster.send(item)
    cluster.curated(study_of(1), 1, 60)
    answers = list(cluster.web_cache().GetManifest(curator_pb2.GetManifestRequest(study_instance_uid=study_of(1))))
    assert len(answers) > 1
    assert all(answer.ByteSize() < 1 << 20 for answer in answers)
    sizes = [frame.size for answer in answers for instance in answer.instances for frame in instance.frames]
    assert len(sizes) == 20_000
    request = curator_pb2.ReadFramesRequest(study_instance_uid=study_of(1))
    for number in (1, 777, 20_000):
        request.ranges.add(sop_instance_uid=item.sop, frame=number)
    got = [bytes(message.data) for message in cluster.web_cache().ReadFrames(request)]
    for stream, number in zip(got, (1, 777, 20_000), strict=True):
        assert len(stream) == sizes[number - 1]
        assert np.array_equal(htj2k.decode(stream), frames[number - 1])


def test_a_worker_is_started_when_it_is_needed(cluster: Cluster) -> None:
    curator = cluster.curator()
    assert curator.pids() == [os.getpid()]
    cluster.send(ct(1, 1))
    cluster.curated(study_of(1), 1)
    worker: Worker = curator._workers.all[0]
    wait_for(lambda: not curator._jobs.active())
    assert curator.pids() == [os.getpid(), worker.pid]
    curator._workers.rest()
    assert curator.pids() == [os.getpid()]
