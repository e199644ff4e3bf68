"""A database, an archive or both that do not answer, or have no room: modalities see success wherever it is true.

Everything heals by itself: what waited is registered, what was spooled drains into the archive, each object once.
"""

import os
import time

import pytest
from faults_support import Running, Sending, check_everything, make_items, residences, send
from waiting import wait_for

MB = 1 << 20
SEEDS = {"silent": 100, "gone": 200}
DRAINED = {"archive CACHE", "archive CACHE_AND_PERMANENT"}

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
how_it_is_down = pytest.mark.parametrize("how", ["silent", "gone"])
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


def together(running: Running, *sendings: Sending) -> Sending:
    """All that was sent in several parts."""
    return Sending(
        running.dicom_port,
        [item for sending in sendings for item in sending.items],
        acknowledged={uid: item for sending in sendings for uid, item in sending.acknowledged.items()},
    )


def check_drained(running: Running, sending: Sending) -> None:
    """The spool is empty, and each object is in the archive once."""
    wait_for(lambda: set(residences(running, sending)) <= DRAINED, what="the spool is empty")
    print(check_everything(running, sending))
    assert sum(residences(running, sending).values()) == len(sending.acknowledged) == len(sending.items)


@how_it_is_down
def test_a_database_that_is_down(running: Running, how: str) -> None:
    """Known studies go on to their archive, new ones to the spool; all are registered when it is back."""
    seed = SEEDS[how]
    first = send(running, make_items(40, seed + 31, studies=2))
    with running.without(how, "database-server"):
        later = send(running, [*make_items(80, seed + 31, studies=2)[40:], *make_items(20, seed + 32, studies=2)])
    assert set(first.statuses) == set(later.statuses) == {0}
    both = together(running, first, later)
    print(check_everything(running, both, seconds=20))
    check_drained(running, both)


@how_it_is_down
def test_an_archive_that_is_down(running: Running, how: str) -> None:
    """Its objects go to the spool, and are found and read there."""
    seed = SEEDS[how]
    first = send(running, make_items(10, seed + 33, studies=2))
    check_drained(running, first)
    with running.without(how, "archive-server"):
        # The first study goes on where the archive cannot take it, the others begin in the spool.
        later = send(running, [*make_items(30, seed + 33, studies=2)[10:], *make_items(20, seed + 36, large=1_500_000)])
        assert set(later.statuses) == {0}
        both = together(running, first, later)
        print(check_everything(running, both, seconds=20, readable=set(later.acknowledged)))
        assert residences(running, both)["spool SPOOL"] == 40
    check_drained(running, both)


@how_it_is_down
def test_both_are_down(running: Running, how: str) -> None:
    """The spool takes everything, also of studies that nobody has seen before."""
    seed = SEEDS[how]
    first = send(running, make_items(10, seed + 37, studies=2))
    check_drained(running, first)
    with running.without(how, "database-server", "archive-server"):
        later = send(running, [*make_items(30, seed + 37, studies=2)[10:], *make_items(20, seed + 38, studies=2)])
        assert set(later.statuses) == {0}
    both = together(running, first, later)
    print(check_everything(running, both, seconds=30))
    check_drained(running, both)


def test_a_reserve_that_is_reached() -> None:
    """A reserve above what the file system has stands for a full disk: first the archive's, then both."""
    with Running("--set", "archive.reserve=1000TB") as running:
        spooled = send(running, make_items(20, 39, studies=2))
        assert set(spooled.statuses) == {0}
        print(check_everything(running, spooled))
        assert residences(running, spooled) == {"spool SPOOL": 20}
        assert running.stop() == 0
        running.arguments = (*running.arguments, "--set", "gateway.reserve=1000TB")
        running.start()
        # Ten seconds are given to stores for coming back, each time: one object is enough.
        refused = send(running, make_items(1, 34, studies=1), associations=1, patience=3.0)
        assert set(refused.statuses) == {0xA700}
        # "No archive has room" is an answer: nobody waits for a second one until the database counts as silent. (It
        # may have been silent while all started; each of the object's dozens of questions would be a line.)
        log = (running.data / "logs" / "network-gateway.log").read_text()
        assert log.count("database does not place studies") < 5
        assert running.stop() == 0
        running.arguments = ()
        running.start()
        stored = send(running, make_items(4, 34, studies=1))
        check_drained(running, together(running, spooled, stored))


@needs_root
def test_an_archive_whose_disk_is_full() -> None:
    """Writes fail in the middle: the spool takes the rest, and all drains when there is room."""
    with Running("--set", "archive.reserve=0", room={"archive-server-0": 12 * MB}) as running:
        sending = send(running, make_items(100, 40, studies=3, large=2_500_000))
        assert set(sending.statuses) == {0}
        print(check_everything(running, sending, seconds=20))
        assert residences(running, sending)["spool SPOOL"] > 0
        running.make_room("archive-server-0", 1024 * MB)
        check_drained(running, sending)


@needs_root
def test_no_disk_has_room() -> None:
    """0xA700, nothing acknowledged is lost; when there is room again, a retry is stored once."""
    full = {"archive-server-0": 10 * MB, "network-gateway": 10 * MB}
    with Running("--set", "archive.reserve=0", "--set", "gateway.reserve=0", room=full) as running:
        items = make_items(100, 41, studies=3, large=8_000_000)
        sending = Sending(running.dicom_port, items, patience=300.0)
        sending.start()
        wait_for(lambda: sending.statuses.get(0xA700), 60, "somebody is told that there is no room")
        time.sleep(0.5)
        before = set(sending.acknowledged)
        running.make_room("network-gateway", 1024 * MB)
        running.make_room("archive-server-0", 1024 * MB)
        sending.join(300)
        assert set(sending.statuses) == {0, 0xA700}
        assert before < set(sending.acknowledged)
        check_drained(running, sending)
