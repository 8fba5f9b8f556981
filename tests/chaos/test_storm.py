"""Random kills of everything, over a long run: `make chaos JOBS=10000 KILLS=200`. Prints the ledger as JSON."""

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobq import Every, Status
from tests.fleet import Fleet
from tests.services import Redis, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2400)]

JOBS = int(os.environ.get("JOBS", "2000"))
KILLS = int(os.environ.get("KILLS", "40"))
FLUSHES = max(KILLS // 10, 2)
SEED = int(os.environ.get("SEED", "0")) or random.randrange(1 << 30)


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Fleet]:
    with Fleet(tmp_path, postgres_url, redis_url, lease=6, renew_every=1, drain_timeout=5) as fleet:
        yield fleet


def test_no_job_is_lost_doubled_or_stuck_while_schedulers_and_workers_are_killed(
    fleet: Fleet, redis_server: Redis
) -> None:
    dice = random.Random(SEED)
    crew: list[tuple[str, subprocess.Popen[bytes]]] = [("scheduler", fleet.scheduler()) for _ in range(2)]
    crew += [("worker", fleet.worker("nap:20")) for _ in range(3)]
    accepted: set = set()
    retry = {"max_attempts": 100, "initial": 0.1, "maximum": 1, "retry_lost": True}
    request = {"kind": "NAP", "spec": {"seconds": 0.4}, "retry": retry}
    flushes = set(dice.sample(range(KILLS), FLUSHES))
    for kill in range(KILLS):
        accepted |= set(fleet.jobq.enqueue_many([request] * (JOBS // KILLS)))
        time.sleep(dice.uniform(0.05, 0.4))
        place = dice.randrange(len(crew))
        role, victim = crew[place]
        victim.kill()
        victim.wait()
        crew[place] = (role, fleet.scheduler() if role == "scheduler" else fleet.worker("nap:20"))
        if kill in flushes:
            redis_server.flush()
    fleet.wait_until_done(600)

    ledger = {
        "seed": SEED, "accepted": len(accepted), "kills": KILLS, "flushes": FLUSHES, "ends": dict(fleet.ends()),
        "lost_attempts": fleet.ask("SELECT count(*) FROM jobq_attempts WHERE outcome = 'LOST'")[0][0],
    }  # fmt: skip
    print("\n" + json.dumps(ledger))
    fleet.check_ledger(accepted)
    assert fleet.ends() == {"COMPLETED·succeeded": len(accepted)}


def test_schedules_and_jobs_go_on_while_redis_is_away_for_a_minute(fleet: Fleet, redis_server: Redis) -> None:
    fleet.scheduler()
    for _ in range(2):
        fleet.worker("nap:20")
    fleet.jobq.create_workflow({}, kind="NAP", name="ticking", schedule=Every(1))
    redis_server.kill()
    accepted: set = set()
    began = time.monotonic()
    while time.monotonic() - began < 60:
        accepted |= set(fleet.jobq.enqueue_many([{"kind": "NAP"}] * 50))
        time.sleep(1)
    wait_until(lambda: all(fleet.jobq.get(job).finished for job in accepted), timeout=60, interval=1, what="the jobs")
    redis_server.start()
    again = fleet.jobq.enqueue({}, kind="NAP")
    assert fleet.jobq.wait(again.id, timeout=20).status is Status.COMPLETED
    fleet.jobq.terminate_workflow("ticking")
    fleet.wait_until_done(30)
    fleet.check_ledger(accepted)
    slots = fleet.ask("SELECT count(*) FROM jobq_jobs WHERE trigger = 'AUTOMATIC' AND status = 'COMPLETED'")[0][0]
    assert slots >= 55
