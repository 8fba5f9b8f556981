"""What ended is added up for analytics, before its retention ends."""

from __future__ import annotations

from jobq.store.database import Database
from jobq.store.rollup import roll_up

_EVERY = 5.0
_BATCH = 20_000


class Roller:
    """One scheduler at a time; any of them goes on where the last one stopped."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tick(self) -> float:
        """One batch; returns the seconds until the next."""
        counted = self._database.run(lambda conn: roll_up(conn, _BATCH))
        return 0.05 if counted is not None and counted >= _BATCH else _EVERY
