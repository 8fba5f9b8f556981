"""Due workflows become jobs."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobq import metrics
from jobq.store.database import Database
from jobq.store.materialize import materialize
from jobq.store.overlap import release_blocked

_LONGEST = 1.0
"""Seconds after which the next slot is looked up again: a workflow may have been created meanwhile."""
_SWEEP_EVERY = 0.25
"""Seconds after which blocked jobs are looked at, however busy the schedules are. A job whose predecessor ended in the
very moment of its creation has nobody else to release it, and its workflow's later slots would be dropped behind it."""


class Materializer:
    """Sleeps until the next slot. ``on_jobs`` is called after the commit that made new jobs."""

    def __init__(self, database: Database, on_jobs: Callable[[], None]) -> None:
        self._database = database
        self._on_jobs = on_jobs
        self._swept_at = -_SWEEP_EVERY

    def tick(self) -> float:
        """Make the jobs of what is due; returns the seconds until the next slot."""
        done = self._database.run(materialize)
        metrics.SLOT_JOBS.add(done.jobs)
        if done.jobs + self._sweep():
            self._on_jobs()
        return _LONGEST if done.wait is None else min(done.wait, _LONGEST)

    def _sweep(self) -> int:
        if time.monotonic() - self._swept_at < _SWEEP_EVERY:
            return 0
        self._swept_at = time.monotonic()
        return self._database.run(release_blocked)
