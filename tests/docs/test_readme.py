"""The README's blocks run as they stand, in a fresh shell, one after another; its commands and targets exist."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_support import RealCluster
from waiting import wait_for

from radmesh.mesh import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PORTS = {"dicom": "11112", "hl7": "2575", "http": "8080"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder as a clone is in which `make up` runs, and what the shell says to all blocks."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / ".venv").symlink_to(sys.prefix)
    cluster = RealCluster(folder / "radmesh-data")
    try:
        wait_for(lambda: cluster.run("status").code == 0)
        script = "\n".join(blocks("bash"))
        # The one change: a test takes ports that are free.
        for name, port in PORTS.items():
            assert script.count(port) == 1
            script = script.replace(port, str(cluster.ready["ports"][name]))
        yield folder, shell(folder, "bash", "-euo", "pipefail", "-c", script)
    finally:
        cluster.close()


def shell(folder: Path, *command: str) -> str:
    """What a command says in an environment that has nothing but what a login gives it."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "PYTHONPATH")}
    kept["TMPDIR"] = str(folder.parent)
    done = subprocess.run(
        command, cwd=folder, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_walk_through(clone):
    _, told = clone
    for line in (
        "all is well",
        "CompressedSamples^CT1",
        "1 file in /",
        "bit by bit what was sent",
        "jane  radiologist",
        "1 file: 1 STORED",
        "STUDY_STORE",
        '"patient_name":"CompressedSamples^CT1"',
        '"00100010"',
        "MSA|AA|1",
        "Samples^Compressed  1CT1",
        "corrected    yes",
        "version     1, approved",
        "No fracture.",
        "ORU^R01",
    ):
        assert line in told, told


def test_the_python_example(clone):
    folder, _ = clone
    (example,) = blocks("python")
    assert shell(folder, f"{folder}/.venv/bin/python", "-c", example).splitlines() == [
        "CompressedSamples^MR1 20040826 1",
        "Samples^Compressed 20040119 1",
    ]


def test_nothing_is_left_in_the_clone(clone):
    folder, _ = clone
    assert {path.name for path in folder.iterdir()} == {".venv", "radmesh-data"}


def test_make_targets_and_commands_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:`|^\$ )make ([a-z-]+)", README, re.MULTILINE)
    assert {"up", "test", "help"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target
    (commands,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    used = set(re.findall(r"`radmesh ([a-z0-9]+)", README))
    used |= set(re.findall(r"^(?:\w+='.*?' )?radmesh ([a-z0-9]+)", "".join(blocks("bash")), re.MULTILINE))
    assert {"status", "find", "show", "get", "users", "store", "audit"} <= used
    assert used <= set(commands.choices), used
