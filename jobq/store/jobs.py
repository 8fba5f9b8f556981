"""Jobs come in, and are looked at: enqueue, get, list."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import uuid_utils.compat
from sqlalchemy.engine import Connection, Row
from sqlalchemy.sql import ColumnElement

from jobq import metrics, telemetry
from jobq.errors import Conflict, NotFound
from jobq.models import Attempt, Job, Step
from jobq.states import Desired, Reason, Status, Trigger
from jobq.store.after import lock_upstreams, wait_for
from jobq.store.commits import after_commit
from jobq.store.database import insert_both
from jobq.store.sql import Instant, Json, id_list, incoming, insert, is_one_of, now, rows_json
from jobq.store.tables import attempts, job_data, jobs, requests, workers
from jobq.store.webhook_events import find_named, is_heard, name_endpoints, tell_new


def new_id() -> UUID:
    """A UUIDv7: ids sort by the time of their creation, which listings and lock order rely on."""
    return uuid_utils.compat.uuid7()


@dataclass(slots=True)
class NewJob:
    """A job that was checked and is about to be inserted."""

    tenant: str
    kind: str
    name: str
    queue: str
    spec: dict[str, Any]
    priority: int
    max_attempts: int
    timeout: float | None
    id: UUID
    trigger: Trigger = Trigger.MANUAL
    lane: str = ""
    scheduled_at: datetime | None = None
    """None: now."""
    stale_after: float | None = None
    state: Any = None
    retry: dict[str, Any] | None = None
    workflow_id: UUID | None = None
    generation: int | None = None
    slot_at: datetime | None = None
    parent_id: UUID | None = None
    retry_of: UUID | None = None
    dedupe_key: str | None = None
    blocked: bool | None = None
    """It waits for an earlier job of its workflow."""
    overlaps: bool | None = None
    """Recorded only: CANCELED·overlap."""
    orphaned: bool | None = None
    """Recorded only: CANCELED·upstream_failed."""
    traceparent: str | None = field(default_factory=telemetry.traceparent)
    """It belongs to the trace in which it is made."""
    after: tuple[UUID, ...] = ()
    """Jobs that it waits for: see ``jobq.store.after``."""
    started_by: str | None = None
    """Who made it; None: a schedule, or an application that says no name."""
    webhook: tuple[UUID | str, str | None] | None = None
    """The endpoint that its events go to, and which: see ``webhook_events.name_endpoints``."""

    @property
    def hooked(self) -> bool | None:
        """True: it names an endpoint."""
        return self.webhook is not None or None

    @property
    def domain(self) -> str | None:
        """What a SYNC syncs."""
        return self.spec["domain"] if self.kind == "SYNC" else None

    @property
    def domain_end(self) -> str | None:
        """A SYNC works for the end that is read."""
        return "source" if self.kind == "SYNC" else None


_JOB_COLUMNS: dict[str, Any] = {
    "id": sa.Uuid(),
    "tenant": sa.Text(),
    "kind": sa.Text(),
    "name": sa.Text(),
    "queue": sa.Text(),
    "lane": sa.Text(),
    "trigger": sa.Text(),
    "priority": sa.SmallInteger(),
    "max_attempts": sa.Integer(),
    "timeout": sa.Float(),
    "stale_after": sa.Float(),
    "scheduled_at": Instant(),
    "workflow_id": sa.Uuid(),
    "generation": sa.Integer(),
    "slot_at": Instant(),
    "parent_id": sa.Uuid(),
    "retry_of": sa.Uuid(),
    "dedupe_key": sa.Text(),
    "domain": sa.Text(),
    "domain_end": sa.Text(),
    "traceparent": sa.Text(),
}
_ARRIVAL_COLUMNS: dict[str, Any] = {
    "blocked": sa.Boolean(), "overlaps": sa.Boolean(), "orphaned": sa.Boolean(), "hooked": sa.Boolean()
}  # fmt: skip
_SENT = (*_JOB_COLUMNS, *_ARRIVAL_COLUMNS)
_SHOWN_NAMES = tuple(Job.__dataclass_fields__)
_DATA_COLUMNS: dict[str, Any] = {
    "id": sa.Uuid(), "spec": Json, "state": Json, "retry": Json, "started_by": sa.Text()
}  # fmt: skip


@cache
def _insert_jobs(dialect: str, *returned: str, unheard: bool = False) -> Any:
    """Jobs that come as one parameter; those that a unique index refuses are left out of what is returned.

    ``unheard``: and so are those whose tenant has a webhook.
    """
    new = incoming(dialect, "new", _JOB_COLUMNS | _ARRIVAL_COLUMNS)
    waits = sa.and_(new.c.scheduled_at.is_not(None), new.c.scheduled_at > now())
    blocked, overlaps = new.c.blocked.is_(sa.true()), new.c.overlaps.is_(sa.true())
    orphaned = new.c.orphaned.is_(sa.true())
    canceled = sa.or_(overlaps, orphaned)
    columns = {
        **{name: new.c[name] for name in _JOB_COLUMNS},
        "status": sa.case((canceled, Status.CANCELED.value), else_=Status.PENDING.value),
        "reason": sa.case(
            (overlaps, Reason.OVERLAP.value),
            (orphaned, Reason.UPSTREAM_FAILED.value),
            (blocked, Reason.BLOCKED.value),
            (waits, Reason.SCHEDULED.value),
            else_=Reason.READY.value,
        ),
        "message": sa.case(
            (overlaps, "an earlier job of the workflow had not ended"),
            (orphaned, "a job before it had failed or was canceled"),
        ),
        "created_at": now(),
        "due_at": sa.case((sa.and_(waits, ~blocked, ~canceled), new.c.scheduled_at)),
        "ready_at": sa.case((sa.or_(waits, blocked, canceled), sa.null()), else_=now()),
        "finished_at": sa.case((canceled, now())),
    }
    heard = is_heard(new.c.tenant)
    if not unheard:
        is_hooked = sa.or_(new.c.hooked.is_(sa.true()), heard)
        columns["hooked"] = sa.case((is_hooked, sa.case((canceled, 2), else_=1)))
    # Without labels: psycopg remembers how it sent a statement of up to 4,096 characters only.
    rows = sa.select(*columns.values()).select_from(new).where(new.c.id.is_not(None))
    rows = rows.where(~heard) if unheard else rows
    new_rows = insert(dialect, jobs).from_select(list(columns), rows).on_conflict_do_nothing()
    return new_rows.returning(*(jobs.c[name] for name in returned))


@cache
def _insert_data(dialect: str) -> Any:
    return _insert_data_if(dialect, sa.true())


def _insert_data_if(dialect: str, condition: ColumnElement[bool]) -> Any:
    new = incoming(dialect, "new", _DATA_COLUMNS)
    columns = {"job_id": new.c.id, **{name: new.c[name] for name in _DATA_COLUMNS if name != "id"}}
    rows = sa.select(*(value.label(name) for name, value in columns.items()))
    rows = rows.where(new.c.id.is_not(None), condition)
    return insert(dialect, job_data).from_select(list(columns), rows).on_conflict_do_nothing()


def enqueue(conn: Connection, new: Sequence[NewJob]) -> list[UUID]:
    """Insert jobs, PENDING·ready or scheduled, in two statements; returns their ids in the order given.

    Atomic with the caller's transaction, and repeatable: a job whose id exists already is the same job. A job
    whose ``dedupe_key`` is held by a live one is recorded as CANCELED·duplicate of that one. Raises NotFound if a job
    is to come ``after`` one that the tenant does not have, or names a webhook that it does not have.
    """
    find_named(conn, [job for job in new if job.webhook is not None])
    waits = [pair for job in new if job.after for pair in _upstreams(conn, job)]
    inserted = _write(conn, new)
    left_out = [job for job in new if job.id not in inserted]
    for job in new:
        if (job.overlaps or job.orphaned) and job.id in inserted:
            _count_end(conn, job, Reason.OVERLAP if job.overlaps else Reason.UPSTREAM_FAILED)
    inserted |= {job.id for job in left_out if _settle_conflict(conn, job)}
    wait_for(conn, [(job_id, upstream) for job_id, upstream in waits if job_id in inserted])
    return [job.id for job in new]


def _upstreams(conn: Connection, job: NewJob) -> list[tuple[UUID, UUID]]:
    """(job, upstream) for each upstream that has not ended; says of the job how it arrives."""
    found = lock_upstreams(conn, job.tenant, job.after)
    if missing := [job_id for job_id in job.after if job_id not in found]:
        raise NotFound(f"There is no job {missing[0]} to come after.", pointer="/after")
    live = [upstream for upstream in found.values() if not upstream.ended]
    job.orphaned = any(each.ended and each.status is not Status.COMPLETED for each in found.values()) or None
    job.blocked = (bool(live) and not job.orphaned) or None
    return [(job.id, upstream.id) for upstream in live] if job.blocked else []


def _write(conn: Connection, new: Sequence[NewJob]) -> set[UUID]:
    dialect = conn.dialect.name
    rows = conn.execute(_insert_jobs(dialect, "id", "hooked"), {"new": rows_json([_row(job) for job in new])}).all()
    inserted = {row.id for row in rows}
    data = [_data_row(job) for job in new if job.id in inserted]
    if data:
        conn.execute(_insert_data(dialect), {"new": rows_json(data)})
    name_endpoints(conn, [job for job in new if job.webhook is not None and job.id in inserted])
    tell_new(conn, rows)
    return inserted


def _row(job: NewJob) -> dict[str, Any]:
    return {name: value for name in _SENT if (value := getattr(job, name)) is not None}


def _data_row(job: NewJob) -> dict[str, Any]:
    state = {"state": job.state} if job.state is not None else {}
    maker = {"started_by": str(job.started_by)} if job.started_by else {}
    return {"id": job.id, "spec": job.spec, **state, **({"retry": job.retry} if job.retry else {}), **maker}


def enqueue_one(conn: Connection, job: NewJob, *, wakes: bool) -> Job | None:
    """Insert one job and show it: on PostgreSQL in one statement, which is all that an idle system waits for.

    None: nothing was written, because something is in its way that ``enqueue`` settles, or a webhook is to be told.
    ``wakes``: see ``announce``.
    """
    dialect = conn.dialect.name
    new = {"new": rows_json([_row(job) | _data_row(job)])}
    inserted = _insert_jobs(dialect, *_SHOWN_NAMES, unheard=True)
    row = insert_both(conn, inserted, _data_of_one(dialect), new, wakes=wakes)
    return None if row is None else as_job(row)


@cache
def _data_of_one(dialect: str) -> Any:
    return cache(partial(_insert_data_if, dialect))


def _settle_conflict(conn: Connection, job: NewJob) -> bool:
    """The row was refused: it is there already, its slot has its job, or a live job holds its dedupe key.

    True: it could be inserted after all.
    """
    for _ in range(3):
        if conn.scalar(sa.select(jobs.c.id).where(jobs.c.id == job.id)) or job.slot_at is not None:
            return False
        holder = conn.scalar(
            sa.select(jobs.c.id).where(
                jobs.c.tenant == job.tenant, jobs.c.dedupe_key == job.dedupe_key, jobs.c.finished_at.is_(None)
            )
        )
        if holder is not None:
            _write_duplicate(conn, job, holder)
            return False
        if _write(conn, [job]):  # the holder ended in the meantime
            return True
    raise Conflict(f"The dedupe key {job.dedupe_key!r} changes hands too fast.", code="dedupe_conflict")


def _write_duplicate(conn: Connection, job: NewJob, holder: UUID) -> None:
    values = {name: getattr(job, name) for name in _JOB_COLUMNS}
    heard = sa.true() if job.webhook else is_heard(sa.literal(job.tenant, sa.Text()))
    rows = conn.execute(
        sa.insert(jobs)
        .values(
            **values,
            status=Status.CANCELED.value,
            reason=Reason.DUPLICATE.value,
            created_at=now(),
            finished_at=now(),
            duplicate_of=holder,
            message=f"job {holder} holds the dedupe key",
            hooked=sa.case((heard, 2)),
        )
        .returning(jobs.c.id, jobs.c.hooked)
    ).all()
    data = {"spec": job.spec, "state": job.state, "retry": job.retry, "started_by": job.started_by}
    conn.execute(sa.insert(job_data).values(job_id=job.id, **data))
    _count_end(conn, job, Reason.DUPLICATE)
    name_endpoints(conn, [job] if job.webhook is not None else [])
    tell_new(conn, rows)


def _count_end(conn: Connection, job: NewJob, reason: Reason) -> None:
    """This job is recorded only."""
    after_commit(conn, partial(metrics.ended_at_once, 1, job.kind, job.queue, reason.value))


def remember_request(conn: Connection, tenant: str, key: str, body_hash: str, job_id: UUID) -> UUID | None:
    """Bind an idempotency key to a job. None: the key is new; else the id of the job that it made before.

    Raises Conflict (``idempotency_conflict``) if the key was used for another request.
    """
    dialect = conn.dialect.name
    values = {"tenant": tenant, "key": key, "body_hash": body_hash, "job_id": job_id, "created_at": now()}
    if conn.execute(
        insert(dialect, requests).values(**values).on_conflict_do_nothing().returning(requests.c.key)
    ).first():
        return None
    found = conn.execute(
        sa.select(requests.c.body_hash, requests.c.job_id).where(requests.c.tenant == tenant, requests.c.key == key)
    ).one()
    if found.body_hash != body_hash:
        raise Conflict(
            f"The idempotency key {key!r} was used for another request.", code="idempotency_conflict",
            hint="Use a new key for a new request.",
        )  # fmt: skip
    job_id_found: UUID = found.job_id
    return job_id_found


# --- looking ------------------------------------------------------------------------------------------------

SHOWN = [jobs.c[name] for name in _SHOWN_NAMES]
"""The columns that ``as_job`` reads."""


def as_job(row: Row[Any]) -> Job:
    """A row of ``jobq_jobs`` as applications see it."""
    values = dict(zip(_SHOWN_NAMES, row, strict=False))  # other columns may follow
    values["status"], values["reason"] = Status(row.status), Reason(row.reason)
    values["desired"], values["trigger"] = Desired(row.desired), Trigger(row.trigger)
    return Job(**values)


def get(conn: Connection, tenant: str | None, job_id: UUID) -> Job:
    """The job, or NotFound, also for another tenant's. ``tenant`` None: an operator, who sees all tenants."""
    query = sa.select(*SHOWN).where(jobs.c.id == job_id)
    row = conn.execute(query if tenant is None else query.where(jobs.c.tenant == tenant)).first()
    if row is None:
        raise NotFound(f"There is no job {job_id}.", hint="jobq job list shows the newest ones.")
    return as_job(row)


def get_many(conn: Connection, ids: Collection[UUID]) -> list[Job]:
    """Those of these jobs that there are, of any tenant."""
    dialect = conn.dialect.name
    return [as_job(row) for row in conn.execute(_get_many(dialect), {"ids": id_list(dialect, ids)})]


@cache
def _get_many(dialect: str) -> Any:
    return sa.select(*SHOWN).where(is_one_of(dialect, jobs.c.id, "ids"))


def get_data(conn: Connection, job_id: UUID) -> Row[Any]:
    """Spec, state, retry policy and checkpoint of a job that exists, and is no child: see ``fanin.child_spec``."""
    return conn.execute(sa.select(job_data).where(job_data.c.job_id == job_id)).one()


def list_attempts(conn: Connection, job_id: UUID) -> list[Attempt]:
    """The ended attempts of a job, oldest first."""
    return list_attempts_of(conn, [job_id])


def list_attempts_of(conn: Connection, ids: Iterable[UUID]) -> list[Attempt]:
    """The ended attempts of these jobs, of each the oldest first."""
    dialect = conn.dialect.name
    rows = conn.execute(_attempts_of(dialect), {"ids": id_list(dialect, ids)})
    return [
        Attempt(**{**row._asdict(), "steps": [Step(*step) for step in row.steps or ()], "usage": row.usage or {}})
        for row in rows
    ]


@cache
def _attempts_of(dialect: str) -> Any:
    return (
        sa.select(attempts, workers.c.name.label("worker"))
        .outerjoin(workers, workers.c.id == attempts.c.worker_id)
        .where(is_one_of(dialect, attempts.c.job_id, "ids"))
        .order_by(attempts.c.job_id, attempts.c.attempt)
    )


def unfinished(conn: Connection, ids: Iterable[UUID]) -> set[UUID]:
    """Which of these jobs have not ended."""
    dialect = conn.dialect.name
    return set(conn.scalars(_unfinished(dialect), {"ids": id_list(dialect, ids)}))


@cache
def _unfinished(dialect: str) -> Any:
    return sa.select(jobs.c.id).where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.finished_at.is_(None))


def running_here(conn: Connection, found: Sequence[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Which of these attempts are RUNNING: what else is found of them has no owner."""
    dialect = conn.dialect.name
    rows = conn.execute(_running_attempts(dialect), {"ids": id_list(dialect, {job_id for job_id, _ in found})})
    return {(row.id, row.attempt) for row in rows} & set(found)


@cache
def _running_attempts(dialect: str) -> Any:
    return sa.select(jobs.c.id, jobs.c.attempt).where(
        is_one_of(dialect, jobs.c.id, "ids"), jobs.c.status == Status.RUNNING.value
    )
