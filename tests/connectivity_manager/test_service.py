"""The manager as it is wired: over its MLLP ports and its services, with one domain's trouble kept from the others."""

import contextlib
import socket
import threading

import pytest
from connectivity_mesh import World
from connectivity_support import adt, code, error, message, msh, obr, orm, pid
from waiting import wait_for

from radmesh.api.connectivity.v1 import connectivity_pb2 as pb
from radmesh.hl7.mllp import frame
from radmesh.mesh import sections
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError

MATCH, NO_ORDER, MISMATCH, AMBIGUOUS = 1, 2, 3, 4
IN, OUT = 1, 2
DONE, IGNORED, WAITING, DEAD = 1, 2, 3, 4


@pytest.fixture
def worlds(tmp_path):
    made = []

    def make(*domains: sections.Domain, clock=None, **settings):
        made.append(World(tmp_path / str(len(made)), *domains, clock=clock))
        made[-1].start(**settings)
        return made[-1]

    yield make
    for world in made:
        world.close()


TWO = sections.Domain(name="clinic", issuer="CLINIC"), sections.Domain(name="town", issuer="TOWN")


def refused(call, **arguments) -> str:
    with pytest.raises(RadmeshError) as caught:
        call(**arguments)
    return caught.value.reason


# Verification


def test_a_study_is_compared_by_the_policy_that_is_asked_for(worlds):
    world = worlds(*TWO)
    assert code(world.tell(orm("A1", pid("P1", "Doe^John"), study="2.25.1"), "clinic")) == "AA"
    found = world.verify("clinic", patient_id="P1", accession_number="A1")
    (order,) = found.orders
    assert (found.outcome, order.order_id, order.domain) == (MATCH, "clinic/A1", "clinic")
    assert (order.patient.issuer_of_patient_id, order.scheduled_time) == ("CLINIC", "202601021200")
    for asked, expected in (
        ({"accession_number": "A1"}, MISMATCH),
        ({"patient_id": "P2", "accession_number": "A1"}, MISMATCH),
        ({"patient_id": "P1", "issuer_of_patient_id": "TOWN", "accession_number": "A1"}, MISMATCH),
        ({"patient_id": "P1", "issuer_of_patient_id": "CLINIC", "accession_number": "A1"}, MATCH),
        ({"patient_id": "P1", "study_instance_uid": "2.25.1"}, MATCH),
        ({"patient_id": "P1"}, NO_ORDER),
        ({"patient_id": "P1", "study_date": "20260102", "modality": "CT"}, MATCH),
        ({"patient_id": "P1", "study_date": "20260102", "modality": "MR"}, NO_ORDER),
        ({"patient_id": "P1", "study_date": "20260102", "modality": "MR", "study_key": "date"}, MATCH),
        ({"patient_id": "P1", "study_date": "20260102", "study_key": "accession"}, NO_ORDER),
        ({"patient_name": "DOE^JOHN", "accession_number": "A1", "patient_key": "name"}, MATCH),
        ({"patient_id": "P1", "patient_name": "X", "accession_number": "A1", "patient_key": "id+name"}, MISMATCH),
        ({"patient_id": "P9", "accession_number": "A1", "accession_identifies_patient": True}, MATCH),
    ):
        assert world.verify("clinic", **asked).outcome == expected, asked
        assert world.verify("town", **asked).outcome == NO_ORDER, asked
    assert list(world.verify("clinic", patient_id="P2", accession_number="A1").mismatched_keywords) == ["PatientID"]
    assert refused(world.verify, domain="nowhere") == "DOMAIN_UNKNOWN"
    assert refused(world.verify, domain="clinic", study_key="moon") == "FIELD_INVALID"
    assert refused(world.verify, domain="clinic", patient_key="moon") == "FIELD_INVALID"


def test_verification_needs_no_database(worlds):
    world = worlds()
    world.tell(orm("A1"))
    world.told.stop()
    assert world.verify(patient_id="P1", accession_number="A1").outcome == MATCH
    assert code(world.tell(orm("A2"))) == "AA"
    assert world.verify(patient_id="P1", accession_number="A2").outcome == MATCH


def test_a_busy_intake_keeps_no_verification_waiting(worlds):
    """Every answer comes within the deadline of an admission, while senders send all that they can."""
    world = worlds(*TWO)
    world.tell(orm("FIRST"), "clinic")
    world.verify("clinic", patient_id="P1", accession_number="FIRST")
    ended = threading.Event()
    sent = []

    def send(sender: int) -> None:
        with world.peer("town" if sender else "clinic") as peer:
            number = 0
            while not ended.is_set():
                groups = [pid(f"P{sender}-{number}-{n}") + "\r" + obr(f"B{sender}-{number}-{n}") for n in range(20)]
                assert code(peer.ask(message(msh("ORM^O01"), *groups))) == "AA"
                number += 1
            sent.append(number)

    senders = [threading.Thread(target=send, args=(n,)) for n in range(2)]
    for sender in senders:
        sender.start()
    late = 0
    for _ in range(40):
        try:
            assert world.verify("clinic", 0, 2.0, patient_id="P1", accession_number="FIRST").outcome == MATCH
        except RadmeshError as error_:
            assert error_.reason == "PEER_TIMEOUT"
            late += 1
    ended.set()
    for sender in senders:
        sender.join()
    assert not late
    assert min(sent) > 0


def test_a_store_that_somebody_writes_to_keeps_no_verification_waiting(worlds):
    """A transaction that stands still stops intake, and no reader."""
    world = worlds()
    world.tell(orm("A1"))
    manager = world.running["connectivity-manager-0"]
    standing, go = threading.Event(), threading.Event()

    def stand(_c) -> None:
        standing.set()
        assert go.wait(60)

    writer = threading.Thread(target=manager._database.write, args=(stand,))
    writer.start()
    assert standing.wait(60)
    with world.peer() as peer:
        peer.send(frame(orm("A2")))
        for _ in range(5):
            assert world.verify(patient_id="P1", accession_number="A1", timeout=30.0).outcome == MATCH
        assert world.verify(patient_id="P1", accession_number="A2", timeout=30.0).outcome == NO_ORDER
        go.set()
        writer.join()
        answer = peer.answer()
    assert code(answer) == "AA"


# The feed


def test_a_silent_feed_is_unavailable_and_is_said_to_be_and_back(worlds):
    clock = ManualClock()
    world = worlds(
        sections.Domain(name="clinic", feed_timeout=600.0),
        sections.Domain(name="town"),
        clock=clock,
        idle_timeout=86400.0,
    )

    def states(domain: str) -> list[bool]:
        found = [e for e in world.told.events if e.HasField("domain_state") and e.domain == domain]
        return [e.domain_state.available for e in found]

    def passes(condition) -> None:
        wait_for(lambda: clock.advance(0.5) or condition())

    assert refused(world.verify, domain="clinic") == "RIS_UNAVAILABLE"
    passes(lambda: states("clinic") == [False])
    assert "clinic" in world.alarms()["RIS_UNAVAILABLE"]
    world.tell(orm("A1"), "clinic")
    assert world.verify("clinic", patient_id="P1", accession_number="A1").outcome == MATCH
    passes(lambda: states("clinic") == [False, True])
    wait_for(lambda: "RIS_UNAVAILABLE" not in world.alarms())
    assert world.domains()["clinic"].available
    clock.advance(601)
    assert refused(world.verify, domain="clinic") == "RIS_UNAVAILABLE"
    passes(lambda: states("clinic") == [False, True, False])
    # Any message is a sign of life, a replay or a bad one too.
    world.tell(message(msh("XYZ")), "clinic")
    assert world.verify("clinic").outcome == NO_ORDER
    # The other domain is as it was.
    assert states("town") == [True]
    assert world.verify("town").outcome == NO_ORDER


def test_when_the_feed_was_last_heard_outlives_a_restart(worlds):
    world = worlds(sections.Domain(name="default", feed_timeout=3600.0))
    world.tell(orm("A1"))
    before = world.domains()["default"].last_message_time
    world.stop()
    world.start()
    after = world.domains()["default"].last_message_time
    assert abs(after.ToMicroseconds() - before.ToMicroseconds()) < 5_000_000
    assert world.verify(patient_id="P1", accession_number="A1").outcome == MATCH


# What comes over the wire


def test_whatever_comes_over_the_wire_the_listener_answers_and_lives(worlds):
    world = worlds(message_size=4096)
    with world.peer() as peer:
        assert code(peer.ask(orm("A1"))) == "AA"
        answer = peer.ask(message(msh("ORM^O01"), obr("A2")))
        assert (code(answer), *error(answer)) == ("AE", "HL7_SEGMENT_MISSING", "PID", "100")
        answer = peer.ask(message(msh("ZZZ^Z99"), pid()))
        assert (code(answer), *error(answer)) == ("AR", "HL7_TYPE_UNKNOWN", "MSH-9", "200")
        answer = peer.ask(b"no message")
        assert (code(answer), error(answer)[0]) == ("AR", "HL7_NOT_A_MESSAGE")
        long = orm("A3", control_id="LONG") + b"NTE|1||" + b"x" * 10_000 + b"\r"
        answer = peer.ask(long)
        assert (code(answer), error(answer)[0]) == ("AR", "HL7_MESSAGE_TOO_LARGE")
        assert b"LONG" in answer
        # Half a message, and a whole one after it.
        peer.send(b"\x0b" + orm("HALF")[:-40])
        assert code(peer.ask(orm("A4"))) == "AA"
    # Half a message, and the end.
    with world.peer() as peer:
        peer.send(b"\x0b" + orm("HALF")[:-40])
    with world.peer() as peer:
        assert code(peer.ask(orm("A5"))) == "AA"
    found = {(m.control_id != "", m.state, m.reason) for m in world.messages()}
    assert found == {
        (True, DONE, ""),
        (True, DEAD, "HL7_SEGMENT_MISSING"),
        (True, DEAD, "HL7_TYPE_UNKNOWN"),
        (False, DEAD, "HL7_NOT_A_MESSAGE"),
    }
    for accession, outcome in (("A1", MATCH), ("A4", MATCH), ("A5", MATCH), ("HALF", NO_ORDER), ("A3", NO_ORDER)):
        assert world.verify(patient_id="P1", accession_number=accession).outcome == outcome, accession


def test_the_log_is_listed_a_page_at_a_time_and_shown_whole(worlds):
    world = worlds(*TWO)
    with world.peer("clinic") as peer:
        for n in range(25):
            peer.ask(orm(f"A{n}"))
        peer.ask(message(msh("ORM^O01"), obr("A2")))
        peer.ask(message(msh("ORU^R01"), pid()))
    world.tell(adt("A08"), "town")
    assert len(world.messages()) == 28
    assert len(world.messages(domain="town")) == 1
    assert [m.type for m in world.messages(state=IGNORED)] == ["ORU^R01"]
    assert [m.type for m in world.messages(type="ADT^A08")] == ["ADT^A08"]
    assert not world.messages(direction=OUT)
    service = world._client("application-server", "MessageService", 0)
    found, token = [], ""
    while True:
        answer = service.ListMessages(pb.ListMessagesRequest(page_size=10, page_token=token), timeout=30.0)
        assert len(answer.messages) <= 10
        found += [m.id for m in answer.messages]
        token = answer.next_page_token
        if not token:
            break
    assert found == sorted(found, reverse=True)
    assert len(found) == 28
    (dead,) = world.messages(state=DEAD)
    whole = world.message(dead.id)
    assert (dead.raw, whole.length, dead.length) == (b"", len(whole.raw), len(whole.raw))
    assert code(whole.ack) == "AE"
    assert (whole.manager, whole.sending_application, whole.domain) == ("connectivity-manager-0", "RIS", "clinic")
    assert world.replay(dead.id).attempts == 1
    for wrong, reason in (
        (lambda: world.message(999), "MESSAGE_NOT_FOUND"),
        (lambda: world.message((1 << 64) - 1), "MESSAGE_NOT_FOUND"),
        (lambda: world.replay(found[0]), "MESSAGE_NOT_DEAD"),
        (lambda: world.messages(page_token="moon"), "FIELD_INVALID"),
    ):
        assert refused(wrong) == reason


def test_what_is_done_and_old_is_forgotten_and_a_dead_letter_is_not(worlds):
    clock = ManualClock()
    world = worlds(clock=clock, keep=8 * 86400.0, idle_timeout=86400.0)
    world.tell(orm("OLD"))
    world.tell(message(msh("ORM^O01"), obr("A2")))
    clock.advance(9 * 86400)
    world.tell(orm("NEW"))
    wait_for(lambda: clock.advance(100) or len(world.messages()) == 2)
    assert sorted(m.state for m in world.messages()) == [DONE, DEAD]
    # The order stays: only the message is gone.
    assert world.verify(patient_id="P1", accession_number="OLD").outcome == MATCH


def test_how_the_domains_are(worlds):
    world = worlds(*TWO)
    world.tell(orm("A1"), "clinic")
    world.tell(message(msh("ORM^O01"), obr("A2")), "clinic")
    domains = world.domains()
    clinic, town = domains["clinic"], domains["town"]
    assert (clinic.orders, clinic.messages, clinic.dead_letters, clinic.reports_waiting) == (1, 2, 1, 0)
    assert (town.orders, town.messages, town.available, town.manager) == (0, 0, True, "connectivity-manager-0")
    assert {clinic.hl7_port, town.hl7_port} == {world.port("clinic"), world.port("town")}
    assert world.contexts["connectivity-manager-0"].status.figures()["dead_letters"] == 1
    ends = world.running["connectivity-manager-0"].endpoints()
    assert set(ends) == {"hl7", "hl7_town"}
    assert ends["hl7"].endswith(f":{clinic.hl7_port}")


# One domain's trouble


def test_each_manager_serves_its_own_domains_and_stops_alone(worlds):
    world = worlds(sections.Domain(name="clinic"), sections.Domain(name="town", manager=1))
    world.start(1)
    world.tell(orm("A1"), "town")
    assert set(world.domains(0)) == {"clinic"}
    assert set(world.domains(1)) == {"town"}
    assert set(world.running["connectivity-manager-1"].endpoints()) == {"hl7_town"}
    assert refused(world.verify, domain="town", number=0) == "DOMAIN_UNKNOWN"
    world.stop(0)
    assert world.verify("town", 1, patient_id="P1", accession_number="A1").outcome == MATCH
    world.start(0)
    wait_for(lambda: len(world.told.last) == 2)


def test_a_port_that_is_taken_stops_its_own_domain_alone_until_it_is_free(worlds):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        world = worlds(sections.Domain(name="clinic"), sections.Domain(name="town", hl7_port=port))
        assert code(world.tell(orm("A1"), "clinic")) == "AA"
        assert world.domains()["town"].hl7_port == 0
        assert str(port) in world.alarms()["PORT_IN_USE"]
    wait_for(lambda: world.domains()["town"].hl7_port == port)
    assert code(world.tell(orm("A1"), "town")) == "AA"
    wait_for(lambda: "PORT_IN_USE" not in world.alarms())
    ends = world.running["connectivity-manager-0"].endpoints()
    assert ends["hl7_town"].endswith(f":{port}")


def test_a_manager_none_of_whose_ports_is_free_says_so_and_ends(tmp_path):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        world = World(tmp_path, sections.Domain(name="clinic", hl7_port=taken.getsockname()[1]))
        try:
            assert refused(world.start) == "PORT_IN_USE"
        finally:
            world.close()


def test_a_domain_whose_peers_hold_all_connections_keeps_no_other_from_serving(worlds):
    world = worlds(*TWO, max_connections=3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            held = stack.enter_context(world.peer("clinic"))
            held.send(b"\x0bMSH|^~\\&|")
        assert code(world.tell(orm("A1"), "town")) == "AA"


def test_a_mapping_that_cannot_be_used_is_told_by_name(tmp_path):
    world = World(tmp_path, sections.Domain(name="clinic", mapping={"accession_number": "moon"}))
    try:
        assert refused(world.start) == "CONFIG_INVALID"
    finally:
        world.close()


def test_a_mapping_is_used(worlds):
    world = worlds(sections.Domain(name="default", mapping={"accession_number": "OBR-35, OBR-18"}))
    world.tell(message(msh("ORM^O01"), pid(), "ORC|NW", "OBR|1||||||||||||||||||||||||||||||||||NUMBER"))
    assert world.verify(patient_id="P1", accession_number="NUMBER").outcome == MATCH


def test_an_answer_in_hand_is_sent_before_the_end(worlds):
    world = worlds()
    manager = world.running["connectivity-manager-0"]
    begun, go = threading.Event(), threading.Event()
    intake = manager._domains["default"].intake
    taken = intake._take

    def slow(raw: bytes):
        begun.set()
        assert go.wait(60)
        return taken(raw)

    intake._take = slow
    with world.peer() as peer:
        peer.send(frame(orm("A1", control_id="M1")))
        assert begun.wait(60)
        stopping = threading.Thread(target=world.stop)
        stopping.start()
        go.set()
        answer = peer.answer()
        stopping.join()
    assert answer is None or code(answer) == "AA"
    world.start()
    with world.peer() as peer:
        again = peer.ask(orm("A1", control_id="M1"))
    assert answer in (None, again)
    assert answer is not None
