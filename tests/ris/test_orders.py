"""Orders of other people's senders, and what becomes of the studies they are for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_support import save
from hl7_partners import ROOT, mllp_send, node_send
from ris_support import (
    HELD,
    PASSWORD,
    VERIFIED,
    Hospital,
    acknowledgement,
    adt,
    ask,
    ct,
    msh,
    new_id,
    new_study,
    orm,
    write,
)
from waiting import wait_for

# -- other people's senders


def by_mllp_send(hospital: Hospital, message: bytes, folder: Path) -> str:
    return mllp_send(hospital.hl7_ports["clinic"], write(folder, [message])[0])


def by_node(hospital: Hospital, message: bytes, folder: Path) -> str:
    return node_send(hospital.hl7_ports["clinic"], *write(folder, [message]))[0]


def by_socket(hospital: Hospital, message: bytes, folder: Path) -> str:
    return ask(hospital.hl7_ports["clinic"], message).decode()


@pytest.mark.parametrize(
    "send", [pytest.param(by_mllp_send), pytest.param(by_node, marks=pytest.mark.partner), pytest.param(by_socket)]
)
def test_an_order_is_accepted_and_is_in_the_worklist(hospital, tmp_path, send):
    accession, study = new_id(), new_study()
    answer = send(hospital, orm(accession, "P100", "Müller^Jörg", study=study), tmp_path)
    assert acknowledgement(answer) == "AA", answer
    (order,) = wait_for(lambda: hospital.as_user("rad", "orders", "--accession", accession).json["orders"])
    assert order["patient"]["patient_name"].rstrip("^") == "Müller^Jörg"
    assert (order["patient"]["patient_id"], order["patient"]["issuer_of_patient_id"]) == ("P100", "CLINIC")
    assert (order["study_instance_uid"], order["status"], order["modality"]) == (study, "SCHEDULED", "CT")
    shown = hospital.run("orders", "--accession", accession).out
    assert "2026-01-02 03:00" in shown
    assert study in shown


def test_an_order_is_cancelled(hospital):
    accession = new_id()
    assert hospital.tell(orm(accession, "P101")) == "AA"
    assert hospital.tell(orm(accession, "P101", control="CA", time="20260102040000")) == "AA"
    wait_for(lambda: hospital.run("orders", "--accession", accession, "--status", "cancelled", "--json").json["orders"])
    assert hospital.run("orders", "--accession", accession, "--status", "scheduled", "--json").json["orders"] == []


# -- verified


def test_a_study_with_an_order_shows_the_demographics_of_the_ris_and_keeps_the_modality_s(hospital, tmp_path):
    accession, study = new_id(), new_study()
    assert hospital.tell(orm(accession, "P1", "Doe^Jonathan^Quincy")) == "AA"
    uid, data = ct(study, PatientID="P1", PatientName="DOE^JON", AccessionNumber=accession)
    assert hospital.send("CT1", (uid, data)) == [0]
    hospital.wait_verification(study, "VERIFIED")
    seen = hospital.seen_by("rad", study)
    assert seen is not None
    assert seen["patient_name"].rstrip("^") == "Doe^Jonathan^Quincy"
    assert (seen["patient_birth_date"], seen["patient_sex"], seen["domain"]) == ("19700101", "M", "clinic")
    assert seen["order_id"]
    with hospital.client() as cluster:
        corrections = {c.keyword: c for c in cluster.corrections(study)}
        assert corrections["PatientName"].original_value.rstrip("^") == "DOE^JON"
        assert corrections["PatientName"].source == "ris:clinic"
        (instance,) = cluster.instances(study)
        assert b"".join(cluster.read(study, instance)) == data
    assert [move.after for move in hospital.moves(study)].count("VERIFIED") == 1
    shown = hospital.run("show", study, "--history").out
    assert "verified" in shown
    assert accession in shown


# -- held, and healed


def test_without_an_order_it_is_held_and_only_its_modality_sees_it_until_the_order_comes(hospital, tmp_path):
    accession, study, beside = new_id(), new_study(), new_study()
    patient = new_id()
    uid, data = ct(study, PatientID=patient, AccessionNumber=accession)
    assert hospital.send("CT1", (uid, data)) == [0]
    assert hospital.send("CT2", ct(beside, PatientID=patient)) == [0]
    hospital.wait_verification(study, "HELD", "NO_ORDER")
    hospital.wait_verification(beside, "UNVERIFIED", "NO_ORDER")

    # An ordinary user: not the study, not its counts.
    assert hospital.seen_by("rad", study) is None
    assert hospital.seen_by("rad", beside) is not None
    for arguments in (("show", study), ("get", study, "--out", tmp_path), ("report", "list", study)):
        refusal = hospital.as_user("rad", *arguments)
        assert (refusal.code, refusal.reason) == (5, "STUDY_NOT_FOUND"), arguments
    assert list(tmp_path.iterdir()) == []
    # Another station, and the one that sent it.
    assert [hospital.found_by_station(station, study) for station in ("CT2", "OTHER", "CT1")] == [False, False, True]
    assert [hospital.instances_seen(station, study) for station in ("CT2", "CT1")] == [[], [(uid, HELD)]]
    assert [hospital.studies_of_patient(station, patient) for station in ("CT2", "", "CT1")] == [[1], [1], [2]]

    # Who may reconcile sees it, and why, and what to do.
    seen = hospital.seen_by("tech", study)
    assert seen is not None
    assert (seen["verification"], seen["verification_reason"]) == ("HELD", "NO_ORDER")
    shown = hospital.run("show", study).out
    assert "held (NO_ORDER)" in shown
    assert "it heals when its order comes" in shown
    (hold,) = hospital.as_user("tech", "holds", study).json["admissions"]
    assert (hold["verification"], hold["reason"], hold["accession_number"]) == ("HELD", "NO_ORDER", accession)
    assert hospital.as_user("rad", "holds").code == 4
    assert hospital.as_user("tech", "get", study, "--out", tmp_path / "tech").code == 0
    # Asked again there is still no order.
    released = hospital.as_user("tech", "release", study)
    assert (released.code, released.json["admissions"][0]["reason"]) == (1, "NO_ORDER")

    # The order comes.
    assert hospital.tell(orm(accession, patient, "Doe^Healed")) == "AA"
    hospital.wait_verification(study, "VERIFIED")
    healed = hospital.seen_by("rad", study)
    assert healed is not None
    assert healed["patient_name"].rstrip("^") == "Doe^Healed"
    assert hospital.instances_seen("CT2", study) == [(uid, VERIFIED)]
    assert hospital.studies_of_patient("CT2", patient) == [2]
    assert hospital.run("holds", study, "--json").json["admissions"] == []
    assert [move.after for move in hospital.moves(study)].count("VERIFIED") == 1
    assert hospital.as_user("rad", "get", study, "--out", tmp_path).code == 0


def test_a_late_object_of_another_patient_is_held_alone(hospital, tmp_path):
    accession, study = new_id(), new_study()
    assert hospital.tell(orm(accession, "P7", "Doe^Seven")) == "AA"
    first, data = ct(study, PatientID="P7", PatientName="Doe^Seven", AccessionNumber=accession)
    assert hospital.send("CT1", (first, data)) == [0]
    hospital.wait_verification(study, "VERIFIED")
    late, other = ct(study, number=2, PatientID="P8", PatientName="Roe^Eight", AccessionNumber=accession)
    assert hospital.send("CT1", (late, other)) == [0]
    (hold,) = wait_for(lambda: hospital.run("holds", study, "--json").json["admissions"])
    assert (hold["reason"], hold["patient_id"], hold["instance_count"]) == ("PATIENT_MISMATCH", "P8", 1)
    assert "PatientID" in hold["mismatched_keywords"]

    # The rest stays verified and readable, and counts only itself.
    seen = hospital.seen_by("rad", study)
    assert seen is not None
    assert (seen["verification"], seen["instance_count"], seen["patient_id"]) == ("VERIFIED", 1, "P7")
    assert hospital.instances_seen("CT2", study) == [(first, VERIFIED)]
    assert sorted(hospital.instances_seen("CT1", study)) == [(first, VERIFIED), (late, HELD)]
    fetched = hospital.as_user("rad", "get", study, "--out", tmp_path)
    assert [w["instance"] for w in fetched.json["written"]] == [first]
    assert hospital.verification(study) == ("HELD", "PATIENT_MISMATCH")
    assert hospital.as_user("rad", "report", "write", study, "--text", "No fracture.").code == 0

    for arguments, code, reason in (
        ((study, "--key", "xyz"), 2, "FIELD_INVALID"),
        ((study, "--key", "00" * 32), 5, "ADMISSION_UNKNOWN"),
        (("2.25.404",), 5, "STUDY_NOT_FOUND"),
    ):
        wrong = hospital.run("release", *arguments, "--json")
        assert (wrong.code, wrong.reason) == (code, reason)
    # A person answers for it: an administrator, who says why.
    refusal = hospital.as_user("tech", "release", study, "--override", "--reason", "same person")
    assert (refusal.code, refusal.reason) == (4, "ROLE_REFUSED")
    released = hospital.run(
        "release", study, "--key", hold["admission_key"], "--override", "--reason", "same person", "--json"
    )
    assert released.code == 0, released
    (admission,) = released.json["admissions"]
    assert (admission["verification"], admission["reason"]) == ("UNVERIFIED", "OVERRIDDEN")
    wait_for(lambda: len(hospital.instances_seen("CT2", study)) == 2)
    (event, *_) = hospital.run("audit", "--action", "HOLD_RELEASE", "--object", study, "--json").json["events"]
    assert (event["actor"], event["outcome"], json.loads(event["detail"])["reason"]) == (
        "admin",
        "SUCCESS",
        "same person",
    )


# -- policies


def test_each_station_has_its_policy(hospital):
    nothing, off, wrong = new_study(), new_study(), new_study()
    accession = new_id()
    assert hospital.tell(orm(accession, "P20", "Doe^Twenty")) == "AA"
    assert hospital.send("CT2", ct(nothing, PatientID="P21", StudyDate="19990101")) == [0]
    assert hospital.send("CT3", ct(off, PatientID="P22")) == [0]
    assert hospital.send("CT2", ct(wrong, PatientID="P23", AccessionNumber=accession)) == [0]
    hospital.wait_verification(nothing, "UNVERIFIED", "NO_ORDER")
    hospital.wait_verification(off, "NOT_REQUIRED")
    hospital.wait_verification(wrong, "HELD", "PATIENT_MISMATCH")
    marked = hospital.as_user("rad", "show", nothing).json["study"]
    assert (marked["verification"], marked["verification_reason"]) == ("UNVERIFIED", "NO_ORDER")
    assert "unverified (NO_ORDER)" in hospital.run("find", "--patient-id", "P21").out
    assert hospital.seen_by("rad", wrong) is None
    # The order is corrected: it was for that patient.
    assert hospital.tell(orm(accession, "P23", "Doe^Twenty-Three", control="XO", time="20260102040000")) == "AA"
    hospital.wait_verification(wrong, "VERIFIED")


def test_several_orders_that_fit_are_held_until_one_is_left(hospital):
    patient, study = new_id(), new_study()
    accessions = [new_id(), new_id()]
    for accession in accessions:
        assert hospital.tell(orm(accession, patient, scheduled="20250303080000")) == "AA"
    assert hospital.send("CT1", ct(study, PatientID=patient, StudyDate="20250303")) == [0]
    hospital.wait_verification(study, "HELD", "AMBIGUOUS")
    assert hospital.tell(orm(accessions[0], patient, control="CA", time="20260102040000")) == "AA"
    hospital.wait_verification(study, "VERIFIED")
    assert hospital.study(study).order_id.endswith(accessions[1])


def test_two_domains_never_join(hospital):
    accession, patient = new_id(), new_id()
    names = {"clinic": "Doe^Clinic", "town": "Roe^Town"}
    studies = {domain: new_study() for domain in names}
    for domain, name in names.items():
        assert hospital.tell(orm(accession, patient, name, facility=domain.upper()), domain) == "AA"
    for station, domain in (("CT1", "clinic"), ("TOWN1", "town")):
        assert hospital.send(station, ct(studies[domain], PatientID=patient, AccessionNumber=accession)) == [0]
    for domain, name in names.items():
        hospital.wait_verification(studies[domain], "VERIFIED")
        study = hospital.study(studies[domain])
        assert (study.patient_name.rstrip("^"), study.domain) == (name, domain)
        assert study.order_id.startswith(f"{domain}/")
    assert hospital.studies_of_patient("CT2", patient) == [1, 1]


def test_the_object_tells_its_domain_and_a_wrong_one_is_held(hospital):
    accession, patient = new_id(), new_id()
    told, wrong, unknown = new_study(), new_study(), new_study()
    assert hospital.tell(orm(accession, patient, "Roe^Told", facility="TOWN"), "town") == "AA"
    keys = {"PatientID": patient, "AccessionNumber": accession}
    assert hospital.send("ANY1", ct(told, IssuerOfPatientID="TOWN", **keys)) == [0]
    assert hospital.send("CT1", ct(wrong, IssuerOfPatientID="TOWN", **keys)) == [0]
    assert hospital.send("ANY1", ct(unknown, **keys)) == [0]
    hospital.wait_verification(told, "VERIFIED")
    assert hospital.study(told).domain == "town"
    for study in (wrong, unknown):
        hospital.wait_verification(study, "HELD", "DOMAIN_UNKNOWN")
        assert hospital.seen_by("rad", study) is None


def test_a_person_is_told_that_what_was_stored_is_held(hospital, tmp_path):
    study = new_study()
    path = save(tmp_path, 1, StudyInstanceUID=study, SOPInstanceUID=f"{study}.1", PatientID=new_id())
    told = hospital.run("store", path, "--user", "rad", RADMESH_PASSWORD=PASSWORD)
    assert told.code == 0
    assert f"  {study}  held\n" in told.out
    assert "1 study held until technologists or administrators settle it: radmesh holds" in told.err
    assert hospital.verification(study) == ("HELD", "DOMAIN_UNKNOWN")
    assert hospital.seen_by("rad", study) is None


# -- merges


def test_a_merge_moves_the_study_and_undo_gives_it_back(hospital):
    accession, prior, surviving = new_id(), new_id(), new_id()
    study = new_study()
    assert hospital.tell(orm(accession, prior, "Doe^Before")) == "AA"
    assert hospital.send("CT1", ct(study, PatientID=prior, AccessionNumber=accession)) == [0]
    hospital.wait_verification(study, "VERIFIED")

    def found(patient: str) -> list[str]:
        answer = hospital.as_user("rad", "find", "--patient-id", patient)
        return [s["study_instance_uid"] for s in answer.json["studies"]]

    message = adt("A40^ADT_A39", surviving, "Doe^After", prior=prior)
    assert [hospital.tell(message), hospital.tell(message)] == ["AA", "AA"]
    wait_for(lambda: (found(surviving), found(prior)) == ([study], []))
    assert hospital.study(study).patient_name.rstrip("^") == "Doe^After"
    merges = [m for m in hospital.run("merges", "--json").json["merges"] if m["surviving"]["patient_id"] == surviving]
    assert [(m["prior"]["patient_id"], m["study_count"], m["undo_time"]) for m in merges] == [(prior, 1, None)]
    assert hospital.as_user("rad", "merges").code == 4
    assert hospital.as_user("tech", "merges", "undo", merges[0]["id"]).code == 4
    undone = hospital.run("merges", "undo", merges[0]["id"])
    assert (undone.code, undone.out.splitlines()[-1]) == (0, f"1 study given back to {prior}")
    wait_for(lambda: (found(surviving), found(prior)) == ([], [study]))
    again = hospital.run("merges", "undo", merges[0]["id"], "--json")
    assert (again.code, again.reason) == (1, "MERGE_UNDONE")
    gone = hospital.run("merges", "undo", 999_999, "--json")
    assert (gone.code, gone.reason) == (5, "MERGE_NOT_FOUND")


def test_a_merge_of_a_patient_with_itself_is_refused(hospital):
    patient = new_id()
    message = adt("A40^ADT_A39", patient, prior=patient)
    answer = ask(hospital.hl7_ports["clinic"], message).decode()
    assert acknowledgement(answer) == "AE"
    assert "ERR|" in answer


# -- the message log


def test_dead_letters_are_seen_and_replayed_by_administrators_alone(hospital):
    control_id = new_id()
    message = (msh("ADT^A08", control_id) + "\rEVN|A08|20260102\r").encode()
    assert hospital.tell(message) == "AE"
    (dead,) = [
        m
        for m in hospital.run("hl7", "messages", "--state", "dead", "--domain", "clinic", "--json").json["messages"]
        if m["control_id"] == control_id
    ]
    assert (dead["direction"], dead["ack_code"], dead["type"][:7]) == ("IN", "AE", "ADT^A08")
    assert dead["reason"]
    identifier = f"{dead['manager']}/{dead['id']}"
    # With several managers the table's ids say whose they are, so that they can be copied.
    listed = hospital.run("hl7", "messages", "--state", "dead", "--domain", "clinic").out
    assert identifier in [line.split()[0] for line in listed.splitlines()]
    shown = hospital.run("hl7", "show", identifier)
    assert control_id in shown.out
    assert "MSA|AE" in shown.out
    assert hospital.run("hl7", "replay", identifier, "--json").json["message"]["state"] == "DEAD"
    for arguments in (("hl7", "messages"), ("hl7", "show", identifier), ("hl7", "replay", identifier)):
        assert hospital.as_user("rad", *arguments).code == 4
    gone = hospital.run("hl7", "show", f"{dead['manager']}/999999", "--json")
    assert (gone.code, gone.reason) == (5, "MESSAGE_NOT_FOUND")
    domains = {d["name"]: d for d in hospital.as_user("rad", "hl7").json["domains"]}
    assert domains["clinic"]["dead_letters"] >= 1
    assert (domains["clinic"]["hl7_port"], domains["town"]["hl7_port"]) == (
        hospital.hl7_ports["clinic"],
        hospital.hl7_ports["town"],
    )
    assert {d["manager"] for d in domains.values()} == {"connectivity-manager-0", "connectivity-manager-1"}
    assert domains["clinic"]["available"]
    assert domains["town"]["available"]


def test_an_id_used_twice_is_two_messages_and_the_same_message_is_one(hospital):
    control_id = new_id()
    accessions = [new_id(), new_id()]
    messages = [orm(accession, "P30", control_id=control_id) for accession in accessions]
    answers = [ask(hospital.hl7_ports["clinic"], message) for message in (*messages, messages[0])]
    assert [acknowledgement(answer) for answer in answers] == ["AA"] * 3
    assert answers[2] == answers[0]
    for accession in accessions:
        wait_for(lambda a=accession: len(hospital.run("orders", "--accession", a, "--json").json["orders"]) == 1)
    logged = [
        m
        for m in hospital.run("hl7", "messages", "--domain", "clinic", "--json").json["messages"]
        if m["control_id"] == control_id
    ]
    assert sorted(m["replays"] for m in logged) == [0, 1]


def test_a_folder_of_messages_is_sent_byte_by_byte_and_counted(hospital, tmp_path):
    wanted = orm(new_id(), "P40")
    contents = {
        "order": wanted,
        "order again": wanted,
        "no patient": (msh("ADT^A08") + "\rEVN|A08|20260102\r").encode(),
        "a report": (msh("ORU^R01") + "\rPID|1||P40\r").encode(),
        "nobody wants an answer": (msh("ADT^A04") + "|||NE|NE\rPID|1||P40\r").encode(),
        "other delimiters": msh("ZZZ^Z01").replace("^", "~").replace("|", "*").encode(),
        "nothing": b"",
        "anything": bytes(n for n in range(256) if n not in (0x0B, 0x1C)),
    }
    for name, data in contents.items():
        (tmp_path / f"{name}.hl7").write_bytes(data)
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "hl7_folder.py", tmp_path, "--data", hospital.data, "--domain", "clinic"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "| ORM^O01 | 1 | 1 |  |  |" in done.stdout
    assert "| other ADT | 1 |  |  | 1 |" in done.stdout
    assert "| ORU | 1 |  | 1 |  |" in done.stdout
    assert "8 frames" in done.stdout
    assert "1 not wanted" in done.stdout
    assert "the same message again: 1." in done.stdout
