"""The registry of stations. Only adds: the version before runs on it too."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.text("false"))


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "stations",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("entry", sa.Text(), nullable=False, server_default=""),
        *map(_flag, ("edited", "removed")),
        *map(_number, ("version", "update_time")),
    )


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
