"""API keys: who may ask for what. Made and shown once; stored as an HMAC that needs ``JOBQ_SECRET_KEY``."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from jobq.duration import HINT, parse_duration
from jobq.errors import InvalidInput, Misconfigured, NotFound
from jobq.settings import Settings
from jobq.store import control, keys
from jobq.store.database import Connection, Database
from jobq.store.jobs import new_id
from jobq.store.keys import StoredKey
from jobq.store.workers import database_now

_FORM = re.compile(r"jobq_[A-Za-z0-9_-]{43}")
_SHOWN_CHARACTERS = 10


class Scope(StrEnum):
    """What a key may do; each contains the one before it."""

    READ = "read"
    """Look at everything of the tenant."""
    RUN = "run"
    """Enqueue, trigger, cancel, pause, resume and retry jobs."""
    ADMIN = "admin"
    """Change workflows, secrets, connectors, webhooks and keys; an operator's key: queues, tenants and workers, too."""

    def contains(self, other: Scope) -> bool:
        """Is what ``other`` may do allowed by this one?"""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the only moment at which it can be read."""

    key: str
    stored: StoredKey


def digest_of(settings: Settings, key: str, *, of: str = "api key") -> str:
    """What is stored of a key, or of a credential of another sort. Raises Misconfigured without ``JOBQ_SECRET_KEY``."""
    pepper = settings.secret_key.get_secret_value()
    if not pepper:
        raise Misconfigured(
            "API keys and hooks need JOBQ_SECRET_KEY, which is not set.", code="secret_key_missing",
            hint='Make one: python -c "import secrets; print(secrets.token_urlsafe(32))", the same for all processes.',
        )  # fmt: skip
    return hmac.new(pepper.encode(), f"{of}\0{key}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def checked_name(name: str, what: str) -> str:
    """The name of a credential, if it can be one."""
    if not name or len(name) > 200 or not name.isprintable():
        raise InvalidInput(f"A {what} has a name of 1 to 200 printable characters.", pointer="/name")
    return name


def looks_like_a_key(text: str) -> bool:
    """Can this be a key at all?"""
    return _FORM.fullmatch(text) is not None


class Keys:
    """The API keys of a tenant."""

    def __init__(self, database: Database, settings: Settings, tenant: str, actor: str) -> None:
        self._database, self._settings, self._tenant, self._actor = database, settings, tenant, actor

    def create(
        self,
        name: str,
        scope: Scope | str = Scope.RUN,
        *,
        expires_in: timedelta | float | str | None = None,
        operator: bool = False,
    ) -> NewKey:
        """Make a key; it is shown this once. ``operator``: for all tenants, and for queues, tenants and workers."""
        checked_name(name, "key")
        key = f"jobq_{secrets.token_urlsafe(32)}"
        fields: dict[str, Any] = {
            "tenant": None if operator else self._tenant, "name": name, "start": key[:_SHOWN_CHARACTERS],
            "scope": _scope(scope).value, "created_by": self._actor,
        }  # fmt: skip
        lasts, digest, key_id = _lasts(expires_in), digest_of(self._settings, key), new_id()

        def work(conn: Connection) -> StoredKey:
            expires_at = None if lasts is None else database_now(conn) + lasts
            stored = keys.create(conn, key_id, digest, {**fields, "expires_at": expires_at})
            self._note(conn, key_id, "create", {"name": name, "scope": fields["scope"]})
            return stored

        return NewKey(key, self._database.run(work))

    def list(self, *, everything: bool = False) -> Sequence[StoredKey]:
        """The tenant's, the newest first; ``everything``: of all tenants, and the operators'."""
        with self._database.read() as conn:
            return keys.list_all(conn, None if everything else self._tenant)

    def revoke(self, key_id: UUID, *, any_tenant: bool = False) -> StoredKey:
        """End a key: requests with it are refused within 5 s. Raises NotFound."""

        def work(conn: Connection) -> StoredKey:
            found = keys.revoke(conn, None if any_tenant else self._tenant, key_id)
            if found is None:
                raise NotFound(f"There is no API key {key_id}.", hint="jobq key list shows them.")
            self._note(conn, key_id, "revoke", None)
            return found

        return self._database.run(work)

    def _note(self, conn: Connection, key_id: UUID, action: str, detail: Any) -> None:
        control.add_event(conn, self._tenant, f"key:{key_id}", action, self._actor, detail=detail)


def _scope(scope: Scope | str) -> Scope:
    try:
        return Scope(scope)
    except ValueError:
        raise InvalidInput(
            f"{str(scope)[:100]!r} is no scope of a key.", hint="Scopes: read, run, admin.", pointer="/scope"
        ) from None


def _lasts(expires_in: timedelta | float | str | None) -> timedelta | None:
    if expires_in is None:
        return None
    try:
        lasts = parse_duration(expires_in)
    except ValueError as error:
        raise InvalidInput(f"expires_in is wrong: {error}.", hint=HINT, pointer="/expires_in") from None
    if not timedelta(0) < lasts <= timedelta(days=3660):
        raise InvalidInput("A key lasts up to ten years.", pointer="/expires_in")
    return lasts
