"""How a fan-out ends: children's ends are counted, and the scheduler alone ends (or parks) their parent.

Workers only insert what they recorded (``count_ends``); the scheduler folds it (``fold``) and looks at each SYNC that
no worker holds (``settle``). So recording workers never wait for each other at the parent, and of two last children
none can miss the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.states import Desired, Reason, Status, parked
from jobq.store.jobs import new_id
from jobq.store.sql import Json, id_list, incoming, is_one_of, picked_once, rows_json
from jobq.store.tables import fanout_deltas, fanout_targets, fanouts, jobs
from jobq.store.wakeup import announce
from jobq.store.webhook_events import tell_parked

COUNTS = ("completed", "skipped", "failed", "canceled", "duplicate", "success", "updated", "existing")
_FOLDED_AT_ONCE = 2000


def child_spec(row: Any) -> dict[str, Any]:
    """The spec of a child, which is not stored: its columns say it."""
    return {"domain": row.domain, "target": row.target, "entity_key": row.entity_key}


def of_lane(lane: str) -> tuple[UUID, str] | None:
    """The SYNC and the target of a children's lane (``<SYNC in hex>/<target>``); None: it is another lane."""
    parent, slash, target = lane.partition("/")
    return (UUID(parent), target) if slash else None


def delta(parent_id: UUID, target: str, **counts: int) -> dict[str, Any]:
    """A row of ``jobq_fanout_deltas``."""
    return {"id": new_id(), "parent_id": parent_id, "target": target, **dict.fromkeys(COUNTS, 0), **counts}


def count_ends(conn: Connection, ended: Sequence[Row[Any]], reports: Mapping[UUID, str]) -> None:
    """Children have ended: one row for each SYNC and target of the batch. ``reports``: what their targets did."""
    deltas: dict[tuple[UUID, str], dict[str, Any]] = {}
    for row in ended:
        if row.parent_id is None or row.target is None:
            continue
        counts = deltas.setdefault((row.parent_id, row.target), delta(row.parent_id, row.target))
        if row.status == Status.COMPLETED:
            counts["skipped" if row.reason == Reason.SKIPPED else "completed"] += 1
            if (what := reports.get(row.id)) is not None:
                counts[what] += 1
        else:
            counts["failed" if row.status == Status.FAILED else "canceled"] += 1
            counts["duplicate"] += row.reason == Reason.DUPLICATE
    if deltas:
        conn.execute(sa.insert(fanout_deltas), list(deltas.values()))


def fold(conn: Connection) -> bool:
    """Add what has been counted to the totals of its fan-outs; False: there was nothing. Safe to run side by side."""
    chosen = (
        sa.select(fanout_deltas.c.id)
        .order_by(fanout_deltas.c.id)
        .limit(_FOLDED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    folded = sa.delete(fanout_deltas).where(fanout_deltas.c.id.in_(picked_once(chosen))).returning(fanout_deltas)
    rows = conn.execute(folded).all()
    if not rows:
        return False
    sums: dict[tuple[UUID, str], dict[str, Any]] = {}
    for row in rows:
        total = sums.setdefault(
            (row.parent_id, row.target), {"parent_id": row.parent_id, "target": row.target, **dict.fromkeys(COUNTS, 0)}
        )
        for name in COUNTS:
            total[name] += getattr(row, name)
    conn.execute(_add(conn.dialect.name), {"sums": rows_json([sums[place] for place in sorted(sums)])})
    return True


@cache
def _add(dialect: str) -> Any:
    columns: dict[str, Any] = {
        "parent_id": sa.Uuid(),
        "target": sa.Text(),
        **{name: sa.BigInteger() for name in COUNTS},
    }
    more, c = incoming(dialect, "sums", columns), fanout_targets.c
    return (
        sa.update(fanout_targets)
        .where(c.parent_id == more.c.parent_id, c.target == more.c.target)
        .values({name: c[name] + more.c[name] for name in COUNTS})
    )


# --- parking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parked:
    """A SYNC that gives its worker slot back while it lives on. ``verdict``: what its worker says of the attempt."""

    id: UUID
    attempt: int
    worker_id: UUID | None
    verdict: dict[str, Any]
    """``ended``: the attempt's record; ``to``, ``message``, ``error_class``: the end that it came to by itself."""


def park(conn: Connection, given_back: Sequence[Parked]) -> set[UUID]:
    """RUNNING under a worker → RUNNING beside its children. Same guard as every write of an owner.

    Returns the ids that were written. A SYNC that came to an end of its own reads no further.
    """
    rows = [
        {"id": each.id, "attempt": each.attempt, "worker_id": each.worker_id, "verdict": each.verdict,
         "ends": int("to" in each.verdict)}
        for each in sorted(given_back, key=lambda each: each.id)
    ]  # fmt: skip
    if not rows:
        return set()
    dialect, parameters = conn.dialect.name, {"parked": rows_json(rows)}
    parked_rows = conn.execute(_park(dialect), parameters).all()
    written = {row.id for row in parked_rows}
    if written:
        tell_parked(conn, parked_rows, {each.id: each.verdict for each in given_back})
        kept = rows_json([row for row in rows if row["id"] in written])
        conn.execute(_keep_verdicts(dialect), {"parked": kept})
        announce(conn)
    return written


_PARKED: dict[str, Any] = {
    "id": sa.Uuid(), "attempt": sa.Integer(), "worker_id": sa.Uuid(), "verdict": Json, "ends": sa.Integer()
}  # fmt: skip


@cache
def _park(dialect: str) -> Any:
    row = incoming(dialect, "parked", _PARKED)
    reason = sa.case({desired.value: parked(desired).value for desired in Desired}, value=jobs.c.desired)
    return (
        sa.update(jobs)
        .where(
            jobs.c.id == row.c.id, jobs.c.attempt == row.c.attempt, jobs.c.status == Status.RUNNING.value,
            sa.func.coalesce(row.c.worker_id, jobs.c.worker_id).is_not_distinct_from(jobs.c.worker_id),
        )
        .values(reason=reason, worker_id=None, host=None)
        .returning(jobs.c.id, jobs.c.hooked)
    )  # fmt: skip


@cache
def _keep_verdicts(dialect: str) -> Any:
    row = incoming(dialect, "parked", _PARKED)
    return (
        sa.update(fanouts)
        .where(fanouts.c.job_id == row.c.id)
        .values(verdict=row.c.verdict, reading=sa.and_(fanouts.c.reading, row.c.ends == 0))
    )


def with_children(conn: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Which of these jobs are SYNCs that have made children and are not settled."""
    dialect = conn.dialect.name
    return set(conn.scalars(_with_children(dialect), {"ids": id_list(dialect, ids)}))


@cache
def _with_children(dialect: str) -> Any:
    total = sa.exists().where(fanout_targets.c.parent_id == fanouts.c.job_id, fanout_targets.c.total > 0)
    return sa.select(fanouts.c.job_id).where(
        is_one_of(dialect, fanouts.c.job_id, "ids"), fanouts.c.settled_at.is_(None), total
    )


# --- counts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TargetCounts:
    """The children of one SYNC for one target; ``success``, ``updated`` and ``existing`` count entities."""

    target: str
    total: int
    completed: int
    skipped: int
    failed: int
    canceled: int
    duplicate: int
    """Of the canceled: those whose entity another fan-out's child brings."""
    success: int
    updated: int
    existing: int

    @property
    def live(self) -> int:
        """Children that have not ended."""
        return self.total - self.completed - self.skipped - self.failed - self.canceled


def counts(conn: Connection, parent_id: UUID) -> list[TargetCounts]:
    """Exact at the moment of the call, whatever has been folded by then; costs nothing with more children."""
    folded = sa.select(fanout_targets.c.target, fanout_targets.c.total, *(fanout_targets.c[name] for name in COUNTS))
    waiting = sa.select(
        fanout_deltas.c.target, sa.literal_column("0").label("total"), *(fanout_deltas.c[name] for name in COUNTS)
    )
    both = sa.union_all(
        folded.where(fanout_targets.c.parent_id == parent_id), waiting.where(fanout_deltas.c.parent_id == parent_id)
    ).subquery()
    sums = (sa.func.sum(both.c[name]).label(name) for name in ("total", *COUNTS))
    rows = conn.execute(sa.select(both.c.target, *sums).group_by(both.c.target).order_by(both.c.target))
    return [TargetCounts(row.target, *(int(row._mapping[name]) for name in ("total", *COUNTS))) for row in rows]  # noqa: SLF001


def in_flight(conn: Connection, parent_ids: Sequence[UUID]) -> dict[UUID, tuple[int, int]]:
    """Queued and running children: both are found by what is in flight at all, never by the SYNC's children."""
    dialect = conn.dialect.name
    found: dict[UUID, tuple[int, int]] = {}
    for row in conn.execute(_in_flight(dialect), {"ids": id_list(dialect, parent_ids)}):
        found[row.parent_id] = (int(row.queued), int(row.running))
    return found


@cache
def _in_flight(dialect: str) -> Any:
    # Not written as the column: the index on parent_id would be a bad way to find what is in flight.
    parent = sa.func.coalesce(jobs.c.parent_id, jobs.c.id).label("parent_id")
    one: Any = sa.literal_column("1")
    none: Any = sa.literal_column("0")
    child = jobs.c.parent_id.is_not(None)
    both = sa.union_all(
        sa.select(parent, one.label("queued"), none.label("running")).where(jobs.c.next_send_at.is_not(None), child),
        sa.select(parent, none.label("queued"), one.label("running")).where(jobs.c.worker_id.is_not(None), child),
    ).subquery()
    return (
        sa.select(
            both.c.parent_id, sa.func.sum(both.c.queued).label("queued"), sa.func.sum(both.c.running).label("running")
        )
        .where(is_one_of(dialect, both.c.parent_id, "ids"))
        .group_by(both.c.parent_id)
    )


def anything_open(conn: Connection) -> bool:
    """Is there a fan-out that is not over, or an end that is not folded? One look at two small indexes."""
    unsettled = sa.select(fanouts.c.job_id).where(fanouts.c.settled_at.is_(None)).limit(1)
    return bool(conn.scalar(unsettled) or conn.scalar(sa.select(fanout_deltas.c.id).limit(1)))


# --- fan-outs that no worker holds -------------------------------------------------------------------------------


def unsettled(conn: Connection, behind: UUID | None, limit: int) -> list[Row[Any]]:
    """Fan-outs that are not over and that no worker reads for, their SYNCs locked against other schedulers."""
    query = (
        sa.select(
            jobs.c.id, jobs.c.status, jobs.c.reason, jobs.c.desired, jobs.c.attempt, jobs.c.cancel_reason,
            jobs.c.started_at, fanouts.c.reading, fanouts.c.read, fanouts.c.invalid, fanouts.c.verdict,
        )
        .join(fanouts, fanouts.c.job_id == jobs.c.id)
        .where(fanouts.c.settled_at.is_(None), jobs.c.worker_id.is_(None))
        .order_by(fanouts.c.job_id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=jobs)
    )  # fmt: skip
    return list(conn.execute(query if behind is None else query.where(fanouts.c.job_id > behind)))


def live_children(conn: Connection, parent_ids: Sequence[UUID]) -> dict[UUID, int]:
    """How many children of each have not ended, counting what is folded: never too few."""
    dialect, c = conn.dialect.name, fanout_targets.c
    ended = c.completed + c.skipped + c.failed + c.canceled
    rows = conn.execute(
        sa.select(c.parent_id, sa.func.sum(c.total - ended).label("live"))
        .where(is_one_of(dialect, c.parent_id, "ids"))
        .group_by(c.parent_id),
        {"ids": id_list(dialect, parent_ids)},
    )
    return {row.parent_id: int(row.live) for row in rows}


def waiting_children(conn: Connection, parent_id: UUID, behind: UUID | None, limit: int) -> list[Row[Any]]:
    """Children that nobody executes, locked; rows that somebody else is just writing are passed over."""
    query = (
        sa.select(jobs.c.id, jobs.c.status, jobs.c.attempt)
        .where(
            jobs.c.parent_id == parent_id,
            jobs.c.finished_at.is_(None),
            jobs.c.status.in_([Status.PENDING.value, Status.QUEUED.value]),
        )
        .order_by(jobs.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(conn.execute(query if behind is None else query.where(jobs.c.id > behind)))
