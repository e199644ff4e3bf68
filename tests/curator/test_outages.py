"""What may come between: components that are away, files that are lost, cut or changed, a database from a backup."""

import shutil

import pytest
from curator_support import Cluster, check, ct, files, study_of
from waiting import wait_for

from radmesh.runtime.errors import RadmeshError


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
