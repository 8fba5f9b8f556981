"""``RemoteJobQ``: what ``JobQ("https://…")`` is. No rule is here: requests are read as they are for a database, and sent.

Calls that make something carry an idempotency key, the caller's or one of their own: a lost answer makes nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID, uuid4

from pydantic import SecretStr

from jobq.definition import JobRequest
from jobq.errors import Conflict
from jobq.models import (
    Artifact,
    Attempt,
    Change,
    Export,
    FanOut,
    Job,
    JobFilter,
    LogLine,
    Page,
    Problem,
    Total,
)
from jobq.remote.batches import enqueue_all
from jobq.remote.documents import document
from jobq.remote.following import follow_changes, follow_log
from jobq.remote.wire import Wire, needs_database, no_connection, read
from jobq.remote.workflows import RemoteWorkflows
from jobq.settings import Settings
from jobq.states import Status
from jobq.timeline import Event
from jobq.validation import parse
from jobq.waiting import wait_for_end

if TYPE_CHECKING:
    # For those who check types it is a JobQ, and mypy compares each method's signature with that one's. At run time it
    # is none: that would load SQLAlchemy.
    from jobq.analytics import Trend
    from jobq.client import JobQ as _Door
    from jobq.quotas import Quotas
    from jobq.remote.operations import Connectors, Hooks, Keys, Queues, Secrets, SyncStates, Tenants, Workers
    from jobq.remote.webhooks import Webhooks
    from jobq.store.audit import AuditEvent
    from jobq.store.database import Database
else:
    _Door = object

_LINES = 1000


@dataclass(frozen=True, slots=True)
class _Lines:
    items: list[LogLine]


@dataclass(frozen=True, slots=True)
class _Counted:
    total: Total


_PLURAL = {"statuses": "status", "reasons": "reason", "kinds": "kind", "queues": "queue", "name_contains": "name"}


class RemoteJobQ(RemoteWorkflows, _Door):
    """A tenant's door to jobq over HTTP. Takes what ``JobQ`` takes; ``JOBQ_API_KEY`` stands for ``api_key``.

    ``tenant`` is for operators' keys, which act for any tenant; others are bound to their own. Who acts, for the record
    of interventions, is the key: ``actor`` counts for nothing here.
    """

    def __init__(
        self,
        database_url: str | None = None,
        *,
        tenant: str | None = None,
        actor: str = "python",
        settings: Settings | None = None,
        api_key: str | None = None,
    ) -> None:
        settings = settings or Settings.load()
        given = {"database_url": database_url, "api_key": None if api_key is None else SecretStr(api_key)}
        changed = {name: value for name, value in given.items() if value is not None}
        self.settings = settings.model_copy(update=changed) if changed else settings
        self.actor = actor
        asked = tenant or (settings.tenant if "tenant" in settings.model_fields_set else None)
        self.tenant = asked or settings.tenant
        self._wire = Wire(self.settings, asked)

    def acting(self, tenant: str, actor: str) -> RemoteJobQ:
        """Another tenant's door, over the same connections: for an operator's key."""
        other = RemoteJobQ(tenant=tenant, actor=actor, settings=self.settings)
        other._wire = self._wire.acting(tenant)
        return other

    @property
    def database(self) -> Database:
        """Raises Misconfigured ``needs_database``."""
        raise needs_database()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._wire.pool.close()

    def __enter__(self) -> RemoteJobQ:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what has methods of its own ---------------------------------------------------------------------------------

    @property
    def quotas(self) -> Quotas:
        """Quotas are judged where the database is. Raises Misconfigured ``needs_database``."""
        raise needs_database()

    @cached_property
    def hooks(self) -> Hooks:
        """Make, list and revoke the inbound hooks of this tenant's workflows."""
        from jobq.remote.operations import Hooks

        return Hooks(self._wire, self._workflow)

    @cached_property
    def queues(self) -> Queues:
        """List, pause, resume and limit queues."""
        from jobq.remote.operations import Queues

        return Queues(self._wire)

    @cached_property
    def tenants(self) -> Tenants:
        """List tenants, set their weights and limits."""
        from jobq.remote.operations import Tenants

        return Tenants(self._wire)

    @cached_property
    def workers(self) -> Workers:
        """List and drain workers."""
        from jobq.remote.operations import Workers

        return Workers(self._wire)

    @cached_property
    def secrets(self) -> Secrets:
        """Set, list and remove this tenant's secrets."""
        from jobq.remote.operations import Secrets

        return Secrets(self._wire)

    @cached_property
    def connectors(self) -> Connectors:
        """Store, list and remove this tenant's connectors."""
        from jobq.remote.operations import Connectors

        return Connectors(self._wire)

    @cached_property
    def keys(self) -> Keys:
        """Make, list and revoke this tenant's API keys."""
        from jobq.remote.operations import Keys

        return Keys(self._wire)

    @cached_property
    def sync_states(self) -> SyncStates:
        """List, look at and reset how far each domain was read."""
        from jobq.remote.operations import SyncStates

        return SyncStates(self._wire)

    @cached_property
    def webhooks(self) -> Webhooks:
        """Make, change and test this tenant's webhooks; the log of what was delivered."""
        from jobq.remote.webhooks import Webhooks

        return Webhooks(self._wire)

    # --- enqueue -------------------------------------------------------------------------------------------------

    def enqueue(self, spec: Any, *, connection: Any = None, **request: Any) -> Job:
        """See ``JobQ.enqueue``."""
        return self.submit(parse(JobRequest, {**request, "spec": spec}), connection=connection)

    def submit(self, asked: JobRequest, *, connection: Any = None) -> Job:
        """See ``JobQ.submit``."""
        no_connection(connection)
        return self._wire.post(Job, "/v1/jobs", body=document(asked), key=asked.idempotency_key or uuid4().hex)

    def enqueue_many(
        self,
        requests: Iterable[JobRequest | dict[str, Any]],
        *,
        connection: Any = None,
        idempotency_key: str | None = None,
    ) -> list[UUID]:
        """See ``JobQ.enqueue_many``. More than 5,000 travel in several requests, each of which is judged as a whole."""
        no_connection(connection)
        return enqueue_all(self._wire, requests, idempotency_key)

    # --- look ----------------------------------------------------------------------------------------------------

    def get(self, job_id: UUID) -> Job:
        """See ``JobQ.get``."""
        return self._wire.get(Job, _job(job_id))

    def list(self, *, limit: int = 50, cursor: str | None = None, **only: Any) -> Page[Job]:
        """See ``JobQ.list``."""
        return self._list("/v1/jobs", limit, cursor, JobFilter(**only))

    def _list(self, path: str, limit: int, cursor: str | None, only: JobFilter) -> Page[Job]:
        return self._wire.page(Job, path, limit=limit, cursor=cursor, **_query(only))

    def count(self, **only: Any) -> Total:
        """See ``JobQ.count``."""
        return self._wire.get(_Counted, "/v1/jobs", limit=1, total=True, **_query(JobFilter(**only))).total

    def analytics(  # noqa: PLR0913 - as there
        self, *, since: datetime | None = None, until: datetime | None = None, bucket: Any = None, group_by: Any = None,
        kinds: Sequence[str] = (), queues: Sequence[str] = (), workflow_id: UUID | None = None, timezone: str = "UTC",
        limit: int = 20,
    ) -> Trend:  # fmt: skip
        """See ``JobQ.analytics``."""
        from jobq.analytics import Trend

        return self._wire.get(
            Trend, "/v1/analytics", since=since, until=until, bucket=bucket, group_by=group_by, kind=frozenset(kinds),
            queue=frozenset(queues), workflow_id=workflow_id, timezone=timezone, limit=limit,
        )  # fmt: skip

    def spec(self, job_id: UUID) -> dict[str, Any]:
        """See ``JobQ.spec``."""
        return self._wire.get(dict[str, Any], f"{_job(job_id)}/spec")

    def attempts(self, job_id: UUID) -> Sequence[Attempt]:
        """See ``JobQ.attempts``."""
        return self._wire.items(Attempt, f"{_job(job_id)}/attempts")

    def timeline(self, job_id: UUID) -> Sequence[Event]:
        """See ``JobQ.timeline``."""
        return self._wire.items(Event, f"{_job(job_id)}/timeline")

    def artifacts(self, job_id: UUID) -> Sequence[Artifact]:
        """See ``JobQ.artifacts``."""
        return self._wire.items(Artifact, f"{_job(job_id)}/artifacts")

    def artifact(self, job_id: UUID, name: str) -> bytes:
        """See ``JobQ.artifact``."""
        return self._wire.ask("GET", f"{_job(job_id)}/artifacts/{quote(name)}")

    def why(self, job_id: UUID) -> str:
        """See ``JobQ.why``."""
        return self._wire.get(dict[str, str], f"{_job(job_id)}/why")["why"]

    def logs(self, job_id: UUID, *, after: int = 0, follow: bool = False, poll: float = 0.25) -> Iterator[LogLine]:
        """See ``JobQ.logs``. The API says by itself when there is more: ``poll`` counts for nothing."""
        if follow:
            yield from follow_log(self._wire, _job(job_id), after)
            return
        while lines := self.log_page(job_id, after=after, limit=_LINES):
            yield from lines
            after = lines[-1].number

    def log_page(
        self, job_id: UUID, *, after: int = 0, limit: int = 200, stream: str | None = None, text: str | None = None
    ) -> Sequence[LogLine]:
        """See ``JobQ.log_page``."""
        if text == "":
            text = None
        return self._wire.get(_Lines, f"{_job(job_id)}/logs", after=after, limit=limit, stream=stream, q=text).items

    def wait(self, job_id: UUID, timeout: float | None = None) -> Job:
        """See ``JobQ.wait``."""
        return wait_for_end(self.get, job_id, timeout, pause=0.02)

    def changes(
        self,
        *,
        after: str | None = None,
        statuses: frozenset[Status] = frozenset(),
        kinds: frozenset[str] = frozenset(),
        queues: frozenset[str] = frozenset(),
        workflow_id: UUID | None = None,
    ) -> Iterator[Change]:
        """See ``JobQ.changes``."""
        query = {"status": statuses, "kind": kinds, "queue": queues, "workflow_id": workflow_id, "after": after}
        return follow_changes(self._wire, query)

    def audit(
        self, *, everything: bool = False, limit: int = 50, cursor: str | None = None, **only: Any
    ) -> Page[AuditEvent]:
        """See ``JobQ.audit``. ``everything`` is for an operator's key."""
        from jobq.store.audit import AuditEvent, AuditFilter

        wanted = asdict(AuditFilter(**only))
        return self._wire.page(AuditEvent, "/v1/audit", all=everything or None, limit=limit, cursor=cursor, **wanted)

    # --- fan-outs ------------------------------------------------------------------------------------------------

    def children(self, job_id: UUID, *, limit: int = 50, cursor: str | None = None, **only: Any) -> Page[Job]:
        """See ``JobQ.children``."""
        return self._list(f"{_job(job_id)}/children", limit, cursor, JobFilter(**only))

    def fanout(self, job_id: UUID) -> FanOut:
        """See ``JobQ.fanout``."""
        return self._wire.get(FanOut, f"{_job(job_id)}/fanout")

    def exports(self, job_id: UUID, *, limit: int = 50, cursor: str | None = None) -> Page[Export]:
        """See ``JobQ.exports``."""
        return self._wire.page(Export, f"{_job(job_id)}/exports", limit=limit, cursor=cursor)

    def problems(self, job_id: UUID, *, behind: int = 0, limit: int = 200) -> Sequence[Problem]:
        """See ``JobQ.problems``."""
        return self._wire.items(Problem, f"{_job(job_id)}/problems", behind=behind, limit=limit)

    def details(self, job_id: UUID, *, exports: int = 100) -> dict[str, Any]:
        """See ``JobQ.details``."""
        return self._wire.get(dict[str, Any], f"{_job(job_id)}/details", exports=exports)

    # --- act -----------------------------------------------------------------------------------------------------

    def cancel(self, job_id: UUID, *, force: bool = False) -> Job:
        """See ``JobQ.cancel``."""
        path, query = f"{_job(job_id)}/cancel", {"force": force or None}
        answer = self._wire.ask("POST", path, query=query, settles=Conflict)
        if answer:
            return read(Job, answer)
        job = self.get(job_id)  # canceled by an earlier try, perhaps, whose answer was lost
        return job if job.status is Status.CANCELED else read(Job, self._wire.ask("POST", path, query=query))

    def pause(self, job_id: UUID) -> Job:
        """See ``JobQ.pause``."""
        return self._wire.post(Job, f"{_job(job_id)}/pause")

    def resume(self, job_id: UUID) -> Job:
        """See ``JobQ.resume``."""
        return self._wire.post(Job, f"{_job(job_id)}/resume")

    def retry(self, job_id: UUID, *, idempotency_key: str | None = None) -> Job:
        """See ``JobQ.retry``."""
        return self._wire.post(Job, f"{_job(job_id)}/retry", key=idempotency_key or uuid4().hex)

    def prune(self, older_than: Any = None) -> int:
        """See ``JobQ.prune``. For an operator's key."""
        given = older_than.total_seconds() if hasattr(older_than, "total_seconds") else older_than
        return self._wire.post(dict[str, int], "/v1/prune", body={"older_than": given})["deleted"]


def _query(only: JobFilter) -> dict[str, Any]:
    return {_PLURAL.get(name, name): getattr(only, name) for name in only.__dataclass_fields__}


def _job(job_id: UUID) -> str:
    return f"/v1/jobs/{job_id}"
