"""The first schema: workflows, jobs, attempts, logs, workers, queues, tenants and secrets.

Frozen: later versions change the tables by migrations of their own. A test holds their sum equal to
``jobq.store.tables``.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

from jobq.store.sql import Instant, Json

revision = "0001"
down_revision = None

_REFUSAL = "a finished job never changes its status"
_TERMINAL = "'CANCELED', 'COMPLETED', 'FAILED'"
# The WHEN clause costs nothing for any other update.
_GUARD = {
    "postgresql": (
        f"""CREATE FUNCTION jobq_refuse_revival() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION '{_REFUSAL}' USING ERRCODE = 'JQ001'; END $$""",
        f"""CREATE TRIGGER jobq_jobs_terminal BEFORE UPDATE ON jobq_jobs FOR EACH ROW
            WHEN (OLD.status IN ({_TERMINAL}) AND NEW.status IS DISTINCT FROM OLD.status)
            EXECUTE FUNCTION jobq_refuse_revival()""",
    ),
    "sqlite": (
        f"""CREATE TRIGGER jobq_jobs_terminal BEFORE UPDATE ON jobq_jobs FOR EACH ROW
            WHEN OLD.status IN ({_TERMINAL}) AND NEW.status IS NOT OLD.status
            BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END""",
    ),
}


def _where(predicate: str) -> dict[str, Any]:
    """A partial index, on both databases."""
    return {"postgresql_where": sa.text(predicate), "sqlite_where": sa.text(predicate)}


def upgrade() -> None:
    """Create every table, then the guard of the terminal states, then the installation's id."""
    op.create_table(
        "jobq_artifacts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "name"),
    )
    op.create_table(
        "jobq_attempts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("charged", sa.Boolean(), nullable=False),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("finished_at", Instant, nullable=False),
        sa.Column("message", sa.Text()),
        sa.Column("error_class", sa.Text()),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("result", Json),
        sa.Column("steps", Json),
        sa.Column("usage", Json),
        sa.PrimaryKeyConstraint("job_id", "attempt"),
    )
    op.create_table(
        "jobq_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("detail", Json),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobq_events_of_subject", "jobq_events", ["subject", "id"])
    op.create_table("jobq_installation", sa.Column("id", sa.Uuid(), nullable=False), sa.PrimaryKeyConstraint("id"))
    op.create_table(
        "jobq_job_data",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("state", Json),
        sa.Column("retry", Json),
        sa.Column("checkpoint", Json),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "jobq_job_logs",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("first_line", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("body", Json, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "first_line"),
    )
    op.create_table(
        "jobq_jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), server_default="", nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("desired", sa.Text(), server_default="RUN", nullable=False),
        sa.Column("cancel_reason", sa.Text()),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("requeues", sa.Integer(), server_default="0", nullable=False),
        sa.Column("timeout", sa.Float()),
        sa.Column("stale_after", sa.Float()),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("scheduled_at", Instant),
        sa.Column("due_at", Instant),
        sa.Column("ready_at", Instant),
        sa.Column("queued_at", Instant),
        sa.Column("started_at", Instant),
        sa.Column("finished_at", Instant),
        sa.Column("next_send_at", Instant),
        sa.Column("sends", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("host", sa.Text()),
        sa.Column("workflow_id", sa.Uuid()),
        sa.Column("generation", sa.Integer()),
        sa.Column("slot_at", Instant),
        sa.Column("parent_id", sa.Uuid()),
        sa.Column("retry_of", sa.Uuid()),
        sa.Column("duplicate_of", sa.Uuid()),
        sa.Column("dedupe_key", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("error_class", sa.Text()),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (status IN ('CANCELED', 'COMPLETED', 'FAILED'))", name="jobq_jobs_finished"
        ),
        sa.CheckConstraint("(next_send_at IS NOT NULL) = (status = 'QUEUED')", name="jobq_jobs_queued"),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={
            "fillfactor": 80,
            "autovacuum_vacuum_scale_factor": 0.02,
            "autovacuum_analyze_scale_factor": 0.02,
        },
    )
    op.create_index(
        "jobq_jobs_blocked_of_workflow", "jobq_jobs", ["workflow_id", "slot_at"], **_where("reason = 'blocked'")
    )
    op.create_index(
        "jobq_jobs_claim_and_resend", "jobq_jobs", ["queue", "next_send_at"], **_where("next_send_at IS NOT NULL")
    )
    op.create_index(
        "jobq_jobs_dedupe",
        "jobq_jobs",
        ["tenant", "dedupe_key"],
        unique=True,
        **_where("dedupe_key IS NOT NULL AND finished_at IS NULL"),
    )
    op.create_index("jobq_jobs_list_by_parent", "jobq_jobs", ["parent_id", "id"], **_where("parent_id IS NOT NULL"))
    op.create_index("jobq_jobs_list_by_tenant", "jobq_jobs", ["tenant", "id"])
    op.create_index(
        "jobq_jobs_list_by_workflow", "jobq_jobs", ["workflow_id", "id"], **_where("workflow_id IS NOT NULL")
    )
    op.create_index(
        "jobq_jobs_live_of_workflow",
        "jobq_jobs",
        ["workflow_id"],
        **_where("workflow_id IS NOT NULL AND finished_at IS NULL"),
    )
    op.create_index("jobq_jobs_of_worker", "jobq_jobs", ["worker_id"], **_where("worker_id IS NOT NULL"))
    op.create_index(
        "jobq_jobs_slot", "jobq_jobs", ["workflow_id", "slot_at"], unique=True, **_where("slot_at IS NOT NULL")
    )
    op.create_index("jobq_jobs_wake", "jobq_jobs", ["due_at"], **_where("due_at IS NOT NULL"))
    op.create_table(
        "jobq_queues",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("paused_at", Instant),
        sa.Column("limit", sa.Integer()),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "jobq_requests",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key"),
    )
    op.create_index("jobq_requests_prune", "jobq_requests", ["created_at"])
    op.create_table(
        "jobq_schedulers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("renewed_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "jobq_secrets",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name"),
    )
    op.create_table(
        "jobq_tenants",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), server_default="1", nullable=False),
        sa.Column("limit", sa.Integer()),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "jobq_workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("pid_namespace", sa.Text(), nullable=False),
        sa.Column("process_start", sa.Text(), nullable=False),
        sa.Column("host", sa.Text()),
        sa.Column("queues", Json, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("renewed_at", Instant, nullable=False),
        sa.Column("lease_until", Instant, nullable=False),
        sa.Column("draining_at", Instant),
        sa.Column("dead_at", Instant),
        sa.Column("stopped_at", Instant),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobq_workers_live", "jobq_workers", ["lease_until"], **_where("dead_at IS NULL"))
    op.create_table(
        "jobq_workflows",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("interval_us", sa.BigInteger()),
        sa.Column("cron", sa.Text()),
        sa.Column("timezone", sa.Text()),
        sa.Column("start_at", Instant),
        sa.Column("anchor_at", Instant, nullable=False),
        sa.Column("next_fire_at", Instant),
        sa.Column("misfire", sa.Text(), nullable=False),
        sa.Column("misfire_grace", sa.Float()),
        sa.Column("max_catch_up", sa.Integer(), nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("timeout", sa.Float()),
        sa.Column("retry", Json),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("stale_after", sa.Float()),
        sa.Column("retention", sa.Float()),
        sa.Column("max_consecutive_job_failures_allowed", sa.Integer(), nullable=False),
        sa.Column("consecutive_failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("updated_at", Instant, nullable=False),
        sa.Column("message", sa.Text()),
        sa.CheckConstraint("next_fire_at IS NULL OR status = 'ACTIVE'", name="jobq_workflows_firing"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobq_workflows_due", "jobq_workflows", ["next_fire_at"], **_where("next_fire_at IS NOT NULL"))
    op.create_index("jobq_workflows_name", "jobq_workflows", ["tenant", "name"], unique=True)
    op.create_index(
        "jobq_jobs_promote",
        "jobq_jobs",
        ["queue", "tenant", "lane", sa.text("priority DESC"), "ready_at", "id"],
        **_where("reason = 'ready'"),
    )
    for statement in _GUARD[op.get_bind().dialect.name]:
        op.execute(statement)
    op.bulk_insert(sa.table("jobq_installation", sa.column("id", sa.Uuid())), [{"id": uuid4()}])
