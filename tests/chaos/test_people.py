"""People and deaths at once: cancel against finish against reap, pause and resume while jobs are sent, and drains."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from jobq import Status
from jobq.errors import Conflict
from tests.ledger import spread
from tests.rig import Rig
from tests.services import wait_until


@pytest.fixture
def rig(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Rig]:
    with Rig(tmp_path, postgres_url, redis_url, redis_url) as rig:
        yield rig


@contextmanager
def hammering(*verbs: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Each verb again and again on a thread of its own; what they raised is empty at the end."""
    ends, errors = threading.Event(), list[BaseException]()

    def hammer(verb: Callable[[], None]) -> None:
        while not ends.is_set():
            try:
                verb()
            except BaseException as error:  # noqa: BLE001 - told to the test
                errors.append(error)
                return

    threads = [threading.Thread(target=hammer, args=(verb,)) for verb in verbs]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert not errors


# --- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_jobs_that_are_canceled_while_they_end_or_lose_their_worker_end_once(rig: Rig) -> None:
    rig.start(workers=2, schedulers=1)
    canceled: set[UUID] = set()
    refused: set[UUID] = set()
    mine = threading.Lock()
    left: list[UUID] = []

    def cancel() -> None:
        with mine:
            job = left.pop(random.randrange(len(left))) if left else None
        if job is None:
            time.sleep(0.01)
            return
        try:
            rig.fleet.jobq.cancel(job)
            canceled.add(job)
        except Conflict:
            refused.add(job)

    with hammering(cancel, cancel, cancel):
        for _ in range(5):
            ids = rig.load(150, 0.1)
            with mine:
                left.extend(random.sample(ids, 75))
            wait_until(lambda: rig.count("status = 'RUNNING'") > 10, timeout=60, what="jobs to run")
            victim = random.choice(rig.workers())
            victim.kill()
            victim.wait()
            rig.worker()
        wait_until(lambda: not left, timeout=60, what="every cancellation to be tried")
    rig.settle(120)

    states = {job: rig.fleet.jobq.get(job).status for job in rig.accepted}
    ended_canceled = {job for job, status in states.items() if status is Status.CANCELED}
    assert set(states.values()) <= {Status.COMPLETED, Status.CANCELED}
    assert ended_canceled <= canceled, "nobody asked for it"
    assert refused.isdisjoint(ended_canceled), "it was refused because the job had ended, and yet it was done"
    # A request that came while the job ran may lose against its end; none can lose against a retry.
    late = canceled - ended_canceled
    after = rig.fleet.ask("SELECT id FROM jobq_jobs WHERE desired = 'CANCEL' AND status = 'COMPLETED'")
    assert late <= {job for (job,) in after}
    print(f"\ncanceled {len(ended_canceled)}, ended first {len(late) + len(refused)}, of {len(rig.accepted)}")
    assert ended_canceled
    assert late | refused, "no cancellation met an end: the race was not run"


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_running_job_is_canceled_within_five_seconds_at_the_default_settings(rig: Rig) -> None:
    rig.start(workers=2, slots=50)
    ids = rig.load(100, 55)
    wait_until(lambda: rig.count("status = 'RUNNING'") == 100, timeout=60, what="all jobs to run")
    asked = {}
    for job in ids:
        pause = time.monotonic() + 0.1
        rig.fleet.jobq.cancel(job)
        asked[job] = rig.now()
        wait_until(lambda: time.monotonic() > pause, interval=0.01)  # noqa: B023 - spread over two renewals
    rig.settle(60)
    took = [(rig.fleet.jobq.get(job).finished_at - at).total_seconds() for job, at in asked.items()]
    print(f"\nseconds from cancel to its end: {spread(took)}")
    assert rig.fleet.ends() == {"CANCELED·by_user": 100}
    assert max(took) <= 5


# --- pause -----------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_nothing_is_claimed_while_its_queue_is_paused_in_full_flight(rig: Rig) -> None:
    rig.start(workers=2, schedulers=2)
    silent: list[tuple[float, float]] = []

    def toggle() -> None:
        rig.fleet.jobq.queues.pause("tally")
        began = time.time()
        time.sleep(random.uniform(0.1, 0.5))
        silent.append((began, time.time()))
        rig.fleet.jobq.queues.resume("tally")
        time.sleep(random.uniform(0.05, 0.3))

    with hammering(toggle):
        for _ in range(8):
            rig.load(300, 0.01)
            wait_until(lambda: rig.fleet.unfinished() < 100, timeout=90, what="most jobs to end")
    executions = rig.settle(60)

    # A claim that was committed before the pause returned may reach its executor a moment after.
    moment = 0.5
    begun = [one.begun for one in executions.all]
    assert silent
    assert not [at for at in begun for start, end in silent if start + moment < at < end], "a job began in a pause"
    assert not {job for job, count in executions.ended.items() if count > 1}
    started = rig.fleet.ask("SELECT extract(epoch FROM started_at) FROM jobq_attempts")
    assert not [at for (at,) in started for start, end in silent if start < float(at) < end], "a claim in a pause"


# --- drain -----------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_workers_that_are_told_to_end_while_jobs_run_charge_no_attempt(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    """A rolling upgrade: each worker gets SIGTERM while it works; what it could not end goes on elsewhere."""
    with Rig(tmp_path, postgres_url, redis_url, redis_url, drain_timeout=0.5) as rig:
        rig.start(workers=2, schedulers=1)
        for old in rig.workers():
            rig.worker()
            rig.load(60, 8.0)
            wait_until(lambda: rig.running_on(old) >= 10, timeout=60, what="the old worker to be at work")  # noqa: B023
            old.terminate()
            assert old.wait(timeout=30) == 0, rig.fleet.logs()
        rig.settle(90)
        assert rig.fleet.ends() == {"COMPLETED·succeeded": 120}
        outcomes = dict(rig.fleet.ask("SELECT outcome, count(*) FROM jobq_attempts GROUP BY 1"))
        assert set(outcomes) == {"COMPLETED", "DRAINED"}, "no attempt was lost or failed"
        assert not rig.fleet.ask("SELECT 1 FROM jobq_attempts WHERE charged AND outcome <> 'COMPLETED'")
        assert rig.count("failures > 0") == 0
