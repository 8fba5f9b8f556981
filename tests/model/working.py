"""The actions of a worker: claim, execute, record, and the containers of its host.

Each function yields the steps that are possible in a state; what it stands for is in its first line.
"""

from __future__ import annotations

from collections.abc import Iterator

from jobq.plugins import Stop
from jobq.states import Status
from tests.model import database
from tests.model.step import WORKERS, Cause, Step
from tests.model.world import (
    NOWHERE,
    REPORTED,
    Asked,
    Container,
    Life,
    Near,
    Phase,
    Row,
    Scenario,
    Work,
    WorkerRow,
    World,
    healthy,
    row_of,
    with_row,
    with_worker,
)

_SLOTS = 2
_AGAIN = {Near.LEASE_SEEN: Near.LEASE_ENDS, Near.GRACE_SEEN: Near.GRACE_ENDS}


def order(work: Work) -> tuple[int, int]:
    """Works are kept in the order of their keys, so that equal states are equal tuples."""
    return work.key


def begin(world: World, number: int, work: Work, scenario: Scenario) -> World:
    """``Runner.begin``: each attempt is tracked by itself. ``fence`` looks again within a second."""
    worker = world.workers[number]
    tracked = tuple(sorted((*worker.tracked, work.key))) if scenario.rules.tracks_attempts else (work.key,)
    near = _AGAIN.get(worker.near, worker.near)
    work = work._replace(unseen=work.owner != worker.me)
    works = tuple(sorted((*worker.works, work), key=order))
    return with_worker(world, number, works=works, tracked=tracked, near=near)


def change(world: World, number: int, work: Work, **changes: object) -> World:
    """The world in which this work of the worker changed."""
    others = [other for other in world.workers[number].works if other is not work]
    return with_worker(world, number, works=tuple(sorted((*others, work._replace(**changes)), key=order)))  # type: ignore[arg-type]


def forget(world: World, number: int, work: Work, scenario: Scenario) -> World:
    """``Runner.forget``: the work is over, and no longer tracked."""
    worker = world.workers[number]
    tracked = tuple(key for key in worker.tracked if key != work.key) if scenario.rules.tracks_attempts else ()
    works = tuple(other for other in worker.works if other is not work)
    return with_worker(world, number, works=works, tracked=tracked)


# --- claim -----------------------------------------------------------------------------------------------------------


def asks(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Runner.hint`` and ``Worker._look``: a claim is sent. The snapshot of the statement sees now who is dead.

    A hint is used up in any case; of a job that is not QUEUED it finds nothing.
    """
    worker = world.workers[number]
    free = worker.asked is None and len(worker.works) < _SLOTS
    if not (worker.me and free and not worker.draining and healthy(world, number)):
        return
    refused = scenario.rules.dead_cannot_claim and row_of(world, worker.me) >= Row.DEAD
    host = scenario.hosts[number] if scenario.hosted else NOWHERE
    found = not refused and database.claim(world.job, worker.me, host, scenario.rules) is not None
    asked = with_worker(world, number, asked=Asked(worker.me)) if found else world
    if world.hints:
        yield Step(Cause.SYSTEM, WORKERS[number], "gets a hint", asked._replace(hints=world.hints - 1))
    if found and (scenario.rules.look or not scenario.messages):
        yield Step(Cause.SYSTEM, WORKERS[number], "looks for jobs without a hint", asked)


def claims(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``jobq.store.claim``: the database executes the claim, whatever has become of the worker since it was sent."""
    worker = world.workers[number]
    if worker.asked is None or worker.asked.attempt:
        return
    nothing = with_worker(world, number, asked=None)
    if world.away or worker.life is Life.DOWN:
        yield Step(Cause.SYSTEM, "database", "rolls the claim back", nothing)
    if world.away:
        return
    owner = worker.asked.owner
    host = scenario.hosts[number] if scenario.hosted else NOWHERE
    job = database.claim(world.job, owner, host, scenario.rules)
    if job is None:
        yield Step(Cause.SYSTEM, WORKERS[number], "finds nothing to claim", nothing)
        return
    reply = None if worker.life is Life.DOWN else Asked(owner, job.attempt)
    done = with_worker(world, number, asked=reply)._replace(job=job)
    if all(row.id != owner for row in done.rows):
        done = with_row(done, WorkerRow(owner, Row.DEAD))
    yield Step(Cause.SYSTEM, WORKERS[number], "claims the job", done, job.attempt, owner, "claim")


def hears(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Runner._claim``: the reply to a claim arrives, or is lost with its connection."""
    worker = world.workers[number]
    if worker.asked is None or not worker.asked.attempt or worker.life is not Life.UP:
        return
    owner, attempt = worker.asked
    without = with_worker(world, number, asked=None)
    if healthy(world, number):
        phase = Phase.CLAIMED if scenario.hosted else Phase.RUNS
        begun = begin(without, number, Work(attempt, owner, phase), scenario)
        yield Step(Cause.SYSTEM, WORKERS[number], "begins", begun, attempt, owner)
        if not world.faults:
            return
        without = without._replace(faults=world.faults - 1)
    cause = Cause.FAULT if healthy(world, number) else Cause.SYSTEM
    yield Step(cause, WORKERS[number], "never hears that it claimed", without, attempt, owner)


# --- execute ---------------------------------------------------------------------------------------------------------


def executes(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Runner._run``: the work ends by itself, or because it was told to stop."""
    if world.workers[number].life is not Life.UP:
        return
    for work in world.workers[number].works:
        if work.phase in REPORTED or work.phase is Phase.SETTLED:
            continue
        if scenario.hosted:
            yield from _executes_container(world, number, work, scenario)
        elif work.stop is Stop.FENCED:
            yield _step(number, "lets the work go", forget(world, number, work, scenario), work)
        else:
            outcomes = [Phase.SUCCEEDED, Phase.FAILED]
            outcomes += (
                [Phase.REQUEUED] if scenario.requeues and work.attempt == 1 else []
            )  # the model's bound, not the product's
            outcomes += [Phase.STOPPED] if work.stop else []
            for outcome in outcomes:
                yield _step(number, f"has an outcome: {outcome}", change(world, number, work, phase=outcome), work)


def _executes_container(world: World, number: int, work: Work, scenario: Scenario) -> Iterator[Step]:
    """``workers.container.run.ContainerRun``."""
    if work.phase is Phase.CLAIMED:
        yield from _before_start(world, number, work, scenario)
    elif work.phase is Phase.RECOVERING:
        yield _takes_over(world, number, work, scenario)
    elif work.stop is Stop.DRAIN:
        yield _step(number, "leaves the container running", forget(world, number, work, scenario), work)
    else:
        yield from _watches(world, number, work, scenario)


def _before_start(world: World, number: int, work: Work, scenario: Scenario) -> Iterator[Step]:
    if work.stop is Stop.FENCED:
        yield _step(number, "does not start the container", forget(world, number, work, scenario), work)
    elif work.stop is not None:
        outcome = Phase.REQUEUED if work.stop is Stop.DRAIN else Phase.STOPPED
        yield _step(number, "does not start the container", change(world, number, work, phase=outcome), work)
    else:
        host = scenario.hosts[number]
        older = [found for found in world.containers if found.host == host and found.attempt < work.attempt]
        kept = [found for found in world.containers if found not in older]
        begun = change(world, number, work, phase=Phase.RUNS)
        made = (*kept, Container(host, work.attempt, work.owner))
        yield _step(
            number, "starts a container", begun._replace(containers=tuple(sorted(made, key=str))), work, "create"
        )


def _takes_over(world: World, number: int, work: Work, scenario: Scenario) -> Step:
    """``Hold.take_over``: found by its labels, and renamed, so that the calls of its former owner meet nothing."""
    host = scenario.hosts[number]
    found = next((one for one in world.containers if (one.host, one.attempt) == (host, work.attempt)), None)
    if found is None:
        return _step(number, "finds no container to take over", change(world, number, work, phase=Phase.LOST), work)
    others = [one for one in world.containers if one is not found]
    held = change(world, number, work, phase=Phase.RUNS)
    taken = tuple(sorted((*others, found._replace(holder=work.owner)), key=str))
    return _step(number, "takes the container over", held._replace(containers=taken), work)


def _watches(world: World, number: int, work: Work, scenario: Scenario) -> Iterator[Step]:
    """``ContainerRun._watch``: the container is removed before its outcome is reported."""
    found = _held(world, number, work, scenario)
    gone = () if found is None else (found,)
    left = world._replace(containers=tuple(one for one in world.containers if one not in gone))
    if work.stop is Stop.FENCED:
        yield _step(number, "stops the container", forget(left, number, work, scenario), work, "remove")
    elif work.stop is Stop.CANCEL:
        yield _step(number, "stops the container", change(left, number, work, phase=Phase.STOPPED), work, "remove")
    if work.stop is not Stop.FENCED and (found is None or found.end is not None):
        outcome = Phase.LOST if found is None or found.end is None else found.end
        what = "misses the container" if found is None else f"removes the container: {outcome}"
        yield _step(number, what, change(left, number, work, phase=outcome), work, "remove")


def _held(world: World, number: int, work: Work, scenario: Scenario) -> Container | None:
    """The container that the worker's calls reach: they go to the name under which it holds it."""
    for found in world.containers:
        if (found.host, found.attempt) == (scenario.hosts[number], work.attempt):
            return found if found.holder == work.owner or not scenario.rules.takeover_renames else None
    return None


def containers_end(world: World) -> Iterator[Step]:
    """A container ends by itself."""
    for found in world.containers:
        if found.end is None:
            for outcome in (Phase.SUCCEEDED, Phase.FAILED):
                ended = [one for one in world.containers if one is not found]
                after = tuple(sorted((*ended, found._replace(end=outcome)), key=str))
                yield Step(
                    Cause.SYSTEM, f"container {found.attempt}", f"ends: {outcome}", world._replace(containers=after)
                )


# --- record ----------------------------------------------------------------------------------------------------------


def records(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``Recorder._write`` until it is written, then ``Runner.recorded``. A lost reply makes it write again."""
    worker = world.workers[number]
    if worker.life is not Life.UP:
        return
    for work in worker.works:
        if work.phase is Phase.SETTLED:
            yield _step(number, "forgets the work", forget(world, number, work, scenario), work)
        elif work.phase in REPORTED and healthy(world, number):
            drained = work.phase is Phase.STOPPED and work.stop is Stop.DRAIN
            job = database.record(world.job, work, drained, scenario)
            written = world._replace(job=job)
            what = "is refused: its outcome comes too late" if job is world.job else f"records: {work.phase}"
            yield _step(number, what, _settled(written, number, work, scenario), work, "record")
            if world.faults and job is not world.job:
                lost = written._replace(faults=world.faults - 1)
                what = f"records {work.phase} and never hears of it"
                yield Step(Cause.FAULT, WORKERS[number], what, lost, work.attempt, work.owner, "record")


def _settled(world: World, number: int, work: Work, scenario: Scenario) -> World:
    """Where attempts are tracked one by one, nobody can tell whether this one has been forgotten yet."""
    if scenario.rules.tracks_attempts:
        return forget(world, number, work, scenario)
    return change(world, number, work, phase=Phase.SETTLED)


# --- the reaper of orphans -------------------------------------------------------------------------------------------


def sweeps(world: World, number: int, scenario: Scenario) -> Iterator[Step]:
    """``OrphanReaper.sweep``: the engine's list first, the database second; nothing while that is away.

    In this order it is one step for each orphan: an attempt that is not RUNNING will never be again, so that it makes no
    difference when, before the database was asked, its container was listed. In the other order, it does.
    """
    worker, rules = world.workers[number], scenario.rules
    if not (scenario.hosted and rules.host_reaper and worker.me and healthy(world, number)):
        return
    owned: tuple[int, ...] = (world.job.attempt,) if world.job.status is Status.RUNNING else ()
    if not rules.list_before_database:
        asked = with_worker(world, number, owned=owned)
        yield Step(Cause.SYSTEM, WORKERS[number], "asks which attempts are running, to sweep", asked)
        if worker.owned is None:
            return
        owned = worker.owned
    for orphan in world.containers:
        if orphan.host == scenario.hosts[number] and orphan.attempt not in owned:
            left = tuple(one for one in world.containers if one is not orphan)
            swept = with_worker(world, number, owned=None)._replace(containers=left)
            yield Step(Cause.SYSTEM, WORKERS[number], f"sweeps the container of attempt {orphan.attempt}", swept)


def _step(number: int, what: str, after: World, work: Work, via: str = "") -> Step:
    return Step(Cause.SYSTEM, WORKERS[number], what, after, work.attempt, work.owner, via)
