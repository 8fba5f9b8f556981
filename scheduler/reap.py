"""Dead workers are declared dead, and their jobs recovered."""

from __future__ import annotations

import time
from datetime import datetime

from jobq.errors import Unavailable
from jobq.store.database import Database
from jobq.store.workers import database_now, declare_dead, release_lost

_EVERY = 1.0
_CLOCK_JUMP = 5.0
"""Seconds by which the database's clock may move more than ours before every lease is given time again."""


class Reaper:
    """Sets ``dead_at`` where a lease ran out, then ends or retries what the dead left.

    After a start, after the database was away, and after its clock jumped, it first waits one whole lease: only
    then does a lease that ran out mean a dead worker, and not one that could not renew.
    """

    def __init__(self, database: Database, *, lease: float, reattach_grace: float) -> None:
        self._database = database
        self._lease = lease
        self._grace = reattach_grace
        self._patient_until = time.monotonic() + lease
        self._clock: tuple[float, datetime] | None = None

    def tick(self) -> float:
        """One round; returns the seconds until the next."""
        try:
            self._watch_clock()
            if time.monotonic() >= self._patient_until:
                self._database.run(declare_dead)
            self._database.run(lambda conn: release_lost(conn, reattach_grace=self._grace))
        except Unavailable:
            self._wait_a_lease()
            raise
        return _EVERY

    def _wait_a_lease(self) -> None:
        self._patient_until = time.monotonic() + self._lease
        self._clock = None

    def _watch_clock(self) -> None:
        with self._database.read() as conn:
            theirs, ours = database_now(conn), time.monotonic()
        if self._clock is not None:
            moved = (theirs - self._clock[1]).total_seconds() - (ours - self._clock[0])
            if abs(moved) > _CLOCK_JUMP:
                self._wait_a_lease()
                return
        self._clock = (ours, theirs)
