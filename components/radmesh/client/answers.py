"""What the commands print with `--json`: docs/reference/cli.md is made from here, and the keys stay."""

from dataclasses import dataclass

from radmesh.client.model import (
    Admission,
    AuditEvent,
    ClusterStatus,
    Domain,
    HistoryEntry,
    Instance,
    Merge,
    Message,
    Order,
    Reject,
    Report,
    Route,
    RouteTest,
    Sending,
    Series,
    Station,
    StoreResult,
    Study,
    User,
)


@dataclass(frozen=True, slots=True)
class Stored:
    """Of `store`: every file in the order given, and how many were stored and were not."""

    results: tuple[StoreResult, ...]
    stored: int
    failed: int


@dataclass(frozen=True, slots=True)
class Found:
    """Of `find`: studies, newest first; `more`: there are more than the limit."""

    studies: tuple[Study, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """Of `show`: a study, its series, its instances, the variants among them, and the moves of its status."""

    study: Study
    series: tuple[Series, ...]
    instances: tuple[Instance, ...]
    history: tuple[HistoryEntry, ...]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was fetched; `sha256` is of the data set as stored, `corrected` the keywords whose values were."""

    path: str
    instance: str
    sha256: str
    corrected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FailedFile:
    """An instance that could not be fetched."""

    instance: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """Of `get`: what was written, and what failed; in no order."""

    written: tuple[WrittenFile, ...]
    failed: tuple[FailedFile, ...]


@dataclass(frozen=True, slots=True)
class WrittenPicture:
    """A file made of the web cache's frames, which are in `transfer_syntax`.

    `derived`: a palette was applied, or YBR made RGB; `left_out`: tags whose values are in the object alone.
    """

    path: str
    instance: str
    transfer_syntax: str
    frames: int
    derived: bool
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FetchedPictures:
    """Of `get --remote`: what was written, and what was not and why; in no order."""

    written: tuple[WrittenPicture, ...]
    failed: tuple[FailedFile, ...]


@dataclass(frozen=True, slots=True)
class Curated:
    """Of `curate`: `curated` of `instances` of so many studies are made; with --rebuild, what was dropped before."""

    studies: int
    instances: int
    curated: int
    dropped_studies: int
    dropped_bytes: int


@dataclass(frozen=True, slots=True)
class Watched:
    """Of `watch`, one a line: studies that changed; none at first and after a gap: then all may have."""

    studies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evicted:
    """Of `evict`: the bytes given back to the cache's file system."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Health:
    """Of `status`; `healthy`: all serves, without an alarm."""

    healthy: bool
    status: ClusterStatus


@dataclass(frozen=True, slots=True)
class Users:
    """Of `users`: all; of `users add` and `set` the one; of `remove` none."""

    users: tuple[User, ...]


@dataclass(frozen=True, slots=True)
class Stations:
    """Of `stations`: all; of `stations show` and `set` the one; of `remove` none."""

    stations: tuple[Station, ...]


@dataclass(frozen=True, slots=True)
class Routes:
    """Of `routes`: all; of `routes set` the one; of `remove` none."""

    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class RouteTests:
    """Of `routes test`: each route, by name."""

    tests: tuple[RouteTest, ...]


@dataclass(frozen=True, slots=True)
class Sendings:
    """Of `send` with a study, `sends retry` and `sends cancel`: the one; else all, newest first."""

    sendings: tuple[Sending, ...]


@dataclass(frozen=True, slots=True)
class Echoed:
    """Of `stations echo`: the status of the C-ECHO (0 = success), and how long it took with its association."""

    ae_title: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Rejects:
    """Of `rejects`: newest first."""

    rejects: tuple[Reject, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """Of `rejects get`: the file that was written."""

    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """Of `rejects delete`: which."""

    deleted: str


@dataclass(frozen=True, slots=True)
class Audited:
    """Of `audit`: events, newest first; `more`: there are more than the limit."""

    events: tuple[AuditEvent, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Orders:
    """Of `orders`: by scheduled time; `more`: there are more than the limit."""

    orders: tuple[Order, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Holds:
    """Of `holds`: oldest first; `more`: there are more than the limit."""

    admissions: tuple[Admission, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Released:
    """Of `release`: the study's admissions, or the one that was named, as they are now."""

    admissions: tuple[Admission, ...]


@dataclass(frozen=True, slots=True)
class Reports:
    """Of `report`: newest first; of `show`, `write` and `approve` the one; `more`: there are more than the limit."""

    reports: tuple[Report, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Merges:
    """Of `merges`: newest first; of `merges undo` the one; `more`: there are more than the limit."""

    merges: tuple[Merge, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Domains:
    """Of `hl7` and `hl7 domains`: by name."""

    domains: tuple[Domain, ...]


@dataclass(frozen=True, slots=True)
class Messages:
    """Of `hl7 messages`: newest first, without their bytes; `more`: there are more than the limit."""

    messages: tuple[Message, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class ShownMessage:
    """Of `hl7 show` and `hl7 replay`: a message, with its bytes."""

    message: Message
