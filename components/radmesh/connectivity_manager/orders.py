"""What the RIS said of patients and orders, and what is compared with it. All of it within a domain."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import sqlalchemy as sa

from radmesh.connectivity_manager.matching import OrderKeys, Person, Policy, Result, StudyKeys, match
from radmesh.connectivity_manager.publishing import Events
from radmesh.connectivity_manager.schema import orders, patients, undone
from radmesh.hl7.message import Message
from radmesh.hl7.orders import MergeEvent, OrderEvent, Patient, PatientEvent
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

# OrderStatus of database.v1
STATUS: Final = {"": 1, "SCHEDULED": 1, "IN_PROGRESS": 2, "COMPLETED": 3, "CANCELLED": 4}
CANCELLED: Final = 4
_FOUND_MOST: Final = 100
_SAME_DATE_MOST: Final = 5000
_HOUR: Final = timedelta(hours=1)
# No zone is further from UTC.
_DAY: Final = timedelta(hours=26)
_TIME: Final = re.compile(r"(\d{14})(?:\.\d+)?([+-]\d{4})?")
_DEMOGRAPHICS: Final = ("patient_name", "patient_birth_date", "patient_sex")
_PERSON: Final = ("patient_id", "issuer_of_patient_id", *_DEMOGRAPHICS)
_FIELDS: Final = (
    "accession_number",
    "placer_order_number",
    "filler_order_number",
    "study_instance_uid",
    "scheduled_time",
    "modality",
    "station_ae_title",
    "procedure_code",
    "procedure_code_scheme",
    "procedure_description",
    "requested_procedure_id",
    "scheduled_procedure_step_id",
    "referring_physician_name",
)


@dataclass(frozen=True, slots=True)
class Said:
    """When a message was said: MSH-7 as YYYYMMDDHHMMSS, with "Z" if it told its zone and this is UTC; "" = not known.

    `again`: it is a dead letter that is replayed.
    """

    at: str = ""
    again: bool = False

    @classmethod
    def of(cls, message: Message, now: datetime, *, again: bool = False) -> Self:
        """Return what MSH-7 says. A time that is still to come is none: it would make all that follows old."""
        found = _TIME.match(message.time)
        try:
            said = datetime.strptime(f"{found[1]}{found[2] or '+0000'}" if found else "", "%Y%m%d%H%M%S%z")
        except ValueError:
            return cls(again=again)
        if said > now + _DAY:
            return cls(again=again)
        return cls(f"{said.astimezone(UTC):%Y%m%d%H%M%S}{'Z' if found and found[2] else ''}", again)

    def older(self, before: str) -> bool:
        """Whether it is clearly from before what is known; a local clock that goes back an hour makes nothing old."""
        if not self.at or len(self.at) != len(before):
            return False
        margin = timedelta(0) if self.again or self.at.endswith("Z") else _HOUR
        return _moment(self.at) + margin < _moment(before)


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of a comparison, with the orders as they are told."""

    result: Result
    orders: tuple[dict[str, Any], ...]


class Orders:
    """Applies messages within a transaction of the caller, and answers comparisons."""

    def __init__(self, database: Database, events: Events, clock: Clock) -> None:
        self._database = database
        self._events = events
        self._clock = clock

    # -- what a message does; each returns whether it changed anything

    def apply_orders(self, c: sa.Connection, domain: str, news: Sequence[OrderEvent], said: Said) -> bool:
        """Take over orders."""
        touched: set[int] = set()
        for event in news:
            patient, renewed = self._patient(c, domain, event.patient, said)
            if renewed:
                self._events.append(c, domain, patient=self._person(c, patient))
            self._order(c, domain, event, patient, said, touched)
        return bool(touched)

    def apply_patient(self, c: sa.Connection, domain: str, news: PatientEvent, said: Said) -> bool:
        """Take over demographics; orders follow, since they only name their patient."""
        patient, _ = self._patient(c, domain, news.patient, said)
        self._events.append(c, domain, patient=self._person(c, patient))
        return True

    def apply_merges(self, c: sa.Connection, domain: str, news: MergeEvent, said: Said) -> bool:
        """Let the prior IDs be the surviving ones from now on.

        Raises:
            RadmeshError: HL7_FIELD_INVALID: prior and surviving patient are one, or contradict an earlier merge: to
                join all of them would join patients whom nobody said to be one.
        """
        changed = False
        for merge in news.merges:
            if _same_identity(merge.prior, merge.surviving):
                raise _bad_merge("prior and surviving patient are the same")
            prior = self._row(c, domain, merge.prior)
            surviving, renewed = self._patient(c, domain, merge.surviving, said)
            if prior is not None and prior.id == surviving:
                raise _bad_merge("the surviving patient was merged into the prior one before")
            if prior is not None and prior.merged_into:
                if prior.merged_into != surviving:
                    raise _bad_merge("the prior patient was merged into another one before")
                if renewed:
                    self._events.append(c, domain, patient=self._person(c, surviving))
                changed = changed or renewed
                continue
            before = prior.id if prior is not None else self._insert(c, domain, merge.prior, said)
            told = self._person(c, before)
            # Paths are kept short: whoever was the prior one is the surviving one too.
            c.execute(
                sa.update(patients)
                .where(sa.or_(patients.c.id == before, patients.c.merged_into == before))
                .values(merged_into=surviving)
            )
            c.execute(sa.update(patients).where(patients.c.id == before).values(surviving=surviving))
            c.execute(sa.update(orders).where(orders.c.patient == before).values(patient=surviving))
            self._events.append(c, domain, merge=(told, self._person(c, surviving)))
            changed = True
        return changed

    def undo_merge(self, c: sa.Connection, domain: str, merge: str, prior: Patient) -> bool:
        """Set a prior patient apart again, with whom was merged into it before and all orders that named these."""
        if c.execute(sa.select(undone.c.merge).where(undone.c.merge == merge)).first() is not None:
            return False
        c.execute(sa.insert(undone).values(merge=merge, time=micros(self._clock.now())))
        row = self._row(c, domain, prior)
        if row is None or not row.merged_into:
            return False
        members = last = [row.id]
        while last:
            last = list(c.execute(sa.select(patients.c.id).where(patients.c.surviving.in_(last))).scalars())
            members = members + last
        c.execute(sa.update(patients).where(patients.c.id.in_(members)).values(merged_into=row.id))
        c.execute(sa.update(patients).where(patients.c.id == row.id).values(merged_into=0, surviving=0))
        named = orders.c.named.in_(members)
        c.execute(sa.update(orders).where(named).values(patient=row.id, update_time=micros(self._clock.now())))
        self._events.append(c, domain, patient=self._person(c, row.id))
        for order in self.told(c, named):
            self._events.append(c, domain, order=order)
        return True

    # -- patients

    def _by_key(self, c: sa.Connection, key: int) -> Any:
        return c.execute(sa.select(patients).where(patients.c.id == key)).one()

    def _row(self, c: sa.Connection, domain: str, patient: Patient) -> Any:
        return c.execute(
            sa.select(patients).where(
                patients.c.domain == domain,
                patients.c.patient_id == patient.patient_id,
                patients.c.issuer_of_patient_id == patient.issuer_of_patient_id,
            )
        ).first()

    def _resolved(self, c: sa.Connection, row: Any) -> Any:
        # merged_into points at who is merged into nobody; bounded all the same.
        for _ in range(8):
            if not row.merged_into:
                return row
            row = self._by_key(c, row.merged_into)
        raise AssertionError("patients merged in a circle")

    def _insert(self, c: sa.Connection, domain: str, patient: Patient, said: Said) -> int:
        values = {name: getattr(patient, name) for name in _DEMOGRAPHICS}
        key = c.execute(
            sa.insert(patients)
            .values(
                domain=domain,
                patient_id=patient.patient_id,
                issuer_of_patient_id=patient.issuer_of_patient_id,
                said_at=said.at,
                **values,
            )
            .returning(patients.c.id)
        ).scalar_one()
        return int(key)

    def _patient(self, c: sa.Connection, domain: str, patient: Patient, said: Said) -> tuple[int, bool]:
        """Return the row of a patient, with what the message says of it, and whether that was another before.

        A merged ID is the surviving patient.
        """
        row = self._row(c, domain, patient)
        if row is None:
            return self._insert(c, domain, patient, said), False
        row = self._resolved(c, row)
        if said.older(row.said_at):
            return int(row.id), False
        values = {n: getattr(patient, n) for n in _DEMOGRAPHICS if getattr(patient, n) or n in patient.cleared}
        values = {name: value for name, value in values.items() if getattr(row, name) != value}
        c.execute(sa.update(patients).where(patients.c.id == row.id).values(said_at=said.at or row.said_at, **values))
        return int(row.id), bool(values)

    def _person(self, c: sa.Connection, key: int) -> Person:
        return person(self._resolved(c, self._by_key(c, key)))

    # -- orders

    def _order(
        self, c: sa.Connection, domain: str, event: OrderEvent, patient: int, said: Said, touched: set[int]
    ) -> None:
        """Take over one order; add to `touched` the rows that it changed."""
        values = {name: getattr(event, name) for name in _FIELDS}
        now = micros(self._clock.now())
        named = self._row(c, domain, event.patient).id
        rows = self._find(c, domain, event, touched)
        changed = [row.id for row in rows if not said.older(row.said_at)]
        if not rows:
            status = STATUS[event.status or ("CANCELLED" if event.action == "CANCEL" else "")]
            key = c.execute(
                sa.insert(orders)
                .values(
                    domain=domain,
                    order_id=self._name(c, domain, event),
                    patient=patient,
                    named=named,
                    status=status,
                    said_at=said.at,
                    update_time=now,
                    **values,
                )
                .returning(orders.c.id)
            ).scalar_one()
            changed = [key]
        elif changed:
            # What a message does not say stays as it was; what it says of several, it says of their end alone.
            values = {name: value for name, value in values.items() if value and len(rows) == 1}
            if _borrowed(event) and rows[0].accession_number:
                values.pop("accession_number", None)
            if event.status:
                values["status"] = STATUS[event.status]
            if said.at:
                values["said_at"] = said.at
            c.execute(
                sa.update(orders)
                .where(orders.c.id.in_(changed))
                .values(
                    patient=patient,
                    # Under whichever of its IDs a patient is named now: an order stays with the one it came under.
                    named=sa.case((orders.c.patient == patient, orders.c.named), else_=named),
                    update_time=now,
                    **values,
                )
            )
        touched.update(changed)
        for order in self.told(c, orders.c.id.in_(changed)):
            self._events.append(c, domain, order=order)

    def _find(self, c: sa.Connection, domain: str, event: OrderEvent, touched: set[int]) -> list[Any]:
        """Return the orders that a message means: by accession number, else filler, else placer number.

        One, or none: then it is a new one. Several are meant by who cancels a filler or placer order as a whole. What
        the message told of an order before, `touched`, it does not take back: two procedures may have one number.
        """
        uid = event.study_instance_uid
        for column, value in (
            (orders.c.accession_number, event.accession_number),
            (orders.c.filler_order_number, event.filler_order_number),
            (orders.c.placer_order_number, event.placer_order_number),
        ):
            if not value:
                continue
            query = sa.select(orders).where(orders.c.domain == domain, column == value).order_by(orders.c.id)
            found = c.execute(query.limit(_FOUND_MOST)).all()
            if not found:
                continue
            left = [row for row in found if row.id not in touched]
            same = [row for row in left if row.study_instance_uid == uid != ""] or [
                row for row in left if not uid or not row.study_instance_uid
            ]
            if column is not orders.c.accession_number and not _borrowed(event):
                # It names its accession number: an order that has another is another one, unless it is to be corrected.
                fitting = [row for row in same if _borrowed(row) or row.accession_number == event.accession_number]
                same = fitting if fitting or event.action == "NEW" or len(same) > 1 else same
            if not same and event.action != "NEW" and len(left) == 1 == len(found):
                same = left  # the Study UID is to be corrected
            return same if event.action == "CANCEL" and _borrowed(event) else same[:1]
        return []

    def _name(self, c: sa.Connection, domain: str, event: OrderEvent) -> str:
        number = event.accession_number or f"{event.filler_order_number or event.placer_order_number}#"
        name = chosen = f"{domain}/{number}"
        suffix = 1
        while c.execute(sa.select(orders.c.id).where(orders.c.order_id == chosen)).first() is not None:
            suffix += 1
            chosen = f"{name}#{suffix}"
        return chosen

    def told(self, c: sa.Connection, *conditions: Any, most: int | None = None) -> list[dict[str, Any]]:
        """Return orders with their patients, as the rest of the cluster is told of them."""
        # An order's patient is merged into nobody: a merge takes the orders along.
        query = (
            sa.select(orders, *(patients.c[name].label(f"its_{name}") for name in _PERSON))
            .join(patients, patients.c.id == orders.c.patient)
            .where(*conditions)
            .order_by(orders.c.id)
            .limit(most)
        )
        return [
            {**row, "patient": Person(*(row[f"its_{name}"] for name in _PERSON))} for row in c.execute(query).mappings()
        ]

    # -- comparisons

    def verify(self, domain: str, study: StudyKeys, policy: Policy) -> Verified:
        """Compare a study with the domain's orders."""
        with self._database.read() as c:
            known = self._known(c, domain, study.patient)
            living = sa.and_(orders.c.domain == domain, orders.c.status != CANCELLED)

            def find(*conditions: Any, most: int = _FOUND_MOST) -> list[OrderKeys]:
                return [
                    OrderKeys(
                        row["id"],
                        row["patient"],
                        row["accession_number"],
                        row["study_instance_uid"],
                        row["scheduled_time"][:8],
                        row["modality"],
                    )
                    for row in self.told(c, living, *conditions, most=most)
                ]

            def of_date() -> list[OrderKeys]:
                day = study.study_date
                # Digits alone: those are ordered alike in every collation.
                conditions = [orders.c.scheduled_time >= day, orders.c.scheduled_time <= day + "999999"]
                if "id" in policy.patient_key.split("+"):
                    ids = [row.id for row in known]
                    if not ids:
                        return []
                    conditions.append(orders.c.patient.in_(ids))
                elif policy.study_key.endswith("modality"):
                    conditions.append(orders.c.modality.in_(("", study.modality)))
                return find(*conditions, most=_SAME_DATE_MOST)

            person_of_study = self._as_known(study.patient, known)
            result = match(
                StudyKeys(
                    person_of_study, study.study_instance_uid, study.accession_number, study.study_date, study.modality
                ),
                policy,
                by_uid=lambda: find(orders.c.study_instance_uid == study.study_instance_uid),
                by_accession=lambda: find(orders.c.accession_number == study.accession_number),
                by_patient_and_date=of_date,
            )
            ids = [order.handle for order in result.orders]
            told = {row["id"]: row for row in self.told(c, orders.c.id.in_(ids))}
        return Verified(result, tuple(told[key] for key in ids if key in told))

    def _known(self, c: sa.Connection, domain: str, patient: Person) -> list[Any]:
        """Return the patients that an object's Patient ID may mean, merged ones as who they are now."""
        if not patient.patient_id:
            return []
        query = sa.select(patients).where(patients.c.domain == domain, patients.c.patient_id == patient.patient_id)
        if patient.issuer_of_patient_id:
            query = query.where(patients.c.issuer_of_patient_id.in_((patient.issuer_of_patient_id, "")))
        found = {row.id: row for row in (self._resolved(c, row) for row in c.execute(query.limit(_FOUND_MOST)).all())}
        return list(found.values())

    @staticmethod
    def _as_known(patient: Person, known: Sequence[Any]) -> Person:
        """Return the patient with the ID that it has now, where that is certain."""
        if len(known) != 1:
            return patient
        now = known[0]
        return Person(
            now.patient_id,
            now.issuer_of_patient_id,
            patient.patient_name,
            patient.patient_birth_date,
            patient.patient_sex,
        )


def person(row: Any) -> Person:
    """Return a row of patients as a person."""
    return Person(row.patient_id, row.issuer_of_patient_id, row.patient_name, row.patient_birth_date, row.patient_sex)


def _moment(at: str) -> datetime:
    return datetime.strptime(at[:14], "%Y%m%d%H%M%S")  # noqa: DTZ007 - of the sender's zone, whatever that is


def _borrowed(order: OrderEvent | Any) -> bool:
    """Whether an order, or what a message says of one, has no accession number but its filler number (OBR-3)."""
    return order.accession_number in ("", order.filler_order_number)


def _same_identity(one: Patient, other: Patient) -> bool:
    return (one.patient_id, one.issuer_of_patient_id) == (other.patient_id, other.issuer_of_patient_id)


def _bad_merge(text: str) -> RadmeshError:
    return RadmeshError("HL7_FIELD_INVALID", text, metadata={"location": "MRG-1"})
