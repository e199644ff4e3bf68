"""The migrations make what the tables say: columns, defaults, keys, and indexes, on both back ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from radmesh.database_server.schema import MIGRATIONS, metadata
from radmesh.sql.engine import Database

# The name index has tables of its own, and there are indexes that only one of the back ends knows.
_SPECIAL = ("patient_names", "alembic_version", "ix_patients_name_trgm", "ix_patients_id_prefix")


@pytest.fixture
def plain(back_end: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """A database that the tables themselves made, without any migration."""
    if back_end == "sqlite":
        engine = sa.create_engine(f"sqlite:///{tmp_path}/plain.sqlite")
        metadata.create_all(engine)
        yield engine
        engine.dispose()
        return
    server = request.getfixturevalue("postgres")
    url = server.create()
    engine = sa.create_engine(url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()
    server.drop(url)


def _described(engine: sa.Engine) -> dict[str, Any]:
    """Return all that the back end knows of each table, columns in no order: one that is added later stands last."""
    there = sa.inspect(engine)

    def plain(items: list[Any]) -> list[str]:
        named = (item for item in items if not (item["name"] or "").startswith(_SPECIAL))
        return sorted(json.dumps(item, default=str, sort_keys=True) for item in named)

    return {
        table: {
            "columns": plain(there.get_columns(table)),
            "indexes": plain(there.get_indexes(table)),
            "unique": plain(there.get_unique_constraints(table)),
            "foreign": plain(there.get_foreign_keys(table)),
            "checks": plain(there.get_check_constraints(table)),
            "key": str(there.get_pk_constraint(table)),
        }
        for table in there.get_table_names()
        if not table.startswith(_SPECIAL)
    }


def test_the_migrated_schema_is_what_the_tables_say(database: Database, plain: sa.Engine) -> None:
    migrated = _described(database.engine)
    assert migrated == _described(plain)
    assert set(migrated) == set(metadata.tables)
    assert "_where" in str(migrated["jobs"]["indexes"])


def test_no_migration_reads_the_tables_of_today() -> None:
    # What the tables gain later must not appear in a revision that was made before.
    versions = sorted((MIGRATIONS / "versions").glob("*.py"))
    assert versions
    for version in versions:
        assert "radmesh.database_server" not in version.read_text(), version.name
