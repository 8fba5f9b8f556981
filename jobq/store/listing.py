"""Listings of jobs: the newest first, in pages whose cost does not grow with the table.

A page walks an index in the order of the ids, a keyset and never an offset. Which index, the filter says:

- by workflow or parent, and among those by how they ended oddly, which is what people look for among many;
- by when they ended or were scheduled, if those were a few only;
- by domain;
- ended jobs by *sort*: the queue, kind, trigger and reason of a job. Few sorts exist, and the index steps from one to
  the next, so that any of these four, alone or together, leads to its own rows, merged in the order of their ids;
- live jobs by tenant, or those that a worker has or will have at once.

What the chosen index does not know (a text in the name, above all) is looked for along that walk, for ``_PATIENCE``
at most: then the page holds what was found, perhaps nothing, and says where the next one goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement, Select

from jobq.models import Job, JobFilter, Total
from jobq.states import REASONS, TERMINAL, Reason, Status
from jobq.store.jobs import SHOWN, as_job
from jobq.store.sql import estimated_rows
from jobq.store.tables import fanouts, jobs

_STEP = 5_000
"""Rows of one look along the walk: some ten milliseconds."""
_PATIENCE = 0.2
"""Seconds after which a page ends with what it has."""
_COUNTED = 10_000
"""Totals are exact up to here."""
_COUNTING = 0.5
"""Seconds after which counting ends."""
_MOST_SORTS = 150
_SKEW = timedelta(minutes=5)
"""By how much the clock that made an id may differ from the database's, which wrote ``created_at``."""


@dataclass(frozen=True, slots=True)
class Found:
    """A page. ``behind``: where the next one goes on; None: there is no more."""

    jobs: list[Job]
    behind: UUID | None


def list_page(
    conn: Connection, tenant: str | None, only: JobFilter, *, before: UUID | None, limit: int,
    patience: float = _PATIENCE,
) -> Found:  # fmt: skip
    """At most ``limit`` jobs, all older than the job ``before``; fewer if looking for them takes too long.

    No job is shown twice or left out along the pages.
    """
    walk, ends = _Walk(conn, tenant, only), time.monotonic() + patience
    while True:
        page = _page(walk, before, limit, ends)
        if walk.sorts is None or (again := _Walk(conn, tenant, only)).sorts == walk.sorts:
            return page
        walk = again  # a job ended meanwhile as none of its sort ever had: it may have been missed


def _page(walk: _Walk, before: UUID | None, limit: int, ends: float) -> Found:
    found: list[Job] = []
    while True:
        rows = walk.look(before, limit + 1 - len(found))
        found += [as_job(row) for row in rows if row.matches]
        if len(found) > limit:
            return Found(found[:limit], found[limit - 1].id)
        if not rows or rows[-1].position < _STEP:
            return Found(found, None)
        before = rows[-1].id
        if time.monotonic() > ends:
            return Found(found, before)


def count(conn: Connection, tenant: str | None, only: JobFilter, *, patience: float = _COUNTING) -> Total:
    """How many jobs there are: exact to 10,000, beyond that (or where counting takes long) the planner's estimate.

    SQLite has no such planner: there it is always exact.
    """
    walk, counted, ends = _Walk(conn, tenant, only), 0, time.monotonic() + patience
    before: UUID | None = None
    while counted <= _COUNTED and time.monotonic() < ends:
        looked_at, matching, before = walk.tally(before)
        counted += matching
        if looked_at < _STEP:
            return Total(counted, exact=True)
    everything = sa.select(jobs.c.id).where(*_conditions(tenant, only))
    estimate = estimated_rows(conn, everything)
    if not estimate:
        return Total(conn.scalar(sa.select(sa.func.count()).select_from(everything.subquery())) or 0, exact=True)
    return Total(max(estimate, counted), exact=False)


class _Walk:
    """The jobs that may match, in the order of their ids, and which of them do."""

    def __init__(self, conn: Connection, tenant: str | None, only: JobFilter) -> None:
        self._conn = conn
        self._matches = sa.and_(sa.true(), *_conditions(tenant, only))
        self._ways, self.sorts = _ways(conn, tenant, only)
        self._lowest, self._highest = _id_range(only)

    def look(self, before: UUID | None, limit: int) -> list[Any]:
        """The next ``limit`` that match, within one step; if there are fewer, the last row says how far it went."""
        if not self._ways:
            return []
        passed = self._passed(before).subquery()
        matches = self._matches.label("matches")
        last = passed.c.position == sa.literal_column(str(_STEP))
        query = sa.select(*SHOWN, matches, passed.c.position).join(passed, passed.c.id == jobs.c.id)
        query = query.where(sa.or_(self._matches, last)).order_by(passed.c.id.desc()).limit(limit)
        return list(self._conn.execute(query))

    def tally(self, before: UUID | None) -> tuple[int, int, UUID | None]:
        """How many rows the next step looks at, how many of them match, and behind which row another one goes on."""
        if not self._ways:
            return 0, 0, None
        passed = self._passed(before).cte("passed")
        last = sa.select(passed.c.id).where(passed.c.position == sa.literal_column(str(_STEP))).scalar_subquery()
        found = sa.func.coalesce(sa.func.sum(sa.case((self._matches, 1), else_=0)), 0)
        query = sa.select(sa.func.count(), found, last).select_from(passed.join(jobs, passed.c.id == jobs.c.id))
        looked_at, matching, behind = self._conn.execute(query).one()
        return looked_at, int(matching), behind

    def _passed(self, before: UUID | None) -> Select[tuple[UUID, int]]:
        bounds = [
            *([] if before is None else [jobs.c.id < before]),
            *([] if self._highest is None else [jobs.c.id < self._highest]),
            *([] if self._lowest is None else [jobs.c.id >= self._lowest]),
        ]
        parts = [_newest(sa.select(jobs.c.id).where(*way, *bounds), jobs.c.id) for way in self._ways]
        merged = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
        step = (parts[0] if len(parts) == 1 else _newest(sa.select(merged.c.id), merged.c.id)).subquery()
        return sa.select(step.c.id, sa.func.row_number().over(order_by=step.c.id.desc()).label("position"))


def _newest(ids: Select[tuple[UUID]], column: ColumnElement[UUID]) -> Select[tuple[UUID]]:
    return ids.order_by(column.desc()).limit(sa.literal_column(str(_STEP)))


def _id_range(only: JobFilter) -> tuple[UUID | None, UUID | None]:
    """The ids, which begin with the time of their making, that jobs of these ranges can have: [from, until)."""
    untils = [until for until in (only.created_until, only.finished_until) if until is not None]
    lowest = None if only.created_from is None else _id_at(only.created_from - _SKEW)
    return lowest, _id_at(min(untils) + _SKEW) if untils else None


def _id_at(instant: datetime) -> UUID:
    return UUID(int=max(int(instant.timestamp() * 1000), 0) << 80)


def _conditions(tenant: str | None, only: JobFilter) -> Iterator[ColumnElement[bool]]:
    if tenant is not None:
        yield jobs.c.tenant == tenant
    for column, values in (
        (jobs.c.status, only.statuses), (jobs.c.reason, only.reasons), (jobs.c.kind, only.kinds),
        (jobs.c.queue, only.queues),
    ):  # fmt: skip
        if values:
            yield column.in_(sorted(values))
    for column, value in (
        (jobs.c.trigger, only.trigger), (jobs.c.workflow_id, only.workflow_id), (jobs.c.parent_id, only.parent_id),
        (jobs.c.domain, only.domain), (jobs.c.domain_end, only.domain_end),
    ):  # fmt: skip
        if value is not None:
            yield column == value
    if only.name_contains:
        yield jobs.c.name.contains(only.name_contains, autoescape=True)
    for column, since, until in (
        (jobs.c.created_at, only.created_from, only.created_until),
        (jobs.c.scheduled_at, only.scheduled_from, only.scheduled_until),
        (jobs.c.finished_at, only.finished_from, only.finished_until),
    ):
        if since is not None:
            yield column >= since
        if until is not None:
            yield column < until


# --- ways: which index leads to the jobs -----------------------------------------------------------------------------

_Way = Sequence[ColumnElement[bool]]
"""What all jobs of a range of an index have in common, and no other job."""
_Sort = tuple[str, str, str, str]


def _ways(conn: Connection, tenant: str | None, only: JobFilter) -> tuple[list[_Way], list[_Sort] | None]:
    """Ranges that hold every job that may match, and no job twice; and the sorts of ended jobs, if those are told apart.

    No range: no job can match.
    """
    reasons = _reasons(only)
    if reasons is not None and not reasons:
        return [], None
    for column, value in ((jobs.c.parent_id, only.parent_id), (jobs.c.workflow_id, only.workflow_id)):
        if value is not None:
            return _of_one(column, value, reasons), None
    finished = _range(jobs.c.finished_at, only.finished_from, only.finished_until)
    if finished and _are_few(conn, finished, jobs.c.finished_at):
        return [_at_once(finished)], None
    if tenant is None:
        return [[]], None
    mine = jobs.c.tenant == tenant
    scheduled = _range(jobs.c.scheduled_at, only.scheduled_from, only.scheduled_until)
    if scheduled and _are_few(conn, [mine, *scheduled], jobs.c.scheduled_at):
        return [_at_once([mine, *scheduled])], None
    of_domain = [mine, jobs.c.domain == only.domain]
    if only.domain is not None and (not _tells_sorts(only) or _are_few(conn, of_domain, jobs.c.id)):
        return [of_domain], None
    sorts = _sorts(conn, tenant, only, reasons)
    if sorts is None:
        return [[]], None
    ended = [[mine, *(column == value for column, value in zip(_SORT, sort, strict=True)), _ENDED] for sort in sorts]
    return ended + ([] if finished else _live(mine, only, reasons)), sorts


_ENDED = jobs.c.finished_at.is_not(None)
_TERMINAL = frozenset(reason for status in TERMINAL for reason in REASONS[status])
_ODD = _TERMINAL - {Reason.SUCCEEDED}


def _tells_sorts(only: JobFilter) -> bool:
    return bool(only.statuses or only.reasons or only.kinds or only.queues or only.trigger)


def _live(mine: ColumnElement[bool], only: JobFilter, reasons: frozenset[Reason] | None) -> list[_Way]:
    """Jobs that have not ended. Those in flight are as few as the workers' slots, and are found among many that wait."""
    if reasons is not None and reasons <= _TERMINAL:
        return []
    statuses = only.statuses or {status for status in Status if reasons is None or reasons & REASONS[status]}
    if Status.PENDING in statuses:
        return [[mine, jobs.c.finished_at.is_(None)]]
    parked = sa.select(fanouts.c.job_id).where(fanouts.c.settled_at.is_(None))
    return [
        [jobs.c.next_send_at.is_not(None)], [jobs.c.worker_id.is_not(None)],
        [jobs.c.status == Status.RUNNING.value, jobs.c.worker_id.is_(None), jobs.c.id.in_(parked)],
    ]  # fmt: skip


def _reasons(only: JobFilter) -> frozenset[Reason] | None:
    """The reasons that jobs of these statuses and reasons can have. None: any."""
    if not only.statuses:
        return only.reasons or None
    legal = frozenset(reason for status in only.statuses for reason in REASONS[status])
    return legal & only.reasons if only.reasons else legal


def _of_one(column: ColumnElement[Any], value: UUID, reasons: frozenset[Reason] | None) -> list[_Way]:
    """Jobs of a workflow or children of a job."""
    if reasons is None or not reasons <= _ODD:
        return [[column == value]]
    odd = [jobs.c.finished_at.is_not(None), jobs.c.reason != sa.literal_column("'succeeded'")]
    return [[column == value, *odd, jobs.c.reason == reason.value] for reason in sorted(reasons)]


def _range(column: ColumnElement[Any], since: datetime | None, until: datetime | None) -> _Way:
    """Empty: any time. Such a range has no order by id, so it is a way only for jobs that ``_are_few``."""
    if since is None and until is None:
        return []
    return [
        column.is_not(None), *([] if since is None else [column >= since]), *([] if until is None else [column < until])
    ]  # fmt: skip


def _are_few(conn: Connection, way: _Way, order: ColumnElement[Any]) -> bool:
    """``order``: of the index that holds them; it keeps a planner that knows of many from looking elsewhere."""
    some: Select[Any] = (
        sa.select(sa.literal_column("1"))
        .select_from(jobs)
        .where(*way)
        .order_by(order)
        .limit(sa.literal_column(str(_STEP)))
    )
    return (conn.scalar(sa.select(sa.func.count()).select_from(some.subquery())) or 0) < _STEP


def _at_once(few: _Way) -> _Way:
    """The few jobs of a range, found by the index that holds them.

    The limit, which they do not reach, is there for the planner: it would walk over all jobs by id to spare a sort.
    """
    ids = sa.select(jobs.c.id).where(*few).limit(sa.literal_column(str(_STEP))).correlate(None)
    return [jobs.c.id.in_(sa.select(ids.subquery("few").c.id))]


_SORT = (jobs.c.queue, jobs.c.kind, jobs.c.trigger, jobs.c.reason)


def _sorts(conn: Connection, tenant: str, only: JobFilter, reasons: frozenset[Reason] | None) -> list[_Sort] | None:
    """The sorts of ended jobs that the tenant has and that the filter takes. None: there are too many."""
    found: list[_Sort] = []
    if reasons is not None and not reasons & _TERMINAL:
        return found
    for here in [{"tenant": tenant, "queue": queue} for queue in sorted(only.queues)] or [{"tenant": tenant}]:
        rows = conn.execute(_sorts_there_are(tuple(here)), here).all()
        if len(rows) > _MOST_SORTS * 4:
            return None
        found += [
            (row.queue, row.kind, row.trigger, row.reason)
            for row in rows
            if (not only.kinds or row.kind in only.kinds)
            and (reasons is None or row.reason in reasons)
            and only.trigger in {None, row.trigger}
        ]
    return found if len(found) <= _MOST_SORTS else None


@cache
def _sorts_there_are(fixed: tuple[str, ...]) -> Select[Any]:
    """Every sort once, by as many steps into the index: each finds the first job behind those of the last sort."""
    nearest, last, shown = jobs.alias("nearest"), jobs.alias("last"), jobs.alias("shown")

    def first(*conditions: ColumnElement[bool]) -> Any:
        here = [nearest.c.finished_at.is_not(None), *(nearest.c[name] == sa.bindparam(name) for name in fixed)]
        order = (nearest.c[column.name] for column in _SORT)
        return (
            sa.select(nearest.c.id)
            .where(*here, *conditions)
            .order_by(*order)
            .limit(sa.literal_column("1"))
            .scalar_subquery()
        )

    steps = sa.select(first().label("id")).cte("steps", recursive=True)
    behind = sa.tuple_(*(nearest.c[column.name] for column in _SORT)) > sa.tuple_(
        *(last.c[column.name] for column in _SORT)
    )
    steps = steps.union_all(sa.select(first(behind)).select_from(steps.join(last, last.c.id == steps.c.id)))
    columns = [shown.c[column.name] for column in _SORT]
    return (
        sa.select(*columns)
        .select_from(steps.join(shown, shown.c.id == steps.c.id))
        .limit(sa.literal_column(str(_MOST_SORTS * 4 + 1)))
    )
