"""Jobs that come after jobs: blocked until those have ended as they should, and never for longer."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.client import JobQ
from jobq.errors import NotFound
from jobq.models import Outcome
from jobq.settings import Settings
from jobq.states import Reason, Trigger
from jobq.store import control, jobs, prune, rollup, settle
from tests.fanouts import in_threads
from tests.stores import Store, ahead, failed

PLAIN = {"endpoint": "https://example.org/"}


@pytest.fixture
def jobq(database_url: str) -> Iterator[JobQ]:
    with JobQ(database_url, settings=Settings(database_url=database_url)) as client:
        yield client


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def after(store: Store, *upstreams: UUID, **fields: Any) -> UUID:
    return store.enqueue_one(after=upstreams, **fields)


# --- at the door -----------------------------------------------------------------------------------------------------


def test_applications_say_what_a_job_comes_after(jobq: JobQ) -> None:
    first = jobq.enqueue(PLAIN, kind="HEARTBEAT")
    second = jobq.enqueue(PLAIN, kind="HEARTBEAT", after=[first.id])
    third, fourth = jobq.enqueue_many(
        [{"spec": PLAIN, "kind": "HEARTBEAT", "after": [first.id, second.id]}, {"spec": PLAIN, "kind": "HEARTBEAT"}]
    )
    assert [jobq.get(job_id).reason for job_id in (first.id, second.id, third, fourth)] == [
        Reason.READY, Reason.BLOCKED, Reason.BLOCKED, Reason.READY
    ]  # fmt: skip
    assert str(first.id) in jobq.why(second.id)
    jobq.cancel(first.id)
    assert [jobq.get(job_id).reason for job_id in (second.id, third)] == [Reason.UPSTREAM_FAILED] * 2


def test_a_job_of_another_tenant_is_no_job_to_come_after(jobq: JobQ, database_url: str) -> None:
    with JobQ(database_url, tenant="umbrella", settings=jobq.settings) as other:
        foreign = other.enqueue(PLAIN, kind="HEARTBEAT")
    for unknown in (foreign.id, jobs.new_id()):
        with pytest.raises(NotFound, match=str(unknown)):
            jobq.enqueue(PLAIN, kind="HEARTBEAT", after=[unknown])
    assert jobq.list().items == []


# --- release ---------------------------------------------------------------------------------------------------------


def test_a_blocked_job_is_ready_once_all_its_upstreams_are_complete(store: Store, worker: UUID) -> None:
    one, other = store.running(worker, 2)
    waiting = after(store, one.id, other.id)
    store.end(worker, one)
    assert (store.state(waiting), store.promote()) == ("PENDING·blocked", {})
    store.end(worker, other)
    assert store.state(waiting) == "PENDING·ready"
    assert store.promote() == {"noop": [waiting]}


def test_a_job_after_jobs_that_are_complete_already_is_ready_at_once(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job)
    assert store.state(after(store, job.id)) == "PENDING·ready"
    assert store.state(after(store, job.id, scheduled_at=ahead(hours=1))) == "PENDING·scheduled"
    assert store.count("jobq_after") == 0


def test_a_skipped_upstream_is_a_complete_one(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    waiting = after(store, job.id)
    store.end(worker, job, Outcome.skipped("nothing to do"))
    assert store.state(waiting) == "PENDING·ready"


def test_a_job_for_later_is_scheduled_when_its_upstream_ends_before_its_time(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    waiting = after(store, job.id, scheduled_at=ahead(hours=1))
    assert store.job(waiting).due_at is None
    store.end(worker, job)
    assert (store.state(waiting), store.job(waiting).due_at) == ("PENDING·scheduled", store.job(waiting).scheduled_at)


def test_a_retry_of_the_upstream_is_not_its_end(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    waiting = after(store, job.id)
    store.end(worker, job, failed())
    assert store.state(waiting) == "PENDING·blocked"


# --- ends that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fails", "is canceled"])
def test_what_comes_after_a_job_that_ends_badly_is_canceled_and_so_on(store: Store, worker: UUID, how: str) -> None:
    job = store.running_one(worker)
    second = after(store, job.id)
    third = after(store, second)
    both = after(store, second, store.enqueue_one())
    store.end(worker, job, failed(retry=False) if how == "fails" else Outcome.stopped())
    assert store.states([second, third, both]) == ["CANCELED·upstream_failed"] * 3
    assert store.count("jobq_jobs", "message = 'a job before it failed or was canceled'") == 3


def test_a_job_after_one_that_ended_badly_is_canceled_when_it_comes(store: Store, worker: UUID) -> None:
    good, bad = store.running(worker, 2)
    store.end(worker, good)
    store.end(worker, bad, failed(retry=False))
    late = after(store, good.id, bad.id, store.enqueue_one())
    assert store.state(late) == "CANCELED·upstream_failed"
    assert store.state(after(store, late)) == "CANCELED·upstream_failed"
    assert store.count("jobq_after") == 0


def test_an_upstream_that_was_left_over_does_not_end_a_job_twice(store: Store, worker: UUID) -> None:
    one, other = store.running(worker, 2)
    waiting = after(store, one.id, other.id)
    store.end(worker, one, failed(retry=False))
    store.end(worker, other)
    assert store.state(waiting) == "CANCELED·upstream_failed"
    assert store.count("jobq_after") == 0


def test_a_chain_that_is_longer_than_the_stack_is_deep_ends_at_once(store: Store) -> None:
    chain = [store.enqueue_one()]
    for _ in range(600):
        chain.append(after(store, chain[-1]))
    store.cancel(chain[0])
    assert set(store.states(chain[1:])) == {"CANCELED·upstream_failed"}


# --- duplicates ------------------------------------------------------------------------------------------------------


def test_a_duplicate_is_followed_to_the_job_that_it_stands_for(store: Store, worker: UUID) -> None:
    job = store.running_one(worker, dedupe_key="k")
    duplicate = store.enqueue_one(dedupe_key="k")
    waiting = after(store, duplicate)
    assert store.state(waiting) == "PENDING·blocked"
    store.end(worker, job)
    assert store.states([waiting, after(store, duplicate)]) == ["PENDING·ready"] * 2


def test_a_duplicate_itself_waits_for_nothing(store: Store, worker: UUID) -> None:
    store.enqueue_one(dedupe_key="k")
    job = store.running_one(worker)
    assert store.state(after(store, job.id, dedupe_key="k")) == "CANCELED·duplicate"
    assert store.count("jobq_after") == 0


def test_a_job_whose_dedupe_key_comes_free_at_that_moment_is_blocked_no_longer_than_any(postgres: Store) -> None:
    """The holder of the key ends between the look at its row and the second try."""
    store = postgres
    upstream, holder = store.enqueue_one(), store.enqueue_one(dedupe_key="k")
    once: list[int] = []

    def end_the_holder(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not once and statement.startswith("INSERT INTO jobq_jobs"):
            once.append(1)
            store.cancel(holder)

    sa.event.listen(store.database.engine, "after_cursor_execute", end_the_holder)
    waiting = after(store, upstream, dedupe_key="k")
    assert (once, store.state(waiting)) == ([1], "PENDING·blocked")
    store.cancel(upstream)
    assert store.state(waiting) == "CANCELED·upstream_failed"


# --- people ----------------------------------------------------------------------------------------------------------


def pause(store: Store, job_id: UUID) -> None:
    store.do(control.pause, None, job_id, "ann")


def resume(store: Store, job_id: UUID) -> None:
    store.do(control.resume, None, job_id, "ann")


def test_a_blocked_job_that_is_paused_and_resumed_is_blocked_as_before(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    waiting = after(store, job.id, scheduled_at=ahead(hours=1))
    pause(store, waiting)
    assert store.state(waiting) == "PENDING·paused"
    resume(store, waiting)
    assert (store.state(waiting), store.job(waiting).due_at) == ("PENDING·blocked", None)
    store.end(worker, job)
    assert store.state(waiting) == "PENDING·scheduled"


def test_a_paused_job_stays_paused_when_its_upstream_ends(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    waiting = after(store, job.id)
    pause(store, waiting)
    store.end(worker, job)
    assert store.state(waiting) == "PENDING·paused"
    resume(store, waiting)
    assert store.state(waiting) == "PENDING·ready"


def test_a_canceled_job_is_blocked_by_nothing(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    waiting = after(store, job.id)
    store.cancel(waiting)
    store.end(worker, job)
    assert store.state(waiting) == "CANCELED·by_user"


# --- workflows -------------------------------------------------------------------------------------------------------


def test_a_manual_job_of_a_workflow_waits_for_what_it_names_only(store: Store, worker: UUID) -> None:
    flow = store.workflow()
    (automatic,) = store.add(store.job_of(flow, trigger=Trigger.AUTOMATIC))
    (manual,) = store.add(store.job_of(flow, after=(automatic,)))
    assert store.release_blocked() == 0
    assert store.state(manual) == "PENDING·blocked"
    store.promote()
    (job,) = store.claim(worker, [automatic])
    store.end(worker, job)
    assert store.state(manual) == "PENDING·ready"


def test_a_workflow_that_is_terminated_ends_what_waits_for_its_jobs(store: Store, worker: UUID) -> None:
    flow = store.workflow(max_consecutive_job_failures_allowed=1)
    waiting_slot = store.add(store.job_of(flow, trigger=Trigger.AUTOMATIC, max_attempts=1))[0]
    job = store.running_one(worker, workflow_id=flow.id, generation=flow.generation, max_attempts=1)
    dependent = after(store, waiting_slot)
    store.end(worker, job, failed(retry=False))
    assert store.states([waiting_slot, dependent]) == ["CANCELED·workflow_terminated", "CANCELED·upstream_failed"]


# --- races -----------------------------------------------------------------------------------------------------------


def test_a_job_that_comes_while_its_upstream_ends_is_never_left_blocked(postgres: Store) -> None:
    store = postgres
    worker = store.worker()
    for number in range(25):
        job = store.running_one(worker)
        outcome = failed(retry=False) if number % 2 else None
        waiting: list[UUID] = []
        in_threads(
            lambda job=job, outcome=outcome: store.end(worker, job, outcome),
            lambda job=job, waiting=waiting: waiting.append(after(store, job.id)),
            lambda job=job, waiting=waiting: waiting.append(after(store, job.id)),
        )
        expected = "CANCELED·upstream_failed" if number % 2 else "PENDING·ready"
        assert store.states(waiting) == [expected] * 2
        store.execute("UPDATE jobq_jobs SET reason = 'scheduled', due_at = created_at + interval '1 hour', "
                      "ready_at = NULL WHERE reason = 'ready'")  # fmt: skip
    assert store.count("jobq_after") == 0


def test_two_upstreams_that_end_at_once_release_the_job(postgres: Store) -> None:
    store = postgres
    worker = store.worker()
    for _ in range(15):
        one, other = store.running(worker, 2)
        waiting = after(store, one.id, other.id)
        in_threads(lambda one=one: store.end(worker, one), lambda other=other: store.end(worker, other))
        assert store.state(waiting) == "PENDING·ready"
        store.cancel(waiting)


def test_what_was_forgotten_is_freed_by_a_sweep(store: Store, worker: UUID) -> None:
    """A second line of defence: no end forgets anybody, so the end is written past it here."""
    job = store.running_one(worker)
    waiting = after(store, job.id)
    store.pretend(job.id, status="COMPLETED", reason="succeeded", finished_at=0, worker_id=None)
    assert store.do(settle.free_overdue, None) is None
    assert store.state(waiting) == "PENDING·ready"
    assert store.count("jobq_after") == 0


def test_the_sweep_goes_page_by_page_to_the_last(store: Store, worker: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "_UPSTREAMS", 2)
    upstreams = store.running(worker, 5)
    waiting = [after(store, job.id) for job in upstreams]
    for job in upstreams[1::2]:
        store.pretend(job.id, status="COMPLETED", reason="succeeded", finished_at=0, worker_id=None)
    behind, pages = None, 0
    while pages == 0 or behind is not None:
        behind, pages = store.do(settle.free_overdue, behind), pages + 1
    assert pages == 3
    ready, blocked = "PENDING·ready", "PENDING·blocked"
    assert store.states(waiting) == [blocked, ready, blocked, ready, blocked]


def test_retention_takes_no_job_that_somebody_waits_for(store: Store, worker: UUID) -> None:
    one, other = store.running(worker, 2)
    waiting = after(store, one.id, other.id)
    store.end(worker, one)
    store.pretend(one.id, finished_at=-10_000)
    store.do(rollup.roll_up, lag=0.0)
    store.do(prune.prune, prune.Kept.alike(60.0))
    store.end(worker, other)
    assert store.state(waiting) == "PENDING·ready"
