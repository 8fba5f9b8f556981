"""A worker that hears is never taken for a deaf one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobq.broker import CeleryBroker, Hint
from jobq.store.jobs import new_id
from tests.fleet import Fleet
from tests.services import Redis, wait_until

DEAF_AFTER = 3.0
QUICK = {"lease": 9, "renew_every": 1, "drain_timeout": 10, "deaf_after": DEAF_AFTER}


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Fleet]:
    with Fleet(tmp_path, postgres_url, redis_url, **QUICK) as fleet:
        yield fleet


@pytest.mark.chaos
def test_a_worker_that_hears_lives_while_it_is_idle_full_or_without_a_broker(fleet: Fleet, redis_server: Redis) -> None:
    fleet.scheduler()
    idle, full = fleet.worker("quiet:4"), fleet.worker("nap:1")
    fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 2 * DEAF_AFTER}}])
    wait_until(
        lambda: fleet.ask("SELECT 1 FROM jobq_jobs WHERE status = 'RUNNING'"),
        timeout=20,
        what="the only slot to be taken",
    )
    broker = CeleryBroker(fleet.jobq.settings)
    # More hints than the worker's threads take in hand: some lie there as long as it is full.
    broker.publish([Hint("nap", [new_id()]) for _ in range(8)])
    assert broker.depth("nap") > 0
    broker.close()
    fleet.wait_until_done(30)
    redis_server.stop()
    fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 1.5 * DEAF_AFTER}}])
    fleet.wait_until_done(40)
    redis_server.start()
    fleet.jobq.enqueue_many([{"kind": "NAP"}] * 3)
    fleet.wait_until_done(30)
    assert (idle.poll(), full.poll()) == (None, None), fleet.logs()
