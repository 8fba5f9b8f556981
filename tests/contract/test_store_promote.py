"""Who goes next: exactly as many as the live workers have room for and the limits allow, and fairly shared out."""

from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from jobq.store import control, promote, workers, workflows
from tests.stores import QUEUE, Store, ahead, failed


def tenants(store: Store, ids: Iterable[UUID]) -> Counter[str]:
    return Counter(store.job(job_id).tenant for job_id in ids)


def end_all(store: Store, worker: UUID, ids: list[UUID], queue: str = QUEUE) -> None:
    for job in store.claim(worker, ids, queue):
        store.end(worker, job)


# --- room ------------------------------------------------------------------------------------------------------------


def test_no_worker_no_promotion(store: Store) -> None:
    ids = store.enqueue(3)
    assert store.promote() == {}
    assert set(store.states(ids)) == {"PENDING·ready"}


def test_a_promoted_job_is_queued_and_its_hint_will_be_sent_again(store: Store) -> None:
    store.worker()
    job_id = store.enqueue_one()
    assert store.promote() == {QUEUE: [job_id]}
    row = store.row(job_id)
    assert (row.status, row.reason, row.sends) == ("QUEUED", "dispatched", 0)
    assert timedelta(0) < row.next_send_at - row.queued_at <= timedelta(seconds=promote.FIRST_RESEND)


def test_as_many_are_promoted_as_there_are_worker_slots(store: Store) -> None:
    store.worker({QUEUE: 3})
    store.worker({QUEUE: 2})
    ids = store.enqueue(9)
    assert store.promote()[QUEUE] == ids[:5]
    assert store.promote() == {}


def test_what_is_queued_or_running_takes_room_and_what_ended_gives_it_back(store: Store) -> None:
    worker = store.worker({QUEUE: 2})
    first, _, third = store.enqueue(3)
    store.promote()
    (job,) = store.claim(worker, [first])
    assert store.promote() == {}  # one runs, one is queued
    store.end(worker, job)
    assert store.promote() == {QUEUE: [third]}


def test_what_ended_lately_is_room_because_as_much_ends_while_the_next_hints_travel(store: Store) -> None:
    store.worker({QUEUE: 2})
    ids = store.enqueue(9)
    assert store.promote({QUEUE: 3})[QUEUE] == ids[:5]


def test_each_queue_has_the_room_of_its_own_workers(store: Store) -> None:
    store.worker({"a": 1, "b": 2})
    store.worker({"c": 1})
    for queue in "abcd":
        store.enqueue(3, queue=queue)
    assert {queue: len(ids) for queue, ids in store.promote().items()} == {"a": 1, "b": 2, "c": 1}


def test_the_slots_of_a_draining_worker_do_not_count(store: Store) -> None:
    draining = store.worker({QUEUE: 5})
    store.worker({QUEUE: 1})
    store.do(workers.set_draining, draining)
    store.enqueue(9)
    assert len(store.promote()[QUEUE]) == 1


def test_jobs_on_a_worker_that_drains_do_not_take_the_room_of_the_others(store: Store) -> None:
    draining = store.worker({QUEUE: 4})
    store.running(draining, 4)
    store.do(workers.set_draining, draining)
    store.worker({QUEUE: 3})
    store.enqueue(9)
    assert len(store.promote()[QUEUE]) == 3


def test_jobs_of_a_dead_worker_do_not_take_the_room_of_the_others(store: Store) -> None:
    dead = store.worker({QUEUE: 4})
    store.running(dead, 4)
    store.do(workers.declare_dead, [dead])
    store.worker({QUEUE: 3})
    store.enqueue(9)
    assert len(store.promote()[QUEUE]) == 3


def test_the_slots_of_a_dead_worker_and_of_one_whose_lease_ran_out_do_not_count(store: Store) -> None:
    dead = store.worker({QUEUE: 5})
    store.do(workers.declare_dead, [dead])
    store.worker({QUEUE: 5}, lease=-1)
    store.enqueue()
    assert store.promote() == {}


def test_a_paused_queue_promotes_nothing_and_the_others_go_on(store: Store) -> None:
    store.worker({"open": 5, "closed": 5})
    store.do(control.pause_queue, "closed", "ann")
    store.enqueue(2, queue="closed")
    ids = store.enqueue(2, queue="open")
    assert store.promote() == {"open": ids}
    store.do(control.resume_queue, "closed", "ann")
    assert len(store.promote()["closed"]) == 2


def test_only_ready_jobs_are_promoted(store: Store) -> None:
    worker = store.worker()
    store.enqueue(scheduled_at=ahead(hours=1))
    store.do(control.pause, None, store.enqueue_one(), "ann")
    store.end(worker, store.running_one(worker), failed())  # it waits for its backoff
    assert store.promote() == {}


# --- order -----------------------------------------------------------------------------------------------------------


def test_the_highest_priority_goes_first_then_who_has_been_ready_longest(store: Store) -> None:
    store.worker({QUEUE: 9})
    low, usual, younger, high = (store.enqueue_one(priority=priority) for priority in (0, 4, 4, 9))
    for place, job_id in enumerate((low, high, usual, younger)):
        store.pretend(job_id, ready_at=-100 + place)
    assert store.promote()[QUEUE] == [high, usual, younger, low]


def test_a_job_that_was_scheduled_counts_from_when_it_was_due(store: Store) -> None:
    store.worker({QUEUE: 1})
    scheduled = store.enqueue_one(scheduled_at=ahead(hours=1))
    store.enqueue_one()
    store.pretend(scheduled, due_at=-60)
    assert store.do(promote.wake) == 1
    assert store.promote()[QUEUE] == [scheduled]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_the_limit_of_a_queue_is_exact(store: Store) -> None:
    worker = store.worker({QUEUE: 100})
    store.do(control.limit_queue, QUEUE, 3, "ann")
    ids = store.enqueue(9)
    assert store.promote({QUEUE: 50})[QUEUE] == ids[:3]
    assert store.promote({QUEUE: 50}) == {}
    end_all(store, worker, ids[:2])
    assert store.promote({QUEUE: 50})[QUEUE] == ids[3:5]


def test_a_limit_that_was_lifted_holds_nobody(store: Store) -> None:
    store.worker({QUEUE: 100})
    store.do(control.limit_queue, QUEUE, 1, "ann")
    store.enqueue(9)
    store.do(control.limit_queue, QUEUE, None, "ann")
    assert len(store.promote()[QUEUE]) == 9


def test_a_limit_of_zero_holds_everybody(store: Store) -> None:
    store.worker({QUEUE: 100})
    store.do(control.limit_queue, QUEUE, 0, "ann")
    store.enqueue(9)
    assert store.promote() == {}


def test_the_limit_of_a_tenant_is_exact_over_all_queues(store: Store) -> None:
    store.worker({"a": 100, "b": 100})
    store.do(control.set_tenant, "acme", "ann", limit=5)
    for queue in "ab":
        store.enqueue(9, tenant="acme", queue=queue)
        store.enqueue(2, tenant="other", queue=queue)
    promoted = [job_id for ids in store.promote().values() for job_id in ids]
    assert tenants(store, promoted) == {"acme": 5, "other": 4}
    assert store.promote() == {}


def test_a_tenant_at_its_limit_gets_some_of_every_queue_in_turn(store: Store) -> None:
    worker = store.worker({"a": 100, "b": 100, "c": 100})
    store.do(control.set_tenant, "acme", "ann", limit=1)
    for queue in "abc":
        store.enqueue(3, tenant="acme", queue=queue)
    served = []
    for _ in range(6):
        ((queue, ids),) = store.promote().items()
        served.append(queue)
        end_all(store, worker, ids, queue)
    assert {queue: served.count(queue) for queue in served} == {"a": 2, "b": 2, "c": 2}


def test_the_limit_of_a_tenant_holds_also_where_nobody_else_waits(store: Store) -> None:
    store.worker({QUEUE: 100})
    store.do(control.set_tenant, "acme", "ann", limit=5)
    store.enqueue(9)
    assert len(store.promote()[QUEUE]) == 5
    assert store.promote() == {}


def test_the_concurrency_of_a_workflow_is_exact(store: Store) -> None:
    worker = store.worker({QUEUE: 100})
    flow = store.workflow(concurrency=2)
    ids = store.add(*(store.job_of(flow, lane=flow.id.hex) for _ in range(6)))
    assert store.promote()[QUEUE] == ids[:2]
    assert store.promote() == {}
    end_all(store, worker, ids[:1])
    assert store.promote()[QUEUE] == ids[2:3]


def test_a_full_workflow_with_a_thousand_waiting_jobs_does_not_hold_others_of_its_tenant(store: Store) -> None:
    store.worker({QUEUE: 10})
    flow = store.workflow(concurrency=1)
    store.add(*(store.job_of(flow, lane=flow.id.hex, priority=9) for _ in range(1000)))
    other = store.workflow(concurrency=3)
    beside = store.add(*(store.job_of(other, lane=other.id.hex) for _ in range(3)))
    alone = store.enqueue(2)
    promoted = store.promote()[QUEUE]
    assert {*beside, *alone} < set(promoted)
    assert len(promoted) == 6  # and one of the thousand
    assert store.promote() == {}


def test_a_changed_concurrency_holds_for_jobs_that_wait_already(store: Store) -> None:
    worker = store.worker({QUEUE: 100})
    flow = store.workflow()
    ids = store.add(*(store.job_of(flow) for _ in range(6)))
    store.do(workflows.update, None, flow.id, {"concurrency": 2}, "ann")
    assert store.promote()[QUEUE] == ids[:2]
    store.do(workflows.update, None, flow.id, {"concurrency": 3}, "ann")
    assert store.promote()[QUEUE] == ids[2:3]
    end_all(store, worker, ids[:3])
    store.do(workflows.update, None, flow.id, {"concurrency": None}, "ann")
    assert store.promote()[QUEUE] == ids[3:]


# --- fairness --------------------------------------------------------------------------------------------------------


def test_forty_tenants_get_their_share_beside_one_with_a_huge_backlog(store: Store) -> None:
    store.worker({QUEUE: 82})
    store.enqueue(2000, tenant="huge")
    small = [f"t{number:02}" for number in range(40)]
    for tenant in small:
        store.enqueue(5, tenant=tenant)
    share = tenants(store, store.promote()[QUEUE])
    assert set(share) == {*small, "huge"}
    assert max(share.values()) <= 3  # of some tenants only one job was looked at: others get what that leaves


def test_a_tenant_with_twice_the_weight_gets_twice_the_jobs(store: Store) -> None:
    store.worker({QUEUE: 90})
    store.do(control.set_tenant, "big", "ann", weight=2.0)
    for tenant in ("big", "small"):
        store.enqueue(200, tenant=tenant)
    assert tenants(store, store.promote()[QUEUE]) == {"big": 60, "small": 30}


def test_what_a_tenant_has_in_flight_counts_against_its_share(store: Store) -> None:
    store.worker({QUEUE: 10})
    store.enqueue(6, tenant="early")
    store.promote()
    store.enqueue(9, tenant="early")
    store.enqueue(9, tenant="late")
    assert tenants(store, store.promote()[QUEUE]) == {"late": 4}


def test_room_that_one_tenant_does_not_need_goes_to_the_others(store: Store) -> None:
    store.worker({QUEUE: 10})
    store.enqueue(1, tenant="modest")
    store.enqueue(50, tenant="huge")
    assert tenants(store, store.promote()[QUEUE]) == {"modest": 1, "huge": 9}


def test_room_that_a_tenant_at_its_limit_leaves_goes_to_all_that_others_have(store: Store) -> None:
    store.worker({QUEUE: 10})
    store.do(control.set_tenant, "acme", "ann", limit=1)
    store.enqueue(13, tenant="acme")
    store.enqueue(7, tenant="beta")
    assert tenants(store, store.promote()[QUEUE]) == {"acme": 1, "beta": 7}


def test_with_a_single_slot_tenants_take_turns(store: Store) -> None:
    worker = store.worker({QUEUE: 1})
    for tenant in ("a", "b", "c"):
        store.enqueue(10, tenant=tenant)
    served: Counter[str] = Counter()
    for _ in range(9):
        ids = store.promote()[QUEUE]
        served += tenants(store, ids)
        end_all(store, worker, ids)
    assert served == {"a": 3, "b": 3, "c": 3}


def test_every_tenant_is_reached_however_many_there_are(store: Store) -> None:
    # given more tenants than one tick looks at, each with more jobs than are read of it at once, and little room
    worker = store.worker({QUEUE: 10})
    names = [f"t{number:03}" for number in range(70)]
    for tenant in names:
        store.enqueue(40, tenant=tenant)
    # when each round's jobs end before the next
    served: Counter[str] = Counter()
    for _ in range(2 * len(names) // 10 + 3):
        ids = store.promote()[QUEUE]
        served += tenants(store, ids)
        end_all(store, worker, ids)
    # then
    assert set(served) == set(names)


def test_a_second_promoter_stands_by_while_one_promotes(postgres: Store) -> None:
    postgres.worker()
    postgres.enqueue(3)
    with postgres.database.begin() as conn:
        promote.promote(conn, {}, promote.Cursor())
        assert postgres.do(promote.promote, {}, promote.Cursor()).standby


def test_a_tick_says_whether_more_waits_than_there_was_room_for(store: Store) -> None:
    store.worker({QUEUE: 2})
    store.enqueue(2)
    assert not store.do(promote.promote, {}, promote.Cursor()).more
    store.enqueue(1)
    assert store.do(promote.promote, {}, promote.Cursor()).more


# --- wake ------------------------------------------------------------------------------------------------------------


def test_jobs_become_ready_when_they_are_due_and_not_before(store: Store) -> None:
    early, late = store.enqueue_one(scheduled_at=ahead(hours=1)), store.enqueue_one(scheduled_at=ahead(hours=2))
    assert 3500 < store.look(promote.seconds_to_next_due) < 3601
    assert store.do(promote.wake) == 0
    store.pretend(early, due_at=-1)
    assert -3 < store.look(promote.seconds_to_next_due) < 0
    assert store.do(promote.wake) == 1
    assert store.states([early, late]) == ["PENDING·ready", "PENDING·scheduled"]
    assert store.job(early).due_at is None


def test_nothing_is_due_where_nothing_waits_for_its_time(store: Store) -> None:
    store.enqueue()
    assert store.look(promote.seconds_to_next_due) is None


def test_waking_goes_in_batches_the_longest_overdue_first(store: Store) -> None:
    ids = store.enqueue(5, scheduled_at=ahead(hours=1))
    for place, job_id in enumerate(ids):
        store.pretend(job_id, due_at=-10 + place)
    assert store.do(promote.wake, 2) == 2
    assert store.states(ids) == ["PENDING·ready"] * 2 + ["PENDING·scheduled"] * 3


# --- re-send ---------------------------------------------------------------------------------------------------------


def test_a_hint_that_nobody_acted_on_is_looked_into_after_a_while(store: Store) -> None:
    worker = store.worker()
    waiting, taken = store.queued(2)
    assert store.do(promote.unclaimed) == []
    for job_id in (waiting, taken):
        store.pretend(job_id, next_send_at=-1, queued_at=-7)
    store.claim(worker, [taken])
    (found,) = store.do(promote.unclaimed)
    assert (found.id, found.queue, found.sends) == (waiting, QUEUE, 0)
    assert 6 < found.waited < 15


def test_putting_off_says_when_to_look_again_and_counts_what_was_sent(store: Store) -> None:
    store.worker()
    sent, not_sent = store.queued(2)
    for job_id in (sent, not_sent):
        store.pretend(job_id, next_send_at=-1)
    store.do(promote.put_off, [sent], 60.0, sent=True)
    store.do(promote.put_off, [not_sent], 60.0, sent=False)
    assert store.do(promote.unclaimed) == []
    assert [store.row(job_id).sends for job_id in (sent, not_sent)] == [1, 0]


def test_a_job_that_was_claimed_meanwhile_is_not_put_off(store: Store) -> None:
    worker = store.worker()
    job = store.running_one(worker)
    store.do(promote.put_off, [job.id], 60.0, sent=True)
    assert (store.row(job.id).next_send_at, store.row(job.id).sends) == (None, 0)
