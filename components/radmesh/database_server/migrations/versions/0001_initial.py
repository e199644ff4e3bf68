"""The first schema.

Written by the tables themselves, as they were when this revision was made: later revisions change them by statements
of their own, and a test compares the result with the tables.
"""

import sqlalchemy as sa
from alembic import op

from radmesh.database_server.schema import feed, metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make tables, name index, and the audit's triggers."""
    connection = op.get_bind()
    metadata.create_all(connection)
    connection.execute(sa.insert(feed).values(id=1, revision=0, oldest=0))
    if connection.dialect.name == "sqlite":
        _sqlite(connection)
    else:
        _postgresql(connection)


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
