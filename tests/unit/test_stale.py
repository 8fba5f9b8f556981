"""How long a job has waited, with the time that people held it taken out, and what it says at its end."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.promotion import Load
from jobq.stale import Hold, cause, holds_of, message, waited

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        ([], 60),
        ([Hold(at(10), at(30))], 40),
        ([Hold(at(50), None)], 50),
        ([Hold(at(-90), at(-30))], 60),
        ([Hold(at(-30), at(15))], 45),
        ([Hold(None, at(15))], 45),
        ([Hold(at(10), at(30)), Hold(at(20), at(40))], 30),
        ([Hold(at(10), at(40)), Hold(at(20), at(30))], 30),
        ([Hold(at(30), at(40)), Hold(at(10), at(20))], 40),
        ([Hold(at(-5), None)], 0),
        ([Hold(at(70), at(80))], 60),
    ],
)
def test_the_clock_stands_while_a_person_holds_the_job(holds: list[Hold], expected: float) -> None:
    assert waited(NOON, at(60), holds) == minutes(expected)


SPANS = st.tuples(st.integers(-30, 90), st.integers(0, 60)).map(lambda span: (span[0], span[0] + span[1]))


@given(st.lists(SPANS, max_size=6))
def test_the_wait_is_every_minute_that_no_hold_covers(spans: list[tuple[int, int]]) -> None:
    free = sum(not any(begin <= minute < end for begin, end in spans) for minute in range(60))
    assert waited(NOON, at(60), [Hold(at(begin), at(end)) for begin, end in spans]) == minutes(free)


def test_acts_in_pairs_are_holds_and_other_acts_are_none() -> None:
    acts = [
        ("create", at(0)),
        ("pause", at(1)),
        ("pause", at(2)),
        ("limit", at(3)),
        ("resume", at(4)),
        ("pause", at(9)),
    ]
    assert holds_of(acts) == [Hold(at(1), at(4)), Hold(at(9), None)]


def test_a_resume_whose_pause_nobody_remembers_ends_a_hold_that_began_before() -> None:
    assert holds_of([("resume", at(5)), ("resume", at(6))]) == [Hold(None, at(5))]
    assert holds_of([("pause", at(1)), ("resume", at(2)), ("resume", at(3))]) == [Hold(at(1), at(2))]


def test_the_message_says_since_when_it_waited_and_for_what() -> None:
    text = message(NOON, timedelta(days=7), minutes(0), "no live worker serves queue q")
    assert text == (
        "it was ready since 2026-05-01 12:00:00 UTC and not started within its stale_after of P7D: "
        "no live worker serves queue q"
    )
    assert "(without the PT1H30M for which it was paused)" in message(NOON, timedelta(days=7), minutes(90), "x")


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (Load(), "no live worker serves queue q"),
        (Load(slots={"q": 5}, queue_limits={"q": 2}, queues=Counter(q=2)), "queue q is at its limit of 2"),
        (Load(slots={"q": 5}, tenant_limits={"t": 1}, tenants=Counter(t=1)), "tenant t is at its limit of 1"),
        (Load(slots={"q": 5}, lane_limits={"l": 0}), "its target takes no jobs at the moment"),
        (Load(slots={"q": 5}, lane_limits={"l": 3}, lanes=Counter(l=3)), "its workflow or target is at its limit of 3"),
        (Load(slots={"q": 5}, held=Counter(q=5)), "all 5 worker slots of queue q are taken by other jobs"),
        (Load(slots={"q": 5}), "other jobs went before it"),
    ],
)
def test_what_the_job_waited_for_is_named(load: Load, said: str) -> None:
    assert cause(load, "q", "t", "l") == said
