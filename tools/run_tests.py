"""Runs every test: pytest in lanes at once, since much of the time of a whole cluster's test is waiting.

    .venv/bin/python tools/run_tests.py [PYTEST-ARGUMENTS]

What is not named in CLUSTERS is in the last lane, so that a new folder is never left out. Each lane's output is shown
whole when it has ended; the exit code is that of the first lane that failed. One core has one lane after the other.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Whole clusters that are killed, stopped, filled up, and waited for; and those that are asked. tests/page and tests/k8s
# share a lane, the last: a browser drops its connections when network namespaces come and go beside it.
CLUSTERS = (
    ("tests/faults", "tests/power"),
    ("tests/ris", "tests/client", "tests/docs", "tests/mesh", "tests/application_server", "tests/connectivity_manager"),
    ("tests/curator", "tests/dicomweb", "tests/http", "tests/archive_server", "tests/network_gateway"),
)
_NOT_TESTS = ("support", "__pycache__", "partners")


def lanes() -> list[list[str]]:
    """Return the folders of each lane."""
    every = sorted(
        f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name not in _NOT_TESTS
    )
    named = [[folder for folder in lane if folder in every] for lane in CLUSTERS]
    return [*named, [folder for folder in every if not any(folder in lane for lane in named)]]


def begin(folders: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a lane; its output goes to `log`."""
    command = [sys.executable, "-m", "pytest", "-q", *sys.argv[1:], *folders]
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603 - our own


def main() -> int:
    """Run them; return the exit code."""
    # Whoever starts this in the background lets it ignore these, and so would everything that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    start, code = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="radmesh-tests-") as logs:
        running: dict[subprocess.Popen[bytes], tuple[str, Path]] = {}
        try:
            for number, folders in enumerate(lanes()):
                log = Path(logs, f"{number}.log")
                process = begin(folders, log)
                running[process] = (" ".join(folders), log)
                print(f"lane {number + 1}: {' '.join(folders)}", flush=True)
                if (os.cpu_count() or 1) == 1:
                    process.wait()
            while running:
                for process in [process for process in running if process.poll() is not None]:
                    name, log = running.pop(process)
                    seconds = time.monotonic() - start
                    print(f"\n== {name}: ended with {process.returncode} after {seconds:.0f} s", flush=True)
                    sys.stdout.buffer.write(log.read_bytes())
                    sys.stdout.flush()
                    code = code or process.returncode
                time.sleep(0.2)
        finally:
            for process in running:
                process.terminate()
                process.wait()
    return code


if __name__ == "__main__":
    sys.exit(main())
