"""k8s/ is what Kubernetes takes, and says what the code says."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from cluster_support import run
from pods import (
    K8S,
    NAME,
    PART_OF,
    SERVED_BY,
    Object,
    Pod,
    hosts,
    of_kind,
    pods,
    render,
    template,
    with_components,
    workloads,
)

import radmesh
from radmesh.mesh.certificates import AUTHORITY, secret_of
from radmesh.mesh.modules import PORTS, TABLE
from radmesh.runtime import config
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.config import Configuration
from radmesh.runtime.line import address_of
from radmesh.runtime.rpc import callers_of
from radmesh.runtime.security import Authority, component_of

# From the first with `sleep` before a stop, to the newest that the validator knows.
VERSIONS = ("1.30", "1.37")
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
NOT_SETTINGS = ("RADMESH_CONFIG", "RADMESH_ADMIN_PASSWORD")
SECRETS = {
    "radmesh-administrator": {"password": "correct horse battery"},
    "radmesh-postgresql": {
        "database-url": "postgresql+psycopg://u:p@db/radmesh",
        "connectivity-url": "postgresql+psycopg://u:p@db/connectivity",
    },
}


@pytest.fixture(scope="module", params=["base", *OVERLAYS, "all components"])
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    name = request.param
    if name in OVERLAYS:
        return render(K8S / "overlays" / name)
    return with_components(tmp_path_factory.mktemp("overlay"), COMPONENTS if name == "all components" else [])


def containers(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """(kind/name, pod spec, container) of whatever makes pods."""
    for kind in ("StatefulSet", "Deployment", "Job", "CronJob"):
        for name, workload in of_kind(objects, kind).items():
            spec = template(workload)["spec"]
            assert "initContainers" not in spec
            for container in spec["containers"]:
                yield f"{kind}/{name}", spec, container


def effective(pod: Pod, toml: str, folder: Path) -> Configuration:
    """The settings of a pod; what they name exists in `folder`."""
    file = folder / "radmesh.toml"
    file.write_text(toml)
    environment = {key: value for key, value in pod.environment.items() if key != "RADMESH_CONFIG"}
    flags = dict(a.removeprefix("--set=").split("=", 1) for a in pod.arguments if a.startswith("--set="))
    for values in (environment, flags):
        for key, value in values.items():
            for path, volume in pod.mounts.items():
                if value == path or value.startswith(f"{path}/"):
                    there = folder / value.strip("/")
                    there.parent.mkdir(parents=True, exist_ok=True)
                    is_file = "secret" in volume and value != path
                    there.touch() if is_file else there.mkdir(exist_ok=True)
                    values[key] = str(there)
    found, problems = config.read(TABLE.schema(), file=file, environment=environment, flags=flags)
    assert not problems
    assert found is not None
    return found


def toml_of(objects: list[Object], pod: Pod) -> str:
    volume = pod.mounts["/etc/radmesh/config"]
    assert pod.environment["RADMESH_CONFIG"] == "/etc/radmesh/config/radmesh.toml"
    return str(of_kind(objects, "ConfigMap")[volume["configMap"]["name"]]["data"]["radmesh.toml"])


def all_pods(objects: list[Object]) -> list[Pod]:
    return list(pods(objects, SECRETS).values())


def settings(objects: list[Object], tmp_path: Path) -> list[tuple[Pod, Configuration]]:
    return [(pod, effective(pod, toml_of(objects, pod), tmp_path)) for pod in all_pods(objects)]


# -- what Kubernetes takes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_it_validates(objects, version):
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_goes_over_the_base_alone(tmp_path, component):
    objects = with_components(tmp_path, [component])
    for each in objects:
        kubernetes_validate.validate(each, VERSIONS[-1], strict=True)
    assert objects != render(K8S / "base")


def test_what_is_wrong_does_not_validate():
    wrong = workloads(render(K8S / "base"))["archive-server"]
    wrong["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_names_are_unique_and_in_the_namespace(objects):
    found = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(found)) == len(found)
    for each in objects:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "radmesh"


def test_the_namespace_takes_restricted_pods_only(objects):
    assert of_kind(objects, "Namespace")["radmesh"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == (
        "restricted"
    )
    # Pod Security Standards, profile "restricted"; and a root file system that nobody writes to.
    for name, spec, container in containers(objects):
        pod, own = spec["securityContext"], container["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == 10001, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert not [port for port in container.get("ports", ()) if "hostPort" in port], name
        kinds = {key for volume in spec["volumes"] for key in volume} - {"name"}
        assert kinds <= {"configMap", "secret", "emptyDir"}, name
        assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume), name
        assert spec["enableServiceLinks"] is False, name
        # Whoever talks to the API has an account of its own.
        assert spec["automountServiceAccountToken"] is ("serviceAccountName" in spec), name


def test_only_the_certificates_have_an_account(objects):
    accounts = {spec.get("serviceAccountName") for _, spec, _ in containers(objects)} - {None}
    assert accounts == set(of_kind(objects, "ServiceAccount")) <= {"certificates"}


def test_images_are_of_this_version(objects):
    images = {container["image"] for _, _, container in containers(objects)}
    assert len(images) == 1
    assert images.pop().rpartition(":")[2] == radmesh.__version__


def test_every_container_says_what_it_needs(objects):
    for name, _, container in containers(objects):
        wanted, most = container["resources"]["requests"], container["resources"]["limits"]
        assert wanted.keys() == {"cpu", "memory"}, name
        # Memory that others count on must not be taken away; more cores than asked for hurt nobody.
        assert most == {"memory": wanted["memory"]}, name
        assert 64 << 20 <= quantity(most["memory"]) <= 8 << 30, name


def quantity(text: str) -> int:
    """Bytes of a quantity such as 1Gi."""
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
    return int(text[:-2]) * units[text[-2:]]


# -- components --------------------------------------------------------------------------------------------------------


def test_every_component_has_a_workload_and_every_workload_a_component(objects):
    assert set(workloads(objects)) == set(TABLE.by_name)


def test_what_keeps_something_is_a_stateful_set_on_volumes_that_stay(objects):
    stateful = of_kind(objects, "StatefulSet")
    keeps = {"database-server", "archive-server", "connectivity-manager", "network-gateway", "curator"}
    assert set(stateful) == keeps
    for name, each in stateful.items():
        spec = each["spec"]
        assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
        assert spec["serviceName"] == name
        mounted = {
            mount["name"]: mount["mountPath"] for mount in template(each)["spec"]["containers"][0]["volumeMounts"]
        }
        claims = {claim["metadata"]["name"]: claim for claim in spec["volumeClaimTemplates"]}
        assert claims.keys() <= mounted.keys()
        assert mounted["data"] == "/var/lib/radmesh"
        assert "data" in claims
        for claim in claims.values():
            # They can never be changed again: nothing in them that a later version would want to change.
            assert claim["metadata"].keys() == {"name"}
            assert claim["spec"]["accessModes"] in (["ReadWriteOncePod"], ["ReadWriteOnce"])
        for other in of_kind(objects, "Deployment").values():
            assert "persistentVolumeClaim" not in str(other)


def test_a_pod_serves_its_component_with_its_own_credentials(objects):
    for pod in all_pods(objects):
        (target,) = [a.removeprefix("--target=") for a in pod.arguments if a.startswith("--target=")]
        assert pod.arguments[0] == "serve"
        module = TABLE.module_of(target)
        assert module is TABLE.by_name[pod.component]
        # The number of a pod is that of its instance.
        assert target == (pod.name if module.numbered else pod.component)
        volume = pod.mounts["/etc/radmesh/credentials"]
        assert pod.environment["RADMESH_CREDENTIALS"] == "/etc/radmesh/credentials"
        assert volume["secret"] == {"secretName": secret_of(pod.component), "defaultMode": 0o440}
        assert volume["mount"]["readOnly"] is True


def test_settings_exist_and_are_good(objects, tmp_path):
    schema = TABLE.schema()
    for pod in all_pods(objects):
        for name in pod.environment:
            assert not name.startswith("RADMESH_") or name in NOT_SETTINGS or schema.by_variable(name), name
            assert "$(" not in pod.environment[name], f"{name} is expanded before it is known"
    assert len(settings(objects, tmp_path)) >= len(TABLE.by_name)


def test_config_check_accepts_the_file(objects, tmp_path):
    maps = of_kind(objects, "ConfigMap")
    assert len(maps) == 1
    for each in maps.values():
        file = tmp_path / "radmesh.toml"
        file.write_text(each["data"]["radmesh.toml"])
        answer = run("config", "check", file)
        assert (answer.code, answer.err) == (0, "")


def test_overlays_change_nothing_of_the_mesh():
    base = tomllib.loads((K8S / "base/radmesh.toml").read_text())
    for overlay in OVERLAYS:
        own = tomllib.loads((K8S / "overlays" / overlay / "radmesh.toml").read_text())
        assert own["mesh"] == base["mesh"]


def test_there_are_as_many_pods_as_the_configuration_says(objects, tmp_path):
    running = sorted(pod.name if TABLE.module_of(pod.name) else pod.component for pod in all_pods(objects))
    for _, found in settings(objects, tmp_path):
        assert set(running) == set(TABLE.instances(found))


def test_what_is_written_is_on_a_volume_in_a_folder_of_its_own(objects, tmp_path):
    for pod in all_pods(objects):
        data = pod.environment["RADMESH_DATA"]
        inside = [path for path in pod.mounts if data.startswith(f"{path}/")]
        assert inside == ["/var/lib/radmesh"]
        assert not pod.mounts["/var/lib/radmesh"]["mount"].get("readOnly")
        assert "/tmp" in pod.mounts
        assert not pod.mounts["/tmp"]["mount"].get("readOnly")
        if pod.component == "archive-server":
            assert pod.mounts[pod.environment["RADMESH_ARCHIVE_TIER"]]["claim"] == "permanent"


def test_volumes_are_larger_than_what_is_kept_free(objects, tmp_path):
    for pod, found in settings(objects, tmp_path):
        section = TABLE.by_name[pod.component].section
        reserve = getattr(found[section], "reserve", 0) if section else 0
        workload = workloads(objects)[pod.component]["spec"]
        for claim in workload.get("volumeClaimTemplates", ()):
            assert quantity(claim["spec"]["resources"]["requests"]["storage"]) >= 4 * reserve


# -- ports, names, probes ----------------------------------------------------------------------------------------------


def port_of(address: str) -> int:
    host, _, port = address.rpartition(":")
    assert host == "0.0.0.0"
    return int(port)


def test_ports_are_those_that_are_served(objects, tmp_path):
    for pod, found in settings(objects, tmp_path):
        mesh = found["mesh"]
        assert mesh.transport == "tls"
        expected = {"mesh": port_of(mesh.listen), "health": port_of(mesh.health_listen), "metrics": mesh.metrics_port}
        if mesh.line_port:
            expected["line"] = mesh.line_port
        if pod.component == "gateway-proxy":
            assert found["dicom"].bind == "0.0.0.0"
            expected |= {"dicom": found["dicom"].port, "dicom-tls": found["dicom"].tls_port}
        if pod.component == "connectivity-manager":
            assert found["connectivity"].bind == "0.0.0.0"
            expected["hl7"] = found["connectivity"].hl7_port
        if pod.component == "application-server":
            assert found["grpc"].bind == found["http"].bind == "0.0.0.0"
            expected |= {"grpc": found["grpc"].port, "https": found["http"].port}
        assert pod.ports == expected, pod.name
        assert len(set(expected.values())) == len(expected)
        takes_objects = pod.component in ("archive-server", "network-gateway")
        assert ("line" in pod.ports) == takes_objects, pod.name


def test_ports_of_clients_are_the_usual_ones(objects, tmp_path):
    schema = TABLE.schema()
    (defaults, _) = config.read(schema, environment={})
    assert defaults is not None
    usual = {name: defaults.value(schema.by_variable(variable)[0]) for name, variable in PORTS.items()}
    services = of_kind(objects, "Service")
    offered = {
        port["name"]: port["port"] for name in ("dicom", "hl7", "door") for port in services[name]["spec"]["ports"]
    }
    assert offered == {
        "dicom": usual["dicom"], "dicom-tls": usual["dicom_tls"],
        "hl7": usual["hl7"], "https": usual["http"], "grpc": usual["grpc"]
    }  # fmt: skip


def test_probes_ask_the_port_that_tells_health(objects):
    for pod in all_pods(objects):
        asked = {pod.container[f"{kind}Probe"]["grpc"]["port"] for kind in ("startup", "readiness", "liveness")}
        # No service is named: every server sets the state of "".
        assert not [
            kind for kind in ("startup", "readiness", "liveness") if "service" in pod.container[f"{kind}Probe"]["grpc"]
        ]
        assert asked == {port_of(pod.environment["RADMESH_HEALTH_LISTEN"])}
        start = pod.container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] >= 120


def test_services_lead_to_ports_of_pods(objects):
    for name, service in of_kind(objects, "Service").items():
        assert not name.startswith("radmesh"), "its variables would be settings where a pod takes service links"
        selector = dict(service["spec"]["selector"])
        only = selector.pop("statefulset.kubernetes.io/pod-name", None)
        assert selector.keys() == {NAME}
        behind = [pod for pod in all_pods(objects) if pod.component == selector[NAME] and only in (None, pod.name)]
        assert behind, name
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for pod in behind:
                assert target in pod.ports or target in pod.ports.values(), (name, port)
                if service["spec"].get("clusterIP") == "None":
                    assert pod.ports[port["name"]] == port["port"]


def test_selectors_are_labels_of_the_pods(objects):
    for name, workload in workloads(objects).items():
        labels = template(workload)["metadata"]["labels"]
        assert labels == {NAME: name, PART_OF: "radmesh"}
        assert workload["spec"]["selector"] == {"matchLabels": {NAME: name}}
    for name, budget in of_kind(objects, "PodDisruptionBudget").items():
        assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": {NAME: name}}}
        assert name in of_kind(objects, "Deployment")


def certified(folder: Path, instance: str) -> set[str]:
    """The names of an instance's certificate."""
    from cryptography import x509

    if not (folder / f"{instance}.pem").exists():
        Authority(folder, SystemClock()).issue([instance])
    certificate = x509.load_pem_x509_certificate((folder / f"{instance}.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName))


def test_addresses_lead_to_their_instances_under_names_of_their_certificates(objects, tmp_path):
    every = all_pods(objects)
    names = hosts(objects, {pod.name: pod.name for pod in every})
    for _, found in settings(objects, tmp_path):
        addresses = found["mesh"].addresses
        assert set(addresses) == set(TABLE.instances(found))
        for instance, target in addresses.items():
            assert target.startswith("dns:///")
            host, port = address_of(target)
            assert host in certified(tmp_path / "credentials", instance)
            behind = {pod.name: pod for pod in every if pod.name in names[str(host)]}
            assert {pod.component for pod in behind.values()} == {component_of(instance)}
            assert all(pod.ports["mesh"] == port for pod in behind.values())
            if instance != component_of(instance):
                assert set(behind) == {instance}


def test_what_pods_are_told_of_each_other_leads_there(objects, tmp_path):
    every = all_pods(objects)
    names = hosts(objects, {pod.name: pod.name for pod in every})
    for pod in every:
        host = pod.environment.get("RADMESH_ADVERTISE")
        assert (host is not None) == (pod.component in ("archive-server", "network-gateway", "curator"))
        if host:
            assert names[host] == [pod.name]
            numbered = TABLE.by_name[pod.component].numbered
            assert host in certified(tmp_path / "credentials", pod.name if numbered else pod.component)


def test_a_stop_has_time_to_end(objects, tmp_path):
    for pod, found in settings(objects, tmp_path):
        before = pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        # A component first drains what serves, then what works behind it (radmesh.runtime.lifecycle).
        needed = before + 2 * found["mesh"].drain_timeout + 10
        assert pod.spec["terminationGracePeriodSeconds"] >= needed, pod.name
        # Clients that come by a Service are still sent here for a moment.
        assert (before > 0) == (pod.component in ("gateway-proxy", "application-server"))


# -- network policies --------------------------------------------------------------------------------------------------


def callers(component: str, *, line: bool = False) -> set[str]:
    """Who calls a component, by the protos; `line`: who sends it objects."""
    from radmesh.api.transfer.v1 import transfer_pb2

    if line:
        return set(callers_of(transfer_pb2.DESCRIPTOR.services_by_name["TransferService"].methods_by_name["Put"]))
    found = {
        caller
        for package, served_by in SERVED_BY.items()
        if component in served_by
        for service in services(package)
        for method in service.methods
        for caller in callers_of(method)
    }
    # StatusService: any component may ask, the Application Server does.
    return found - {"*"} | {"application-server"}


def services(package: str) -> list[Any]:
    import importlib

    name = package.split(".")[2]
    return list(importlib.import_module(f"{package}.{name}_pb2").DESCRIPTOR.services_by_name.values())


def allowed(rule: Object) -> tuple[frozenset[str] | None, frozenset[int]]:
    """(components, ports) of a rule; None = everybody."""
    ports = frozenset(port["port"] for port in rule["ports"])
    if "from" not in rule:
        return None, ports
    (peer,) = rule["from"]
    (expression,) = peer["podSelector"]["matchExpressions"]
    assert (expression["key"], expression["operator"]) == (NAME, "In")
    assert peer.keys() == {"podSelector"}
    return frozenset(expression["values"]), ports


def test_everything_is_closed_first(objects):
    closed = of_kind(objects, "NetworkPolicy")["closed"]["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_who_may_come_in_is_who_calls(objects):
    policies = of_kind(objects, "NetworkPolicy")
    for component in workloads(objects):
        policy = policies[component]["spec"]
        assert policy["podSelector"] == {"matchLabels": {NAME: component}}
        assert policy["policyTypes"] == ["Ingress"]
        expected = {(frozenset(callers(component)), frozenset({7000}))}
        if component in ("archive-server", "network-gateway"):
            expected.add((frozenset(callers(component, line=True)), frozenset({7001})))
        to_clients = {
            "gateway-proxy": {11112, 2762},
            "connectivity-manager": {2575},
            "application-server": {8080, 50051},
        }
        if component in to_clients:
            expected.add((None, frozenset(to_clients[component])))
        assert {allowed(rule) for rule in policy["ingress"]} == expected, component


def test_whoever_calls_may_go_out(objects):
    policy = of_kind(objects, "NetworkPolicy")["mesh"]["spec"]
    everybody = {"matchLabels": {PART_OF: "radmesh"}}
    assert policy["podSelector"] == everybody
    assert policy["egress"][0] == {"to": [{"podSelector": everybody}], "ports": [{"port": 7000}, {"port": 7001}]}
    names = [(port["protocol"], port["port"]) for port in policy["egress"][1]["ports"]]
    assert (names, "to" in policy["egress"][1]) == ([("UDP", 53), ("TCP", 53)], False)


# -- certificates ------------------------------------------------------------------------------------------------------


def test_the_job_and_what_repeats_it_are_one():
    objects = render(K8S / "overlays/single-node")
    job, cron = of_kind(objects, "Job")["certificates"], of_kind(objects, "CronJob")["certificates"]
    assert template(job) == template(cron)
    assert job["spec"]["backoffLimit"] == cron["spec"]["jobTemplate"]["spec"]["backoffLimit"]
    # A Job cannot be changed: that of one `kubectl apply` must be gone at the next.
    assert job["spec"]["ttlSecondsAfterFinished"] <= 120
    spec = template(job)["spec"]
    (container,) = spec["containers"]
    (config_volume,) = [volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume]
    assert {config_volume} == set(of_kind(objects, "ConfigMap"))
    command = container["args"]
    assert run(*command, "--help").out.startswith("usage: radmesh certificates")
    (tmp,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "tmp"]
    assert tmp["medium"] == "Memory"


def test_the_account_may_do_with_these_secrets_what_it_needs():
    objects = render(K8S / "overlays/single-node")
    rules = of_kind(objects, "Role")["certificates"]["rules"]
    assert all(rule["apiGroups"] == [""] and rule["resources"] == ["secrets"] for rule in rules)
    by_verbs = {tuple(rule["verbs"]): set(rule.get("resourceNames", ())) for rule in rules}
    mine = {AUTHORITY, *(secret_of(component) for component in workloads(objects))}
    assert by_verbs == {("create",): set(), ("get", "update"): mine}
    (binding,) = of_kind(objects, "RoleBinding").values()
    assert binding["roleRef"]["name"] == "certificates"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "certificates", "namespace": "radmesh"}]


def test_nobody_else_has_the_authority(objects):
    for name, spec, container in containers(objects):
        used = {volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
        assert AUTHORITY not in used, name
        assert AUTHORITY not in str(container), name


# -- components of kustomize -------------------------------------------------------------------------------------------


def test_postgresql(tmp_path):
    objects = with_components(tmp_path, ["postgresql"])
    found = {pod.component: configuration for pod, configuration in settings(objects, tmp_path)}
    assert found["database-server"]["database"].url == SECRETS["radmesh-postgresql"]["database-url"]
    assert found["connectivity-manager"]["connectivity"].url == SECRETS["radmesh-postgresql"]["connectivity-url"]
    others = [pod for pod in all_pods(objects) if "URL" in str(pod.environment)]
    assert {pod.component for pod in others} == {"database-server", "connectivity-manager"}


def test_a_certificate_for_the_door(tmp_path):
    objects = with_components(tmp_path, ["door-certificate"])
    for pod, found in settings(objects, tmp_path):
        given = (found["grpc"].certificate.endswith("/tls.crt"), found["grpc"].key.endswith("/tls.key"))
        assert given == ((pod.component == "application-server",) * 2)
        if pod.component == "application-server":
            assert pod.mounts["/etc/radmesh/door"]["secret"]["secretName"] == "radmesh-door"


def test_metrics_are_open_to_monitoring_alone(tmp_path):
    objects = with_components(tmp_path, ["metrics"])
    policy = of_kind(objects, "NetworkPolicy")["metrics"]["spec"]
    assert [port["port"] for port in policy["ingress"][0]["ports"]] == [7003]
    assert all(pod.ports["metrics"] == 7003 for pod in all_pods(objects))


def test_one_node_needs_no_storage_or_ports_of_a_kind():
    objects = render(K8S / "overlays/single-node")
    for each in of_kind(objects, "StatefulSet").values():
        for claim in each["spec"]["volumeClaimTemplates"]:
            assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
            assert "storageClassName" not in claim["spec"]
    assert all(workload["spec"]["replicas"] == 1 for workload in workloads(objects).values())
    outside = {
        name: service["spec"] for name, service in of_kind(objects, "Service").items() if service["spec"].get("type")
    }
    assert set(outside) == {"dicom", "hl7", "door"}
    ports = [port["nodePort"] for spec in outside.values() for port in spec["ports"]]
    assert len(set(ports)) == len(ports) == 5
    for spec in outside.values():
        assert (spec["type"], spec["externalTrafficPolicy"]) == ("NodePort", "Local")
        assert all(30000 <= port["nodePort"] <= 32767 for port in spec["ports"])
