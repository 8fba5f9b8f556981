"""Jobs come in: every accepted one is there once, as it was asked for."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from jobq.errors import Conflict, NotFound
from jobq.models import JobFilter
from jobq.states import Desired, Status, Trigger
from jobq.store import jobs
from jobq.store.jobs import new_id
from jobq.store.listing import list_page
from tests.stores import Store, ahead, failed, new_job


def test_an_enqueued_job_is_pending_and_ready_at_once(store: Store) -> None:
    job = store.job(store.enqueue_one(timeout=12.5, max_attempts=7, queue="probes", kind="HEARTBEAT"))
    assert (job.status, job.reason, job.desired) == (Status.PENDING, "ready", Desired.RUN)
    assert (job.trigger, job.attempt, job.failures, job.requeues) == (Trigger.MANUAL, 0, 0, 0)
    assert (job.timeout, job.max_attempts, job.queue, job.kind) == (12.5, 7, "probes", "HEARTBEAT")
    assert job.ready_at == job.created_at
    assert job.due_at is job.queued_at is job.started_at is job.finished_at is None


def test_instants_come_back_aware_and_in_utc(store: Store) -> None:
    asked = ahead(hours=3).replace(microsecond=123456)
    job = store.job(store.enqueue_one(scheduled_at=asked))
    assert job.scheduled_at == asked
    assert job.scheduled_at.utcoffset() == timedelta(0)
    assert abs(job.created_at - ahead()) < timedelta(seconds=10)


def test_a_job_for_later_is_scheduled_and_due_at_that_instant(store: Store) -> None:
    job = store.job(store.enqueue_one(scheduled_at=ahead(hours=1)))
    assert (job.status, job.reason) == (Status.PENDING, "scheduled")
    assert job.due_at == job.scheduled_at
    assert job.ready_at is None


def test_a_job_for_an_instant_that_has_passed_is_ready(store: Store) -> None:
    job = store.job(store.enqueue_one(scheduled_at=ahead(seconds=-5)))
    assert (job.reason, job.due_at) == ("ready", None)
    assert job.ready_at is not None


def test_many_jobs_are_enqueued_in_one_call_and_their_ids_keep_its_order(store: Store) -> None:
    new = [new_job(name=f"job {number}") for number in range(500)]
    assert store.add(*new[::-1]) == [job.id for job in new[::-1]]
    assert store.count("jobq_jobs") == store.count("jobq_job_data") == 500


def test_enqueueing_nothing_does_nothing(store: Store) -> None:
    assert store.add() == []


def test_ids_sort_by_the_time_of_their_creation() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


def test_priority_zero_is_a_priority(store: Store) -> None:
    assert store.job(store.enqueue_one(priority=0)).priority == 0


@pytest.mark.parametrize("name", ["Zürich 🚆 — nächtlich", "a'b\"c\\d", "%s :name {x} $1", "عربي", " "])
def test_names_may_hold_any_character(store: Store, name: str) -> None:
    job_id = store.enqueue_one(name=name, tenant=f"t {name}", dedupe_key=name)
    job = store.look(jobs.get, f"t {name}", job_id)
    assert (job.name, job.dedupe_key) == (name, name)


@pytest.mark.parametrize(
    "state", [None, 0, 1, -1.5, False, True, "", "text", "null", "{}", [], {}, [None], {"a": [1, {"b": None}]}, "é😀\\"]
)
def test_the_state_of_a_trigger_comes_back_as_it_was(store: Store, state: Any) -> None:
    data = store.look(jobs.get_data, store.enqueue_one(state=state))
    assert data.state == state
    assert type(data.state) is type(state)


def test_spec_and_retry_policy_come_back_as_they_were(store: Store) -> None:
    spec = {
        "image": "busybox",
        "command": ["sh", "-c", "echo 'é' \"$1\""],
        "nested": {"empty": {}, "none": None, "x": 1.5},
    }
    data = store.look(jobs.get_data, store.enqueue_one(spec=spec, retry={"retry_lost": False}))
    assert (data.spec, data.retry, data.checkpoint) == (spec, {"retry_lost": False}, None)


def test_an_empty_spec_is_a_spec(store: Store) -> None:
    assert store.look(jobs.get_data, store.enqueue_one(spec={})).spec == {}


# --- repetition ------------------------------------------------------------------------------------------------------


def test_enqueueing_the_same_ids_again_changes_nothing(store: Store) -> None:
    new = [new_job(), new_job(dedupe_key="nightly"), new_job(dedupe_key="nightly")]
    store.add(*new)
    before = [store.row(job.id) for job in new]
    assert store.add(*new) == [job.id for job in new]
    assert [store.row(job.id) for job in new] == before
    assert store.count("jobq_jobs") == store.count("jobq_job_data") == 3


def test_a_repetition_adds_only_what_is_missing(store: Store) -> None:
    first, second = new_job(), new_job()
    store.add(first)
    store.add(first, second)
    assert store.count("jobq_jobs") == store.count("jobq_job_data") == 2


def test_a_repetition_after_the_job_ended_does_not_bring_it_back(store: Store) -> None:
    job = new_job()
    store.add(job)
    store.cancel(job.id)
    store.add(job)
    assert store.state(job.id) == "CANCELED·by_user"


def test_what_an_application_rolls_back_was_never_enqueued(store: Store) -> None:
    job = new_job()
    with store.database.begin() as conn:
        jobs.enqueue(conn, [job])
        conn.rollback()
    with pytest.raises(NotFound):
        store.job(job.id)


# --- dedupe ----------------------------------------------------------------------------------------------------------


def test_a_second_job_with_the_key_of_a_live_one_is_recorded_as_its_duplicate(store: Store) -> None:
    first, second = store.enqueue_one(dedupe_key="nightly"), store.enqueue_one(dedupe_key="nightly", state={"kept": 1})
    job = store.job(second)
    assert store.state(second) == "CANCELED·duplicate"
    assert (job.duplicate_of, job.finished_at) == (first, job.created_at)
    assert store.look(jobs.get_data, second).state == {"kept": 1}
    assert store.state(first) == "PENDING·ready"


def test_of_two_jobs_with_one_key_in_one_batch_the_first_lives(store: Store) -> None:
    first, second, third = store.enqueue(3, dedupe_key="nightly")
    assert store.states([first, second, third]) == ["PENDING·ready", "CANCELED·duplicate", "CANCELED·duplicate"]
    assert store.job(second).duplicate_of == store.job(third).duplicate_of == first


def test_a_key_is_held_while_its_job_is_live_and_free_after_its_end(store: Store) -> None:
    worker = store.worker()
    holder = store.running_one(worker, dedupe_key="nightly")
    assert store.state(store.enqueue_one(dedupe_key="nightly")) == "CANCELED·duplicate"
    store.end(worker, holder, failed())  # it will be tried again: it lives
    assert store.state(store.enqueue_one(dedupe_key="nightly")) == "CANCELED·duplicate"
    store.end(worker, store.again(worker, holder.id))
    assert store.state(store.enqueue_one(dedupe_key="nightly")) == "PENDING·ready"


def test_a_key_belongs_to_one_tenant(store: Store) -> None:
    store.enqueue_one(tenant="acme", dedupe_key="nightly")
    assert store.state(store.enqueue_one(tenant="other", dedupe_key="nightly")) == "PENDING·ready"


def test_the_database_itself_refuses_a_second_live_job_with_a_key(store: Store) -> None:
    store.enqueue_one(dedupe_key="nightly")
    other = store.enqueue_one()
    with pytest.raises(sa.exc.IntegrityError):
        store.pretend(other, dedupe_key="nightly")


# --- idempotency keys of requests ------------------------------------------------------------------------------------


def test_a_request_that_is_repeated_gets_the_job_it_made_before(store: Store) -> None:
    first, second = new_id(), new_id()
    assert store.do(jobs.remember_request, "acme", "key", "hash", first) is None
    assert store.do(jobs.remember_request, "acme", "key", "hash", second) == first


def test_a_request_key_that_is_used_for_another_request_is_a_conflict(store: Store) -> None:
    store.do(jobs.remember_request, "acme", "key", "hash", new_id())
    with pytest.raises(Conflict) as refused:
        store.do(jobs.remember_request, "acme", "key", "another", new_id())
    assert refused.value.code == "idempotency_conflict"


def test_request_keys_of_two_tenants_are_two_keys(store: Store) -> None:
    assert store.do(jobs.remember_request, "acme", "key", "hash", new_id()) is None
    assert store.do(jobs.remember_request, "other", "key", "another", new_id()) is None


# --- looking ---------------------------------------------------------------------------------------------------------


def test_another_tenants_job_is_not_found(store: Store) -> None:
    job_id = store.enqueue_one(tenant="acme")
    assert store.look(jobs.get, "acme", job_id).id == job_id
    for tenant in ("other", "ACME", ""):
        with pytest.raises(NotFound):
            store.look(jobs.get, tenant, job_id)


def test_an_unknown_job_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound) as error:
        store.job(new_id())
    assert error.value.hint


def test_a_listing_shows_the_newest_first_and_goes_on_behind_the_last_one(store: Store) -> None:
    ids = store.enqueue(7)
    seen, before = [], None
    while page := store.look(list_page, "acme", JobFilter(), before=before, limit=3).jobs:
        assert len(page) <= 3
        seen += [job.id for job in page]
        before = page[-1].id
    assert seen == ids[::-1]


def test_a_page_is_the_same_however_many_jobs_came_meanwhile(store: Store) -> None:
    ids = store.enqueue(4)
    store.enqueue(4)
    page = store.look(list_page, "acme", JobFilter(), before=ids[2], limit=2).jobs
    assert [job.id for job in page] == [ids[1], ids[0]]


def test_a_listing_shows_one_tenant_and_an_operator_all(store: Store) -> None:
    mine, theirs = store.enqueue_one(tenant="acme"), store.enqueue_one(tenant="other")
    assert [job.id for job in store.look(list_page, "acme", JobFilter(), before=None, limit=9).jobs] == [mine]
    assert [job.id for job in store.look(list_page, None, JobFilter(), before=None, limit=9).jobs] == [theirs, mine]


def test_each_filter_narrows_a_listing(store: Store) -> None:
    worker = store.worker({"noop": 10})
    flow = store.workflow()
    parent = new_id()
    running = store.running_one(worker, name="the running one").id
    of_flow = store.add(store.job_of(flow, name="50% of_flow"))[0]
    child = store.enqueue_one(parent_id=parent, queue="other", kind="HEARTBEAT", trigger=Trigger.AUTOMATIC)
    later = store.enqueue_one(scheduled_at=ahead(hours=1))
    for older in (running, of_flow):
        store.pretend(older, created_at=-60)
    made = store.job(child).created_at

    def found(**only: Any) -> list[Any]:
        return [job.id for job in store.look(list_page, "acme", JobFilter(**only), before=None, limit=99).jobs]

    assert found() == [later, child, of_flow, running]
    assert found(statuses=frozenset({Status.RUNNING})) == [running]
    assert found(statuses=frozenset({Status.RUNNING, Status.PENDING}), reasons=frozenset({"scheduled"})) == [later]
    assert found(kinds=frozenset({"HEARTBEAT", "CONTAINER"})) == [child]
    assert found(queues=frozenset({"other"})) == [child]
    assert found(trigger=Trigger.AUTOMATIC) == [child]
    assert found(workflow_id=flow.id) == [of_flow]
    assert found(parent_id=parent) == [child]
    assert found(name_contains="running") == [running]
    assert found(name_contains="%") == found(name_contains="_") == [of_flow]  # no wildcards
    assert found(created_from=made) == [later, child]
    assert found(created_until=made) == [of_flow, running]
    assert found(created_from=made, created_until=made) == []


def test_unfinished_tells_which_jobs_have_not_ended(store: Store) -> None:
    live, done = store.enqueue(2)
    store.cancel(done)
    assert store.look(jobs.unfinished, [live, done, new_id()]) == {live}
    assert store.look(jobs.unfinished, []) == set()


def test_running_here_tells_which_attempts_have_an_owner(store: Store) -> None:
    worker = store.worker()
    job, waiting = store.running_one(worker).id, store.enqueue_one()
    found = [(job, 1), (job, 2), (waiting, 0), (new_id(), 1)]
    assert store.look(jobs.running_here, found) == {(job, 1)}


def test_a_job_keeps_who_made_it_by_whatever_way_it_comes(store: Store) -> None:
    alone, among, unnamed = (new_job(started_by=maker, dedupe_key=maker) for maker in ("ann", "bob", None))
    duplicate = new_job(started_by="eve", dedupe_key="bob")
    assert store.do(jobs.enqueue_one, alone, wakes=False) is not None
    store.do(jobs.enqueue, [among, unnamed, duplicate])
    made = [store.look(jobs.get_data, job.id).started_by for job in (alone, among, unnamed, duplicate)]
    assert made == ["ann", "bob", None, "eve"]
