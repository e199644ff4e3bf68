"""Reports on their way to a RIS: each version is one message with one MSH-10 and the same bytes, whatever happens."""

import itertools

import pytest
from connectivity_mesh import World
from hl7_partners import free_port
from ris_receiver import Ris
from waiting import wait_for

from radmesh.connectivity_manager.delivery import control_id
from radmesh.hl7.message import parse
from radmesh.mesh import sections
from radmesh.runtime.clock import ManualClock
from radmesh.runtime.errors import RadmeshError

IN, OUT = 1, 2
DONE, WAITING, DEAD = 1, 3, 4
TO_SEND, DELIVERED, REFUSED, NOT_CONFIGURED = 1, 2, 3, 4
STUDY = "2.25.1"


class Hurried(ManualClock):
    """Time passes as fast as it is waited for."""

    def wait(self, event, seconds):
        if not event.wait(0.01):
            self.advance(seconds)
        return event.is_set()


@pytest.fixture
def worlds(tmp_path):
    """Make worlds whose domain "default" reports to a port."""
    made = []

    def make(port: int, *more: sections.Domain, **settings):
        domain = sections.Domain(
            name="default", report_to=f"127.0.0.1:{port}" if port else "", receiving_application="RIS"
        )
        made.append(World(tmp_path / str(len(made)), domain, *more, clock=Hurried()))
        made[-1].start(**settings)
        return made[-1]

    yield make
    for world in made:
        world.close()


def ends(world: World, state: int, study: str = STUDY, version: int = 1, seconds: float = 20.0) -> None:
    """Wait until the database has heard how a report ended."""
    wait_for(lambda: (world.told.delivered(study, version) or [(0, "")])[-1][0] == state, seconds)


def out(world: World, **wanted) -> list:
    return world.messages(direction=OUT, **wanted)


# As it should be


def test_a_report_is_delivered_and_the_database_hears_of_it(worlds):
    with Ris() as ris:
        world = worlds(ris.port)
        sent = world.send_report(STUDY, text="No fracture.\nMüller: ok | & ^")
        ends(world, DELIVERED)
        (raw,) = ris.raws
    message = parse(raw)
    assert str(message.type) == "ORU^R01"
    assert message.control_id == sent == control_id(STUDY, 1)
    assert (message.receiving_application, message.get("PID-3"), message.get("OBR-18")) == ("RIS", "P1", "A1")
    assert message.get("OBR-25") == "F"
    assert STUDY in raw.decode()
    assert [s.field(5).value for s in message.segments("OBX")][1:] == ["No fracture.", "Müller: ok | & ^"]
    (row,) = out(world)
    assert (row.state, row.ack_code, row.control_id, row.type, row.reason) == (DONE, "AA", sent, "ORU^R01", "")
    whole = world.message(row.id)
    assert whole.raw == raw
    assert parse(whole.ack).get("MSA-2") == sent
    # Whether it was heard of while it waited depends on who was quicker.
    assert world.told.delivered(STUDY) in ([(TO_SEND, ""), (DELIVERED, "")], [(DELIVERED, "")])
    assert {told[-1] for told in world.told.deliveries} == {sent}
    assert world.domains()["default"].reports_waiting == 0


def test_an_addendum_is_a_message_of_its_own(worlds):
    with Ris() as ris:
        world = worlds(ris.port)
        ids = [world.send_report(STUDY, version) for version in (1, 2, 3)]
        ends(world, DELIVERED, version=3)
        assert ris.ids == ids
        assert len(set(ids)) == 3
        assert parse(ris.raws[1]).get("OBR-25") == "C"


def test_the_first_content_is_the_one_that_is_sent(worlds):
    """The Database Server asks again after a cut; whatever it says then, the message is the same."""
    port = free_port()
    world = worlds(port)
    ids = {world.send_report(STUDY, text=text) for text in ("First.", "First.", "Second.")}
    assert len(ids) == 1
    assert len(out(world)) == 1
    with Ris(port) as ris:
        ends(world, DELIVERED)
        assert b"First." in ris.raws[-1]
    assert world.send_report(STUDY, text="Third.") in ids
    assert len(out(world)) == 1


def test_control_ids_tell_versions_and_studies_apart():
    ids = [control_id(f"2.25.{n}", version) for n in range(300) for version in (1, 2, 3, 1001)]
    assert len(set(ids)) == len(ids)
    assert {len(one) for one in ids} == {20}


def test_a_domain_without_a_receiver_says_so(worlds):
    world = worlds(0)
    world.send_report(STUDY)
    ends(world, NOT_CONFIGURED)
    assert world.domains()["default"].reports_waiting == 0


def test_what_had_no_receiver_is_asked_for_when_there_is_one(worlds):
    world = worlds(0)
    ids = [world.send_report(STUDY, version) for version in (1, 2)]
    ends(world, NOT_CONFIGURED, version=2)
    # A restart alone changes nothing.
    world.stop()
    world.start()
    assert world.send_report(STUDY) == ids[0]
    wait_for(lambda: world.told.delivered(STUDY) == [(NOT_CONFIGURED, "")] * 2)
    world.stop()
    with Ris() as ris:
        world.mesh.settings["domains"] = (
            sections.Domain(name="default", report_to=f"127.0.0.1:{ris.port}", receiving_application="LATE"),
        )
        world.start()
        # Its content is the Database Server's: nothing goes before it hands both over again.
        ends(world, TO_SEND, version=2)
        assert world.told.delivered(STUDY)[-1] == (TO_SEND, "")
        assert ris.raws == []
        assert [world.send_report(STUDY, version) for version in (1, 2)] == ids
        ends(world, DELIVERED, version=2)
        assert ris.ids == ids
        assert {parse(raw).receiving_application for raw in ris.raws} == {"LATE"}
        assert [(row.state, row.control_id) for row in out(world)] == [(DONE, ids[1]), (DONE, ids[0])]
        # What is delivered is not asked for again.
        world.stop()
        told = len(world.told.deliveries)
        world.start()
        assert world.send_report(STUDY) == ids[0]
        assert len(world.told.deliveries) == told
        assert ris.ids == ids


def test_what_cannot_be_sent_is_refused_at_once(worlds):
    world = worlds(free_port())
    for arguments, reason in (
        ({"domain": "nowhere"}, "DOMAIN_UNKNOWN"),
        ({"version": 0}, "FIELD_INVALID"),
        ({"patient_id": ""}, "HL7_REPORT_INVALID"),
    ):
        with pytest.raises(RadmeshError) as caught:
            world.send_report(STUDY, **arguments)
        assert caught.value.reason == reason
    assert not out(world)


# What a RIS may do


@pytest.mark.parametrize(
    "mishap", ["silent", "late", "other", "half", "close", "nonsense", "AE", "CE", "twice", "bytes", "CA"]
)
def test_after_any_mishap_the_same_bytes_come_again_until_they_are_taken(worlds, mishap):
    with Ris(plan=[mishap]) as ris:
        world = worlds(ris.port)
        world.send_report(STUDY)
        ends(world, DELIVERED)
        assert len(set(ris.raws)) == 1
        assert len(ris.raws) == (1 if mishap in ("twice", "bytes", "CA") else 2)
        # The next one is not taken for answered by what was left over.
        world.send_report("2.25.2")
        ends(world, DELIVERED, "2.25.2")
        assert [done for done, _ in ris.got][-1] == "AA"
        assert ris.ids[-1] == control_id("2.25.2", 1)


def test_a_late_answer_is_dropped_with_its_connection(worlds):
    """The answer to the first message comes while the second waits for its own, which says no."""
    with Ris(plan=["late", "AR"]) as ris:
        world = worlds(ris.port)
        world.send_report(STUDY)
        ends(world, REFUSED)
        assert len(set(ris.raws)) == 1
        assert len(ris.raws) == 2


def test_a_receiver_that_is_down_for_a_while(worlds):
    port = free_port()
    world = worlds(port)
    studies = [f"2.25.{n}" for n in range(10, 15)]
    for study in studies:
        world.send_report(study)
    wait_for(lambda: all((TO_SEND, "HL7_CONNECTION_LOST") in world.told.delivered(study) for study in studies))
    assert world.domains()["default"].reports_waiting == 5
    with Ris(port) as ris:
        for study in studies:
            ends(world, DELIVERED, study)
        assert sorted(ris.ids) == sorted({control_id(study, 1) for study in studies})


def test_what_the_ris_rejects_is_a_dead_letter_and_those_behind_it_go_on(worlds):
    with Ris(plan=["AR"]) as ris:
        world = worlds(ris.port)
        world.send_report(STUDY)
        world.send_report("2.25.2")
        ends(world, REFUSED)
        ends(world, DELIVERED, "2.25.2")
        (dead,) = out(world, state=DEAD)
        assert (dead.reason, dead.ack_code) == ("HL7_REFUSED", "AR")
        assert world.told.delivered(STUDY)[-1] == (REFUSED, "HL7_REFUSED")
        assert world.domains()["default"].dead_letters == 1
        # Somebody mends it there, and lets it be sent again: the same message.
        assert world.replay(dead.id).state == WAITING
        ends(world, DELIVERED)
        mine = [raw for raw, one in zip(ris.raws, ris.ids, strict=True) if one == control_id(STUDY, 1)]
        assert len(mine) == 2
        assert len(set(mine)) == 1
        with pytest.raises(RadmeshError) as caught:
            world.replay(dead.id)
        assert caught.value.reason == "MESSAGE_NOT_DEAD"


def test_versions_of_a_study_arrive_in_order_and_other_studies_pass(worlds):
    with Ris(plan=["AE", "AA", "AA"]) as ris:
        world = worlds(ris.port)
        world.send_report(STUDY, 1)
        wait_for(lambda: ris.raws)
        for study, version in ((STUDY, 2), ("2.25.2", 1)):
            world.send_report(study, version)
        ends(world, DELIVERED, version=2)
        ends(world, DELIVERED, "2.25.2")
        mine = [one for one in ris.ids if one != control_id("2.25.2", 1)]
        assert mine == [control_id(STUDY, 1)] * 2 + [control_id(STUDY, 2)]


def test_errors_are_tried_again_and_at_last_are_for_people(worlds):
    with Ris(plan=["AE"] * 10) as ris:
        world = worlds(ris.port)
        world.send_report(STUDY)
        ends(world, REFUSED)
        assert world.told.delivered(STUDY)[-1] == (REFUSED, "HL7_ERROR")
        assert len(ris.raws) == 10
        (dead,) = out(world, state=DEAD)
        world.replay(dead.id)
        ends(world, DELIVERED)
        assert len(set(ris.raws)) == 1
        # Each state was told once.
        told = [state for state, _ in itertools.groupby(world.told.delivered(STUDY))]
        assert told == list(world.told.delivered(STUDY))


def test_an_outage_does_not_use_up_the_tries(worlds):
    """Only what the RIS answered counts: twenty refused connections and one AE are no dead letter."""
    port = free_port()
    world = worlds(port)
    world.send_report(STUDY)
    wait_for(lambda: out(world)[0].attempts >= 12, 30)
    with Ris(port, ["AE", "silent", "AE"]) as ris:
        ends(world, DELIVERED)
        assert [done for done, _ in ris.got] == ["AE", "silent", "AE", "AA"]
    assert REFUSED not in [state for state, _ in world.told.delivered(STUDY)]


def test_one_domain_s_receiver_keeps_no_other_domain_waiting(worlds):
    with Ris(plan=["silent"] * 100) as stuck, Ris() as ris:
        world = worlds(stuck.port, sections.Domain(name="town", report_to=f"127.0.0.1:{ris.port}"), ack_timeout=60.0)
        world.send_report(STUDY)
        wait_for(lambda: stuck.raws)
        world.send_report("2.25.2", domain="town")
        ends(world, DELIVERED, "2.25.2")
        assert len(stuck.raws) == 1
        # The end does not wait for it either.
        world.stop()


# What the database hears


def test_the_database_hears_later_what_happened_while_it_was_away(worlds):
    with Ris() as ris:
        world = worlds(ris.port)
        world.told.stop()
        for study in ("2.25.404", STUDY, "2.25.404.2"):
            world.send_report(study)
        wait_for(lambda: not out(world, state=WAITING))
        world.told.start()
        # What it does not know (a backup, most likely) keeps nothing back.
        ends(world, DELIVERED)
        assert world.told.delivered(STUDY) == [(DELIVERED, "")]
        assert [n for n in ris.ids if n == control_id(STUDY, 1)] == [control_id(STUDY, 1)]


def test_a_restart_goes_on_with_what_waits(worlds):
    port = free_port()
    world = worlds(port)
    world.send_report(STUDY)
    wait_for(lambda: out(world)[0].attempts)
    world.stop()
    with Ris(port) as ris:
        world.start()
        ends(world, DELIVERED)
        assert len(set(ris.raws)) == 1
