"""Every error that jobq raises on purpose, in one tree.

    JobQError
    ├── InvalidInput        422 (400 or 413 where the code says so): the request can never succeed as it is
    ├── Forbidden           403: well formed, but the operator's policy refuses it
    ├── NotFound            404: no such thing, or it is another tenant's
    ├── Conflict            409: refused by the state that the thing is in now
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
        "invalid_cursor": 400,
        "payload_too_large": 413,
    }

    @property
    def http_status(self) -> int:
        """The HTTP status of this code: a few are older than 422 and keep their own."""
        return self._STATUS_OF_CODE.get(self.code, self.status)


class Forbidden(JobQError):
    """The input is well formed, but the operator's policy refuses it."""

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


class Unavailable(JobQError):
    """A service that jobq needs is away; nothing was changed, and the same request may succeed later."""

    status = 503
    default_code = "unavailable"


class Misconfigured(JobQError):
    """The installation is wrong: a setting, a missing extra, or a schema of another version."""

    default_code = "misconfigured"
