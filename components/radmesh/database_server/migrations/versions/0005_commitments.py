"""Storage Commitment. Only adds: the version before runs on it too."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KEY: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "commitments",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("station", sa.String(16), nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        *map(_text, ("called_ae_title", "items")),
        *map(_number, ("version", "request_time", "finish_time")),
        sa.UniqueConstraint("station", "transaction_uid", name="uq_commitments_station_transaction_uid"),
    )
    op.create_index("ix_commitments_finish_time", "commitments", ["finish_time"])


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
