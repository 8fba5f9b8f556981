"""Finished jobs are deleted when their retention ends."""

from __future__ import annotations

from datetime import timedelta

from jobq.store.database import Database
from jobq.store.prune import prune
from jobq.store.webhooks import prune as prune_webhooks

_EVERY = 60.0
_BATCH = 1000


class Pruner:
    """Deletes in batches of a thousand, with pauses, so that nobody waits for it."""

    def __init__(
        self, database: Database, retention: timedelta, audit_retention: timedelta, of_webhooks: timedelta
    ) -> None:
        self._database = database
        self._retention = retention.total_seconds()
        self._events_kept = audit_retention.total_seconds()
        self._of_webhooks = of_webhooks.total_seconds()

    def tick(self) -> float:
        """One batch; returns the seconds until the next."""
        deleted = self._database.run(lambda conn: prune(conn, self._retention, _BATCH, events_kept=self._events_kept))
        told = self._database.run(lambda conn: prune_webhooks(conn, self._of_webhooks, _BATCH))
        return 0.2 if _BATCH in {deleted, told} else _EVERY
