"""The walk over live jobs for a new webhook knows which transactions it has to wait for.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Walks that are under way go on as first ones, and get a second."""
    op.add_column("jobq_webhook_endpoints", sa.Column("hooked_behind", sa.BigInteger()))
