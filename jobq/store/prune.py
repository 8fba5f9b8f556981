"""Deletion by retention: the only place that removes jobs, with all that belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from jobq.states import Status
from jobq.store.rollup import is_rolled_up
from jobq.store.sql import Instant, id_list, is_one_of, later
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
    rollups,
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

if TYPE_CHECKING:
    from jobq.settings import Settings
    from jobq.store.database import Database

_OF_JOBS = {
    attempts: "job_id", job_data: "job_id", job_logs: "job_id", artifacts: "job_id", fanouts: "job_id",
    fanout_targets: "parent_id", sync_problems: "job_id", webhook_deliveries: "subject_id",
    webhook_events: "subject_id", webhook_overrides: "job_id",
}  # fmt: skip
TARGETS_KEPT = 3600.0
"""How long it is remembered that a target asked for patience, in seconds after that time is over."""
REQUESTS_KEPT = 24 * 3600.0
"""How long an idempotency key is remembered, and the job that it stands for, in seconds."""
EVENTS_KEPT = 400 * 24 * 3600.0
"""How long it stays on record who did what, in seconds."""
_LOOKED_AT = 5_000
"""Finished jobs that a batch passes at most, whether they are to go or not."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How long things are kept, in seconds. A workflow's own retention goes before those of statuses."""

    completed: float
    failed: float
    canceled: float
    logs: float | None = None
    """None: as long as their jobs."""
    rollups: float = 730 * 86_400.0
    events: float = EVENTS_KEPT
    """What people did, also to jobs that are gone."""

    @classmethod
    def alike(cls, seconds: float) -> Kept:
        """Jobs of all statuses."""
        return cls(seconds, seconds, seconds)

    @classmethod
    def by(cls, settings: Settings) -> Kept:
        """As the operator wants it."""
        statuses = (settings.retention_completed, settings.retention_failed, settings.retention_canceled)
        completed, failed, canceled = ((settings.retention if own is None else own).total_seconds() for own in statuses)
        logs = None if settings.retention_logs is None else settings.retention_logs.total_seconds()
        rollups, events_ = settings.retention_rollups.total_seconds(), settings.audit_retention.total_seconds()
        return cls(completed, failed, canceled, logs, rollups, events_)

    @property
    def shortest(self) -> float:
        """Of any status."""
        return min(self.of.values())

    @property
    def of(self) -> dict[Status, float]:
        """By status."""
        return {Status.COMPLETED: self.completed, Status.FAILED: self.failed, Status.CANCELED: self.canceled}


Position = tuple[datetime, UUID]
"""Behind a job, in the order in which jobs ended."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a batch did. ``behind``: where the next one goes on; None: it was the last of a round."""

    jobs: int
    behind: Position | None


def prune(conn: Connection, kept: Kept, limit: int = 1000, behind: Position | None = None) -> Pruned:
    """Delete up to ``limit`` of the jobs whose retention is over, those that ended first before others.

    Not yet: what analytics has not counted, what an idempotency key stands for, and a SYNC and its children as long as
    those are counted. However many jobs are kept for longer, a batch passes 5,000 at most.
    """
    if behind is None:
        _prune_rest(conn, kept)
    passed = _passed(conn, kept, behind)
    due = [row for row in passed if row.due][:limit]
    deleted = _delete(conn, [row.id for row in due])
    if len(due) == limit:
        return Pruned(deleted, (due[-1].finished_at, due[-1].id))
    return Pruned(deleted, (passed[-1].finished_at, passed[-1].id) if len(passed) == _LOOKED_AT else None)


def _passed(conn: Connection, kept: Kept, behind: Position | None) -> Sequence[Any]:
    """The next finished jobs that may be due, in the order in which they ended."""
    usual = sa.case(*((jobs.c.status == status.value, seconds) for status, seconds in kept.of.items()))
    own = sa.cast(sa.func.coalesce(workflows.c.retention, usual), sa.Float)
    shortest = conn.scalar(sa.select(sa.func.min(workflows.c.retention)))
    youngest = later(-min(shortest, kept.shortest) if shortest is not None else -kept.shortest)
    query = (
        sa.select(jobs.c.id, jobs.c.finished_at, (jobs.c.finished_at < later(-own)).label("due"))
        .outerjoin(workflows, workflows.c.id == jobs.c.workflow_id)
        .where(jobs.c.finished_at.is_not(None), jobs.c.finished_at < youngest, is_rolled_up())
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(_LOOKED_AT)
    )
    if behind is not None:
        query = query.where(*_behind(behind))
    return conn.execute(query).all()


def _behind(position: Position) -> tuple[ColumnElement[bool], ...]:
    at, job_id = sa.literal(position[0], Instant()), sa.literal(position[1], sa.Uuid())
    return jobs.c.finished_at >= at, sa.tuple_(jobs.c.finished_at, jobs.c.id) > sa.tuple_(at, job_id)


def _delete(conn: Connection, due: Sequence[UUID]) -> int:
    if not due:
        return 0
    dialect = conn.dialect.name
    # A SYNC, as long as its children are counted, and they as long as it is there to ask for their plan.
    open_ = sa.exists().where(
        fanouts.c.settled_at.is_(None), sa.or_(fanouts.c.job_id == jobs.c.id, fanouts.c.job_id == jobs.c.parent_id)
    )
    promised = sa.exists().where(requests.c.job_id == jobs.c.id)
    rows = conn.execute(
        sa.select(jobs.c.id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), ~open_, ~promised, ~is_due(jobs.c.id))
        .order_by(jobs.c.id)
        .with_for_update(skip_locked=True, of=jobs),
        {"ids": id_list(dialect, due)},
    )
    old = rows.scalars().all()
    ids = id_list(dialect, old)
    for table, column in _OF_JOBS.items():
        conn.execute(sa.delete(table).where(is_one_of(dialect, table.c[column], "ids")), {"ids": ids})
    done: Any = conn.execute(sa.delete(jobs).where(is_one_of(dialect, jobs.c.id, "ids")), {"ids": ids})
    return int(done.rowcount)


def prune_logs(conn: Connection, seconds: float, behind: Position | None, limit: int = _LOOKED_AT) -> Position | None:
    """Delete the logs of up to ``limit`` jobs that ended longer ago than that; where to go on, ``behind`` if nowhere."""
    ended = sa.select(jobs.c.id, jobs.c.finished_at).where(
        jobs.c.finished_at.is_not(None), jobs.c.finished_at < later(-seconds)
    )
    if behind is not None:
        ended = ended.where(*_behind(behind))
    rows = conn.execute(ended.where(is_rolled_up()).order_by(jobs.c.finished_at, jobs.c.id).limit(limit)).all()
    if not rows:
        return behind
    dialect = conn.dialect.name
    ids = {"ids": id_list(dialect, (row.id for row in rows))}
    conn.execute(sa.delete(job_logs).where(is_one_of(dialect, job_logs.c.job_id, "ids")), ids)
    return rows[-1].finished_at, rows[-1].id


def prune_all(database: Database, kept: Kept) -> int:
    """One round of all, in transactions of 1,000; returns how many jobs were deleted."""
    total, done = 0, Pruned(0, None)
    while True:
        done = database.run(lambda conn: prune(conn, kept, behind=done.behind))  # noqa: B023 - run at once
        total += done.jobs
        if done.behind is None:
            break
    before: Position | None = None
    while kept.logs is not None:
        behind = database.run(lambda conn: prune_logs(conn, kept.logs or 0.0, before))  # noqa: B023
        if behind == before:
            break
        before = behind
    return total


def _prune_rest(conn: Connection, kept: Kept) -> None:
    longest = max(kept.of.values())
    conn.execute(sa.delete(requests).where(requests.c.created_at < later(-REQUESTS_KEPT)))
    conn.execute(sa.delete(events).where(events.c.at < later(-kept.events)))
    conn.execute(sa.delete(targets).where(targets.c.not_before < later(-TARGETS_KEPT)))
    conn.execute(sa.delete(schedulers).where(schedulers.c.renewed_at < later(-3600)))
    held = sa.exists().where(jobs.c.worker_id == workers.c.id)
    conn.execute(sa.delete(workers).where(workers.c.dead_at < later(-longest), ~held))
    oldest = conn.scalar(sa.select(sa.func.min(rollups.c.start)).where(rollups.c.start < later(-kept.rollups)))
    if oldest is not None:
        conn.execute(sa.delete(rollups).where(rollups.c.start < oldest + timedelta(hours=6)))
