"""Jobs that nobody started within their ``stale_after`` end: FAILED·unresolved.

Only what waits for a worker can become stale: PENDING·ready and QUEUED. All else ends by itself. What waits for its
time becomes ready when that comes; a blocked job is decided by the end of the last one before it; a running one has an
owner whom its timeout or the reaper bounds; a SYNC beside its children ends with the last of them.

Finding them costs the hot path nothing: no index is there for it. A walk in small steps over the index of promotion
sees every ready job, of a million within twenty minutes, which is soon enough for a limit of days. It only reads;
what it found is locked, looked at again, and ended elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.promotion import Load
from jobq.stale import Hold, cause, holds_of, message, waited
from jobq.states import Reason, Status, Trigger, stale
from jobq.store.finish import Change, finish
from jobq.store.lanes import limits
from jobq.store.promote import read_load
from jobq.store.sql import id_list, is_one_of, now, plus
from jobq.store.tables import attempts, events, jobs, queues, workflows

STEP = 1000
"""Ready jobs that one step of the walk looks at."""


class Place(NamedTuple):
    """Where a walk is in the index of promotion."""

    queue: str
    tenant: str
    lane: str
    priority: int
    ready_at: datetime
    id: UUID


@dataclass(slots=True)
class Walk:
    """How far a walk has come: kept by its scheduler from step to step. None: at the beginning."""

    place: Place | None = None


def look(conn: Connection, walk: Walk, step: int = STEP) -> list[UUID]:
    """One step of a walk: the stale ones among the next ``step`` ready jobs, and at its end those that are QUEUED.

    Only reads. A walk that came to its end begins anew (``place`` is None).
    """
    rows = _ready(conn, walk.place, step)
    overdue = [row.id for row in rows if row.overdue]
    walk.place = Place(*rows[-1][: len(Place._fields)]) if len(rows) == step else None
    if walk.place is None:
        overdue += conn.scalars(_queued())
    if not overdue:
        return []
    dialect = conn.dialect.name
    found = conn.execute(_waiting(dialect), {"ids": id_list(dialect, overdue)}).all()
    return sorted(row.id for row in _stale(conn, found))


def collect(conn: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """End those of the jobs that are stale; returns their ids.

    A job that somebody else is just writing (a claim, promotion, another scheduler) is passed over; one that was
    claimed, held or ended meanwhile does not match any more.
    """
    dialect = conn.dialect.name
    found = conn.execute(_lock_waiting(dialect), {"ids": id_list(dialect, ids)}).all()
    over = _stale(conn, found)
    if not over:
        return set()
    load = read_load(conn)
    lanes = {row.lane: row.tenant for row in over if row.lane}
    load.lane_limits = limits(conn, lanes, load.lanes) if lanes else {}
    return finish(conn, [_ending(row, held, load) for row, held in over.items()])


def _ending(row: Row[Any], held: timedelta, load: Load) -> Change:
    text = message(_since(row), timedelta(seconds=row.stale_after), held, cause(load, row.queue, row.tenant, row.lane))
    return Change(row.id, Status(row.status), row.attempt, stale(), message=text, error_class="stale")


# --- the walk ----------------------------------------------------------------------------------------------------


def _ready(conn: Connection, place: Place | None, step: int) -> list[Row[Any]]:
    """The next ready jobs in the order of the index: the rest of a priority, of a lane, then what is behind it."""
    if place is None:
        return list(conn.execute(_ready_from("queue"), {"queue": "", "tenant": "", "lane": "", "limit": step}))
    rows: list[Row[Any]] = []
    for part in ("ready_at", "priority", "queue"):
        if len(rows) < step:
            rows += conn.execute(_ready_from(part), {**place._asdict(), "limit": step - len(rows)})
    return rows


@cache
def _ready_from(part: str) -> Any:
    """A range of the index behind a place. One condition over all its columns would not be one: priority descends."""
    at = {name: sa.bindparam(name, type_=jobs.c[name].type) for name in Place._fields}
    lane = (jobs.c.queue == at["queue"], jobs.c.tenant == at["tenant"], jobs.c.lane == at["lane"])
    behind = {
        "ready_at": (
            *lane, jobs.c.priority == at["priority"],
            sa.tuple_(jobs.c.ready_at, jobs.c.id) > sa.tuple_(at["ready_at"], at["id"]),
        ),
        "priority": (*lane, jobs.c.priority < at["priority"]),
        "queue": (
            sa.tuple_(jobs.c.queue, jobs.c.tenant, jobs.c.lane) > sa.tuple_(at["queue"], at["tenant"], at["lane"]),
        ),
    }  # fmt: skip
    return (
        sa.select(*(jobs.c[name] for name in Place._fields), _overdue().label("overdue"))
        .where(jobs.c.reason == sa.literal_column("'ready'"), *behind[part])
        .order_by(
            jobs.c.queue, jobs.c.tenant, jobs.c.lane, jobs.c.priority.desc(), jobs.c.ready_at, jobs.c.id
        )
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )  # fmt: skip


@cache
def _queued() -> Any:
    """What is promoted is never more than the workers take: promotion itself reads all of it with each tick."""
    return sa.select(jobs.c.id).where(jobs.c.next_send_at.is_not(None), _overdue())


def _overdue() -> Any:
    """By the clock alone; NULL, and so not true, for what may wait for ever."""
    return plus(jobs.c.ready_at, jobs.c.stale_after) < now()


# --- what is stale -----------------------------------------------------------------------------------------------


@cache
def _waiting(dialect: str) -> Any:
    """These jobs, as far as they wait for a worker and are overdue, with the end of the attempt before."""
    return (
        sa.select(
            jobs.c.id, jobs.c.status, jobs.c.attempt, jobs.c.tenant, jobs.c.queue, jobs.c.lane, jobs.c.trigger,
            jobs.c.workflow_id, jobs.c.parent_id, jobs.c.ready_at, jobs.c.stale_after,
            attempts.c.finished_at.label("back_at"), now().label("now"),
        )
        .outerjoin(attempts, sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == jobs.c.attempt))
        .where(
            is_one_of(dialect, jobs.c.id, "ids"),
            # The concatenation hides the reason from the planner: the index over all ready jobs is no way to find ids.
            jobs.c.reason.concat("").in_([Reason.READY.value, Reason.DISPATCHED.value]),
            jobs.c.desired == "RUN",
            _overdue(),
        )
        .order_by(jobs.c.id)
    )  # fmt: skip


@cache
def _lock_waiting(dialect: str) -> Any:
    return _waiting(dialect).with_for_update(skip_locked=True, of=jobs)


def _since(row: Row[Any]) -> datetime:
    """When it became ready: after its last attempt, where that went back (a drain), though it kept its place."""
    ready_at: datetime = row.ready_at
    return ready_at if row.back_at is None else max(ready_at, row.back_at)


def _stale(conn: Connection, rows: Sequence[Row[Any]]) -> dict[Row[Any], timedelta]:
    """Those that have waited too long, and how long they were held meanwhile."""
    if not rows:
        return {}
    # In this order: a hold that ends between the two is seen by one of them.
    held_now = _held_now(conn, rows)
    holds = _holds(conn, {subject for row in rows for subject in _subjects(row)})
    found: dict[Row[Any], timedelta] = {}
    for row in rows:
        subjects, since = _subjects(row), _since(row)
        if held_now.intersection(subjects):
            continue
        own = waited(since, row.now, [hold for subject in subjects for hold in holds.get(subject, ())])
        if own > timedelta(seconds=row.stale_after):
            found[row] = row.now - since - own
    return found


def _subjects(row: Row[Any]) -> list[str]:
    """All that a person may hold, and the job with it, as events name it."""
    subjects = [f"job:{row.id}", f"queue:{row.queue}"]
    if row.parent_id is not None:
        subjects.append(f"job:{row.parent_id}")
    if row.workflow_id is not None and row.trigger == Trigger.AUTOMATIC:
        subjects.append(f"workflow:{row.workflow_id}")
    return subjects


def _held_now(conn: Connection, rows: Sequence[Row[Any]]) -> set[str]:
    """What of all this a person holds at this moment."""
    dialect = conn.dialect.name
    parents = {row.parent_id for row in rows if row.parent_id is not None}
    flows = {row.workflow_id for row in rows if row.workflow_id is not None}
    held = {f"queue:{name}" for name in conn.scalars(sa.select(queues.c.name).where(queues.c.paused_at.is_not(None)))}
    if parents:
        stopped = sa.select(jobs.c.id).where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.desired != "RUN")
        held |= {f"job:{parent}" for parent in conn.scalars(stopped, {"ids": id_list(dialect, parents)})}
    if flows:
        paused = sa.select(workflows.c.id).where(
            is_one_of(dialect, workflows.c.id, "ids"), workflows.c.status == "PAUSED"
        )
        held |= {f"workflow:{flow}" for flow in conn.scalars(paused, {"ids": id_list(dialect, flows)})}
    return held


def _holds(conn: Connection, subjects: Iterable[str]) -> Mapping[str, Sequence[Hold]]:
    """When these were held, from the record of interventions."""
    dialect = conn.dialect.name
    acts: defaultdict[str, list[tuple[str, datetime]]] = defaultdict(list)
    for row in conn.execute(_acts(dialect), {"subjects": id_list(dialect, subjects)}):
        acts[row.subject].append((row.action, row.at))
    return {subject: holds_of(its) for subject, its in acts.items()}


@cache
def _acts(dialect: str) -> Any:
    return (
        sa.select(events.c.subject, events.c.action, events.c.at)
        .where(is_one_of(dialect, events.c.subject, "subjects"), events.c.action.in_(["pause", "resume"]))
        .order_by(events.c.subject, events.c.id)
    )
