"""API keys.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from jobq.store.sql import Instant

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Keys are found by their digests."""
    op.create_table(
        "jobq_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text()),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("start", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", Instant),
        sa.Column("revoked_at", Instant),
        sa.Column("last_used_at", Instant),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobq_keys_digest", "jobq_keys", ["digest"], unique=True)
