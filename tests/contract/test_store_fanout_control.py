"""People hold, resume and cancel fan-outs, targets ask for patience, workers die: nothing starts that must not."""

import threading
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from jobq.errors import Conflict
from jobq.models import Outcome
from jobq.retry import OF_CHILDREN
from jobq.states import Trigger
from jobq.store import control, settle, targets, workers
from jobq.store.jobs import get_data
from jobq.store.record import MAX_REQUEUES
from jobq.store.settle import Sweeps
from jobq.store.sql import instant_text
from tests.fanouts import (
    CHAIN,
    ONE,
    SLOTS,
    FanOuts,
    Sync,
    adds_up,
    delivered,
    in_threads,
    keys,
    not_now,
    place,
    refused,
    too_large,
)
from tests.stores import ended, failed

STOPPED = Outcome.fanned_out()
"""What the worker says of a SYNC that was told to stop."""


STORE = FanOuts


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> UUID:
    name = "postgres" if "postgres" in request.fixturenames else "store"
    store: FanOuts = request.getfixturevalue(name)
    return store.worker(SLOTS, lease=300.0)


def in_flight(store: FanOuts, sync: Sync) -> int:
    counts = store.counts(sync)
    return counts.queued + counts.running


def die(store: FanOuts, worker: UUID) -> None:
    store.do(workers.declare_dead, [worker])
    store.do(workers.release_lost, reattach_grace=0.0)


# --- pause and resume ------------------------------------------------------------------------------------------------


def test_a_fan_out_is_paused_once_its_running_children_have_ended(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, keys(6))
    store.promote()
    running = store.claim_waiting(worker, 2, "replication")
    store.pause(sync.id)
    assert store.state(sync.id) == "RUNNING·pausing"
    assert store.child_states(sync) == {"RUNNING·executing": 2, "PENDING·ready": 4}
    store.settle()
    assert store.state(sync.id) == "RUNNING·pausing"
    store.write(worker, running[0])
    store.settle()
    assert store.state(sync.id) == "RUNNING·pausing"
    store.record(worker, ended(running[1], failed(), retry=OF_CHILDREN))
    store.settle()
    assert store.state(sync.id) == "RUNNING·paused"
    assert store.finish_all(worker) == []
    assert store.state(sync.id) == "RUNNING·paused"
    assert store.child_states(sync) == {"COMPLETED·succeeded": 1, "PENDING·ready": 4, "PENDING·retrying": 1}
    store.resume(sync.id)
    assert store.state(sync.id) == "RUNNING·fanned_out"
    store.wake_all()
    assert len(store.finish_all(worker)) == 5
    assert store.state(sync.id) == "COMPLETED·succeeded"


def test_what_was_promoted_before_a_pause_is_not_claimed_after_it(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, keys(4))
    hinted = store.promote()["replication"]
    store.pause(sync.id)
    assert store.claim(worker, hinted, "replication") == store.claim_waiting(worker, 9, "replication") == []
    assert store.promote() == {}
    store.settle()
    assert store.state(sync.id) == "RUNNING·paused"


def test_the_children_of_others_go_on_beside_a_paused_fan_out(store: FanOuts, worker: UUID) -> None:
    held, other = store.fanned_out(worker, keys(40)), store.fanned_out(worker, keys(3), domain="orders")
    store.pause(held.id)
    assert {child.parent_id for child in store.finish_all(worker)} == {other.id}
    assert store.state(other.id) == "COMPLETED·succeeded"


def test_a_paused_fan_out_whose_last_child_ended_is_complete_only_when_it_is_resumed(
    store: FanOuts, worker: UUID
) -> None:
    sync = store.fanned_out(worker, ["a"])
    (child,) = store.take_children(worker)
    store.pause(sync.id)
    store.write(worker, child)
    store.settle()
    assert store.state(sync.id) == "RUNNING·paused"
    store.resume(sync.id)
    store.settle()
    assert store.state(sync.id) == "COMPLETED·succeeded"


def test_a_sync_that_still_reads_stops_at_a_batch_and_goes_on_at_its_cursor(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker, max_attempts=1)
    store.added(sync, ["a"])
    store.pause(sync.id)
    assert store.state(sync.id) == "RUNNING·pausing"
    assert store.add_batch(sync, ["b"]) is None
    store.settle()
    assert store.state(sync.id) == "RUNNING·pausing", "its worker has not given it back"
    assert store.park(sync, STOPPED) == {sync.id}
    store.settle()
    assert store.state(sync.id) == "RUNNING·paused"
    store.resume(sync.id)
    store.settle()
    job = store.job(sync.id)
    assert (store.state(sync.id), job.failures, job.worker_id) == ("PENDING·ready", 0, None)
    assert [(attempt.outcome, attempt.charged) for attempt in store.attempts(sync.id)] == [("PAUSED", False)]
    again = store.take_sync(worker, sync.id)
    assert again.job.attempt == 2
    store.added(again, ["b"])
    store.end_reading(again)
    store.park(again)
    store.finish_all(worker)
    assert (store.state(sync.id), store.counts(sync).completed) == ("COMPLETED·succeeded", 2)


def test_a_sync_that_is_resumed_while_its_worker_is_about_to_stop_reads_on(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, ["a"])
    store.pause(sync.id)
    store.resume(sync.id)
    assert store.state(sync.id) == "RUNNING·executing"
    assert store.park(sync, STOPPED) == {sync.id}
    store.settle()
    assert store.state(sync.id) == "PENDING·ready"


def test_a_sync_that_did_not_notice_the_pause_before_the_resume_is_not_disturbed(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.pause(sync.id)
    store.resume(sync.id)
    assert store.added(sync, ["a"]).children == 1


@pytest.mark.parametrize("before", ["ready", "scheduled", "queued"])
def test_a_sync_that_has_not_begun_is_paused_as_any_job(store: FanOuts, worker: UUID, before: str) -> None:
    job_id = store.enqueue_sync()
    if before == "scheduled":
        store.pretend(job_id, reason="scheduled", scheduled_at=60, due_at=60, ready_at=None)
    elif before == "queued":
        store.promote()
    store.pause(job_id)
    assert store.state(job_id) == "PENDING·paused"
    assert store.promote() == {}
    store.resume(job_id)
    assert store.state(job_id) == ("PENDING·scheduled" if before == "scheduled" else "PENDING·ready")


def test_a_retrying_sync_is_paused_with_its_children(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, ["a", "b"])
    store.park(sync, failed("no answer"))
    store.pause(sync.id)
    assert store.state(sync.id) == "PENDING·paused"
    assert store.finish_all(worker) == []
    store.resume(sync.id)
    assert store.state(sync.id) == "PENDING·ready"
    assert len(store.finish_all(worker)) == 2


def test_syncs_of_a_schedule_can_be_paused_too(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"], trigger=Trigger.AUTOMATIC)
    store.pause(sync.id)
    store.settle()
    assert store.state(sync.id) == "RUNNING·paused"


@pytest.mark.parametrize(("overlap", "state"), [("queue", "PENDING·blocked"), ("allow", "PENDING·ready")])
def test_a_resumed_sync_of_a_schedule_waits_for_its_predecessor_as_before(
    store: FanOuts, worker: UUID, overlap: str, state: str
) -> None:
    spec = store.look(get_data, store.enqueue_sync()).spec
    flow = store.workflow(kind="SYNC", spec=spec, queue="sync", overlap=overlap, interval_us=60_000_000)
    store.due(flow, 0.0)
    store.materialize()
    store.promote()
    (first,) = [job for job in store.claim_waiting(worker, 9, "sync") if job.workflow_id == flow.id]
    store.due(flow, 0.0)
    store.materialize()
    second = store.jobs_of(flow)[-1]
    assert store.state(second.id) == state
    store.pause(second.id)
    store.resume(second.id)
    assert store.state(second.id) == state
    store.end(worker, first)
    assert store.state(second.id) == "PENDING·ready"


def test_pausing_and_resuming_twice_changes_nothing_and_leaves_one_event_each(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"])
    for verb in (store.pause, store.pause, store.resume, store.resume):
        verb(sync.id)
    assert store.count("jobq_events", "action IN ('pause', 'resume')") == 2


# --- a worker that cannot go on while its SYNC is to be held, or to end ---------------------------------------------


def test_a_sync_that_is_paused_before_it_began_to_read_is_held(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker, opens=False)
    store.pause(sync.id)
    assert store.open(sync) is None
    assert store.park(sync, STOPPED) == {sync.id}
    assert store.state(sync.id) == "PENDING·paused"
    store.resume(sync.id)
    assert store.state(sync.id) == "PENDING·ready"
    assert store.job(sync.id).failures == 0


def test_a_sync_that_is_canceled_before_it_began_to_read_is_canceled(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker, opens=False)
    store.cancel(sync.id)
    assert store.open(sync) is None
    assert store.park(sync, STOPPED) == {sync.id}
    assert store.state(sync.id) == "CANCELED·by_user"
    assert store.last_attempt(sync.id).outcome == "CANCELED"


def test_a_sync_that_is_resumed_before_its_worker_said_that_it_never_began_is_ready(
    store: FanOuts, worker: UUID
) -> None:
    sync = store.sync(worker, opens=False)
    store.pause(sync.id)
    store.resume(sync.id)
    store.park(sync, STOPPED)
    assert store.state(sync.id) == "PENDING·ready"


@pytest.mark.parametrize("how", ["dies", "drains", "fails", "requeues"])
def test_a_sync_whose_worker_gives_it_up_while_it_is_to_pause_is_paused(store: FanOuts, worker: UUID, how: str) -> None:
    sync = store.sync(worker, retry={"retry_lost": True})
    store.added(sync, ["a"])
    store.pause(sync.id)
    if how == "dies":
        die(store, worker)
    elif how == "drains":
        assert store.park(sync, Outcome.stopped(), drained=True) == {sync.id}
    elif how == "fails":
        assert store.park(sync, failed("no answer")) == {sync.id}
    else:
        assert store.park(sync, Outcome.requeued(timedelta(seconds=9), "429")) == {sync.id}
    row = store.row(sync.id)
    assert (store.state(sync.id), row.worker_id, row.due_at) == ("PENDING·paused", None, None)
    other = store.worker(SLOTS, lease=300.0)
    assert store.finish_all(other) == []
    store.resume(sync.id)
    assert store.state(sync.id) == "PENDING·ready"
    again = store.take_sync(other, sync.id)
    store.end_reading(again)
    store.park(again)
    assert len(store.finish_all(other)) == 1
    assert store.state(sync.id) == "COMPLETED·succeeded"


@pytest.mark.parametrize("how", ["dies", "drains", "fails", "fails for good", "says stopped"])
def test_a_canceled_sync_whose_worker_gives_it_up_ends_with_its_last_child(
    store: FanOuts, worker: UUID, how: str
) -> None:
    sync = store.sync(worker, retry={"retry_lost": True})
    store.added(sync, ["a", "b"])
    other = store.worker(SLOTS, lease=300.0)
    store.promote()
    (child,) = store.claim_waiting(other, 1, "replication")
    store.cancel(sync.id)
    match how:
        case "dies":
            die(store, worker)
        case "drains":
            store.park(sync, Outcome.stopped(), drained=True)
        case "says stopped":
            store.park(sync, Outcome.stopped())
        case _:
            store.park(sync, failed("no answer", retry=how == "fails"))
    store.settle()
    assert store.state(sync.id) == "RUNNING·dequeuing"
    assert store.child_states(sync) == {"RUNNING·executing": 1, "CANCELED·parent_canceled": 1}
    store.write(other, child)
    store.settle()
    assert store.state(sync.id) == "CANCELED·by_user"
    assert len(store.attempts(sync.id)) == 1


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_a_canceled_fan_out_is_dequeued_and_ends_with_its_last_running_child(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, keys(6), CHAIN)
    store.promote()
    running = store.claim_waiting(worker, 2, "replication")
    store.cancel(sync.id)
    assert store.state(sync.id) == "RUNNING·dequeuing"
    assert store.claim_waiting(worker, 9, "replication") == []
    store.settle()
    assert store.state(sync.id) == "RUNNING·dequeuing"
    assert store.child_states(sync) == {"RUNNING·executing": 2, "CANCELED·parent_canceled": 10}
    store.record(worker, delivered(running[0]), ended(running[1], failed(), retry=OF_CHILDREN))
    store.settle()
    assert store.state(sync.id) == "CANCELED·by_user", "what came back for a retry was swept, too"
    assert store.child_states(sync) == {"COMPLETED·succeeded": 1, "CANCELED·parent_canceled": 11}
    assert (store.count("jobq_after"), store.job(sync.id).message) == (0, "canceled")
    assert store.last_attempt(sync.id).outcome == "CANCELED"
    assert adds_up(store.counts(sync))
    with pytest.raises(Conflict, match="has ended"):
        store.cancel(sync.id)


def test_a_canceled_sync_that_still_reads_stops_at_a_batch(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, ["a"])
    store.cancel(sync.id)
    assert store.add_batch(sync, ["b"]) is None
    store.settle()
    assert store.state(sync.id) == "RUNNING·dequeuing"
    assert store.park(sync, STOPPED) == {sync.id}
    store.settle()
    assert store.state(sync.id) == "CANCELED·by_user"
    assert store.child_states(sync) == {"CANCELED·parent_canceled": 1}


def test_a_paused_fan_out_can_be_canceled_and_a_canceled_one_not_be_paused(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a", "b"])
    (child, _) = store.take_children(worker)[:2]
    store.pause(sync.id)
    store.cancel(sync.id)
    with pytest.raises(Conflict, match="cannot be paused"):
        store.pause(sync.id)
    store.resume(sync.id)
    assert store.state(sync.id) == "RUNNING·dequeuing"
    store.write(worker, *store.running_children(sync, worker))
    store.settle()
    assert store.state(sync.id) == "CANCELED·by_user"
    assert store.state(child.id) == "COMPLETED·succeeded"


def test_canceling_a_retrying_sync_cancels_its_children(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, keys(3))
    store.promote()
    (child,) = store.claim_waiting(worker, 1, "replication")
    store.park(sync, failed("no answer"))
    store.cancel(sync.id)
    assert store.state(sync.id) == "CANCELED·by_user"
    assert store.promote() == {}
    store.settle()
    store.write(worker, child)
    store.settle()
    assert store.child_states(sync) == {"COMPLETED·succeeded": 1, "CANCELED·parent_canceled": 2}
    assert store.count("jobq_fanouts", "settled_at IS NULL") == 0


def test_five_thousand_children_are_dequeued(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, keys(5000))
    store.promote()
    running = store.claim_waiting(worker, 10, "replication")
    store.cancel(sync.id)
    store.settle()
    assert (store.state(sync.id), in_flight(store, sync)) == ("RUNNING·dequeuing", 10)
    assert store.counts(sync).canceled == 4990
    store.write(worker, *running)
    store.settle()
    assert store.state(sync.id) == "CANCELED·by_user"
    assert (store.counts(sync).completed, store.counts(sync).canceled) == (10, 4990)


def test_a_fan_out_that_is_too_large_ends_what_it_has_not_begun(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.add_batch(sync, keys(6), limit=6)
    store.promote()
    running = store.claim_waiting(worker, 2, "replication")
    done = store.add_batch(sync, {"z": 1}, limit=6)
    assert done is not None
    assert done.too_many
    store.park(sync, too_large())
    store.settle()
    assert store.child_states(sync) == {"RUNNING·executing": 2, "CANCELED·parent_canceled": 4}
    store.write(worker, *running)
    store.settle()
    job = store.job(sync.id)
    assert (store.state(sync.id), job.error_class, job.message) == ("FAILED·invalid", "fanout_too_large", "too many")
    assert (store.last_attempt(sync.id).error_class, job.failures) == ("fanout_too_large", 1)


def test_a_fan_out_whose_first_batch_is_too_large_fails_at_once(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.add_batch(sync, keys(6), limit=5)
    store.park(sync, too_large())
    assert (store.state(sync.id), store.children(sync)) == ("FAILED·invalid", [])


# --- dead workers ----------------------------------------------------------------------------------------------------


def test_the_children_of_a_dead_worker_are_tried_again_and_then_given_up(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"])
    for number in range(1, 4):
        other = store.worker(SLOTS, lease=300.0)
        store.wake_all()
        (child,) = store.take_children(other)
        assert child.attempt == number
        die(store, other)
        assert store.state(child.id) == ("PENDING·retrying" if number < 3 else "FAILED·unresolved")
    assert [attempt.outcome for attempt in store.attempts(child.id)] == ["LOST"] * 3
    store.settle()
    assert store.state(sync.id) == "FAILED·partial"


def test_a_sync_beside_its_children_does_not_care_about_workers(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"])
    die(store, worker)
    other = store.worker(SLOTS, lease=300.0)
    store.finish_all(other)
    assert store.state(sync.id) == "COMPLETED·succeeded"


def test_a_child_whose_claim_was_never_confirmed_is_given_back(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, ["a"])
    (child,) = store.take_children(worker)
    assert store.do(workers.release_unheld, worker, {}, [child.id]) == 1
    assert store.state(child.id) == "PENDING·retrying"


# --- races, on a server that runs them at once -----------------------------------------------------------------------


def test_nothing_is_promoted_or_claimed_once_a_pause_has_returned(postgres: FanOuts, worker: UUID) -> None:
    store = postgres
    for _ in range(4):
        sync = store.fanned_out(worker, keys(300))
        stop, paused = threading.Event(), threading.Event()
        started: list[UUID] = []

        def promote(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                store.promote()

        def claim(
            stop: threading.Event = stop, paused: threading.Event = paused, started: list[UUID] = started
        ) -> None:
            while not stop.is_set():
                late = paused.is_set()
                taken = store.claim_waiting(worker, 5, "replication")
                if late:
                    started += [child.id for child in taken]
                store.write(worker, *taken)

        def pause(sync: Sync = sync, stop: threading.Event = stop, paused: threading.Event = paused) -> None:
            while store.counts(sync).running + store.counts(sync).completed < 20:
                pass
            store.pause(sync.id)
            paused.set()
            assert store.counts(sync).queued == 0
            for _ in range(20):
                assert store.counts(sync).queued == 0
            stop.set()

        in_threads(promote, claim, claim, pause)
        assert started == []
        store.settle()
        assert store.state(sync.id) == "RUNNING·paused"
        store.cancel(sync.id)
        store.settle()


def test_cancel_against_finish_against_reap_ends_every_job_once(postgres: FanOuts, worker: UUID) -> None:
    store = postgres
    for round_ in range(15):
        other = store.worker(SLOTS, lease=300.0)
        sync = store.fanned_out(worker, keys(12), CHAIN, domain=f"round {round_}")
        taken = store.take_children(other)
        done: list[Any] = []

        def finish(taken: Any = taken, other: UUID = other, done: Any = done) -> None:
            for child in taken:
                store.record(other, delivered(child) if child.id.int % 2 else refused(child))
            done.append("finish")

        def reap(other: UUID = other, done: Any = done) -> None:
            die(store, other)
            done.append("reap")

        def cancel(sync: Sync = sync, done: Any = done) -> None:
            store.cancel(sync.id)
            done.append("cancel")

        def scheduler(done: Any = done) -> None:
            sweeps = Sweeps()
            while len(done) < 3:
                store.do(settle.settle, sweeps)

        in_threads(finish, reap, cancel, scheduler, scheduler)
        store.settle()
        assert store.state(sync.id) == "CANCELED·by_user"
        children = store.children(sync)
        assert all(child.finished for child in children)
        counts = store.counts(sync)
        by_rows = store.child_states(sync)
        assert counts.completed == by_rows["COMPLETED·succeeded"]
        assert counts.failed == sum(n for state, n in by_rows.items() if state.startswith("FAILED"))
        assert counts.canceled == sum(n for state, n in by_rows.items() if state.startswith("CANCELED"))
        assert (counts.total, adds_up(counts), len(store.attempts(sync.id))) == (24, True, 1)
    assert store.count("jobq_after") == store.count("jobq_jobs", "finished_at IS NULL") == 0


def test_a_cancel_that_races_with_a_batch_leaves_no_child_behind(postgres: FanOuts, worker: UUID) -> None:
    store = postgres
    for round_ in range(15):
        sync = store.sync(worker, domain=f"round {round_}")

        def read(sync: Sync = sync) -> None:
            number = 0
            while store.add_batch(sync, [f"{number}.{key}" for key in range(5)]) is not None:
                number += 1
            store.park(sync, STOPPED)

        in_threads(read, lambda sync=sync: store.cancel(sync.id), store.settle)
        store.settle()
        assert store.state(sync.id) == "CANCELED·by_user"
        assert set(store.child_states(sync)) <= {"CANCELED·parent_canceled"}
        assert store.counts(sync).canceled == store.counts(sync).total


# --- targets that ask for patience -----------------------------------------------------------------------------------


def holds(store: FanOuts) -> dict[Any, int]:
    return store.look(targets.held)


def let_the_time_pass(store: FanOuts) -> None:
    """The holds are over, and requeued children are due."""
    with store.database.begin() as conn:
        conn.exec_driver_sql("UPDATE jobq_targets SET not_before = (SELECT min(created_at) FROM jobq_jobs)")
    store.wake_all()


def test_not_now_of_one_child_holds_all_children_of_the_target(store: FanOuts, worker: UUID) -> None:
    first = store.fanned_out(worker, keys(10), [{"name": "crm"}, {"name": "erp"}])
    second = store.fanned_out(worker, keys(3), domain="orders")
    child, *others = sorted(store.take_children(worker), key=lambda job: str(job.target))
    store.record(worker, not_now(child, 60.0))
    assert holds(store) == {("acme", "crm"): 0}
    job = store.job(child.id)
    assert (store.state(child.id), job.requeues, job.failures) == ("PENDING·requeued", 1, 0)
    assert [(attempt.outcome, attempt.charged) for attempt in store.attempts(child.id)] == [("REQUEUED", False)]
    store.write(worker, *others)  # they were under way
    third = store.fanned_out(worker, keys(4), [{"name": "crm"}, {"name": "erp"}], domain="third")
    assert {job.target for job in store.take_children(worker)} == {"erp"}
    assert "429" in store.why(store.child(third, "k00000").id)
    assert store.counts(first).pending == 1
    assert store.counts(second).pending == 0


def test_exactly_one_job_of_all_syncs_tries_the_target_and_its_success_lets_two_through(
    store: FanOuts, worker: UUID
) -> None:
    syncs = [store.fanned_out(worker, keys(5), domain=f"d{number}") for number in range(3)]
    store.do(targets.hold, {("acme", "crm"): (timedelta(seconds=60), "429")})
    assert store.take_children(worker) == []
    let_the_time_pass(store)
    (probe,) = store.take_children(worker)
    assert store.take_children(worker) == [], "the first is still under way"
    store.write(worker, probe)
    assert holds(store) == {("acme", "crm"): 2}
    assert len(store.finish_all(worker)) == 14
    assert set(store.states(sync.id for sync in syncs)) == {"COMPLETED·succeeded"}


def test_a_probe_that_meets_no_patience_either_holds_the_target_again(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, keys(5))
    store.do(targets.hold, {("acme", "crm"): (timedelta(seconds=60), "429")})
    let_the_time_pass(store)
    (probe,) = store.take_children(worker)
    store.record(worker, not_now(probe, 30.0))
    assert holds(store) == {("acme", "crm"): 0}
    assert store.take_children(worker) == []


def test_a_target_that_takes_jobs_again_gets_twice_as_many_each_time(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, keys(40))
    store.do(targets.hold, {("acme", "crm"): (timedelta(seconds=60), "429")})
    let_the_time_pass(store)
    taken = []
    for _ in range(4):
        children = store.take_children(worker)
        taken.append(len(children))
        store.write(worker, *children)
    assert taken == [1, 2, 4, 8]
    children = store.take_children(worker)
    store.record(worker, not_now(children[0], 30.0))
    store.write(worker, *children[1:])
    let_the_time_pass(store)
    assert len(store.take_children(worker)) == 1, "from the start again"


def test_a_probe_that_the_target_refuses_opens_it_further(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, keys(5))
    store.do(targets.hold, {("acme", "crm"): (timedelta(seconds=60), "429")})
    let_the_time_pass(store)
    store.record(worker, *(refused(child) for child in store.take_children(worker)))
    assert (holds(store), len(store.take_children(worker))) == ({("acme", "crm"): 2}, 2)


def test_a_late_answer_lifts_no_hold_whose_time_is_not_over_and_a_longer_hold_stays(
    store: FanOuts, worker: UUID
) -> None:
    store.fanned_out(worker, ["a"])
    (child,) = store.take_children(worker)
    name = place(child)
    store.do(targets.hold, {name: (timedelta(seconds=600), "come back later")})
    store.do(targets.hold, {name: (timedelta(seconds=5), "come back soon")})
    store.write(worker, child)
    assert holds(store) == {name: 0}
    with store.database.read() as conn:
        assert conn.exec_driver_sql("SELECT message FROM jobq_targets").scalar_one() == "come back later"


def test_a_hold_is_of_one_tenant(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, ["a"])
    other = store.fanned_out(worker, ["a"], tenant="umbrella")
    store.do(targets.hold, {("acme", "crm"): (timedelta(seconds=60), "429")})
    assert [child.parent_id for child in store.take_children(worker)] == [other.id]


def test_a_target_with_a_concurrency_has_that_many_children_of_a_sync_in_flight(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, keys(9), [{"name": "crm", "concurrency": 2}, {"name": "erp"}])
    taken = store.take_children(worker)
    assert sum(child.target == "crm" for child in taken) == 2
    assert sum(child.target == "erp" for child in taken) == 9


def test_requeues_are_counted_and_bounded(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"])
    for number in range(MAX_REQUEUES):
        (child,) = store.take_children(worker)
        store.record(worker, not_now(child))
        job = store.job(child.id)
        assert (store.state(child.id), job.requeues, job.failures) == ("PENDING·requeued", number + 1, 0)
        let_the_time_pass(store)
    (child,) = store.take_children(worker)
    store.record(worker, not_now(child))
    job = store.job(child.id)
    assert (store.state(child.id), job.message) == ("FAILED·error", "429 (after 20 requeues)")
    store.settle()
    assert store.state(sync.id) == "FAILED·partial"


@pytest.mark.parametrize(("seconds", "state"), [(86_399, "PENDING·requeued"), (86_401, "FAILED·error")])
def test_requeues_end_a_day_after_the_first(store: FanOuts, worker: UUID, seconds: int, state: str) -> None:
    store.fanned_out(worker, ["a"])
    (child,) = store.take_children(worker)
    store.pretend(child.id, created_at=-90_000)  # however long it has waited before
    store.record(worker, not_now(child))
    let_the_time_pass(store)
    (child,) = store.take_children(worker)
    first = store.last_attempt(child.id).finished_at - timedelta(seconds=seconds)
    store.execute("UPDATE jobq_attempts SET finished_at = :first", first=instant_text(first))
    store.record(worker, not_now(child))
    assert store.state(child.id) == state


def test_a_child_that_waited_for_a_day_is_requeued_all_the_same(store: FanOuts, worker: UUID) -> None:
    """It waited for its turn, or for a person, and the target has not been asked yet."""
    store.fanned_out(worker, ["a"])
    (child,) = store.take_children(worker)
    store.pretend(child.id, created_at=-86_401)
    store.record(worker, not_now(child))
    assert store.state(child.id) == "PENDING·requeued"


def test_a_requeue_of_a_canceled_fan_out_is_a_cancellation(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"], ONE)
    (child,) = store.take_children(worker)
    store.cancel(sync.id)
    store.record(worker, not_now(child))
    store.settle()
    assert store.states([child.id, sync.id]) == ["CANCELED·parent_canceled", "CANCELED·by_user"]


def test_a_sync_that_is_ended_by_force_ends_with_its_running_children(store: FanOuts) -> None:
    worker = store.worker(SLOTS)
    sync = store.fanned_out(worker, keys(4))
    store.promote()
    (running, *_) = store.claim_waiting(worker, 1, "replication")
    store.do(control.end, None, sync.id, "ann")
    store.settle()
    assert store.state(sync.id) == "CANCELED·by_user"
    assert store.state(running.id) == "CANCELED·parent_canceled"
    assert store.child_states(sync) == {"CANCELED·parent_canceled": 4}
    assert store.write(worker, running) == set(), "its worker is fenced"


def test_a_sync_that_reads_is_ended_under_its_worker(store: FanOuts) -> None:
    worker = store.worker(SLOTS)
    bare, sync = store.sync(worker, domain="a"), store.sync(worker, domain="b")
    store.added(sync, keys(2))
    for each in (bare, sync):
        store.do(control.end, None, each.id, "ann")
    store.settle()
    assert store.states([bare.id, sync.id]) == ["CANCELED·by_user"] * 2
    assert store.add_batch(sync, keys(9)) is None
    assert store.park(sync) == set()
    assert [len(store.attempts(each.id)) for each in (bare, sync)] == [1, 1]
