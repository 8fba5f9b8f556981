"""The other children that an entity has: of this very SYNC, of older fan-outs, and those that earlier targets wait for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.states import Desired, Status
from jobq.store import entities
from jobq.store.sql import id_list, incoming, is_one_of, rows_json
from jobq.store.tables import entities as entity_table
from jobq.store.tables import fanouts, job_data, jobs, watermarks
from jobq.sync import TargetSpec


def own_children(conn: Connection, parent_id: UUID, target: str, keys: Iterable[str]) -> set[str]:
    """Which of these entities have a child of this very SYNC."""
    asked = rows_json([{"parent_id": parent_id, "target": target, "key": key} for key in sorted(keys)])
    return set(conn.scalars(_own(conn.dialect.name), {"asked": asked}))


@cache
def _own(dialect: str) -> Any:
    asked = incoming(dialect, "asked", {"parent_id": sa.Uuid(), "target": sa.Text(), "key": sa.Text()})
    same = sa.and_(
        jobs.c.parent_id == asked.c.parent_id, jobs.c.target == asked.c.target, jobs.c.entity_key == asked.c.key,
        jobs.c.entity_key.is_not(None),
    )  # fmt: skip
    return sa.select(jobs.c.entity_key).select_from(asked.join(jobs, same))


class Live(NamedTuple):
    """A live child of an older fan-out. ``stands_in``: it will do what a new one would."""

    id: UUID
    stands_in: bool


def live_children(conn: Connection, at: entities.Place, rules: str, keys: Iterable[str]) -> dict[str, Live]:
    """The live children that older fan-outs have for these entities, locked: the newest of each.

    Locked, because promotion must not take away a PENDING one between this look and our commit: it would read the
    older payload. It stands in for a new one if its SYNC is neither held nor ending, and writes by the same rules.
    """
    dialect = conn.dialect.name
    seen = conn.scalars(_seen(dialect), {"asked": entities.each_at(at, keys)})
    ids = [UUID(each) for of_one in seen if of_one for each in of_one.split(",")]
    rows = conn.execute(_live(dialect), {"ids": id_list(dialect, ids)}).all() if ids else []
    waiting = [row for row in rows if row.status == Status.PENDING.value and row.desired == Desired.RUN.value]
    same = _of_rules(conn, {row.parent_id for row in waiting}, at.target, rules) if waiting else set()
    stand_ins = {row.id for row in waiting if row.parent_id in same}
    return {row.entity_key: Live(row.id, row.id in stand_ins) for row in rows}


def _of_rules(conn: Connection, parents: Iterable[UUID], target: str, rules: str) -> set[UUID]:
    """Which of these SYNCs write to the target by the same conditions and mapping."""
    parameters = {"ids": id_list(conn.dialect.name, parents)}
    found = conn.execute(_specs(conn.dialect.name), parameters)
    return {row.job_id for row in found if rules in _rules_in(row.spec, target)}


def _rules_in(spec: Mapping[str, Any], target: str) -> Iterable[str]:
    targets = (TargetSpec.model_validate(each) for each in spec.get("targets", ()))
    return (each.rules for each in targets if each.name == target)


@cache
def _specs(dialect: str) -> Any:
    return sa.select(job_data.c.job_id, job_data.c.spec).where(is_one_of(dialect, job_data.c.job_id, "ids"))


@cache
def _seen(dialect: str) -> Any:
    """The ids of the live children of each entity: a subquery, so that each entity is looked up by its index."""
    asked = incoming(dialect, "asked", entities.PLACES)
    ids = sa.func.aggregate_strings(sa.cast(jobs.c.id, sa.Text), ",")
    of_one = sa.select(ids).where(
        jobs.c.tenant == asked.c.tenant, jobs.c.domain == asked.c.domain, jobs.c.target == asked.c.target,
        jobs.c.entity_key == asked.c.key, jobs.c.entity_key.is_not(None), jobs.c.finished_at.is_(None),
    )  # fmt: skip
    return sa.select(of_one.correlate(asked).scalar_subquery()).select_from(asked)


@cache
def _live(dialect: str) -> Any:
    parent = jobs.alias("parent")
    wanted = sa.case((parent.c.finished_at.is_(None), parent.c.desired), else_=Desired.CANCEL.value).label("desired")
    return (
        sa.select(jobs.c.id, jobs.c.entity_key, jobs.c.status, jobs.c.parent_id, wanted)
        .join(parent, parent.c.id == jobs.c.parent_id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.finished_at.is_(None))
        .order_by(jobs.c.id)
        .with_for_update(of=jobs)
    )


# --- children that stand in for those of other SYNCs ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StandIns:
    """How the jobs ended badly that other SYNCs' children stand in for."""

    failed: int = 0
    canceled: int = 0


def awaiting(conn: Connection, parent_ids: Sequence[UUID]) -> set[UUID]:
    """Which of these SYNCs have duplicates among their children whose stand-ins have not ended."""
    if not parent_ids:
        return set()
    dialect = conn.dialect.name
    return set(conn.scalars(_awaiting(dialect), {"ids": id_list(dialect, parent_ids)}))


@cache
def _awaiting(dialect: str) -> Any:
    """The newest duplicate first: what stands in for it is likely to be the last to end, and one that lives is enough."""
    living = _living(fanouts.c.job_id).correlate(fanouts).scalar_subquery().is_not(None)
    return sa.select(fanouts.c.job_id).where(is_one_of(dialect, fanouts.c.job_id, "ids"), living)


def _living(parent_id: Any) -> Any:
    twin, other = jobs.alias("twin"), jobs.alias("other")
    # A subquery for each, not EXISTS: as a join the planner would walk over all twins before it gave the first.
    lives = sa.select(other.c.id).where(other.c.id == twin.c.duplicate_of, other.c.finished_at.is_(None))
    return (
        sa.select(twin.c.duplicate_of)
        .where(twin.c.parent_id == parent_id, twin.c.parent_id.is_not(None), twin.c.duplicate_of.is_not(None))
        .where(lives.correlate(twin).scalar_subquery().is_not(None))
        .order_by(twin.c.parent_id.desc(), twin.c.id.desc())
        .limit(1)
    )


def awaited(conn: Connection, parent_id: UUID) -> UUID | None:
    """One of the jobs that stand in for this SYNC's children and have not ended."""
    found: UUID | None = conn.scalar(_living(sa.bindparam("parent", type_=sa.Uuid)), {"parent": parent_id})
    return found


def stand_ins(conn: Connection, parent_id: UUID) -> StandIns:
    """What became of the entities that other SYNCs' children brought in place of this SYNC's own."""
    twin, other = jobs.alias("twin"), jobs.alias("other")
    rows = conn.execute(
        sa.select(other.c.status, sa.func.count().label("number"))
        .select_from(twin.join(other, other.c.id == twin.c.duplicate_of))
        .where(twin.c.parent_id == parent_id, twin.c.duplicate_of.is_not(None))
        .group_by(other.c.status)
    )
    ends = {row.status: int(row.number) for row in rows}
    return StandIns(ends.get(Status.FAILED.value, 0), ends.get(Status.CANCELED.value, 0))


# --- targets in chains -------------------------------------------------------------------------------------------


def lock_carriers(conn: Connection, behind: Mapping[UUID, Iterable[str]]) -> dict[UUID, list[UUID] | None]:
    """For each child: the live jobs that bring its entity to the targets before its own, as they will stay.

    ``behind``: the child, and the targets that had an older content than the child read. Empty: they have the present
    content by now. None: one of them has not, and nobody brings it.
    """
    dialect = conn.dialect.name
    asked = rows_json([{"id": job_id, "target": name} for job_id in sorted(behind) for name in behind[job_id]])
    live = conn.execute(_carriers(dialect), {"asked": asked}).all()
    # A statement of its own, and later: it sees what those ended with that ended while we waited for their rows.
    lacking = conn.execute(_still_behind(dialect), {"asked": asked}).all()
    carried = {(row.id, row.target) for row in live}
    found: dict[UUID, list[UUID] | None] = {job_id: [] for job_id in behind}
    for row in live:
        found[row.id] = [*(found[row.id] or ()), row.carrier]
    for row in lacking:
        if (row.id, row.target) not in carried:
            found[row.id] = None
    return found


_BEHIND: dict[str, Any] = {"id": sa.Uuid(), "target": sa.Text()}


@cache
def _carriers(dialect: str) -> Any:
    asked, child, other = incoming(dialect, "asked", _BEHIND), jobs.alias("child"), jobs.alias("other")
    same = sa.and_(
        other.c.tenant == child.c.tenant, other.c.domain == child.c.domain, other.c.target == asked.c.target,
        other.c.entity_key == child.c.entity_key, other.c.entity_key.is_not(None), other.c.finished_at.is_(None),
    )  # fmt: skip
    return (
        sa.select(child.c.id, asked.c.target, other.c.id.label("carrier"))
        .select_from(asked.join(child, child.c.id == asked.c.id).join(other, same))
        .order_by(other.c.id)
        .with_for_update(read=True, of=other)
    )


@cache
def _still_behind(dialect: str) -> Any:
    asked, child, e, w = incoming(dialect, "asked", _BEHIND), jobs.alias("child"), entity_table, watermarks
    entity = sa.and_(e.c.tenant == child.c.tenant, e.c.domain == child.c.domain, e.c.key == child.c.entity_key)
    has_it = sa.exists().where(
        w.c.tenant == child.c.tenant, w.c.domain == child.c.domain, w.c.key == child.c.entity_key,
        w.c.target == asked.c.target, w.c.version >= e.c.version,
    )  # fmt: skip
    return (
        sa.select(child.c.id, asked.c.target)
        .select_from(asked.join(child, child.c.id == asked.c.id).join(e, entity))
        .where(~has_it)
    )
