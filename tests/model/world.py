"""The state of the model: one job, the database, the broker, a scheduler, two workers and their containers.

Everything is an immutable tuple, so that a state can be hashed, compared and printed.

Where the real thing uses unbounded names, the model uses the smallest free number. A worker's identity (a UUID at each
registration) is only ever compared for equality, so an id that nobody refers to any more may be given out again
without joining two states that behave differently.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

from jobq.plugins import Stop
from jobq.states import Desired, Reason, Status

NOBODY = 0
NOWHERE = -1


class Life(StrEnum):
    """Of a process. FROZEN is SIGSTOP: it does nothing, what it sent arrives, and its containers go on."""

    UP = "up"
    FROZEN = "frozen"
    DOWN = "down"


class Row(IntEnum):
    """Of a worker in the database (``jobq_workers``): what its lease says."""

    VALID = 0
    OVER = 1
    """``lease_until`` has passed, and nobody has drawn a conclusion."""
    DEAD = 2
    """``dead_at`` is set."""
    LATE = 3
    """``dead_at`` was set more than ``reattach_grace`` ago."""


class Near(IntEnum):
    """The worker's own clock since its last renewal, as ``Lease.fence`` reads it."""

    FRESH = 0
    LEASE_ENDS = 1
    """5 s before the lease ends, and ``fence`` has not looked yet: it does so each second."""
    LEASE_SEEN = 2
    GRACE_ENDS = 3
    """The same for work that outlives its worker: 5 s before ``lease + reattach_grace``."""
    GRACE_SEEN = 4


class Phase(StrEnum):
    """How far an attempt has come in its worker."""

    CLAIMED = "claimed"
    """CONTAINER: the container has not been created."""
    RECOVERING = "recovering"
    """CONTAINER: adopted; the container has not been taken over."""
    RUNS = "runs"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    REQUEUED = "requeued"
    LOST = "lost"
    """The five outcomes that wait in the recorder."""
    SETTLED = "settled"
    """Recorded or refused; the runner has not forgotten it yet."""


WORKING = frozenset({Phase.CLAIMED, Phase.RECOVERING, Phase.RUNS})
REPORTED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED, Phase.REQUEUED, Phase.LOST})


class Job(NamedTuple):
    """The row of the job, and ``jobq_attempts`` as (attempt, kind of end, charged)."""

    status: Status = Status.PENDING
    reason: Reason = Reason.READY
    desired: Desired = Desired.RUN
    attempt: int = 0
    failures: int = 0
    requeues: int = 0
    owner: int = NOBODY
    host: int = NOWHERE
    ledger: tuple[tuple[int, str, bool], ...] = ()


class WorkerRow(NamedTuple):
    """A row of ``jobq_workers``. ``innocent``: it is over only because the database was away."""

    id: int
    state: Row = Row.VALID
    innocent: bool = False


class Work(NamedTuple):
    """An attempt as a worker executes it (``workers.runner.Running``)."""

    attempt: int
    owner: int
    phase: Phase
    stop: Stop | None = None
    unseen: bool = False
    """Begun under an identity that had ended meanwhile, and no renewal has looked at it yet."""

    @property
    def key(self) -> tuple[int, int]:
        """What tells two attempts apart."""
        return self.attempt, self.owner


class Asked(NamedTuple):
    """A claim under way: ``attempt`` 0 while the database has not executed it, then what it gave."""

    owner: int
    attempt: int = 0


class Worker(NamedTuple):
    """A worker process. ``tracked`` are the keys of ``Runner.running``; ``unheld`` is ``Lease._unheld``."""

    life: Life = Life.DOWN
    cut: bool = False
    """Cut off from the database."""
    me: int = NOBODY
    near: Near = Near.FRESH
    draining: bool = False
    asked: Asked | None = None
    works: tuple[Work, ...] = ()
    tracked: tuple[tuple[int, int], ...] = ()
    unheld: int = 0
    owned: tuple[int, ...] | None = None
    """Only with a sweep that asks the database first: the attempts that it called running."""


class Container(NamedTuple):
    """A container of the job. ``holder``: under whose name it is on the engine. ``end``: None while it runs."""

    host: int
    attempt: int
    holder: int
    end: Phase | None = None


class Scheduler(NamedTuple):
    """Any number of schedulers keep nothing between their transactions but this: what one loses, all may lose."""

    life: Life = Life.UP
    outbox: bool = False
    """A hint that waits for its publication."""
    patient: bool = False
    """The reaper waits a whole lease before it declares anybody dead."""
    promoting: bool = False
    """Only with publication before the commit: the commit is still to come."""


class World(NamedTuple):
    """A state of the model."""

    job: Job
    rows: tuple[WorkerRow, ...]
    workers: tuple[Worker, Worker]
    containers: tuple[Container, ...]
    hints: int
    scheduler: Scheduler
    away: bool
    """The database cannot be reached by anybody."""
    faults: int
    """How many more may happen."""
    people: int
    """How many more times a person may cancel or pause the job, or drain a worker."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the protocol does right. Each seeded bug sets one of them to False."""

    record_checks_attempt: bool = True
    record_checks_worker: bool = True
    claim_wants_queued: bool = True
    claim_wants_run: bool = True
    dead_cannot_claim: bool = True
    dead_cannot_renew: bool = True
    resend: bool = True
    look: bool = True
    publish_after_commit: bool = True
    host_reaper: bool = True
    reaper_patience: bool = True
    reaper_waits_for_host: bool = True
    retry_asks_desired: bool = True
    cancel_asks_owner: bool = True
    pause_takes_back: bool = True
    self_fence: bool = True
    tracks_attempts: bool = True
    lets_former_work_go: bool = True
    drain_keeps_unheld: bool = True
    unheld_twice: bool = True
    takeover_renames: bool = True
    list_before_database: bool = True


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is explored: a kind of job, where the workers are, and how much may go wrong."""

    name: str
    hosted: bool = False
    """A CONTAINER: its work lives on a host and can be recovered there."""
    retry_lost: bool = True
    max_attempts: int = 2
    hosts: tuple[int, int] = (0, 0)
    faults: int = 2
    people: int = 1
    requeues: bool = False
    """The other side may say "not now" to the first attempt."""
    messages: bool = False
    """True: the broker holds hints, and they are published, lost, doubled, sent again. False: any worker may look at the
    job at any time, which is all that a hint can bring about; so none of them is kept."""
    tamper: bool = True
    """Hints are lost, doubled and forged, as often as it pleases: that is no fault."""
    rules: Rules = field(default_factory=Rules)

    def start(self) -> World:
        """The job has just been accepted; two workers wait for it."""
        workers = Worker(life=Life.UP, me=1), Worker(life=Life.UP, me=2)
        rows = WorkerRow(1), WorkerRow(2)
        return World(Job(), rows, workers, (), 0, Scheduler(), away=False, faults=self.faults, people=self.people)


def row_of(world: World, identity: int) -> Row:
    """What the database knows of an identity; rows of the dead that nobody refers to are not kept."""
    for row in world.rows:
        if row.id == identity:
            return row.state
    return Row.DEAD


def with_row(world: World, row: WorkerRow) -> World:
    """The world with this row, new or changed."""
    others = tuple(other for other in world.rows if other.id != row.id)
    return world._replace(rows=tuple(sorted((*others, row))))


def with_worker(world: World, number: int, **changes: object) -> World:
    """The world with a changed worker."""
    changed = world.workers[number]._replace(**changes)  # type: ignore[arg-type]
    return world._replace(workers=(changed, world.workers[1]) if number == 0 else (world.workers[0], changed))


def healthy(world: World, number: int) -> bool:
    """Awake, and the database answers it: such a worker renews its lease in time."""
    worker = world.workers[number]
    return worker.life is Life.UP and not worker.cut and not world.away


def referred_to(world: World) -> set[int]:
    """Every identity that something still speaks of."""
    known = {world.job.owner, *(container.holder for container in world.containers)}
    for worker in world.workers:
        known.add(worker.me)
        known.update(work.owner for work in worker.works)
        if worker.asked is not None:
            known.add(worker.asked.owner)
    return known


def tidy(world: World) -> World:
    """Forget the rows of the dead that nothing speaks of: they change nothing any more."""
    if all(row.state < Row.DEAD for row in world.rows):
        return world
    known = referred_to(world)
    kept = tuple(row for row in world.rows if row.state < Row.DEAD or row.id in known)
    return world if len(kept) == len(world.rows) else world._replace(rows=kept)
