"""Jobs belong to traces.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """A column that costs nothing where it is NULL: no row is rewritten."""
    op.add_column("jobq_jobs", sa.Column("traceparent", sa.Text()))
