"""The executor of CONTAINER jobs: one Docker container per attempt, on the engine at ``JOBQ_DOCKER_HOST``.

Read ``run.py`` for the life of one attempt. A container survives its worker: ``host`` names the engine
that it lives on, and ``recover`` takes it over on another worker of that engine.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import ClassVar

from jobq import telemetry
from jobq.duration import format_duration
from jobq.errors import InvalidInput, JobQError
from jobq.models import Outcome
from jobq.plugins import BUILT_IN, Context, Kind
from jobq.settings import Policy, Settings
from jobq.specs import Container
from workers.container.engine import PATIENCE, DockerEngine, EngineError
from workers.container.run import ContainerRun, Place

STARTS = min(32, 4 * (os.cpu_count() or 1))
"""Starts in flight at once: about four per core keep an engine busy, more only wait inside it."""
FIND_HOST_EVERY = 5.0
_PATIENCE_FOR_HOST = 5.0


class ContainerExecutor:
    """Runs container jobs. It watches the job's timeout and its requests to stop itself (``cooperative``)."""

    kind: ClassVar[Kind] = BUILT_IN["CONTAINER"]
    cooperative: ClassVar[bool] = True

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self.host: str | None = None
        """Which Docker engine this is; None while it cannot be reached: it is asked again every few seconds."""
        self._patience = patience
        self._place: Place | None = None
        self._finder: asyncio.Task[None] | None = None

    async def open(self, settings: Settings, worker_id: str = "") -> None:
        """Prepare the connections. An engine that is away fails jobs, not the worker: it may come back.

        ``worker_id`` goes into the label jobq.worker, for people. Raises Misconfigured if ``docker_host`` is no
        address.
        """
        engine = DockerEngine(settings.docker_host, patience=self._patience)
        worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}"
        self._place = Place(engine, settings, worker_id, None, asyncio.Semaphore(STARTS))
        await self.find_host()
        self._finder = asyncio.create_task(self._keep_finding())

    async def close(self) -> None:
        """Close the connections; containers that run go on."""
        if self._finder is not None:
            self._finder.cancel()
            await asyncio.wait({self._finder})
        if self._place is not None:
            await self._place.engine.close()
            self._place = None

    @property
    def engine(self) -> DockerEngine:
        """The engine, for the reaper of orphans; only between ``open`` and ``close``."""
        return self._opened().engine

    async def find_host(self) -> str | None:
        """Ask the engine who it is where that is not known (any more)."""
        if self.host is None:
            place = self._opened()
            try:
                self.host = place.host = await place.engine.identity(patience=_PATIENCE_FOR_HOST)
            except EngineError:
                return None
        return self.host

    async def _keep_finding(self) -> None:
        while True:
            await asyncio.sleep(FIND_HOST_EVERY)
            await self.find_host()

    async def execute(self, spec: Container, ctx: Context) -> Outcome:
        """Run the job's container to its end; see ``ContainerRun.execute``."""
        place = self._opened()
        try:
            spec.check(place.settings.policy)  # it may have become stricter since the job was accepted
            _check_timeout(ctx.job.timeout, place.settings.policy)
        except JobQError as refused:
            return Outcome.invalid(str(refused))
        await self.find_host()
        return await self._run(ContainerRun(place, spec, ctx), recover=False)

    async def recover(self, spec: Container, ctx: Context) -> Outcome:
        """Go on with the container that another worker began for this attempt; ``Outcome.lost()`` if it is gone."""
        return await self._run(ContainerRun(self._opened(), spec, ctx), recover=True)

    async def _run(self, run: ContainerRun, *, recover: bool) -> Outcome:
        try:
            with telemetry.container(run.spec.image, run.hold.name) as span:
                outcome = await (run.recover() if recover else run.execute())
                telemetry.exited(span, outcome)
                return outcome
        finally:
            if run.hold.engine_was_away:
                self.host = run.place.host = None  # who comes back may be another engine

    def _opened(self) -> Place:
        if self._place is None:
            raise RuntimeError("open() the executor first")
        return self._place


def _check_timeout(timeout: float | None, policy: Policy) -> None:
    """Raise InvalidInput for a container that would run for longer than the operator allows."""
    longest = policy.max_container_timeout
    if timeout is None or timeout > longest.total_seconds():
        raise InvalidInput(f"A CONTAINER job may run for {format_duration(longest)} at most.", code="invalid_timeout")
