"""The commands between studies and their RIS: what is refused before anybody is asked, and tables."""

import io
import os
import subprocess
import sys
from argparse import Namespace
from datetime import UTC, datetime

import pytest
from cluster_support import COMMAND, environment, refused, run

from radmesh.client import answers, model, ris_commands
from radmesh.client.model import Admission, Domain, Merge, Message, Report, RisPatient, jsonable

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UID = "2.25.1"
DOE = RisPatient("P1", "CLINIC", "Doe^John^^^", "19700101", "M")


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "reason", "says"),
    [
        (("release", UID, "--override"), "OVERRIDE_REASON_MISSING", "--override --reason TEXT"),
        (("release", UID, "--override", "--reason", " "), "OVERRIDE_REASON_MISSING", "--override --reason TEXT"),
        (("release", UID, "--reason", "because"), "FIELD_INVALID", "--reason is that of --override"),
        (("report", "show"), "FIELD_INVALID", "radmesh report show STUDY_UID"),
        (("report", "write"), "FIELD_INVALID", "radmesh report write STUDY_UID"),
        (("report", "write", UID, "--text", "a", "--file", "b"), "FIELD_INVALID", "not both"),
        (("report", "write", UID, "--file", "/nowhere/report"), "FILE_UNREADABLE", "/nowhere/report"),
        (("report", "approve", UID, "--text", "a"), "FIELD_INVALID", "'write'"),
        (("merges", "undo"), "FIELD_INVALID", "radmesh merges undo ID"),
        (("merges", "undo", "-"), "FIELD_INVALID", "radmesh merges undo ID"),
        (("hl7", "show"), "FIELD_INVALID", "radmesh hl7 show ID"),
        (("hl7", "replay", "connectivity-manager-0/"), "FIELD_INVALID", "radmesh hl7 replay ID"),
    ],
)
def test_what_cannot_be_meant_is_2_and_says_how(arguments, reason, says):
    answer = run(*arguments, "--json")
    assert (answer.code, answer.reason) == (2, reason), answer
    assert says in answer.json["error"]["message"]


def test_wrong_words_are_2():
    for arguments in (("report", "read"), ("merges", "do"), ("hl7", "send"), ("orders", "--limit", "0"), ("release",)):
        assert run(*arguments).code == 2


# -- the text of a report


def written(**arguments: object) -> str:
    return ris_commands._report_text(Namespace(**{"text": None, "file": None} | arguments))


def test_a_report_is_text_a_file_or_standard_input(tmp_path, monkeypatch):
    path = tmp_path / "report"
    path.write_bytes("\ufeffBefund: \u00e4\r\nzweite Zeile\r\n\r\n".encode())
    assert written(text="as it is\n") == "as it is\n"
    assert written(file=str(path)) == "Befund: \u00e4\nzweite Zeile"
    for file in (None, "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
        assert written(file=file) == "Befund: \u00e4\nzweite Zeile"


def test_what_is_no_text_or_too_long_is_no_report(tmp_path):
    path = tmp_path / "report"
    path.write_bytes(b"\xff\xfe")
    with refused("FILE_UNREADABLE"):
        written(file=str(path))
    path.write_bytes(b"a" * (256 * 1024))
    assert len(written(file=str(path))) == 256 * 1024
    path.write_bytes("\u00e4".encode() * (128 * 1024 + 1))
    with refused("REPORT_TOO_LONG"):
        written(file=str(path))


def test_on_a_terminal_it_is_asked_why(tmp_path):
    """`release --override` without a reason; what is typed is taken, and only then somebody is asked to sign in."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, "release", UID, "--override", "--data", str(tmp_path)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), close_fds=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while b"without the RIS? " not in said:
        said += os.read(ours, 1024)
    os.write(ours, b"emergency\n")
    try:
        while data := os.read(ours, 1024):
            said += data
    except OSError:
        pass  # so Linux says that the other end is closed
    os.close(ours)
    assert process.wait(60) == 3
    assert b"CLUSTER_NOT_RUNNING" in said


# -- tables


def admission(**changes: object) -> Admission:
    values = {
        "admission_key": "ab" * 32, "study_instance_uid": UID, "station": "CT1", "source_address": "192.0.2.1",
        "patient_id": "P1", "issuer_of_patient_id": "", "patient_name": "Doe^John", "patient_birth_date": "",
        "patient_sex": "M", "accession_number": "A1", "study_date": "20260102", "modalities": ("CT",),
        "study_description": "", "instance_count": 1200, "verification": "HELD", "reason": "PATIENT_MISMATCH",
        "mismatched_keywords": ("PatientID", "PatientName"), "domain": "clinic", "order_id": "", "receive_time": NOW,
        "update_time": NOW,
    }  # fmt: skip
    return Admission(**{**values, **changes})


def test_holds_say_why_what_contradicts_and_what_to_do(capsys):
    ris_commands._print_admissions(
        [admission(), admission(verification="UNVERIFIED", reason="NO_ORDER", mismatched_keywords=(), domain="")]
    )
    out, err = capsys.readouterr()
    assert lines(out) == [
        "state reason since (UTC) patient id accession mod from domain inst contradicts study",
        f"held PATIENT_MISMATCH 2026-01-02 03:04:05 Doe^John P1 A1 CT CT1 clinic 1,200 PatientID, PatientName {UID}",
        f"unverified NO_ORDER 2026-01-02 03:04:05 Doe^John P1 A1 CT CT1 1,200 {UID}",
    ]
    said = lines(err)
    assert said[0].startswith("NO_ORDER: it heals when its order comes")
    assert said[1].startswith("PATIENT_MISMATCH: compare the patient")


def test_a_report_is_shown_with_its_lines(capsys):
    report = Report(
        UID, 2, "APPROVED", "first\n\tsecond\x1b[2J", "ines", "omar", NOW, NOW, "REFUSED", "HL7_REFUSED", "R1"
    )
    ris_commands._print_report(report)
    out, err = capsys.readouterr()
    assert lines(out)[:6] == [
        f"study {UID}",
        "version 2, approved, an addendum",
        "author ines 2026-01-02 03:04:05",
        "approver omar 2026-01-02 03:04:05",
        "at the RIS refused (HL7_REFUSED) R1",
        "",
    ]
    assert out.endswith("\nfirst\n        second\N{REPLACEMENT CHARACTER}[2J\n")
    assert "replay the dead letter" in err


def test_domains_say_who_is_silent(capsys):
    ris_commands._print_domains(
        [
            Domain("clinic", "connectivity-manager-0", 2575, True, NOW, 3, 10, 1, 2),
            Domain("town", "connectivity-manager-1", 0, False, None, 0, 0, 0, 0),
        ]
    )
    out, err = capsys.readouterr()
    assert lines(out) == [
        "domain state port last message (UTC) orders messages dead reports waiting manager",
        "clinic available 2575 2026-01-02 03:04:05 3 10 1 2 connectivity-manager-0",
        "town unavailable 0 0 0 0 connectivity-manager-1",
    ]
    assert len(err.splitlines()) == 2


def message(**changes: object) -> Message:
    values = {
        "id": 7, "manager": "connectivity-manager-0", "domain": "clinic", "direction": "IN", "state": "DEAD",
        "type": "ADT^A40", "control_id": "M1", "sending_application": "RIS", "sending_facility": "H", "time": NOW,
        "ack_code": "AE", "reason": "HL7_SEGMENT_MISSING", "error": "no PID", "attempts": 0, "replays": 2, "length": 9,
    }  # fmt: skip
    return Message(**{**values, **changes})


def test_a_message_is_shown_segment_by_segment(capsys):
    ris_commands._print_message(message(raw="MSH|^~\\&|\u00e4\rPID|\x1b\r".encode("latin-1"), ack=b"MSA|AE\r"))
    out, err = capsys.readouterr()
    assert out.endswith("\nmessage\n  MSH|^~\\&|\u00e4\n  PID|\N{REPLACEMENT CHARACTER}\n\nanswer\n  MSA|AE\n")
    assert "ack" not in err
    assert lines(err) == ["HL7_SEGMENT_MISSING: send the segment that the error names"]
    for raw in (b"MSH\nPID\n", b"MSH\r\nPID\r\n", b"MSH\rPID"):
        assert ris_commands._segments(raw) == ["MSH", "PID"]


def test_bytes_are_base64_in_json():
    shown = jsonable(answers.ShownMessage(message(raw=b"MSH\xff")))
    assert shown["message"]["raw"] == "TVNI/w=="


def test_times_of_orders_are_as_long_as_they_are():
    times = ("20260102030405", "202601020304", "20260102", "2026", "", "20260102+0100")
    assert [ris_commands._scheduled(time) for time in times] == [
        "2026-01-02 03:04", "2026-01-02 03:04", "2026-01-02", "2026", "", "20260102+0100",
    ]  # fmt: skip


def test_numbers_that_are_none_name_nothing():
    assert ris_commands._number("9" * 400) == (1 << 63) - 1
    assert ris_commands._number("12") == 12


def test_merges_name_both_patients():
    merge = Merge(3, "clinic", DOE, model.RisPatient("P2", "", "", "", ""), 1, NOW, None, "")
    assert (ris_commands._patient(merge.prior), ris_commands._patient(merge.surviving)) == ("P1 Doe^John", "P2")


def test_the_help_names_what_each_command_does():
    for command in ("orders", "holds", "release", "report", "merges", "hl7"):
        answer = run(command, "--help")
        assert answer.code == 0
        assert "example: " in answer.out
