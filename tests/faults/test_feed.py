"""Whoever follows the Database Server's changes hears of them after it died, however often."""

import contextlib
import os
import queue
import signal
import threading

import pytest
from faults_support import Running, make_items, send
from waiting import wait_for

from radmesh.runtime.errors import RadmeshError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def test_changes_are_heard_of_after_the_database_died(running: Running) -> None:
    heard: queue.Queue[str] = queue.Queue()
    with running.cluster() as cluster:

        def watch() -> None:
            # Ends with the cluster's client, in whatever way gRPC says that it is closed.
            with contextlib.suppress(RadmeshError, ValueError):
                for uids in cluster.watch():
                    for uid in uids:
                        heard.put(uid)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        for seed in range(2):
            [pid] = running.pids("database-server")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: (now := running.pids("database-server")) and pid not in now)
            # The door's follower, the Curator's and the gateway's: a study that comes is told of, and curated.
            [item] = make_items(1, 7000 + seed)
            assert send(running, [item]).statuses == {0: 1}
            told: set[str] = set()
            wait_for(lambda item=item, told=told: told.add(heard.get(timeout=60)) or item.study in told)
    watcher.join(60)
    assert not watcher.is_alive()
