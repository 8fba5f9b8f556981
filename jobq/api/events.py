"""``/v1/events``: what happens to a tenant's jobs and workflows, as server-sent events; one look for all readers.

Each reader has a place in a ring of the newest changes, and takes what is behind it when it is ready for it. One that is
so slow that the ring has passed it is told, and let go: it comes back with ``Last-Event-ID``, and gets the newest states.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jobq.api.access import Reader
from jobq.api.logs import UNBUFFERED
from jobq.api.problems import documented
from jobq.api.streams import KEEP_ALIVE
from jobq.changes import LOOK_EVERY, Feed, Wanted, read_place
from jobq.client import JobQ
from jobq.models import Change, Job, Workflow
from jobq.states import Status
from jobq.store.database import Database

log = logging.getLogger(__name__)
router = APIRouter(tags=["events"])

_RING = 10_000
_JOB, _WORKFLOW = TypeAdapter(Job), TypeAdapter(Workflow)


class TooSlow(Exception):
    """The ring has passed this reader."""


class Broadcast:
    """The newest changes of all tenants, for all readers of this process. Looked at while somebody reads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ring: deque[tuple[Change, str]] = deque(maxlen=_RING)
        self._told = 0
        self._readers = 0
        self._task: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._news = asyncio.Condition()
        self.stopped = False

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[int]:
        """While this lasts, the database is looked at; the place at which it begins."""
        self._readers += 1
        if self._task is None or self._task.done():
            self._begun.clear()
            self._task = asyncio.create_task(self._look())
        try:
            await self._begun.wait()
            yield self._told
        finally:
            self._readers -= 1

    async def _look(self) -> None:
        feed = Feed(self._database, None)
        while self._readers and not self.stopped:
            try:
                found = await asyncio.to_thread(_encoded, feed)
            except Exception as error:  # noqa: BLE001 - a database that is away: what was missed is told when it is back
                log.warning("changes cannot be looked at: %s", error)
                await asyncio.sleep(1.0)
                continue
            self._begun.set()
            if found:
                async with self._news:
                    self._ring.extend(found)
                    self._told += len(found)
                    self._news.notify_all()
            await asyncio.sleep(LOOK_EVERY)
        self._begun.set()

    async def behind(self, place: int, seconds: float) -> list[tuple[Change, str]]:
        """What came behind this place, as soon as there is something; empty after so many seconds. Raises TooSlow."""
        async with self._news:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait_for(lambda: self.stopped or self._told > place), seconds)
        missing = self._told - place
        if missing > len(self._ring):
            raise TooSlow
        return [self._ring[number] for number in range(len(self._ring) - missing, len(self._ring))]

    async def stop(self) -> None:
        """End all streams."""
        self.stopped = True
        async with self._news:
            self._news.notify_all()


def _encoded(feed: Feed) -> list[tuple[Change, str]]:
    return [(change, _event(change)) for change in feed.look()]


def _event(change: Change) -> str:
    if change.job is not None:
        data = _JOB.dump_json(change.job).decode()
    elif change.workflow is not None:
        data = _WORKFLOW.dump_json(change.workflow).decode()
    else:
        data = "{}"
    return f"event: {change.what}\nid: {change.place}\ndata: {data}\n\n"


async def change_events(broadcast: Broadcast, jobq: JobQ, wanted: Wanted, after: str | None) -> AsyncIterator[str]:
    """``open``, then ``job`` and ``workflow`` with the thing as it is, ``gap`` and, for one that is too slow, ``dropped``."""
    async with broadcast.reading() as begin:
        place = begin
        feed = Feed(jobq.database, jobq.tenant, after)
        missed = await asyncio.to_thread(feed.look)
        yield f"event: open\nid: {feed.place}\ndata: {{}}\n\n"
        if text := "".join(_event(change) for change in missed if wanted.wants(change)):
            yield text
        while not broadcast.stopped:
            try:
                found = await broadcast.behind(place, KEEP_ALIVE)
            except TooSlow:
                yield f"event: dropped\ndata: {json.dumps({'reason': 'too slow: come back with Last-Event-ID'})}\n\n"
                return
            place += len(found)
            if text := "".join(text for change, text in found if wanted.wants(change)):
                yield text
            elif not found:
                yield ": keep-alive\n\n"


class Asked(BaseModel):
    """Which changes. Repeated parameters are alternatives."""

    model_config = ConfigDict(extra="forbid")

    status: list[Status] = Field([], description="Of jobs; then workflows are not told.")
    kind: list[str] = Field([], max_length=20)
    queue: list[str] = Field([], max_length=20)
    workflow_id: UUID | None = None
    after: str | None = Field(None, max_length=20, description="The id of an event: what came behind it is told first.")

    def wanted(self, tenant: str) -> Wanted:
        """As a condition."""
        kinds, queues = frozenset(self.kind), frozenset(self.queue)
        return Wanted(frozenset(self.status), kinds, queues, self.workflow_id, tenant=tenant)


@router.get(
    "/events",
    responses={**documented(422, 503), 200: {"content": {"text/event-stream": {}}, "description": "Events"}},
    response_class=StreamingResponse,
)
async def stream_changes(
    request: Request,
    jobq: Reader,
    asked: Annotated[Asked, Query()],
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)] = None,
) -> StreamingResponse:
    """Server-sent events: jobs and workflows as they change, the newest state of each within a second."""
    after = last_event_id if last_event_id is not None and last_event_id.isdecimal() else asked.after
    if after is not None:
        read_place(after)
    events = change_events(request.app.state.broadcast, jobq, asked.wanted(jobq.tenant), after)
    return StreamingResponse(events, media_type="text/event-stream", headers=UNBUFFERED)
