"""Secrets of tenants: sealed values (``jobq.vault``) by name. Job rows only ever hold names."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.store.sql import insert, now
from jobq.store.tables import secrets


def put(conn: Connection, tenant: str, name: str, sealed: str) -> None:
    """Store a value, new or in place of an older one."""
    values: dict[str, Any] = {"sealed": sealed, "updated_at": now()}
    conn.execute(
        insert(conn.dialect.name, secrets)
        .values(tenant=tenant, name=name, created_at=now(), **values)
        .on_conflict_do_update(index_elements=["tenant", "name"], set_=values)
    )


def find(conn: Connection, tenant: str, names: Iterable[str]) -> dict[str, str]:
    """The sealed values of those names that exist."""
    query = sa.select(secrets.c.name, secrets.c.sealed).where(
        secrets.c.tenant == tenant, secrets.c.name.in_(list(names))
    )
    return {row.name: row.sealed for row in conn.execute(query)}


def list_names(conn: Connection, tenant: str) -> list[tuple[str, datetime]]:
    """Names and the instants of their last change."""
    query = sa.select(secrets.c.name, secrets.c.updated_at).where(secrets.c.tenant == tenant).order_by(secrets.c.name)
    return [(name, updated_at) for name, updated_at in conn.execute(query)]


def remove(conn: Connection, tenant: str, name: str) -> bool:
    """Forget a secret; False: there was none of that name."""
    return bool(conn.execute(sa.delete(secrets).where(secrets.c.tenant == tenant, secrets.c.name == name)).rowcount)
