"""The registry of stations in a running cluster: what a person sets is in force within seconds, without a restart."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_support import RealCluster
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from waiting import wait_for

CONFIG = """
[dicom]
check_stations = "on"

[[stations]]
ae_title = "CT1"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    folder = tmp_path_factory.mktemp("stations")
    (folder / "radmesh.toml").write_text(CONFIG)
    cluster = RealCluster(folder / "data", "--config", str(folder / "radmesh.toml"))
    try:
        yield cluster
    finally:
        cluster.close()


def may_call(cluster: RealCluster, ae_title: str) -> bool:
    port = str(cluster.ready["ports"]["dicom"])
    done = subprocess.run(
        ["echoscu", "-aet", ae_title, "127.0.0.1", port], capture_output=True, timeout=20, check=False
    )
    return done.returncode == 0


def test_stations_are_edited_while_the_cluster_runs(cluster: RealCluster) -> None:
    assert cluster.run("stations").code == 0
    assert may_call(cluster, "CT1")
    assert not may_call(cluster, "MR1")
    added = cluster.run(
        "stations", "set", "MR1", "--grants", "store,commit", "--addresses", "127.0.0.0/8", "--host", "localhost",
        "--port", "11113", "--json",
    )  # fmt: skip
    assert added.code == 0, added.out
    (station,) = added.json["stations"]
    assert (station["ae_title"], station["grants"], station["edited"]) == ("MR1", ["store", "commit"], True)
    wait_for(lambda: may_call(cluster, "MR1"), 5)
    changed = cluster.run("stations", "set", "MR1", "--addresses", "192.0.2.1", "--tls", "--json")
    assert changed.code == 0, changed.out
    assert (changed.json["stations"][0]["port"], changed.json["stations"][0]["tls"]) == (11113, True)
    wait_for(lambda: not may_call(cluster, "MR1"), 5)
    assert cluster.run("stations", "remove", "CT1").out == "CT1 removed\n"
    wait_for(lambda: not may_call(cluster, "CT1"), 5)
    shown = cluster.run("stations", "show", "MR1")
    assert "192.0.2.1" in shown.out
    assert "CT1" not in cluster.run("stations").out
    kept = json.loads((cluster.data / "gateway-proxy" / "stations.json").read_bytes())
    assert [each["ae_title"] for each in kept] == ["MR1"]
    audited = cluster.run("audit", "--action", "STATION_SET", "--json").json["events"]
    assert [event["object"] for event in audited] == ["MR1", "MR1"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("show",), 2, "FIELD_INVALID"),
        (("show", "NOBODY"), 5, "STATION_NOT_FOUND"),
        (("remove", "NOBODY"), 5, "STATION_NOT_FOUND"),
        (("set", "CT9", "--grants", "everything"), 2, "FIELD_INVALID"),
        (("set", "CT9", "--domain", "nowhere"), 2, "FIELD_INVALID"),
        (("list", "--host", "x"), 2, "FIELD_INVALID"),
    ],
)
def test_what_cannot_be_is_refused(cluster: RealCluster, arguments: tuple[str, ...], code: int, reason: str) -> None:
    answer = cluster.run("stations", *arguments, "--json")
    assert (answer.code, answer.reason) == (code, reason)


def test_a_station_is_called(cluster: RealCluster) -> None:
    ae = AE("WS2")
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    port = server.socket.getsockname()[1]
    try:
        assert cluster.run("stations", "set", "WS2", "--host", "localhost", "--port", str(port)).code == 0

        def answers() -> bool:
            answer = cluster.run("stations", "echo", "WS2", "--json")
            return answer.code == 0 and answer.json["status"] == 0

        wait_for(answers, 8)
    finally:
        server.shutdown()
    gone = cluster.run("stations", "echo", "WS2", "--json")
    assert (gone.code, gone.reason) == (3, "STATION_UNREACHABLE")
    unknown = cluster.run("stations", "echo", "NOBODY", "--json")
    assert (unknown.code, unknown.reason) == (5, "STATION_NOT_FOUND")


def test_the_cluster_serves_tls_with_its_own_certificate(cluster: RealCluster) -> None:
    cluster.run("stations", "set", "WS1", "--grants", "")
    port, authority = cluster.ready["ports"]["dicom_tls"], Path(cluster.ready["ca_certificate"])
    command = ["echoscu", "+tla", "+cf", str(authority), "-aet", "WS1", "localhost", str(port)]
    wait_for(lambda: subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0, 5)
