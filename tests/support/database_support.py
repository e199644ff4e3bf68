"""What tests of the Database Server share: headers, records of a store, and every part over one database."""

import functools
import hashlib
import itertools
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from radmesh.database_server.accounts import Accounts
from radmesh.database_server.feed import Feed
from radmesh.database_server.jobs import Jobs
from radmesh.database_server.merges import Merges
from radmesh.database_server.orders import Orders, RisEvent
from radmesh.database_server.overlay import Overlay
from radmesh.database_server.people import People
from radmesh.database_server.placement import Placement
from radmesh.database_server.queries import Queries, StudyFilter, Viewer
from radmesh.database_server.registry import Record, Registry
from radmesh.database_server.renditions import Renditions
from radmesh.database_server.reports import Reports
from radmesh.database_server.schema import MIGRATIONS
from radmesh.database_server.statuses import Statuses
from radmesh.database_server.verification import AdmissionFilter, Decision, Verifications
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.domains import Domains
from radmesh.dicom.header import TAGS, WANTED, QueryableHeader
from radmesh.dicom.uids import study_hash
from radmesh.runtime.clock import Clock, ManualClock
from radmesh.sql.engine import Database, micros

EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.70"
CT = "1.2.840.10008.5.1.4.1.1.2"
NOT_REQUIRED, PENDING, VERIFIED, UNVERIFIED, HELD = 1, 2, 3, 4, 5
NEW, ALREADY, VARIANT, OTHER_STUDY = 1, 2, 3, 4
ARCHIVE, SPOOL, WEB_CACHE = 1, 2, 3
ALL = Viewer(include_held=True)
ANYBODY = Viewer()
TIME = datetime(2026, 1, 1, tzinfo=UTC)
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


@functools.cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Database(f"sqlite:///{folder}/radmesh.sqlite", MIGRATIONS).close()
        return Path(folder, "radmesh.sqlite").read_bytes()


def new_sqlite(folder: Path) -> str:
    """The URL of `radmesh.sqlite` in a folder, empty and migrated if it is new: to migrate each time costs most."""
    path = folder / "radmesh.sqlite"
    if not path.exists():
        path.write_bytes(_migrated())
    return f"sqlite:///{path}"


def uid(*parts: object) -> str:
    """A UID of the test."""
    return "2.25." + str(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:12], "big"))


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """An element in Explicit VR Little Endian (PS3.5 7.1.2)."""
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in _LONG:
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def header(vrs: Mapping[str, bytes] | None = None, **values: Any) -> bytes:
    """A queryable header by keyword; text is UTF-8 and says so."""
    values = {"SpecificCharacterSet": "ISO_IR 192", **values}
    parts = []
    for keyword, value in sorted(values.items(), key=lambda item: TAGS[item[0]]):
        vr = (vrs or {}).get(keyword, WANTED[TAGS[keyword]])
        if isinstance(value, int):
            raw = struct.pack("<H", value) if vr == b"US" else str(value).encode()
        else:
            raw = value if isinstance(value, bytes) else value.encode()
        pad = b"\0" if vr in (b"UI", b"OB", b"UN") else b" "
        parts.append(element(TAGS[keyword], vr, raw + pad * (len(raw) % 2)))
    return b"".join(parts)


def record(
    study: object = 0,
    sop: object = 0,
    *,
    series: object = 0,
    sequence: int = 0,
    store_id: str = "archive-0",
    content: object = 0,
    station: str = "CT1",
    generation: int = 1,
    changes: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> Record:
    """The record of instance `sop` of study `study`, with attributes of its header; `sequence` 0: that of `sop`."""
    study_uid, series_uid = uid("study", study), uid("series", study, series)
    given: dict[str, Any] = {
        "StudyInstanceUID": study_uid,
        "SeriesInstanceUID": series_uid,
        "SOPInstanceUID": uid("sop", sop),
        "PatientID": f"P{study}",
        "PatientName": "Doe^John",
        "StudyDate": "20260101",
        "Modality": "CT",
        "SeriesNumber": 1,
        "InstanceNumber": sop if isinstance(sop, int) else 0,
        "Rows": 512,
        "Columns": 256,
        **attributes,
    }
    blob = header(**given)
    key = AdmissionKey.of(station, QueryableHeader.parse(blob))
    made = Record(
        store_id=store_id,
        study_hash=study_hash(study_uid),
        generation=generation,
        sequence=sequence or (sop + 1 if isinstance(sop, int) else 1),
        sop_instance_uid=uid("sop", sop),
        transfer_syntax_uid=EXPLICIT,
        sha256=hashlib.sha256(repr((sop, content)).encode()).digest(),
        length=1000,
        header=blob,
        study_instance_uid=study_uid,
        series_instance_uid=series_uid,
        sop_class_uid=CT,
        calling_ae_title=station,
        admission_key=key.digest(),
        verification=NOT_REQUIRED,
        receive_time=micros(TIME),
        remarks=(),
        residence=1,
    )
    return replace(made, **(changes or {}))


def ris_patient(
    patient_id: str = "P0", name: str = "Doe^John", birth: str = "19700101", sex: str = "M", issuer: str = ""
) -> dict[str, str]:
    """A patient as a RIS tells it."""
    return {
        "patient_id": patient_id,
        "issuer_of_patient_id": issuer,
        "patient_name": name,
        "patient_birth_date": birth,
        "patient_sex": sex,
    }


def order(
    accession: str = "A1", patient: Mapping[str, str] | None = None, domain: str = "default", **more: Any
) -> dict[str, Any]:
    """An order as a RIS tells it."""
    return {
        "order_id": f"{domain}/{accession}",
        "domain": domain,
        "accession_number": accession,
        **(ris_patient() if patient is None else patient),
        "status": 1,
        "scheduled_time": "20260101100000",
        **more,
    }


def decision(entry: Record, verification: int, reason: str = "", **more: Any) -> Decision:
    """A decision about the admission key of a record."""
    given = {key: value for key, value in more.items() if value is not None}
    options: dict[str, Any] = {"domain": "default", "actor": "gateway", **given}
    return Decision(entry.study_instance_uid, entry.admission_key, verification, reason, **options)


class Parts:
    """Every noun of the Database Server over one database, without servers."""

    def __init__(
        self, database: Database, clock: Clock | None = None, *, kept: int = 100_000, domains: Domains | None = None
    ) -> None:
        self.database = database
        self.clock = clock or ManualClock()
        self.feed = Feed(database, self.clock, kept)
        people = People(database, domains or Domains((), ()))
        overlay = Overlay(database, self.clock, people)
        self.statuses = Statuses(database, self.feed, self.clock, overlay)
        self.merges = Merges(database, self.feed, self.clock, overlay)
        self.orders = Orders(database, self.feed, overlay, self.merges)
        self.verifications = Verifications(database, self.feed, self.clock, overlay, self.orders)
        self.registry = Registry(database, self.feed, self.clock, 3.0, people, self.verifications)
        self.reports = Reports(database, self.feed, self.clock, self.statuses)
        self.placement = Placement(database, self.registry, self.clock)
        self.queries = Queries(database, self.registry.living_since)
        self.renditions = Renditions(database, self.feed, self.clock, self.queries, self.registry.living_since)
        self.jobs = Jobs(database, self.feed, self.clock)
        self._accounts: Accounts | None = None
        self._told = 0

    @property
    def accounts(self) -> Accounts:
        """Made when first asked for: it hashes a password."""
        if self._accounts is None:
            self._accounts = Accounts(self.database, self.feed, self.clock, 12 * 3600.0)
        return self._accounts

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        assert isinstance(self.clock, ManualClock)
        self.clock.advance(seconds)

    def beat(
        self, store_id: str = "archive-0", kind: int = ARCHIVE, *, free: int = 10**12, accepting: bool = True
    ) -> None:
        """A store's heartbeat."""
        self.registry.heartbeat(
            {
                "store_id": store_id,
                "kind": kind,
                "target": f"unix:/{store_id}",
                "epoch": hashlib.sha256(store_id.encode()).digest()[:16],
                "free_bytes": free,
                "accepting": accepting,
                "unregistered": 0,
            }
        )

    def register(self, *records: Record) -> list[tuple[int, int]]:
        """Register records of a store that lives; return (outcome, variant) of each."""
        if not any(store["store_id"] == records[0].store_id for store in self.registry.stores()):
            self.beat(records[0].store_id, SPOOL if records[0].store_id.startswith("spool") else ARCHIVE)
        outcomes, _ = self.registry.register(records)
        return outcomes

    def hold(self, study: str, digest: bytes, verification: int, reason: str, actor: str) -> tuple[int, int]:
        """Decide about an admission key; return the instances concerned, and the revision."""
        count, revision, _ = self.verifications.decide(
            Decision(study, digest, verification, reason=reason, actor=actor)
        )
        return count, revision

    def admissions(
        self, study: str = "", verifications: Sequence[int] = (), size: int = 100, token: str = ""
    ) -> tuple[list[dict[str, Any]], str]:
        """A page of admissions."""
        return self.verifications.admissions(AdmissionFilter(study, tuple(verifications)), size, token)

    def decide(self, entry: Record, verification: int, reason: str = "", **more: Any) -> tuple[int, int, bool]:
        """Decide about the admission key of a record; return instances, revision, and whether anything changed."""
        return self.verifications.decide(decision(entry, verification, reason, **more))

    def say(self, domain: str = "default", **event: Any) -> None:
        """Let the RIS of a domain say something: `order`, `patient`, `merge` or `available`."""
        self._told, _ = self.orders.apply("m", b"e" * 16, [RisEvent(self._told + 1, domain, **event)])

    def listed(self, size: int = 100, **wanted: Any) -> list[dict[str, Any]]:
        """Every admission that a filter leaves, page by page."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            rows, token = self.verifications.admissions(AdmissionFilter(**wanted), size, token)
            assert len(rows) <= size
            found += rows
            if not token:
                return found

    def study(self, study: object = 0, viewer: Viewer = ALL) -> dict[str, Any]:
        """A study as a viewer sees it."""
        return self.queries.study(uid("study", study), viewer)

    def find(self, size: int = 100, **wanted: Any) -> list[str]:
        """The UIDs of the studies that a query finds, in its order, page by page."""
        found: list[str] = []
        token = ""
        while True:
            rows, token = self.queries.studies(StudyFilter(**wanted), size, token)
            assert len(rows) <= size
            found += [row["study_instance_uid"] for row in rows]
            if not token:
                return found

    def instances(self, study: object = 0, viewer: Viewer = ALL, **wanted: Any) -> list[dict[str, Any]]:
        """The instances of a study, page by page."""
        options = {"series_instance_uid": "", "sop_instance_uid": "", "variants": True, "size": 3, **wanted}
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            rows, token = self.queries.instances(uid("study", study), viewer=viewer, token=token, **options)
            found += rows
            if not token:
                return found

    def rows(self, table: sa.Table) -> list[dict[str, Any]]:
        """A table as it is."""
        with self.database.read() as connection:
            return [dict(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call all in threads of their own that begin together; return results and exceptions."""
    barrier = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def run(number: int, call: Callable[[], Any]) -> None:
        barrier.wait(60)
        try:
            answers[number] = call()
        except Exception as error:
            answers[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return answers


@contextmanager
def meeting(
    database: Database, beginning: str | tuple[str, ...], parties: int = 2, seconds: float = 1.0
) -> Iterator[None]:
    """Make the first `parties` transactions that come to a statement meet there, if they can.

    They cannot where a lock keeps the second from coming so far before the first has committed; then the first goes on
    after `seconds`.
    """
    barrier = threading.Barrier(parties)

    def before(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().startswith(beginning):
            try:
                barrier.wait(seconds)
            except threading.BrokenBarrierError:
                return

    sa.event.listen(database.engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", before)


def plans(database: Database, call: Callable[[], Any]) -> list[str]:
    """How the back end runs each query of `call`."""
    statements: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        statements.append((statement, parameters))

    sa.event.listen(database.engine, "before_cursor_execute", note)
    call()
    sa.event.remove(database.engine, "before_cursor_execute", note)
    found = []
    with database.engine.connect() as connection:
        for statement, parameters in statements:
            if not statement.lstrip("( \n").startswith("SELECT"):
                continue
            explain = "EXPLAIN QUERY PLAN" if database.sqlite else "EXPLAIN"
            rows = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
            found.append("\n".join(row[3] if database.sqlite else row[0] for row in rows))
    return found


def pages(size: int, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Pieces of a sequence."""
    rest = iter(items)
    while piece := list(itertools.islice(rest, size)):
        yield piece
