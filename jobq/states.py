"""The states of a job, and every transition there is.

A transition that is not in this file does not exist. Three columns tell all: ``status`` (guarded by the
database too: a terminal row never changes its status), ``reason`` (legal per status, ``REASONS``) and
``desired`` (what a person asked for; only the owner of the job acts on it).

The functions here are pure: they look at what is known of a job and return a ``Transition``. The store applies
it with one guarded UPDATE and reports which rows it really changed; the loser of a race gets nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class Status(StrEnum):
    """Where a job is."""

    PENDING = "PENDING"
    """Accepted and durable; waits for its time, for room, for backoff, for another job or for a person.
    In: enqueue, materialize, and back from QUEUED (deferred, paused) or RUNNING (retry, requeue, lost, resume).
    Out: promote (QUEUED); skip, invalid, cancel, stale (terminal)."""

    QUEUED = "QUEUED"
    """Promoted: its hint is on the queue, or will be sent again.
    In: promote. Out: claim (RUNNING); pause or a closed queue (PENDING); cancel, stale (terminal)."""

    RUNNING = "RUNNING"
    """One worker owns it (or a SYNC waits for its children and holds no worker slot).
    In: claim. Out: record by its owner, reap once the owner is dead, or a person who ends it by force."""

    COMPLETED = "COMPLETED"
    """Ended well, or had nothing to do. Terminal."""

    FAILED = "FAILED"
    """Ended badly, after its retries. Terminal."""

    CANCELED = "CANCELED"
    """Ended on request, or made superfluous by another job. Terminal."""


class Reason(StrEnum):
    """Why a job is in its status; ``REASONS`` says which reason is legal where."""

    # PENDING
    SCHEDULED = "scheduled"
    READY = "ready"
    RETRYING = "retrying"
    REQUEUED = "requeued"
    BLOCKED = "blocked"
    # PENDING, and RUNNING for a fan-out whose running children have ended
    PAUSED = "paused"
    # QUEUED
    DISPATCHED = "dispatched"
    # RUNNING
    PREPARING = "preparing"
    EXECUTING = "executing"
    FANNED_OUT = "fanned_out"
    PAUSING = "pausing"
    DEQUEUING = "dequeuing"
    # COMPLETED
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    # FAILED
    NONZERO_EXIT = "nonzero_exit"
    UNEXPECTED_STATUS = "unexpected_status"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    INVALID = "invalid"
    ERROR = "error"
    PARTIAL = "partial"
    UNRESOLVED = "unresolved"
    # CANCELED
    BY_USER = "by_user"
    WORKFLOW_TERMINATED = "workflow_terminated"
    PARENT_CANCELED = "parent_canceled"
    UPSTREAM_FAILED = "upstream_failed"
    DUPLICATE = "duplicate"
    OVERLAP = "overlap"


class Desired(StrEnum):
    """What a person asked of a job that somebody else owns at the moment."""

    RUN = "RUN"
    PAUSE = "PAUSE"
    CANCEL = "CANCEL"


class Trigger(StrEnum):
    """What made a job: a schedule slot, or a person, an application or an inbound hook."""

    AUTOMATIC = "AUTOMATIC"
    MANUAL = "MANUAL"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELED})

REASONS: dict[Status, frozenset[Reason]] = {
    Status.PENDING: frozenset(
        {Reason.SCHEDULED, Reason.READY, Reason.RETRYING, Reason.REQUEUED, Reason.BLOCKED, Reason.PAUSED}
    ),
    Status.QUEUED: frozenset({Reason.DISPATCHED}),
    Status.RUNNING: frozenset(
        {
            Reason.PREPARING,
            Reason.EXECUTING,
            Reason.FANNED_OUT,
            Reason.PAUSING,
            Reason.PAUSED,
            Reason.DEQUEUING,
        }
    ),
    Status.COMPLETED: frozenset({Reason.SUCCEEDED, Reason.SKIPPED}),
    Status.FAILED: frozenset(
        {
            Reason.NONZERO_EXIT,
            Reason.UNEXPECTED_STATUS,
            Reason.TIMED_OUT,
            Reason.OUT_OF_MEMORY,
            Reason.INVALID,
            Reason.ERROR,
            Reason.PARTIAL,
            Reason.UNRESOLVED,
        }
    ),
    Status.CANCELED: frozenset(
        {
            Reason.BY_USER,
            Reason.WORKFLOW_TERMINATED,
            Reason.PARENT_CANCELED,
            Reason.UPSTREAM_FAILED,
            Reason.DUPLICATE,
            Reason.OVERLAP,
        }
    ),
}

EDGES: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.QUEUED, Status.COMPLETED, Status.FAILED, Status.CANCELED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.PENDING, Status.FAILED, Status.CANCELED}),
    Status.RUNNING: frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELED, Status.PENDING}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
}

WAKING = frozenset({Reason.SCHEDULED, Reason.RETRYING, Reason.REQUEUED})
"""The PENDING reasons that end by themselves, when the job's ``due_at`` has come."""


@dataclass(frozen=True, slots=True)
class Transition:
    """Where a job goes next. ``due_in`` (PENDING only): how long it waits before it is ready again."""

    status: Status
    reason: Reason
    due_in: timedelta | None = None
    charged: bool = False
    """True if this attempt counts against ``max_attempts``."""

    def __post_init__(self) -> None:
        if self.reason not in REASONS[self.status]:
            raise ValueError(f"{self.reason} is no reason of {self.status}")

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL


def may_go(before: Status, after: Status) -> bool:
    """True if an edge leads from ``before`` to ``after``."""
    return after in EDGES[before]


def arrival(*, due_in: timedelta | None, blocked: bool = False) -> Transition:
    """The first state of an accepted job: blocked by an earlier job, scheduled for later, or ready."""
    if blocked:
        return Transition(Status.PENDING, Reason.BLOCKED)
    if due_in is not None and due_in > timedelta(0):
        return Transition(Status.PENDING, Reason.SCHEDULED, due_in=due_in)
    return Transition(Status.PENDING, Reason.READY)


def canceled(reason: Reason = Reason.BY_USER) -> Transition:
    """The end on request."""
    return Transition(Status.CANCELED, reason)


def retry_or_fail(
    *,
    failure: Reason,
    retryable: bool,
    failures: int,
    max_attempts: int,
    desired: Desired,
    backoff: timedelta,
    why: Reason = Reason.BY_USER,
) -> Transition:
    """What a charged failure leads to: ``failures`` counts the charged ones before this.

    A failure is tried again only while somebody still wants the job to run: a request to cancel that came in the
    meantime wins over a retry (``why`` is its reason), and a request to pause holds the retry back (PENDING·paused
    by the caller).
    """
    if retryable and failures + 1 < max_attempts:
        if desired is Desired.CANCEL:
            return Transition(Status.CANCELED, why, charged=True)
        return Transition(Status.PENDING, Reason.RETRYING, due_in=backoff, charged=True)
    return Transition(Status.FAILED, failure, charged=True)


def give_back(*, desired: Desired, due_in: timedelta | None = None, why: Reason = Reason.BY_USER) -> Transition:
    """RUNNING→PENDING without a charge: a target that is not ready, or a worker that drains."""
    if desired is Desired.CANCEL:
        return Transition(Status.CANCELED, why)
    if due_in is None or due_in <= timedelta(0):
        return Transition(Status.PENDING, Reason.READY)
    return Transition(Status.PENDING, Reason.REQUEUED, due_in=due_in)


def follow(*, desired: Desired, carried: bool | None, why: Reason = Reason.BY_USER) -> Transition:
    """RUNNING→PENDING, uncharged, of a child that met a content which the targets before its own had not got yet.

    ``carried``: live jobs bring it to them, so this one is blocked behind those; False: they have it by now; None: they
    lack it and nobody brings it, so that this one's turn never comes.
    """
    if desired is Desired.CANCEL:
        return Transition(Status.CANCELED, why)
    if carried is None:
        return Transition(Status.CANCELED, Reason.UPSTREAM_FAILED)
    return Transition(Status.PENDING, Reason.BLOCKED if carried else Reason.READY)


def stale() -> Transition:
    """The end of a job that nobody started in time. No attempt was made: nothing is charged."""
    return Transition(Status.FAILED, Reason.UNRESOLVED)


# --- a SYNC beside its children ----------------------------------------------------------------------------------


class Settling(StrEnum):
    """What a scheduler does about a fan-out that no worker reads for."""

    WAIT = "wait"
    """Children are under way."""
    READ_ON = "read on"
    """RUNNING→PENDING·ready, uncharged: it stopped in the middle of its source, and somebody wants it to run."""
    PAUSED = "paused"
    """RUNNING·pausing→RUNNING·paused: no child is running any more."""
    DEQUEUE = "dequeue"
    """Cancel the children that nobody executes yet; repeated until none is left."""
    END = "end"
    """Its last child has ended."""
    OVER = "over"
    """It had ended before its children: now they have, too."""


def settling(
    status: Status,
    reason: Reason,
    desired: Desired,
    *,
    reading: bool,
    live: int,
    running: int,
    gave_up: bool = False,
    awaits: bool = False,
) -> Settling:
    """What is next for a SYNC without a worker. ``live``: children that have not ended; ``running``: executed now.

    ``gave_up``: it came to an end by which no more of its children are to start. ``awaits``: other SYNCs' children
    that stand in for its own have not ended.

    Of several schedulers, and of a person who pauses meanwhile, whoever has the SYNC's row locked decides.
    """
    if status is not Status.RUNNING:
        if status not in TERMINAL or (live and status is not Status.CANCELED):
            return Settling.WAIT
        return Settling.DEQUEUE if live else Settling.OVER
    if desired is Desired.CANCEL:
        return Settling.DEQUEUE if live else Settling.END
    if desired is Desired.PAUSE:
        return Settling.PAUSED if reason is not Reason.PAUSED and not running else Settling.WAIT
    if reading:
        return Settling.READ_ON
    if live:
        return Settling.DEQUEUE if gave_up else Settling.WAIT
    return Settling.WAIT if awaits and not gave_up else Settling.END


def parked(desired: Desired) -> Reason:
    """RUNNING of a SYNC that holds no worker slot any more."""
    return {Desired.RUN: Reason.FANNED_OUT, Desired.PAUSE: Reason.PAUSING, Desired.CANCEL: Reason.DEQUEUING}[desired]


def fanned_in(*, failed: int, canceled: int, invalid: int) -> Transition:
    """The end of a fan-out of which nobody asked anything: FAILED·partial if any of its entities did not arrive."""
    if failed or canceled or invalid:
        return Transition(Status.FAILED, Reason.PARTIAL, charged=True)
    return Transition(Status.COMPLETED, Reason.SUCCEEDED)
