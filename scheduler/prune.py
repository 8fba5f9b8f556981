"""Finished jobs are deleted when their retention ends, and their logs before that if they are kept shorter."""

from __future__ import annotations

import time
from datetime import timedelta

from jobq.store.database import Database
from jobq.store.prune import Kept, Position, prune, prune_logs
from jobq.store.webhooks import prune as prune_webhooks

_EVERY = 60.0
_PAUSE = 0.2
_BATCH = 1000
_SHARE = 20
"""A round over many jobs that are kept for long takes a while: the pause after it is so many times as long."""


class Pruner:
    """Deletes in batches of a thousand, with pauses, so that nobody waits for it."""

    def __init__(self, database: Database, kept: Kept, of_webhooks: timedelta) -> None:
        self._database = database
        self._kept = kept
        self._of_webhooks = of_webhooks.total_seconds()
        self._behind: Position | None = None
        self._took = 0.0
        self._logs_behind: Position | None = None

    def tick(self) -> float:
        """One batch; returns the seconds until the next."""
        began = time.monotonic()
        done = self._database.run(lambda conn: prune(conn, self._kept, _BATCH, self._behind))
        self._behind = done.behind
        more_logs = self._prune_logs()
        told = self._database.run(lambda conn: prune_webhooks(conn, self._of_webhooks, _BATCH))
        self._took += time.monotonic() - began
        if done.behind is not None or more_logs or told == _BATCH:
            return _PAUSE
        took, self._took = self._took, 0.0
        return max(_EVERY, took * _SHARE)

    def _prune_logs(self) -> bool:
        """True: there are more. Jobs behind which it is have no logs any more, and get none: they have ended."""
        seconds, before = self._kept.logs, self._logs_behind
        if seconds is None:
            return False
        self._logs_behind = self._database.run(lambda conn: prune_logs(conn, seconds, before))
        return self._logs_behind != before
