"""What a webhook tells: job_details of the job, as it was when the event happened."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection

from jobq.details import REPLICATION, SYNC, Facts, job_details
from jobq.models import Job
from jobq.states import Reason, Status
from jobq.store import exports
from jobq.store.details import gather, gather_plain
from jobq.store.jobs import get_many
from jobq.store.webhook_deliveries import terminated_workflow
from jobq.webhook_events import TEST, Happened

_EXPORTS = 100
WORKFLOW_ENDED = "workflow.terminated"


def documents_of(conn: Connection, events: Iterable[Happened], env_id: str) -> dict[tuple[UUID, int], dict[str, Any]]:
    """The ``data`` of each event; of a job that was deleted it is missing.

    Jobs are looked at together, in half a dozen statements however many there are; only those of fan-outs one by one.
    """
    events = list(events)
    of_jobs = {event.subject_id for event in events if event.type not in {TEST, WORKFLOW_ENDED}}
    known = _facts_of(conn, of_jobs, env_id) if of_jobs else {}
    found: dict[tuple[UUID, int], dict[str, Any]] = {}
    for event in events:
        key = (event.subject_id, event.number)
        if event.type == TEST:
            found[key] = {"tenant": event.tenant, "env_id": env_id, "message": event.message}
        elif event.type == WORKFLOW_ENDED:
            found[key] = _of_workflow(conn, event, env_id)
        elif event.subject_id in known:
            found[key] = job_details(as_of(known[event.subject_id], event))
    return found


def _facts_of(conn: Connection, ids: Collection[UUID], env_id: str) -> dict[UUID, Facts]:
    found: dict[UUID, Facts] = {}
    plain: list[Job] = []
    for job in get_many(conn, ids):
        if job.kind not in {SYNC, REPLICATION} and job.retry_of is None:
            plain.append(job)
            continue
        facts = gather(conn, job, env_id, explained=False)
        if facts.kind == SYNC:
            facts = replace(facts, exports=exports.list_page(conn, job.id, behind=None, limit=_EXPORTS))
        found[job.id] = facts
    return found | {facts.id: facts for facts in gather_plain(conn, plain, env_id)}


def as_of(facts: Facts, event: Happened) -> Facts:
    """The facts as they were at the event, as far as that is on record: state, cause, attempts.

    Counts and sizes are those of now: while a SYNC runs they only grow.
    """
    ended = [attempt for attempt in facts.attempts if attempt.finished_at <= event.at]
    started_at = facts.started_at if facts.started_at is not None and facts.started_at <= event.at else None
    if started_at is None and ended:
        started_at = ended[-1].started_at
    return replace(
        facts, status=Status(event.status), reason=Reason(event.reason), message=event.message,
        error_class=event.error_class, attempt=event.attempt, last_updated=event.at, attempts=ended,
        started_at=started_at if event.attempt else None,
    )  # fmt: skip


def _of_workflow(conn: Connection, event: Happened, env_id: str) -> dict[str, Any]:
    row = terminated_workflow(conn, event.subject_id)
    return {
        "flow_id": str(event.subject_id),
        "flow_name": None if row is None else row.name,
        "env_id": env_id,
        "tenant": event.tenant,
        "job_type": None if row is None else row.kind,
        "status": event.status,
        "generation": event.number,
        "message": event.message,
    }
