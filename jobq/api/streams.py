"""Logs that are watched while they are written: server-sent events, one look at the database for all watchers.

A stream opens before its job runs, replays what is stored, follows, and ends with the job's final state. Each line's
number is its event's id, so that who comes back with ``Last-Event-ID`` misses nothing and gets nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from typing import Any
from uuid import UUID

from jobq.client import JobQ
from jobq.models import Job, LogLine
from jobq.store.logs import Position
from jobq.tail import Tail

_LOOK_EVERY = 0.25
KEEP_ALIVE = 15.0
"""Seconds of silence after which a comment tells proxies that the stream lives."""


class Watching:
    """Knows of each watched job how far its log goes: one statement a look, however many watch."""

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self._watched: Counter[UUID] = Counter()
        self._known: dict[UUID, Position | None] = {}
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @contextlib.contextmanager
    def watch(self, job_id: UUID) -> Iterator[None]:
        """While this lasts, the job is looked at."""
        self._watched[job_id] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._watched[job_id] -= 1
            if not self._watched[job_id]:
                del self._watched[job_id]
                self._known.pop(job_id, None)

    async def _look(self) -> None:
        while self._watched and not self._stopped:
            ids = list(self._watched)
            try:
                found = await asyncio.to_thread(self.tail.look, ids)
            except Exception:  # noqa: BLE001 - a database that is away: watchers wait, as the log says elsewhere
                await asyncio.sleep(1.0)
                continue
            async with self._changed:
                changed = {job_id: found.get(job_id) for job_id in ids}
                if any(self._known.get(job_id, ...) != position for job_id, position in changed.items()):
                    self._known.update(changed)
                    self._changed.notify_all()
            await asyncio.sleep(_LOOK_EVERY)

    async def beyond(self, job_id: UUID, line: int, seconds: float) -> Position | None:
        """Where the log goes, once that is behind ``line`` or the job has ended, or after so many seconds.

        Raises LookupError for a job that is gone.
        """

        def is_news() -> bool:
            position = self._known.get(job_id, ...)
            return position is None or (position is not ... and (position.last_line > line or position.ended))

        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._stopped or is_news()), seconds)
        position = self._known.get(job_id, ...)
        if position is None:
            raise LookupError(job_id)
        return None if position is ... or not is_news() else position

    async def stop(self) -> None:
        """End all streams."""
        self._stopped = True
        async with self._changed:
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        """True once the server ends."""
        return self._stopped


async def log_events(
    watching: Watching, jobq: JobQ, job_id: UUID, after: int, stream: str | None
) -> AsyncIterator[str]:
    """The log of a job as server-sent events: ``log`` for each line, ``end`` with the job at last."""
    with watching.watch(job_id):
        yield _event("open", {"job_id": str(job_id)})
        while not watching.stopped:
            try:
                position = await watching.beyond(job_id, after, KEEP_ALIVE)
            except LookupError:
                return  # pruned while it was watched
            if position is None:
                yield ": keep-alive\n\n"
                continue
            while position.last_line > after:
                lines = await asyncio.to_thread(watching.tail.read, job_id, after, position)
                if not lines:
                    break
                after = lines[-1].number
                text = "".join(_line(line) for line in lines if stream is None or line.stream == stream)
                if text:
                    yield text
            if position.ended:
                yield _event("end", _told(await asyncio.to_thread(jobq.get, job_id)), after)
                return


def _line(line: LogLine) -> str:
    told = {"number": line.number, "attempt": line.attempt, "at": line.at.isoformat(), "stream": line.stream, "text": line.text}  # fmt: skip
    return _event("log", told, line.number)


def _told(job: Job) -> dict[str, Any]:
    wanted = ("id", "status", "reason", "attempt", "finished_at", "message", "error_class")
    return {name: value for name, value in asdict(job).items() if name in wanted}


def _event(name: str, data: dict[str, Any], number: int | None = None) -> str:
    place = f"id: {number}\n" if number is not None else ""
    return f"event: {name}\n{place}data: {json.dumps(data, default=str, ensure_ascii=False)}\n\n"
