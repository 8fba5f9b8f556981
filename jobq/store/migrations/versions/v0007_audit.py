"""Events are listed by tenant, name the API key that was used, and are kept for longer than jobs.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Those that exist keep what they say."""
    op.add_column("jobq_events", sa.Column("key_id", sa.Uuid()))
    op.create_index("jobq_events_of_tenant", "jobq_events", ["tenant", "id"])
    op.create_index("jobq_events_prune", "jobq_events", ["at"])
