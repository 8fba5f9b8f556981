"""``/v1/audit``: who did what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from jobq.api.access import Admin, Asking
from jobq.api.listings import Listing, listing
from jobq.api.problems import documented
from jobq.errors import Forbidden
from jobq.store.audit import AuditEvent

router = APIRouter(tags=["audit"])


class Wanted(BaseModel):
    """Which events, and how many; the range is half open: [since, until)."""

    model_config = ConfigDict(extra="forbid")

    actor: str | None = Field(None, max_length=200, description="Text in the name, or the id of an API key.")
    action: str | None = Field(None, max_length=200)
    subject: str | None = Field(None, max_length=400, description="Such as workflow:ID, or workflow for all.")
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    everything: bool = Field(False, alias="all", description="Of all tenants: for operators.")
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=200, description="next_cursor of the page before, with its filters.")


@router.get("/audit", responses=documented(400, 403, 422, 503))
def list_events(jobq: Admin, who: Asking, wanted: Annotated[Wanted, Query()]) -> Listing[AuditEvent]:
    """What people and programs did on purpose, the newest first. Plain enqueues are no events: a job says who made it."""
    if wanted.everything and not who.operator:
        raise Forbidden("This concerns all tenants: an operator's key is needed.", code="scope")
    return listing(jobq.audit(**wanted.model_dump()))  # type: ignore[no-any-return]
