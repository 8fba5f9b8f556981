"""Explores every state that can be reached, breadth first, so that the trace of a violation is a shortest one.

Two questions are asked: does each state and each step keep the invariants, and can a clean end be reached from each
state by the system and by repairs alone? The second is answered backwards, from the clean states.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from tests.model.invariants import broken_state, broken_step, is_clean
from tests.model.protocol import steps
from tests.model.step import Cause, Step
from tests.model.world import Scenario, World


@dataclass(frozen=True, slots=True)
class Violation:
    """What does not hold, and a shortest way there."""

    what: str
    trace: tuple[Step, ...]
    last: World

    def __str__(self) -> str:
        lines = [f"{number:3} {step}" for number, step in enumerate(self.trace, 1)]
        return "\n".join([self.what, *lines, f"    then: {_shown(self.last)}"])


@dataclass(slots=True)
class Explored:
    """All reachable states, or those up to the first violation."""

    states: int = 0
    steps: int = 0
    depth: int = 0
    clean: int = 0
    violation: Violation | None = None


@dataclass(slots=True)
class _Search:
    scenario: Scenario
    worlds: list[World] = field(default_factory=list)
    numbers: dict[World, int] = field(default_factory=dict)
    came_from: array[int] = field(default_factory=lambda: array("q"))
    depth: array[int] = field(default_factory=lambda: array("q"))
    sources: array[int] = field(default_factory=lambda: array("q"))
    targets: array[int] = field(default_factory=lambda: array("q"))
    steps: int = 0

    def add(self, world: World, source: int) -> int:
        """The number of the state, and a new one if it was not seen before."""
        number = self.numbers.setdefault(world, len(self.worlds))
        if number == len(self.worlds):
            self.worlds.append(world)
            self.came_from.append(source)
            self.depth.append(self.depth[source] + 1 if source >= 0 else 0)
        return number

    def trace(self, number: int) -> tuple[Step, ...]:
        """The steps to this state: they are not kept, but found again."""
        way: list[Step] = []
        while (source := self.came_from[number]) >= 0:
            world = self.worlds[number]
            way.append(next(step for step in steps(self.worlds[source], self.scenario) if step.after == world))
            number = source
        return tuple(reversed(way))


def explore(scenario: Scenario) -> Explored:
    """Every state that can be reached in this scenario; ends at the first violation."""
    search = _Search(scenario)
    search.add(scenario.start(), -1)
    violation = _unsafe(search)
    stuck = None if violation else _stuck(search)
    if stuck is not None:
        what = "no clean end can be reached from here without further faults"
        violation = Violation(what, search.trace(stuck), search.worlds[stuck])
    clean = sum(map(is_clean, search.worlds))
    return Explored(len(search.worlds), search.steps, max(search.depth), clean, violation)


def _unsafe(search: _Search) -> Violation | None:
    scenario, number = search.scenario, 0
    while number < len(search.worlds):
        world = search.worlds[number]
        for what in broken_state(world, scenario):
            return Violation(what, search.trace(number), world)
        for step in steps(world, scenario):
            search.steps += 1
            for what in broken_step(world, step, scenario):
                return Violation(what, (*search.trace(number), step), step.after)
            target = search.add(step.after, number)
            if step.cause in (Cause.SYSTEM, Cause.REPAIR):
                search.sources.append(number)
                search.targets.append(target)
        number += 1
    return None


def _stuck(search: _Search) -> int | None:
    """The first state from which no clean one can be reached."""
    before: list[list[int]] = [[] for _ in search.worlds]
    for source, target in zip(search.sources, search.targets, strict=True):
        before[target].append(source)
    waiting = [number for number, world in enumerate(search.worlds) if is_clean(world)]
    reached = bytearray(len(search.worlds))
    for number in waiting:
        reached[number] = 1
    while waiting:
        for source in before[waiting.pop()]:
            if not reached[source]:
                reached[source] = 1
                waiting.append(source)
    number = reached.find(0)
    return None if number < 0 else number


def _shown(world: World) -> str:
    job = world.job
    of_job = f"{job.status}·{job.reason}, attempt {job.attempt}, owner #{job.owner}, wanted {job.desired}"
    workers = "; ".join(
        f"{name}: {worker.life} #{worker.me} {', '.join(f'{work.attempt}/#{work.owner} {work.phase}' for work in worker.works)}"
        for name, worker in zip("AB", world.workers, strict=True)
    )
    return f"{of_job}; {workers}; containers {[tuple(map(str, one)) for one in world.containers]}"
