"""Hints that nobody acted on are sent again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from uuid import UUID

from jobq.broker import Broker
from jobq.store.database import Connection, Database
from jobq.store.promote import FIRST_RESEND, Unclaimed, put_off, unclaimed, worker_slots

_EVERY = 1.0
_LONGEST = 60.0
_PATIENCE = 15.0
"""Seconds that a hint gets while the broker still holds messages of its queue: it may be among them."""


class Resender:
    """Looks into QUEUED jobs whose hint may be lost: at once when the broker's queue is empty, else with patience."""

    def __init__(self, database: Database, broker: Broker, publish: Callable[[str, list[UUID]], None]) -> None:
        self._database = database
        self._broker = broker
        self._publish = publish

    def tick(self) -> float:
        """One round; returns the seconds until the next."""
        with self._database.read() as conn:
            queues = {row.queue for row in unclaimed(conn, 200)}
        if not queues:
            return _EVERY
        depths = {queue: self._broker.depth(queue) for queue in sorted(queues)}  # no transaction is open meanwhile
        sent = self._database.run(lambda conn: self._settle(conn, depths))
        for queue, ids in sent.items():
            self._publish(queue, ids)
        return _EVERY

    def _settle(self, conn: Connection, depths: dict[str, int]) -> dict[str, list[UUID]]:
        slots = worker_slots(conn)
        sent: defaultdict[str, list[UUID]] = defaultdict(list)
        later: defaultdict[tuple[bool, float], list[UUID]] = defaultdict(list)
        for job in unclaimed(conn):
            again = is_due(job, depths.get(job.queue, 0), slots.get(job.queue, 0))
            later[again, next_look(job, again=again)].append(job.id)
            if again:
                sent[job.queue].append(job.id)
        for (again, seconds), ids in later.items():
            put_off(conn, ids, seconds, sent=again)
        return sent


def is_due(job: Unclaimed, depth: int, slots: int) -> bool:
    """Send again? Not where the broker holds more messages than there are worker slots: they are only late."""
    if depth == 0:
        return slots > 0
    return depth <= slots and job.waited >= _PATIENCE * 2 ** min(job.sends, 4)


def next_look(job: Unclaimed, *, again: bool) -> float:
    """Seconds until this job is looked into again: the pauses double up to a minute."""
    return min(FIRST_RESEND * 2.0 ** (job.sends + again), _LONGEST)
