"""store, find, show, get and evict: what goes in is found, and comes back bit by bit."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from cluster_support import RealCluster, data_set, samples, save
from pydicom import dcmread
from waiting import wait_for

from radmesh.client.shell import NOT_FOUND, PARTIAL


def outcomes(answer) -> dict[str, str]:
    return {Path(result["path"]).name: result["outcome"] for result in answer.json["results"]}


@pytest.fixture(scope="module")
def sampled(cluster: RealCluster):
    """Everything pydicom ships, stored; the results by path."""
    answer = cluster.run("store", "--json", *samples())
    assert answer.code == PARTIAL  # some of the files are not storable, on purpose
    return {Path(result["path"]): result for result in answer.json["results"]}


def test_a_folder_with_all_sorts_of_files(cluster, tmp_path):
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    good = save(tree / "a" / "b", 1)
    whole = save(tmp_path, 2).read_bytes()
    (tree / "cut.dcm").write_bytes(whole[:400])
    (tree / "letter.txt").write_text("Dear colleague, thank you for the referral.")
    (tree / "empty.dcm").write_bytes(b"")
    (tree / "DICOMDIR").write_bytes(b"not looked at")
    (tree / ".hidden").write_bytes(b"not looked at")
    (tree / "no-uid.dcm").write_bytes(save(tmp_path, 3, StudyInstanceUID=None).read_bytes())
    answer = cluster.run("store", tree, "--json")
    assert answer.code == PARTIAL
    assert outcomes(answer) == {
        good.name: "STORED",
        "cut.dcm": "DATA_SET_TRUNCATED",
        "letter.txt": "FILE_NOT_DICOM",
        "empty.dcm": "FILE_NOT_DICOM",
        "no-uid.dcm": "UID_MISSING",
    }
    assert (answer.json["stored"], answer.json["failed"], answer.err) == (1, 4, "")
    told = cluster.run("store", tree)
    assert told.code == PARTIAL
    assert "5 files: 1 ALREADY, 1 DATA_SET_TRUNCATED, 2 FILE_NOT_DICOM, 1 UID_MISSING" in told.out
    assert f"{tree}/letter.txt: FILE_NOT_DICOM: this is not a DICOM file" in told.err
    assert "DATA_SET_TRUNCATED: the data set ends inside an element" in told.err
    assert "rejects store" not in told.err
    assert "Dear" not in told.err + told.out


def test_a_file_that_breaks_off_while_it_is_read_is_joined_to_no_other(cluster, tmp_path, monkeypatch):
    paths = [save(tmp_path, 10 + n, PixelData=os.urandom(512) * 1000, Rows=1600, Columns=160) for n in range(3)]
    from radmesh.client import cluster as module

    whole = module._file_requests

    def breaking(label, path):
        for number, request in enumerate(whole(label, path)):
            if number == 2 and path == paths[1]:
                raise OSError(5, "Input/output error")
            yield request

    monkeypatch.setattr(module, "_file_requests", breaking)
    with cluster.client() as client:
        results = list(client.store(paths))
    assert [result.outcome for result in results] == ["STORED", "FILE_UNREADABLE", "STORED"]
    for path, result in zip(paths, results, strict=True):
        if result.stored:
            assert result.sop_instance_uid in path.name
    assert not list(cluster.run("find", "--json", "--patient-id", "P11").json["studies"])


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(cluster, tmp_path):
    good = save(tmp_path, 15)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "memory").symlink_to("/proc/self/mem")  # readable by nobody at its beginning, not even by root
    answer = cluster.run("store", "--json", tmp_path / "pipe", tmp_path / "memory", good)
    assert outcomes(answer) == {"pipe": "FILE_UNREADABLE", "memory": "FILE_UNREADABLE", good.name: "STORED"}
    missing = cluster.run("store", "--json", tmp_path / "missing")
    assert (missing.code, missing.reason) == (2, "FILE_UNREADABLE")


def test_twice_is_once_and_another_content_is_kept_beside(cluster, tmp_path):
    path = save(tmp_path, 20)
    assert outcomes(cluster.run("store", "--json", path, path)) == {path.name: "ALREADY"}
    first = data_set(path)
    changed = save(tmp_path / "..", 20, PatientName="Doe^Jane")
    answer = cluster.run("store", "--json", changed)
    assert (answer.code, outcomes(answer)) == (0, {path.name: "VARIANT"})
    shown = cluster.run("show", "2.25.77.20", "--json").json
    assert [i["current"] for i in shown["instances"]].count(True) == 1
    assert len(shown["instances"]) == 2
    out = tmp_path / "out"
    assert cluster.run("get", "2.25.77.20", "--out", out, "--variants", "--json").code == 0
    assert {data_set(file) for file in out.iterdir()} == {first, data_set(changed)}


def test_every_sample_comes_back_byte_by_byte(cluster, sampled, tmp_path):
    stored = {path: r for path, r in sampled.items() if r["outcome"] in ("STORED", "ALREADY", "VARIANT")}
    refused = Counter(r["outcome"] for r in sampled.values() if r not in stored.values())
    assert set(refused) <= {"UID_MISSING", "FILE_NOT_DICOM"}, refused
    syntaxes = {r["transfer_syntax_uid"] for r in stored.values()}
    assert len(stored) >= 80
    assert len(syntaxes) >= 11, syntaxes
    digests: dict[str, Path] = {}
    for study in sorted({r["study_instance_uid"] for r in stored.values()}):
        out = tmp_path / study
        answer = cluster.run("get", study, "--as-stored", "--variants", "--out", out, "--json")
        assert answer.code == 0, answer.out
        digests |= {w["sha256"]: Path(w["path"]) for w in answer.json["written"]}
    for path, result in stored.items():
        fetched = digests[result["sha256"]]
        assert data_set(fetched) == data_set(path), path
        assert dcmread(fetched, stop_before_pixels=True).file_meta.TransferSyntaxUID == result["transfer_syntax_uid"]


def found(cluster: RealCluster, *arguments: str) -> list[str]:
    answer = cluster.run("find", "--json", *arguments)
    assert answer.code == 0, answer.out
    return sorted(study["patient_id"] for study in answer.json["studies"])


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (("--patient-name", "yamada*"), ["H31EXAMPLE"]),
        (("--patient-name", "*山田*"), ["H31EXAMPLE", "H32EXAMPLE"]),
        (("--patient-name", "διον*"), ["SCSGREEK"]),
        (("--patient-name", "ΔΙΟΝΥΣΙΟΣ"), ["SCSGREEK"]),
        (("--patient-name", "люк*"), ["SCSRUSS"]),
        (("--patient-name", "ÄNEAS^RÜDIGER"), ["SCSGERM"]),
        (("--patient-name", "compressedsamples^?t1"), ["1CT1"]),
        (("--patient-id", "scs*"), []),
        (("--patient-id", "SCSG*"), ["SCSGERM", "SCSGREEK"]),
        (("--patient-id", "8NM?"), ["8NM1"]),
        (("--patient-name", "nobody"), []),
        (("--date", "20040119", "--modality", "CT"), ["1CT1"]),
        (("--date", "20040101-20041231", "--modality", "CT", "--modality", "MR"), ["1CT1", "4MR1"]),
        (("--date", "-19000101"), []),
        (("--date", "20040119-", "--patient-id", "1CT1"), ["1CT1"]),
        (("--description", "e+1", "--patient-id", "?[CM]*"), []),
        (("--description", "e+*", "--patient-id", "1CT1"), ["1CT1"]),
    ],
)
def test_find(cluster, sampled, arguments, ids):
    assert sampled
    assert found(cluster, *arguments) == ids


def test_find_goes_on_over_pages_and_stops_at_the_limit(cluster, tmp_path):
    paths = [save(tmp_path, 100 + n, PatientID="PAGED", StudyDate=f"202501{n + 1:02}") for n in range(12)]
    assert cluster.run("store", *paths).code == 0
    with cluster.client() as client:
        whole = client._studies.FindStudies
        pages = []

        def small(request, **options):
            request.page_size = 5
            page = whole(request, **options)
            pages.append(len(page.studies))
            return page

        client._studies.FindStudies = small
        studies = list(client.find(patient_id="PAGED"))
    assert pages == [5, 5, 2]
    assert [s.study_date for s in studies] == [f"202501{n:02}" for n in range(12, 0, -1)]
    limited = cluster.run("find", "--json", "--patient-id", "PAGED", "--limit", "5").json
    assert ([s["study_date"][-2:] for s in limited["studies"]], limited["more"]) == (
        ["12", "11", "10", "09", "08"],
        True,
    )
    every = cluster.run("find", "--patient-id", "PAGED", "--limit", "12")
    assert every.err == "12 studies\n"
    assert cluster.run("find", "--patient-id", "PAGED", "--limit", "3").err == "the first 3; more with --limit\n"


def test_show_and_evict(cluster, tmp_path):
    path = save(tmp_path, 30, StudyDescription="Thorax")
    assert cluster.run("store", path).code == 0

    def residence():
        return cluster.run("show", "2.25.77.30", "--json").json["instances"][0]["locations"][0]["residence"]

    wait_for(lambda: residence() == "CACHE_AND_PERMANENT")
    shown = cluster.run("show", "2.25.77.30", "--json").json
    assert shown["study"]["study_description"] == "Thorax"
    assert [s["instance_count"] for s in shown["series"]] == [1]
    text = cluster.run("show", "2.25.77.30", "--instances")
    assert text.code == 0
    assert shown["instances"][0]["sha256"][:16] in text.out
    freed = cluster.run("evict", "2.25.77.30", "--json")
    assert (freed.code, freed.json["bytes"] > 0) == (0, True)
    assert residence() == "PERMANENT"
    assert cluster.run("get", "2.25.77.30", "--as-stored", "--out", tmp_path / "out").code == 0
    assert data_set(next((tmp_path / "out").iterdir())) == data_set(path)


@pytest.mark.parametrize("command", [("show",), ("get", "--out", "/nowhere"), ("evict",)])
def test_a_study_that_is_not_there(cluster, command):
    answer = cluster.run(command[0], "2.25.404", "--json", *command[1:])
    assert (answer.code, answer.reason) == (NOT_FOUND, "STUDY_NOT_FOUND")
    told = cluster.run(command[0], "2.25.404", *command[1:])
    assert told.out == ""
    assert "STUDY_NOT_FOUND: check the Study Instance UID" in told.err


def test_get_of_a_part_and_into_a_folder_that_cannot_be(cluster, tmp_path):
    paths = [
        save(tmp_path, 40, SOPInstanceUID=f"2.25.77.40.{n}.1", SeriesInstanceUID=f"2.25.77.40.{n}") for n in (1, 2)
    ]
    assert cluster.run("store", *paths).code == 0
    out = tmp_path / "series"
    assert cluster.run("get", "2.25.77.40", "--series", "2.25.77.40.2", "--out", out).code == 0
    assert [file.name for file in out.iterdir()] == ["2.25.77.40.2.1.dcm"]
    nothing = cluster.run("get", "2.25.77.40", "--instance", "2.25.9", "--out", out, "--json")
    assert (nothing.code, nothing.reason) == (NOT_FOUND, "INSTANCE_NOT_FOUND")
    (tmp_path / "file").write_text("in the way")
    blocked = cluster.run("get", "2.25.77.40", "--out", tmp_path / "file", "--json")
    assert (blocked.code, blocked.reason) == (1, "FILE_NOT_WRITTEN")


def test_corrected_values_are_in_what_is_fetched(cluster, tmp_path):
    path = save(tmp_path, 50, AccessionNumber="A1", PatientSex="M")
    assert cluster.run("store", path).code == 0
    cluster.correct("2.25.77.50", PatientName="山田^花子", PatientID="P50-NEW")
    assert found(cluster, "--patient-name", "山田^*子", "--patient-id", "P50*") == ["P50-NEW"]
    out = tmp_path / "out"
    answer = cluster.run("get", "2.25.77.50", "--out", out, "--json")
    assert [w["corrected"] for w in answer.json["written"]] == [["PatientID", "PatientName"]]
    assert "1 file in" in (told := cluster.run("get", "2.25.77.50", "--out", out)).out
    assert "1 with corrected values" in told.out
    fetched = dcmread(out / "2.25.77.50.1.1.dcm")
    assert (fetched.PatientName, fetched.PatientID, fetched.AccessionNumber) == ("山田^花子", "P50-NEW", "A1")
    before = fetched.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    assert (before.PatientName, before.PatientID) == ("Doe^John", "P50")
    stored = tmp_path / "stored"
    assert cluster.run("get", "2.25.77.50", "--as-stored", "--out", stored).code == 0
    assert data_set(stored / "2.25.77.50.1.1.dcm") == data_set(path)
    cluster.correct("2.25.77.50", PatientName="", PatientID="")
    shutil.rmtree(out)
    assert cluster.run("get", "2.25.77.50", "--out", out).code == 0
    assert data_set(out / "2.25.77.50.1.1.dcm") == data_set(path)


def test_output_is_json_alone_and_progress_is_for_terminals(cluster, tmp_path):
    path = save(tmp_path, 60)
    for arguments in (
        ("store", path),
        ("find", "--patient-id", "P60"),
        ("show", "2.25.77.60"),
        ("get", "2.25.77.60", "--out", tmp_path / "out"),
        ("status",),
    ):
        answer = cluster.command(*arguments, "--json")
        assert (answer.code, answer.err) == (0, ""), answer
        assert isinstance(json.loads(answer.out), dict)
        assert "\x1b" not in (plain := cluster.command(*arguments)).out + plain.err


def test_an_image_that_lacks_pixels_is_kept_as_it_is(cluster, tmp_path):
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(save(tmp_path, 70).read_bytes()[:-100])
    assert outcomes(cluster.run("store", "--json", cut)) == {"cut.dcm": "STORED"}
    assert cluster.run("get", "2.25.77.70", "--out", tmp_path / "out").code == 0
    assert data_set(tmp_path / "out" / "2.25.77.70.1.1.dcm") == data_set(cut)
