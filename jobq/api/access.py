"""Who asks, for which tenant, and what they may do: decided once for each request.

While there is no API key at all, loopback is served without one, and nobody else. A browser on this machine runs the
scripts of strangers, so such a request must also name a loopback host and come from no other site.
"""

from __future__ import annotations

import ipaddress
import math
import time
from asyncio import to_thread
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, cast
from uuid import UUID

from fastapi import Depends, Request

from jobq.client import JobQ
from jobq.errors import Forbidden, TooMany, Unauthorized
from jobq.keys import Scope, digest_of, looks_like_a_key
from jobq.models import Actor
from jobq.settings import Settings
from jobq.store import keys
from jobq.store.database import Database
from jobq.store.keys import StoredKey
from jobq.validation import tenant_name

_REMEMBERED = 5.0
"""Seconds for which a key is taken as it was found: so long a revoked one may go on."""
_KEYLESS_FOR = 1.0
_MOST = 10_000
_MARGIN = 0.1
_TENANT = "X-Jobq-Tenant"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``operator``: may look at and change what belongs to all tenants."""

    tenant: str
    scope: Scope
    actor: str
    operator: bool
    key_id: UUID | None = None


class Access:
    """Recognizes callers; shared by all requests of a process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._known: dict[str, tuple[float, StoredKey | None]] = {}
        self._keyless: tuple[float, bool] = (float("-inf"), False)

    def caller(self, request: Request) -> Caller:
        """Raises Unauthorized, or Forbidden for an operator's header on a tenant's key."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key:
            return self._holder(key.strip(), request.headers.get(_TENANT))
        if scheme:
            raise Unauthorized("Only bearer tokens are known.", hint="Authorization: Bearer jobq_…")
        if not self._is_keyless() or not _is_local(request):
            raise Unauthorized("An API key is needed.", hint="jobq key create makes one. Authorization: Bearer jobq_…")
        return Caller(_tenant(request.headers.get(_TENANT), self._settings.tenant), Scope.ADMIN, "api", operator=True)

    def is_at_hand(self, request: Request) -> bool:
        """Can this caller be told without a look at the database?"""
        key = request.headers.get("Authorization", "").partition(" ")[2].strip()
        if not key:
            return self._keyless[0] > time.monotonic() + _MARGIN
        if not looks_like_a_key(key):
            return True
        return self._known.get(digest_of(self._settings, key), (0.0, None))[0] > time.monotonic() + _MARGIN

    def _holder(self, key: str, wanted: str | None) -> Caller:
        found = self._find(key) if looks_like_a_key(key) else None
        if found is None:
            raise Unauthorized("The API key is unknown, expired or revoked.")
        if found.tenant is not None and wanted not in (None, found.tenant):
            raise Forbidden(f"This API key is bound to its tenant: {_TENANT} is for operators' keys.", code="scope")
        tenant = found.tenant or _tenant(wanted, self._settings.tenant)
        return Caller(
            tenant, Scope(found.scope), Actor(f"{found.name} (key)", found.id), found.tenant is None, found.id
        )

    def _find(self, key: str) -> StoredKey | None:
        digest = digest_of(self._settings, key)
        until, known = self._known.get(digest, (0.0, None))
        if until > time.monotonic():
            return known
        with self._database.read() as conn:
            found = keys.find_valid(conn, digest)
        if found is not None:
            self._database.run(lambda conn: keys.note_use(conn, found.id))
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[digest] = (time.monotonic() + _REMEMBERED, found)
        return found

    def _is_keyless(self) -> bool:
        """Is there no key at all? Once there is one, it stays so."""
        until, keyless = self._keyless
        if until < time.monotonic():
            with self._database.read() as conn:
                keyless = not keys.any_exists(conn)
            self._keyless = (time.monotonic() + _KEYLESS_FOR if keyless else float("inf"), keyless)
        return keyless


def _tenant(wanted: str | None, default: str) -> str:
    return default if wanted is None else tenant_name(wanted, f"/{_TENANT}")


def _is_local(request: Request) -> bool:
    peer = request.client.host if request.client is not None else ""
    site = request.headers.get("Sec-Fetch-Site", "none")
    return is_loopback(peer) and is_loopback(request.url.hostname or "") and site in {"none", "same-origin"}


def is_loopback(host: str) -> bool:
    """Is this name, or address, this very machine?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# --- what routes ask for -----------------------------------------------------------------------------------------------


async def caller(request: Request) -> Caller:
    """Who asks. Raises TooMany above the rate of its tenant; operators have none.

    Most are known from their last request: then no thread is troubled.
    """
    access: Access = request.app.state.access
    who = access.caller(request) if access.is_at_hand(request) else await to_thread(access.caller, request)
    if who.operator:
        return who
    quotas = cast("JobQ", request.app.state.jobq).quotas
    taken = quotas.take(who.tenant) if quotas.knows(who.tenant) else await to_thread(quotas.take, who.tenant)
    if taken is not None:
        request.scope["jobq_headers"] = taken.headers
        if taken.wait:
            raise TooMany("The tenant asks too often.", retry_after=math.ceil(taken.wait), hint="See RateLimit-Policy.")
    return who


def needs(scope: Scope, *, operator: bool = False) -> Callable[..., Awaitable[JobQ]]:
    """A dependency: the caller's own door to jobq. Raises Forbidden ``scope`` if its key may not do this."""

    async def door(request: Request, who: Annotated[Caller, Depends(caller)]) -> JobQ:
        if not who.scope.contains(scope):
            raise Forbidden(f"This API key may {who.scope}; the scope {scope} is needed.", code="scope")
        if operator and not who.operator:
            raise Forbidden("This concerns all tenants: an operator's key is needed.", code="scope")
        shared = cast("JobQ", request.app.state.jobq)
        return shared.acting(who.tenant, who.actor)

    return door


running = needs(Scope.RUN)
Reader = Annotated[JobQ, Depends(needs(Scope.READ))]
Runner = Annotated[JobQ, Depends(running)]
Admin = Annotated[JobQ, Depends(needs(Scope.ADMIN))]
OperatorReader = Annotated[JobQ, Depends(needs(Scope.READ, operator=True))]
Operator = Annotated[JobQ, Depends(needs(Scope.ADMIN, operator=True))]
Asking = Annotated[Caller, Depends(caller)]
