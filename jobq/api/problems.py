"""Errors as HTTP says them: RFC 9457 problem documents with the codes that Python and the CLI know."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from jobq.errors import Forbidden, InvalidInput, JobQError, Misconfigured, NotFound, TooMany, Unauthorized, Unavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER = 2
_OF_STATUS = {
    400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "payload_too_large",
    415: "unsupported_media_type",
}  # fmt: skip


class ProblemDetails(BaseModel):
    """What went wrong, for people (title, detail, hint) and for programs (status, code, pointer)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    """Stable: the same in Python and on the command line."""
    pointer: str | None = None
    """JSON pointer to the part of the request's body that is wrong."""
    hint: str | None = None
    request_id: str | None = None
    """Of the response's X-Request-Id, to be found in the server's log."""


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a route answers with, for its OpenAPI document."""
    media: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: media}} for status in statuses
    }  # fmt: skip


def status_of(error: JobQError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, InvalidInput):
        return error.http_status
    return 503 if isinstance(error, Misconfigured) else error.status


def install(app: FastAPI) -> None:
    """Every error of this app becomes a problem document."""
    app.add_exception_handler(JobQError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_parameters)
    app.add_exception_handler(Exception, _on_defect)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, JobQError)
    status = status_of(error)
    if status >= 500:
        log.warning("%s: %s", request_id(request), error)
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable | TooMany):
        headers["Retry-After"] = str(getattr(error, "retry_after", _RETRY_AFTER))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="jobq"'
    return _answer(
        request, status, error.message, error.code, pointer=error.pointer or None, hint=error.hint, headers=headers
    )


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: no such route, method, body too large."""
    assert isinstance(error, HTTPException)
    code = _OF_STATUS.get(error.status_code, "error")
    headers = dict(error.headers or {})
    return _answer(request, error.status_code, f"{error.detail}".rstrip(".") + ".", code, headers=headers)


async def _on_parameters(request: Request, error: Exception) -> JSONResponse:
    """A path or query parameter that is wrong. An id that is none is the id of nothing."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = dict(error.errors()[0])
    place, name = str(first["loc"][0]), str(first["loc"][min(1, len(first["loc"]) - 1)])
    if place == "path":
        return await _on_error(request, NotFound("There is no such thing."))
    message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    return await _on_error(request, InvalidInput(f"{name!r}: {message[:1].lower()}{message[1:]}.", pointer=f"/{name}"))


async def _on_defect(request: Request, error: Exception) -> JSONResponse:
    log.error("%s: %s %s failed", request_id(request), request.method, shown_path(request.url.path), exc_info=error)
    return _answer(request, 500, "This is a defect of jobq.", "defect", hint="The server's log has the request's id.")


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI app for paths that name nothing."""
    answer = _answer(Request(scope), 404, "There is no such thing.", "not_found")
    await answer(scope, receive, send)


def _answer(
    request: Request, status: int, detail: str, code: str, *, headers: dict[str, str] | None = None, **more: Any
) -> JSONResponse:
    problem = ProblemDetails(
        title=HTTPStatus(status).phrase, status=status, detail=detail, code=code, request_id=request_id(request), **more
    )
    document = problem.model_dump(mode="json", exclude_none=True)
    return JSONResponse(document, status, headers, media_type=MEDIA_TYPE)


def shown_path(path: str) -> str:
    """A request's path as logs and traces may have it: the token of a hook is a credential."""
    head, found, _ = path.partition("/hooks/")
    return f"{head}{found}***" if found and "/workflows/" not in head else path


def request_id(request: Request) -> str | None:
    """The id of this request: the caller's own, or one that was made for it."""
    found: str | None = request.scope.get("jobq_request_id")
    return found


__all__ = ["Forbidden", "ProblemDetails", "documented", "install", "request_id", "shown_path", "status_of"]
