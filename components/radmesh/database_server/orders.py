"""Orders and patients, as the Connectivity Managers tell them; the worklist (FEATURES DB1, CORRECTNESS rule 15)."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.merges import Merges
from radmesh.database_server.overlay import Overlay
from radmesh.database_server.people import FIELDS as PATIENT_FIELDS
from radmesh.database_server.queries import Cursor, matches, name_matches, page
from radmesh.database_server.schema import managers, orders, patients, studies
from radmesh.database_server.texts import clean, short
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database

# Texts of an order -> most characters: those of an index are short.
FIELDS: Final = {
    "accession_number": 250,
    "placer_order_number": 250,
    "filler_order_number": 250,
    "study_instance_uid": 64,
    "scheduled_time": 26,
    "modality": 64,
    "station_ae_title": 64,
    "procedure_code": 1024,
    "procedure_code_scheme": 1024,
    "procedure_description": 1024,
    "requested_procedure_id": 1024,
    "scheduled_procedure_step_id": 1024,
    "referring_physician_name": 1024,
}
_ORDER_ID_MOST: Final = 400
_INT: Final = (1 << 31) - 1
Event = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RisEvent:
    """One thing that a RIS said: one of `order` (with its patient, in one mapping), `patient`, `merge`, `available`.

    An event that is none of them is of a manager that is newer than this: it is passed over.
    """

    sequence: int
    domain: str
    order: Mapping[str, Any] | None = None
    patient: Mapping[str, str] | None = None
    merge: tuple[Mapping[str, str], Mapping[str, str]] | None = None
    available: bool | None = None


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """What orders are asked for; empty = any. Texts may have wildcards; times are YYYYMMDD[HHMM[SS]], both included."""

    order_id: str = ""
    domain: str = ""
    accession_number: str = ""
    patient_id: str = ""
    patient_name: str = ""
    modality: str = ""
    station_ae_title: str = ""
    scheduled_from: str = ""
    scheduled_to: str = ""
    statuses: tuple[int, ...] = ()


def order_key(order: Mapping[str, Any]) -> str:
    """Return the order_id of an order as the tables keep it."""
    return short(str(order.get("order_id", "")), _ORDER_ID_MOST)


class Orders:
    """Takes over what managers tell, and finds orders."""

    def __init__(self, database: Database, feed: Feed, overlay: Overlay, merges: Merges) -> None:
        self._database = database
        self._feed = feed
        self._overlay = overlay
        self._people = overlay.people
        self._merges = merges

    def apply(self, manager: str, epoch: bytes, news: Sequence[RisEvent]) -> tuple[int, int]:
        """Apply events in their order, all or none; return the last sequence applied, and the revision.

        Nothing that a RIS may say is refused: it would stand before all that follows.

        Raises:
            RadmeshError: EVENT_GAP.
        """

        def work(c: sa.Connection) -> tuple[int, list[Event]]:
            self._database.serialise(c)
            mine = sa.and_(managers.c.name == manager, managers.c.epoch == epoch)
            last = before = c.execute(sa.select(managers.c.sequence).where(mine)).scalar() or 0
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
                published |= dict.fromkeys(self._apply(c, event, clean(event.domain, 64)))
                last = event.sequence
            if last > before:
                values = {"name": manager, "epoch": epoch, "sequence": last}
                c.execute(self._database.upsert(managers, ["name", "epoch"], values))
            return last, list(published)

        last, revision = self._feed.write(work)
        return last, revision  # type: ignore[return-value]

    def _apply(self, c: sa.Connection, event: RisEvent, domain: str) -> Iterable[Event]:
        if event.order is not None:
            return self._order(c, domain, event.order)
        if event.patient is not None:
            return self._patient(c, domain, event.patient)
        if event.merge is not None:
            return self._merges.apply(c, domain, *event.merge)
        return [("domain", domain)] if event.available is not None else []

    def _order(self, c: sa.Connection, domain: str, order: Mapping[str, Any]) -> Iterator[Event]:
        if not order_key(order):
            return
        patient, renewed = self._people.told(c, domain, order, news=True, otherwise=order_key(order))
        if renewed == "changed":
            yield from self._renewed(c, domain, patient)
        row = c.execute(sa.select(orders).where(orders.c.order_id == order_key(order))).first()
        shown = patient if renewed == "new" else self._people.root(c, patient)
        values = self._values(domain, order, patient, shown)
        if row is not None and row.shown == shown:
            values["patient"] = row.patient  # the same, by whichever of the IDs that were merged
        if row is not None and all(getattr(row, name) == value for name, value in values.items()):
            return
        yield "order", f"{domain} {values['accession_number']}"
        if row is None:
            c.execute(sa.insert(orders).values(values))
            return
        c.execute(sa.update(orders).where(orders.c.id == row.id).values(values))
        # Its patient may be another now: whether it is still theirs is for verification to find out.
        linked = sa.select(studies.c.id, studies.c.study_instance_uid).where(studies.c.order_id == values["order_id"])
        yield from self._refreshed(c, domain, linked)

    def _patient(self, c: sa.Connection, domain: str, patient: Mapping[str, str]) -> Iterator[Event]:
        if patient.get("patient_id"):
            person, renewed = self._people.told(c, domain, patient, news=True)
            if renewed:
                yield from self._renewed(c, domain, person)

    def _renewed(self, c: sa.Connection, domain: str, person: int) -> Iterator[Event]:
        """Show new demographics of a patient wherever it is shown."""
        patient_id = c.execute(sa.select(patients.c.patient_id).where(patients.c.id == person)).scalar_one()
        yield "patient", f"{domain} {patient_id}"
        if self._people.root(c, person) == person:
            yield from self._refreshed(c, domain, self._merges.studies_of(c, person))

    def _refreshed(self, c: sa.Connection, domain: str, query: Any) -> Iterator[Event]:
        for study in c.execute(query).all():
            if self._overlay.refresh(c, study.id, actor=f"ris:{domain}"):
                yield "correction", study.study_instance_uid

    @staticmethod
    def _values(domain: str, order: Mapping[str, Any], patient: int, shown: int) -> dict[str, Any]:
        return {name: clean(str(order.get(name, "")), most) for name, most in FIELDS.items()} | {
            "order_id": order_key(order),
            "domain": domain,
            "patient": patient,
            "shown": shown,
            "status": max(0, min(int(order.get("status", 0)), _INT)),
            "update_time": order.get("update_time", 0),
        }

    def patient_of(self, c: sa.Connection, domain: str, order: Mapping[str, Any]) -> int:
        """Return the patient (row of patients) of an order that was decided by.

        Where the manager's event is still under way the order becomes known by this; what an event told stays, for the
        decision may be older than that.
        """
        patient, _ = self._people.told(c, domain, order, news=False, otherwise=order_key(order))
        if c.execute(sa.select(orders.c.id).where(orders.c.order_id == order_key(order))).first() is None:
            c.execute(sa.insert(orders).values(self._values(domain, order, patient, self._people.root(c, patient))))
        return patient

    # -- the worklist

    def find(self, wanted: OrderFilter, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of orders by scheduled time, and the next token; each with its patient as it is now."""
        cursor = Cursor(("orders", wanted))
        position = cursor.read(token)
        conditions: list[Any] = []
        for column, value in (
            (orders.c.order_id, wanted.order_id),
            (orders.c.domain, wanted.domain),
            (orders.c.accession_number, wanted.accession_number),
            (patients.c.patient_id, wanted.patient_id),
            (orders.c.modality, wanted.modality),
            (orders.c.station_ae_title, wanted.station_ae_title),
        ):
            if value.strip("*"):
                conditions.append(matches(column, value))
        if wanted.patient_name.strip("*"):
            conditions.append(name_matches(self._database, wanted.patient_name))
        conditions += _scheduled(wanted.scheduled_from, wanted.scheduled_to)
        if position:
            conditions.append(
                sa.tuple_(orders.c.scheduled_time, orders.c.id)
                > sa.tuple_(sa.literal(position[0]), sa.literal(position[1]))
            )
        query = _WITH_PATIENT.where(*conditions).order_by(orders.c.scheduled_time, orders.c.id).limit(size + 1)
        # An index has the orders of one status, not of several, in the order of the answer.
        statuses = dict.fromkeys(wanted.statuses)
        queries = [query.where(orders.c.status == status) for status in statuses] or [query]
        with self._database.read() as c:
            found = [[dict(row) for row in c.execute(one).mappings()] for one in queries]
        rows = list(heapq.merge(*found, key=lambda row: (row["scheduled_time"], row["id"])))
        rows, more = page(rows, size, *_LONG)
        return rows, cursor.write(rows[-1]["scheduled_time"], rows[-1]["id"]) if more else ""

    def order(self, order_id: str, person: int = 0) -> dict[str, Any] | None:
        """Return an order with its patient as it is now, or with another (row of patients); None if there is none."""
        with self._database.read() as c:
            row = c.execute(_WITH_PATIENT.where(orders.c.order_id == order_id)).mappings().first()
            if row is None or not person:
                return dict(row) if row is not None else None
            theirs = sa.select(*_PATIENT).where(patients.c.id == self._people.root(c, person))
            return {**row, **c.execute(theirs).mappings().one()}


_PATIENT: Final = tuple(patients.c[name] for name in PATIENT_FIELDS)
_WITH_PATIENT: Final = sa.select(orders, *_PATIENT).join(patients, patients.c.id == orders.c.shown)
_LONG: Final = ("patient_name", *(name for name, most in FIELDS.items() if most > 64))


def _scheduled(first: str, last: str) -> Iterator[Any]:
    """Yield conditions for a range of times. A time that is less precise than an end may lie on either side of it."""
    column = orders.c.scheduled_time
    if first:
        shorter = [first[:length] for length in range(8, len(first))]
        yield column >= (first[:8] if shorter else first)
        if shorter:
            yield sa.or_(column >= first, column.in_(shorter))
    if last:
        # Whatever begins so is not behind it.
        yield column <= last.ljust(26, "9")
        yield column != ""
