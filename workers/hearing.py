"""Is this worker deaf: connected, with room for jobs, and not hearing of those whose hints lie at the broker?

Consumers have been found so after a reconnect, for ever. Jobs go on meanwhile, from the database, but each waits for a
look; so a deaf process ends, in good order, and whoever supervises it starts another. One that ended for no reason
would cost more than one that is deaf, so it must look deaf several times in a row, at even distances:

- nothing came from the broker since the look before, and no hint is in hand;
- in one and the same queue that has free worker slots, messages lay at each look: where other workers are only faster,
  a consumer that listens gets its turn in between;
- the broker answered, by a connection that was opened for the question, and the lease is renewed: who is cut off, or
  was frozen, is not deaf.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from jobq.broker import Broker
from jobq.errors import Unavailable
from workers.lease import Lease
from workers.slots import Slots

log = logging.getLogger(__name__)

LOOKS = 4
"""In a row, that must be silent."""


class Ear:
    """Counts the messages that reach this process; from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._came = self._in_hand = 0

    @contextmanager
    def message(self) -> Iterator[None]:
        """A message is here, for as long as the block takes."""
        with self._lock:
            self._came += 1
            self._in_hand += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_hand -= 1

    def state(self) -> tuple[int, int]:
        """How many have come so far, and how many are in hand."""
        with self._lock:
            return self._came, self._in_hand


class Suspicion:
    """The decision: it grows with each look that is as the one before, and is gone with the first sign of life."""

    def __init__(self) -> None:
        self._came = -1
        self._silent = 0
        self.lying: frozenset[str] = frozenset()
        """The queues in which messages have lain at each silent look so far."""

    def look(self, came: int, in_hand: int, lying: Callable[[], frozenset[str]]) -> bool:
        """One look. True: the worker is deaf. ``lying``: asks for the queues with messages, only where it matters."""
        quiet = came == self._came and not in_hand
        self._came = came
        found = lying() if quiet else frozenset[str]()
        still = found & self.lying
        self._silent, self.lying = (self._silent + 1, still) if still else (int(bool(found)), found)
        return self._silent >= LOOKS


class Listening:
    """Looks whether this worker still hears; ``on_deaf`` is called once it does not."""

    def __init__(
        self, ear: Ear, broker: Broker, slots: Slots, lease: Lease, *, after: float, on_deaf: Callable[[], None]
    ) -> None:
        self._ear, self._broker, self._slots, self._lease = ear, broker, slots, lease
        self._every = after / LOOKS
        self._on_deaf = on_deaf
        self._suspicion = Suspicion()

    def tick(self) -> float:
        """One look; returns the seconds until the next."""
        if self._suspicion.look(*self._ear.state(), self._lying):
            queues, seconds = ", ".join(sorted(self._suspicion.lying)), self._every * LOOKS
            log.error(
                "this worker is deaf and ends: hints of %s lie at the broker, none came for %g s", queues, seconds
            )
            self._on_deaf()
        return self._every

    def _lying(self) -> frozenset[str]:
        """The queues that have messages at the broker, and free slots here; none where that cannot be told."""
        if not self._lease.is_renewed():
            return frozenset()
        free = [queue for queue in self._slots.capacity if self._slots.free(queue) > 0]
        try:
            return frozenset(queue for queue in free if self._broker.depth(queue) > 0)
        except Unavailable:
            return frozenset()
