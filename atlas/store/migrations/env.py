"""Alembic's entry: runs the migrations on the connection it is handed, in the caller's transaction."""

from alembic import context

from atlas.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
