"""How fan-outs end: every child's end is counted once, and the SYNC ends once, with the last of them."""

from itertools import product
from uuid import UUID

import pytest

from jobq.models import Outcome
from jobq.states import Desired, Reason, Settling, Status, fanned_in, parked, settling
from jobq.store import fanin, fanout, settle
from jobq.store.fanout import Failure, Sifted
from jobq.store.settle import Sweeps
from tests.fanouts import CHAIN, SLOTS, FanOuts, adds_up, content, delivered, in_threads, keys, not_now, refused
from tests.stores import ended, failed

WAIT, DEQUEUE, END, OVER = Settling.WAIT, Settling.DEQUEUE, Settling.END, Settling.OVER


STORE = FanOuts


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> UUID:
    name = "postgres" if "postgres" in request.fixturenames else "store"
    store: FanOuts = request.getfixturevalue(name)
    return store.worker(SLOTS, lease=300.0)


# --- the decision, without a database --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "reason", "reading", "live", "running", "expected"),
    [
        ("RUN", "fanned_out", False, 2, 1, WAIT),
        ("RUN", "fanned_out", False, 2, 0, WAIT),
        ("RUN", "fanned_out", False, 0, 0, END),
        ("RUN", "fanned_out", True, 0, 0, Settling.READ_ON),
        ("RUN", "fanned_out", True, 2, 1, Settling.READ_ON),
        ("PAUSE", "pausing", False, 2, 1, WAIT),
        ("PAUSE", "pausing", False, 2, 0, Settling.PAUSED),
        ("PAUSE", "pausing", True, 0, 0, Settling.PAUSED),
        ("PAUSE", "paused", False, 2, 0, WAIT),
        ("PAUSE", "paused", False, 0, 0, WAIT),
        ("PAUSE", "paused", True, 0, 0, WAIT),
        ("CANCEL", "dequeuing", False, 2, 1, DEQUEUE),
        ("CANCEL", "dequeuing", True, 2, 0, DEQUEUE),
        ("CANCEL", "dequeuing", True, 0, 0, END),
        ("CANCEL", "paused", False, 1, 0, DEQUEUE),
    ],
)
def test_what_is_next_for_a_sync_that_runs_without_a_worker(
    desired: str, reason: str, *, reading: bool, live: int, running: int, expected: Settling
) -> None:
    step = settling(Status.RUNNING, Reason(reason), Desired(desired), reading=reading, live=live, running=running)
    assert step is expected


@pytest.mark.parametrize(
    ("status", "reason", "live", "expected"),
    [
        ("PENDING", "retrying", 3, WAIT), ("PENDING", "paused", 0, WAIT), ("QUEUED", "dispatched", 3, WAIT),
        ("FAILED", "error", 3, WAIT), ("FAILED", "error", 0, OVER), ("COMPLETED", "succeeded", 0, OVER),
        ("CANCELED", "by_user", 3, DEQUEUE), ("CANCELED", "by_user", 0, OVER),
    ],
)  # fmt: skip
def test_what_is_next_for_a_sync_that_does_not_run(status: str, reason: str, live: int, expected: Settling) -> None:
    for desired, reading in product(Desired, (False, True)):
        step = settling(Status(status), Reason(reason), desired, reading=reading, live=live, running=0)
        assert step is expected


def test_a_sync_that_gave_up_dequeues_its_children_unless_somebody_holds_it() -> None:
    def step(desired: Desired, live: int, reason: Reason = Reason.FANNED_OUT) -> Settling:
        return settling(Status.RUNNING, reason, desired, reading=False, live=live, running=0, gave_up=True)

    assert (step(Desired.RUN, 2), step(Desired.RUN, 0)) == (DEQUEUE, END)
    assert step(Desired.PAUSE, 2, Reason.PAUSED) is WAIT


def test_a_sync_never_ends_while_a_child_lives() -> None:
    for status, desired, reading, gave_up in product(Status, Desired, (False, True), (False, True)):
        step = settling(
            status, Reason.FANNED_OUT, desired, reading=reading, live=1, running=0, gave_up=gave_up
        )  # fmt: skip
        assert step not in {END, OVER}


def test_a_sync_says_what_it_waits_for_when_it_gives_its_worker_slot_back() -> None:
    assert {desired: parked(desired) for desired in Desired} == {
        Desired.RUN: Reason.FANNED_OUT, Desired.PAUSE: Reason.PAUSING, Desired.CANCEL: Reason.DEQUEUING
    }  # fmt: skip


def test_a_fan_out_is_complete_only_if_every_entity_arrived() -> None:
    assert fanned_in(failed=0, canceled=0, invalid=0).reason is Reason.SUCCEEDED
    for lost in ({"failed": 1}, {"canceled": 1}, {"invalid": 1}):
        end = fanned_in(**{"failed": 0, "canceled": 0, "invalid": 0, **lost})
        assert (end.status, end.reason, end.charged) == (Status.FAILED, Reason.PARTIAL, True)


# --- the end ---------------------------------------------------------------------------------------------------------


def test_a_sync_ends_once_with_its_last_child_and_leaves_one_attempt(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker, retry={"max_attempts": 3})
    store.added(sync, ["a", "b"])
    store.end_reading(sync)
    store.park(sync, Outcome.fanned_out(result={"read": 2}))
    parked = store.row(sync.id)
    assert (store.state(sync.id), parked.worker_id, store.attempts(sync.id)) == ("RUNNING·fanned_out", None, [])
    one, other = store.take_children(worker)
    store.write(worker, one)
    store.settle()
    assert store.state(sync.id) == "RUNNING·fanned_out"
    store.write(worker, other)
    store.settle()
    store.settle()
    done = store.job(sync.id)
    assert (done.status, done.reason, done.message, done.failures) == (Status.COMPLETED, "succeeded", None, 0)
    (attempt,) = store.attempts(sync.id)
    assert (attempt.outcome, attempt.reason, attempt.charged) == ("COMPLETED", "succeeded", False)
    assert (attempt.worker_id, attempt.result) == (worker, {"read": 2})
    assert attempt.started_at == sync.job.started_at
    assert attempt.finished_at >= store.child(sync, "b").finished_at  # type: ignore[operator]
    assert store.count("jobq_fanouts", "settled_at IS NULL") == store.count("jobq_fanout_deltas") == 0


def test_a_sync_of_which_something_did_not_arrive_fails_in_part_and_says_how_much(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker, CHAIN)
    problems = [Failure("x", "MappingError", "no")]
    store.added(sync, Sifted(delivered_contents(4), None, read=5, failures=problems))
    store.end_reading(sync)
    store.park(sync)
    taken = store.take_children(worker)
    store.record(worker, *(refused(child) for child in taken[:2]), *(delivered(child) for child in taken[2:]))
    store.finish_all(worker)
    done = store.job(sync.id)
    assert (store.state(sync.id), done.error_class, done.failures) == ("FAILED·partial", "partial", 1)
    assert done.message == (
        "1 of 5 entities could not be used, 2 of 8 replications failed, 2 of 8 replications were canceled"
    )
    (attempt,) = store.attempts(sync.id)
    assert (attempt.outcome, attempt.reason, attempt.charged) == ("FAILED", "partial", True)
    assert (attempt.message, attempt.error_class) == (done.message, "partial")


def delivered_contents(count: int) -> list[fanout.Content]:
    return [content(key, 1) for key in keys(count)]


def test_a_sync_without_children_ends_at_the_next_look(store: FanOuts, worker: UUID) -> None:
    """With no other target than jobq's own store, and where there was nothing to do."""
    own = store.fanned_out(worker, ["a"], [])
    nothing = store.fanned_out(worker, [])
    store.settle()
    assert store.states([own.id, nothing.id]) == ["COMPLETED·succeeded"] * 2
    assert (store.counts(own).new, store.counts(own).total) == (1, 0)


def test_a_sync_that_wrote_files_itself_ends_without_children(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    assert store.do(fanout.add_files, sync.owner, Sifted([], None, read=7, filtered=2), {"crm": 5})
    store.end_reading(sync)
    store.park(sync)
    store.settle()
    counts = store.counts(sync)
    assert (store.state(sync.id), counts.read, counts.filtered, counts.total) == ("COMPLETED·succeeded", 7, 2, 0)
    assert counts.targets["crm"].success == 5


def test_a_failure_of_the_sync_itself_waits_for_its_children(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, ["a", "b"])
    assert store.park(sync, failed("the page is gone", error_class="InvalidConfiguration", retry=False)) == {sync.id}
    store.settle()
    assert store.state(sync.id) == "RUNNING·fanned_out"
    assert not store.counts(sync).reading
    (one, other) = store.take_children(worker)
    store.write(worker, one)
    store.settle()
    assert store.state(sync.id) == "RUNNING·fanned_out"
    store.record(worker, refused(other))
    store.settle()
    done = store.job(sync.id)
    assert (store.state(sync.id), done.message) == ("FAILED·error", "the page is gone")
    (attempt,) = store.attempts(sync.id)
    assert (attempt.outcome, attempt.reason, attempt.charged) == ("FAILED", "error", True)
    assert (attempt.error_class, attempt.message) == ("InvalidConfiguration", "the page is gone")


def test_a_failure_that_is_tried_again_goes_on_reading_beside_its_children(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, ["a"])
    store.park(sync, failed("no answer"))
    assert store.state(sync.id) == "PENDING·retrying"
    store.finish_all(worker)
    assert store.state(sync.id) == "PENDING·retrying", "all its children have ended, but it has not read everything"
    again = store.take_sync(worker, sync.id)
    store.added(again, ["b"])
    store.end_reading(again)
    store.park(again)
    store.finish_all(worker)
    assert (store.state(sync.id), store.counts(sync).completed) == ("COMPLETED·succeeded", 2)
    assert [attempt.outcome for attempt in store.attempts(sync.id)] == ["FAILED", "COMPLETED"]


def test_a_sync_that_failed_before_it_had_children_ends_at_once(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.park(sync, failed("no such table", retry=False))
    assert store.state(sync.id) == "FAILED·error"
    store.settle()
    assert store.count("jobq_fanouts", "settled_at IS NULL") == 0


def test_a_failed_sync_counts_once_against_its_workflow(store: FanOuts, worker: UUID) -> None:
    flow = store.workflow(kind="SYNC", queue="sync")
    store.fanned_out(worker, ["a"], workflow_id=flow.id, generation=flow.generation)
    (child,) = store.take_children(worker)
    store.record(worker, refused(child))
    assert store.flow(flow).consecutive_failures == 0
    store.settle()
    store.settle()
    assert store.flow(flow).consecutive_failures == 1


def test_somebody_who_waits_for_the_sync_goes_on_when_its_last_child_has_ended(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"])
    waiting = store.enqueue_one(after=(sync.id,))
    store.settle()
    assert store.state(waiting) == "PENDING·blocked"
    store.finish_all(worker)
    assert store.state(waiting) == "PENDING·ready"


# --- counts ----------------------------------------------------------------------------------------------------------


def test_the_counts_add_up_at_every_moment(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker, CHAIN)
    seen = []

    def look() -> None:
        counts = store.counts(sync)
        assert adds_up(counts)
        by_rows = store.child_states(sync)
        assert counts.completed == by_rows["COMPLETED·succeeded"]
        assert counts.skipped == by_rows["COMPLETED·skipped"]
        assert counts.failed == by_rows["FAILED·error"]
        assert counts.canceled == sum(count for state, count in by_rows.items() if state.startswith("CANCELED"))
        assert (counts.queued, counts.running) == (by_rows["QUEUED·dispatched"], by_rows["RUNNING·executing"])
        seen.append(counts)

    look()
    for names in (keys(12)[:6], keys(12)[6:]):
        store.added(sync, names)
        look()
    store.promote()
    look()
    taken = store.claim_waiting(worker, 8, "replication")
    look()
    for number, child in enumerate(taken):
        match number % 4:
            case 0:
                store.record(worker, refused(child))
            case 1:
                store.write(worker, child, what="skipped")
            case 2:
                store.write(worker, child)
            case _:
                store.record(worker, not_now(child))
        look()
        if number % 3 == 0:
            store.do(fanin.fold)
            look()
    store.end_reading(sync)
    store.park(sync)
    store.execute("DELETE FROM jobq_targets")
    store.wake_all()
    store.finish_all(worker)
    look()
    last = seen[-1]
    assert (last.total, last.pending, last.failed, last.skipped) == (24, 0, 2, 4)
    assert (last.completed, last.canceled) == (16, 2)
    assert (last.targets["crm"].success, last.targets["crm"].fail, last.targets["erp"].success) == (8, 2, 8)


def test_what_targets_did_is_counted_by_word(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, keys(6))
    words = ["success", "updated", "existing", "skipped", "success", "existing"]
    for child, word in zip(store.take_children(worker), words, strict=True):
        store.write(worker, child, what=word)
    summary = store.counts(sync).targets["crm"]
    assert (summary.success, summary.updated, summary.existing, summary.skipped) == (2, 1, 2, 1)
    store.settle()
    assert store.counts(sync).targets["crm"] == summary, "folding changes nothing that is seen"


def test_two_folders_at_once_count_every_end_once(postgres: FanOuts, worker: UUID) -> None:
    store = postgres
    syncs = [store.fanned_out(worker, keys(150), domain=f"d{number}") for number in range(4)]
    taken = store.take_children(worker)
    assert len(taken) == 600
    done: list[int] = []

    def record(part: int) -> None:
        for child in taken[part::3]:
            store.record(worker, refused(child) if child.entity_key in keys(30) else delivered(child))
        done.append(part)

    def fold() -> None:
        while len(done) < 3 or store.do(fanin.fold):
            store.do(fanin.fold)

    def look() -> None:
        while len(done) < 3:
            assert all(adds_up(store.counts(sync)) for sync in syncs)

    in_threads(*(lambda part=part: record(part) for part in range(3)), fold, fold, look)
    for sync in syncs:
        counts = store.counts(sync)
        assert (counts.completed, counts.failed, counts.pending) == (120, 30, 0)
    assert store.count("jobq_fanout_deltas") == 0
    assert store.count("jobq_fanout_targets", "completed = 120 AND failed = 30 AND success = 120") == 4


def test_two_schedulers_end_each_sync_once_while_its_last_children_end(postgres: FanOuts, worker: UUID) -> None:
    store = postgres
    syncs = [store.fanned_out(worker, ["a", "b"], domain=f"d{number}") for number in range(40)]
    taken = store.take_children(worker)
    done: list[int] = []

    def record(part: int) -> None:
        for child in taken[part::2]:
            store.write(worker, child)
        done.append(part)

    def scheduler() -> None:
        sweeps = Sweeps()
        while len(done) < 2 or store.count("jobq_fanouts", "settled_at IS NULL"):
            store.do(settle.settle, sweeps)

    in_threads(lambda: record(0), lambda: record(1), scheduler, scheduler)
    assert store.states(sync.id for sync in syncs) == ["COMPLETED·succeeded"] * 40
    assert all(len(store.attempts(sync.id)) == 1 for sync in syncs)
    assert all(store.counts(sync).completed == 2 for sync in syncs)


def test_more_fan_outs_than_one_look_takes_all_end(store: FanOuts, worker: UUID) -> None:
    open_ = [store.fanned_out(worker, ["a"], domain=f"open {number}") for number in range(105)]
    over = [store.fanned_out(worker, [], domain=f"over {number}") for number in range(5)]
    store.settle()
    assert store.states(sync.id for sync in over) == ["COMPLETED·succeeded"] * 5
    store.finish_all(worker)
    assert set(store.states(sync.id for sync in open_)) == {"COMPLETED·succeeded"}


def test_a_late_outcome_of_a_sync_is_refused(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"])
    assert store.park(sync) == set()
    assert store.record(worker, ended(sync.job)) == set()
    assert store.state(sync.id) == "RUNNING·fanned_out"
