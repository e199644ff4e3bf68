"""Read grants and watches at the door of a real cluster: for whom there are some, and how long they last."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster_support import RealCluster, refused, save
from waiting import wait_for

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.archive.v1 import archive_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.grants import _reaches
from radmesh.client import Cluster
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.security import Credentials

PASSWORD = "correct horse battery"
STUDY = "2.25.77.1"


@pytest.fixture(scope="module")
def persons(cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Cluster]]:
    """A study, and who is signed in by name of the role."""
    assert cluster.run("store", save(tmp_path_factory.mktemp("files"), 1)).code == 0
    with cluster.client() as admin:
        for role in ("none", "technologist", "radiologist"):
            admin.create_user(role, password=PASSWORD, role=role)
        made = {role: cluster.client(role, PASSWORD) for role in ("none", "technologist", "radiologist")}
        yield {"administrator": admin, **made}
        for client in made.values():
            client.close()


def grant(client: Cluster, study: str = STUDY) -> pb.ReadGrant:
    """Ask for a grant; an archive on a machine that is busy with tests may be silent for a moment."""
    given: list[pb.ReadGrant] = []

    def ask() -> bool:
        try:
            given.append(client._read_grant(study))
        except RadmeshError as error:
            if error.reason != "NO_LOCAL_READ":
                raise
        return bool(given)

    wait_for(ask)
    return given[0]


def test_what_a_grant_says(cluster: RealCluster, persons: dict[str, Cluster]) -> None:
    client = persons["radiologist"]
    made = grant(client)
    assert made.store_id == "archive-0"
    assert made.client_url.startswith("grpc://127.0.0.1:")
    left = made.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)
    signed = archive_pb2.SignedGrant.FromString(made.grant)
    credentials = Credentials(cluster.data / "credentials", "archive-server-0")
    assert credentials.grant_verify("application-server", signed.payload, signed.signature)
    claims = archive_pb2.Grant.FromString(signed.payload)
    token = client._metadata[0][1].removeprefix("Bearer ")
    assert claims == archive_pb2.Grant(
        issuer="application-server",
        store_id="archive-0",
        epoch=claims.epoch,
        study_instance_uid=STUDY,
        user="radiologist",
        session_digest=hashlib.sha256(token.encode()).digest(),
        expire_time=made.expire_time,
    )
    assert len(claims.epoch) == 16
    acts = [(e.actor, e.outcome) for e in persons["administrator"].audit(action="STUDY_GRANT", object=STUDY)]
    assert acts == [("radiologist", "SUCCESS")]


def test_for_whom_there_is_none(cluster: RealCluster, persons: dict[str, Cluster], tmp_path: Path) -> None:
    with refused("ROLE_REFUSED"):
        grant(persons["none"])
    with refused("STUDY_NOT_FOUND"):
        grant(persons["radiologist"], "1.2.3")
    assert cluster.run("store", save(tmp_path, 2)).code == 0
    cluster.inside("StudyService").SetStatus(
        database_pb2.SetStatusRequest(study_instance_uid="2.25.77.2", verification=5, reason="PATIENT_MISMATCH")  # type: ignore[arg-type]
    )
    with refused("STUDY_NOT_FOUND"):
        grant(persons["radiologist"], "2.25.77.2")
    assert grant(persons["technologist"], "2.25.77.2").store_id == "archive-0"


@pytest.mark.parametrize(
    ("url", "here", "away"),
    [
        ("grpc://127.0.0.1:1", True, False),
        ("grpc://[::1]:1", True, False),
        ("grpcs://localhost:1", True, False),
        ("grpcs://archive-0:1", True, True),
        ("grpcs://10.1.2.3:1", True, True),
        ("", False, False),
    ],
)
def test_an_archive_of_loopback_is_for_its_own_machine(url: str, here: bool, away: bool) -> None:
    assert (_reaches(url, here=True), _reaches(url, here=False)) == (here, away)


class Watching(threading.Thread):
    """Watches until that ends, and notes when and why."""

    def __init__(self, client: Cluster) -> None:
        super().__init__(daemon=True)
        self._client = client
        self.begun = threading.Event()
        self.reason, self.ended = "", 0.0

    def run(self) -> None:
        try:
            for _ in self._client.watch():
                self.begun.set()
        except RadmeshError as error:
            self.reason = error.reason
        self.ended = time.monotonic()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda admin, name: admin.delete_user(name), "SESSION_EXPIRED"),
        (lambda admin, name: admin.update_user(name, role="none"), "ROLE_REFUSED"),
    ],
    ids=["removed", "role"],
)
def test_a_watch_ends_with_the_right_to_it(
    cluster: RealCluster, persons: dict[str, Cluster], end: Callable[[Cluster, str], Any], reason: str
) -> None:
    admin, name = persons["administrator"], f"watcher-{reason.lower().replace('_', '-')}"
    admin.create_user(name, password=PASSWORD, role="radiologist")
    with cluster.client(name, PASSWORD) as client:
        thread = Watching(client)
        thread.start()
        assert thread.begun.wait(60)
        began = time.monotonic()
        end(admin, name)
        thread.join(60)
        assert thread.reason == reason
        assert thread.ended - began < 5


def test_there_is_room_for_others_beside_those_who_watch(cluster: RealCluster, persons: dict[str, Cluster]) -> None:
    request = pb.WatchStudiesRequest()
    client = persons["radiologist"]
    calls: list[Any] = []
    try:
        with pytest.raises(grpc.RpcError, match="clients are watching"):
            for _ in range(64):
                call = client._images.WatchStudies(request, metadata=client._metadata)
                calls.append(call)
                next(call)
        assert client.study(STUDY).study.instance_count == 1
    finally:
        for call in calls:
            call.cancel()
    # Who leaves makes room.
    for studies in client.watch():
        assert studies == ()
        break
