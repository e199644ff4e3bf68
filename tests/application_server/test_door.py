"""The door itself: TLS beyond loopback, a limit of calls that asks to come back, rights that end amid a call."""

import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from cluster_support import RealCluster, refused, run, save
from depth import allowed
from waiting import wait_for

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.database.v1 import database_pb2
from radmesh.client import Cluster
from radmesh.runtime.rpc import from_rpc_error

PASSWORD = "correct horse battery"
MOST = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """One that serves beyond loopback, and few calls at a time."""
    cluster = RealCluster(
        tmp_path_factory.mktemp("cluster") / "data", "--set", "grpc.bind=0.0.0.0", "--set", f"grpc.max_calls={MOST}"
    )
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def port(cluster: RealCluster) -> int:
    return int(cluster.ready["ports"]["grpc"])


# -- TLS


def test_beyond_loopback_there_is_tls_and_the_command_finds_the_authority(cluster):
    assert cluster.ready["urls"]["grpc"].startswith("grpcs://")
    assert cluster.command("find", "--json").json == {"studies": [], "more": False}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_the_clusters_authority_is_good_under_every_address(cluster, port, host):
    secret = cluster.data / "admin-password"
    ca = cluster.ready["ca_certificate"]
    answer = run("find", "--json", "--cluster", f"{host}:{port}", "--ca", ca, "--password-file", secret)
    assert answer.json == {"studies": [], "more": False}


def test_errors_of_connecting_say_what_to_do(cluster, port, tmp_path):
    secret = cluster.data / "admin-password"
    other = RealCluster(tmp_path / "other")
    try:
        foreign = tmp_path / "foreign.pem"
        foreign.write_bytes((other.data / "credentials" / "ca.pem").read_bytes())
        plain = other.target
    finally:
        other.close()
    (tmp_path / "rubbish").write_text("no certificate")

    def why(target: str, *arguments: object) -> tuple[int, str, str]:
        answer = run("find", "--json", "--cluster", target, "--password-file", secret, *arguments)
        return answer.code, answer.reason, answer.json["error"]["message"].removeprefix(f"cannot connect to {target}: ")

    door, dicom = f"127.0.0.1:{port}", f"127.0.0.1:{cluster.ready['ports']['dicom']}"
    told = "CLUSTER_UNREACHABLE"
    assert why(door) == (3, told, "it ends connections without TLS: give --ca, as beyond loopback")
    assert why(door, "--ca", foreign) == (
        3,
        told,
        "its certificate is not of this authority: --ca names the cluster's own",
    )
    assert why(door, "--ca", tmp_path / "rubbish") == (2, "FIELD_INVALID", "the authority is no certificate in PEM")
    assert why(door, "--ca", tmp_path / "none")[:2] == (2, "FILE_UNREADABLE")
    assert why(dicom) == (3, told, "what listens there is not the clients' port")
    assert why(plain)[2] == "nothing listens there: is the cluster running, and is this its clients' port?"


# -- back-pressure (FEATURES AS7)


def test_more_calls_than_the_limit_are_asked_to_come_back_and_the_client_does(cluster):
    with cluster.client() as client:
        go_on = threading.Event()

        def nothing() -> Iterator[pb.StoreInstancesRequest]:
            go_on.wait(60)
            yield from ()

        streams: list[grpc.Call] = []

        def refusal() -> grpc.RpcError | None:
            # What was called before leaves its place a moment after its answer: a stream that it kept out is replaced.
            while sum(stream.is_active() for stream in streams) < MOST:
                streams.append(client._studies.StoreInstances(nothing(), metadata=client._metadata))
            try:
                client._studies.GetStudy(database_pb2.GetStudyRequest(), metadata=client._metadata, timeout=30.0)
            except grpc.RpcError as error:
                return error if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else None
            return None

        failure = from_rpc_error(wait_for(refusal))
        assert failure.reason == "TOO_MANY_CALLS"
        assert int(failure.metadata["retry_after_ms"]) > 0

        refusals: list[int] = []
        answers = []
        whole = client._studies.FindStudies

        def counted(request, **options):
            try:
                return whole(request, **options)
            except grpc.RpcError:
                refusals.append(1)
                raise

        client._studies.FindStudies = counted
        asking = threading.Thread(target=lambda: answers.append(list(client.find(patient_id="nobody"))))
        asking.start()
        wait_for(lambda: refusals)
        go_on.set()
        asking.join(60)
        assert answers == [[]]
        ended = 0
        for stream in streams:
            try:
                assert list(stream) == []
                ended += 1
            except grpc.RpcError as error:
                assert from_rpc_error(error).reason == "TOO_MANY_CALLS"
        assert 0 < ended <= MOST


# -- rights that end (FEATURES AS1)


@pytest.fixture
def rita(cluster, tmp_path) -> Iterator[Cluster]:
    (tmp_path / "secret").write_text(PASSWORD)
    added = cluster.run("users", "add", "rita", "--role", "radiologist", "--new-password-file", tmp_path / "secret")
    assert added.code == 0, added.err
    with cluster.client("rita", PASSWORD) as client:
        yield client
    cluster.run("users", "remove", "rita")


@pytest.mark.parametrize(
    ("change", "reason"),
    [(("set", "rita", "--role", "none"), "ROLE_REFUSED"), (("remove", "rita"), "SESSION_EXPIRED")],
)
def test_a_read_ends_within_five_seconds_when_the_right_does(cluster, rita, tmp_path, change, reason):
    path = save(tmp_path, 700, PixelData=bytes(64_000_000), Rows=8000, Columns=4000)
    assert cluster.run("store", path).code == 0
    request = pb.ReadInstanceRequest(study_instance_uid="2.25.77.700", sop_instance_uid="2.25.77.700.1.1")
    stream = rita._studies.ReadInstance(request, metadata=rita._metadata, timeout=60)
    received = len(next(stream).data)
    # The rest waits at the other side: more than flow control lets through while nobody takes it.
    assert cluster.run("users", *change).code == 0
    changed = time.monotonic()

    def find_is_refused() -> bool:
        try:
            list(rita.find(patient_id="nobody"))
        except Exception as error:
            return getattr(error, "reason", "") == reason
        return False

    wait_for(find_is_refused)
    assert time.monotonic() - changed < allowed(5.0)
    with pytest.raises(grpc.RpcError) as raised:
        for message in stream:
            received += len(message.data)
    assert from_rpc_error(raised.value).reason == reason
    assert received < 64_000_000


def test_a_user_who_was_removed_and_comes_again_has_no_old_session(cluster, rita, tmp_path):
    assert list(rita.find(patient_id="nobody")) == []
    assert cluster.run("users", "remove", "rita").code == 0
    removed = time.monotonic()

    def ended() -> bool:
        try:
            list(rita.find(patient_id="nobody"))
        except Exception as error:
            return getattr(error, "reason", "") == "SESSION_EXPIRED"
        return False

    wait_for(ended)
    assert time.monotonic() - removed < allowed(5.0)
    again = ("add", "rita", "--role", "administrator", "--new-password-file", tmp_path / "secret")
    assert cluster.run("users", *again).code == 0
    with refused("SESSION_EXPIRED"):
        rita.users()
