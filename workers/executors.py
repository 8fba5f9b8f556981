"""The executors of a worker process, one of each kind, on the event loop that all jobs share."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from importlib.metadata import entry_points
from typing import Any, TypeVar

from jobq.errors import JobQError
from jobq.plugins import executor_class
from jobq.settings import Settings
from jobq.store.database import Database

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class Executors:
    """Loads every installed executor at the start; a plugin that cannot be loaded fails its own jobs only."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._executors: dict[str, Any] = {}
        self._failures: dict[str, JobQError] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="jobq-jobs", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def start(self, env_id: str) -> None:
        """Start the loop, then open the executors. ``env_id`` marks what they leave on their hosts."""
        self._settings = self._settings.model_copy(update={"env_id": env_id})
        self._thread.start()
        self.call(self._open_all())

    def call(self, work: Coroutine[Any, Any, Value], timeout: float | None = 30.0) -> Value:
        """Run a coroutine on the loop, from another thread, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    async def get(self, kind: str) -> Any:
        """The executor of a kind. Raises JobQError if there is none."""
        found = self._executors.get(kind)
        if found is None:
            if kind in self._failures:
                raise self._failures[kind]
            found = await self._open(kind)
        return found

    async def _open_all(self) -> None:
        kinds = {point.name for point in entry_points(group="jobq.executors")}
        for kind in sorted(kinds):
            try:
                await self._open(kind)
            except JobQError as error:
                self._failures[kind] = error
                log.warning("kind %s is not available here: %s", kind, error)

    async def _open(self, kind: str) -> Any:
        executor = executor_class(kind, tuple(self._settings.plugins))()
        if getattr(executor, "with_store", False):  # built-in kinds only
            await executor.open(self._settings, self._database)
        elif hasattr(executor, "open"):
            await executor.open(self._settings)
        return self._executors.setdefault(kind, executor)

    def hosted(self) -> tuple[tuple[str, ...], str | None]:
        """The kinds whose work outlives a worker, and where it lives (None: unknown at the moment)."""
        found = [(kind, executor) for kind, executor in self._executors.items() if hasattr(executor, "recover")]
        hosts = (getattr(executor, "host", None) for _, executor in found)
        return tuple(kind for kind, _ in found), next(filter(None, hosts), None)

    def is_away(self, kind: str) -> bool:
        """The place where this kind's work lives cannot be reached at the moment."""
        return getattr(self._executors.get(kind), "host", "") is None

    def find(self, kind: str) -> Any | None:
        """The executor of a kind, if it is open."""
        return self._executors.get(kind)

    def stop(self) -> None:
        """Close the executors, then end the loop."""
        try:
            self.call(self._close_all(), timeout=10.0)
        except TimeoutError:
            log.warning("an executor did not close in time")
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5.0)
        if not self.loop.is_running():
            self.loop.close()

    async def _close_all(self) -> None:
        for kind, executor in self._executors.items():
            if hasattr(executor, "close"):
                try:
                    await executor.close()
                except Exception:
                    log.exception("the executor of %s did not close", kind)
