"""Requests' bodies: JSON read strictly (``jobq.validation``), then made a model; unknown fields are refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel, Field

from jobq.definition import Key
from jobq.errors import InvalidInput, JobQError
from jobq.validation import MAX_BYTES, check_media_type, located, parse, parse_json

Model = TypeVar("Model", bound=BaseModel)

_REPEATED = "A repeated request with the same key and body changes nothing, and is answered as the first one."
IdempotencyKey = Annotated[Key | None, Header(alias="Idempotency-Key", description=_REPEATED)]
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key", "in": "header", "required": False, "description": _REPEATED,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}  # fmt: skip
"""The same as a parameter of OpenAPI, for a route that reads it by hand: see ``idempotency_key``."""


class _Keyed(BaseModel):
    key: Key = Field(alias="Idempotency-Key")


def idempotency_key(request: Request) -> str | None:
    """The header, judged. Raises InvalidInput."""
    given = request.headers.get("Idempotency-Key")
    return None if given is None else parse(_Keyed, {"Idempotency-Key": given}).key


async def document(request: Request) -> Any:
    """The body's JSON value; an empty body is an empty object. Raises InvalidInput."""
    return await _value(request, MAX_BYTES)


async def _value(request: Request, most: int) -> Any:
    raw = await _read(request, most)
    if not raw:
        return {}
    check_media_type(request.headers.get("Content-Type"))
    return parse_json(raw, most)


async def read(request: Request) -> bytes:
    """The body as it came."""
    return await _read(request, MAX_BYTES)


async def _read(request: Request, most: int) -> bytes:
    """The body, as far as it is of any use: one that is too large is not waited for."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > most:
            break
    return bytes(raw)


Document = Annotated[Any, Depends(document)]
Raw = Annotated[bytes, Depends(read)]


def body(model: type[Model]) -> Callable[..., Awaitable[Model]]:
    """A dependency: the body as an instance of ``model``."""

    async def read(value: Document) -> Model:
        return parse(model, value)

    return read


def many(noun: str, most: int, max_bytes: int) -> Callable[..., Any]:
    """A dependency: the body's array, of up to ``most`` values; whoever takes them judges each."""

    async def read(request: Request) -> list[Any]:
        values = await _value(request, max_bytes)
        if not isinstance(values, list):
            raise InvalidInput(f"The body is an array of {noun}.")
        if len(values) > most:
            raise InvalidInput(
                f"There are {len(values)} {noun}; one request takes {most}.", code="payload_too_large", hint="Split it."
            )
        return values

    return read


def models(model: type[Model], values: list[Any], what: str) -> list[Model]:
    """The values of an array, each as an instance of ``model``; an error says which one it is about, counted from 0."""
    found = []
    for number, value in enumerate(values):
        try:
            found.append(parse(model, value))
        except JobQError as error:
            raise located(error, f"{what} {number}", f"/{number}") from None
    return found


def described_many(model: type[BaseModel], most: int, **examples: Any) -> dict[str, Any]:
    """``described`` for an array."""
    schema = {"type": "array", "items": {"$ref": f"#/components/schemas/{model.__name__}"}, "maxItems": most}
    media = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": media}}}


def described(model: type[BaseModel], **examples: Any) -> dict[str, Any]:
    """What OpenAPI says of such a body, as a route's ``openapi_extra``; the model has to be among ``openapi.BODIES``."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    media = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": media}}}
