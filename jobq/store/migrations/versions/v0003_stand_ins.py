"""A SYNC ends with the jobs that stand in for its children: they are found by its duplicates.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_DUPLICATES = sa.text("duplicate_of IS NOT NULL AND parent_id IS NOT NULL")


def upgrade() -> None:
    """An index of the few rows that are children and duplicates: no other row pays for it."""
    op.create_index(
        "jobq_jobs_stood_in_for",
        "jobq_jobs",
        ["parent_id", "id"],
        postgresql_where=_DUPLICATES,
        sqlite_where=_DUPLICATES,
    )
