"""``/v1/jobs``: enqueue, list, look at and act on jobs."""

from __future__ import annotations

from asyncio import to_thread
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from jobq.api.access import Reader, Runner, caller, running
from jobq.api.bodies import (
    IDEMPOTENCY_KEY,
    IdempotencyKey,
    described,
    described_many,
    document,
    idempotency_key,
    many,
)
from jobq.api.listings import Counted, Cursor, Limit, Listing, listing, whole
from jobq.api.problems import documented
from jobq.client import JobQ
from jobq.definition import JobRequest
from jobq.models import Artifact, Attempt, Export, FanOut, Job, Problem
from jobq.states import Reason, Status, Trigger
from jobq.timeline import Event
from jobq.validation import parse

router = APIRouter(tags=["jobs"])
_JOB = TypeAdapter(Job)

HEARTBEAT = {
    "kind": "HEARTBEAT",
    "spec": {"endpoint": "https://example.org/", "expected_status_code": 200},
    "priority": 7,
}
CONTAINER = {
    "kind": "CONTAINER",
    "spec": {"image": "alpine", "command": ["echo", "hello"], "memory": "64MB"},
    "timeout": "PT1M",
    "retry": {"max_attempts": 2},
}
LATER = {
    "kind": "HEARTBEAT", "spec": {"endpoint": "https://example.org/"}, "scheduled_at": "2027-01-01T08:00:00Z",
    "dedupe_key": "new-year",
}  # fmt: skip
MOST_AT_ONCE = 5000
_BATCH_BYTES = 16 * 1024 * 1024
_EXPORTS = Query(ge=1, le=200, description="Of a SYNC: how many export details.")


class Why(BaseModel):
    """One or two sentences: why the job is where it is."""

    why: str


class Made(BaseModel):
    """The ids of new jobs."""

    ids: list[UUID]


class Wanted(BaseModel):
    """Which jobs, and how many. Repeated parameters are alternatives; ranges are half open: [from, until)."""

    model_config = ConfigDict(extra="forbid")

    status: list[Status] = []
    reason: list[Reason] = []
    kind: list[str] = Field([], max_length=20)
    queue: list[str] = Field([], max_length=20)
    trigger: Trigger | None = None
    workflow_id: UUID | None = None
    parent_id: UUID | None = None
    domain: str | None = Field(None, max_length=100)
    domain_end: Literal["source", "target"] | None = None
    name: str | None = Field(None, max_length=200, description="Text in the name.")
    created_from: AwareDatetime | None = None
    created_until: AwareDatetime | None = None
    scheduled_from: AwareDatetime | None = None
    scheduled_until: AwareDatetime | None = None
    finished_from: AwareDatetime | None = None
    finished_until: AwareDatetime | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=200, description="next_cursor of the page before, with its filters.")
    total: bool = Field(False, description="Count them, too.")

    def filters(self, **fixed: Any) -> dict[str, Any]:
        """The arguments of ``JobQ.list``; ``fixed`` ones win."""
        plural = {
            "status": "statuses",
            "reason": "reasons",
            "kind": "kinds",
            "queue": "queues",
            "name": "name_contains",
        }
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields if name != "total"}
        found = {plural.get(name, name): value for name, value in values.items()}
        sets = {name: frozenset(found[name]) for name in ("statuses", "reasons", "kinds", "queues")}
        return {**found, **sets, **fixed}

    def answer(self, jobq: JobQ, **fixed: Any) -> Any:
        """The page that is wanted, counted if that is wanted."""
        only = self.filters(**fixed)
        page, counted = jobq.list(**only), {name: only[name] for name in only if name not in {"limit", "cursor"}}
        return listing(page, total=jobq.count(**counted) if self.total else None)


Filters = Annotated[Wanted, Query()]


@router.post(
    "/jobs", status_code=201, response_model=Job, responses=documented(400, 403, 404, 409, 413, 415, 422, 429, 503),
    openapi_extra={
        **described(JobRequest, heartbeat=HEARTBEAT, container=CONTAINER, later=LATER), "parameters": [IDEMPOTENCY_KEY]
    },
)  # fmt: skip
async def enqueue(request: Request) -> Response:
    """Enqueue a job of its own, now or at ``scheduled_at``. It is durable once this is answered."""
    # By hand what others leave to FastAPI, whose way to it takes as long as all the rest of an enqueue.
    jobq = await running(request, await caller(request))
    asked, key = parse(JobRequest, await document(request)), idempotency_key(request)
    if key is not None:
        asked = parse(JobRequest, {**asked.model_dump(exclude_unset=True), "idempotency_key": key})
    job = await to_thread(jobq.submit, asked)
    headers = {"Location": f"/v1/jobs/{job.id}"}
    return Response(_JOB.dump_json(job), 201, headers, media_type="application/json")


@router.post(
    "/jobs/batch", status_code=201, responses=documented(400, 403, 404, 409, 413, 415, 422, 429, 503),
    openapi_extra=described_many(JobRequest, MOST_AT_ONCE, two=[HEARTBEAT, CONTAINER]),
)  # fmt: skip
def enqueue_batch(
    jobq: Runner,
    requests: Annotated[list[Any], Depends(many("jobs", MOST_AT_ONCE, _BATCH_BYTES))],
    idempotency_key: IdempotencyKey = None,
) -> Made:
    """Enqueue up to 5,000 jobs (16 MiB): all of them, or none. The ids are in the order of the requests."""
    return Made(ids=jobq.enqueue_many(requests, idempotency_key=idempotency_key))


@router.get("/jobs", responses=documented(400, 422, 503))
def list_jobs(jobq: Reader, wanted: Filters) -> Counted[Job]:
    """The newest first, of this tenant; a SYNC's children too, unless a filter says otherwise."""
    return wanted.answer(jobq)  # type: ignore[no-any-return]


@router.get("/jobs/{job_id}", responses=documented(404, 503))
def get_job(jobq: Reader, job_id: UUID) -> Job:
    """The job as it is now."""
    return jobq.get(job_id)


@router.get("/jobs/{job_id}/spec", responses=documented(404, 503))
def get_spec(jobq: Reader, job_id: UUID) -> dict[str, Any]:
    """What the job was told to do."""
    return jobq.spec(job_id)


@router.get("/jobs/{job_id}/details", responses=documented(404, 422, 503))
def get_details(jobq: Reader, job_id: UUID, exports: Annotated[int, _EXPORTS] = 100) -> dict[str, Any]:
    """job_details.json: the same keys for every kind, at every stage."""
    return jobq.details(job_id, exports=exports)


@router.get("/jobs/{job_id}/attempts", responses=documented(404, 503))
def list_attempts(jobq: Reader, job_id: UUID) -> Listing[Attempt]:
    """The attempts that have ended, oldest first: cause, steps, usage and result of each."""
    return whole(jobq.attempts(job_id))  # type: ignore[no-any-return]


@router.get("/jobs/{job_id}/timeline", responses=documented(404, 503))
def get_timeline(jobq: Reader, job_id: UUID) -> Listing[Event]:
    """What happened to the job, and what people did to it, in order."""
    return whole(jobq.timeline(job_id))  # type: ignore[no-any-return]


@router.get("/jobs/{job_id}/why", responses=documented(404, 503))
def get_why(jobq: Reader, job_id: UUID) -> Why:
    """Why the job is where it is, and for what it waits."""
    return Why(why=jobq.why(job_id))


# --- fan-outs --------------------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/children", responses=documented(400, 404, 422, 503))
def list_children(jobq: Reader, job_id: UUID, wanted: Filters) -> Counted[Job]:
    """The jobs that a SYNC fanned out, the newest first."""
    jobq.get(job_id)
    return wanted.answer(jobq, parent_id=job_id)  # type: ignore[no-any-return]


@router.get("/jobs/{job_id}/fanout", responses=documented(404, 503))
def get_fanout(jobq: Reader, job_id: UUID) -> FanOut:
    """How far a SYNC is: exact counts, however many children there are."""
    return jobq.fanout(job_id)


@router.get("/jobs/{job_id}/exports", responses=documented(400, 404, 422, 503))
def list_exports(jobq: Reader, job_id: UUID, limit: Limit = 50, cursor: Cursor = None) -> Listing[Export]:
    """What became of each entity at each target."""
    return listing(jobq.exports(job_id, limit=limit, cursor=cursor))  # type: ignore[no-any-return]


@router.get("/jobs/{job_id}/problems", responses=documented(404, 422, 503))
def list_problems(
    jobq: Reader, job_id: UUID, limit: Limit = 50, behind: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0
) -> Listing[Problem]:
    """Entities of a SYNC that failed before they had children, behind the one with that number."""
    return whole(jobq.problems(job_id, behind=behind, limit=limit))  # type: ignore[no-any-return]


# --- artifacts -------------------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/artifacts", responses=documented(404, 503))
def list_artifacts(jobq: Reader, job_id: UUID) -> Listing[Artifact]:
    """The files that the job left behind."""
    return whole(jobq.artifacts(job_id))  # type: ignore[no-any-return]


@router.get("/jobs/{job_id}/artifacts/{name:path}", responses=documented(404, 503), response_class=Response)
def get_artifact(jobq: Reader, job_id: UUID, name: str) -> Response:
    """The content of one of them. A browser is told to store it, not to show it."""
    headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
    return Response(jobq.artifact(job_id, name), media_type="application/octet-stream", headers=headers)


# --- act -------------------------------------------------------------------------------------------------------------


@router.post("/jobs/{job_id}/cancel", responses=documented(404, 409, 422, 503))
def cancel(
    jobq: Runner, job_id: UUID,
    force: Annotated[bool, Query(description="End it now, though its worker may go on for seconds.")] = False,
) -> Job:  # fmt: skip
    """At once while the job waits; within seconds while it runs."""
    return jobq.cancel(job_id, force=force)


@router.post("/jobs/{job_id}/pause", responses=documented(404, 409, 503))
def pause(jobq: Runner, job_id: UUID) -> Job:
    """Hold a waiting MANUAL job, or a SYNC at any time."""
    return jobq.pause(job_id)


@router.post("/jobs/{job_id}/resume", responses=documented(404, 409, 503))
def resume(jobq: Runner, job_id: UUID) -> Job:
    """Let a paused job go on; resuming what is not paused changes nothing."""
    return jobq.resume(job_id)


@router.post("/jobs/{job_id}/retry", status_code=201, responses=documented(404, 409, 422, 503))
def retry(jobq: Runner, job_id: UUID, response: Response, idempotency_key: IdempotencyKey = None) -> Job:
    """Run an ended job again: a new job with ``retry_of``; of a SYNC only what failed."""
    job = jobq.retry(job_id, idempotency_key=idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
