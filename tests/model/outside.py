"""The scheduler, people, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator

from jobq.states import TERMINAL, WAKING, Reason, Status
from tests.model import database
from tests.model.step import WORKERS, Cause, Step
from tests.model.world import Life, Row, Scenario, Scheduler, Worker, WorkerRow, World, healthy, with_row, with_worker

_MESSAGES = 2
_WHO = "scheduler"


# --- the scheduler ---------------------------------------------------------------------------------------------------


def promotes(world: World, scenario: Scenario) -> Iterator[Step]:
    """``Promoter.tick``: commit, then hand the hint to the publisher. There has to be a live worker with room."""
    scheduler = world.scheduler
    job = database.promote(world.job)
    room = any(row.state is Row.VALID for row in world.rows)
    if scheduler.promoting:
        committed = world._replace(job=job, scheduler=scheduler._replace(promoting=False))
        yield Step(Cause.SYSTEM, _WHO, "commits the promotion", committed)
    elif job is not world.job and room and scenario.rules.publish_after_commit:
        done = world._replace(job=job, scheduler=scheduler._replace(outbox=scenario.messages))
        yield Step(Cause.SYSTEM, _WHO, "promotes the job", done)
    elif job is not world.job and room:
        hinted = world._replace(scheduler=scheduler._replace(outbox=True, promoting=True))
        yield Step(Cause.SYSTEM, _WHO, "promotes the job, without a commit yet", hinted)


def publishes(world: World, scenario: Scenario) -> Iterator[Step]:
    """``Publisher.tick``; ``Resender.tick`` fills the outbox again for a job that nobody claimed."""
    scheduler = world.scheduler
    if not scenario.messages:
        return
    if scheduler.outbox:
        hints = min(world.hints + 1, _MESSAGES)
        sent = world._replace(hints=hints, scheduler=scheduler._replace(outbox=False))
        yield Step(Cause.SYSTEM, _WHO, "publishes the hint", sent)
    elif scenario.rules.resend and not world.away and world.job.status is Status.QUEUED and world.hints < _MESSAGES:
        again = world._replace(scheduler=scheduler._replace(outbox=True))
        yield Step(Cause.SYSTEM, _WHO, "is about to send the hint again", again)


def wakes(world: World, scenario: Scenario) -> Iterator[Step]:
    """``jobq.store.promote.wake``: a retry's or requeue's time has come."""
    if world.job.reason in WAKING:
        yield Step(Cause.SYSTEM, _WHO, "wakes the job", world._replace(job=world.job._replace(reason=Reason.READY)))


def reaps(world: World, scenario: Scenario) -> Iterator[Step]:
    """``Reaper.tick``: declare dead whose lease ended (with patience), and release what the dead left."""
    scheduler = world.scheduler
    if not scheduler.patient or not scenario.rules.reaper_patience:
        for row in world.rows:
            if row.state is Row.OVER:
                dead = with_row(world, row._replace(state=Row.DEAD))
                yield Step(Cause.SYSTEM, _WHO, f"declares #{row.id} dead", dead, via="declare")
    if database.may_be_released(world, scenario):
        released = world._replace(job=database.lose(world.job, scenario))
        yield Step(Cause.SYSTEM, _WHO, "releases the job of the dead", released)
    if scheduler.patient and not any(_is_about_to_renew(world, number) for number in (0, 1)):
        rows = tuple(row._replace(innocent=False) for row in world.rows)  # who could renew by now has done so
        waited = world._replace(rows=rows, scheduler=scheduler._replace(patient=False))
        yield Step(Cause.SYSTEM, _WHO, "has waited for a whole lease", waited)


def _is_about_to_renew(world: World, number: int) -> bool:
    me = world.workers[number].me
    return healthy(world, number) and any(row.id == me and row.state is Row.OVER for row in world.rows)


SCHEDULING = (promotes, wakes, reaps)


def schedules(world: World, scenario: Scenario) -> Iterator[Step]:
    """All that the scheduler does; of that, only publishing needs no database."""
    if world.scheduler.life is not Life.UP:
        return
    yield from publishes(world, scenario)
    if not world.away:
        for act in SCHEDULING:
            yield from act(world, scenario)


# --- people ----------------------------------------------------------------------------------------------------------


def intervene(world: World, scenario: Scenario) -> Iterator[Step]:
    """``jobq.store.control``, and SIGTERM to a worker. To resume costs nothing: pausing is what is bounded."""
    if world.away:
        return
    resumed = database.resume(world.job)
    if resumed is not world.job:
        yield Step(Cause.REPAIR, "somebody", "resumes the job", world._replace(job=resumed))
    if not world.people:
        return
    once = world._replace(people=world.people - 1)
    if world.job.status not in TERMINAL:
        canceled = database.cancel(world.job, scenario.rules)
        yield Step(Cause.PERSON, "somebody", "cancels the job", once._replace(job=canceled), via="cancel")
    paused = database.pause(world.job, scenario.rules)
    if paused is not world.job:
        yield Step(Cause.PERSON, "somebody", "pauses the job", once._replace(job=paused))
    for number, worker in enumerate(world.workers):
        if worker.life is Life.UP and worker.me and not worker.draining:
            told = with_worker(once, number, draining=True)
            yield Step(Cause.PERSON, "somebody", f"tells {WORKERS[number]} to drain", told)


# --- faults, and their end -------------------------------------------------------------------------------------------


def messages_go_astray(world: World, scenario: Scenario) -> Iterator[Step]:
    """Hints are lost, doubled, forged: at any time, as often as it pleases, for free."""
    if scenario.messages and scenario.tamper:
        if world.hints:
            yield Step(Cause.FAULT, "broker", "loses a hint", world._replace(hints=world.hints - 1))
        if world.hints < _MESSAGES:
            yield Step(Cause.FAULT, "broker", "delivers one more hint", world._replace(hints=world.hints + 1))


def processes_fail(world: World, scenario: Scenario) -> Iterator[Step]:
    """kill -9, SIGSTOP, and the link to the database down: for workers and for the scheduler, at any step."""
    if not world.faults:
        return
    spent = world._replace(faults=world.faults - 1)
    for number, worker in enumerate(world.workers):
        who = WORKERS[number]
        if worker.life is Life.DOWN:
            continue
        on_its_way = worker.asked if worker.asked is not None and not worker.asked.attempt else None
        killed = with_worker(spent, number, **Worker(asked=on_its_way)._asdict())
        yield Step(Cause.FAULT, who, "is killed", killed)
        guilty = _guilty(spent, worker.me)
        if worker.life is Life.UP:
            yield Step(Cause.FAULT, who, "is frozen", with_worker(guilty, number, life=Life.FROZEN))
            if not worker.cut:
                yield Step(Cause.FAULT, who, "is cut off from the database", with_worker(guilty, number, cut=True))
    if world.scheduler.life is Life.UP:
        yield Step(Cause.FAULT, _WHO, "is killed", spent._replace(scheduler=Scheduler(life=Life.DOWN, patient=True)))
        frozen = world.scheduler._replace(life=Life.FROZEN)
        yield Step(Cause.FAULT, _WHO, "is frozen", spent._replace(scheduler=frozen))


def database_fails(world: World, scenario: Scenario) -> Iterator[Step]:
    """It goes away; a crash may forget a promotion, the one transaction that does not wait for the disk."""
    if not world.faults or world.away:
        return
    gone = world._replace(faults=world.faults - 1, away=True)
    yield Step(Cause.FAULT, "database", "is away", gone)
    if world.job.status is Status.QUEUED:
        forgotten = world.job._replace(status=Status.PENDING, reason=Reason.READY)
        yield Step(Cause.FAULT, "database", "crashes and forgets the promotion", gone._replace(job=forgotten))


def all_is_mended(world: World, scenario: Scenario) -> Iterator[Step]:
    """Supervisors start processes again, frozen ones wake up, links and the database come back."""
    for number, worker in enumerate(world.workers):
        if worker.life is Life.DOWN and worker.asked is None:
            yield Step(Cause.REPAIR, WORKERS[number], "starts", with_worker(world, number, life=Life.UP))
        elif worker.life is Life.FROZEN:
            yield Step(Cause.REPAIR, WORKERS[number], "wakes up", with_worker(world, number, life=Life.UP))
        if worker.cut:
            yield Step(
                Cause.REPAIR, WORKERS[number], "reaches the database again", with_worker(world, number, cut=False)
            )
    if world.scheduler.life is not Life.UP:
        up = world.scheduler._replace(life=Life.UP, patient=True)
        yield Step(Cause.REPAIR, _WHO, "is there again", world._replace(scheduler=up))
    if world.away:
        patient = world.scheduler._replace(patient=True)
        yield Step(Cause.REPAIR, "database", "is back", world._replace(away=False, scheduler=patient))


def _guilty(world: World, identity: int) -> World:
    rows = tuple(WorkerRow(row.id, row.state) if row.id == identity else row for row in world.rows)
    return world._replace(rows=rows)
