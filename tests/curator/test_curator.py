"""Images through archive and database into the web cache, and out of it again."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from curator_support import (
    CODED,
    FAULTS,
    NONE,
    ORIGINAL,
    PASSED,
    Cluster,
    check,
    ct,
    item_of,
    pixels_of,
    study_of,
    unreadable,
)
from pixels_support import make, open_file
from pydicom.data import get_testdata_file
from waiting import wait_for

from radmesh.api.common.v1 import common_pb2
from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.curator.workers import Worker
from radmesh.transfer.model import key_message
from radmesh_native import htj2k

SUCCEEDED, FAILED = 3, 4


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
        here = make(item.data, item.header.transfer_syntax_uid)
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


def test_what_cannot_be_taken_apart_is_described_all_the_same(cluster: Cluster) -> None:
    cluster.curator()
    item = item_of(unreadable(ct(1, 1).data))
    cluster.send(item, ct(1, 2))
    made = cluster.curated(study_of(1), 2)
    assert (made[item.sop].state, made[item.sop].reason) == (NONE, "DATA_SET_UNREADABLE")
    head, packed = cluster.metadata(study_of(1), study_of(1) + ".1")
    found = {one["00080018"]["Value"][0]: one for one in json.loads(gzip.decompress(packed))}
    assert head.instance_count == len(found) == 2
    assert found[item.sop]["0020000D"]["Value"] == [study_of(1)]
    check(cluster, 1, 2)


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
