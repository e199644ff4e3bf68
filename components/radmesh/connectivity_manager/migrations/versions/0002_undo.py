"""What an undone merge takes back. Only adds: the version before runs on it too."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def upgrade() -> None:
    """Add the columns; of earlier merges it is known who the patients are now, and no more."""
    op.add_column("patients", _number("surviving"))
    op.add_column("orders", _number("named"))
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE patients SET surviving = merged_into"))
    connection.execute(sa.text("UPDATE orders SET named = patient"))
    op.create_index("ix_patients_surviving", "patients", ["surviving"])
    op.create_index("ix_orders_named", "orders", ["named"])
    op.create_table("undone", sa.Column("merge", sa.String(64), primary_key=True), _number("time"))


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
