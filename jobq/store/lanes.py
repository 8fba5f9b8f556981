"""The limits of lanes: how many jobs of a workflow, or of a SYNC for one target, may be in flight at once.

A lane is named after a workflow with a concurrency of its own, or after a SYNC and a target (``fanin.of_lane``). A lane
whose SYNC is paused or canceled, or whose target asked for patience, takes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.states import Desired
from jobq.store.fanin import of_lane
from jobq.store.sql import id_list, is_one_of
from jobq.store.tables import fanout_targets, jobs, workflows
from jobq.store.targets import Name, held


def limits(conn: Connection, lanes: Mapping[str, str], in_flight: Counter[str]) -> dict[str, int]:
    """How many jobs each of these lanes (→ their tenants) may have in flight; missing: any number."""
    children = {lane: place for lane in lanes if (place := of_lane(lane)) is not None}
    of_workflows = [UUID(lane) for lane in lanes if lane and lane not in children]
    found = _of_workflows(conn, of_workflows) if of_workflows else {}
    return found | (_of_children(conn, children, lanes, in_flight) if children else {})


def _of_workflows(conn: Connection, ids: Iterable[UUID]) -> dict[str, int]:
    dialect = conn.dialect.name
    rows = conn.execute(_concurrency(dialect), {"ids": id_list(dialect, ids)})
    return {row.id.hex: row.concurrency for row in rows if row.concurrency is not None}


@cache
def _concurrency(dialect: str) -> Any:
    return sa.select(workflows.c.id, workflows.c.concurrency).where(is_one_of(dialect, workflows.c.id, "ids"))


def _of_children(
    conn: Connection, children: Mapping[str, tuple[UUID, str]], tenants: Mapping[str, str], in_flight: Counter[str]
) -> dict[str, int]:
    dialect = conn.dialect.name
    parents = {"ids": id_list(dialect, {parent for parent, _ in children.values()})}
    rows = {(row.parent_id, row.target): row for row in conn.execute(_fanouts(dialect), parents)}
    room = _room_of_held(conn, in_flight)
    found: dict[str, int] = {}
    for lane, place in children.items():
        row, name = rows.get(place), (tenants[lane], place[1])
        if row is None or row.desired != Desired.RUN:
            found[lane] = 0
            continue
        limit = row.concurrency
        if name in room:  # what is left of it goes to the lane that comes first
            tried = in_flight[lane] + room[name]
            limit = tried if limit is None else min(limit, tried)
            room[name] = 0
        if limit is not None:
            found[lane] = limit
    return found


@cache
def _fanouts(dialect: str) -> Any:
    c = fanout_targets.c
    return (
        sa.select(c.parent_id, c.target, c.concurrency, jobs.c.desired)
        .join(jobs, jobs.c.id == c.parent_id)
        .where(is_one_of(dialect, c.parent_id, "ids"))
    )


def _room_of_held(conn: Connection, in_flight: Counter[str]) -> dict[Name, int]:
    """How many more jobs each target takes that asked for patience; others are missing."""
    room = held(conn)
    if not room:
        return {}
    dialect = conn.dialect.name
    flying = {lane: place for lane, count in in_flight.items() if count > 0 and (place := of_lane(lane)) is not None}
    parents = {"ids": id_list(dialect, {parent for parent, _ in flying.values()})}
    query = sa.select(jobs.c.id, jobs.c.tenant).where(is_one_of(dialect, jobs.c.id, "ids"))
    tenants = {row.id: row.tenant for row in conn.execute(query, parents)}
    for lane, (parent, target) in flying.items():
        name = (tenants.get(parent, ""), target)
        if name in room:
            room[name] = max(room[name] - in_flight[lane], 0)
    return room
