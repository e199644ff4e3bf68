"""Other people's senders against the edge: DCMTK and pynetdicom."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from depth import allowed
from edge_mesh import World
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, build_context
from pynetdicom.sop_class import (
    _STORAGE_CLASSES,
    CTImageStorage,
    HangingProtocolStorage,
    ModalityWorklistInformationFind,
    Verification,
)

from radmesh_gateway_proxy.sop_classes import storage_sop_classes, transfer_syntaxes

FILES = (
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "rtplan.dcm",
    "rtdose_1frame.dcm",
    "reportsi.dcm",
    "SC_rgb.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "waveform_ecg.dcm",
    "examples_palette.dcm",
    "liver_1frame.dcm",
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
        world = World(Path(folder))
        yield world
        world.close()


@pytest.fixture(scope="module")
def port(world: World) -> Iterator[int]:
    supervisor = world.supervisor()
    supervisor.start()
    yield supervisor.port
    supervisor.stop(1.0)


@pytest.fixture(scope="module")
def files() -> list[Path]:
    found = [get_testdata_file(name, download=False) for name in FILES]
    return [Path(str(path)) for path in found if path]


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} of DCMTK is not installed: apt install dcmtk, or run with -m 'not partner'")
    return path


@pytest.mark.partner
def test_echoscu(port: int) -> None:
    subprocess.run([program("echoscu"), "-aec", "RADMESH", "127.0.0.1", str(port)], check=True, timeout=20)


@pytest.mark.partner
def test_dcmsend_sends_everything(world: World, port: int, files: list[Path]) -> None:
    assert len(files) >= 10
    ended = subprocess.run(
        [
            program("dcmsend"),
            "-v",
            "-aec",
            "RADMESH",
            "--decompress-never",
            "--no-halt",
            "127.0.0.1",
            str(port),
            *files,
        ],
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
    )
    text = ended.stdout + ended.stderr
    assert ended.returncode == 0, text
    assert f"* with status SUCCESS  : {len(files)}" in text
    stored = {row.header.sop_instance_uid for row in world.rows()}
    assert {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files} <= stored


@pytest.mark.partner
def test_storescu_as_shipped_does_not_stall(world: World, port: int, files: list[Path]) -> None:
    """Without TCP_QUICKACK on our side each message would take some 40 ms."""
    path = next(path for path in files if path.name == "CT_small.dcm")
    count = 50
    start = time.monotonic()
    subprocess.run(
        [program("storescu"), "-aec", "RADMESH", "127.0.0.1", str(port), *[str(path)] * count], check=True, timeout=60
    )
    assert time.monotonic() - start < allowed(count * 0.04)


@pytest.mark.partner
def test_storescu_is_refused_what_it_may_not(port: int, tmp_path: Path, files: list[Path]) -> None:
    bad = pydicom.dcmread(next(path for path in files if path.name == "CT_small.dcm"))
    del bad.StudyInstanceUID
    bad.save_as(tmp_path / "bad.dcm")
    ended = subprocess.run(
        [program("storescu"), "-v", "-aec", "RADMESH", "127.0.0.1", str(port), str(tmp_path / "bad.dcm")],
        check=False,
        timeout=20,
        capture_output=True,
        text=True,
    )
    assert "DataSetDoesNotMatchSOPClass" in ended.stdout + ended.stderr


def instance(sop_class: str, syntax: str, number: int) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, f"2.25.300.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.300", "2.25.300.0"
    ds.PatientName, ds.PatientID = "Test^Partner", "P300"
    return ds


def test_pynetdicom_echo_store_and_refusals(world: World, port: int) -> None:
    entity = AE("PYNET")
    entity.requested_contexts = [
        build_context(Verification),
        build_context(CTImageStorage, [ImplicitVRLittleEndian]),
        build_context(CTImageStorage, [ExplicitVRBigEndian]),
        build_context(CTImageStorage, [DeflatedExplicitVRLittleEndian]),
        build_context(ModalityWorklistInformationFind),
        build_context(HangingProtocolStorage),
        build_context("1.2.3.4.5.6"),
    ]
    association = entity.associate("127.0.0.1", port, ae_title="RADMESH")
    assert association.is_established
    try:
        assert len(association.accepted_contexts) == 5
        assert {c.result for c in association.rejected_contexts} == {3}
        assert association.send_c_echo().Status == 0
        for number, syntax in enumerate((ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)):
            assert association.send_c_store(instance(CTImageStorage, syntax, number)).Status == 0
        bad = instance(CTImageStorage, ImplicitVRLittleEndian, 9)
        del bad.StudyInstanceUID
        response = association.send_c_store(bad)
        assert response.Status == 0xA900
        assert "(0020,000D)" in response.ErrorComment
        assert response.OffendingElement == 0x0020000D
        assert association.send_c_echo().Status == 0
    finally:
        association.release()
    assert association.is_released
    sent = {row.header.sop_instance_uid for row in world.rows()}
    assert {"2.25.300.0", "2.25.300.1", "2.25.300.2"} <= sent
    assert "2.25.300.9" not in sent


def test_every_storage_class_and_transfer_syntax_is_taken(port: int) -> None:
    ours, syntaxes = storage_sop_classes(), transfer_syntaxes()
    # What pynetdicom knows and we leave out would be a newer class: add it to sop_classes.
    assert {uid for uid in _STORAGE_CLASSES.values() if uid not in ours} == set()
    assert {
        str(s)
        for s in (
            *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
            *(RLELossless, JPEG2000Lossless, JPEGLSLossless, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.202"),
            *("1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.108", "1.2.840.10008.1.2.8.1"),
        )
    } <= syntaxes
    classes = sorted(ours)
    for start in range(0, len(classes), 128):
        entity = AE("PYNET")
        entity.requested_contexts = [build_context(uid, [JPEGLSLossless]) for uid in classes[start : start + 128]]
        association = entity.associate("127.0.0.1", port)
        assert association.is_established
        assert association.rejected_contexts == []
        association.release()
    for start in range(0, len(syntaxes), 128):
        group = sorted(syntaxes)[start : start + 128]
        entity = AE("PYNET")
        entity.requested_contexts = [build_context(CTImageStorage, [uid]) for uid in group]
        association = entity.associate("127.0.0.1", port)
        assert association.rejected_contexts == []
        association.release()
