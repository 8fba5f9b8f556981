"""A SYNC whose entities other SYNCs' children bring ends with them, and as they end."""

from uuid import UUID

import pytest

from tests.fanouts import CHAIN, SLOTS, FanOuts, keys, refused

STORE = FanOuts


@pytest.fixture
def worker(store: FanOuts) -> UUID:
    return store.worker(SLOTS, lease=300.0)


def test_a_sync_waits_for_the_jobs_that_stand_in_for_its_children(store: FanOuts, worker: UUID) -> None:
    older = store.fanned_out(worker, {"a": 1})
    newer = store.fanned_out(worker, {"a": 2})
    assert store.child_states(newer) == {"CANCELED·duplicate": 1}
    store.settle()
    assert store.state(newer.id) == "RUNNING·fanned_out"
    assert str(store.child(older, "a").id) in store.why(newer.id)
    store.finish_all(worker)
    assert store.states([older.id, newer.id]) == ["COMPLETED·succeeded"] * 2


def test_a_sync_fails_in_part_if_a_job_that_stood_in_for_it_failed(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1, "b": 1})
    newer = store.fanned_out(worker, {"a": 2, "b": 2, "c": 1})
    first, *others = sorted(store.take_children(worker), key=lambda child: str(child.entity_key))
    store.record(worker, refused(first))
    store.write(worker, *others)
    store.settle()
    job = store.job(newer.id)
    assert f"{job.status}·{job.reason}" == "FAILED·partial"
    assert job.message == "1 of 3 replications failed in another SYNC, which did them for this one"


def test_a_sync_fails_in_part_if_the_sync_that_brings_its_entities_is_canceled(store: FanOuts, worker: UUID) -> None:
    older = store.fanned_out(worker, {"a": 1})
    newer = store.fanned_out(worker, {"a": 2})
    store.cancel(older.id)
    store.settle()
    assert store.states([older.id, newer.id]) == ["CANCELED·by_user", "FAILED·partial"]


def test_what_another_sync_did_not_bring_is_brought_by_a_retry(store: FanOuts, worker: UUID) -> None:
    older = store.fanned_out(worker, {"a": 1})
    newer = store.fanned_out(worker, {"a": 2})
    store.cancel(older.id)
    store.settle()
    from jobq.store import fanout

    left = store.look(fanout.unfinished_business, newer.id, None, 100)
    assert [row.entity_key for row in left] == ["a"]


def test_a_canceled_or_paused_sync_does_not_wait_for_others(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1})
    canceled, paused = (store.fanned_out(worker, {"a": number}) for number in (2, 3))
    store.cancel(canceled.id)
    store.pause(paused.id)
    store.settle()
    assert store.states([canceled.id, paused.id]) == ["CANCELED·by_user", "RUNNING·paused"]
    store.finish_all(worker)
    assert store.state(paused.id) == "RUNNING·paused"
    store.resume(paused.id)
    store.settle()
    assert store.state(paused.id) == "COMPLETED·succeeded"


def test_two_syncs_whose_children_stand_in_for_each_other_both_end(store: FanOuts, worker: UUID) -> None:
    one, other = store.sync(worker), store.sync(worker)
    store.added(one, {"a": 1})
    store.added(other, {"b": 1})
    store.added(one, {"b": 2})
    store.added(other, {"a": 2})
    for sync in (one, other):
        store.end_reading(sync)
        store.park(sync)
    store.settle()
    assert store.states([one.id, other.id]) == ["RUNNING·fanned_out"] * 2
    store.finish_all(worker)
    assert store.states([one.id, other.id]) == ["COMPLETED·succeeded"] * 2


def test_the_rest_of_a_chain_ends_before_its_sync(store: FanOuts, worker: UUID) -> None:
    older = store.fanned_out(worker, keys(5), CHAIN)
    newer = store.fanned_out(worker, dict.fromkeys(keys(5), 2), CHAIN)
    assert store.child_states(newer) == {"CANCELED·duplicate": 10}
    store.write(worker, *store.take_children(worker))
    store.settle()
    assert store.state(newer.id) == "RUNNING·fanned_out"
    store.finish_all(worker)
    assert store.states([older.id, newer.id]) == ["COMPLETED·succeeded"] * 2
