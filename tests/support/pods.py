"""The manifests of k8s/, and their pods: what a kubelet makes of a pod's template, and processes that run it here.

A pod here is a process with the arguments and the environment of the manifest. It listens on an address of its own in
place of all addresses, paths of its volumes are folders; names of Services are in an /etc/hosts of their own.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
NAME, PART_OF = "app.kubernetes.io/name", "app.kubernetes.io/part-of"
Object = dict[str, Any]
# Which package is served by whom. tests/k8s/test_pods.py asks the servers themselves.
SERVED_BY = {
    "radmesh.api.archive.v1": ("archive-server",),
    "radmesh.api.connectivity.v1": ("connectivity-manager",),
    "radmesh.api.curator.v1": ("curator",),
    "radmesh.api.database.v1": ("database-server",),
    "radmesh.api.gateway.v1": ("network-gateway",),
    "radmesh.api.proxy.v1": ("gateway-proxy",),
    "radmesh.api.transfer.v1": ("archive-server", "network-gateway"),
}


def render(folder: Path) -> list[Object]:
    """What `kubectl apply -k` would send."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def with_components(folder: Path, components: Sequence[str]) -> list[Object]:
    """The base with components over it."""
    here = os.path.relpath(K8S, folder.resolve())
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "namespace": "radmesh",
                "resources": [f"{here}/base"],
                "components": [f"{here}/components/{name}" for name in components],
            }
        )
    )
    return render(folder)


def of_kind(objects: Iterable[Object], *kinds: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] in kinds}


def workloads(objects: Iterable[Object]) -> dict[str, Object]:
    """What runs a component, by name."""
    return of_kind(objects, "StatefulSet", "Deployment")


def template(workload: Object) -> Object:
    spec = workload["spec"]
    return dict(spec["jobTemplate"]["spec"]["template"] if workload["kind"] == "CronJob" else spec["template"])


def expand(text: str, known: Mapping[str, str]) -> str:
    """$(NAME) as Kubernetes expands it: what is not known stays, $$ is one $."""
    return re.sub(
        r"\$\$|\$\(([\w.-]+)\)", lambda m: "$" if m[0] == "$$" else known.get(m[1], m[0]), text, flags=re.ASCII
    )


@dataclass
class Pod:
    """One pod of a workload."""

    name: str
    component: str
    spec: Object
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Secrets that its environment may be from."""

    @property
    def container(self) -> Object:
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def environment(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in self.container.get("env", ()):
            source = entry.get("valueFrom", {})
            if "value" in entry:
                found[entry["name"]] = expand(entry["value"], found)
            elif "fieldRef" in source:
                found[entry["name"]] = {"metadata.name": self.name}[source["fieldRef"]["fieldPath"]]
            else:
                wanted = source["secretKeyRef"]
                value = self.secrets.get(wanted["name"], {}).get(wanted["key"])
                assert value is not None or wanted.get("optional"), f"{self.name} waits for the Secret {wanted}"
                if value is not None:
                    found[entry["name"]] = value
        return found

    @property
    def arguments(self) -> list[str]:
        return [expand(argument, self.environment) for argument in self.container["args"]]

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}

    @property
    def mounts(self) -> dict[str, Object]:
        """Path -> volume."""
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        return {
            mount["mountPath"]: {**volumes.get(mount["name"], {"claim": mount["name"]}), "mount": mount}
            for mount in self.container["volumeMounts"]
        }


def pods(objects: Iterable[Object], secrets: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, Pod]:
    """Every pod of every workload, by name."""
    found = {}
    for component, workload in workloads(objects).items():
        for number in range(workload["spec"]["replicas"]):
            # What a Deployment adds to the name differs each time.
            name = f"{component}-{number}" if workload["kind"] == "StatefulSet" else f"{component}-7d9f-{number}"
            found[name] = Pod(name, component, template(workload)["spec"], secrets or {})
    return found


def hosts(objects: Iterable[Object], addresses: Mapping[str, str]) -> dict[str, list[str]]:
    """Name -> addresses, of every Service and of every pod behind a headless one."""
    objects = list(objects)
    found: dict[str, list[str]] = {}
    known = pods(objects)
    for name, service in of_kind(objects, "Service").items():
        selector = dict(service["spec"]["selector"])
        only = selector.pop("statefulset.kubernetes.io/pod-name", None)
        for pod_name, address in addresses.items():
            labels = template(workloads(objects)[known[pod_name].component])["metadata"]["labels"]
            if labels.items() >= selector.items() and only in (None, pod_name):
                found.setdefault(name, []).append(address)
                workload = workloads(objects)[known[pod_name].component]["spec"]
                if service["spec"].get("clusterIP") == "None" and workload.get("serviceName") == name:
                    found.setdefault(f"{pod_name}.{name}", []).append(address)
    return found


class Running:
    """A pod as a process.

    Args:
        pod: whose.
        address: its own, of a Network.
        folder: where its volumes are.
        files: name of a ConfigMap or Secret -> file -> content, as it is mounted.
        hosts: an /etc/hosts for it.
        command: what starts `radmesh` of an image, or of this environment.
    """

    def __init__(
        self,
        pod: Pod,
        address: str,
        folder: Path,
        files: Mapping[str, Mapping[str, bytes]],
        hosts: Path,
        command: Iterable[str] = (sys.executable, "-P", "-m", "radmesh.mesh"),
    ) -> None:
        self.pod, self.address = pod, address
        paths = {path: self._volume(folder, path, volume, files) for path, volume in pod.mounts.items()}
        environment = {name: self._here(value, paths) for name, value in pod.environment.items()}
        arguments = [self._here(argument, paths) for argument in pod.arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RADMESH_")}
        # Another /etc/hosts is seen by this process alone.
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script, str(hosts), *command, *arguments],
                env={**kept, "TMPDIR": str(paths["/tmp"]), **environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            )  # fmt: skip

    @staticmethod
    def _volume(folder: Path, path: str, volume: Object, files: Mapping[str, Mapping[str, bytes]]) -> Path:
        there = folder / path.strip("/").replace("/", "_")
        there.mkdir(parents=True, exist_ok=True)
        name = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
        for file, content in files[name].items() if name else ():
            (there / file).write_bytes(content)
        if name is None:
            # As fsGroup leaves it: the root of a volume has another owner, but this group may write.
            there.chmod(0o2770)
        return there

    def _here(self, text: str, paths: Mapping[str, Path]) -> str:
        longest_first = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
        text = re.sub(rf"(?<![\w/.-])(?:{longest_first})(?![\w.-])", lambda found: str(paths[found[0]]), text)
        return text.replace("0.0.0.0", self.address)

    def stop(self) -> int:
        """End it as a kubelet does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self.pod.spec["terminationGracePeriodSeconds"])
        finally:
            self.process.kill()
            self.process.wait()


class Network:
    """Addresses for pods: 254 that are this machine's as long as this lasts, and are not loopback. Needs root."""

    def __init__(self) -> None:
        # RFC 2544: networks that are nobody's. Not that of another run at the same time.
        first = 18 + secrets.randbelow(2)
        self._net = f"198.{first}.{secrets.randbelow(256)}"
        self._route("add")
        self._number = 0

    def address(self) -> str:
        """Return one that was not given away yet."""
        self._number += 1
        return f"{self._net}.{self._number}"

    def close(self) -> None:
        self._route("del")

    def _route(self, action: str) -> None:
        subprocess.run(["ip", "route", action, "local", f"{self._net}.0/24", "dev", "lo"], check=True)


def can_have_networks() -> bool:
    return os.geteuid() == 0 and all(map(shutil.which, ("ip", "unshare")))
