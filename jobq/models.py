"""What jobq tells of workflows and jobs, and what an executor tells of an attempt. Plain immutable values.

All instants are aware and in UTC, named ``…_at``; durations are ``timedelta`` or, where the name says so, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from jobq.states import TERMINAL, Desired, Reason, Status, Trigger

Item = TypeVar("Item")


class Actor(str):
    """Who acts, by name: what ``JobQ(actor=…)`` says, or the holder of an API key, whose id events keep beside it."""

    key_id: UUID | None

    def __new__(cls, name: str, key_id: UUID | None = None) -> Actor:
        """``key_id``: of the key by which the actor was recognized."""
        made = super().__new__(cls, name)
        made.key_id = key_id
        return made


@dataclass(frozen=True, slots=True)
class Step:
    """A timed part of an attempt: seconds since the attempt began, and how long it took."""

    name: str
    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Replicated:
    """What a target has of an entity now."""

    tenant: str
    domain: str
    target: str
    key: str
    version: int
    """Of the entity, in jobq's store."""
    rules: str
    """Fingerprint of the target's mapping and conditions."""
    what: str
    """``success``: written there for the first time; ``updated``; ``existing``: it had it so; ``skipped``: filtered."""
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, as its executor saw it. Built by the constructors below only.

    What becomes of the *job* is decided elsewhere (``jobq.states``): a failed attempt may be tried again.
    """

    status: Status
    reason: Reason
    message: str = ""
    """The best statement of the cause, for a person to read: no secret, no stack trace."""
    error_class: str = ""
    """A stable word for the cause, that retry rules can name: ``dns``, ``exit_1``, ``ValueError``."""
    result: Any = None
    """JSON value, kept with the attempt."""
    usage: dict[str, Any] = field(default_factory=dict)
    """What the attempt used: memory_bytes, cpu_seconds, …"""
    exit_code: int | None = None
    retry: bool = True
    """False: trying again cannot help."""
    delay: timedelta | None = None
    """For requeued: how long the other side asked us to wait."""
    target: tuple[str, str] | None = None
    """(tenant, name) of the target that a child of a SYNC spoke to: one that asked to wait is spared for all others."""
    replicated: Replicated | None = None
    """What the target of a child has now."""
    behind: tuple[str, ...] = ()
    """For a child that has overtaken others: the targets before its own that have only an older content."""

    @classmethod
    def succeeded(cls, result: Any = None, *, message: str = "", **more: Any) -> Outcome:
        """The work is done."""
        return cls(Status.COMPLETED, Reason.SUCCEEDED, message, result=result, **more)

    @classmethod
    def skipped(cls, message: str, **more: Any) -> Outcome:
        """There was nothing to do, seen before any work."""
        return cls(Status.COMPLETED, Reason.SKIPPED, message, **more)

    @classmethod
    def failed(cls, message: str, *, error_class: str = "error", reason: Reason = Reason.ERROR, **more: Any) -> Outcome:
        """The work failed; ``retry=False`` says that trying again cannot help."""
        return cls(Status.FAILED, reason, message, error_class, **more)

    @classmethod
    def timed_out(cls, message: str, **more: Any) -> Outcome:
        """The work was stopped at its deadline."""
        return cls(Status.FAILED, Reason.TIMED_OUT, message, "timed_out", **more)

    @classmethod
    def invalid(cls, message: str, **more: Any) -> Outcome:
        """The spec cannot be executed, now or ever."""
        return cls(Status.FAILED, Reason.INVALID, message, "invalid", retry=False, **more)

    @classmethod
    def requeued(cls, delay: timedelta, message: str, *, error_class: str = "Unavailable", **more: Any) -> Outcome:
        """The other side said "not now": the job goes back to the queue and nothing is charged."""
        return cls(Status.PENDING, Reason.REQUEUED, message, error_class, delay=delay, **more)

    @classmethod
    def overtook(cls, behind: tuple[str, ...], message: str) -> Outcome:
        """Nothing was written: the targets before this one have only an older content. It follows whoever brings this."""
        return cls(Status.PENDING, Reason.BLOCKED, message, "overtook", behind=behind)

    @classmethod
    def fanned_out(cls, message: str = "", **more: Any) -> Outcome:
        """A SYNC needs no worker any more, or not now: it lives on beside its children, and ends with the last one."""
        return cls(Status.RUNNING, Reason.FANNED_OUT, message, **more)

    @classmethod
    def stopped(cls, message: str = "stopped on request", **more: Any) -> Outcome:
        """The executor stopped because it was told to (``ctx.stop`` says why); the worker decides what follows."""
        return cls(Status.CANCELED, Reason.BY_USER, message, "stopped", **more)

    @classmethod
    def lost(cls, message: str = "the work is gone, and nobody can say how it ended", **more: Any) -> Outcome:
        """Nobody can say how the attempt ended: retried if the job's policy retries ``lost``, else unresolved."""
        return cls(Status.FAILED, Reason.UNRESOLVED, message, "lost", **more)


@dataclass(frozen=True, slots=True)
class Job:
    """One run. A snapshot: it does not follow the job."""

    id: UUID
    tenant: str
    kind: str
    name: str
    queue: str
    status: Status
    reason: Reason
    desired: Desired
    trigger: Trigger
    priority: int
    attempt: int
    """Claims so far: 0 before the first."""
    failures: int
    """Charged attempts so far, compared with ``max_attempts``."""
    max_attempts: int
    requeues: int
    timeout: float | None
    created_at: datetime
    scheduled_at: datetime | None
    """The instant that was asked for."""
    due_at: datetime | None
    """While PENDING·scheduled, retrying or requeued: when it becomes ready."""
    ready_at: datetime | None
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    workflow_id: UUID | None
    generation: int | None
    slot_at: datetime | None
    parent_id: UUID | None
    retry_of: UUID | None
    duplicate_of: UUID | None
    dedupe_key: str | None
    domain: str | None
    """SYNC and its children: what is synced."""
    domain_end: str | None
    """``source`` for a SYNC, ``target`` for its children."""
    target: str | None
    """A child: the name of the target that it writes to."""
    entity_key: str | None
    """A child: the entity that it writes."""
    worker_id: UUID | None
    message: str | None
    error_class: str | None

    @property
    def finished(self) -> bool:
        """True in COMPLETED, FAILED and CANCELED, which are never left again."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a listing of jobs is narrowed to. Sets are alternatives; ranges are half open: [from, until)."""

    statuses: frozenset[Status] = frozenset()
    reasons: frozenset[Reason] = frozenset()
    kinds: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()
    trigger: Trigger | None = None
    workflow_id: UUID | None = None
    parent_id: UUID | None = None
    domain: str | None = None
    domain_end: str | None = None
    """``source`` or ``target``: which end of the domain mapping the jobs work for."""
    name_contains: str | None = None
    created_from: datetime | None = None
    created_until: datetime | None = None
    scheduled_from: datetime | None = None
    scheduled_until: datetime | None = None
    finished_from: datetime | None = None
    finished_until: datetime | None = None


class WorkflowStatus(StrEnum):
    """ACTIVE makes jobs at its slots; PAUSED drops them; TERMINATED (by hand or by failures) has none."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    TERMINATED = "TERMINATED"


@dataclass(frozen=True, slots=True)
class Workflow:
    """A definition and its schedule. A snapshot: it does not follow the workflow."""

    id: UUID
    tenant: str
    name: str
    kind: str
    spec: dict[str, Any]
    queue: str
    priority: int
    concurrency: int | None
    interval: timedelta | None
    cron: str | None
    timezone: str | None
    start_at: datetime | None
    anchor_at: datetime
    next_fire_at: datetime | None
    misfire: str
    misfire_grace: timedelta | None
    max_catch_up: int
    overlap: str
    timeout: timedelta | None
    retry: dict[str, Any]
    max_attempts: int
    stale_after: timedelta | None
    retention: timedelta | None
    max_consecutive_job_failures_allowed: int
    consecutive_failures: int
    status: WorkflowStatus
    generation: int
    """Rises with each update and resume; only failures of the current one count."""
    created_at: datetime
    updated_at: datetime
    message: str | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claim that has ended."""

    job_id: UUID
    attempt: int
    worker_id: UUID | None
    worker: str | None
    """Name of the worker: host, process id."""
    outcome: str
    """COMPLETED, FAILED, CANCELED, REQUEUED, DRAINED or LOST."""
    reason: str
    charged: bool
    started_at: datetime
    finished_at: datetime
    message: str | None
    error_class: str | None
    exit_code: int | None
    result: Any
    steps: list[Step]
    usage: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """What became of a SYNC's entities at one target: the exportSummary of its stream."""

    success: int
    """Written there for the first time."""
    fail: int
    existing: int
    """The target had them as they are."""
    updated: int
    skipped: int
    canceled: int


@dataclass(frozen=True, slots=True)
class FanOut:
    """How far a SYNC is. The counts of children add up to ``total``; those of entities to what was ``read``."""

    total: int
    pending: int
    queued: int
    running: int
    completed: int
    """Succeeded; without the skipped."""
    skipped: int
    failed: int
    canceled: int
    reading: bool
    """True: there may be more children yet."""
    read: int
    filtered: int
    """Kept out by the conditions of the source."""
    new: int
    updated: int
    existing: int
    """Stored as they are already."""
    invalid: int
    """Failed before they had children: see ``JobQ.problems``."""
    targets: dict[str, TargetSummary]


@dataclass(frozen=True, slots=True)
class Export:
    """The report on one entity at one target."""

    job_id: UUID
    key: str
    target: str
    status: str | None
    """success, updated, existing, fail, skipped or canceled; None: not yet."""
    external_id: str | None
    error_class: str | None
    message: str | None
    job_status: Status
    job_reason: Reason
    reported: bool
    """True if the target was asked and a structured report was left (see ``jobq.vocabulary``)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An entity that failed before it had children. ``entity``: its key, or the place of a record without one."""

    number: int
    entity: str
    error_class: str
    message: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a job left behind; ``size`` in bytes, ``sha256`` in hex."""

    name: str
    size: int
    sha256: str
    attempt: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log. ``number`` counts from 1 within the job and is its position for reading on."""

    number: int
    attempt: int
    at: datetime
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """A job or a workflow as it is now that it changed. ``gap``: some changes were skipped, list anew what matters."""

    what: Literal["job", "workflow", "gap"]
    place: str
    """From where ``JobQ.changes(after=…)`` goes on behind this."""
    job: Job | None = None
    workflow: Workflow | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """How many a listing has. ``exact`` false: an estimate."""

    count: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A part of a listing. ``next_cursor`` is opaque; None: there is no more.

    A page that is short, or empty, and has a ``next_cursor`` took too long to fill: there may be more behind it.
    """

    items: list[Item]
    next_cursor: str | None
