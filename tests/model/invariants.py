"""What has to hold in every state and at every step. Each function yields a sentence for what does not."""

from __future__ import annotations

from collections.abc import Iterator

from jobq.states import REASONS, TERMINAL, Desired, Reason, Status, may_go
from tests.model.step import Cause, Step
from tests.model.world import NOBODY, WORKING, Life, Near, Row, Scenario, Work, Worker, World, row_of


def broken_state(world: World, scenario: Scenario) -> Iterator[str]:
    """What does not hold in this state."""
    yield from _row(world)
    yield from _ledger(world, scenario)
    yield from _owners(world, scenario)
    if world.faults == scenario.faults:
        yield from _without_faults(world, scenario)


def _row(world: World) -> Iterator[str]:
    job = world.job
    if job.reason not in REASONS[job.status]:
        yield f"{job.reason} is no reason of {job.status}"
    if (job.owner != NOBODY) != (job.status is Status.RUNNING):
        yield "a job has a worker if, and only if, it is RUNNING"
    if job.desired is Desired.PAUSE and job.reason is not Reason.PAUSED:
        yield "somebody paused the job, and it does not wait"


def _ledger(world: World, scenario: Scenario) -> Iterator[str]:
    """Each attempt that ended is on record, once; charged ones are the failures, and never more than allowed."""
    job = world.job
    ended = job.attempt - (job.status is Status.RUNNING)
    if [number for number, *_ in job.ledger] != list(range(1, ended + 1)):
        yield f"{ended} attempts have ended, on record are {[number for number, *_ in job.ledger]}"
    charged = sum(one for *_, one in job.ledger)
    if charged != job.failures or charged > scenario.max_attempts:
        yield f"{charged} attempts were charged, {job.failures} are counted, {scenario.max_attempts} allowed"


def _owners(world: World, scenario: Scenario) -> Iterator[str]:
    """At most one worker works for the job: its owner; others only while they cannot know better."""
    for worker in world.workers:
        keys = [work.key for work in worker.works]
        if len(keys) != len(set(keys)):
            yield "a worker executes one attempt twice"
        for work in worker.works:
            goes_on = work.phase in WORKING and work.stop is None and not work.unseen
            if goes_on and not _is_current(world, work) and not _cannot_know(worker, scenario):
                yield f"attempt {work.attempt} goes on in a worker that is not its owner, and is not told to stop"


def _is_current(world: World, work: Work) -> bool:
    job = world.job
    return job.status is Status.RUNNING and (job.attempt, job.owner) == work.key


def _cannot_know(worker: Worker, scenario: Scenario) -> bool:
    """The documented overlap: a frozen worker, until its first look at a clock; a worker that is cut off.

    Who is cut off stops by itself what is tried again elsewhere. Other work goes on until it is reached again. A container
    has 5 minutes more; meanwhile a neighbour takes it over, by a new name, or sweeps it.
    """
    if worker.life is Life.FROZEN or worker.near in (Near.LEASE_ENDS, Near.GRACE_ENDS):
        return True
    with_neighbour = scenario.hosted and scenario.hosts[0] == scenario.hosts[1]
    return bool(worker.near) and (not scenario.retry_lost or (with_neighbour and worker.near is Near.LEASE_SEEN))


def _without_faults(world: World, scenario: Scenario) -> Iterator[str]:
    """While nothing has failed, nothing is lost and nothing runs twice: whatever happens to hints.

    But a container that a drained worker left is lost where nobody takes it over in time.
    """
    drained = scenario.hosted and world.people < scenario.people
    if not drained and any(kind == "LOST" for _, kind, _ in world.job.ledger):
        yield "an attempt was lost without any fault"
    if sum(work.phase in WORKING for worker in world.workers for work in worker.works) > 1:
        yield "two executions at once without any fault"


# --- steps -----------------------------------------------------------------------------------------------------------


def broken_step(before: World, step: Step, scenario: Scenario) -> Iterator[str]:
    """What this step does that it may not do."""
    if before.job != step.after.job:
        yield from _job_changes(before, step)
        if step.via == "renew" and before.faults == scenario.faults:
            yield "a job is given back as if its claim had never been heard of, and no reply was lost"
    if before.containers != step.after.containers:
        yield from _containers_change(before, step, scenario)
    if step.via == "declare":
        yield from _death_is_deserved(before, step)


def _job_changes(before: World, step: Step) -> Iterator[str]:
    was, now = before.job, step.after.job
    forgotten = step.cause is Cause.FAULT and step.who == "database"
    if was.status in TERMINAL:
        yield f"the job had ended as {was.status}"
    if was.status is not now.status and not may_go(was.status, now.status):
        yield f"there is no edge from {was.status} to {now.status}"
    if step.via == "record" and (
        was.status is not Status.RUNNING or (was.attempt, was.owner) != (step.attempt, step.owner)
    ):
        yield f"attempt {step.attempt} of #{step.owner} is recorded, while attempt {was.attempt} of #{was.owner} is current"
    if step.via == "claim" and was.desired is not Desired.RUN:
        yield f"a job is claimed of which somebody wanted {was.desired}"
    if was.desired is Desired.CANCEL and now.status in (Status.PENDING, Status.QUEUED):
        yield "the job goes on, although it was canceled"
    if now.attempt < was.attempt or (now.attempt != was.attempt and step.via != "claim" and not forgotten):
        yield "an attempt's number was changed by something else than a claim"


def _containers_change(before: World, step: Step, scenario: Scenario) -> Iterator[str]:
    job = before.job
    for gone in set(before.containers) - {one._replace(end=None) for one in step.after.containers}:
        current = job.status is Status.RUNNING and (job.attempt, job.owner) == (gone.attempt, gone.holder)
        still = any((one.host, one.attempt) == (gone.host, gone.attempt) for one in step.after.containers)
        if current and not still and step.owner != job.owner:
            yield f"the container of attempt {gone.attempt} is taken from the worker that holds it"
    if step.via == "create" and (job.attempt, job.owner) == (step.attempt, step.owner):
        here = [one for one in step.after.containers if one.host == job.host and one.end is None]
        if len(here) > 1:
            yield "two containers of one job run on one host"


def _death_is_deserved(before: World, step: Step) -> Iterator[str]:
    for row in before.rows:
        if row.state is Row.OVER and row.innocent and row_of(step.after, row.id) >= Row.DEAD:
            for worker in before.workers:
                if worker.me == row.id and worker.life is Life.UP and not worker.cut:
                    yield f"#{row.id} is declared dead, only because the database was away"


def is_clean(world: World) -> bool:
    """The job has ended, nothing works for it any more, and no container is left."""
    idle = all(not worker.works and worker.asked is None for worker in world.workers)
    return world.job.status in TERMINAL and idle and not world.containers
