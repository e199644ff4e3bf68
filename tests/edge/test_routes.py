"""Routes: studies leave by themselves, each image once, late ones too, and only what may."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_support import save
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, KeyObjectSelectionDocumentStorage
from station_support import Edge, received, storescp, until

ROUTED, HOLDER = "ROUTEDCT", "HOLDER"


@pytest.fixture(scope="module", autouse=True)
def routes(edge: Edge) -> Iterator[None]:
    run = edge.cluster.run
    assert run("routes", "set", "ct", "--destinations", "STORESCP", "--stations", f"{ROUTED},{HOLDER}").code == 0
    yield
    for route in run("routes", "--json").json["routes"]:
        run("routes", "remove", route["name"])


def study_of(number: int) -> str:
    return f"2.25.77.{number}"


def made(edge: Edge, number: int, *images: int) -> list[Path]:
    folder = edge.folder / f"routed-{number}"
    folder.mkdir(exist_ok=True)
    return [save(folder, number, SOPInstanceUID=f"{study_of(number)}.1.{n}") for n in images]


def jobs(edge: Edge, number: int) -> list[Any]:
    found: list[Any] = edge.cluster.run("sends", "--json").json["sendings"]
    return [job for job in found if job["study_instance_uid"] == study_of(number)]


def ended(edge: Edge, number: int, count: int = 1) -> list[Any]:
    """The jobs of a study, newest first, when so many have ended."""

    def have() -> list[Any]:
        found = jobs(edge, number)
        return found if sum(job["state"] in ("SUCCEEDED", "FAILED") for job in found) >= count else []

    found: list[Any] = until(have, 30)
    return found


def test_a_study_is_routed_when_it_is_complete_and_late_images_follow_alone(edge: Edge) -> None:
    with storescp(edge.folder / "routed", edge.ports["STORESCP"]) as folder:
        edge.store(*made(edge, 940, 1, 2), calling=ROUTED)
        (job,) = ended(edge, 940)
        assert (job["state"], job["message"], job["routes"], job["by"]) == ("SUCCEEDED", "2 instances sent", ["ct"], "")
        assert len(received(folder)) == 2
        for path in folder.iterdir():
            path.unlink()
        edge.store(*made(edge, 940, 3), calling=ROUTED)
        assert ended(edge, 940, 2)[0]["message"] == "1 instance sent"
        assert list(received(folder)) == [f"{study_of(940)}.1.3"]
        # What it says of the study changes; what is in it does not.
        test = edge.cluster.run("routes", "test", study_of(940), "--json").json["tests"]
        assert test == [
            {
                "route": "ct",
                "fires": True,
                "reason": "",
                "destinations": [{"station": "STORESCP", "known": True, "undelivered": 0}],
            }
        ]
    assert len(jobs(edge, 940)) == 2


def test_a_rule_that_does_not_fit_says_why(edge: Edge) -> None:
    edge.store(*made(edge, 941, 1), calling=HOLDER)
    edge.store(*made(edge, 942, 1), calling="MODALITY")
    assert edge.cluster.run("routes", "test", study_of(941), "--json").reason == "STUDY_NOT_FOUND"
    (test,) = edge.cluster.run("routes", "test", study_of(942), "--json").json["tests"]
    assert (test["fires"], test["reason"]) == (False, "STATION")
    assert "none of its stations sent it" in edge.cluster.run("routes", "test", study_of(942)).out


def test_a_send_is_cancelled_retried_and_not_begun_again_by_itself(edge: Edge) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", edge.ports["STORESCP"]))  # bound, not listening: a connection is refused
        edge.store(*made(edge, 944, 1), calling=ROUTED)
        (job,) = until(lambda: [job for job in jobs(edge, 944) if job["reason"]], 30)
        assert (job["state"], job["reason"]) == ("QUEUED", "STATION_UNREACHABLE")
        # Those that came before it were looked at before it.
        assert not jobs(edge, 941)
        assert not jobs(edge, 942)
        cancelled = edge.cluster.run("sends", "cancel", str(job["id"]), "--json").json["sendings"][0]
        assert (cancelled["state"], cancelled["reason"]) == ("FAILED", "CANCELLED")
        assert edge.cluster.run("sends", "retry", "999999", "--json").reason == "JOB_NOT_FOUND"
        (test,) = edge.cluster.run("routes", "test", study_of(944), "--json").json["tests"]
        assert test["destinations"][0]["undelivered"] == 0
    with storescp(edge.folder / "retried", edge.ports["STORESCP"]) as folder:
        assert edge.cluster.run("sends", "retry", str(job["id"])).code == 0
        assert ended(edge, 944)[0]["state"] == "SUCCEEDED"
        assert len(received(folder)) == 1
    assert edge.cluster.run("sends", "cancel", str(job["id"]), "--json").reason == "JOB_ENDED"


def test_only_key_images_are_sent_where_that_is_asked(edge: Edge) -> None:
    assert edge.cluster.run("routes", "set", "ct", "--key-images").code == 0
    try:
        with storescp(edge.folder / "keys", edge.ports["STORESCP"]) as folder:
            images = made(edge, 945, 1, 2, 3)
            edge.store(*images, calling=ROUTED)
            (test,) = edge.cluster.run("routes", "test", study_of(945), "--json").json["tests"]
            assert test["reason"] == "KEY_IMAGES"
            edge.store(key_objects(edge.folder / "keys.dcm", images[1]), calling=ROUTED)
            assert ended(edge, 945)[0]["message"] == "2 instances sent"
            assert sorted(received(folder)) == [f"{study_of(945)}.1.2", f"{study_of(945)}.9"]
    finally:
        assert edge.cluster.run("routes", "set", "ct", "--no-key-images").code == 0


def key_objects(path: Path, image: Path) -> Path:
    """A Key Object Selection document that refers to one image (PS3.3 A.35.4)."""
    of = dcmread(image)
    document = Dataset()
    document.file_meta = FileMetaDataset()
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document.SOPClassUID = document.file_meta.MediaStorageSOPClassUID = KeyObjectSelectionDocumentStorage
    document.SOPInstanceUID = document.file_meta.MediaStorageSOPInstanceUID = f"{of.StudyInstanceUID}.9"
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyDate"):
        if keyword in of:
            document[keyword] = of[keyword]
    document.SeriesInstanceUID = f"{of.StudyInstanceUID}.8"
    document.Modality = "KO"
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = of.SOPClassUID, of.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = of.SeriesInstanceUID, Sequence([instance])
    study.StudyInstanceUID, study.ReferencedSeriesSequence = of.StudyInstanceUID, Sequence([series])
    document.CurrentRequestedProcedureEvidenceSequence = Sequence([study])
    document.save_as(path, enforce_file_format=True)
    return path


def test_what_cannot_be_is_named(edge: Edge) -> None:
    run = edge.cluster.run
    for arguments, said in (
        (("set", "x", "--window", "1-2"), "destinations"),
        (("set", "x", "--destinations", "A", "--window", "25:00-26:00"), "window"),
        (("set", "x", "--destinations", "A", "--verification", "HELD"), "VERIFIED"),
        (("set", "x", "--destinations", "A\\B"), "AE titles"),
        (("set", "x"), "to change one"),
        (("list", "x"), "which"),
    ):
        answer = run("routes", *arguments, "--json")
        assert answer.reason == "FIELD_INVALID", arguments
        assert said in answer.out, arguments
    assert run("routes", "remove", "x", "--json").reason == "ROUTE_NOT_FOUND"
