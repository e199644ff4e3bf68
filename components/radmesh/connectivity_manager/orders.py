"""What the RIS said of patients and orders, and what is compared with it. All of it within a domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from radmesh.connectivity_manager.matching import OrderKeys, Person, Policy, Result, StudyKeys, match
from radmesh.connectivity_manager.publishing import Events
from radmesh.connectivity_manager.schema import orders, patients
from radmesh.hl7.orders import MergeEvent, OrderEvent, Patient, PatientEvent
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

# OrderStatus of database.v1
STATUS: Final = {"": 1, "SCHEDULED": 1, "IN_PROGRESS": 2, "COMPLETED": 3, "CANCELLED": 4}
CANCELLED: Final = 4
_FOUND_MOST: Final = 100
_SAME_DATE_MOST: Final = 1000
_DEMOGRAPHICS: Final = ("patient_name", "patient_birth_date", "patient_sex")
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
    "referring_physician_name",
)


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

    def apply_orders(self, c: sa.Connection, domain: str, news: Sequence[OrderEvent], said_at: str) -> bool:
        """Take over orders."""
        changed = False
        for event in news:
            patient = self._patient(c, domain, event.patient, said_at)
            changed = self._order(c, domain, event, patient, said_at) or changed
        return changed

    def apply_patient(self, c: sa.Connection, domain: str, news: PatientEvent, said_at: str) -> bool:
        """Take over demographics; orders follow, since they only name their patient."""
        patient = self._patient(c, domain, news.patient, said_at)
        self._events.append(c, domain, patient=self._person(c, patient))
        return True

    def apply_merges(self, c: sa.Connection, domain: str, news: MergeEvent, said_at: str) -> bool:
        """Let the prior IDs be the surviving ones from now on.

        Raises:
            RadmeshError: HL7_FIELD_INVALID: prior and surviving patient are one, or were merged the other way round.
        """
        changed = False
        for merge in news.merges:
            if _same_identity(merge.prior, merge.surviving):
                raise _bad_merge("prior and surviving patient are the same")
            prior = self._row(c, domain, merge.prior)
            surviving = self._patient(c, domain, merge.surviving, said_at)
            if prior is not None and self._resolved(c, prior).id == surviving:
                # It was so already, unless it was the other way round.
                if prior.id == surviving:
                    raise _bad_merge("the surviving patient was merged into the prior one before")
                continue
            before = prior.id if prior is not None else self._insert(c, domain, merge.prior, said_at)
            # Who was merged before is who that was merged into: it is the whole of them that moves.
            root = self._resolved(c, self._by_key(c, before)).id
            told = self._person(c, root)
            # Paths are kept short: whoever was the prior one is the surviving one too.
            c.execute(
                sa.update(patients)
                .where(sa.or_(patients.c.id.in_((before, root)), patients.c.merged_into.in_((before, root))))
                .values(merged_into=surviving)
            )
            c.execute(sa.update(orders).where(orders.c.patient.in_((before, root))).values(patient=surviving))
            self._events.append(c, domain, merge=(told, self._person(c, surviving)))
            changed = True
        return changed

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

    def _insert(self, c: sa.Connection, domain: str, patient: Patient, said_at: str) -> int:
        values = {name: getattr(patient, name) for name in _DEMOGRAPHICS}
        key = c.execute(
            sa.insert(patients)
            .values(
                domain=domain,
                patient_id=patient.patient_id,
                issuer_of_patient_id=patient.issuer_of_patient_id,
                said_at=said_at,
                **values,
            )
            .returning(patients.c.id)
        ).scalar_one()
        return int(key)

    def _patient(self, c: sa.Connection, domain: str, patient: Patient, said_at: str) -> int:
        """Return the row of a patient, with what the message says of it; a merged ID is the surviving patient."""
        row = self._row(c, domain, patient)
        if row is None:
            return self._insert(c, domain, patient, said_at)
        row = self._resolved(c, row)
        if _older(said_at, row.said_at):
            return int(row.id)
        values = {n: getattr(patient, n) for n in _DEMOGRAPHICS if getattr(patient, n) or n in patient.cleared}
        values = {name: value for name, value in values.items() if getattr(row, name) != value}
        if values or said_at > row.said_at:
            c.execute(
                sa.update(patients).where(patients.c.id == row.id).values(said_at=said_at or row.said_at, **values)
            )
        return int(row.id)

    def _person(self, c: sa.Connection, key: int) -> Person:
        return person(self._resolved(c, self._by_key(c, key)))

    # -- orders

    def _order(self, c: sa.Connection, domain: str, event: OrderEvent, patient: int, said_at: str) -> bool:
        values = {name: getattr(event, name) for name in _FIELDS}
        row = self._find(c, domain, event)
        now = micros(self._clock.now())
        if row is None:
            order_id = self._name(c, domain, event)
            status = CANCELLED if event.action == "CANCEL" else STATUS[event.status]
            c.execute(
                sa.insert(orders).values(
                    domain=domain,
                    order_id=order_id,
                    patient=patient,
                    status=status,
                    said_at=said_at,
                    update_time=now,
                    **values,
                )
            )
        else:
            if _older(said_at, row.said_at):
                return False
            order_id = row.order_id
            # What a message does not say stays as it was.
            values = {name: value for name, value in values.items() if value}
            if event.status:
                values["status"] = STATUS[event.status]
            c.execute(
                sa.update(orders)
                .where(orders.c.id == row.id)
                .values(patient=patient, said_at=said_at or row.said_at, update_time=now, **values)
            )
        self._events.append(c, domain, order=self.told(c, sa.select(orders).where(orders.c.order_id == order_id))[0])
        return True

    def _find(self, c: sa.Connection, domain: str, event: OrderEvent) -> Any:
        """Return the order that a message means: by accession number, else filler, else placer number."""
        for column, value in (
            (orders.c.accession_number, event.accession_number),
            (orders.c.filler_order_number, event.filler_order_number),
            (orders.c.placer_order_number, event.placer_order_number),
        ):
            if not value:
                continue
            query = sa.select(orders).where(orders.c.domain == domain, column == value).order_by(orders.c.id)
            found = c.execute(query.limit(_FOUND_MOST)).all()
            uid = event.study_instance_uid
            same = [row for row in found if not uid or row.study_instance_uid in ("", uid)]
            if same:
                return next((row for row in same if row.study_instance_uid == uid), same[0])
            if found:
                return None  # another procedure of the same accession number
        return None

    def _name(self, c: sa.Connection, domain: str, event: OrderEvent) -> str:
        number = event.accession_number or f"{event.filler_order_number or event.placer_order_number}#"
        name = f"{domain}/{number}"
        taken = set(
            c.execute(
                sa.select(orders.c.order_id).where(orders.c.order_id.like(f"{_plain(name)}%", escape="\\"))
            ).scalars()
        )
        suffix = 2
        chosen = name
        while chosen in taken:
            chosen, suffix = f"{name}#{suffix}", suffix + 1
        return chosen

    def told(self, c: sa.Connection, query: Any) -> list[dict[str, Any]]:
        """Return orders with their patients, as the rest of the cluster is told of them."""
        rows = c.execute(query).mappings().all()
        return [{**row, "patient": self._person(c, row["patient"])} for row in rows]

    # -- comparisons

    def verify(self, domain: str, study: StudyKeys, policy: Policy) -> Verified:
        """Compare a study with the domain's orders."""
        with self._database.read() as c:
            known = self._known(c, domain, study.patient)
            living = sa.and_(orders.c.domain == domain, orders.c.status != CANCELLED)

            def find(*conditions: Any, most: int = _FOUND_MOST) -> list[OrderKeys]:
                query = sa.select(orders).where(living, *conditions).order_by(orders.c.id).limit(most)
                return [
                    OrderKeys(
                        row["id"],
                        row["patient"],
                        row["accession_number"],
                        row["study_instance_uid"],
                        row["scheduled_time"][:8],
                        row["modality"],
                    )
                    for row in self.told(c, query)
                ]

            def of_date() -> list[OrderKeys]:
                day = study.study_date
                conditions = [orders.c.scheduled_time >= day, orders.c.scheduled_time < day + "~"]
                if "id" in policy.patient_key.split("+"):
                    ids = [row.id for row in known]
                    if not ids:
                        return []
                    conditions.append(orders.c.patient.in_(ids))
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
            told = {row["id"]: row for row in self.told(c, sa.select(orders).where(orders.c.id.in_(ids)))}
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
        if len(known) != 1 or known[0].patient_id == patient.patient_id:
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


def _older(said_at: str, before: str) -> bool:
    """Whether a message is from before what is known: compared to the second, and only where both say when."""
    ours, theirs = said_at[:14], before[:14]
    return len(ours) == len(theirs) == 14 and ours < theirs


def _same_identity(one: Patient, other: Patient) -> bool:
    return (one.patient_id, one.issuer_of_patient_id) == (other.patient_id, other.issuer_of_patient_id)


def _bad_merge(text: str) -> RadmeshError:
    return RadmeshError("HL7_FIELD_INVALID", text, metadata={"location": "MRG-1"})


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
