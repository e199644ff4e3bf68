"""Routes, and what stations were sent. Only adds: the version before runs on it too."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_KEY: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.text("false"))


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "routes",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("entry", sa.Text(), nullable=False, server_default=""),
        *map(_flag, ("edited", "removed")),
        *map(_number, ("version", "update_time")),
    )
    op.create_table("routing", sa.Column("id", sa.Integer(), primary_key=True), *map(_number, ("revision", "time")))
    op.execute("INSERT INTO routing (id, revision, time) VALUES (1, -1, 0)")
    reference = sa.ForeignKey("instances.id", name="fk_deliveries_instance", ondelete="CASCADE")
    op.create_table(
        "deliveries",
        sa.Column("instance", _KEY, reference, primary_key=True, nullable=False),
        sa.Column("station", sa.String(16), primary_key=True),
        *map(_number, ("state", "job", "time")),
    )


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
