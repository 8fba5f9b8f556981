"""Due workflows → jobs: any number of schedulers, one job a slot.

Each tick locks due workflows (others skip them), decides in Python what their slots mean (``jobq.schedule``), and
writes the jobs together with the next slot. The unique index on (workflow, slot) is the second line of defence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.schedule import Cron, Every, Plan, Schedule, Verdict, judge_overlap, plan
from jobq.states import Desired, Reason, Status, Transition, Trigger
from jobq.store.finish import Change, finish
from jobq.store.jobs import NewJob, enqueue, new_id
from jobq.store.sql import Instant, id_list, incoming, is_one_of, now, rows_json
from jobq.store.tables import jobs, workflows


@dataclass(slots=True)
class Materialized:
    """What a tick did. ``wait``: seconds to the next due workflow; None: there is none."""

    workflows: int = 0
    jobs: int = 0
    wait: float | None = None


@cache
def _due() -> Any:
    """Workflows whose next slot has come, the latest first served."""
    return (
        sa.select(workflows, now().label("now"))
        .where(workflows.c.next_fire_at <= now())
        .order_by(workflows.c.next_fire_at, workflows.c.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .with_for_update(skip_locked=True, of=workflows)
    )


@cache
def _next_due() -> Any:
    return sa.select(sa.func.min(workflows.c.next_fire_at).label("due"), now().label("now"))


@cache
def _under_way(dialect: str) -> Any:
    """Per workflow: its live AUTOMATIC jobs, and how many of them are not running."""
    return (
        sa.select(
            jobs.c.workflow_id,
            sa.func.count().label("live"),
            sa.func.sum(sa.case((jobs.c.status == Status.RUNNING.value, 0), else_=1)).label("waiting"),
        )
        .where(
            is_one_of(dialect, jobs.c.workflow_id, "ids"),
            jobs.c.finished_at.is_(None),
            jobs.c.trigger == Trigger.AUTOMATIC.value,
        )
        .group_by(jobs.c.workflow_id)
    )


@cache
def _set_next(dialect: str) -> Any:
    new = incoming(dialect, "slots", {"id": sa.Uuid(), "next_fire_at": Instant()})
    return sa.update(workflows).where(workflows.c.id == new.c.id).values(next_fire_at=new.c.next_fire_at)


def materialize(conn: Connection, limit: int = 500) -> Materialized:
    """Make the jobs of up to ``limit`` due workflows, in a handful of statements."""
    rows = conn.execute(_due(), {"limit": limit}).all()
    new: list[NewJob] = []
    if rows:
        live = _count_under_way(conn, (row.id for row in rows if row.overlap != "allow"))
        planned = [(row, _plan(row)) for row in rows]
        new = [job for row, its in planned for job in _jobs(conn, row, its, *live.get(row.id, (0, 0)))]
        enqueue(conn, new)
        slots = [{"id": row.id, "next_fire_at": its.next_fire_at} for row, its in planned]
        conn.execute(_set_next(conn.dialect.name), {"slots": rows_json(slots)})
        if len(rows) == limit:
            return Materialized(len(rows), len(new), 0.0)
    following = conn.execute(_next_due()).one()
    wait = None if following.due is None else max((following.due - following.now).total_seconds(), 0.0)
    return Materialized(len(rows), len(new), wait)


def _count_under_way(conn: Connection, ids: Iterable[UUID]) -> dict[UUID, tuple[int, int]]:
    dialect = conn.dialect.name
    rows = conn.execute(_under_way(dialect), {"ids": id_list(dialect, ids)})
    return {row.workflow_id: (row.live, int(row.waiting)) for row in rows}


def _plan(row: Row[Any]) -> Plan:
    grace = None if row.misfire_grace is None else timedelta(seconds=row.misfire_grace)
    return plan(
        _schedule(row.interval_us, row.cron, row.timezone), row.anchor_at, row.next_fire_at, row.now, row.misfire,
        grace=grace, max_catch_up=row.max_catch_up,
    )  # fmt: skip


@cache
def _parsed(interval_us: int | None, cron: str | None, timezone: str | None) -> Schedule:
    if interval_us is not None:
        return Every(timedelta(microseconds=interval_us))
    assert cron is not None
    return Cron(cron, timezone or "UTC")


def _schedule(interval_us: int | None, cron: str | None, timezone: str | None) -> Schedule:
    """Parsed once per process: thousands of workflows share a few schedules."""
    if _parsed.cache_info().currsize > 10_000:
        _parsed.cache_clear()
    return _parsed(interval_us, cron, timezone)


def _jobs(conn: Connection, row: Row[Any], its: Plan, live: int, waiting: int) -> list[NewJob]:
    """A job for each slot, as overlap with earlier ones has it."""
    kept: list[NewJob] = []  # of this very plan: they are not in the database yet
    made: list[NewJob] = []
    for slot in its.slots:
        job = _job(row, slot)
        verdict = judge_overlap(row.overlap, live, waiting)
        if verdict is Verdict.CANCEL_NEW:
            job.overlaps = True
        else:
            if verdict is Verdict.CANCEL_RUNNING_THEN_RUN:
                _cancel_earlier(conn, row.id)
                for earlier in kept:
                    earlier.overlaps, earlier.blocked = True, None
                live, waiting, kept = live - waiting, 0, []
            job.blocked = True if live and row.overlap != "allow" else None
            live, waiting = live + 1, waiting + 1
            kept.append(job)
        made.append(job)
    return made


def _job(row: Row[Any], slot: datetime) -> NewJob:
    return NewJob(
        tenant=row.tenant, kind=row.kind, name=row.name, queue=row.queue, spec=row.spec, priority=row.priority,
        max_attempts=row.max_attempts, timeout=row.timeout, id=new_id(), trigger=Trigger.AUTOMATIC,
        lane=row.id.hex if row.concurrency is not None else "", scheduled_at=slot, stale_after=row.stale_after,
        retry=row.retry, workflow_id=row.id, generation=row.generation, slot_at=slot,
    )  # fmt: skip


def _cancel_earlier(conn: Connection, workflow_id: UUID) -> None:
    """Overlap ``cancel_running``: whatever of this workflow's slots is under way gives way to the newest."""
    automatic = sa.and_(
        jobs.c.workflow_id == workflow_id, jobs.c.finished_at.is_(None), jobs.c.trigger == Trigger.AUTOMATIC.value
    )
    rows = conn.execute(
        sa.select(jobs.c.id, jobs.c.status, jobs.c.attempt).where(automatic).order_by(jobs.c.id).with_for_update()
    ).all()
    overlap = Transition(Status.CANCELED, Reason.OVERLAP)
    message = "a newer slot of the workflow took its place"
    finish(
        conn,
        (
            Change(row.id, Status(row.status), row.attempt, overlap, message=message)
            for row in rows
            if row.status != Status.RUNNING.value
        ),
    )
    conn.execute(
        sa.update(jobs)
        .where(automatic, jobs.c.status == Status.RUNNING.value)
        .values(desired=Desired.CANCEL.value, cancel_reason=Reason.OVERLAP.value)
    )
