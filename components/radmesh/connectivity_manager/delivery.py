"""Reports on their way to a RIS: one message a report version, the same bytes for ever (FEATURES CM3).

A domain has one worker, and one message under way. An acknowledgement counts for the message that it names; after
anything else the connection is closed and the same message sent again. What the RIS refuses is a dead letter, and those
behind it go on.
"""

import hashlib
import ssl
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.connectivity_manager.intake import DEAD, DONE, OUT, WAITING
from radmesh.connectivity_manager.schema import messages, reports
from radmesh.hl7.build import ReportMessage, report
from radmesh.hl7.message import Message
from radmesh.hl7.mllp import AckError, MllpClient
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.sql.engine import Database, micros

# DeliveryState of database.v1
STATE_WAITING, STATE_DELIVERED, STATE_REFUSED, STATE_NOT_CONFIGURED = 1, 2, 3, 4
# Of `untold`: the Database Server is to hand the report over again.
ASK: Final = 2
_FIRST_PAUSE: Final = timedelta(seconds=1)
_MOST_PAUSE: Final = timedelta(minutes=2)
# An AE may pass (a locked record, a patient not known yet); after so many it is a matter for people. An outage is none.
_ERRORS_MOST: Final = 10
_POLL_SECONDS: Final = 1.0


def control_id(study_instance_uid: str, version: int) -> str:
    """Return MSH-10 of a report version: 20 characters that depend on nothing else."""
    digest = hashlib.sha256(f"{study_instance_uid}\x1f{version}".encode()).hexdigest()
    return f"R{digest[:16].upper()}{version % 1000:03d}"


class Delivery:
    """Delivers the reports of one domain.

    Args:
        domain: a [[domains]] entry.
        database: of the manager.
        context: of the manager.
        ack_timeout: seconds that the RIS has to acknowledge.
        told: called when the state of a report has changed.
        tls: for "mllps://".
    """

    def __init__(
        self,
        domain: Any,
        database: Database,
        context: Context,
        ack_timeout: float,
        told: Callable[[], None],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._domain = domain
        self._database = database
        self._context = context
        self._told = told
        self._lock = threading.Lock()
        self._client: MllpClient | None = None
        if domain.report_to:
            host, _, port = domain.report_to.removeprefix("mllps://").removeprefix("mllp://").rpartition(":")
            self._client = MllpClient(host.strip("[]"), int(port), tls, ack_timeout=ack_timeout)
        self._worker: Worker = context.worker(f"reports-{domain.name}", self._step)

    @property
    def name(self) -> str:
        """Name of the domain."""
        return str(self._domain.name)

    def start(self) -> None:
        """Go on with what waits. What had no receiver yet is asked for again, and made anew as the domain is now."""
        if self._client is None:
            return
        unsent = sa.and_(reports.c.domain == self.name, reports.c.state == STATE_NOT_CONFIGURED)
        self._database.write(lambda c: c.execute(sa.update(reports).where(unsent).values(untold=ASK)))
        self._told()
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End; what is under way is sent again after the next start."""
        if self._client is not None:
            self._client.abort()
            self._worker.stop(grace)
            self._client.close()

    def wake(self) -> None:
        """Something waits."""
        self._worker.wake()

    def take_over(self, values: ReportMessage, version: int) -> str:
        """Put a report version into the outbox, durably; the first content is the one that is sent.

        One that had no receiver was never sent: it goes as it is told now, if there is one.

        Returns:
            MSH-10.

        Raises:
            RadmeshError: HL7_REPORT_INVALID, DATABASE_UNAVAILABLE.
        """
        raw = report(values)
        now = self._context.clock.now()

        def work(c: sa.Connection) -> None:
            mine = sa.and_(reports.c.study_instance_uid == values.study_instance_uid, reports.c.version == version)
            known = c.execute(sa.select(reports).where(mine)).first()
            if known is not None and known.state != STATE_NOT_CONFIGURED:
                return
            message = {
                "domain": self.name,
                "direction": OUT,
                "state": WAITING if self._client is not None else DONE,
                "type": "ORU^R01",
                "control_id": values.control_id,
                "sending_application": values.sending[0],
                "sending_facility": values.sending[1],
                "digest": hashlib.sha256(raw).digest(),
                "time": micros(now),
                "raw": raw,
                "ack": b"",
            }
            sent = {
                "domain": self.name,
                "study_instance_uid": values.study_instance_uid,
                "version": version,
                "state": STATE_WAITING if self._client is not None else STATE_NOT_CONFIGURED,
                "untold": 1,
            }
            if known is not None:
                c.execute(sa.update(messages).where(messages.c.id == known.message).values(message))
                c.execute(sa.update(reports).where(reports.c.id == known.id).values(sent))
                return
            key = c.execute(sa.insert(messages).values(message).returning(messages.c.id)).scalar_one()
            c.execute(sa.insert(reports).values(message=key, **sent))

        self._database.write(work)
        self._told()
        self._worker.wake()
        return values.control_id

    def again(self, c: sa.Connection, message: int) -> None:
        """Let a dead letter be sent again, in the caller's transaction."""
        c.execute(sa.update(messages).where(messages.c.id == message).values(state=WAITING, attempts=0))
        c.execute(
            sa.update(reports)
            .where(reports.c.message == message)
            .values(state=STATE_WAITING, reason="", next_time=0, errors=0, untold=1)
        )

    def _step(self) -> float:
        while not self._worker.stopping:
            row = self._next()
            if row is None:
                return _POLL_SECONDS
            wait: int = row.next_time - micros(self._context.clock.now())
            if wait > 0:
                return min(wait / 1e6, _POLL_SECONDS)
            self._send(row)
        return _POLL_SECONDS

    def _next(self) -> Any:
        """Return the report that is due first: of a study the oldest version, which a later one never passes."""
        first = (
            sa.select(sa.func.min(reports.c.id))
            .where(reports.c.domain == self.name, reports.c.state == STATE_WAITING)
            .group_by(reports.c.study_instance_uid)
        )
        with self._database.read() as c:
            return c.execute(
                sa.select(
                    reports.c.id,
                    reports.c.next_time,
                    reports.c.errors,
                    reports.c.message,
                    messages.c.raw,
                    messages.c.control_id,
                    messages.c.attempts,
                )
                .join(messages, messages.c.id == reports.c.message)
                .where(reports.c.id.in_(first))
                .order_by(reports.c.next_time, reports.c.id)
                .limit(1)
            ).first()

    def _send(self, row: Any) -> None:
        assert self._client is not None
        try:
            acknowledgement = self._client.exchange(bytes(row.raw), row.control_id)
        except AckError as error:
            last = error.reason == "HL7_REFUSED" or row.errors + 1 >= _ERRORS_MOST
            self._record(row, error, error.acknowledgement, dead=last)
        except RadmeshError as error:
            if self._worker.stopping:
                return
            self._record(row, error, None, dead=False)
        else:
            self._record(row, None, acknowledgement, dead=False)

    def _record(self, row: Any, error: RadmeshError | None, answer: Message | None, *, dead: bool) -> None:
        """Write down how it went. A crash before this sends the same message once more."""
        now = self._context.clock.now()
        state = STATE_DELIVERED if error is None else STATE_REFUSED if dead else STATE_WAITING
        reason = error.reason if error else ""

        def work(c: sa.Connection) -> None:
            before = c.execute(sa.select(reports.c.reason, reports.c.state).where(reports.c.id == row.id)).one()
            changed = (before.reason, before.state) != (reason, state)
            c.execute(
                sa.update(reports)
                .where(reports.c.id == row.id)
                .values(
                    state=state,
                    reason=reason,
                    next_time=micros(self._due(now, row.attempts)),
                    errors=row.errors + isinstance(error, AckError),
                    **({"untold": 1} if changed else {}),
                )
            )
            c.execute(
                sa.update(messages)
                .where(messages.c.id == row.message)
                .values(
                    state=DONE if error is None else DEAD if dead else WAITING,
                    attempts=messages.c.attempts + 1,
                    reason=reason,
                    error=error.message[:250] if error else "",
                    ack=answer.raw if answer else b"",
                    ack_code=answer.get("MSA-1")[:2] if answer else "",
                )
            )

        self._database.write(work)
        if error is not None:
            self._context.log.warning("report not delivered", domain=self.name, reason=reason, dead=dead)
        self._told()

    @staticmethod
    def _due(now: datetime, attempts: int) -> datetime:
        pause: timedelta = min(_FIRST_PAUSE * 2 ** min(attempts, 10), _MOST_PAUSE)
        return now + pause
