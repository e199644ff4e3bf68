"""The three axes of a study's status, holds, and the corrections overlay; each change with its history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.overlay import OF_RIS, Overlay
from radmesh.database_server.queries import OVERLAID, Cursor
from radmesh.database_server.registry import HELD, UNVERIFIED, derive_verification
from radmesh.database_server.schema import admissions, corrections, history, instances, studies
from radmesh.database_server.texts import clean
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its states by number, and which may follow which."""

    name: str
    states: tuple[str, ...]
    moves: Mapping[str, tuple[str, ...]]


_ANY_VERIFICATION: Final = ("PENDING", "VERIFIED", "UNVERIFIED", "HELD")
AXES: Final = {
    axis.name: axis
    for axis in (
        Axis(
            "acquisition",
            ("UNSPECIFIED", "SCHEDULED", "STARTED", "COMPLETED", "DISCONTINUED"),
            {
                "SCHEDULED": ("STARTED", "COMPLETED", "DISCONTINUED"),
                "STARTED": ("COMPLETED", "DISCONTINUED"),
                # Late images open a study again (NG8).
                "COMPLETED": ("STARTED",),
                "DISCONTINUED": ("STARTED",),
            },
        ),
        Axis(
            "verification",
            ("UNSPECIFIED", "NOT_REQUIRED", "PENDING", "VERIFIED", "UNVERIFIED", "HELD"),
            {
                "NOT_REQUIRED": _ANY_VERIFICATION,
                "PENDING": ("VERIFIED", "UNVERIFIED", "HELD", "NOT_REQUIRED"),
                "VERIFIED": ("PENDING", "UNVERIFIED", "HELD"),
                "UNVERIFIED": ("PENDING", "VERIFIED", "HELD"),
                "HELD": ("PENDING", "VERIFIED", "UNVERIFIED"),
            },
        ),
        Axis(
            "reading",
            ("UNSPECIFIED", "NEW", "DICTATED", "TRANSCRIBED", "APPROVED", "ADDENDUM"),
            {
                "NEW": ("DICTATED",),
                "DICTATED": ("TRANSCRIBED", "APPROVED"),
                "TRANSCRIBED": ("APPROVED", "DICTATED"),
                "APPROVED": ("ADDENDUM",),
                "ADDENDUM": ("APPROVED",),
            },
        ),
    )
}


def recount_held(connection: sa.Connection, study: int) -> None:
    """Count a study's current instances that are held."""
    held = (
        sa.select(sa.func.count())
        .select_from(instances)
        .join(admissions, admissions.c.id == instances.c.admission)
        .where(instances.c.study == study, instances.c.current, admissions.c.verification == HELD)
    )
    connection.execute(sa.update(studies).where(studies.c.id == study).values(held_count=held.scalar_subquery()))


class Statuses:
    """Moves studies along their axes."""

    def __init__(self, database: Database, feed: Feed, clock: Clock, overlay: Overlay) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._overlay = overlay

    def _study(self, connection: sa.Connection, uid: str, expected_version: int = 0) -> Any:
        query = sa.select(studies).where(studies.c.study_instance_uid == uid)
        row = connection.execute(query if self._database.sqlite else query.with_for_update()).first()
        if row is None:
            raise RadmeshError("STUDY_NOT_FOUND", "there is no such study")
        if expected_version and row.version != expected_version:
            raise RadmeshError(
                "VERSION_CONFLICT",
                f"the study has changed since (version {row.version}): read it again",
                metadata={"version": str(row.version)},
            )
        return row

    def move(self, uid: str, axis_name: str, to: int, *, reason: str, expected_version: int, actor: str) -> None:
        """Move one axis.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, STATUS_ILLEGAL, VERSION_CONFLICT, FIELD_INVALID.
        """
        axis = AXES[axis_name]
        if not 0 < to < len(axis.states):
            raise RadmeshError("FIELD_INVALID", f"{axis_name}: no such state", metadata={"field": axis_name})
        if axis_name == "verification" and to in (UNVERIFIED, HELD) and not reason:
            raise RadmeshError("FIELD_INVALID", "reason: needed for this state", metadata={"field": "reason"})

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            if axis_name == "verification":
                self._database.serialise(connection)
            row = self._study(connection, uid, expected_version)
            current = getattr(row, axis_name)
            before, after = axis.states[current], axis.states[to]
            if current == to and not (axis_name == "verification" and self._differ(connection, row.id, to, reason)):
                return None, []
            if after != before and after not in axis.moves.get(before, axis.states):
                allowed = ", ".join(axis.moves[before])
                raise RadmeshError(
                    "STATUS_ILLEGAL",
                    f"{axis_name} cannot go from {before} to {after}: only to {allowed}",
                    metadata={"axis": axis_name, "from": before, "to": after},
                )
            if axis_name == "verification":
                # Of the whole study: of each of its admissions.
                now = micros(self._clock.now())
                connection.execute(
                    sa.update(admissions)
                    .where(admissions.c.study == row.id)
                    .values(
                        verification=to,
                        reason=clean(reason, 64),
                        mismatched="",
                        order_id="",
                        person=0,
                        update_time=now,
                        revision=admissions.c.revision + 1,
                    )
                )
                recount_held(connection, row.id)
                derive_verification(connection, row.id, actor=actor, now=now)
                self._overlay.refresh(connection, row.id, actor=actor)
                return None, [("hold", uid), ("study", uid)]
            self.step(connection, row, axis_name, after, reason=reason, actor=actor)
            return None, [("study", uid)]

        self._feed.write(work)

    def step(
        self, connection: sa.Connection, study: Any, axis_name: str, *states: str, reason: str = "", actor: str
    ) -> None:
        """Move an axis of a study (a row of `studies`) from state to state, in the caller's transaction."""
        before, version = getattr(study, axis_name), study.version
        for number in (AXES[axis_name].states.index(state) for state in states):
            version += 1
            connection.execute(
                sa.update(studies).where(studies.c.id == study.id).values(**{axis_name: number}, version=version)
            )
            connection.execute(
                sa.insert(history).values(
                    study=study.id,
                    axis=axis_name,
                    from_state=str(before),
                    to_state=str(number),
                    reason=clean(reason),
                    actor=clean(actor),
                    time=micros(self._clock.now()),
                    version=version,
                )
            )
            before = number

    def _differ(self, connection: sa.Connection, study: int, verification: int, reason: str) -> bool:
        """Return whether an admission of the study says something else."""
        other = sa.or_(admissions.c.verification != verification, admissions.c.reason != clean(reason, 64))
        query = sa.select(admissions.c.id).where(admissions.c.study == study, other)
        return connection.execute(query).first() is not None

    def history(self, uid: str, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of moves, oldest first, with the names of the states.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        cursor = Cursor(("history", uid))
        position = cursor.read(token) or [0]
        with self._database.read() as connection:
            study = connection.execute(sa.select(studies.c.id).where(studies.c.study_instance_uid == uid)).scalar()
            if study is None:
                raise RadmeshError("STUDY_NOT_FOUND", "there is no such study")
            rows = [
                dict(row)
                for row in connection.execute(
                    sa.select(history)
                    .where(history.c.study == study, history.c.id > position[0])
                    .order_by(history.c.id)
                    .limit(size + 1)
                ).mappings()
            ]
        for row in rows:
            axis = AXES.get(row["axis"])
            if axis is not None:
                row["from_state"], row["to_state"] = (axis.states[int(row[k])] for k in ("from_state", "to_state"))
        more = len(rows) > size
        rows = rows[:size]
        return rows, cursor.write(rows[-1]["id"]) if more else ""

    # -- corrections

    def correct(self, uid: str, values: Mapping[str, str], *, source: str, expected_version: int, actor: str) -> None:
        """Lay corrected values over a study's demographics; an empty value takes the correction away.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, VERSION_CONFLICT, FIELD_INVALID.
        """
        if source.startswith(OF_RIS):
            raise RadmeshError(
                "FIELD_INVALID",
                "source: what a RIS says comes with the verification of a study",
                metadata={"field": "source"},
            )
        unknown = sorted(set(values) - set(OVERLAID))
        if unknown or not values:
            raise RadmeshError(
                "FIELD_INVALID", f"values: keywords are {', '.join(OVERLAID)}", metadata={"field": "values"}
            )

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            self._database.serialise(connection)
            row = self._study(connection, uid, expected_version)
            changed = self._overlay.refresh(connection, row.id, actor=actor, source=source, values=values)
            return None, [("correction", uid)] if changed else []

        self._feed.write(work)

    def corrections(self, uid: str, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of corrections, newest first, and the next token.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        cursor = Cursor(("corrections", uid))
        position = cursor.read(token)
        with self._database.read() as connection:
            study = connection.execute(sa.select(studies.c.id).where(studies.c.study_instance_uid == uid)).scalar()
            if study is None:
                raise RadmeshError("STUDY_NOT_FOUND", "there is no such study")
            conditions = [corrections.c.study == study]
            if position:
                conditions.append(corrections.c.id < position[0])
            rows: Sequence[Any] = (
                connection.execute(
                    sa.select(corrections).where(*conditions).order_by(corrections.c.id.desc()).limit(size + 1)
                )
                .mappings()
                .all()
            )
        more = len(rows) > size
        page = [dict(row) for row in rows[:size]]
        return page, cursor.write(page[-1]["id"]) if more else ""
