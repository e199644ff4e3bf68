"""Every process, killed with -9 again and again while objects are sent: nothing acknowledged is lost or doubled."""

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from faults_support import Running, Sending, check_everything, make_items, wait_for

KILLS = 20
OBJECTS = 500
COMPONENTS = ("database-server", "archive-server", "network-gateway", "gateway-proxy", "application-server")

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def kill(running: Running, victim: str, rng: random.Random) -> None:
    """Kill one process of the victim with -9, and wait until it has been replaced."""
    if victim == "radmesh up":
        children = [pid for pids in running.ready()["pids"].values() for pid in pids]
        running.process.kill()
        running.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 10, "no child outlives radmesh up")
        running.start()
        return
    component = "gateway-proxy" if victim == "acceptor" else victim
    pids = running.pids(component)
    pid = rng.choice(pids[1:]) if victim == "acceptor" else pids[0]
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: (now := running.pids(component)) and pid not in now and len(now) == len(pids), 30, f"{victim} is back"
    )


@pytest.mark.parametrize("victim", [*COMPONENTS, "acceptor", "radmesh up"])
def test_killed_while_objects_are_sent(victim: str) -> None:
    seed = 1000 + [*COMPONENTS, "acceptor", "radmesh up"].index(victim)
    rng = random.Random(seed)
    began = time.monotonic()
    with Running() as running:
        gate = threading.Semaphore(0)
        sending = Sending(running.dicom_port, make_items(OBJECTS, seed, large=1_500_000), gate=gate)
        sending.start()
        for _ in range(KILLS):
            # Each kill meets objects on their way, at a moment that the seed chooses.
            gate.release(OBJECTS // (KILLS + 1))
            time.sleep(rng.uniform(0.0, 0.12))
            kill(running, victim, rng)
        gate.release(OBJECTS)
        sending.join(120)
        counts = check_everything(running, sending)
    print(f"\nkilled {victim} {KILLS} times: {counts}, {time.monotonic() - began:.0f} s, statuses {sending.statuses}")
    assert counts["acknowledged"] == OBJECTS
