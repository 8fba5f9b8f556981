"""``jobq job show``: one job on a page, its attempts as a small waterfall."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from jobq.cli.output import cell, duration, plain, said, say, state, took, write_fields
from jobq.states import Status

if TYPE_CHECKING:
    from jobq.models import Attempt, Job, Step

_BAR = 40


def write_page(job: Job, spec: dict[str, Any], attempts: Sequence[Attempt], why: str, fanout: Any = None) -> None:
    """Everything there is, what matters first."""
    say(Text.assemble((plain(job.name), "bold"), "  ", state(job.status, job.reason)))
    if not job.finished or job.status is not Status.COMPLETED:
        say(Text(plain(why), "italic"))
    say()
    write_fields(_facts(job))
    if fanout is not None:
        say()
        write_fields(_counts(fanout))
    say()
    write_fields(_times(job))
    say()
    write_fields([("spec", said(spec))])
    for attempt in attempts:
        say()
        _write_attempt(attempt)


def _facts(job: Job) -> Iterator[tuple[str, object]]:
    yield "id", job.id
    yield "kind", job.kind
    yield "queue", f"{job.queue}, priority {job.priority}"
    yield "tenant", job.tenant
    yield "trigger", job.trigger
    yield "workflow", None if job.workflow_id is None else f"{job.workflow_id}, generation {job.generation}"
    yield "parent", job.parent_id
    yield "domain", None if job.domain is None else f"{job.domain}, {job.domain_end} end"
    yield "target", job.target
    yield "entity", job.entity_key
    yield "retry of", job.retry_of
    yield "duplicate of", job.duplicate_of
    yield "dedupe key", job.dedupe_key
    yield "timeout", None if job.timeout is None else duration(job.timeout)
    yield "attempts", f"{job.attempt} made, {job.failures} failed, at most {job.max_attempts} may"
    yield "requeued", f"{job.requeues} times" if job.requeues else None
    yield "wanted", job.desired if job.desired != "RUN" else None
    yield "cause", job.message
    yield "error class", job.error_class


def _counts(fanout: Any) -> Iterator[tuple[str, object]]:
    """How far a fan-out is: what was read, and what became of it."""
    reading = " so far" if fanout.reading else ""
    yield "read", f"{fanout.read:,}{reading}: {_each(fanout, 'new', 'updated', 'existing', 'filtered', 'invalid')}"
    ended = fanout.completed + fanout.skipped + fanout.failed + fanout.canceled
    share = f" ({ended * 100 // fanout.total} % ended)" if fanout.total else ""
    counts = _each(fanout, "pending", "queued", "running", "completed", "skipped", "failed", "canceled")
    yield "children", f"{fanout.total:,}{share}" + (f": {counts}" if fanout.total else "")


def _each(fanout: Any, *names: str) -> str:
    """``3 new, 1 invalid``: what is not 0."""
    return ", ".join(f"{count:,} {name}" for name in names if (count := getattr(fanout, name))) or "nothing"


def _times(job: Job) -> Iterator[tuple[str, object]]:
    yield "created", job.created_at
    yield "slot", job.slot_at
    yield "asked for", job.scheduled_at
    yield "due", job.due_at
    yield "ready", job.ready_at
    yield "queued", job.queued_at
    yield "started", job.started_at
    ended = None if job.finished_at is None else cell(job.finished_at)
    if ended is not None and (lasted := took(job.started_at, job.finished_at)):
        ended.append(f" ({lasted} after the start)")
    yield "finished", ended


def _write_attempt(attempt: Attempt) -> None:
    lasted = took(attempt.started_at, attempt.finished_at)
    where = f" on {plain(attempt.worker)}" if attempt.worker else ""
    free = "" if attempt.charged or attempt.outcome in {"COMPLETED", "CANCELED"} else ", not charged"
    say(
        Text.assemble(
            (f"attempt {attempt.attempt}", "bold"), "  ", state(attempt.outcome, attempt.reason),
            f" after {lasted}{where}{free}",
        )
    )  # fmt: skip
    write_fields(_details(attempt))
    _write_steps(attempt.steps)


def _details(attempt: Attempt) -> Iterator[tuple[str, object]]:
    yield "  cause", attempt.message
    yield "  error class", attempt.error_class
    yield "  exit code", None if attempt.exit_code is None else str(attempt.exit_code)
    yield "  result", attempt.result
    yield "  usage", ", ".join(f"{name} {_amount(name, value)}" for name, value in attempt.usage.items())


def _amount(name: str, value: Any) -> str:
    """``memory_bytes`` in units that people read; the rest as it is."""
    if name.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / 1024 / 1024:.1f} MiB"
    return plain(f"{value:g}" if isinstance(value, float) else value)


def _write_steps(steps: Sequence[Step]) -> None:
    """A bar for each step, from when it began to when it ended, on one scale."""
    whole = max((step.at + step.seconds for step in steps), default=0.0)
    if whole <= 0:
        return
    mark = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    names = [plain(step.name) for step in steps]
    width = max(map(len, names))
    for name, step in zip(names, steps, strict=True):
        begin = min(round(step.at / whole * _BAR), _BAR - 1)
        length = max(min(round(step.seconds / whole * _BAR), _BAR - begin), 1)
        bar = (" " * begin + mark * length).ljust(_BAR)
        say(Text.assemble(f"  {name:<{width}}  ", (bar, "cyan"), f"  {duration(step.seconds)}"))
