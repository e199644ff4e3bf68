"""Alembic's entry: the Database Server hands its connection over."""

from alembic import context

from radmesh.database_server.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
