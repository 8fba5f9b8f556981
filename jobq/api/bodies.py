"""Requests' bodies: JSON read strictly (``jobq.validation``), then made a model; unknown fields are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel

from jobq.definition import Key
from jobq.validation import MAX_BYTES, check_media_type, parse, parse_json

Model = TypeVar("Model", bound=BaseModel)

IdempotencyKey = Annotated[
    Key | None,
    Header(
        alias="Idempotency-Key",
        description="A repeated request with the same key and body changes nothing, and is answered as the first one.",
    ),
]


async def document(request: Request) -> Any:
    """The body's JSON value; an empty body is an empty object. Raises InvalidInput."""
    raw = await read(request)
    if not raw:
        return {}
    check_media_type(request.headers.get("Content-Type"))
    return parse_json(raw, MAX_BYTES)


async def read(request: Request) -> bytes:
    """The body, as far as it is of any use: one that is too large is not waited for."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BYTES:
            break
    return bytes(raw)


Document = Annotated[Any, Depends(document)]
Raw = Annotated[bytes, Depends(read)]


def body(model: type[Model]) -> Callable[..., Model]:
    """A dependency: the body as an instance of ``model``."""

    def read(value: Document) -> Model:
        return parse(model, value)

    return read


def described(model: type[BaseModel], **examples: Any) -> dict[str, Any]:
    """What OpenAPI says of such a body, as a route's ``openapi_extra``; the model has to be among ``openapi.BODIES``."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    media = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": media}}}
