"""Pixel data is checked after the commit, in quiet time: what is defective is marked, shown and served."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from component_mesh import Components, item, refs
from database_support import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2
from radmesh.archive_server import checks
from radmesh.database_server.schema import instances, studies
from radmesh.dicom.frame_decoder import FrameDecoder

SIZE = 16 * 16 * 2


@pytest.fixture
def mesh() -> Iterator[Components]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="rm-", dir=memory if memory.is_dir() else None))
    made = Components(folder)
    made.database()
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def data_set(size: int, pixels: bytes = b"") -> bytes:
    ds = Dataset()
    ds.Rows = ds.Columns = 16
    ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.add_new(0x7FE00010, "OB" if pixels else "OW", pixels or bytes(size))
    ds["PixelData"].is_undefined_length = bool(pixels)
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = False, True
    write_dataset(file, ds)
    return bytes(file.getvalue())


def defects(mesh: Components) -> dict[str, str]:
    rows = mesh._rows(sa.select(instances.c.sop_instance_uid, instances.c.defect))
    return {row["sop_instance_uid"]: row["defect"] for row in rows}


def checked(mesh: Components, count: int) -> Any:
    archive = mesh.running["archive-server-0"]
    return wait_for(lambda: archive._checks.checked >= count, 20)


def test_a_defective_instance_is_marked_and_served(mesh: Components) -> None:
    mesh.archive(quiet=0.2)
    good, short, odd = (
        item("a", 1, data_set(SIZE)),
        item("a", 2, data_set(SIZE - 2)),
        item("a", 3, b"\xff" * 500),
    )
    committed = mesh.send(good, short, odd)
    wait_for(lambda: defects(mesh).get(short.sop) == "PIXEL_DATA_SHORT", 20)
    checked(mesh, 3)
    assert defects(mesh) == {good.sop: "", short.sop: "PIXEL_DATA_SHORT", odd.sop: ""}
    assert [mesh.read(c.object)[0] for c in committed] == [good.data, short.data, odd.data]
    query = mesh.client("application-server", database_pb2, "QueryService", "database-server")
    study = query.GetStudy(database_pb2.GetStudyRequest(study_instance_uid=uid("study", "a"))).study
    assert study.defective_count == 1
    rows = mesh._rows(sa.select(studies.c.defective_count))
    assert [row["defective_count"] for row in rows] == [1]


def test_what_a_stopped_archive_left_is_checked_later(mesh: Components) -> None:
    mesh.archive(quiet=3600.0)
    short = item("b", 1, data_set(SIZE - 2))
    (ref,) = refs(mesh.send(short))
    store = mesh.running["archive-server-0"]._store
    assert store.unchecked(ref.study_hash, ref.generation) == [ref]
    mesh.stop("archive-server-0")
    mesh.archive(quiet=0.2)
    wait_for(lambda: defects(mesh).get(short.sop) == "PIXEL_DATA_SHORT", 20)
    store = mesh.running["archive-server-0"]._store
    assert store.unchecked(ref.study_hash, ref.generation) == []
    # Once: the next start finds nothing to do.
    mesh.stop("archive-server-0")
    mesh.archive(quiet=0.2)
    later = item("b", 2, data_set(SIZE))
    mesh.send(later)
    checked(mesh, 1)
    assert mesh.running["archive-server-0"]._checks.defective == 0


def test_a_frame_that_cannot_be_tried_keeps_no_other_object_waiting(
    mesh: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "FrameDecoder", lambda: FrameDecoder(("-c", "raise SystemExit(1)")))
    mesh.archive(quiet=0.2)
    coded = item("c", 1, data_set(0, encapsulate([b"\xff\x4f" * 50])))
    coded = replace(coded, header=replace(coded.header, transfer_syntax_uid="1.2.840.10008.1.2.4.90"))
    short = item("c", 2, data_set(SIZE - 2))
    first, _ = refs(mesh.send(coded, short))
    wait_for(lambda: defects(mesh).get(short.sop) == "PIXEL_DATA_SHORT", 20)
    store = mesh.running["archive-server-0"]._store
    # It is tried again.
    assert store.unchecked(first.study_hash, first.generation) == [first]
    assert defects(mesh)[coded.sop] == ""
