"""The first tables: jobs, attempts, events, tokens, watches and schedules, leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column, Float, ForeignKey, Integer, String, Text

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "jobs",
        Column("seq", Integer, primary_key=True, autoincrement=True),
        Column("id", String(64), unique=True, nullable=False),
        Column("kind", String(16), nullable=False),
        Column("owner", String(64), nullable=False),
        Column("request", Text, nullable=False),
        Column("state", String(16), nullable=False),
        Column("reason", Text),
        Column("priority", Integer, nullable=False),
        Column("idempotency_key", String(200)),
        Column("attempt", Integer, nullable=False),
        Column("first_attempt", Integer, nullable=False),
        Column("max_attempts", Integer, nullable=False),
        Column("cancel_requested", Integer, nullable=False),
        Column("created_s", Float, nullable=False),
        Column("due_s", Float, nullable=False),
        Column("started_s", Float),
        Column("ended_s", Float),
        Column("beat_s", Float),
        Column("done", Integer),
        Column("total", Integer),
        Column("eta_s", Float),
        Column("activity", Text),
        Column("mlflow_run", String(64)),
        Column("source", String(64)),
        sa.UniqueConstraint("owner", "idempotency_key"),
        sa.Index("jobs_by_state", "state", "due_s"),
        sa.Index("jobs_by_owner", "owner", "seq"),
    )
    op.create_table(
        "attempts",
        Column("job_id", String(64), ForeignKey("jobs.id"), primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("submission_id", String(80), nullable=False),
        Column("state", String(16), nullable=False),
        Column("reason", Text),
        Column("exit_code", Integer),
        Column("started_s", Float, nullable=False),
        Column("ended_s", Float),
    )
    op.create_table(
        "events",
        Column("seq", Integer, primary_key=True, autoincrement=True),
        Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False, index=True),
        Column("at_s", Float, nullable=False),
        Column("state", String(16), nullable=False),
        Column("text", Text, nullable=False),
    )
    op.create_table(
        "tokens",
        Column("id", String(32), primary_key=True),
        Column("sha256", String(64), unique=True, nullable=False),
        Column("owner", String(64), nullable=False),
        Column("scope", String(16), nullable=False),
        Column("created_s", Float, nullable=False),
        Column("expires_s", Float),
        Column("revoked_s", Float),
    )
    op.create_table(
        "recurring",
        Column("seq", Integer, primary_key=True, autoincrement=True),
        Column("id", String(64), unique=True, nullable=False),
        Column("owner", String(64), nullable=False),
        Column("what", String(16), nullable=False),
        Column("body", Text, nullable=False),
        Column("next_s", Float, nullable=False),
        Column("note", Text),
    )
    op.create_table(
        "arrived",
        Column("watch_id", String(64), primary_key=True),
        Column("uri", String(1000), primary_key=True),
        Column("etag", String(200), primary_key=True),
        Column("job_id", String(64), nullable=False),
        Column("at_s", Float, nullable=False),
    )
    op.create_table(
        "leases",
        Column("name", String(32), primary_key=True),
        Column("holder", String(80), nullable=False),
        Column("until_s", Float, nullable=False),
    )
