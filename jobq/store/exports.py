"""What became of a fan-out, for people to look at: counts, and the report on each entity at each target."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.models import Export, FanOut, Problem, TargetSummary
from jobq.states import Reason, Status
from jobq.store import fanin
from jobq.store.tables import attempts, fanouts, jobs, sync_problems

_READ = ("read", "filtered", "new", "updated", "existing", "invalid")


def fanout(conn: Connection, parent_id: UUID) -> FanOut:
    """The counts of a SYNC; ``pending`` is what remains, so that the counts always add up to ``total``."""
    row = conn.execute(sa.select(fanouts).where(fanouts.c.job_id == parent_id)).first()
    totals = fanin.counts(conn, parent_id)
    queued, running = fanin.in_flight(conn, [parent_id]).get(parent_id, (0, 0))
    live = sum(each.live for each in totals)
    running = min(running, live)
    queued = min(queued, live - running)
    return FanOut(
        total=sum(each.total for each in totals), pending=live - queued - running, queued=queued, running=running,
        completed=sum(each.completed for each in totals), skipped=sum(each.skipped for each in totals),
        failed=sum(each.failed for each in totals), canceled=sum(each.canceled for each in totals),
        reading=row is not None and row.reading,
        **{name: 0 if row is None else int(row._mapping[name]) for name in _READ},  # noqa: SLF001
        targets={
            each.target: TargetSummary(each.success, each.failed, each.existing, each.updated, each.skipped, each.canceled)
            for each in totals
        },
    )  # fmt: skip


def list_page(conn: Connection, parent_id: UUID, *, behind: UUID | None, limit: int) -> list[Export]:
    """The reports of the children behind one of them, in the order of their ids."""
    query = _reports().where(jobs.c.parent_id == parent_id).order_by(jobs.c.id).limit(limit)
    rows = conn.execute(query if behind is None else query.where(jobs.c.id > behind))
    return [_export(row) for row in rows]


def find(conn: Connection, job_id: UUID) -> Export | None:
    """The report of one child; None: it is none, or is gone."""
    row = conn.execute(_reports().where(jobs.c.id == job_id)).first()
    return None if row is None else _export(row)


def _reports() -> Any:
    """Children, each with what its latest attempt left."""
    latest = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt)
    return (
        sa.select(
            jobs.c.id, jobs.c.entity_key, jobs.c.target, jobs.c.status, jobs.c.reason, jobs.c.message,
            jobs.c.error_class, attempts.c.result,
        )
        .outerjoin(attempts, latest)
        .where(jobs.c.entity_key.is_not(None))
    )  # fmt: skip


def _export(row: Any) -> Export:
    result = row.result if isinstance(row.result, dict) else {}
    return Export(
        row.id, row.entity_key, row.target, _word(row, result), result.get("external_id"), row.error_class, row.message,
        Status(row.status), Reason(row.reason), "report" in result,
    )  # fmt: skip


def _word(row: Any, result: dict[str, Any]) -> str | None:
    """What the export came to; None: it has not ended."""
    match row.status:
        case Status.COMPLETED:
            return "skipped" if row.reason == Reason.SKIPPED else str(result.get("report", "success"))
        case Status.FAILED:
            return "fail"
        case Status.CANCELED:
            return "canceled"
    return None


def problems(conn: Connection, job_id: UUID, *, behind: int, limit: int) -> list[Problem]:
    """Entities that failed before they had children, in the order in which they were found."""
    query = (
        sa.select(sync_problems)
        .where(sync_problems.c.job_id == job_id, sync_problems.c.number > behind)
        .order_by(sync_problems.c.number)
        .limit(limit)
    )
    return [Problem(row.number, row.entity_key, row.error_class, row.message) for row in conn.execute(query)]


def newest_fanouts(conn: Connection, limit: int) -> list[UUID]:
    """The SYNCs that began last, the newest first."""
    return list(conn.scalars(sa.select(fanouts.c.job_id).order_by(fanouts.c.job_id.desc()).limit(limit)))
