"""Deletion by retention: the only place that removes jobs, with all that belongs to them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.database import id_list, is_one_of, later
from jobq.store.tables import (
    artifacts,
    attempts,
    events,
    fanout_targets,
    fanouts,
    job_data,
    job_logs,
    jobs,
    requests,
    schedulers,
    sync_problems,
    targets,
    webhook_deliveries,
    webhook_events,
    webhook_overrides,
    workers,
    workflows,
)
from jobq.store.webhooks import is_due

_OF_JOBS = {
    attempts: "job_id", job_data: "job_id", job_logs: "job_id", artifacts: "job_id", fanouts: "job_id",
    fanout_targets: "parent_id", sync_problems: "job_id", webhook_deliveries: "subject_id",
    webhook_events: "subject_id", webhook_overrides: "job_id",
}  # fmt: skip
TARGETS_KEPT = 3600.0
"""How long it is remembered that a target asked for patience, in seconds after that time is over."""
REQUESTS_KEPT = 24 * 3600.0
"""How long an idempotency key is remembered, in seconds."""
EVENTS_KEPT = 400 * 24 * 3600.0
"""How long it stays on record who did what, in seconds."""


def prune(conn: Connection, retention: float, limit: int = 1000, *, events_kept: float = EVENTS_KEPT) -> int:
    """Delete up to ``limit`` jobs that ended more than ``retention`` seconds ago (or their workflow's own retention).

    What people did to them stays on record for ``events_kept`` seconds. Returns how many. Ids grow with time, so the walk begins at the oldest and needs no index of its own.
    """
    dialect = conn.dialect.name
    own = sa.func.coalesce(workflows.c.retention, retention)
    # A SYNC, as long as its children are counted, and they as long as it is there to ask for their plan.
    open_ = sa.exists().where(
        fanouts.c.settled_at.is_(None), sa.or_(fanouts.c.job_id == jobs.c.id, fanouts.c.job_id == jobs.c.parent_id)
    )
    rows = conn.execute(
        sa.select(jobs.c.id)
        .outerjoin(workflows, workflows.c.id == jobs.c.workflow_id)
        .where(jobs.c.finished_at.is_not(None), jobs.c.finished_at < later(-sa.cast(own, sa.Float)))
        .where(~open_, ~is_due(jobs.c.id))
        .order_by(jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=jobs)
    )
    old = rows.scalars().all()
    ids = id_list(dialect, old)
    for table, column in _OF_JOBS.items():
        conn.execute(sa.delete(table).where(is_one_of(dialect, table.c[column], "ids")), {"ids": ids})
    done: Any = conn.execute(sa.delete(jobs).where(is_one_of(dialect, jobs.c.id, "ids")), {"ids": ids})
    _prune_rest(conn, retention, events_kept)
    return int(done.rowcount)


def _prune_rest(conn: Connection, retention: float, events_kept: float) -> None:
    conn.execute(sa.delete(requests).where(requests.c.created_at < later(-REQUESTS_KEPT)))
    conn.execute(sa.delete(events).where(events.c.at < later(-events_kept)))
    conn.execute(sa.delete(targets).where(targets.c.not_before < later(-TARGETS_KEPT)))
    conn.execute(sa.delete(schedulers).where(schedulers.c.renewed_at < later(-3600)))
    held = sa.exists().where(jobs.c.worker_id == workers.c.id)
    conn.execute(sa.delete(workers).where(workers.c.dead_at < later(-retention), ~held))
