"""What a worker writes of the attempts that it holds while they run: that they execute, and how far they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.states import Reason
from jobq.store.sql import Json, id_list, incoming, is_one_of, rows_json
from jobq.store.tables import job_data, jobs


class Held(NamedTuple):
    """An attempt as one worker holds it: under the identity with which it was claimed or adopted."""

    job_id: UUID
    attempt: int
    worker_id: UUID


def mark_executing(
    conn: Connection, worker_id: UUID, running: Iterable[tuple[UUID, int]], host: str | None = None
) -> None:
    """RUNNING·preparing → executing: the preparation of these attempts is over.

    ``host``: where their work lives, for those that were claimed before that was known.
    """
    dialect = conn.dialect.name
    marks = rows_json([{"id": job_id, "attempt": attempt} for job_id, attempt in running])
    conn.execute(_executing(dialect), {"worker": worker_id, "marks": marks, "on_host": host})


@cache
def _executing(dialect: str) -> Any:
    mark = incoming(dialect, "marks", {"id": sa.Uuid(), "attempt": sa.Integer()})
    return (
        sa.update(jobs)
        .where(
            jobs.c.id == mark.c.id,
            jobs.c.attempt == mark.c.attempt,
            jobs.c.worker_id.is_not_distinct_from(sa.bindparam("worker", type_=sa.Uuid)),
            jobs.c.reason.in_([Reason.PREPARING.value, Reason.EXECUTING.value]),
        )
        .values(
            reason=Reason.EXECUTING.value, host=sa.func.coalesce(jobs.c.host, sa.bindparam("on_host", type_=sa.Text))
        )
    )


def lock_held(conn: Connection, held: Collection[Held]) -> tuple[set[Held], set[Held]]:
    """Which of these attempts still are those workers', and which are not (any more).

    The first are locked: nobody takes them over until the transaction ends. In neither are those that somebody else
    has locked at the moment: it is never waited for. For what a worker writes of a job beside its outcome: one that
    was frozen, and wakes when another has taken its container over, would else write into the other's log.
    """
    dialect = conn.dialect.name
    found = _held(dialect)
    ids = {"ids": id_list(dialect, {one.job_id for one in held})}
    locked = {Held(*row) for row in conn.execute(found.with_for_update(key_share=True, skip_locked=True), ids)}
    ours, others = locked & set(held), set(held) - locked
    if others:
        others -= {Held(*row) for row in conn.execute(found, ids)}
    return ours, others


@cache
def _held(dialect: str) -> Any:
    return (
        sa.select(jobs.c.id, jobs.c.attempt, jobs.c.worker_id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.worker_id.is_not(None))
        .order_by(jobs.c.id)
    )


def save_checkpoints(conn: Connection, checkpoints: Mapping[UUID, dict[str, Any]]) -> None:
    """Keep a small document with each of these jobs, for whoever recovers the attempt; see ``lock_held``."""
    rows = [{"job_id": job_id, "checkpoint": document} for job_id, document in sorted(checkpoints.items())]
    if rows:
        conn.execute(_save(conn.dialect.name), {"notes": rows_json(rows)})


@cache
def _save(dialect: str) -> Any:
    note = incoming(dialect, "notes", {"job_id": sa.Uuid(), "checkpoint": Json})
    return sa.update(job_data).where(job_data.c.job_id == note.c.job_id).values(checkpoint=note.c.checkpoint)
