"""Workflows: definitions and their schedules. They never execute; their slots make jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import IntegrityError

from jobq.errors import Conflict, NotFound
from jobq.models import Workflow, WorkflowStatus
from jobq.schedule import Cron, Every, Schedule, anchor_of, next_slot
from jobq.states import Status
from jobq.store.control import add_event
from jobq.store.database import take_promote_lock
from jobq.store.finish import terminate as terminate_workflow
from jobq.store.sql import now
from jobq.store.tables import hooks, jobs, workflows
from jobq.store.workers import database_now

_SECONDS = ("misfire_grace", "timeout", "stale_after", "retention")
_SHOWN = list(workflows.c)
_MICROSECOND = timedelta(microseconds=1)


def as_workflow(row: Row[Any]) -> Workflow:
    """A row of ``jobq_workflows`` as applications see it."""
    values = row._asdict()
    micros = values.pop("interval_us")
    values["interval"] = None if micros is None else micros * _MICROSECOND
    for name in _SECONDS:
        values[name] = None if values[name] is None else timedelta(seconds=values[name])
    values["status"] = WorkflowStatus(row.status)
    values["retry"] = row.retry or {}
    return Workflow(**values)


def schedule_of(workflow: Workflow) -> Schedule | None:
    """The workflow's schedule; None: it only runs when somebody triggers it."""
    if workflow.interval is not None:
        return Every(workflow.interval, start_at=workflow.start_at)
    if workflow.cron is not None:
        return Cron(workflow.cron, workflow.timezone or "UTC", start_at=workflow.start_at)
    return None


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Workflow as columns."""
    columns = dict(values)
    if "interval" in columns:
        interval = columns.pop("interval")
        columns["interval_us"] = None if interval is None else interval // _MICROSECOND
    for name in _SECONDS:
        if isinstance(columns.get(name), timedelta):
            columns[name] = columns[name].total_seconds()
    return columns


def create(conn: Connection, workflow_id: UUID, tenant: str, values: Mapping[str, Any], actor: str) -> Workflow:
    """A new ACTIVE workflow; ``values``: the checked fields. Raises Conflict if the tenant has one of that name."""
    created_at = database_now(conn)
    schedule = _schedule(values)
    columns = _columns(values) | {
        "id": workflow_id, "tenant": tenant, "status": WorkflowStatus.ACTIVE.value, "generation": 1,
        "consecutive_failures": 0, "created_at": created_at, "updated_at": created_at,
        "anchor_at": created_at if schedule is None else anchor_of(schedule, created_at),
        "next_fire_at": None if schedule is None else next_slot(schedule, anchor_of(schedule, created_at), created_at),
    }  # fmt: skip
    try:
        with _name_free(conn, values["name"]):
            conn.execute(sa.insert(workflows).values(**columns))
    except Conflict:
        if conn.scalar(sa.select(workflows.c.id).where(workflows.c.id == workflow_id)) is None:
            raise
        return get(conn, tenant, workflow_id)  # made by an earlier try, which was not told of its commit
    add_event(conn, tenant, f"workflow:{workflow_id}", "create", actor)
    return get(conn, tenant, workflow_id)


@contextmanager
def _name_free(conn: Connection, name: str) -> Iterator[None]:
    """Write a workflow of this name; Conflict, and nothing else spoiled, if the tenant has another one."""
    try:
        with conn.begin_nested():
            yield
    except IntegrityError as error:
        raise Conflict(
            f"There is a workflow {name!r} already.", code="name_taken",
            hint="Update it, or use jobq workflow apply, which does either.",
        ) from error  # fmt: skip


def _schedule(values: Mapping[str, Any]) -> Schedule | None:
    if values.get("interval") is not None:
        return Every(values["interval"], start_at=values.get("start_at"))
    if values.get("cron") is not None:
        return Cron(values["cron"], values.get("timezone") or "UTC", start_at=values.get("start_at"))
    return None


def get(conn: Connection, tenant: str | None, workflow: UUID | str, *, lock: bool = False) -> Workflow:
    """By id or by name. Raises NotFound, also for another tenant's."""
    key = workflows.c.id == workflow if isinstance(workflow, UUID) else workflows.c.name == workflow
    query = sa.select(*_SHOWN).where(key)
    if tenant is not None:
        query = query.where(workflows.c.tenant == tenant)
    row = conn.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"There is no workflow {workflow}.", hint="jobq workflow list shows all.")
    return as_workflow(row)


def list_page(
    conn: Connection,
    tenant: str | None,
    *,
    after: UUID | None,
    limit: int,
    status: WorkflowStatus | None = None,
    name: str | None = None,
) -> list[Workflow]:
    """Workflows by id (oldest first), at most ``limit``, all behind ``after``."""
    query = sa.select(*_SHOWN).order_by(workflows.c.id).limit(limit)
    if tenant is not None:
        query = query.where(workflows.c.tenant == tenant)
    if after is not None:
        query = query.where(workflows.c.id > after)
    if status is not None:
        query = query.where(workflows.c.status == status.value)
    if name is not None:
        query = query.where(workflows.c.name == name)
    return [as_workflow(row) for row in conn.execute(query)]


_RHYTHM = ("interval", "cron", "timezone", "start_at")


def update(conn: Connection, tenant: str | None, workflow_id: UUID, values: Mapping[str, Any], actor: str) -> Workflow:
    """Change fields: a new generation with the failure counter at 0. Jobs that exist keep what they were made from.

    A changed schedule counts its slots anew, from its ``start_at`` or from now. A TERMINATED workflow stays so
    until it is resumed. Values equal to the present ones change nothing, not even the generation.
    """
    take_promote_lock(conn, wait=True)
    before = get(conn, tenant, workflow_id, lock=True)
    changed = {name: value for name, value in values.items() if getattr(before, name) != value}
    if not changed:
        return before
    columns = _columns(changed)
    if any(name in changed for name in _RHYTHM):
        at = database_now(conn)
        schedule = _schedule({name: changed.get(name, getattr(before, name)) for name in _RHYTHM})
        columns["anchor_at"] = at if schedule is None else anchor_of(schedule, at)
        if before.status is WorkflowStatus.ACTIVE:
            columns["next_fire_at"] = None if schedule is None else next_slot(schedule, columns["anchor_at"], at)
    with _name_free(conn, changed.get("name", before.name)):
        conn.execute(
            sa.update(workflows)
            .where(workflows.c.id == workflow_id)
            .values(**columns, generation=workflows.c.generation + 1, consecutive_failures=0, updated_at=now())
        )
    if "concurrency" in changed:
        lane = workflow_id.hex if changed["concurrency"] is not None else ""
        conn.execute(
            sa.update(jobs).where(jobs.c.workflow_id == workflow_id, jobs.c.finished_at.is_(None)).values(lane=lane)
        )
    add_event(conn, before.tenant, f"workflow:{workflow_id}", "update", actor, detail={"fields": sorted(changed)})
    return get(conn, tenant, workflow_id)


def pause(conn: Connection, tenant: str | None, workflow_id: UUID, actor: str) -> Workflow:
    """ACTIVE → PAUSED: slots that pass meanwhile are dropped. Its jobs go on. Pausing twice changes nothing."""
    workflow = get(conn, tenant, workflow_id, lock=True)
    if workflow.status is WorkflowStatus.TERMINATED:
        raise Conflict(f"Workflow {workflow.name!r} is terminated.", code="already_finished", hint="Resume it first.")
    if workflow.status is WorkflowStatus.PAUSED:
        return workflow
    _set_status(conn, workflow_id, status=WorkflowStatus.PAUSED.value, next_fire_at=None)
    add_event(conn, workflow.tenant, f"workflow:{workflow_id}", "pause", actor)
    return get(conn, tenant, workflow_id)


def resume(conn: Connection, tenant: str | None, workflow_id: UUID, actor: str) -> Workflow:
    """PAUSED or TERMINATED → ACTIVE: a new generation with the failure counter at 0, at the next slot from now."""
    workflow = get(conn, tenant, workflow_id, lock=True)
    if workflow.status is WorkflowStatus.ACTIVE:
        return workflow
    schedule = schedule_of(workflow)
    next_fire_at: datetime | None = None
    if schedule is not None:
        next_fire_at = next_slot(schedule, workflow.anchor_at, database_now(conn))
    _set_status(
        conn, workflow_id, status=WorkflowStatus.ACTIVE.value, next_fire_at=next_fire_at, message=None,
        generation=workflows.c.generation + 1, consecutive_failures=0,
    )  # fmt: skip
    add_event(conn, workflow.tenant, f"workflow:{workflow_id}", "resume", actor)
    return get(conn, tenant, workflow_id)


def terminate(conn: Connection, tenant: str | None, workflow_id: UUID, actor: str) -> Workflow:
    """No more slots; waiting AUTOMATIC jobs are CANCELED·workflow_terminated, running ones end without a retry."""
    workflow = get(conn, tenant, workflow_id, lock=True)
    if terminate_workflow(conn, workflow_id, f"terminated by {actor}"):
        add_event(conn, workflow.tenant, f"workflow:{workflow_id}", "terminate", actor)
    return get(conn, tenant, workflow_id)


def delete(conn: Connection, tenant: str | None, workflow_id: UUID, actor: str) -> None:
    """Remove the definition; its finished jobs stay until their retention ends. Raises Conflict while jobs live."""
    workflow = get(conn, tenant, workflow_id, lock=True)
    live = sa.select(jobs.c.id).where(jobs.c.workflow_id == workflow_id, jobs.c.finished_at.is_(None)).limit(1)
    if conn.scalar(live) is not None:
        raise Conflict(
            f"Workflow {workflow.name!r} has jobs that have not ended.", code="has_live_jobs",
            hint="Terminate it, and wait for them or cancel them.",
        )  # fmt: skip
    conn.execute(sa.delete(hooks).where(hooks.c.workflow_id == workflow_id))
    conn.execute(sa.delete(workflows).where(workflows.c.id == workflow_id))
    add_event(conn, workflow.tenant, f"workflow:{workflow_id}", "delete", actor)


def _set_status(conn: Connection, workflow_id: UUID, **values: Any) -> None:
    conn.execute(sa.update(workflows).where(workflows.c.id == workflow_id).values(updated_at=now(), **values))


def count_by_status(conn: Connection, workflow_id: UUID, newest: int = 1000) -> dict[Status, int]:
    """How the newest jobs of a workflow stand."""
    some = sa.select(jobs.c.status).where(jobs.c.workflow_id == workflow_id).order_by(jobs.c.id.desc()).limit(newest)
    recent = some.subquery("recent")
    rows = conn.execute(sa.select(recent.c.status, sa.func.count()).group_by(recent.c.status))
    return {Status(status): count for status, count in rows}
