"""Evicted objects come back from the permanent tier, and the tier is plain DICOM files that anybody can read."""

import pydicom
import pytest
from faults_support import Running, check_everything, make_items, residences, send
from waiting import wait_for

OBJECTS = 30

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_evicted_objects_come_from_the_permanent_tier() -> None:
    with Running() as running:
        sending = send(running, make_items(OBJECTS, 35, studies=2, large=1_500_000))
        check_everything(running, sending)
        wait_for(
            lambda: residences(running, sending) == {"archive CACHE_AND_PERMANENT": OBJECTS},
            60,
            "all is in the permanent tier",
        )
        with running.cluster() as cluster:
            freed = sum(cluster.evict(study.study_instance_uid) for study in cluster.find())
        assert freed > sum(len(item.data_set) for item in sending.items)
        wait_for(lambda: residences(running, sending) == {"archive PERMANENT": OBJECTS}, 20, "the database knows")
        assert check_everything(running, sending, read=OBJECTS)["found"] == OBJECTS

        sent = {item.sop_instance_uid: item for item in sending.items}
        read = {}
        for path in (running.data / "archive-server-0" / "permanent").rglob("*.dcm"):
            dataset = pydicom.dcmread(path)
            assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
            assert path.read_bytes().endswith(sent[dataset.SOPInstanceUID].data_set)
            read[dataset.SOPInstanceUID] = dataset.StudyInstanceUID
        assert read == {uid: item.study for uid, item in sent.items()}
