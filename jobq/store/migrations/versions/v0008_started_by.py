"""Jobs know who made them.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Of jobs that exist nobody knows."""
    op.add_column("jobq_job_data", sa.Column("started_by", sa.Text()))
