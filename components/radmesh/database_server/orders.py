"""Orders, patients and merges, as the Connectivity Managers tell them; the worklist (FEATURES DB1, DB3)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.queries import Cursor, matches
from radmesh.database_server.registry import clean, name_key
from radmesh.database_server.schema import managers, merged_studies, merges, orders, patients, studies
from radmesh.database_server.statuses import Statuses
from radmesh.database_server.verification import of_order
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

PATIENT_FIELDS: Final = (
    "patient_id",
    "issuer_of_patient_id",
    "patient_name",
    "patient_birth_date",
    "patient_sex",
)
ORDER_FIELDS: Final = (
    "order_id",
    "domain",
    "accession_number",
    "placer_order_number",
    "filler_order_number",
    "study_instance_uid",
    "scheduled_time",
    "modality",
    "station_ae_title",
    "procedure_code",
    "procedure_description",
    "requested_procedure_id",
    "referring_physician_name",
)
# A patient has more studies than that in nobody's lifetime.
_STUDIES_MOST: Final = 10_000
Event = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RisEvent:
    """One thing that a RIS said: exactly one of `order`, `patient`, `merge`, `available` is given."""

    sequence: int
    domain: str
    order: Mapping[str, Any] | None = None
    patient: Mapping[str, str] | None = None
    merge: tuple[Mapping[str, str], Mapping[str, str]] | None = None
    available: bool | None = None


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """What orders are asked for; empty = any. Texts with wildcards."""

    order_id: str = ""
    domain: str = ""
    accession_number: str = ""
    patient_id: str = ""
    patient_name: str = ""
    modality: str = ""
    station_ae_title: str = ""
    scheduled_from: str = ""
    scheduled_to: str = ""
    statuses: tuple[int, ...] = field(default=())


class Orders:
    """Takes over what managers tell, and finds orders."""

    def __init__(self, database: Database, feed: Feed, clock: Clock, statuses: Statuses) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._statuses = statuses

    def apply(self, manager: str, epoch: bytes, news: Sequence[RisEvent]) -> tuple[int, int]:
        """Apply events in their order, all or none; return the last sequence applied, and the revision.

        Raises:
            RadmeshError: EVENT_GAP, FIELD_INVALID.
        """

        def work(c: sa.Connection) -> tuple[int, list[Event]]:
            self._database.serialise(c)
            row = c.execute(sa.select(managers).where(managers.c.name == manager)).first()
            last = row.sequence if row is not None and bytes(row.epoch) == epoch else 0
            published: dict[Event, None] = {}
            for event in news:
                if event.sequence <= last:
                    continue
                if event.sequence != last + 1:
                    raise RadmeshError(
                        "EVENT_GAP",
                        f"event {last + 1} is expected: tell it first",
                        metadata={"sequence": str(last + 1)},
                    )
                published |= dict.fromkeys(self._apply(c, event))
                last = event.sequence
            values = {"name": manager, "epoch": epoch, "sequence": last}
            c.execute(self._database.upsert(managers, ["name"], values))
            return last, list(published)

        last, revision = self._feed.write(work)
        return last, revision  # type: ignore[return-value]

    def _apply(self, c: sa.Connection, event: RisEvent) -> Iterator[Event]:
        if event.order is not None:
            yield from self._order(c, event.domain, event.order)
        elif event.patient is not None:
            yield from self._patient(c, event.domain, event.patient)
        elif event.merge is not None:
            yield from self._merge(c, event.domain, *event.merge)
        elif event.available is not None:
            yield "domain", event.domain

    def _order(self, c: sa.Connection, domain: str, order: Mapping[str, Any]) -> Iterator[Event]:
        values = {name: clean(str(order.get(name, "")), 1024) for name in (*ORDER_FIELDS, *PATIENT_FIELDS)}
        values |= {
            "domain": domain,
            "name_key": name_key(values["patient_name"]),
            "status": order.get("status", 0),
            "update_time": order.get("update_time", 0),
        }
        c.execute(self._database.upsert(orders, ["order_id"], values))
        yield "order", f"{domain} {values['accession_number']}"
        # An order that names another patient now is a contradiction, which the verification finds: nothing is laid.
        linked = (
            sa.select(studies)
            .join(patients, patients.c.id == studies.c.patient)
            .where(studies.c.order_id == values["order_id"], patients.c.patient_id == values["patient_id"])
        )
        for study in c.execute(linked.limit(_STUDIES_MOST)).all():
            if self._statuses.lay(c, study, of_order(values), source=f"ris:{domain}", actor="ris"):
                yield "correction", study.study_instance_uid

    def _patient(self, c: sa.Connection, domain: str, patient: Mapping[str, str]) -> Iterator[Event]:
        """New demographics of a patient: orders say them, and verified studies show them."""
        values = {name: clean(patient.get(name, ""), 1024) for name in PATIENT_FIELDS}
        mine = sa.and_(
            orders.c.domain == domain,
            orders.c.patient_id == values["patient_id"],
            orders.c.issuer_of_patient_id == values["issuer_of_patient_id"],
        )
        c.execute(sa.update(orders).where(mine).values(**values, name_key=name_key(values["patient_name"])))
        yield "patient", f"{domain} {values['patient_id']}"
        linked = sa.select(orders.c.order_id).where(mine)
        for study in c.execute(sa.select(studies).where(studies.c.order_id.in_(linked)).limit(_STUDIES_MOST)).all():
            if self._statuses.lay(c, study, of_order(values), source=f"ris:{domain}", actor="ris"):
                yield "correction", study.study_instance_uid

    # -- merges

    def _row(self, c: sa.Connection, domain: str, patient: Mapping[str, str]) -> int:
        """Return the row of a patient of a RIS, made if it is not there."""
        values = {name: clean(patient.get(name, ""), 1024) for name in PATIENT_FIELDS}
        identity = f"ris\x1f{domain}\x1f{values['issuer_of_patient_id']}\x1f{values['patient_id']}"
        c.execute(
            self._database.insert_new(patients).values(
                identity=identity, name_key=name_key(values["patient_name"]), **values
            )
        )
        return int(c.execute(sa.select(patients.c.id).where(patients.c.identity == identity)).scalar_one())

    def _root(self, c: sa.Connection, patient: int) -> int:
        """Return who a patient is now; merges in force never make a circle."""
        seen = {patient}
        while True:
            following = c.execute(
                sa.select(merges.c.surviving).where(merges.c.prior == patient, merges.c.undo_time == 0)
            ).scalar()
            if following is None or following in seen:
                return patient
            seen.add(following)
            patient = following

    def _merge(
        self, c: sa.Connection, domain: str, prior: Mapping[str, str], surviving: Mapping[str, str]
    ) -> Iterator[Event]:
        before, after = self._row(c, domain, prior), self._root(c, self._row(c, domain, surviving))
        # The same again, a patient into itself, or the way back: nothing.
        if self._root(c, before) == after or before == after:
            return
        before = self._root(c, before)
        key = c.execute(
            sa.insert(merges)
            .values(domain=domain, prior=before, surviving=after, time=micros(self._clock.now()))
            .returning(merges.c.id)
        ).scalar_one()
        moved = c.execute(sa.select(studies).where(studies.c.patient == before).limit(_STUDIES_MOST)).all()
        if moved:
            c.execute(sa.insert(merged_studies), [{"merge": key, "study": study.id} for study in moved])
        c.execute(sa.update(merges).where(merges.c.id == key).values(study_count=len(moved)))
        yield from self._move(c, domain, moved, before, after, prior, surviving)

    def _move(
        self,
        c: sa.Connection,
        domain: str,
        moved: Sequence[Any],
        before: int,
        after: int,
        prior: Mapping[str, str],
        surviving: Mapping[str, str],
    ) -> Iterator[Event]:
        """Give studies and orders of one patient to another."""
        row = c.execute(sa.select(patients).where(patients.c.id == after)).one()
        now = {name: getattr(row, name) for name in PATIENT_FIELDS}
        old = c.execute(sa.select(patients).where(patients.c.id == before)).one()
        c.execute(
            sa.update(orders)
            .where(
                orders.c.domain == domain,
                orders.c.patient_id == old.patient_id,
                orders.c.issuer_of_patient_id == old.issuer_of_patient_id,
            )
            .values(**now, name_key=row.name_key)
        )
        for study in moved:
            self._statuses.lay(c, study, of_order(now), source=f"ris:{domain}", actor="ris")
            c.execute(sa.update(studies).where(studies.c.id == study.id).values(patient=after))
            yield "correction", study.study_instance_uid
        for patient in (prior, surviving):
            yield "patient", f"{domain} {clean(patient.get('patient_id', ''), 1024)}"

    def merges(self, domain: str, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of merges, newest first, and the next token."""
        cursor = Cursor(("merges", domain))
        position = cursor.read(token)
        query = sa.select(merges).order_by(merges.c.id.desc()).limit(size + 1)
        if domain:
            query = query.where(merges.c.domain == domain)
        if position:
            query = query.where(merges.c.id < position[0])
        with self._database.read() as c:
            rows = [self._told(c, row) for row in c.execute(query).mappings()]
        more = len(rows) > size
        rows = rows[:size]
        return rows, cursor.write(rows[-1]["id"]) if more else ""

    def _told(self, c: sa.Connection, row: Any) -> dict[str, Any]:
        told = dict(row)
        for name in ("prior", "surviving"):
            told[name] = c.execute(sa.select(patients).where(patients.c.id == row[name])).mappings().one()
        return told

    def undo(self, key: int, actor: str) -> dict[str, Any]:
        """Give back the studies that a merge moved.

        Raises:
            RadmeshError: MERGE_NOT_FOUND, MERGE_UNDONE, MERGE_BURIED.
        """

        def work(c: sa.Connection) -> tuple[dict[str, Any], list[Event]]:
            self._database.serialise(c)
            row = c.execute(sa.select(merges).where(merges.c.id == key)).mappings().first()
            if row is None:
                raise RadmeshError("MERGE_NOT_FOUND", "there is no such merge")
            if row["undo_time"]:
                raise RadmeshError("MERGE_UNDONE", "the merge was undone before")
            later = c.execute(
                sa.select(merges.c.id).where(
                    merges.c.id > key,
                    merges.c.undo_time == 0,
                    sa.or_(merges.c.prior == row["surviving"], merges.c.surviving == row["prior"]),
                )
            ).scalar()
            if later is not None:
                raise RadmeshError("MERGE_BURIED", f"merge {later} came after it: undo that one first")
            now = micros(self._clock.now())
            c.execute(sa.update(merges).where(merges.c.id == key).values(undo_time=now, undo_actor=clean(actor, 256)))
            moved = c.execute(
                sa.select(studies)
                .join(merged_studies, merged_studies.c.study == studies.c.id)
                .where(merged_studies.c.merge == key)
            ).all()
            told = self._told(c, row)
            events: list[Event] = []
            prior = {name: told["prior"][name] for name in PATIENT_FIELDS}
            for study in moved:
                self._statuses.lay(c, study, of_order(prior), source=f"ris:{row['domain']}", actor=actor)
                c.execute(sa.update(studies).where(studies.c.id == study.id).values(patient=row["prior"]))
                events.append(("correction", study.study_instance_uid))
                if study.order_id:
                    c.execute(
                        sa.update(orders)
                        .where(orders.c.order_id == study.order_id)
                        .values(**prior, name_key=told["prior"]["name_key"])
                    )
            events += [("patient", f"{row['domain']} {told[n]['patient_id']}") for n in ("prior", "surviving")]
            return {**told, "undo_time": now, "undo_actor": clean(actor, 256)}, events

        undone, _ = self._feed.write(work)
        return undone  # type: ignore[return-value]

    # -- the worklist

    def find(self, wanted: OrderFilter, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of orders by scheduled time, and the next token."""
        cursor = Cursor(("orders", wanted))
        position = cursor.read(token)
        conditions = []
        for column, value in (
            (orders.c.order_id, wanted.order_id),
            (orders.c.domain, wanted.domain),
            (orders.c.accession_number, wanted.accession_number),
            (orders.c.patient_id, wanted.patient_id),
            (orders.c.modality, wanted.modality),
            (orders.c.station_ae_title, wanted.station_ae_title),
        ):
            if value and value.strip("*"):
                conditions.append(matches(column, value))
        if wanted.patient_name.strip("*"):
            folded = name_key(wanted.patient_name).strip("=")
            conditions.append(matches(orders.c.name_key, f"*={folded}=*"))
        if wanted.scheduled_from:
            conditions.append(orders.c.scheduled_time >= wanted.scheduled_from)
        if wanted.scheduled_to:
            # Both ends included, also where one is more precise than the other.
            conditions.append(
                sa.func.substr(orders.c.scheduled_time, 1, len(wanted.scheduled_to)) <= wanted.scheduled_to
            )
            conditions.append(orders.c.scheduled_time != "")
        if wanted.statuses:
            conditions.append(orders.c.status.in_(wanted.statuses))
        if position:
            conditions.append(
                sa.tuple_(orders.c.scheduled_time, orders.c.id)
                > sa.tuple_(sa.literal(position[0]), sa.literal(position[1]))
            )
        query = sa.select(orders).where(*conditions).order_by(orders.c.scheduled_time, orders.c.id).limit(size + 1)
        with self._database.read() as c:
            rows = [dict(row) for row in c.execute(query).mappings()]
        more = len(rows) > size
        rows = rows[:size]
        return rows, cursor.write(rows[-1]["scheduled_time"], rows[-1]["id"]) if more else ""

    def order(self, order_id: str) -> dict[str, Any] | None:
        """Return an order; None if there is none."""
        with self._database.read() as c:
            row = c.execute(sa.select(orders).where(orders.c.order_id == order_id)).mappings().first()
        return dict(row) if row is not None else None
