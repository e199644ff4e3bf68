"""Settings of the Archive Server."""

from dataclasses import dataclass
from pathlib import Path

from radmesh.runtime.config import Duration, Size, setting


def _directory(value: str) -> str | None:
    # A mount that is missing must not be replaced by a folder on the disk beneath it.
    return None if not value or Path(value).is_dir() else "must be a directory that exists"


@dataclass(frozen=True, slots=True)
class Section:
    """[archive]: where an Archive Server keeps objects, and when it copies them to the permanent tier."""

    tier: str = setting(
        "",
        doc="Directory of the permanent tier, which must exist; empty = `permanent` in its own data directory.",
        env="RADMESH_ARCHIVE_TIER",
        rule=_directory,
    )
    quiet: Duration = setting(
        2.0,
        doc="A study is copied to the permanent tier when nothing of it came for so long.",
        minimum=0,
        maximum=3600,
    )
    reserve: Size = setting(
        1 << 30, doc="Room kept free in the cache's file system: below it no new object is taken.", minimum=0
    )
    batch_size: Size = setting(
        8 << 20, doc="Bytes after which a group commit is closed.", minimum=1 << 20, maximum=64 << 20
    )
    batch_objects: int = setting(64, doc="Objects after which a group commit is closed.", minimum=1, maximum=1024)
    max_streams: int = setting(
        192, doc="Calls served at one time; each association that stores holds one.", minimum=8, maximum=4096
    )
    client_bind: str = setting(
        "127.0.0.1",
        doc="Address where local clients read with a grant of an Application Server, TLS beyond loopback; empty = "
        "nowhere: they read through the door.",
        env="RADMESH_ARCHIVE_CLIENT_BIND",
    )
    client_port: int = setting(
        0,
        doc="TCP port of that; 0 = any free one, which clients are told.",
        env="RADMESH_ARCHIVE_CLIENT_PORT",
        minimum=0,
        maximum=65535,
    )
    client_max_streams: int = setting(
        64, doc="Reads by local clients served at one time; more are refused for now.", minimum=1, maximum=1000
    )
