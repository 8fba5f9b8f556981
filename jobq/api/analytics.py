"""``/v1/analytics``: what ended, how, how long it took, over time."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from jobq.analytics import Trend
from jobq.api.access import Reader
from jobq.api.problems import documented

router = APIRouter(tags=["analytics"])


class Asked(BaseModel):
    """Which jobs, and how they are divided. Repeated parameters are alternatives."""

    model_config = ConfigDict(extra="forbid")

    since: AwareDatetime | None = Field(None, description="Jobs that ended from then on; a day before until.")
    until: AwareDatetime | None = Field(None, description="Jobs that ended before; now.")
    bucket: Literal["minute", "hour", "day"] | None = Field(None, description="Divide the time.")
    group_by: Literal["kind", "queue", "workflow"] | None = Field(None, description="Divide the jobs.")
    kind: list[str] = Field([], max_length=20)
    queue: list[str] = Field([], max_length=20)
    workflow_id: UUID | None = None
    timezone: str = Field("UTC", max_length=100, description="Whose days.")
    limit: int = Field(20, ge=1, le=100, description="By workflow: how many, those with the most jobs.")


@router.get("/analytics", responses=documented(422, 503))
def analytics(jobq: Reader, asked: Annotated[Asked, Query()]) -> Trend:
    """Counts by status and reason, success rate, run and wait time, retries and log volume of this tenant's ended jobs.

    The range is widened to whole hours. Exact but for the percentiles, which are off by 5 % at most.
    """
    return jobq.analytics(
        since=asked.since, until=asked.until, bucket=asked.bucket, group_by=asked.group_by, kinds=asked.kind,
        queues=asked.queue, workflow_id=asked.workflow_id, timezone=asked.timezone, limit=asked.limit,
    )  # fmt: skip
