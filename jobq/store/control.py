"""What people do to jobs, queues and tenants: cancel, pause, resume, retry, limits. Each leaves an event."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.errors import Conflict, NotFound
from jobq.states import Desired, Reason, Status, Transition, Trigger, canceled
from jobq.store.database import take_promote_lock
from jobq.store.finish import Change, EndedAttempt, finish, put_back
from jobq.store.jobs import new_id
from jobq.store.overlap import release_blocked
from jobq.store.sql import insert, now
from jobq.store.tables import after, events, jobs, queues, tenants, workflows

SYNC = "SYNC"


def add_event(
    conn: Connection, tenant: str, subject: str, action: str, actor: str, *, detail: Any = None
) -> None:  # fmt: skip
    """Only interventions are events: what a person did, to what, and when."""
    conn.execute(
        sa.insert(events).values(
            id=new_id(),
            at=now(),
            tenant=tenant,
            subject=subject,
            action=action,
            actor=str(actor),
            key_id=getattr(actor, "key_id", None),
            detail=detail,
        )
    )


def list_events(conn: Connection, subject: str) -> list[Row[Any]]:
    """The interventions on one subject, oldest first."""
    return list(conn.execute(sa.select(events).where(events.c.subject == subject).order_by(events.c.id)))


def _lock(conn: Connection, tenant: str | None, job_id: UUID, *, to_stop: bool = False) -> Row[Any]:
    """The job's row, locked. ``to_stop``: a SYNC's children will be stopped, so the lock of promotion comes first.

    Whoever takes both takes them in this order.
    """
    if to_stop and conn.scalar(sa.select(jobs.c.kind).where(jobs.c.id == job_id)) == SYNC:
        take_promote_lock(conn, wait=True)
    query = sa.select(jobs).where(jobs.c.id == job_id).with_for_update()
    row = conn.execute(query if tenant is None else query.where(jobs.c.tenant == tenant)).first()
    if row is None:
        raise NotFound(f"There is no job {job_id}.")
    return row


def cancel(conn: Connection, tenant: str | None, job_id: UUID, actor: str, *, forced: bool = False) -> None:
    """Cancel a job: at once while it waits; a running one is asked to stop at its next renewal, within 5 s.

    A SYNC with children is dequeued: from now on none of them starts, those that wait are canceled, and it ends when
    the last one that runs has ended. Raises Conflict ``already_finished`` if the job has ended.
    """
    row = _lock(conn, tenant, job_id, to_stop=True)
    status = Status(row.status)
    if row.finished_at is not None:
        raise Conflict(f"Job {job_id} has ended as {row.status}.", code="already_finished")
    if row.kind == SYNC:
        _stop_children(conn, job_id, Desired.CANCEL, Reason.DEQUEUING)
    if status is Status.RUNNING:
        conn.execute(sa.update(jobs).where(jobs.c.id == job_id).values(desired=Desired.CANCEL.value))
    else:
        finish(conn, [Change(job_id, status, row.attempt, canceled(), message=f"canceled by {actor}")])
    add_event(conn, row.tenant, f"job:{job_id}", "cancel", actor, detail={"forced": True} if forced else None)


def end(conn: Connection, tenant: str | None, job_id: UUID, actor: str) -> None:
    """Cancel a job and end it now, whatever its worker does: for one that is frozen, cut off, or does not listen.

    The present owner is fenced: what it reports later is refused, and its next renewal tells it to stop. Until then its
    work may go on. A SYNC with children is dequeued, and those of its children that run are ended like this as well; it
    ends itself with the scheduler's next round. Raises Conflict ``already_finished`` if the job has ended.
    """
    cancel(conn, tenant, job_id, actor, forced=True)
    row = _lock(conn, tenant, job_id)
    if row.status != Status.RUNNING.value:
        return
    if row.worker_id is not None:
        finish(conn, [_taken_away(row, Reason.BY_USER, actor)])
    if row.kind == SYNC:
        finish(conn, [_taken_away(child, Reason.PARENT_CANCELED, actor) for child in _running_children(conn, job_id)])


def _taken_away(row: Row[Any], reason: Reason, actor: str) -> Change:
    """The end of a job under its owner, who does not know yet: the attempt is the fence."""
    text = f"ended by {actor} under its worker, whose work may have gone on until the renewal of its lease"
    ended = EndedAttempt(row.started_at, "CANCELED", reason.value, False, row.worker_id, text, "forced")
    return Change(
        row.id, Status.RUNNING, row.attempt, canceled(reason), row.worker_id,
        message=text, error_class="forced", ended=ended,
    )  # fmt: skip


def _running_children(conn: Connection, parent_id: UUID) -> list[Row[Any]]:
    """Those that workers hold, locked. Found by what is in flight, never by the children: see fanin.in_flight."""
    query = (
        sa.select(jobs)
        .where(sa.func.coalesce(jobs.c.parent_id, jobs.c.id) == parent_id, jobs.c.worker_id.is_not(None))
        .where(jobs.c.id != parent_id)
        .order_by(jobs.c.id)
        .with_for_update()
    )
    return list(conn.execute(query))


def pause(conn: Connection, tenant: str | None, job_id: UUID, actor: str) -> None:
    """Hold a waiting job until somebody resumes it. Pausing a paused job changes nothing.

    A SYNC can be held while it runs, too: from now on none of its children starts; it is RUNNING·pausing until those
    that run have ended, then RUNNING·paused. One that still reads stops behind its present batch.

    Raises Conflict: ``already_finished``, or ``not_pausable`` for AUTOMATIC and for running jobs that are no SYNC.
    """
    row = _lock(conn, tenant, job_id, to_stop=True)
    if row.finished_at is not None:
        raise Conflict(f"Job {job_id} has ended as {row.status}.", code="already_finished")
    if row.kind != SYNC and row.trigger == Trigger.AUTOMATIC.value:
        raise Conflict(
            "A job that a schedule made cannot be paused.", code="not_pausable", hint="Pause its workflow instead."
        )
    running = row.status == Status.RUNNING.value
    if running and (row.kind != SYNC or row.desired == Desired.CANCEL.value):
        raise Conflict("A running job cannot be paused.", code="not_pausable", hint="Cancel it instead.")
    if row.desired == Desired.PAUSE.value:
        return
    if row.kind == SYNC:
        _stop_children(conn, job_id, Desired.PAUSE, Reason.PAUSING)
    if not running:
        conn.execute(
            sa.update(jobs)
            .where(jobs.c.id == job_id)
            .values(
                status=Status.PENDING.value, reason=Reason.PAUSED.value, desired=Desired.PAUSE.value, due_at=None,
                next_send_at=None, queued_at=None,
            )
        )  # fmt: skip
    add_event(conn, row.tenant, f"job:{job_id}", "pause", actor)


def _stop_children(conn: Connection, parent_id: UUID, desired: Desired, reason: Reason) -> None:
    """From now on no child of this SYNC starts; those that were promoted wait again.

    Promotion is held off by its lock, which the caller has, and claims by the rows: a claim that is under way is through when this has the
    row, and one that comes later finds the job PENDING.
    """
    running = sa.case((jobs.c.status == Status.RUNNING.value, reason.value), else_=jobs.c.reason)
    conn.execute(sa.update(jobs).where(jobs.c.id == parent_id).values(desired=desired.value, reason=running))
    promoted = conn.execute(
        sa.select(jobs.c.id, jobs.c.attempt)
        # Found by what is in flight, never by the children: see fanin.in_flight.
        .where(sa.func.coalesce(jobs.c.parent_id, jobs.c.id) == parent_id, jobs.c.next_send_at.is_not(None))
        .order_by(jobs.c.id)
        .with_for_update()
    ).all()
    back = Transition(Status.PENDING, Reason.READY)
    put_back(conn, (Change(row.id, Status.QUEUED, row.attempt, back) for row in promoted))


def resume(conn: Connection, tenant: str | None, job_id: UUID, actor: str) -> None:
    """Let a paused job go on: its reason is derived again. Resuming what is not paused changes nothing.

    A SYNC that stopped in the middle of its source goes on behind its last batch; its children go on at once.
    """
    row = _lock(conn, tenant, job_id)
    if row.finished_at is not None:
        raise Conflict(f"Job {job_id} has ended as {row.status}.", code="already_finished")
    if row.desired != Desired.PAUSE.value:
        return
    values: dict[str, Any] = {"desired": Desired.RUN.value}
    if row.status == Status.RUNNING.value:
        values["reason"] = (Reason.EXECUTING if row.worker_id is not None else Reason.FANNED_OUT).value
    elif row.reason == Reason.PAUSED.value:
        blocked = sa.exists().where(after.c.job_id == job_id)
        waits = sa.and_(jobs.c.scheduled_at.is_not(None), jobs.c.scheduled_at > now(), jobs.c.attempt == 0)
        values |= {
            "reason": sa.case(
                (blocked, Reason.BLOCKED.value), (waits, Reason.SCHEDULED.value), else_=Reason.READY.value
            ),
            "due_at": sa.case((sa.and_(waits, ~blocked), jobs.c.scheduled_at)),
            "ready_at": sa.case((sa.or_(waits, blocked), sa.null()), else_=now()),
        }
    conn.execute(sa.update(jobs).where(jobs.c.id == job_id).values(values))
    if row.slot_at is not None and row.reason == Reason.PAUSED.value and row.attempt == 0:
        _queue_up(conn, job_id, row.workflow_id)
    add_event(conn, row.tenant, f"job:{job_id}", "resume", actor)


def _queue_up(conn: Connection, job_id: UUID, workflow_id: UUID) -> None:
    """A job of a schedule that has not begun waits for its predecessor, unless its workflow lets them overlap."""
    queues_up = sa.exists().where(workflows.c.id == workflow_id, workflows.c.overlap != "allow")
    conn.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id, jobs.c.reason == Reason.READY.value, queues_up)
        .values(reason=Reason.BLOCKED.value, ready_at=None)
    )
    release_blocked(conn, [workflow_id])


# --- queues and tenants ----------------------------------------------------------------------------------------


def pause_queue(conn: Connection, queue: str, actor: str) -> int:
    """Nothing of this queue starts from now on; what was promoted goes back to waiting. Returns how many did."""
    take_promote_lock(conn, wait=True)
    values = {"name": queue, "paused_at": now()}
    conn.execute(
        insert(conn.dialect.name, queues)
        .values(**values)
        .on_conflict_do_update(index_elements=["name"], set_={"paused_at": sa.func.coalesce(queues.c.paused_at, now())})
    )
    promoted = conn.execute(
        sa.select(jobs.c.id, jobs.c.attempt)
        .where(jobs.c.queue == queue, jobs.c.next_send_at.is_not(None))
        .order_by(jobs.c.id)
        .with_for_update()  # claims never wait, and whoever has a row just now is through with it in a moment
    ).all()
    back = Transition(Status.PENDING, Reason.READY)
    put_back(conn, (Change(row.id, Status.QUEUED, row.attempt, back) for row in promoted))
    add_event(conn, "", f"queue:{queue}", "pause", actor)
    return len(promoted)


def resume_queue(conn: Connection, queue: str, actor: str) -> None:
    """The queue's jobs may start again. Resuming what is not paused changes nothing, and is no event.

    An end of a pause that never began would count as time in which its jobs were held (``jobq.store.stale``).
    """
    take_promote_lock(conn, wait=True)
    paused = sa.and_(queues.c.name == queue, queues.c.paused_at.is_not(None))
    if conn.execute(sa.update(queues).where(paused).values(paused_at=None)).rowcount:
        add_event(conn, "", f"queue:{queue}", "resume", actor)


def limit_queue(conn: Connection, queue: str, limit: int | None, actor: str) -> None:
    """At most ``limit`` jobs of this queue are queued or running at once; None: no limit."""
    take_promote_lock(conn, wait=True)
    conn.execute(
        insert(conn.dialect.name, queues)
        .values(name=queue, limit=limit)
        .on_conflict_do_update(index_elements=["name"], set_={"limit": limit})
    )
    add_event(conn, "", f"queue:{queue}", "limit", actor, detail={"limit": limit})


def set_tenant(
    conn: Connection,
    tenant: str,
    actor: str,
    *,
    weight: float | None = None,
    limit: int | None = None,
    unlimit: bool = False,
) -> None:
    """A tenant's share (relative weight) and how many of its jobs are queued or running at once."""
    take_promote_lock(conn, wait=True)
    changed: dict[str, Any] = {}
    if weight is not None:
        changed["weight"] = weight
    if limit is not None or unlimit:
        changed["limit"] = limit
    statement = insert(conn.dialect.name, tenants).values(name=tenant, **changed)
    if changed:
        conn.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changed))
    else:
        conn.execute(statement.on_conflict_do_nothing())
    add_event(conn, tenant, f"tenant:{tenant}", "set", actor, detail=changed)


def list_queues(conn: Connection) -> list[dict[str, Any]]:
    """Every queue that has jobs in flight or waiting, workers, or a setting: with its counts.

    ``ready`` is exact up to 10,000 and stops counting there.
    """
    from jobq.store.promote import read_load

    load = read_load(conn)
    waiting = [
        (name, conn.scalar(sa.select(sa.func.count()).select_from(_ready(name).limit(10_000).subquery())))
        for name in ready_queues(conn)
    ]
    ready = dict(waiting)
    names = sorted({*load.slots, *load.queues, *load.paused, *load.queue_limits, *ready})
    return [
        {"name": name, "ready": ready.get(name, 0), "in_flight": load.queues[name], "slots": load.slots.get(name, 0),
         "limit": load.queue_limits.get(name), "paused": name in load.paused}
        for name in names
    ]  # fmt: skip


def _ready(queue: str) -> Any:
    return sa.select(jobs.c.id).where(jobs.c.reason == sa.literal_column("'ready'"), jobs.c.queue == queue)


def ready_queues(conn: Connection) -> list[str]:
    """The queues that have ready jobs: one step over the index for each, never a scan."""
    names: list[str] = []
    after = ""
    while True:
        found = conn.scalar(
            sa.select(sa.func.min(jobs.c.queue)).where(
                jobs.c.reason == sa.literal_column("'ready'"), jobs.c.queue > after
            )
        )
        if found is None:
            return names
        names.append(found)
        after = found


def list_tenants(conn: Connection) -> list[dict[str, Any]]:
    """Tenants with a setting or with jobs in flight."""
    from jobq.store.promote import read_load

    load = read_load(conn)
    names = sorted({*load.weights, *load.tenants, *load.tenant_limits})
    return [
        {"name": name, "weight": load.weights.get(name, 1.0), "limit": load.tenant_limits.get(name),
         "in_flight": load.tenants[name]}
        for name in names
    ]  # fmt: skip
