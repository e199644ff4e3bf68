"""Local and remote clients of a real cluster: the same pixels, prefixes, files of the web cache's frames."""

import contextlib
import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cluster_support import COMMAND, RealCluster, data_set, environment, refused, samples, save
from pydicom import dcmread
from pydicom.pixels import iter_pixels
from waiting import wait_for

from radmesh.api.application.v1 import application_pb2
from radmesh.api.archive.v1 import archive_pb2_grpc
from radmesh.api.transfer.v1 import transfer_pb2
from radmesh.client import Cluster, model
from radmesh.client.images import prefix
from radmesh.client.local import LocalArchives
from radmesh.client.shell import FAILED, NOT_FOUND, OK, PARTIAL, REFUSED, USAGE
from radmesh.runtime.errors import RadmeshError
from radmesh_native.crc32c import crc32c

HTJ2K = "1.2.840.10008.1.2.4.202"
NOISE = np.random.default_rng(1).integers(0, 4096, (3, 70, 50), dtype="u2")
LARGE = np.random.default_rng(2).integers(0, 1000, (300, 513), dtype="u2")


def grey(number: int, words: Any, **values: Any) -> dict[str, Any]:
    words = np.ascontiguousarray(words)
    frames = words.shape[0] if words.ndim == 3 else None
    size = {"Rows": words.shape[-2], "Columns": words.shape[-1], "BitsAllocated": 8 * words.itemsize}
    return {"number": number, "PixelData": words.tobytes(), "NumberOfFrames": frames or 1, **size, **values}


def colour(number: int, words: Any, photometric: str, planar: int = 0, **values: Any) -> dict[str, Any]:
    words = np.ascontiguousarray(words)
    rows, columns = words.shape[1:] if planar else words.shape[:2]
    return {
        "number": number, "PixelData": words.tobytes(), "Rows": rows, "Columns": columns, "BitsAllocated": 8,
        "BitsStored": 8, "HighBit": 7, "SamplesPerPixel": 3, "PhotometricInterpretation": photometric,
        "PlanarConfiguration": planar, **values,
    }  # fmt: skip


_RGB = np.random.default_rng(3).integers(0, 256, (40, 30, 3), dtype="u1")
_TABLE = np.arange(255, -1, -1, dtype="<u2").repeat(1) * 257
_PALETTE: dict[str, Any] = {
    f"{c}PaletteColorLookupTable{part}": value
    for c, shift in (("Red", 0), ("Green", 7), ("Blue", 99))
    for part, value in (("Descriptor", [256, 0, 16]), ("Data", np.roll(_TABLE, shift).tobytes()))
}
ODDITIES: tuple[dict[str, Any], ...] = (
    grey(900, NOISE),
    grey(901, NOISE[0] << 4, HighBit=15),
    grey(902, NOISE[0] - 2048 & 0x0FFF, PixelRepresentation=1),
    grey(903, (NOISE[0] - 2048).view("i2"), PixelRepresentation=1),
    grey(904, NOISE[0] * 3),
    grey(905, NOISE[0].astype("u1"), BitsStored=8, HighBit=7),
    grey(906, NOISE[0].astype("u1"), BitsStored=8, HighBit=7, PhotometricInterpretation="PALETTE COLOR", **_PALETTE),
    colour(907, _RGB, "RGB"),
    colour(908, _RGB.transpose(2, 0, 1), "RGB", planar=1),
    colour(909, _RGB, "YBR_FULL"),
    grey(910, LARGE),
)


@pytest.fixture(scope="module")
def password(cluster: RealCluster) -> str:
    return (cluster.data / "admin-password").read_text().strip()


@pytest.fixture(scope="module")
def curated(cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> RealCluster:
    """The cluster, with every file of pydicom and some oddities, as far as they can be stored, and all curated."""
    folder = tmp_path_factory.mktemp("oddities")
    made = [save(folder, **values) for values in ODDITIES]
    assert cluster.run("store", *made).code == OK
    assert cluster.run("store", *samples()).code == PARTIAL
    done = cluster.run("curate", "--json")
    assert done.code == OK, done
    assert done.json["curated"] == done.json["instances"] > 50
    return cluster


@pytest.fixture(scope="module")
def local(curated: RealCluster) -> Iterator[Cluster]:
    with curated.client() as made:
        yield made


@pytest.fixture(scope="module")
def remote(curated: RealCluster, password: str) -> Iterator[Cluster]:
    with Cluster.remote(curated.ready["urls"]["grpc"], user="admin", password=password) as made:
        yield made


def fails(reason: str, call: Callable[[], Any]) -> bool:
    with refused(reason):
        call()
    return True


def frames(cluster: Cluster, study: str, sop: str) -> list[Any]:
    """The pixels of an instance, or why there are none."""
    try:
        return [frame.pixels for frame in cluster.frames(study, sop_instance_uid=sop)]
    except RadmeshError as error:
        return [error.reason]


def test_both_show_the_same_pixels(local: Cluster, remote: Cluster) -> None:
    states: dict[str, int] = {}
    for study in local.find():
        uid = study.study_instance_uid
        assert study.curated_count == study.instance_count
        for picture in remote.manifest(uid):
            states[picture.state] = states.get(picture.state, 0) + 1
            if picture.state == "NONE":
                assert picture.reason
                continue
            there = frames(remote, uid, picture.sop_instance_uid)
            here = frames(local, uid, picture.sop_instance_uid)
            assert len(there) == len(picture.frames)
            if picture.state == "ORIGINAL" and isinstance(here[0], str):
                continue  # a Number of Frames that is no number, which pydicom does not read
            assert len(here) == len(there), picture
            for mine, its in zip(here, there, strict=True):
                assert np.array_equal(mine, its), (picture, mine, its)
    assert {"CODED", "PASSED", "ORIGINAL", "NONE"} == set(states)
    assert states["CODED"] > 30


def test_the_pixels_are_those_that_were_stored(remote: Cluster) -> None:
    expected = {
        900: list(NOISE),
        901: [NOISE[0]],
        902: [NOISE[0].astype("i4") - 2048],
        903: [NOISE[0].astype("i4") - 2048],
        904: [NOISE[0] * 3],
        905: [NOISE[0].astype("u1")],
        906: [np.stack([np.roll(_TABLE, shift)[NOISE[0].astype("u1")] for shift in (0, 7, 99)], -1)],
        907: [_RGB],
        908: [_RGB],
    }
    for number, arrays in expected.items():
        found = frames(remote, f"2.25.77.{number}", f"2.25.77.{number}.1.1")
        assert len(found) == len(arrays)
        for one, other in zip(found, arrays, strict=True):
            assert np.array_equal(one, other), number


def test_a_local_client_reads_past_the_door(curated: RealCluster, local: Cluster, remote: Cluster) -> None:
    uid = "2.25.77.910"
    (instance,) = local.instances(uid)
    its = b"".join(remote.read(uid, instance))
    assert hashlib.sha256(its).hexdigest() == instance.sha256

    def past_the_door() -> bool:
        # An archive on a machine that is busy with tests may be silent for a moment: then it is the door.
        with curated.client() as fresh:
            assert b"".join(fresh.read(uid, instance)) == its
        return ("STUDY_READ", '{"archive": "archive-0"}') in {(e.action, e.detail) for e in local.audit(object=uid)}

    wait_for(past_the_door)
    assert {("STUDY_GRANT", ""), ("STUDY_READ", "")} <= {(e.action, e.detail) for e in local.audit(object=uid)}


def test_a_prefix_is_enough_for_a_smaller_picture(remote: Cluster, local: Cluster) -> None:
    uid = "2.25.77.910"
    (picture,) = remote.manifest(uid)
    (frame,) = picture.frames
    assert picture.transfer_syntax_uid == HTJ2K
    assert frame.resolution_offsets[-1] == frame.size == picture.bytes
    whole = next(remote.frames(uid))
    assert (whole.pixels.shape, whole.received) == ((300, 513), frame.size)
    assert np.array_equal(whole.pixels, LARGE)
    levels = len(frame.resolution_offsets) - 1
    for reduce in (1, 2, levels, 99):
        for client in (remote, local):
            (small,) = client.frames(uid, reduce=reduce)
            by = min(reduce, levels)
            assert small.pixels.shape == (-(-300 // 2**by), -(-513 // 2**by))
            assert small.received == frame.resolution_offsets[levels - by] < frame.size
    assert fails("FIELD_INVALID", lambda: remote.frames(uid, reduce=-1))


def test_prefixes_of_what_has_none() -> None:
    assert prefix(model.FrameSize(10), 3) == (10, 0)
    assert prefix(model.FrameSize(10, (10,)), 3) == (10, 0)
    assert prefix(model.FrameSize(10, (2, 5, 10)), 1) == (5, 1)


def test_only_what_is_asked_for(remote: Cluster, local: Cluster) -> None:
    uid = "2.25.77.900"
    for client in (remote, local):
        assert [f.number for f in client.frames(uid, series_instance_uid=f"{uid}.1")] == [1, 2, 3]
        assert fails("INSTANCE_NOT_FOUND", lambda c=client: list(c.frames(uid, sop_instance_uid="1.2.3")))
        assert fails("STUDY_NOT_FOUND", lambda c=client: list(c.frames("1.2.3")))
    (picture,) = remote.manifest(uid)
    numbers = [3, 1, 3]
    got = list(remote.frame_data(uid, [(picture, n) for n in numbers]))
    assert [f.number for f in got] == numbers
    assert got[0] == got[2] != got[1]
    assert fails("STUDY_NOT_FOUND", lambda: remote.manifest("1.2.3"))
    other = model.Picture(**{**_fields(picture), "sha256": "00" * 32})
    assert fails("RENDITION_NOT_FOUND", lambda: list(remote.frame_data(uid, [(other, 1)])))


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_metadata_describe_what_is_served(remote: Cluster) -> None:
    (described,) = remote.series_metadata("2.25.77.908", "2.25.77.908.1")
    assert described["00080018"]["Value"] == ["2.25.77.908.1.1"]
    assert described["00280004"]["Value"] == ["YBR_RCT"]
    assert "7FE00010" not in described or "InlineBinary" not in described["7FE00010"]
    assert fails("RENDITION_NOT_FOUND", lambda: remote.series_metadata("2.25.77.908", "1.2.3"))


def test_urls_of_a_door(curated: RealCluster, password: str) -> None:
    for url in ("https://a:1", "grpc://", "grpc://host", "grpc://host:1/x", ""):
        assert fails("FIELD_INVALID", lambda u=url: Cluster.remote(u, user="admin", password=password))
    assert fails("FIELD_INVALID", lambda: Cluster.remote("grpcs://a:1", user="admin", password=password))
    with Cluster.remote(curated.target, user="admin", password=password) as plain:
        assert plain.user.name == "admin"


# -- get --remote


def test_files_of_the_web_caches_frames(curated: RealCluster, local: Cluster, tmp_path: Path) -> None:
    written = 0
    reasons = set()
    for study in local.find():
        out = tmp_path / "out"
        answer = curated.run("get", "--remote", study.study_instance_uid, "--out", out, "--json").json
        assert len(answer["written"]) + len(answer["failed"]) == study.instance_count
        reasons |= {failure["reason"] for failure in answer["failed"]}
        for file in answer["written"]:
            written += 1
            ds = dcmread(file["path"])
            assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID == file["instance"]
            assert ds.file_meta.TransferSyntaxUID == file["transfer_syntax"]
            assert ds.StudyInstanceUID == study.study_instance_uid
            assert str(ds.get("PatientID") or "") == study.patient_id
            if file["transfer_syntax"] != HTJ2K:
                continue
            here = frames(local, study.study_instance_uid, file["instance"])
            assert file["frames"] == len(here)
            there = list(iter_pixels(ds))
            assert len(there) == len(here)
            for mine, its in zip(here, there, strict=True):
                assert np.array_equal(mine, its), file
    assert written > 40
    assert reasons == {"NO_PIXEL_DATA", "PIXEL_DATA_MISSING", "PIXELS_ONE_BIT", "PIXELS_OVER_16_BITS"}
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix != ".dcm"]


def test_what_get_remote_says(curated: RealCluster, tmp_path: Path) -> None:
    uid = "2.25.77.900"
    done = curated.run("get", "--remote", uid, "--out", tmp_path / "a")
    assert (done.code, done.out) == (OK, f"1 file in {tmp_path / 'a'}\n")
    derived = curated.run("get", "--remote", "2.25.77.906", "--out", tmp_path / "a")
    assert derived.out == f"1 file in {tmp_path / 'a'}, 1 derived\n"
    assert curated.run("get", "--remote", uid, "--instance", "1.2", "--out", tmp_path, "--json").code == NOT_FOUND
    assert curated.run("get", "--remote", "1.2.3", "--out", tmp_path, "--json").reason == "STUDY_NOT_FOUND"
    for option in ("--variants", "--as-stored"):
        assert curated.run("get", "--remote", uid, option, "--json").code == USAGE
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    assert curated.run("get", "--remote", uid, "--out", blocked, "--json").reason == "FILE_NOT_WRITTEN"


def test_an_instance_without_a_picture_fails_alone(curated: RealCluster, tmp_path: Path) -> None:
    paths = [save(tmp_path, 920, SOPInstanceUID="2.25.77.920.1.1")]
    paths.append(save(tmp_path, 920, SOPInstanceUID="2.25.77.920.1.2", BitsAllocated=1, BitsStored=1, HighBit=0))
    assert curated.run("store", *paths).code == OK
    assert curated.run("curate", "2.25.77.920").code == OK
    done = curated.run("get", "--remote", "2.25.77.920", "--out", tmp_path / "out")
    assert done.code == PARTIAL
    assert "2.25.77.920.1.2: PIXELS_ONE_BIT: its frames cannot be coded: fetch it without --remote" in done.err
    alone = ("--instance", "2.25.77.920.1.2", "--out", tmp_path / "out", "--json")
    assert curated.run("get", "--remote", "2.25.77.920", *alone).code == FAILED


# -- curate and watch


def test_pictures_are_made_again(curated: RealCluster, remote: Cluster, local: Cluster) -> None:
    uid = "2.25.77.900"
    before = frames(remote, uid, f"{uid}.1.1")
    again = curated.run("curate", "--rebuild", uid, "--json")
    assert again.code == OK, again
    assert (again.json["instances"], again.json["curated"], again.json["dropped_studies"]) == (1, 1, 1)
    assert again.json["dropped_bytes"] > 0
    assert all(np.array_equal(a, b) for a, b in zip(before, frames(remote, uid, f"{uid}.1.1"), strict=True))
    said = curated.run("curate", uid, "--no-wait")
    assert (said.code, said.out) == (OK, "1 of 1 instance of 1 study\n")
    assert curated.run("curate", "1.2.3", "--json").reason == "STUDY_NOT_FOUND"
    local.create_user("rad", password="correct horse battery", role="radiologist")
    denied = curated.run("curate", "--rebuild", uid, "--user", "rad", RADMESH_PASSWORD="correct horse battery")
    assert denied.code == REFUSED
    assert curated.run("show", uid).out.count("pictures") == 1


def test_changes_are_printed_as_they_happen(curated: RealCluster, tmp_path: Path) -> None:
    watching = subprocess.Popen(
        [*COMMAND, "watch", "--limit", "1", "--json"], env=environment(RADMESH_DATA=str(curated.data)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stdout
    assert json.loads(watching.stdout.readline()) == {"studies": []}
    assert curated.run("store", save(tmp_path, 930)).code == OK
    out, err = watching.communicate(timeout=120)
    assert (watching.returncode, json.loads(out), err) == (OK, {"studies": ["2.25.77.930"]}, "")


def test_who_reads_only_is_not_told_of_what_is_held(curated: RealCluster, local: Cluster, tmp_path: Path) -> None:
    for name, role in (("eyes", "radiologist"), ("hands", "technologist")):
        local.create_user(name, password="correct horse battery", role=role)
    told: dict[str, set[str]] = {"eyes": set(), "hands": set()}
    ready = threading.Barrier(3)

    def watch(name: str) -> None:
        with contextlib.suppress(RadmeshError), curated.client(name, "correct horse battery") as cluster:
            for studies in cluster.watch():
                if not studies:
                    ready.wait(60)
                told[name] |= set(studies)
                if "2.25.77.942" in told[name]:
                    return

    threads = [threading.Thread(target=watch, args=(name,), daemon=True) for name in told]
    for thread in threads:
        thread.start()
    ready.wait(60)
    statuses = curated.inside("StudyService")
    from radmesh.api.database.v1 import database_pb2

    def put(number: int, verification: int) -> None:
        assert curated.run("store", save(tmp_path, number)).code == OK
        if verification:
            request = database_pb2.SetStatusRequest(
                study_instance_uid=f"2.25.77.{number}",
                verification=verification,
                reason="PATIENT_MISMATCH",  # type: ignore[arg-type]
            )
            statuses.SetStatus(request)

    put(940, 0)
    wait_for(lambda: all("2.25.77.940" in uids for uids in told.values()))
    # It was seen: that it has gone is told to all.
    told["eyes"].clear()
    statuses.SetStatus(
        database_pb2.SetStatusRequest(study_instance_uid="2.25.77.940", verification=5, reason="PATIENT_MISMATCH")  # type: ignore[arg-type]
    )
    wait_for(lambda: "2.25.77.940" in told["eyes"])
    # What happens to it from now on is told to those who reconcile.
    told["eyes"].clear()
    told["hands"].clear()
    assert curated.run("store", save(tmp_path, 940, SOPInstanceUID="2.25.77.940.1.2")).code == OK
    wait_for(lambda: "2.25.77.940" in told["hands"])
    put(942, 0)
    for thread in threads:
        thread.join(60)
    assert "2.25.77.940" not in told["eyes"]


# -- when an archive that serves local clients is not what it should be


class Archive:
    """A real ReadService that does what a test says."""

    def __init__(self, data: bytes) -> None:
        self.data, self.refusals, self.calls, self.wrong = data, 0, 0, ""
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        archive_pb2_grpc.add_ReadServiceServicer_to_server(self, self.server)  # type: ignore[arg-type,no-untyped-call]
        self.url = f"grpc://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def ReadRange(self, request: Any, context: Any) -> Iterator[Any]:
        self.calls += 1
        if self.refusals:
            self.refusals -= 1
            from radmesh.runtime.rpc import to_status

            context.abort_with_status(to_status(RadmeshError("GRANT_INVALID", "no")))
        half = len(self.data) // 2
        sha = hashlib.sha256(self.data).digest() if self.wrong != "content" else bytes(32)
        for start, end in ((0, half), (half, len(self.data))):
            data = self.data[start:end]
            yield transfer_pb2.ReadRangeResponse(
                offset=start + (self.wrong == "offset"),
                size=len(self.data) + (self.wrong == "size"),
                sha256=sha,
                crc32c=crc32c(data) ^ (self.wrong == "checksum"),
                data=data,
            )
            if self.wrong == "cut":
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            if self.wrong == "short":
                return


@pytest.mark.parametrize(
    ("wrong", "refusals", "calls"),
    [
        ("", 0, 1), ("cut", 0, 1), ("short", 0, 1), ("checksum", 0, 1), ("offset", 0, 1), ("size", 0, 1),
        ("content", 0, 1), ("", 1, 2), ("", 2, 2), ("nowhere", 0, 0), ("elsewhere", 0, 0), ("tls", 0, 0),
    ],
)  # fmt: skip
def test_what_an_archive_does_not_give_the_door_does(
    curated: RealCluster, local: Cluster, wrong: str, refusals: int, calls: int
) -> None:
    uid = "2.25.77.910"
    (instance,) = local.instances(uid)
    expected = b"".join(local.read(uid, instance))
    archive = Archive(expected)
    archive.wrong, archive.refusals = wrong, refusals
    urls = {
        "nowhere": "grpc://127.0.0.1:1",
        "elsewhere": "grpc://192.0.2.1:50052",
        "tls": archive.url.replace("c:", "cs:"),
    }

    def ask(_study: str) -> application_pb2.ReadGrant:
        grant = application_pb2.ReadGrant(grant=b"g", store_id="archive-0", client_url=urls.get(wrong, archive.url))
        grant.expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=60))
        return grant

    try:
        with curated.client() as cluster:
            cluster._archives = LocalArchives(ask, curated.target, None)
            assert b"".join(cluster.read(uid, instance)) == expected
            assert archive.calls == calls
    finally:
        archive.server.stop(None)


def test_from_another_machine_no_loopback_is_tried(local: Cluster) -> None:
    (instance,) = local.instances("2.25.77.910")
    archive = Archive(b"x")
    try:
        grant = application_pb2.ReadGrant(grant=b"g", store_id="archive-0", client_url=archive.url)
        away = LocalArchives(lambda _study: grant, "pacs.example:50051", None)
        assert list(away.read("2.25.77.910", instance)) == []
        assert archive.calls == 0
    finally:
        archive.server.stop(None)


def test_a_cluster_that_lets_nobody_read_locally(tmp_path: Path) -> None:
    config = tmp_path / "radmesh.toml"
    config.write_text('[archive]\nclient_bind = ""\n[mesh]\ncurators = 1\n')
    other = RealCluster(tmp_path / "data", "--config", str(config))
    try:
        path = save(tmp_path, 1)
        assert other.run("store", path).code == OK
        with other.client() as cluster:
            request = application_pb2.GetReadGrantRequest(study_instance_uid="2.25.77.1")
            assert fails("NO_LOCAL_READ", lambda: cluster._unary(cluster._images.GetReadGrant, request))
            assert fails(
                "STUDY_NOT_FOUND",
                lambda: cluster._unary(cluster._images.GetReadGrant, application_pb2.GetReadGrantRequest()),
            )
        assert other.run("get", "2.25.77.1", "--out", tmp_path / "out").code == OK
        assert data_set(next((tmp_path / "out").iterdir())) == data_set(path)
    finally:
        other.close()
