"""What ended in a range of time: whole hours and days from the rollups, what is not rolled up yet from the jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

from jobq.errors import Unavailable
from jobq.store.rollup import ALL, DAY, HOUR, NONE, Sums, cells, instant_of
from jobq.store.sql import id_list, is_one_of
from jobq.store.tables import jobs, rolled, rollups

_TRIES = 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """Jobs of a tenant that ended in [since, until): whole hours, unless ``width`` is shorter."""

    tenant: str
    since: datetime
    until: datetime
    kinds: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()
    workflow_id: UUID | None = None
    each_workflow: bool = False
    """Tell those of one workflow from those of another: of the ``limit`` that have the most."""
    by_hour: bool = False
    """Whole days are not enough."""
    limit: int = 20


Place = Callable[[datetime, str, str, UUID | None], Any]
"""Where jobs belong in the answer: by the start of the period in which they ended, kind, queue and workflow."""


def read(conn: Connection, wanted: Wanted, place: Place) -> dict[Any, Sums]:
    """The sums by their places.

    Each job counts once, although jobs are rolled up meanwhile: the answer is one of a moment in which none was.
    """
    for _ in range(_TRIES):
        until = conn.scalar(sa.select(rolled.c.until))
        found: dict[Any, Sums] = {}
        for cell in _live(conn, wanted, HOUR, since=until):
            where = place(instant_of(cell.start), cell.kind, cell.queue, cell.workflow_id)
            found.setdefault(where, Sums()).add_cell(cell)
        for row in _rolled(conn, wanted):
            workflow_id = None if row.workflow_id in {ALL, NONE} else row.workflow_id
            found.setdefault(place(row.start, row.kind, row.queue, workflow_id), Sums()).add_row(row)
        if conn.scalar(sa.select(rolled.c.until)) == until:
            return found
    raise Unavailable("Jobs are being added up so fast that none can be counted.", code="database_unavailable")


def read_jobs(conn: Connection, wanted: Wanted, width: int, place: Place) -> dict[Any, Sums]:
    """As ``read``, in periods of so many seconds, from the jobs that are still kept."""
    found: dict[Any, Sums] = {}
    for cell in _live(conn, wanted, width):
        where = place(instant_of(cell.start), cell.kind, cell.queue, cell.workflow_id)
        found.setdefault(where, Sums()).add_cell(cell)
    return found


def _live(conn: Connection, wanted: Wanted, width: int, since: datetime | None = None) -> Iterator[Any]:
    conditions: list[ColumnElement[bool]] = [jobs.c.finished_at >= wanted.since, jobs.c.finished_at < wanted.until]
    if since is not None:
        conditions.append(jobs.c.finished_at > since)
    if wanted.workflow_id is not None:
        conditions.append(jobs.c.workflow_id == wanted.workflow_id)
    # The tenant last and as an expression: finished jobs are found by when they ended, not by whose they are.
    yield from conn.execute(cells(width, *conditions, *_of(jobs, wanted), jobs.c.tenant.concat("") == wanted.tenant))


def _of(table: sa.Table, wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    if wanted.kinds:
        yield table.c.kind.in_(sorted(wanted.kinds))
    if wanted.queues:
        yield table.c.queue.in_(sorted(wanted.queues))


def _rolled(conn: Connection, wanted: Wanted) -> Iterator[Any]:
    which = _busiest(conn, wanted) if wanted.each_workflow else [wanted.workflow_id or ALL]
    dialect = conn.dialect.name
    for segment in _segments(wanted):
        rows = sa.select(*_READ).where(*_in(wanted, *segment), is_one_of(dialect, rollups.c.workflow_id, "which"))
        yield from conn.execute(rows, {"which": id_list(dialect, which)})


_READ = [column for column in rollups.c if column.name not in {"tenant", "width"}]


def _in(wanted: Wanted, width: int, since: datetime, until: datetime) -> list[ColumnElement[bool]]:
    period = [rollups.c.width == width, rollups.c.start >= since, rollups.c.start < until]
    return [rollups.c.tenant == wanted.tenant, *period, *_of(rollups, wanted)]


def _busiest(conn: Connection, wanted: Wanted) -> list[UUID]:
    """The workflows with the most jobs, among them ``NONE``."""
    one = [] if wanted.workflow_id is None else [rollups.c.workflow_id == wanted.workflow_id]
    parts = sa.union_all(
        *(
            sa.select(rollups.c.workflow_id, rollups.c.jobs).where(*_in(wanted, *segment), *one)
            for segment in _segments(wanted)
        )
    ).subquery()
    count = sa.func.sum(parts.c.jobs)
    order = (
        sa.select(parts.c.workflow_id)
        .where(parts.c.workflow_id != ALL)
        .group_by(parts.c.workflow_id)
        .order_by(count.desc(), parts.c.workflow_id)
    )
    return list(conn.scalars(order.limit(wanted.limit)))


def _segments(wanted: Wanted) -> list[tuple[int, datetime, datetime]]:
    """The range in whole days, and in hours where there is none: (width, since, until) each."""
    first, last = _midnight(wanted.since + timedelta(seconds=DAY - 1)), _midnight(wanted.until)
    if wanted.by_hour or first >= last:
        return [(HOUR, wanted.since, wanted.until)]
    parts = [(HOUR, wanted.since, first), (DAY, first, last), (HOUR, last, wanted.until)]
    return [(width, since, until) for width, since, until in parts if since < until]


def _midnight(instant: datetime) -> datetime:
    return instant.replace(hour=0, minute=0, second=0, microsecond=0)
