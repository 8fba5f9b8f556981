"""What ended, added up: one row for each hour and for each day (UTC) of a workflow, of jobs that have none, and of all.

``rolled.until`` says how far this went: each job that ended until then is counted, once, because it moves in the
transaction that adds the jobs it passes. Whoever is killed in the middle has done nothing. A job counts in the period
in which it ended, and never again: a finished job does not change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement, Select

from jobq.histogram import Histogram
from jobq.store.sql import Json, bucket, committed_until, epoch, incoming, insert, period, rows_json
from jobq.store.tables import job_logs, jobs, rolled, rollups

HOUR, DAY = 3600, 86_400
ALL, NONE = UUID(int=0), UUID(int=2**128 - 1)
"""In place of a workflow: all jobs, and those of no workflow."""
LAG = 10.0
"""Seconds: PostgreSQL tells of another role's transactions only to those who may know."""


class Key(NamedTuple):
    """Of one row: what it adds up."""

    tenant: str
    width: int
    workflow_id: UUID
    start: datetime
    kind: str
    queue: str


@dataclass(slots=True)
class Sums:
    """What jobs add up to. ``run`` and ``wait`` are histograms of those that a worker had."""

    jobs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    run: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
    run_seconds: float = 0.0
    wait_seconds: float = 0.0
    retries: int = 0
    log_bytes: int = 0

    def add_cell(self, cell: Any) -> None:
        """Jobs that ended alike: a row of ``cells``."""
        self.jobs += cell.jobs
        self.ends[cell.reason] += cell.jobs
        if cell.run is not None:
            self.run.add(cell.run, cell.jobs)
            self.wait.add(cell.wait, cell.jobs)
        self._add(cell)

    def add_row(self, row: Any) -> None:
        """A row of ``rollups``."""
        self.jobs += row.jobs
        for reason, count in row.ends.items():
            self.ends[reason] += count
        self.run += Histogram(row.run)
        self.wait += Histogram(row.wait)
        self._add(row)

    def _add(self, more: Any) -> None:
        self.run_seconds += more.run_seconds or 0.0
        self.wait_seconds += more.wait_seconds or 0.0
        self.retries += int(more.retries)
        self.log_bytes += int(more.log_bytes)

    def stored(self) -> dict[str, Any]:
        """As columns of ``rollups``."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return own | {"run": self.run.stored(), "wait": self.wait.stored()}


def cells(width: int, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Jobs that ended, counted by everything that they are told apart by; ``start``: of the period, in seconds."""
    start = period(jobs.c.finished_at, sa.literal_column(str(width)))
    run = epoch(jobs.c.finished_at) - epoch(jobs.c.started_at)
    # From when it could have run: before that it waited for its time, or for something that was agreed upon.
    wait = epoch(jobs.c.started_at) - epoch(sa.func.coalesce(jobs.c.ready_at, jobs.c.created_at))
    written = sa.select(sa.func.sum(job_logs.c.bytes)).where(job_logs.c.job_id == jobs.c.id).scalar_subquery()
    each = (
        sa.select(
            jobs.c.tenant, jobs.c.kind, jobs.c.queue, jobs.c.workflow_id, jobs.c.reason, start.label("start"),
            run.label("run"), wait.label("wait"), sa.case((jobs.c.attempt > 1, jobs.c.attempt - 1), else_=0).label("retries"),
            sa.func.coalesce(written, 0).label("log_bytes"),
        )
        .where(jobs.c.finished_at.is_not(None), *conditions)
        .subquery("each")
    )  # fmt: skip
    alike = [
        each.c.tenant, each.c.kind, each.c.queue, each.c.workflow_id, each.c.reason, each.c.start,
        bucket(each.c.run).label("run"), bucket(each.c.wait).label("wait"),
    ]  # fmt: skip
    sums = (
        sa.func.sum(each.c[name]).label(f"{name}{end}")
        for name, end in (("run", "_seconds"), ("wait", "_seconds"), ("retries", ""), ("log_bytes", ""))
    )
    return sa.select(*alike, sa.func.count().label("jobs"), *sums).group_by(*alike)


def instant_of(seconds: int) -> datetime:
    """The start of a period of ``cells``."""
    return datetime.fromtimestamp(seconds, UTC)


def roll_up(conn: Connection, limit: int = 20_000, lag: float = LAG) -> int | None:
    """Add some ``limit`` ended jobs, the oldest of those that are missing; how many they were.

    None: somebody else is just doing it. More than ``limit`` if so many ended at the same instant.
    """
    until = conn.scalar(sa.select(rolled.c.until).with_for_update(skip_locked=True))
    if until is None:
        return None
    ended = sa.and_(jobs.c.finished_at.is_not(None), jobs.c.finished_at > until)
    end = committed_until(conn, lag)
    in_order = sa.select(jobs.c.finished_at).where(ended, jobs.c.finished_at <= end).order_by(jobs.c.finished_at)
    last = conn.scalar(in_order.offset(limit - 1).limit(1)) or end
    if last <= until:  # a clock that was set back
        return 0
    found: dict[Key, Sums] = {}
    counted = 0
    for cell in conn.execute(cells(HOUR, ended, jobs.c.finished_at <= last)):
        counted += cell.jobs
        for key in _keys(cell):
            found.setdefault(key, Sums()).add_cell(cell)
    if found:
        _add_stored(conn, found)
        _store(conn, found)
    conn.execute(sa.update(rolled).values(until=last))
    return counted


def _keys(cell: Any) -> Iterable[Key]:
    for width in (HOUR, DAY):
        start = instant_of(cell.start // width * width)
        for workflow_id in (ALL, cell.workflow_id or NONE):
            yield Key(cell.tenant, width, workflow_id, start, cell.kind, cell.queue)


_KEYS: dict[str, Any] = {name: rollups.c[name].type for name in Key._fields}
_COLUMNS: dict[str, Any] = {
    **_KEYS, "jobs": sa.BigInteger(), "ends": Json, "run": sa.Text(), "wait": sa.Text(), "run_seconds": sa.Float(),
    "wait_seconds": sa.Float(), "retries": sa.BigInteger(), "log_bytes": sa.BigInteger(),
}  # fmt: skip


def _add_stored(conn: Connection, found: Mapping[Key, Sums]) -> None:
    keys = {"keys": rows_json([key._asdict() for key in found])}
    for row in conn.execute(_stored(conn.dialect.name), keys):
        found[Key(*row[: len(Key._fields)])].add_row(row)


@cache
def _stored(dialect: str) -> Any:
    keys = incoming(dialect, "keys", _KEYS)
    same = sa.and_(*(rollups.c[name] == keys.c[name] for name in _KEYS))
    return sa.select(rollups).select_from(keys.join(rollups, same))


def _store(conn: Connection, found: Mapping[Key, Sums]) -> None:
    rows = [key._asdict() | sums.stored() for key, sums in found.items()]
    conn.execute(_upsert(conn.dialect.name), {"rows": rows_json(rows)})


@cache
def _upsert(dialect: str) -> Any:
    new = incoming(dialect, "rows", _COLUMNS)
    chosen = sa.select(*(new.c[name].label(name) for name in _COLUMNS)).where(new.c.width.is_not(None))
    statement = insert(dialect, rollups).from_select(list(_COLUMNS), chosen)
    values = {name: statement.excluded[name] for name in _COLUMNS if name not in _KEYS}
    return statement.on_conflict_do_update(index_elements=list(_KEYS), set_=values)


def is_rolled_up() -> ColumnElement[bool]:
    """Of a finished job: it is counted, and may be deleted."""
    return jobs.c.finished_at <= sa.select(rolled.c.until).scalar_subquery()
