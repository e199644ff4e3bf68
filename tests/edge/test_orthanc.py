"""Orthanc as a station: it asks us, has us send to it, and sends to us."""

import hashlib
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster_support import data_set, save
from station_support import Edge, free_ports, present, until

from radmesh.dicom import part10

STUDY = "2.25.77.940"


class Orthanc:
    """A running Orthanc, by its REST API."""

    def __init__(self, folder: Path, dicom_port: int, radmesh_port: int) -> None:
        folder.mkdir()
        http_port = free_ports()["PLAIN"]
        self.url = f"http://127.0.0.1:{http_port}"
        self.folder = folder
        configuration = {
            "Name": "station",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [],
            "HttpPort": http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": "ORTHANC",
            "DicomPort": dicom_port,
            "DicomModalities": {"radmesh": ["RADMESH", "127.0.0.1", radmesh_port]},
            "KeepAlive": True,
        }
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        self.process = subprocess.Popen(
            [present("Orthanc"), str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", data), timeout=60) as answer:
            return json.loads(answer.read())

    def files(self) -> Iterator[Path]:
        """Every instance it has, written to a file each."""
        for instance in self.ask("/instances"):
            with urllib.request.urlopen(f"{self.url}/instances/{instance}/file", timeout=60) as answer:
                path = self.folder / f"{instance}.dcm"
                path.write_bytes(answer.read())
                yield path

    def is_up(self) -> bool:
        with suppress(OSError, urllib.error.URLError):
            return bool(self.ask("/system"))
        return False

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def orthanc(edge: Edge) -> Iterator[Orthanc]:
    station = Orthanc(edge.folder / "orthanc", edge.ports["ORTHANC"], edge.port)
    try:
        until(station.is_up, 60)
        yield station
    finally:
        station.close()


@pytest.fixture(scope="module")
def files(edge: Edge) -> list[Path]:
    folder = edge.folder / "for-orthanc"
    folder.mkdir()
    made = [
        save(folder, 940, SOPInstanceUID=f"{STUDY}.1.{n}", PatientName="Ñandú^Ö", SpecificCharacterSet="ISO_IR 100")
        for n in (1, 2, 3)
    ]
    edge.store(*made)
    return made


def digests(paths: Any) -> list[str]:
    return sorted(hashlib.sha256(data_set(path)).hexdigest() for path in paths)


def emptied(orthanc: Orthanc) -> None:
    for patient in orthanc.ask("/patients"):
        with urllib.request.urlopen(urllib.request.Request(f"{orthanc.url}/patients/{patient}", method="DELETE")):
            pass


def test_it_hears_our_echo_and_we_its(orthanc: Orthanc) -> None:
    orthanc.ask("/modalities/radmesh/echo", {})


def test_it_finds_a_study_and_has_it_moved_to_itself(orthanc: Orthanc, files: list[Path]) -> None:
    emptied(orthanc)
    query = orthanc.ask(
        "/modalities/radmesh/query", {"Level": "Study", "Query": {"StudyInstanceUID": STUDY, "PatientName": ""}}
    )
    answers = orthanc.ask(f"/queries/{query['ID']}/answers?expand&simplify")
    assert [answer["PatientName"] for answer in answers] == ["Ñandú^Ö"]
    orthanc.ask(f"/queries/{query['ID']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
    assert digests(orthanc.files()) == digests(files)


def test_a_study_is_sent_to_it(edge: Edge, orthanc: Orthanc, files: list[Path]) -> None:
    emptied(orthanc)
    answer = edge.cluster.run("send", STUDY, "--to", "ORTHANC", "--wait", "--json")
    assert answer.json["sendings"][0]["state"] == "SUCCEEDED", answer
    assert digests(orthanc.files()) == digests(files)


def test_what_it_pushes_comes_back_bit_by_bit(edge: Edge, orthanc: Orthanc, files: list[Path]) -> None:
    emptied(orthanc)
    path = save(edge.folder, 941)
    request = urllib.request.Request(f"{orthanc.url}/instances", path.read_bytes())
    with urllib.request.urlopen(request, timeout=60) as answer:
        instance = json.loads(answer.read())["ID"]
    orthanc.ask("/modalities/radmesh/store", [instance])
    into = edge.folder / "pushed"
    assert edge.get(into, "QueryRetrieveLevel=STUDY", "StudyInstanceUID=2.25.77.941", options=("+B",)).status == 0
    (got,) = into.iterdir()
    with got.open("rb") as file:
        assert part10.seek_data_set(file)
    assert data_set(got) == data_set(path)
