"""Publishing beside promotion, so that a broker that is slow or away never holds promotion up."""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from collections.abc import Iterable
from uuid import UUID

from jobq import metrics
from jobq.broker import Broker, Hint
from jobq.errors import Unavailable

log = logging.getLogger(__name__)

_WAITING = 1000
_PAUSE = 2.0
"""Seconds for which hints are dropped after the broker failed: workers claim from the database meanwhile."""


class Publisher:
    """Takes hints from any thread and publishes them from its own. What it drops is sent again by the re-sender."""

    def __init__(self, broker: Broker, ids_per_message: int) -> None:
        self._broker = broker
        self._size = ids_per_message
        self._hints: queue.Queue[Hint | None] = queue.Queue(_WAITING)
        self._away_until = 0.0
        self._failed = False

    def offer(self, name: str, ids: list[UUID]) -> None:
        """Publish soon. Never blocks, never raises."""
        try:
            for start in range(0, len(ids), self._size):
                self._hints.put_nowait(Hint(name, ids[start : start + self._size]))
        except queue.Full:
            metrics.HINTS_DROPPED.add()
            log.debug("hints are dropped: the broker is slow")

    @property
    def away(self) -> bool:
        """True while the broker is known to be away."""
        return time.monotonic() < self._away_until

    def stop(self) -> None:
        """End the present tick's wait."""
        self._hints.put(None)

    def tick(self) -> float:
        """Publish what has come in; waits for it at most a second."""
        try:
            hint = self._hints.get(timeout=1.0)
        except queue.Empty:
            return 0.0
        if hint is None or self.away:
            metrics.HINTS_DROPPED.add(hint is not None)
            return 0.0
        hints = [hint, *self._others()]
        try:
            self._broker.publish(hints)
        except Unavailable as error:
            metrics.PUBLISH_FAILURES.add()
            metrics.HINTS_DROPPED.add(len(hints))
            self._away_until = time.monotonic() + _PAUSE
            if not self._failed:
                log.warning("%s", error)
            self._failed = True
            return 0.0
        metrics.HINTED.add_all(_jobs_of(hints))
        if self._failed:
            log.warning("the broker is back")
        self._failed = False
        return 0.0

    def _others(self) -> Iterable[Hint]:
        while True:
            try:
                hint = self._hints.get_nowait()
            except queue.Empty:
                return
            if hint is not None:
                yield hint


def _jobs_of(hints: Iterable[Hint]) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for hint in hints:
        counts[hint.queue,] += len(hint.ids)
    return counts
