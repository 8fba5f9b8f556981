"""What the store's functions do to the row of the job. Each is one transaction: it happens at once, or not at all.

What becomes of an attempt is not copied here but asked of the product: ``jobq.store.record._decided`` and ``_ending``
for reports, ``jobq.store.workers._lost`` for what the dead left, and behind them ``jobq.states`` and ``jobq.retry``.
Copied are the guards, which are SQL.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple
from uuid import UUID

from jobq.models import Outcome
from jobq.retry import RetryPolicy
from jobq.states import TERMINAL, Desired, Reason, Status
from jobq.store.finish import Change
from jobq.store.record import Report, _decided, _ending
from jobq.store.workers import _lost
from tests.model.world import NOBODY, NOWHERE, Job, Phase, Row, Rules, Scenario, Work, World, row_of

_ID = UUID(int=1)
_NOW = datetime(2030, 1, 1, tzinfo=UTC)
OUTCOMES = {
    Phase.SUCCEEDED: Outcome.succeeded(),
    Phase.FAILED: Outcome.failed("it broke"),
    Phase.STOPPED: Outcome.stopped(),
    Phase.REQUEUED: Outcome.requeued(timedelta(seconds=1), "not now"),
    Phase.LOST: Outcome.lost(),
}


class Verdict(NamedTuple):
    """What the product decided: of a ``jobq.store.finish.Change`` all that the row shows."""

    status: Status
    reason: Reason
    charged: bool
    requeued: bool
    kind: str

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


def _verdict(change: Change) -> Verdict:
    assert change.ended is not None
    return Verdict(change.to.status, change.to.reason, change.to.charged, change.requeued, change.ended.outcome)


@cache
def _policy(retry_lost: bool, max_attempts: int) -> RetryPolicy:
    return RetryPolicy(max_attempts=max_attempts, retry_lost=retry_lost, jitter=0)


@cache
def of_report(phase: Phase, drained: bool, desired: Desired, counts: tuple[int, int, int], lost: bool) -> Verdict:
    """``jobq.store.record.record`` on a report; ``counts``: failures, requeues and max_attempts of the row."""
    failures, requeues, most = counts
    report = Report(_ID, 1, OUTCOMES[phase], _NOW, _policy(lost, most), [], drained)
    if report.outcome.status is Status.COMPLETED:
        return _verdict(_ending(_ID, report))
    row = SimpleNamespace(
        attempt=1, failures=failures, max_attempts=most, desired=desired.value, requeues=requeues, cancel_reason=None,
        since=_NOW, now=_NOW, fans_out=False,
    )  # fmt: skip
    return _verdict(_decided(_ID, report, row))  # type: ignore[arg-type]


@cache
def of_loss(desired: Desired, failures: int, most: int, lost: bool) -> Verdict:
    """``jobq.store.workers._lost``: what becomes of an attempt whose worker is dead, or does not hold it."""
    row = SimpleNamespace(
        id=_ID, attempt=1, kind="MODEL", failures=failures, max_attempts=most, desired=desired.value,
        cancel_reason=None, started_at=_NOW, worker_id=_ID, retry=_policy(lost, most).stored(),
    )  # fmt: skip
    return _verdict(_lost(row, "lost"))


def end_attempt(job: Job, verdict: Verdict) -> Job:
    """``jobq.store.finish``: ``finish`` or ``put_back``, the attempt's record in the same transaction."""
    ledger = job.ledger
    if all(number != job.attempt for number, *_ in ledger):  # ON CONFLICT DO NOTHING
        ledger = (*ledger, (job.attempt, verdict.kind, verdict.charged))
    held = verdict.status is Status.PENDING and job.desired is Desired.PAUSE
    return job._replace(
        status=verdict.status, reason=Reason.PAUSED if held else verdict.reason, owner=NOBODY, host=NOWHERE,
        failures=job.failures + verdict.charged, requeues=job.requeues + (verdict.requeued and not verdict.ended), ledger=ledger,
    )  # fmt: skip


def claim(job: Job, identity: int, host: int, rules: Rules) -> Job | None:
    """``jobq.store.claim._take``; None: the row is not to be had. Whether the worker is dead was seen before."""
    takeable = job.status is Status.QUEUED or (not rules.claim_wants_queued and job.status is Status.RUNNING)
    if not takeable or (rules.claim_wants_run and job.desired is not Desired.RUN):
        return None
    reason = Reason.PREPARING if host != NOWHERE else Reason.EXECUTING
    return job._replace(status=Status.RUNNING, reason=reason, attempt=job.attempt + 1, owner=identity, host=host)


def record(job: Job, work: Work, drained: bool, scenario: Scenario) -> Job:
    """``jobq.store.record.record``: the same job if the outcome was refused."""
    rules = scenario.rules
    if job.status is not Status.RUNNING:
        return job
    if rules.record_checks_attempt and job.attempt != work.attempt:
        return job
    if rules.record_checks_worker and job.owner != work.owner:
        return job
    desired = job.desired if rules.retry_asks_desired else Desired.RUN
    counts = (job.failures, job.requeues, scenario.max_attempts)
    return end_attempt(job, of_report(work.phase, drained, desired, counts, scenario.retry_lost))


def lose(job: Job, scenario: Scenario) -> Job:
    """What ``release_lost`` and ``release_unheld`` write."""
    return end_attempt(job, of_loss(job.desired, job.failures, scenario.max_attempts, scenario.retry_lost))


def promote(job: Job) -> Job:
    """``jobq.store.promote._promote``; the same job if it is not to be promoted."""
    if job.status is Status.PENDING and job.reason is Reason.READY and job.desired is Desired.RUN:
        return job._replace(status=Status.QUEUED, reason=Reason.DISPATCHED)
    return job


def cancel(job: Job, rules: Rules) -> Job:
    """``jobq.store.control.cancel`` on a job that has not ended."""
    if job.status is Status.RUNNING and rules.cancel_asks_owner:
        return job._replace(desired=Desired.CANCEL)
    return job._replace(status=Status.CANCELED, reason=Reason.BY_USER, owner=NOBODY, host=NOWHERE)


def pause(job: Job, rules: Rules) -> Job:
    """``jobq.store.control.pause``; the same job where it is refused."""
    if job.status is Status.RUNNING or job.status in TERMINAL or job.desired is not Desired.RUN:
        return job
    if job.status is Status.QUEUED and not rules.pause_takes_back:
        return job._replace(desired=Desired.PAUSE)
    return job._replace(status=Status.PENDING, reason=Reason.PAUSED, desired=Desired.PAUSE)


def resume(job: Job) -> Job:
    """``jobq.store.control.resume``; the same job if it is not paused."""
    if job.desired is not Desired.PAUSE or job.status in TERMINAL:
        return job
    reason = Reason.READY if job.reason is Reason.PAUSED else job.reason
    return job._replace(desired=Desired.RUN, reason=reason)


def may_be_released(world: World, scenario: Scenario) -> bool:
    """Is the job one of those that ``release_lost`` finds?"""
    job = world.job
    if job.status is not Status.RUNNING:
        return False
    since = Row.LATE if scenario.hosted and scenario.rules.reaper_waits_for_host else Row.DEAD
    return row_of(world, job.owner) >= since
