"""What nobody started within its stale_after ends FAILED·unresolved, unless a person held it; running jobs never do."""

import threading
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from jobq.models import Outcome
from jobq.states import Trigger
from jobq.store import control, promote, stale, workers, workflows
from jobq.store.claim import Claimant, claim
from jobq.store.stale import Walk
from jobq.store.tables import events
from scheduler.stale import StaleCollector
from tests.fanouts import SLOTS, FanOuts, in_threads, keys
from tests.stores import QUEUE, Store, ahead, ended, failed, new_job

STORE = FanOuts
MINUTE = 60.0
STALE = "FAILED·unresolved"


def waiting(store: Store, seconds: float = 100.0, **fields: Any) -> UUID:
    """A job that has been ready for so long."""
    job_id = store.enqueue_one(**{"stale_after": MINUTE, **fields})
    store.pretend(job_id, ready_at=-seconds)
    return job_id


def collect(store: Store, step: int = stale.STEP) -> set[UUID]:
    """One whole walk: what it found and ended."""
    walk, ended = Walk(), set[UUID]()
    while True:
        if found := store.look(stale.look, walk, step):
            ended |= store.do(stale.collect, found)
        if walk.place is None:
            return ended


def backdate(store: Store, subject: str, action: str, seconds: float) -> None:
    """The newest such event, so many seconds ago."""
    (newest,) = [row for row in store.look(control.list_events, subject) if row.action == action][-1:]
    at = store.look(workers.database_now) - timedelta(seconds=seconds)
    with store.database.begin() as conn:
        conn.execute(events.update().where(events.c.id == newest.id).values(at=at))


# --- what is stale ---------------------------------------------------------------------------------------------------


def test_a_job_that_nobody_started_in_time_ends_and_says_since_when_and_why_it_waited(store: Store) -> None:
    old, young = waiting(store), waiting(store, 50)
    assert collect(store) == {old}
    job = store.job(old)
    assert (store.state(old), job.error_class, job.attempt) == (STALE, "stale", 0)
    assert f"ready since {job.ready_at:%Y-%m-%d %H:%M:%S} UTC" in job.message
    assert job.message.endswith("within its stale_after of PT1M: no live worker serves queue noop")
    assert (store.state(young), store.attempts(old)) == ("PENDING·ready", [])
    assert collect(store) == set()


def test_a_job_without_a_limit_waits_for_ever(store: Store) -> None:
    waiting(store, 400 * 24 * 3600.0, stale_after=None)
    assert collect(store) == set()


def test_a_promoted_job_whose_workers_have_gone_ends_as_well(store: Store) -> None:
    worker = store.worker()
    (job_id,) = store.queued(stale_after=MINUTE)
    store.pretend(job_id, ready_at=-100)
    store.do(workers.sign_off, worker)
    assert collect(store) == {job_id}
    assert (store.state(job_id), store.row(job_id).next_send_at) == (STALE, None)


def test_a_running_job_is_its_owners_however_long_it_runs(store: Store) -> None:
    worker = store.worker()
    job = store.running_one(worker, stale_after=MINUTE)
    store.pretend(job.id, ready_at=-1000, started_at=-1000)
    assert collect(store) == set()
    assert store.end(worker, job) == {job.id}


def test_a_scheduled_job_counts_from_when_it_was_due(store: Store) -> None:
    job_id = store.enqueue_one(stale_after=MINUTE, scheduled_at=ahead(hours=1))
    store.pretend(job_id, created_at=-1000)
    assert collect(store) == set()
    store.pretend(job_id, due_at=-50)
    store.do(promote.wake)
    assert collect(store) == set()
    store.pretend(job_id, ready_at=-61)
    assert collect(store) == {job_id}


def test_a_retry_counts_from_when_it_was_due_and_not_from_the_first_attempt(store: Store) -> None:
    worker = store.worker()
    job = store.running_one(worker, stale_after=MINUTE)
    store.pretend(job.id, ready_at=-1000)
    store.end(worker, job, failed())
    assert collect(store) == set()
    store.pretend(job.id, due_at=-50)
    store.do(promote.wake)
    assert collect(store) == set()


def test_a_job_that_a_draining_worker_gave_back_counts_from_then(store: Store) -> None:
    worker = store.worker()
    job = store.running_one(worker, stale_after=MINUTE)
    store.pretend(job.id, ready_at=-1000)
    store.record(worker, ended(job, Outcome.stopped(), drained=True))
    assert store.state(job.id) == "PENDING·ready"
    assert collect(store) == set()
    store.execute("UPDATE jobq_attempts SET finished_at = created_at FROM jobq_jobs WHERE jobq_jobs.id = job_id")
    store.pretend(job.id, created_at=-1000)
    store.execute("UPDATE jobq_attempts SET finished_at = created_at FROM jobq_jobs WHERE jobq_jobs.id = job_id")
    assert collect(store) == {job.id}


def test_a_blocked_job_is_decided_by_what_it_waits_for(store: Store) -> None:
    upstream = waiting(store)
    blocked = store.add(new_job(stale_after=MINUTE, after=(upstream,)))[0]
    store.pretend(blocked, created_at=-1000)
    assert collect(store) == {upstream}
    assert store.state(blocked) == "CANCELED·upstream_failed"


def test_what_became_stale_counts_as_a_failure_of_its_workflow_and_charges_no_attempt(store: Store) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=2)
    ids = store.add(*(store.job_of(flow, stale_after=MINUTE) for _ in range(2)))
    for job_id in ids:
        store.pretend(job_id, ready_at=-100)
    assert collect(store) == set(ids)
    assert store.flow(flow).status == "TERMINATED"
    assert {store.row(job_id).failures for job_id in ids} == {0}


def test_a_dedupe_key_is_free_again(store: Store) -> None:
    waiting(store, dedupe_key="k")
    collect(store)
    assert store.state(store.enqueue_one(dedupe_key="k")) == "PENDING·ready"


# --- people who hold it ----------------------------------------------------------------------------------------------


def test_a_paused_job_waits_for_ever_and_counts_anew_when_it_goes_on(store: Store) -> None:
    job_id = waiting(store)
    store.do(control.pause, None, job_id, "ann")
    assert collect(store) == set()
    store.do(control.resume, None, job_id, "ann")
    assert collect(store) == set()


def test_the_clock_stands_while_the_queue_is_paused(store: Store) -> None:
    job_id = waiting(store)
    store.do(control.pause_queue, QUEUE, "ann")
    backdate(store, f"queue:{QUEUE}", "pause", 90)
    assert collect(store) == set()
    store.do(control.resume_queue, QUEUE, "ann")
    assert collect(store) == set()
    store.pretend(job_id, ready_at=-155)  # 65 s before the pause
    assert collect(store) == {job_id}
    assert "(without the PT1M30S for which it was paused)" in store.job(job_id).message


def test_the_clock_does_not_stand_for_a_queue_that_is_resumed_and_was_never_paused(store: Store) -> None:
    job_id = waiting(store)
    store.pretend(job_id, ready_at=-100)
    store.do(control.resume_queue, QUEUE, "ann")
    assert collect(store) == {job_id}


def test_a_pause_that_nobody_remembers_holds_as_long_as_it_lasts(store: Store) -> None:
    waiting(store)
    store.do(control.pause_queue, QUEUE, "ann")
    store.execute("DELETE FROM jobq_events")
    assert collect(store) == set()


def test_a_paused_workflow_holds_its_automatic_jobs_only(store: Store) -> None:
    flow = store.workflow(interval=timedelta(seconds=9))
    automatic, manual = store.add(
        store.job_of(flow, stale_after=MINUTE, trigger=Trigger.AUTOMATIC), store.job_of(flow, stale_after=MINUTE)
    )
    for job_id in (automatic, manual):
        store.pretend(job_id, ready_at=-100)
    store.do(workflows.pause, None, flow.id, "ann")
    assert collect(store) == {manual}
    backdate(store, f"workflow:{flow.id}", "pause", 60)
    store.do(workflows.resume, None, flow.id, "ann")
    assert collect(store) == set()
    store.pretend(automatic, ready_at=-130)
    assert collect(store) == {automatic}


def test_children_of_a_paused_sync_wait_and_of_another_end_and_their_sync_with_the_last(store: FanOuts) -> None:
    worker = store.worker(SLOTS)
    held, other = (store.fanned_out(worker, keys(3), domain=name, stale_after=MINUTE) for name in ("a", "b"))
    store.execute("UPDATE jobq_jobs SET ready_at = created_at WHERE entity_key IS NOT NULL")
    for child in [*store.children(held), *store.children(other)]:
        store.pretend(child.id, ready_at=-100)
    store.pause(held.id)
    ids = {child.id for child in store.children(other)}
    assert collect(store) == ids
    store.settle()
    assert (store.state(other.id), store.state(held.id)) == ("FAILED·partial", "RUNNING·paused")
    assert store.counts(other).failed == 3
    assert store.child_states(held) == {"PENDING·ready": 3}


def test_a_sync_that_was_paused_while_it_read_is_not_stale_when_it_reads_on(store: FanOuts) -> None:
    worker = store.worker(SLOTS)
    sync = store.sync(worker, stale_after=MINUTE)
    store.pretend(sync.id, ready_at=-1000)
    store.added(sync, keys(1))
    store.pause(sync.id)
    store.park(sync)
    store.settle()
    store.resume(sync.id)
    store.settle()
    assert store.state(sync.id) == "PENDING·ready"
    assert sync.id not in collect(store)


# --- the walk --------------------------------------------------------------------------------------------------------


def test_a_walk_in_small_steps_sees_every_ready_job_once(store: Store) -> None:
    places = [(queue, tenant, priority) for queue in "ab" for tenant in "xyz" for priority in (9, 4, 0)]
    ids = {
        waiting(store, queue=queue, tenant=tenant, priority=priority, lane=lane)
        for queue, tenant, priority in places
        for lane in ("", "f00d")
    }
    same = {waiting(store, tenant="x") for _ in range(5)}
    store.execute("UPDATE jobq_jobs SET ready_at = (SELECT min(ready_at) FROM jobq_jobs)")
    for step in (1, 3, 1000):
        walk, found = Walk(), list[UUID]()
        while not found or walk.place is not None:
            found += store.look(stale.look, walk, step)
        assert sorted(found) == sorted(ids | same)


def test_a_backlog_that_is_held_is_walked_past(store: Store) -> None:
    for _ in range(10):
        waiting(store, queue="held")
    store.do(control.pause_queue, "held", "ann")
    last = waiting(store, queue="open")
    assert collect(store, step=4) == {last}


def test_the_collector_goes_on_where_it_was_and_rests_at_the_end(store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(stale.look, "__defaults__", (2,))
    ids = [waiting(store) for _ in range(3)]
    collector = StaleCollector(store.database)
    assert collector.tick() < 1, "where some were, more may be"
    assert collector.tick() < 1
    assert collector.tick() > 1
    assert set(store.states(ids)) == {STALE}


# --- races -----------------------------------------------------------------------------------------------------------


def overdue_and_queued(store: Store, count: int) -> list[UUID]:
    ids = store.queued(count, stale_after=MINUTE)
    store.execute("UPDATE jobq_jobs SET ready_at = created_at")
    store.execute("UPDATE jobq_jobs SET stale_after = 0.000001")
    return ids


@pytest.mark.parametrize("round_", range(3))
def test_each_job_is_either_claimed_or_stale_and_collectors_end_it_once(store: Store, round_: int) -> None:
    worker = store.worker()
    ids = overdue_and_queued(store, 200)
    claimed: list[UUID] = []
    gone = threading.Event()

    def claim() -> None:
        for start in range(0, len(ids), 7):
            claimed.extend(job.id for job in store.claim(worker, ids[start : start + 7]))
        gone.set()

    def end(order: Iterable[UUID]) -> set[UUID]:
        done: set[UUID] = set()
        rest = list(order)
        while rest:
            part, rest = rest[:5], rest[5:]
            done |= store.do(stale.collect, part)
        return done

    _, first, second = in_threads(claim, lambda: end(ids[::-1]), lambda: end(ids[100:] + ids[:100]))
    assert gone.is_set()
    assert len(claimed) == len(set(claimed))
    assert set(claimed).isdisjoint(first | second)
    assert first.isdisjoint(second)
    left = set(ids) - set(claimed) - first - second
    assert {store.state(job_id) for job_id in claimed} <= {"RUNNING·executing"}
    assert {store.state(job_id) for job_id in first | second} <= {STALE}
    assert {store.state(job_id) for job_id in left} <= {"QUEUED·dispatched"}, "passed over, for the next round"


def test_a_job_that_was_claimed_between_the_look_and_the_end_is_left_alone(store: Store) -> None:
    worker = store.worker()
    (job_id,) = overdue_and_queued(store, 1)
    assert store.look(stale.look, Walk()) == [job_id]
    store.claim(worker, [job_id])
    assert store.do(stale.collect, [job_id]) == set()
    assert store.state(job_id) == "RUNNING·executing"


def test_a_job_that_a_claim_has_in_hand_is_passed_over(postgres: FanOuts) -> None:
    worker = postgres.worker()
    (job_id,) = overdue_and_queued(postgres, 1)
    with postgres.database.begin() as conn:
        assert claim(conn, Claimant(worker), QUEUE, [job_id])
        assert postgres.do(stale.collect, [job_id]) == set()
    assert postgres.state(job_id) == "RUNNING·executing"


def test_a_queue_that_was_paused_between_the_look_and_the_end_holds_its_jobs(store: Store) -> None:
    job_id = waiting(store)
    found = store.look(stale.look, Walk())
    store.do(control.pause_queue, QUEUE, "ann")
    assert found == [job_id]
    assert store.do(stale.collect, found) == set()
