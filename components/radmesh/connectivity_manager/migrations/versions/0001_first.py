"""The first schema."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def upgrade() -> None:
    """Make the tables, and the store's identity."""
    meta = op.create_table(
        "meta",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("epoch", sa.LargeBinary(16)),
        _number("sequence"),
    )
    op.create_table(
        "messages",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("domain", sa.String(32), nullable=False),
        _number("direction"),
        _number("state"),
        *map(_text, ("type", "control_id", "sending_application", "sending_facility")),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        _number("time"),
        *map(_text, ("ack_code", "reason", "error", "remarks")),
        _number("attempts"),
        _number("replays"),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.Column("ack", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_messages_identity", "messages", ["domain", "control_id", "digest"])
    op.create_index("ix_messages_state", "messages", ["domain", "direction", "state", "id"])
    op.create_table(
        "patients",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("domain", sa.String(32), nullable=False),
        sa.Column("patient_id", sa.Text, nullable=False),
        *map(_text, ("issuer_of_patient_id", "patient_name", "patient_birth_date", "patient_sex", "said_at")),
        _number("merged_into"),
        sa.UniqueConstraint(
            "domain",
            "patient_id",
            "issuer_of_patient_id",
            name="uq_patients_domain_patient_id_issuer_of_patient_id",
        ),
    )
    op.create_index("ix_patients_merged_into", "patients", ["merged_into"])
    op.create_table(
        "orders",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("domain", sa.String(32), nullable=False),
        sa.Column("order_id", sa.Text, nullable=False, unique=True),
        sa.Column("patient", _KEY, nullable=False),
        *map(_text, ("accession_number", "placer_order_number", "filler_order_number", "study_instance_uid")),
        _number("status"),
        *map(
            _text,
            (
                "scheduled_time",
                "modality",
                "station_ae_title",
                "procedure_code",
                "procedure_code_scheme",
                "procedure_description",
                "requested_procedure_id",
                "referring_physician_name",
                "said_at",
            ),
        ),
        _number("update_time"),
    )
    for column in ("accession_number", "study_instance_uid", "filler_order_number", "placer_order_number"):
        op.create_index(f"ix_orders_domain_{column}", "orders", ["domain", column])
    op.create_index("ix_orders_scheduled", "orders", ["domain", "scheduled_time"])
    op.create_index("ix_orders_patient", "orders", ["patient"])
    op.create_table(
        "events",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "reports",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("domain", sa.String(32), nullable=False),
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        *map(_number, ("version", "message", "state")),
        _text("reason"),
        *map(_number, ("next_time", "errors", "untold")),
        sa.UniqueConstraint("study_instance_uid", "version", name="uq_reports_study_instance_uid_version"),
    )
    op.create_index("ix_reports_domain_state_id", "reports", ["domain", "state", "id"])
    op.create_index("ix_reports_untold", "reports", ["untold"])
    op.bulk_insert(meta, [{"id": 1, "epoch": secrets.token_bytes(16), "sequence": 0}])


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
