"""ImageService at the gRPC door, against a whole cluster."""

import gzip
import json
from typing import Self

import grpc
import numpy as np
import pytest
from dicomweb_support import SERIES, STUDY, Web, picture, pixels
from http_support import PASSWORD
from waiting import wait_for

from radmesh.api.application.v1 import application_pb2, application_pb2_grpc
from radmesh.api.curator.v1 import curator_pb2
from radmesh.runtime.rpc import from_rpc_error
from radmesh_native import htj2k
from radmesh_native.crc32c import crc32c


class Reader:
    """Calls of ImageService by a person."""

    def __init__(self, web: Web, name: str) -> None:
        self._channel = grpc.insecure_channel(web.cluster.target)
        self._stub = application_pb2_grpc.ImageServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {web.people.tokens[name]}"),)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, name: str, request):
        try:
            answer = getattr(self._stub, name)(request, metadata=self._metadata, timeout=30)
            return answer if not hasattr(answer, "__next__") else list(answer)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def refused(self, name: str, request):
        with pytest.raises(Exception, match=r"^[A-Z_]+: ") as caught:
            self.call(name, request)
        return caught.value.reason, caught.value.metadata

    def frames(self, study, *ranges):
        """{index: bytes}, checked as a client checks them."""
        request = curator_pb2.ReadFramesRequest(
            study_instance_uid=study, ranges=[curator_pb2.FrameRange(**part) for part in ranges]
        )
        found: dict[int, bytearray] = {}
        ended = set()
        for message in self.call("ReadFrames", request):
            assert crc32c(message.data) == message.crc32c
            index = message.index
            if index not in found:
                assert message.transfer_syntax_uid == "1.2.840.10008.1.2.4.202"
                assert message.resolution_offsets[-1] == message.size
            data = found.setdefault(index, bytearray())
            assert message.offset == ranges[index].get("offset", 0) + len(data)
            data += message.data
            if message.last:
                ended.add(index)
        assert ended == set(range(len(ranges)))
        return [bytes(found[index]) for index in range(len(ranges))]


@pytest.fixture
def reader(stored):
    with Reader(stored, "radiologist") as reader:
        yield reader


def manifest(reader, study, series=""):
    request = curator_pb2.GetManifestRequest(study_instance_uid=study, series_instance_uid=series)
    return [instance for page in reader.call("GetManifest", request) for instance in page.instances]


def test_frames_and_their_parts(reader):
    parts = [{"sop_instance_uid": f"{SERIES}.{n}", "frame": 1} for n in (3, 1, 8)]
    parts += [{"sop_instance_uid": f"{STUDY}.2.1", "frame": n} for n in (2, 3)]
    frames = reader.frames(STUDY, *parts)
    for number, frame in zip((3, 1, 8), frames, strict=False):
        assert np.array_equal(htj2k.decode(frame), pixels(1000 + number))
    cine = pixels(1001, frames=3)
    assert [np.array_equal(htj2k.decode(f), c) for f, c in zip(frames[3:], cine[1:], strict=True)] == [True, True]
    first = parts[0]
    head, tail = reader.frames(STUDY, {**first, "length": 100}, {**first, "offset": 100})
    assert (len(head), head + tail) == (100, frames[0])
    (beyond,) = reader.frames(STUDY, {**first, "offset": 100, "length": 1 << 40})
    assert beyond == tail


def test_the_manifest_lists_everything(reader):
    found = {one.rendition.identity.sop_instance_uid: one for one in manifest(reader, STUDY)}
    assert len(found) == 9
    cine = found[f"{STUDY}.2.1"]
    assert [len(frame.resolution_offsets) > 1 for frame in cine.frames] == [True] * 3
    frames = reader.frames(STUDY, *({"sop_instance_uid": f"{STUDY}.2.1", "frame": n} for n in (1, 2, 3)))
    assert [frame.size for frame in cine.frames] == [len(frame) for frame in frames]
    assert len(manifest(reader, STUDY, SERIES)) == 8
    # By the content too.
    sha256 = cine.rendition.identity.sha256
    assert reader.frames(STUDY, {"sop_instance_uid": f"{STUDY}.2.1", "frame": 1, "sha256": sha256}) == frames[:1]


def test_metadata(reader):
    request = curator_pb2.ReadSeriesMetadataRequest(study_instance_uid=STUDY, series_instance_uid=SERIES)
    messages = reader.call("ReadSeriesMetadata", request)
    assert all(crc32c(message.data) == message.crc32c for message in messages)
    assert (messages[0].instance_count, len(messages[0].tag)) == (8, 32)
    found = json.loads(gzip.decompress(b"".join(message.data for message in messages)))
    assert [one["00200013"]["Value"][0] for one in found] == list(range(1, 9))


def test_what_is_not_there_is_told(reader):
    part = {"sop_instance_uid": f"{SERIES}.1", "frame": 1}

    def read(study, *parts):
        return reader.refused(
            "ReadFrames",
            curator_pb2.ReadFramesRequest(
                study_instance_uid=study, ranges=[curator_pb2.FrameRange(**one) for one in parts]
            ),
        )

    assert read("2.25.9", part)[0] == "STUDY_NOT_FOUND"
    reason, metadata = read(STUDY, part, {**part, "frame": 2})
    assert (reason, metadata["index"]) == ("RENDITION_NOT_FOUND", "1")
    assert read(STUDY, {**part, "sha256": b"x" * 32})[0] == "RENDITION_NOT_FOUND"
    assert read(STUDY, {**part, "offset": 1 << 40})[0] == "RANGE_INVALID"
    assert read(STUDY)[0] == "FIELD_INVALID"
    assert read(STUDY, *([part] * 4097))[0] == "FIELD_INVALID"
    unknown = curator_pb2.ReadSeriesMetadataRequest(study_instance_uid=STUDY, series_instance_uid="2.25.9")
    assert reader.refused("ReadSeriesMetadata", unknown)[0] == "RENDITION_NOT_FOUND"
    assert reader.refused("WipeWebCache", curator_pb2.WipeRequest())[0] == "ROLE_REFUSED"


def test_whose_eyes(stored, tmp_path):
    stored.store(tmp_path, picture(41, 1))
    stored.store(tmp_path, picture(41, 2, PatientID="OTHER"), user="tom", password=PASSWORD)
    stored.curated("2.25.77.41")
    held = curator_pb2.ReadFramesRequest(
        study_instance_uid="2.25.77.41",
        ranges=[curator_pb2.FrameRange(sop_instance_uid="2.25.77.41.1.2", frame=1)],
    )
    with Reader(stored, "radiologist") as radiologist, Reader(stored, "technologist") as technologist:
        assert len(manifest(radiologist, "2.25.77.41")) == 1
        assert len(manifest(technologist, "2.25.77.41")) == 2
        assert radiologist.refused("ReadFrames", held)[0] == "RENDITION_NOT_FOUND"
        assert len(technologist.call("ReadFrames", held)) >= 1


def test_a_wiped_web_cache_is_made_again(stored, tmp_path):
    stored.store(tmp_path, picture(42, 1))
    stored.curated("2.25.77.42")
    part = {"sop_instance_uid": "2.25.77.42.1.1", "frame": 1}
    with Reader(stored, "administrator") as reader:
        before = reader.frames("2.25.77.42", part)
        wiped = reader.call("WipeWebCache", curator_pb2.WipeRequest(study_instance_uid="2.25.77.42"))
        assert wiped.studies == 1
        stored.curated("2.25.77.42")
        assert wait_for(lambda: len(manifest(reader, "2.25.77.42")) == 1, 30.0)
        assert reader.frames("2.25.77.42", part) == before
    with stored.cluster.client() as client:
        assert [e.object for e in client.audit(limit=200, action="WEB_CACHE_WIPE")][:1] == ["2.25.77.42"]


def test_grants_and_watches_are_served_here_too(reader):
    grant = reader.call("GetReadGrant", application_pb2.GetReadGrantRequest(study_instance_uid=STUDY))
    assert (grant.store_id, bool(grant.grant)) == ("archive-0", True)
