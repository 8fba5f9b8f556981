"""The end of a job's log, for those who follow it: Python, the command line, and streams over HTTP alike.

Readers keep their own position, and fetch what is behind it when they are ready for it: a slow one slows nobody, least
of all the job. What many of them ask for at the same time is read once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from uuid import UUID

from jobq.models import LogLine
from jobq.store import logs
from jobq.store.database import Database
from jobq.store.logs import Position

PAGE = 1000
_PAGES_KEPT = 64
_KEPT_FOR = 1.0
"""Seconds. A page that was not full is another one soon, so it is known by where the log ended when it was read."""


class Tail:
    """Looks at the logs of an installation. Safe from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pages: OrderedDict[tuple[UUID, int, int], tuple[float, list[LogLine]]] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, ids: Iterable[UUID]) -> dict[UUID, Position]:
        """How far these logs go, in one statement; jobs that are gone are missing."""
        with self._database.read() as conn:
            return logs.positions(conn, ids)

    def read(self, job_id: UUID, after: int, until: Position) -> list[LogLine]:
        """A page of lines behind ``after``, at least up to where the log went when it was looked at."""
        place = (job_id, after, until.last_line)
        with self._lock:
            at, page = self._pages.get(place, (0.0, []))
        if at + _KEPT_FOR > time.monotonic():
            return page
        with self._database.read() as conn:
            page = logs.read(conn, job_id, after=after, limit=PAGE)
        with self._lock:
            self._pages[place] = (time.monotonic(), page)
            while len(self._pages) > _PAGES_KEPT:
                self._pages.popitem(last=False)
        return page


def follow_log(tail: Tail, job_id: UUID, after: int, poll: float | None) -> Iterator[LogLine]:
    """The lines behind ``after``; with ``poll`` (seconds) on and on until the job has ended, without gap or repeat."""
    while True:
        position = tail.look([job_id]).get(job_id)
        while position is not None and position.last_line > after:
            lines = tail.read(job_id, after, position)
            if not lines:
                break  # what was there gave way to newer lines
            yield from lines
            after = lines[-1].number
        if poll is None or position is None or position.ended:
            return
        time.sleep(poll)
