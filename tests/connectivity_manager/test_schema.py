"""The migrations make what the tables say, on both back ends."""

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from connectivity_support import Desk

from radmesh.connectivity_manager.schema import MIGRATIONS, meta, metadata, orders, patients
from radmesh.hl7.orders import Patient


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


def test_merges_of_the_first_version_can_be_undone(url):
    """Of these it is known who the patients are now, and of orders whose they are now: those stay where they are."""
    engine = sa.create_engine(url)
    with engine.begin() as c:
        if engine.dialect.name == "postgresql":
            c.exec_driver_sql("DROP SCHEMA public CASCADE")
            c.exec_driver_sql("CREATE SCHEMA public")
        configuration = Config()
        configuration.set_main_option("script_location", str(MIGRATIONS))
        configuration.attributes["connection"] = c
        command.upgrade(configuration, "0001")
        for key, into in ((1, 3), (2, 3), (3, 0)):
            c.execute(
                sa.text(
                    "INSERT INTO patients (id, domain, patient_id, merged_into) VALUES (:id, 'clinic', :name, :into)"
                ),
                {"id": key, "name": f"P{key}", "into": into},
            )
        c.execute(sa.text("INSERT INTO orders (id, domain, order_id, patient) VALUES (1, 'clinic', 'clinic/A1', 3)"))
    engine.dispose()
    desk = Desk(url)
    desk.database.write(lambda c: desk.orders.undo_merge(c, "clinic", "1@1", Patient("P2")))
    assert [(row["patient_id"], row["merged_into"]) for row in desk.rows(patients)] == [("P1", 3), ("P2", 0), ("P3", 0)]
    assert [(row["patient"], row["named"]) for row in desk.rows(orders)] == [(3, 3)]
    desk.close()
