"""One container as this worker holds it: by name, once, and until it is removed or somebody else's.

The name is a fence on the engine. ``jobq-<job>-<attempt>`` cannot be created twice; whoever takes a container
over renames it, and from then on the calls of its former owner, which go to the old name, meet a 404.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from workers.container.config import ENV_LABEL, JOB_LABEL, Claim, taken_over
from workers.container.engine import DockerEngine, EngineAway, EngineOverdue, EngineRefused

T = TypeVar("T")

RECONNECT = 5.0
"""Seconds without an engine before a container runs: a restart of the engine takes less."""


class NameTaken(Exception):
    """A container that is not ours has our name."""


class StartInDoubt(Exception):
    """The engine died over the start, and knows nothing of it: the container may have run."""


class Gone(Exception):
    """The container is not there (any more), or another worker holds it."""


class Hold:
    """The container of one attempt on one engine."""

    def __init__(self, engine: DockerEngine, claim: Claim, env_id: str) -> None:
        self.engine = engine
        self.claim = claim
        self.env_id = env_id
        self.name = claim.name
        self.id = ""
        self.ours = False
        """True while there may be a container under our name, which we must remove."""
        self.ran_before = False
        """It had run before we could start it: an earlier call of ours did, although its answer was lost."""
        self.start_asked = False
        """Its start was asked for, and the answer has not come."""
        self.may_have_started = False
        """And the engine was gone, or hung, since: what it says now is no proof that nothing ran."""
        self.engine_was_away = False
        """The engine was away at least once, whatever was going on."""
        self.engine_lost = False
        """The engine was away while the container may have been running: it may have ended with the engine."""

    async def remove_older(self) -> None:
        """Never two containers of one job on one engine: those of earlier attempts go first."""
        for found in await self.patiently(lambda: self.engine.list({JOB_LABEL: str(self.claim.job_id)})):
            other = Claim.of(found.labels)
            if other is not None and other.job_id == self.claim.job_id and other.attempt < self.claim.attempt:
                await self.engine.remove(found.id)

    async def create(self, body: dict[str, Any]) -> None:
        """Create the container, once: a repeated call finds what the first one made. Raises NameTaken."""
        self.ours = True  # from the first call on: its answer may get lost
        try:
            self.id = await self.patiently(lambda: to_the_end(self.engine.create(self.name, body)))
        except EngineRefused as refused:
            if refused.status != 409:
                self.ours = False
                raise
            await self._adopt()

    async def _adopt(self) -> None:
        found = await self.engine.inspect(self.name)
        labels = found["Config"]["Labels"] or {}
        if Claim.of(labels) != self.claim or labels.get(ENV_LABEL) != self.env_id:
            self.ours = False
            raise NameTaken(self.name)
        self.id = found["Id"]
        self.ran_before = found["State"]["Status"] != "created"

    async def take_over(self) -> dict[str, Any]:
        """Hold the container that another worker began, and say how it stands. Raises Gone."""
        try:
            found = await self.engine.list({ENV_LABEL: self.env_id, **self.claim.labels})
            if not found:
                raise Gone
            self.name, self.id, self.ours = taken_over(self.claim), found[0].id, True
            await self.engine.rename(self.id, self.name)
            return await self.engine.inspect(self.name)
        except EngineRefused as refused:
            raise _gone_or(refused) from refused

    async def put(self, tar: bytes) -> None:
        """Unpack a tar in it, before its start."""
        await self.patiently(lambda: to_the_end(self.engine.put_archive(self.name, tar)))

    async def start(self) -> None:
        """Start it, unless it ran already: an attempt runs its command once, even if an answer got lost.

        Raises StartInDoubt.
        """
        try:
            await self.patiently(self._start_once)
        except EngineOverdue:
            self.may_have_started = True
            raise
        except EngineAway:
            self.may_have_started = self.start_asked
            raise
        self.engine_lost = self.engine_lost and self.ran_before

    async def _start_once(self) -> None:
        try:
            if self.engine_lost and not self.ran_before:
                self.ran_before = (await self.engine.inspect(self.name))["State"]["Status"] != "created"
            if self.ran_before:
                return
            if self.may_have_started:
                raise StartInDoubt
            await to_the_end(self.engine.start(self.name))
        except EngineAway as error:
            # An engine that only lost a connection knows what it did; one that nobody answers for has died.
            self.may_have_started = self.may_have_started or (self.start_asked and not error.asked)
            self.start_asked = self.start_asked or error.asked
            raise

    async def has_output(self) -> bool:
        """Did it ever say anything?"""
        pieces: list[bytes] = []
        await self.engine.logs(self.name, pieces.append, follow=False)
        return any(pieces)

    async def exit_code(self) -> int:
        """The exit code, across an engine that goes away and comes back. Raises Gone."""
        try:
            return await self.patiently(lambda: self.engine.wait(self.name), self.engine.patience)
        except EngineRefused as refused:
            raise _gone_or(refused) from refused

    async def stop(self, grace: float) -> None:
        """Stop signal, grace, kill: it has ended, or is about to, when this returns. Raises Gone."""
        seconds = math.ceil(grace)
        try:
            await self.patiently(lambda: to_the_end(self.engine.stop(self.name, seconds)), self.engine.patience)
        except EngineRefused as refused:
            raise _gone_or(refused) from refused

    async def remove(self) -> None:
        """Remove it, running or not, if it is (still) ours."""
        if self.ours:
            await self.engine.remove(self.name)
            self.ours = False

    def let_go(self) -> None:
        """Leave it where it is: to the worker that takes it over, or to the reaper of orphans."""
        self.ours = False

    async def patiently(self, call: Callable[[], Awaitable[T]], patience: float = RECONNECT) -> T:
        """Repeat a call that is safe to repeat, until the engine was away for ``patience`` seconds in a row."""
        away_since = math.inf
        while True:
            asked_at = time.monotonic()
            try:
                return await call()
            except EngineAway:
                self.engine_was_away = self.engine_lost = True
                now = time.monotonic()
                # A call that had been under way for long was answered for long: this is a new absence.
                away_since = now if now - asked_at > RECONNECT else min(away_since, now)
                if now - away_since >= patience:
                    raise
                await asyncio.sleep(min(0.25, patience))


def _gone_or(refused: EngineRefused) -> Exception:
    return Gone() if refused.status == 404 else refused


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Do the work to its end even if the caller is canceled meanwhile; only then is the cancellation felt.

    For calls that change something: given up in the middle, they would be done behind our back.
    """
    doing = asyncio.create_task(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        if not doing.done():
            await asyncio.wait({doing})
        if not doing.cancelled():
            doing.exception()  # seen: the cancellation is what counts now
        raise
