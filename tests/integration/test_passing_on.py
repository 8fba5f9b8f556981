"""A hint that is larger than the room of the worker that took it: real workers, and nobody who sends hints again."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobq.broker import CeleryBroker, Hint
from jobq.store.promote import Cursor, promote
from tests.fleet import Fleet
from tests.services import wait_until


@pytest.fixture(params=["redis", "rabbitmq"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, postgres_url: str) -> Iterator[Fleet]:
    broker_url = request.getfixturevalue(f"{request.param}_url")
    with Fleet(tmp_path, postgres_url, broker_url, plugins=["tests.hints_only:NapExecutor"]) as fleet:
        yield fleet


def hinted(fleet: Fleet, count: int, seconds: float) -> None:
    """So many jobs, promoted, and one message that names them all."""
    fleet.jobq.enqueue_many([{"kind": "NAP", "spec": {"seconds": seconds}}] * count)
    (ids,) = fleet.jobq.database.run(lambda conn: promote(conn, Counter(), Cursor())).batches.values()
    assert len(ids) == count
    broker = CeleryBroker(fleet.jobq.settings)
    broker.publish([Hint("nap", ids)])
    broker.close()


def running_by_worker(fleet: Fleet) -> list[int]:
    rows = fleet.ask("SELECT count(*) FROM jobq_jobs WHERE status = 'RUNNING' GROUP BY worker_id")
    return sorted(count for (count,) in rows)


def test_what_finds_no_room_at_one_worker_starts_at_the_others_at_once(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.worker("nap:2")
    hinted(fleet, 2, 0.0)  # all of them have looked into the database, and hear
    fleet.wait_until_done()
    hinted(fleet, 6, 30.0)
    wait_until(lambda: running_by_worker(fleet) == [2, 2, 2], timeout=5, what=f"all of them to run: {fleet.logs()}")


def test_a_hint_that_nobody_has_room_for_waits_for_whoever_has_some_first(fleet: Fleet) -> None:
    fleet.worker("nap:2")
    fleet.worker("nap:2")
    hinted(fleet, 4, 3.0)
    wait_until(lambda: running_by_worker(fleet) == [2, 2], timeout=5, what=f"both to be full: {fleet.logs()}")
    fleet.execute("UPDATE jobq_workers SET queues = '{\"nap\": 4}'")
    hinted(fleet, 4, 0.0)
    fleet.wait_until_done(20)
    assert {attempts for (attempts,) in fleet.ask("SELECT attempt FROM jobq_jobs")} == {1}
