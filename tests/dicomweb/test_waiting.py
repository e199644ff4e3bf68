"""What is answered when pictures are not made yet, when a Curator dies, and when a frame is too large to be kept."""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cluster_support import image
from curator_support import Cluster, ct, encode, item_of, pixels_of
from depth import allowed
from http_support import PASSWORD
from waiting import wait_for

from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.config import Http, Section
from radmesh.application_server.module import ApplicationServer
from radmesh.application_server.pictures import LARGE, FrameCache
from radmesh.runtime.lifecycle import State
from radmesh_native import htj2k

STUDY, SERIES = "2.25.77.1", "2.25.77.1.1"
BASE = f"/dicom-web/studies/{STUDY}/series/{SERIES}"


class Door(Cluster):
    """Components with an Application Server, and a radiologist."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        for name in ("connectivity-manager", "connectivity-manager-0"):
            self.mesh.addresses[name] = self.mesh.listen(name)
        self.database()
        self.archive()
        context = self.mesh.context("application-server")
        self.server = ApplicationServer(Section(port=0), context, Http(port=0))
        self.server.start()
        context.status.state = State.SERVING
        accounts = self.client("application-server", database_pb2, "AccountService", "database-server")
        accounts.CreateUser(database_pb2.CreateUserRequest(name="ann", role="ROLE_RADIOLOGIST", password=PASSWORD))
        self.http = httpx.Client(base_url=self.server.endpoints()["http"], timeout=60)
        assert self.http.post("/api/v1/session", json={"user": "ann", "password": PASSWORD}).status_code == 200
        self.door_context = context

    def get(self, path: str, **headers: str) -> Any:
        return self.http.get(path, headers=headers)

    def known(self, count: int) -> None:
        """Wait until the database knows so many instances of the study."""
        queries = self.client("application-server", database_pb2, "QueryService", "database-server")
        request = database_pb2.FindStudiesRequest(study_instance_uids=[STUDY])
        wait_for(lambda: [s for s in queries.FindStudies(request).studies if s.instance_count == count])

    def close(self) -> None:
        self.http.close()
        self.server.stop(1.0)
        self.door_context.channels.close()
        super().close()


@pytest.fixture
def door(tmp_path) -> Iterator[Door]:
    made = Door(tmp_path)
    yield made
    made.close()


def frame(number: int) -> str:
    return f"{BASE}/instances/{SERIES}.{number}/frames/1"


def body(answer: Any) -> bytes:
    boundary = re.search(r"boundary=(\w+)", answer.headers["content-type"]).group(1)
    return answer.content.split(b"\r\n\r\n", 1)[1].removesuffix(f"\r\n--{boundary}--\r\n".encode())


def test_pictures_that_are_not_made_yet(door):
    door.send(ct(1, 1), ct(1, 2))
    door.known(2)
    for path in (frame(1), f"{BASE}/metadata", f"{BASE}/thumbnail", f"/dicom-web/studies/{STUDY}/metadata"):
        answer = door.get(path)
        assert (answer.status_code, answer.json()["reason"]) == (503, "PICTURES_PENDING"), path
        assert int(answer.headers["retry-after"]) >= 1
    # What there is is given meanwhile.
    assert door.get(f"{BASE}/instances/{SERIES}.1").status_code == 200
    assert len(door.get(f"{BASE}/instances").json()) == 2
    # Nobody waits for what there is not.
    assert door.get(frame(9)).status_code == 404
    door.curator()
    answer = wait_for(lambda: a if (a := door.get(frame(1))).status_code == 200 else None, 30.0)
    assert np.array_equal(htj2k.decode(body(answer)), pixels_of(1, 1))
    # One more comes, while the Curator is away.
    door.curated(STUDY, 2)
    door.stop("curator-0")
    door.send(ct(1, 3))
    door.known(3)
    assert door.get(frame(3)).status_code == 503


def test_what_a_full_web_cache_dropped_is_made_again_for_who_looks_at_it(door):
    noise = np.random.default_rng(1)
    first = noise.integers(0, 4096, (150, 150))
    # Room for some six of them.
    curator = door.curator(size=450_000)
    door.send(ct(1, 1, first))
    for study in range(2, 11):
        wait_for(lambda made=study - 1: curator._curation.made >= made, 30.0)
        door.send(ct(study, 1, noise.integers(0, 4096, (150, 150))))
    wait_for(lambda: not door.renditions(STUDY), 30.0)
    answer = wait_for(lambda: a if (a := door.get(frame(1))).status_code == 200 else None, 30.0)
    assert np.array_equal(htj2k.decode(body(answer)), first)


def test_a_series_that_is_partly_made_says_so(door):
    door.curator()
    door.send(ct(1, 1), ct(1, 2))
    door.curated(STUDY, 2)
    whole = door.get(f"{BASE}/metadata")
    assert (len(whole.json()), "warning" in whole.headers) == (2, False)
    # What is in memory is served on, whatever became of the Curator.
    for number in (1, 2):
        assert door.get(frame(number)).status_code == 200
    door.running["curator-0"].stop(1.0)
    del door.running["curator-0"]
    door.send(ct(1, 3))
    door.known(3)
    # As long as the database thinks that the web cache lives; then there is nobody to ask.
    seen = wait_for(lambda: a if (a := door.get(f"{BASE}/metadata")).headers.get("warning") else a.status_code == 503)
    if seen is not True:
        assert (len(seen.json()), "1 instances" in seen.headers["warning"]) == (2, True)
    wait_for(lambda: door.get(frame(3)).status_code == 503)
    door.curator()
    answer = wait_for(lambda: a if (a := door.get(frame(3))).status_code == 200 else None, 30.0)
    assert np.array_equal(htj2k.decode(body(answer)), pixels_of(1, 3))


def test_pages_are_served_while_the_database_is_down(door):
    """They hold nothing, and say themselves that their data cannot be had."""
    door.stop("database-server")
    page = door.get("/", authorization="Bearer of-whom-nobody-knows")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    data = door.get("/api/v1/studies", authorization="Bearer of-whom-nobody-knows")
    assert (data.status_code, data.headers["content-type"]) == (503, "application/problem+json")


def test_a_frame_that_is_too_large_to_be_kept(door):
    """It is passed on in pieces; ranges of it too."""
    rows, columns = 3000, 2900
    data = os.urandom(rows * columns * 4)
    assert len(data) > LARGE
    ds = image(1, Rows=rows, Columns=columns, PixelData=data, BitsAllocated=32, BitsStored=32, HighBit=31)
    ds.SOPInstanceUID = f"{SERIES}.1"
    door.curator()
    door.send(item_of(encode(ds)))
    rendition = door.curated(STUDY, 1)[f"{SERIES}.1"]
    assert (rendition.reason, rendition.transfer_syntax_uid) == ("PIXELS_OVER_16_BITS", "1.2.840.10008.1.2.1")
    whole = door.get(frame(1))
    assert (whole.status_code, body(whole) == data) == (200, True)
    assert b"transfer-syntax=1.2.840.10008.1.2.1\r\n" in whole.content[:200]
    size = len(whole.content)
    made = b"".join(
        door.get(frame(1), range=f"bytes={start}-{min(size, start + (10 << 20)) - 1}").content
        for start in range(0, size, 10 << 20)
    )
    assert made == whole.content
    assert door.get(f"{BASE}/instances/{SERIES}.1/thumbnail").status_code == 404


def test_a_client_that_leaves_hurts_nobody(door):
    """It goes in the middle of a study."""
    door.send(*(ct(1, number, pixels_of(1, number, 1024)) for number in range(1, 31)))
    door.known(30)
    with door.http.stream("GET", f"/dicom-web/studies/{STUDY}") as answer:
        assert answer.status_code == 200
        next(answer.iter_raw(1000))
    # Whoever comes after it is served.
    whole = door.get(f"/dicom-web/studies/{STUDY}")
    assert whole.content.count(b"\r\n\r\n") >= 30


def test_a_long_answer_ends_when_its_study_is_held(door):
    """Somebody is fetching a study when it turns out to be another patient's."""
    door.send(*(ct(1, number, pixels_of(1, number, 1024)) for number in range(1, 41)))
    door.known(40)
    statuses = door.client("application-server", database_pb2, "StudyService", "database-server")
    with door.http.stream("GET", f"/dicom-web/studies/{STUDY}") as answer:
        assert answer.status_code == 200
        pieces = answer.iter_raw(1 << 20)
        next(pieces)
        statuses.SetStatus(
            database_pb2.SetStatusRequest(
                study_instance_uid=STUDY,
                verification="VERIFICATION_STATE_HELD",
                reason="PATIENT_MISMATCH",
                actor="test",
            )
        )
        began = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                # A slow reader: all of it would take 8 s.
                time.sleep(0.1)
        assert time.monotonic() - began < allowed(6.0)
    assert door.get(f"/dicom-web/studies/{STUDY}").status_code == 404


def test_a_curator_that_stands_still_stops_nothing_else(door):
    """Its process is there and does not answer: whoever asks for its pictures waits, nobody else does."""
    door.curator()
    door.send(*(ct(1, number) for number in range(1, 41)))
    door.curated(STUDY, 40)
    assert door.get(frame(1)).status_code == 200
    door.server._pictures.cache = FrameCache(1)
    listener = StandingStill(door.mesh.addresses["curator-0"])
    # The database still believes that it lives.
    door.kill("curator-0")
    listener.start()
    try:
        with ThreadPoolExecutor(64) as pool:
            asking = [pool.submit(door.get, frame(number % 40 + 1)) for number in range(64)]
            wait_for(lambda: listener.accepted)
            for _ in range(5):
                assert len(door.get("/dicom-web/studies").json()) == 1
            assert {answer.result().status_code for answer in asking} <= {503, 504}
    finally:
        listener.stop()


class StandingStill:
    """Accepts connections, and says nothing."""

    def __init__(self, target: str) -> None:
        self._path = target.removeprefix("unix:")
        self._connections: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.accepted = 0

    def start(self) -> None:
        Path(self._path).unlink(missing_ok=True)
        self._socket.bind(self._path)
        self._socket.listen(16)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connections.append(self._socket.accept()[0])
                self.accepted += 1

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for connection in self._connections:
            connection.close()
