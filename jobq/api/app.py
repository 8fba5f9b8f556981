"""The app put together: one JobQ, its routes below ``/v1``, errors as problems, one id for each request."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobq.api import audit, health, hooks, jobs, logs, operations, problems, webhooks, workflows
from jobq.api.access import Access
from jobq.api.streams import Watching
from jobq.client import JobQ
from jobq.connections import Connector
from jobq.definition import Definition, JobRequest, Particulars
from jobq.settings import Settings
from jobq.store.jobs import new_id
from jobq.tail import Tail

log = logging.getLogger(__name__)

_MODELS: list[Any] = [JobRequest, Definition, Particulars, Connector, problems.Problem]
_MODELS += [*operations.BODIES, *hooks.BODIES, *webhooks.BODIES]


def create_app(settings: Settings, jobq: JobQ | None = None) -> FastAPI:
    """The API of an installation. ``jobq``: whose connections it uses; else it has some of its own."""
    own = jobq is None
    door = jobq or JobQ(settings=settings, actor="api")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        app.state.watching = Watching(Tail(door.database))
        yield
        if own:
            door.close()

    app = FastAPI(
        title="jobq", version=version("jobq"), summary="Durable jobs: enqueue, schedule, watch.",
        description="Every error is a problem document (RFC 9457) with a stable code.", openapi_url="/v1/openapi.json",
        docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )  # fmt: skip
    app.state.jobq, app.state.access = door, Access(settings, door.database)
    problems.install(app)
    routers = (
        jobs.router, logs.router, workflows.router, hooks.router, operations.router, audit.router, webhooks.router,
    )  # fmt: skip
    for router in routers:
        app.include_router(router, prefix="/v1", responses=problems.documented(401))
    app.include_router(health.router)
    app.add_middleware(Requests)
    app.openapi = lambda: _openapi(app, FastAPI.openapi(app))  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI, document: dict[str, Any]) -> dict[str, Any]:
    """With the bodies that are read by hand, and the way to say who asks."""
    components = document.setdefault("components", {})
    if "securitySchemes" not in components:
        _, found = models_json_schema(
            [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
        )
        components["schemas"] = {**found["$defs"], **components.get("schemas", {})}
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}}
        document["security"] = [{"key": []}, {}]
        app.openapi_schema = document
    return document


class Requests:
    """Gives each request its id, and the log a line about it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        text = given.decode("latin-1")
        request_id = text if 0 < len(text) <= 100 and text.isascii() and text.isprintable() else new_id().hex
        scope["jobq_request_id"] = request_id
        began, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = {"x-request-id": request_id, **scope.get("jobq_headers", {})}
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in more.items()]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            log.info(
                "%s %s %d %.1f ms (%s)", scope["method"], problems.shown_path(scope["path"]), status,
                (time.perf_counter() - began) * 1000, request_id,
            )  # fmt: skip
