"""The one way in which anything here runs again and again.

A policy is a function that does one round and returns how many seconds to wait for the next: ``tick() -> seconds``.
Every policy is safe to run twice and in several processes at once; the loop adds the thread, the waiting, the
wake-up, and what happens when a service is away: it says so once, waits, and says when it is back.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from jobq import metrics
from jobq.errors import Unavailable

log = logging.getLogger(__name__)

_LONGEST_OUTAGE_WAIT = 5.0


class Loop:
    """A thread that calls ``tick`` until it is stopped."""

    def __init__(self, name: str, tick: Callable[[], float]) -> None:
        self.name = name
        self._tick = tick
        self._event = threading.Event()
        self._stopping = False
        self._failures = 0
        self._away = False
        self.turned = time.monotonic()
        """When the last tick succeeded."""
        self._thread = threading.Thread(target=self._run, name=f"jobq-{name}", daemon=True)

    def start(self) -> None:
        """Begin; the first tick follows at once."""
        self._thread.start()

    def wake(self) -> None:
        """Do not wait for the next tick any longer."""
        self._event.set()

    def stop(self) -> None:
        """Ask the loop to end after its present tick."""
        self._stopping = True
        self._event.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the loop has ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            seconds = self._round()
            self._event.wait(max(seconds, 0.0))
            self._event.clear()

    def _round(self) -> float:
        try:
            seconds = self._tick()
        except Unavailable as error:
            return self._outage(f"{error}")
        except Exception:
            # A policy must not die of one bad row or one unforeseen reply: all others would wait for ever.
            log.exception("the loop %s failed and goes on", self.name)
            return self._outage(None)
        if self._failures:
            log.warning("the loop %s goes on", self.name)
        self._failures, self._away, self.turned = 0, False, time.monotonic()
        return seconds

    def _outage(self, message: str | None) -> float:
        self._failures += 1
        metrics.LOOP_FAILURES.add(1, self.name)
        if message and not self._away:
            log.warning("the loop %s waits: %s", self.name, message)
            self._away = True
        return min(0.25 * 2.0 ** min(self._failures, 5), _LONGEST_OUTAGE_WAIT) * random.uniform(0.5, 1.0)
