"""What the store knows of one job, gathered for its job_details document (``jobq.details``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobq.details import CONTAINER, REPLICATION, SYNC, Facts
from jobq.models import Attempt, Job
from jobq.store import artifacts, connectors, control, entities, exports, logs
from jobq.store.jobs import list_attempts, list_attempts_of
from jobq.store.sql import id_list, is_one_of
from jobq.store.tables import artifacts as artifact_table
from jobq.store.tables import fanouts, job_data, job_logs, jobs, workers
from jobq.store.why import why

_OF_THE_JOB = tuple(name for name in Job.__dataclass_fields__ if name in Facts.__dataclass_fields__)
_INSTANTS = ("created_at", "ready_at", "queued_at", "started_at", "finished_at")


def gather(conn: Connection, job: Job, env_id: str, *, explained: bool = True) -> Facts:
    """Everything but the pages of a SYNC's exports. ``job`` was read before: if it has ended, so has all of it.

    ``explained`` False: why a live job is where it is, is not asked.

    A dozen small statements, each by a key or an index: it costs the same however many children there are.
    """
    of_sync = job.kind == REPLICATION and job.parent_id is not None
    root = _root(conn, job.parent_id) if of_sync else job
    data = _data(conn, job.id if root is None else root.id)
    spec: Mapping[str, Any] = data.spec if data is not None else {}
    ended = list_attempts(conn, job.id)
    fanout = conn.execute(sa.select(fanouts).where(fanouts.c.job_id == job.id)).first() if job.kind == SYNC else None
    own = exports.find(conn, job.id) if job.kind == REPLICATION else None
    worker = _worker(conn, _worker_id(job, ended, fanout))
    known: dict[str, Any] = {name: getattr(job, name) for name in _OF_THE_JOB}
    known |= {
        "env_id": env_id, "workflow_id": None if root is None else root.workflow_id, "spec": spec, "attempts": ended,
        "state": _state(conn, job, fanout) if job.kind == SYNC else None if data is None or of_sync else data.state,
        "message": (job.message if job.finished or not explained else None)
        or (why(conn, job.tenant, job.id) if explained else None),
        "started_at": job.started_at or (ended[-1].started_at if ended else None),
        "last_updated": _last_updated(conn, job, ended),
        "actor": None if root is None else (data and data.started_by) or _actor(conn, root.id, root.retry_of),
        "source_type": _source_type(conn, job, spec),
        "fanout": exports.fanout(conn, job.id) if job.kind == SYNC else None,
        "exports": [own] if own is not None else [],
        "artifact_bytes": sum(each.size for each in artifacts.list_of(conn, job.id)),
        "log_bytes": logs.size(conn, job.id),
    }  # fmt: skip
    return Facts(**known | _place(job, worker))


def gather_plain(conn: Connection, some: Sequence[Job], env_id: str) -> list[Facts]:
    """Of many jobs that have to do with no fan-out and are no retries, together: what ``gather`` tells, unexplained.

    What people did to them is not looked at: ``last_updated`` is the latest instant of the job and its attempts.
    """
    if not some:
        return []
    dialect = conn.dialect.name
    ids = {"ids": id_list(dialect, [job.id for job in some])}
    data = {row.job_id: row for row in conn.execute(_data_of_many(dialect), ids)}
    ended: defaultdict[UUID, list[Attempt]] = defaultdict(list)
    if any(job.attempt for job in some):
        for attempt in list_attempts_of(conn, [job.id for job in some]):
            ended[attempt.job_id].append(attempt)
    sizes = {row.job_id: row for row in conn.execute(_sizes(dialect), ids)}
    at_work = {job.id: _worker_id(job, ended[job.id], None) for job in some}
    hosts = _workers(conn, {worker_id for worker_id in at_work.values() if worker_id is not None})
    found = []
    for job in some:
        known: dict[str, Any] = {name: getattr(job, name) for name in _OF_THE_JOB}
        own, size, mine = data.get(job.id), sizes.get(job.id), ended[job.id]
        instants = [getattr(job, name) for name in _INSTANTS] + [attempt.finished_at for attempt in mine]
        known |= {
            "env_id": env_id, "spec": {} if own is None else own.spec, "state": None if own is None else own.state,
            "attempts": mine, "started_at": job.started_at or (mine[-1].started_at if mine else None),
            "last_updated": max(instant for instant in instants if instant is not None),
            "actor": None if own is None else own.started_by,
            "artifact_bytes": 0 if size is None else int(size.artifacts or 0),
            "log_bytes": 0 if size is None else int(size.log or 0),
        }  # fmt: skip
        found.append(Facts(**known | _place(job, _of(hosts, at_work[job.id]))))
    return found


@cache
def _data_of_many(dialect: str) -> Any:
    columns: Any = (job_data.c.job_id, job_data.c.spec, job_data.c.state, job_data.c.started_by)
    return sa.select(*columns).where(is_one_of(dialect, job_data.c.job_id, "ids"))


@cache
def _sizes(dialect: str) -> Any:
    """Bytes of artifacts and of the log, of those jobs that have either."""
    kept, lines = artifact_table.c, job_logs.c
    size = sa.select(sa.func.sum(kept.size)).where(kept.job_id == jobs.c.id).scalar_subquery()
    log = sa.select(sa.func.sum(lines.bytes)).where(lines.job_id == jobs.c.id).scalar_subquery()
    return sa.select(jobs.c.id.label("job_id"), size.label("artifacts"), log.label("log")).where(
        is_one_of(dialect, jobs.c.id, "ids")
    )


def _of(hosts: Mapping[UUID, Row[Any]], worker_id: UUID | None) -> Row[Any] | None:
    return None if worker_id is None else hosts.get(worker_id)


def _place(job: Job, worker: Row[Any] | None) -> dict[str, Any]:
    """Where the latest attempt runs, or ran."""
    if worker is None:
        return {}
    if job.kind == CONTAINER:
        return {"host": worker.host}
    return {"host": worker.hostname, "slots": worker.queues.get(job.queue)}


def _root(conn: Connection, sync_id: UUID | None) -> Any:
    """The SYNC that a child belongs to: it has what all its children have in common. None: it was pruned."""
    columns: Any = (jobs.c.id, jobs.c.workflow_id, jobs.c.retry_of)
    return conn.execute(sa.select(*columns).where(jobs.c.id == sync_id)).first()


def _data(conn: Connection, job_id: UUID) -> Row[Any] | None:
    """Spec, state and who made it; None: there is none any more."""
    columns: Any = (job_data.c.spec, job_data.c.state, job_data.c.started_by)
    return conn.execute(sa.select(*columns).where(job_data.c.job_id == job_id)).first()


def _worker_id(job: Job, ended: Sequence[Attempt], fanout: Row[Any] | None) -> UUID | None:
    """Who runs the latest attempt, or ran it; a SYNC that lives on beside its children notes who read for it."""
    if job.worker_id is not None:
        return job.worker_id
    noted = ((fanout.verdict if fanout is not None else None) or {}).get("ended", {}).get("worker_id")
    if noted is not None:
        return UUID(noted)
    return ended[-1].worker_id if ended else None


def _worker(conn: Connection, worker_id: UUID | None) -> Row[Any] | None:
    return None if worker_id is None else _of(_workers(conn, {worker_id}), worker_id)


def _workers(conn: Connection, ids: Collection[UUID]) -> dict[UUID, Row[Any]]:
    if not ids:
        return {}
    columns: Any = (workers.c.id, workers.c.hostname, workers.c.host, workers.c.queues)
    return {row.id: row for row in conn.execute(sa.select(*columns).where(workers.c.id.in_(sorted(ids))))}


def _state(conn: Connection, job: Job, fanout: Row[Any] | None) -> Any:
    """How far the domain was read when this SYNC ended, or is now; None: by nobody, or a later SYNC went further."""
    stored = entities.get_state(conn, job.tenant, job.domain or "")
    if stored is not None and stored.job_id == job.id:
        return stored.state
    if fanout is not None and fanout.state is not None:
        return fanout.state
    if stored is None or (job.finished_at is not None and stored.updated_at > job.finished_at):
        return None
    return stored.state


def _last_updated(conn: Connection, job: Job, ended: Sequence[Attempt]) -> datetime:
    """The latest instant on record: of the job, of its attempts, and of what people did to it."""
    seen: list[datetime | None] = [getattr(job, name) for name in _INSTANTS]
    seen += [attempt.finished_at for attempt in ended]
    seen += [event.at for event in control.list_events(conn, f"job:{job.id}")]
    return max(instant for instant in seen if instant is not None)


def _actor(conn: Connection, job_id: UUID, retry_of: UUID | None) -> str | None:
    """Who asked for a retry: an event, and all that there is of jobs that were made before they knew who made them."""
    if retry_of is None:
        return None
    retries = (event for event in control.list_events(conn, f"job:{retry_of}") if event.action == "retry")
    return next((event.actor for event in retries if (event.detail or {}).get("new") == str(job_id)), None)


def _source_type(conn: Connection, job: Job, spec: Mapping[str, Any]) -> str | None:
    """The type of a stored connector; None: the spec says it, or the connector is gone."""
    name = spec.get("source", {}).get("connector") if job.kind in {SYNC, REPLICATION} else None
    stored = None if name is None else connectors.get(conn, job.tenant, name)
    return None if stored is None else stored.type
