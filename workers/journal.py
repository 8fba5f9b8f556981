"""What running jobs have to tell before they end: log lines, checkpoints, the start of their execution.

Collected in memory and written a few times a second, for all jobs in one transaction. It is written only for attempts
that still are this worker's: whoever takes one over goes on exactly behind what is stored.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from jobq.store import artifacts
from jobq.store.claim import Claimed
from jobq.store.database import Connection, Database
from jobq.store.held import Held, lock_held, mark_executing, save_checkpoints
from jobq.store.logs import append, drop, next_line, size
from workers.joblog import Flushed, JobLog
from workers.redaction import Redaction

_EVERY = 0.25


@dataclass(frozen=True, slots=True)
class _Part:
    """Lines of one attempt, and the checkpoint that stands behind exactly these: stored together or not at all."""

    flushed: Flushed
    note: dict[str, Any] | None


class Journal:
    """The logs and notes of this worker's running jobs. Jobs that log nothing cost nothing."""

    def __init__(self, database: Database, max_log_bytes: int) -> None:
        self._database = database
        self._max = max_log_bytes
        self._lock = threading.RLock()
        self._logs: dict[Held, JobLog] = {}
        self._unwritten: dict[Held, _Part] = {}
        self._artifacts: dict[Held, dict[str, bytes]] = {}
        self._executing: dict[Held, str | None] = {}
        self._checkpoints: dict[Held, dict[str, Any]] = {}

    def open(self, held: Held, job: Claimed, *, resumed: bool = False) -> Callable[[str | bytes, str], None]:
        """The log of an attempt, as a function that takes output.

        ``resumed``: it goes on behind the lines of its former owner. Raises Unavailable then, here and not later.
        """
        if resumed:
            with self._lock:
                self._logs[held] = self._begin_behind(job)

        def write(output: str | bytes, stream: str) -> None:
            with self._lock:
                self._log_of(held, job).write(output, stream)

        return write

    def at_once(self) -> AbstractContextManager[Any]:
        """What is logged and kept inside is stored together: a position, and the lines that it stands behind."""
        return self._lock

    def _log_of(self, held: Held, job: Claimed) -> JobLog:
        log = self._logs.get(held)
        if log is None:
            log = self._logs[held] = self._begin(job)
        return log

    def _begin(self, job: Claimed) -> JobLog:
        if job.attempt == 1 and job.checkpoint is None:
            return JobLog(job.id, job.attempt, self._max)
        return self._begin_behind(job)

    def _begin_behind(self, job: Claimed) -> JobLog:
        with self._database.read() as conn:
            left = max(self._max - size(conn, job.id), self._max // 8)
            return JobLog(job.id, job.attempt, left, next_line(conn, job.id))

    def redact(self, held: Held, job: Claimed, redaction: Redaction) -> None:
        """From now on secrets appear as asterisks in the job's log."""
        with self._lock:
            self._log_of(held, job).redaction = redaction

    def artifact(self, held: Held, name: str, content: bytes) -> None:
        """Keep a file with the job: written together with the job's outcome."""
        with self._lock:
            self._artifacts.setdefault(held, {})[name] = content

    def executing(self, held: Held, host: str | None) -> None:
        """The job's preparation is over; ``host``: its work lives there."""
        with self._lock:
            self._executing[held] = host

    def checkpoint(self, held: Held, document: dict[str, Any]) -> None:
        """Keep this with the job, for whoever recovers it."""
        with self._lock:
            self._checkpoints[held] = document

    def discard(self, held: Held) -> None:
        """The attempt is somebody else's: what was not written is his to tell, from the last checkpoint on."""
        with self._lock:
            for notes in (self._logs, self._unwritten, self._checkpoints, self._artifacts):
                notes.pop(held, None)

    def tick(self) -> float:
        """Write what has come; returns the seconds until the next time."""
        with self._lock:
            parts = self._gather({*self._logs, *self._checkpoints, *self._unwritten})
            executing, self._executing = self._executing, {}
        if not (parts or executing):
            return _EVERY
        done: set[Held] = set()
        try:
            done = self._database.run(lambda conn: _write_notes(conn, parts, executing))
        finally:
            with self._lock:
                self._executing.update((held, host) for held, host in executing.items() if held not in done)
        self._written({held: part for held, part in parts.items() if held in done})
        return _EVERY

    def _gather(self, wanted: Iterable[Held]) -> dict[Held, _Part]:
        """What is to be written now, kept until it is; what comes meanwhile waits behind it."""
        for held in wanted:
            if held not in self._unwritten:
                log = self._logs.get(held)
                part = _Part(log.flush() if log else Flushed([], []), self._checkpoints.pop(held, None))
                if part.flushed.chunks or part.note is not None:
                    self._unwritten[held] = part
        return {held: self._unwritten[held] for held in wanted if held in self._unwritten}

    def _gather_rest(self, wanted: Iterable[Held]) -> dict[Held, Flushed]:
        """All that is left of these logs; their positions matter no more."""
        rest = {}
        for held in wanted:
            part, log = self._unwritten.pop(held, _Part(Flushed([], []), None)), self._logs.get(held)
            last = log.close() if log else Flushed([], [])
            flushed = Flushed(part.flushed.chunks + last.chunks, part.flushed.drop + last.drop)
            if flushed.chunks:
                rest[held] = flushed
                self._unwritten[held] = _Part(flushed, None)  # for the next try, if the transaction fails
        return rest

    def _written(self, parts: dict[Held, _Part]) -> None:
        with self._lock:
            for held, part in parts.items():
                if self._unwritten.get(held) is part:
                    del self._unwritten[held]

    def write(self, conn: Connection, held: Sequence[Held]) -> Callable[[], None]:
        """Write the rest of these jobs' logs, and their artifacts, in the transaction that records their outcomes."""
        if not self._logs and not self._artifacts and not self._unwritten:
            return _nothing
        with self._lock:
            rest = self._gather_rest(held)
            files = {one: self._artifacts[one] for one in held if one in self._artifacts}
        _store(conn, rest)
        for (job_id, attempt, _), contents in files.items():
            artifacts.put(conn, job_id, attempt, contents)

        def forget() -> None:
            for one in held:
                self.discard(one)

        return forget


def _write_notes(conn: Connection, parts: dict[Held, _Part], executing: dict[Held, str | None]) -> set[Held]:
    """Write what is told of attempts that are ours; returns those that are done with, written or not ours any more."""
    ours, others = lock_held(conn, {*parts, *executing})
    _store(conn, {held: part.flushed for held, part in parts.items() if held in ours})
    notes = {held.job_id: part.note for held, part in parts.items() if held in ours and part.note is not None}
    save_checkpoints(conn, notes)
    begun = defaultdict(list)
    for held in ours & executing.keys():
        begun[held.worker_id, executing[held]].append((held.job_id, held.attempt))
    for (owner, host), attempts in begun.items():
        mark_executing(conn, owner, attempts, host)
    return ours | others


def _store(conn: Connection, flushed: dict[Held, Flushed]) -> None:
    for held, part in flushed.items():
        if part.drop:
            drop(conn, held.job_id, part.drop)
    append(conn, [chunk for part in flushed.values() for chunk in part.chunks])


def _nothing() -> None:
    """No job of the batch has a log."""
