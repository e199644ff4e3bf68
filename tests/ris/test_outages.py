"""A RIS that cannot be asked: modalities notice nothing; what they send is seen and marked, and heals once."""

import random
import threading

import pytest
from ris_support import Hospital, acknowledgement, ask, ct, new_id, new_study, orm
from transfer_support import wait_for

STUDIES = 100


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
    for study in studies:
        moves = [move.after for move in hospital.moves(study)]
        assert moves.count("VERIFIED") == 1, moves
        assert moves[-1] == "VERIFIED"


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
