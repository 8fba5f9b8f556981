"""Why a job is where it is: one test for each sentence."""

import re
from datetime import timedelta
from uuid import UUID

import pytest

from jobq.errors import NotFound
from jobq.models import Outcome
from jobq.retry import RetryPolicy
from jobq.store import control, workers
from jobq.store import why as reasons
from jobq.store.jobs import new_id
from tests.stores import QUEUE, Store, ahead, failed

INSTANT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker({QUEUE: 5})


@pytest.fixture
def scheduler(store: Store) -> UUID:
    scheduler = new_id()
    store.do(workers.scheduler_seen, scheduler, "here:1", "0.1")
    return scheduler


def says(store: Store, job_id: UUID, sentence: str) -> bool:
    """``sentence`` with an asterisk for an instant."""
    pattern = re.escape(sentence).replace(r"\*", INSTANT)
    text = store.why(job_id)
    assert re.fullmatch(pattern, text), text
    return True


# --- pending ---------------------------------------------------------------------------------------------------------


def test_scheduled(store: Store) -> None:
    job_id = store.enqueue_one(scheduled_at=ahead(seconds=90.4))
    assert re.fullmatch(rf"Not due until {INSTANT} \(in (89|90) s\)\.", store.why(job_id))


def test_scheduled_and_overdue(store: Store) -> None:
    job_id = store.enqueue_one(scheduled_at=ahead(hours=1))
    store.pretend(job_id, due_at=-3)
    assert says(store, job_id, "Not due until * (now).")


def test_ready_without_a_worker(store: Store) -> None:
    job_id = store.enqueue_one()
    assert says(store, job_id, "Ready, but there is no live worker for queue noop. Start one: jobq worker -Q noop:4.")


def test_ready_in_a_paused_queue(store: Store, worker: UUID) -> None:
    store.do(control.pause_queue, QUEUE, "ann")
    assert says(store, store.enqueue_one(), "Ready, but queue noop is paused. Open it again: jobq queue resume noop.")


def test_ready_in_a_queue_at_its_limit(store: Store, worker: UUID) -> None:
    store.do(control.limit_queue, QUEUE, 2, "ann")
    store.queued(2)
    assert says(
        store, store.enqueue_one(), "Ready, but queue noop is at its limit 2/2. Raise it: jobq queue limit noop N."
    )


def test_ready_of_a_tenant_at_its_limit(store: Store, worker: UUID) -> None:
    store.do(control.set_tenant, "acme", "ann", limit=1)
    store.queued()
    assert says(store, store.enqueue_one(), "Ready, but the limit 1/1 of tenant acme is reached.")
    assert "limit" not in store.why(store.enqueue_one(tenant="other"))


def test_ready_of_a_workflow_at_its_concurrency(store: Store, worker: UUID) -> None:
    flow = store.workflow(name="nightly", concurrency=1)
    first, second = store.add(*(store.job_of(flow, lane=flow.id.hex) for _ in range(2)))
    store.promote()
    assert store.state(first) == "QUEUED·dispatched"
    assert says(store, second, "Ready, but workflow 'nightly' is at its concurrency 1/1.")


def test_ready_while_all_slots_are_taken(store: Store, worker: UUID) -> None:
    store.queued(5)
    store.enqueue(2, priority=9)
    store.enqueue(1, priority=9, tenant="other")
    job_id = store.enqueue_one()
    assert says(
        store, job_id,
        "Ready since *: all 5 worker slots of queue noop are taken (5 jobs in flight), "
        "and 2 of its tenant's jobs go before it.",
    )  # fmt: skip


def test_ready_without_a_scheduler(store: Store, worker: UUID) -> None:
    assert says(
        store, store.enqueue_one(), "Ready, but no scheduler is running to promote it. Start one: jobq scheduler."
    )


def test_ready_and_next(store: Store, worker: UUID, scheduler: UUID) -> None:
    store.pretend(store.enqueue_one(), ready_at=-60)
    store.enqueue_one(priority=0)
    job_id = store.enqueue_one()
    assert says(store, job_id, "Ready since *, 1 of its tenant's jobs go before it: it is promoted within moments.")


def test_retrying(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    retry = RetryPolicy(initial=timedelta(seconds=100), jitter=0)
    store.end(worker, job, failed("Connection refused."), retry=retry)
    text = store.why(job.id)
    assert re.fullmatch(
        rf"Try 2 of 3 starts at {INSTANT} \(in (99|100) s\)\. Last failure: Connection refused\.", text
    ), text


def test_requeued(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, Outcome.requeued(timedelta(seconds=100), "429 from crm"))
    text = store.why(job.id)
    assert re.fullmatch(
        rf"Given back 1 times, at no charge: 429 from crm\. It goes on at {INSTANT} \(in (99|100) s\)\.", text
    ), text


def test_blocked(store: Store) -> None:
    job_id = store.enqueue_one(blocked=True)
    assert says(
        store, job_id,
        "An earlier job has to end first: the workflow's overlap policy lets one of its jobs run at a time.",
    )  # fmt: skip


def test_paused(store: Store) -> None:
    job_id = store.enqueue_one()
    store.do(control.pause, None, job_id, "ann")
    assert says(store, job_id, "Paused by a person; it waits until somebody resumes it.")


# --- queued ----------------------------------------------------------------------------------------------------------


def test_queued(store: Store, worker: UUID) -> None:
    assert says(
        store, store.queued()[0],
        "Promoted at *: a worker of queue noop (5 worker slots) will claim it as soon as one is free. "
        "Its hint is sent again if nobody does.",
    )  # fmt: skip


def test_queued_after_the_workers_went(store: Store, worker: UUID) -> None:
    (job_id,) = store.queued()
    store.do(workers.sign_off, worker)
    assert says(
        store, job_id,
        "Promoted at *, but the workers of queue noop have gone since: no live worker serves it now.",
    )  # fmt: skip


# --- running ---------------------------------------------------------------------------------------------------------


def name(worker: UUID) -> str:
    return f"here:{worker.hex[-6:]}"


def test_running(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    assert says(store, job.id, f"Attempt 1 of at most 3 is executing on {name(worker)} since *.")


def test_being_prepared(store: Store, worker: UUID) -> None:
    job = store.running(worker, host="engine-1")[0]
    assert says(
        store, job.id, f"Attempt 1 of at most 3 is being prepared (image, container) on {name(worker)} since *."
    )


def test_running_and_canceled(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.cancel(job.id)
    assert says(
        store, job.id,
        f"Attempt 1 of at most 3 is executing on {name(worker)} since *. "
        "Its cancellation was requested and reaches the worker within a renewal of its lease (5 s).",
    )  # fmt: skip


def test_running_on_a_worker_that_died(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.do(workers.declare_dead, [worker])
    assert says(
        store, job.id,
        f"Attempt 1 was running on {name(worker)}, which died at *; "
        "it is taken over or ended as soon as the scheduler is sure.",
    )  # fmt: skip


# --- ended -----------------------------------------------------------------------------------------------------------


def test_completed(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job)
    assert says(store, job.id, "Ended COMPLETED·succeeded at * in attempt 1.")


def test_failed(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, failed("exit code 3.", retry=False))
    assert says(store, job.id, "Ended FAILED·error at * in attempt 1: exit code 3.")


def test_canceled_before_it_began(store: Store) -> None:
    job_id = store.enqueue_one()
    store.cancel(job_id, "bob")
    assert says(store, job_id, "Ended CANCELED·by_user at *: canceled by bob.")


def test_a_duplicate(store: Store) -> None:
    first, second = store.enqueue(2, dedupe_key="nightly")
    assert says(store, second, f"Ended CANCELED·duplicate at *: job {first} held its dedupe key 'nightly'.")


def test_another_tenants_job_is_not_explained(store: Store) -> None:
    job_id = store.enqueue_one(tenant="acme")
    with pytest.raises(NotFound):
        store.look(reasons.why, "other", job_id)
    assert store.look(reasons.why, "acme", job_id)
