"""A SYNC's batches: each (entity, target) gets its child once, and the newest content always arrives."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from jobq.models import Outcome
from jobq.states import Reason
from jobq.store import entities, exports, fanout, workers
from jobq.store.database import Connection
from jobq.store.fanout import Added, Failure, Owner, Sifted
from tests.fanouts import (
    CHAIN,
    ONE,
    SLOTS,
    FanOuts,
    Sync,
    Targets,
    adds_up,
    batch,
    delivered,
    in_threads,
    keys,
    refused,
)

FILTERING: Targets = ({"name": "crm", "conditions": ["active"]},)


STORE = FanOuts


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> UUID:
    name = "postgres" if "postgres" in request.fixturenames else "store"
    store: FanOuts = request.getfixturevalue(name)
    return store.worker(SLOTS, lease=300.0)


def sent(store: FanOuts, sync: Sync, target: str = "crm") -> Counter[str]:
    """How many children each entity has for the target."""
    return Counter(str(job.entity_key) for job in store.children(sync) if job.target == target)


# --- a batch ---------------------------------------------------------------------------------------------------------


def test_new_changed_and_unchanged_entities_are_told_apart(store: FanOuts, worker: UUID) -> None:
    first = store.sync(worker)
    assert store.added(first, {"a": 1, "b": 1}) == Added(new=2, children=2)
    store.end_reading(first)
    store.park(first)
    store.finish_all(worker)
    second = store.sync(worker)
    assert store.added(second, {"a": 1, "b": 2, "c": 1}) == Added(new=1, updated=1, existing=1, children=2)
    assert store.versions() == {"a": 1, "b": 2, "c": 1}
    counts = store.counts(second)
    assert (counts.new, counts.updated, counts.existing, counts.read) == (1, 1, 1, 3)
    assert (counts.total, counts.targets["crm"].existing) == (2, 1)


def test_a_child_says_whose_it_is_what_it_writes_and_where_to(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker, priority=8, stale_after=500.0)
    store.added(sync, ["a"])
    (child,) = store.children(sync)
    assert (child.kind, child.queue, child.tenant, child.name) == ("REPLICATION", "replication", "acme", "customers/a")
    assert (child.parent_id, child.domain, child.domain_end) == (sync.id, "customers", "target")
    assert (child.target, child.entity_key, child.priority, child.max_attempts) == ("crm", "a", 8, 3)
    assert (child.timeout, store.row(child.id).stale_after, child.trigger) == (60.0, 500.0, "MANUAL")
    assert (f"{child.status}·{child.reason}", child.ready_at is not None) == ("PENDING·ready", True)
    (taken,) = store.take_children(worker)
    assert taken.spec == {"domain": "customers", "target": "crm", "entity_key": "a"}
    assert taken.payload is not None
    assert (taken.payload.version, taken.payload.body) == (1, {"id": "a", "value": 1})


def test_children_run_while_the_sync_still_reads(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, ["a"])
    assert len(store.finish_all(worker)) == 1
    assert store.added(sync, ["b"]).children == 1
    assert store.state(sync.id) == "RUNNING·executing"
    assert adds_up(store.counts(sync))


def test_a_batch_without_anything_new_moves_the_cursor(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    assert store.added(sync, Sifted([], {"page": 3}, "newer", read=4, filtered=4)) == Added()
    opened = store.open(sync)
    assert (opened.cursor, opened.state, opened.read, opened.filtered) == ({"page": 3}, "newer", 4, 4)


def test_entities_that_could_not_be_used_are_kept_in_their_order(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(
        sync, Sifted([], 1, failures=[Failure("line 1", "unreadable", "no"), Failure("x", "MappingError", "!")])
    )
    store.added(sync, Sifted([], 2, failures=[Failure("line 9", "unreadable", "no")]))
    found = store.look(exports.problems, sync.id, behind=0, limit=10)
    assert [(one.number, one.entity) for one in found] == [(1, "line 1"), (2, "x"), (3, "line 9")]
    assert [one.number for one in store.look(exports.problems, sync.id, behind=1, limit=1)] == [2]
    assert store.counts(sync).invalid == 3


def test_a_batch_that_raises_leaves_nothing(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, batch(["a"], 1))
    bad = batch(["b", "c"], 2, failures=[Failure("x", "y", object())])  # type: ignore[arg-type]
    with pytest.raises(Exception, match="object"):
        store.add_batch(sync, bad)
    assert store.versions() == {"a": 1}
    assert len(store.children(sync)) == store.counts(sync).total == 1
    assert (store.open(sync).cursor, store.open(sync).read, store.count("jobq_sync_problems")) == (1, 1, 0)


# --- the guard -------------------------------------------------------------------------------------------------------


def nothing_was_written(store: FanOuts, sync: Sync) -> bool:
    opened = store.count("jobq_fanouts", "cursor IS NOT NULL OR NOT reading")
    return not (opened or store.versions() or store.children(sync) or store.count("jobq_sync_states"))


@pytest.mark.parametrize("other", ["attempt", "worker"])
def test_only_the_owner_of_the_attempt_can_store_a_batch(store: FanOuts, worker: UUID, other: str) -> None:
    sync = store.sync(worker)
    owner = sync.owner
    foreign = (
        Owner(owner.job_id, owner.attempt + 1, worker) if other == "attempt" else replace(owner, worker_id=sync.id)
    )
    for verb, more in (
        (fanout.open_fanout, ("customers", sync.targets)),
        (fanout.add_batch, (batch(["a"], 1), sync.targets, fanout.ChildPolicy(60, 3, 9))),
    ):
        assert store.do(verb, foreign, *more) is None
    assert not store.do(fanout.end_reading, foreign, state=1, keep_state=True)
    assert not store.do(fanout.add_files, foreign, batch([], 1), {"crm": 1})
    assert nothing_was_written(store, sync)


@pytest.mark.parametrize("request_", ["pause", "cancel"])
def test_a_sync_that_was_paused_or_canceled_stores_no_further_batch(
    store: FanOuts, worker: UUID, request_: str
) -> None:
    sync = store.sync(worker)
    getattr(store, request_)(sync.id)
    assert store.add_batch(sync, batch(["a"], 1)) is None
    assert not store.end_reading(sync, "state")
    assert nothing_was_written(store, sync)


def test_a_sync_whose_worker_died_stores_no_further_batch(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.do(workers.declare_dead, [worker])
    store.do(workers.release_lost, reattach_grace=0.0)
    assert store.add_batch(sync, batch(["a"], 1)) is None
    assert nothing_was_written(store, sync)


# --- going on --------------------------------------------------------------------------------------------------------


def lose(store: FanOuts, sync: Sync, targets: Targets = ONE) -> Sync:
    """The worker dies, and another one takes the SYNC up again."""
    store.do(workers.declare_dead, [sync.worker])
    assert store.do(workers.release_lost, reattach_grace=0.0) >= 1
    store.execute("UPDATE jobq_jobs SET max_attempts = 100, failures = 0")
    return store.take_sync(store.worker(SLOTS, lease=300.0), sync.id, targets)


def test_a_sync_killed_at_every_batch_creates_each_entity_for_each_target_once(store: FanOuts, worker: UUID) -> None:
    batches = [keys(30)[start : start + 5] for start in range(0, 30, 5)]
    sync = store.sync(worker, CHAIN, retry={"retry_lost": True})
    for number, found in enumerate(batches):
        assert store.added(sync, batch(found, number)).children == 10
        stale, sync = sync, lose(store, sync, CHAIN)
        assert store.open(sync).cursor == number
        assert store.add_batch(stale, batch(found, number + 1)) is None
    store.end_reading(sync)
    store.park(sync)
    assert sent(store, sync) == sent(store, sync, "erp") == Counter(keys(30))
    assert (store.counts(sync).total, store.counts(sync).read) == (60, 30)


def test_a_batch_that_is_stored_twice_adds_nothing_the_second_time(store: FanOuts, worker: UUID) -> None:
    """As after a COMMIT whose reply was lost, or by a source that gives a page twice."""
    sync = store.sync(worker, CHAIN)
    assert store.added(sync, ["a", "b"]).children == 4
    assert store.added(sync, ["a", "b"]) == Added(existing=2)
    assert len(store.children(sync)) == store.counts(sync).total == 4
    assert [each.existing for each in store.counts(sync).targets.values()] == [0, 0], "each entity is reported once"
    store.end_reading(sync)
    store.park(sync)
    store.finish_all(worker)
    assert store.state(sync.id) == "COMPLETED·succeeded"
    assert [each.success + each.existing for each in store.counts(sync).targets.values()] == [2, 2]


def test_a_batch_whose_commit_was_done_although_its_reply_was_lost_counts_once(store: FanOuts, worker: UUID) -> None:
    store.finish_all(store.fanned_out(worker, ["had"]).worker)
    sync = store.sync(worker)
    store.added(sync, batch(["x"], 1, behind=0))
    problems = [Failure("y", "MappingError", "no")]
    second = batch(["had", "a"], 2, read=5, filtered=2, failures=problems, behind=1)
    assert store.added(sync, second) == Added(new=1, existing=1, children=1)
    assert store.added(sync, second) == Added()
    assert store.added(sync, batch(["b"], 3, behind=6)).children == 1
    counts = store.counts(sync)
    assert (counts.read, counts.filtered, counts.new, counts.existing, counts.invalid) == (7, 2, 3, 1, 1)
    assert (counts.total, counts.targets["crm"].existing) == (3, 1)
    assert [each.entity for each in store.look(exports.problems, sync.id, behind=0, limit=10)] == ["y"]


def test_files_whose_commit_was_done_although_its_reply_was_lost_count_once(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)

    def write(conn: Connection) -> bool:
        done = fanout.add_files(conn, sync.owner, Sifted([], None, read=7, filtered=2), {"crm": 5})
        return done and fanout.end_reading(conn, sync.owner, state=None, keep_state=False)

    assert store.do(write)
    assert store.do(write)
    store.park(sync)
    store.settle()
    counts = store.counts(sync)
    assert store.state(sync.id) == "COMPLETED·succeeded"
    assert (counts.read, counts.filtered, counts.targets["crm"].success) == (7, 2, 5)


def test_an_entity_that_comes_again_after_its_child_ran_is_still_reported_once(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker)
    store.added(sync, ["a"])
    store.run_children(worker)
    store.added(sync, ["a", "b"])
    assert store.counts(sync).targets["crm"].existing == 0


def test_a_key_that_comes_again_with_other_content_is_a_problem_that_people_are_told_of(
    store: FanOuts, worker: UUID
) -> None:
    sync = store.sync(worker)
    store.added(sync, {"a": 1})
    assert store.added(sync, {"a": 2}) == Added(updated=1)
    (problem,) = store.look(exports.problems, sync.id, behind=0, limit=10)
    assert (problem.entity, problem.error_class) == ("a", "duplicate_key")
    assert (len(store.children(sync)), store.counts(sync).invalid) == (1, 1)
    store.finish_all(worker)
    assert store.marks() == {"a": 2}, "its child had not begun: it brings the last content"


def test_more_children_than_allowed_are_refused_before_the_first_is_made(store: FanOuts, worker: UUID) -> None:
    sync = store.sync(worker, CHAIN)
    assert store.add_batch(sync, ["a", "b"], limit=4) == Added(new=2, children=4)
    assert store.add_batch(sync, batch(["c"], 9), limit=5) == Added(too_many=True)
    assert (len(store.children(sync)), store.counts(sync).total, store.open(sync).cursor) == (4, 4, None)
    assert store.add_batch(sync, ["a", "b"], limit=4) == Added(existing=2), "what is there needs no room"


# --- another SYNC of the same domain ---------------------------------------------------------------------------------


def test_a_newer_child_is_a_duplicate_behind_a_pending_one_which_brings_the_newer_content(
    store: FanOuts, worker: UUID
) -> None:
    older = store.sync(worker)
    store.added(older, {"a": 1})
    newer = store.fanned_out(worker, {"a": 2})
    twin = store.child(newer, "a")
    assert f"{twin.status}·{twin.reason}" == "CANCELED·duplicate"
    assert twin.duplicate_of == store.child(older, "a").id
    assert store.why(twin.id).endswith("writes the newest content of the same entity to crm.")
    store.settle()
    assert store.state(newer.id) == "RUNNING·fanned_out"
    assert (store.counts(newer).canceled, store.counts(newer).total) == (1, 1)
    store.finish_all(worker)
    assert (store.state(newer.id), store.marks()) == ("COMPLETED·succeeded", {"a": 2})


@pytest.mark.parametrize("claimed", [False, True])
def test_a_newer_child_is_blocked_behind_one_in_flight_and_released_by_its_end(
    store: FanOuts, worker: UUID, claimed: bool
) -> None:
    older = store.sync(worker)
    store.added(older, {"a": 1})
    store.promote()
    taken = store.claim_waiting(worker, 9, "replication") if claimed else []
    newer = store.fanned_out(worker, {"a": 2})
    twin = store.child(newer, "a")
    assert f"{twin.status}·{twin.reason}" == "PENDING·blocked"
    assert store.promote() == {}
    assert "job" in store.why(twin.id)
    store.write(worker, *(taken or store.claim_waiting(worker, 9, "replication")))
    assert store.state(twin.id) == "PENDING·ready"
    assert store.count("jobq_after") == 0
    store.finish_all(worker)
    assert (store.state(newer.id), store.marks()) == ("COMPLETED·succeeded", {"a": 2})


@pytest.mark.parametrize("end", ["refused", "canceled"])
def test_a_child_behind_one_that_ends_badly_goes_on_all_the_same(store: FanOuts, worker: UUID, end: str) -> None:
    older = store.sync(worker)
    store.added(older, {"a": 1})
    (taken,) = store.take_children(worker)
    newer = store.fanned_out(worker, {"a": 2})
    if end == "refused":
        store.record(worker, refused(taken))
    else:
        store.cancel(taken.id)
        store.end(worker, taken, Outcome.stopped())
    assert store.state(store.child(newer, "a").id) == "PENDING·ready"


def test_a_third_child_is_a_duplicate_of_the_blocked_second(store: FanOuts, worker: UUID) -> None:
    first = store.sync(worker)
    store.added(first, {"a": 1})
    (taken,) = store.take_children(worker)
    second = store.fanned_out(worker, {"a": 2})
    third = store.fanned_out(worker, {"a": 3})
    assert store.child(third, "a").duplicate_of == store.child(second, "a").id
    store.write(worker, taken)
    store.finish_all(worker)
    assert store.marks() == {"a": 3}


def test_other_domains_targets_and_tenants_are_others(store: FanOuts, worker: UUID) -> None:
    store.added(store.sync(worker), {"a": 1})
    for sync in (
        store.sync(worker, domain="orders"),
        store.sync(worker, tenant="umbrella"),
        store.sync(worker, [{"name": "erp"}]),
    ):
        store.added(sync, {"a": 2})
        assert set(store.child_states(sync)) == {"PENDING·ready"}


@pytest.mark.parametrize("request_", ["pause", "cancel"])
def test_a_child_of_a_sync_that_is_held_or_ends_stands_in_for_no_other(
    store: FanOuts, worker: UUID, request_: str
) -> None:
    older = store.fanned_out(worker, {"a": 1})
    getattr(store, request_)(older.id)
    newer = store.fanned_out(worker, {"a": 2})
    assert store.child_states(newer) == {"PENDING·blocked": 1}
    if request_ == "pause":
        store.cancel(older.id)
    store.finish_all(worker)
    assert store.state(older.id) == "CANCELED·by_user"
    assert (store.state(newer.id), store.marks()) == ("COMPLETED·succeeded", {"a": 2})


def test_a_child_that_writes_by_other_rules_stands_in_for_no_other(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1})
    newer = store.fanned_out(worker, {"a": 1}, FILTERING)
    assert store.child_states(newer) == {"PENDING·blocked": 1}
    same = store.fanned_out(worker, {"a": 1}, FILTERING)
    assert store.child(same, "a").duplicate_of == store.child(newer, "a").id


# --- what targets have -----------------------------------------------------------------------------------------------


def test_a_target_that_has_an_entity_as_it_is_gets_no_child(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1, "b": 1})
    store.finish_all(worker)
    again = store.fanned_out(worker, {"a": 1, "b": 1})
    store.settle()
    assert (store.state(again.id), store.children(again)) == ("COMPLETED·succeeded", [])
    assert store.counts(again).targets["crm"].existing == 2


def test_a_target_that_failed_gets_the_unchanged_entity_again(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1, "b": 1})
    taken = {child.entity_key: child for child in store.take_children(worker)}
    store.record(worker, refused(taken["a"]), delivered(taken["b"]))
    again = store.fanned_out(worker, {"a": 1, "b": 1})
    assert sent(store, again) == Counter("a")


def test_other_rules_make_the_target_get_everything_again(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1})
    store.finish_all(worker)
    again = store.fanned_out(worker, {"a": 1}, [{"name": "crm", "mapping": {"name": "value"}}])
    assert sent(store, again) == Counter("a")


def test_what_a_targets_conditions_keep_from_it_gets_a_child_only_when_it_changes(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1})
    (child,) = store.take_children(worker)
    store.write(worker, child, what="skipped")
    again = store.fanned_out(worker, {"a": 1})
    assert (store.children(again), store.counts(again).targets["crm"].existing) == ([], 0)
    changed = store.fanned_out(worker, {"a": 2})
    assert sent(store, changed) == Counter("a")


def test_a_watermark_never_goes_back(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1})
    (old,) = store.take_children(worker)
    mark = delivered(old).outcome.replicated
    assert mark is not None
    newer = replace(mark, version=3, external_id="x-1")
    store.do(entities.advance, [(old.id, newer)])
    store.write(worker, old)
    assert store.marks() == {"a": 3}
    store.do(entities.advance, [(old.id, replace(newer, version=4, external_id=None)), (old.id, mark)])
    assert store.marks() == {"a": 4}
    with store.database.read() as conn:
        found = conn.exec_driver_sql("SELECT external_id FROM jobq_watermarks").scalar_one()
    assert found == "x-1", "what the target calls the entity is kept"


def test_a_watermark_moves_only_with_an_outcome_that_was_the_workers_to_write(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1})
    (child,) = store.take_children(worker)
    late = delivered(child)
    late.attempt += 1
    assert store.record(worker, late) == set()
    assert store.marks() == {}


# --- chains ----------------------------------------------------------------------------------------------------------

LONG: Targets = (*CHAIN, {"name": "dwh", "after": ["erp"]})


def end_first(store: FanOuts, worker: UUID, how: str) -> None:
    """The child for the first target ends so."""
    (child,) = store.take_children(worker)
    if how == "refused":
        store.record(worker, refused(child))
    else:
        store.write(worker, child, what=how)


def states(store: FanOuts, sync: Sync) -> list[str]:
    return [f"{job.status}·{job.reason}" for job in store.children(sync)]


def test_a_later_target_gets_an_entity_once_the_earlier_one_has_it(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"], LONG)
    assert states(store, sync) == ["PENDING·ready", "PENDING·blocked", "PENDING·blocked"]
    order = [[child.target for child in store.take_children(worker)]]
    assert order == [["crm"]]
    store.write(worker, *(store.running_children(sync, worker)))
    assert states(store, sync) == ["COMPLETED·succeeded", "PENDING·ready", "PENDING·blocked"]
    assert [child.target for child in store.finish_all(worker)] == ["erp", "dwh"]
    assert store.state(sync.id) == "COMPLETED·succeeded"


def test_what_the_earlier_target_refused_later_ones_do_not_get(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"], LONG)
    end_first(store, worker, "refused")
    assert states(store, sync) == ["FAILED·error", "CANCELED·upstream_failed", "CANCELED·upstream_failed"]
    store.settle()
    assert (store.state(sync.id), store.count("jobq_after")) == ("FAILED·partial", 0)


def test_what_the_earlier_targets_conditions_kept_from_it_later_ones_do_not_get(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"], LONG)
    end_first(store, worker, "skipped")
    assert states(store, sync) == ["COMPLETED·skipped"] * 3
    store.settle()
    assert store.state(sync.id) == "COMPLETED·succeeded"
    again = store.fanned_out(worker, ["a"], LONG)
    assert store.children(again) == []


def test_good_entities_go_on_beside_bad_ones(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a", "b"], CHAIN)
    taken = {child.entity_key: child for child in store.take_children(worker)}
    store.record(worker, refused(taken["a"]), delivered(taken["b"]))
    assert {child.entity_key for child in store.finish_all(worker)} == {"b"}
    assert (store.marks("erp"), store.state(sync.id)) == ({"b": 1}, "FAILED·partial")


def test_an_entity_that_the_earlier_target_has_already_goes_to_the_later_one_at_once(
    store: FanOuts, worker: UUID
) -> None:
    store.fanned_out(worker, ["a"], ONE)
    store.finish_all(worker)
    sync = store.fanned_out(worker, ["a"], CHAIN)
    (child,) = store.children(sync)
    assert (child.target, child.reason) == ("erp", Reason.READY)


def test_a_target_that_comes_after_two_waits_for_both(store: FanOuts, worker: UUID) -> None:
    both: Targets = ({"name": "crm"}, {"name": "erp"}, {"name": "dwh", "after": ["crm", "erp"]})
    sync = store.fanned_out(worker, ["a"], both)
    one, other = store.take_children(worker)
    store.write(worker, one)
    assert store.child(sync, "a", "dwh").reason is Reason.BLOCKED
    store.write(worker, other)
    assert store.child(sync, "a", "dwh").reason is Reason.READY


def test_of_two_upstreams_that_end_at_once_the_later_one_frees_the_child(postgres: FanOuts, worker: UUID) -> None:
    both: Targets = ({"name": "crm"}, {"name": "erp"}, {"name": "dwh", "after": ["crm", "erp"]})
    sync = postgres.fanned_out(worker, keys(20), both)
    taken = postgres.take_children(worker)
    of = {name: [child for child in taken if child.target == name] for name in ("crm", "erp")}
    for one, other in zip(of["crm"], reversed(of["erp"]), strict=True):
        in_threads(lambda one=one: postgres.write(worker, one), lambda other=other: postgres.write(worker, other))
    assert {job.reason for job in postgres.children(sync) if job.target == "dwh"} == {Reason.READY}
    assert postgres.count("jobq_after") == 0


def test_later_targets_of_a_duplicate_wait_for_the_job_that_stands_in_for_it(store: FanOuts, worker: UUID) -> None:
    store.fanned_out(worker, {"a": 1}, ONE)
    newer = store.fanned_out(worker, {"a": 2}, CHAIN)
    assert states(store, newer) == ["CANCELED·duplicate", "PENDING·blocked"]
    assert [child.target for child in store.take_children(worker)] == ["crm"]
    end = store.running_children(None, worker)
    store.write(worker, *end)
    assert states(store, newer) == ["CANCELED·duplicate", "PENDING·ready"]


def test_a_chain_as_long_as_any_ends_at_once(store: FanOuts, worker: UUID) -> None:
    chain: list[dict[str, Any]] = [{"name": "t0"}]
    chain += [{"name": f"t{number}", "after": [f"t{number - 1}"]} for number in range(1, 50)]
    sync = store.fanned_out(worker, ["a", "b"], chain)
    store.record(worker, *(refused(child) for child in store.take_children(worker)))
    assert store.child_states(sync) == {"FAILED·error": 2, "CANCELED·upstream_failed": 98}


# --- leftovers -------------------------------------------------------------------------------------------------------


def left_over(store: FanOuts, sync: Sync, limit: int = 3) -> list[str]:
    """The entities that are taken up again, page by page."""
    found: list[str] = []
    behind = None
    while rows := store.look(fanout.unfinished_business, sync.id, behind, limit):
        found += [row.entity_key for row in rows]
        behind = rows[-1].id
    return found


def test_what_failed_or_never_ran_is_taken_up_again_and_nothing_else(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, keys(8), CHAIN)
    taken = store.take_children(worker)
    store.record(worker, *(refused(child) for child in taken[:4]), *(delivered(child) for child in taken[4:]))
    store.finish_all(worker)
    assert store.state(sync.id) == "FAILED·partial"
    assert Counter(left_over(store, sync)) == Counter(keys(4) * 2)
    again = store.sync(worker, CHAIN, retry_of=sync.id)
    assert store.added(again, Sifted([], None, again=keys(4))).children == 8
    assert store.added(again, Sifted([], None, again=keys(4))).children == 0
    assert states(store, again) == ["PENDING·ready"] * 4 + ["PENDING·blocked"] * 4
    store.end_reading(again)
    store.park(again)
    store.finish_all(worker)
    assert (store.state(again.id), len(store.marks()), len(store.marks("erp"))) == ("COMPLETED·succeeded", 8, 8)
    assert store.look(fanout.partly_done, sync.id).invalid == 0
    assert (store.look(fanout.partly_done, again.id), store.look(fanout.partly_done, worker)) == (None, None)


def test_leftovers_that_the_target_has_by_now_need_no_child(store: FanOuts, worker: UUID) -> None:
    sync = store.fanned_out(worker, ["a"])
    (child,) = store.take_children(worker)
    store.record(worker, refused(child))
    store.fanned_out(worker, ["a"])
    store.finish_all(worker)
    again = store.sync(worker)
    assert store.added(again, Sifted([], None, again=left_over(store, sync))).children == 0


# --- races, on a server that runs them at once -----------------------------------------------------------------------


def test_the_newest_content_arrives_whatever_two_syncs_and_their_children_do_at_once(
    postgres: FanOuts, worker: UUID
) -> None:
    """Two SYNCs write versions of the same entities while children are promoted, claimed and recorded."""
    store, names = postgres, keys(6)
    rounds = 12

    def read(seed: int) -> None:
        mine = random.Random(seed)
        for number in range(rounds):
            sync = store.sync(worker)
            for part in (names[:3], names[3:]):
                mine.shuffle(part)
                store.added(sync, dict.fromkeys(part, f"{seed}.{number}"))
            assert store.end_reading(sync)
            assert store.park(sync)

    done: list[int] = []

    def promote() -> None:
        while len(done) < 2:
            store.promote()

    def reading(seed: int) -> None:
        try:
            read(seed)
        finally:
            done.append(seed)

    def replicating() -> None:
        while len(done) < 2:
            taken = store.claim_waiting(worker, 3, "replication")
            assert store.live_twins() == 0
            assert store.write(worker, *taken) == {child.id for child in taken}

    in_threads(lambda: reading(1), lambda: reading(2), promote, replicating, replicating)
    store.finish_all(worker)
    assert store.count("jobq_jobs", "finished_at IS NULL") == store.count("jobq_after") == 0
    assert store.marks() == store.versions(), "what the target has is the newest there is"
    assert dict.fromkeys(names, 2 * rounds) == store.versions()
