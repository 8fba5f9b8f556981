"""A worker takes jobs: each has one owner, and only a live worker becomes one."""

from datetime import timedelta
from uuid import UUID

import pytest

from jobq.store import claim as claims
from jobq.store import control, held, promote, workers
from jobq.store.claim import Claimant
from jobq.store.jobs import new_id
from tests.stores import QUEUE, Store, ahead, failed


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def test_a_claimed_job_runs_and_belongs_to_its_worker(store: Store, worker: UUID) -> None:
    (job_id,) = store.queued()
    (claimed,) = store.claim(worker, [job_id])
    job = store.job(job_id)
    assert (store.state(job_id), job.attempt, job.worker_id) == ("RUNNING·executing", 1, worker)
    assert (claimed.id, claimed.attempt, claimed.started_at) == (job_id, 1, job.started_at)
    assert store.row(job_id).next_send_at is None


def test_a_claim_brings_all_that_the_execution_needs(store: Store, worker: UUID) -> None:
    flow, at = store.workflow(), ahead(seconds=-1)
    (job_id,) = store.queued(
        spec={"a": [1]}, state=False, retry={"retry_lost": True}, workflow_id=flow.id, generation=1, timeout=2.5,
        name="é", scheduled_at=at, started_by='ann "é" {1}',
    )  # fmt: skip
    (claimed,) = store.claim(worker, [job_id])
    assert (claimed.spec, claimed.state, claimed.retry, claimed.checkpoint, claimed.started_by) == (
        {"a": [1]}, False, {"retry_lost": True}, None, 'ann "é" {1}',
    )  # fmt: skip
    assert (claimed.tenant, claimed.kind, claimed.name, claimed.queue, claimed.trigger) == (
        "acme", "NOOP", "é", QUEUE, "MANUAL",
    )  # fmt: skip
    assert (claimed.timeout, claimed.scheduled_at, claimed.workflow_id, claimed.parent_id) == (2.5, at, flow.id, None)


def test_claimed_jobs_come_in_the_order_of_their_ids_each_with_its_own_spec(store: Store, worker: UUID) -> None:
    ids = [store.enqueue_one(spec={"number": number}) for number in range(20)]
    store.promote()
    claimed = store.claim(worker, ids[::-1])
    assert [(job.id, job.spec["number"]) for job in claimed] == list(zip(ids, range(20), strict=True))


def test_only_queued_jobs_are_claimed_and_everything_else_in_a_hint_falls_away(store: Store, worker: UUID) -> None:
    other = store.worker()
    taken, ended, paused, waiting = store.queued(4)
    store.claim(other, [taken])
    store.cancel(ended)
    store.do(control.pause, None, paused, "ann")
    pending, later = store.enqueue_one(), store.enqueue_one(scheduled_at=ahead(hours=1))
    before = {job_id: store.row(job_id) for job_id in (taken, ended, paused, pending, later)}
    hint = [taken, ended, paused, waiting, pending, later, new_id()]
    assert [job.id for job in store.claim(worker, hint)] == [waiting]
    assert {job_id: store.row(job_id) for job_id in before} == before


def test_claiming_the_same_ids_again_takes_nothing(store: Store, worker: UUID) -> None:
    ids = store.queued(3)
    assert len(store.claim(worker, [*ids, *ids])) == 3
    assert store.claim(worker, ids) == []
    assert store.claim(store.worker(), ids) == []


def test_claiming_nothing_takes_nothing(store: Store, worker: UUID) -> None:
    store.queued()
    assert store.claim(worker, []) == []


def test_a_job_of_another_queue_is_not_claimed(store: Store) -> None:
    worker = store.worker({"a": 5, "b": 5})
    (job_id,) = store.queued(queue="a")
    assert store.claim(worker, [job_id], "b") == []
    assert len(store.claim(worker, [job_id], "a")) == 1


def test_a_dead_worker_cannot_claim(store: Store, worker: UUID) -> None:
    store.worker()
    ids = store.queued(2)
    store.do(workers.declare_dead, [worker])
    assert store.claim(worker, ids) == []
    assert store.claim_waiting(worker, 5) == []
    assert store.claim(new_id(), ids) == []  # nor one that never registered
    assert set(store.states(ids)) == {"QUEUED·dispatched"}


def test_a_worker_whose_lease_ran_out_may_claim_until_it_is_declared_dead(store: Store) -> None:
    store.worker()
    late = store.worker(lease=-5)
    assert len(store.claim(late, store.queued())) == 1


def test_attempts_grow_with_each_claim(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    for number in (2, 3):
        store.end(worker, job, failed())
        job = store.again(worker, job.id)
        assert job.attempt == store.job(job.id).attempt == number


# --- without a hint --------------------------------------------------------------------------------------------------


def test_a_worker_without_a_hint_takes_the_highest_priority_and_then_what_was_promoted_first(
    store: Store, worker: UUID
) -> None:
    first, low, high, last = (store.enqueue_one(priority=priority) for priority in (4, 0, 9, 4))
    store.promote()
    for place, job_id in enumerate((first, low, high, last)):
        store.pretend(job_id, next_send_at=-10 + place)
    taken = [store.claim_waiting(worker, 1)[0].id for _ in range(4)]
    assert taken == [high, first, last, low]


def test_a_worker_without_a_hint_takes_no_more_than_it_has_room_for(store: Store, worker: UUID) -> None:
    store.queued(5)
    assert len(store.claim_waiting(worker, 3)) == 3
    assert len(store.claim_waiting(worker, 3)) == 2
    assert store.claim_waiting(worker, 3) == []


def test_a_worker_without_a_hint_takes_from_one_queue(store: Store) -> None:
    worker = store.worker({"a": 5, "b": 5})
    store.queued(2, queue="a")
    assert store.claim_waiting(worker, 9, "b") == []
    assert len(store.claim_waiting(worker, 9, "a")) == 2


def test_a_job_that_is_not_promoted_is_not_taken_without_a_hint_either(store: Store, worker: UUID) -> None:
    store.enqueue(3)
    assert store.claim_waiting(worker, 9) == []


# --- work that lives somewhere ---------------------------------------------------------------------------------------


def test_work_that_lives_on_a_host_is_prepared_first_and_its_host_is_noted(store: Store, worker: UUID) -> None:
    plain, hosted = store.queued(2)
    store.pretend(hosted, kind="CONTAINER")
    store.claim(worker, [plain, hosted], host="engine-1", hosted=("CONTAINER",))
    assert (store.state(plain), store.row(plain).host) == ("RUNNING·executing", None)
    assert (store.state(hosted), store.row(hosted).host) == ("RUNNING·preparing", "engine-1")


def test_prepared_work_is_executing_only_for_its_owner_and_under_its_attempt(store: Store, worker: UUID) -> None:
    job = store.running(worker, host="engine-1")[0]
    store.do(held.mark_executing, store.worker(), [(job.id, 1)])
    store.do(held.mark_executing, worker, [(job.id, 0), (job.id, 2)])
    assert store.state(job.id) == "RUNNING·preparing"
    store.do(held.mark_executing, worker, [(job.id, 1), (new_id(), 1)])
    assert store.state(job.id) == "RUNNING·executing"


def test_what_an_attempt_saved_comes_with_the_next_claim(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.do(held.save_checkpoints, {job.id: {"position": 42, "at": "é"}})
    store.end(worker, job, failed())
    assert store.again(worker, job.id).checkpoint == {"position": 42, "at": "é"}


def test_saving_no_checkpoints_does_nothing(store: Store) -> None:
    store.do(held.save_checkpoints, {})


def test_a_claim_that_is_rolled_back_leaves_the_job_queued(store: Store, worker: UUID) -> None:
    (job_id,) = store.queued()
    with store.database.begin() as conn:
        assert claims.claim(conn, Claimant(worker), QUEUE, [job_id])
        conn.rollback()
    assert store.state(job_id) == "QUEUED·dispatched"
    assert store.row(job_id).attempt == 0


def test_a_job_starts_by_the_clock_of_the_database(store: Store, worker: UUID) -> None:
    before = store.look(workers.database_now)
    job = store.running_one(worker)
    after = store.look(workers.database_now)
    assert before - timedelta(milliseconds=1) <= job.started_at <= after


def test_no_limit_is_exceeded_while_the_planner_believes_the_table_to_be_empty(postgres: Store) -> None:
    worker, other = postgres.worker(), postgres.worker(host="here")
    postgres.enqueue()
    postgres.execute("DELETE FROM jobq_jobs")  # a table without pages is believed to have some
    with postgres.database.begin() as conn:
        conn.exec_driver_sql("ANALYZE jobq_jobs")
    postgres.queued(5)
    assert len(postgres.claim_waiting(worker, 2)) == 2
    postgres.enqueue(5, scheduled_at=ahead(hours=1))
    postgres.execute("UPDATE jobq_jobs SET due_at = created_at WHERE due_at IS NOT NULL")
    assert postgres.do(promote.wake, 2) == 2
    postgres.claim_waiting(worker, 3)
    postgres.execute("UPDATE jobq_jobs SET host = 'here' WHERE worker_id IS NOT NULL")
    postgres.do(workers.sign_off, worker)
    assert len(postgres.do(workers.adopt, other, "here", 2)) == 2
