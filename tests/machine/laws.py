"""What holds of every state that the store can be in, and of every step from one to the next."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any
from uuid import UUID

from jobq.states import EDGES, REASONS, TERMINAL, WAKING, Reason, Status
from tests.machine.picture import Picture


def of_row(job: Any, now: Any) -> None:
    """The columns of one job agree with each other."""
    status, reason = Status(job.status), Reason(job.reason)
    assert reason in REASONS[status]
    assert (job.finished_at is not None) == (status in TERMINAL)
    assert (job.worker_id is not None) == (status is Status.RUNNING)
    assert (job.next_send_at is not None) == (status is Status.QUEUED)
    assert job.host is None or status is Status.RUNNING
    assert (job.due_at is not None) == (status is Status.PENDING and reason in WAKING)
    assert job.failures <= job.max_attempts
    assert job.attempt >= job.failures
    begun = status in {Status.QUEUED, Status.RUNNING} or reason is Reason.READY
    if begun:
        assert job.ready_at is not None
        assert job.scheduled_at is None or job.scheduled_at <= now, "it goes before its time"
    if status is Status.RUNNING:
        assert job.attempt >= 1
        assert job.started_at is not None
        assert job.desired in {"RUN", "CANCEL"}
    if status is Status.QUEUED:
        assert job.desired == "RUN"
    if status is Status.PENDING:
        assert (job.desired, reason is Reason.PAUSED) in {("RUN", False), ("PAUSE", True)}
    assert (reason is Reason.DUPLICATE) == (job.duplicate_of is not None)


def of_picture(picture: Picture) -> None:
    """Jobs, attempts, workflows and queues agree with each other."""
    for job in picture.jobs.values():
        of_row(job, picture.now)
        if job.status == "QUEUED":
            assert not picture.paused(job.queue), "promoted in a paused queue"
    of_attempts(picture)
    of_waits(picture)
    of_workflows(picture)
    held = Counter((job.tenant, job.dedupe_key) for job in picture.live() if job.dedupe_key is not None)
    assert not held or max(held.values()) == 1, "two live jobs hold one dedupe key"


def of_attempts(picture: Picture) -> None:
    """One row for each attempt that ended, in numbers without a gap; failures are the charged ones among them."""
    numbers, charged, requeued = defaultdict(list), Counter[UUID](), Counter[UUID]()
    for (job_id, number), attempt in picture.attempts.items():
        assert job_id in picture.jobs
        numbers[job_id].append(number)
        charged[job_id] += bool(attempt.charged)
        requeued[job_id] += attempt.outcome == "REQUEUED"
    for job in picture.jobs.values():
        ended = job.attempt - (job.status == "RUNNING")
        assert sorted(numbers[job.id]) == list(range(1, ended + 1)), "attempts and their records differ"
        assert job.failures == charged[job.id]
        # The last one may have ended the job instead.
        assert job.requeues in (
            {requeued[job.id]} if job.finished_at is None else {requeued[job.id], requeued[job.id] - 1}
        )


def of_waits(picture: Picture) -> None:
    """Nobody waits for what has ended, and what waits for a job (or for its workflow's earlier slot) has one."""
    for job_id, upstream in picture.waits:
        assert picture.jobs[upstream].finished_at is None, f"{job_id} waits for {upstream}, which has ended"
    waiting = {job_id for job_id, _ in picture.waits}
    for job in picture.of("PENDING", "blocked"):
        if job.trigger == "MANUAL":
            assert job.id in waiting, "blocked by nothing"
            continue
        others = [other for other in picture.automatic(job.workflow_id) if other.id != job.id]
        assert any(other.reason != "blocked" or other.slot_at < job.slot_at for other in others), "a forgotten slot"


def of_workflows(picture: Picture) -> None:
    slots = Counter((job.workflow_id, job.slot_at) for job in picture.jobs.values() if job.slot_at is not None)
    assert not slots or max(slots.values()) == 1, "two jobs of one slot"
    for job in picture.jobs.values():
        assert (job.slot_at is not None) == (job.trigger == "AUTOMATIC")
    for flow in picture.flows.values():
        if flow.status == "TERMINATED":
            waiting = [job for job in picture.automatic(flow.id) if job.status != "RUNNING"]
            assert not waiting, "a slot's job of a terminated workflow waits"
        assert flow.next_fire_at is None or flow.status == "ACTIVE"
        assert flow.status != "ACTIVE" or flow.consecutive_failures < flow.max_consecutive_job_failures_allowed
    for job in picture.live():
        if job.workflow_id is not None:
            limited = picture.flows[job.workflow_id].concurrency is not None
            assert job.lane == (job.workflow_id.hex if limited else "")


def of_step(before: Picture, after: Picture) -> None:
    """What no step does, whatever it is."""
    for job_id, was in before.jobs.items():
        job = after.jobs.get(job_id)
        if was.finished_at is not None:
            assert job is None or job == was, "a finished job was changed"
            continue
        assert job is not None, "a live job was deleted"
        assert job.status == was.status or Status(job.status) in EDGES[Status(was.status)], (
            f"{was.status} → {job.status}: there is no such edge"
        )
        claimed = (was.status, job.status) == ("QUEUED", "RUNNING")
        assert job.attempt == was.attempt + claimed, "the fence moved without a claim, or did not with one"
    for place, attempt in before.attempts.items():
        assert after.attempts.get(place) == attempt or place[0] not in after.jobs, "the record of an attempt changed"
    flying, flew = after.in_flight(), before.in_flight()
    for limited, limit in after.limits().items():
        assert flying[limited] <= max(limit, flew[limited]), f"more in flight than {limited} allows"
