"""Jobs that were live when an endpoint came: they are hooked, so that it hears what happens to them from then on.

The newest are hooked with the endpoint itself, all others by the scheduler, which walks from the newest to the oldest.
It walks twice: a transaction that was open when the endpoint came may have enqueued without knowing of it, and be
committed behind the walk's back. So, once all that were open at the first walk have ended, there is a second one.
(SQLite has one writer: an endpoint comes when no other transaction is open.)
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.sql import POSTGRESQL, id_list, is_one_of, picked_once
from jobq.store.tables import jobs, webhook_endpoints

_HOOKED_AT_ONCE = 2000
_BOTTOM = UUID(int=0)
"""``hooked_from`` behind the oldest job: the first walk has ended."""
_LAST = 0
"""``hooked_behind`` on the last walk; before it the transaction number that all open ones have to come to."""


def hook_live(conn: Connection, endpoint_id: UUID) -> None:
    """The newest live jobs of an endpoint that is new, or changed, and for the scheduler to do: all of them."""
    c = webhook_endpoints.c
    endpoint = conn.execute(sa.select(webhook_endpoints).where(c.id == endpoint_id)).one()
    if endpoint.listens:
        _hook_page(conn, endpoint, None, _HOOKED_AT_ONCE)
    again = {"hooking": bool(endpoint.listens), "hooked_from": None, "hooked_behind": None}
    conn.execute(sa.update(webhook_endpoints).where(c.id == endpoint_id).values(**again))


def hook_live_jobs(conn: Connection, limit: int = 2000) -> bool:
    """Hook some more of the live jobs of an endpoint, the newest first; False: there is none to hook for, for now."""
    c = webhook_endpoints.c
    query = sa.select(webhook_endpoints).where(c.hooking, _may_walk(conn.dialect.name))
    endpoint = conn.execute(query.order_by(c.id).limit(1).with_for_update(skip_locked=True)).first()
    if endpoint is None:
        return False
    walked, behind = endpoint.hooked_from, endpoint.hooked_behind
    if behind is None:
        behind = _newest_transaction(conn)
    elif walked == _BOTTOM:
        walked, behind = None, _LAST
    walked = _hook_page(conn, endpoint, walked, limit)
    done = {"hooking": walked != _BOTTOM or behind != _LAST, "hooked_from": walked, "hooked_behind": behind}
    conn.execute(sa.update(webhook_endpoints).where(c.id == endpoint.id).values(**done))
    return True


def _may_walk(dialect: str) -> Any:
    """Is it on a walk, or have all ended that the last one has to wait for?"""
    c = webhook_endpoints.c
    on_a_walk = sa.or_(c.hooked_from.is_(None), c.hooked_from != _BOTTOM)
    return (
        sa.or_(on_a_walk, _number(sa.func.pg_snapshot_xmin) >= c.hooked_behind) if dialect == POSTGRESQL else on_a_walk
    )


def _newest_transaction(conn: Connection) -> int:
    """Transactions with this number, or a higher one, see the endpoint."""
    return (
        conn.scalar(sa.select(_number(sa.func.pg_snapshot_xmax))) or _LAST if conn.dialect.name == POSTGRESQL else _LAST
    )


def _number(of_snapshot: Any) -> Any:
    return sa.cast(sa.cast(of_snapshot(sa.func.pg_current_snapshot()), sa.Text), sa.BigInteger)


def _hook_page(conn: Connection, endpoint: Any, below: UUID | None, limit: int) -> UUID:
    """One step of a walk, by an index of live jobs only. Returns how far that came."""
    page = sa.select(jobs.c.id, jobs.c.hooked, jobs.c.parent_id).where(
        jobs.c.tenant == endpoint.tenant, jobs.c.finished_at.is_(None)
    )
    if below is not None:
        page = page.where(jobs.c.id < below)
    rows = conn.execute(page.order_by(jobs.c.id.desc()).limit(limit)).all()
    live = [row.id for row in rows if row.hooked is None and (endpoint.children or row.parent_id is None)]
    if live:
        dialect = conn.dialect.name
        chosen = sa.select(jobs.c.id).where(
            is_one_of(dialect, jobs.c.id, "ids"), jobs.c.finished_at.is_(None), jobs.c.hooked.is_(None)
        )
        locked = chosen.order_by(jobs.c.id).with_for_update()
        hooked = sa.update(jobs).where(jobs.c.id.in_(picked_once(locked)), jobs.c.hooked.is_(None)).values(hooked=0)
        conn.execute(hooked, {"ids": id_list(dialect, live)})
    return rows[-1].id if len(rows) == limit else _BOTTOM
