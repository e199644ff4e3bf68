"""What comes in: committed to the log with all that it does, then acknowledged (CORRECTNESS rules 15, 16).

One transaction writes the message, its answer, what it does to patients and orders, and the events that tell the
Database Server. A message that has no effect is a dead letter: kept, listed, replayed by hand when its cause is mended.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from radmesh.connectivity_manager.orders import Orders, Said
from radmesh.connectivity_manager.schema import messages
from radmesh.hl7 import build
from radmesh.hl7.message import Message, parse, split_batch
from radmesh.hl7.mllp import Peer
from radmesh.hl7.orders import Mapping, MergeEvent, OrderEvent, PatientEvent, read_order, read_patient_event, subject
from radmesh.runtime.clock import Clock
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh.sql.engine import Database, micros, time_of

# MessageDirection and MessageState of connectivity.v1
IN, OUT = 1, 2
DONE, IGNORED, WAITING, DEAD = 1, 2, 3, 4
_REPLAYED_WITHIN: Final = timedelta(days=7)
_TEXT_MOST: Final = 250
# Of one message, and so of one transaction.
_ORDERS_MOST: Final = 1000

# What a message says; None: nothing that concerns us.
News = Sequence[OrderEvent] | PatientEvent | MergeEvent | None


@dataclass(frozen=True, slots=True)
class Effect:
    """What became of a message: its state, and why it had no effect."""

    state: int
    error: RadmeshError | None = None


class Intake:
    """Takes the messages of one domain. Called by several threads.

    Args:
        domain: its name.
        mapping: where its messages say what.
        database: of the manager.
        orders: applies what messages say.
        clock: for times of the log, and of answers.
        log: without patient data.
        committed: called after each commit that made events.
    """

    def __init__(
        self,
        domain: str,
        mapping: Mapping,
        database: Database,
        orders: Orders,
        clock: Clock,
        log: Logger,
        committed: Callable[[], None],
    ) -> None:
        self.domain = domain
        self._mapping = mapping
        self._database = database
        self._orders = orders
        self._clock = clock
        self._log = log
        self._committed = committed
        self.last_message_at: Any = None

    def handle(self, raw: bytes, _peer: Peer) -> bytes | None:
        """Take a message, or a batch; return the answer.

        Raises:
            RadmeshError: it was not committed: it has to be sent again.
        """
        parts = split_batch(raw)
        if len(parts) == 1:
            return self._take(parts[0])
        answers = [answer for part in parts if (answer := self._take(part)) is not None]
        return build.batch_acknowledgement(answers)

    def _take(self, raw: bytes) -> bytes | None:
        message: Message | None = None
        news: News = None
        unclear: RadmeshError | None = None
        try:
            message = parse(raw)
            # Before the transaction: a long message must not keep those of other domains waiting.
            news = self._read(message)
        except RadmeshError as error:
            unclear = error
        digest = _digest(message, raw)
        outcome: list[Effect] = []

        def work(c: sa.Connection) -> bytes:
            self._database.serialise(c)
            first = self._replay(c, message, digest)
            if first is not None:
                if first.state == DEAD:  # it had no effect yet, and its cause may be mended by now
                    outcome[:] = [self.replay(c, first)]
                again = sa.update(messages).where(messages.c.id == first.id).values(replays=messages.c.replays + 1)
                return bytes(c.execute(again.returning(messages.c.ack)).scalar_one())
            effect = Effect(DEAD, unclear) if message is None or unclear else self._apply(c, message, news)
            outcome[:] = [effect]
            answer = self._answer(message, effect)
            c.execute(sa.insert(messages).values(self._row(message, raw, digest, effect, answer)))
            return answer or b""

        answer = self._database.write(work)
        self.last_message_at = self._clock.now()
        if outcome and outcome[0].error is not None:
            self._log.warning("message had no effect", domain=self.domain, reason=outcome[0].error.reason)
        self._committed()
        return answer or None

    def replay(self, c: sa.Connection, row: Any) -> Effect:
        """Let a dead letter take effect, in the caller's transaction.

        Its row is updated; if it took effect, whoever sends it again hears that.
        """
        self._database.serialise(c)
        values: dict[str, Any] = {}
        try:
            message = parse(bytes(row.raw))
            effect = self._apply(c, message, self._read(message), again=True)
        except RadmeshError as error:
            effect = Effect(DEAD, error)
        else:
            if effect.state != DEAD:
                answer = self._answer(message, effect)
                values = {"ack": answer or b"", "ack_code": _code(answer)}
        c.execute(
            sa.update(messages)
            .where(messages.c.id == row.id)
            .values(
                state=effect.state,
                reason=effect.error.reason if effect.error else "",
                error=effect.error.message[:_TEXT_MOST] if effect.error else "",
                attempts=messages.c.attempts + 1,
                **values,
            )
        )
        return effect

    def _replay(self, c: sa.Connection, message: Message | None, digest: bytes) -> Any:
        """Return the row of the same message, if it came within the last seven days."""
        if message is None or not message.control_id:
            return None
        oldest = micros(self._clock.now() - _REPLAYED_WITHIN)
        return c.execute(
            sa.select(messages)
            .where(
                messages.c.domain == self.domain,
                messages.c.control_id == _short(message.control_id),
                messages.c.digest == digest,
                messages.c.direction == IN,
                messages.c.sending_application == _short(message.sending_application),
                messages.c.sending_facility == _short(message.sending_facility),
                messages.c.time >= oldest,
            )
            .order_by(messages.c.id.desc())
        ).first()

    def _read(self, message: Message) -> News:
        """Return what a message says.

        Raises:
            RadmeshError: HL7_…: it cannot be understood.
        """
        about = subject(message)
        if about == "ORDER":
            orders = read_order(message, self._mapping)
            if len(orders) > _ORDERS_MOST:
                text = f"more than {_ORDERS_MOST} orders in one message: send several messages"
                raise RadmeshError("HL7_FIELD_INVALID", text, metadata={"location": "ORC"})
            return orders
        if about in ("PATIENT", "MERGE"):
            return read_patient_event(message, self._mapping)
        if about == "REPORT" or message.type.code == "ADT":
            return None
        text = f"messages of type {str(message.type)[:20]} are not taken"
        raise RadmeshError("HL7_TYPE_UNKNOWN", text, metadata={"location": "MSH-9"})

    def _apply(self, c: sa.Connection, message: Message, news: News, *, again: bool = False) -> Effect:
        """Do what a message says; one that contradicts what is known leaves nothing behind."""
        said = Said.of(message, self._clock.now(), again=again)
        try:
            with c.begin_nested():
                if isinstance(news, MergeEvent):
                    changed = self._orders.apply_merges(c, self.domain, news, said)
                elif isinstance(news, PatientEvent):
                    changed = self._orders.apply_patient(c, self.domain, news, said)
                else:
                    changed = self._orders.apply_orders(c, self.domain, news or (), said)
        except RadmeshError as error:
            if error.reason.startswith("HL7_"):
                return Effect(DEAD, error)
            raise
        return Effect(DONE if changed else IGNORED)

    def _answer(self, message: Message | None, effect: Effect) -> bytes | None:
        control_id = secrets.token_hex(10)
        if effect.error is not None:
            return build.refusal(message, effect.error, clock=self._clock, control_id=control_id)
        assert message is not None
        code = build.acknowledgement_code(message, "A")
        return build.acknowledge(message, code, clock=self._clock, control_id=control_id) if code else None

    def _row(
        self, message: Message | None, raw: bytes, digest: bytes, effect: Effect, answer: bytes | None
    ) -> dict[str, Any]:
        return {
            "domain": self.domain,
            "direction": IN,
            "state": effect.state,
            "type": _short(str(message.type)) if message else "",
            "control_id": _short(message.control_id) if message else "",
            "sending_application": _short(message.sending_application) if message else "",
            "sending_facility": _short(message.sending_facility) if message else "",
            "digest": digest,
            "time": micros(self._clock.now()),
            "ack_code": _code(answer),
            "reason": effect.error.reason if effect.error else "",
            "error": effect.error.message[:_TEXT_MOST] if effect.error else "",
            "remarks": "\n".join(message.remarks)[:4096] if message else "",
            "raw": raw,
            "ack": answer or b"",
        }


def last_message(database: Database, domain: str) -> Any:
    """Return when a domain's last message came in; None if none ever did."""
    with database.read() as c:
        latest = c.execute(
            sa.select(messages.c.time)
            .where(messages.c.domain == domain, messages.c.direction == IN)
            .order_by(messages.c.id.desc())
            .limit(1)
        ).scalar()
    return None if latest is None else time_of(latest)


def _short(text: str) -> str:
    """Return text as the log's columns keep it; the message itself is kept whole."""
    return text.replace("\0", "")[:_TEXT_MOST]


def _digest(message: Message | None, raw: bytes) -> bytes:
    return message.digest() if message is not None else hashlib.sha256(raw).digest()


def _code(answer: bytes | None) -> str:
    return parse(answer).get("MSA-1")[:2] if answer else ""
