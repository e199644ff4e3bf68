"""What web caches have. Only adds: the version before runs on it too."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEY: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def _part_of(table: str, name: str, target: str) -> sa.Column[int]:
    reference = sa.ForeignKey(f"{target}.id", name=f"fk_{table}_{name}", ondelete="CASCADE")
    return sa.Column(name, _KEY, reference, primary_key=True, nullable=False)


def upgrade() -> None:
    """Add the tables, and the order in which studies came."""
    op.add_column("stores", _text("client_url"))
    op.create_table(
        "renditions",
        _part_of("renditions", "instance", "instances"),
        sa.Column("store_id", sa.String(64), primary_key=True),
        _number("state"),
        _text("reason"),
        *map(_number, ("frame", "number_of_frames")),
        *map(_text, ("served_syntax_uid", "photometric_interpretation")),
        sa.Column("derived", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        _number("bytes"),
    )
    op.create_table(
        "curated",
        _part_of("curated", "study", "studies"),
        sa.Column("store_id", sa.String(64), primary_key=True),
        _number("instance_count"),
    )
    op.create_index("ix_curated_store_id_study", "curated", ["store_id", "study"])
    op.create_index("ix_studies_oldest", "studies", ["first_receive_time", "id"])


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
