"""What people do to jobs, queues and tenants; each intervention leaves an event."""

from typing import Any
from uuid import UUID

import pytest

from jobq.errors import Conflict, NotFound
from jobq.states import Desired, Trigger
from jobq.store import control, promote, workers
from jobq.store.jobs import new_id
from tests.stores import QUEUE, Store, ahead, failed, wanted


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def events(store: Store, subject: str) -> list[tuple[str, str, Any]]:
    return [(row.action, row.actor, row.detail) for row in store.look(control.list_events, subject)]


def pause(store: Store, job_id: UUID) -> None:
    store.do(control.pause, None, job_id, "ann")


def resume(store: Store, job_id: UUID) -> None:
    store.do(control.resume, None, job_id, "ann")


def queue(store: Store, name: str = QUEUE) -> dict[str, Any]:
    (found,) = (entry for entry in store.look(control.list_queues) if entry["name"] == name)
    return found


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_a_waiting_job_is_canceled_at_once_and_the_event_says_by_whom(store: Store, worker: UUID) -> None:
    (queued,) = store.queued()
    scheduled, ready = store.enqueue_one(scheduled_at=ahead(hours=1)), store.enqueue_one()
    for job_id in (queued, scheduled, ready):
        store.cancel(job_id, "bob")
        assert (store.state(job_id), store.job(job_id).message) == ("CANCELED·by_user", "canceled by bob")
        assert events(store, f"job:{job_id}") == [("cancel", "bob", None)]
    assert store.row(scheduled).due_at is None


def test_a_job_can_be_ended_under_its_worker_whose_report_is_then_refused(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.do(control.end, None, job.id, "bob")
    found = store.job(job.id)
    assert (store.state(job.id), found.error_class) == ("CANCELED·by_user", "forced")
    assert "ended by bob under its worker, whose work may have gone on" in found.message
    assert events(store, f"job:{job.id}") == [("cancel", "bob", {"forced": True})]
    (kept,) = store.attempts(job.id)
    assert (kept.outcome, kept.worker_id, kept.charged) == ("CANCELED", worker, False)
    assert store.end(worker, job) == set(), "the owner is fenced"
    assert job.id not in store.do(workers.renew, worker, 30.0, None).running
    with pytest.raises(Conflict, match="has ended as CANCELED"):
        store.do(control.end, None, job.id, "bob")


def test_ending_a_job_that_waits_is_canceling_it(store: Store, worker: UUID) -> None:
    job_id = store.enqueue_one()
    store.do(control.end, None, job_id, "bob")
    assert (store.state(job_id), store.attempts(job_id)) == ("CANCELED·by_user", [])


def test_a_paused_job_can_be_canceled(store: Store) -> None:
    job_id = store.enqueue_one()
    pause(store, job_id)
    store.cancel(job_id)
    assert store.state(job_id) == "CANCELED·by_user"


def test_a_job_between_two_attempts_is_canceled_at_once(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, failed())
    store.cancel(job.id)
    assert (store.state(job.id), store.job(job.id).failures) == ("CANCELED·by_user", 1)


def test_a_running_job_is_asked_to_stop_and_goes_on_until_it_does(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.cancel(job.id)
    store.cancel(job.id)  # asking twice is no mistake
    assert (store.state(job.id), wanted(store, job.id)) == ("RUNNING·executing", Desired.CANCEL)


def test_a_job_that_has_ended_cannot_be_canceled_paused_or_resumed(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job)
    for verb in (control.cancel, control.pause, control.resume):
        with pytest.raises(Conflict) as refused:
            store.do(verb, None, job.id, "ann")
        assert refused.value.code == "already_finished"
    assert events(store, f"job:{job.id}") == []


def test_another_tenants_job_cannot_be_touched(store: Store) -> None:
    job_id = store.enqueue_one(tenant="acme")
    for verb in (control.cancel, control.pause, control.resume):
        with pytest.raises(NotFound):
            store.do(verb, "other", job_id, "eve")
        with pytest.raises(NotFound):
            store.do(verb, "acme", new_id(), "eve")
    assert store.state(job_id) == "PENDING·ready"


# --- pause and resume ------------------------------------------------------------------------------------------------


def test_a_paused_job_waits_for_a_person_and_is_ready_when_resumed(store: Store, worker: UUID) -> None:
    ready, (queued,) = store.enqueue_one(), store.queued()
    for job_id in (ready, queued):
        pause(store, job_id)
        assert store.state(job_id) == "PENDING·paused"
    assert store.promote() == {}
    assert store.claim(worker, [ready, queued]) == []
    assert store.claim_waiting(worker, 9) == []
    for job_id in (ready, queued):
        resume(store, job_id)
        assert (store.state(job_id), wanted(store, job_id)) == ("PENDING·ready", Desired.RUN)
    assert set(store.promote()[QUEUE]) == {ready, queued}


def test_pausing_what_is_paused_changes_nothing(store: Store) -> None:
    job_id = store.enqueue_one()
    pause(store, job_id)
    before = store.row(job_id)
    pause(store, job_id)
    assert store.row(job_id) == before
    assert len(events(store, f"job:{job_id}")) == 1


def test_resuming_what_is_not_paused_changes_nothing(store: Store, worker: UUID) -> None:
    ready, running = store.enqueue_one(), store.running_one(worker).id
    before = [store.row(job_id) for job_id in (ready, running)]
    resume(store, ready)
    resume(store, running)
    assert [store.row(job_id) for job_id in (ready, running)] == before
    assert events(store, f"job:{ready}") == []


def test_a_scheduled_job_that_was_paused_keeps_its_instant(store: Store) -> None:
    at = ahead(hours=1)
    job_id = store.enqueue_one(scheduled_at=at)
    pause(store, job_id)
    assert store.job(job_id).due_at is None
    assert store.look(promote.seconds_to_next_due) is None
    resume(store, job_id)
    assert (store.state(job_id), store.job(job_id).due_at) == ("PENDING·scheduled", at)


def test_a_scheduled_job_whose_instant_passed_while_it_was_paused_is_ready(store: Store) -> None:
    job_id = store.enqueue_one(scheduled_at=ahead(hours=1))
    pause(store, job_id)
    store.pretend(job_id, scheduled_at=-1)
    resume(store, job_id)
    assert store.state(job_id) == "PENDING·ready"


def test_a_job_that_waits_for_a_retry_may_be_paused(store: Store, worker: UUID) -> None:
    job = store.running_one(worker)
    store.end(worker, job, failed())
    pause(store, job.id)
    store.do(promote.wake)
    assert store.state(job.id) == "PENDING·paused"
    resume(store, job.id)
    assert (store.state(job.id), store.job(job.id).failures) == ("PENDING·ready", 1)


def test_jobs_of_a_schedule_and_running_jobs_cannot_be_paused(store: Store, worker: UUID) -> None:
    running = store.running_one(worker)
    flow = store.workflow()
    (automatic,) = store.add(store.job_of(flow, trigger=Trigger.AUTOMATIC))
    for job_id in (running.id, automatic):
        before = store.row(job_id)
        with pytest.raises(Conflict) as refused:
            pause(store, job_id)
        assert refused.value.code == "not_pausable"
        assert refused.value.hint
        assert store.row(job_id) == before


# --- queues ----------------------------------------------------------------------------------------------------------


def test_pausing_a_queue_returns_what_was_promoted_and_leaves_what_runs(store: Store, worker: UUID) -> None:
    running = store.running_one(worker)
    first, second = store.queued(2)
    assert store.do(control.pause_queue, QUEUE, "ann") == 2
    row = store.row(first)
    assert store.states([first, second, running.id]) == ["PENDING·ready", "PENDING·ready", "RUNNING·executing"]
    assert (row.next_send_at, row.queued_at, row.attempt, row.failures) == (None, None, 0, 0)
    assert store.claim(worker, [first, second]) == []
    assert events(store, f"queue:{QUEUE}") == [("pause", "ann", None)]


def test_jobs_that_a_paused_queue_sent_back_keep_their_place(store: Store, worker: UUID) -> None:
    first, second = store.queued(2)
    younger = store.enqueue_one()
    store.pretend(first, ready_at=-20)
    store.pretend(second, ready_at=-10)
    store.do(control.pause_queue, QUEUE, "ann")
    store.do(control.resume_queue, QUEUE, "ann")
    assert store.promote()[QUEUE] == [first, second, younger]


def test_pausing_a_queue_twice_keeps_the_first_instant(store: Store) -> None:
    store.do(control.pause_queue, QUEUE, "ann")
    store.execute("UPDATE jobq_queues SET paused_at = '2026-01-01T00:00:00.000000Z'")
    assert store.do(control.pause_queue, QUEUE, "bob") == 0
    assert store.count("jobq_queues", "paused_at < '2026-01-02T00:00:00.000000Z'") == 1


def test_pausing_one_queue_leaves_the_others_alone(store: Store) -> None:
    store.worker({"a": 5, "b": 5})
    (job_id,) = store.queued(queue="a")
    assert store.do(control.pause_queue, "b", "ann") == 0
    assert store.state(job_id) == "QUEUED·dispatched"


def test_resuming_a_queue_that_was_never_paused_is_no_mistake(store: Store) -> None:
    store.do(control.resume_queue, QUEUE, "ann")
    assert events(store, f"queue:{QUEUE}") == []


def test_a_limit_survives_a_pause_and_a_pause_a_limit(store: Store) -> None:
    store.do(control.limit_queue, QUEUE, 3, "ann")
    store.do(control.pause_queue, QUEUE, "ann")
    store.do(control.limit_queue, QUEUE, 4, "ann")
    assert (queue(store)["limit"], queue(store)["paused"]) == (4, True)
    store.do(control.resume_queue, QUEUE, "ann")
    assert (queue(store)["limit"], queue(store)["paused"]) == (4, False)
    assert events(store, f"queue:{QUEUE}")[0] == ("limit", "ann", {"limit": 3})


def test_queues_are_listed_with_their_counts_whatever_makes_them_known(store: Store) -> None:
    worker = store.worker({"busy": 7, "idle": 1})
    store.enqueue(5, queue="busy")
    store.promote()
    store.claim_waiting(worker, 2, "busy")
    store.enqueue(3, queue="busy")
    store.enqueue(2, queue="unserved")
    store.do(control.pause_queue, "paused", "ann")
    store.do(control.limit_queue, "limited", 9, "ann")

    def entry(name: str, **differs: object) -> dict[str, object]:
        return {"name": name, "ready": 0, "in_flight": 0, "slots": 0, "limit": None, "paused": False, **differs}

    assert store.look(control.list_queues) == [
        entry("busy", ready=3, in_flight=5, slots=7),
        entry("idle", slots=1),
        entry("limited", limit=9),
        entry("paused", paused=True),
        entry("unserved", ready=2),
    ]


def test_without_anything_there_are_no_queues(store: Store) -> None:
    assert store.look(control.list_queues) == []
    assert store.look(control.list_tenants) == []


# --- tenants ---------------------------------------------------------------------------------------------------------


def test_weight_and_limit_of_a_tenant_are_set_apart_and_together(store: Store) -> None:
    store.do(control.set_tenant, "acme", "ann", weight=2.5)
    assert store.look(control.list_tenants) == [{"name": "acme", "weight": 2.5, "limit": None, "in_flight": 0}]
    store.do(control.set_tenant, "acme", "ann", limit=0)
    assert store.look(control.list_tenants) == [{"name": "acme", "weight": 2.5, "limit": 0, "in_flight": 0}]
    store.do(control.set_tenant, "acme", "ann", weight=1.0, unlimit=True)
    assert store.look(control.list_tenants) == [{"name": "acme", "weight": 1.0, "limit": None, "in_flight": 0}]
    assert [detail for _, _, detail in events(store, "tenant:acme")] == [
        {"weight": 2.5}, {"limit": 0}, {"weight": 1.0, "limit": None},
    ]  # fmt: skip


def test_setting_nothing_of_a_tenant_keeps_what_it_has(store: Store) -> None:
    store.do(control.set_tenant, "acme", "ann", weight=2.5, limit=7)
    store.do(control.set_tenant, "acme", "ann")
    assert store.look(control.list_tenants) == [{"name": "acme", "weight": 2.5, "limit": 7, "in_flight": 0}]


def test_tenants_are_listed_with_what_they_have_in_flight(store: Store) -> None:
    worker = store.worker()
    store.queued(2, tenant="acme")
    store.running(worker, 1, tenant="other")
    store.enqueue(tenant="waiting")
    assert [(entry["name"], entry["in_flight"]) for entry in store.look(control.list_tenants)] == [
        ("acme", 2), ("other", 1),
    ]  # fmt: skip
