"""What quotas are compared with: a tenant's waiting and running jobs, and its schedules. Counted where few rows are seen."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.control import add_event, ready_queues
from jobq.store.sql import insert
from jobq.store.tables import HELD, jobs, tenants, workflows


def read(conn: Connection, tenant: str) -> dict[str, Any]:
    """What was set for the tenant; the rest is the installation's default."""
    found: dict[str, Any] | None = conn.scalar(sa.select(tenants.c.quota).where(tenants.c.name == tenant))
    return found or {}


def read_all(conn: Connection) -> dict[str, dict[str, Any]]:
    """What was set for any tenant."""
    rows = conn.execute(sa.select(tenants.c.name, tenants.c.quota).where(tenants.c.quota.is_not(None)))
    return {row.name: row.quota or {} for row in rows}


def change(conn: Connection, tenant: str, values: dict[str, Any], defaults: set[str], actor: str) -> dict[str, Any]:
    """Set some values of a tenant's quota, and leave some to the default again. Returns what is set then."""
    conn.execute(insert(conn.dialect.name, tenants).values(name=tenant).on_conflict_do_nothing())
    mine = tenants.c.name == tenant
    before = conn.scalar(sa.select(tenants.c.quota).where(mine).with_for_update()) or {}
    quota = {name: value for name, value in {**before, **values}.items() if name not in defaults}
    conn.execute(sa.update(tenants).where(mine).values(quota=quota or None))
    add_event(conn, tenant, f"tenant:{tenant}", "quota", actor, detail={**values, **dict.fromkeys(defaults, "default")})
    return quota


def count_waiting(conn: Connection, tenant: str, most: int) -> int:
    """The tenant's jobs that are PENDING or QUEUED; counting stops soon behind ``most``.

    Each part by its own index: ready ones by their queue, promoted ones among all that are in flight, and those that
    wait for anything but room by an index that jobs which never do so do not pay for.
    """
    mine = jobs.c.tenant == tenant
    parts = [sa.and_(_ready(queue), mine) for queue in ready_queues(conn)]
    parts += [sa.and_(sa.text(HELD), mine), sa.and_(jobs.c.next_send_at.is_not(None), _among_those_in_flight(tenant))]
    counts = [
        sa.select(sa.func.count())
        .select_from(sa.select(jobs.c.id).where(part).limit(most + 1).subquery(f"part{number}"))
        .scalar_subquery()
        for number, part in enumerate(parts)
    ]
    return sum(conn.execute(sa.select(*counts)).one())


def _among_those_in_flight(tenant: str) -> Any:
    """A comparison that no index answers: else the planner walks over all jobs that the tenant ever had."""
    return sa.func.coalesce(jobs.c.tenant, "") == tenant


def _ready(queue: str) -> Any:
    return sa.and_(jobs.c.reason == sa.literal_column("'ready'"), jobs.c.queue == queue)


def count_running(conn: Connection, tenant: str) -> int:
    """The tenant's jobs that a worker has now: never more than there are worker slots."""
    query = sa.select(sa.func.count()).where(jobs.c.worker_id.is_not(None), _among_those_in_flight(tenant))
    return conn.scalar(query) or 0


def count_schedules(conn: Connection, tenant: str) -> int:
    """The tenant's workflows that have a schedule, whatever their status."""
    timed = sa.or_(workflows.c.interval_us.is_not(None), workflows.c.cron.is_not(None))
    return conn.scalar(sa.select(sa.func.count()).where(workflows.c.tenant == tenant, timed)) or 0
