"""QIDO-RS against a whole cluster: as dicomweb-client asks, as curl asks, and with everybody's eyes."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from dicomweb_support import SERIES, STUDY, picture
from http_support import PASSWORD
from pydicom.dataset import Dataset


def uids(found, keyword="StudyInstanceUID"):
    return [Dataset.from_json(one)[keyword].value for one in found]


def test_dicomweb_client_searches(stored):
    client = stored.client()
    found = client.search_for_studies(search_filters={"PatientID": "P1"})
    assert uids(found) == [STUDY]
    study = Dataset.from_json(found[0])
    assert (study.NumberOfStudyRelatedSeries, study.NumberOfStudyRelatedInstances) == (2, 9)
    assert sorted(study.ModalitiesInStudy) == ["CT", "US"]
    # dicomweb-client names the host without its port.
    assert study.RetrieveURL == f"http://127.0.0.1/dicom-web/studies/{STUDY}"
    plain = stored.get(f"/studies?StudyInstanceUID={STUDY}").json()
    assert uids(plain, "RetrieveURL") == [f"{stored.url}/studies/{STUDY}"]
    assert "StudyDescription" not in study
    both = {"StudyInstanceUID": "2.25.77.1,2.25.77.2"}
    assert uids(client.search_for_studies(search_filters=both, limit=1, offset=1)) == ["2.25.77.2"]
    series = client.search_for_series(STUDY)
    assert [(s.SeriesNumber, s.Modality) for s in map(Dataset.from_json, series)] == [(1, "CT"), (2, "US")]
    assert len(client.search_for_instances(STUDY)) == 9
    instances = client.search_for_instances(STUDY, SERIES)
    assert [Dataset.from_json(i).InstanceNumber for i in instances] == list(range(1, 9))
    assert uids(client.search_for_instances(STUDY, f"{STUDY}.2"), "NumberOfFrames") == [3]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("PatientName=doe*", ["2.25.77.1"]),
        ("00100010=M%C3%BCller*", ["2.25.77.2"]),
        ("PatientName=m%C3%BCller^%C3%96", ["2.25.77.2"]),
        ("StudyDate=20250101-20251231", ["2.25.77.2"]),
        ("StudyDate=20260102", ["2.25.77.1"]),
        ("StudyInstanceUID=2.25.77.2,2.25.77.1", ["2.25.77.1", "2.25.77.2"]),
        ("StudyInstanceUID=2.25.77.2%5C2.25.77.9", ["2.25.77.2"]),
        ("ModalitiesInStudy=US", ["2.25.77.1"]),
        ("Modality=US,MR", ["2.25.77.1"]),
        ("StudyID=S?", ["2.25.77.1"]),
        ("ReferringPhysicianName=roe*", ["2.25.77.1"]),
        ("StudyTime=03-04", ["2.25.77.1", "2.25.77.2"]),
        ("StudyTime=05", []),
        ("PatientID=nobody", []),
        ("PatientID=P1&StudyID=X", []),
        ("limit=1", ["2.25.77.1"]),
        ("offset=1", ["2.25.77.2"]),
        ("limit=0", []),
        ("_=123&unknown=1", ["2.25.77.1", "2.25.77.2"]),
    ],
)
def test_what_is_asked_for_is_found(stored, query, expected):
    both = "StudyInstanceUID=2.25.77.1,2.25.77.2&" if "StudyInstanceUID" not in query else ""
    answer = stored.get(f"/studies?{both}{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert uids(answer.json()) == expected


def test_series_and_instances_of_all_studies(stored):
    assert uids(stored.get(f"/series?StudyInstanceUID={STUDY}&Modality=US").json(), "SeriesInstanceUID") == [
        f"{STUDY}.2"
    ]
    assert uids(stored.get("/series?PatientID=P2").json(), "SeriesInstanceUID") == ["2.25.77.2.1"]
    found = stored.get(f"/instances?PatientID=P1&SOPInstanceUID={SERIES}.3").json()
    assert uids(found, "SOPInstanceUID") == [f"{SERIES}.3"]
    assert uids(stored.get(f"/studies/{STUDY}/instances?InstanceNumber=4").json(), "SOPInstanceUID") == [f"{SERIES}.4"]
    assert stored.get(f"/studies/{STUDY}/series?PatientID=P2").json() == []
    limited = stored.get(f"/studies/{STUDY}/instances?limit=2&offset=3")
    assert uids(limited.json(), "InstanceNumber") == [4, 5]
    assert "additional results" in limited.headers["warning"]


def test_what_is_not_done_is_said(stored):
    answer = stored.get("/studies?PatientName=Doe*&emptyvaluematching=true")
    assert answer.headers.get_list("warning") == [
        f"299 {stored.url}: The emptyvaluematching parameter is not supported. "
        "Empty Value Matching has not been performed."
    ]
    assert "warning" not in stored.get("/studies?PatientName=Doe*&emptyvaluematching=false").headers


def test_fuzzy_names(stored):
    ours = "PatientName=mueller&PatientID=P2"
    for query, fuzzy, found in ((ours, "false", []), (ours, "true", ["2.25.77.2"]), ("PatientName=Doa", "true", [])):
        answer = stored.get(f"/studies?{query}&fuzzymatching={fuzzy}")
        assert uids(answer.json()) == found, (query, fuzzy)
        assert "warning" not in answer.headers
    assert uids(stored.get(f"/series?{ours}&fuzzymatching=true").json()) == ["2.25.77.2"]
    assert stored.get("/studies/2.25.77.2/series?PatientName=mueller&fuzzymatching=true").json()


@pytest.mark.parametrize(
    ("path", "accept", "status", "reason"),
    [
        ("/studies?StudyDate=yesterday", "*/*", 400, "FIELD_INVALID"),
        ("/studies?PatientAge=030Y", "*/*", 400, "FIELD_INVALID"),
        ("/studies/not-a-uid/series", "*/*", 400, "FIELD_INVALID"),
        ("/studies/2.25.99/series", "*/*", 404, "STUDY_NOT_FOUND"),
        (f"/studies/{STUDY}/series/2.25.99/instances", "*/*", 404, "SERIES_NOT_FOUND"),
        ("/studies", 'multipart/related; type="application/dicom+xml"', 406, "NOT_ACCEPTABLE"),
        ("/patients", "*/*", 404, "PATH_UNKNOWN"),
    ],
)
def test_errors_say_what_is_wrong(stored, path, accept, status, reason):
    answer = stored.get(path, accept=accept)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.headers["content-type"] == "application/problem+json"


def test_curl_searches(stored):
    """An unmodified program, with nothing but a token."""
    token = stored.people.tokens["radiologist"]
    done = subprocess.run(
        ["curl", "-sS", "--fail", "-H", f"Authorization: Bearer {token}", f"{stored.url}/studies?PatientID=P2"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert uids(json.loads(done.stdout)) == ["2.25.77.2"]


def test_held_studies_are_found_by_whom_they_concern(stored, tmp_path):
    stored.store(tmp_path, picture(3, 1, PatientID="HELD"), user="tom", password=PASSWORD)
    assert uids(stored.get("/studies?PatientID=HELD", "technologist").json()) == ["2.25.77.3"]
    assert uids(stored.get("/studies?PatientID=HELD", "administrator").json()) == ["2.25.77.3"]
    assert stored.get("/studies?PatientID=HELD").json() == []
    assert stored.get("/series?PatientID=HELD").json() == []
    assert stored.get("/studies/2.25.77.3/series").status_code == 404


def test_who_asks_at_the_same_time_sees_with_own_eyes(stored, tmp_path):
    stored.store(tmp_path, picture(3, 2, PatientID="HELD"), user="tom", password=PASSWORD)
    expected = {"technologist": ["2.25.77.3"], "radiologist": []}

    def ask(number):
        role = ("technologist", "radiologist")[number % 2]
        found = stored.get("/studies?PatientID=HELD", role).json()
        listed = stored.people[role].get("/api/v1/studies?patient_id=HELD").json()["studies"]
        return role, uids(found), [study["study_instance_uid"] for study in listed]

    with ThreadPoolExecutor(16) as pool:
        for role, found, listed in pool.map(ask, range(64)):
            assert (found, listed) == (expected[role], expected[role]), role


def test_searches_are_audited(stored):
    stored.get("/studies?PatientID=P2")
    stored.get("/studies/2.25.77.2/instances")
    with stored.cluster.client() as client:
        recent = [(event.action, event.object, event.actor) for event in client.audit(limit=50)]
    assert ("STUDY_QUERY", "", "radiologist") in recent
    assert ("STUDY_SHOW", "2.25.77.2", "radiologist") in recent
