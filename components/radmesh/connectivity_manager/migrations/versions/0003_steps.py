"""The Scheduled Procedure Step ID of orders. Only adds: the version before runs on it too."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("orders", sa.Column("scheduled_procedure_step_id", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
