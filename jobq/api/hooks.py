"""``/v1/workflows/{id}/hooks``: inbound hooks; ``/v1/hooks/{token}``: where other systems send to."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from jobq.api.access import Admin
from jobq.api.bodies import Raw, body, described
from jobq.api.listings import Listing, whole
from jobq.api.problems import documented
from jobq.client import JobQ
from jobq.hooks import Signature
from jobq.store.hooks import StoredHook

router = APIRouter(tags=["hooks"])


class HookRequest(BaseModel):
    """A new inbound hook."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    signature: str = Signature.NONE.value
    """none, hub (``X-Hub-Signature-256``) or standard (Standard Webhooks)."""
    secret: str | None = None
    """Of the signatures; null: one is made."""
    replay_window: float | str | None = None
    """Seconds or ISO 8601, for standard; null: 5 minutes."""
    rate_limit: int | None = None
    """Jobs a minute; null: no limit."""
    envelope: bool = False
    """The job's state holds the query and the headers, too."""


class HookMade(BaseModel):
    """The only moment at which token and secret can be read."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    token: str
    path: str
    secret: str | None
    stored: StoredHook


class Received(BaseModel):
    """The job that the delivery started, now or when it came first."""

    job_id: UUID


@router.post(
    "/workflows/{workflow_id}/hooks", status_code=201, responses=documented(400, 403, 404, 413, 415, 422, 503),
    openapi_extra=described(
        HookRequest, simple={"name": "deploy"},
        signed={"name": "github", "signature": "hub", "rate_limit": 60, "envelope": True},
    ),
)  # fmt: skip
def create_hook(jobq: Admin, workflow_id: UUID, asked: Annotated[HookRequest, Depends(body(HookRequest))]) -> HookMade:
    """Make an inbound hook. Its token is shown this once."""
    made = jobq.hooks.create(workflow_id, **asked.model_dump())
    return HookMade(token=made.token, path=made.path, secret=made.secret, stored=made.stored)


@router.get("/workflows/{workflow_id}/hooks", responses=documented(403, 404, 503))
def list_hooks(jobq: Admin, workflow_id: UUID) -> Listing[StoredHook]:
    """The workflow's inbound hooks, the newest first; never their tokens."""
    return whole(jobq.hooks.list(workflow_id))  # type: ignore[no-any-return]


@router.delete("/workflows/{workflow_id}/hooks/{hook_id}", responses=documented(403, 404, 503))
def revoke_hook(jobq: Admin, workflow_id: UUID, hook_id: UUID) -> StoredHook:
    """What is sent to it from now on is answered as if it had never been."""
    return jobq.hooks.revoke(workflow_id, hook_id)


@router.post(
    "/hooks/{token}", status_code=202, responses=documented(400, 404, 409, 413, 415, 422, 429, 503),
    openapi_extra={
        "security": [],
        "requestBody": {"content": {"application/json": {"schema": {}, "examples": {"any": {"value": {"ref": "main"}}}}}},
    },
)  # fmt: skip
def receive(request: Request, token: str, raw: Raw, response: Response) -> Received:
    """Start a MANUAL job of the hook's workflow, with the body as its state. The token is the credential."""
    jobq: JobQ = request.app.state.jobq
    job = jobq.hooks.receive(token, raw, headers=dict(request.headers), query=request.query_params.multi_items())
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return Received(job_id=job.id)


BODIES: list[Any] = [HookRequest]
