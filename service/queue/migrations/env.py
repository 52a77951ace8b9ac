"""Runs the migrations on the connection that `service.queue.tables.Database` opened; Alembic runs this file."""

from __future__ import annotations

from alembic import context

from service.queue.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite cannot alter most of a table: Alembic copies it
    transactional_ddl=True,
)
context.run_migrations()  # within the caller's transaction
