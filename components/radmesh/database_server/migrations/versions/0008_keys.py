"""More that can be asked for: of images, and of orders. Only adds: the version before runs on it too."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, server_default="")


def upgrade() -> None:
    """Add the columns; neither database writes the rows anew."""
    op.add_column("instances", sa.Column("bits_allocated", sa.BigInteger(), nullable=False, server_default="0"))
    for name in ("acquisition_number", "content_date", "content_time"):
        op.add_column("instances", _text(name))
    for name in ("procedure_code_scheme", "scheduled_procedure_step_id"):
        op.add_column("orders", _text(name))


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
