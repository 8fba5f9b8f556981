"""One delivery of a webhook: how it is signed, what an answer means, and when it is tried again. Pure.

Signatures are those of Standard Webhooks (https://www.standardwebhooks.com): HMAC-SHA256 over id, timestamp and body,
one for each secret that is valid now, so that a secret can be changed while its receivers still know the old one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Protocol

DEADLINE = 15.0
"""Seconds for one request, from the name's resolution to the last byte that is read of the answer."""
MAX_ANSWER = 4 * 1024
MAX_RETRY_AFTER = 24 * 3600.0
_MINUTE, _HOUR = 60.0, 3600.0
PAUSES = (
    5.0, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR,
)  # fmt: skip
"""Seconds behind each try that failed: some three days in all."""
MAX_TRIES = len(PAUSES) + 1
PREFIX = "whsec_"
_SECRET_BYTES = 32
_HUB = {"sha256": ("X-Hub-Signature-256", hashlib.sha256), "sha1": ("X-Hub-Signature", hashlib.sha1)}
HUB_SIGNATURES = tuple(_HUB)
GONE = HTTPStatus.GONE.value


def make_secret() -> str:
    """A new secret: 32 random bytes, in the form that libraries of Standard Webhooks read."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The bytes to sign with. Raises ValueError for a text that is no secret."""
    if not secret.startswith(PREFIX):
        raise ValueError(f"a secret begins with {PREFIX}")
    try:
        key = base64.b64decode(secret[len(PREFIX) :], validate=True)
    except ValueError:
        raise ValueError(f"what follows {PREFIX} is base64") from None
    if not 24 <= len(key) <= 64:
        raise ValueError("a secret has 24 to 64 bytes")
    return key


def signed_headers(
    secrets: Sequence[str], webhook_id: str, at: int, body: bytes, hub: Iterable[str] = ()
) -> dict[str, str]:
    """The headers of a delivery. ``secrets``: all that are valid now, the newest first; ``at``: seconds since 1970.

    ``hub`` asks for X-Hub-Signature headers as well, made with the newest secret's text, as GitHub makes them.
    """
    content = f"{webhook_id}.{at}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key_of(secret), content, hashlib.sha256)) for secret in secrets)
    headers = {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{signature.decode()}" for signature in signatures),
    }
    for name in hub:
        header, digest = _HUB[name]
        headers[header] = f"{name}={hmac.new(secrets[0].encode(), body, digest).hexdigest()}"
    return headers


def pause_behind(tries: int, random: Callable[[], float]) -> float | None:
    """Seconds until the next try, None: there is none. ``random``: a number in [0, 1).

    Anything from half of the pause to one and a half of it: what failed together does not come back together, and the
    whole still lasts about as long as the table says.
    """
    if tries >= MAX_TRIES:
        return None
    return PAUSES[tries - 1] * (0.5 + random())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a try came to. ``state``: PENDING (again in ``due_in`` seconds), SUCCEEDED or FAILED."""

    state: str
    due_in: float | None = None
    status_code: int | None = None
    error_class: str | None = None
    message: str | None = None
    answer: str | None = None
    """How the body of the answer begins."""
    gone: bool = False
    """410: the receiver wants nothing any more."""

    @property
    def outcome(self) -> str:
        """How it is counted: succeeded, failed (for good), or to be retried."""
        return "retried" if self.state == "PENDING" else self.state.lower()


class Answered(Protocol):
    """An answer: ``jobq.outbound.http1.Answer``."""

    status: int
    headers: dict[str, str]
    body: bytearray


def judge(tries: int, answer: Answered, now: datetime, random: Callable[[], float]) -> Verdict:
    """What an answer means: 2xx took it, all else did not; a redirect is not followed."""
    status = answer.status
    excerpt = bytes(answer.body[:MAX_ANSWER]).decode("utf-8", "replace").replace("\x00", "\ufffd") or None
    if 200 <= status < 300:
        return Verdict("SUCCEEDED", status_code=status, answer=excerpt)
    error_class, message = "status", f"answered {status}{_phrase(status)}"
    if 300 <= status < 400:
        error_class, message = "redirect", f"{message}: redirects are not followed"
    elif status == GONE:
        error_class, message = "gone", f"{message}: nothing more is sent"
        return Verdict("FAILED", None, status, error_class, message, excerpt, gone=True)
    pause = pause_behind(tries, random)
    if pause is not None and (asked := _retry_after(answer.headers.get("retry-after", ""), now)) is not None:
        pause = max(pause, min(asked, MAX_RETRY_AFTER))
    return Verdict(_state(pause), pause, status, error_class, message, excerpt)


def no_answer(tries: int, error_class: str, message: str, random: Callable[[], float]) -> Verdict:
    """No answer came, and why."""
    pause = pause_behind(tries, random)
    return Verdict(_state(pause), pause, None, error_class, message)


def _state(pause: float | None) -> str:
    return "FAILED" if pause is None else "PENDING"


def _phrase(status: int) -> str:
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def _retry_after(text: str, now: datetime) -> float | None:
    """Seconds, given as a number or as a date (RFC 9110); None: nothing that can be read."""
    if text.strip().isascii() and text.strip().isdigit():
        return float(text.strip()[:10])
    try:
        at = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return None if at.tzinfo is None else max((at - now).total_seconds(), 0.0)
