"""A database or an archive that does not answer: modalities notice nothing, and everything heals by itself."""

import os
import signal
import time

import pytest
from faults_support import Running, Sending, check_everything, make_items, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]


def residences(running: Running) -> dict[str, int]:
    """How many copies are where."""
    counts: dict[str, int] = {}
    with running.cluster() as cluster:
        for study in cluster.find():
            for instance in cluster.instances(study.study_instance_uid, variants=True):
                for place in instance.locations:
                    kind = f"{place.store_id.split('-')[0]} {place.residence}"
                    counts[kind] = counts.get(kind, 0) + 1
    return counts


def test_a_database_that_stands_still() -> None:
    """Known studies go on to their archive, new ones to the spool; all are registered when it is back."""
    with Running() as running:
        first = Sending(running.dicom_port, make_items(40, 31, studies=2))
        first.start()
        first.join(60)
        database = running.pids("database-server")[0]
        os.kill(database, signal.SIGSTOP)
        try:
            later = Sending(running.dicom_port, [*make_items(80, 31, studies=2)[40:], *make_items(20, 32, studies=2)])
            later.start()
            later.join(100)
        finally:
            os.kill(database, signal.SIGCONT)
        assert set(first.statuses) == set(later.statuses) == {0}
        both = Sending(
            running.dicom_port, [*first.items, *later.items], acknowledged=first.acknowledged | later.acknowledged
        )
        print(check_everything(running, both, seconds=20))


def test_an_archive_that_stands_still() -> None:
    """Its objects go to the spool, are found and read there, and drain into the archive by themselves, each once."""
    with Running() as running:
        archive = running.pids("archive-server")[0]
        os.kill(archive, signal.SIGSTOP)
        try:
            sending = Sending(running.dicom_port, make_items(40, 33, studies=2, large=1_500_000))
            sending.start()
            sending.join(120)
            assert set(sending.statuses) == {0}
            print(check_everything(running, sending, seconds=20))
            assert residences(running) == {"spool SPOOL": 40}
        finally:
            os.kill(archive, signal.SIGCONT)
        wait_for(
            lambda: set(residences(running)) <= {"archive CACHE", "archive CACHE_AND_PERMANENT"},
            60,
            "the spool is empty",
        )
        print(check_everything(running, sending))
        assert sum(residences(running).values()) == 40


def test_no_room_anywhere_is_said_and_a_retry_is_stored_once() -> None:
    """A reserve above what the file system has stands for a full disk: 0xA700, and nothing is acknowledged."""
    with Running("--set", "archive.reserve=1000TB", "--set", "gateway.reserve=1000TB") as running:
        time.sleep(2.0)
        sending = Sending(running.dicom_port, make_items(4, 34, studies=1), associations=1, patience=3.0)
        sending.start()
        sending.join(60)
        assert set(sending.statuses) == {0xA700}
        assert sending.acknowledged == {}
        data, again = running.data, make_items(4, 34, studies=1)
        assert running.stop() == 0
        running._arguments = ()
        running.start()
        assert running.data == data
        sending = Sending(running.dicom_port, again)
        sending.start()
        sending.join(60)
        assert check_everything(running, sending)["found"] == 4


def test_evicted_objects_come_from_the_permanent_tier() -> None:
    with Running() as running:
        sending = Sending(running.dicom_port, make_items(30, 35, studies=2, large=1_500_000))
        sending.start()
        sending.join(60)
        check_everything(running, sending)
        wait_for(lambda: residences(running) == {"archive CACHE_AND_PERMANENT": 30}, 60, "all is in the permanent tier")
        with running.cluster() as cluster:
            freed = sum(cluster.evict(study.study_instance_uid) for study in cluster.find())
        assert freed > sum(len(item.data_set) for item in sending.items)
        wait_for(lambda: residences(running) == {"archive PERMANENT": 30}, 20, "the database knows")
        assert check_everything(running, sending, read=30)["found"] == 30
