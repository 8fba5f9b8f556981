"""Rollups of what ended: analytics of any size, and of jobs that are long deleted.

Frozen, as every version is.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from jobq.store.sql import Instant, Json

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Nothing is rolled up yet: the scheduler begins with the oldest job there is."""
    op.create_table(
        "jobq_rollups",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=False),
        sa.Column("start", Instant, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("ends", Json, nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("wait", sa.Text(), nullable=False),
        sa.Column("run_seconds", sa.Float(), nullable=False),
        sa.Column("wait_seconds", sa.Float(), nullable=False),
        sa.Column("retries", sa.BigInteger(), nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "width", "workflow_id", "start", "kind", "queue"),
    )
    busiest = ["tenant", "width", "start", "workflow_id", "jobs"]  # read without the rows
    op.create_index("jobq_rollups_of_workflows", "jobq_rollups", busiest)
    op.create_index("jobq_rollups_prune", "jobq_rollups", ["start"])
    op.create_index("jobq_requests_of_job", "jobq_requests", ["job_id"])
    rolled = op.create_table(
        "jobq_rolled",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("until", Instant, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(rolled, [{"id": 1, "until": datetime(1970, 1, 1, tzinfo=UTC)}])
