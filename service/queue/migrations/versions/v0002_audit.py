"""The audit log, groups of tokens, disabled schedules, stalled jobs, jobs to be deleted, incidents of the parts."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Float, Integer, String, Text

revision = "0002"
down_revision = "0001"

REFUSE_SQLITE = "CREATE TRIGGER audit_no_{what} BEFORE {what} ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END"
REFUSE_POSTGRES = (
    "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'append-only'; END $$",
    "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()",
)


def upgrade() -> None:
    """Add columns and tables; remove the table of versions from before Alembic."""
    op.add_column("jobs", Column("moved_s", Float))
    op.add_column("jobs", Column("delete_requested", Integer, nullable=False, server_default="0"))
    op.add_column("jobs", Column("groups", Text, nullable=False, server_default="[]"))
    op.add_column("tokens", Column("groups", Text, nullable=False, server_default="[]"))
    op.add_column("tokens", Column("note", String(200)))
    op.add_column("tokens", Column("last_used_s", Float))
    op.add_column("recurring", Column("disabled", Text))
    op.add_column("recurring", Column("groups", Text, nullable=False, server_default="[]"))
    op.create_table(
        "audit",
        Column("seq", Integer, primary_key=True, autoincrement=True),
        Column("at_s", Float, nullable=False),
        Column("actor", String(64), nullable=False),
        Column("token_id", String(32)),
        Column("address", String(64)),
        Column("action", String(64), nullable=False),
        Column("object", String(1000)),
        Column("outcome", String(16), nullable=False),
        Column("detail", Text),
        Column("digest", String(64), nullable=False),
    )
    op.create_table(
        "incidents",
        Column("seq", Integer, primary_key=True, autoincrement=True),
        Column("part", String(32), nullable=False),
        Column("kind", String(16), nullable=False),
        Column("at_s", Float, nullable=False),
        Column("text", Text),
    )
    op.create_table(
        "used_logins",
        Column("digest", String(64), primary_key=True),
        Column("until_s", Float, nullable=False),
    )
    op.create_index("incidents_by_part", "incidents", ["part", "at_s"])
    if op.get_bind().dialect.name == "sqlite":
        for what in ("UPDATE", "DELETE"):
            op.execute(REFUSE_SQLITE.format(what=what))
    else:
        for statement in REFUSE_POSTGRES:
            op.execute(statement)
    op.execute("DROP TABLE IF EXISTS about")
