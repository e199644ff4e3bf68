"""What the stores hold, made known: patients, studies, series and instances from index rows alone."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.people import FIELDS, People
from radmesh.database_server.schema import (
    admissions,
    history,
    instances,
    locations,
    marks,
    procedure_step_studies,
    procedure_steps,
    series,
    stores,
    studies,
)
from radmesh.database_server.texts import bounded, clean
from radmesh.dicom.domains import Domains
from radmesh.dicom.header import QueryableHeader, tags
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

# RegistrationOutcome and VariantKind of database.v1
NEW, ALREADY, VARIANT, OTHER_STUDY = 1, 2, 3, 4
TRANSFER_SYNTAX, HEADER = 1, 2
# VerificationState of common.v1
NOT_REQUIRED, PENDING, VERIFIED, UNVERIFIED, HELD = 1, 2, 3, 4, 5
# A study is as bad as the worst of its admissions.
WORST: Final = (HELD, UNVERIFIED, PENDING, VERIFIED, NOT_REQUIRED)
COMPLETED, NEW_READING = 3, 1
# What the steps of a study make of its acquisition (database.v1.AcquisitionState), that which counts most first.
_OF_STEPS: Final = {"IN PROGRESS": 2, "COMPLETED": COMPLETED, "DISCONTINUED": 4}
# StoreKind of common.v1
WEB_CACHE: Final = 3


@dataclass(frozen=True, slots=True)
class Record:
    """A committed index row, as a store tells it."""

    store_id: str
    study_hash: str
    generation: int
    sequence: int
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: bytes
    length: int
    header: bytes
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    calling_ae_title: str
    admission_key: bytes
    verification: int
    receive_time: int
    remarks: tuple[str, ...]
    residence: int
    source_address: str = ""


_SHARED: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "BodyPartExamined",
    "SeriesDate",
    "SeriesTime",
    "StationName",
    "Manufacturer",
)
_NUMBERS: Final = ("Rows", "Columns", "NumberOfFrames", "BitsAllocated")
_SHARED_TAGS: Final = tags(*_SHARED, *_NUMBERS, "SpecificCharacterSet")
# What an instance has of its own: keyword -> column.
_OWN: Final = {
    "InstanceNumber": "instance_number",
    "AcquisitionNumber": "acquisition_number",
    "ContentDate": "content_date",
    "ContentTime": "content_time",
}
_OWN_TAGS: Final = tags(*_OWN)


@lru_cache(512)
def _shared(header: bytes) -> tuple[dict[str, str], tuple[int, int, int, int]]:
    """Return what many instances share: texts, and `_NUMBERS`. `header` has nothing else in it."""
    parsed = QueryableHeader.parse(header)
    text = {keyword: bounded(keyword, parsed.text(keyword)) for keyword in _SHARED}
    rows, columns, frames, bits = (_count(parsed.number(keyword)) for keyword in _NUMBERS)
    return text, (rows, columns, frames, bits)


class _Parsed:
    """A record with its header taken apart; one that is none gives empty values, and never stops a registration."""

    __slots__ = ("bits", "columns", "frames", "own", "record", "rows", "text")

    def __init__(self, record: Record) -> None:
        self.record = record
        try:
            shared, own = _SHARED_TAGS.of(record.header), _OWN_TAGS.of(record.header)
        except ValueError:
            shared = own = b""
        self.text, (self.rows, self.columns, self.frames, self.bits) = _shared(shared)
        parsed = QueryableHeader.parse(own)
        self.own = {column: clean(parsed.text(keyword), 16) for keyword, column in _OWN.items()}


def _count(number: int) -> int:
    """Return a number of rows, columns or frames; 0, as if it were absent, for one that cannot be."""
    return number if 0 <= number < 1 << 31 else 0


def sort_number(number: str) -> int:
    """Return what instances are ordered by; those without a number come last."""
    try:
        return max(-(1 << 31), min(1 << 31, int(number)))
    except ValueError:
        return 1 << 31


# What every batch asks and changes: built once, for building a statement costs as much as two executions of it.
_STORE_KIND: Final = sa.select(stores.c.kind).where(stores.c.store_id == sa.bindparam("store_id"))
_STUDY_IDS: Final = sa.select(studies.c.study_instance_uid, studies.c.id).where(
    studies.c.study_instance_uid.in_(sa.bindparam("uids", expanding=True))
)
_ADMISSIONS: Final = sa.select(
    admissions.c.id, admissions.c.study, admissions.c.digest, admissions.c.verification
).where(admissions.c.study.in_(sa.bindparam("studies", expanding=True)))
_SERIES_IDS: Final = sa.select(series.c.study, series.c.series_instance_uid, series.c.id).where(
    series.c.study.in_(sa.bindparam("studies", expanding=True))
)
_IDENTITY: Final = (
    instances.c.id,
    instances.c.study,
    instances.c.sop_instance_uid,
    instances.c.transfer_syntax_uid,
    instances.c.sha256,
)
_INSTANCES: Final = sa.select(*_IDENTITY).where(instances.c.sop_instance_uid.in_(sa.bindparam("uids", expanding=True)))
_INSERT: Final = sa.insert(instances).returning(*_IDENTITY)
_COUNT_STUDY: Final = (
    sa.update(studies)
    .where(studies.c.id == sa.bindparam("study"))
    .values(
        instance_count=studies.c.instance_count + sa.bindparam("n"),
        bytes=studies.c.bytes + sa.bindparam("size"),
        held_count=studies.c.held_count + sa.bindparam("held"),
        variant_count=studies.c.variant_count + sa.bindparam("variants"),
        last_receive_time=sa.case(
            (studies.c.last_receive_time < sa.bindparam("last"), sa.bindparam("last")),
            else_=studies.c.last_receive_time,
        ),
        version=studies.c.version + 1,
    )
)
_COUNT_SERIES: Final = (
    sa.update(series)
    .where(series.c.id == sa.bindparam("one"))
    .values(instance_count=series.c.instance_count + sa.bindparam("n"))
)
_PLACE: Final = ("store_id", "study_hash", "generation")
_REGISTERED: Final = sa.select(marks.c.registered).where(*(marks.c[name] == sa.bindparam(name) for name in _PLACE))
_SEQUENCES: Final = (
    sa.select(locations.c.sequence)
    .where(*(locations.c[name] == sa.bindparam(name) for name in _PLACE), locations.c.sequence > sa.bindparam("after"))
    .order_by(locations.c.sequence)
)
_LOCATED: Final = (
    sa.select(
        locations.c.id,
        locations.c.sequence,
        locations.c.instance,
        instances.c.study,
        instances.c.defect,
        instances.c.current,
        studies.c.study_instance_uid,
    )
    .join(instances, instances.c.id == locations.c.instance)
    .join(studies, studies.c.id == instances.c.study)
    .where(
        *(locations.c[name] == sa.bindparam(name) for name in _PLACE),
        locations.c.sequence.in_(sa.bindparam("sequences", expanding=True)),
    )
)
_MOVE: Final = sa.update(locations).where(locations.c.id == sa.bindparam("one")).values(residence=sa.bindparam("to"))

Place = tuple[str, str, int, int]


def _place_of(update: Mapping[str, Any]) -> Place:
    return update["store_id"], update["study_hash"], update["generation"], update["sequence"]


def _located(connection: sa.Connection, updates: Sequence[Mapping[str, Any]]) -> dict[Place, Any]:
    """Return what is known of the objects that updates are about."""
    sequences: defaultdict[tuple[str, str, int], list[int]] = defaultdict(list)
    for store_id, study_hash, generation, sequence in map(_place_of, updates):
        sequences[store_id, study_hash, generation].append(sequence)
    return {
        (*generation, row.sequence): row
        for generation, wanted in sequences.items()
        for row in connection.execute(_LOCATED, {**dict(zip(_PLACE, generation, strict=True)), "sequences": wanted})
    }


class Registry:
    """Registers instances and knows the stores."""

    def __init__(
        self,
        database: Database,
        feed: Feed,
        clock: Clock,
        store_timeout: float,
        people: People | None = None,
        admitted: "Admitted | None" = None,
    ) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self.store_timeout = store_timeout
        self._people = people or People(database, Domains((), ()))
        self._admitted = admitted

    # -- instances

    def register(self, records: Sequence[Record]) -> tuple[list[tuple[int, int]], int]:
        """Make records known, all or none; return (outcome, variant) of each, and the revision.

        Raises:
            RadmeshError: STORE_UNKNOWN, FIELD_INVALID, DATABASE_UNAVAILABLE.
        """
        store_ids = {record.store_id for record in records}
        if len(store_ids) != 1:
            raise RadmeshError(
                "FIELD_INVALID", "the records of a request are of one store", metadata={"field": "records"}
            )
        parsed = [_Parsed(record) for record in records]

        def work(connection: sa.Connection) -> tuple[list[tuple[int, int]], list[tuple[str, str]]]:
            known = connection.execute(_STORE_KIND, {"store_id": records[0].store_id}).first()
            self._database.serialise(connection)
            if known is None:
                raise RadmeshError("STORE_UNKNOWN", "the store has not announced itself: send a heartbeat first")
            if known.kind == WEB_CACHE:
                raise RadmeshError(
                    "FIELD_INVALID",
                    "a web cache has pictures, not objects: register renditions",
                    metadata={"field": "records"},
                )
            now = micros(self._clock.now())
            registration = _Registration(connection, self._database, now, self._people, self._admitted)
            outcomes = registration.run(parsed)
            touched = dict.fromkeys(record.study_instance_uid for record in records)
            return outcomes, [("instances", uid) for uid in touched] + registration.events

        outcomes, revision = self._feed.write(work)
        return outcomes, revision  # type: ignore[return-value]

    def update(self, updates: Sequence[dict[str, Any]]) -> None:
        """Take over what stores found out later. Updates of objects that are not registered are refused as a whole.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, LAST_COPY.
        """

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            self._database.serialise(connection)
            rows = _located(connection, updates)
            moved: list[dict[str, int]] = []
            defects: dict[int, str] = {}
            touched: dict[str, None] = {}
            for update in updates:
                place = _place_of(update)
                row = rows.get(place)
                if row is None:
                    if update["removed"]:
                        continue
                    raise RadmeshError("OBJECT_NOT_FOUND", "the object is not registered: register it first")
                if update["removed"]:
                    others = connection.execute(
                        sa.select(locations.c.id).where(locations.c.instance == row.instance, locations.c.id != row.id)
                    ).first()
                    if others is None:
                        raise RadmeshError("LAST_COPY", "no other copy is registered: keep this one")
                    connection.execute(sa.delete(locations).where(locations.c.id == row.id))
                    del rows[place]
                elif update["residence"]:
                    moved.append({"one": row.id, "to": update["residence"]})
                if update["defect"] and update["defect"] != defects.get(row.instance, row.defect):
                    connection.execute(
                        sa.update(instances)
                        .where(instances.c.id == row.instance)
                        .values(defect=clean(update["defect"], 64))
                    )
                    if not row.defect and row.instance not in defects and row.current:
                        connection.execute(
                            sa.update(studies)
                            .where(studies.c.id == row.study)
                            .values(defective_count=studies.c.defective_count + 1, version=studies.c.version + 1)
                        )
                    defects[row.instance] = update["defect"]
                touched[row.study_instance_uid] = None
            if moved:
                connection.execute(_MOVE, moved)
            return None, [("residence", uid) for uid in touched]

        self._feed.write(work)

    def missing(self, wanted: Sequence[tuple[str, str, int, int]]) -> list[tuple[str, str, int, int]]:
        """Return those of the marks (store, study hash, generation, sequence) that are not yet registered."""
        late = []
        with self._database.read() as connection:
            for store_id, study_hash, generation, sequence in wanted:
                registered = connection.execute(
                    sa.select(marks.c.registered).where(
                        marks.c.store_id == store_id,
                        marks.c.study_hash == study_hash,
                        marks.c.generation == generation,
                    )
                ).scalar()
                if registered is None or registered < sequence:
                    late.append((store_id, study_hash, generation, sequence))
        return late

    def wait_registered(
        self, wanted: Sequence[tuple[str, str, int, int]], seconds: float
    ) -> list[tuple[str, str, int, int]]:
        """Wait until the marks are registered; return those that still are not."""
        until = self._clock.monotonic() + seconds
        while late := self.missing(wanted):
            left = until - self._clock.monotonic()
            if left <= 0 or self._feed.stopped:
                break
            self._feed.wait(min(left, 0.1))
        return late

    # -- stores

    def heartbeat(self, values: dict[str, Any]) -> None:
        """Remember that a store lives."""

        def work(connection: sa.Connection) -> bool:
            before = connection.execute(sa.select(stores).where(stores.c.store_id == values["store_id"])).first()
            connection.execute(
                self._database.upsert(stores, ["store_id"], {**values, "heartbeat_time": micros(self._clock.now())})
            )
            changed = before is None or before.epoch != values["epoch"] or before.accepting != values["accepting"]
            if changed:
                self._feed.publish(connection, [("store", values["store_id"])])
            return changed

        if self._database.write(work):
            self._feed.wake()

    def stores(self) -> list[dict[str, Any]]:
        """Return every store, with `alive`."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(stores).order_by(stores.c.store_id)).mappings().all()
        since = self.living_since()
        return [{**row, "alive": row["heartbeat_time"] >= since} for row in rows]

    def living_since(self) -> int:
        """Return the time of the last heartbeat that still counts."""
        return micros(self._clock.now()) - int(self.store_timeout * 1e6)


def acquisition_of(connection: sa.Connection, study_instance_uid: str) -> int:
    """Return the acquisition state of a study by its performed procedure steps; without one it is COMPLETED.

    It goes on as long as a step does; of those that have ended one that was completed counts.
    """
    query = (
        sa.select(procedure_steps.c.status)
        .join(procedure_step_studies, procedure_step_studies.c.step == procedure_steps.c.id)
        .where(procedure_step_studies.c.study_instance_uid == study_instance_uid)
    )
    found = set(connection.execute(query.distinct()).scalars())
    return next((state for status, state in _OF_STEPS.items() if status in found), COMPLETED)


class _Registration:
    """One request within its transaction."""

    def __init__(
        self, connection: sa.Connection, database: Database, now: int, people: People, admitted: "Admitted | None"
    ) -> None:
        self._c = connection
        self._db = database
        self._now = now
        self._people = people
        self._admitted = admitted
        self.events: list[tuple[str, str]] = []

    def run(self, batch: Sequence[_Parsed]) -> list[tuple[int, int]]:
        study_ids = self._studies(batch)
        admission_rows = self._admissions(batch, study_ids)
        known = self._known(batch)
        outcomes: list[tuple[int, int]] = []
        fresh: list[dict[str, Any]] = []
        fresh_at: list[_Parsed] = []
        places: list[tuple[_Parsed, Any]] = []
        series_ids = self._series(batch, study_ids)
        for item in batch:
            record = item.record
            study = study_ids[record.study_instance_uid]
            same_uid = known.setdefault(record.sop_instance_uid, [])
            identity = (record.transfer_syntax_uid, record.sha256)
            found = next((k for k in same_uid if k["identity"] == identity), None)
            if found is not None:
                outcomes.append((ALREADY, 0))
                places.append((item, found))
                continue
            in_study = [k for k in same_uid if k["study"] == study]
            variant = 0
            if in_study:
                outcome = VARIANT
                syntaxes = {k["identity"][0] for k in in_study}
                variant = HEADER if record.transfer_syntax_uid in syntaxes else TRANSFER_SYNTAX
            else:
                outcome = OTHER_STUDY if same_uid else NEW
            entry = {"identity": identity, "study": study}
            same_uid.append(entry)
            fresh.append(
                {
                    "study": study,
                    "series": series_ids[study, record.series_instance_uid],
                    "admission": admission_rows[study, record.admission_key]["id"],
                    "sop_instance_uid": record.sop_instance_uid,
                    "transfer_syntax_uid": record.transfer_syntax_uid,
                    "sha256": record.sha256,
                    "sop_class_uid": clean(record.sop_class_uid, 64),
                    **item.own,
                    "sort_number": sort_number(item.own["instance_number"]),
                    "rows": item.rows,
                    "columns": item.columns,
                    "number_of_frames": item.frames,
                    "bits_allocated": item.bits,
                    "length": record.length,
                    "current": outcome == NEW,
                    "variant": variant,
                    "remarks": clean("\n".join(record.remarks), 4096),
                    "calling_ae_title": clean(record.calling_ae_title, 16),
                    "receive_time": record.receive_time,
                }
            )
            fresh_at.append(item)
            places.append((item, entry))
            outcomes.append((outcome, variant))
        if fresh:
            self._insert(fresh, known)
        self._places(places)
        self._count(fresh, fresh_at, admission_rows)
        self._marks(batch)
        return outcomes

    def _studies(self, batch: Sequence[_Parsed]) -> dict[str, int]:
        first: dict[str, _Parsed] = {}
        for item in batch:
            first.setdefault(item.record.study_instance_uid, item)
        found: dict[str, int] = {
            row.study_instance_uid: row.id for row in self._c.execute(_STUDY_IDS, {"uids": list(first)})
        }
        for uid, item in first.items():
            if uid in found:
                continue
            text = item.text
            domain = self._domain(item)
            values = {name: text[keyword] for name, keyword in FIELDS.items()}
            values["issuer_of_patient_id"] = values["issuer_of_patient_id"] or self._people.domains.issuer_of(domain)
            patient = self._people.received(self._c, domain, values, uid)
            self._c.execute(
                self._db.insert_new(studies).values(
                    study_instance_uid=uid,
                    patient=patient,
                    accession_number=text["AccessionNumber"],
                    study_date=text["StudyDate"],
                    study_time=text["StudyTime"],
                    study_id=text["StudyID"],
                    study_description=text["StudyDescription"],
                    referring_physician_name=text["ReferringPhysicianName"],
                    domain=domain,
                    verification=_begins(item.record.verification),
                    acquisition=acquisition_of(self._c, uid),
                    reading=NEW_READING,
                    first_receive_time=item.record.receive_time,
                    last_receive_time=item.record.receive_time,
                    version=1,
                )
            )
            found[uid] = self._c.execute(
                sa.select(studies.c.id).where(studies.c.study_instance_uid == uid)
            ).scalar_one()
        return found

    def _domain(self, item: _Parsed) -> str:
        record, text = item.record, item.text
        return self._people.domains.domain_of(
            record.calling_ae_title, record.source_address, text["IssuerOfPatientID"], text["AccessionNumber"]
        )

    def _admissions(self, batch: Sequence[_Parsed], study_ids: dict[str, int]) -> dict[tuple[int, bytes], Any]:
        first: dict[tuple[int, bytes], _Parsed] = {}
        for item in batch:
            first.setdefault((study_ids[item.record.study_instance_uid], item.record.admission_key), item)

        def load() -> dict[tuple[int, bytes], Any]:
            rows = self._c.execute(_ADMISSIONS, {"studies": list({study for study, _ in first})}).mappings()
            return {(row["study"], bytes(row["digest"])): row for row in rows}

        found = load()
        missing = [key for key in first if key not in found]
        for study, digest in missing:
            item = first[study, digest]
            self._c.execute(
                self._db.insert_new(admissions).values(
                    study=study,
                    digest=digest,
                    station=clean(item.record.calling_ae_title, 64),
                    patient_id=item.text["PatientID"],
                    issuer_of_patient_id=item.text["IssuerOfPatientID"],
                    patient_name=item.text["PatientName"],
                    patient_birth_date=item.text["PatientBirthDate"],
                    patient_sex=item.text["PatientSex"],
                    accession_number=item.text["AccessionNumber"],
                    verification=_begins(item.record.verification),
                    domain=self._domain(item),
                    source_address=clean(item.record.source_address, 128),
                    receive_time=item.record.receive_time,
                    update_time=self._now,
                )
            )
        for study in dict.fromkeys(study for study, _ in missing):
            derive_verification(self._c, study, actor="registry", now=self._now)
        if missing and self._admitted is not None:
            self.events += self._admitted.admitted(self._c, missing)
        return load() if missing else found

    def _series(self, batch: Sequence[_Parsed], study_ids: dict[str, int]) -> dict[tuple[int, str], int]:
        first: dict[tuple[int, str], _Parsed] = {}
        for item in batch:
            first.setdefault((study_ids[item.record.study_instance_uid], item.record.series_instance_uid), item)

        def load() -> dict[tuple[int, str], int]:
            rows = self._c.execute(_SERIES_IDS, {"studies": list({study for study, _ in first})})
            return {(row.study, row.series_instance_uid): row.id for row in rows}

        found = load()
        missing = [key for key in first if key not in found]
        for study, uid in missing:
            item = first[study, uid]
            text = item.text
            values = {
                "study": study,
                "series_instance_uid": uid,
                "modality": text["Modality"],
                "series_number": text["SeriesNumber"],
                "series_description": text["SeriesDescription"],
                "body_part_examined": text["BodyPartExamined"],
                "series_date": text["SeriesDate"],
                "series_time": text["SeriesTime"],
                "station_name": text["StationName"],
                "manufacturer": text["Manufacturer"],
                "header": item.record.header,
            }
            if self._db.add(self._c, series, values):
                self._new_modality(study, text["Modality"])
        return load() if missing else found

    def _new_modality(self, study: int, modality: str) -> None:
        """Count a new series, and its modality if the study had none of it."""
        modality = modality.replace("\\", "")[:16]
        present = self._c.execute(sa.select(studies.c.modalities).where(studies.c.id == study)).scalar_one()
        if modality and f"\\{modality}\\" not in present:
            present = f"{present or chr(92)}{modality}\\"
        self._c.execute(
            sa.update(studies)
            .where(studies.c.id == study)
            .values(modalities=present, series_count=studies.c.series_count + 1)
        )

    def _known(self, batch: Sequence[_Parsed]) -> dict[str, list[dict[str, Any]]]:
        known: dict[str, list[dict[str, Any]]] = {}
        uids = list({item.record.sop_instance_uid for item in batch})
        for row in self._c.execute(_INSTANCES, {"uids": uids}):
            identity = (row.transfer_syntax_uid, bytes(row.sha256))
            known.setdefault(row.sop_instance_uid, []).append({"identity": identity, "study": row.study, "id": row.id})
        return known

    def _insert(self, fresh: list[dict[str, Any]], known: dict[str, list[dict[str, Any]]]) -> None:
        """Insert instances, and give what is known of them their ids, in whatever order the database tells them."""
        for row in self._c.execute(_INSERT, fresh):
            identity = (row.transfer_syntax_uid, bytes(row.sha256))
            next(k for k in known[row.sop_instance_uid] if k["identity"] == identity)["id"] = row.id

    def _places(self, places: Sequence[tuple[_Parsed, Any]]) -> None:
        if places:
            self._c.execute(
                self._db.insert_new(locations),
                [
                    {
                        "instance": entry["id"],
                        "store_id": item.record.store_id,
                        "study_hash": item.record.study_hash,
                        "generation": item.record.generation,
                        "sequence": item.record.sequence,
                        "residence": item.record.residence,
                    }
                    for item, entry in places
                ],
            )

    def _count(
        self,
        fresh: Sequence[dict[str, Any]],
        fresh_at: Sequence[_Parsed],
        admission_rows: dict[tuple[int, bytes], Any],
    ) -> None:
        by_study: defaultdict[int, Counter[str]] = defaultdict(Counter)
        by_series: Counter[int] = Counter()
        for values, item in zip(fresh, fresh_at, strict=True):
            counts = by_study[values["study"]]
            counts["last"] = max(counts["last"], values["receive_time"])
            if not values["current"]:
                counts["variants"] += 1
                continue
            counts["n"] += 1
            counts["size"] += values["length"]
            held = admission_rows[values["study"], item.record.admission_key]["verification"] == HELD
            counts["held"] += held
            by_series[values["series"]] += 1
        if by_study:
            names = ("n", "size", "held", "variants", "last")
            self._c.execute(
                _COUNT_STUDY,
                [{"study": study, **{name: counts[name] for name in names}} for study, counts in by_study.items()],
            )
        if by_series:
            self._c.execute(_COUNT_SERIES, [{"one": one, "n": count} for one, count in by_series.items()])

    def _marks(self, batch: Sequence[_Parsed]) -> None:
        """Move the marks: everything up to a mark is registered."""
        for place in dict.fromkeys(
            (item.record.store_id, item.record.study_hash, item.record.generation) for item in batch
        ):
            key = dict(zip(_PLACE, place, strict=True))
            before = self._c.execute(_REGISTERED, key).scalar() or 0
            last = before
            for sequence in self._c.execute(_SEQUENCES, {**key, "after": before}).scalars():
                if sequence != last + 1:
                    break
                last = sequence
            if last > before:
                self._c.execute(self._db.upsert(marks, list(_PLACE), {**key, "registered": last}))


class Admitted(Protocol):
    """Whom new admissions concern: radmesh.database_server.verification."""

    def admitted(self, c: sa.Connection, fresh: Sequence[tuple[int, bytes]]) -> list[tuple[str, str]]:
        """Apply what was decided about admissions (study, digest) before they came; return what the feed is to say."""
        ...


def _begins(verification: int) -> int:
    """Return what an admission begins with.

    A ticket's VERIFIED and UNVERIFIED wait for the decision that names the order, or says why. HELD waits for
    nothing: what contradicts must not be seen for a moment.
    """
    return PENDING if verification in (VERIFIED, UNVERIFIED) else verification


def derive_verification(connection: sa.Connection, study: int, *, actor: str, now: int, note: str = "") -> None:
    """Make a study's verification the worst of its admissions', with an entry in its history.

    What a person noted is written down, also where another admission is worse.
    """
    rows = connection.execute(
        sa.select(admissions.c.verification, admissions.c.reason).where(admissions.c.study == study)
    ).all()
    if not rows:
        return
    worst = min(rows, key=lambda row: WORST.index(row.verification) if row.verification in WORST else len(WORST))
    before = connection.execute(
        sa.select(studies.c.verification, studies.c.verification_reason, studies.c.version).where(studies.c.id == study)
    ).one()
    same = (before.verification, before.verification_reason) == (worst.verification, worst.reason)
    if same and not note:
        return
    connection.execute(
        sa.update(studies)
        .where(studies.c.id == study)
        .values(verification=worst.verification, verification_reason=worst.reason, version=studies.c.version + 1)
    )
    connection.execute(
        sa.insert(history).values(
            study=study,
            axis="verification",
            from_state=str(before.verification),
            to_state=str(worst.verification),
            reason=note or worst.reason,
            actor=actor,
            time=now,
            version=before.version + 1,
        )
    )
