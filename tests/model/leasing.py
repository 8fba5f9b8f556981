"""The actions around the lease: register, renew, fence, adopt, drain; and time, which runs out.

Time is no number here. What the product makes sure of by clocks is an order of steps, and stands in the guards:

- a healthy worker (awake, and the database answers it) renews before its lease ends;
- an awake worker that cannot renew looks at its own clock before the database's lease runs out (5 s), and what it
  told to stop has ended by then;
- one lease of patience is enough for each healthy worker to renew;
- a worker that can adopt a job does so before ``reattach_grace`` ends;
- a claim's reply comes, or its connection breaks, before the second renewal after it;
- the database has done or dropped a dead process's statement before that process is started again.
"""

from __future__ import annotations

from collections.abc import Iterator

from jobq.plugins import Stop
from jobq.states import Desired, Status
from tests.model import database
from tests.model.step import WORKERS, Cause, Step
from tests.model.working import begin
from tests.model.world import (
    NOBODY,
    WORKING,
    Life,
    Near,
    Phase,
    Row,
    Scenario,
    Work,
    Worker,
    WorkerRow,
    World,
    healthy,
    referred_to,
    row_of,
    with_row,
    with_worker,
)

_STOPS = {Desired.CANCEL: Stop.CANCEL, Desired.PAUSE: Stop.PAUSE}


def registers(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Lease._register``: a new identity at each start, and after each death."""
    if world.workers[number].me or not healthy(world, number):
        return
    known = referred_to(world) | {row.id for row in world.rows}
    identity = next(new for new in range(1, 99) if new not in known)
    registered = with_worker(world, number, me=identity, near=Near.FRESH, unheld=0)
    yield Step(Cause.SYSTEM, WORKERS[number], f"registers as #{identity}", with_row(registered, WorkerRow(identity)))


def renews(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Lease.tick``: ``jobq.store.workers.renew``, then ``_obey`` or ``_fence_all``."""
    worker = world.workers[number]
    if not worker.me or not healthy(world, number):
        return
    state = row_of(world, worker.me)
    if state >= Row.DEAD and scenario.rules.dead_cannot_renew:
        after = with_worker(world, number, me=NOBODY, near=Near.FRESH, unheld=0)
        for key in worker.tracked:
            after = _let_go(after, number, key, scenario)
        yield Step(Cause.SYSTEM, WORKERS[number], "learns that it was declared dead", after)
        return
    renewed = with_worker(world, number, near=Near.FRESH)
    if state < Row.DEAD:
        renewed = with_row(renewed, WorkerRow(worker.me))
    after = _obeys(renewed, number, scenario)
    yield Step(Cause.SYSTEM, WORKERS[number], "renews its lease, and does as it is told", after, via="renew")


def _obeys(world: World, number: int, scenario: Scenario) -> World:
    worker, job, rules = world.workers[number], world.job, scenario.rules
    listed = job.status is Status.RUNNING and job.owner == worker.me
    for attempt, owner in worker.tracked:
        if owner != worker.me and not rules.lets_former_work_go:
            continue
        if not listed or (attempt, owner) != (job.attempt, worker.me):
            world = _let_go(world, number, (attempt, owner), scenario)
        elif stop := _STOPS.get(job.desired):
            world = _tell(world, number, (attempt, owner), stop)
    held = (job.attempt, worker.me) in worker.tracked if rules.tracks_attempts else bool(worker.tracked)
    unheld = job.attempt if listed and not held else 0
    on_its_way = worker.asked is not None and worker.asked.attempt == unheld
    twice = worker.unheld == unheld and not on_its_way
    left = worker.draining and rules.drain_keeps_unheld
    if unheld and not left and (twice or not rules.unheld_twice):
        world = world._replace(job=database.lose(job, scenario))  # release_unheld
    works = tuple(work._replace(unseen=False) for work in world.workers[number].works)
    return with_worker(world, number, unheld=unheld, works=works)


def _tell(world: World, number: int, key: tuple[int, int], stop: Stop) -> World:
    """``Runner.stop``. An outcome that is there already is not undone."""
    works = tuple(
        work._replace(stop=stop) if work.key == key and work.phase in WORKING else work
        for work in world.workers[number].works
    )
    return with_worker(world, number, works=works)


def _let_go(world: World, number: int, key: tuple[int, int], scenario: Scenario) -> World:
    """``Lease._let_go``: what outlives its worker is left where it is."""
    return _tell(world, number, key, Stop.DRAIN if scenario.hosted else Stop.FENCED)


def fences(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Lease.fence``: work that is tried again elsewhere is stopped before that can happen."""
    worker = world.workers[number]
    due = Near.GRACE_ENDS if scenario.hosted else Near.LEASE_ENDS
    if worker.life is not Life.UP or worker.near not in (Near.LEASE_ENDS, Near.GRACE_ENDS):
        return
    after = with_worker(world, number, near=Near(worker.near + 1))
    if worker.near >= due and scenario.retry_lost and scenario.rules.self_fence:
        for work in _unstopped(worker):
            after = _tell(after, number, work.key, Stop.FENCED)
    yield Step(Cause.SYSTEM, WORKERS[number], "looks at its clock, and fences itself", after)


def adopts(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``jobq.store.workers.adopt``: the work of the dead on this host, at the same attempt."""
    worker, job = world.workers[number], world.job
    if not (scenario.hosted and worker.me and healthy(world, number) and not worker.draining):
        return
    left = job.status is Status.RUNNING and row_of(world, job.owner) >= Row.DEAD
    if not left or job.host != scenario.hosts[number] or row_of(world, worker.me) >= Row.DEAD:
        return
    adopted = world._replace(job=job._replace(owner=worker.me))
    begun = begin(adopted, number, Work(job.attempt, worker.me, Phase.RECOVERING), scenario)
    yield Step(Cause.SYSTEM, WORKERS[number], "adopts the job", begun, job.attempt, worker.me)
    if world.faults:
        unheard = adopted._replace(faults=world.faults - 1)
        yield Step(
            Cause.FAULT, WORKERS[number], "adopts the job and never hears of it", unheard, job.attempt, worker.me
        )


def sees_neighbours_gone(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Lease._look_around``: a worker of this machine whose process is gone is declared dead at once."""
    worker = world.workers[number]
    if not (worker.me and healthy(world, number) and scenario.hosts[0] == scenario.hosts[1]):
        return
    alive = {other.me for other in world.workers if other.life is not Life.DOWN}
    for row in world.rows:
        if row.id not in alive and row.state < Row.DEAD:
            dead = with_row(world, WorkerRow(row.id, Row.DEAD))
            yield Step(Cause.SYSTEM, WORKERS[number], f"sees that the process of #{row.id} is gone", dead)


def _unstopped(worker: Worker) -> list[Work]:
    """What runs, is tracked, and was not told to stop."""
    running = (work for work in worker.works if work.phase in WORKING and work.stop is None)
    return [work for work in running if work.key in worker.tracked]


def drains(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Worker.stop``: it waits for its work, then stops or leaves it, then signs off."""
    worker = world.workers[number]
    if not worker.draining or worker.life is not Life.UP:
        return
    for work in _unstopped(worker):
        stopped = _tell(world, number, work.key, Stop.DRAIN)
        yield Step(Cause.SYSTEM, WORKERS[number], "stops its work to drain", stopped)
    if not worker.works and worker.asked is None and healthy(world, number):
        gone = with_worker(world, number, **Worker()._asdict())
        if worker.me:
            gone = with_row(gone, WorkerRow(worker.me, Row.DEAD))
        yield Step(Cause.SYSTEM, WORKERS[number], "signs off and ends", gone)


# --- time ------------------------------------------------------------------------------------------------------------


def clocks_run(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """A worker that cannot renew sees, by its own clock, that its lease (or the grace after it) is about to end."""
    worker = world.workers[number]
    last = Near.GRACE_ENDS if scenario.hosted else Near.LEASE_ENDS
    cannot = worker.life is Life.UP and worker.me and not healthy(world, number)
    if cannot and worker.near in (Near.FRESH, Near.LEASE_SEEN) and worker.near < last:
        yield Step(
            Cause.SYSTEM, WORKERS[number], "could not renew for long", with_worker(world, number, near=worker.near + 1)
        )


def leases_end(world: World, scenario: Scenario) -> Iterator[Step]:
    """By the database's clock a lease ends, or the grace that hosted work has after its owner's death."""
    for row in world.rows:
        if row.state is Row.VALID:
            yield from _runs_out(world, row, Row.OVER, Near.LEASE_ENDS)
        elif row.state is Row.DEAD and scenario.hosted and world.job.owner == row.id and not _has_heir(world, scenario):
            yield from _runs_out(world, row, Row.LATE, Near.GRACE_ENDS)


def _has_heir(world: World, scenario: Scenario) -> bool:
    """A worker that adopts the job at its next renewal, long before the grace ends."""
    return any(
        worker.me and not worker.draining and healthy(world, number) and scenario.hosts[number] == world.job.host
        for number, worker in enumerate(world.workers)
    )


def _runs_out(world: World, row: WorkerRow, to: Row, near: Near) -> Iterator[Step]:
    what = f"sees the {'lease' if to is Row.OVER else 'grace'} of #{row.id} end"
    number = next((n for n, one in enumerate(world.workers) if one.me == row.id and one.life is not Life.DOWN), None)
    if number is None:
        yield Step(Cause.SYSTEM, "database", what, with_row(world, WorkerRow(row.id, to)))
        return
    worker = world.workers[number]
    if worker.life is Life.FROZEN:
        aged = with_worker(world, number, near=max(worker.near, near))
        yield Step(Cause.SYSTEM, "database", what, with_row(aged, WorkerRow(row.id, to)))
    elif not healthy(world, number) and worker.near > near and not _is_stopping(worker):
        over = WorkerRow(row.id, to, innocent=to is Row.OVER and not worker.cut)
        yield Step(Cause.SYSTEM, "database", what, with_row(world, over))


def _is_stopping(worker: Worker) -> bool:
    return any(work.stop is Stop.FENCED and work.phase in WORKING for work in worker.works)
