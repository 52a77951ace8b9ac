"""The queue's tables through their versions, for Alembic: `versions/` holds one step each, `env.py` runs them.

`service.queue.tables.Database` upgrades on opening, in one transaction. A new step: add a file to `versions/`, change
`service.queue.tables` alike; `tests/service/queue/test_migrations.py` fails while the two differ.
"""
