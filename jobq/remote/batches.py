"""Many jobs at once: as few requests as fit, each of which makes all of its jobs or none, once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

from jobq.definition import JobRequest, requests_of
from jobq.errors import InvalidInput, JobQError
from jobq.remote.documents import document
from jobq.remote.wire import Wire
from jobq.validation import check_json

MOST_AT_ONCE = 5000
"""What ``POST /v1/jobs/batch`` takes."""
_MOST_BYTES = 12 * 1024 * 1024
_LONGEST_KEY = 150


def enqueue_all(wire: Wire, requests: Iterable[JobRequest | dict[str, Any]], key: str | None) -> list[UUID]:
    """See ``JobQ.enqueue_many``. A repetition is cut into the same parts, so that each finds its own key."""
    asked = requests_of(requests)
    if any(request.idempotency_key for request in asked):
        raise InvalidInput("enqueue_many takes no idempotency_key.", hint="Use dedupe_key, or enqueue.")
    key = key or uuid4().hex
    if len(key) > _LONGEST_KEY:
        key = hashlib.sha256(key.encode()).hexdigest()
    ids: list[UUID] = []
    for number, part in enumerate(_parts(asked)):
        body = b"[" + b",".join(part) + b"]"
        own = key if number == 0 else f"{key}/{number}"
        try:
            ids += wire.post(dict[str, list[UUID]], "/v1/jobs/batch", body=body, key=own)["ids"]
        except JobQError as error:
            raise _moved(error, len(ids)) from None
    return ids


def _parts(asked: Sequence[JobRequest]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for number, request in enumerate(asked):
        text = check_json(document(request), max_bytes=_MOST_BYTES, pointer=f"/{number}").encode()
        if len(part) == MOST_AT_ONCE or size + len(text) > _MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text) + 1
    if part:
        yield part


def _moved(error: JobQError, before: int) -> JobQError:
    """The error of a later part, its place counted in the whole."""
    number, slash, rest = error.pointer.removeprefix("/").partition("/")
    if before and number.isdecimal():
        place = int(number) + before
        error.message = error.message.replace(f"Request {number}:", f"Request {place}:", 1)
        error.pointer = f"/{place}{slash}{rest}"
    return error
