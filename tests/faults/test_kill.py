"""Every process, killed with -9 again and again while objects are sent: nothing acknowledged is lost or doubled."""

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from depth import times
from faults_support import Running, Sending, check_everything, make_items
from waiting import wait_for

BATCH = 24
COMPONENTS = ("database-server", "archive-server", "network-gateway", "gateway-proxy", "application-server")
# Of the gateway proxy: process 0 is the parent, the others accept associations; there are two at least.
ACCEPTORS = {"acceptor 1": 1, "acceptor 2": 2}
VICTIMS = (*COMPONENTS, *ACCEPTORS, "radmesh up")
KILLS = {victim: times(20, 4) for victim in VICTIMS} | {"radmesh up": times(20, 2)}  # dear: it starts everything

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def kill(running: Running, victim: str) -> None:
    """Kill one process of the victim with -9, and wait until it has been replaced."""
    if victim == "radmesh up":
        children = [pid for pids in running.ready()["pids"].values() for pid in pids]
        running.process.kill()
        running.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 10, "no child outlives radmesh up")
        running.start()
        return
    component = "gateway-proxy" if victim in ACCEPTORS else victim
    pids = running.pids(component)
    pid = pids[ACCEPTORS.get(victim, 0)]
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: (now := running.pids(component)) and pid not in now and len(now) == len(pids), 30, f"{victim} is back"
    )


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_objects_are_sent(running: Running, victim: str) -> None:
    seed = 1000 + VICTIMS.index(victim)
    rng = random.Random(seed)
    began = time.monotonic()
    busy, kills = 0, KILLS[victim]
    objects = BATCH * (kills + 1)
    gate = threading.Semaphore(0)
    sending = Sending(running.dicom_port, make_items(objects, seed, large=2_500_000), gate=gate)
    sending.start()
    for number in range(1, kills + 1):
        # Each kill meets objects on their way, after a progress and some milliseconds that the seed chooses.
        progress = len(sending.acknowledged) + rng.randrange(BATCH // 2)
        until = time.monotonic() + 60
        gate.release(BATCH)
        while len(sending.acknowledged) < progress and time.monotonic() < until:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, 0.004))
        busy += len(sending.acknowledged) < BATCH * number
        kill(running, victim)
    gate.release(objects)
    sending.join(300)
    counts = check_everything(running, sending, read=50)
    seconds = time.monotonic() - began
    print(f"\n{victim}: {kills} kills, {busy} of them amid objects, {counts}, {seconds:.0f} s, {sending.statuses}")
    assert counts["acknowledged"] == counts["found"] == objects
    # What no object met would prove nothing.
    assert busy >= kills // 2
