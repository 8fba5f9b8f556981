"""A scheduler and a worker inside this process: what ``jobq dev`` and ``jobq.testing.running`` start.

The embedded broker, in memory, joins the two; the database may be any. For development and tests: jobs run as long
as this process does, and on its cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from jobq.errors import Misconfigured
from jobq.plugins import installed_kinds

if TYPE_CHECKING:
    from jobq.settings import Settings

SLOTS = {"container": 4, "heartbeat": 200}
SLOTS_OF_A_PLUGIN = 16


def every_queue(settings: Settings) -> dict[str, int]:
    """The queue of each kind that is installed here, with its worker slots."""
    kinds = installed_kinds(tuple(settings.plugins))
    return {kind.lower(): SLOTS.get(kind.lower(), SLOTS_OF_A_PLUGIN) for kind in kinds}


class Embedded(AbstractContextManager["Embedded"]):
    """Both sides of jobq, started and stopped together. The database must have its tables."""

    def __init__(self, settings: Settings, queues: Mapping[str, int] | None = None) -> None:
        try:
            from scheduler.service import Scheduler
            from workers.app import EmbeddedWorker
        except ImportError as error:
            raise Misconfigured(
                f"Jobs cannot run in this process: {error}.", hint="Run: pip install 'jobq[worker]'"
            ) from error
        self.queues = dict(every_queue(settings) if queues is None else queues)
        self._scheduler = Scheduler(settings)
        self._worker = EmbeddedWorker(settings, self.queues)

    def start(self) -> None:
        """Start both; jobs run when this returns."""
        self._worker.start()
        self._scheduler.start()

    def stop(self) -> None:
        """Make no more jobs; let those that run end for ``drain_timeout``; then end every thread."""
        self._scheduler.stop()
        self._worker.stop()

    def __enter__(self) -> Embedded:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
