"""The logs of jobs: chunks of numbered lines.

A line's number counts from 1 within the job, over all attempts, and never changes: it is the position from which
a reader goes on. The head of a log is kept for good; in its tail older chunks give way to newer ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.models import LogLine
from jobq.store.sql import Json, id_list, incoming, insert, is_one_of, rows_json
from jobq.store.tables import job_logs, jobs

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive lines of one attempt: ``[microseconds since 1970, stream, text]`` each."""

    job_id: UUID
    attempt: int
    first_line: int
    bytes: int
    body: Sequence[tuple[int, str, str]]


_CHUNK_COLUMNS: dict[str, Any] = {
    "job_id": sa.Uuid(), "first_line": sa.BigInteger(), "attempt": sa.Integer(), "lines": sa.Integer(),
    "bytes": sa.Integer(), "body": Json,
}  # fmt: skip


@cache
def _append(dialect: str) -> Any:
    """Chunks of many jobs at once; a repeated chunk is the same chunk."""
    new = incoming(dialect, "chunks", _CHUNK_COLUMNS)
    rows = sa.select(*(new.c[name].label(name) for name in _CHUNK_COLUMNS)).where(new.c.job_id.is_not(None))
    return insert(dialect, job_logs).from_select(list(_CHUNK_COLUMNS), rows).on_conflict_do_nothing()


def append(conn: Connection, chunks: Sequence[Chunk]) -> None:
    """Store chunks; repeating a call stores nothing twice."""
    rows = [
        {"job_id": chunk.job_id, "first_line": chunk.first_line, "attempt": chunk.attempt, "lines": len(chunk.body),
         "bytes": chunk.bytes, "body": chunk.body}
        for chunk in chunks
    ]  # fmt: skip
    if rows:
        conn.execute(_append(conn.dialect.name), {"chunks": rows_json(rows)})


def drop(conn: Connection, job_id: UUID, first_lines: Sequence[int]) -> None:
    """Remove chunks of the tail that newer ones displaced."""
    conn.execute(sa.delete(job_logs).where(job_logs.c.job_id == job_id, job_logs.c.first_line.in_(list(first_lines))))


def next_line(conn: Connection, job_id: UUID) -> int:
    """The number of the line that comes next in this job's log."""
    last = conn.scalar(
        sa.select(job_logs.c.first_line + job_logs.c.lines)
        .where(job_logs.c.job_id == job_id)
        .order_by(job_logs.c.first_line.desc())
        .limit(1)
    )
    return int(last or 1)


def size(conn: Connection, job_id: UUID) -> int:
    """Stored bytes of text."""
    return int(conn.scalar(sa.select(sa.func.sum(job_logs.c.bytes)).where(job_logs.c.job_id == job_id)) or 0)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a job's log goes, and whether the job has ended: in one look, so that an end is seen with all its lines."""

    last_line: int
    ended: bool


def positions(conn: Connection, ids: Iterable[UUID]) -> dict[UUID, Position]:
    """Of many jobs at once; those that do not exist (any more) are missing."""
    dialect = conn.dialect.name
    rows = conn.execute(_positions(dialect), {"ids": id_list(dialect, ids)})
    return {row.id: Position(int(row.last_line or 0), row.finished_at is not None) for row in rows}


@cache
def _positions(dialect: str) -> Any:
    last = (
        sa.select(job_logs.c.first_line + job_logs.c.lines - 1)
        .where(job_logs.c.job_id == jobs.c.id)
        .order_by(job_logs.c.first_line.desc())
        .limit(1)
        .scalar_subquery()
        .label("last_line")
    )
    return sa.select(jobs.c.id, jobs.c.finished_at, last).where(is_one_of(dialect, jobs.c.id, "ids"))


def read(conn: Connection, job_id: UUID, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
    """Up to ``limit`` lines behind line ``after``, in order."""
    chunks = conn.execute(
        sa.select(job_logs)
        .where(job_logs.c.job_id == job_id, job_logs.c.first_line + job_logs.c.lines > after + 1)
        .order_by(job_logs.c.first_line)
        .limit(limit)
    )
    lines: list[LogLine] = []
    for chunk in chunks:
        for number, (micros, stream, text) in enumerate(chunk.body, chunk.first_line):
            if number > after and len(lines) < limit:
                lines.append(LogLine(number, chunk.attempt, _EPOCH + timedelta(microseconds=micros), stream, text))
        if len(lines) >= limit:
            break
    return lines
