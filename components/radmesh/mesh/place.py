"""Where things are in a data directory, and who holds it.

<instance>/         data of an instance
credentials/        authority, certificates, tokens, ticket keys (0700)
run/                sockets and locks (0700)
logs/               standard output and error of every instance
ready.json          what runs where, while all of it serves
admin-password      made at the first start
"""

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

# sun_path holds 108 bytes on Linux, 104 elsewhere; gRPC takes a few for itself.
_MOST_SOCKET_PATH = 100


class Place:
    """A data directory."""

    def __init__(self, data: Path) -> None:
        self.data = data.expanduser().absolute()
        self.run = self.data / "run"
        self.logs = self.data / "logs"
        self.credentials = self.data / "credentials"
        self.ready = self.data / "ready.json"
        self.admin_password = self.data / "admin-password"

    def make(self) -> None:
        """Make the directories that are missing, for this user only.

        Raises:
            RadmeshError: FILE_NOT_WRITTEN.
        """
        try:
            for folder in (self.data, self.run, self.logs, self.credentials):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                folder.chmod(0o700)
        except OSError as error:
            raise _error(
                "FILE_NOT_WRITTEN",
                f"cannot make {self.data} ({error.strerror}): check the path, or choose another --data",
            ) from error

    def folder(self, instance: str) -> Path:
        """Return the data folder of an instance; made if missing."""
        folder = self.data / instance
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def socket(self, instance: str) -> str:
        """Return the gRPC target of an instance's unix socket.

        A path that is too long for a socket is replaced by one in a folder of this user below the temporary directory.
        """
        path = self.run / f"{instance}.sock"
        if len(os.fsencode(path)) > _MOST_SOCKET_PATH:
            digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
            path = _own_folder(Path(tempfile.gettempdir()) / f"radmesh-{os.getuid()}-{digest}") / path.name
        return f"unix:{path}"


class Lock:
    """An exclusive lock on a file that names its holder; it ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def take(self, what: str, *, patience: float = 0.0) -> None:
        """Take the lock; a holder that is just dying is waited for, for `patience` seconds.

        Raises:
            RadmeshError: DATA_IN_USE, naming the holder's pid.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                    os.close(descriptor)
                    raise _error(
                        "DATA_IN_USE",
                        f"{what} is in use by process {holder}: stop it, or choose another --data",
                        pid=holder,
                    ) from None
                time.sleep(0.01)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _own_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True, mode=0o700)
    about = folder.lstat()
    # Anybody may write to the temporary directory: what is not ours, or is a link, is a trap.
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) != 0o700:
        raise _error(
            "FILE_NOT_WRITTEN", f"{folder} does not belong to this user alone: remove it, or use a shorter --data"
        )
    return folder


def _error(reason: str, message: str, **metadata: str) -> Exception:
    from radmesh.runtime.errors import RadmeshError  # noqa: PLC0415 - brings gRPC, which a supervisor does without

    return RadmeshError(reason, message, metadata=metadata)
