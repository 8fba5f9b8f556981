"""The one place where jobs end, and the way back to PENDING.

Every terminal write (record, reap, cancel, stale, overlap, termination of a workflow) goes through ``finish``: one
guarded UPDATE for the whole batch, then everything that an end means to others, in the same transaction. What does
not match its guard is not written, and not returned: that is how the loser of a race is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq import metrics
from jobq.models import Outcome
from jobq.states import Reason, Status, Transition, Trigger, may_go
from jobq.store.after import free
from jobq.store.commits import after_commit
from jobq.store.failures import count_failures
from jobq.store.fanin import Parked, count_ends, park, with_children
from jobq.store.overlap import release_next
from jobq.store.sql import Instant, Json, id_list, incoming, insert, is_one_of, later, now, rows_json
from jobq.store.tables import attempts, fanouts, jobs, workflows
from jobq.store.wakeup import announce
from jobq.store.webhook_events import REQUEUED, is_heard, tell_each, tell_ends, tell_terminated


@dataclass(slots=True)
class Change:
    """One job's next state, and the guard: what the writer believes the job to be."""

    id: UUID
    was: Status
    attempt: int
    to: Transition
    worker_id: UUID | None = None
    """Guard, for the changes that an owner makes: the job must still be this worker's."""
    message: str | None = None
    error_class: str | None = None
    requeued: bool = False
    report: str | None = None
    """A child that was completed: what its target did (success, updated or existing)."""
    ended: EndedAttempt | None = None
    """The attempt that ends with this change, if one does."""


@dataclass(slots=True)
class EndedAttempt:
    """What is kept of an attempt."""

    started_at: datetime
    outcome: str
    reason: str
    charged: bool
    worker_id: UUID | None
    message: str | None = None
    error_class: str | None = None
    exit_code: int | None = None
    result: Any = None
    steps: list[tuple[str, float, float]] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, outcome: Outcome, started_at: datetime, worker_id: UUID | None, *, charged: bool, kind: str
    ) -> EndedAttempt:
        """The record of an attempt that its executor reported on; ``kind``: see ``jobq.models.Attempt``."""
        return cls(
            started_at, kind, outcome.reason.value, charged, worker_id, storable(outcome.message) or None,
            storable(outcome.error_class) or None, outcome.exit_code, outcome.result, usage=outcome.usage,
        )  # fmt: skip


def storable(text: str) -> str:
    """The text as any database takes it: NUL and halves of surrogate pairs (of file names) are spelled out."""
    if text.isprintable():
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


_CHANGE_COLUMNS: dict[str, Any] = {
    "id": sa.Uuid(), "was": sa.Text(), "attempt": sa.Integer(), "worker_id": sa.Uuid(), "status": sa.Text(),
    "reason": sa.Text(), "message": sa.Text(), "error_class": sa.Text(), "charged": sa.Integer(),
    "requeued": sa.Integer(), "due_in": sa.Float(),
}  # fmt: skip
_ATTEMPT_COLUMNS: dict[str, Any] = {
    "job_id": sa.Uuid(), "attempt": sa.Integer(), "worker_id": sa.Uuid(), "outcome": sa.Text(), "reason": sa.Text(),
    "charged": sa.Boolean(), "started_at": Instant(), "message": sa.Text(), "error_class": sa.Text(),
    "exit_code": sa.Integer(), "result": Json, "steps": Json, "usage": Json,
}  # fmt: skip


def _guarded(change: Any) -> Any:
    return sa.and_(
        jobs.c.id == change.c.id,
        jobs.c.status == change.c.was,
        jobs.c.attempt == change.c.attempt,
        # Not written as an equality alone: the index on worker_id would be a bad way to find a job by its id.
        sa.func.coalesce(change.c.worker_id, jobs.c.worker_id).is_not_distinct_from(jobs.c.worker_id),
    )


@cache
def _finish(dialect: str) -> Any:
    """End jobs. Each row is found by its id and must still be as its writer saw it."""
    change = incoming(dialect, "changes", _CHANGE_COLUMNS)
    return (
        sa.update(jobs)
        .where(_guarded(change))
        .values(
            status=change.c.status, reason=change.c.reason, message=change.c.message,
            error_class=change.c.error_class, failures=jobs.c.failures + change.c.charged, finished_at=now(),
            due_at=None, next_send_at=None, worker_id=None, host=None, hooked=jobs.c.hooked + 1,
        )
        .returning(
            jobs.c.id, jobs.c.status, jobs.c.reason, jobs.c.trigger, jobs.c.workflow_id, jobs.c.generation,
            jobs.c.parent_id, jobs.c.target, jobs.c.kind, jobs.c.queue,
            jobs.c.hooked,
        )
    )  # fmt: skip


@cache
def _put_back(dialect: str) -> Any:
    """RUNNING or QUEUED → PENDING, unless somebody asked to cancel the job; one that is to be held is paused then."""
    change = incoming(dialect, "changes", _CHANGE_COLUMNS)
    waits, held = change.c.due_in.is_not(None), jobs.c.desired == "PAUSE"
    blocked = change.c.reason == Reason.BLOCKED.value
    # What was only on its way (a drain, a closed queue) keeps its place; what a target did not take goes behind others.
    ready_at = sa.case((change.c.requeued > 0, now()), else_=sa.func.coalesce(jobs.c.ready_at, now()))
    return (
        sa.update(jobs)
        .where(_guarded(change), jobs.c.desired.in_(("RUN", "PAUSE")))
        .values(
            status=change.c.status, reason=sa.case((held, Reason.PAUSED.value), else_=change.c.reason),
            message=change.c.message, error_class=change.c.error_class,
            failures=jobs.c.failures + change.c.charged, requeues=jobs.c.requeues + change.c.requeued,
            due_at=sa.case((sa.and_(waits, ~held), later(change.c.due_in))),
            ready_at=sa.case((sa.or_(waits, held, blocked), sa.null()), else_=ready_at),
            queued_at=None, started_at=None, next_send_at=None, sends=0, worker_id=None, host=None,
            hooked=jobs.c.hooked + 1,
        )
        .returning(jobs.c.id, jobs.c.attempt, jobs.c.trigger, jobs.c.workflow_id, jobs.c.hooked)
    )  # fmt: skip


@cache
def _insert_attempts(dialect: str) -> Any:
    """The history of the attempts that ended: a second try with the same number is the same attempt."""
    new = incoming(dialect, "attempts", _ATTEMPT_COLUMNS)
    columns = {**{name: new.c[name] for name in _ATTEMPT_COLUMNS}, "finished_at": now()}
    rows = sa.select(*(value.label(name) for name, value in columns.items())).where(new.c.job_id.is_not(None))
    return insert(dialect, attempts).from_select(list(columns), rows).on_conflict_do_nothing()


def _row(change: Change) -> dict[str, Any]:
    if not may_go(change.was, change.to.status):
        raise ValueError(f"there is no edge from {change.was} to {change.to.status}")
    row: dict[str, Any] = {
        "id": change.id, "was": change.was.value, "attempt": change.attempt, "status": change.to.status.value,
        "reason": change.to.reason.value, "charged": int(change.to.charged), "requeued": int(change.requeued),
    }  # fmt: skip
    if change.worker_id:
        row["worker_id"] = change.worker_id
    if change.message:
        row["message"] = storable(change.message)
    if change.error_class:
        row["error_class"] = storable(change.error_class)
    if change.to.due_in is not None:
        row["due_in"] = change.to.due_in.total_seconds()
    return row


def finish(conn: Connection, changes: Iterable[Change]) -> set[UUID]:
    """End jobs, with all that follows: the attempt's record, and what the end means to others.

    Those are webhooks, the workflow's failure counter, the fan-out that a child belongs to, and jobs that wait for this one. A
    SYNC that fails, or is stopped, while it has children is parked beside them: it ends, as it would have here, with
    the last of them.

    Returns the ids that this call ended or parked. A job that is missing from them has another owner or had ended
    before. ``changes`` come in the order in which the jobs ended: whether failures are consecutive depends on it.
    """
    happened = list(changes)
    if not happened:
        return set()
    parked = _park_failed(conn, happened)
    ended = _end(conn, [change for change in happened if change.id not in parked] if parked else happened)
    if ended:
        free_dependents(conn, ended)
    return {row.id for row in ended} | parked


def _end(conn: Connection, happened: Sequence[Change]) -> Sequence[Row[Any]]:
    """``finish`` but for what waits for these very jobs: the rows that were written."""
    ordered = sorted(happened, key=lambda change: change.id)
    ended = conn.execute(_finish(conn.dialect.name), {"changes": rows_json([_row(change) for change in ordered])}).all()
    if ended:
        after_commit(conn, lambda: metrics.ended(ended))
    written = {row.id for row in ended}
    _keep_attempts(conn, ordered, written)
    tell_ends(conn, ended)
    rows = {row.id: row for row in ended}
    for workflow_id, count in count_failures(conn, [rows[change.id] for change in happened if change.id in rows]):
        terminate(conn, workflow_id, f"{count} jobs in a row failed")
    count_ends(conn, ended, {change.id: change.report for change in happened if change.report is not None})
    release_next(conn, ended)
    return ended


def _park_failed(conn: Connection, changes: Sequence[Change]) -> set[UUID]:
    """SYNCs that failed by themselves, or were canceled under their worker, and have children wait for them."""
    failed = [change for change in changes if change.was is Status.RUNNING and change.to.status is not Status.COMPLETED]
    parents = with_children(conn, [change.id for change in failed]) if failed else set()
    return park_sync(conn, [change for change in failed if change.id in parents])


def park_sync(conn: Connection, changes: Sequence[Change]) -> set[UUID]:
    """Give back the worker slots of SYNCs; ``to`` is the end that the SYNC came to, or RUNNING where it came to none."""
    return park(
        conn, [Parked(change.id, change.attempt, change.worker_id, _verdict(change)) for change in changes]
    )  # fmt: skip


def _verdict(change: Change) -> dict[str, Any]:
    ended = {} if change.ended is None else {"ended": _kept(change.ended)}
    if not change.to.terminal:
        return ended
    return {**ended, "to": change.to.reason.value, "message": change.message, "error_class": change.error_class}


def free_dependents(conn: Connection, ended: Sequence[Row[Any]]) -> None:
    """What the end of these jobs means to jobs that wait for them: ready, canceled or skipped; and so on, to the last."""
    while ended:
        freed = free(conn, ended)
        if freed.ready:
            announce(conn)
        changes = [*_orphaned(freed.to_cancel), *_filtered(freed.to_skip)]
        ended = _end(conn, changes) if changes else ()  # no recursion: a chain may be longer than the stack is deep


def _orphaned(rows: Iterable[Row[Any]]) -> Iterable[Change]:
    to, message = Transition(Status.CANCELED, Reason.UPSTREAM_FAILED), "a job before it failed or was canceled"
    return (Change(row.id, Status(row.status), row.attempt, to, message=message) for row in rows)


def _filtered(rows: Iterable[Row[Any]]) -> Iterable[Change]:
    to, message = Transition(Status.COMPLETED, Reason.SKIPPED), "the target before it filtered the entity"
    return (Change(row.id, Status(row.status), row.attempt, to, message=message) for row in rows)


def put_back(conn: Connection, changes: Iterable[Change]) -> set[UUID]:
    """Return jobs to PENDING (retry, requeue, drain, closed queue). Same guard, same promise as ``finish``.

    A SYNC that somebody asked to hold meanwhile is PENDING·paused.
    A schedule's job whose workflow was terminated meanwhile ends at once (CANCELED·workflow_terminated).
    """
    ordered = sorted(changes, key=lambda change: change.id)
    if not ordered:
        return set()
    parameters = {"changes": rows_json([_row(change) for change in ordered])}
    rows = conn.execute(_put_back(conn.dialect.name), parameters).all()
    written = {row.id for row in rows}
    _keep_attempts(conn, ordered, written)
    tell_each(conn, rows, REQUEUED)
    _end_terminated(conn, [row for row in rows if row.workflow_id is not None and row.trigger == Trigger.AUTOMATIC])
    if any(change.to.due_in is None for change in ordered):
        announce(conn)  # ready again, for another worker
    return written


def _end_terminated(conn: Connection, waiting: Sequence[Row[Any]]) -> None:
    """End those of the jobs whose workflow is terminated; the lock waits for a termination that is under way.

    ``terminate`` passes over rows that somebody else is just writing, and counts on this.
    """
    if not waiting:
        return
    dialect = conn.dialect.name
    found = conn.execute(_statuses(dialect), {"ids": id_list(dialect, {row.workflow_id for row in waiting})})
    terminated = {row.id for row in found if row.status == "TERMINATED"}
    finish(conn, (_terminated(row, Status.PENDING) for row in waiting if row.workflow_id in terminated))


@cache
def _statuses(dialect: str) -> Any:
    return (
        sa.select(workflows.c.id, workflows.c.status)
        .where(is_one_of(dialect, workflows.c.id, "ids"))
        .order_by(workflows.c.id)
        .with_for_update(read=True)
    )


def _terminated(row: Any, was: Status) -> Change:
    to = Transition(Status.CANCELED, Reason.WORKFLOW_TERMINATED)
    return Change(row.id, was, row.attempt, to, message="the workflow was terminated")


def _keep_attempts(conn: Connection, changes: Sequence[Change], written: set[UUID]) -> None:
    rows = [
        {"job_id": change.id, "attempt": change.attempt} | _kept(change.ended)
        for change in changes
        if change.ended is not None and change.id in written
    ]
    if rows:
        conn.execute(_insert_attempts(conn.dialect.name), {"attempts": rows_json(rows)})


_kept_names = tuple(EndedAttempt.__dataclass_fields__)
_kept_values = attrgetter(*_kept_names)
_NOTHING_IF_EMPTY = frozenset({"steps", "usage"})  # while an empty result is a result


def _kept(ended: EndedAttempt) -> dict[str, Any]:
    """The fields of an attempt that say something; ``dataclasses.asdict`` would copy results of any size."""
    return {
        name: value
        for name, value in zip(_kept_names, _kept_values(ended), strict=True)
        if value is not None and (value or name not in _NOTHING_IF_EMPTY)
    }


# --- what an end means to others -------------------------------------------------------------------------------


def terminate(conn: Connection, workflow_id: UUID, message: str) -> bool:
    """End a workflow: no more slots; its waiting AUTOMATIC jobs are canceled, running ones get no retry.

    MANUAL jobs are left alone. Returns False if the workflow had been terminated before.
    """
    done = conn.execute(
        sa.update(workflows)
        .where(workflows.c.id == workflow_id, workflows.c.status != "TERMINATED")
        .values(status="TERMINATED", next_fire_at=None, updated_at=now(), message=message)
        .returning(
            workflows.c.id, workflows.c.tenant, workflows.c.generation, is_heard(workflows.c.tenant).label("heard")
        )
    ).first()
    if done is None:
        return False
    if done.heard:
        tell_terminated(conn, done, message)
    automatic = sa.and_(
        jobs.c.workflow_id == workflow_id, jobs.c.finished_at.is_(None), jobs.c.trigger == Trigger.AUTOMATIC.value
    )
    waiting = conn.execute(
        sa.select(jobs.c.id, jobs.c.status, jobs.c.attempt)
        .where(automatic, jobs.c.status.in_([Status.PENDING.value, Status.QUEUED.value]))
        .order_by(jobs.c.id)
        .with_for_update()
    ).all()
    finish(conn, (_terminated(row, Status(row.status)) for row in waiting))
    # Whoever records one of these jobs just now may wait for the workflow's row, which is ours: see _end_terminated.
    running = (
        sa.select(jobs.c.id)
        .where(automatic, jobs.c.status == Status.RUNNING.value)
        .order_by(jobs.c.id)
        .with_for_update(skip_locked=True)
    )
    conn.execute(sa.update(jobs).where(jobs.c.id.in_(running)).values(max_attempts=jobs.c.failures + 1))
    return True


def lock_running(conn: Connection, worker_id: UUID, ids: Iterable[UUID]) -> dict[UUID, Row[Any]]:
    """The worker's own running jobs among these, locked until the transaction ends, with all a decision needs."""
    dialect = conn.dialect.name
    rows = conn.execute(_lock_running(dialect), {"worker": worker_id, "ids": id_list(dialect, ids)})
    return {row.id: row for row in rows}


@cache
def _lock_running(dialect: str) -> Any:
    first_requeue = sa.select(sa.func.min(attempts.c.finished_at)).where(
        attempts.c.job_id == jobs.c.id, attempts.c.reason == Reason.REQUEUED.value
    )
    return (
        sa.select(
            jobs.c.id, jobs.c.attempt, jobs.c.failures, jobs.c.max_attempts, jobs.c.desired, jobs.c.requeues,
            jobs.c.cancel_reason, sa.func.coalesce(first_requeue.scalar_subquery(), now()).label("since"),
            now().label("now"), sa.exists().where(fanouts.c.job_id == jobs.c.id).label("fans_out"),
        )
        .where(
            is_one_of(dialect, jobs.c.id, "ids"),
            jobs.c.worker_id.is_not_distinct_from(sa.bindparam("worker", type_=sa.Uuid)),
            jobs.c.status == Status.RUNNING.value,
        )
        .order_by(jobs.c.id)
        .with_for_update(of=jobs)
    )  # fmt: skip
