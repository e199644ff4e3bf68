"""The run says how many tests each back end had, and fails where one had none."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=FOLDER.parent.parent, capture_output=True, text=True, timeout=100, check=False)


def test_a_run_without_a_back_end_fails() -> None:
    ended = run(str(FOLDER), "-o", "python_files=test_of_nothing.py")
    assert ended.returncode == 1
    assert "FAILED: no test ran on sqlite" in ended.stdout
    assert "FAILED: no test ran on postgresql" in ended.stdout


def test_a_run_of_a_part_prints_what_it_had() -> None:
    ended = run(f"{FOLDER}/test_engine.py::test_commits_are_durable")
    assert ended.returncode == 0, ended.stdout
    assert "sqlite: 1 tests" in ended.stdout
    assert "postgresql: 1 tests" in ended.stdout
