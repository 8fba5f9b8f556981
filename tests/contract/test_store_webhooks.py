"""What webhooks are told of: each transition once, numbered without a gap, and only where somebody listens."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.errors import Conflict, NotFound
from jobq.store import (
    control,
    finish,
    promote,
    prune,
    rollup,
    webhook_deliveries,
    webhook_live,
    webhooks,
    workers,
    workflows,
)
from jobq.store.jobs import enqueue, new_id
from jobq.store.sql import later
from jobq.store.tables import webhook_deliveries as delivery_table
from jobq.store.tables import webhook_endpoints, webhook_events
from jobq.store.webhook_events import named_endpoint
from jobq.webhook_delivery import Verdict
from jobq.webhook_events import chosen, words
from tests.fanouts import SLOTS, FanOuts, keys, refused
from tests.stores import PLENTY, Store, failed, new_job

ALL = ("*",)
STORE = FanOuts


@pytest.fixture
def worker(store: FanOuts) -> UUID:
    return store.worker({**SLOTS, **PLENTY}, lease=300.0)


def endpoint(store: Store, *patterns: str, tenant: str = "acme", **fields: Any) -> UUID:
    """An endpoint that listens to these events."""
    endpoint_id = new_id()
    values = {
        "name": f"hook {endpoint_id.hex[-8:]}", "url": "https://example.org/", "patterns": list(patterns),
        "types": words(chosen(patterns)), "children": False, "hub_signature": [], "secrets": [], **fields,
    }  # fmt: skip
    assert store.do(webhooks.create, endpoint_id, tenant, values) is not None
    return endpoint_id


def events(store: Store, subject: UUID) -> list[tuple[int, str]]:
    with store.database.read() as conn:
        c = webhook_events.c
        query = sa.select(c.number, c.type).where(c.subject_id == subject).order_by(c.number)
        return [(row.number, row.type) for row in conn.execute(query)]


def types(store: Store, subject: UUID) -> list[str]:
    """Its events in the order of their numbers, which must be 1, 2, 3, …"""
    found = events(store, subject)
    assert [number for number, _ in found] == list(range(1, len(found) + 1)), "a number is missing, or comes twice"
    return [name.removeprefix("job.") for _, name in found]


def delivered_to(store: Store, endpoint_id: UUID) -> list[str]:
    with store.database.read() as conn:
        c = delivery_table.c
        return list(conn.scalars(sa.select(c.type).where(c.endpoint_id == endpoint_id).order_by(c.id)))


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_each_transition_of_a_job_is_told_once_and_numbered(store: FanOuts, worker: UUID) -> None:
    listener = endpoint(store, *ALL)
    job = store.running_one(worker)
    store.end(worker, job)
    assert types(store, job.id) == ["created", "queued", "started", "completed"]
    assert delivered_to(store, listener) == ["job.created", "job.queued", "job.started", "job.completed"]


@pytest.mark.parametrize("heard_first", [True, False])
def test_jobs_that_are_heard_and_others_are_claimed_in_one_order(
    store: FanOuts, worker: UUID, heard_first: bool
) -> None:
    endpoint(store, *ALL, tenant="acme")
    heard = store.enqueue(2, tenant="acme", priority=9 if heard_first else 1)
    others = store.enqueue(2, tenant="other", priority=5)
    store.promote()
    first, last = (heard, others) if heard_first else (others, heard)
    for expected in (first[:1], first[1:] + last[:1], last[1:]):
        assert {job.id for job in store.claim_waiting(worker, len(expected))} == set(expected)
    for job_id in heard:
        assert types(store, job_id) == ["created", "queued", "started"]


def test_an_attempt_that_fails_is_requeued_and_the_last_one_fails_the_job(store: FanOuts, worker: UUID) -> None:
    endpoint(store, *ALL)
    job = store.running_one(worker, max_attempts=2)
    store.end(worker, job, failed("first"))
    store.end(worker, store.again(worker, job.id), failed("second"))
    assert types(store, job.id) == ["created", "queued", "started", "requeued", "queued", "started", "failed"]
    with store.database.read() as conn:
        c = webhook_events.c
        said = dict(conn.execute(sa.select(c.number, c.message).where(c.subject_id == job.id)).all())
    assert (said[4], said[7]) == ("first", "second"), "an event says what the job said at that moment"


def test_a_report_that_comes_again_or_late_tells_nothing(store: FanOuts, worker: UUID) -> None:
    endpoint(store, *ALL)
    job = store.running_one(worker)
    store.end(worker, job)
    store.end(worker, job)
    store.end(worker, job, failed())
    assert store.claim(worker, [job.id]) == []
    assert types(store, job.id) == ["created", "queued", "started", "completed"]


def test_a_canceled_job_says_so_wherever_it_was(store: FanOuts, worker: UUID) -> None:
    endpoint(store, *ALL)
    waiting, queued, running = store.enqueue_one(), store.queued()[0], store.running_one(worker)
    for job_id in (waiting, queued, running.id):
        store.cancel(job_id)
    store.end(worker, running, failed("stopped"))
    assert types(store, waiting)[-1] == types(store, queued)[-1] == types(store, running.id)[-1] == "canceled"


def test_what_goes_back_to_its_queue_says_so(store: FanOuts, worker: UUID) -> None:
    endpoint(store, *ALL)
    (job_id,) = store.queued()
    store.do(control.pause_queue, "noop", "ann")
    store.do(control.resume_queue, "noop", "ann")
    store.promote()
    assert types(store, job_id) == ["created", "queued", "requeued", "queued"]


def test_a_job_that_is_only_recorded_tells_of_both_its_moments(store: FanOuts) -> None:
    endpoint(store, *ALL)
    store.enqueue_one(dedupe_key="k")
    duplicate = store.enqueue_one(dedupe_key="k")
    assert types(store, duplicate) == ["created", "canceled"]


def test_a_job_of_a_dead_worker_tells_of_its_end(store: FanOuts, worker: UUID) -> None:
    endpoint(store, *ALL)
    job = store.running_one(worker, max_attempts=1)
    store.do(workers.declare_dead, [worker])
    assert store.do(workers.release_lost, reattach_grace=0.0) == 1
    assert types(store, job.id)[:3] == ["created", "queued", "started"]
    assert len(types(store, job.id)) == 4


def test_a_transaction_that_rolls_back_tells_nothing(store: FanOuts) -> None:
    endpoint(store, *ALL)

    def broken(conn: Any) -> None:
        enqueue(conn, [new_job()])
        raise RuntimeError("the application changed its mind")

    with pytest.raises(RuntimeError):
        store.do(broken)
    assert store.count("jobq_webhook_events") == store.count("jobq_webhook_deliveries") == 0


# --- who hears what --------------------------------------------------------------------------------------------------


def test_jobs_that_nobody_listens_to_write_no_row(store: FanOuts, worker: UUID) -> None:
    endpoint(store, *ALL, tenant="other")
    job = store.running_one(worker)
    store.end(worker, job)
    assert store.row(job.id).hooked is None
    assert store.count("jobq_webhook_events") == store.count("jobq_webhook_deliveries") == 0


def test_only_the_events_that_an_endpoint_chose_are_written(store: FanOuts, worker: UUID) -> None:
    ends, starts = endpoint(store, "job.completed", "job.failed"), endpoint(store, "job.start*")
    job = store.running_one(worker)
    store.end(worker, job)
    assert events(store, job.id) == [(3, "job.started"), (4, "job.completed")], "numbers count what nobody hears, too"
    assert delivered_to(store, ends) == ["job.completed"]
    assert delivered_to(store, starts) == ["job.started"]


def test_no_tenant_hears_of_another(store: FanOuts, worker: UUID) -> None:
    acme, other = endpoint(store, *ALL), endpoint(store, *ALL, tenant="other")
    store.end(worker, store.running_one(worker))
    assert len(delivered_to(store, acme)) == 4
    assert delivered_to(store, other) == []


def test_jobs_that_were_live_before_the_endpoint_tell_what_happens_to_them_from_then_on(
    store: FanOuts, worker: UUID
) -> None:
    ended, waiting, running = store.running_one(worker), store.enqueue_one(), store.running_one(worker)
    store.end(worker, ended)
    endpoint(store, *ALL)
    store.end(worker, running)
    store.cancel(waiting)
    assert types(store, running.id) == ["completed"]
    assert types(store, waiting)[-1] == "canceled"
    assert store.row(ended.id).hooked is None


def test_the_scheduler_hooks_the_live_jobs_that_one_look_does_not_reach(store: FanOuts) -> None:
    ids = store.enqueue(12)
    store.cancel(ids[0])
    hook = endpoint(store, *ALL)
    store.execute("UPDATE jobq_jobs SET hooked = NULL")
    for _ in range(10):
        store.do(webhook_live.hook_live_jobs, 5)
    assert [store.row(job_id).hooked for job_id in ids] == [None] + [0] * 11
    assert not store.do(webhook_live.hook_live_jobs, 5), "it has come to the end"
    assert store.look(webhooks.find, "acme", hook) is not None


def test_a_job_of_a_transaction_that_was_open_when_the_endpoint_came_is_hooked_when_it_is_there(
    postgres: FanOuts,
) -> None:
    store = postgres
    seen = store.enqueue_one()
    with store.database.begin() as application:
        (unseen,) = enqueue(application, [new_job(tenant="acme")])
        endpoint(store, *ALL)
        while store.do(webhook_live.hook_live_jobs, 5):
            pass
        assert store.row(seen).hooked == 0
    assert store.row(unseen).hooked is None
    assert store.do(webhook_live.hook_live_jobs, 5), "nothing is open any more that may have missed it"
    assert store.row(unseen).hooked == 0
    assert not store.do(webhook_live.hook_live_jobs, 5)


def test_a_job_that_names_an_endpoint_is_heard_there_and_nowhere_else(store: FanOuts, worker: UUID) -> None:
    general, own = endpoint(store, *ALL), endpoint(store, name="own")
    job = store.running_one(worker, webhook=("own", words(["job.completed"])))
    store.end(worker, job)
    assert delivered_to(store, general) == []
    assert delivered_to(store, own) == ["job.completed"]
    assert store.look(named_endpoint, job.id) == (own, words(["job.completed"]))


def test_an_endpoint_without_events_hears_all_of_a_job_that_names_it_and_nothing_else(
    store: FanOuts, worker: UUID
) -> None:
    own = endpoint(store, name="own")
    job = store.running_one(worker, webhook=("own", None))
    store.end(worker, job)
    store.end(worker, store.running_one(worker))
    assert delivered_to(store, own) == ["job.created", "job.queued", "job.started", "job.completed"]


def test_an_endpoint_of_another_tenant_cannot_be_named(store: FanOuts) -> None:
    theirs = endpoint(store, name="theirs", tenant="other")
    for name in ("theirs", str(theirs)):
        with pytest.raises(NotFound) as refusal:
            store.enqueue_one(webhook=(name, None))
        assert refusal.value.pointer == "/webhook/endpoint"


# --- workflows and syncs ---------------------------------------------------------------------------------------------


def test_a_workflow_that_is_terminated_says_so_beside_its_jobs(store: FanOuts, worker: UUID) -> None:
    hook = endpoint(store, *ALL)
    flow = store.workflow(max_consecutive_job_failures_allowed=1)
    (job,) = [store.running_one(worker, **_of(flow))]
    store.end(worker, job, failed())
    assert events(store, flow.id) == [(1, "workflow.terminated")]
    store.do(finish.terminate, flow.id, "again")
    assert delivered_to(store, hook).count("workflow.terminated") == 1
    store.do(workflows.resume, "acme", flow.id, "ann")
    store.do(finish.terminate, flow.id, "by ann")
    assert events(store, flow.id) == [(1, "workflow.terminated"), (2, "workflow.terminated")]


def _of(flow: Any) -> dict[str, Any]:
    return {"workflow_id": flow.id, "generation": flow.generation, "max_attempts": 1}


def test_the_stages_of_a_sync_are_told_in_their_order(store: FanOuts, worker: UUID) -> None:
    hook = endpoint(store, *ALL)
    sync = store.fanned_out(worker, keys(2))
    store.finish_all(worker)
    assert types(store, sync.id) == [
        "created", "started", "sync.started", "export.started", "sync.succeeded", "completed"
    ]  # fmt: skip
    assert all(name.startswith(("job.", "sync.", "export.")) for name in delivered_to(store, hook))
    assert store.row(store.children(sync)[0].id).hooked is None, "children are told of on request only"


def test_a_sync_whose_export_fails_in_part_says_which_stage_failed(store: FanOuts, worker: UUID) -> None:
    endpoint(store, *ALL)
    sync = store.fanned_out(worker, keys(1))
    store.record(worker, *(refused(child) for child in store.take_children(worker)))
    store.settle()
    assert types(store, sync.id)[-2:] == ["export.failed", "failed"]


def test_a_sync_that_fails_while_it_reads_says_which_stage_failed(store: FanOuts, worker: UUID) -> None:
    endpoint(store, *ALL)
    alone, beside = store.sync(worker, max_attempts=1), store.sync(worker, max_attempts=1)
    store.end(worker, alone.job, failed("the source broke"))
    store.added(beside, keys(1))
    store.park(beside, failed("the source broke", retry=False))
    store.finish_all(worker)
    assert types(store, alone.id)[-2:] == ["sync.failed", "failed"]
    assert types(store, beside.id)[-3:] == ["export.started", "sync.failed", "failed"]


def test_children_are_told_of_where_an_endpoint_asks_for_them(store: FanOuts, worker: UUID) -> None:
    without, with_children = endpoint(store, "job.*"), endpoint(store, "job.*", children=True)
    sync = store.fanned_out(worker, keys(2))
    twin = store.sync(worker)
    store.added(twin, {"k00000": 2})  # stands behind a child that waits, and will read this
    store.finish_all(worker)
    for child in store.children(sync):
        assert types(store, child.id) == ["created", "queued", "started", "completed"]
    assert types(store, store.children(twin)[0].id) == ["created", "canceled"]
    assert len(delivered_to(store, without)) == 3 + 2, "of the SYNC that ended and of the one that still reads"
    assert len(delivered_to(store, with_children)) == 3 + 2 + 8 + 2


# --- many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.needs_postgres
def test_numbers_have_no_gap_while_workers_and_people_race(postgres: FanOuts) -> None:
    endpoint(postgres, *ALL)
    worker = postgres.worker({**SLOTS, **PLENTY}, lease=300.0)
    ids = postgres.enqueue(60, max_attempts=3)
    promoted = threading.Event()

    def work() -> None:
        while not promoted.is_set():
            for job in postgres.claim_waiting(worker, 7):
                postgres.end(worker, job, failed() if job.id.int % 3 == 0 and job.attempt == 1 else None)

    def advance() -> None:
        while postgres.count("jobq_jobs", "finished_at IS NULL"):
            postgres.execute("UPDATE jobq_jobs SET due_at = now() WHERE due_at IS NOT NULL")
            postgres.do(promote.wake)
            postgres.promote()
        promoted.set()

    def cancel() -> None:
        for job_id in ids[::5]:
            with suppress(Conflict):  # it had ended
                postgres.cancel(job_id)

    threads = [threading.Thread(target=each, daemon=True) for each in (work, work, work, advance, cancel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert promoted.is_set()
    for job_id in ids:
        told = types(postgres, job_id)
        assert told[0] == "created"
        assert told[-1] == postgres.job(job_id).status.lower()
        assert told.count("started") == postgres.job(job_id).attempt
        assert sum(name in {"completed", "failed", "canceled"} for name in told) == 1


# --- deliveries ------------------------------------------------------------------------------------------------------


def _due(store: Store, count: int, *, of: str = "acme") -> UUID:
    hook = endpoint(store, "job.created", tenant=of)
    store.enqueue(count, tenant=of)
    return hook


def _lease(store: Store, sender: UUID, **rooms: Any) -> list[Any]:
    return store.do(webhook_deliveries.lease, sender, {UUID(key[1:]): room for key, room in rooms.items()}, 30.0)


def test_what_is_due_is_leased_once_and_so_many_of_each_endpoint(store: FanOuts) -> None:
    first, second = _due(store, 5), _due(store, 5, of="other")
    sender, other = new_id(), new_id()
    rooms = {first: 3, second: 1}
    taken = store.do(webhook_deliveries.lease, sender, rooms, 30.0)
    assert Counter(each.endpoint_id for each in taken) == {first: 3, second: 1}
    more = store.do(webhook_deliveries.lease, other, {first: 10, second: 10}, 30.0)
    assert Counter(each.endpoint_id for each in more) == {first: 2, second: 4}
    assert not {each.id for each in taken} & {each.id for each in more}


def test_a_lease_that_ran_out_is_taken_again_and_its_late_record_is_refused(store: FanOuts) -> None:
    hook = _due(store, 1)
    slow, quick = new_id(), new_id()
    (taken,) = store.do(webhook_deliveries.lease, slow, {hook: 1}, -1.0)
    (again,) = store.do(webhook_deliveries.lease, quick, {hook: 1}, 30.0)
    assert (again.id, again.tries) == (taken.id, 2)
    well = Verdict("SUCCEEDED", status_code=200)
    assert store.do(webhook_deliveries.record, slow, [webhook_deliveries.Tried(taken, well, 0.1)]) == 0
    assert store.do(webhook_deliveries.record, quick, [webhook_deliveries.Tried(again, well, 0.1)]) == 1
    assert store.look(webhooks.deliveries, hook, {}, before=None, limit=9)[0].state == "SUCCEEDED"


def _record(store: Store, hook: UUID, verdict: Verdict) -> None:
    sender = new_id()
    (taken,) = store.do(webhook_deliveries.lease, sender, {hook: 1}, 30.0)
    assert store.do(webhook_deliveries.record, sender, [webhook_deliveries.Tried(taken, verdict, 0.1)]) == 1


def test_an_endpoint_that_fails_for_five_days_is_disabled_and_one_that_recovers_is_not(store: FanOuts) -> None:
    again = Verdict("PENDING", 0.0, 500, "status", "answered 500")
    ill, well = _due(store, 2), _due(store, 2, of="other")
    for hook in (ill, well):
        _record(store, hook, again)
        assert store.look(webhooks.find, _tenant(store, hook), hook).failing_since is not None
    _record(store, well, Verdict("SUCCEEDED", status_code=200))
    _pretend(store, ill, failing_since=later(-5 * 86400 - 1))
    _record(store, ill, again)
    _record(store, well, again)
    row = store.look(webhooks.find, "acme", ill)
    assert (row.enabled, row.disabled_reason) == (False, "no delivery has succeeded for 5 days")
    assert store.look(webhooks.find, "other", well).enabled
    assert [event.action for event in store.look(control.list_events, f"webhook:{ill}")] == ["disable"]
    assert not [row for row in store.look(webhook_deliveries.endpoints_to_look_at) if row.id == ill and row.due]
    job = store.enqueue_one()
    assert store.row(job).hooked is None, "nobody listens any more"


def test_a_receiver_that_is_gone_is_disabled_at_once(store: FanOuts) -> None:
    hook = _due(store, 1)
    _record(store, hook, Verdict("FAILED", None, 410, "gone", "answered 410 Gone", gone=True))
    assert not store.look(webhooks.find, "acme", hook).enabled


def _tenant(store: Store, hook: UUID) -> str:
    with store.database.read() as conn:
        found = conn.scalar(sa.select(webhook_endpoints.c.tenant).where(webhook_endpoints.c.id == hook))
        return str(found)


def _pretend(store: Store, hook: UUID, **values: Any) -> None:
    with store.database.begin() as conn:
        conn.execute(sa.update(webhook_endpoints).where(webhook_endpoints.c.id == hook).values(**values))


# --- prune -----------------------------------------------------------------------------------------------------------


def test_a_job_is_kept_while_something_of_it_is_due_and_goes_with_all_of_it_then(store: FanOuts, worker: UUID) -> None:
    hook = endpoint(store, "job.completed")
    job = store.running_one(worker)
    store.end(worker, job)
    store.pretend(job.id, finished_at=-1000)
    store.do(rollup.roll_up, lag=0.0)
    assert store.do(prune.prune, prune.Kept.alike(60.0)).jobs == 0, "its end is still to be told"
    _record(store, hook, Verdict("SUCCEEDED", status_code=200))
    assert store.do(prune.prune, prune.Kept.alike(60.0)).jobs == 1
    assert store.count("jobq_webhook_events") == store.count("jobq_webhook_deliveries") == 0


def test_what_was_told_long_ago_goes_and_what_is_due_stays(store: FanOuts) -> None:
    hook = _due(store, 3)
    _record(store, hook, Verdict("SUCCEEDED", status_code=200))
    _record(store, hook, Verdict("FAILED", None, 500, "status", "answered 500"))
    with store.database.begin() as conn:
        conn.execute(sa.update(webhook_events).values(at=later(-1000)))
    assert store.do(webhooks.prune, 60.0) == 2
    assert [each.state for each in store.look(webhooks.deliveries, hook, {}, before=None, limit=9)] == ["PENDING"]
    store.do(webhooks.remove, hook)
    store.do(webhooks.prune, 60.0)
    assert store.count("jobq_webhook_events") == store.count("jobq_webhook_deliveries") == 0
