"""Why a job is where it is: one or two sentences from the same rows that promotion reads."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.models import Job
from jobq.promotion import Load
from jobq.states import Desired, Reason, Status
from jobq.store.jobs import get
from jobq.store.promote import read_load
from jobq.store.tables import jobs, workers, workflows
from jobq.store.why_sync import why_beside_children, why_blocked, why_lane_closed
from jobq.store.workers import database_now, live_schedulers

_COUNT_UP_TO = 10_000
_OVERLAPS = "An earlier job has to end first: the workflow's overlap policy lets one of its jobs run at a time."


def why(conn: Connection, tenant: str | None, job_id: UUID) -> str:
    """One or two sentences for a person. Raises NotFound."""
    job = get(conn, tenant, job_id)
    if job.finished:
        return _ended(job)
    if job.status is Status.RUNNING:
        return _running(conn, job)
    if job.status is Status.QUEUED:
        return _queued(conn, job)
    return _pending(conn, job)


def _at(instant: datetime | None) -> str:
    return "an unknown time" if instant is None else instant.strftime("%Y-%m-%d %H:%M:%S UTC")


def _ended(job: Job) -> str:
    text = f"Ended {job.status}·{job.reason} at {_at(job.finished_at)}"
    if job.attempt:
        text += f" in attempt {job.attempt}"
    if job.duplicate_of and job.entity_key is not None:
        return f"{text}: job {job.duplicate_of} writes the newest content of the same entity to {job.target}."
    if job.duplicate_of:
        return f"{text}: job {job.duplicate_of} held its dedupe key {job.dedupe_key!r}."
    return f"{text}: {job.message.rstrip('.')}." if job.message else f"{text}."


def _running(conn: Connection, job: Job) -> str:
    if (found := why_beside_children(conn, job)) is not None:
        return found
    worker = conn.execute(
        sa.select(workers.c.name, workers.c.dead_at, workers.c.lease_until, sa.literal(True)).where(
            workers.c.id == job.worker_id
        )
    ).first()
    name = worker.name if worker else "nobody"
    if worker is not None and worker.dead_at is not None:
        return (
            f"Attempt {job.attempt} was running on {name}, which died at {_at(worker.dead_at)}; "
            "it is taken over or ended as soon as the scheduler is sure."
        )
    doing = "is being prepared (image, container)" if job.reason is Reason.PREPARING else "is executing"
    text = f"Attempt {job.attempt} of at most {job.max_attempts} {doing} on {name} since {_at(job.started_at)}."
    if job.desired is Desired.PAUSE:
        text += " It was paused, and stops behind its present batch."
    if job.desired is Desired.CANCEL:
        text += " Its cancellation was requested and reaches the worker within a renewal of its lease (5 s)."
    return text


def _queued(conn: Connection, job: Job) -> str:
    slots = read_load(conn).slots.get(job.queue, 0)
    if not slots:
        return (
            f"Promoted at {_at(job.queued_at)}, but the workers of queue {job.queue} have gone since: "
            "no live worker serves it now."
        )
    return (
        f"Promoted at {_at(job.queued_at)}: a worker of queue {job.queue} ({slots} worker slots) will claim it as soon as "
        f"one is free. Its hint is sent again if nobody does."
    )


def _pending(conn: Connection, job: Job) -> str:
    match job.reason:
        case Reason.SCHEDULED:
            return f"Not due until {_at(job.due_at)} ({_in(conn, job.due_at)})."
        case Reason.RETRYING:
            cause = f" Last failure: {job.message.rstrip('.')}." if job.message else ""
            return f"Try {job.failures + 1} of {job.max_attempts} starts at {_at(job.due_at)} ({_in(conn, job.due_at)}).{cause}"
        case Reason.REQUEUED:
            return (
                f"Given back {job.requeues} times, at no charge: {(job.message or 'the target was not ready').rstrip('.')}. "
                f"It goes on at {_at(job.due_at)} ({_in(conn, job.due_at)})."
            )
        case Reason.BLOCKED:
            return why_blocked(conn, job) or _OVERLAPS
        case Reason.PAUSED:
            return "Paused by a person; it waits until somebody resumes it."
        case _:
            return _ready(conn, job)


def _in(conn: Connection, instant: datetime | None) -> str:
    seconds = 0.0 if instant is None else (instant - database_now(conn)).total_seconds()
    return f"in {seconds:.0f} s" if seconds > 0 else "now"


def _ready(conn: Connection, job: Job) -> str:
    load = read_load(conn)
    for check in (_queue_closed, _queue_full, _tenant_full):
        if (found := check(job, load)) is not None:
            return found
    for look in (_lane_full, why_lane_closed):
        if (found := look(conn, job, load)) is not None:
            return found
    ahead, at_least = _ahead(conn, job)
    if not load.room(job.queue, 0):
        busy = load.queues[job.queue]
        return (
            f"Ready since {_at(job.ready_at)}: all {load.slots[job.queue]} worker slots of queue {job.queue} are taken "
            f"({busy} jobs in flight), and {at_least}{ahead} of its tenant's jobs go before it."
        )
    if not live_schedulers(conn):
        return "Ready, but no scheduler is running to promote it. Start one: jobq scheduler."
    return f"Ready since {_at(job.ready_at)}, {at_least}{ahead} of its tenant's jobs go before it: it is promoted within moments."


def _queue_closed(job: Job, load: Load) -> str | None:
    if job.queue in load.paused:
        return f"Ready, but queue {job.queue} is paused. Open it again: jobq queue resume {job.queue}."
    if not load.slots.get(job.queue):
        return f"Ready, but there is no live worker for queue {job.queue}. Start one: jobq worker -Q {job.queue}:4."
    return None


def _queue_full(job: Job, load: Load) -> str | None:
    limit, used = load.queue_limits.get(job.queue), load.queues[job.queue]
    if limit is None or used < limit:
        return None
    return f"Ready, but queue {job.queue} is at its limit {used}/{limit}. Raise it: jobq queue limit {job.queue} N."


def _tenant_full(job: Job, load: Load) -> str | None:
    limit, used = load.tenant_limits.get(job.tenant), load.tenants[job.tenant]
    if limit is None or used < limit:
        return None
    return f"Ready, but the limit {used}/{limit} of tenant {job.tenant} is reached."


def _lane_full(conn: Connection, job: Job, load: Load) -> str | None:
    if job.workflow_id is None:
        return None
    row = conn.execute(
        sa.select(workflows.c.name, workflows.c.concurrency).where(workflows.c.id == job.workflow_id)
    ).first()
    used = load.lanes[job.workflow_id.hex]
    if row is None or row.concurrency is None or used < row.concurrency:
        return None
    return f"Ready, but workflow {row.name!r} is at its concurrency {used}/{row.concurrency}."


def _ahead(conn: Connection, job: Job) -> tuple[int, str]:
    """How many ready jobs of the tenant and queue rank before this one; counting stops at 10,000."""
    earlier = sa.or_(
        jobs.c.priority > job.priority,
        sa.and_(jobs.c.priority == job.priority, jobs.c.ready_at < job.ready_at),
    )
    some = (
        sa.select(jobs.c.id)
        .where(jobs.c.reason == sa.literal_column("'ready'"), jobs.c.queue == job.queue, jobs.c.tenant == job.tenant)
        .where(earlier)
        .limit(_COUNT_UP_TO)
        .subquery("earlier")
    )
    count = int(conn.scalar(sa.select(sa.func.count()).select_from(some)) or 0)
    return count, "at least " if count == _COUNT_UP_TO else ""
