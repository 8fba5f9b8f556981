"""``/v1/jobs/{id}/logs``: pages of lines, the whole as a file, and a stream that follows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict

from jobq.api.access import Reader
from jobq.api.problems import documented
from jobq.api.streams import log_events
from jobq.models import LogLine

router = APIRouter(tags=["logs"])

After = Annotated[int, Query(ge=0, le=2**62, description="Lines behind this one.")]
Stream = Annotated[Literal["stdout", "stderr", "system"] | None, Query(description="Of one stream only.")]
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class LogPage(BaseModel):
    """Lines in order. ``next_after``: where the next page begins; null: these were the last ones so far."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    items: list[LogLine]
    next_after: int | None


@router.get("/jobs/{job_id}/logs", responses=documented(404, 422, 503))
def get_logs(
    jobq: Reader,
    job_id: UUID,
    *,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    stream: Stream = None,
    q: Annotated[str | None, Query(min_length=1, max_length=200, description="Text in the line.")] = None,
) -> LogPage:
    """A page of lines, searched and filtered where asked."""
    lines = list(jobq.log_page(job_id, after=after, limit=limit, stream=stream, text=q))
    return LogPage(items=lines, next_after=lines[-1].number if len(lines) == limit else None)


@router.get("/jobs/{job_id}/logs/raw", responses=documented(404, 422, 503), response_class=StreamingResponse)
def get_raw_logs(
    jobq: Reader, job_id: UUID, as_: Annotated[Literal["txt", "jsonl"], Query(alias="format")] = "txt",
    stream: Stream = None,
) -> StreamingResponse:  # fmt: skip
    """The whole log as a file: plain text, or a JSON object on each line."""
    jobq.get(job_id)

    def text() -> Iterator[str]:
        for line in jobq.logs(job_id):
            if stream is None or line.stream == stream:
                yield f"{line.text}\n" if as_ == "txt" else _json_line(line)

    kind = "text/plain; charset=utf-8" if as_ == "txt" else "application/x-ndjson"
    headers = {"Content-Disposition": f'attachment; filename="{job_id}.{as_}"', "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(text(), media_type=kind, headers=headers)


def _json_line(line: LogLine) -> str:
    told = {"number": line.number, "attempt": line.attempt, "at": line.at.isoformat(), "stream": line.stream, "text": line.text}  # fmt: skip
    return json.dumps(told, ensure_ascii=False) + "\n"


@router.get(
    "/jobs/{job_id}/logs/stream",
    responses={**documented(404, 422, 503), 200: {"content": {"text/event-stream": {}}, "description": "Events"}},
    response_class=StreamingResponse,
)
async def stream_logs(
    request: Request,
    jobq: Reader,
    job_id: UUID,
    *,
    after: After = 0,
    stream: Stream = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)] = None,
) -> StreamingResponse:
    """Server-sent events: ``log`` for each line, ``end`` with the job's final state. It may open before the job runs."""
    await asyncio.to_thread(jobq.get, job_id)
    position = int(last_event_id) if last_event_id is not None and last_event_id.isdecimal() else after
    events = log_events(request.app.state.watching, jobq, job_id, position, stream)
    return StreamingResponse(events, media_type="text/event-stream", headers=UNBUFFERED)
