"""Who goes next: never too many, shared out by weight, in order within a tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from jobq.promotion import Candidate, Load, Turns, choose

START = datetime(2026, 1, 1, tzinfo=UTC)
TENANTS = ["a", "b", "c"]
LANES = ["", "", "x", "y"]


def candidate(number: int, tenant: str = "a", lane: str = "", priority: int = 4, waited: float = 0) -> Candidate:
    return Candidate(UUID(int=number), tenant, lane, priority, START - timedelta(seconds=waited))


def many(count: int, tenant: str, *, begin: int = 0, lane: str = "") -> list[Candidate]:
    return [candidate(begin + number, tenant, lane) for number in range(count)]


def as_indexed(candidates: Sequence[Candidate]) -> list[Candidate]:
    """In the order that the index gives."""
    return sorted(candidates, key=lambda job: (job.tenant, job.lane, -job.priority, job.ready_at, job.id))


def by_tenant(chosen: Sequence[UUID], candidates: Sequence[Candidate]) -> Counter[str]:
    tenants = {job.id: job.tenant for job in candidates}
    return Counter(tenants[job_id] for job_id in chosen)


# --- room ------------------------------------------------------------------------------------------------------------


def load(**fields: object) -> Load:
    defaults: dict[str, object] = {"slots": {"q": 10}, "queues": Counter(q=4), "held": Counter(q=4)}
    return Load(**{**defaults, **fields})  # type: ignore[arg-type]


def test_room_is_what_the_worker_slots_leave() -> None:
    assert load().room("q", 0) == 6
    assert load(held=Counter(q=12)).room("q", 0) == 0


def test_what_ended_lately_is_room_too() -> None:
    assert load().room("q", 3) == 9


def test_there_is_no_room_without_workers_or_in_a_paused_queue() -> None:
    assert load().room("other", 99) == 0
    assert load(slots={"q": 0}).room("q", 99) == 0
    assert load(paused=frozenset({"q"})).room("q", 99) == 0


def test_a_limit_is_kept_whatever_ended_lately() -> None:
    assert load(queue_limits={"q": 5}).room("q", 99) == 1
    assert load(queue_limits={"q": 3}).room("q", 99) == 0
    assert load(queue_limits={"q": 0}).room("q", 99) == 0
    assert load(queue_limits={"other": 0}).room("q", 0) == 6


def test_jobs_that_hold_no_slot_of_live_workers_take_no_room_but_count_for_the_limit() -> None:
    lost = load(queues=Counter(q=9), held=Counter(q=2))
    assert lost.room("q", 0) == 8
    lost.queue_limits = {"q": 10}
    assert lost.room("q", 0) == 1


# --- examples --------------------------------------------------------------------------------------------------------


def test_without_room_nobody_goes() -> None:
    assert choose(many(3, "a"), 0, Load()) == []
    assert choose([*many(3, "a"), *many(3, "b", begin=10)], 0, Load()) == []


def test_a_single_tenant_goes_in_the_order_of_the_index() -> None:
    jobs = as_indexed([candidate(1, priority=0), candidate(2, priority=9), candidate(3), candidate(4, waited=5)])
    assert choose(jobs, 3, Load()) == [UUID(int=number) for number in (2, 4, 3)]


def test_priority_counts_over_all_lanes_of_a_tenant() -> None:
    jobs = as_indexed([candidate(1, lane="x", priority=1), candidate(2, lane="", priority=0), candidate(3, lane="y")])
    assert choose(jobs, 3, Load()) == [UUID(int=number) for number in (3, 1, 2)]


def test_a_full_lane_is_passed_and_the_rest_of_the_tenant_goes_on() -> None:
    jobs = as_indexed([*(candidate(number, lane="x", priority=9) for number in range(50)), candidate(99, lane="y")])
    state = Load(lanes=Counter(x=1), lane_limits={"x": 2})
    assert choose(jobs, 10, state) == [UUID(int=0), UUID(int=99)]
    assert state.lanes == Counter(x=2, y=1)


def test_tenants_with_equal_shares_take_turns_over_many_rounds() -> None:
    turns, served = Turns(), []
    for _ in range(6):
        chosen = choose([candidate(1, "a"), candidate(2, "b"), candidate(3, "c")], 1, Load(turns=turns))
        served += [job_id.int for job_id in chosen]
    assert served == [1, 2, 3, 1, 2, 3]


def test_turns_follow_the_weights() -> None:
    turns, served = Turns(), Counter[int]()
    for _ in range(40):
        jobs = [candidate(1, "a"), candidate(2, "b")]
        served.update(job_id.int for job_id in choose(jobs, 1, Load(turns=turns, weights={"a": 3.0})))
    assert served == Counter({1: 30, 2: 10})


def test_who_was_away_claims_nothing_for_that_time() -> None:
    turns, served = Turns(), []
    both = [candidate(1, "a"), candidate(2, "b")]
    choose(both, 2, Load(turns=turns))
    for _ in range(100):
        choose([candidate(1, "a"), candidate(3, "c")], 1, Load(turns=turns))
    for _ in range(4):
        served += [job_id.int for job_id in choose(both, 1, Load(turns=turns))]
    assert Counter(served) == Counter({1: 2, 2: 2})


def test_turns_are_forgotten_once_they_say_nothing() -> None:
    turns = Turns()
    for number in range(100_000):
        turns.take(f"tenant {number}", 1.0)
        turns.take("busy", 10.0)
    assert len(turns.ends) <= 10_001


# --- properties ------------------------------------------------------------------------------------------------------

jobs_of_all = st.lists(
    st.builds(
        candidate,
        st.integers(0, 10_000),
        st.sampled_from(TENANTS),
        st.sampled_from(LANES),
        st.integers(0, 9),
        st.integers(0, 5),
    ),
    max_size=60,
    unique_by=lambda job: job.id,
).map(as_indexed)
counts = st.dictionaries(st.sampled_from(TENANTS), st.integers(0, 9)).map(Counter)
loads = st.builds(
    Load,
    tenants=counts,
    lanes=st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 3)).map(Counter),
    tenant_limits=st.dictionaries(st.sampled_from(TENANTS), st.integers(0, 12)),
    lane_limits=st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 5)),
    weights=st.dictionaries(st.sampled_from(TENANTS), st.sampled_from([0.25, 0.5, 1.0, 2.0, 7.5])),
)


@given(jobs_of_all, st.integers(0, 70), loads)
@settings(max_examples=300, deadline=None)
def test_neither_room_nor_any_limit_is_ever_exceeded(jobs: list[Candidate], room: int, state: Load) -> None:
    tenants, lanes = Counter(state.tenants), Counter(state.lanes)
    chosen = choose(jobs, room, state)
    assert len(chosen) == len(set(chosen)) <= room
    by_id = {job.id: job for job in jobs}
    tenants.update(by_id[job_id].tenant for job_id in chosen)
    lanes.update(by_id[job_id].lane for job_id in chosen)
    gained = by_tenant(chosen, jobs)
    assert all(tenants[name] <= limit for name, limit in state.tenant_limits.items() if gained[name])
    new_lanes = {by_id[job_id].lane for job_id in chosen}
    assert all(lanes[name] <= limit for name, limit in state.lane_limits.items() if name in new_lanes)
    assert state.tenants == tenants


@given(jobs_of_all, st.integers(0, 70), loads)
@settings(max_examples=300, deadline=None)
def test_within_a_tenant_nobody_is_overtaken_but_by_way_of_a_full_lane(
    jobs: list[Candidate], room: int, state: Load
) -> None:
    chosen = choose(jobs, room, state)
    for tenant in TENANTS:
        own = sorted(
            (job for job in jobs if job.tenant == tenant), key=lambda job: (-job.priority, job.ready_at, job.id)
        )
        place = {job.id: number for number, job in enumerate(own)}
        went = [place[job_id] for job_id in chosen if job_id in place]
        assert went == sorted(went)
        if went:
            left = [job for job in own[: went[-1]] if job.id not in chosen]
            full = {lane for lane, limit in state.lane_limits.items() if state.lanes[lane] >= limit}
            assert all(job.lane in full for job in left)


@given(jobs_of_all, st.integers(0, 70), loads)
@settings(max_examples=300, deadline=None)
def test_no_room_is_left_while_somebody_may_go(jobs: list[Candidate], room: int, state: Load) -> None:
    chosen = choose(jobs, room, state)
    if len(chosen) == room:
        return
    waiting = [job for job in jobs if job.id not in chosen]
    assert all(
        state.tenants[job.tenant] >= state.tenant_limits.get(job.tenant, 1_000)
        or (job.lane and state.lanes[job.lane] >= state.lane_limits.get(job.lane, 1_000))
        for job in waiting
    )


@given(
    st.dictionaries(st.sampled_from(TENANTS), st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2),
    st.dictionaries(st.sampled_from(TENANTS), st.integers(0, 6)),
    st.integers(1, 60),
)
@settings(max_examples=300, deadline=None)
def test_shares_differ_by_at_most_one_job_by_weight(
    weights: dict[str, float], in_flight: dict[str, int], room: int
) -> None:
    """Whoever got a job had, before it, no larger share than anybody who waits."""
    jobs = [job for place, tenant in enumerate(weights) for job in many(100, tenant, begin=1000 * place)]
    state = Load(tenants=Counter(in_flight), weights=weights)
    gained = by_tenant(choose(jobs, room, state), jobs)
    assert sum(gained.values()) == room
    for tenant in gained:
        before = (state.tenants[tenant] - 1) / weights[tenant]
        assert all(before <= state.tenants[other] / weights[other] + 1e-9 for other in weights)


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None)
def test_over_many_rounds_tenants_that_always_wait_get_the_same(rounds: list[tuple[int, bool]]) -> None:
    """Whatever room each round has, and whether the jobs of the round before have ended."""
    turns, served = Turns(), Counter(dict.fromkeys(TENANTS, 0))
    in_flight: Counter[str] = Counter()
    for room, ended in rounds:
        if ended:
            in_flight.clear()
        jobs = [job for place, tenant in enumerate(TENANTS) for job in many(3, tenant, begin=1000 * place)]
        gained = by_tenant(choose(jobs, room, Load(tenants=in_flight, turns=turns)), jobs)
        served += gained
    assert max(served.values()) - min(served[tenant] for tenant in TENANTS) <= 1
