"""Inbound hooks: tokens that start jobs of one workflow. As with keys, only a keyed digest of each is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.store.keys import end, note_use
from jobq.store.sql import insert, later, now, plus
from jobq.store.tables import hooks, workflows

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class StoredHook:
    """A hook as it is known here: never its token, never its secret."""

    id: UUID
    tenant: str
    workflow_id: UUID
    name: str
    start: str
    """The first characters of the token, by which its holder recognizes it."""
    signature: str
    """How requests are signed: none, hub (``X-Hub-Signature-256``) or standard (Standard Webhooks)."""
    replay_window: float | None
    """Seconds that the signed timestamp may be away from now."""
    rate_limit: int | None
    """Jobs a minute."""
    envelope: bool
    """The job's state is the payload with what came around it, not the payload alone."""
    created_at: datetime
    created_by: str
    revoked_at: datetime | None
    last_used_at: datetime | None
    """About: a use is noted once a minute, if the hook has no rate limit."""


_SHOWN = [hooks.c[name] for name in StoredHook.__dataclass_fields__]


def create(conn: Connection, hook_id: UUID, fields: dict[str, Any]) -> StoredHook:
    """Store a hook; repeatable. ``fields``: those of ``StoredHook`` that are not made here, digest and sealed."""
    values = {"id": hook_id, "created_at": now(), **fields}
    conn.execute(insert(conn.dialect.name, hooks).values(**values).on_conflict_do_nothing(index_elements=["id"]))
    return _as_hook(conn.execute(sa.select(*_SHOWN).where(hooks.c.id == hook_id)).one())


def find(conn: Connection, digest: str) -> Row[Any] | None:
    """The hook with this digest, its sealed secret, and the instant (``asked_at``); None if it is revoked."""
    alive = sa.and_(hooks.c.revoked_at.is_(None), sa.exists().where(workflows.c.id == hooks.c.workflow_id))
    return conn.execute(sa.select(hooks, now().label("asked_at")).where(hooks.c.digest == digest, alive)).first()


def list_of(conn: Connection, workflow_id: UUID) -> Sequence[StoredHook]:
    """The hooks of a workflow, the newest first."""
    query = sa.select(*_SHOWN).where(hooks.c.workflow_id == workflow_id).order_by(hooks.c.id.desc())
    return [_as_hook(row) for row in conn.execute(query)]


def revoke(conn: Connection, workflow_id: UUID, hook_id: UUID) -> StoredHook | None:
    """End a hook; ending it twice changes nothing. None: the workflow has no such hook."""
    row = end(conn, hooks, _SHOWN, hooks.c.id == hook_id, hooks.c.workflow_id == workflow_id)
    return None if row is None else _as_hook(row)


def take(conn: Connection, hook_id: UUID, rate_limit: int | None) -> float:
    """Count one job against the hook's rate: 0.0 if it may start, else how many seconds it has to wait.

    A bucket of ``rate_limit`` jobs that is filled in a minute, exact for any number of processes: the row is locked
    until the caller's transaction ends, and what rolls back was not counted.
    """
    if rate_limit is None:
        note_use(conn, hook_id, hooks)
        return 0.0
    each = MINUTE / rate_limit
    begins = sa.case((hooks.c.busy_until > now(), hooks.c.busy_until), else_=now())
    has_room = sa.or_(hooks.c.busy_until.is_(None), hooks.c.busy_until <= later(MINUTE - each))
    taken = conn.execute(
        sa.update(hooks)
        .where(hooks.c.id == hook_id, has_room)
        .values(busy_until=plus(begins, sa.cast(each, sa.Float)), last_used_at=now())
    )
    if taken.rowcount:
        return 0.0
    row = conn.execute(sa.select(hooks.c.busy_until, now().label("asked_at")).where(hooks.c.id == hook_id)).one()
    wait: float = (row.busy_until - row.asked_at).total_seconds() - MINUTE + each
    return max(wait, 0.001)


def _as_hook(row: Row[Any]) -> StoredHook:
    return StoredHook(**row._asdict())
