"""Who goes next: the pure part of promotion.

Room is what the live workers of a queue can absorb. It is shared out one job at a time: the next job comes from the
tenant with the smallest (jobs in flight ÷ weight) that is below its limit; among equals they take turns. Within the
tenant the highest priority goes first, then the one that has been ready longest. A lane that is full (a workflow at
its concurrency) is passed.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class Candidate(NamedTuple):
    """A ready job, in the order that its lane's index gives."""

    id: UUID
    tenant: str
    lane: str
    priority: int
    ready_at: datetime


_REMEMBERED = 10_000


@dataclass(slots=True)
class Turns:
    """Whose turn it is among tenants with equal shares in flight: start-time fair queueing (Goyal, Vin, Cheng, 1996).

    Without it, one slot and short jobs would always serve the tenant whose name sorts first: whenever it is looked,
    nobody has anything in flight. Who was away and comes back claims nothing for that time.
    """

    now: float = 0.0
    ends: dict[str, float] = field(default_factory=dict)
    """Per tenant: when, in jobs per weight, its last turn is over. What is not later than ``now`` says nothing."""

    def begins(self, tenant: str) -> float:
        """When this tenant's next turn begins: the smallest goes first."""
        return max(self.now, self.ends.get(tenant, 0.0))

    def take(self, tenant: str, weight: float) -> None:
        """The tenant's turn is used."""
        self.now = self.begins(tenant)
        self.ends[tenant] = self.now + 1 / weight
        if len(self.ends) > _REMEMBERED:
            self.ends = {name: end for name, end in self.ends.items() if end > self.now}


@dataclass(slots=True)
class Load:
    """What is in flight (queued or running) now, and what may be at most. A missing limit is no limit."""

    queues: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    """Per queue: those in flight that hold one of its ``slots``, or are on their way to one. What still runs on
    workers that drain or died takes no room of the others, but counts for every limit."""
    tenants: Counter[str] = field(default_factory=Counter)
    lanes: Counter[str] = field(default_factory=Counter)
    slots: Mapping[str, int] = field(default_factory=dict)
    """Worker slots of the live, undrained workers, per queue."""
    paused: frozenset[str] = frozenset()
    queue_limits: dict[str, int] = field(default_factory=dict)
    tenant_limits: dict[str, int] = field(default_factory=dict)
    lane_limits: Mapping[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    turns: Turns = field(default_factory=Turns)

    def room(self, queue: str, ended_lately: int) -> int:
        """How many more jobs the queue takes. What ended lately ends again while the next ones travel."""
        if queue in self.paused or self.slots.get(queue, 0) <= 0:
            return 0
        free = self.slots[queue] - self.held[queue] + ended_lately
        if (limit := self.queue_limits.get(queue)) is not None:
            free = min(free, limit - self.queues[queue])
        return max(free, 0)


def choose(candidates: Sequence[Candidate], room: int, load: Load) -> list[UUID]:
    """The jobs to promote, best first; ``load`` is updated with them, so that the next queue sees them."""
    tenants = {candidate.tenant for candidate in candidates}
    if len(tenants) == 1 and not any(candidate.lane for candidate in candidates):
        return _choose_plain(candidates, room, load, tenants.pop())
    waiting = _by_tenant(candidates)
    turns = [_turn(load, tenant) for tenant in waiting]
    heapq.heapify(turns)
    chosen: list[UUID] = []
    while turns and len(chosen) < room:
        _, _, tenant = heapq.heappop(turns)
        if _is_full(tenant, load.tenants, load.tenant_limits):
            continue
        candidate = next(waiting[tenant], None)
        while candidate is not None and _is_full(candidate.lane, load.lanes, load.lane_limits):
            candidate = next(waiting[tenant], None)
        if candidate is None:
            continue
        chosen.append(candidate.id)
        load.tenants[tenant] += 1
        load.lanes[candidate.lane] += 1
        load.turns.take(tenant, load.weights.get(tenant, 1.0))
        heapq.heappush(turns, _turn(load, tenant))
    return chosen


def _turn(load: Load, tenant: str) -> tuple[float, float, str]:
    return load.tenants[tenant] / load.weights.get(tenant, 1.0), load.turns.begins(tenant), tenant


def _choose_plain(candidates: Sequence[Candidate], room: int, load: Load, tenant: str) -> list[UUID]:
    if (limit := load.tenant_limits.get(tenant)) is not None:
        room = min(room, max(limit - load.tenants[tenant], 0))
    chosen = [candidate.id for candidate in candidates[:room]]
    load.tenants[tenant] += len(chosen)
    return chosen


def _is_full(name: str, counts: Counter[str], limits: Mapping[str, int]) -> bool:
    limit = limits.get(name) if name else None
    return limit is not None and counts[name] >= limit


def _by_tenant(candidates: Iterable[Candidate]) -> dict[str, Iterator[Candidate]]:
    grouped: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        grouped[candidate.tenant].append(candidate)
    return {tenant: iter(sorted(group, key=_rank)) for tenant, group in grouped.items()}


def _rank(job: Candidate) -> tuple[int, datetime, UUID]:
    return (-job.priority, job.ready_at, job.id)
