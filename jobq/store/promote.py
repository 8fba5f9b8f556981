"""PENDING·ready → QUEUED, and what keeps that exact: wake, promote, re-send.

Only one scheduler promotes at a time; pausing and changing limits take the same lock, so that a limit holds from
the moment that setting it returned. The cost of a tick depends on what is in flight, never on what waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.promotion import Candidate, Load, Turns, choose
from jobq.states import WAKING, Reason, Status
from jobq.store.database import take_promote_lock
from jobq.store.lanes import limits
from jobq.store.sql import Json, id_list, is_one_of, later, now, picked_once
from jobq.store.tables import fanouts, jobs, queues, tenants, workers
from jobq.store.webhook_events import QUEUED, tell_each

FIRST_RESEND = 2.0
"""Seconds after which a hint that nobody claimed is looked into."""
_FETCHES = 32  # groups of (tenant, lane) looked at in one tick; the next tick goes on behind them
_MIN_FETCH = 16


@dataclass(slots=True)
class Promoted:
    """What a tick did. ``standby``: another scheduler has the lock."""

    batches: dict[str, list[UUID]] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)
    """Per queue, before this tick's jobs."""
    standby: bool = False
    traces: dict[UUID, str] = field(default_factory=dict)
    """The ``traceparent`` of jobs that have one, if it was asked for."""
    more: bool = False
    """There are ready jobs that had no room."""


@dataclass(slots=True)
class Cursor:
    """What a promoter keeps from tick to tick, so that every tenant and lane gets its turn."""

    after: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Where the next tick starts to look, per queue."""
    turns: Turns = field(default_factory=Turns)
    ticks: int = 0

    def in_turn(self, queues: Iterable[str]) -> list[str]:
        """Another queue is the first with each tick: a tenant at its limit gets some of all that it waits for."""
        ordered = sorted(queues)
        first = self.ticks % len(ordered) if ordered else 0
        self.ticks += 1
        return ordered[first:] + ordered[:first]


def promote(conn: Connection, ended_lately: Mapping[str, int], cursor: Cursor, *, traced: bool = False) -> Promoted:
    """Promote what fits. Publishing the hints is the caller's, after the commit. ``traced``: tell of traces, too."""
    if not take_promote_lock(conn, wait=False):
        return Promoted(standby=True)
    load = read_load(conn)
    load.turns = cursor.turns
    done = Promoted(in_flight=Counter(load.queues))
    for queue in cursor.in_turn(load.slots):
        room = load.room(queue, ended_lately.get(queue, 0))
        candidates, more = _candidates(conn, queue, max(room, 1), cursor)
        if not candidates:
            continue
        lanes = {candidate.lane: candidate.tenant for candidate in candidates if candidate.lane}
        load.lane_limits = limits(conn, lanes, load.lanes) if lanes else {}
        chosen = choose(candidates, room, load)
        if chosen:
            done.batches[queue] = _queue(conn, chosen, done.traces if traced else None)
        # What waits in closed lanes (a paused SYNC, a target that asked for patience) is no reason to look again soon.
        takeable = sum(load.lane_limits.get(candidate.lane) != 0 for candidate in candidates)
        more = more and (takeable > 0 or queue in cursor.after)
        done.more = done.more or more or len(chosen) < takeable
    return done


def read_load(conn: Connection) -> Load:
    """What is in flight now, the slots of the live workers, and all limits: one statement, one moment."""
    load, slots = Load(), Counter[str]()
    for row in conn.execute(_landscape()):
        if row.what == "in flight":
            load.queues[row.name] += row.number
            load.held[row.name] += row.held
            load.tenants[row.tenant] += row.number
            load.lanes[row.lane] += row.number
        elif row.what == "worker":
            slots.update(row.offer)
        elif row.what == "queue":
            load.paused |= {row.name} if row.held else set()
            load.queue_limits |= {} if row.number is None else {row.name: row.number}
        else:
            load.weights[row.name] = row.weight
            load.tenant_limits |= {} if row.number is None else {row.name: row.number}
    load.slots = dict(slots)
    return load


@cache
def _landscape() -> Any:
    """All that decides who may go, in one shape: each round trip counts while a single job waits."""
    shape: dict[str, Any] = {
        "name": sa.Text(), "tenant": sa.Text(), "lane": sa.Text(), "number": sa.Integer(), "held": sa.Integer(),
        "weight": sa.Float(), "offer": Json,
    }  # fmt: skip

    def part(what: str, **known: Any) -> Any:
        columns = (known.get(name, sa.cast(sa.null(), type_)).label(name) for name, type_ in shape.items())
        return sa.select(sa.literal_column(f"'{what}'").label("what"), *columns)

    is_paused = sa.case((queues.c.paused_at.is_not(None), 1), else_=0)
    flight = _in_flight().subquery("flight")
    return sa.union_all(
        part("worker", offer=workers.c.queues).where(_takes_jobs()),
        part("queue", name=queues.c.name, number=queues.c.limit, held=is_paused),
        part("tenant", name=tenants.c.name, number=tenants.c.limit, weight=tenants.c.weight),
        part(
            "in flight", name=flight.c.queue, tenant=flight.c.tenant, lane=flight.c.lane, number=flight.c.jobs,
            held=flight.c.held,
        ),
    )  # fmt: skip


def worker_slots(conn: Connection) -> dict[str, int]:
    """Slots per queue of the workers that are alive and not draining."""
    slots: Counter[str] = Counter()
    for offered in conn.scalars(_live_workers()):
        slots.update(offered)
    return dict(slots)


@cache
def _live_workers() -> Any:
    return sa.select(workers.c.queues).where(_takes_jobs())


def _takes_jobs() -> Any:
    return sa.and_(workers.c.dead_at.is_(None), workers.c.draining_at.is_(None), workers.c.lease_until > now())


@cache
def _in_flight() -> Any:
    """Queued and running jobs by queue, tenant and lane: each part reads a partial index of what is in flight.

    ``held``: those that take a slot of the workers that take jobs.
    """
    columns = (jobs.c.queue, jobs.c.tenant, jobs.c.lane)
    live = sa.select(workers.c.id).where(_takes_jobs())
    held = sa.case((jobs.c.worker_id.in_(live), 1), else_=0)
    both = sa.union_all(
        sa.select(*columns, sa.literal_column("1").label("held")).where(jobs.c.next_send_at.is_not(None)),
        sa.select(*columns, held.label("held")).where(jobs.c.worker_id.is_not(None)),
        # A SYNC beside its children runs, too, though it takes no slot.
        sa.select(*columns, sa.literal_column("0").label("held"))
        .join(fanouts, sa.and_(fanouts.c.job_id == jobs.c.id, fanouts.c.settled_at.is_(None)))
        .where(jobs.c.worker_id.is_(None), jobs.c.status == Status.RUNNING.value),
    ).subquery("in_flight")
    place = (both.c.queue, both.c.tenant, both.c.lane)
    return sa.select(*place, sa.func.count().label("jobs"), sa.func.sum(both.c.held).label("held")).group_by(*place)


@cache
def _ready_after() -> Any:
    """Ready jobs of a queue behind a (tenant, lane), in the order of the index."""
    place = sa.tuple_(jobs.c.tenant, jobs.c.lane)
    after = sa.tuple_(sa.bindparam("tenant", type_=sa.Text), sa.bindparam("lane", type_=sa.Text))
    return (
        sa.select(jobs.c.id, jobs.c.tenant, jobs.c.lane, jobs.c.priority, jobs.c.ready_at)
        .where(jobs.c.reason == sa.literal_column("'ready'"), jobs.c.queue == sa.bindparam("queue", type_=sa.Text))
        .where(place > after)
        .order_by(jobs.c.tenant, jobs.c.lane, jobs.c.priority.desc(), jobs.c.ready_at, jobs.c.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )


_BEGINNING = ("", "")  # tenants are never empty, so that every (tenant, lane) is greater


def _candidates(conn: Connection, queue: str, room: int, cursor: Cursor) -> tuple[list[Candidate], bool]:
    """The heads of the lanes, round about, and whether there may be more.

    Each fetch begins behind the last lane that the one before did not cut short; the i-th takes room ÷ i rows, so that
    one busy tenant is read deep and a thousand tenants are each read a little.
    """
    start = cursor.after.pop(queue, _BEGINNING)
    place, wrapped = start, start == _BEGINNING
    found: dict[UUID, Candidate] = {}
    for fetch in range(1, _FETCHES + 1):
        limit = max(room // fetch, _MIN_FETCH)
        parameters = {"queue": queue, "tenant": place[0], "lane": place[1], "limit": limit}
        rows = [Candidate(*row) for row in conn.execute(_ready_after(), parameters)]
        found.update((row.id, row) for row in rows)
        if len(rows) == limit:
            place = _behind_whole_lanes(rows)
        elif wrapped:
            return list(found.values()), len(found) > room
        else:
            place, wrapped = _BEGINNING, True
        if wrapped and place > start > _BEGINNING:
            return list(found.values()), True
    cursor.after[queue] = place
    return list(found.values()), True


def _behind_whole_lanes(rows: Sequence[Candidate]) -> tuple[str, str]:
    """The last lane of a full fetch, unless that was cut short in it: then the lane before, so that it is read again."""
    last = (rows[-1].tenant, rows[-1].lane)
    return next(((row.tenant, row.lane) for row in reversed(rows) if (row.tenant, row.lane) != last), last)


def _queue(conn: Connection, chosen: Sequence[UUID], traces: dict[UUID, str] | None) -> list[UUID]:
    dialect = conn.dialect.name
    more = () if traces is None else (jobs.c.traceparent,)
    rows = conn.execute(_promote(dialect, *more), {"ids": id_list(dialect, chosen)}).all()
    if traces is not None:
        traces.update((row.id, row.traceparent) for row in rows if row.traceparent is not None)
    tell_each(conn, rows, QUEUED)
    written = {row.id for row in rows}
    return [job_id for job_id in chosen if job_id in written]


@cache
def _promote(dialect: str, *more: Any) -> Any:
    """PENDING·ready → QUEUED for the chosen ids; a row that somebody changes right now is left for the next tick."""
    chosen = (
        sa.select(jobs.c.id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.status == Status.PENDING.value)
        # The concatenation hides the reason from the planner: the index over all ready jobs is no way to find ids.
        .where(jobs.c.reason.concat("") == Reason.READY.value, jobs.c.desired == "RUN")
        .order_by(jobs.c.id)
        .with_for_update(skip_locked=True)
    )
    return (
        sa.update(jobs)
        .where(jobs.c.id.in_(chosen))
        .values(
            status=Status.QUEUED.value, reason=Reason.DISPATCHED.value, queued_at=now(),
            next_send_at=later(FIRST_RESEND), sends=0, hooked=jobs.c.hooked + 1,
        )
        .returning(jobs.c.id, jobs.c.hooked, *more)
    )  # fmt: skip


# --- wake: what waited for its time ----------------------------------------------------------------------------


@cache
def _wake() -> Any:
    """Scheduled, retrying and requeued jobs whose time has come become ready."""
    due = (
        sa.select(jobs.c.id)
        .where(jobs.c.due_at <= now(), jobs.c.reason.in_(sorted(reason.value for reason in WAKING)))
        .order_by(jobs.c.due_at)
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .with_for_update(skip_locked=True)
    )
    return (
        sa.update(jobs)
        .where(jobs.c.id.in_(picked_once(due)))
        .values(reason=Reason.READY.value, ready_at=jobs.c.due_at, due_at=None)
        .returning(jobs.c.id)
    )


def wake(conn: Connection, limit: int = 1000) -> int:
    """Make ready what is due; returns how many. They became ready when they were due, however late this ran."""
    return len(conn.execute(_wake(), {"limit": limit}).all())


def seconds_to_next_due(conn: Connection) -> float | None:
    """Until the next job is due, by the database's clock (negative: overdue); None: nothing is scheduled."""
    row = conn.execute(sa.select(sa.func.min(jobs.c.due_at).label("due"), now().label("now"))).one()
    return None if row.due is None else (row.due - row.now).total_seconds()


# --- re-send: hints that nobody acted on -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A QUEUED job whose hint may be lost."""

    id: UUID
    queue: str
    sends: int
    waited: float
    """Seconds since it was promoted."""


def unclaimed(conn: Connection, limit: int = 1000) -> list[Unclaimed]:
    """QUEUED jobs past ``next_send_at``, locked against other schedulers until the transaction ends."""
    rows = conn.execute(
        sa.select(jobs.c.id, jobs.c.queue, jobs.c.sends, jobs.c.queued_at, now().label("now"))
        .where(jobs.c.next_send_at <= now())
        .order_by(jobs.c.next_send_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=jobs)
    )
    return [Unclaimed(row.id, row.queue, row.sends, (row.now - row.queued_at).total_seconds()) for row in rows]


def put_off(conn: Connection, ids: Sequence[UUID], seconds: float, *, sent: bool) -> None:
    """When to look at these again; ``sent``: their hints go out once more."""
    dialect = conn.dialect.name
    conn.execute(
        sa.update(jobs)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.next_send_at.is_not(None))
        .values(next_send_at=later(seconds), sends=jobs.c.sends + int(sent)),
        {"ids": id_list(dialect, ids)},
    )
