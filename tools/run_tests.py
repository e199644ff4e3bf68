"""Runs every test: some pytests beside each other, since much of the time of a whole cluster's test is waiting.

    .venv/bin/python tools/run_tests.py [PYTEST-ARGUMENTS]

Who is free takes the next of JOBS, one more than there are cores. What is not named there is one job more, so that a
new folder is never left out. Each job's output is shown whole when it has ended; one that does not end is ended, and
named. The exit code is that of the first job that failed.

A few tests that fail while others take the cores are run again, alone, and named: at full depth, on a machine of their
own, they are not.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The longest first. tests/page and tests/k8s are one job: a browser drops its connections when network namespaces come
# and go beside it.
JOBS = (
    ("tests/faults", "tests/power"),
    ("tests/database_server",),
    ("tests/page", "tests/k8s"),
    ("tests/client", "tests/docs"),
    ("tests/dicomweb",),
    ("tests/curator",),
    ("tests/ris",),
    ("tests/mesh", "tests/application_server"),
    ("tests/edge",),
    ("tests/http",),
    ("tests/network_gateway", "tests/archive_server"),
    ("tests/connectivity_manager",),
)
FULL = os.environ.get("RADMESH_TEST_DEPTH", "ci") == "full"
# Far more than any job takes: pytest itself ends a test after some minutes.
MOST_SECONDS = 7200 if FULL else 1000
# More than these at once are no accident.
AGAIN_MOST = 5
_NOT_TESTS = ("support", "__pycache__", "partners")


def jobs() -> list[list[str]]:
    """Return the folders of each job."""
    every = sorted(
        f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name not in _NOT_TESTS
    )
    named = [there for job in JOBS if (there := [folder for folder in job if folder in every])]
    rest = [folder for folder in every if not any(folder in job for job in named)]
    # Not the last: nobody waits at the end for a long one.
    return [*named[:4], rest, *named[4:]]


class Job:
    """One pytest, in a session of its own with all that it starts."""

    def __init__(self, folders: list[str], log: Path, *arguments: str) -> None:
        self.name = " ".join(folders)
        self.folders = folders
        self.log = log
        self._began = time.monotonic()
        self.late = False
        self._cache = log.with_name(f"{log.name}-cache")
        options = ("-q", "--durations=10", "-o", f"cache_dir={self._cache}", *arguments, *sys.argv[1:])
        command = [sys.executable, "-m", "pytest", *options, *folders]
        with log.open("wb") as file:
            self._process = subprocess.Popen(  # noqa: S603 - our own
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        print(f"begins: {self.name}", flush=True)

    def ended(self) -> bool:
        """Whether it has ended; one that takes too long is told to say where it stands, and ended."""
        if self._process.poll() is None and time.monotonic() - self._began > MOST_SECONDS:
            self.late = True
            self._process.send_signal(signal.SIGABRT)  # faulthandler writes where every thread is
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self.stop()
        return self._process.poll() is not None

    def failed(self) -> list[str]:
        """The tests that failed, if that is all that went wrong, and they are few; else none."""
        if FULL or self.late or self._process.returncode != 1:
            return []
        with contextlib.suppress(OSError, ValueError):
            names = list(json.loads((self._cache / "v/cache/lastfailed").read_bytes()))
            return names if len(names) <= AGAIN_MOST else []
        return []

    def stop(self) -> None:
        """End it as Ctrl-C does, so that it cleans up; then whatever is left of it."""
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def show(self) -> int:
        """Print what it said; return its exit code."""
        how = f"did not end within {MOST_SECONDS} s" if self.late else f"ended with {self._process.returncode}"
        print(f"\n== {self.name}: {how} after {time.monotonic() - self._began:.0f} s", flush=True)
        sys.stdout.buffer.write(self.log.read_bytes())
        sys.stdout.flush()
        # A folder of which nothing was asked for (-m, -k) has not failed.
        nothing = self._process.returncode == 5 and bool(sys.argv[1:])
        return 0 if nothing else self._process.returncode


def main() -> int:
    """Run them; return the exit code."""
    # Whoever starts this in the background lets it ignore these, and so would everything that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    cores = len(os.sched_getaffinity(0))
    beside = 1 if cores == 1 else cores + 1
    code, waiting, running, again = 0, jobs(), list[Job](), list[Job]()
    with tempfile.TemporaryDirectory(prefix="radmesh-tests-") as logs:
        try:
            while waiting or running:
                while waiting and len(running) < beside:
                    folders = waiting.pop(0)
                    running.append(Job(folders, Path(logs, folders[0].replace("/", "-"))))
                for job in [job for job in running if job.ended()]:
                    running.remove(job)
                    ended = job.show()
                    if job.failed():
                        again.append(job)
                    else:
                        code = ended or code
                time.sleep(0.2)
            for job in again:
                print(f"\n== again, alone: {' '.join(job.failed())}", flush=True)
                running = [Job(job.folders, job.log, "--last-failed", "--last-failed-no-failures=none")]
                while not running[0].ended():
                    time.sleep(0.2)
                code = running.pop().show() or code
        finally:
            for job in running:
                job.stop()
    return code


if __name__ == "__main__":
    sys.exit(main())
