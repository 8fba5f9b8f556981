"""How much waits, and for how long, at this moment: what a scrape of the API shows of the database.

A handful of statements whose cost does not grow with the backlog. Each reads what is in flight, or takes a bounded
number of steps over the index of ready jobs; tests/integration/test_metrics.py holds that at 1,000,000 of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.promote import read_load
from jobq.store.sql import POSTGRESQL, estimated_rows, id_list, later, now
from jobq.store.tables import jobs, schedulers, workers, workflows

COUNTED = 10_000
"""Ready jobs that one reading counts, shared by all queues; a queue that has more than its share is estimated."""
LANES = 100
"""Places (tenant, lane, priority) of which one reading looks for the oldest job, shared by all queues."""
QUEUES = 200
"""Queues that are told apart, in the order of their names."""
_SEEN = 15.0


@dataclass(slots=True)
class Gauges:
    """One reading. Ages and lags are seconds."""

    depth: dict[tuple[str, str], int] = field(default_factory=dict)
    """(queue, state: ready, queued or running) → jobs."""
    oldest: dict[str, float] = field(default_factory=dict)
    """queue → age of the job that has been ready for the longest without running."""
    slots: dict[tuple[str, str], int] = field(default_factory=dict)
    """(queue, state: busy or free) → worker slots of the live workers that take jobs."""
    workers: dict[str, int] = field(default_factory=dict)
    """state (working or draining) → workers."""
    schedulers: int = 0
    schedule_lag: float = 0.0
    """By how much the slot that has been due for the longest is late."""
    wake_lag: float = 0.0
    """The same of jobs that wait for their time: scheduled, retrying or requeued ones."""


def read_gauges(conn: Connection) -> Gauges:
    """As it is now. Each statement sees its own moment: the numbers may differ by what happens between them."""
    found = Gauges()
    load = read_load(conn)
    queued = conn.execute(_queued()).all()
    ready = list(conn.scalars(_ready_queues(), {"most": QUEUES}))
    for row in queued:
        found.depth[row.queue, "queued"] = row.number
        found.oldest[row.queue] = _lag(row.since, row.now)
    for queue, number in load.queues.items():
        found.depth[queue, "running"] = max(number - found.depth.get((queue, "queued"), 0), 0)
    if ready:
        _look_at_ready(conn, ready, found)
    for queue in {*load.slots, *load.queues, *ready}:
        for state in ("ready", "queued", "running"):
            found.depth.setdefault((queue, state), 0)
        found.oldest.setdefault(queue, 0.0)
    for queue, number in load.slots.items():
        busy = min(
            max(load.held[queue] - found.depth[queue, "queued"], 0), number
        )  # held: queued jobs have theirs, too
        found.slots[queue, "busy"], found.slots[queue, "free"] = busy, number - busy
    row = conn.execute(_clocks()).one()
    found.workers = {"working": row.working, "draining": row.draining}
    found.schedulers = row.schedulers
    found.schedule_lag, found.wake_lag = _lag(row.next_slot, row.now), _lag(row.next_due, row.now)
    return found


def _lag(instant: Any, at: Any) -> float:
    return 0.0 if instant is None else max((at - instant).total_seconds(), 0.0)


def _look_at_ready(conn: Connection, queues: Collection[str], found: Gauges) -> None:
    dialect = conn.dialect.name
    names = {"queues": id_list(dialect, queues)}
    share = max(COUNTED // len(queues), 100)
    for row in conn.execute(_ready_counts(dialect), {**names, "most": share}):
        number = row.number if row.number < share else max(estimated_rows(conn, _ready_of(row.queue)), share)
        found.depth[row.queue, "ready"] = number
    for row in conn.execute(_oldest(dialect), {**names, "steps": max(LANES // len(queues), 5)}):
        found.oldest[row.queue] = max(_lag(row.since, row.now), found.oldest.get(row.queue, 0.0))


_is_ready = jobs.c.reason == sa.literal_column("'ready'")


def _ready_of(queue: str) -> Any:
    return sa.select(jobs.c.id).where(_is_ready, jobs.c.queue == queue)


@cache
def _queued() -> Any:
    """What was promoted and not claimed: as much as the workers have slots, whatever waits behind it."""
    since = sa.func.min(sa.func.coalesce(jobs.c.ready_at, jobs.c.queued_at))
    return (
        sa.select(jobs.c.queue, sa.func.count().label("number"), since.label("since"), now().label("now"))
        .where(jobs.c.next_send_at.is_not(None))
        .group_by(jobs.c.queue)
    )


@cache
def _ready_queues() -> Any:
    """The queues that have ready jobs: one step over the index for each, never a scan."""

    def next_queue(*behind: Any) -> Any:
        return sa.select(sa.func.min(jobs.c.queue)).where(_is_ready, *behind).scalar_subquery()

    first = sa.select(next_queue().label("queue"), sa.literal_column("1").label("number"))
    found = first.cte("found", recursive=True)
    step = sa.select(next_queue(jobs.c.queue > found.c.queue), found.c.number + 1)
    found = found.union_all(
        step.where(found.c.queue.is_not(None), found.c.number < sa.bindparam("most", type_=sa.Integer))
    )
    return sa.select(found.c.queue).where(found.c.queue.is_not(None))


def _named(dialect: str) -> Any:
    """The queues that come as a parameter, as rows."""
    if dialect == POSTGRESQL:
        each: Any = sa.func.unnest(sa.cast(sa.bindparam("queues"), sa.ARRAY(sa.Text)))
        return sa.select(each.label("queue")).subquery("named")
    rows = sa.func.json_each(sa.bindparam("queues", type_=sa.Text)).table_valued("value", name="each")
    return sa.select(rows.c.value.label("queue")).subquery("named")


@cache
def _ready_counts(dialect: str) -> Any:
    """Ready jobs of each queue, counted up to a limit."""
    named = _named(dialect)
    some = (
        sa.select(sa.literal_column("1"))
        .where(_is_ready, jobs.c.queue == named.c.queue)
        .limit(sa.bindparam("most", type_=sa.Integer))
        .correlate(named)
        .subquery("some")
    )
    return sa.select(named.c.queue, sa.select(sa.func.count()).select_from(some).scalar_subquery().label("number"))


@cache
def _oldest(dialect: str) -> Any:
    """When the oldest ready job of each queue became ready: the heads of its places, step by step over the index.

    Within a place (tenant, lane, priority) the index is sorted by age, so that its head is its oldest.
    """
    named, here = _named(dialect), jobs.alias("here")

    def head(*where: Any) -> Any:
        order = (jobs.c.tenant, jobs.c.lane, jobs.c.priority.desc(), jobs.c.ready_at, jobs.c.id)
        return sa.select(jobs.c.id).where(_is_ready, *where).order_by(*order).limit(1).scalar_subquery()

    first = sa.select(
        named.c.queue, head(jobs.c.queue == named.c.queue).label("id"), sa.literal_column("1").label("step")
    )
    heads = first.cte("heads", recursive=True)
    in_queue = jobs.c.queue == here.c.queue
    lower = head(
        in_queue, jobs.c.tenant == here.c.tenant, jobs.c.lane == here.c.lane, jobs.c.priority < here.c.priority
    )
    further = head(in_queue, sa.tuple_(jobs.c.tenant, jobs.c.lane) > sa.tuple_(here.c.tenant, here.c.lane))
    step = (
        sa.select(heads.c.queue, sa.func.coalesce(lower, further), heads.c.step + 1)
        .join_from(heads, here, here.c.id == heads.c.id)
        .where(heads.c.step < sa.bindparam("steps", type_=sa.Integer))
    )
    heads = heads.union_all(step)
    return (
        sa.select(heads.c.queue, sa.func.min(here.c.ready_at).label("since"), now().label("now"))
        .join_from(heads, here, here.c.id == heads.c.id)
        .group_by(heads.c.queue)
    )


@cache
def _clocks() -> Any:
    """What is late, and who is there: each part is one look at a small index."""
    lives = sa.and_(workers.c.dead_at.is_(None), workers.c.lease_until > now())

    def count(of: Any, *where: Any) -> Any:
        return sa.select(sa.func.count()).select_from(of).where(*where).scalar_subquery()

    return sa.select(
        now().label("now"),
        sa.select(sa.func.min(workflows.c.next_fire_at)).scalar_subquery().label("next_slot"),
        sa.select(sa.func.min(jobs.c.due_at)).scalar_subquery().label("next_due"),
        count(workers, lives, workers.c.draining_at.is_(None)).label("working"),
        count(workers, lives, workers.c.draining_at.is_not(None)).label("draining"),
        count(schedulers, schedulers.c.renewed_at > later(-_SEEN)).label("schedulers"),
    )
