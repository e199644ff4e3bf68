"""Frames, metadata and manifests from a door that cuts, mixes up, changes or exaggerates what it sends."""

import gzip
import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cluster_support import refused
from pydicom import dcmread
from pydicom.encaps import generate_frames

from radmesh.api.application.v1 import application_pb2, application_pb2_grpc
from radmesh.api.common.v1 import common_pb2
from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.client import Cluster, assembly, images, model
from radmesh.runtime.errors import RadmeshError
from radmesh_native import htj2k
from radmesh_native.crc32c import crc32c

SIZES = (1, 5, 400_000, 0, 70)
DATA = [bytes([number + 1]) * size for number, size in enumerate(SIZES)]
PICTURE = model.Picture(
    "1.2.1", "1.2", "ab" * 32, "CODED", "", 0, "1.2.840.10008.1.2.4.202", "MONOCHROME2",
    derived=False, bytes=sum(SIZES),
    frames=tuple(model.FrameSize(size) for size in SIZES),
)  # fmt: skip


class Door(application_pb2_grpc.SessionServiceServicer, application_pb2_grpc.ImageServiceServicer):
    """A real server that does to frames what `wrong` says."""

    def __init__(self) -> None:
        self.wrong, self.cuts = "", 0
        self.asked: list[list[int]] = []
        self.parts: list[bytes] = []
        self.metadata_crc = 0
        self.manifest: list[curator_pb2.GetManifestResponse] = []
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        application_pb2_grpc.add_SessionServiceServicer_to_server(self, self.server)  # type: ignore[no-untyped-call]
        application_pb2_grpc.add_ImageServiceServicer_to_server(self, self.server)  # type: ignore[no-untyped-call]
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def SignIn(self, _request: Any, _context: Any) -> database_pb2.Session:
        return database_pb2.Session(token="t", user=database_pb2.User(name="jo"))

    def SignOut(self, _request: Any, _context: Any) -> application_pb2.SignOutResponse:
        return application_pb2.SignOutResponse()

    def ReadFrames(self, request: curator_pb2.ReadFramesRequest, context: Any) -> Iterator[Any]:
        self.asked.append([wanted.frame for wanted in request.ranges])
        for index, wanted in enumerate(request.ranges):
            data = DATA[wanted.frame - 1][: wanted.length or None]
            if self.wrong == "long":
                data += b"x"
            pieces = [data[at : at + 100_000] for at in range(0, max(1, len(data)), 100_000)]
            for number, piece in enumerate(pieces):
                last = number == len(pieces) - 1
                answer = curator_pb2.ReadFramesResponse(
                    index=index + (self.wrong == "index"),
                    offset=number * 100_000 + (self.wrong == "offset"),
                    size=len(DATA[wanted.frame - 1]) + (self.wrong == "size") if not number else 0,
                    crc32c=crc32c(piece) ^ (self.wrong == "checksum"),
                    last=last and self.wrong != "endless",
                    data=piece,
                )
                if self.wrong == "short" and last and len(data) > 1:
                    answer.data = piece[:-1]
                    answer.crc32c = crc32c(answer.data)
                yield answer
                if self.cuts and index == 2 and number == 1:
                    self.cuts -= 1
                    context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            if self.wrong == "few":
                return
        if self.wrong == "many":
            yield curator_pb2.ReadFramesResponse(index=len(request.ranges), last=True)

    def ReadSeriesMetadata(self, _request: Any, _context: Any) -> Iterator[Any]:
        for part in self.parts:
            yield curator_pb2.ReadSeriesMetadataResponse(data=part, crc32c=crc32c(part) ^ self.metadata_crc)

    def GetManifest(self, _request: Any, _context: Any) -> Iterator[Any]:
        yield from self.manifest


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.server.stop(None)


@pytest.fixture
def cluster(door: Door) -> Iterator[Cluster]:  # type: ignore[override] # no whole one is needed here
    with Cluster.remote(f"grpc://127.0.0.1:{door.port}", user="jo", password="p") as made:
        yield made


def read(cluster: Cluster, *numbers: int, reduce: int = 0) -> list[bytes]:
    wanted = [(PICTURE, number) for number in numbers or range(1, len(SIZES) + 1)]
    return [frame.data for frame in cluster.frame_data("1.2.3", wanted, reduce=reduce)]


def test_frames_come_whole_and_in_order(door: Door, cluster: Cluster) -> None:
    assert read(cluster) == DATA
    assert read(cluster, 3, 1, 3) == [DATA[2], DATA[0], DATA[2]]
    assert read(cluster, reduce=4) == DATA, "no prefix is known"
    assert list(cluster.frame_data("1.2.3", [])) == []
    assert door.asked == [[1, 2, 3, 4, 5], [3, 1, 3], [1, 2, 3, 4, 5]]


def test_what_is_cut_goes_on_behind_the_last_whole_frame(door: Door, cluster: Cluster) -> None:
    door.cuts = 1
    assert read(cluster) == DATA
    assert door.asked == [[1, 2, 3, 4, 5], [3, 4, 5]]


def test_many_frames_are_asked_for_in_parts(door: Door, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_RANGES_MOST", 2)
    assert read(cluster) == DATA
    assert door.asked == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("wrong", ["long", "short", "index", "offset", "size", "checksum", "few", "many", "endless"])
def test_other_frames_than_were_asked_for(door: Door, cluster: Cluster, wrong: str) -> None:
    door.wrong = wrong
    if wrong == "many":
        assert read(cluster) == DATA, "what nobody asked for is not looked at"
        return
    with refused("OBJECT_CORRUPT"):
        read(cluster)


def test_frames_that_are_no_pictures(door: Door, cluster: Cluster) -> None:
    rendition = database_pb2.Rendition(
        identity=common_pb2.ContentIdentity(sop_instance_uid="1.2.1", sha256=bytes(32)),
        series_instance_uid="1.2",
        state=1,  # type: ignore[arg-type]
        transfer_syntax_uid=PICTURE.transfer_syntax_uid,
    )
    frame = curator_pb2.Frame(size=SIZES[0])
    answer = curator_pb2.GetManifestResponse()
    answer.instances.add(rendition=rendition, frames=[frame])
    door.manifest = [answer]
    with refused("FRAME_UNDECODABLE"):
        list(cluster.frames("1.2.3"))


def test_an_instance_in_several_parts_of_a_manifest(door: Door, cluster: Cluster) -> None:
    identities = [common_pb2.ContentIdentity(sop_instance_uid=f"1.{n}", sha256=bytes([n]) * 32) for n in range(2)]
    for number, sizes in ((0, (1, 2)), (0, (3,)), (1, (4,))):
        answer = curator_pb2.GetManifestResponse()
        answer.instances.add(
            rendition=database_pb2.Rendition(identity=identities[number], state=2),  # type: ignore[arg-type]
            frames=[curator_pb2.Frame(size=size, resolution_offsets=[1, size]) for size in sizes],
        )
        door.manifest.append(answer)
    pictures = cluster.manifest("1.2.3")
    assert [(p.sop_instance_uid, p.state, [f.size for f in p.frames]) for p in pictures] == [
        ("1.0", "PASSED", [1, 2, 3]),
        ("1.1", "PASSED", [4]),
    ]
    assert pictures[0].frames[2].resolution_offsets == (1, 3)


def test_metadata_that_are_none(door: Door, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    good = gzip.compress(json.dumps([{"00080018": {"vr": "UI", "Value": ["1.2"]}}]).encode())
    door.parts = [good[:20], good[20:]]
    assert cluster.series_metadata("1.2.3", "1.2")[0]["00080018"]["Value"] == ["1.2"]
    door.metadata_crc = 1
    with refused("OBJECT_CORRUPT"):
        cluster.series_metadata("1.2.3", "1.2")
    door.metadata_crc = 0
    for parts in (
        [],
        [good[:-4]],
        [b"no gzip"],
        [gzip.compress(b"[{")],
        [gzip.compress(b"{}")],
        [gzip.compress(b"\xff")],
    ):
        door.parts = parts
        with refused("OBJECT_CORRUPT"):
            cluster.series_metadata("1.2.3", "1.2")
    # A few bytes that would become very many.
    monkeypatch.setattr(images, "_METADATA_MOST", 1000)
    for size in (997, 2000, 100_000):
        bomb = gzip.compress(json.dumps(["x" * size]).encode())
        for door.parts in ([bomb], [bytes([byte]) for byte in bomb]):
            with refused("OBJECT_CORRUPT"):
                cluster.series_metadata("1.2.3", "1.2")
    door.parts = [gzip.compress(json.dumps(["x" * 996]).encode())]
    assert len(cluster.series_metadata("1.2.3", "1.2")[0]) == 996


def test_a_prefix_is_what_a_smaller_picture_needs() -> None:
    frame = np.random.default_rng(0).integers(0, 4096, (90, 130), dtype="u2")
    encoded = htj2k.encode(frame, bits_stored=12)
    size = model.FrameSize(len(encoded.codestream), encoded.resolution_offsets)
    for reduce in range(len(encoded.resolution_offsets)):
        length, left = images.prefix(size, reduce)
        small = htj2k.decode(encoded.codestream[:length], reduce=left)
        assert np.array_equal(small, htj2k.decode(encoded.codestream, reduce=reduce))
        assert left == reduce
    assert images.prefix(size, 99) == (encoded.resolution_offsets[0], len(encoded.resolution_offsets) - 1)


def test_values_that_make_no_element_are_left_out_of_a_file_and_named(tmp_path: Path) -> None:
    described = {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
        "00080018": {"vr": "UI", "Value": ["1.2.1"]},
        "00083002": {"vr": "UI", "Value": ["1.2.840.10008.1.2.4.202"]},
        "00090010": {"vr": "UN", "Value": ["text"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller", "Ideographic": "山田"}]},
        "00280010": {"vr": "US", "Value": ["ten"]},
        "00280011": {"vr": "US", "Value": [-1]},
        "00281201": {"vr": "OW", "BulkDataURI": "somewhere"},
        "00321064": {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["x"]}}, {}]},
        "7FE00010": {"vr": "OB", "BulkDataURI": "frames"},
        "FFFCFFFC": {"vr": "OB", "InlineBinary": "AAAA"},
    }
    path = tmp_path / "a.dcm"
    left_out = assembly.write(path, described, PICTURE, iter([b"odd", b"even"]))
    assert left_out == ("00090010", "00280010", "00280011", "00281201", "7FE00010")
    ds = dcmread(path)
    assert ds.file_meta.TransferSyntaxUID == PICTURE.transfer_syntax_uid
    assert str(ds.PatientName) == "Müller=山田"
    assert ds.RequestedProcedureCodeSequence[0].CodeValue == "x"
    assert "AvailableTransferSyntaxUID" not in ds
    assert list(generate_frames(ds.PixelData, number_of_frames=2)) == [b"odd\0", b"even"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.dcm"]


def test_a_file_that_does_not_become_whole_is_not_there(tmp_path: Path) -> None:
    def cut() -> Iterator[bytes]:
        yield b"some"
        raise RadmeshError("PEER_UNAVAILABLE", "cut")

    with refused("PEER_UNAVAILABLE"):
        assembly.write(tmp_path / "a.dcm", {}, PICTURE, cut())
    with refused("FILE_NOT_WRITTEN"):
        assembly.write(tmp_path / "none" / "a.dcm", {}, PICTURE, iter([b""]))
    assert not list(tmp_path.iterdir())
