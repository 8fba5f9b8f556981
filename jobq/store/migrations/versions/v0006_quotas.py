"""Quotas of tenants.

Frozen, as every version is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from jobq.store.sql import Json

revision = "0006"
down_revision = "0005"

_HELD = "reason IN ('scheduled', 'retrying', 'requeued', 'blocked', 'paused')"


def upgrade() -> None:
    """Jobs that wait for anything but room are counted by tenant."""
    op.add_column("jobq_tenants", sa.Column("quota", Json))
    op.create_index(
        "jobq_jobs_held_of_tenant", "jobq_jobs", ["tenant"],
        postgresql_where=sa.text(_HELD), sqlite_where=sa.text(_HELD),
    )  # fmt: skip
