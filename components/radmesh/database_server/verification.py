"""What the RIS, or a person, decided about the objects that share an admission key (CORRECTNESS rules 8 to 12)."""

import heapq
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.orders import Orders, order_key
from radmesh.database_server.overlay import Overlay
from radmesh.database_server.queries import Cursor, page
from radmesh.database_server.registry import HELD, UNVERIFIED, VERIFIED, derive_verification
from radmesh.database_server.schema import admissions, instances, merges, patients, studies, verdicts
from radmesh.database_server.statuses import recount_held
from radmesh.database_server.texts import clean
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

OVERRIDDEN: Final = "OVERRIDDEN"
# An object that was admitted is registered within seconds, or when the spool that kept it has drained.
_KEPT: Final = timedelta(days=30)
_PRUNED_AT_ONCE: Final = 1000
_LONG: Final = ("patient_name", "study_description", "mismatched", "patient_birth_date")
Event = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Decision:
    """A verification. `order` is the order of a VERIFIED with its patient, in one mapping (`orders.FIELDS`)."""

    study_instance_uid: str
    digest: bytes
    verification: int
    reason: str = ""
    mismatched: tuple[str, ...] = ()
    domain: str = ""
    order: Mapping[str, Any] = field(default_factory=dict)
    expected_revision: int = 0
    actor: str = ""
    note: str = ""

    def kept(self) -> str:
        """Return the decision as the table of verdicts keeps it."""
        return json.dumps({**asdict(self), "digest": self.digest.hex(), "order": dict(self.order)})

    @classmethod
    def of(cls, kept: str) -> "Decision":
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

    def __init__(self, database: Database, feed: Feed, clock: Clock, overlay: Overlay, orders: Orders) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._overlay = overlay
        self._orders = orders

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
            mine = sa.select(sa.func.count()).select_from(instances).where(instances.c.admission == row.id)
            events = self._apply(c, row, decision)
            return (int(c.execute(mine).scalar_one()), bool(events)), events

        result: Any
        result, revision = self._feed.write(work)
        return result[0], revision, result[1]

    def known(self, study_instance_uid: str, digest: bytes) -> int:
        """Return what was decided of an admission key; 0 if nobody has decided."""
        with self._database.read() as c:
            row = self._admission(c, study_instance_uid, digest)
            if row is not None:
                return int(row.verification) if row.revision else 0
            return int(c.execute(sa.select(verdicts.c.verification).where(verdicts.c.digest == digest)).scalar() or 0)

    def admitted(self, c: sa.Connection, fresh: Collection[tuple[int, bytes]]) -> list[Event]:
        """Apply what was decided about admissions (study, digest) before they came; return what the feed is to say."""
        events: list[Event] = []
        waiting = verdicts.c.digest.in_({digest for _, digest in fresh})
        kept = sa.delete(verdicts).where(waiting).returning(verdicts.c.digest, verdicts.c.decision)
        decided = {bytes(row.digest): row.decision for row in c.execute(kept)}
        for study, digest in fresh:
            if digest in decided:
                mine = sa.and_(admissions.c.study == study, admissions.c.digest == digest)
                row = c.execute(sa.select(admissions).where(mine)).one()
                events += self._apply(c, row, Decision.of(decided[digest]))
        # Whose a study is depends on merges, and what is shown of it on which of its admissions are not held.
        every = {study for study, _ in fresh}
        prior = patients.alias()
        gone = sa.select(prior.c.patient_id).join(merges, merges.c.prior == prior.c.id).where(merges.c.undo_time == 0)
        theirs = sa.select(studies.c.id).join(patients, patients.c.id == studies.c.patient)
        several = sa.select(admissions.c.study).where(admissions.c.study.in_(every)).group_by(admissions.c.study)
        query = sa.union(
            theirs.where(studies.c.id.in_(every), patients.c.patient_id.in_(gone)),
            several.having(sa.func.count() > 1),
        )
        for study in c.execute(query).scalars().all():
            self._overlay.refresh(c, study, actor="registry")
        return events

    def prune(self) -> bool:
        """Forget decisions about objects that never came, some at a time; return whether there may be more."""
        oldest = micros(self._clock.now() - _KEPT)
        old = sa.select(verdicts.c.digest).where(verdicts.c.time < oldest).limit(_PRUNED_AT_ONCE)
        gone = self._database.write(lambda c: c.execute(sa.delete(verdicts).where(verdicts.c.digest.in_(old))).rowcount)
        return gone == _PRUNED_AT_ONCE

    @staticmethod
    def _admission(c: sa.Connection, study_instance_uid: str, digest: bytes) -> Any:
        return c.execute(
            sa.select(admissions)
            .join(studies, studies.c.id == admissions.c.study)
            .where(studies.c.study_instance_uid == study_instance_uid, admissions.c.digest == digest)
        ).first()

    def _keep(self, c: sa.Connection, decision: Decision) -> bool:
        before = c.execute(sa.select(verdicts).where(verdicts.c.digest == decision.digest)).first()
        kept = decision.kept()
        if before is not None and (
            before.decision == kept or not _may_replace(before.verification, before.reason, decision)
        ):
            return False
        values = {
            "digest": decision.digest,
            "study_instance_uid": decision.study_instance_uid,
            "verification": decision.verification,
            "reason": clean(decision.reason, 64),
            "decision": kept,
            "time": micros(self._clock.now()),
        }
        c.execute(self._database.upsert(verdicts, ["digest"], values))
        return True

    def _apply(self, c: sa.Connection, row: Any, decision: Decision) -> list[Event]:
        """Apply a decision to an admission; nothing where it says what is known already."""
        if not _may_replace(row.verification, row.reason, decision):
            return []
        domain = clean(decision.domain, 64) or row.domain
        order_id, person = "", 0
        if decision.verification == VERIFIED and decision.order:
            order_id = order_key(decision.order)
            person = self._orders.patient_of(c, domain, decision.order)
            people = self._overlay.people
            if row.person and people.root(c, row.person) == people.root(c, person):
                person = row.person  # the same patient, by whichever of the IDs that were merged
        values = {
            "verification": decision.verification,
            "reason": clean(decision.reason, 64),
            "mismatched": clean("\n".join(decision.mismatched), 1024),
            "domain": domain,
            "order_id": order_id,
            "person": person,
        }
        if row.revision and all(getattr(row, name) == value for name, value in values.items()):
            return []
        now = micros(self._clock.now())
        c.execute(
            sa.update(admissions)
            .where(admissions.c.id == row.id)
            .values(**values, update_time=now, revision=admissions.c.revision + 1)
        )
        recount_held(c, row.study)
        actor = clean(decision.actor, 256)
        note = clean(f"{decision.reason}: {decision.note}", 640) if decision.note else ""
        derive_verification(c, row.study, actor=actor, now=now, note=note)
        uid = decision.study_instance_uid
        corrected = self._overlay.refresh(c, row.study, actor=actor)
        # Tickets say what was decided: they are void now.
        return [("hold", uid), *([("correction", uid)] if corrected else [])]

    # -- lists

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
                count.label("instance_count"),
            )
            .join(studies, studies.c.id == admissions.c.study)
            .where(*conditions)
            .order_by(admissions.c.id)
            .limit(size + 1)
        )
        # What is not selective by itself is looked up by state: an index has each in the order of the answer.
        states: Sequence[int] = wanted.verifications
        if not states and (wanted.domain or wanted.reason):
            states = range(HELD + 1)
        queries = [query.where(admissions.c.verification == state) for state in dict.fromkeys(states)] or [query]
        with self._database.read() as c:
            found = [[dict(row) for row in c.execute(one).mappings()] for one in queries]
        rows, more = page(list(heapq.merge(*found, key=lambda row: row["id"])), size, *_LONG)
        return rows, cursor.write(rows[-1]["id"]) if more else ""


def _may_replace(verification: int, reason: str, decision: Decision) -> bool:
    """Whether a decision may follow: after a person's word only an order counts, or another word of a person."""
    if (verification, reason) != (UNVERIFIED, OVERRIDDEN):
        return True
    return decision.verification == VERIFIED or decision.reason == OVERRIDDEN
