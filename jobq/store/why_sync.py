"""Why a SYNC, or a child of one, is where it is."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.models import FanOut, Job
from jobq.promotion import Load
from jobq.states import Desired, Reason
from jobq.store import siblings
from jobq.store.exports import fanout
from jobq.store.sql import now
from jobq.store.tables import after, fanout_targets, jobs, targets
from jobq.store.targets import OPEN

_SHOWN = 3


def why_beside_children(conn: Connection, job: Job) -> str | None:
    """A SYNC without a worker; None: a worker has it."""
    if job.worker_id is not None:
        return None
    counts = fanout(conn, job.id)
    ended = (
        f"{counts.completed + counts.skipped + counts.failed + counts.canceled} of {counts.total} children have ended"
    )
    match job.reason:
        case Reason.PAUSING:
            return f"Paused by a person: no child starts any more, and it waits for the {counts.running} that run. {ended}."
        case Reason.PAUSED:
            rest = "the rest of its source and " if counts.reading else ""
            return f"Paused by a person; {rest}{_live(counts)} children wait until somebody resumes it. {ended}."
        case Reason.DEQUEUING:
            return f"Canceled: what waits is taken from the queue, and the {counts.running} children that run may end. {ended}."
    if not _live(counts) and (other := siblings.awaited(conn, job.id)) is not None:
        return (
            f"Its own children have ended; it waits for those of other SYNCs that bring the same entities to the same "
            f"targets for it, such as {other}."
        )
    return f"Everything is read; it waits for its children, and ends with the last one. {ended}, {counts.failed} of them failed."


def _live(counts: FanOut) -> int:
    return counts.pending + counts.queued + counts.running


def why_blocked(conn: Connection, job: Job) -> str | None:
    """A job that waits for jobs which it names; None: it waits for its workflow."""
    rows = conn.execute(
        sa.select(jobs.c.id, jobs.c.status, jobs.c.reason, after.c.any_end)
        .join(after, after.c.upstream_id == jobs.c.id)
        .where(after.c.job_id == job.id)
        .order_by(jobs.c.id)
        .limit(_SHOWN + 1)
    ).all()
    if not rows:
        return None
    names = ", ".join(f"{row.id} ({row.status}·{row.reason})" for row in rows[:_SHOWN])
    more = " and others" if len(rows) > _SHOWN else ""
    if all(row.any_end for row in rows):
        return f"An older job writes the same entity to {job.target} just now; this one follows it: {names}{more}."
    return f"It starts when these jobs are completed, and is canceled if one of them is not: {names}{more}."


def why_lane_closed(conn: Connection, job: Job, load: Load) -> str | None:
    """A ready child whose SYNC or target keeps it waiting."""
    if job.parent_id is None or job.target is None:
        return None
    parent = conn.execute(sa.select(jobs.c.desired, jobs.c.reason).where(jobs.c.id == job.parent_id)).first()
    if parent is not None and parent.desired != Desired.RUN:
        asked = "paused" if parent.desired == Desired.PAUSE else "canceled"
        return f"Ready, but its SYNC {job.parent_id} was {asked}."
    held = conn.execute(
        sa.select(targets.c.not_before, targets.c.allowed, targets.c.message, now().label("now")).where(
            targets.c.tenant == job.tenant, targets.c.name == job.target, targets.c.allowed < OPEN
        )
    ).first()
    if held is not None:
        cause = f": {held.message.rstrip('.')}" if held.message else ""
        if held.not_before > held.now:
            return f"Ready, but the target {job.target} asked to be left alone until {_at(held.not_before)}{cause}."
        return f"Ready, but the target {job.target} had asked for patience{cause}: {held.allowed} at a time try it, then more."
    limit = conn.scalar(
        sa.select(fanout_targets.c.concurrency).where(
            fanout_targets.c.parent_id == job.parent_id, fanout_targets.c.target == job.target
        )
    )
    used = load.lanes[f"{job.parent_id.hex}/{job.target}"]
    if limit is not None and used >= limit:
        return f"Ready, but its SYNC writes at most {limit} entities to {job.target} at once ({used}/{limit})."
    return None


def _at(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d %H:%M:%S UTC")
