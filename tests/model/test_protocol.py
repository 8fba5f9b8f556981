"""The protocol, explored to the last state: no invariant breaks, and a clean end is always within reach.

A failure prints a shortest way to what is wrong, step by step: ``!`` a fault, ``?`` a person, ``+`` a repair.
"""

from dataclasses import fields

import pytest

from tests.model.bugs import BUGS, PROBE, SCENARIOS, STORMS, Bug
from tests.model.checker import explore
from tests.model.protocol import steps
from tests.model.step import Cause
from tests.model.world import Rules, Scenario

AT_LEAST = {PROBE.name: 10_000}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_reachable_state_keeps_the_promises_and_has_a_clean_end_within_reach(scenario: Scenario) -> None:
    explored = explore(scenario)

    assert explored.violation is None, f"{scenario.name}: {explored.violation}"
    assert explored.states >= AT_LEAST.get(scenario.name, 1_000)
    assert explored.clean > 0


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", STORMS, ids=lambda scenario: scenario.name)
def test_nor_does_any_promise_break_in_the_larger_scenarios(scenario: Scenario) -> None:
    explored = explore(scenario)

    assert explored.violation is None, f"{scenario.name}: {explored.violation}"
    assert explored.states >= 10_000


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_found_with_the_steps_that_lead_to_it(bug: Bug) -> None:
    violation = explore(bug.seeded()).violation

    assert violation is not None, "the checker missed it"
    assert bug.found in violation.what, violation
    assert violation.trace


def test_a_trace_leads_from_the_start_to_the_violation() -> None:
    scenario = next(bug for bug in BUGS if bug.name == "the reaper has no patience").seeded()
    violation = explore(scenario).violation
    assert violation is not None

    world = scenario.start()
    for step in violation.trace:
        assert step in set(steps(world, scenario))
        world = step.after
    assert world == violation.last
    assert "! database is away" in str(violation)
    assert "scheduler declares #1 dead" in str(violation)


def test_every_rule_is_left_out_by_some_bug() -> None:
    left_out = {rule for bug in BUGS for rule in bug.without}
    # That the dead may not claim spares attempts; what keeps them apart is that they may not renew.
    assert {field.name for field in fields(Rules)} - left_out == {"dead_cannot_claim"}


def test_every_kind_of_step_happens() -> None:
    """A model in which nothing can go wrong proves nothing."""
    seen: set[tuple[Cause, str]] = set()
    scenario = PROBE
    worlds, waiting = {scenario.start()}, [scenario.start()]
    while waiting and len(worlds) < 20_000:
        for step in steps(waiting.pop(), scenario):
            seen.add((step.cause, step.what))
            if step.after not in worlds:
                worlds.add(step.after)
                waiting.append(step.after)
    faults = {what for cause, what in seen if cause is Cause.FAULT}
    assert faults >= {
        "is killed", "is frozen", "is cut off from the database", "is away", "crashes and forgets the promotion",
        "never hears that it claimed", "records failed and never hears of it",
    }  # fmt: skip
    assert {what for cause, what in seen if cause is Cause.SYSTEM} >= {
        "promotes the job", "claims the job", "begins", "records: succeeded", "is refused: its outcome comes too late",
        "learns that it was declared dead", "looks at its clock, and fences itself", "releases the job of the dead",
        "sees that the process of #1 is gone", "has waited for a whole lease",
    }  # fmt: skip
