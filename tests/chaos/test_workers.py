"""How long the jobs of a killed worker wait: for a neighbour who sees that its process is gone, or for its lease."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ledger import spread
from tests.rig import Rig
from tests.services import require_root, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]
ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
"""In a process table of its own, as in a container; killed, it takes the worker along."""


@pytest.fixture
def rig(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Rig]:
    """At the default settings: the lease is 30 s, renewed every 4 s."""
    with Rig(tmp_path, postgres_url, redis_url, redis_url) as rig:
        yield rig


def until_claimed_again(rig: Rig, victim: Any) -> dict[str, float]:
    """Kill the worker under twenty jobs; seconds until each of them was claimed again."""
    rig.load(40, 5.0)
    wait_until(lambda: rig.count("status = 'RUNNING'") == 40, timeout=60, what="both workers to be full")
    at = time.time()
    victim.kill()
    victim.wait()
    rig.settle(120)
    rows = rig.fleet.ask(
        "SELECT extract(epoch FROM again.started_at) FROM jobq_attempts a JOIN jobq_attempts again "
        "ON again.job_id = a.job_id AND again.attempt = a.attempt + 1 WHERE a.outcome = 'LOST'"
    )
    took = spread([float(instant) - at for (instant,) in rows])
    print(f"\nseconds from the kill to the next claim: {took}")
    assert took["count"] == 20
    return took


def test_jobs_of_a_killed_worker_are_claimed_again_within_ten_seconds_beside_another_worker(rig: Rig) -> None:
    rig.start(workers=2, schedulers=1)
    assert until_claimed_again(rig, rig.workers()[0])["p99"] <= 10


def test_jobs_of_a_killed_worker_that_nobody_sees_are_claimed_again_within_its_lease_and_ten_seconds(rig: Rig) -> None:
    require_root("a process table of its own")
    rig.start(workers=0, schedulers=1)
    began = time.monotonic()
    workers = [rig.fleet.start(*ALONE, *rig.fleet.worker_command("tally:20")) for _ in range(2)]
    wait_until(lambda: len(rig.fleet.jobq.workers.list()) == 2, timeout=60, what="both workers to register")
    namespaces = rig.fleet.ask("SELECT DISTINCT pid_namespace FROM jobq_workers")
    assert len(namespaces) == 2
    # A scheduler that has just started gives every lease time for once, which would be measured here, too.
    wait_until(lambda: time.monotonic() - began > 30, timeout=40, interval=0.5, what="the scheduler to trust leases")
    assert 25 <= until_claimed_again(rig, workers[0])["p99"] <= 40
