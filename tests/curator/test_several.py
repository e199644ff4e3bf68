"""Several Curators: they share the work; and who goes first."""

import os

from curator_support import Cluster, check, ct, study_of
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2

SUCCEEDED = 3


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
