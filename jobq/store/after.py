"""Jobs that wait for jobs: PENDING·blocked until the earlier ones (upstreams) have ended as they should.

A row of ``jobq_after`` is one job that a blocked job still waits for. Whoever ends the upstream deletes it, in the
same transaction. Both sides lock: a job that comes to wait locks its upstreams' rows (so that an upstream either has
ended, and is seen, or ends later, and sees the row), and an end locks the blocked jobs (so that of two upstreams that
end at once, the later one sees that it is the last).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.states import Reason, Status
from jobq.store.sql import id_list, incoming, insert, is_one_of, now, rows_json
from jobq.store.tables import after, jobs


@dataclass(frozen=True, slots=True)
class Upstream:
    """How an upstream ended, or that it has not. A duplicate stands for the job that it duplicates."""

    id: UUID
    status: Status
    reason: Reason

    @property
    def ended(self) -> bool:
        return self.status in {Status.COMPLETED, Status.FAILED, Status.CANCELED}


@dataclass(slots=True)
class Freed:
    """Blocked jobs that an end decided about."""

    to_cancel: list[Row[Any]] = field(default_factory=list)
    to_skip: list[Row[Any]] = field(default_factory=list)
    ready: int = 0
    """How many are ready now: already written."""


def lock_upstreams(conn: Connection, tenant: str, ids: Iterable[UUID]) -> dict[UUID, Upstream]:
    """The jobs that somebody wants to wait for, as they will stay until this transaction ends.

    By the id that was asked for; a duplicate is followed to the job it stands for. Ids of no job of the tenant are
    missing.
    """
    found: dict[UUID, Upstream] = {}
    asked = {job_id: job_id for job_id in ids}
    while asked:
        dialect = conn.dialect.name
        rows = conn.execute(_lock(dialect), {"tenant": tenant, "ids": id_list(dialect, set(asked.values()))})
        by_id = {row.id: row for row in rows}
        followed: dict[UUID, UUID] = {}
        for first, job_id in asked.items():
            row = by_id.get(job_id)
            if row is not None and row.duplicate_of is not None:
                followed[first] = row.duplicate_of
            elif row is not None:
                found[first] = Upstream(row.id, Status(row.status), Reason(row.reason))
        asked = followed
    return found


@cache
def _lock(dialect: str) -> Any:
    return (
        sa.select(jobs.c.id, jobs.c.status, jobs.c.reason, jobs.c.duplicate_of)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.tenant == sa.bindparam("tenant", type_=sa.Text))
        .order_by(jobs.c.id)
        .with_for_update(read=True)
    )


def wait_for(conn: Connection, pairs: Sequence[tuple[UUID, UUID]], *, any_end: bool = False) -> None:
    """(job, upstream): the job, which is PENDING·blocked, waits for the upstream, which has not ended."""
    rows = [{"job_id": job_id, "upstream_id": upstream, "any_end": any_end} for job_id, upstream in pairs]
    if rows:
        conn.execute(_wait(conn.dialect.name), {"waits": rows_json(rows)})


@cache
def _wait(dialect: str) -> Any:
    columns: dict[str, Any] = {"upstream_id": sa.Uuid(), "job_id": sa.Uuid(), "any_end": sa.Boolean()}
    new = incoming(dialect, "waits", columns)
    rows = sa.select(*(new.c[name] for name in columns)).where(new.c.job_id.is_not(None))
    return insert(dialect, after).from_select(list(columns), rows).on_conflict_do_nothing()


def free(conn: Connection, ended: Iterable[Row[Any]]) -> Freed:
    """What the end of these jobs (rows with id, status, reason) means to those that wait for them.

    Jobs that wait for nothing else become ready here; ending the others is the caller's, in this transaction.
    """
    ends = {row.id: row for row in ended}
    dialect = conn.dialect.name
    upstreams = {"ids": id_list(dialect, ends)}
    waits = conn.execute(_waits(dialect), upstreams).all()
    if not waits:
        return Freed()
    ids = id_list(dialect, {row.job_id for row in waits})
    blocked = {row.id: row for row in conn.execute(_lock_blocked(dialect), {"ids": ids})}
    conn.execute(sa.delete(after).where(is_one_of(dialect, after.c.upstream_id, "ids")), upstreams)
    freed, go_on = Freed(), []
    of_job = defaultdict(list)
    for row in waits:
        of_job[row.job_id].append(row)
    for job_id, job in blocked.items():
        match _verdict(job, of_job[job_id], ends):
            case "cancel":
                freed.to_cancel.append(job)
            case "skip":
                freed.to_skip.append(job)
            case _:
                go_on.append(job_id)
    if go_on:
        freed.ready = len(conn.execute(_unblock(dialect), {"ids": id_list(dialect, go_on)}).all())
    return freed


def _verdict(job: Row[Any], waits: Sequence[Row[Any]], ends: Mapping[UUID, Row[Any]]) -> str:
    """An upstream that ended badly ends its dependents; a child whose upstream was filtered is filtered as well."""
    judged = [ends[row.upstream_id] for row in waits if not row.any_end]
    if any(row.status != Status.COMPLETED for row in judged):
        return "cancel"
    if job.entity_key is not None and any(row.reason == Reason.SKIPPED for row in judged):
        return "skip"
    return "go on"


@cache
def _waits(dialect: str) -> Any:
    return sa.select(after.c.upstream_id, after.c.job_id, after.c.any_end).where(
        is_one_of(dialect, after.c.upstream_id, "ids")
    )


@cache
def _lock_blocked(dialect: str) -> Any:
    return (
        sa.select(jobs.c.id, jobs.c.status, jobs.c.attempt, jobs.c.entity_key)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.finished_at.is_(None))
        .order_by(jobs.c.id)
        .with_for_update()
    )


@cache
def _unblock(dialect: str) -> Any:
    """Ready, or scheduled where its time has not come; a job that a person holds stays paused."""
    waits = sa.and_(jobs.c.scheduled_at.is_not(None), jobs.c.scheduled_at > now())
    still = sa.exists().where(after.c.job_id == jobs.c.id)
    return (
        sa.update(jobs)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.reason.concat("") == Reason.BLOCKED.value, ~still)
        .values(
            reason=sa.case((waits, Reason.SCHEDULED.value), else_=Reason.READY.value),
            due_at=sa.case((waits, jobs.c.scheduled_at)),
            ready_at=sa.case((waits, sa.null()), else_=now()),
        )
        .returning(jobs.c.id)
    )


def upstreams(conn: Connection, behind: UUID | None, limit: int) -> list[Row[Any]]:
    """Jobs that somebody waits for (id, status, reason, finished_at), in the order of their ids, behind one of them."""
    page = sa.select(after.c.upstream_id).distinct().order_by(after.c.upstream_id).limit(limit)
    if behind is not None:
        page = page.where(after.c.upstream_id > behind)
    some = page.subquery("some")
    query = (
        sa.select(some.c.upstream_id.label("id"), jobs.c.status, jobs.c.reason, jobs.c.finished_at)
        .outerjoin(jobs, jobs.c.id == some.c.upstream_id)
        .order_by(some.c.upstream_id)
    )
    return list(conn.execute(query))
