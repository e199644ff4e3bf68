"""Routes, the studies that are to be compared with them, and what stations were sent (FEATURES NG9, GP10)."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from radmesh.database_server.entries import Entries, Entry
from radmesh.database_server.feed import Feed
from radmesh.database_server.jobs import LEASED, QUEUED, SUCCEEDED
from radmesh.database_server.queries import Cursor, Queries, Viewer
from radmesh.database_server.registry import HELD
from radmesh.database_server.schema import (
    admissions,
    changes,
    deliveries,
    feed,
    history,
    instances,
    jobs,
    procedure_step_studies,
    procedure_steps,
    routes,
    routing,
    studies,
)
from radmesh.dicom.routes import Route, from_mapping, to_json
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros

ROUTE, SEND, AVAILABILITY = "route", "send", "availability"
"""Kinds of jobs: a study that is to be compared with the routes, one that is to be sent, and one to be told of."""
SENT, DELIVERY_FAILED, COMMITTED = 1, 2, 3
KEY_OBJECTS: Final = "1.2.840.10008.5.1.4.1.1.88.59"
"""Key Object Selection Document Storage."""
_LOOK_SECONDS: Final = 1.0
_PAGE: Final = 2000
# What happens to a study within so long is looked at once.
_SOON: Final = timedelta(seconds=2)
# While it is still being received its job waits for it to be quiet, and has no need to be brought forward.
_LATER: Final = timedelta(seconds=60)
_ATTEMPTS: Final = 1000
_REPEATED: Final = timedelta(minutes=10)
_TOLD_ATTEMPTS: Final = 100
_STEPS_MOST: Final = 100
_IN_MOST: Final = 500
_NOTHING: Final = -1


@dataclass(frozen=True, slots=True)
class Facts:
    """What routes are compared with; `study` is a row of Queries, without what is held."""

    study: dict[str, Any]
    steps_ended: bool
    key_objects: bool
    undelivered: Sequence[int]


class Routing:
    """Keeps routes and deliveries; a worker of the Database Server calls `step`.

    `told` gives the AE titles of the stations that are told of studies that are complete.
    """

    def __init__(
        self,
        database: Database,
        feed_: Feed,
        clock: Clock,
        queries: Queries,
        told: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._database = database
        self._feed = feed_
        self._clock = clock
        self._queries = queries
        self._told = told
        self.routes = Entries[Route](database, feed_, clock, routes, "route", to_json, from_mapping)
        self._known: tuple[int, bool] = (-1, False)
        # Where the feed was when nothing was to be routed.
        self._idle_at = feed_.revision()

    def fill(self, configured: Sequence[Route]) -> None:
        """Take over what the configuration says of routes that no person has edited, or removed."""
        self.routes.fill({route.name: route for route in configured})

    def put(self, route: Route, expected_version: int) -> Entry[Route]:
        """Add a route, or replace the one of its name.

        Raises:
            RadmeshError: FIELD_INVALID, VERSION_CONFLICT.
        """
        return self.routes.put(route.name, route, expected_version)

    # -- what changed

    def step(self) -> float:
        """Queue the studies that changed; return after how many seconds to look again."""
        if not self._wanted():
            self._idle_at = self._feed.revision()
            if self._at() != _NOTHING:
                self._database.write(lambda c: c.execute(sa.update(routing).values(revision=_NOTHING)))
            return _LOOK_SECONDS
        if self._at() == self._feed.revision():
            return _LOOK_SECONDS
        return 0.0 if self._database.write(self._queue) else _LOOK_SECONDS

    def _wanted(self) -> bool:
        """Whether a route counts, or a station is told."""
        version = self.routes.version()
        if version != self._known[0]:
            self._known = version, any(entry.value.enabled for entry in self.routes.list())
        return self._known[1] or bool(self._told())

    def _at(self) -> int:
        with self._database.read() as connection:
            return int(connection.execute(sa.select(routing.c.revision)).scalar_one())

    def _queue(self, connection: sa.Connection) -> bool:
        """Queue what changed behind the mark, and move it, in one transaction; return whether there is more."""
        query = sa.select(routing)
        mark = connection.execute(query if self._database.sqlite else query.with_for_update()).one()
        after = self._idle_at if mark.revision == _NOTHING else mark.revision
        state = connection.execute(sa.select(feed.c.revision, feed.c.oldest)).one()
        now = self._clock.now()
        more = False
        if state.oldest <= after <= state.revision:
            rows = connection.execute(
                sa.select(changes).where(changes.c.revision > after).order_by(changes.c.revision).limit(_PAGE)
            ).all()
            urgent = {row.key for row in rows if row.kind in ("study", "hold")}
            urgent |= self._sent(connection, [row.key for row in rows if row.kind == "job"])
            calm = {row.key for row in rows if row.kind == "instances"} - urgent
            more = len(rows) == _PAGE
            last = rows[-1].revision if rows else after
        else:
            # The feed does not reach back so far: the tables tell what has changed since.
            urgent, calm, last = self._changed_since(connection, mark.time), set(), state.revision
        self._enqueue(connection, urgent, micros(now + _SOON), micros(now + _SOON))
        self._enqueue(connection, calm, micros(now + _SOON), micros(now + _LATER))
        connection.execute(sa.update(routing).values(revision=last, time=micros(now)))
        # Of those that were looked at nothing is to be seen; a call that is repeated comes sooner than this.
        done = (jobs.c.kind == ROUTE, jobs.c.state == SUCCEEDED, jobs.c.due_time < micros(now - _REPEATED))
        connection.execute(sa.delete(jobs).where(*done))
        return more

    @staticmethod
    def _sent(connection: sa.Connection, ids: Sequence[str]) -> set[str]:
        """Return the studies of jobs that have sent what they knew of: more may have come meanwhile."""
        found: set[str] = set()
        for first in range(0, len(ids), _IN_MOST):
            query = sa.select(jobs.c.key).where(
                jobs.c.id.in_(map(int, ids[first : first + _IN_MOST])), jobs.c.kind == SEND, jobs.c.state == SUCCEEDED
            )
            found |= {key.rpartition("/")[2] for key in connection.execute(query).scalars()}
        return found

    @staticmethod
    def _changed_since(connection: sa.Connection, time: int) -> set[str]:
        received = sa.select(studies.c.study_instance_uid).where(studies.c.last_receive_time >= time)
        moved = (
            sa.select(studies.c.study_instance_uid)
            .join(history, history.c.study == studies.c.id)
            .where(history.c.time >= time)
        )
        return set(connection.execute(sa.union(received, moved)).scalars())

    def _enqueue(self, connection: sa.Connection, uids: Collection[str], due: int, at_latest: int) -> None:
        """Make jobs of studies; one that waits is brought forward, one that is being looked at is looked at again."""
        wanted = sorted(uids)
        for first in range(0, len(wanted), _IN_MOST):
            some = wanted[first : first + _IN_MOST]
            mine = (jobs.c.kind == ROUTE, jobs.c.key.in_(some))
            connection.execute(
                sa.update(jobs)
                .where(*mine, jobs.c.state == LEASED)
                .values(state=QUEUED, fence=jobs.c.fence + 1, attempt=0, due_time=due, owner="")
            )
            connection.execute(
                sa.update(jobs)
                .where(*mine, jobs.c.state == QUEUED, jobs.c.due_time > at_latest)
                .values(attempt=0, due_time=at_latest)
            )
            connection.execute(
                self._database.insert_new(jobs),
                [
                    {"kind": ROUTE, "key": uid, "state": QUEUED, "max_attempts": _ATTEMPTS, "due_time": due}
                    for uid in some
                ],
            )

    # -- what is decided by, and what follows

    def facts(self, uid: str, stations: Sequence[str]) -> Facts:
        """Return what routes are compared with.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, also if all of it is held.
        """
        study = self._queries.study(uid, Viewer())
        with self._database.read() as connection:
            steps = (
                sa.select(procedure_steps.c.status)
                .join(procedure_step_studies, procedure_step_studies.c.step == procedure_steps.c.id)
                .where(procedure_step_studies.c.study_instance_uid == uid)
            )
            states = set(connection.execute(steps).scalars())
            seen = _seen(study["id"], key_images=True)
            key_objects = connection.execute(seen.limit(1)).first() is not None
            undelivered = [self._undelivered(connection, study["id"], station) for station in stations]
        return Facts(study, bool(states) and "IN PROGRESS" not in states, key_objects, undelivered)

    def queue_send(self, uid: str, station: str, names: Sequence[str], *, key_images: bool, max_attempts: int) -> int:
        """Make the job that sends what a station was not sent yet; return its id, 0 if there is none to be made.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        payload = json.dumps(
            {"study": uid, "station": station, "routes": list(names), "new": True, "key_images": key_images}
        )

        def work(connection: sa.Connection) -> tuple[int, list[tuple[str, str]]]:
            study = self._study(connection, uid)
            if not self._undelivered(connection, study, station, key_images=key_images):
                return 0, []
            key = f"{station}/{uid}"
            values = {
                "kind": SEND,
                "key": key,
                "payload": payload,
                "state": QUEUED,
                "max_attempts": max_attempts,
                "due_time": micros(self._clock.now()),
            }
            if not self._database.add(connection, jobs, values):
                return 0, []
            live = sa.select(jobs.c.id).where(jobs.c.kind == SEND, jobs.c.key == key, jobs.c.state == QUEUED)
            job = int(connection.execute(live).scalar_one())
            return job, [("job", str(job))]

        job, _ = self._feed.write(work)
        return job  # type: ignore[return-value]

    def queue_availability(self, uid: str) -> int:
        """Make the jobs that tell stations of a study; return how many were made.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, also if all of it is held.
        """
        study = self._queries.study(uid, Viewer())
        titles = sorted(self._told())

        def work(connection: sa.Connection) -> int:
            self._database.serialise(connection)
            steps = (
                sa.select(procedure_steps.c.sop_instance_uid)
                .join(procedure_step_studies, procedure_step_studies.c.step == procedure_steps.c.id)
                .where(procedure_step_studies.c.study_instance_uid == uid)
                .order_by(procedure_steps.c.id)
                .limit(_STEPS_MOST)
            )
            known = list(connection.execute(steps).scalars())
            keys = {f"{title}/{uid}/{study['instance_count']}": title for title in titles}
            before = sa.select(jobs.c.key).where(jobs.c.kind == AVAILABILITY, jobs.c.key.in_(keys))
            for key in connection.execute(before).scalars().all():
                keys.pop(key, None)
            for key, title in keys.items():
                values = {
                    "kind": AVAILABILITY,
                    "key": key,
                    "payload": json.dumps({"study": uid, "station": title, "steps": known}),
                    "state": QUEUED,
                    "max_attempts": _TOLD_ATTEMPTS,
                    "due_time": micros(self._clock.now()),
                }
                self._database.add(connection, jobs, values)
            return len(keys)

        return self._database.write(work) if titles else 0

    # -- deliveries

    def delivered(self, uid: str, station: str, size: int, token: str) -> tuple[list[str], str]:
        """Return a page of the current instances that a station has, or sent itself, and the next token.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        cursor = Cursor(("deliveries", uid, station))
        position = cursor.read(token) or [0]
        has = sa.exists().where(
            deliveries.c.instance == instances.c.id,
            deliveries.c.station == station,
            deliveries.c.state.in_((SENT, COMMITTED)),
        )
        with self._database.read() as connection:
            query = (
                sa.select(instances.c.id, instances.c.sop_instance_uid)
                .where(
                    instances.c.study == self._study(connection, uid),
                    instances.c.current,
                    instances.c.id > position[0],
                    sa.or_(has, instances.c.calling_ae_title == station),
                )
                .order_by(instances.c.id)
                .limit(size + 1)
            )
            rows = connection.execute(query).all()
        return [row.sop_instance_uid for row in rows[:size]], cursor.write(rows[size - 1].id) if rows[size:] else ""

    def record(self, uid: str, station: str, state: int, sop_instance_uids: Sequence[str], job: int) -> None:
        """Keep what became of instances that were sent; that one failed does not make what was sent before unsent.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """

        def work(connection: sa.Connection) -> None:
            study = self._study(connection, uid)
            for first in range(0, len(sop_instance_uids), _IN_MOST):
                some = sop_instance_uids[first : first + _IN_MOST]
                query = sa.select(instances.c.id).where(
                    instances.c.study == study, instances.c.current, instances.c.sop_instance_uid.in_(some)
                )
                self._put(connection, connection.execute(query).scalars().all(), station, state, job)

        self._database.write(work)

    def gave_up(self, connection: sa.Connection, job: Any) -> None:
        """A job (a row) has failed: what it has not sent is not queued again by itself."""
        payload = json.loads(job.payload or "{}") if job.kind == SEND else {}
        if not payload.get("new"):
            return
        station, _, uid = job.key.rpartition("/")
        study = connection.execute(sa.select(studies.c.id).where(studies.c.study_instance_uid == uid)).scalar()
        if study is not None:
            unsent = _unsent(study, station, key_images=bool(payload.get("key_images")))
            left = connection.execute(unsent).scalars().all()
            self._put(connection, left, station, DELIVERY_FAILED, job.id)

    def _put(self, connection: sa.Connection, ids: Sequence[int], station: str, state: int, job: int) -> None:
        if not ids:
            return
        dialect = sqlite if self._database.sqlite else postgresql
        statement = dialect.insert(deliveries)
        after = statement.excluded
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["instance", "station"],
                set_={name: after[name] for name in ("state", "job", "time", "transaction_uid")},
                where=sa.or_(after.state != DELIVERY_FAILED, deliveries.c.state == DELIVERY_FAILED),
            ),
            [
                {
                    "instance": one,
                    "station": station,
                    "state": state,
                    "job": job,
                    "time": micros(self._clock.now()),
                    "transaction_uid": "",
                }
                for one in ids
            ],
        )

    @staticmethod
    def _study(connection: sa.Connection, uid: str) -> int:
        study = connection.execute(sa.select(studies.c.id).where(studies.c.study_instance_uid == uid)).scalar()
        if study is None:
            raise RadmeshError("STUDY_NOT_FOUND", "there is no such study")
        return int(study)

    @staticmethod
    def _undelivered(connection: sa.Connection, study: int, station: str, *, key_images: bool = False) -> int:
        unsent = _unsent(study, station, key_images=key_images).subquery()
        return int(connection.execute(sa.select(sa.func.count()).select_from(unsent)).scalar_one())


def _seen(study: int, *, key_images: bool) -> Any:
    """Select the ids of current instances that are not held."""
    query = (
        sa.select(instances.c.id)
        .join(admissions, admissions.c.id == instances.c.admission)
        .where(instances.c.study == study, instances.c.current, admissions.c.verification != HELD)
    )
    return query.where(instances.c.sop_class_uid == KEY_OBJECTS) if key_images else query


def _unsent(study: int, station: str, *, key_images: bool) -> Any:
    """Select the ids of those that a station was never sent, and did not send."""
    known = sa.exists().where(deliveries.c.instance == instances.c.id, deliveries.c.station == station)
    return _seen(study, key_images=key_images).where(~known, instances.c.calling_ae_title != station)
