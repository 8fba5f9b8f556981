"""The life of a job as a list of instants: made of the job's own, of its ended attempts, and of what people did. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jobq.models import Attempt, Job


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job."""

    at: datetime
    what: str
    """created, due, ready, queued, started, attempt, finished; or what a person did: cancel, pause, resume, retry, …"""
    detail: dict[str, Any] = field(default_factory=dict)


def timeline(job: Job, attempts: Sequence[Attempt], done: Iterable[Any]) -> list[Event]:
    """In order. ``done``: interventions (at, action, actor, detail). Instants of a later attempt replace earlier ones."""
    events = [*_of_job(job), *(_of_attempt(each) for each in attempts)]
    events += [Event(each.at, each.action, {"actor": each.actor, **(each.detail or {})}) for each in done]
    return sorted(events, key=lambda event: event.at)


def _of_job(job: Job) -> Iterator[Event]:
    yield Event(job.created_at, "created", {"trigger": job.trigger.value})
    for what, at in (("due", job.due_at), ("ready", job.ready_at), ("queued", job.queued_at)):
        if at is not None:
            yield Event(at, what)
    if job.started_at is not None and not job.finished:
        yield Event(job.started_at, "started", {"attempt": job.attempt})
    if job.finished_at is not None:
        told = {"status": job.status.value, "reason": job.reason.value, "message": job.message}
        yield Event(job.finished_at, "finished", {name: value for name, value in told.items() if value is not None})


def _of_attempt(attempt: Attempt) -> Event:
    told = {
        "attempt": attempt.attempt, "outcome": attempt.outcome, "reason": attempt.reason, "worker": attempt.worker,
        "seconds": (attempt.finished_at - attempt.started_at).total_seconds(), "message": attempt.message,
    }  # fmt: skip
    return Event(attempt.started_at, "attempt", {name: value for name, value in told.items() if value is not None})
