"""Cursors of listings: opaque, signed, and bound to the filters that they were made with."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any
from uuid import UUID

from jobq.errors import InvalidInput

_SIGNATURE = 12


def _sign(key: bytes, filters: str, position: bytes) -> bytes:
    return hmac.digest(key, filters.encode() + b"\0" + position, hashlib.sha256)[:_SIGNATURE]


def fingerprint(**filters: Any) -> str:
    """The filters of a listing as one text; equal filters give equal texts."""
    return json.dumps(filters, sort_keys=True, default=str)


def make_cursor(key: bytes, filters: str, position: UUID) -> str:
    """A cursor behind the item with this id."""
    return base64.urlsafe_b64encode(_sign(key, filters, position.bytes) + position.bytes).decode().rstrip("=")


def read_cursor(key: bytes, filters: str, cursor: str | None) -> UUID | None:
    """The id that the cursor stands behind. Raises InvalidInput ``invalid_cursor`` unless it was made by
    ``make_cursor`` with the same key and filters.
    """
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    signature, position = raw[:_SIGNATURE], raw[_SIGNATURE:]
    if len(position) != 16 or not hmac.compare_digest(signature, _sign(key, filters, position)):
        raise InvalidInput(
            "The cursor does not belong to this listing.", code="invalid_cursor",
            hint="Use next_cursor as it was given, with the same filters.", pointer="/cursor",
        )  # fmt: skip
    return UUID(bytes=position)
