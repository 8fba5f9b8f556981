"""``/v1/queues``, ``/tenants``, ``/workers`` (operators'), ``/secrets``, ``/connectors``, ``/sync-states`` and ``/keys``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict

from jobq.api.access import Admin, Asking, Operator, OperatorReader, Reader
from jobq.api.bodies import body, described, described_many, many, models
from jobq.api.listings import Listing, whole
from jobq.api.problems import documented
from jobq.connections import Connector, StoredConnector
from jobq.errors import Forbidden
from jobq.keys import Scope
from jobq.operations import AppliedConnector, Queue, Tenant, WorkerInfo
from jobq.store.keys import StoredKey
from jobq.syncs import SyncState
from jobq.validation import MAX_BYTES

router = APIRouter()
_WRONG = documented(400, 403, 413, 415, 422, 503)
_CRM = {"name": "crm", "type": "http", "config": {"url": "https://crm.example"}}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class QueueLimit(_Body):
    """How many jobs of the queue may be in flight at once; null: no limit."""

    limit: int | None


class QuotaChange(_Body):
    """What is given is changed. null: no limit; ``"default"``: what the installation says."""

    waiting: int | Literal["default"] | None = None
    running: int | Literal["default"] | None = None
    schedules: int | Literal["default"] | None = None
    rate: float | Literal["default"] | None = None
    burst: int | Literal["default"] | None = None


class TenantChange(_Body):
    """What is given is changed. ``limit`` null: no limit."""

    weight: float | None = None
    limit: int | None = None
    quota: QuotaChange | None = None


class SecretValue(_Body):
    """Never shown again."""

    value: str


class Secret(BaseModel):
    """A secret's name, and when it was set."""

    name: str
    updated_at: datetime


class KeyRequest(_Body):
    """A new API key."""

    name: str
    scope: str = Scope.RUN.value
    expires_in: float | str | None = None
    """Seconds or ISO 8601; null: never."""
    operator: bool = False
    """For all tenants; only an operator can make one."""


class Retention(_Body):
    """How long finished jobs are kept: seconds or ISO 8601; null: as the installation says."""

    older_than: float | str | None = None


class Pruned(BaseModel):
    """How many jobs were deleted."""

    deleted: int


class KeyMade(BaseModel):
    """The only moment at which the key can be read."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    key: str
    stored: StoredKey


# --- operators' --------------------------------------------------------------------------------------------------------


@router.get("/queues", tags=["operations"], responses=documented(403, 503))
def list_queues(jobq: OperatorReader) -> Listing[Queue]:
    """Queues with jobs, workers or a setting."""
    return whole(jobq.queues.list())  # type: ignore[no-any-return]


@router.post("/queues/{name}/pause", status_code=204, tags=["operations"], responses=documented(403, 422, 503))
def pause_queue(jobq: Operator, name: str) -> None:
    """No job of the queue starts until it is resumed."""
    jobq.queues.pause(name)


@router.post("/queues/{name}/resume", status_code=204, tags=["operations"], responses=documented(403, 422, 503))
def resume_queue(jobq: Operator, name: str) -> None:
    """Let its jobs start again."""
    jobq.queues.resume(name)


@router.put(
    "/queues/{name}/limit", status_code=204, tags=["operations"], responses=_WRONG,
    openapi_extra=described(QueueLimit, hundred={"limit": 100}),
)  # fmt: skip
def limit_queue(jobq: Operator, name: str, asked: Annotated[QueueLimit, Depends(body(QueueLimit))]) -> None:
    """At most so many of its jobs in flight."""
    jobq.queues.limit(name, asked.limit)


@router.get("/tenants", tags=["operations"], responses=documented(403, 503))
def list_tenants(jobq: OperatorReader) -> Listing[Tenant]:
    """Tenants with a setting, or with jobs in flight."""
    return whole(jobq.tenants.list())  # type: ignore[no-any-return]


@router.patch(
    "/tenants/{name:path}", status_code=204, tags=["operations"], responses=_WRONG | documented(404),
    openapi_extra=described(
        TenantChange, share={"weight": 2.0, "limit": 500}, quota={"quota": {"waiting": 10_000, "rate": 50, "burst": 200}}
    ),
)  # fmt: skip
def change_tenant(jobq: Operator, name: str, asked: Annotated[TenantChange, Depends(body(TenantChange))]) -> None:
    """A tenant's share of the room, how many of its jobs may be in flight, and its quota."""
    if asked.quota is not None:
        jobq.tenants.quota(name, **asked.quota.model_dump(exclude_unset=True))
    if asked.weight is not None:
        jobq.tenants.weight(name, asked.weight)
    if "limit" in asked.model_fields_set:
        jobq.tenants.limit(name, asked.limit)


@router.get("/workers", tags=["operations"], responses=documented(403, 422, 503))
def list_workers(
    jobq: OperatorReader, everything: Annotated[bool, Query(alias="all", description="The ended ones, too.")] = False
) -> Listing[WorkerInfo]:
    """The worker processes of all machines, newest first."""
    return whole(jobq.workers.list(everything=everything))  # type: ignore[no-any-return]


@router.post("/workers/{worker_id}/drain", status_code=204, tags=["operations"], responses=documented(403, 404, 503))
def drain_worker(jobq: Operator, worker_id: UUID) -> None:
    """It takes no more jobs, lets the running ones end, and exits."""
    jobq.workers.drain(worker_id)


# --- secrets, connectors -----------------------------------------------------------------------------------------------


@router.get("/secrets", tags=["connectors"], responses=documented(503))
def list_secrets(jobq: Admin) -> Listing[Secret]:
    """Names only."""
    return whole({"name": name, "updated_at": at} for name, at in jobq.secrets.list())  # type: ignore[no-any-return]


@router.put(
    "/secrets/{name}", status_code=204, tags=["connectors"], responses=_WRONG,
    openapi_extra=described(SecretValue, token={"value": "s3cr3t"}),
)  # fmt: skip
def set_secret(jobq: Admin, name: str, asked: Annotated[SecretValue, Depends(body(SecretValue))]) -> None:
    """Store a secret, encrypted; jobs that start from now on get it."""
    jobq.secrets.set(name, asked.value)


@router.delete("/secrets/{name}", status_code=204, tags=["connectors"], responses=documented(404, 503))
def remove_secret(jobq: Admin, name: str) -> None:
    """Forget it."""
    jobq.secrets.remove(name)


@router.get("/connectors", tags=["connectors"], responses=documented(503))
def list_connectors(jobq: Reader) -> Listing[StoredConnector]:
    """All, by name. They hold names of secrets, never secrets."""
    return whole(jobq.connectors.list())  # type: ignore[no-any-return]


@router.post(
    "/connectors", tags=["connectors"], responses=_WRONG,
    openapi_extra=described(Connector, service=_CRM),
)  # fmt: skip
def put_connector(jobq: Admin, asked: Annotated[Connector, Depends(body(Connector))]) -> StoredConnector:
    """Store one, new or in place of the one of that name."""
    return jobq.connectors.apply([asked])[0].connector


@router.post(
    "/connectors/apply", tags=["connectors"], responses=_WRONG,
    openapi_extra=described_many(Connector, 1000, crm=[_CRM]),
)  # fmt: skip
def apply_connectors(
    jobq: Admin, asked: Annotated[list[Any], Depends(many("connectors", 1000, MAX_BYTES))]
) -> Listing[AppliedConnector]:
    """Bring connectors to what is said, by name, all or none."""
    return whole(jobq.connectors.apply(models(Connector, asked, "Connector")))  # type: ignore[no-any-return]


@router.get("/connectors/{name}", tags=["connectors"], responses=documented(404, 503))
def get_connector(jobq: Reader, name: str) -> StoredConnector:
    """The connector of that name."""
    return jobq.connectors.get(name)


@router.delete("/connectors/{name}", status_code=204, tags=["connectors"], responses=documented(404, 503))
def remove_connector(jobq: Admin, name: str) -> None:
    """Forget it. A Sync that names it fails from now on."""
    jobq.connectors.remove(name)


@router.get("/sync-states", tags=["connectors"], responses=documented(503))
def list_sync_states(jobq: Reader) -> Listing[SyncState]:
    """How far each domain was read."""
    return whole(jobq.sync_states.list())  # type: ignore[no-any-return]


@router.get("/sync-states/{domain:path}", tags=["connectors"], responses=documented(404, 503))
def get_sync_state(jobq: Reader, domain: str) -> SyncState:
    """How far one of them was read."""
    return jobq.sync_states.get(domain)


@router.delete("/sync-states/{domain:path}", status_code=204, tags=["connectors"], responses=documented(404, 503))
def reset_sync_state(jobq: Admin, domain: str) -> None:
    """The next incremental Sync of the domain reads everything."""
    jobq.sync_states.reset(domain)


# --- keys --------------------------------------------------------------------------------------------------------------


@router.get("/keys", tags=["keys"], responses=documented(403, 422, 503))
def list_keys(
    jobq: Admin, who: Asking,
    everything: Annotated[bool, Query(alias="all", description="Of all tenants, and operators'.")] = False,
) -> Listing[StoredKey]:  # fmt: skip
    """The tenant's API keys, the newest first; never the keys themselves."""
    if everything and not who.operator:
        raise Forbidden("This concerns all tenants: an operator's key is needed.", code="scope")
    return whole(jobq.keys.list(everything=everything))  # type: ignore[no-any-return]


@router.post(
    "/keys", status_code=201, tags=["keys"], responses=_WRONG,
    openapi_extra=described(KeyRequest, deploy={"name": "deploy", "scope": "run", "expires_in": "P90D"}),
)  # fmt: skip
def create_key(jobq: Admin, who: Asking, asked: Annotated[KeyRequest, Depends(body(KeyRequest))]) -> KeyMade:
    """Make a key. It is shown this once."""
    if asked.operator and not who.operator:
        raise Forbidden("Only an operator makes operators' keys.", code="scope", pointer="/operator")
    made = jobq.keys.create(asked.name, asked.scope, expires_in=asked.expires_in, operator=asked.operator)
    return KeyMade(key=made.key, stored=made.stored)


@router.delete("/keys/{key_id}", tags=["keys"], responses=documented(404, 503))
def revoke_key(jobq: Admin, who: Asking, key_id: UUID) -> StoredKey:
    """Requests with it are refused within 5 s."""
    return jobq.keys.revoke(key_id, any_tenant=who.operator)


# --- retention ---------------------------------------------------------------------------------------------------------


@router.post(
    "/prune", tags=["operations"], responses=_WRONG, openapi_extra=described(Retention, month={"older_than": "P30D"})
)  # fmt: skip
def prune(jobq: Operator, asked: Annotated[Retention, Depends(body(Retention))]) -> Pruned:
    """Delete finished jobs of all tenants that are older than this; the scheduler does so by itself, too."""
    return Pruned(deleted=jobq.prune(asked.older_than))


BODIES: list[Any] = [QueueLimit, TenantChange, SecretValue, KeyRequest, Retention]
