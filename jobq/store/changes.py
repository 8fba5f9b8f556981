"""What changed lately, seen from the rows as they are: nothing is written for it, and no transition pays for it.

Jobs that move are few and lie in small indexes: those in flight, those that are due soon. Jobs that came are found by
their ids, which grow with time; those that ended by when they did; those that people touched by the record of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobq.models import Job, Workflow
from jobq.store.jobs import SHOWN, as_job
from jobq.store.sql import id_list, is_one_of, later
from jobq.store.tables import events, jobs, workflows
from jobq.store.workers import database_now
from jobq.store.workflows import as_workflow

Version: TypeAlias = tuple[Any, ...]
"""Differs where the state of a job does."""

_SOON = 2.0
_PAGE = 5000
_AT_ONCE = 1000
_VERSION = (jobs.c.id, jobs.c.status, jobs.c.reason, jobs.c.attempt, jobs.c.requeues, jobs.c.desired)
_NIL = UUID(int=0)


@dataclass(slots=True)
class Seen:
    """One look: jobs that may move at any moment, jobs that came, ended or were touched, and workflows that changed."""

    at: datetime
    restless: dict[UUID, Version]
    recent: dict[UUID, Version]
    touched: set[UUID]
    workflows: list[Workflow]
    whole: bool
    """False: more ended than a look takes."""


def look(conn: Connection, tenant: str | None, since: datetime, most: int | None) -> Seen:
    """What moves now, and what changed since then (of one tenant, or of all). ``most``: of jobs that ended."""
    at, mine = database_now(conn), _of(tenant)
    floor = UUID(int=int(since.timestamp() * 1000) << 80)
    restless: dict[UUID, Version] = {}
    for moves in (
        jobs.c.next_send_at.is_not(None),
        jobs.c.worker_id.is_not(None),
        sa.and_(jobs.c.due_at.is_not(None), jobs.c.due_at < later(_SOON)),
    ):
        restless |= _versions(conn, sa.select(*_VERSION).where(moves, *mine))
    came = sa.select(*_VERSION).where(jobs.c.id > floor, *mine).order_by(jobs.c.id.desc()).limit(_PAGE)
    recent, whole = _versions(conn, came), True
    for page in _ended(conn, mine, since):
        recent |= page
        if most is not None and len(recent) > most:
            whole = False
            break
    done = sa.select(events.c.subject).where(
        events.c.id > floor, *([] if tenant is None else [events.c.tenant == tenant])
    )
    subjects = [subject.partition(":") for subject in conn.scalars(done.order_by(events.c.id.desc()).limit(_PAGE))]
    touched = {UUID(which) for kind, _, which in subjects if kind == "job"}
    changed = sa.select(*workflows.c).where(workflows.c.updated_at > since)
    if tenant is not None:
        changed = changed.where(workflows.c.tenant == tenant)
    rows = conn.execute(changed.order_by(workflows.c.updated_at).limit(_PAGE))
    return Seen(at, restless, recent, touched, [as_workflow(row) for row in rows], whole)


def _ended(conn: Connection, mine: Iterable[Any], since: datetime) -> Iterator[dict[UUID, Version]]:
    """Page by page, in the order in which they ended."""
    at, behind = since, _NIL
    query = sa.select(*_VERSION, jobs.c.finished_at).where(jobs.c.finished_at.is_not(None), *mine)
    while True:
        place = sa.tuple_(jobs.c.finished_at, jobs.c.id) > sa.tuple_(sa.literal(at, jobs.c.finished_at.type), behind)
        page = query.where(jobs.c.finished_at >= at, place).order_by(jobs.c.finished_at, jobs.c.id).limit(_PAGE)
        rows = conn.execute(page).all()
        yield {row[0]: tuple(row[1:-1]) for row in rows}
        if len(rows) < _PAGE:
            return
        at, behind = rows[-1].finished_at, rows[-1].id


def _of(tenant: str | None) -> list[Any]:
    return [] if tenant is None else [jobs.c.tenant == tenant]


def _versions(conn: Connection, query: Any) -> dict[UUID, Version]:
    return {row[0]: tuple(row[1:]) for row in conn.execute(query)}


def version_of(job: Job) -> Version:
    """As ``look`` tells it."""
    return (job.status.value, job.reason.value, job.attempt, job.requeues, job.desired.value)


def read(conn: Connection, tenant: str | None, ids: Sequence[UUID]) -> list[Job]:
    """These jobs as they are, as far as they exist."""
    found: list[Job] = []
    query = sa.select(*SHOWN).where(is_one_of(conn.dialect.name, jobs.c.id, "ids"), *_of(tenant)).order_by(jobs.c.id)
    for start in range(0, len(ids), _AT_ONCE):
        part = {"ids": id_list(conn.dialect.name, ids[start : start + _AT_ONCE])}
        found += [as_job(row) for row in conn.execute(query, part)]
    return found
