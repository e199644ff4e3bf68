"""Images through archive and database into the web cache, and out of it again."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from curator_support import CODED, Cluster, ct, pixels_of

from radmesh_native import htj2k

STUDY = "2.25.77.{}"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    made.database()
    made.archive()
    yield made
    made.close()


def test_a_study_is_coded_and_served(cluster: Cluster) -> None:
    cluster.curator()
    items = [ct(1, number) for number in range(1, 6)]
    cluster.send(*items)
    study = STUDY.format(1)
    made = cluster.curated(study, 5)
    for number, item in enumerate(items, 1):
        rendition = made[item.sop]
        assert (rendition.state, rendition.reason, rendition.number_of_frames) == (CODED, "", 1)
        assert rendition.transfer_syntax_uid == "1.2.840.10008.1.2.4.202"
        assert rendition.identity.sha256 == item.sha256
        first, stream = cluster.frame(study, item.sop)
        assert first.size == len(stream) == rendition.bytes
        frame = htj2k.decode(stream, max_samples=64 * 64)
        assert np.array_equal(frame, pixels_of(1, number))
        small = stream[: first.resolution_offsets[0]]
        levels = len(first.resolution_offsets) - 1
        assert htj2k.decode(small, reduce=levels).shape == (64 >> levels, 64 >> levels)
    job = cluster.job_ended(study)
    assert (job.state, job.reason) == (3, "")
    head, packed = cluster.metadata(study, study + ".1")
    found = json.loads(gzip.decompress(packed))
    assert head.instance_count == len(found) == 5
    assert {one["00080018"]["Value"][0] for one in found} == set(made)
    assert all(one["00083002"]["Value"] == ["1.2.840.10008.1.2.4.202"] for one in found)
