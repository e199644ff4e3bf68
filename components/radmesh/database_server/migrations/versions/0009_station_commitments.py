"""Whether stations store for good what they were sent. Only adds: the version before runs on it too."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column("deliveries", _text("transaction_uid"))
    op.create_index("ix_deliveries_transaction_uid", "deliveries", ["transaction_uid"])
    op.create_table(
        "station_commitments",
        sa.Column("transaction_uid", sa.String(64), primary_key=True),
        _text("station"),
        *map(_number, ("job", "request_time", "finish_time")),
    )


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
