"""``/livez`` and ``/readyz``: for those who supervise the process. Neither needs a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from jobq.api.problems import documented
from jobq.client import JobQ
from jobq.store.workers import database_now

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> dict[str, Any]:
    """The process answers. Depends on nothing else, so that a database that is away restarts nobody."""
    return {"status": "ok"}


@router.get("/readyz", responses=documented(503))
def readyz(request: Request) -> dict[str, Any]:
    """The database answers, so that requests can be served."""
    jobq: JobQ = request.app.state.jobq
    with jobq.database.read() as conn:
        return {"status": "ok", "database_now": database_now(conn)}
