"""Targets that asked for patience: a known "not now" of one child spares the target for all of them.

Promotion holds the jobs of such a target until the time is over, and then lets one through to see whether it is
welcome. Whatever ends in any other way than "not now" doubles how many may be in flight (slow start, as in RFC 5681):
without it all free slots of a fleet would rush to a target that takes three a second, be refused, and come again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.sql import incoming, insert, later, now, rows_json
from jobq.store.tables import targets

Name = tuple[str, str]
"""A tenant, and the name of a target in its SYNCs."""

_COLUMNS: dict[str, Any] = {"tenant": sa.Text(), "name": sa.Text(), "seconds": sa.Float(), "message": sa.Text()}


OPEN = 256
"""In flight at once: from there on the target is as good as any other."""


def hold(conn: Connection, asked: Mapping[Name, tuple[timedelta, str]]) -> None:
    """These targets asked to be left alone for so long, and why; a longer hold stays."""
    rows = [
        {
            "tenant": tenant,
            "name": name,
            "seconds": asked[tenant, name][0].total_seconds(),
            "message": asked[tenant, name][1],
        }
        for tenant, name in sorted(asked)
    ]
    if rows:
        conn.execute(_hold(conn.dialect.name), {"asked": rows_json(rows)})


@cache
def _hold(dialect: str) -> Any:
    new = incoming(dialect, "asked", _COLUMNS)
    one: Any = sa.literal_column("1")
    rows = sa.select(new.c.tenant, new.c.name, later(new.c.seconds), one, new.c.message).where(new.c.name.is_not(None))
    columns = ["tenant", "name", "not_before", "allowed", "message"]
    statement = insert(dialect, targets).from_select(columns, rows)
    asked = statement.excluded
    longer = targets.c.not_before < asked.not_before
    return statement.on_conflict_do_update(
        index_elements=["tenant", "name"],
        set_={
            "not_before": sa.case((longer, asked.not_before), else_=targets.c.not_before),
            "message": sa.case((longer, asked.message), else_=targets.c.message),
            "allowed": asked.allowed,
        },
    )


def lift(conn: Connection, answered: Iterable[Name]) -> None:
    """These targets took a job again. A hold that began while it was under way stays until its own time."""
    rows = [{"tenant": tenant, "name": name} for tenant, name in sorted(set(answered))]
    if rows:
        conn.execute(_lift(conn.dialect.name), {"answered": rows_json(rows)})


@cache
def _lift(dialect: str) -> Any:
    names = incoming(dialect, "answered", {"tenant": sa.Text(), "name": sa.Text()})
    same = sa.and_(names.c.tenant == targets.c.tenant, names.c.name == targets.c.name)
    return (
        sa.update(targets)
        .where(targets.c.not_before <= now(), targets.c.allowed < OPEN)
        .where(sa.exists(sa.select(sa.literal_column("1")).select_from(names).where(same)))
        .values(allowed=targets.c.allowed * 2)
    )


def held(conn: Connection) -> dict[Name, int]:
    """How many jobs each target that asked for patience may have in flight: 0 while its time is not over."""
    closed = sa.case((targets.c.not_before > now(), 0), else_=targets.c.allowed)
    rows = conn.execute(
        sa.select(targets.c.tenant, targets.c.name, closed.label("allowed")).where(targets.c.allowed < OPEN)
    )
    return {(row.tenant, row.name): int(row.allowed) for row in rows}
