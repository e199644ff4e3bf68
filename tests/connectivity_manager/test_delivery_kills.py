"""kill -9 of the real process at every step of a delivery: each report version is one message all the same."""

import threading

import pytest
from hl7_partners import free_port
from ris_receiver import Ris
from waiting import wait_for

from radmesh.connectivity_manager.delivery import control_id
from radmesh.hl7.message import parse

pytestmark = pytest.mark.timeout(600)
STUDY = "2.25.1"
DELIVERED = 2


@pytest.mark.parametrize(
    "step",
    [
        "before INSERT INTO reports",
        "uncommitted INSERT INTO reports",
        "committed INSERT INTO reports",
        "before UPDATE reports",
        "uncommitted UPDATE reports",
        "committed UPDATE reports",
    ],
)
def test_a_report_version_is_one_message_though_the_sender_dies_at_any_step(processes, step):
    """The Database Server asks until it is answered; the RIS has answered when the UPDATE comes."""
    with Ris() as ris:
        process = processes(f'[[domains]]\nname = "default"\nreport_to = "127.0.0.1:{ris.port}"\n')
        process.start(dies=[step])
        asking = threading.Thread(target=process.send_report, args=(STUDY,))
        asking.start()
        process.died()
        process.start()
        asking.join()
        wait_for(lambda: (process.told.delivered(STUDY) or [(0, "")])[-1][0] == DELIVERED, 30)
        (row,) = process.messages(direction=2)
        assert set(ris.raws) == {process.message(row.id).raw}
        assert set(ris.ids) == {control_id(STUDY, 1)}
        assert parse(ris.raws[0]).control_id == row.control_id


def test_a_kill_while_the_ris_is_silent(processes):
    port = free_port()
    process = processes(f'[[domains]]\nname = "default"\nreport_to = "127.0.0.1:{port}"\n')
    with Ris(port, ["silent", "half"]) as ris:
        process.start()
        for version in (1, 2):
            process.send_report(STUDY, version)
        wait_for(lambda: ris.raws)
        process.kill()
        process.start()
        wait_for(lambda: (process.told.delivered(STUDY, 2) or [(0, "")])[-1][0] == DELIVERED, 60)
        assert list(dict.fromkeys(ris.ids)) == [control_id(STUDY, 1), control_id(STUDY, 2)]
        assert len(set(ris.raws)) == 2
