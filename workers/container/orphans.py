"""The reaper of orphans: on each host it removes containers that no running job owns any more.

Orphans come from workers that were killed, from engines that hung while a container was to be removed, and from
workers that let go of a container after they had lost its job. Deciding is the database's business: the reaper
reads the engine's list first and asks second, so that a container it sees belongs to a claim that was committed
before; and while the database is away it touches nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from workers.container.config import DEADLINE_LABEL, ENV_LABEL, Claim
from workers.container.engine import DockerEngine, EngineError, Listed

log = logging.getLogger(__name__)

Owned = Callable[[list[tuple[UUID, int]]], set[tuple[UUID, int]]]
"""Which of these (job, attempt) are RUNNING with that very attempt. Called in a thread: it may block."""

GRACE = timedelta(seconds=60)
"""Past its deadline label by this much, a container is stopped even though its job has an owner."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did, as container names."""

    removed: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    """Overdue ones whose job has an owner: stopped, but left for the owner to report and remove."""
    failed: list[str] = field(default_factory=list)
    """What the engine did not do; the next sweep tries again."""


class OrphanReaper:
    """Sweeps one engine for containers of one installation; safe to run in every worker of a host at once."""

    def __init__(self, engine: DockerEngine, env_id: str, owned: Owned) -> None:
        self._engine = engine
        self._env_id = env_id
        self._owned = owned
        self._overdue_since: dict[str, float] = {}
        self._few = asyncio.Semaphore(8)

    async def sweep(self) -> Swept:
        """Remove what nobody owns; stop what is overdue. Raises what ``owned`` raises, having touched nothing.

        EngineError: the engine cannot be asked what there is.
        """
        listed = [
            (container, claim)
            for container in await self._engine.list({ENV_LABEL: self._env_id})
            if (claim := Claim.of(container.labels)) is not None
        ]
        if not listed:
            return Swept()
        owned = await asyncio.to_thread(self._owned, sorted({(claim.job_id, claim.attempt) for _, claim in listed}))
        orphans = [container for container, claim in listed if (claim.job_id, claim.attempt) not in owned]
        others = [container for container, claim in listed if (claim.job_id, claim.attempt) in owned]
        swept = Swept()
        await asyncio.gather(
            *(self._do(self._engine.remove, orphan, swept.removed, swept) for orphan in orphans),
            *(self._do(self._kill, late, swept.killed, swept) for late in self._overdue(others)),
        )
        return swept

    async def _do(self, call: Callable[[str], Awaitable[None]], found: Listed, done: list[str], swept: Swept) -> None:
        async with self._few:
            try:
                await call(found.id)
            except EngineError as error:
                swept.failed.append(found.name)
                log.warning("orphan %s is left for the next sweep: %s", found.name, error)
            else:
                done.append(found.name)
                log.info("orphan %s (%s) is removed or stopped", found.name, found.state)

    async def _kill(self, container: str) -> None:
        await self._engine.stop(container, 0)

    def _overdue(self, owned: list[Listed]) -> list[Listed]:
        """Running ones past their deadline label by ``GRACE``, seen so for as long by our own monotonic clock.

        The second condition is for a wall clock that jumped: a live owner watches the timeout itself meanwhile.
        """
        now, wall = time.monotonic(), datetime.now(UTC)
        late = {found.id: found for found in owned if found.state == "running" and _past_deadline(found, wall)}
        self._overdue_since = {key: self._overdue_since.get(key, now) for key in late}
        return [found for key, found in late.items() if now - self._overdue_since[key] >= GRACE.total_seconds()]


def _past_deadline(found: Listed, wall: datetime) -> bool:
    try:
        return wall > datetime.fromisoformat(found.labels[DEADLINE_LABEL])
    except (KeyError, ValueError):  # no timeout, or not our handwriting
        return False
