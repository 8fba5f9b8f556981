"""Worker slots: how many jobs of each queue this process runs at once."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping

from jobq.errors import InvalidInput

MAX_SLOTS = 100_000
DEFAULT_SLOTS = {"container": 4, "heartbeat": 500, "sync": 4, "replication": 200}
_QUEUE = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")


def parse_queues(text: str) -> dict[str, int]:
    """``container:8,heartbeat:2000`` → slots per queue; a queue without a number gets a default."""
    slots: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition(":")
        if not _QUEUE.match(name):
            raise InvalidInput(f"{name!r} is no name of a queue.", hint="Write -Q container:8,heartbeat:2000")
        if number and not (number.isascii() and number.isdigit() and 0 < int(number) <= MAX_SLOTS):
            raise InvalidInput(f"{number!r} is no number of worker slots.", hint="Write -Q container:8,heartbeat:2000")
        slots[name] = int(number) if number else DEFAULT_SLOTS.get(name, 16)
    if not slots:
        raise InvalidInput("A worker needs at least one queue.", hint="Write -Q container:8,heartbeat:2000")
    return slots


class Slots:
    """The free slots of a worker, shared by the threads that claim and the one that records."""

    def __init__(self, capacity: Mapping[str, int]) -> None:
        self.capacity = dict(capacity)
        self._free = dict(capacity)
        self._changed = threading.Condition()
        self._closed = False
        self._resting = set[str]()

    def take(self, queue: str, wanted: int, wait: float = 0.0) -> int:
        """Take up to ``wanted`` free slots, waiting up to ``wait`` seconds for the first; 0: none, or closed."""
        ends = time.monotonic() + wait
        with self._changed:
            while not self._closed and self.free(queue) <= 0:
                left = ends - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return 0
            taken = 0 if self._closed else min(self.free(queue), wanted)
            if taken:
                self._free[queue] -= taken
            return taken

    def wait_for_room(self, queue: str, seconds: float) -> None:
        """Until a slot is free, or none will be taken any more, or so many seconds have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.free(queue) > 0, seconds)

    def give(self, queue: str, count: int) -> None:
        """Give slots back."""
        if count:
            with self._changed:
                self._free[queue] += count
                self._changed.notify_all()

    def free(self, queue: str) -> int:
        """How many slots can be taken at the moment."""
        return 0 if queue in self._resting else self._free.get(queue, 0)

    def rest(self, queue: str) -> None:
        """No slot of this queue is taken until ``resume``: what its jobs need here is away."""
        with self._changed:
            self._resting.add(queue)

    def resume(self, queue: str) -> None:
        """The queue's slots can be taken again."""
        with self._changed:
            self._resting.discard(queue)
            self._changed.notify_all()

    def close(self) -> None:
        """No slot is taken any more; who waits for one gets none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
