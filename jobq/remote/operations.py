"""What operators do, over HTTP: the twins of ``jobq.operations``, ``jobq.keys`` and ``jobq.syncs.SyncStates``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote
from uuid import UUID

from jobq.connections import Connector, StoredConnector
from jobq.hooks import NewHook, Signature
from jobq.keys import NewKey, Scope
from jobq.models import Page
from jobq.operations import AppliedConnector, Queue, Tenant, WorkerInfo
from jobq.remote.documents import document
from jobq.remote.wire import Wire, needs_database, read
from jobq.settings import Quota
from jobq.store.hooks import StoredHook
from jobq.store.keys import StoredKey
from jobq.syncs import SyncState
from jobq.validation import parse

if TYPE_CHECKING:
    # mypy compares each method with the one of the same name there.
    from jobq.hooks import Hooks as _Hooks
    from jobq.keys import Keys as _Keys
    from jobq.operations import Connectors as _Connectors
    from jobq.operations import Queues as _Queues
    from jobq.operations import Secrets as _Secrets
    from jobq.operations import Tenants as _Tenants
    from jobq.operations import Workers as _Workers
    from jobq.syncs import SyncStates as _States
else:
    _Hooks = _Queues = _Tenants = _Workers = _Secrets = _Connectors = _Keys = _States = object


class _Remote:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire


class Queues(_Remote, _Queues):
    """See ``jobq.operations.Queues``."""

    def list(self) -> list[Queue]:
        """See there."""
        return self._wire.items(Queue, "/v1/queues")

    def pause(self, name: str) -> None:
        """See there."""
        self._wire.ask("POST", f"/v1/queues/{_(name)}/pause")

    def resume(self, name: str) -> None:
        """See there."""
        self._wire.ask("POST", f"/v1/queues/{_(name)}/resume")

    def limit(self, name: str, limit: int | None) -> None:
        """See there."""
        self._wire.ask("PUT", f"/v1/queues/{_(name)}/limit", body={"limit": limit})


class Tenants(_Remote, _Tenants):
    """See ``jobq.operations.Tenants``."""

    def list(self) -> list[Tenant]:
        """See there."""
        return self._wire.items(Tenant, "/v1/tenants")

    def weight(self, name: str, weight: float) -> None:
        """See there."""
        self._wire.ask("PATCH", f"/v1/tenants/{_(name)}", body={"weight": weight})

    def limit(self, name: str, limit: int | None) -> None:
        """See there."""
        self._wire.ask("PATCH", f"/v1/tenants/{_(name)}", body={"limit": limit})

    def quota(self, name: str, **changes: float | str | None) -> Quota:
        """See there."""
        self._wire.ask("PATCH", f"/v1/tenants/{_(name)}", body={"quota": changes})
        return next((one.quota for one in self.list() if one.name == name), Quota())


class Workers(_Remote, _Workers):
    """See ``jobq.operations.Workers``."""

    def list(self, *, everything: bool = False) -> list[WorkerInfo]:
        """See there."""
        return self._wire.items(WorkerInfo, "/v1/workers", all=everything)

    def drain(self, worker: UUID) -> None:
        """See there."""
        self._wire.ask("POST", f"/v1/workers/{worker}/drain")


class Secrets(_Remote, _Secrets):
    """See ``jobq.operations.Secrets``."""

    def set(self, name: str, value: str) -> None:
        """See there."""
        self._wire.ask("PUT", f"/v1/secrets/{_(name)}", body={"value": value})

    def list(self) -> Sequence[tuple[str, datetime]]:
        """See there."""
        found = self._wire.items(dict[str, Any], "/v1/secrets")
        return [(one["name"], datetime.fromisoformat(one["updated_at"])) for one in found]

    def remove(self, name: str) -> None:
        """See there."""
        self._wire.remove(f"/v1/secrets/{_(name)}")


class Connectors(_Remote, _Connectors):
    """See ``jobq.operations.Connectors``."""

    def put(self, **fields: Any) -> StoredConnector:
        """See there."""
        return self._wire.post(StoredConnector, "/v1/connectors", body=document(parse(Connector, fields)))

    def apply(self, asked: Iterable[Connector]) -> list[AppliedConnector]:
        """See there."""
        body = [document(connector) for connector in asked]
        return self._wire.post(Page[AppliedConnector], "/v1/connectors/apply", body=body).items

    def get(self, name: str) -> StoredConnector:
        """See there."""
        return self._wire.get(StoredConnector, f"/v1/connectors/{_(name)}")

    def list(self) -> Sequence[StoredConnector]:
        """See there."""
        return self._wire.items(StoredConnector, "/v1/connectors")

    def remove(self, name: str) -> None:
        """See there."""
        self._wire.remove(f"/v1/connectors/{_(name)}")


class SyncStates(_Remote, _States):
    """See ``jobq.syncs.SyncStates``."""

    def list(self) -> Sequence[SyncState]:
        """See there."""
        return self._wire.items(SyncState, "/v1/sync-states")

    def get(self, domain: str) -> SyncState:
        """See there."""
        return self._wire.get(SyncState, f"/v1/sync-states/{_(domain)}")

    def reset(self, domain: str) -> None:
        """See there."""
        self._wire.remove(f"/v1/sync-states/{_(domain)}")


class Hooks(_Hooks):
    """See ``jobq.hooks.Hooks``."""

    def __init__(self, wire: Wire, place: Callable[[UUID | str], str]) -> None:
        self._wire, self._place = wire, place

    def create(
        self,
        workflow: UUID | str,
        name: str,
        *,
        signature: Signature | str = Signature.NONE,
        secret: str | None = None,
        replay_window: Any = None,
        rate_limit: int | None = None,
        envelope: bool = False,
    ) -> NewHook:
        """See there. It is sent once: a token whose answer was lost is nobody's."""
        window = replay_window.total_seconds() if hasattr(replay_window, "total_seconds") else replay_window
        asked = {"secret": secret, "replay_window": window, "rate_limit": rate_limit}
        body = {
            "name": name,
            "signature": str(signature),
            "envelope": envelope,
            **{k: v for k, v in asked.items() if v is not None},
        }
        return self._wire.post(NewHook, f"{self._place(workflow)}/hooks", body=body, repeats=False)

    def list(self, workflow: UUID | str) -> Sequence[StoredHook]:
        """See there."""
        return self._wire.items(StoredHook, f"{self._place(workflow)}/hooks")

    def revoke(self, workflow: UUID | str, hook_id: UUID) -> StoredHook:
        """See there."""
        return read(StoredHook, self._wire.ask("DELETE", f"{self._place(workflow)}/hooks/{hook_id}"))

    def receive(self, token: str, body: bytes, *, headers: Any = None, query: Any = ()) -> NoReturn:
        """Who has a token sends to ``/v1/hooks/{token}`` itself. Raises Misconfigured ``needs_database``."""
        raise needs_database()


class Keys(_Remote, _Keys):
    """See ``jobq.keys.Keys``."""

    def create(
        self, name: str, scope: Scope | str = Scope.RUN, *, expires_in: Any = None, operator: bool = False
    ) -> NewKey:
        """See there. It is sent once: a key whose answer was lost is in the list, and nobody has it."""
        lasts = expires_in.total_seconds() if hasattr(expires_in, "total_seconds") else expires_in
        body = {"name": name, "scope": str(scope), "expires_in": lasts, "operator": operator}
        return self._wire.post(NewKey, "/v1/keys", body=body, repeats=False)

    def list(self, *, everything: bool = False) -> Sequence[StoredKey]:
        """See there."""
        return self._wire.items(StoredKey, "/v1/keys", all=everything)

    def revoke(self, key_id: UUID, *, any_tenant: bool = False) -> StoredKey:
        """See there. An operator's key ends any tenant's."""
        return read(StoredKey, self._wire.ask("DELETE", f"/v1/keys/{key_id}"))


def _(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")
