"""What is counted of ends, and what a scrape reads of the database: the same on SQLite and on PostgreSQL."""

from collections import Counter
from datetime import timedelta

import pytest

from jobq import metrics
from jobq.models import Outcome
from jobq.states import Reason
from jobq.store import gauges, materialize
from jobq.store.database import Connection
from jobq.store.gauges import Gauges, read_gauges
from jobq.store.record import record
from scheduler.reap import Reaper
from tests.stores import Store, ended, failed


class Ends:
    """The ends that are counted from now on."""

    def __init__(self) -> None:
        self._before = metrics.JOBS.totals()

    def __call__(self) -> Counter[str]:
        more = Counter(metrics.JOBS.totals())
        more.subtract(self._before)
        return Counter({f"{status}·{reason}": int(n) for (_, _, status, reason), n in more.items() if n})


def read(store: Store) -> Gauges:
    return store.look(read_gauges)


# --- ends ------------------------------------------------------------------------------------------------------------


def test_each_end_is_counted_once_with_its_kind_queue_status_and_reason(store: Store) -> None:
    worker, counted = store.worker(), Ends()
    before = metrics.JOBS.totals()
    good, bad, again = store.running(worker, 3)
    store.end(worker, good)
    store.end(worker, bad, failed(retry=False))
    store.end(worker, again, Outcome.requeued(timedelta(0), "later"))
    store.end(worker, good)  # it had ended: nothing is written
    store.cancel(store.enqueue_one())
    holder = store.enqueue_one(dedupe_key="one")
    store.enqueue_one(dedupe_key="one")
    assert store.state(holder) == "PENDING·ready"
    assert counted() == {
        "COMPLETED·succeeded": 1, "FAILED·error": 1, "CANCELED·by_user": 1, "CANCELED·duplicate": 1
    }  # fmt: skip
    assert metrics.JOBS.totals()["NOOP", "noop", "COMPLETED", "succeeded"] == 1 + before.get(
        ("NOOP", "noop", "COMPLETED", "succeeded"), 0
    )


def test_an_end_that_is_rolled_back_is_not_counted(store: Store) -> None:
    worker, counted = store.worker(), Ends()
    job = store.running_one(worker)

    def recorded_and_lost(conn: Connection) -> None:
        assert record(conn, worker, [ended(job)]) == {job.id}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.do(recorded_and_lost)
    assert counted() == {}
    store.end(worker, job)
    assert counted() == {"COMPLETED·succeeded": 1}


def test_slots_that_overlap_are_counted_where_they_are_recorded(store: Store) -> None:
    worker, counted = store.worker(), Ends()
    flow = store.workflow(interval=timedelta(seconds=10), overlap="skip")
    store.due(flow, 1)
    store.do(materialize.materialize)
    (running,) = store.claim(worker, [job_id for ids in store.promote().values() for job_id in ids])
    store.due(flow, 1)
    store.do(materialize.materialize)
    assert counted() == {f"CANCELED·{Reason.OVERLAP.value}": 1}
    store.end(worker, running)


def test_leases_that_ran_out_and_the_jobs_that_they_left_are_counted(store: Store) -> None:
    expired, recovered = metrics.LEASES_EXPIRED.totals()[()], metrics.RECOVERED.totals()[()]
    store.worker()
    job, counted = store.running_one(store.worker(), max_attempts=1), Ends()
    store.execute("UPDATE jobq_workers SET lease_until = started_at")
    reaper = Reaper(store.database, lease=0.0, reattach_grace=0.0)
    reaper.tick()
    assert metrics.LEASES_EXPIRED.totals()[()] == expired + 2
    assert metrics.RECOVERED.totals()[()] == recovered + 1
    reaper.tick()
    assert metrics.LEASES_EXPIRED.totals()[()] == expired + 2
    assert counted() == {store.state(job.id): 1}


# --- gauges ----------------------------------------------------------------------------------------------------------


def test_an_installation_in_which_nothing_happens_has_nothing_to_show(store: Store) -> None:
    assert read(store) == Gauges(workers={"working": 0, "draining": 0})


def test_depth_tells_what_is_ready_queued_and_running_apart(store: Store) -> None:
    worker = store.worker({"noop": 10, "idle": 3})
    store.running(worker, 2)
    store.queued(1)
    store.enqueue(4)
    store.enqueue(1, queue="nobody serves it")
    found = read(store)
    assert {key: number for key, number in found.depth.items() if number} == {
        ("noop", "running"): 2, ("noop", "queued"): 1, ("noop", "ready"): 4, ("nobody serves it", "ready"): 1,
    }  # fmt: skip
    assert found.depth["idle", "ready"] == 0, "a queue that is served shows its zeros"
    assert found.slots == {("noop", "busy"): 2, ("noop", "free"): 8, ("idle", "busy"): 0, ("idle", "free"): 3}
    assert found.workers == {"working": 1, "draining": 0}


def test_the_oldest_is_found_whatever_its_tenant_lane_and_priority(store: Store) -> None:
    store.enqueue(3, tenant="a", priority=9)
    store.enqueue(3, tenant="b", lane="x", priority=9)
    for tenant, lane, priority in (("a", "", 9), ("a", "", 0), ("b", "x", 3), ("b", "y", 9), ("z", "", 5)):
        for queue in ("noop", "other"):
            oldest = store.enqueue_one(tenant=tenant, lane=lane, priority=priority, queue=queue)
            store.pretend(oldest, ready_at=-1000)
            store.enqueue(2, tenant=tenant, lane=lane, priority=priority, queue=queue)
            found = read(store).oldest
            assert found[queue] == pytest.approx(1000, abs=60), (tenant, lane, priority, queue)
            store.pretend(oldest, ready_at=0)
            assert read(store).oldest[queue] < 60


def test_a_job_that_was_promoted_and_never_claimed_grows_old(store: Store) -> None:
    store.worker()
    (job,) = store.queued()
    store.pretend(job, ready_at=-500)
    assert read(store).oldest["noop"] == pytest.approx(500, abs=60)


def test_a_slot_that_nobody_made_is_the_lag_and_so_is_a_job_that_nobody_woke(store: Store) -> None:
    store.due(store.workflow(interval=timedelta(hours=1)), 300)
    waiting = store.enqueue_one()
    store.pretend(waiting, reason="scheduled", ready_at=None, due_at=-200)
    found = read(store)
    assert found.schedule_lag == pytest.approx(300, abs=60)
    assert found.wake_lag == pytest.approx(200, abs=60)
    store.do(materialize.materialize)
    assert read(store).schedule_lag == 0


def test_beyond_its_share_a_queue_is_never_shown_with_less_than_was_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "COUNTED", 300)
    store.enqueue(250)
    store.enqueue(20, queue="small")
    found = read(store)
    assert found.depth["noop", "ready"] >= 150
    assert found.depth["small", "ready"] == 20
