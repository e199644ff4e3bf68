"""Orders, verification, merges and reports. Only adds: the version before runs on it too."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_IN_FORCE: Final = sa.text("undo_time = 0")
_IDENTITY: Final = """
    UPDATE patients SET identity = 'id' || :separator || 'default' || :separator || substr(identity, 4)
    WHERE substr(identity, 1, 3) = 'id' || :separator
"""
_WHO: Final = "UPDATE patients SET who = identity"
# VERIFIED, UNVERIFIED and HELD were decided by somebody.
_DECIDED: Final = """
    UPDATE admissions
    SET domain = 'default', receive_time = update_time, revision = CASE WHEN verification > 2 THEN 1 ELSE 0 END
"""
# What the modality said is what was corrected, else what is shown.
_SEX: Final = """
    UPDATE admissions SET patient_sex = coalesce(
        (SELECT original_value FROM corrections
         WHERE corrections.study = admissions.study AND keyword = 'PatientSex' AND in_force),
        (SELECT patients.patient_sex FROM studies JOIN patients ON patients.id = studies.patient
         WHERE studies.id = admissions.study),
        '')
"""


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def _key() -> sa.Column[int]:
    return sa.Column("id", _KEY, primary_key=True)


def _reference(table: str, name: str, target: str, *, primary_key: bool = False) -> sa.Column[int]:
    reference = sa.ForeignKey(f"{target}.id", name=f"fk_{table}_{name}")
    return sa.Column(name, _KEY, reference, primary_key=primary_key, nullable=False)


def upgrade() -> None:
    """Add columns and tables, and say of what is there what can be said."""
    _columns()
    _values()
    _orders()
    _merges()
    _reports()


def _columns() -> None:
    for table, texts, numbers in (
        ("patients", ("who",), ()),
        ("studies", ("order_id",), ("person", "report_version")),
        (
            "admissions",
            ("patient_sex", "domain", "mismatched", "order_id", "source_address"),
            ("person", "receive_time", "revision"),
        ),
    ):
        for text in texts:
            op.add_column(table, _text(text))
        for number in numbers:
            op.add_column(table, _number(number))
    for table, name, indexed in (
        ("patients", "who", ["who"]),
        ("studies", "person", ["person"]),
        ("studies", "order_id", ["order_id"]),
        ("admissions", "reason", ["verification", "reason", "id"]),
        ("admissions", "domain", ["verification", "domain", "id"]),
        ("admissions", "accession_number", ["accession_number"]),
        ("admissions", "patient_id", ["patient_id"]),
    ):
        op.create_index(f"ix_{table}_{name}", table, indexed)


def _values() -> None:
    """All that came so far is of the only domain there was; who was decided about has a first revision."""
    connection = op.get_bind()
    connection.execute(sa.text(_IDENTITY), {"separator": "\x1f"})
    for statement in (_WHO, _DECIDED, _SEX):
        connection.execute(sa.text(statement))


def _orders() -> None:
    op.create_table(
        "verdicts",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        _text("study_instance_uid"),
        _number("verification"),
        *map(_text, ("reason", "decision")),
        _number("time"),
    )
    op.create_index("ix_verdicts_time", "verdicts", ["time"])
    op.create_table(
        "orders",
        _key(),
        sa.Column("order_id", sa.Text(), nullable=False),
        *map(
            _text,
            ("domain", "accession_number", "placer_order_number", "filler_order_number", "study_instance_uid"),
        ),
        _reference("orders", "patient", "patients"),
        _reference("orders", "shown", "patients"),
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
    for name in ("accession_number", "patient", "shown"):
        op.create_index(f"ix_orders_{name}", "orders", [name])
    op.create_index("ix_orders_scheduled_time", "orders", ["scheduled_time", "id"])
    for name in ("domain", "status", "modality", "station_ae_title"):
        op.create_index(f"ix_orders_{name}", "orders", [name, "scheduled_time", "id"])
    op.create_table(
        "managers",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.LargeBinary(16), primary_key=True),
        _number("sequence"),
    )


def _merges() -> None:
    op.create_table(
        "merges",
        _key(),
        _text("domain"),
        _reference("merges", "prior", "patients"),
        _reference("merges", "surviving", "patients"),
        *map(_number, ("time", "undo_time")),
        _text("undo_actor"),
    )
    op.create_index(
        "uq_merges_in_force", "merges", ["prior"], unique=True, sqlite_where=_IN_FORCE, postgresql_where=_IN_FORCE
    )
    op.create_index("ix_merges_surviving", "merges", ["surviving"])
    op.create_index("ix_merges_domain_id", "merges", ["domain", "id"])
    op.create_table(
        "merged_studies",
        _reference("merged_studies", "merge", "merges", primary_key=True),
        _reference("merged_studies", "study", "studies", primary_key=True),
    )


def _reports() -> None:
    op.create_table(
        "reports",
        _key(),
        _reference("reports", "study", "studies"),
        *map(_number, ("version", "state")),
        *map(_text, ("text", "author", "approver")),
        *map(_number, ("update_time", "approve_time", "delivery")),
        *map(_text, ("delivery_reason", "control_id")),
        sa.UniqueConstraint("study", "version", name="uq_reports_study_version"),
    )
    op.create_index("ix_reports_delivery", "reports", ["delivery", "id"])


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
