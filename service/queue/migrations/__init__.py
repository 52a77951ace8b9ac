"""Migrations of the queue's tables with Alembic: each file of `versions/` is one step, `env.py` runs them.

`service.queue.tables.Database` runs them when it opens a database, in one transaction. To add a step, add a file to
`versions/` and make the same change in `service.queue.tables`; `tests/service/queue/test_migrations.py` fails while the
two differ.
"""
