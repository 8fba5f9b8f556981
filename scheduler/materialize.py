"""Due workflows become jobs."""

from __future__ import annotations

from collections.abc import Callable

from jobq.store.database import Database
from jobq.store.finish import release_blocked
from jobq.store.materialize import materialize

_LONGEST = 1.0
"""Seconds after which the next slot is looked up again: a workflow may have been created meanwhile."""


class Materializer:
    """Sleeps until the next slot. ``on_jobs`` is called after the commit that made new jobs."""

    def __init__(self, database: Database, on_jobs: Callable[[], None]) -> None:
        self._database = database
        self._on_jobs = on_jobs

    def tick(self) -> float:
        """Make the jobs of what is due; returns the seconds until the next slot."""
        done = self._database.run(materialize)
        if done.jobs or self._database.run(release_blocked):
            self._on_jobs()
        return _LONGEST if done.wait is None else min(done.wait, _LONGEST)
