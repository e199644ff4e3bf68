"""The transactional outbox: what must be told outside is a row of the transaction that decided it.

A topic's consumer is called with (id, key, payload), in order for each key, again after a failure with a pause that
grows; the row goes when it returns. A crash between its effect and that makes it see the row again: it must be
idempotent by what the row says. An id tells rows that wait apart; SQLite gives it again when its row has gone.
"""

from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa

from radmesh.runtime.clock import Clock
from radmesh.sql.engine import Database, micros

Consumer = Callable[[int, str, str], None]
Key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOST_PAUSE = timedelta(minutes=5)


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """Return the table of an outbox."""
    return sa.Table(
        "outbox",
        metadata,
        sa.Column("id", Key, primary_key=True),
        sa.Column("topic", sa.String(64), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
        sa.Column("payload", sa.Text, nullable=False, server_default=""),
        sa.Column("attempts", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("next_time", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("error", sa.Text, nullable=False, server_default=""),
        sa.Index(None, "topic", "key", "id"),
    )


def append(connection: sa.Connection, table: sa.Table, topic: str, key: str, payload: str) -> None:
    """Add a row within a transaction."""
    connection.execute(sa.insert(table).values(topic=topic, key=key, payload=payload))


class Dispatcher:
    """Hands the rows of one topic to its consumer; `step` is for a Worker.

    `where`, a condition on the table that is the same for all rows of a key, chooses some of them: consumers that may
    hang for some keep the others waiting unless those have a dispatcher and a worker of their own.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        table: sa.Table,
        topic: str,
        consumer: Consumer,
        where: sa.ColumnElement[bool] | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._table = table
        self._rows = sa.and_(table.c.topic == topic, sa.true() if where is None else where)
        self._consumer = consumer

    def step(self) -> float:
        """Deliver what is due; return the seconds until the next look."""
        outbox = self._table
        first = sa.select(sa.func.min(outbox.c.id).label("id")).where(self._rows).group_by(outbox.c.key).subquery()
        while True:
            now = micros(self._clock.now())
            with self._database.read() as connection:
                # Only the first row of a key may go: those behind it wait for it.
                rows = connection.execute(
                    sa.select(outbox)
                    .join(first, first.c.id == outbox.c.id)
                    .where(outbox.c.next_time <= now)
                    .order_by(outbox.c.id)
                    .limit(100)
                ).all()
            if not rows:
                return 1.0
            for row in rows:
                self._deliver(row)

    def _deliver(self, row: sa.Row[tuple[object, ...]]) -> None:
        outbox = self._table
        try:
            self._consumer(row.id, row.key, row.payload)
        except Exception as error:  # noqa: BLE001 - whatever it was, the row stays
            pause = min(timedelta(seconds=0.5 * 2 ** min(row.attempts, 20)), _MOST_PAUSE)
            later = micros(self._clock.now() + pause)
            name = type(error).__name__
            self._database.write(
                lambda c: c.execute(
                    sa.update(outbox)
                    .where(outbox.c.id == row.id)
                    .values(attempts=outbox.c.attempts + 1, next_time=later, error=name)
                )
            )
        else:
            self._database.write(lambda c: c.execute(sa.delete(outbox).where(outbox.c.id == row.id)))
