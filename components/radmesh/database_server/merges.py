"""Merges of patients (ADT^A40, A47): prior patients are surviving ones, until that is undone (FEATURES DB3)."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.overlay import Overlay
from radmesh.database_server.queries import Cursor, fitting
from radmesh.database_server.schema import merged_studies, merges, orders, outbox, patients, studies
from radmesh.database_server.texts import clean
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros
from radmesh.sql.outbox import append

# Of the outbox; the key is the domain.
TOPIC: Final = "undo-merge"
Event = tuple[str, str]


_NUMBERS: Final = (patients.c.patient_id, patients.c.issuer_of_patient_id)


def _names_length(merge: Mapping[str, Any]) -> int:
    return sum(len(merge[name]["patient_name"].encode()) for name in ("prior", "surviving"))


class Merges:
    """Merges patients, and sets them apart again.

    Merges in force make trees of patients, and a study is shown as the root of its own. So an undo gives back exactly
    what the merge moved, whatever came in between; and a circle cannot be told. The Connectivity Manager of the domain
    hears of an undo by the outbox: it would take what comes under the prior ID for the surviving patient's. `wake`
    tells the dispatcher that there is something.
    """

    def __init__(self, database: Database, feed: Feed, clock: Clock, overlay: Overlay) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._overlay = overlay
        self._people = overlay.people
        self.wake: Callable[[], None] = lambda: None

    def apply(
        self, c: sa.Connection, domain: str, prior: Mapping[str, str], surviving: Mapping[str, str]
    ) -> Iterator[Event]:
        """Merge, in the caller's transaction; yield what the feed is to say.

        A patient into itself, what is so already, and what would be a circle has no effect.
        """
        if not (prior.get("patient_id") and surviving.get("patient_id")):
            return
        before, _ = self._people.told(c, domain, prior, news=False)
        after, renewed = self._people.told(c, domain, surviving, news=True)
        old, now = self._people.root(c, before), self._people.root(c, after)
        moved: list[Any] = []
        if old != now:
            moved = [*c.execute(self.studies_of(c, old)), *self._unlinked(c, domain, old)]
            merge = c.execute(
                sa.insert(merges)
                .values(domain=domain, prior=old, surviving=now, time=micros(self._clock.now()))
                .returning(merges.c.id)
            ).scalar_one()
            c.execute(sa.update(orders).where(orders.c.shown == old).values(shown=now))
            yield from self._refreshed(c, moved, f"ris:{domain}")
            known = sa.select(studies.c.id).where(studies.c.person.in_(self._people.members(c, old)))
            rows = [{"merge": merge, "study": key} for key in c.execute(known).scalars()]
            if rows:
                c.execute(self._database.insert_new(merged_studies), rows)
        if renewed and after == now:
            yield from self._refreshed(c, c.execute(self.studies_of(c, now)).all(), f"ris:{domain}")
        if old != now or renewed:
            for patient in (before, after):
                patient_id = c.execute(sa.select(patients.c.patient_id).where(patients.c.id == patient)).scalar_one()
                yield "patient", f"{domain} {patient_id}"

    def studies_of(self, c: sa.Connection, root: int) -> Any:
        """Return the query of the studies that are shown as a patient who is merged into nobody."""
        return sa.select(studies.c.id, studies.c.study_instance_uid).where(
            studies.c.person.in_(self._people.members(c, root))
        )

    @staticmethod
    def _unlinked(c: sa.Connection, domain: str, person: int) -> list[Any]:
        """Return the studies of a domain that have a patient's ID and no order; whose they are, the overlay tells."""
        patient_id = sa.select(patients.c.patient_id).where(patients.c.id == person).scalar_subquery()
        return list(
            c.execute(
                sa.select(studies.c.id, studies.c.study_instance_uid)
                .join(patients, patients.c.id == studies.c.patient)
                .where(patients.c.patient_id == patient_id, studies.c.person == 0, studies.c.domain == domain)
            )
        )

    def _refreshed(self, c: sa.Connection, moved: Iterable[Any], actor: str) -> Iterator[Event]:
        for study in moved:
            if self._overlay.refresh(c, study.id, actor=actor):
                yield "correction", study.study_instance_uid

    def undo(self, key: int, actor: str) -> dict[str, Any]:
        """Give back what a merge moved, and return it.

        Raises:
            RadmeshError: MERGE_NOT_FOUND, MERGE_UNDONE, MERGE_BURIED.
        """

        def work(c: sa.Connection) -> tuple[None, list[Event]]:
            self._database.serialise(c)
            row = c.execute(sa.select(merges).where(merges.c.id == key)).first()
            if row is None:
                raise RadmeshError("MERGE_NOT_FOUND", "there is no such merge")
            if row.undo_time:
                raise RadmeshError("MERGE_UNDONE", "the merge was undone before")
            later = next(self._people.path(c, row.surviving), None)
            if later is not None:
                raise RadmeshError(
                    "MERGE_BURIED",
                    f"merge {later[0]} came after it: undo that one first",
                    metadata={"merge": str(later[0])},
                )
            c.execute(
                sa.update(merges)
                .where(merges.c.id == key)
                .values(undo_time=micros(self._clock.now()), undo_actor=clean(actor, 256))
            )
            theirs = self._people.members(c, row.prior)
            c.execute(sa.update(orders).where(orders.c.patient.in_(theirs)).values(shown=row.prior))
            moved = c.execute(self.studies_of(c, row.prior)).all()
            both = [
                dict(c.execute(sa.select(*_NUMBERS).where(patients.c.id == patient)).mappings().one())
                for patient in (row.prior, row.surviving)
            ]
            # A database from a backup gives numbers again: with its time a merge is named for ever.
            payload = {"merge": f"{key}@{row.time}", "prior": both[0], "surviving": both[1]}
            append(c, outbox, TOPIC, row.domain, json.dumps(payload))
            told = [("patient", f"{row.domain} {patient['patient_id']}") for patient in both]
            return None, [*self._refreshed(c, moved, actor), *told]

        self._feed.write(work)
        self.wake()
        with self._database.read() as c:
            return self._told(c, merges.c.id == key, 1)[0]

    def undone(self, domain: str, *patient_ids: str) -> None:
        """The manager has heard of an undo: what it said of these patients before is to be asked again."""
        self._feed.write(lambda _c: (None, [("patient", f"{domain} {patient_id}") for patient_id in patient_ids]))

    def listed(self, domain: str, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of merges, newest first, and the next token."""
        cursor = Cursor(("merges", domain))
        position = cursor.read(token)
        conditions = [merges.c.domain == domain] if domain else []
        if position:
            conditions.append(merges.c.id < position[0])
        with self._database.read() as c:
            rows = self._told(c, sa.and_(sa.true(), *conditions), size + 1)
        rows, more = fitting(rows, size, _names_length)
        return rows, cursor.write(rows[-1]["id"]) if more else ""

    @staticmethod
    def _told(c: sa.Connection, condition: Any, most: int) -> list[dict[str, Any]]:
        """Return merges, newest first, with both patients and how many studies each moved."""
        count = (
            sa.select(sa.func.count())
            .select_from(merged_studies)
            .where(merged_studies.c.merge == merges.c.id)
            .scalar_subquery()
        )
        query = sa.select(merges, count.label("study_count")).where(condition).order_by(merges.c.id.desc()).limit(most)
        rows = [dict(row) for row in c.execute(query).mappings()]
        people = {row[name] for row in rows for name in ("prior", "surviving")}
        found: dict[int, Any] = {}
        every = sorted(people)
        for start in range(0, len(every), 500):
            chosen = sa.select(patients).where(patients.c.id.in_(every[start : start + 500]))
            found |= {row["id"]: row for row in c.execute(chosen).mappings()}
        return [{**row, "prior": found[row["prior"]], "surviving": found[row["surviving"]]} for row in rows]
