"""A RIS that cannot be asked: modalities notice nothing; what they send is seen and marked, and heals once."""

import random
import threading

import pytest
from depth import times
from ris_support import Hospital, acknowledgement, adt, ask, ct, new_id, new_study, orm
from waiting import wait_for

STUDIES = times(100, 30)


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_a_hundred_studies_come_in_while_nobody_can_be_asked(hospital: Hospital, how: str) -> None:
    patient = new_id()
    accessions = [new_id() for _ in range(STUDIES)]
    studies = [new_study() for _ in range(STUDIES)]
    for accession in accessions:
        assert hospital.tell(orm(accession, patient, "Doe^Known")) == "AA"
    images = [
        ct(study, PatientID=patient, AccessionNumber=accession)
        for study, accession in zip(studies, accessions, strict=True)
    ]
    with hospital.without(how, "connectivity-manager"):
        assert hospital.send("CT1", *images) == [0] * STUDIES
        seen = {s.study_instance_uid: s for s in hospital.admin.find(patient_id=patient)}
        assert set(seen) == set(studies)
        marks = {(s.verification, s.verification_reason) for s in seen.values()}
        assert marks <= {("UNVERIFIED", "RIS_UNAVAILABLE"), ("UNVERIFIED", "TIMEOUT"), ("PENDING", "")}, marks
    wait_for(lambda: {s.verification for s in hospital.admin.find(patient_id=patient)} == {"VERIFIED"}, 60)
    healed = []
    for study in studies:
        *_, last = moves = hospital.moves(study)
        assert [move.after for move in moves].count("VERIFIED") == 1, moves
        assert last.after == "VERIFIED"
        healed.append(last.time)
    if how == "gone":
        # Where it only stood still, what it had been asked meanwhile is answered at once, out of turn.
        assert healed == sorted(healed)


def test_a_silent_feed_is_a_ris_that_cannot_be_asked(hospital: Hospital) -> None:
    """The village's RIS says something every two seconds, or it counts as unavailable."""
    accessions = [new_id(), new_id(), new_id()]
    marked, held, later = studies = [new_study(), new_study(), new_study()]
    patient = new_id()
    keys = dict(zip(studies, accessions, strict=True))

    def send(station: str, study: str) -> None:
        assert hospital.send(station, ct(study, PatientID=patient, AccessionNumber=keys[study])) == [0]

    def available() -> bool:
        return next(d.available for d in hospital.admin.domains() if d.name == "village")

    def speaks_until_verified(*studies: str) -> None:
        """On a busy machine two seconds may pass between what it says and the question."""

        def verified() -> bool:
            assert hospital.tell(adt("A08", new_id(), facility="VILLAGE"), "village") == "AA"
            return all(hospital.verification(study) == ("VERIFIED", "") for study in studies)

        wait_for(verified)

    assert not available()
    send("VILL1", marked)
    send("VILL2", held)
    hospital.wait_verification(marked, "UNVERIFIED", "RIS_UNAVAILABLE")
    hospital.wait_verification(held, "HELD", "RIS_UNAVAILABLE")
    assert hospital.seen_by("rad", marked) is not None
    assert hospital.seen_by("rad", held) is None
    assert "radmesh hl7 domains" in hospital.run("show", held).out
    for accession in accessions:
        assert hospital.tell(orm(accession, patient, facility="VILLAGE"), "village") == "AA"
    speaks_until_verified(marked, held)
    # It falls silent, and what it said before does not count until it speaks again.
    wait_for(lambda: not available())
    send("VILL1", later)
    hospital.wait_verification(later, "UNVERIFIED", "RIS_UNAVAILABLE")
    speaks_until_verified(later)
    for study in studies:
        assert [move.after for move in hospital.moves(study)].count("VERIFIED") == 1


def test_orders_come_in_without_the_database_and_are_known_when_it_is_back(hospital: Hospital) -> None:
    accession, study, patient = new_id(), new_study(), new_id()
    with hospital.without("gone", "database-server"):
        assert hospital.tell(orm(accession, patient, "Doe^Meanwhile")) == "AA"
        assert hospital.send("CT1", ct(study, PatientID=patient, AccessionNumber=accession)) == [0]
    wait_for(lambda: [o.patient.patient_name for o in hospital.orders(accession)] == ["Doe^Meanwhile"], 20)
    hospital.wait_verification(study, "VERIFIED", seconds=20)
    assert hospital.study(study).patient_name == "Doe^Meanwhile"


@pytest.mark.faults
def test_the_gateway_dies_with_verdicts_in_its_hands(hospital: Hospital) -> None:
    patient = new_id()
    studies = {new_study(): new_id() for _ in range(20)}
    for accession in studies.values():
        assert hospital.tell(orm(accession, patient)) == "AA"
    images = [ct(study, PatientID=patient, AccessionNumber=accession) for study, accession in studies.items()]
    killer = threading.Timer(0.2, lambda: hospital.kill("network-gateway"))
    killer.start()
    assert hospital.send("CT1", *images) == [0] * len(images)
    killer.join()
    wait_for(lambda: {s.verification for s in hospital.admin.find(patient_id=patient)} == {"VERIFIED"}, 30)
    for study in studies:
        assert [move.after for move in hospital.moves(study)].count("VERIFIED") == 1


@pytest.mark.faults
def test_orders_come_in_while_their_manager_dies_and_each_is_there_once(hospital: Hospital) -> None:
    """A RIS sends again what was not acknowledged: it may have been committed, and has no second effect."""
    rng = random.Random(11)
    patient = new_id()
    control_ids = [new_id() for _ in range(60)]
    messages = [orm(f"A{name}", patient, control_id=name) for name in control_ids]
    sent = threading.Event()

    def kill() -> None:
        for _ in range(3):
            if not sent.wait(rng.uniform(0.02, 0.2)):
                hospital.kill("connectivity-manager")

    def acknowledged(message: bytes) -> bool:
        try:
            return acknowledgement(ask(hospital.hl7_ports["clinic"], message)) == "AA"
        except OSError:
            return False

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for message in messages:
            wait_for(lambda m=message: acknowledged(m), 30)
    finally:
        sent.set()
        killer.join()

    def known() -> list[str]:
        return sorted(order.accession_number for order in hospital.admin.orders(patient_id=patient))

    wait_for(lambda: known() == sorted(f"A{name}" for name in control_ids), 20)
    logged = [m.control_id for m in hospital.admin.messages(domain="clinic") if m.control_id in control_ids]
    assert sorted(logged) == sorted(control_ids)
