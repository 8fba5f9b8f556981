"""Outbound webhooks: endpoints, what happened, and what was sent of it.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from jobq.store.sql import Instant, Json

revision = "0011"
down_revision = "0010"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Jobs that nobody listens to keep NULL in the new column, which takes no room in their rows."""
    op.add_column("jobq_jobs", sa.Column("hooked", sa.Integer()))
    op.create_table(
        "jobq_webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("patterns", Json, nullable=False),
        sa.Column("types", sa.Text(), nullable=False),
        sa.Column("children", sa.Boolean(), nullable=False),
        sa.Column("hub_signature", Json, nullable=False),
        sa.Column("secrets", Json, nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("listens", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text()),
        sa.Column("failing_since", Instant),
        sa.Column("succeeded_at", Instant),
        sa.Column("hooking", sa.Boolean(), nullable=False),
        sa.Column("hooked_from", sa.Uuid()),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    hooking = sa.text("hooking")
    op.create_index("jobq_webhook_endpoints_name", "jobq_webhook_endpoints", ["tenant", "name"], unique=True)
    op.create_index(
        "jobq_webhook_endpoints_hooking", "jobq_webhook_endpoints", ["id"],
        postgresql_where=hooking, sqlite_where=hooking,
    )  # fmt: skip
    op.create_table(
        "jobq_webhook_overrides",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("types", sa.Text()),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "jobq_webhook_events",
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("child", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text()),
        sa.Column("error_class", sa.Text()),
        sa.PrimaryKeyConstraint("subject_id", "number"),
    )
    op.create_table(
        "jobq_webhook_deliveries",
        sa.Column("id", _NUMBER, nullable=False, autoincrement=True),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("next_at", Instant),
        sa.Column("sender", sa.Uuid()),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("tried_at", Instant),
        sa.Column("ended_at", Instant),
        sa.Column("status_code", sa.Integer()),
        sa.Column("error_class", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("answer", sa.Text()),
        sa.Column("seconds", sa.Float()),
        sa.PrimaryKeyConstraint("id"),
    )
    due = sa.text("next_at IS NOT NULL")
    op.create_index(
        "jobq_webhook_deliveries_due", "jobq_webhook_deliveries", ["endpoint_id", "next_at"],
        postgresql_where=due, sqlite_where=due,
    )  # fmt: skip
    op.create_index("jobq_webhook_deliveries_list", "jobq_webhook_deliveries", ["endpoint_id", "id"])
    op.create_index("jobq_webhook_deliveries_of_subject", "jobq_webhook_deliveries", ["subject_id"])
