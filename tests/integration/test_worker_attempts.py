"""A worker keeps the attempts of one job apart: driven tick by tick, on a real database, with a real event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import timedelta
from uuid import UUID

import pytest

from jobq.models import Outcome
from jobq.plugins import Context, Kind, Stop
from jobq.settings import Settings
from jobq.specs import Spec
from jobq.store import promote, workers
from jobq.store.claim import Claimant, claim_waiting
from jobq.store.database import Database
from jobq.store.record import Report
from tests.services import wait_until
from tests.stores import Store
from workers.runner import Running
from workers.service import Worker

QUEUE, SLOTS = "second", 4


class SecondTime(Spec):
    """Nothing to say."""


class SecondTimeExecutor:
    """Fails at once the first time; the second time it works until it is told to stop."""

    kind = Kind("SECOND", SecondTime, timeout=timedelta(seconds=60))

    async def execute(self, spec: SecondTime, ctx: Context) -> Outcome:
        if ctx.job.attempt == 1 and not ctx.job.state:
            return Outcome.failed("the first time")
        await asyncio.sleep(60)
        return Outcome.succeeded()


class Bench:
    """A worker without its loops: the test is its lease, its recorder and its broker."""

    def __init__(self, url: str) -> None:
        self.store = Store(Database(url))
        settings = Settings(database_url=url, plugins=[f"{__name__}:SecondTimeExecutor"])
        self.worker = Worker(settings, {QUEUE: SLOTS}, self.store.database)
        self.runner, self.lease = self.worker.runner, self.worker.lease
        self.worker._executors._thread.start()
        self.lease.tick()

    @property
    def identity(self) -> UUID:
        assert self.lease.identity is not None
        return self.lease.identity.id

    def enqueue(self, state: object = None) -> UUID:
        job = self.store.enqueue_one(kind="SECOND", queue=QUEUE, state=state, retry={"retry_lost": True})
        self.store.promote()
        return job

    def claim(self) -> None:
        assert self.runner.claim_without_hint(QUEUE, SLOTS) == 1

    def attempts(self, job: UUID) -> list[int]:
        """The attempts of the job that run here, as the worker knows them."""
        return sorted(running.job.attempt for running in self.running() if running.job.id == job)

    def running(self) -> list[Running]:
        return list(self.runner.running.values())

    def close(self) -> None:
        for running in self.running():
            self.runner.stop(running, Stop.FENCED)
        wait_until(lambda: not self.runner.running, 10, what="the work to stop")
        self.worker._executors.stop()
        self.store.database.close()


@pytest.fixture
def bench(sqlite_url: str) -> Iterator[Bench]:
    bench = Bench(sqlite_url)
    yield bench
    bench.close()


def test_an_attempt_that_begins_before_the_one_before_it_is_forgotten_is_held(bench: Bench) -> None:
    """Between the commit of an outcome and its slot's return, the same worker may claim the job's next attempt."""
    job = bench.enqueue()
    bench.claim()
    recorded = bench.worker._recorder._on_recorded

    def claim_first(owner: UUID, reports: Sequence[Report]) -> None:
        bench.store.pretend(job, due_at=-1)
        bench.store.do(promote.wake)
        bench.store.promote()
        bench.claim()
        recorded(owner, reports)

    bench.worker._recorder._on_recorded = claim_first
    wait_until(
        lambda: bench.worker._recorder.tick() == 0.0 and bench.attempts(job) == [2], 20, what="the second attempt alone"
    )

    assert bench.worker.slots.free(QUEUE) == SLOTS - 1
    for _ in range(3):
        bench.lease.tick()
    assert (bench.store.state(job), bench.store.job(job).attempt) == ("RUNNING·executing", 2)
    assert [running.ctx.stop for running in bench.running()] == [None]


def test_work_whose_claim_was_answered_only_after_its_worker_was_declared_dead_is_stopped(bench: Bench) -> None:
    former = bench.identity
    job = bench.enqueue(state="works at once")
    claimed = bench.store.do(claim_waiting, Claimant(former), QUEUE, SLOTS)
    bench.store.do(workers.declare_dead, [former])
    bench.lease.tick()  # is told so
    bench.lease.tick()  # and registers anew
    assert bench.identity != former
    bench.worker.slots.take(QUEUE, 1)
    bench.runner.begin(claimed, former)
    assert bench.attempts(job) == [1]

    bench.lease.tick()

    wait_until(lambda: not bench.attempts(job), 10, what="the work to be stopped")
    assert bench.worker.slots.free(QUEUE) == SLOTS


def test_a_claim_that_was_never_heard_of_is_given_back_but_what_a_drain_left_is_not(bench: Bench) -> None:
    def claimed_unheard() -> UUID:
        job = bench.enqueue()
        bench.store.do(claim_waiting, Claimant(bench.identity), QUEUE, SLOTS)
        return job

    unheard = claimed_unheard()
    for _ in range(2):
        bench.lease.tick()
    assert bench.store.state(unheard) == "PENDING·retrying"

    left = claimed_unheard()
    bench.lease.drain()
    for _ in range(3):
        bench.lease.tick()
    assert bench.store.state(left) == "RUNNING·executing"
    bench.lease.sign_off()
    bench.store.do(workers.release_lost, reattach_grace=300.0)
    assert bench.store.state(left) == "PENDING·retrying"
