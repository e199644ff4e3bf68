"""The first schema, written out: what a later revision adds to the tables must not appear here too."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite gives INTEGER PRIMARY KEY, and only that, a number by itself.
_KEY: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LIVE: Final = sa.text("state IN (1, 2)")


def _key(name: str) -> sa.Column[int]:
    return sa.Column(name, _KEY, nullable=False)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, server_default="")


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def upgrade() -> None:
    """Make tables, name index, and the audit's triggers."""
    _tables()
    op.execute("INSERT INTO feed (id, revision, oldest) VALUES (1, 0, 0)")
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        _sqlite(connection)
    else:
        _postgresql(connection)


def _tables() -> None:
    op.create_table(
        "audit",
        _key("id"),
        _number("time"),
        *map(_text, ("action", "actor", "source_address", "outcome", "object", "detail")),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_action_id", "audit", ["action", "id"])
    op.create_index("ix_audit_actor_id", "audit", ["actor", "id"])
    op.create_index("ix_audit_object_id", "audit", ["object", "id"])
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger(), nullable=False, autoincrement=False),
        *map(_text, ("kind", "key")),
        _number("time"),
        sa.PrimaryKeyConstraint("revision", name="pk_changes"),
    )
    op.create_table(
        "feed",
        sa.Column("id", sa.Integer(), nullable=False),
        *map(_number, ("revision", "oldest")),
        sa.PrimaryKeyConstraint("id", name="pk_feed"),
    )
    op.create_table(
        "jobs",
        _key("id"),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
        _text("payload"),
        *map(_number, ("state", "attempt", "max_attempts")),
        _text("owner"),
        *map(_number, ("fence", "lease_until", "due_time")),
        *map(_text, ("reason", "message")),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("uq_jobs_live", "jobs", ["kind", "key"], unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE)
    op.create_index("ix_jobs_kind_state_due_time", "jobs", ["kind", "state", "due_time"])
    op.create_table(
        "marks",
        sa.Column("store_id", sa.String(64), nullable=False),
        sa.Column("study_hash", sa.String(32), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        _number("registered"),
        sa.PrimaryKeyConstraint("store_id", "study_hash", "generation", name="pk_marks"),
    )
    op.create_table(
        "outbox",
        _key("id"),
        sa.Column("topic", sa.String(64), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
        _text("payload"),
        *map(_number, ("attempts", "next_time")),
        _text("error"),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_topic_key_id", "outbox", ["topic", "key", "id"])
    op.create_table(
        "patients",
        _key("id"),
        sa.Column("identity", sa.Text(), nullable=False),
        *map(
            _text,
            ("patient_id", "issuer_of_patient_id", "patient_name", "name_key", "patient_birth_date", "patient_sex"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_patients"),
        sa.UniqueConstraint("identity", name="uq_patients_identity"),
    )
    op.create_index("ix_patients_patient_id", "patients", ["patient_id"])
    op.create_table(
        "placements",
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        sa.Column("store_id", sa.String(64), nullable=False),
        _number("time"),
        sa.PrimaryKeyConstraint("study_instance_uid", name="pk_placements"),
    )
    op.create_index("ix_placements_store_id_time", "placements", ["store_id", "time"])
    op.create_table(
        "sessions",
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        _text("session_id"),
        sa.Column("user_name", sa.String(64), nullable=False),
        _number("expire_time"),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
    )
    op.create_index("ix_sessions_expire_time", "sessions", ["expire_time"])
    op.create_index("ix_sessions_user_name", "sessions", ["user_name"])
    op.create_table(
        "stores",
        sa.Column("store_id", sa.String(64), nullable=False),
        _number("kind"),
        *map(_text, ("target", "put_target")),
        sa.Column("epoch", sa.LargeBinary(16), nullable=False),
        _number("free_bytes"),
        sa.Column("accepting", sa.Boolean(), nullable=False),
        *map(_number, ("unregistered", "heartbeat_time")),
        sa.PrimaryKeyConstraint("store_id", name="pk_stores"),
    )
    op.create_table(
        "users",
        sa.Column("name", sa.String(64), nullable=False),
        _text("display_name"),
        _number("role"),
        _text("password_hash"),
        *map(_number, ("create_time", "last_sign_in_time")),
        sa.PrimaryKeyConstraint("name", name="pk_users"),
    )
    op.create_table(
        "studies",
        _key("id"),
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        _key("patient"),
        *map(
            _text,
            (
                "accession_number",
                "study_date",
                "study_time",
                "study_id",
                "study_description",
                "referring_physician_name",
                "modalities",
                "domain",
            ),
        ),
        *map(
            _number,
            (
                "series_count",
                "instance_count",
                "bytes",
                "held_count",
                "defective_count",
                "variant_count",
                "verification",
            ),
        ),
        _text("verification_reason"),
        *map(_number, ("acquisition", "reading")),
        sa.Column("corrected", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        *map(_number, ("first_receive_time", "last_receive_time", "version")),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.ForeignKeyConstraint(["patient"], ["patients.id"], name="fk_studies_patient"),
        sa.UniqueConstraint("study_instance_uid", name="uq_studies_study_instance_uid"),
    )
    op.create_index("ix_studies_accession_number", "studies", ["accession_number"])
    op.create_index("ix_studies_patient", "studies", ["patient"])
    op.create_index("ix_studies_reading", "studies", ["reading", "study_date"])
    op.create_index("ix_studies_newest", "studies", ["study_date", "id"])
    op.create_index("ix_studies_verification", "studies", ["verification", "study_date"])
    op.create_table(
        "admissions",
        _key("id"),
        _key("study"),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        *map(
            _text,
            ("station", "patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date", "accession_number"),
        ),
        _number("verification"),
        _text("reason"),
        _number("update_time"),
        sa.PrimaryKeyConstraint("id", name="pk_admissions"),
        sa.ForeignKeyConstraint(["study"], ["studies.id"], name="fk_admissions_study"),
        sa.UniqueConstraint("study", "digest", name="uq_admissions_study_digest"),
    )
    op.create_index("ix_admissions_verification", "admissions", ["verification", "id"])
    op.create_table(
        "corrections",
        _key("id"),
        _key("study"),
        *map(_text, ("keyword", "original_value", "value", "source", "actor")),
        _number("time"),
        sa.Column("in_force", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_corrections"),
        sa.ForeignKeyConstraint(["study"], ["studies.id"], name="fk_corrections_study"),
    )
    op.create_index("ix_corrections_study_id", "corrections", ["study", "id"])
    op.create_table(
        "history",
        _key("id"),
        _key("study"),
        *map(_text, ("axis", "from_state", "to_state", "reason", "actor")),
        *map(_number, ("time", "version")),
        sa.PrimaryKeyConstraint("id", name="pk_history"),
        sa.ForeignKeyConstraint(["study"], ["studies.id"], name="fk_history_study"),
    )
    op.create_index("ix_history_study_id", "history", ["study", "id"])
    op.create_table(
        "series",
        _key("id"),
        _key("study"),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        *map(
            _text,
            (
                "modality",
                "series_number",
                "series_description",
                "body_part_examined",
                "series_date",
                "series_time",
                "station_name",
                "manufacturer",
            ),
        ),
        _number("instance_count"),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.ForeignKeyConstraint(["study"], ["studies.id"], name="fk_series_study"),
        sa.UniqueConstraint("study", "series_instance_uid", name="uq_series_study_series_instance_uid"),
    )
    op.create_index("ix_series_series_instance_uid", "series", ["series_instance_uid"])
    op.create_table(
        "instances",
        _key("id"),
        _key("study"),
        _key("series"),
        _key("admission"),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False),
        *map(_text, ("sop_class_uid", "instance_number")),
        *map(_number, ("sort_number", "rows", "columns", "number_of_frames", "length")),
        sa.Column("current", sa.Boolean(), nullable=False),
        _number("variant"),
        *map(_text, ("defect", "remarks", "calling_ae_title")),
        _number("receive_time"),
        sa.PrimaryKeyConstraint("id", name="pk_instances"),
        sa.ForeignKeyConstraint(["study"], ["studies.id"], name="fk_instances_study"),
        sa.UniqueConstraint(
            "sop_instance_uid",
            "transfer_syntax_uid",
            "sha256",
            name="uq_instances_sop_instance_uid_transfer_syntax_uid_sha256",
        ),
        sa.ForeignKeyConstraint(["series"], ["series.id"], name="fk_instances_series"),
        sa.ForeignKeyConstraint(["admission"], ["admissions.id"], name="fk_instances_admission"),
    )
    op.create_index("ix_instances_admission", "instances", ["admission"])
    op.create_index("ix_instances_series", "instances", ["series"])
    op.create_index("ix_instances_study", "instances", ["study"])
    op.create_table(
        "locations",
        _key("id"),
        _key("instance"),
        sa.Column("store_id", sa.String(64), nullable=False),
        sa.Column("study_hash", sa.String(32), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        _number("residence"),
        sa.PrimaryKeyConstraint("id", name="pk_locations"),
        sa.UniqueConstraint(
            "store_id",
            "study_hash",
            "generation",
            "sequence",
            name="uq_locations_store_id_study_hash_generation_sequence",
        ),
        sa.ForeignKeyConstraint(["instance"], ["instances.id"], name="fk_locations_instance"),
    )
    op.create_index("ix_locations_instance", "locations", ["instance"])


def _sqlite(connection: sa.Connection) -> None:
    for statement in (
        """CREATE VIRTUAL TABLE patient_names
             USING fts5(name_key, tokenize='trigram', content='patients', content_rowid='id')""",
        """CREATE TRIGGER patient_names_insert AFTER INSERT ON patients BEGIN
             INSERT INTO patient_names(rowid, name_key) VALUES (new.id, new.name_key); END""",
        """CREATE TRIGGER patient_names_update AFTER UPDATE OF name_key ON patients BEGIN
             INSERT INTO patient_names(patient_names, rowid, name_key) VALUES ('delete', old.id, old.name_key);
             INSERT INTO patient_names(rowid, name_key) VALUES (new.id, new.name_key); END""",
        """CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN
             SELECT RAISE(ABORT, 'the audit table is append-only'); END""",
        """CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN
             SELECT RAISE(ABORT, 'the audit table is append-only'); END""",
    ):
        connection.exec_driver_sql(statement)


def _postgresql(connection: sa.Connection) -> None:
    available = connection.exec_driver_sql("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'").first()
    if available:
        # Without the extension infix names are found by a scan: slower, not wrong.
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        connection.exec_driver_sql("CREATE INDEX ix_patients_name_trgm ON patients USING gin (name_key gin_trgm_ops)")
    for statement in (
        "CREATE INDEX ix_patients_id_prefix ON patients (patient_id text_pattern_ops)",
        """CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'the audit table is append-only'; END $$""",
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit EXECUTE FUNCTION audit_append_only()",
    ):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    """Data is never migrated backwards: restore a backup."""
    raise NotImplementedError
