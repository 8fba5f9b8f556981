"""API keys: only a keyed digest of each is stored, so that the table is worth nothing to who reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.store.sql import now, plus
from jobq.store.tables import keys

_USED_EVERY = 60.0
"""Seconds within which the use of a key is written once at most."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An API key as it is known here: never the key itself."""

    id: UUID
    tenant: str | None
    """None: an operator's, for all tenants."""
    name: str
    start: str
    """The first characters of the key, by which its holder recognizes it."""
    scope: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """About: a use is noted once a minute at most."""


_SHOWN = [keys.c[name] for name in StoredKey.__dataclass_fields__]


def create(conn: Connection, key_id: UUID, digest: str, fields: dict[str, Any]) -> StoredKey:
    """Store a key. ``fields``: tenant, name, start, scope, created_by, expires_at."""
    conn.execute(sa.insert(keys).values(id=key_id, digest=digest, created_at=now(), **fields))
    return _as_key(conn.execute(sa.select(*_SHOWN).where(keys.c.id == key_id)).one())


def find_valid(conn: Connection, digest: str) -> StoredKey | None:
    """The key with this digest, unless it is expired or revoked."""
    alive = sa.and_(keys.c.revoked_at.is_(None), sa.or_(keys.c.expires_at.is_(None), keys.c.expires_at > now()))
    row = conn.execute(sa.select(*_SHOWN).where(keys.c.digest == digest, alive)).first()
    return None if row is None else _as_key(row)


def note_use(conn: Connection, credential_id: UUID, table: sa.Table = keys) -> None:
    """The key (or another credential, of its own table) was used, about now."""
    used_at = table.c.last_used_at
    fresh = plus(used_at, sa.literal(_USED_EVERY, sa.Float)) > now()
    conn.execute(
        sa.update(table)
        .where(table.c.id == credential_id, sa.or_(used_at.is_(None), ~fresh))
        .values(last_used_at=now())
    )


def any_exists(conn: Connection) -> bool:
    """Was ever a key made? From then on nobody is served without one."""
    return conn.scalar(sa.select(keys.c.id).limit(1)) is not None


def list_all(conn: Connection, tenant: str | None) -> Sequence[StoredKey]:
    """The keys of a tenant (None: of all, and the operators'), the newest first."""
    query = sa.select(*_SHOWN).order_by(keys.c.id.desc())
    return [_as_key(row) for row in conn.execute(query if tenant is None else query.where(keys.c.tenant == tenant))]


def revoke(conn: Connection, tenant: str | None, key_id: UUID) -> StoredKey | None:
    """End a key; ending it twice changes nothing. None: there is no such key of this tenant."""
    row = end(conn, keys, _SHOWN, keys.c.id == key_id, *([] if tenant is None else [keys.c.tenant == tenant]))
    return None if row is None else _as_key(row)


def end(conn: Connection, table: sa.Table, shown: Sequence[Any], *which: Any) -> Row[Any] | None:
    """Set ``revoked_at`` of a credential that has none yet; its row as it is then."""
    revoked_at = sa.func.coalesce(table.c.revoked_at, now())
    return conn.execute(sa.update(table).where(*which).values(revoked_at=revoked_at).returning(*shown)).first()


def _as_key(row: Row[Any]) -> StoredKey:
    return StoredKey(**row._asdict())
