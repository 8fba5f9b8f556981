"""Fan-outs end with their last child; canceled ones are dequeued; jobs that wait for jobs are never forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from jobq.store.database import Database
from jobq.store.fanin import anything_open
from jobq.store.settle import Sweeps, free_overdue, settle

_BUSY = 0.1
"""Seconds between two rounds while children end: so long may their ends wait to be added up."""
_QUIET = 1.0
"""While fan-outs are open in which nothing happens: paused ones, for days."""
_IDLE = 0.25
_LOOK_FOR_OVERDUE = 30.0
_NEXT_PAGE = 1.0


class FanIn:
    """Counts what children's ends add up to. ``on_ready`` is called after a commit that may have made jobs ready."""

    def __init__(self, database: Database, on_ready: Callable[[], None]) -> None:
        self._database = database
        self._on_ready = on_ready
        self._sweeps = Sweeps()
        self._pause = _BUSY
        self._look_at = time.monotonic() + _LOOK_FOR_OVERDUE
        self._overdue_behind: UUID | None = None

    def tick(self) -> float:
        """One round; returns the seconds until the next."""
        if time.monotonic() >= self._look_at:
            self._look_for_overdue()
        with self._database.read() as conn:
            if not anything_open(conn):
                self._pause = _BUSY
                return _IDLE
        done = self._database.run(lambda conn: settle(conn, self._sweeps))
        if done.more:
            self._on_ready()
            return 0.0
        self._pause = _BUSY if done.moved else min(self._pause * 1.5, _QUIET)
        return self._pause

    def _look_for_overdue(self) -> None:
        self._overdue_behind = self._database.run(lambda conn: free_overdue(conn, self._overdue_behind))
        self._look_at = time.monotonic() + (_NEXT_PAGE if self._overdue_behind else _LOOK_FOR_OVERDUE)
