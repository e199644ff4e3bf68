"""Curators that are killed with -9 while they work, or whose disk is full: every picture is made, and there once."""

import io
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_support import image
from curator_support import CODECS, encode
from depth import times
from faults_support import Item, Running, Sending
from waiting import wait_for

from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Status
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.security import Credentials
from radmesh_native import htj2k

KILLS = times(16, 6)
STUDIES, IMAGES = 12, times(10, 5)
SIZE = 320
CONFIG = "[mesh]\ncurators = 2\n[curator]\nthreads = 1\nbusy_pause = 0\nsweep = 5\n"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def pixels(study: int, number: int) -> Any:
    rng = np.random.default_rng(study * 1000 + number)
    return rng.integers(0, 4096, (SIZE, SIZE)).astype("<u2")


def items() -> list[Item]:
    made = []
    for number in range(1, IMAGES + 1):
        for study in range(1, STUDIES + 1):
            ds = image(study, Rows=SIZE, Columns=SIZE, PixelData=pixels(study, number).tobytes())
            ds.SOPInstanceUID = f"{ds.SeriesInstanceUID}.{number}"
            made.append(Item(ds.StudyInstanceUID, ds.SOPInstanceUID, encode(ds)))
    return made


class Inside:
    """Calls that the Application Server makes."""

    def __init__(self, running: Running) -> None:
        addresses = {
            name: f"unix:{running.data}/run/{name}.sock" for name in ("database-server", "curator-0", "curator-1")
        }
        name = "application-server"
        self.context = Context(
            name, name, running.data / name, SystemClock(), Logger(name, name, io.StringIO()), Metrics(),
            Status(SystemClock()), Credentials(running.data / "credentials", name), "", addresses,
        )  # fmt: skip

    def database(self, service: str) -> Any:
        return self.context.client(database_pb2.DESCRIPTOR.services_by_name[service], "database-server")

    def renditions(self, study: str) -> list[Any]:
        request = database_pb2.FindRenditionsRequest(study_instance_uid=study, include_held=True)
        try:
            return list(self.database("CurationService").FindRenditions(request).renditions)
        except RadmeshError:
            return []  # not known yet, or the database is away

    def frame(self, rendition: Any) -> bytes:
        service = curator_pb2.DESCRIPTOR.services_by_name["WebCacheService"]
        request = curator_pb2.ReadFramesRequest(study_instance_uid=rendition.study_instance_uid)
        request.ranges.add(
            sop_instance_uid=rendition.identity.sop_instance_uid, sha256=rendition.identity.sha256, frame=1
        )
        answers = self.context.client(service, rendition.target, codecs=CODECS).ReadFrames(request, timeout=20.0)
        return b"".join(bytes(answer.data) for answer in answers)


@contextmanager
def inside(running: Running) -> Iterator[Inside]:
    made = Inside(running)
    try:
        yield made
    finally:
        made.context.channels.close()


def pid_of(running: Running, instance: str) -> int:
    """The process of an instance; 0: none."""
    for pid in running.pids("curator"):
        with suppress(OSError):
            if f"--target={instance}" in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
    return 0


def workers(running: Running) -> list[int]:
    found = []
    for pid in running.pids("curator"):
        with suppress(OSError):
            if "radmesh.curator.worker.process" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def check_pictures(calls: Inside, wanted: set[str]) -> list[Any]:
    """Every instance has one rendition, whose frame is what was sent."""

    def all_made() -> list[Any]:
        found = [r for study in range(1, STUDIES + 1) for r in calls.renditions(f"2.25.77.{study}")]
        alive = [rendition for rendition in found if rendition.target]
        return alive if {r.identity.sop_instance_uid for r in alive} == wanted else []

    made: list[Any] = wait_for(all_made, 120, "every picture is made")
    assert len(made) == len(wanted)
    for rendition in made:
        assert (rendition.state, rendition.reason) == (1, "")
        study, _, number = rendition.identity.sop_instance_uid.removeprefix("2.25.77.").split(".")
        seen = htj2k.decode(calls.frame(rendition), max_samples=SIZE * SIZE)
        assert np.array_equal(seen, pixels(int(study), int(number)))
    return made


def test_two_curators_are_killed_while_they_work(tmp_path: Path) -> None:
    config = tmp_path / "radmesh.toml"
    config.write_text(CONFIG)
    rng = random.Random(7)
    wanted = {item.sop_instance_uid for item in items()}
    with Running("--config", str(config)) as running, inside(running) as calls:
        sending = Sending(running.dicom_port, items(), gate=(gate := threading.Semaphore(0)))
        sending.start()
        busy = 0
        for number in range(KILLS):
            gate.release(len(wanted) // KILLS)
            victim = ("curator-0", "curator-1", "worker")[number % 3]
            time.sleep(rng.uniform(0.05, 0.4))
            before = sum(len(calls.renditions(f"2.25.77.{study}")) for study in range(1, STUDIES + 1))
            busy += before < len(sending.acknowledged)
            if victim == "worker":
                for pid in workers(running):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                continue
            pid = wait_for(lambda victim=victim: pid_of(running, victim), 30, f"{victim} runs")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda victim=victim, pid=pid: pid_of(running, victim) not in (0, pid), 30, f"{victim} is back")
        gate.release(len(wanted))
        sending.join(300)
        assert set(sending.acknowledged) == wanted

        made = check_pictures(calls, wanted)
        # Every job has ended, and none has failed.
        jobs = calls.database("JobService")

        def ended() -> bool:
            states = {
                job.state for job in jobs.ListJobs(database_pb2.ListJobsRequest(kind="curate", page_size=1000)).jobs
            }
            return states == {3}

        wait_for(ended, 30, "every job has ended")
        counts = {store: sum(r.store_id == store for r in made) for store in ("curator-0", "curator-1")}
        for worker in workers(running):
            assert Path(f"/proc/{worker}").exists()
    print(f"\n{KILLS} kills, {busy} of them amid work; {len(made)} pictures, {counts}")
    assert busy >= KILLS // 3
    assert all(counts.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a Curator a small file system")
def test_a_web_cache_whose_disk_is_full() -> None:
    """Writes fail in the middle: nothing half is served, intake notices nothing, and all is made when there is room."""
    wanted = {item.sop_instance_uid for item in items()}
    settings = ("curator.reserve=0", "curator.busy_pause=0", "curator.sweep=2")
    arguments = [part for setting in settings for part in ("--set", setting)]
    with Running(*arguments, room={"curator-0": 6 << 20}) as running, inside(running) as calls:
        sending = Sending(running.dicom_port, items())
        sending.start()
        sending.join(300)
        assert (set(sending.acknowledged), set(sending.statuses)) == (wanted, {0})
        jobs = calls.database("JobService")

        def waiting() -> bool:
            request = database_pb2.ListJobsRequest(kind="curate", page_size=1000)
            return any(job.reason == "STORAGE_FULL" for job in jobs.ListJobs(request).jobs)

        wait_for(waiting, 60, "a study waits for room")
        for study in range(1, STUDIES + 1):
            for rendition in calls.renditions(f"2.25.77.{study}"):
                assert calls.frame(rendition)
        running.make_room("curator-0", 256 << 20)
        check_pictures(calls, wanted)
