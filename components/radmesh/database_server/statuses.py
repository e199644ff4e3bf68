"""The three axes of a study's status, holds, and the corrections overlay; each change with its history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.queries import OVERLAID, Cursor
from radmesh.database_server.registry import (
    HELD,
    UNVERIFIED,
    Domains,
    OneDomain,
    bounded,
    clean,
    derive_verification,
    name_key,
)
from radmesh.database_server.schema import admissions, corrections, history, instances, merges, patients, studies
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
    held = connection.execute(
        sa.select(sa.func.count())
        .select_from(instances)
        .join(admissions, admissions.c.id == instances.c.admission)
        .where(instances.c.study == study, instances.c.current, admissions.c.verification == HELD)
    ).scalar_one()
    connection.execute(sa.update(studies).where(studies.c.id == study).values(held_count=held))


class Statuses:
    """Moves studies along their axes."""

    def __init__(self, database: Database, feed: Feed, clock: Clock) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self.domains: Domains = OneDomain()

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
                connection.execute(
                    sa.update(admissions)
                    .where(admissions.c.study == row.id)
                    .values(verification=to, reason=clean(reason), update_time=micros(self._clock.now()))
                )
                recount_held(connection, row.id)
                derive_verification(connection, row.id, actor=actor, now=micros(self._clock.now()))
                return None, [("hold", uid), ("study", uid)]
            connection.execute(
                sa.update(studies).where(studies.c.id == row.id).values(**{axis_name: to}, version=row.version + 1)
            )
            self.remember(connection, row.id, axis_name, str(current), str(to), reason, actor, row.version + 1)
            return None, [("study", uid)]

        self._feed.write(work)

    def _differ(self, connection: sa.Connection, study: int, verification: int, reason: str) -> bool:
        """Return whether an admission of the study says something else."""
        other = sa.or_(admissions.c.verification != verification, admissions.c.reason != clean(reason))
        query = sa.select(admissions.c.id).where(admissions.c.study == study, other)
        return connection.execute(query).first() is not None

    def remember(
        self,
        connection: sa.Connection,
        study: int,
        axis: str,
        before: str,
        after: str,
        reason: str,
        actor: str,
        version: int,
    ) -> None:
        """Write an entry of a study's history in the caller's transaction."""
        connection.execute(
            sa.insert(history).values(
                study=study,
                axis=axis,
                from_state=before,
                to_state=after,
                reason=clean(reason),
                actor=clean(actor),
                time=micros(self._clock.now()),
                version=version,
            )
        )

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
        unknown = sorted(set(values) - set(OVERLAID))
        if unknown or not values:
            raise RadmeshError(
                "FIELD_INVALID", f"values: keywords are {', '.join(OVERLAID)}", metadata={"field": "values"}
            )

        def work(connection: sa.Connection) -> tuple[None, list[tuple[str, str]]]:
            row = self._study(connection, uid, expected_version)
            changed = self.lay(connection, row, values, source=source, actor=actor)
            return None, [("correction", uid)] if changed else []

        self._feed.write(work)

    def lay(self, connection: sa.Connection, row: Any, values: Mapping[str, str], *, source: str, actor: str) -> bool:
        """Lay values over a study (a row of `studies`) in the caller's transaction; return whether anything changed.

        What a RIS says does not replace what a person has corrected.
        """
        shown = (
            connection.execute(
                sa.select(studies, *(c for c in patients.c if c.name != "id"))
                .join(patients, patients.c.id == studies.c.patient)
                .where(studies.c.id == row.id)
            )
            .mappings()
            .one()
        )
        now = micros(self._clock.now())
        of_ris = source.startswith("ris:")
        changed: dict[str, str] = {}
        for keyword, value in sorted(values.items()):
            mine = sa.and_(corrections.c.study == row.id, corrections.c.keyword == keyword, corrections.c.in_force)
            before = connection.execute(sa.select(corrections).where(mine)).first()
            corrected = bounded(keyword, value)
            if corrected == (before.value if before else ""):
                continue
            if of_ris and before and not before.source.startswith("ris:"):
                continue
            original = before.original_value if before else shown[OVERLAID[keyword]]
            if of_ris and corrected == original:
                corrected = ""  # the modality said the same: there is nothing to correct
                if before is None:
                    continue
            changed[keyword] = corrected or original
            connection.execute(sa.update(corrections).where(mine).values(in_force=False))
            if corrected:
                connection.execute(
                    sa.insert(corrections).values(
                        study=row.id,
                        keyword=keyword,
                        original_value=original,
                        value=corrected,
                        source=clean(source),
                        actor=clean(actor),
                        time=now,
                        in_force=True,
                    )
                )
        in_force = connection.execute(
            sa.select(corrections.c.keyword, corrections.c.source).where(
                corrections.c.study == row.id, corrections.c.in_force
            )
        ).all()
        effective = {OVERLAID[keyword]: value for keyword, value in changed.items()}
        patient = self._patient_of(connection, {**shown, **effective}, in_force)
        if not changed and patient == row.patient:
            return False
        connection.execute(
            sa.update(studies)
            .where(studies.c.id == row.id)
            .values(
                {name: value for name, value in effective.items() if name in studies.c}
                | {"patient": patient, "corrected": bool(in_force), "version": studies.c.version + 1}
            )
        )
        version = connection.execute(sa.select(studies.c.version).where(studies.c.id == row.id)).scalar_one()
        kept = {entry.keyword for entry in in_force}
        for keyword in changed:
            # The keyword alone: values of patients stay in the corrections table.
            what = "set" if keyword in kept else "removed"
            self.remember(connection, row.id, "correction", keyword, what, source, actor, version)
        return True

    def _patient_of(self, connection: sa.Connection, shown: Mapping[str, Any], in_force: Sequence[Any]) -> int:
        """Return the patient that a study shows.

        That which came with it; one of its own with what a person corrected; or, of a verified study, the RIS's. What
        queries match is what their answers show; the rows of patients stay as they were received.
        """
        uid, order_id = shown["study_instance_uid"], shown["order_id"]
        by_people = any(OVERLAID[c.keyword] in patients.c and not c.source.startswith("ris:") for c in in_force)
        values = {name: shown[name] for name in OVERLAID.values() if name in patients.c}
        if by_people:
            identity = f"corrected\x1f{uid}"
        elif order_id and shown["patient_id"]:
            identity = f"ris\x1f{shown['domain']}\x1f{shown['issuer_of_patient_id']}\x1f{shown['patient_id']}"
            merged = connection.execute(
                sa.select(merges.c.surviving)
                .join(patients, patients.c.id == merges.c.prior)
                .where(patients.c.identity == identity, merges.c.undo_time == 0)
            ).scalar()
            if merged is not None:
                return int(merged)
        else:
            identity = self.domains.patient_identity(
                shown["domain"], shown["issuer_of_patient_id"], shown["patient_id"], uid
            )
            known = connection.execute(sa.select(patients.c.id).where(patients.c.identity == identity)).scalar()
            if known is not None:
                return int(known)
        values |= {"identity": identity, "name_key": name_key(shown["patient_name"])}
        connection.execute(self._database.upsert(patients, ["identity"], values))
        return int(connection.execute(sa.select(patients.c.id).where(patients.c.identity == identity)).scalar_one())

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
