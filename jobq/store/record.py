"""A worker reports on the jobs that it holds: one transaction for many.

What an attempt came to is decided here, by the pure functions of ``jobq.states``; ``finish`` and ``put_back`` write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection, Row

from jobq.models import Outcome, Step
from jobq.retry import RetryPolicy, backoff, retryable
from jobq.states import Desired, Reason, Status, Transition, canceled, follow, give_back, retry_or_fail
from jobq.store import after
from jobq.store.entities import advance
from jobq.store.finish import Change, EndedAttempt, finish, lock_running, park_sync, put_back
from jobq.store.siblings import lock_carriers
from jobq.store.targets import hold, lift

MAX_REQUEUES = 20
MAX_REQUEUED_FOR = timedelta(hours=24)
"""Since the target first said "not now": if it still says so then, it has said no."""


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
