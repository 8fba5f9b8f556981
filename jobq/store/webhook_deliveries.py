"""Deliveries of webhooks: what is due is leased, sent outside of any transaction, and recorded.

A lease is ``next_at`` moved behind the deadline of the request, and ``sender``, which every record names. So any number
of schedulers share the work, and what one of them sent and did not live to record is sent again, under the same id.
Of each endpoint only a few are taken at once: a thousand that are due at one that is dead are no hindrance to others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.store.control import add_event
from jobq.store.finish import storable
from jobq.store.sql import POSTGRESQL, id_list, incoming, is_one_of, later, now, picked_once, rows_json
from jobq.store.tables import jobs, webhook_deliveries, webhook_endpoints, webhook_events, workflows
from jobq.webhook_delivery import Verdict
from jobq.webhook_events import Happened

GIVE_UP_AFTER = 5 * 24 * 3600.0
"""Seconds without one success, from the first failure, after which an endpoint is disabled."""
_SUCCESS_NOTED_EVERY = 60.0
_EVENT = [
    *(webhook_events.c[name] for name in Happened.__dataclass_fields__ if name != "traceparent"), jobs.c.traceparent
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Leased:
    """A delivery that is this sender's to make, now."""

    id: int
    endpoint_id: UUID
    subject_id: UUID
    number: int
    tries: int
    """Of the present round, this one included."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a delivery that was leased."""

    delivery: Leased
    verdict: Verdict
    seconds: float


def endpoints_to_look_at(conn: Connection, limit: int = 1000) -> list[Row[Any]]:
    """Enabled endpoints that something is ``due`` at, and those whose live jobs are being hooked: all of each.

    ``fresh``: its last success was noted lately.
    """
    c, ends = webhook_deliveries.c, webhook_endpoints.c
    due = sa.and_(ends.enabled, sa.exists().where(c.endpoint_id == ends.id, c.next_at <= now()))
    fresh = ends.succeeded_at > later(-_SUCCESS_NOTED_EVERY)
    query = sa.select(webhook_endpoints, due.label("due"), fresh.label("fresh")).where(sa.or_(ends.hooking, due))
    return list(conn.execute(query.order_by(ends.id).limit(limit)))


def lease(conn: Connection, sender: UUID, rooms: Mapping[UUID, int], seconds: float) -> list[Leased]:
    """Take up to so many due deliveries of each of these endpoints, for ``seconds``; others pass over them."""
    some = [{"hook": endpoint_id, "room": room} for endpoint_id, room in sorted(rooms.items()) if room > 0]
    if not some:
        return []
    common = {"by": sender, "lasts": seconds}
    if conn.dialect.name == POSTGRESQL:
        rows = conn.execute(_lease_of_all(), {**common, "rooms": rows_json(some)}).all()
    else:
        rows = [row for one in some for row in conn.execute(_lease_of_one(), {**common, **one})]
    return [Leased(*row) for row in rows]


@cache
def _lease_of_all() -> Any:
    """The first ones of each endpoint: each is one walk over the index of what is due there."""
    room = incoming(POSTGRESQL, "rooms", {"hook": sa.Uuid(), "room": sa.Integer()})
    first = _due(room.c.hook, room.c.room).lateral("first")
    return _take(sa.select(first.c.id).select_from(room.join(first, sa.true())))


@cache
def _lease_of_one() -> Any:
    return _take(_due(sa.bindparam("hook", type_=sa.Uuid), sa.bindparam("room", type_=sa.Integer)))


def _due(endpoint_id: Any, room: Any) -> Any:
    c = webhook_deliveries.c
    return (
        sa.select(c.id)
        .where(c.endpoint_id == endpoint_id, c.next_at <= now())
        .order_by(c.next_at)
        .limit(room)
        .with_for_update(skip_locked=True)
    )


def _take(chosen: Any) -> Any:
    c = webhook_deliveries.c
    return (
        sa.update(webhook_deliveries)
        .where(c.id.in_(picked_once(chosen)))
        .values(
            next_at=later(sa.bindparam("lasts", type_=sa.Float)), sender=sa.bindparam("by", type_=sa.Uuid),
            tries=c.tries + 1, round=c.round + 1, tried_at=now(),
        )
        .returning(c.id, c.endpoint_id, c.subject_id, c.number, c.round)
    )  # fmt: skip


def events_of(conn: Connection, deliveries: Iterable[Leased]) -> dict[tuple[UUID, int], Happened]:
    """What these deliveries tell of; what was pruned is missing."""
    dialect = conn.dialect.name
    wanted = {(each.subject_id, each.number) for each in deliveries}
    query = sa.select(*_EVENT).outerjoin_from(webhook_events, jobs, jobs.c.id == webhook_events.c.subject_id)
    query = query.where(is_one_of(dialect, webhook_events.c.subject_id, "ids"))
    rows = conn.execute(query, {"ids": id_list(dialect, {subject for subject, _ in wanted})})
    found = (Happened(*row) for row in rows)
    return {(event.subject_id, event.number): event for event in found if (event.subject_id, event.number) in wanted}


def terminated_workflow(conn: Connection, workflow_id: UUID) -> Row[Any] | None:
    """What is told of a workflow that ended; None: it was deleted."""
    c: Any = workflows.c
    row: Any = conn.execute(sa.select(c.id, c.name, c.kind).where(c.id == workflow_id)).first()
    return None if row is None else row


# --- record --------------------------------------------------------------------------------------------------------


def record(conn: Connection, sender: UUID, tried: Sequence[Tried], known_well: Collection[UUID] = ()) -> int:
    """Write what became of deliveries that are still this sender's; returns how many were.

    An endpoint that answers 410 is disabled, and so is one without a success for ``GIVE_UP_AFTER``. ``known_well``: of
    these, another success need not be noted.
    """
    rows = [_row(each) for each in sorted(tried, key=lambda each: each.delivery.id)]
    written = set(conn.scalars(_record(conn.dialect.name), {"by": sender, "tried": rows_json(rows)}))
    ours = [each for each in tried if each.delivery.id in written]
    well = {each.delivery.endpoint_id for each in ours if each.verdict.state == "SUCCEEDED"}
    ill = {each.delivery.endpoint_id for each in ours} - well
    _note_health(
        conn, well.difference(known_well), ill, {each.delivery.endpoint_id for each in ours if each.verdict.gone}
    )
    return len(written)


def _row(tried: Tried) -> dict[str, Any]:
    verdict = tried.verdict
    values = {
        "id": tried.delivery.id, "state": verdict.state, "due_in": verdict.due_in, "status_code": verdict.status_code,
        "error_class": verdict.error_class, "message": storable(verdict.message or "") or None, "answer": verdict.answer,
        "seconds": tried.seconds,
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


@cache
def _record(dialect: str) -> Any:
    columns: dict[str, Any] = {
        "id": sa.BigInteger(), "state": sa.Text(), "due_in": sa.Float(), "status_code": sa.Integer(),
        "error_class": sa.Text(), "message": sa.Text(), "answer": sa.Text(), "seconds": sa.Float(),
    }  # fmt: skip
    new, c = incoming(dialect, "tried", columns), webhook_deliveries.c
    again = new.c.due_in.is_not(None)
    plain = ("state", "status_code", "error_class", "message", "answer", "seconds")
    return (
        sa.update(webhook_deliveries)
        .where(c.id == new.c.id, c.sender == sa.bindparam("by", type_=sa.Uuid), c.next_at.is_not(None))
        .values(
            next_at=sa.case((again, later(new.c.due_in))), ended_at=sa.case((~again, now())), sender=None,
            **{name: new.c[name] for name in plain},
        )
        .returning(c.id)
    )  # fmt: skip


def _note_health(conn: Connection, well: Iterable[UUID], ill: Iterable[UUID], gone: Iterable[UUID]) -> None:
    dialect, c = conn.dialect.name, webhook_endpoints.c
    if ids := list(well):
        stale = sa.or_(c.succeeded_at.is_(None), c.succeeded_at < later(-_SUCCESS_NOTED_EVERY))
        conn.execute(
            sa.update(webhook_endpoints)
            .where(is_one_of(dialect, c.id, "ids"), sa.or_(c.failing_since.is_not(None), stale))
            .values(failing_since=None, succeeded_at=now()),
            {"ids": id_list(dialect, ids)},
        )
    if ids := list(ill):
        conn.execute(
            sa.update(webhook_endpoints)
            .where(is_one_of(dialect, c.id, "ids"), c.failing_since.is_(None))
            .values(failing_since=now()),
            {"ids": id_list(dialect, ids)},
        )
        _disable(conn, ids, c.failing_since < later(-GIVE_UP_AFTER), "no delivery has succeeded for 5 days")
    if ids := list(gone):
        _disable(conn, ids, sa.true(), "the receiver answered 410 Gone")


def _disable(conn: Connection, ids: Iterable[UUID], condition: Any, reason: str) -> None:
    dialect, c = conn.dialect.name, webhook_endpoints.c
    rows = conn.execute(
        sa.update(webhook_endpoints)
        .where(is_one_of(dialect, c.id, "ids"), c.enabled, condition)
        .values(enabled=False, listens=False, disabled_reason=reason, updated_at=now())
        .returning(c.id, c.tenant),
        {"ids": id_list(dialect, ids)},
    ).all()
    for row in rows:
        add_event(conn, row.tenant, f"webhook:{row.id}", "disable", "jobq", detail={"reason": reason})
