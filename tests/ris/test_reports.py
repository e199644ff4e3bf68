"""Reports on their way to other people's receivers: each version is one distinct MSH-10, whatever goes wrong."""

import random
import threading

import pytest
from hl7_partners import NodeReceiver, PythonReceiver, receiving
from ris_support import Hospital, ct, new_id, new_study, orm
from waiting import wait_for

from radmesh.client import Report
from radmesh.runtime.errors import RadmeshError

RECEIVERS = [
    pytest.param(PythonReceiver, id="python-hl7"),
    pytest.param(NodeReceiver, id="node-hl7-server", marks=pytest.mark.partner),
]


def readable(hospital: Hospital) -> str:
    """A study that is verified."""
    accession, study = new_id(), new_study()
    assert hospital.tell(orm(accession, "P1", "Doe^Jane")) == "AA"
    assert hospital.send("CT1", ct(study, PatientID="P1", AccessionNumber=accession)) == [0]
    hospital.wait_verification(study, "VERIFIED")
    return study


def approve(hospital: Hospital, study: str, text: str) -> Report:
    with hospital.user("rad") as cluster:
        cluster.save_report(study, text)
        return cluster.approve_report(study)


def reports(hospital: Hospital, study: str) -> list[Report]:
    """Oldest first."""
    return sorted(hospital.admin.reports(study), key=lambda report: report.version)


def delivered(hospital: Hospital, study: str, *, seconds: float = 30.0) -> list[Report]:
    """The study's reports, once the RIS has accepted all."""
    wait_for(lambda: {r.delivery for r in reports(hospital, study)} == {"DELIVERED"}, seconds)
    return reports(hospital, study)


@pytest.mark.parametrize("kind", RECEIVERS)
def test_a_report_that_waited_for_its_receiver_arrives_once_and_so_does_an_addendum(hospital, kind):
    study = readable(hospital)
    waiting = approve(hospital, study, "No fracture.\nSecond line: ä | ^ & \\")
    assert waiting.delivery == "WAITING"
    with receiving(kind, hospital.report_ports["clinic"]) as receiver:
        (report,) = delivered(hospital, study)
        assert report.control_id
        approve(hospital, study, "Addendum: a fracture after all.")
        versions = delivered(hospital, study)
        assert [r.version for r in versions] == [1, 2]
        wait_for(lambda: len(set(receiver.ids)) == 2)
        assert sorted(set(receiver.ids), key=receiver.ids.index) == [r.control_id for r in versions]
        first = next(m for m in receiver.accepted if report.control_id in m.split("\r")[0])
    assert "ORU^R01" in first
    assert "No fracture." in first
    assert "Doe^Jane" in first
    axis = [move.after for move in hospital.moves(study, "reading")]
    assert axis == ["DICTATED", "APPROVED", "ADDENDUM", "APPROVED"]


# What becomes of the first tries: no answer, one that comes too late, one for another message, a closed connection, AE.
@pytest.mark.parametrize("plan", [("-",), ("late",), ("other",), ("close",), ("AE",)], ids=lambda plan: plan[0])
def test_what_is_not_accepted_is_sent_again_with_the_same_id(hospital, plan):
    study = readable(hospital)
    with receiving(PythonReceiver, hospital.report_ports["clinic"], plan) as receiver:
        approve(hospital, study, "Text.")
        (report,) = delivered(hospital, study)
        wait_for(lambda: receiver.accepted)
        assert set(receiver.ids) == {report.control_id}
        assert len(receiver.ids) == 2
        # Every try has the same bytes.
        assert len({message for _, message in receiver.all}) == 1


@pytest.mark.parametrize("kind", RECEIVERS)
def test_what_the_ris_rejects_is_a_dead_letter_that_a_person_sends_again(hospital, kind):
    study = readable(hospital)
    with receiving(kind, hospital.report_ports["clinic"], ["AR"]) as receiver:
        approve(hospital, study, "Text.")
        wait_for(lambda: reports(hospital, study)[0].delivery == "REFUSED", 30)
        (report,) = reports(hospital, study)
        listed = hospital.run("report", "list", "--delivery", "refused")
        assert study in listed.out
        assert "HL7_REFUSED" in listed.err
        (dead,) = [
            m
            for m in hospital.run("hl7", "messages", "--direction", "out", "--state", "dead", "--json").json["messages"]
            if m["control_id"] == report.control_id
        ]
        assert (dead["reason"], dead["ack_code"]) == ("HL7_REFUSED", "AR")
        assert hospital.run("hl7", "replay", f"{dead['manager']}/{dead['id']}").code == 0
        (again,) = delivered(hospital, study)
        wait_for(lambda: receiver.accepted)
        assert set(receiver.ids) == {again.control_id} == {report.control_id}


def test_commands_write_and_approve(hospital, tmp_path):
    study = readable(hospital)
    path = tmp_path / "report.txt"
    path.write_text("Kein Befund: ä\n")
    with receiving(PythonReceiver, hospital.report_ports["clinic"]):
        draft = hospital.as_user("rad", "report", "write", study, "--file", path, "--transcribed")
        assert (draft.code, draft.json["reports"][0]["state"]) == (0, "DRAFT"), draft
        assert hospital.study(study).reading == "TRANSCRIBED"
        for who in ("tech", "admin"):
            refusal = (
                hospital.as_user(who, "report", "approve", study)
                if who == "tech"
                else hospital.run("report", "approve", study, "--json")
            )
            assert (refusal.code, refusal.reason) == (4, "ROLE_REFUSED")
        approved = hospital.as_user("rad", "report", "approve", study).json["reports"][0]
        assert (approved["state"], approved["author"], approved["approver"]) == ("APPROVED", "rad", "rad")
        again = hospital.as_user("rad", "report", "approve", study, "--version", 1).json["reports"][0]
        assert again["control_id"] in ("", delivered(hospital, study)[0].control_id)
    shown = hospital.run("report", "show", study)
    assert shown.out.endswith("\nKein Befund: ä\n")
    assert f"report show {study}" in hospital.run("show", study).out
    late = hospital.as_user("rad", "report", "write", study, "--text", "x", "--version", 1)
    assert (late.code, late.reason) == (1, "VERSION_CONFLICT")
    empty = hospital.as_user("rad", "report", "write", study, "--text", " ")
    assert (empty.code, empty.reason) == (2, "REPORT_EMPTY")
    nobody = hospital.as_user("rad", "report", "write", "2.25.404", "--text", "x")
    assert (nobody.code, nobody.reason) == (5, "STUDY_NOT_FOUND")


@pytest.mark.faults
@pytest.mark.parametrize("kind", RECEIVERS)
def test_whatever_dies_each_version_is_one_message(hospital, kind):
    """Versions are approved while processes are killed; what the person was not answered is tried again."""
    seed = 7
    rng = random.Random(seed)
    studies = [readable(hospital) for _ in range(3)]
    ended = threading.Event()

    def kill() -> None:
        for component in ("database-server", "connectivity-manager", "application-server", "connectivity-manager"):
            ended.wait(rng.uniform(0.05, 0.6))
            hospital.kill(component)
        ended.set()

    def again(study: str, text: str, version: int) -> None:
        """Save and approve until it is answered."""
        while True:
            try:
                with hospital.user("rad") as cluster:
                    known = {r.version: r for r in cluster.reports(study)}
                    if version not in known or known[version].state == "DRAFT":
                        cluster.save_report(study, text, expected_version=version if version in known else 0)
                    cluster.approve_report(study, version)
            except RadmeshError as error:
                if not error.transient and error.reason != "CLUSTER_NOT_RUNNING":
                    raise
            else:
                return

    with receiving(kind, hospital.report_ports["clinic"]) as receiver:
        killer = threading.Thread(target=kill)
        killer.start()
        version = 0
        while not ended.is_set() or version < 3:
            version += 1
            for study in studies:
                again(study, f"Version {version}.", version)
        killer.join()
        expected = {}
        for study in studies:
            for report in delivered(hospital, study, seconds=60):
                expected[report.control_id] = report
        assert len(expected) == version * len(studies)
        wait_for(lambda: set(receiver.ids) == set(expected), 20)
        bodies: dict[str, set[str]] = {}
        for message in receiver.accepted:
            bodies.setdefault(message.split("\r")[0].split("|")[9], set()).add(message)
        if kind is PythonReceiver:
            assert {len(texts) for texts in bodies.values()} == {1}
