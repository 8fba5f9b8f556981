"""A slot's job that has to wait for its predecessor (overlap ``queue``): PENDING·blocked until that has ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.states import Reason, Trigger
from jobq.store.sql import id_list, is_one_of, now
from jobq.store.tables import jobs
from jobq.store.wakeup import announce


def release_next(conn: Connection, ended: Sequence[Row[Any]]) -> None:
    """A slot's job that had to wait for its predecessor (overlap) is ready now."""
    waited_for = {row.workflow_id for row in ended if row.workflow_id and row.trigger == Trigger.AUTOMATIC}
    if waited_for and release_blocked(conn, waited_for):
        announce(conn)


def release_blocked(conn: Connection, of: Iterable[UUID] | None = None) -> int:
    """PENDING·blocked → ready for the oldest blocked job of each workflow that has no other AUTOMATIC job under way.

    Called where such a job ends and, for an end that was not visible yet when the successor arrived, by a sweep.
    """
    dialect = conn.dialect.name
    parameters = {} if of is None else {"ids": id_list(dialect, of)}
    return len(conn.execute(_release(dialect, of is None), parameters).all())


@cache
def _release(dialect: str, everywhere: bool) -> Any:
    blocked, other = jobs.alias("blocked"), jobs.alias("other")
    under_way = sa.exists().where(
        other.c.workflow_id == blocked.c.workflow_id,
        other.c.finished_at.is_(None),
        other.c.trigger == Trigger.AUTOMATIC.value,
        sa.or_(other.c.reason != Reason.BLOCKED.value, other.c.slot_at < blocked.c.slot_at),
    )
    chosen = (
        sa.select(blocked.c.id)
        .where(blocked.c.reason == sa.literal_column("'blocked'"), blocked.c.workflow_id.is_not(None), ~under_way)
        .where(blocked.c.trigger == Trigger.AUTOMATIC.value)  # others wait for jobs that they name: jobq.store.after
        .order_by(blocked.c.id)
        .with_for_update(skip_locked=True, of=blocked)
    )
    if not everywhere:
        chosen = chosen.where(is_one_of(dialect, blocked.c.workflow_id, "ids"))
    return (
        sa.update(jobs)
        .where(jobs.c.id.in_(chosen))
        .values(reason=Reason.READY.value, ready_at=now())
        .returning(jobs.c.id)
    )
