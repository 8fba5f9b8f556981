"""Endpoints of webhooks, and the log of what was sent to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.store.sql import insert, later, now, picked_once
from jobq.store.tables import webhook_deliveries, webhook_endpoints, webhook_events
from jobq.store.webhook_live import hook_live
from jobq.webhook_events import TEST

_FIELDS = (
    "id", "name", "url", "patterns", "children", "hub_signature", "secrets", "enabled", "disabled_reason",
    "failing_since", "succeeded_at", "created_at", "updated_at", "tenant", "types",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint, and what became of it so far. What is said of an answer is that of the last try."""

    id: int
    webhook_id: str
    """The header of that name: the same at each try, and for all endpoints."""
    type: str
    job_id: UUID
    """Of ``workflow.terminated``: the workflow."""
    number: int
    state: str
    """PENDING, SUCCEEDED or FAILED: after the last try, or because the receiver is gone."""
    tries: int
    created_at: datetime
    next_at: datetime | None
    """PENDING: when it is tried, or is to be tried again should whoever tries it now not come back."""
    tried_at: datetime | None
    ended_at: datetime | None
    status_code: int | None
    error_class: str | None
    """status, redirect, gone, or why no answer came: those of HEARTBEAT (dns, refused, tls, timed_out, blocked, …)."""
    message: str | None
    answer: str | None
    """How the body of the answer began, up to 4 KiB."""
    seconds: float | None


_DELIVERY = [
    webhook_deliveries.c[name]
    for name in (
        "id", "type", "subject_id", "number", "state", "tries", "created_at", "next_at", "tried_at", "ended_at",
        "status_code", "error_class", "message", "answer", "seconds",
    )
]  # fmt: skip


def as_delivery(row: Row[Any]) -> Delivery:
    """A row of ``jobq_webhook_deliveries`` as people see it."""
    values = row._asdict()
    subject = values.pop("subject_id")
    return Delivery(webhook_id=f"evt_{subject.hex}_{row.number}", job_id=subject, **values)


# --- endpoints -----------------------------------------------------------------------------------------------------


def create(conn: Connection, endpoint_id: UUID, tenant: str, fields: Mapping[str, Any]) -> Row[Any] | None:
    """Store an endpoint; None: the name is taken by another one. Repeated with the same id, it is the same endpoint.

    Jobs that are live get hooked: the newest here, all by the scheduler, within seconds.
    """
    values = {
        "id": endpoint_id, "tenant": tenant, "created_at": now(), "updated_at": now(), "hooking": True,
        "enabled": True, "listens": bool(fields["patterns"]), **fields,
    }  # fmt: skip
    conn.execute(insert(conn.dialect.name, webhook_endpoints).values(**values).on_conflict_do_nothing())
    row = find(conn, tenant, endpoint_id)
    if row is not None:
        hook_live(conn, endpoint_id)
    return row


def find(conn: Connection, tenant: str, key: UUID | str, *, lock: bool = False) -> Row[Any] | None:
    """An endpoint of the tenant by its id or its name."""
    c = webhook_endpoints.c
    query = sa.select(*(c[name] for name in _FIELDS)).where(c.tenant == tenant)
    query = query.where(c.id == key) if isinstance(key, UUID) else query.where(c.name == key)
    return conn.execute(query.with_for_update() if lock else query).first()


def list_all(conn: Connection, tenant: str) -> Sequence[Row[Any]]:
    """The tenant's endpoints, by name."""
    c = webhook_endpoints.c
    return conn.execute(sa.select(*(c[name] for name in _FIELDS)).where(c.tenant == tenant).order_by(c.name)).all()


def any_exists(conn: Connection) -> bool:
    """Is there any endpoint, of any tenant?"""
    return conn.execute(sa.select(webhook_endpoints.c.id).limit(1)).first() is not None


def count(conn: Connection, tenant: str) -> int:
    """How many endpoints the tenant has."""
    query = sa.select(sa.func.count()).select_from(webhook_endpoints).where(webhook_endpoints.c.tenant == tenant)
    return int(conn.scalar(query) or 0)


def update(conn: Connection, endpoint_id: UUID, changes: Mapping[str, Any]) -> None:
    """Change some columns of an endpoint. What it listens to follows from them."""
    c = webhook_endpoints.c
    conn.execute(sa.update(webhook_endpoints).where(c.id == endpoint_id).values(**changes, updated_at=now()))
    hears = sa.and_(c.enabled, sa.func.trim(c.types) != "")
    conn.execute(sa.update(webhook_endpoints).where(c.id == endpoint_id).values(listens=hears))


def remove(conn: Connection, endpoint_id: UUID) -> None:
    """Forget an endpoint at once; its deliveries go with ``jobq.store.prune``."""
    conn.execute(sa.delete(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id))


# --- deliveries ----------------------------------------------------------------------------------------------------


def add_test(conn: Connection, tenant: str, endpoint_id: UUID, subject_id: UUID, message: str) -> Delivery:
    """An event that tells of nothing, for this endpoint alone. Repeated with the same subject, it is the same one."""
    event = {
        "subject_id": subject_id, "number": 1, "tenant": tenant, "type": TEST, "at": now(), "child": False,
        "attempt": 0, "status": "TEST", "reason": "", "message": message,
    }  # fmt: skip
    wrote = conn.execute(insert(conn.dialect.name, webhook_events).values(**event).on_conflict_do_nothing())
    if wrote.rowcount:
        conn.execute(
            sa.insert(webhook_deliveries).values(
                endpoint_id=endpoint_id, subject_id=subject_id, number=1, type=TEST, state="PENDING",
                created_at=now(), next_at=now(), tries=0, round=0,
            )
        )  # fmt: skip
    c = webhook_deliveries.c
    query = sa.select(*_DELIVERY).where(c.endpoint_id == endpoint_id, c.subject_id == subject_id)
    return as_delivery(conn.execute(query).one())


def delivery(conn: Connection, endpoint_id: UUID, delivery_id: int) -> Delivery | None:
    """One delivery to an endpoint."""
    c = webhook_deliveries.c
    row = conn.execute(sa.select(*_DELIVERY).where(c.id == delivery_id, c.endpoint_id == endpoint_id)).first()
    return None if row is None else as_delivery(row)


def deliveries(
    conn: Connection, endpoint_id: UUID, only: Mapping[str, Any], *, before: int | None, limit: int
) -> list[Delivery]:
    """The newest first, older than the one ``before``. ``only``: state, type, subject_id."""
    c = webhook_deliveries.c
    query = sa.select(*_DELIVERY).where(c.endpoint_id == endpoint_id).order_by(c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(c.id < before)
    for name, value in only.items():
        query = query.where(c[name] == value)
    return [as_delivery(row) for row in conn.execute(query)]


_AGAIN: dict[str, Any] = {"state": "PENDING", "round": 0, "ended_at": None, "sender": None}


def replay(conn: Connection, endpoint_id: UUID, delivery_id: int) -> Delivery | None:
    """Send one again, now, with all its tries before it. None: there is none (any more)."""
    c = webhook_deliveries.c
    conn.execute(
        sa.update(webhook_deliveries)
        .where(c.id == delivery_id, c.endpoint_id == endpoint_id)
        .values(next_at=now(), **_AGAIN)
    )
    return delivery(conn, endpoint_id, delivery_id)


def replay_failed(conn: Connection, endpoint_id: UUID, since: datetime, behind: int, limit: int) -> list[int]:
    """Send again what failed for good of the events since then, some at a time, behind one of them, in their order."""
    c = webhook_deliveries.c
    chosen = (
        sa.select(c.id)
        .where(c.endpoint_id == endpoint_id, c.id > behind, c.state == "FAILED", c.created_at >= since)
        .order_by(c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    again = sa.update(webhook_deliveries).where(c.id.in_(picked_once(chosen)))
    return sorted(conn.scalars(again.values(next_at=now(), **_AGAIN).returning(c.id)))


# --- prune ---------------------------------------------------------------------------------------------------------


def is_due(subject_id: Any) -> Any:
    """Is anything of this job still to be delivered to an endpoint that is enabled? It is kept until then."""
    c, ends = webhook_deliveries.c, webhook_endpoints.c
    waits = sa.exists().where(c.subject_id == subject_id, c.next_at.is_not(None))
    return waits.where(ends.id == c.endpoint_id, ends.enabled)


def prune(conn: Connection, kept: float, limit: int = 1000) -> int:
    """Delete events older than ``kept`` seconds with their deliveries, but for those that are due; returns how many.

    Deliveries to endpoints that are gone go as well.
    """
    e, d = webhook_events.c, webhook_deliveries.c
    old = sa.select(e.subject_id, e.number).where(e.at < later(-kept), ~is_due(e.subject_id))
    rows = conn.execute(old.order_by(e.subject_id, e.number).limit(limit)).all()
    for row in rows:
        at = {"subject_id": row.subject_id, "number": row.number}
        conn.execute(sa.delete(webhook_deliveries).where(*(d[name] == value for name, value in at.items())))
        conn.execute(sa.delete(webhook_events).where(*(e[name] == value for name, value in at.items())))
    orphans = sa.select(d.id).where(~sa.exists().where(webhook_endpoints.c.id == d.endpoint_id)).limit(limit)
    gone = conn.execute(sa.delete(webhook_deliveries).where(d.id.in_(picked_once(orphans))))
    return max(len(rows), gone.rowcount)
