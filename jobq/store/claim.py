"""A worker takes jobs: one transaction for many.

The claim is a compare-and-set on QUEUED that also raises ``attempt``. From then on every write of the owner names
its id, that attempt, its worker id and RUNNING (``record``, ``held``); when one of them no longer holds, the write does
nothing and the worker is told which jobs it lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.states import Reason, Status, Trigger
from jobq.store.entities import Payload, read_payloads
from jobq.store.fanin import child_spec
from jobq.store.sql import POSTGRESQL, id_list, is_one_of, json_parts, now, picked_once
from jobq.store.tables import job_data, jobs, workers
from jobq.store.webhook_events import STARTED, tell_each, with_event


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that now is this worker's, and all that its execution needs."""

    id: UUID
    attempt: int
    tenant: str
    kind: str
    name: str
    queue: str
    trigger: Trigger
    timeout: float | None
    scheduled_at: datetime | None
    started_at: datetime
    workflow_id: UUID | None
    parent_id: UUID | None
    retry_of: UUID | None
    domain: str | None
    target: str | None
    entity_key: str | None
    ready_at: datetime | None
    traceparent: str | None
    spec: Any
    state: Any
    retry: Any
    checkpoint: Any
    started_by: str | None
    payload: Payload | None = None
    """A child of a SYNC: what it is to write."""


TAKEN = (
    "id", "attempt", "tenant", "kind", "name", "queue", "trigger", "timeout", "scheduled_at", "started_at",
    "workflow_id", "parent_id", "retry_of", "domain", "target", "entity_key", "ready_at",
    "traceparent",
)  # fmt: skip
"""The columns of a claimed job, in the order of the fields of ``Claimed``."""
_TAKEN = [jobs.c[name] for name in TAKEN]
_DATA = [job_data.c[name] for name in ("spec", "state", "retry", "checkpoint", "started_by")]


def _take(dialect: str, chosen: Any, *, unheard: bool = False) -> Any:
    """QUEUED → RUNNING for the chosen ids, unless the worker was declared dead. ``data``: what lies beside each job.

    On PostgreSQL the statement writes the events of those that are hooked as well: it is a transaction by itself.
    ``unheard``: none of them is, which makes it cheaper.
    """
    worker = sa.bindparam("worker", type_=sa.Uuid)
    hosted = is_one_of(dialect, jobs.c.kind, "hosted")
    data = sa.select(json_parts(*_DATA)).where(job_data.c.job_id == jobs.c.id).scalar_subquery()
    taken = (
        sa.update(jobs)
        .where(
            jobs.c.id.in_(picked_once(chosen)),
            sa.exists().where(workers.c.id == worker, workers.c.dead_at.is_(None)),
        )
        .values(
            status=Status.RUNNING.value,
            reason=sa.case((hosted, Reason.PREPARING.value), else_=Reason.EXECUTING.value),
            attempt=jobs.c.attempt + 1,
            worker_id=worker,
            host=sa.case((hosted, sa.bindparam("on_host", type_=sa.Text))),
            started_at=now(),
            next_send_at=None,
            hooked=jobs.c.hooked + 1,
        )
    )
    shown = [*_TAKEN, data.label("data")]
    if unheard or dialect != POSTGRESQL:
        return taken.returning(*shown, jobs.c.hooked)
    written = taken.returning(*shown, jobs.c.hooked, jobs.c.reason).cte("taken")
    return with_event(STARTED, written, [written.c[column.name] for column in shown])


@cache
def _take_ids(dialect: str, *, unheard: bool) -> Any:
    """Claim by the ids of a hint: workers with different hints never meet. ``unheard``: only those not hooked."""
    chosen = (
        sa.select(jobs.c.id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.status == Status.QUEUED.value, jobs.c.desired == "RUN")
        .where(jobs.c.queue.concat("") == sa.bindparam("of_queue", type_=sa.Text))  # found by id, never by queue
        .order_by(jobs.c.id)
        .with_for_update(skip_locked=True)
    )
    return _take(dialect, chosen.where(jobs.c.hooked.is_(None)) if unheard else chosen, unheard=unheard)


@cache
def _take_waiting(dialect: str) -> Any:
    """Claim without a hint: what was promoted first, of one queue."""
    chosen = (
        sa.select(jobs.c.id)
        .where(
            jobs.c.queue == sa.bindparam("of_queue", type_=sa.Text),
            jobs.c.next_send_at.is_not(None),
            jobs.c.desired == "RUN",
        )
        .order_by(jobs.c.priority.desc(), jobs.c.next_send_at, jobs.c.id)
        .limit(sa.bindparam("room", type_=sa.Integer))
        .with_for_update(skip_locked=True)
    )
    return _take(dialect, chosen)


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims. ``hosted``: the kinds whose work lives on ``host`` and can be recovered there."""

    worker_id: UUID
    host: str | None = None
    hosted: tuple[str, ...] = ()


def claim(conn: Connection, by: Claimant, queue: str, ids: Sequence[UUID]) -> list[Claimed]:
    """Take those of the ids that are QUEUED in this queue; the others fall away (taken, canceled, paused, forged).

    One statement, and so a transaction by itself. It waits for the disk: a claim that is lost would be made again with
    the same attempt number, which is the fence, while the first one's work goes on. What that one does not take may be
    hooked: on PostgreSQL another one, again a transaction by itself, looks for it, so that all others need not pay.
    """
    dialect = conn.dialect.name
    if dialect != POSTGRESQL:
        return _taken(conn, by, _take_ids(dialect, unheard=False), {"of_queue": queue, "ids": id_list(dialect, ids)})
    parameters = {"of_queue": queue, "ids": id_list(dialect, ids)}
    taken = _taken(conn, by, _take_ids(dialect, unheard=True), parameters)
    left = set(ids) - {job.id for job in taken}
    if left:
        parameters["ids"] = id_list(dialect, left)
        taken += _taken(conn, by, _take_ids(dialect, unheard=False), parameters)
    return taken


def claim_waiting(conn: Connection, by: Claimant, queue: str, room: int) -> list[Claimed]:
    """Take up to ``room`` QUEUED jobs of the queue straight from the database: no message is needed."""
    return _taken(conn, by, _take_waiting(conn.dialect.name), {"of_queue": queue, "room": room})


def _taken(conn: Connection, by: Claimant, statement: Any, parameters: dict[str, Any]) -> list[Claimed]:
    who = {"worker": by.worker_id, "on_host": by.host, "hosted": id_list(conn.dialect.name, by.hosted)}
    rows = conn.execute(statement, {**parameters, **who}).all()
    if conn.dialect.name != POSTGRESQL:
        tell_each(conn, rows, STARTED)
    return _put_together(conn, rows, {row.id: row.data for row in rows})


def with_data(conn: Connection, rows: Sequence[Any]) -> list[Claimed]:
    """The rows of jobs together with their specs, in the order of their ids."""
    if not rows:
        return []
    dialect = conn.dialect.name
    found = conn.execute(_data(dialect), {"ids": id_list(dialect, (row.id for row in rows))})
    return _put_together(conn, rows, {job_id: parts for job_id, *parts in found})


def _put_together(conn: Connection, rows: Sequence[Any], parts: Mapping[UUID, Sequence[Any] | None]) -> list[Claimed]:
    """Jobs with their data, which a child of a SYNC has none of: it is told apart by its columns."""
    children = [row for row in rows if row.entity_key is not None]
    payloads = read_payloads(conn, children)  # after the claim: a newer content makes a newer child
    claimed = []
    for row in sorted(rows, key=lambda row: row.id):
        data = parts.get(row.id) or (child_spec(row), None, None, None, None)
        claimed.append(Claimed(*row[: len(_TAKEN)], *data, payloads.get(row.id)))  # type: ignore[call-arg]
    return claimed


@cache
def _data(dialect: str) -> Any:
    return sa.select(job_data.c.job_id, *_DATA).where(is_one_of(dialect, job_data.c.job_id, "ids"))
