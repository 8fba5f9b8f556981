"""Races, run for real: threads and processes on PostgreSQL. Whoever loses one is told, and nothing is done twice."""

import multiprocessing
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.errors import Conflict
from jobq.models import Outcome
from jobq.states import Trigger
from jobq.store import claim as claims
from jobq.store import control, promote, workers
from jobq.store.claim import Claimant
from jobq.store.database import Database
from jobq.store.tables import jobs as job_table
from tests.services import wait_until
from tests.stores import QUEUE, Store, ended, failed, new_job

Result = TypeVar("Result")
SPAWN = multiprocessing.get_context("spawn")
RETRIED = {"retry": {"retry_lost": True}}


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    database = Database(postgres_url, pool_size=16)
    yield Store(database)
    database.close()


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def at_once(*works: Callable[[], Result]) -> list[Result | Exception]:
    """What each of them returned or raised; they begin in the same moment."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Result]) -> Result | Exception:
        barrier.wait(10)
        try:
            return work()
        except Conflict as refused:
            return refused

    with ThreadPoolExecutor(len(works)) as threads:
        return [future.result(60) for future in [threads.submit(run, work) for work in works]]


@contextmanager
def meanwhile(*works: Callable[[], Any]) -> Iterator[None]:
    """Each of them again and again, as long as the block lasts; what one raises is raised at its end."""
    stop = threading.Event()

    def again(work: Callable[[], Any]) -> None:
        while not stop.is_set():
            work()

    with ThreadPoolExecutor(len(works)) as threads:
        futures = [threads.submit(again, work) for work in works]
        try:
            yield
        finally:
            stop.set()
    for future in futures:
        future.result()


# --- claim -----------------------------------------------------------------------------------------------------------


def test_eight_workers_that_got_the_same_hints_in_any_order_share_the_jobs(store: Store) -> None:
    ids = store_queue(store, 240)
    owners = [store.worker() for _ in range(8)]

    def take(owner: UUID) -> list[UUID]:
        mine = random.sample(ids, len(ids))
        return [job.id for start in range(0, 240, 40) for job in store.claim(owner, mine[start : start + 40])]

    taken = at_once(*(lambda owner=owner: take(owner) for owner in owners))
    for owner, got in zip(owners, taken, strict=True):
        assert {store.job(job_id).worker_id for job_id in got} <= {owner}
    assert Counter(job_id for got in taken for job_id in got) == Counter(ids)
    assert store.count("jobq_jobs", "status = 'RUNNING' AND attempt = 1") == 240


def store_queue(store: Store, count: int, **fields: Any) -> list[UUID]:
    """So many queued jobs."""
    store.worker({QUEUE: count})
    return store.queued(count, **fields)


def test_eight_workers_without_hints_share_the_jobs(store: Store) -> None:
    ids = store_queue(store, 200)
    owners = [store.worker() for _ in range(8)]

    def take(owner: UUID) -> list[UUID]:
        got: list[UUID] = []
        while found := store.claim_waiting(owner, 7):
            got += [job.id for job in found]
        return got

    taken = at_once(*(lambda owner=owner: take(owner) for owner in owners))
    # a worker that found nothing may have met only rows that another one was just taking
    rest = take(owners[0])
    assert Counter(job_id for got in [*taken, rest] for job_id in got) == Counter(ids)


def claim_in_a_process(url: str, owner: UUID, ids: list[UUID], results: Any) -> None:
    database = Database(url)
    random.shuffle(ids)
    taken = [
        job.id
        for start in range(0, len(ids), 25)
        for job in database.run(
            lambda conn, start=start: claims.claim(conn, Claimant(owner), QUEUE, ids[start : start + 25])
        )
    ]
    database.close()
    results.put(taken)


def test_processes_share_the_jobs_as_threads_do(store: Store, postgres_url: str) -> None:
    ids = store_queue(store, 200)
    results = SPAWN.Queue()
    processes = [
        SPAWN.Process(target=claim_in_a_process, args=(postgres_url, store.worker(), ids, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    taken = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    results.close()
    results.join_thread()
    assert Counter(job_id for got in taken for job_id in got) == Counter(ids)


def test_a_worker_that_is_declared_dead_while_it_claims_owns_only_what_is_recovered(store: Store) -> None:
    for _ in range(20):
        owner = store.worker()
        ids = store_queue(store, 5, **RETRIED)
        claimed, _ = at_once(
            lambda owner=owner, ids=ids: store.claim(owner, ids),
            lambda owner=owner: store.do(workers.declare_dead, [owner]),
        )
        assert not isinstance(claimed, Exception)
        released = store.do(workers.release_lost, reattach_grace=0.0)
        assert released == len(claimed)
        assert store.count("jobq_jobs", "status = 'RUNNING'") == 0


def test_what_the_dead_left_on_a_host_gets_one_heir(store: Store) -> None:
    dead = store.worker(host="engine")
    ids = {job.id for job in store.running(dead, 60, host="engine")}
    store.do(workers.declare_dead, [dead])
    heirs = [store.worker(host="engine") for _ in range(4)]
    taken = at_once(*(lambda heir=heir: store.do(workers.adopt, heir, "engine", 30) for heir in heirs))
    got = Counter(job.id for found in taken for job in found)
    assert set(got) <= ids
    assert set(got.values()) <= {1}
    for heir, found in zip(heirs, taken, strict=True):
        assert {store.job(job.id).worker_id for job in found} <= {heir}


# --- ends ------------------------------------------------------------------------------------------------------------


def test_of_record_cancel_and_reap_one_ends_the_attempt_and_the_others_are_told(store: Store) -> None:
    wins: Counter[str] = Counter()
    for _ in range(40):
        owner = store.worker()
        job = store.running_one(owner, **RETRIED)
        store.do(workers.declare_dead, [owner])
        recorded, reaped, canceled = at_once(
            lambda owner=owner, job=job: store.end(owner, job),
            lambda: store.do(workers.release_lost, reattach_grace=300.0),
            lambda job=job: store.cancel(job.id),
        )
        assert (recorded == {job.id}) != (reaped == 1)
        (kept,) = store.attempts(job.id)
        state = store.state(job.id)
        if recorded:
            assert (kept.outcome, state) == ("COMPLETED", "COMPLETED·succeeded")
        else:
            assert not isinstance(canceled, Conflict)  # a lost job would have been tried again: it can be canceled
            assert (kept.outcome, state) == ("LOST", "CANCELED·by_user")
        wins["recorded" if recorded else "reaped"] += 1
    assert sum(wins.values()) == 40


@pytest.mark.parametrize(
    "outcome",
    [failed(), Outcome.stopped(), Outcome.requeued(timedelta(minutes=1), "429")],
    ids=["fail", "stop", "requeue"],
)
def test_a_job_that_is_canceled_while_its_failure_is_recorded_is_not_tried_again(
    store: Store, worker: UUID, outcome: Outcome
) -> None:
    for _ in range(25):
        job = store.running_one(worker)
        recorded, canceled = at_once(
            lambda job=job: store.end(worker, job, outcome), lambda job=job: store.cancel(job.id)
        )
        assert recorded == {job.id}
        if isinstance(canceled, Conflict):
            assert outcome.status == "CANCELED"
        assert store.state(job.id) == "CANCELED·by_user"


def test_two_reapers_release_each_lost_job_once(store: Store, worker: UUID) -> None:
    jobs = store.running(worker, 60, **RETRIED)
    store.do(workers.declare_dead, [worker])
    released = at_once(*(lambda: store.do(workers.release_lost, reattach_grace=0.0, limit=40) for _ in range(3)))
    rest = store.do(workers.release_lost, reattach_grace=0.0)
    assert sum(released) + rest == 60
    assert {store.job(job.id).failures for job in jobs} == {1}
    assert store.count("jobq_attempts") == 60


def test_batches_in_any_order_end_each_job_once_and_none_is_lost_to_a_deadlock(store: Store, worker: UUID) -> None:
    jobs = store.running(worker, 300, max_attempts=1)

    def record_all(seed: int) -> set[UUID]:
        order = random.Random(seed).sample(jobs, len(jobs))
        written: set[UUID] = set()
        for start in range(0, len(order), 50):
            batch = order[start : start + 50]
            written |= store.record(worker, *(ended(job, failed() if job.id.int % 3 else None) for job in batch))
        return written

    written = at_once(*(lambda seed=seed: record_all(seed) for seed in range(4)))
    assert Counter(job_id for ids in written for job_id in ids) == Counter(job.id for job in jobs)
    assert store.count("jobq_attempts") == 300
    assert store.count("jobq_jobs", "status = 'RUNNING'") == 0


def test_no_failure_is_lost_to_the_counter_and_the_threshold_is_met_once(store: Store, worker: UUID) -> None:
    flows = [store.workflow(max_consecutive_job_failures_allowed=40) for _ in range(2)]
    for flow in flows:
        store.add(*(store.job_of(flow, trigger=Trigger.AUTOMATIC) for _ in range(60)))
    store.promote()
    jobs = store.claim_waiting(worker, 1000)
    assert len(jobs) == 120
    waiting = {flow.id: store.add(store.job_of(flow, trigger=Trigger.AUTOMATIC))[0] for flow in flows}
    random.shuffle(jobs)
    parts = [jobs[number::4] for number in range(4)]

    def fail(part: list[Any]) -> int:
        return sum(
            len(store.record(worker, *(ended(job, failed()) for job in part[at : at + 5]))) for at in range(0, 30, 5)
        )

    assert at_once(*(lambda part=part: fail(part) for part in parts)) == [30] * 4
    for flow in flows:
        after = store.flow(flow)
        assert (after.status, after.consecutive_failures) == ("TERMINATED", 60)
        assert store.state(waiting[flow.id]) == "CANCELED·workflow_terminated"


def test_a_blocked_job_is_never_forgotten_however_its_arrival_and_the_end_of_the_earlier_one_meet(store: Store) -> None:
    worker = store.worker()
    flow = store.workflow(interval=timedelta(minutes=1), overlap="queue", misfire="skip")
    for _ in range(20):
        store.due(store.flow(flow), 0)
        store.materialize()
        store.promote()
        (running,) = store.claim_waiting(worker, 5)
        store.due(store.flow(flow), 0)
        at_once(lambda running=running: store.end(worker, running), store.materialize)
        store.release_blocked()
        (newest,) = (job for job in store.jobs_of(flow) if not job.finished)
        assert newest.reason == "ready"
        store.promote()
        (running,) = store.claim_waiting(worker, 5)
        store.end(worker, running)


# --- promotion -------------------------------------------------------------------------------------------------------


def test_three_schedulers_at_once_never_exceed_a_limit(store: Store) -> None:
    # given limits of every sort, and far more room than they allow
    worker = store.worker({QUEUE: 500, "other": 500})
    flow = store.workflow(concurrency=4)
    store.do(control.limit_queue, QUEUE, 20, "ann")
    store.do(control.set_tenant, "small", "ann", limit=3)
    for queue in (QUEUE, "other"):
        store.enqueue(150, queue=queue, tenant="small")
        store.enqueue(150, queue=queue, tenant="large")
        store.add(*(store.job_of(flow, queue=queue, lane=flow.id.hex) for _ in range(60)))
    worst: Counter[str] = Counter()
    promoted: Counter[UUID] = Counter()

    def scheduler() -> Callable[[], None]:
        cursor = promote.Cursor()

        def tick() -> None:
            done = store.do(promote.promote, {QUEUE: 50, "other": 50}, cursor)
            promoted.update(job_id for ids in done.batches.values() for job_id in ids)

        return tick

    def end_some() -> None:
        for queue in (QUEUE, "other"):
            store.record(worker, *(ended(job) for job in store.claim_waiting(worker, 5, queue)))

    def look() -> None:
        load = store.look(promote.read_load)
        for name, count in (
            ("queue", load.queues[QUEUE]),
            ("tenant", load.tenants["small"]),
            ("lane", load.lanes[flow.id.hex]),
        ):
            worst[name] = max(worst[name], count)

    # when three promote while jobs end
    with meanwhile(scheduler(), scheduler(), scheduler(), end_some, look):
        wait_until(lambda: store.count("jobq_jobs", "finished_at IS NOT NULL") > 250, timeout=60, interval=0.1)
    # then
    assert worst == {"queue": 20, "tenant": 3, "lane": 4}
    assert set(promoted.values()) == {1}


def test_a_limit_holds_from_the_moment_that_setting_it_returned(store: Store) -> None:
    store.worker({QUEUE: 500})
    for _ in range(5):
        store.enqueue(100)
        with meanwhile(store.promote):
            before = len(store.look(control.list_queues))
            assert before == 1
            store.do(control.limit_queue, QUEUE, 0, "ann")
            in_flight = store.look(control.list_queues)[0]["in_flight"]
            store.enqueue(50)
            store.promote()
            assert store.look(control.list_queues)[0]["in_flight"] == in_flight
        store.do(control.limit_queue, QUEUE, None, "ann")


def test_nothing_of_a_queue_starts_once_its_pause_has_returned(store: Store) -> None:
    owners = [store.worker() for _ in range(3)]
    for _ in range(10):
        store.enqueue(60)
        with meanwhile(store.promote, *(lambda owner=owner: store.claim_waiting(owner, 2) for owner in owners)):
            wait_until(lambda: store.count("jobq_jobs", "status = 'RUNNING'"))
            store.do(control.pause_queue, QUEUE, "ann")
            running = store.count("jobq_jobs", "status = 'RUNNING'")
            assert store.count("jobq_jobs", "status = 'QUEUED'") == 0
            assert [store.claim_waiting(owner, 9) for owner in owners] == [[], [], []]
            assert store.count("jobq_jobs", "status = 'RUNNING'") == running
        store.execute("DELETE FROM jobq_jobs")
        store.do(control.resume_queue, QUEUE, "ann")


def test_pausing_a_queue_waits_for_who_looks_into_its_hints_just_now(store: Store) -> None:
    (job_id,) = store_queue(store, 1)
    store.pretend(job_id, next_send_at=-1)
    with ThreadPoolExecutor(1) as threads:
        with store.database.begin() as conn:
            assert [job.id for job in promote.unclaimed(conn)] == [job_id]
            pausing = threads.submit(store.do, control.pause_queue, QUEUE, "ann")
            wait_until(lambda: store.count("pg_locks", "NOT granted") or pausing.done())
        assert pausing.result(10) == 1
    assert store.state(job_id) == "PENDING·ready"


# --- dedupe ----------------------------------------------------------------------------------------------------------


def test_of_many_jobs_with_one_key_at_once_exactly_one_lives(store: Store) -> None:
    for number in range(5):
        key = f"key {number}"
        jobs = [[new_job(dedupe_key=key) for _ in range(5)] for _ in range(8)]
        at_once(*(lambda part=part: store.add(*part) for part in jobs))
        shown = [store.job(job.id) for part in jobs for job in part]
        (live,) = (job for job in shown if not job.finished)
        others = [job for job in shown if job.finished]
        assert len(others) == 39
        assert {(job.status, job.reason, job.duplicate_of) for job in others} == {("CANCELED", "duplicate", live.id)}


def test_a_key_that_changes_hands_all_the_time_never_has_two_holders_and_loses_no_job(store: Store) -> None:
    accepted: list[UUID] = []

    def enqueue() -> None:
        accepted.extend(store.add(new_job(dedupe_key="key")))

    def end_holder() -> None:
        for job in store.look(_live):
            try:
                store.cancel(job)
            except Conflict:
                continue

    with meanwhile(enqueue, enqueue, enqueue, end_holder):
        wait_until(lambda: len(accepted) > 300, timeout=60)
    assert store.count("jobq_jobs") == store.count("jobq_job_data") == len(accepted)
    assert store.count("jobq_jobs", "finished_at IS NULL") <= 1
    ends = {store.state(job_id) for job_id in accepted}
    assert ends <= {"PENDING·ready", "CANCELED·by_user", "CANCELED·duplicate"}


def _live(conn: Any) -> list[UUID]:
    return list(conn.scalars(sa.select(job_table.c.id).where(job_table.c.finished_at.is_(None))))


# --- leases ----------------------------------------------------------------------------------------------------------


def test_of_a_renewal_and_a_declaration_of_death_the_later_one_sees_the_earlier(store: Store) -> None:
    for _ in range(25):
        late = store.worker(lease=-1)
        renewal, dead = at_once(
            lambda late=late: store.do(workers.renew, late, 30.0, None), lambda: store.do(workers.declare_dead)
        )
        assert renewal.alive is (late not in dead)


def test_a_job_whose_workflow_is_terminated_while_its_failure_is_recorded_is_not_tried_again(
    store: Store, worker: UUID
) -> None:
    other = store.worker()
    for _ in range(25):
        flow = store.workflow(max_consecutive_job_failures_allowed=1)
        ids = store.add(*(store.job_of(flow, trigger=Trigger.AUTOMATIC, max_attempts=5) for _ in range(2)))
        store.promote()
        (last,), (tried_again,) = store.claim(worker, ids[:1]), store.claim(other, ids[1:])
        at_once(
            lambda last=last: store.end(worker, last, failed(retry=False)),
            lambda tried_again=tried_again: store.end(other, tried_again, failed()),
        )
        assert store.flow(flow).status == "TERMINATED"
        assert store.state(tried_again.id) in {"FAILED·error", "CANCELED·workflow_terminated"}
