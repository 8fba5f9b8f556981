"""Dead workers are declared dead, and their jobs recovered."""

from __future__ import annotations

import time
from datetime import datetime

from jobq import metrics
from jobq.errors import Unavailable
from jobq.store.database import Database
from jobq.store.workers import database_now, declare_dead, release_lost

_EVERY = 1.0
_CLOCK_JUMP = 5.0
"""Seconds by which the database's clock may move more than ours before every lease is given time again."""
_SILENCE = 5.0
"""Seconds without an answer of the database after which the same holds: it was frozen, or this process was."""


class Reaper:
    """Sets ``dead_at`` where a lease ran out, then ends or retries what the dead left.

    After a start, after the database was away or frozen, and after its clock jumped, it first waits one whole lease:
    only then does a lease that ran out mean a dead worker, and not one that could not renew. The instant by which
    leases are judged is the one that the clock was watched at, so a jump between the two kills nobody.
    """

    def __init__(self, database: Database, *, lease: float, reattach_grace: float) -> None:
        self._database = database
        self._lease = lease
        self._grace = reattach_grace
        self._patient_until = 0.0
        self._clock: tuple[float, datetime] | None = None

    def tick(self) -> float:
        """One round; returns the seconds until the next."""
        try:
            at = self._watch_clock()
            if time.monotonic() >= self._patient_until:
                metrics.LEASES_EXPIRED.add(len(self._database.run(lambda conn: declare_dead(conn, at=at))))
            metrics.RECOVERED.add(self._database.run(lambda conn: release_lost(conn, reattach_grace=self._grace)))
        except Unavailable:
            self._clock = None
            raise
        return _EVERY

    def _watch_clock(self) -> datetime:
        """The database's clock. Begins to wait a lease where it does not go on from the last look."""
        with self._database.read() as conn:
            theirs, ours = database_now(conn), time.monotonic()
        if self._clock is None or not _goes_on(ours - self._clock[0], (theirs - self._clock[1]).total_seconds()):
            self._patient_until = ours + self._lease
        self._clock = (ours, theirs)
        return theirs


def _goes_on(ours: float, theirs: float) -> bool:
    return ours <= _EVERY + _SILENCE and abs(theirs - ours) <= _CLOCK_JUMP
