"""An object larger than anybody wants to hold in memory passes (RADMESH_TEST_LARGE=1: 2,147,483,648 bytes)."""

import hashlib
import os
import random
import struct
import threading
import time
from pathlib import Path

import pytest
import raw_dicom
from faults_support import Running
from waiting import wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

SIZE = 2_147_483_648 if os.environ.get("RADMESH_TEST_LARGE") == "1" else 256 << 20
PIECE = 131_066
MOST_GROWTH = 64 << 20


def rss_anon(pid: int) -> int:
    with Path(f"/proc/{pid}/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024


def test_a_large_object_passes_in_little_memory() -> None:
    with Running() as running, raw_dicom.Client(running.dicom_port, timeout=120.0) as client:
        assert client.store(raw_dicom.image("2.25.5", "2.25.5.1"), "2.25.5.1").status == 0
        watched = [*running.pids("gateway-proxy"), *running.pids("archive-server")]
        before = {pid: rss_anon(pid) for pid in watched}
        grown = dict.fromkeys(watched, 0)

        over = threading.Event()

        def look() -> None:
            while not over.wait(0.02):
                for pid in watched:
                    grown[pid] = max(grown[pid], rss_anon(pid) - before[pid])

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        head = raw_dicom.image("2.25.9", "2.25.9.1", pixels=2)[:-6] + struct.pack("<I", 0)
        head = head[:-4] + struct.pack("<I", SIZE - len(head))
        began = time.monotonic()
        noise = random.Random(9).randbytes(PIECE)
        digest, left, number = hashlib.sha256(), SIZE, 0
        client.send(raw_dicom.pdu(4, raw_dicom.pdv(1, 3, raw_dicom.store_rq(raw_dicom.CT, "2.25.9.1"))))
        while left:
            data = ((head + noise) if number == 0 else noise)[: min(PIECE, left)]
            left -= len(data)
            digest.update(data)
            client.send(raw_dicom.pdu(4, raw_dicom.pdv(1, 0 if left else 2, data)))
            number += 1
        assert client.response().status == 0
        client.release()
        with running.cluster() as cluster:
            instance = wait_for(lambda: list(cluster.instances("2.25.9")), 10, "it is registered")[0]
            assert (instance.length, instance.sha256) == (SIZE, digest.hexdigest())
            again = hashlib.sha256()
            for data in cluster.read("2.25.9", instance):
                again.update(data)
        over.set()
        looking.join()
        assert again.hexdigest() == instance.sha256
        seconds = time.monotonic() - began
        print(f"\n{SIZE} bytes, {seconds:.1f} s: RssAnon grew by {[grown[pid] >> 20 for pid in watched]} MiB")
        assert max(grown.values()) < MOST_GROWTH
