"""What each verb must lead to, told apart from how the product decides it: columns and the values they must have."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from jobq.models import Outcome
from jobq.retry import RetryPolicy
from jobq.states import Reason
from tests.machine.picture import Picture

Fate = dict[str, Any]
INITIAL = 10
"""Seconds before the first retry; each later one waits twice as long."""
REQUEUE_IN = 60


@dataclass(frozen=True)
class Ending:
    """The record that an attempt must leave."""

    outcome: str
    charged: bool
    worker_id: UUID | None


# --- the end of an attempt -------------------------------------------------------------------------------------------

OUTCOMES: dict[str, Outcome] = {
    "success": Outcome.succeeded({"did": "it"}),
    "skip": Outcome.skipped("nothing to do"),
    "fail": Outcome.failed("it broke"),
    "time out": Outcome.timed_out("too long"),
    "hopeless": Outcome.failed("it broke for good", retry=False),
    "invalid": Outcome.invalid("nobody can do this"),
    "lost": Outcome.lost(),
    "not now": Outcome.requeued(timedelta(seconds=REQUEUE_IN), "busy"),
    "not now, but at once": Outcome.requeued(timedelta(0), "busy"),
    "stop": Outcome.stopped(),
    "drain": Outcome.stopped(),
}
"""What workers report."""


def reported(  # noqa: PLR0917
    job: Any, word: str, policy: RetryPolicy, by: UUID, now: datetime, first_requeue: datetime
) -> tuple[Fate, Ending]:
    """What becomes of a running job whose owner says this."""
    outcome = OUTCOMES[word]
    to_cancel = job.desired == "CANCEL"
    match word:
        case "success" | "skip":
            return over("COMPLETED", outcome.reason, now), Ending("COMPLETED", False, by)
        case "stop":
            return canceled(job, now), Ending("CANCELED", False, by)
        case "drain":
            return (canceled(job, now) if to_cancel else ready()), Ending("DRAINED", False, by)
        case "not now" | "not now, but at once":
            if job.requeues >= 20 or now - first_requeue >= timedelta(hours=24):
                return over("FAILED", Reason.ERROR, now) | charge(job), Ending("FAILED", True, by)
            if to_cancel:
                return canceled(job, now), Ending("REQUEUED", False, by)
            later = now + timedelta(seconds=REQUEUE_IN)
            back = ready() if word == "not now, but at once" else waiting("requeued", later)
            return back | {"requeues": job.requeues + 1}, Ending("REQUEUED", False, by)
    wanted = policy.retry_lost is True if word == "lost" else outcome.retry
    return failed(job, outcome.reason, now, again=wanted), Ending("LOST" if word == "lost" else "FAILED", True, by)


def failed(job: Any, reason: Reason, now: datetime, *, again: bool) -> Fate:
    if not again or job.failures + 1 >= job.max_attempts:
        return over("FAILED", reason, now) | charge(job)
    if job.desired == "CANCEL":
        return canceled(job, now) | charge(job)
    return waiting("retrying", now + timedelta(seconds=INITIAL * 2**job.failures)) | charge(job)


def died(job: Any, policy: RetryPolicy, now: datetime) -> tuple[Fate, Ending]:
    """What becomes of a running job whose worker is gone, or never learned that it had it."""
    if job.desired == "CANCEL":
        return canceled(job, now), Ending("LOST", False, job.worker_id)
    fate = failed(job, Reason.UNRESOLVED, now, again=policy.retry_lost is True)
    return fate, Ending("LOST", True, job.worker_id)


def over(status: str, reason: str, now: datetime) -> Fate:
    return {"status": status, "reason": str(reason), "finished_at": now}


def canceled(job: Any, now: datetime) -> Fate:
    return over("CANCELED", job.cancel_reason or Reason.BY_USER, now)


def charge(job: Any) -> Fate:
    return {"failures": job.failures + 1}


def ready() -> Fate:
    return {"status": "PENDING", "reason": "ready", "due_at": None}


def waiting(reason: str, due_at: datetime) -> Fate:
    return {"status": "PENDING", "reason": reason, "due_at": due_at}


# --- arrival ---------------------------------------------------------------------------------------------------------


def arrival(
    picture: Picture, upstreams: dict[UUID, str], *, scheduled_at: datetime | None, holder: UUID | None
) -> Fate:
    """How an accepted job begins. ``upstreams``: what it waits for, each with the status it has."""
    if any(status in {"FAILED", "CANCELED"} for status in upstreams.values()):
        return over("CANCELED", Reason.UPSTREAM_FAILED, picture.now)
    if holder is not None:
        return over("CANCELED", Reason.DUPLICATE, picture.now) | {"duplicate_of": holder}
    if any(status != "COMPLETED" for status in upstreams.values()):
        return {"status": "PENDING", "reason": "blocked", "scheduled_at": scheduled_at}
    if scheduled_at is not None and scheduled_at > picture.now:
        return waiting("scheduled", scheduled_at)
    return ready()


def holder_of(picture: Picture, tenant: str, key: str | None) -> UUID | None:
    """The live job that has this dedupe key."""
    held = [job.id for job in picture.live() if key is not None and (job.tenant, job.dedupe_key) == (tenant, key)]
    return held[0] if held else None


# --- slots -----------------------------------------------------------------------------------------------------------


@dataclass
class Slots:
    """What a due workflow's slots become."""

    next_fire_at: datetime
    born: dict[datetime, Fate]
    earlier: dict[UUID, Fate]
    """Jobs of earlier slots that give way."""


def slots(picture: Picture, flow: Any) -> Slots:
    """Slot by slot, from the one that is stored to now."""
    interval = timedelta(microseconds=flow.interval_us)
    assert (flow.next_fire_at - flow.anchor_at) % interval == timedelta(0), "the schedule drifts"
    due = []
    slot = flow.next_fire_at
    while slot <= picture.now:
        due.append(slot)
        slot += interval
    grace = interval / 2 if flow.misfire_grace is None else timedelta(seconds=flow.misfire_grace)
    if flow.misfire_grace is None:
        grace = max(min(grace, timedelta(seconds=60)), timedelta(seconds=1))
    missed = [each for each in due if each + grace < picture.now]
    kept = {"skip": 0, "coalesce": 1, "catch_up": flow.max_catch_up}[flow.misfire]
    run = (missed[-kept:] if kept else []) + due[len(missed) :]
    return _overlapped(picture, flow, run, Slots(slot, {}, {}))


def _overlapped(picture: Picture, flow: Any, run: list[datetime], found: Slots) -> Slots:
    now, overlap = picture.now, over("CANCELED", Reason.OVERLAP, picture.now)
    live = picture.automatic(flow.id)
    running = sum(job.status == "RUNNING" for job in live)
    others = len(live) - running
    for slot in run:
        if flow.overlap == "allow" or not running + others:
            found.born[slot] = ready()
        elif flow.overlap == "cancel_running":
            found.earlier = {job.id: _gives_way(job, overlap) for job in live}
            found.born = dict.fromkeys(found.born, overlap) | {slot: _behind(running)}
            others = 0
        elif flow.overlap == "skip" or others:
            found.born[slot] = overlap
            continue
        else:
            found.born[slot] = _behind(running)
        others += 1
    assert all(fate.get("finished_at", now) == now for fate in found.born.values())
    return found


def _gives_way(job: Any, overlap: Fate) -> Fate:
    return {"desired": "CANCEL", "cancel_reason": "overlap"} if job.status == "RUNNING" else overlap


def _behind(running: int) -> Fate:
    return {"status": "PENDING", "reason": "blocked"} if running else ready()


def next_slot(interval_us: int | None, anchor: datetime, now: datetime) -> datetime | None:
    """The first slot after now."""
    if interval_us is None:
        return None
    interval = timedelta(microseconds=interval_us)
    slot = anchor + interval
    while slot <= now:
        slot += interval
    return slot
