"""The migrations make what the tables say, on both back ends."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from connectivity_support import Desk

from radmesh.connectivity_manager.schema import meta, metadata


def test_the_migrated_schema_is_what_the_tables_say(desk):
    with desk.database.engine.connect() as c:
        # SQLite quotes defaults in a way that alembic takes for others.
        options = {"compare_type": True, "compare_server_default": not desk.database.sqlite}
        context = MigrationContext.configure(c, opts=options)
        assert compare_metadata(context, metadata) == []


def test_every_store_has_an_identity_of_its_own_that_stays(tmp_path):
    found = []
    for name in ("one", "other", "one"):
        desk = Desk(f"sqlite:///{tmp_path}/{name}.sqlite")
        (row,) = desk.rows(meta)
        found.append(bytes(row["epoch"]))
        desk.close()
    assert [len(epoch) for epoch in found] == [16, 16, 16]
    assert found[0] == found[2] != found[1]
