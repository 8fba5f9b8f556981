"""Clocks that are wrong, jump, or run too fast: of workers, of schedulers, and of the database."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobq import Every, Status
from tests.clocks import OddlyTimed, forget, wrong
from tests.fleet import Fleet
from tests.services import Redis, require, wait_until

pytestmark = pytest.mark.timeout(240)

QUICK = {"lease": 9, "renew_every": 1, "drain_timeout": 5}
EACH_SLOT: dict[str, Any] = {"misfire": "catch_up", "max_catch_up": 100, "overlap": "allow"}
CLOCKS = ("+3600", "-3600", "+0 x2")


@pytest.fixture(scope="module")
def oddly_timed(migrate: Callable[[str], None]) -> Iterator[tuple[OddlyTimed, str]]:
    """A PostgreSQL of which the clock can be set, and the name of an empty database in it, as a template."""
    require("faketime", *OddlyTimed.programs)
    with OddlyTimed() as server:
        name = server.create()
        migrate(server.url(name))
        server.disconnect(name)
        yield server, name


def pass_by(seconds: float) -> None:
    """Wait for so long, by a clock that is right."""
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > seconds, timeout=2 * seconds, interval=0.1, what="time to pass")


def slots(fleet: Fleet) -> list[Any]:
    """The schedule slots that have a job, with the instant at which it was made, by the database's clock."""
    return fleet.ask("SELECT slot_at, created_at FROM jobq_jobs WHERE slot_at IS NOT NULL ORDER BY created_at, slot_at")


def check_slots(fleet: Fleet) -> None:
    """Each slot was made once, exactly one interval behind another, and not before its time."""
    found = slots(fleet)
    anchor = fleet.ask("SELECT anchor_at FROM jobq_workflows")[0][0]
    assert len({slot for slot, _ in found}) == len(found)
    assert {(slot - anchor).total_seconds() % 1 for slot, _ in found} == {0.0}
    assert all(made >= slot for slot, made in found)


def check_nobody_was_given_up(fleet: Fleet, workers: set[Any]) -> None:
    """The same workers live as before, and no attempt was lost."""
    assert {worker.id for worker in fleet.jobq.workers.list()} == workers
    assert not fleet.ask("SELECT * FROM jobq_attempts WHERE outcome <> 'COMPLETED'")


@pytest.mark.chaos
def test_clocks_of_workers_and_schedulers_may_be_wrong(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    require("faketime")
    with Fleet(tmp_path, postgres_url, redis_url, **QUICK) as fleet:
        for clock in CLOCKS:
            fleet.environment |= wrong(clock)
            fleet.scheduler()
            fleet.worker("nap:20")
        workers = {worker.id for worker in fleet.jobq.workers.list()}
        held = fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 12}}] * 30)
        flow = fleet.jobq.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1), **EACH_SLOT)
        pass_by(14)
        fleet.jobq.terminate_workflow(flow.id)
        fleet.wait_until_done()

        check_nobody_was_given_up(fleet, workers)
        check_slots(fleet)
        fleet.check_ledger(set(held))
        late = [(made - slot).total_seconds() for slot, made in slots(fleet)]
        assert len(late) >= 12
        assert max(late) < 60, "slots come by the database's clock, whatever that of the scheduler shows"
        used = fleet.ask("SELECT worker_id, count(*) FROM jobq_attempts GROUP BY 1")
        assert len(used) == 3, f"each worker had jobs: {used}"
    forget(*(process.pid for process in fleet.processes))


@pytest.fixture
def fleet(tmp_path: Path, oddly_timed: tuple[OddlyTimed, str], redis_session: Redis) -> Iterator[Fleet]:
    """Two schedulers and two workers on a database whose clock is right as yet, with twenty jobs that run."""
    server, template = oddly_timed
    redis_session.start()
    redis_session.flush()
    server.jump(0)
    name = server.create(template)
    with Fleet(tmp_path, server.url(name), redis_session.url, **QUICK) as fleet:
        for _ in range(2):
            fleet.scheduler()
            fleet.worker("nap:50")
        yield fleet


@pytest.mark.chaos
@pytest.mark.parametrize("hours", [1, -1])
def test_the_clock_of_the_database_jumps_by_an_hour_and_back(
    fleet: Fleet, oddly_timed: tuple[OddlyTimed, str], hours: int
) -> None:
    server, _ = oddly_timed
    workers = {worker.id for worker in fleet.jobq.workers.list()}
    flow = fleet.jobq.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1), overlap="allow")
    held = fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 25}}] * 20)
    wait_until(lambda: len(slots(fleet)) >= 2, timeout=30, what="some slots")
    for ahead in (3600 * hours, 0):
        before = {slot for slot, _ in slots(fleet)}
        server.jump(ahead)
        began = time.monotonic()
        job = fleet.jobq.enqueue({}, kind="NAP")
        assert fleet.jobq.wait(job.id, timeout=20).status is Status.COMPLETED
        print(f"{ahead:+} s: a job was executed after {time.monotonic() - began:.1f} s")
        pass_by(11)
        after = [slot for slot, _ in slots(fleet) if slot not in before]
        if ahead - (0 if ahead else 3600 * hours) > 0:
            assert 5 <= len(after) <= 20, "one run for the hour that never was, then one each second"
        else:
            assert len(after) <= 1, "the next slot comes when the clock has come to it again"
    fleet.jobq.terminate_workflow(flow.id)
    fleet.wait_until_done()

    check_nobody_was_given_up(fleet, workers)
    check_slots(fleet)
    fleet.check_ledger(set(held))


@pytest.mark.chaos
def test_the_clock_of_the_database_runs_at_double_speed(fleet: Fleet, oddly_timed: tuple[OddlyTimed, str]) -> None:
    server, _ = oddly_timed
    server.speed(2)
    workers = {worker.id for worker in fleet.jobq.workers.list()}
    flow = fleet.jobq.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1), **EACH_SLOT)
    held = fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 12}}] * 20)
    pass_by(14)
    fleet.jobq.terminate_workflow(flow.id)
    fleet.wait_until_done()

    check_nobody_was_given_up(fleet, workers)
    check_slots(fleet)
    fleet.check_ledger(set(held))
    assert len(slots(fleet)) >= 24, "twenty-eight seconds of that clock have passed"
