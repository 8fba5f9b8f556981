"""Ready jobs are promoted as fast as the live workers absorb them, and their hints are published."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from uuid import UUID

from jobq import metrics, telemetry
from jobq.store.database import Database
from jobq.store.promote import Cursor, Promoted, promote

_IDLE = 1.0
_STANDBY = 0.5
_BUSY = 0.02
_FULL = 0.05
"""Seconds to the next tick: nothing is ready; another scheduler promotes; all that was ready went; more is ready, and
the conveyor is full: the longer pause makes fewer, larger hints, well within ``_WINDOW``."""
_FALL_ASLEEP = 4.0
"""By how much the pauses grow when nothing is ready any more. Enqueuers announce their commits at most every 20 ms:
one that comes right behind another may be silent, and is found by these looks."""
_WINDOW = 0.3
"""Seconds over which ended jobs count as room: while the next hints travel, as many will have ended again."""


class Promoter:
    """Promotes what fits. ``publish`` gets the ids after the commit, never before."""

    def __init__(self, database: Database, publish: Callable[[str, list[UUID]], None]) -> None:
        self._database = database
        self._publish = publish
        self._cursor = Cursor()
        self._flow = Flow()
        self._pause = _IDLE

    def tick(self) -> float:
        """One round; returns the seconds until the next (a wake-up shortens them)."""
        ended = self._flow.ended_lately()
        began, began_ns, traced = time.perf_counter(), time.time_ns(), telemetry.is_on()
        done = self._database.run(lambda conn: promote(conn, ended, self._cursor, traced=traced))
        if done.standby:
            return _STANDBY
        metrics.PROMOTION_SECONDS.observe(time.perf_counter() - began)
        for queue, ids in done.batches.items():
            metrics.PROMOTED.add(len(ids), queue)
            self._publish(queue, ids)
        self._flow.note(done)
        telemetry.promoted(done.batches, done.traces, began_ns)
        if done.more:
            self._pause = _FULL
        elif done.batches:
            self._pause = _BUSY
        else:
            self._pause = min(self._pause * _FALL_ASLEEP, _IDLE)
        return self._pause


class Flow:
    """How many jobs ended within the last moment, per queue: seen from what was in flight at two ticks."""

    def __init__(self) -> None:
        self._after: Counter[str] = Counter()
        self._ended: deque[tuple[float, Counter[str]]] = deque()

    def note(self, done: Promoted) -> None:
        """What was in flight before this tick, and what it added."""
        ended = self._after - done.in_flight  # keeps positive counts only
        if ended:
            self._ended.append((time.monotonic(), ended))
        self._after = Counter(done.in_flight)
        self._after.update({queue: len(ids) for queue, ids in done.batches.items()})

    def ended_lately(self) -> Counter[str]:
        """Jobs that left each queue within the window."""
        oldest = time.monotonic() - _WINDOW
        while self._ended and self._ended[0][0] < oldest:
            self._ended.popleft()
        total: Counter[str] = Counter()
        for _, ended in self._ended:
            total.update(ended)
        return total
