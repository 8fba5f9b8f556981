"""Sync and replication: entities, watermarks, fan-outs, connectors, and jobs that wait for jobs.

Frozen, as every version is.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from jobq.store.sql import Instant, Json

revision = "0002"
down_revision = "0001"


def _where(predicate: str) -> dict[str, Any]:
    """A partial index, on both databases."""
    return {"postgresql_where": sa.text(predicate), "sqlite_where": sa.text(predicate)}


def upgrade() -> None:
    """Columns of jobs first: they are nullable, so that no row is rewritten."""
    for name in ("domain", "domain_end", "target", "entity_key"):
        op.add_column("jobq_jobs", sa.Column(name, sa.Text()))
    op.create_index(
        "jobq_jobs_child",
        "jobq_jobs",
        ["parent_id", "target", "entity_key"],
        unique=True,
        **_where("entity_key IS NOT NULL"),
    )
    op.create_index(
        "jobq_jobs_live_of_entity",
        "jobq_jobs",
        ["tenant", "domain", "target", "entity_key"],
        **_where("entity_key IS NOT NULL AND finished_at IS NULL"),
    )
    op.create_table(
        "jobq_after",
        sa.Column("upstream_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("any_end", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("upstream_id", "job_id"),
    )
    op.create_index("jobq_after_of_job", "jobq_after", ["job_id"])
    op.create_table(
        "jobq_connectors",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("config", Json, nullable=False),
        sa.Column("secrets", Json, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name"),
    )
    op.create_table(
        "jobq_entities",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("body", Json, nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "domain", "key"),
    )
    op.create_table(
        "jobq_watermarks",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("rules", sa.Text(), nullable=False),
        sa.Column("skipped", sa.Boolean(), nullable=False),
        sa.Column("external_id", sa.Text()),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("written_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "domain", "key", "target"),
    )
    op.create_table(
        "jobq_sync_states",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("state", Json),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "domain"),
    )
    op.create_table(
        "jobq_targets",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("not_before", Instant, nullable=False),
        sa.Column("allowed", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text()),
        sa.PrimaryKeyConstraint("tenant", "name"),
    )
    op.create_table(
        "jobq_fanouts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("reading", sa.Boolean(), nullable=False),
        sa.Column("cursor", Json),
        sa.Column("state", Json),
        sa.Column("read", sa.BigInteger(), nullable=False),
        sa.Column("filtered", sa.BigInteger(), nullable=False),
        sa.Column("new", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("existing", sa.BigInteger(), nullable=False),
        sa.Column("invalid", sa.BigInteger(), nullable=False),
        sa.Column("verdict", Json),
        sa.Column("settled_at", Instant),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("jobq_fanouts_unsettled", "jobq_fanouts", ["job_id"], **_where("settled_at IS NULL"))
    op.create_table(
        "jobq_fanout_targets",
        sa.Column("parent_id", sa.Uuid(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("completed", sa.BigInteger(), nullable=False),
        sa.Column("skipped", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("canceled", sa.BigInteger(), nullable=False),
        sa.Column("duplicate", sa.BigInteger(), nullable=False),
        sa.Column("success", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("existing", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("parent_id", "target"),
    )
    op.create_table(
        "jobq_fanout_deltas",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("skipped", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("canceled", sa.Integer(), nullable=False),
        sa.Column("duplicate", sa.Integer(), nullable=False),
        sa.Column("success", sa.Integer(), nullable=False),
        sa.Column("updated", sa.Integer(), nullable=False),
        sa.Column("existing", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "jobq_sync_problems",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("entity_key", sa.Text(), nullable=False),
        sa.Column("error_class", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number"),
    )
