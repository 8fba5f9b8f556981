"""The app put together: one JobQ, its routes below ``/v1``, errors as problems, one id for each request."""

from __future__ import annotations

import logging
import re
import time
from asyncio import get_running_loop
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobq import metrics, telemetry
from jobq.api import (
    analytics,
    audit,
    events,
    health,
    hooks,
    jobs,
    links,
    logs,
    operations,
    problems,
    webhooks,
    workflows,
)
from jobq.api import metrics as scraped
from jobq.api.access import Access
from jobq.api.events import Broadcast
from jobq.api.streams import Watching
from jobq.client import JobQ
from jobq.connections import Connector
from jobq.definition import Definition, JobRequest, Particulars
from jobq.exposition import Metrics
from jobq.settings import Settings
from jobq.store.jobs import new_id
from jobq.tail import Tail

log = logging.getLogger(__name__)

_PREFIX = "/v1"
_THREADS = 40
"""As many as FastAPI has for routes that are no coroutines."""
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_CONTROL = re.compile("(?!/v1/hooks/).*[\x00-\x1f\x7f]", re.DOTALL)
"""No name has such a character, and routes would take "a%0A" for "a". A token that is none is answered as any other."""
_MODELS: list[Any] = [JobRequest, Definition, Particulars, Connector, problems.ProblemDetails]
_MODELS += [*operations.BODIES, *hooks.BODIES, *webhooks.BODIES]


def create_app(settings: Settings, jobq: JobQ | None = None) -> FastAPI:
    """The API of an installation. ``jobq``: whose connections it uses; else it has some of its own."""
    own = jobq is None
    door = jobq or JobQ(settings=settings, actor="api")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "jobq-api"))  # of asyncio.to_thread
        app.state.watching = Watching(Tail(door.database))
        app.state.broadcast = Broadcast(door.database)
        yield
        if own:
            door.close()

    app = FastAPI(
        title="jobq", version=version("jobq"), summary="Durable jobs: enqueue, schedule, watch.",
        description="Every error is a problem document (RFC 9457) with a stable code.", openapi_url="/v1/openapi.json",
        docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,  # clients that are generated call them so
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )  # fmt: skip
    app.state.jobq, app.state.access = door, Access(settings, door.database)
    app.state.metrics = Metrics(door.database)
    problems.install(app)
    for router in (
        jobs.router, logs.router, workflows.router, hooks.router, operations.router, audit.router, events.router,
        webhooks.router, analytics.router,
    ):  # fmt: skip
        app.include_router(router, prefix=_PREFIX, responses=problems.documented(401))
    app.include_router(health.router)
    app.include_router(scraped.router)
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
        links.draw(document)
        named = (operations for path, operations in document["paths"].items() if "{" in path)
        for operation in (operation for operations in named for operation in operations.values()):
            for status, problem in problems.documented(404).items():  # of what has no name that anything can have
                operation["responses"].setdefault(str(status), problem)
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

        trace = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        app = problems.nowhere if _CONTROL.match(scope["path"]) else self._app
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        try:
            with _traced(scope["path"], method, trace.decode("latin-1")) as span:
                try:
                    await app(scope, receive, answer)
                finally:
                    telemetry.served(span, method, _route(scope), status)
        finally:
            _count(method, _route(scope), status, time.perf_counter() - began)
            log.info(
                "%s %s %d %.1f ms (%s)", scope["method"], problems.shown_path(scope["path"]), status,
                (time.perf_counter() - began) * 1000, request_id,
            )  # fmt: skip


def _traced(path: str, method: str, traceparent: str) -> AbstractContextManager[Any]:
    """A span for what is asked of us, not for each look of a probe or a scraper."""
    if path.startswith(f"{_PREFIX}/"):
        return telemetry.serving(method, traceparent)
    return telemetry.continuing(traceparent)


def _route(scope: Scope) -> str | None:
    """The route's pattern; None: there is none for that path."""
    route: str | None = getattr(scope.get("route"), "path", None)
    if route is not None and scope["path"].startswith(f"{_PREFIX}/") and not route.startswith(_PREFIX):
        route = _PREFIX + route  # FastAPI names it as its router does
    return route


def _count(method: str, route: str | None, status: int, seconds: float) -> None:
    """By the route's pattern, never by the path, and by the methods that there are: both come from outside."""
    metrics.REQUESTS.add(1, method, route or "(none)", str(status))
    metrics.REQUEST_SECONDS.observe(seconds, route or "(none)")
