"""What changed lately: finished jobs by when they ended, workflows by when they were changed.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """A job pays for its index once, when it ends."""
    ended = sa.text("finished_at IS NOT NULL")
    op.create_index("jobq_jobs_finished", "jobq_jobs", ["finished_at"], postgresql_where=ended, sqlite_where=ended)
    op.create_index("jobq_workflows_changed", "jobq_workflows", ["updated_at"])
