"""Jobs whose time has come (scheduled, retrying, requeued) become ready."""

from __future__ import annotations

from collections.abc import Callable

from jobq.store.database import Database
from jobq.store.promote import seconds_to_next_due, wake

_BATCH = 1000
_LONGEST = 1.0


class Waker:
    """Sleeps until the next job is due. ``on_ready`` is called after the commit that made jobs ready."""

    def __init__(self, database: Database, on_ready: Callable[[], None]) -> None:
        self._database = database
        self._on_ready = on_ready

    def tick(self) -> float:
        """Wake what is due; returns the seconds until the next job is."""
        with self._database.read() as conn:
            seconds = seconds_to_next_due(conn)
        if seconds is None or seconds > 0:
            return _LONGEST if seconds is None else min(seconds, _LONGEST)
        woken = self._database.run(lambda conn: wake(conn, _BATCH))
        if woken:
            self._on_ready()
            return 0.0
        return 0.02  # another scheduler is at it
