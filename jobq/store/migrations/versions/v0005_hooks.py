"""Inbound hooks of workflows.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from jobq.store.sql import Instant

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Hooks are found by the digests of their tokens, and listed by workflow."""
    op.create_table(
        "jobq_hooks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("start", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("sealed", sa.Text()),
        sa.Column("replay_window", sa.Float()),
        sa.Column("rate_limit", sa.Integer()),
        sa.Column("busy_until", Instant),
        sa.Column("envelope", sa.Boolean(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("revoked_at", Instant),
        sa.Column("last_used_at", Instant),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobq_hooks_digest", "jobq_hooks", ["digest"], unique=True)
    op.create_index("jobq_hooks_of_workflow", "jobq_hooks", ["workflow_id", "id"])
