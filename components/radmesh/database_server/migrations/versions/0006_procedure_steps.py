"""Performed procedure steps. Only adds: the version before runs on it too."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_KEY: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def _step(table: str) -> sa.Column[int]:
    reference = sa.ForeignKey("procedure_steps.id", name=f"fk_{table}_step", ondelete="CASCADE")
    return sa.Column("step", _KEY, reference, primary_key=True, nullable=False)


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "procedure_steps",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        *map(_text, ("station", "status")),
        *map(_number, ("create_time", "update_time")),
        sa.UniqueConstraint("sop_instance_uid", name="uq_procedure_steps_sop_instance_uid"),
    )
    op.create_table(
        "procedure_step_studies",
        _step("procedure_step_studies"),
        sa.Column("study_instance_uid", sa.String(64), primary_key=True),
    )
    op.create_index("ix_procedure_step_studies_study_instance_uid", "procedure_step_studies", ["study_instance_uid"])
    op.create_table(
        "procedure_step_messages",
        _step("procedure_step_messages"),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        _text("station"),
        _text("transfer_syntax_uid"),
        sa.Column("data_set", sa.LargeBinary(), nullable=False),
        sa.Column("request_id", sa.LargeBinary(16), nullable=False),
        _number("time"),
    )


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
