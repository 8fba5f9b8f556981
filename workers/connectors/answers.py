"""What an HTTP answer means, as pure functions: Retry-After, the rules of a target, and the defaults by status."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

from jobq.connectors import (
    ConnectorError,
    InvalidConfiguration,
    InvalidCredentials,
    InvalidPayload,
    NotNow,
    Unavailable,
)
from workers.connectors.http_configs import Rule
from workers.connectors.values import read_json

LATER = frozenset({429, 503})
_PAYLOAD = frozenset({400, 404, 409, 410, 412, 413, 414, 415, 422})
_CONFIGURATION = frozenset({*range(300, 400), 405, 406, 411, 426})
_MAX_RETRY_AFTER = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read to its end (or to the limit)."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    origin: str
    """Scheme and host that were asked: what may be shown of the URL."""
    method: str = "GET"
    url: str = field(default="", repr=False)
    """What was asked: next links are relative to it. Never shown."""

    def json(self) -> Any:
        """The value of the body. Raises ValueError with what is wrong."""
        return read_json(self.body)

    def __str__(self) -> str:
        try:
            phrase = f" {HTTPStatus(self.status).phrase}"
        except ValueError:
            phrase = ""
        return f"{self.method} {self.origin} was answered with {self.status}{phrase}"


def search(expression: str, value: Any) -> Any:
    """What a JMESPath expression finds. Raises ValueError: a function met a value that it cannot take."""
    try:
        return _compiled(expression).search(value)
    except JMESPathError as error:
        raise ValueError(str(error).splitlines()[0]) from None


@lru_cache(maxsize=1024)
def _compiled(expression: str) -> Any:
    return jmespath.compile(expression)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> timedelta | None:
    """How long the answer asks to wait: seconds or an HTTP date (RFC 9110, 10.2.3); None if it does not say."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(timedelta(seconds=int(text[:9])), _MAX_RETRY_AFTER)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(at - (now or datetime.now(UTC)), timedelta(0)), _MAX_RETRY_AFTER)


def judge_read(answer: Answer) -> None:
    """Raise what an answer means for who wants to read; 2xx is fine. 429 and 503 have been waited for."""
    if 200 <= answer.status < 300:
        return
    if answer.status in LATER:
        raise NotNow(f"{answer}", after=retry_after(answer.headers))
    if answer.status in {401, 403}:
        raise InvalidCredentials(f"{answer}")
    if answer.status >= 500 or answer.status in {408, 425}:
        raise Unavailable(f"{answer}")
    raise InvalidConfiguration(f"{answer}{_redirected(answer)}")


def judge_write(answer: Answer, rules: Sequence[Rule], detail: str = "") -> None:
    """Raise what an answer means for the entity that was sent; no error: it has been written.

    ``detail``: what the service said, fit for showing.
    """
    said = f"{answer}: {detail}" if detail else f"{answer}"
    for rule in rules:
        if _fits(rule, answer):
            return _apply(rule, answer, said)
    if 200 <= answer.status < 300:
        return None
    if answer.status in LATER:
        raise NotNow(said, after=retry_after(answer.headers))
    if answer.status in {401, 403}:
        raise InvalidCredentials(said)
    if answer.status in _CONFIGURATION:
        raise InvalidConfiguration(f"{said}{_redirected(answer)}")
    if answer.status in _PAYLOAD:
        raise InvalidPayload(said)
    if answer.status >= 500 or answer.status in {408, 425}:
        raise Unavailable(said)
    raise ConnectorError(said)


def _redirected(answer: Answer) -> str:
    """Where a redirect leads may hold a secret: only that it is one is said."""
    return "; redirects are not followed, configure where it leads" if 300 <= answer.status < 400 else ""


def _fits(rule: Rule, answer: Answer) -> bool:
    if rule.status is not None:
        statuses = [rule.status] if isinstance(rule.status, int) else rule.status
        if answer.status not in statuses:
            return False
    if rule.body is None:
        return True
    try:
        found = search(rule.body, answer.json())
    except ValueError:  # no JSON, or not what the condition is about
        return False
    return found is not None and found is not False and found not in ("", [], {})


def _apply(rule: Rule, answer: Answer, said: str) -> None:
    if rule.then == "requeue":
        after = retry_after(answer.headers) if rule.after is None else timedelta(seconds=rule.after)
        raise NotNow(said, after=after, error_class=rule.error_class)
    if rule.then == "retry":
        raise Unavailable(said, error_class=rule.error_class)
    if rule.then == "fail":
        raise InvalidPayload(said, error_class=rule.error_class)
