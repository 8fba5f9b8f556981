"""Targets that asked for patience: a known "not now" of one child spares the target for all of them.

Promotion holds the jobs of such a target until the time is over, and then lets one through to see whether it is
welcome: the first child that ends in any other way than "not now" lifts the hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.database import incoming, insert, later, now, rows_json
from jobq.store.tables import targets

Name = tuple[str, str]
"""A tenant, and the name of a target in its SYNCs."""

_COLUMNS: dict[str, Any] = {"tenant": sa.Text(), "name": sa.Text(), "seconds": sa.Float(), "message": sa.Text()}


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
    rows = sa.select(new.c.tenant, new.c.name, later(new.c.seconds), new.c.message).where(new.c.name.is_not(None))
    statement = insert(dialect, targets).from_select(["tenant", "name", "not_before", "message"], rows)
    asked = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["tenant", "name"],
        set_={"not_before": asked.not_before, "message": asked.message},
        where=targets.c.not_before < asked.not_before,
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
    return sa.delete(targets).where(
        targets.c.not_before <= now(), sa.exists(sa.select(sa.literal_column("1")).select_from(names).where(same))
    )


def held(conn: Connection) -> dict[Name, bool]:
    """All holds: True while the time is not over, False where the target may be tried with one job."""
    rows = conn.execute(sa.select(targets.c.tenant, targets.c.name, (targets.c.not_before > now()).label("closed")))
    return {(row.tenant, row.name): bool(row.closed) for row in rows}
