"""``/v1/webhooks``: who is told what happens to the tenant's jobs, and the log of what was delivered."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from jobq.api.access import Admin
from jobq.api.bodies import body, described
from jobq.api.listings import Cursor, Limit, Listing, listing, whole
from jobq.api.problems import documented
from jobq.errors import InvalidInput
from jobq.store.webhooks import Delivery
from jobq.webhooks import OVERLAP, Endpoint, SecretMade, WebhookChange, WebhookRequest

router = APIRouter(tags=["webhooks"])
_WRONG = documented(400, 403, 404, 409, 413, 415, 422, 503)
_MOST = 2**63 - 1

ENDS = {"url": "https://example.org/hooks/jobq", "name": "ends", "events": ["job.completed", "job.failed"]}
EVERYTHING = {"url": "https://example.org/hooks/jobq", "events": ["*"], "children": True, "hub_signature": ["sha256"]}


class Rotation(BaseModel):
    """A new secret for an endpoint."""

    model_config = ConfigDict(extra="forbid", strict=True)

    overlap: float | str = OVERLAP.total_seconds()
    """For so long (seconds or ISO 8601) what is sent is signed with the old secret as well."""
    secret: str | None = None
    """Made where none is given."""


class Replay(BaseModel):
    """One delivery, or all that failed for good of the events since an instant."""

    model_config = ConfigDict(extra="forbid", strict=True)

    delivery: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    failed_since: str | None = None
    """RFC 3339 with an offset."""


class Replayed(BaseModel):
    """How many deliveries are made again."""

    count: int


@router.get("/webhooks", responses=documented(503))
def list_webhooks(jobq: Admin) -> Listing[Endpoint]:
    """All, by name; never a secret."""
    return whole(jobq.webhooks.list())  # type: ignore[no-any-return]


@router.post(
    "/webhooks", status_code=201, responses=_WRONG,
    openapi_extra=described(WebhookRequest, ends=ENDS, everything=EVERYTHING),
)  # fmt: skip
def create_webhook(
    jobq: Admin, asked: Annotated[WebhookRequest, Depends(body(WebhookRequest))], response: Response
) -> SecretMade:  # fmt: skip
    """A new endpoint. Its secret is shown this once."""
    made = jobq.webhooks.make(asked)
    response.headers["Location"] = f"/v1/webhooks/{made.endpoint.id}"
    return made


@router.get("/webhooks/{webhook_id}", responses=documented(404, 503))
def get_webhook(jobq: Admin, webhook_id: UUID) -> Endpoint:
    """The endpoint as it is now."""
    return jobq.webhooks.get(webhook_id)


@router.patch(
    "/webhooks/{webhook_id}", responses=_WRONG, openapi_extra=described(WebhookChange, less={"events": ["job.failed"]})
)
def change_webhook(
    jobq: Admin, webhook_id: UUID, asked: Annotated[WebhookChange, Depends(body(WebhookChange))]
) -> Endpoint:  # fmt: skip
    """What is given is changed."""
    return jobq.webhooks.change(webhook_id, asked)


@router.delete("/webhooks/{webhook_id}", status_code=204, responses=documented(404, 503))
def delete_webhook(jobq: Admin, webhook_id: UUID) -> None:
    """Nothing more is sent to it; its log is gone."""
    jobq.webhooks.delete(webhook_id)


@router.post("/webhooks/{webhook_id}/enable", responses=documented(404, 503))
def enable_webhook(jobq: Admin, webhook_id: UUID) -> Endpoint:
    """Send to it again: what was due when it was disabled, and what happens from now on."""
    return jobq.webhooks.enable(webhook_id)


@router.post(
    "/webhooks/{webhook_id}/rotate", responses=_WRONG, openapi_extra=described(Rotation, day={"overlap": "P1D"})
)
def rotate_webhook(jobq: Admin, webhook_id: UUID, asked: Annotated[Rotation, Depends(body(Rotation))]) -> SecretMade:
    """A new secret, shown this once; for a while both sign."""
    return jobq.webhooks.rotate(webhook_id, overlap=asked.overlap, secret=asked.secret)


@router.post("/webhooks/{webhook_id}/test", status_code=202, responses=documented(404, 409, 503))
def test_webhook(jobq: Admin, webhook_id: UUID) -> Delivery:
    """Send it the event webhook.test."""
    return jobq.webhooks.test(webhook_id)


@router.get("/webhooks/{webhook_id}/deliveries", responses=documented(400, 404, 422, 503))
def list_deliveries(
    jobq: Admin,
    webhook_id: UUID,
    *,
    state: Literal["PENDING", "SUCCEEDED", "FAILED"] | None = None,
    type: Annotated[str | None, Query(max_length=100)] = None,  # noqa: A002 - the name of the parameter
    job_id: UUID | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Listing[Delivery]:
    """What was, or is to be, delivered, the newest first."""
    page = jobq.webhooks.deliveries(
        webhook_id, state=state, type=type, job_id=job_id, limit=limit, cursor=cursor
    )  # fmt: skip
    return listing(page)  # type: ignore[no-any-return]


@router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}", responses=documented(404, 503))
def get_delivery(jobq: Admin, webhook_id: UUID, delivery_id: Annotated[int, Path(ge=0, le=_MOST)]) -> Delivery:
    """One of them, as it is now."""
    return jobq.webhooks.delivery(webhook_id, delivery_id)


@router.post(
    "/webhooks/{webhook_id}/replay", status_code=202, responses=_WRONG,
    openapi_extra=described(Replay, one={"delivery": 42}, failed={"failed_since": "2027-01-01T08:00:00Z"}),
)  # fmt: skip
def replay(jobq: Admin, webhook_id: UUID, asked: Annotated[Replay, Depends(body(Replay))]) -> Replayed:
    """Send again, under the same webhook-id: one delivery, or all that failed since an instant."""
    if asked.delivery is not None and asked.failed_since is None:
        jobq.webhooks.replay(webhook_id, asked.delivery)
        return Replayed(count=1)
    if asked.delivery is None and asked.failed_since is not None:
        return Replayed(count=jobq.webhooks.replay_failed(webhook_id, asked.failed_since))
    raise InvalidInput("Say either delivery or failed_since.", pointer="/delivery")


BODIES: list[Any] = [WebhookRequest, WebhookChange, Rotation, Replay]
