"""The Dockerfile and what it copies. Building it is no part of the tests: docs/kubernetes.md says how that was done."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from pods import K8S, ROOT, pods, render

import radmesh
from radmesh.mesh.modules import PORTS, TABLE
from radmesh.mesh.up import MALLOC
from radmesh.runtime import config

LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
INSTRUCTIONS = [line.split(maxsplit=1) for line in LINES if line and not line.lstrip().startswith("#")]
LAST = INSTRUCTIONS[max(n for n, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def values(name: str, instructions: list[list[str]] = LAST) -> list[str]:
    return [value for instruction, value in instructions if instruction == name]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for value in values("ENV") for pair in value.split())


def test_both_stages_stand_on_a_base_that_can_be_chosen():
    assert values("FROM", INSTRUCTIONS) == ["${BASE} AS build", "${BASE}"]
    assert [value.partition("=")[0] for value in values("ARG", INSTRUCTIONS)] == ["BASE"]


def test_the_process_is_that_of_the_manifests():
    for pod in pods(render(K8S / "base")).values():
        user, group = pod.spec["securityContext"]["runAsUser"], pod.spec["securityContext"]["runAsGroup"]
        assert values("USER") == [f"{user}:{group}"]
        assert environment()["RADMESH_DATA"] == pod.environment["RADMESH_DATA"]
    assert values("ENTRYPOINT") == ['["radmesh"]']


def test_memory_is_handled_as_radmesh_up_does():
    found = environment()
    assert {name: found.get(name) for name in MALLOC} == MALLOC


def test_ports_of_clients_are_exposed():
    schema = TABLE.schema()
    defaults, _ = config.read(schema, environment={})
    assert defaults is not None
    usual = {defaults.value(schema.by_variable(variable)[0]) for variable in PORTS.values()}
    assert set(map(int, values("EXPOSE")[0].split())) == usual


def test_examples_name_this_version():
    text = (ROOT / "Dockerfile").read_text() + (ROOT / "docs/kubernetes.md").read_text()
    versions = re.findall(r"radmesh:(\d[\w.]*)", text)
    assert versions
    assert set(versions) == {radmesh.__version__}


def test_what_is_copied_is_there_and_not_ignored():
    copied = [
        source for value in values("COPY", INSTRUCTIONS) if "--from" not in value for source in value.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in IGNORED
    assert {line[1:] for line in IGNORED if line.startswith("!")} == set(copied)
    # What was made on this machine is made anew.
    for path in ("components/radmesh/api", "native/radmesh_native/_header.c"):
        assert any(fnmatch(path, line) for line in IGNORED if not line.startswith(("!", "#", "*"))), path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is installed, but for what is compiled."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt", "protos"):
        (source / name).symlink_to(ROOT / name)
    for name in ("components", "gateway_proxy", "native"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(folder / "lib")]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "lib"


@pytest.mark.parametrize(
    ("root", "name"),
    [("components", "radmesh"), ("gateway_proxy", "radmesh_gateway_proxy"), ("native", "radmesh_native")],
)
def test_nothing_that_is_needed_is_left_out(package, root, name):
    """An editable installation has every file anyway: what the packages lack is seen in an image only."""
    made = ("__pycache__", "api")
    sources = {
        path.relative_to(ROOT / root)
        for path in (ROOT / root / name).rglob("*")
        if path.is_file() and not set(made) & set(path.parts) and path.suffix not in (".so", ".c", ".pyx", ".pxd", ".h")
    }
    installed = {path.relative_to(package) for path in (package / name).rglob("*") if path.is_file()}
    assert {str(path) for path in sources - installed} == set()
    if name == "radmesh":
        assert Path("radmesh/database_server/migrations/versions/0001_initial.py") in installed
        assert Path("radmesh/api/database/v1/database_pb2.py") in installed
