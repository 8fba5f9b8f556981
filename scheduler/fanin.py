"""Fan-outs end with their last child; canceled ones are dequeued; jobs that wait for jobs are never forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobq.store.database import Database
from jobq.store.fanin import anything_open
from jobq.store.settle import Sweeps, free_overdue, settle

_EVERY = 0.25
_LOOK_FOR_OVERDUE = 30.0


class FanIn:
    """Counts what children's ends add up to. ``on_ready`` is called after a commit that may have made jobs ready."""

    def __init__(self, database: Database, on_ready: Callable[[], None]) -> None:
        self._database = database
        self._on_ready = on_ready
        self._sweeps = Sweeps()
        self._looked = time.monotonic()

    def tick(self) -> float:
        """One round; returns the seconds until the next."""
        with self._database.read() as conn:
            busy = anything_open(conn)
        if busy and self._database.run(lambda conn: settle(conn, self._sweeps)):
            self._on_ready()
            return 0.0
        if time.monotonic() - self._looked > _LOOK_FOR_OVERDUE:
            self._looked = time.monotonic()
            self._database.run(free_overdue)
        return _EVERY
