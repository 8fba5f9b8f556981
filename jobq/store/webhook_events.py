"""What happened, for webhooks: written in the transition's own transaction, and only where somebody listens.

``jobs.hooked`` is NULL for all others: each transition's UPDATE adds 1 to it, which leaves NULL as it is, and returns
it. So nobody pays for webhooks that nobody has; the number of an event is made by the transition itself, under the
lock of the job's row: each has one, and none is left out. An event is a row here, and a row for each endpoint that it
is to be delivered to (``jobq.store.webhook_deliveries``), from one INSERT for the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row
from sqlalchemy.sql import ColumnElement, FromClause

from jobq.errors import NotFound
from jobq.states import REASONS, Status
from jobq.store.sql import POSTGRESQL, id_list, incoming, insert, is_one_of, now, rows_json
from jobq.store.tables import fanouts, jobs, webhook_deliveries, webhook_endpoints, webhook_events, webhook_overrides
from jobq.store.wakeup import announce
from jobq.webhook_events import TYPES, type_of_end, words

_COLUMNS = [column.name for column in webhook_events.c]
CREATED, QUEUED, STARTED, REQUEUED = "job.created", "job.queued", "job.started", "job.requeued"


class News(NamedTuple):
    """One event. ``back``: so many events of the same transition follow it."""

    id: UUID
    type: str
    back: int = 0
    message: str | None = None
    error_class: str | None = None


def is_heard(tenant: ColumnElement[str], *, child: bool = False) -> ColumnElement[bool]:
    """Does an endpoint of this tenant listen to all its jobs (to children of SYNCs)?"""
    ends = webhook_endpoints.alias("w").c
    heard = sa.select(ends.tenant).where(ends.listens)  # of all tenants: it is asked once for many rows
    return tenant.in_(heard.where(ends.children) if child else heard)


def tell(conn: Connection, news: Sequence[News]) -> None:
    """Write events of jobs that are hooked and that this transaction has just changed."""
    if not news:
        return
    dialect, rows = conn.dialect.name, rows_json([_plain(each) for each in sorted(news, key=lambda each: each.id)])
    for statement in _tell(dialect):
        conn.execute(statement, {"news": rows})
    announce(conn)


def _plain(news: News) -> dict[str, Any]:
    return {name: value for name, value in news._asdict().items() if value is not None}


_NEWS: dict[str, Any] = {
    "id": sa.Uuid(), "type": sa.Text(), "back": sa.Integer(), "message": sa.Text(), "error_class": sa.Text()
}  # fmt: skip


@cache
def _tell(dialect: str) -> list[Any]:
    new = incoming(dialect, "news", _NEWS)
    values: dict[str, Any] = {
        "subject_id": jobs.c.id, "number": jobs.c.hooked - new.c.back, "tenant": jobs.c.tenant, "type": new.c.type,
        "at": now(), "child": jobs.c.parent_id.is_not(None), "attempt": jobs.c.attempt, "status": jobs.c.status,
        "reason": jobs.c.reason, "message": sa.func.coalesce(new.c.message, jobs.c.message),
        "error_class": sa.func.coalesce(new.c.error_class, jobs.c.error_class),
    }  # fmt: skip
    happened = (
        sa.select(*(values[name].label(name) for name in _COLUMNS))
        .select_from(new)
        .join(jobs, jobs.c.id == new.c.id)
        .where(jobs.c.hooked.is_not(None))
    )
    return _inserts(dialect, happened.cte("h") if dialect == POSTGRESQL else happened.subquery("h"))


def _inserts(dialect: str, happened: FromClause) -> list[Any]:
    """An INSERT of a delivery for each endpoint that wants one of these events, and one of the events that any wants."""
    ends, named = webhook_endpoints.alias("w"), webhook_overrides.alias("o")
    values: dict[str, Any] = {
        "endpoint_id": ends.c.id, "subject_id": happened.c.subject_id, "number": happened.c.number,
        "type": happened.c.type, "state": sa.literal_column("'PENDING'"), "created_at": happened.c.at,
        "next_at": happened.c.at, "tries": sa.literal_column("0"), "round": sa.literal_column("0"),
    }  # fmt: skip
    of_tenant = sa.and_(ends.c.tenant == happened.c.tenant, ends.c.enabled)
    joined = happened.join(ends, of_tenant).outerjoin(named, named.c.job_id == happened.c.subject_id)
    rows = sa.select(*values.values()).select_from(joined).where(_wants(happened, ends, named))
    delivery = insert(dialect, webhook_deliveries).from_select(list(values), rows)
    there: FromClause = webhook_deliveries.alias("d")
    if dialect == POSTGRESQL:  # one statement: only what it returns can be seen
        there = delivery.returning(webhook_deliveries.c.subject_id, webhook_deliveries.c.number).cte("d")
    wanted = sa.exists().where(there.c.subject_id == happened.c.subject_id, there.c.number == happened.c.number)
    event = insert(dialect, webhook_events).from_select(_COLUMNS, sa.select(happened).where(wanted))
    # Numbers are made under the lock of the job's row, so none comes twice. Should one, no job is to wait for that.
    event = event.on_conflict_do_nothing()
    return [event] if dialect == POSTGRESQL else [delivery, event]


def _wants(happened: FromClause, ends: FromClause, named: FromClause) -> ColumnElement[bool]:
    """Is this event for this endpoint? A job that names an endpoint is heard there, and nowhere else."""
    word = sa.literal_column("' '").concat(happened.c.type).concat(sa.literal_column("' '"))
    of_all = sa.and_(
        named.c.job_id.is_(None), ends.c.listens, sa.or_(~happened.c.child, ends.c.children),
        ends.c.types.contains(word),
    )  # fmt: skip
    of_its_own = sa.and_(named.c.endpoint_id == ends.c.id, named.c.types.contains(word))
    return sa.or_(of_all, of_its_own)


def with_event(type_: str, written: Any, shown: Sequence[Any]) -> Any:
    """PostgreSQL: a SELECT of what a transition wrote, which writes the events of it in the same statement.

    ``written``: its CTE, with id, hooked, tenant, attempt, reason and parent_id; ``shown``: the columns to select.
    """
    c = written.c
    nothing: Any = sa.cast(sa.null(), sa.Text)
    values: dict[str, Any] = {
        "subject_id": c.id, "number": c.hooked, "tenant": c.tenant, "type": sa.literal_column(f"'{type_}'", sa.Text),
        "at": now(), "child": c.parent_id.is_not(None), "attempt": c.attempt,
        "status": sa.literal_column(f"'{Status.RUNNING.value}'", sa.Text), "reason": c.reason, "message": nothing,
        "error_class": nothing,
    }  # fmt: skip
    happened = sa.select(*(values[name].label(name) for name in _COLUMNS)).where(c.hooked.is_not(None)).cte("h")
    (event,) = _inserts(POSTGRESQL, happened)
    return sa.select(*shown).add_cte(event.cte("told"))


# --- which events a change is ------------------------------------------------------------------------------------


def tell_new(conn: Connection, rows: Iterable[Row[Any]]) -> None:
    """Jobs were inserted (rows with id and hooked). What was only recorded, as CANCELED, tells that as well."""
    news: list[News] = []
    for row in rows:
        if row.hooked is not None:
            news.append(News(row.id, CREATED, row.hooked - 1))
            news += [News(row.id, type_of_end(Status.CANCELED))] if row.hooked > 1 else []
    tell(conn, news)


def tell_ends(conn: Connection, ended: Iterable[Row[Any]]) -> None:
    """Jobs ended (rows with id, status and hooked)."""
    hooked = [row for row in ended if row.hooked is not None]
    if not hooked:
        return
    if failed := [row.id for row in hooked if row.status == Status.FAILED]:
        _tell_failed_stages(conn, failed)
    tell(conn, [News(row.id, type_of_end(row.status)) for row in hooked])


def tell_each(conn: Connection, rows: Iterable[Row[Any]], type_: str) -> None:
    """The same event of all these jobs (rows with id and hooked)."""
    tell(conn, [News(row.id, type_) for row in rows if row.hooked is not None])


def tell_stage(conn: Connection, job_id: UUID, type_: str) -> None:
    """A SYNC that this transaction holds, and that is hooked, has come to this stage."""
    _number(conn, [job_id])
    tell(conn, [News(job_id, type_)])


def tell_parked(conn: Connection, rows: Iterable[Row[Any]], verdicts: Mapping[UUID, Mapping[str, Any]]) -> None:
    """SYNCs came to an end of their own while they have children (rows with id and hooked): the stage that failed."""
    hooked = [row.id for row in rows if row.hooked is not None]
    failed = [job_id for job_id in hooked if verdicts[job_id].get("to") in REASONS[Status.FAILED]]
    if not failed:
        return
    stages = {row.id: _stage(row) for row in conn.execute(_syncs(conn.dialect.name), _ids(conn, failed))}
    _number(conn, failed)
    said = {job_id: verdicts[job_id] for job_id in failed}
    tell(
        conn,
        [
            News(job_id, stages.get(job_id) or "sync.failed", 0, said[job_id].get("message"), said[job_id].get("error_class"))
            for job_id in failed
        ],
    )  # fmt: skip


def _tell_failed_stages(conn: Connection, failed: Sequence[UUID]) -> None:
    """Of those that are SYNCs: which stage failed, before the end of the job itself."""
    rows = conn.execute(_syncs(conn.dialect.name), _ids(conn, failed)).all()
    stages = [News(row.id, stage) for row in rows if (stage := _stage(row)) is not None]
    if stages:
        tell(conn, stages)  # it takes the number of the end, which gets the next one
        _number(conn, [each.id for each in stages])


def _stage(row: Row[Any]) -> str | None:
    """None: that was told when the SYNC was parked."""
    if "to" in (row.verdict or {}) and row.status == Status.FAILED:
        return None
    return "export.failed" if row.reading is False else "sync.failed"


@cache
def _syncs(dialect: str) -> Any:
    return (
        sa.select(jobs.c.id, jobs.c.status, fanouts.c.reading, fanouts.c.verdict)
        .outerjoin(fanouts, fanouts.c.job_id == jobs.c.id)
        .where(is_one_of(dialect, jobs.c.id, "ids"), jobs.c.kind == "SYNC")
    )


def _number(conn: Connection, ids: Sequence[UUID]) -> None:
    """One more event of each of these jobs, which this transaction holds."""
    conn.execute(_numbered(conn.dialect.name), _ids(conn, ids))


@cache
def _numbered(dialect: str) -> Any:
    return sa.update(jobs).where(is_one_of(dialect, jobs.c.id, "ids")).values(hooked=jobs.c.hooked + 1)


def _ids(conn: Connection, ids: Iterable[UUID]) -> dict[str, Any]:
    return {"ids": id_list(conn.dialect.name, ids)}


def tell_terminated(conn: Connection, workflow: Row[Any], message: str) -> None:
    """A workflow of a tenant that somebody listens to was terminated (row with id, tenant and generation)."""
    fixed: dict[str, Any] = {
        "subject_id": sa.literal(workflow.id, sa.Uuid()), "number": sa.literal(workflow.generation, sa.Integer()),
        "tenant": sa.literal(workflow.tenant, sa.Text()), "type": sa.literal_column("'workflow.terminated'", sa.Text),
        "at": now(), "child": sa.false(), "attempt": sa.literal_column("0"),
        "status": sa.literal_column("'TERMINATED'"), "reason": sa.literal_column("''"),
        "message": sa.literal(message, sa.Text()), "error_class": sa.cast(sa.null(), sa.Text),
    }  # fmt: skip
    query, dialect = sa.select(*(fixed[name].label(name) for name in _COLUMNS)), conn.dialect.name
    for statement in _inserts(dialect, query.cte("h") if dialect == POSTGRESQL else query.subquery("h")):
        conn.execute(statement)
    announce(conn)


# --- jobs that name an endpoint of their own --------------------------------------------------------------------


class _Names(Protocol):
    """A new job that names an endpoint, by its id or its name, and perhaps which events it is to get."""

    id: UUID
    tenant: str
    webhook: tuple[UUID | str, str | None] | None


def find_named(conn: Connection, new: Sequence[_Names]) -> None:
    """Put ids in place of the names of the endpoints that these jobs name. Raises NotFound."""
    c, found = webhook_endpoints.c, dict[tuple[str, UUID | str], UUID]()
    for job in new:
        key, types = job.webhook or ("", None)
        if isinstance(key, UUID):
            continue
        if (job.tenant, key) not in found:
            same = sa.or_(c.name == key, c.id == as_id) if (as_id := _as_id(key)) is not None else c.name == key
            endpoint_id = conn.scalar(sa.select(c.id).where(c.tenant == job.tenant, same).order_by(c.name != key))
            if endpoint_id is None:
                raise NotFound(f"There is no webhook {key[:100]!r}.", pointer="/webhook/endpoint")
            found[job.tenant, key] = endpoint_id
        job.webhook = (found[job.tenant, key], types)


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def name_endpoints(conn: Connection, new: Sequence[_Names]) -> None:
    """Where the events of these new jobs go, and which: those that the job chose, or those of the endpoint."""
    named = [(job.id, *job.webhook) for job in new if job.webhook is not None]
    rows = [
        {"job_id": job_id, "endpoint_id": endpoint_id, **({"types": types} if types else {})}
        for job_id, endpoint_id, types in named
    ]
    if rows:
        conn.execute(_name(conn.dialect.name), {"named": rows_json(rows)})


@cache
def _name(dialect: str) -> Any:
    new = incoming(dialect, "named", {"job_id": sa.Uuid(), "endpoint_id": sa.Uuid(), "types": sa.Text()})
    ends = webhook_endpoints.c
    own = sa.case((ends.types == words(()), words(TYPES)), else_=ends.types)
    rows = sa.select(new.c.job_id, new.c.endpoint_id, sa.func.coalesce(new.c.types, own)).select_from(new)
    rows = rows.join(webhook_endpoints, ends.id == new.c.endpoint_id)
    return (
        insert(dialect, webhook_overrides)
        .from_select(["job_id", "endpoint_id", "types"], rows.where(new.c.job_id.is_not(None)))
        .on_conflict_do_nothing()
    )


def named_endpoint(conn: Connection, job_id: UUID) -> tuple[UUID, str | None] | None:
    """(endpoint, types) that a job names, if it does: a retry of it names the same."""
    c: Any = webhook_overrides.c
    row = conn.execute(sa.select(c.endpoint_id, c.types).where(c.job_id == job_id)).first()
    return None if row is None else (row.endpoint_id, row.types)
