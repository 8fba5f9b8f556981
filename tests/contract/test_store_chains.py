"""Targets in chains: whatever SYNCs of one domain do at once, a later target gets no content before the earlier one."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from jobq.models import Outcome
from jobq.plugins import Context, JobRef
from jobq.retry import OF_CHILDREN
from jobq.store.claim import Claimed
from jobq.sync import Replication
from tests.fanouts import CHAIN, ONE, SLOTS, FanOuts, Sync, in_threads, refused
from tests.stores import ended
from workers.replication import ReplicationExecutor

STORE = FanOuts


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> UUID:
    name = "postgres" if "postgres" in request.fixturenames else "store"
    store: FanOuts = request.getfixturevalue(name)
    return store.worker(SLOTS, lease=300.0)


def overtook(child: Claimed) -> Any:
    """What the executor says when it reads a content that crm has not got."""
    return ended(child, Outcome.overtook(("crm",), "crm has not got this content"), retry=OF_CHILDREN)


def one_that_is_free(store: FanOuts, worker: UUID) -> Sync:
    """A SYNC whose child for erp may go: crm has the entity as it was."""
    older = store.fanned_out(worker, {"a": 1}, CHAIN)
    (crm,) = store.take_children(worker)
    store.write(worker, crm)
    assert store.child_states(older) == {"COMPLETED·succeeded": 1, "PENDING·ready": 1}
    return older


async def judged(child: Claimed) -> str:
    """What the executor makes of the child: "writes" if it goes on to its target."""
    executor = ReplicationExecutor()
    plan = plan_of_chain()
    executor._plans[child.parent_id] = plan  # type: ignore[index]
    ref = JobRef(
        child.id, child.attempt, child.tenant, child.kind, child.name, child.queue, child.trigger, child.timeout,
        parent_id=child.parent_id, payload=child.payload,
    )  # fmt: skip
    spec = Replication(domain="customers", target=str(child.target), entity_key=str(child.entity_key))
    try:
        outcome = await executor.execute(spec, Context(ref))
    except AttributeError:  # it has no way to a target here
        return "writes"
    return f"{outcome.status}·{outcome.reason}"


def plan_of_chain() -> Any:
    from jobq.sync import Sync as Spec
    from workers.plan import Plan

    targets = [{"type": "http", "config": {}, **target} for target in CHAIN]
    spec = {"domain": "customers", "source": {"type": "http", "config": {}}, "targets": targets}
    return Plan(Spec.model_validate(spec))


def test_a_child_that_was_free_to_go_stands_in_for_none_whose_predecessor_has_to_write_first(
    store: FanOuts, worker: UUID
) -> None:
    older = one_that_is_free(store, worker)
    newer = store.fanned_out(worker, {"a": 2}, CHAIN)
    assert store.child(newer, "a", "erp").duplicate_of is None
    assert store.child_states(newer) == {"PENDING·ready": 1, "PENDING·blocked": 1}
    store.finish_all(worker)
    assert store.states([older.id, newer.id]) == ["COMPLETED·succeeded"] * 2
    assert (store.marks("crm"), store.marks("erp")) == ({"a": 2}, {"a": 2})


async def test_a_child_that_reads_what_its_predecessor_has_not_got_writes_nothing(store: FanOuts, worker: UUID) -> None:
    one_that_is_free(store, worker)
    (in_time,) = store.take_children(worker)
    assert await judged(in_time) == "writes"
    store.record(worker, ended(in_time, Outcome.requeued(timedelta(0), "429"), retry=OF_CHILDREN))
    store.fanned_out(worker, {"a": 2}, CHAIN)
    late = next(child for child in store.take_children(worker) if child.target == "erp")
    assert late.payload is not None
    assert (late.payload.version, late.payload.others) == (2, {"crm": (1, False)})
    assert await judged(late) == "PENDING·blocked"


def test_a_child_that_overtook_waits_for_whoever_brings_the_content_to_its_predecessor(
    store: FanOuts, worker: UUID
) -> None:
    older = one_that_is_free(store, worker)
    newer = store.fanned_out(worker, {"a": 2}, CHAIN)
    taken = {str(child.target): child for child in store.take_children(worker)}
    store.record(worker, overtook(taken["erp"]))
    waiting = store.job(taken["erp"].id)
    assert (f"{waiting.status}·{waiting.reason}", waiting.failures, waiting.requeues) == ("PENDING·blocked", 0, 0)
    assert str(taken["crm"].id) in store.why(waiting.id)
    assert store.last_attempt(waiting.id).outcome == "REQUEUED"
    assert store.take_children(worker) == []
    store.write(worker, taken["crm"])
    assert store.state(waiting.id) == "PENDING·ready"
    assert [child.id for child in store.take_children(worker)] == [waiting.id]
    store.write(worker, *store.running_children(None, worker))
    store.finish_all(worker)
    assert store.states([older.id, newer.id]) == ["COMPLETED·succeeded"] * 2
    assert store.count("jobq_after") == 0


def test_a_child_that_overtook_one_that_is_refused_is_canceled_with_it(store: FanOuts, worker: UUID) -> None:
    older = one_that_is_free(store, worker)
    store.fanned_out(worker, {"a": 2}, CHAIN)
    taken = {str(child.target): child for child in store.take_children(worker)}
    store.record(worker, overtook(taken["erp"]))
    store.record(worker, refused(taken["crm"]))
    assert store.state(taken["erp"].id) == "CANCELED·upstream_failed"
    store.finish_all(worker)
    assert (store.state(older.id), store.count("jobq_after")) == ("FAILED·partial", 0)


def test_a_child_whose_predecessor_lacks_the_content_that_nobody_brings_is_canceled(
    store: FanOuts, worker: UUID
) -> None:
    one_that_is_free(store, worker)
    (erp,) = store.take_children(worker)
    store.fanned_out(worker, {"a": 2}, [{"name": "dwh"}])  # of this domain, too, but not to crm
    store.record(worker, overtook(erp))
    assert store.state(erp.id) == "CANCELED·upstream_failed"


def test_a_child_whose_predecessor_has_the_content_by_now_goes_on_at_once(store: FanOuts, worker: UUID) -> None:
    one_that_is_free(store, worker)
    store.fanned_out(worker, {"a": 2}, CHAIN)
    taken = {str(child.target): child for child in store.take_children(worker)}
    store.write(worker, taken["crm"])
    store.record(worker, overtook(taken["erp"]))
    assert store.state(taken["erp"].id) == "PENDING·ready"


def test_a_canceled_fan_outs_child_that_overtook_is_canceled(store: FanOuts, worker: UUID) -> None:
    older = one_that_is_free(store, worker)
    store.fanned_out(worker, {"a": 2}, CHAIN)
    taken = {str(child.target): child for child in store.take_children(worker)}
    store.cancel(older.id)
    store.record(worker, overtook(taken["erp"]))
    store.settle()
    assert store.states([taken["erp"].id, older.id]) == ["CANCELED·parent_canceled", "CANCELED·by_user"]


async def test_what_the_predecessor_filtered_meanwhile_is_skipped(store: FanOuts, worker: UUID) -> None:
    one_that_is_free(store, worker)
    store.fanned_out(worker, {"a": 2}, ONE)
    taken = store.promote() and store.claim_waiting(worker, 9, "replication")
    crm = next(child for child in taken if child.target == "crm")
    store.write(worker, crm, what="skipped")
    erp = next(child for child in taken if child.target == "erp")
    store.record(worker, overtook(erp))
    (again,) = store.take_children(worker)
    assert await judged(again) == "COMPLETED·skipped"


def test_a_child_that_overtook_never_misses_the_end_of_whom_it_follows(postgres: FanOuts, worker: UUID) -> None:
    for number in range(20):
        key = f"k{number}"
        postgres.fanned_out(worker, {key: 1}, CHAIN)
        postgres.write(worker, *postgres.take_children(worker))
        postgres.fanned_out(worker, {key: 2}, CHAIN)
        taken = {str(child.target): child for child in postgres.take_children(worker)}
        in_threads(
            lambda taken=taken: postgres.record(worker, overtook(taken["erp"])),
            lambda taken=taken: postgres.write(worker, taken["crm"]),
        )
        assert postgres.state(taken["erp"].id) == "PENDING·ready"
        postgres.finish_all(worker)
    assert postgres.count("jobq_after") == 0
    assert postgres.marks("erp") == {f"k{number}": 2 for number in range(20)}
