"""``/v1/workflows``: definitions and schedules, and the jobs of a workflow."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response

from jobq.api.access import Admin, Reader, Runner
from jobq.api.bodies import Document, IdempotencyKey, body, described, described_many, many, models
from jobq.api.jobs import Filters
from jobq.api.listings import Counted, Cursor, Limit, Listing, listing, whole
from jobq.api.problems import documented
from jobq.definition import Definition, Particulars
from jobq.errors import InvalidInput
from jobq.models import Job, Workflow, WorkflowStatus
from jobq.validation import MAX_BYTES, parse
from jobq.workflows import Applied

router = APIRouter(tags=["workflows"])

EVERY_MINUTE = {
    "name": "front-page", "kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}, "interval": "PT1M",
    "max_consecutive_job_failures_allowed": 5,
}  # fmt: skip
NIGHTLY = {
    "name": "nightly", "kind": "CONTAINER", "spec": {"image": "alpine", "command": ["true"]}, "cron": "30 2 * * *",
    "timezone": "Europe/Berlin", "timeout": "PT10M",
}  # fmt: skip

_MOST_APPLIED = 1000


@router.post(
    "/workflows", status_code=201, responses=documented(400, 403, 404, 409, 413, 415, 422, 429, 503),
    openapi_extra=described(Definition, interval=EVERY_MINUTE, cron=NIGHTLY),
)  # fmt: skip
def create_workflow(
    jobq: Admin,
    definition: Annotated[Definition, Depends(body(Definition))],
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Workflow:
    """A new ACTIVE workflow."""
    made = jobq.define(definition, idempotency_key=idempotency_key)
    response.headers["Location"] = f"/v1/workflows/{made.id}"
    return made


@router.post(
    "/workflows/apply", responses=documented(400, 403, 409, 413, 415, 422, 503),
    openapi_extra=described_many(Definition, _MOST_APPLIED, both=[EVERY_MINUTE, NIGHTLY]),
)  # fmt: skip
def apply(
    jobq: Admin, asked: Annotated[list[Any], Depends(many("workflows", _MOST_APPLIED, MAX_BYTES))]
) -> Listing[Applied]:
    """Bring workflows to what the definitions say, by name, all or none; applying twice changes nothing."""
    return whole(jobq.apply(models(Definition, asked, "Workflow")))  # type: ignore[no-any-return]


@router.get("/workflows", responses=documented(400, 422, 503))
def list_workflows(
    jobq: Reader,
    *,
    status: WorkflowStatus | None = None,
    name: Annotated[str | None, Query(max_length=200, description="The one that is called so.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Listing[Workflow]:
    """The oldest first."""
    return listing(jobq.list_workflows(status=status, name=name, limit=limit, cursor=cursor))  # type: ignore[no-any-return]


@router.get("/workflows/{workflow_id}", responses=documented(404, 503))
def get_workflow(jobq: Reader, workflow_id: UUID) -> Workflow:
    """The workflow as it is now."""
    return jobq.get_workflow(workflow_id)


@router.patch(
    "/workflows/{workflow_id}", responses=documented(400, 403, 404, 409, 413, 415, 422, 503),
    openapi_extra=described(Definition, slower={"interval": "PT5M"}),
)  # fmt: skip
def update_workflow(jobq: Admin, workflow_id: UUID, changes: Document) -> Workflow:
    """Change the fields that are given: a new generation, its failure counter at 0."""
    if not isinstance(changes, dict):
        raise InvalidInput("The changes of a workflow are an object.")
    return jobq.update_workflow(workflow_id, **changes)


@router.delete("/workflows/{workflow_id}", status_code=204, responses=documented(404, 409, 503))
def delete_workflow(jobq: Admin, workflow_id: UUID) -> None:
    """Remove it. 409 ``has_live_jobs`` while it has jobs that have not ended."""
    jobq.delete_workflow(workflow_id)


@router.post("/workflows/{workflow_id}/pause", responses=documented(404, 409, 503))
def pause_workflow(jobq: Admin, workflow_id: UUID) -> Workflow:
    """No more slots until it is resumed; those that pass meanwhile are dropped."""
    return jobq.pause_workflow(workflow_id)


@router.post("/workflows/{workflow_id}/resume", responses=documented(404, 409, 503))
def resume_workflow(jobq: Admin, workflow_id: UUID) -> Workflow:
    """Make it ACTIVE again, also after a termination."""
    return jobq.resume_workflow(workflow_id)


@router.post("/workflows/{workflow_id}/terminate", responses=documented(404, 409, 503))
def terminate_workflow(jobq: Admin, workflow_id: UUID) -> Workflow:
    """End it: waiting jobs of its schedule are canceled."""
    return jobq.terminate_workflow(workflow_id)


@router.get("/workflows/{workflow_id}/preview", responses=documented(404, 422, 503))
def preview(jobq: Reader, workflow_id: UUID, count: Annotated[int, Query(ge=1, le=1000)] = 5) -> Listing[datetime]:
    """The next schedule slots; none for a workflow without a schedule."""
    return whole(jobq.preview(workflow_id, count))  # type: ignore[no-any-return]


@router.post(
    "/workflows/{workflow_id}/jobs", status_code=201, responses=documented(400, 404, 409, 413, 415, 422, 429, 503),
    openapi_extra=described(Particulars, now={}, later={"scheduled_at": "2027-01-01T08:00:00Z"}),
)  # fmt: skip
def trigger(
    jobq: Runner, workflow_id: UUID, document: Document, response: Response, idempotency_key: IdempotencyKey = None
) -> Job:
    """Start a MANUAL job of the workflow, now or at ``scheduled_at``, whatever the workflow's status is."""
    key: dict[str, Any] = {} if idempotency_key is None else {"idempotency_key": idempotency_key}
    job = jobq.start(workflow_id, parse(Particulars, {**document, **key} if isinstance(document, dict) else document))
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/workflows/{workflow_id}/jobs", responses=documented(400, 404, 422, 503))
def list_jobs_of(jobq: Reader, workflow_id: UUID, wanted: Filters) -> Counted[Job]:
    """Its jobs, the newest first."""
    jobq.get_workflow(workflow_id)
    return wanted.answer(jobq, workflow_id=workflow_id)  # type: ignore[no-any-return]
