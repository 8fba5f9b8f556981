"""Who did what: the events of a tenant, the newest first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.tables import events


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that a person or a program did on purpose: what, to what, and when."""

    id: UUID
    at: datetime
    tenant: str
    """Empty: it concerns all of them."""
    subject: str
    """Kind and name of the thing: ``job:<id>``, ``workflow:<id>``, ``queue:<name>``, ``key:<id>``, …"""
    action: str
    actor: str
    key_id: UUID | None
    """The API key that was used, if there was one."""
    detail: Any


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """What a listing of events is narrowed to; the range is half open: [since, until)."""

    actor: str | None = None
    """Text in the actor's name, or the id of an API key."""
    action: str | None = None
    subject: str | None = None
    """Whole, or its kind only: ``workflow``."""
    since: datetime | None = None
    until: datetime | None = None


_SHOWN = [events.c[name] for name in AuditEvent.__dataclass_fields__]


def list_page(
    conn: Connection, tenant: str | None, only: AuditFilter, *, before: UUID | None, limit: int
) -> list[AuditEvent]:
    """At most ``limit`` events, all older than ``before``. ``tenant`` None: of all tenants, and of none."""
    query = sa.select(*_SHOWN).order_by(events.c.id.desc()).limit(limit).where(*_conditions(only))
    if tenant is not None:
        query = query.where(events.c.tenant == tenant)
    if before is not None:
        query = query.where(events.c.id < before)
    return [AuditEvent(**row._asdict()) for row in conn.execute(query)]


def _conditions(only: AuditFilter) -> Iterable[Any]:
    if only.actor is not None:
        key_id = _as_id(only.actor)
        yield events.c.key_id == key_id if key_id else events.c.actor.contains(only.actor, autoescape=True)
    if only.action is not None:
        yield events.c.action == only.action
    if only.subject is not None:
        whole = ":" in only.subject
        yield (
            events.c.subject == only.subject
            if whole
            else events.c.subject.startswith(f"{only.subject}:", autoescape=True)
        )
    if only.since is not None:
        yield events.c.at >= only.since
    if only.until is not None:
        yield events.c.at < only.until


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
