"""Requests to an API and what becomes of them: models, errors of ``jobq.errors``, and another try where that is safe.

What cannot be repeated (a key that is made) is sent once, unless it surely did not arrive. Everything else is idempotent
by itself or by an ``Idempotency-Key``, and is tried for some seconds while the API, or its database, is away.
"""

from __future__ import annotations

import os
import random
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from jobq.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    JobQError,
    Misconfigured,
    NotFound,
    TooMany,
    Unauthorized,
    Unavailable,
)
from jobq.models import Page
from jobq.settings import Settings, mask_url

if TYPE_CHECKING:
    import httpx2

Model = TypeVar("Model")

_PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0)
"""Seconds before each further try, about."""
_OF_STATUS: dict[int, type[JobQError]] = {
    400: InvalidInput, 401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 413: InvalidInput,
    415: InvalidInput, 422: InvalidInput,
}  # fmt: skip
_CONNECTS_WITHIN = 5.0
_IDLE_FOR = 4.0
"""Seconds: servers close connections that were idle for 5."""
_CONNECTIONS = 100


class Pool:
    """Connections to an API: opened when they are needed, kept and shared; safe from any thread, and after a fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._open: tuple[int, httpx2.Client] | None = None

    @property
    def client(self) -> httpx2.Client:
        """Those of this process."""
        with self._lock:
            if self._open is None or self._open[0] != os.getpid():
                self._open = (os.getpid(), _client(self._settings))
            return self._open[1]

    def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        with self._lock:
            if self._open is not None and self._open[0] == os.getpid():
                self._open[1].close()
            self._open = None


class Wire:
    """An API, and who asks it."""

    def __init__(self, settings: Settings, tenant: str | None, pool: Pool | None = None) -> None:
        self._settings, self._tenant = settings, tenant
        self._url = settings.database_url.rstrip("/")
        self.pool = pool or Pool(settings)

    def acting(self, tenant: str) -> Wire:
        """The same for another tenant, over the same connections."""
        return Wire(self._settings, tenant, self.pool)

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        key: str | None = None,
        repeats: bool = True,
        settles: type[JobQError] | None = None,
    ) -> bytes:
        """The body of the answer. ``key``: for idempotency; ``repeats``: it may be sent again when no answer came.

        ``settles``: the error that a repetition gets where an earlier try was done; then the answer is empty.
        """
        import httpx2

        headers = self._headers if key is None else {**self._headers, "Idempotency-Key": key}
        client = self.pool.client
        request = client.build_request(
            method, self._url + path, params=_query(query), content=_json(body), headers=headers
        )
        for number, pause in enumerate((*_PAUSES, None)):
            try:
                answer = client.send(request)
            except httpx2.TransportError as error:
                arrived = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
                away = self._away(error)
                if pause is None or isinstance(away, Misconfigured) or (arrived and not repeats):
                    raise away from error
            else:
                if answer.is_success:
                    return answer.content
                problem = error_of(answer)
                if number > 0 and settles is not None and isinstance(problem, settles):
                    return b""
                if pause is None or type(problem) is not Unavailable or not (repeats or _said_by_jobq(answer)):
                    raise problem
            time.sleep(pause * random.uniform(0.7, 1.3))
        raise AssertionError("unreachable")

    def get(self, model: type[Model], path: str, **query: Any) -> Model:
        """What is there, as a model."""
        return read(model, self.ask("GET", path, query=query))

    def page(self, model: type[Model], path: str, **query: Any) -> Page[Model]:
        """A part of a listing."""
        return cast("Page[Model]", read(_page_of(cast("Any", model)), self.ask("GET", path, query=query)))

    def items(self, model: type[Model], path: str, **query: Any) -> list[Model]:
        """A listing that has one page."""
        return self.page(model, path, **query).items

    def post(self, model: type[Model], path: str, **asked: Any) -> Model:
        """What came of it, as a model."""
        return read(model, self.ask("POST", path, **asked))

    def remove(self, path: str) -> None:
        """Delete what is there; an earlier try may have done so, whose answer was lost."""
        self.ask("DELETE", path, settles=NotFound)

    @contextmanager
    def stream(
        self, path: str, *, query: Mapping[str, Any] | None = None, last: str | None = None, silence: float
    ) -> Iterator[Iterator[str]]:
        """The lines of an answer that goes on. Raises Unavailable when nothing comes for ``silence`` seconds."""
        import httpx2

        headers = {**self._headers, "Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        timeout = httpx2.Timeout(silence, connect=_CONNECTS_WITHIN)
        try:
            with self.pool.client.stream(
                "GET", self._url + path, params=_query(query), headers=headers, timeout=timeout
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise error_of(answer)
                yield _lines(answer.iter_bytes())
        except httpx2.TransportError as error:
            raise self._away(error) from error

    @property
    def _headers(self) -> dict[str, str]:
        key = self._settings.api_key.get_secret_value()
        found = {"Authorization": f"Bearer {key}"} if key else {}
        return {**found, "X-Jobq-Tenant": self._tenant} if self._tenant is not None else found

    def _away(self, error: Exception) -> JobQError:
        text = f"The API at {mask_url(self._url)} cannot be asked: {str(error) or type(error).__name__}".rstrip(".")
        if "CERTIFICATE_VERIFY_FAILED" in text:
            hint = "JOBQ_CA_BUNDLE names the certificates to trust."
            return Misconfigured(f"{text}.", code="bad_certificate", hint=hint)
        return Unavailable(f"{text}.", code="api_unavailable", hint="Is jobq api up, and is this its address?")


def _client(settings: Settings) -> httpx2.Client:
    try:
        import httpx2
    except ImportError:
        raise Misconfigured(
            "An HTTP API is asked with httpx2, which is not installed.", code="missing_extra",
            hint="Run: pip install 'jobq[remote]'",
        ) from None  # fmt: skip
    try:
        url = httpx2.URL(settings.database_url)
        trusted = ssl.create_default_context(cafile=settings.ca_bundle or None)
    except httpx2.InvalidURL as error:
        raise Misconfigured(f"{mask_url(settings.database_url)!r} is no address of an API: {error}.") from None
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(f"The certificates in {settings.ca_bundle!r} cannot be read: {error}.") from None
    if not url.host or url.userinfo or url.query or url.fragment:
        raise Misconfigured(
            f"{mask_url(settings.database_url)!r} is no address of an API.",
            hint="Write https://host:port; the key goes into JOBQ_API_KEY, or api_key.",
        )
    return httpx2.Client(
        verify=trusted, follow_redirects=False,
        timeout=httpx2.Timeout(settings.api_timeout.total_seconds(), connect=_CONNECTS_WITHIN),
        limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=20, keepalive_expiry=_IDLE_FOR),
    )  # fmt: skip


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines that end as the standard says: other characters, which some readers take for line ends, are text."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r").decode() for line in whole)


def _query(query: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What is None is not asked for; sets are sorted and repeated."""
    if query is None:
        return None
    given = {name: value for name, value in query.items() if value is not None and value != frozenset()}
    return {name: _text(value) for name, value in given.items()}


def _text(value: Any) -> Any:
    if isinstance(value, set | frozenset | list | tuple):
        return [str(item) for item in sorted(value)]
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _json(body: Any) -> bytes | None:
    from jobq.validation import check_json

    if body is None or isinstance(body, bytes):
        return body
    return check_json(body, max_bytes=_MOST_BYTES).encode()


_MOST_BYTES = 64 * 1024 * 1024


# --- answers -----------------------------------------------------------------------------------------------------------


def read(model: type[Model], raw: bytes | str) -> Model:
    """JSON as a model; fields that are unknown here, of a newer server, are passed over."""
    try:
        return cast("Model", _adapter(cast("Any", model)).validate_json(raw))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "/".join(map(str, first["loc"]))
        raise _no_api(f"The answer is not understood ({place}: {first['msg']})") from None


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


@cache
def _page_of(model: Any) -> Any:
    return Page[model]


def _said_by_jobq(answer: httpx2.Response) -> bool:
    return answer.headers.get("content-type", "").startswith("application/problem+json")


def error_of(answer: httpx2.Response) -> JobQError:
    """The error that the API raised, as Python raises it."""
    status = answer.status_code
    try:
        told = cast("dict[str, Any]", answer.json() if _said_by_jobq(answer) else {})
    except ValueError:
        told = {}
    more: Any = {"code": told.get("code"), "hint": told.get("hint"), "pointer": told.get("pointer") or ""}
    message = str(told.get("detail", f"The API answered {status} {answer.reason_phrase}."))
    waits = answer.headers.get("retry-after", "")
    if status == 429:
        return TooMany(message, retry_after=int(waits) if waits.isdecimal() else 1, **more)
    if not told:
        return Unavailable(message, code="api_unavailable") if status >= 500 else _no_api(message.rstrip("."))
    if status == 503:
        # What a pause cannot mend comes without one.
        return Unavailable(message, **more) if waits else Misconfigured(message, **more)
    return _OF_STATUS.get(status, JobQError)(message, **more)


def _no_api(message: str) -> Misconfigured:
    hint = "Is this the address of a jobq API, of a version like this one?"
    return Misconfigured(f"{message}.", code="unexpected_answer", hint=hint)


def no_connection(connection: Any) -> None:
    """A transaction of the application ends at its own database."""
    if connection is not None:
        raise InvalidInput(
            "Over HTTP, a job cannot join the transaction of a connection.", code="needs_database",
            hint="Enqueue with a JobQ on the database itself, or after the commit, with an idempotency_key.",
        )  # fmt: skip


def needs_database() -> Misconfigured:
    """What cannot be done over HTTP."""
    return Misconfigured(
        "This needs the database itself; there is an HTTP API only.", code="needs_database",
        hint="JOBQ_DATABASE_URL names one: postgresql://user@host/name or sqlite:////absolute/path.db",
    )  # fmt: skip
