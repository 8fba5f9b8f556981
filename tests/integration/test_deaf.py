"""A worker that listens and hears nothing ends, for its supervisor, and is the only one that does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobq.broker import CeleryBroker
from tests.fleet import Fleet
from tests.proxy import Proxy
from tests.services import Redis, wait_until

DEAF_AFTER = 3.0
QUICK = {"lease": 9, "renew_every": 1, "drain_timeout": 10, "deaf_after": DEAF_AFTER}


@pytest.fixture
def proxy(redis_server: Redis) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", redis_server.port)) as proxy:
        yield proxy


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str, redis_url: str, proxy: Proxy) -> Iterator[Fleet]:
    with Fleet(tmp_path, postgres_url, proxy.url(redis_url), **QUICK) as fleet:
        yield fleet


def listens(proxy: Proxy) -> bool:
    return any(b"BRPOP" in pair.sent for pair in list(proxy._pairs))


def running(fleet: Fleet) -> bool:
    return bool(fleet.ask("SELECT 1 FROM jobq_jobs WHERE status = 'RUNNING'"))


def test_a_deaf_worker_ends_in_good_order_for_its_supervisor_and_the_next_one_hears(fleet: Fleet, proxy: Proxy) -> None:
    fleet.scheduler()
    worker = fleet.worker("nap:4")
    accepted = fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": 2 * DEAF_AFTER}}])
    wait_until(lambda: running(fleet) and listens(proxy), timeout=20, what="a job to run, and the consumer to listen")
    assert proxy.freeze_open(b"BRPOP") == 1
    accepted += fleet.jobq.enqueue_many([{"kind": "NAP"}] * 20)
    assert worker.wait(40) == 1, fleet.logs()
    assert "this worker is deaf and ends: hints of nap lie at the broker" in fleet.logs()
    assert fleet.ask("SELECT stopped_at IS NOT NULL, draining_at IS NOT NULL FROM jobq_workers") == [(True, True)]
    assert fleet.ask("SELECT outcome, reason FROM jobq_attempts WHERE job_id = :id", id=accepted[0]) == [
        ("COMPLETED", "succeeded")
    ], "what ran was to end"

    broker = CeleryBroker(fleet.jobq.settings)
    assert broker.depth("nap") > 0
    again = fleet.worker("nap:4")
    wait_until(lambda: broker.depth("nap") == 0, timeout=20, what="the new worker to take what lies there")
    broker.close()
    accepted += fleet.jobq.enqueue_many([{"kind": "NAP"}] * 5)
    fleet.wait_until_done(30)
    fleet.check_ledger(set(accepted))
    assert fleet.ends() == {"COMPLETED·succeeded": 26}
    assert again.poll() is None
