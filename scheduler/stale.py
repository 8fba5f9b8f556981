"""Jobs that nobody started within their ``stale_after`` are ended."""

from __future__ import annotations

import logging

from jobq.store.database import Database
from jobq.store.stale import Walk, collect, look

log = logging.getLogger(__name__)

_STEP = 1.0
"""Seconds between two steps of a walk, each of a thousand ready jobs: it is to cost nobody anything."""
_MORE = 0.1
_REST = 5.0
_AT_ONCE = 500


class StaleCollector:
    """Walks over the jobs that wait for a worker, again and again, and ends those that have waited too long."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._walk = Walk()

    def tick(self) -> float:
        """One step; returns the seconds until the next."""
        with self._database.read() as conn:
            found = look(conn, self._walk)
        ended = 0
        for start in range(0, len(found), _AT_ONCE):
            part = found[start : start + _AT_ONCE]
            ended += len(self._database.run(lambda conn, part=part: collect(conn, part)))  # type: ignore[misc]
        if ended:
            log.warning("%d jobs were not started within their stale_after, and end unresolved", ended)
            return _MORE
        return _REST if self._walk.place is None else _STEP
