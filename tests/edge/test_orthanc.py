"""Orthanc as a station: it asks us, has us send to it, sends to us, and asks whether we keep what it sent."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_support import data_set, save
from orthanc_support import Orthanc
from partner_matrix import met
from station_support import Edge, until
from waiting import wait_for

from radmesh.dicom import part10

STUDY = "2.25.77.970"


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
        save(folder, 970, SOPInstanceUID=f"{STUDY}.1.{n}", PatientName="Ñandú^Ö", SpecificCharacterSet="ISO_IR 100")
        for n in (1, 2, 3)
    ]
    edge.store(*made)
    return made


def digests(paths: Any) -> list[str]:
    return sorted(hashlib.sha256(data_set(path)).hexdigest() for path in paths)


def test_it_hears_our_echo_and_we_its(edge: Edge, orthanc: Orthanc) -> None:
    orthanc.ask("/modalities/radmesh/echo", {})
    assert edge.cluster.run("stations", "echo", "ORTHANC").code == 0
    met("Orthanc", "echo")


def test_it_finds_a_study_and_has_it_moved_to_itself(orthanc: Orthanc, files: list[Path]) -> None:
    orthanc.forget()
    query = orthanc.ask(
        "/modalities/radmesh/query", {"Level": "Study", "Query": {"StudyInstanceUID": STUDY, "PatientName": ""}}
    )
    answers = orthanc.ask(f"/queries/{query['ID']}/answers?expand&simplify")
    assert [answer["PatientName"] for answer in answers] == ["Ñandú^Ö"]
    met("Orthanc", "find")
    orthanc.ask(f"/queries/{query['ID']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
    assert digests(orthanc.files()) == digests(files)
    met("Orthanc", "move")


def test_a_study_is_sent_to_it(edge: Edge, orthanc: Orthanc, files: list[Path]) -> None:
    orthanc.forget()
    answer = edge.cluster.run("send", STUDY, "--to", "ORTHANC", "--wait", "--json")
    assert answer.json["sendings"][0]["state"] == "SUCCEEDED", answer
    assert digests(orthanc.files()) == digests(files)
    met("Orthanc", "is sent to")


def test_what_it_pushes_comes_back_bit_by_bit_and_is_kept(edge: Edge, orthanc: Orthanc, files: list[Path]) -> None:
    orthanc.forget()
    path = save(edge.folder, 971)
    instance = orthanc.ask("/instances", path.read_bytes())["ID"]
    asked = {"Resources": [instance], "StorageCommitment": True, "Synchronous": True}
    asked = orthanc.ask("/modalities/radmesh/store", asked)
    into = edge.folder / "pushed"
    assert edge.get(into, "QueryRetrieveLevel=STUDY", "StudyInstanceUID=2.25.77.971", options=("+B",)).status == 0
    (got,) = into.iterdir()
    with got.open("rb") as file:
        assert part10.seek_data_set(file)
    assert data_set(got) == data_set(path)
    met("Orthanc", "store")
    report = f"/storage-commitment/{asked['StorageCommitmentTransactionUID']}"
    wait_for(lambda: orthanc.ask(report)["Status"] != "Pending")
    assert orthanc.ask(report)["Status"] == "Success"
    met("Orthanc", "commitment")
