"""Listings of a million jobs: indexes by what jobs are narrowed to.

Frozen, as every version is.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_ODD = "finished_at IS NOT NULL AND reason <> 'succeeded'"


def _where(predicate: str) -> dict[str, Any]:
    return {"postgresql_where": sa.text(predicate), "sqlite_where": sa.text(predicate)}


def upgrade() -> None:
    """Every job pays for the first while it lives, for the second when it ends; few for the others."""
    op.create_index("jobq_jobs_list_live", "jobq_jobs", ["tenant", "id"], **_where("finished_at IS NULL"))
    sort = ["tenant", "queue", "kind", "trigger", "reason", "id"]
    op.create_index("jobq_jobs_list_ended", "jobq_jobs", sort, **_where("finished_at IS NOT NULL"))
    op.drop_index("jobq_jobs_list_by_tenant", "jobq_jobs")
    for of in ("workflow", "parent"):
        odd = _where(f"{of}_id IS NOT NULL AND {_ODD}")
        op.create_index(f"jobq_jobs_odd_of_{of}", "jobq_jobs", [f"{of}_id", "reason", "id"], **odd)
    op.create_index("jobq_jobs_list_by_domain", "jobq_jobs", ["tenant", "domain", "id"], **_where("domain IS NOT NULL"))
    scheduled = _where("scheduled_at IS NOT NULL")
    op.create_index("jobq_jobs_list_by_schedule", "jobq_jobs", ["tenant", "scheduled_at"], **scheduled)
