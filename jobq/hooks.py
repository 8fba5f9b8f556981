"""Inbound hooks: a token that lets another system start jobs of one workflow, and nothing else.

The token is the credential, so it is treated as keys are (``jobq.keys``): shown once, stored as an HMAC, in no log and
no error. A hook can also ask for signed requests, in one of two styles, so that the token alone opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from jobq.definition import Particulars
from jobq.duration import HINT, parse_duration
from jobq.errors import Conflict, InvalidInput, NotFound, TooMany, Unauthorized
from jobq.keys import checked_name, digest_of
from jobq.models import Job
from jobq.settings import Settings
from jobq.store import control, hooks, jobs, workflows
from jobq.store.database import Connection, Database
from jobq.store.hooks import StoredHook
from jobq.store.jobs import new_id
from jobq.store.wakeup import ring
from jobq.validation import check_media_type, check_size, parse, parse_json
from jobq.vault import Vault
from jobq.workflows import WorkflowKey, Workflows

PREFIX = "jobq_hook_"
DELIVERY_IDS = ("webhook-id", "x-github-delivery", "idempotency-key")
"""The headers that name a delivery, the first that is there counts: a repetition of it starts nothing."""
MOST_A_MINUTE = 10_000
_SHOWN_CHARACTERS = len(PREFIX) + 5
_WINDOW = timedelta(minutes=5)
_KEPT = re.compile(r"content-type|user-agent|(x|webhook|ce)-.+")
_NEVER_KEPT = re.compile(r"auth|cookie|(?<!^x-event-)key|password|secret|signature|token|x-forwarded|x-jobq|x-real-ip")


class Signature(StrEnum):
    """How the requests to a hook prove who sent them."""

    NONE = "none"
    """The token is enough."""
    HUB = "hub"
    """``X-Hub-Signature-256: sha256=…``, the HMAC of the body: GitHub's style. No timestamp is signed."""
    STANDARD = "standard"
    """Standard Webhooks: ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``."""


@dataclass(frozen=True, slots=True)
class NewHook:
    """A hook that was just made: the only moment at which its token and its secret can be read."""

    token: str
    path: str
    """Where to POST, below the API's address."""
    secret: str | None
    """What requests are to be signed with; None: they are not signed."""
    stored: StoredHook


class Hooks:
    """The hooks of a tenant's workflows, and the door at which what is sent to any hook arrives."""

    def __init__(
        self, database: Database, settings: Settings, tenant: str, actor: str, acting: Callable[[str, str], Workflows]
    ) -> None:
        self._database, self._settings, self._tenant, self._actor = database, settings, tenant, actor
        self._acting = acting

    def create(
        self,
        workflow: WorkflowKey,
        name: str,
        *,
        signature: Signature | str = Signature.NONE,
        secret: str | None = None,
        replay_window: timedelta | float | str | None = None,
        rate_limit: int | None = None,
        envelope: bool = False,
    ) -> NewHook:
        """Make a hook; its token is shown this once. Raises NotFound, InvalidInput.

        ``secret``: of the signatures, else one is made. ``replay_window``: how far the signed timestamp may be from
        now (Standard Webhooks only; default 5 minutes). ``rate_limit``: jobs a minute. ``envelope``: see ``receive``.
        """
        style, token, hook_id = _style(signature), f"{PREFIX}{secrets.token_urlsafe(32)}", new_id()
        secret = _secret(style, secret)
        if rate_limit is not None and not 1 <= rate_limit <= MOST_A_MINUTE:
            raise InvalidInput(f"A rate is 1 to {MOST_A_MINUTE} jobs a minute.", pointer="/rate_limit")
        fields: dict[str, Any] = {
            "tenant": self._tenant, "name": checked_name(name, "hook"), "start": token[:_SHOWN_CHARACTERS],
            "digest": digest_of(self._settings, token, of="hook"), "signature": style.value, "sealed": None,
            "replay_window": _window(style, replay_window), "rate_limit": rate_limit, "envelope": envelope,
            "created_by": self._actor,
        }  # fmt: skip
        if secret is not None:
            fields["sealed"] = Vault(self._settings).seal(self._tenant, f"hook:{hook_id}", secret)

        def work(conn: Connection) -> StoredHook:
            found = workflows.get(conn, self._tenant, workflow)
            stored = hooks.create(conn, hook_id, {**fields, "workflow_id": found.id})
            self._note(conn, stored, "create")
            return stored

        return NewHook(token, f"/v1/hooks/{token}", secret, self._database.run(work))

    def list(self, workflow: WorkflowKey) -> Sequence[StoredHook]:
        """The workflow's, the newest first. Raises NotFound."""
        with self._database.read() as conn:
            return hooks.list_of(conn, workflows.get(conn, self._tenant, workflow).id)

    def revoke(self, workflow: WorkflowKey, hook_id: UUID) -> StoredHook:
        """End a hook, from this moment on. Raises NotFound."""

        def work(conn: Connection) -> StoredHook:
            found = hooks.revoke(conn, workflows.get(conn, self._tenant, workflow).id, hook_id)
            if found is None:
                raise NotFound(f"There is no hook {hook_id} of this workflow.", hint="jobq workflow hook list NAME")
            self._note(conn, found, "revoke")
            return found

        return self._database.run(work)

    def _note(self, conn: Connection, hook: StoredHook, action: str) -> None:
        detail = {"name": hook.name, "workflow": str(hook.workflow_id)}
        control.add_event(conn, self._tenant, f"hook:{hook.id}", action, self._actor, detail=detail)

    # --- receive -------------------------------------------------------------------------------------------------

    def receive(
        self,
        token: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        query: Iterable[tuple[str, str]] = (),
    ) -> Job:
        """What somebody sent to a hook, of whatever tenant: starts a MANUAL job of its workflow.

        The job's ``state`` is the payload: the JSON value of the body. With ``envelope`` it is ``{"payload", "query",
        "headers", "delivery_id"}`` with the headers that tell about the content and none that may hold a secret.

        A delivery that came before (see ``DELIVERY_IDS``) starts nothing and returns the job that it started then.
        Raises NotFound for a token that is unknown or revoked; Unauthorized ``bad_signature`` or ``outside_window``;
        Conflict ``idempotency_conflict`` if the delivery came with another body; TooMany; InvalidInput.
        """
        told = {name.lower(): value for name, value in (headers or {}).items()}
        hook = self._find(token)
        check_size(body)
        if hook.signature != Signature.NONE:
            secret = Vault(self._settings).open(hook.tenant, f"hook:{hook.id}", hook.sealed)
            _verify(hook, secret, body, told)
        check_media_type(told.get("content-type"))
        payload = parse_json(body) if body else {}
        delivery = next((told[name] for name in DELIVERY_IDS if told.get(name)), None)
        state = _envelope(payload, told, query, delivery) if hook.envelope else payload
        asked = parse(Particulars, {"state": state})
        door, job_id, tries = self._acting(hook.tenant, f"{hook.name} (hook)"), new_id(), 0

        def work(conn: Connection) -> Job:
            nonlocal tries
            tries += 1
            if tries > 1:  # an earlier try may not have been told of its commit: the job is there, and was counted
                with suppress(NotFound):
                    return jobs.get(conn, hook.tenant, job_id)
            before = _remembered(conn, hook, delivery, body, job_id)
            if before is not None:
                return jobs.get(conn, hook.tenant, before)
            if wait := hooks.take(conn, hook.id, hook.rate_limit):
                raise TooMany(
                    f"This hook takes {hook.rate_limit} requests a minute.", retry_after=math.ceil(wait)
                )  # fmt: skip
            return door.start(hook.workflow_id, asked, connection=conn, job_id=job_id)

        job = self._database.run(work)
        ring(self._database)
        return job

    def _find(self, token: str) -> Any:
        """The hook's row. One answer for whatever is no token: it takes the same way, and says the same."""
        digest = digest_of(self._settings, token, of="hook")
        with self._database.read() as conn:
            hook = hooks.find(conn, digest)
        if hook is None or not hmac.compare_digest(hook.digest, digest):
            raise NotFound("There is no such hook.")
        return hook


def _remembered(conn: Connection, hook: Any, delivery: str | None, body: bytes, job_id: UUID) -> UUID | None:
    """The job that an earlier request with this delivery id started. Each hook has its own ids."""
    if delivery is None:
        return None
    key = f"hook:{hook.id.hex}:{hashlib.sha256(delivery.encode('utf-8', 'surrogatepass')).hexdigest()}"
    try:
        before = jobs.remember_request(conn, hook.tenant, key, hashlib.sha256(body).hexdigest(), job_id)
    except Conflict:
        raise Conflict(
            "This delivery came before with another body.", code="idempotency_conflict",
            hint=f"A new delivery has a new id ({', '.join(DELIVERY_IDS)}).",
        ) from None  # fmt: skip
    return None if before == job_id else before


def _envelope(payload: Any, headers: Mapping[str, str], query: Iterable[tuple[str, str]], delivery: str | None) -> Any:
    several: dict[str, Any] = {}
    for name, value in query:
        several[name] = [*several[name], value] if name in several else [value]
    kept = {
        name: value for name, value in headers.items() if _KEPT.fullmatch(name) and not _NEVER_KEPT.search(name)
    }  # fmt: skip
    return {
        "payload": payload,
        "query": {name: values if len(values) > 1 else values[0] for name, values in several.items()},
        "headers": kept,
        "delivery_id": delivery,
    }


# --- signatures --------------------------------------------------------------------------------------------------


def _verify(hook: Any, secret: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Raises Unauthorized unless the request was signed with the secret, lately where that can be told."""
    if hook.signature == Signature.HUB:
        expected = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        if not _same(headers.get("x-hub-signature-256", ""), expected):
            raise _bad_signature("X-Hub-Signature-256: sha256= and the HMAC of the body, in hex.")
        return
    moment = headers.get("webhook-timestamp", "")
    signed = f"{headers.get('webhook-id', '')}.{moment}.".encode("utf-8", "surrogatepass") + body
    expected = "v1," + base64.b64encode(hmac.digest(_standard_key(secret), signed, "sha256")).decode()
    given = [_same(one, expected) for one in headers.get("webhook-signature", "").split()[:20]]
    if not headers.get("webhook-id") or not any(given):
        raise _bad_signature("webhook-id, webhook-timestamp and webhook-signature, as standardwebhooks.com says.")
    signed_at = float(moment) if re.fullmatch(r"[0-9]{1,12}", moment) else math.inf
    if abs(hook.asked_at.timestamp() - signed_at) > hook.replay_window:
        raise Unauthorized(
            f"The request was signed more than {hook.replay_window:g} s from now.", code="outside_window",
            hint="Send webhook-timestamp in seconds since 1970, and check the sender's clock.",
        )  # fmt: skip


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


def _bad_signature(hint: str) -> Unauthorized:
    return Unauthorized("The request is not signed with this hook's secret.", code="bad_signature", hint=hint)


def _style(signature: Signature | str) -> Signature:
    try:
        return Signature(signature)
    except ValueError:
        raise InvalidInput(
            f"{str(signature)[:100]!r} is no style of signature.", hint="Styles: none, hub, standard.",
            pointer="/signature",
        ) from None  # fmt: skip


def _secret(style: Signature, given: str | None) -> str | None:
    """The secret of a new hook: the one that was given, if it fits the style, or a new one."""
    if style is Signature.NONE:
        if given is not None:
            raise InvalidInput("A secret belongs to a signature; there is none.", pointer="/secret")
        return None
    if given is None:
        made = secrets.token_bytes(32)
        return made.hex() if style is Signature.HUB else "whsec_" + base64.b64encode(made).decode()
    if style is Signature.STANDARD:
        _standard_key(given)
    elif not 16 <= len(given.encode("utf-8", "surrogatepass")) <= 1024 or not given.isprintable():
        raise InvalidInput("A secret has 16 to 1024 printable characters.", pointer="/secret")
    return given


def _standard_key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not 16 <= len(key) <= 128:
        raise InvalidInput(
            "The secret of Standard Webhooks is base64 of 16 to 128 bytes, behind whsec_.", pointer="/secret"
        )
    return key


def _window(style: Signature, given: timedelta | float | str | None) -> float | None:
    if style is not Signature.STANDARD:
        if given is not None:
            raise InvalidInput(
                "A replay window needs a signed timestamp, which only the style standard has.", pointer="/replay_window"
            )
        return None
    try:
        window = _WINDOW if given is None else parse_duration(given)
    except ValueError as error:
        raise InvalidInput(f"replay_window is wrong: {error}.", hint=HINT, pointer="/replay_window") from None
    if not timedelta(seconds=1) <= window <= timedelta(days=7):
        raise InvalidInput("A replay window lasts from 1 second to 7 days.", pointer="/replay_window")
    return window.total_seconds()
