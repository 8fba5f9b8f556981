"""What running jobs have to tell before they end: log lines, checkpoints, the start of their execution.

Collected in memory and written a few times a second, for all jobs in one transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from jobq.store import artifacts
from jobq.store.claim import Claimed, mark_executing, save_checkpoints
from jobq.store.database import Connection, Database
from jobq.store.logs import append, drop, next_line, size
from workers.joblog import Flushed, JobLog
from workers.redaction import Redaction

_EVERY = 0.25


class Journal:
    """The logs and notes of this worker's running jobs. Jobs that log nothing cost nothing."""

    def __init__(self, database: Database, max_log_bytes: int) -> None:
        self._database = database
        self._max = max_log_bytes
        self._lock = threading.Lock()
        self._logs: dict[UUID, JobLog] = {}
        self._unwritten: dict[UUID, Flushed] = {}
        self._artifacts: dict[UUID, tuple[int, dict[str, bytes]]] = {}
        self._executing: list[tuple[UUID, UUID, int]] = []
        self._checkpoints: dict[UUID, tuple[int, dict[str, Any]]] = {}

    def open(self, job: Claimed) -> Callable[[str | bytes, str], None]:
        """The log of an attempt, as a function that takes output."""

        def write(output: str | bytes, stream: str) -> None:
            with self._lock:
                log = self._logs.get(job.id)
                if log is None:
                    log = self._logs[job.id] = self._begin(job)
                log.write(output, stream)

        return write

    def _begin(self, job: Claimed) -> JobLog:
        if job.attempt == 1 and job.checkpoint is None:
            return JobLog(job.id, job.attempt, self._max)
        with self._database.read() as conn:  # a later attempt goes on behind the lines of the earlier ones
            left = max(self._max - size(conn, job.id), self._max // 8)
            return JobLog(job.id, job.attempt, left, next_line(conn, job.id))

    def redact(self, job: Claimed, redaction: Redaction) -> None:
        """From now on secrets appear as asterisks in the job's log."""
        with self._lock:
            log = self._logs.get(job.id)
            if log is None:
                log = self._logs[job.id] = self._begin(job)
            log.redaction = redaction

    def artifact(self, job: Claimed, name: str, content: bytes) -> None:
        """Keep a file with the job: written together with the job's outcome."""
        with self._lock:
            self._artifacts.setdefault(job.id, (job.attempt, {}))[1][name] = content

    def executing(self, worker_id: UUID, job: Claimed) -> None:
        """The job's preparation is over."""
        with self._lock:
            self._executing.append((worker_id, job.id, job.attempt))

    def checkpoint(self, job: Claimed, document: dict[str, Any]) -> None:
        """Keep this with the job, for whoever recovers it."""
        with self._lock:
            self._checkpoints[job.id] = (job.attempt, document)

    def discard(self, job_id: UUID) -> None:
        """The job is somebody else's: what was not written is his to tell, from the last checkpoint on."""
        with self._lock:
            for notes in (self._logs, self._unwritten, self._checkpoints, self._artifacts):
                notes.pop(job_id, None)

    def tick(self) -> float:
        """Write what has come; returns the seconds until the next time."""
        with self._lock:
            held_back = set(self._unwritten)  # a position must not be stored before the lines that it stands behind
            parts = self._gather(list(self._logs), final=False)
            executing, self._executing = self._executing, []
            checkpoints = {job: note for job, note in self._checkpoints.items() if job not in held_back}
            self._checkpoints = {job: note for job, note in self._checkpoints.items() if job in held_back}
        if not (parts or executing or checkpoints):
            return _EVERY
        try:
            self._database.run(lambda conn: _write_notes(conn, parts, executing, checkpoints))
        except BaseException:
            with self._lock:
                self._executing = executing + self._executing
                self._checkpoints = checkpoints | self._checkpoints
            raise
        self._written(parts)
        return _EVERY

    def _gather(self, ids: Sequence[UUID], *, final: bool) -> dict[UUID, Flushed]:
        """What is to be written now. Kept until it is: an unwritten part holds back all but the final one."""
        for job_id in ids:
            log, before = self._logs.get(job_id), self._unwritten.get(job_id)
            if log is None or (before is not None and not final):
                continue
            part = log.close() if final else log.flush()
            if before is not None:
                part = Flushed(before.chunks + part.chunks, before.drop + part.drop)
            if part.chunks:
                self._unwritten[job_id] = part
        return {job_id: self._unwritten[job_id] for job_id in ids if job_id in self._unwritten}

    def _written(self, parts: dict[UUID, Flushed]) -> None:
        with self._lock:
            for job_id, part in parts.items():
                if self._unwritten.get(job_id) is part:
                    del self._unwritten[job_id]

    def write(self, conn: Connection, ids: Sequence[UUID]) -> Callable[[], None]:
        """Write the rest of these jobs' logs, and their artifacts, in the transaction that records their outcomes."""
        if not self._logs and not self._artifacts:
            return _nothing
        with self._lock:
            parts = self._gather(ids, final=True)
            files = {job_id: self._artifacts[job_id] for job_id in ids if job_id in self._artifacts}
        _store(conn, parts)
        for job_id, (attempt, contents) in files.items():
            artifacts.put(conn, job_id, attempt, contents)

        def forget() -> None:
            self._written(parts)
            with self._lock:
                for job_id in ids:
                    self._logs.pop(job_id, None)
                    self._artifacts.pop(job_id, None)

        return forget


def _write_notes(
    conn: Connection,
    parts: dict[UUID, Flushed],
    executing: list[tuple[UUID, UUID, int]],
    checkpoints: dict[UUID, tuple[int, dict[str, Any]]],
) -> None:
    _store(conn, parts)
    save_checkpoints(conn, checkpoints)
    for owner in {owner for owner, _, _ in executing}:
        mark_executing(conn, owner, [(job_id, attempt) for its, job_id, attempt in executing if its == owner])


def _store(conn: Connection, flushed: dict[UUID, Flushed]) -> None:
    for job_id, part in flushed.items():
        if part.drop:
            drop(conn, job_id, part.drop)
    append(conn, [chunk for part in flushed.values() for chunk in part.chunks])


def _nothing() -> None:
    """No job of the batch has a log."""
