"""Wiping, and the bounds of a web cache."""

from typing import Any

import numpy as np
from curator_support import Cluster, check, ct, files, study_of
from waiting import wait_for

from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.curator.database import SWEPT

SUCCEEDED = 3


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
