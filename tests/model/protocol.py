"""jobq's protocol as a graph: from a state, every step that may come next.

``working`` has the worker's way of a job, ``leasing`` what its lease demands, ``outside`` the scheduler, people and
faults, ``database`` the transactions. Each action says in its first line which function of the product it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model import leasing, outside, working
from tests.model.step import Step
from tests.model.world import Scenario, World, tidy

OF_WORKERS = (
    working.asks, working.claims, working.hears, working.executes, working.records, working.sweeps,
    leasing.registers, leasing.renews, leasing.fences, leasing.adopts, leasing.sees_neighbours_gone, leasing.drains,
    leasing.clocks_run,
)  # fmt: skip
OF_OTHERS = (
    outside.schedules, outside.intervene, outside.messages_go_astray, outside.processes_fail, outside.database_fails,
    outside.all_is_mended, leasing.leases_end,
)  # fmt: skip


def steps(world: World, scenario: Scenario) -> Iterator[Step]:
    """Every step that is possible now and changes something."""
    for step in _steps(world, scenario):
        after = tidy(step.after)
        if after != world:
            yield step if after is step.after else step._replace(after=after)


def _steps(world: World, scenario: Scenario) -> Iterator[Step]:
    for act in OF_OTHERS:
        yield from act(world, scenario)
    yield from working.containers_end(world)
    for number in (0, 1):
        for of_worker in OF_WORKERS:
            yield from of_worker(world, number, scenario)
