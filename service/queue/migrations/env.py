"""Run by Alembic: the steps, on the connection that `service.queue.tables.Database` opened."""

from __future__ import annotations

from alembic import context

from service.queue.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite alters a table by copying it
    transactional_ddl=True,
)
context.run_migrations()  # within the caller's transaction
