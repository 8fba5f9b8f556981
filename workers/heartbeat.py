"""HEARTBEAT: probe an HTTP endpoint once. Thousands run at once in one worker, on one core.

The class of a failure: those of ``jobq.outbound.causes`` (dns, refused, tls, timed_out, blocked, unreachable,
connection_lost, invalid_response, no_resources), unexpected_status, and for ``body_contains`` body_mismatch and
too_large.

The status decides before the body: another status than expected ends the probe at once. With the expected status the
body is read, as a client would, but at most 64 KiB of it. A longer body fails a probe (too_large) only where the text
it looks for is not in that part: that a page is long says nothing about its health.
"""

from __future__ import annotations

import resource
import ssl
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from jobq import telemetry
from jobq.errors import InvalidInput
from jobq.models import Outcome
from jobq.net import Target, check_url, parse_url
from jobq.outbound.causes import RequestFailed
from jobq.outbound.client import Outbound
from jobq.outbound.connection import Phases
from jobq.outbound.http1 import MAX_BODY, Answer, Request
from jobq.outbound.resolver import Resolves
from jobq.plugins import BUILT_IN, Context
from jobq.specs import Heartbeat
from jobq.states import Reason

if TYPE_CHECKING:
    from jobq.settings import Settings

MAX_OPEN_FILES = 65_536
_SINGLE_BYTE = frozenset({"iso-8859-1", "iso-8859-15", "latin1", "windows-1252"})


class HeartbeatExecutor:
    """Runs probes. It keeps to the job's timeout itself, so that the outcome can say what took so long."""

    kind = BUILT_IN["HEARTBEAT"]
    own_deadline = True

    def __init__(self, *, resolver: Resolves | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._resolver = resolver
        self._tls = tls
        self._outbound: Outbound | None = None

    async def open(self, settings: Settings) -> None:
        """Read the operator's policy, and make room for as many connections as the system grants."""
        _raise_file_limit()
        self._outbound = Outbound(settings.policy.networks_allowed(), resolver=self._resolver, tls=self._tls)

    async def close(self) -> None:
        """Give up the resolver's threads."""
        if self._outbound:
            self._outbound.close()
            self._outbound = None

    async def execute(self, spec: Heartbeat, ctx: Context) -> Outcome:
        """Probe once."""
        assert self._outbound, "open() comes first"
        phases = Phases()
        origin = "an invalid URL"
        try:
            target = check_url(spec.endpoint, self._outbound.allowed_networks)
            origin = target.origin
            request = _request(spec, target, spec.request_headers(ctx.secrets))
            with telemetry.request(spec.method, target) as span:
                answer = await self._outbound.send(request, seconds=ctx.job.timeout, phases=phases)
                telemetry.answered(span, answer.status)
            outcome = _judge(spec, answer, phases)
        except InvalidInput as error:  # a policy other than at acceptance, or a secret that is no header's value
            outcome = _refused(error)
        except RequestFailed as failure:
            outcome = _failed(failure)
        finally:
            for name, began, ended in phases.done:
                ctx.add_step(name, began, ended)
        ctx.log(f"{spec.method} {origin}: {outcome.message}")
        return outcome


def _request(spec: Heartbeat, target: Target, headers: Mapping[str, str]) -> Request:
    return Request(
        target,
        spec.method,
        headers,
        wants_body=lambda status: status == spec.expected_status_code,
        keep_body=spec.body_contains is not None,
        confidential=bool(spec.secret_headers),
    )


def _judge(spec: Heartbeat, answer: Answer, phases: Phases) -> Outcome:
    """What the answer means for the job."""
    took = round((phases.done[-1][2] - phases.done[0][1]) * 1000, 3)
    result = {"status_code": answer.status, "ms": took}
    got = f"{answer.status} {_phrase(answer.status)}".rstrip()
    if answer.status != spec.expected_status_code:
        message = f"expected status {spec.expected_status_code}, got {got}{_redirect(spec, answer)}"
        return Outcome.failed(message, error_class="unexpected_status", reason=Reason.UNEXPECTED_STATUS, result=result)
    if spec.body_contains is None or _contains(answer, spec.body_contains):
        return Outcome.succeeded(result, message=f"{got} in {took:g} ms")
    if answer.truncated:
        message = f"{got}, but the expected text is not in the first {MAX_BODY // 1024} KiB of the body"
        return Outcome.failed(message, error_class="too_large", result=result, retry=False)
    message = f"{got}, but the expected text is not in the body ({answer.size} bytes{_coding(answer)})"
    return Outcome.failed(message, error_class="body_mismatch", result=result)


def _failed(failure: RequestFailed) -> Outcome:
    if failure.code == "timed_out":
        return Outcome.timed_out(failure.message)
    return Outcome.failed(failure.message, error_class=failure.code, retry=failure.retry)


def _refused(error: InvalidInput) -> Outcome:
    if error.code == "target_blocked":
        return Outcome.failed(str(error), error_class="blocked", retry=False)
    return Outcome.invalid(str(error))


def _contains(answer: Answer, text: str) -> bool:
    """Is the text in the body? Read as UTF-8, or as Latin-1 where the server says that it is."""
    charset = answer.headers.get("content-type", "").lower().partition("charset=")[2].strip("\"' ;")
    encoding = "cp1252" if charset in _SINGLE_BYTE else "utf-8"
    return text.encode(encoding, "replace") in answer.body


def _coding(answer: Answer) -> str:
    """A body that came compressed although nobody asked for it is not unpacked: say so."""
    return ", compressed although not asked for" if "content-encoding" in answer.headers else ""


def _phrase(status: int) -> str:
    """The standard words for a status: a server's own may hold anything."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _redirect(spec: Heartbeat, answer: Answer) -> str:
    """Where a redirect leads: scheme and host only, the rest may hold a secret.

    With secret headers even a foreign host is not named: a server can write there whatever it was sent.
    """
    location = answer.headers.get("location")
    if not 300 <= answer.status < 400 or location is None:
        return ""
    where = ""
    with suppress(InvalidInput):
        to = parse_url(location)
        known = not spec.secret_headers or to.host == parse_url(spec.endpoint).host
        where = f" to {to.origin}" if known else " to another host"
    return f" (the redirect{where} is not followed)"


def _raise_file_limit() -> None:
    """Each probe is an open file; the usual soft limit of 1,024 is for programs that call select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # no_resources will say so if it is needed
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
