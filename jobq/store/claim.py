"""A worker takes jobs, and reports on them: claim and record, one transaction for many jobs.

The claim is a compare-and-set on QUEUED that also raises ``attempt``. From then on every write of the owner names
its id, that attempt, its worker id and RUNNING; when one of them no longer holds, the write does nothing and the
worker is told which jobs it lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.models import Outcome, Step
from jobq.retry import RetryPolicy, backoff, retryable
from jobq.states import Desired, Reason, Status, Transition, Trigger, canceled, follow, give_back, retry_or_fail
from jobq.store import after
from jobq.store.entities import Payload, advance, read_payloads
from jobq.store.fanin import child_spec
from jobq.store.finish import Change, EndedAttempt, finish, lock_running, park_sync, put_back
from jobq.store.siblings import lock_carriers
from jobq.store.sql import POSTGRESQL, Json, id_list, incoming, is_one_of, json_parts, now, picked_once, rows_json
from jobq.store.tables import job_data, jobs, workers
from jobq.store.targets import hold, lift
from jobq.store.webhook_events import STARTED, tell_each, with_event

MAX_REQUEUES = 20
MAX_REQUEUED_FOR = timedelta(hours=24)
"""Since the target first said "not now": if it still says so then, it has said no."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that now is this worker's, and all that its execution needs."""

    id: UUID
    attempt: int
    tenant: str
    kind: str
    name: str
    queue: str
    trigger: Trigger
    timeout: float | None
    scheduled_at: datetime | None
    started_at: datetime
    workflow_id: UUID | None
    parent_id: UUID | None
    retry_of: UUID | None
    domain: str | None
    target: str | None
    entity_key: str | None
    ready_at: datetime | None
    traceparent: str | None
    spec: Any
    state: Any
    retry: Any
    checkpoint: Any
    started_by: str | None
    payload: Payload | None = None
    """A child of a SYNC: what it is to write."""


TAKEN = (
    "id", "attempt", "tenant", "kind", "name", "queue", "trigger", "timeout", "scheduled_at", "started_at",
    "workflow_id", "parent_id", "retry_of", "domain", "target", "entity_key", "ready_at",
    "traceparent",
)  # fmt: skip
"""The columns of a claimed job, in the order of the fields of ``Claimed``."""
_TAKEN = [jobs.c[name] for name in TAKEN]
_DATA = [job_data.c[name] for name in ("spec", "state", "retry", "checkpoint", "started_by")]


def _take(dialect: str, chosen: Any, *, unheard: bool = False) -> Any:
    """QUEUED → RUNNING for the chosen ids, unless the worker was declared dead. ``data``: what lies beside each job.

    On PostgreSQL the statement writes the events of those that are hooked as well: it is a transaction by itself.
    ``unheard``: none of them is, which makes it cheaper.
    """
    worker = sa.bindparam("worker", type_=sa.Uuid)
    hosted = is_one_of(dialect, jobs.c.kind, "hosted")
    data = sa.select(json_parts(*_DATA)).where(job_data.c.job_id == jobs.c.id).scalar_subquery()
    taken = (
        sa.update(jobs)
        .where(
            jobs.c.id.in_(picked_once(chosen)),
            sa.exists().where(workers.c.id == worker, workers.c.dead_at.is_(None)),
        )
        .values(
            status=Status.RUNNING.value,
            reason=sa.case((hosted, Reason.PREPARING.value), else_=Reason.EXECUTING.value),
            attempt=jobs.c.attempt + 1,
            worker_id=worker,
            host=sa.case((hosted, sa.bindparam("on_host", type_=sa.Text))),
            started_at=now(),
            next_send_at=None,
            hooked=jobs.c.hooked + 1,
        )
    )
    shown = [*_TAKEN, data.label("data")]
    if unheard or dialect != POSTGRESQL:
        return taken.returning(*shown, jobs.c.hooked)
    written = taken.returning(*shown, jobs.c.hooked, jobs.c.reason).cte("taken")
    return with_event(STARTED, written, [written.c[column.name] for column in shown])


@cache
def _take_ids(dialect: str, *, unheard: bool) -> Any:
    """Claim by the ids of a hint: workers with different hints never meet. ``unheard``: only those not hooked."""
    chosen = (
        sa.select(jobs.c.id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.status == Status.QUEUED.value, jobs.c.desired == "RUN")
        .where(jobs.c.queue.concat("") == sa.bindparam("of_queue", type_=sa.Text))  # found by id, never by queue
        .order_by(jobs.c.id)
        .with_for_update(skip_locked=True)
    )
    return _take(dialect, chosen.where(jobs.c.hooked.is_(None)) if unheard else chosen, unheard=unheard)


@cache
def _take_waiting(dialect: str) -> Any:
    """Claim without a hint: what was promoted first, of one queue."""
    chosen = (
        sa.select(jobs.c.id)
        .where(
            jobs.c.queue == sa.bindparam("of_queue", type_=sa.Text),
            jobs.c.next_send_at.is_not(None),
            jobs.c.desired == "RUN",
        )
        .order_by(jobs.c.priority.desc(), jobs.c.next_send_at, jobs.c.id)
        .limit(sa.bindparam("room", type_=sa.Integer))
        .with_for_update(skip_locked=True)
    )
    return _take(dialect, chosen)


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims. ``hosted``: the kinds whose work lives on ``host`` and can be recovered there."""

    worker_id: UUID
    host: str | None = None
    hosted: tuple[str, ...] = ()


def claim(conn: Connection, by: Claimant, queue: str, ids: Sequence[UUID]) -> list[Claimed]:
    """Take those of the ids that are QUEUED in this queue; the others fall away (taken, canceled, paused, forged).

    One statement, and so a transaction by itself. It waits for the disk: a claim that is lost would be made again with
    the same attempt number, which is the fence, while the first one's work goes on. What that one does not take may be
    hooked: on PostgreSQL another one, again a transaction by itself, looks for it, so that all others need not pay.
    """
    dialect = conn.dialect.name
    if dialect != POSTGRESQL:
        return _taken(conn, by, _take_ids(dialect, unheard=False), {"of_queue": queue, "ids": id_list(dialect, ids)})
    parameters = {"of_queue": queue, "ids": id_list(dialect, ids)}
    taken = _taken(conn, by, _take_ids(dialect, unheard=True), parameters)
    left = set(ids) - {job.id for job in taken}
    if left:
        parameters["ids"] = id_list(dialect, left)
        taken += _taken(conn, by, _take_ids(dialect, unheard=False), parameters)
    return taken


def claim_waiting(conn: Connection, by: Claimant, queue: str, room: int) -> list[Claimed]:
    """Take up to ``room`` QUEUED jobs of the queue straight from the database: no message is needed."""
    return _taken(conn, by, _take_waiting(conn.dialect.name), {"of_queue": queue, "room": room})


def _taken(conn: Connection, by: Claimant, statement: Any, parameters: dict[str, Any]) -> list[Claimed]:
    who = {"worker": by.worker_id, "on_host": by.host, "hosted": id_list(conn.dialect.name, by.hosted)}
    rows = conn.execute(statement, {**parameters, **who}).all()
    if conn.dialect.name != POSTGRESQL:
        tell_each(conn, rows, STARTED)
    return _put_together(conn, rows, {row.id: row.data for row in rows})


def with_data(conn: Connection, rows: Sequence[Any]) -> list[Claimed]:
    """The rows of jobs together with their specs, in the order of their ids."""
    if not rows:
        return []
    dialect = conn.dialect.name
    found = conn.execute(_data(dialect), {"ids": id_list(dialect, (row.id for row in rows))})
    return _put_together(conn, rows, {job_id: parts for job_id, *parts in found})


def _put_together(conn: Connection, rows: Sequence[Any], parts: Mapping[UUID, Sequence[Any] | None]) -> list[Claimed]:
    """Jobs with their data, which a child of a SYNC has none of: it is told apart by its columns."""
    children = [row for row in rows if row.entity_key is not None]
    payloads = read_payloads(conn, children)  # after the claim: a newer content makes a newer child
    claimed = []
    for row in sorted(rows, key=lambda row: row.id):
        data = parts.get(row.id) or (child_spec(row), None, None, None, None)
        claimed.append(Claimed(*row[: len(_TAKEN)], *data, payloads.get(row.id)))  # type: ignore[call-arg]
    return claimed


@cache
def _data(dialect: str) -> Any:
    return sa.select(job_data.c.job_id, *_DATA).where(is_one_of(dialect, job_data.c.job_id, "ids"))


# --- record --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    """What a worker says of one attempt. ``drained``: it stopped only because the worker goes away."""

    id: UUID
    attempt: int
    outcome: Outcome
    started_at: datetime
    retry: RetryPolicy
    steps: list[Step]
    drained: bool = False
    kind: str = ""
    queue: str = ""
    seconds: float = 0.0
    """As what it is counted in ``jobq.metrics``, and how long it took."""
    trace: Any = None
    """Of the attempt, for ``jobq.telemetry``."""


def record(conn: Connection, worker_id: UUID, reports: Sequence[Report]) -> set[UUID]:
    """Write the outcomes of many attempts; returns the ids that were this worker's to write.

    A success needs no look at the row. Whether a failure is tried again depends on what the row says now (a
    request to cancel, the failures so far), so those rows are locked first, then decided, then written. Workflows
    count the ends in the order of the reports.
    """
    others = [report.id for report in reports if report.outcome.status is not Status.COMPLETED]
    rows = lock_running(conn, worker_id, others) if others else {}
    behind = {report.id: report.outcome.behind for report in reports if report.outcome.behind and report.id in rows}
    carriers = lock_carriers(conn, behind) if behind else {}
    changes: list[Change] = []
    for report in reports:
        if report.outcome.status is Status.COMPLETED:
            changes.append(_ending(worker_id, report))
        elif (row := rows.get(report.id)) is not None and row.attempt == report.attempt:
            if report.id in carriers:
                changes.append(_following(worker_id, report, row, carriers[report.id]))
            else:
                changes.append(_decided(worker_id, report, row))
    written = _write(conn, changes)
    if carriers:
        blocked = [change.id for change in changes if change.to.reason is Reason.BLOCKED and change.id in written]
        after.wait_for(conn, [(job_id, carrier) for job_id in blocked for carrier in carriers[job_id] or ()])
    answers = [report for report in reports if report.outcome.target or report.outcome.replicated]
    if answers:
        _learn(conn, [report for report in answers if report.id in written])
    return written


def _write(conn: Connection, changes: Sequence[Change]) -> set[UUID]:
    if all(change.to.terminal for change in changes):
        return finish(conn, changes)
    written = finish(conn, (change for change in changes if change.to.terminal))
    written |= park_sync(conn, [change for change in changes if change.to.status is Status.RUNNING])
    return written | put_back(conn, (change for change in changes if change.to.status is Status.PENDING))


def _learn(conn: Connection, answers: Sequence[Report]) -> None:
    """What targets have now, and which of them asked to be left alone for a while."""
    marks = [(report.id, report.outcome.replicated) for report in answers if report.outcome.replicated is not None]
    advance(conn, marks)
    busy, well = dict[Any, Any](), set()
    for report in answers:
        outcome = report.outcome
        if outcome.target is None:
            continue
        if outcome.reason is Reason.REQUEUED:
            busy[outcome.target] = (outcome.delay or timedelta(0), outcome.message)
        else:
            well.add(outcome.target)
    lift(conn, well - busy.keys())
    hold(conn, busy)


def _ending(worker_id: UUID, report: Report) -> Change:
    outcome = report.outcome
    change = _change(worker_id, report, Transition(outcome.status, outcome.reason), kind=outcome.status.value)
    if outcome.replicated is not None and outcome.reason is Reason.SUCCEEDED:
        change.report = outcome.replicated.what
    return change


def _decided(worker_id: UUID, report: Report, row: Row[Any]) -> Change:
    """What becomes of a job whose attempt did not complete: pure decisions of ``jobq.states``, one per case."""
    outcome, desired = report.outcome, Desired(row.desired)
    why = Reason(row.cancel_reason) if row.cancel_reason else Reason.BY_USER
    if outcome.status is Status.RUNNING and row.fans_out:
        return _change(worker_id, report, Transition(Status.RUNNING, Reason.FANNED_OUT), kind="FANNED_OUT")
    if outcome.status is Status.RUNNING:  # paused or canceled before it had begun: there is nothing to live beside
        to = give_back(desired=desired, why=why)
        return _change(worker_id, report, to, kind="CANCELED" if to.terminal else "PAUSED")
    if report.drained:
        return _change(worker_id, report, give_back(desired=desired, why=why), kind="DRAINED")
    if outcome.status is Status.CANCELED:
        return _change(worker_id, report, canceled(why), kind="CANCELED")
    if outcome.reason is Reason.REQUEUED:
        if row.requeues < MAX_REQUEUES and row.now - row.since < MAX_REQUEUED_FOR:
            back = give_back(desired=desired, due_in=outcome.delay, why=why)
            change = _change(worker_id, report, back, kind="REQUEUED")
            change.requeued = True
            return change
        to = Transition(Status.FAILED, Reason.ERROR, charged=True)
        return _change(
            worker_id, report, to, kind="FAILED", message=f"{outcome.message} (after {row.requeues} requeues)"
        )
    to = retry_or_fail(
        failure=outcome.reason,
        retryable=retryable(report.retry, outcome),
        failures=row.failures,
        max_attempts=row.max_attempts,
        desired=desired,
        backoff=backoff(report.retry, row.failures + 1, report.id.int ^ row.attempt),
        why=why,
    )
    return _change(worker_id, report, to, kind="LOST" if outcome.error_class == "lost" else "FAILED")


def _following(worker_id: UUID, report: Report, row: Row[Any], carriers: Sequence[UUID] | None) -> Change:
    """A child that wrote nothing, because the targets before its own had an older content: it follows the carriers."""
    why = Reason(row.cancel_reason) if row.cancel_reason else Reason.BY_USER
    to = follow(desired=Desired(row.desired), carried=None if carriers is None else bool(carriers), why=why)
    return _change(worker_id, report, to, kind="CANCELED" if to.terminal else "REQUEUED")


def _change(worker_id: UUID, report: Report, to: Transition, *, kind: str, message: str | None = None) -> Change:
    outcome = report.outcome
    ended = EndedAttempt.of(outcome, report.started_at, worker_id, charged=to.charged, kind=kind)
    ended.steps = [(step.name, step.at, step.seconds) for step in report.steps]
    return Change(
        report.id, Status.RUNNING, report.attempt, to, worker_id,
        message=message or outcome.message or None, error_class=outcome.error_class or None, ended=ended,
    )  # fmt: skip


def mark_executing(
    conn: Connection, worker_id: UUID, running: Iterable[tuple[UUID, int]], host: str | None = None
) -> None:
    """RUNNING·preparing → executing: the preparation of these attempts is over.

    ``host``: where their work lives, for those that were claimed before that was known.
    """
    dialect = conn.dialect.name
    marks = rows_json([{"id": job_id, "attempt": attempt} for job_id, attempt in running])
    conn.execute(_executing(dialect), {"worker": worker_id, "marks": marks, "on_host": host})


@cache
def _executing(dialect: str) -> Any:
    mark = incoming(dialect, "marks", {"id": sa.Uuid(), "attempt": sa.Integer()})
    return (
        sa.update(jobs)
        .where(
            jobs.c.id == mark.c.id,
            jobs.c.attempt == mark.c.attempt,
            jobs.c.worker_id.is_not_distinct_from(sa.bindparam("worker", type_=sa.Uuid)),
            jobs.c.reason.in_([Reason.PREPARING.value, Reason.EXECUTING.value]),
        )
        .values(
            reason=Reason.EXECUTING.value, host=sa.func.coalesce(jobs.c.host, sa.bindparam("on_host", type_=sa.Text))
        )
    )


class Held(NamedTuple):
    """An attempt as one worker holds it: under the identity with which it was claimed or adopted."""

    job_id: UUID
    attempt: int
    worker_id: UUID


def lock_held(conn: Connection, held: Collection[Held]) -> tuple[set[Held], set[Held]]:
    """Which of these attempts still are those workers', and which are not (any more).

    The first are locked: nobody takes them over until the transaction ends. In neither are those that somebody else
    has locked at the moment: it is never waited for. For what a worker writes of a job beside its outcome: one that
    was frozen, and wakes when another has taken its container over, would else write into the other's log.
    """
    dialect = conn.dialect.name
    found = _held(dialect)
    ids = {"ids": id_list(dialect, {one.job_id for one in held})}
    locked = {Held(*row) for row in conn.execute(found.with_for_update(key_share=True, skip_locked=True), ids)}
    ours, others = locked & set(held), set(held) - locked
    if others:
        others -= {Held(*row) for row in conn.execute(found, ids)}
    return ours, others


@cache
def _held(dialect: str) -> Any:
    return (
        sa.select(jobs.c.id, jobs.c.attempt, jobs.c.worker_id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.worker_id.is_not(None))
        .order_by(jobs.c.id)
    )


def save_checkpoints(conn: Connection, checkpoints: Mapping[UUID, dict[str, Any]]) -> None:
    """Keep a small document with each of these jobs, for whoever recovers the attempt; see ``lock_held``."""
    rows = [{"job_id": job_id, "checkpoint": document} for job_id, document in sorted(checkpoints.items())]
    if rows:
        conn.execute(_save(conn.dialect.name), {"notes": rows_json(rows)})


@cache
def _save(dialect: str) -> Any:
    note = incoming(dialect, "notes", {"job_id": sa.Uuid(), "checkpoint": Json})
    return sa.update(job_data).where(job_data.c.job_id == note.c.job_id).values(checkpoint=note.c.checkpoint)
