"""The pods of k8s/base, with a certificate for the door, run here as processes: over TCP and mutual TLS, with Secrets
as the Job makes them, and found by the names of their Services. What kubelets and controllers do is not tested;
docs/kubernetes.md says so.
"""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cluster_support import data_set, run, save
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from kubernetes_api import KubernetesApi
from pods import SERVED_BY, Network, Pod, Running, can_have_networks, hosts, of_kind, pods, with_components
from pydicom import dcmread
from pynetdicom import AE
from waiting import wait_for

from radmesh.mesh.certificates import keep
from radmesh.mesh.kubernetes import Secrets
from radmesh.mesh.modules import TABLE
from radmesh.runtime import config
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.security import Authority

pytestmark = pytest.mark.skipif(not can_have_networks(), reason="pods need root, for addresses and names of their own")
PASSWORD = "correct horse battery"
# A name that clients expect under whatever address they come by.
DOOR = "application-server"
# Callers of pods are never on loopback: whoever sends has to be listed.
STATION = """
[[stations]]
ae_title = "CT1"
"""


class Cluster:
    """All pods of the base, each on an address of its own."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder, self.network = folder, network
        self.objects = with_components(folder, ["door-certificate"])
        self.pods = pods(self.objects, {"radmesh-administrator": {"password": PASSWORD}})
        self.addresses = {name: self.network.address() for name in self.pods}
        self._hosts = folder / "hosts"
        self._files = {**self._config_maps(), **self._secrets()}
        self._write_hosts()
        self.running: dict[str, Running] = {}

    def _config_maps(self) -> dict[str, dict[str, bytes]]:
        maps = of_kind(self.objects, "ConfigMap")
        return {
            name: {f: f"{text}{STATION}".encode() for f, text in each["data"].items()} for name, each in maps.items()
        }

    def _secrets(self) -> dict[str, dict[str, bytes]]:
        """What the Job makes, of the same configuration."""
        (files,) = self._config_maps().values()
        (self.folder / "radmesh.toml").write_bytes(files["radmesh.toml"])
        configuration = config.load(TABLE.schema(), file=self.folder / "radmesh.toml", environment={})
        api = KubernetesApi(self.folder / "api")
        try:
            secrets = Secrets(api.host, api.port, api.account)
            keep(secrets, TABLE.instances(configuration), SystemClock(), timedelta(days=30))
            made = {name: dict(secrets.get(name).data) for name in api.secrets}
        finally:
            api.close()
        # The door's own, of another authority, which its clients know.
        Authority(self.folder / "door", SystemClock()).issue([DOOR])
        pair = {"tls.crt": f"{DOOR}.pem", "tls.key": f"{DOOR}.key"}
        return {**made, "radmesh-door": {key: (self.folder / "door" / file).read_bytes() for key, file in pair.items()}}

    def _write_hosts(self) -> None:
        lines = ["127.0.0.1 localhost"]
        for name, where in hosts(self.objects, self.addresses).items():
            lines += [f"{address} {name}" for address in where]
        # In place: the file itself is what the pods have mounted.
        self._hosts.write_text("\n".join(lines) + "\n")

    def start(self, name: str) -> None:
        pod, folder = self.pods[name], self.folder / name
        folder.mkdir(exist_ok=True)
        self.running[name] = Running(pod, self.addresses[name], folder, self._files, self._hosts)

    def replace(self, name: str) -> None:
        """End a pod, and start it again: its volumes are the same, its address is another."""
        assert self.running.pop(name).stop() == 0
        self.addresses[name] = self.network.address()
        self._write_hosts()
        self.start(name)

    def of(self, component: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.component == component]

    def address(self, pod: Pod, port: str) -> str:
        return f"{self.addresses[pod.name]}:{pod.ports[port]}"

    def radmesh(self, *arguments: object, door: int = 0) -> str:
        """What the command says that asks from outside, at one of the doors."""
        authority = self.folder / "door/ca.pem"
        target = self.address(self.of("application-server")[door], "grpc")
        answer = run(*arguments, "--cluster", target, "--ca", authority, "--user", "admin", RADMESH_PASSWORD=PASSWORD)
        assert answer.code == 0, answer.err + answer.out
        return answer.out

    def mesh(self, pod: Pod) -> grpc.Channel:
        """A channel to a pod's own server, as the Application Server opens it."""
        mine = self._files["radmesh-application-server"]
        credentials = grpc.ssl_channel_credentials(
            mine["ca.pem"], mine["application-server.key"], mine["application-server.pem"]
        )
        named = (("grpc.ssl_target_name_override", pod.component),)
        return grpc.secure_channel(self.address(pod, "mesh"), credentials, named)

    def send(self, path: Path, proxy: int = 0, calling: str = "CT1") -> int | None:
        """Store a file over DICOM; return the status, None if the association was refused."""
        ds = dcmread(path)
        ae = AE(calling)
        ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
        pod = self.of("gateway-proxy")[proxy]
        association = ae.associate(self.addresses[pod.name], pod.ports["dicom"], ae_title="RADMESH")
        if association.is_rejected:
            return None
        status = association.send_c_store(ds).Status
        association.release()
        return int(status)


def healthy(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def ready(cluster: Cluster, name: str) -> bool:
    """What a kubelet's probe finds."""
    running = cluster.running[name]
    assert running.process.poll() is None, running.log.read_text()
    port = running.pod.container["readinessProbe"]["grpc"]["port"]
    return healthy(f"{running.address}:{port}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with contextlib.ExitStack() as last:
        network = Network()
        last.callback(network.close)
        cluster = Cluster(tmp_path_factory.mktemp("pods"), network)
        try:
            for name in cluster.pods:
                cluster.start(name)
            for name in cluster.pods:
                wait_for(lambda name=name: ready(cluster, name), seconds=60)
            yield cluster
        finally:
            codes = {name: running.stop() for name, running in reversed(cluster.running.items())}
        assert set(codes.values()) == {0}, codes


def found(cluster: Cluster, study: str, door: int = 0) -> Callable[[], bool]:
    def there() -> bool:
        try:
            return study in cluster.radmesh("find", "--json", door=door)
        except AssertionError as error:
            # A pod that came back has another address: who knew the old one is told so, and asks again.
            if "PEER_UNAVAILABLE" not in str(error):
                raise
            return False

    return there


def test_components_serve_what_the_policies_stand_on(cluster):
    served: dict[str, set[str]] = {package: set() for package in SERVED_BY}
    for pod in cluster.pods.values():
        with cluster.mesh(pod) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=30)
        for service in answer.list_services_response.service:
            package = service.name.rpartition(".")[0]
            if package in served:
                served[package].add(pod.component)
    assert served == {package: set(components) for package, components in SERVED_BY.items()}


def test_an_image_from_a_modality_to_a_client(cluster, tmp_path):
    for proxy in range(len(cluster.of("gateway-proxy"))):
        path = save(tmp_path, 100 + proxy)
        study = str(dcmread(path).StudyInstanceUID)
        assert cluster.send(path, proxy) == 0x0000
        for door in range(len(cluster.of("application-server"))):
            wait_for(found(cluster, study, door))
        out = tmp_path / f"out{proxy}"
        cluster.radmesh("get", study, "--as-stored", "--out", out)
        assert [data_set(each) for each in out.rglob("*.dcm")] == [data_set(path)]
    tier = cluster.folder / "archive-server-0/var_lib_radmesh-permanent"
    wait_for(lambda: len(list(tier.rglob("*.dcm"))) == 2)


def test_pages_come_by_https_with_the_door_s_certificate(cluster):
    tls = ssl.create_default_context(cafile=cluster.folder / "door/ca.pem")
    for pod in cluster.of("application-server"):
        plain = socket.create_connection((cluster.addresses[pod.name], pod.ports["https"]), 10)
        with plain, tls.wrap_socket(plain, server_hostname=DOOR) as connection:
            connection.sendall(b"GET /login HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_stranger_is_not_let_in(cluster, tmp_path):
    assert cluster.send(save(tmp_path, 150), calling="STRANGER") is None


def test_an_order_from_a_ris(cluster):
    (manager,) = cluster.of("connectivity-manager")
    message = (
        "MSH|^~\\&|RIS|CLINIC|RADMESH||20260102||ORM^O01|1|P|2.5.1\rPID|1||P9||Doe^Jane||19700101|F\r"
        "ORC|NW|A9\rOBR|1|A9||CT^CT of the chest||||||||||||||A9||||||CT\r"
    )
    with socket.create_connection((cluster.addresses[manager.name], manager.ports["hl7"]), 10) as connection:
        connection.sendall(b"\x0b%b\x1c\r" % message.encode())
        assert b"MSA|AA|1" in connection.recv(4096)
    wait_for(lambda: "A9" in cluster.radmesh("orders", "--json"))


def test_all_is_well_at_every_door(cluster):
    for door in range(len(cluster.of("application-server"))):
        wait_for(lambda door=door: "all is well" in cluster.radmesh("status", door=door), seconds=30)


@pytest.mark.parametrize("component", ["archive-server", "database-server", "network-gateway"])
def test_a_pod_that_comes_back_has_its_volumes_and_another_address(cluster, tmp_path, component):
    number = {"archive-server": 200, "database-server": 201, "network-gateway": 202}[component]
    before = save(tmp_path, number)
    assert cluster.send(before) == 0x0000
    study = str(dcmread(before).StudyInstanceUID)
    (pod,) = cluster.of(component)
    cluster.replace(pod.name)
    wait_for(lambda: ready(cluster, pod.name), seconds=60)
    after = save(tmp_path, number, SOPInstanceUID=f"{dcmread(before).SOPInstanceUID}.2")
    wait_for(lambda: cluster.send(after) == 0x0000, seconds=30)
    out = tmp_path / "out"
    wait_for(found(cluster, study), seconds=30)
    wait_for(lambda: '"instance_count": 2' in cluster.radmesh("show", study, "--json"), seconds=30)
    cluster.radmesh("get", study, "--as-stored", "--out", out)
    assert sorted(map(data_set, out.rglob("*.dcm"))) == sorted(map(data_set, (before, after)))
