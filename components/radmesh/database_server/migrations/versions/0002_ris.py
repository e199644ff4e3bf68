"""Orders, verification, merges and reports. Only adds: the version before runs on it too."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _key() -> sa.Column[int]:
    return sa.Column("id", _KEY, primary_key=True)


def _reference(name: str, table: str, target: str) -> sa.Column[int]:
    return sa.Column(name, _KEY, sa.ForeignKey(f"{target}.id", name=f"fk_{table}_{name}"), nullable=False)


def upgrade() -> None:
    """Add columns and tables."""
    for column in (_text("order_id"), _number("report_version")):
        op.add_column("studies", column)
    for column in (
        _text("domain"),
        _text("mismatched"),
        _text("order_id"),
        _text("source_address"),
        _number("receive_time"),
        _number("revision"),
    ):
        op.add_column("admissions", column)
    for name in ("accession_number", "patient_id", "order_id"):
        op.create_index(f"ix_admissions_{name}", "admissions", [name])
    op.create_table(
        "verdicts",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        _text("study_instance_uid"),
        _number("verification"),
        _text("reason"),
        sa.Column("request", sa.LargeBinary, nullable=False),
        _number("time"),
    )
    op.create_index("ix_verdicts_time", "verdicts", ["time"])
    op.create_table(
        "orders",
        _key(),
        sa.Column("order_id", sa.Text, nullable=False),
        *map(
            _text,
            (
                "domain",
                "accession_number",
                "placer_order_number",
                "filler_order_number",
                "study_instance_uid",
                "patient_id",
                "issuer_of_patient_id",
                "patient_name",
                "name_key",
                "patient_birth_date",
                "patient_sex",
            ),
        ),
        _number("status"),
        *map(
            _text,
            (
                "scheduled_time",
                "modality",
                "station_ae_title",
                "procedure_code",
                "procedure_description",
                "requested_procedure_id",
                "referring_physician_name",
            ),
        ),
        _number("update_time"),
        sa.UniqueConstraint("order_id", name="uq_orders_order_id"),
    )
    op.create_index("ix_orders_worklist", "orders", ["scheduled_time", "id"])
    op.create_index("ix_orders_accession_number", "orders", ["accession_number"])
    op.create_index("ix_orders_patient", "orders", ["domain", "patient_id"])
    op.create_table(
        "managers",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.LargeBinary(16), nullable=False),
        _number("sequence"),
    )
    op.create_table(
        "merges",
        _key(),
        _text("domain"),
        _reference("prior", "merges", "patients"),
        _reference("surviving", "merges", "patients"),
        _number("study_count"),
        _number("time"),
        _number("undo_time"),
        _text("undo_actor"),
    )
    op.create_index("ix_merges_prior", "merges", ["prior"])
    op.create_index("ix_merges_surviving", "merges", ["surviving"])
    op.create_table(
        "merged_studies",
        _key(),
        _reference("merge", "merged_studies", "merges"),
        _reference("study", "merged_studies", "studies"),
    )
    op.create_index("ix_merged_studies_merge", "merged_studies", ["merge"])
    op.create_index("ix_merged_studies_study", "merged_studies", ["study"])
    op.create_table(
        "reports",
        _key(),
        _reference("study", "reports", "studies"),
        _number("version"),
        _number("state"),
        *map(_text, ("text", "author", "approver")),
        _number("update_time"),
        _number("approve_time"),
        _number("delivery"),
        _text("delivery_reason"),
        _text("control_id"),
        sa.UniqueConstraint("study", "version", name="uq_reports_study_version"),
    )
    op.create_index("ix_reports_delivery", "reports", ["delivery", "id"])


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
