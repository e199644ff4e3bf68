"""Reports: draft, approved, addendum; an approved version is told to the RIS by the outbox."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa

from radmesh.database_server.feed import Feed
from radmesh.database_server.queries import Cursor, Viewer, fitting, visible
from radmesh.database_server.schema import outbox, reports, studies
from radmesh.database_server.statuses import AXES, Statuses
from radmesh.database_server.texts import clean
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.sql.engine import Database, micros
from radmesh.sql.outbox import append

TOPIC: Final = "report"
TEXT_MOST: Final = 256 << 10
# ReportState and DeliveryState of database.v1
DRAFT, APPROVED = 1, 2
WAITING, DELIVERED, REFUSED, NOT_CONFIGURED = 1, 2, 3, 4
# Why NOT_CONFIGURED where nobody serves the domain; if it has no report_to there is no reason.
DOMAIN_UNKNOWN: Final = "DOMAIN_UNKNOWN"
_SENT_AT_ONCE: Final = 200
# A report may be typed, or approved, at once.
_PATHS: Final = {("NEW", "TRANSCRIBED"): ("DICTATED", "TRANSCRIBED"), ("NEW", "APPROVED"): ("DICTATED", "APPROVED")}


class Reports:
    """Writes reports. `wake` tells the dispatcher of the outbox that there is something to send."""

    def __init__(self, database: Database, feed: Feed, clock: Clock, statuses: Statuses) -> None:
        self._database = database
        self._feed = feed
        self._clock = clock
        self._statuses = statuses
        self.wake: Callable[[], None] = lambda: None

    def save(self, uid: str, text: str, *, transcribed: bool, actor: str, expected_version: int) -> dict[str, Any]:
        """Write the draft; return it.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, STUDY_HELD, REPORT_EMPTY, REPORT_TOO_LONG, VERSION_CONFLICT.
        """
        text = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            raise RadmeshError("REPORT_EMPTY", "the report says nothing: write it")
        if len(text.encode()) > TEXT_MOST:
            raise RadmeshError("REPORT_TOO_LONG", f"a report has at most {TEXT_MOST} bytes of UTF-8")

        def work(c: sa.Connection) -> tuple[dict[str, Any], list[tuple[str, str]]]:
            self._database.serialise(c)
            study = self._study(c, uid)
            newest = self._newest(c, study.id)
            version = newest.version if newest is not None and newest.state == DRAFT else study.report_version + 1
            if expected_version and expected_version != version:
                raise RadmeshError(
                    "VERSION_CONFLICT",
                    f"the draft is version {version} now: read it again",
                    metadata={"version": str(version)},
                )
            values = {
                "study": study.id,
                "version": version,
                "state": DRAFT,
                "text": text,
                "author": clean(actor, 256),
                "update_time": micros(self._clock.now()),
            }
            c.execute(self._database.upsert(reports, ["study", "version"], values))
            c.execute(sa.update(studies).where(studies.c.id == study.id).values(report_version=version))
            self._read(c, study, "TRANSCRIBED" if transcribed else "DICTATED", actor)
            return self._one(c, study.id, version), [("report", uid), ("study", uid)]

        saved, _ = self._feed.write(work)
        return saved  # type: ignore[return-value]

    def approve(self, uid: str, version: int, actor: str) -> dict[str, Any]:
        """Approve a draft, and put it into the outbox in the same transaction; the same again changes nothing.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, REPORT_NOT_FOUND, STUDY_HELD, VERSION_CONFLICT.
        """

        def work(c: sa.Connection) -> tuple[dict[str, Any], list[tuple[str, str]]]:
            self._database.serialise(c)
            study = self._study(c, uid)
            newest = self._newest(c, study.id)
            if newest is None or not 0 <= version <= newest.version:
                raise RadmeshError("REPORT_NOT_FOUND", "the study has no such report: write it first")
            if newest.state == APPROVED or 0 < version < newest.version:
                # Only the newest may be a draft.
                return self._one(c, study.id, version or newest.version), []
            now = micros(self._clock.now())
            c.execute(
                sa.update(reports)
                .where(reports.c.id == newest.id)
                .values(state=APPROVED, approver=clean(actor, 256), approve_time=now, delivery=WAITING)
            )
            self._read(c, study, "APPROVED", actor)
            append(c, outbox, TOPIC, uid, str(newest.version))
            return self._one(c, study.id, newest.version), [("report", uid), ("study", uid)]

        approved, _ = self._feed.write(work)
        self.wake()
        return approved  # type: ignore[return-value]

    def deliver(self, uid: str, version: int, delivery: int, reason: str, control_id: str) -> None:
        """Remember how a version fares at the RIS.

        Raises:
            RadmeshError: REPORT_NOT_FOUND.
        """
        self._feed.write(lambda c: (None, self._fares(c, uid, version, delivery, reason, control_id, first=False)))
        self.wake()

    def handed_over(self, uid: str, version: int, delivery: int, reason: str = "", control_id: str = "") -> None:
        """Remember how a version fared on its way to the manager; what the manager says itself goes before it.

        Raises:
            RadmeshError: REPORT_NOT_FOUND.
        """
        self._feed.write(lambda c: (None, self._fares(c, uid, version, delivery, reason, control_id, first=True)))

    @staticmethod
    def _fares(
        c: sa.Connection, uid: str, version: int, delivery: int, reason: str, control_id: str, *, first: bool
    ) -> list[tuple[str, str]]:
        row = c.execute(
            sa.select(reports)
            .join(studies, studies.c.id == reports.c.study)
            .where(studies.c.study_instance_uid == uid, reports.c.version == version, reports.c.state == APPROVED)
            .with_for_update(of=reports)
        ).first()
        if row is None:
            raise RadmeshError("REPORT_NOT_FOUND", "there is no such report")
        values = {
            "delivery": delivery,
            "delivery_reason": clean(reason, 64),
            "control_id": clean(control_id, 64) or row.control_id,
        }
        same = all(getattr(row, name) == value for name, value in values.items())
        if same or (first and (row.control_id or row.delivery != WAITING)):
            return []
        c.execute(sa.update(reports).where(reports.c.id == row.id).values(**values))
        if not first and (row.delivery, delivery) == (NOT_CONFIGURED, WAITING):
            # There is a receiver now: the manager asks for what it could not send.
            append(c, outbox, TOPIC, uid, str(version))
        return [("report", uid)]

    def send_again(self, domains: Collection[str]) -> bool:
        """Send what no manager was there for, if one serves its domain now; some at a time, return whether to go on."""
        unsent = (
            sa.select(reports.c.id, reports.c.version, studies.c.study_instance_uid)
            .join(studies, studies.c.id == reports.c.study)
            .where(reports.c.delivery == NOT_CONFIGURED, reports.c.delivery_reason == DOMAIN_UNKNOWN)
            .where(studies.c.domain.in_(domains))
            .order_by(reports.c.id)
            .limit(_SENT_AT_ONCE)
        )

        def work(c: sa.Connection) -> tuple[int, list[tuple[str, str]]]:
            self._database.serialise(c)
            rows = c.execute(unsent).all()
            mine = reports.c.id.in_([row.id for row in rows])
            c.execute(sa.update(reports).where(mine).values(delivery=WAITING, delivery_reason=""))
            for row in rows:
                append(c, outbox, TOPIC, row.study_instance_uid, str(row.version))
            return len(rows), [("report", row.study_instance_uid) for row in rows]

        sent, _ = self._feed.write(work)
        self.wake()
        return sent == _SENT_AT_ONCE

    def list(self, uid: str, delivery: int, size: int, token: str) -> tuple[list[dict[str, Any]], str]:
        """Return a page of reports and the next token: of a study by version, newest first; else newest first.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        cursor = Cursor(("reports", uid, delivery))
        position = cursor.read(token)
        columns = [column for column in reports.c if column.name != "text"]
        query = (
            sa.select(*columns, sa.func.length(reports.c.text).label("length"), studies.c.study_instance_uid)
            .join(studies, studies.c.id == reports.c.study)
            .order_by(reports.c.id.desc())
            .limit(size + 1)
        )
        with self._database.read() as c:
            if uid:
                key = c.execute(sa.select(studies.c.id).where(studies.c.study_instance_uid == uid)).scalar()
                if key is None:
                    raise RadmeshError("STUDY_NOT_FOUND", "there is no such study")
                query = query.where(reports.c.study == key)
            if delivery:
                query = query.where(reports.c.delivery == delivery)
            if position:
                query = query.where(reports.c.id < position[0])
            # Texts are read when it is known how many fit into an answer.
            found = [dict(row) for row in c.execute(query).mappings()]
            rows, more = fitting(found, size, lambda row: 4 * int(row["length"]))
            texts = self._texts(c, [row["id"] for row in rows])
        rows = [{**row, "text": texts[row["id"]]} for row in rows]
        return rows, cursor.write(rows[-1]["id"]) if more else ""

    @staticmethod
    def _texts(c: sa.Connection, keys: Sequence[int]) -> dict[int, str]:
        found: dict[int, str] = {}
        for start in range(0, len(keys), 500):
            query = sa.select(reports.c.id, reports.c.text).where(reports.c.id.in_(keys[start : start + 500]))
            found |= {row.id: row.text for row in c.execute(query)}
        return found

    def one(self, uid: str, version: int) -> dict[str, Any] | None:
        """Return a version of a study's report; None if there is none."""
        with self._database.read() as c:
            row = c.execute(
                sa.select(reports, studies.c.study_instance_uid)
                .join(studies, studies.c.id == reports.c.study)
                .where(studies.c.study_instance_uid == uid, reports.c.version == version)
            ).mappings()
            found = row.first()
        return dict(found) if found is not None else None

    def _study(self, c: sa.Connection, uid: str) -> Any:
        seen = visible(Viewer()).label("seen")
        row = c.execute(sa.select(studies, seen).where(studies.c.study_instance_uid == uid)).first()
        if row is None:
            raise RadmeshError("STUDY_NOT_FOUND", "there is no such study")
        # What is held beside the rest keeps nobody from reading that.
        if not row.seen:
            raise RadmeshError("STUDY_HELD", "the study is held: release it first")
        return row

    @staticmethod
    def _newest(c: sa.Connection, study: int) -> Any:
        query = sa.select(reports).where(reports.c.study == study).order_by(reports.c.version.desc()).limit(1)
        return c.execute(query).first()

    @staticmethod
    def _one(c: sa.Connection, study: int, version: int) -> dict[str, Any]:
        row = (
            c.execute(
                sa.select(reports, studies.c.study_instance_uid)
                .join(studies, studies.c.id == reports.c.study)
                .where(reports.c.study == study, reports.c.version == version)
            )
            .mappings()
            .one()
        )
        return dict(row)

    def _read(self, c: sa.Connection, study: Any, to: str, actor: str) -> None:
        """Move the reading axis with the report; what is written again leaves it where it is."""
        before = AXES["reading"].states[study.reading]
        if to != "APPROVED" and before in ("APPROVED", "ADDENDUM"):
            to = "ADDENDUM"
        if to == before or (to, before) == ("DICTATED", "TRANSCRIBED"):
            return
        self._statuses.step(c, study, "reading", *_PATHS.get((before, to), (to,)), actor=actor)
