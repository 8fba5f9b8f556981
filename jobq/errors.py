"""Every error that jobq raises on purpose, in one tree.

    JobQError
    ├── InvalidInput        422 (400 or 413 where the code says so): the request can never succeed as it is
    ├── Unauthorized        401: nobody says, or proves, who asks
    ├── Forbidden           403: well formed, but the operator's policy refuses it, or the key's scope
    ├── NotFound            404: no such thing, or it is another tenant's
    ├── Conflict            409: refused by the state that the thing is in now
    ├── TooMany             429: over a quota or a rate; the same request may succeed later
    ├── Unavailable         503: the database or the broker is away; the same request may succeed later
    └── Misconfigured       the installation itself is wrong (a setting, a missing extra, an old schema)

Each error has a stable ``code`` that Python callers, the CLI and the HTTP API share, one sentence that says
what is wrong, and, where there is one, a ``hint`` that says what to do. No other exception leaves the public
functions for a mistake of the caller.
"""

from __future__ import annotations

from typing import ClassVar


class JobQError(Exception):
    """The root: catch it to catch everything that jobq raises on purpose."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None, pointer: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.pointer = pointer
        """JSON pointer (RFC 6901) to the part of the input that is wrong; empty for the whole of it."""

    def __str__(self) -> str:
        where = f" (at {self.pointer})" if self.pointer else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{self.message}{where}{hint}"


class InvalidInput(JobQError):
    """The input can never be accepted as it is."""

    status = 422
    default_code = "validation_error"

    _STATUS_OF_CODE: ClassVar[dict[str, int]] = {
        "invalid_json": 400,
        "unsupported_media_type": 415,
        "invalid_cursor": 400,
        "payload_too_large": 413,
    }

    @property
    def http_status(self) -> int:
        """The HTTP status of this code: a few are older than 422 and keep their own."""
        return self._STATUS_OF_CODE.get(self.code, self.status)


class Unauthorized(JobQError):
    """The request has no API key, or one that is unknown, expired or revoked."""

    status = 401
    default_code = "unauthorized"


class Forbidden(JobQError):
    """The input is well formed, but the operator's policy refuses it, or the API key has not the scope."""

    status = 403
    default_code = "forbidden"


class NotFound(JobQError):
    """No such thing in this tenant."""

    status = 404
    default_code = "not_found"


class Conflict(JobQError):
    """The state that the thing is in now refuses the request."""

    status = 409
    default_code = "conflict"


class TooMany(JobQError):
    """Over a quota or a rate limit of the tenant; ``retry_after``: seconds until another try makes sense."""

    status = 429
    default_code = "rate_limited"

    def __init__(self, message: str, *, retry_after: int = 1, **more: str | None) -> None:
        super().__init__(message, **more)  # type: ignore[arg-type]  # code, hint, pointer
        self.retry_after = retry_after


class Unavailable(JobQError):
    """A service that jobq needs is away; nothing was changed, and the same request may succeed later."""

    status = 503
    default_code = "unavailable"


class Misconfigured(JobQError):
    """The installation is wrong: a setting, a missing extra, or a schema of another version."""

    default_code = "misconfigured"
