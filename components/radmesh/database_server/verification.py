"""What the RIS, or a person, decided about the objects that share an admission key (CORRECTNESS rules 8 to 12)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.queries import Cursor
from radmesh.database_server.registry import HELD, UNVERIFIED, VERIFIED, clean, derive_verification
from radmesh.database_server.schema import admissions, instances, patients, studies, verdicts
from radmesh.database_server.statuses import Statuses, recount_held
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

OVERRIDDEN: Final = "OVERRIDDEN"
# An object that was admitted is registered within seconds, or when the spool that kept it has drained.
_KEPT: Final = timedelta(days=30)
# DICOM keyword -> field of an order's patient, or of the order.
_FROM_ORDER: Final = {
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientName": "patient_name",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
    "AccessionNumber": "accession_number",
}
Event = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Decision:
    """A verification, with what the RIS says of order and patient (`order`: see `orders.FIELDS`)."""

    study_instance_uid: str
    digest: bytes
    verification: int
    reason: str = ""
    mismatched: tuple[str, ...] = ()
    domain: str = ""
    order: Mapping[str, str] = field(default_factory=dict)
    expected_revision: int = 0
    actor: str = ""
    note: str = ""

    def kept(self) -> bytes:
        """Return the decision as the table of verdicts keeps it."""
        return json.dumps({**asdict(self), "digest": self.digest.hex(), "order": dict(self.order)}).encode()

    @classmethod
    def of(cls, kept: bytes) -> "Decision":
        """Return a decision that was kept."""
        values = json.loads(kept)
        return cls(**{**values, "digest": bytes.fromhex(values["digest"]), "mismatched": tuple(values["mismatched"])})


@dataclass(frozen=True, slots=True)
class AdmissionFilter:
    """What admissions are listed; empty = any."""

    study_instance_uid: str = ""
    verifications: tuple[int, ...] = ()
    domain: str = ""
    reason: str = ""
    accession_number: str = ""
    patient_id: str = ""


class Verifications:
    """Decides, and lists what was decided."""

    def __init__(self, database: Database, feed: Feed, clock: Clock, statuses: Statuses) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._statuses = statuses

    def decide(self, decision: Decision) -> tuple[int, int, bool]:
        """Take a decision over; return the instances concerned, the revision, and whether anything changed.

        Of objects that are not registered yet it is kept.

        Raises:
            RadmeshError: FIELD_INVALID, VERSION_CONFLICT.
        """
        if not 0 < decision.verification <= HELD:
            raise RadmeshError("FIELD_INVALID", "verification: no such state", metadata={"field": "verification"})
        if decision.verification in (UNVERIFIED, HELD) and not decision.reason:
            raise RadmeshError("FIELD_INVALID", "reason: needed for this state", metadata={"field": "reason"})

        def work(c: sa.Connection) -> tuple[tuple[int, bool], list[Event]]:
            self._database.serialise(c)
            row = self._admission(c, decision.study_instance_uid, decision.digest)
            if row is None:
                return (0, self._keep(c, decision)), []
            if decision.expected_revision and decision.expected_revision != row.revision:
                raise RadmeshError(
                    "VERSION_CONFLICT",
                    f"the admission has changed since (revision {row.revision}): read it again",
                    metadata={"version": str(row.revision)},
                )
            count = c.execute(
                sa.select(sa.func.count()).select_from(instances).where(instances.c.admission == row.id)
            ).scalar_one()
            events = self._apply(c, row, decision)
            return (count, bool(events)), events

        result: Any
        result, revision = self._feed.write(work)
        return int(result[0]), revision, bool(result[1])

    def known(self, study_instance_uid: str, digest: bytes) -> int:
        """Return what was decided of an admission key; 0 if nobody has decided."""
        with self._database.read() as c:
            row = self._admission(c, study_instance_uid, digest)
            if row is not None:
                return int(row.verification) if row.revision else 0
            return int(c.execute(sa.select(verdicts.c.verification).where(verdicts.c.digest == digest)).scalar() or 0)

    def apply_kept(self, connection: sa.Connection, study_instance_uid: str, digest: bytes) -> list[Event]:
        """Apply what was decided before the objects were registered; return what the feed is to say."""
        kept = connection.execute(sa.select(verdicts.c.request).where(verdicts.c.digest == digest)).scalar()
        row = self._admission(connection, study_instance_uid, digest)
        if kept is None or row is None:
            return []
        connection.execute(sa.delete(verdicts).where(verdicts.c.digest == digest))
        return self._apply(connection, row, Decision.of(bytes(kept)))

    def prune(self) -> None:
        """Forget decisions about objects that never came."""
        oldest = micros(self._clock.now() - _KEPT)
        self._database.write(lambda c: c.execute(sa.delete(verdicts).where(verdicts.c.time < oldest)))

    @staticmethod
    def _admission(c: sa.Connection, study_instance_uid: str, digest: bytes) -> Any:
        return c.execute(
            sa.select(admissions)
            .join(studies, studies.c.id == admissions.c.study)
            .where(studies.c.study_instance_uid == study_instance_uid, admissions.c.digest == digest)
        ).first()

    def _keep(self, c: sa.Connection, decision: Decision) -> bool:
        before = c.execute(
            sa.select(verdicts.c.verification, verdicts.c.reason).where(verdicts.c.digest == decision.digest)
        ).first()
        if before is not None and not _may_replace(before.verification, before.reason, decision):
            return False
        values = {
            "digest": decision.digest,
            "study_instance_uid": decision.study_instance_uid,
            "verification": decision.verification,
            "reason": clean(decision.reason, 64),
            "request": decision.kept(),
            "time": micros(self._clock.now()),
        }
        c.execute(self._database.upsert(verdicts, ["digest"], values))
        return before is None or (before.verification, before.reason) != (decision.verification, decision.reason)

    def _apply(self, c: sa.Connection, row: Any, decision: Decision) -> list[Event]:
        """Apply a decision to an admission; nothing where it says what is known already."""
        order_id = decision.order.get("order_id", "") if decision.verification == VERIFIED else ""
        values = {
            "verification": decision.verification,
            "reason": clean(decision.reason, 64),
            "mismatched": clean("\n".join(decision.mismatched), 1024),
            "domain": decision.domain or row.domain,
            "order_id": order_id,
        }
        if not _may_replace(row.verification, row.reason, decision):
            return []
        same = all(getattr(row, name) == value for name, value in values.items())
        study = c.execute(sa.select(studies).where(studies.c.id == row.study)).one()
        corrected = self._link(c, study, decision, order_id)
        if same and row.revision and not corrected:
            return []
        now = micros(self._clock.now())
        c.execute(
            sa.update(admissions)
            .where(admissions.c.id == row.id)
            .values(**values, update_time=now, revision=admissions.c.revision + 1)
        )
        recount_held(c, row.study)
        derive_verification(c, row.study, actor=clean(decision.actor, 256), now=now, note=clean(decision.note, 512))
        uid = study.study_instance_uid
        return [("hold", uid), *([("correction", uid)] if corrected else [])]

    def _link(self, c: sa.Connection, study: Any, decision: Decision, order_id: str) -> bool:
        """Link the study to its order, and lay what the RIS says over its demographics."""
        if decision.verification != VERIFIED:
            return False
        if decision.domain and decision.domain != study.domain:
            c.execute(sa.update(studies).where(studies.c.id == study.id).values(domain=decision.domain))
        if order_id and order_id != study.order_id:
            c.execute(sa.update(studies).where(studies.c.id == study.id).values(order_id=order_id))
        if not order_id:
            return False
        source = f"ris:{decision.domain}"
        return self._statuses.lay(c, study, of_order(decision.order), source=source, actor=decision.actor)

    def admissions(self, wanted: AdmissionFilter, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of admissions, oldest first, and the next token."""
        cursor = Cursor(("admissions", wanted))
        position = cursor.read(token) or [0]
        conditions = [admissions.c.id > position[0]]
        for column, value in (
            (studies.c.study_instance_uid, wanted.study_instance_uid),
            (admissions.c.domain, wanted.domain),
            (admissions.c.reason, wanted.reason),
            (admissions.c.accession_number, wanted.accession_number),
            (admissions.c.patient_id, wanted.patient_id),
        ):
            if value:
                conditions.append(column == value)
        if wanted.verifications:
            conditions.append(admissions.c.verification.in_(wanted.verifications))
        count = (
            sa.select(sa.func.count())
            .select_from(instances)
            .where(instances.c.admission == admissions.c.id)
            .scalar_subquery()
        )
        query = (
            sa.select(
                admissions,
                studies.c.study_instance_uid,
                studies.c.study_date,
                studies.c.modalities,
                studies.c.study_description,
                patients.c.patient_sex,
                count.label("instance_count"),
            )
            .join(studies, studies.c.id == admissions.c.study)
            .join(patients, patients.c.id == studies.c.patient)
            .where(*conditions)
            .order_by(admissions.c.id)
            .limit(size + 1)
        )
        with self._database.read() as c:
            rows = [dict(row) for row in c.execute(query).mappings()]
        more = len(rows) > size
        rows = rows[:size]
        return rows, cursor.write(rows[-1]["id"]) if more else ""


def of_order(order: Mapping[str, str]) -> dict[str, str]:
    """Return what an order says of a study's demographics, by DICOM keyword; what it does not say is left out."""
    return {keyword: value for keyword, name in _FROM_ORDER.items() if (value := order.get(name, ""))}


def _may_replace(verification: int, reason: str, decision: Decision) -> bool:
    """Whether a decision may follow: after a person's word only an order counts, or another word of a person."""
    if (verification, reason) != (UNVERIFIED, OVERRIDDEN):
        return True
    return decision.verification == VERIFIED or decision.reason == OVERRIDDEN
