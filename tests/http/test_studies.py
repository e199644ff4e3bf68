"""Studies as JSON: found, shown, reported on, held and released, with the eyes and the rights of who asks."""

import pytest
from cluster_support import RealCluster, save
from http_support import PASSWORD, People
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2

STUDIES = "/api/v1/studies"


@pytest.fixture(scope="module")
def stored(cluster: RealCluster, people: People, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Five studies that everybody sees, and one, 99, that is held."""
    folder = tmp_path_factory.mktemp("files")
    files = [
        save(
            folder,
            number,
            AccessionNumber=f"A{number}",
            StudyDate=f"2026010{number}",
            PatientName=f"Doe{number}^J\u00f6hn",
            SpecificCharacterSet="ISO_IR 192",
        )
        for number in range(1, 6)
    ]
    assert cluster.run("store", *files).code == 0
    held = save(folder, 99, PatientName="Held^Person", AccessionNumber="A99")
    people.add("tom", "technologist")
    (folder / "secret").write_text(PASSWORD)
    done = cluster.run("store", held, "--user", "tom", "--password-file", folder / "secret")
    assert done.code == 0, done.err
    holds = "/api/v1/holds"
    wait_for(lambda: people["technologist"].get(holds).json()["holds"])
    wait_for(lambda: len(people["radiologist"].get(STUDIES).json()["studies"]) == 5)
    return [f"2.25.77.{number}" for number in (*range(1, 6), 99)]


def uids(people: People, who: str = "radiologist", **parameters: object) -> list[str]:
    answer = people[who].get(STUDIES, params=parameters)
    assert answer.status_code == 200, answer.text
    return [study["study_instance_uid"].removeprefix("2.25.77.") for study in answer.json()["studies"]]


def test_the_list_with_its_filters(people, stored):
    assert uids(people) == ["5", "4", "3", "2", "1"]
    assert uids(people, patient_name="doe3*") == ["3"]
    assert uids(people, patient_id="P2") == ["2"]
    assert uids(people, accession_number="A4") == ["4"]
    assert uids(people, study_date="20260102-20260103") == ["3", "2"]
    assert uids(people, study_date="20260104") == ["4"]
    assert uids(people, study_date="20260104-") == ["5", "4"]
    assert uids(people, study_date="-20260101") == ["1"]
    assert uids(people, modality=["MR", "CT"], limit=2) == ["5", "4"]
    assert uids(people, modality="MR,US") == []
    assert uids(people, verification="unverified", reading="NEW") == ["5", "4", "3", "2", "1"]
    assert uids(people, verification="HELD") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A3", ["3"]),
        ("P4", ["4"]),
        ("oe5^j\u00f6", ["5"]),
        ("DOE2", ["2"]),
        ("2.25.77.1", ["1"]),
        ("nobody", []),
        ("2.25.77.99", []),
    ],
)
def test_what_somebody_types_is_found(people, stored, text, found):
    assert uids(people, text=text) == found


def test_pages(people, stored):
    for parameters in ({}, {"text": "doe"}):
        found, cursor = [], ""
        for _ in range(10):
            answer = people["radiologist"].get(STUDIES, params={**parameters, "limit": 2, "cursor": cursor}).json()
            found += [study["study_instance_uid"] for study in answer["studies"]]
            cursor = answer["next_cursor"]
            if not cursor:
                break
        assert found == stored[4::-1]


def test_a_study_with_its_instances(people, stored):
    answer = people["radiologist"].get(f"{STUDIES}/2.25.77.1").json()
    study, (series,) = answer["study"], answer["series"]
    assert (study["patient_name"], study["verification"], study["verification_reason"]) == (
        "Doe1^J\u00f6hn",
        "UNVERIFIED",
        "NO_ORDER",
    )
    assert (study["bytes"], study["instance_count"], study["modalities"]) == (study["bytes"], 1, ["CT"])
    (instance,) = series["instances"]
    assert (instance["sop_instance_uid"], instance["rows"], instance["columns"]) == ("2.25.77.1.1.1", 16, 16)
    assert len(instance["sha256"]) == 64
    assert "sock" not in str(answer)
    alone = people["radiologist"].get(f"{STUDIES}/2.25.77.1", params={"instances": "false"}).json()
    assert "instances" not in alone["series"][0]
    one = people["radiologist"].get(f"{STUDIES}/2.25.77.1/series/2.25.77.1.1").json()
    assert one["instances"][0]["sop_instance_uid"] == "2.25.77.1.1.1"
    wrong = people["radiologist"].get(f"{STUDIES}/2.25.77.1/series/2.25.77.2.1")
    assert (wrong.status_code, wrong.json()["reason"]) == (404, "SERIES_NOT_FOUND")


def test_long_answers_are_compressed_for_who_accepts_it(people, stored):
    def asked(accepted: str) -> tuple[str, list[str]]:
        answer = people["radiologist"].get(STUDIES, headers={"accept-encoding": accepted})
        # The rest may change meanwhile: pictures are made of them.
        uids = [study["study_instance_uid"] for study in answer.json()["studies"]]
        return answer.headers.get("content-encoding", ""), uids

    plain = asked("identity")
    assert plain[0] == ""
    for accepted, coding in (
        ("gzip", "gzip"),
        ("br;q=1, gzip;q=0.5", "gzip"),
        ("gzip;q=0", ""),
        ("GZIP; q=0.0", ""),
        ("br", ""),
    ):
        assert asked(accepted) == (coding, plain[1]), accepted


def test_what_the_curators_made_of_it(people, stored):
    """Progress in the list and in the study; sizes and prefix lengths of every frame, from the web cache."""
    rita = people["radiologist"]

    def study() -> dict[str, object]:
        found: dict[str, object] = rita.get(f"{STUDIES}/2.25.77.1", params={"frames": "true"}).json()
        return found

    wait_for(lambda: (s := study()["study"])["curated_count"] == s["instance_count"], 30)
    (instance,) = study()["series"][0]["instances"]
    rendition = instance["rendition"]
    assert (rendition["state"], rendition["reason"], rendition["store_id"]) == ("CODED", "", "curator-0")
    assert (rendition["number_of_frames"], rendition["transfer_syntax_uid"]) == (1, "1.2.840.10008.1.2.4.202")
    (frame,) = instance["frames"]
    assert frame["size"] == frame["resolution_offsets"][-1] == rendition["bytes"]
    assert sorted(frame["resolution_offsets"]) == frame["resolution_offsets"]
    one = rita.get(f"{STUDIES}/2.25.77.1/series/2.25.77.1.1").json()
    assert one["instances"][0]["frames"] == [frame]
    assert "frames" not in rita.get(f"{STUDIES}/2.25.77.1").json()["series"][0]["instances"][0]
    listed = {s["study_instance_uid"]: s["curated_count"] for s in rita.get(STUDIES).json()["studies"]}
    assert listed["2.25.77.1"] == 1


def test_what_is_held_is_seen_with_the_right_reconcile_alone(people, stored):
    for who in ("technologist", "administrator"):
        assert "99" in uids(people, who)
        assert uids(people, who, text="held") == ["99"]
        assert people[who].get(f"{STUDIES}/{stored[-1]}").json()["study"]["verification"] == "HELD"
    for path in ("", "/series/2.25.77.99.1", "/history", "/corrections", "/reports"):
        answer = people["radiologist"].get(f"{STUDIES}/{stored[-1]}{path}")
        assert (answer.status_code, answer.json()["reason"]) == (404, "STUDY_NOT_FOUND"), path
    assert people["radiologist"].get("/api/v1/holds").status_code == 403


def test_a_report_from_dictation_to_approval(people, stored):
    rita, uid = people["radiologist"], stored[0]
    moved = rita.post(f"{STUDIES}/{uid}/status", json={"reading": "dictated"})
    assert moved.json()["reading"] == "DICTATED", moved.text
    draft = rita.post(f"{STUDIES}/{uid}/reports", json={"text": "No fracture.\nNo \u00e4dema.", "transcribed": True})
    assert (draft.json()["state"], draft.json()["version"], draft.json()["author"]) == ("DRAFT", 1, "radiologist")
    stale = rita.post(f"{STUDIES}/{uid}/reports", json={"text": "Other", "expected_version": 7})
    assert (stale.status_code, stale.json()["reason"]) == (409, "VERSION_CONFLICT")
    long = rita.post(f"{STUDIES}/{uid}/reports", json={"text": "\u20ac" * 90_000})
    assert (long.status_code, long.json()["reason"]) == (413, "REPORT_TOO_LONG")
    approved = rita.post(f"{STUDIES}/{uid}/reports/1/approve")
    assert (approved.json()["state"], approved.json()["approver"]) == ("APPROVED", "radiologist"), approved.text
    again = rita.post(f"{STUDIES}/{uid}/reports/1/approve", json={})
    assert again.json()["approve_time"] == approved.json()["approve_time"]
    listed = rita.get(f"{STUDIES}/{uid}/reports").json()["reports"]
    assert [(report["version"], report["text"]) for report in listed] == [(1, "No fracture.\nNo \u00e4dema.")]
    assert rita.get(f"{STUDIES}/{uid}").json()["study"]["reading"] == "APPROVED"
    history = [(e["axis"], e["to"]) for e in rita.get(f"{STUDIES}/{uid}/history").json()["entries"]]
    assert [to for axis, to in history if axis == "reading"] == ["DICTATED", "TRANSCRIBED", "APPROVED"]


def test_moves_that_are_not_to_be(people, stored):
    def moved(who: str, **body: object) -> tuple[int, str]:
        answer = people[who].post(f"{STUDIES}/{stored[1]}/status", json=body)
        return answer.status_code, answer.json().get("reason", "")

    assert moved("radiologist", reading="TRANSCRIBED") == (409, "STATUS_ILLEGAL")
    assert moved("radiologist", reading="APPROVED") == (400, "FIELD_INVALID")
    assert moved("radiologist", verification="VERIFIED") == (400, "FIELD_INVALID")
    assert moved("radiologist") == (400, "FIELD_INVALID")
    assert moved("radiologist", reading="DICTATED", acquisition="COMPLETED") == (400, "FIELD_INVALID")
    assert moved("radiologist", acquisition="COMPLETED") == (403, "ROLE_REFUSED")
    assert moved("technologist", reading="DICTATED") == (403, "ROLE_REFUSED")
    assert moved("technologist", acquisition="STARTED", expected_version=99999) == (409, "VERSION_CONFLICT")
    assert moved("technologist", acquisition="STARTED")[0] == 200


def test_what_is_done_and_seen_is_in_the_audit(cluster, people, stored):
    def audit(action: str, study: str) -> list[tuple[str, str]]:
        request = database_pb2.ListAuditRequest(action=action, object=study)
        return [(event.actor, event.outcome) for event in cluster.inside("AccountService").ListAudit(request).events]

    uid = stored[2]
    people["radiologist"].get(f"{STUDIES}/{uid}")
    people["radiologist"].get(f"{STUDIES}/{uid}")
    assert audit("STUDY_SHOW", uid) == [("radiologist", "SUCCESS")]
    people["radiologist"].post(f"{STUDIES}/{uid}/status", json={"reading": "TRANSCRIBED"})
    people["radiologist"].post(f"{STUDIES}/{uid}/status", json={"reading": "DICTATED"})
    assert audit("STATUS_SET", uid) == [("radiologist", "SUCCESS"), ("radiologist", "STATUS_ILLEGAL")]


def test_a_hold_is_verified_again_or_overridden(people, stored):
    tim, uid = people["technologist"], stored[-1]
    (hold,) = tim.get("/api/v1/holds", params={"reason": "NO_ORDER"}).json()["holds"]
    assert (hold["admission_key"]["study_instance_uid"], hold["verification"]) == (uid, "HELD")
    assert tim.get("/api/v1/holds", params={"study_instance_uid": stored[0]}).json()["holds"] == []
    again = tim.post(f"{STUDIES}/{uid}/release", json={"admission_key": hold["admission_key_digest"]})
    assert [item["verification"] for item in again.json()["holds"]] == ["HELD"], again.text
    over = {"override": True, "reason": "it is the right patient"}
    assert tim.post(f"{STUDIES}/{uid}/release", json=over).status_code == 403
    missing = people["administrator"].post(f"{STUDIES}/{uid}/release", json={"override": True})
    assert (missing.status_code, missing.json()["reason"]) == (400, "OVERRIDE_REASON_MISSING")
    done = people["administrator"].post(f"{STUDIES}/{uid}/release", json=over)
    assert [item["reason"] for item in done.json()["holds"]] == ["OVERRIDDEN"], done.text
    assert people["radiologist"].get(f"{STUDIES}/{uid}").json()["study"]["verification"] == "UNVERIFIED"


def test_the_clusters_status(people):
    status = people["radiologist"].get("/api/v1/status").json()
    assert {c["component"] for c in status["components"]} >= {"application-server", "database-server", "archive-server"}
    assert {c["state"] for c in status["components"]} == {"SERVING"}
    assert status["stores"][0]["alive"] is True
    assert status["unreachable"] == {}
