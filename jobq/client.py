"""``JobQ``: what applications, the CLI and the HTTP API call. Every rule is behind it, none in front.

Each call is one transaction, committed when it returns; what was accepted is durable from then on. Calls are safe
from any thread. Where a method takes ``connection``, it joins the caller's own SQLAlchemy transaction instead: the
job exists if and when that transaction commits.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from uuid import UUID

from jobq import telemetry
from jobq.analytics import Trends
from jobq.definition import JobRequest, checked_all, requests_of
from jobq.duration import HINT, parse_duration
from jobq.errors import Conflict, InvalidInput
from jobq.hooks import Hooks
from jobq.jobs import Jobs
from jobq.keys import Keys
from jobq.models import Job
from jobq.operations import Connectors, Queues, Secrets, Tenants, Workers
from jobq.quotas import Quotas
from jobq.remote.client import RemoteJobQ
from jobq.settings import Settings, is_http
from jobq.states import Status, Trigger
from jobq.store import control
from jobq.store import jobs as store
from jobq.store.connectors import check_references
from jobq.store.database import Database
from jobq.store.jobs import NewJob, new_id
from jobq.store.prune import Kept, prune_all
from jobq.store.rollup import roll_up
from jobq.store.wakeup import announce, is_to_announce, ring
from jobq.store.webhook_events import named_endpoint
from jobq.store.workers import database_now
from jobq.syncs import Syncs
from jobq.validation import parse, tenant_name
from jobq.webhooks import Webhooks
from jobq.workflows import APPLICATION, Workflows

if TYPE_CHECKING:
    from jobq.specs import Spec
    from jobq.store.database import Connection

Result = TypeVar("Result")
SYNC = "SYNC"
_INSERTED_AT_ONCE = 5000


class JobQ(Jobs, Workflows, Syncs, Trends, metaclass=ABCMeta):
    """A tenant's door to jobq: workflows (``jobq.workflows``), jobs (here and in ``jobq.jobs``), ``queues``, ``tenants`` and ``workers``.

    ``JobQ()`` reads ``JOBQ_DATABASE_URL`` and ``JOBQ_TENANT``. ``actor`` names who acts, for the record of
    interventions. All errors are of the tree in ``jobq.errors``.

    Where the address is ``https://…`` (or ``http://…``), the same methods ask an HTTP API (``jobq.remote``), with
    ``api_key`` or ``JOBQ_API_KEY``; there a key decides who acts.
    """

    def __new__(cls, database_url: str | None = None, **options: Any) -> Self:
        """The one that the address asks for."""
        url = database_url if database_url is not None else (options.get("settings") or Settings.load()).database_url
        if is_http(url):
            return cast("Self", RemoteJobQ(database_url, **options))
        return super().__new__(cls)

    def __init__(
        self,
        database_url: str | None = None,
        *,
        tenant: str | None = None,
        actor: str = APPLICATION,
        settings: Settings | None = None,
        api_key: str | None = None,
    ) -> None:
        settings = settings or Settings.load()
        if database_url is not None:
            settings = settings.model_copy(update={"database_url": database_url})
        if api_key is not None:
            raise InvalidInput("An api_key is for the address of an API, https://…: a database takes none.")
        self.settings = settings
        self.tenant = tenant_name(tenant or settings.tenant)
        self.actor = actor

    @cached_property
    def database(self) -> Database:
        """The pool of connections, opened at the first call."""
        return Database(self.settings.database_url)

    def acting(self, tenant: str, actor: str) -> JobQ:
        """Another's door to the same installation, over the same connections."""
        other = JobQ(tenant=tenant, actor=actor, settings=self.settings)
        other.__dict__ |= {"database": self.database, "quotas": self.quotas}  # where cached_property would put its own
        return other

    @cached_property
    def quotas(self) -> Quotas:
        """What tenants may have at once, as this process sees it."""
        return Quotas(self.database, self.settings)

    @cached_property
    def queues(self) -> Queues:
        """List, pause, resume and limit queues."""
        return Queues(self.database, self.actor)

    @cached_property
    def tenants(self) -> Tenants:
        """List tenants, set their weights, limits and quotas."""
        return Tenants(self.database, self.quotas, self.actor)

    @cached_property
    def workers(self) -> Workers:
        """List and drain workers."""
        return Workers(self.database, self.actor)

    @cached_property
    def secrets(self) -> Secrets:
        """Set, list and remove this tenant's secrets."""
        return Secrets(self.database, self.settings, self.tenant, self.actor)

    @cached_property
    def connectors(self) -> Connectors:
        """Store, list and remove this tenant's connectors."""
        return Connectors(self.database, self.settings, self.tenant, self.actor)

    @cached_property
    def keys(self) -> Keys:
        """Make, list and revoke this tenant's API keys."""
        return Keys(self.database, self.settings, self.tenant, self.actor)

    @cached_property
    def hooks(self) -> Hooks:
        """Make, list and revoke the inbound hooks of this tenant's workflows; receive what comes to any hook."""
        return Hooks(self.database, self.settings, self.tenant, self.actor, self.acting)

    @cached_property
    def webhooks(self) -> Webhooks:
        """Who is told what happens to this tenant's jobs."""
        return Webhooks(self.database, self.settings, self.tenant, self.actor, self._cursor_key)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        if "database" in self.__dict__:
            self.database.close()

    def __enter__(self) -> JobQ:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- enqueue -----------------------------------------------------------------------------------------------

    def enqueue(self, spec: Spec | dict[str, Any], *, connection: Connection | None = None, **request: Any) -> Job:
        """Enqueue one job; ``request``: the fields of ``jobq.definition.JobRequest``.

        A repeated ``idempotency_key`` returns the job that the first call made (Conflict ``idempotency_conflict`` if
        the request differs). If a live job holds the ``dedupe_key``, the new one is recorded CANCELED·duplicate.
        """
        return self.submit(self._request(spec, request), connection=connection)

    def submit(self, asked: JobRequest, *, connection: Connection | None = None) -> Job:
        """``enqueue`` of a request that is a value already."""
        with telemetry.enqueuing(asked.queue or (asked.kind or "").lower()) as span:
            job = self._submitted(asked, connection)
            telemetry.enqueued(span, job)
            return job

    def _submitted(self, asked: JobRequest, connection: Connection | None) -> Job:
        plain = not (asked.scheduled_at or asked.after or asked.webhook)
        if connection is not None or not plain or asked.kind == SYNC:
            job_id = new_id()  # the same in every try
            return self._write(connection, lambda conn: self._enqueue_one(conn, asked, job_id))
        return self._enqueue_plain(asked)

    def enqueue_many(
        self,
        requests: Iterable[JobRequest | dict[str, Any]],
        *,
        connection: Connection | None = None,
        idempotency_key: str | None = None,
    ) -> list[UUID]:
        """Enqueue many jobs at some 20,000 a second; returns their ids, in the order of the requests.

        All requests are judged before the first is written. Without ``connection`` they are written in transactions
        of 5,000. Requests with a key of their own are refused here; an ``idempotency_key`` for all of them makes it one
        transaction, whose repetition returns the ids that the first call made.
        """
        asked = requests_of(requests)
        if any(request.idempotency_key for request in asked):
            raise InvalidInput("enqueue_many takes no idempotency_key.", hint="Use dedupe_key, or enqueue.")
        accepted = checked_all(asked, self.settings, self._now(connection))
        with telemetry.enqueuing(", ".join(sorted({str(each.queue) for each in accepted})), len(accepted)):
            return self._insert_many(asked, accepted, connection, idempotency_key)

    def _insert_many(
        self, asked: list[JobRequest], accepted: list[JobRequest], connection: Connection | None, key: str | None
    ) -> list[UUID]:
        first = new_id()
        new = [self._new_job(request, UUID(int=first.int + number)) for number, request in enumerate(accepted)]
        if key is not None:
            text = "\n".join(["many", *(request.model_dump_json() for request in asked)])
            return self._write(connection, lambda conn: self._insert_once(conn, new, connection, key, text))
        self.quotas.admit(self.tenant, len(new), connection)
        step = len(new) or 1 if connection is not None else _INSERTED_AT_ONCE
        ids: list[UUID] = []
        for start in range(0, len(new), step):
            part = new[start : start + step]
            ids += self._write(connection, lambda conn, part=part: self._insert(conn, part, connection))  # type: ignore[misc]
        return ids

    def _insert_once(
        self, conn: Connection, new: Sequence[NewJob], connection: Connection | None, key: str, request: str
    ) -> list[UUID]:
        """What an earlier call with this key made has the ids that count up from its first one."""
        before = self._remembered(conn, key, new[0].id, request) if new else None
        if before is not None:
            return [UUID(int=before.int + number) for number in range(len(new))]
        self.quotas.admit(self.tenant, len(new), conn, first=new[0].id if new else None)
        return self._insert(conn, new, connection)

    @staticmethod
    def _request(spec: Any, fields: dict[str, Any]) -> JobRequest:
        return parse(JobRequest, {**fields, "spec": spec})

    def _enqueue_plain(self, asked: JobRequest) -> Job:
        """The usual job: one statement, unless its dedupe key is held."""
        new = self._new_job(asked.checked(self.settings, datetime.now(UTC)))  # the clock judges scheduled_at only
        wakes = is_to_announce(self.database.url)
        if asked.idempotency_key is not None:
            return self._write(None, lambda conn: self._enqueue_once(conn, asked, new, wakes))
        self.quotas.admit(self.tenant)
        job = self._write(None, lambda conn: store.enqueue_one(conn, new, wakes=wakes), one_statement=True)
        return job or self._write(None, lambda conn: self._inserted(conn, new))

    def _enqueue_once(self, conn: Connection, asked: JobRequest, new: NewJob, wakes: bool) -> Job:
        """Two statements for what has a key: that of the key, and that of the job."""
        request = asked.model_dump_json(exclude={"idempotency_key"})
        before = self._remembered(conn, asked.idempotency_key, new.id, request)
        if before is not None:
            return store.get(conn, self.tenant, before)
        self.quotas.admit(self.tenant, conn=conn, first=new.id)
        return store.enqueue_one(conn, new, wakes=wakes) or self._inserted(conn, new)

    def _enqueue_one(self, conn: Connection, asked: JobRequest, job_id: UUID) -> Job:
        accepted = asked.checked(self.settings, database_now(conn))
        new = self._new_job(accepted, job_id)
        request = asked.model_dump_json(exclude={"idempotency_key"})
        before = self._remembered(conn, accepted.idempotency_key, new.id, request)
        if before is not None:
            return store.get(conn, self.tenant, before)
        self.quotas.admit(self.tenant, conn=conn, first=new.id)
        return self._inserted(conn, new)

    def _inserted(self, conn: Connection, new: NewJob) -> Job:
        self._insert(conn, [new], None)
        return store.get(conn, self.tenant, new.id)

    def _insert(self, conn: Connection, new: Sequence[NewJob], connection: Connection | None) -> list[UUID]:
        for job in new:
            if job.kind == SYNC:
                check_references(conn, self.tenant, job.spec, self.settings.policy)
        ids = store.enqueue(conn, new)
        announce(conn, always=connection is not None)
        return ids

    def _new_job(self, request: JobRequest, job_id: UUID | None = None) -> NewJob:
        assert request.kind is not None  # a checked request has all of these
        assert request.name is not None
        assert request.queue is not None
        return NewJob(
            tenant=self.tenant, kind=request.kind, name=request.name, queue=request.queue, spec=request.spec,
            priority=request.priority, max_attempts=request.retry.max_attempts or 1,
            timeout=None if request.timeout is None else request.timeout.total_seconds(), id=job_id or new_id(),
            scheduled_at=request.scheduled_at,
            stale_after=None if request.stale_after is None else request.stale_after.total_seconds(),
            state=request.state, retry=request.retry.stored(), dedupe_key=request.dedupe_key, after=request.after,
            started_by=self._maker,
            webhook=None if request.webhook is None else request.webhook.stored(),
        )  # fmt: skip

    # --- act -------------------------------------------------------------------------------------------------------

    def cancel(self, job_id: UUID, *, force: bool = False) -> Job:
        """Cancel: at once while the job waits, within seconds while it runs. Conflict if it has ended.

        A SYNC is dequeued: no child of it starts from now on, and it ends when those that run have ended.

        ``force`` ends a running job now, for one whose worker does not react: its work may go on until the worker's
        next renewal, but what it reports is refused. Children of a SYNC that run are ended, too.
        """
        verb, tries = control.end if force else control.cancel, 0

        def work(conn: Connection) -> None:
            nonlocal tries
            tries += 1
            try:
                verb(conn, self.tenant, job_id, self.actor)
            except Conflict:  # by an earlier try, perhaps, which was not told of its commit
                if tries == 1 or store.get(conn, self.tenant, job_id).status is not Status.CANCELED:
                    raise

        return self._act(job_id, work)

    def pause(self, job_id: UUID) -> Job:
        """Hold a waiting MANUAL job, or a SYNC at any time. Conflict ``not_pausable`` for others."""
        return self._act(job_id, lambda conn: control.pause(conn, self.tenant, job_id, self.actor))

    def resume(self, job_id: UUID) -> Job:
        """Let a paused job go on; resuming what is not paused changes nothing."""
        return self._act(job_id, lambda conn: control.resume(conn, self.tenant, job_id, self.actor))

    def retry(self, job_id: UUID, *, idempotency_key: str | None = None) -> Job:
        """Run an ended job again: a new MANUAL job with the same spec and ``retry_of``. Conflict while it is live.

        Of a SYNC that ended FAILED·partial only those children are made again that failed, or never ran. A repeated
        ``idempotency_key`` returns the job that the first call made.
        """
        again = new_id()  # the same in every try
        return self._write(None, lambda conn: self._retry_once(conn, job_id, again, idempotency_key))

    def _retry_once(self, conn: Connection, job_id: UUID, again: UUID, key: str | None) -> Job:
        before = self._remembered(conn, key, again, f"retry {self.tenant} {job_id}")
        return self._retry(conn, job_id, again) if before is None else store.get(conn, self.tenant, before)

    def _retry(self, conn: Connection, job_id: UUID, again: UUID) -> Job:
        before = store.get(conn, self.tenant, job_id)
        if not before.finished:
            raise Conflict(f"Job {job_id} has not ended: it is {before.status}·{before.reason}.", code="not_finished")
        if before.entity_key is not None:
            raise Conflict(
                f"Job {job_id} is a child of the SYNC {before.parent_id}, which retries it.", code="not_retryable",
                hint=f"jobq job retry {before.parent_id} makes its failed children again.",
            )  # fmt: skip
        data = store.get_data(conn, job_id)
        new = NewJob(
            tenant=before.tenant, kind=before.kind, name=before.name, queue=before.queue, spec=data.spec,
            priority=before.priority, max_attempts=(data.retry or {}).get("max_attempts", 1), timeout=before.timeout,
            id=again, trigger=Trigger.MANUAL, state=data.state, retry=data.retry, workflow_id=before.workflow_id,
            generation=before.generation, retry_of=job_id, dedupe_key=before.dedupe_key, started_by=self._maker,
        )  # fmt: skip
        self.quotas.admit(self.tenant, conn=conn, first=again)
        new.lane, new.webhook = self._lane_of(conn, before.workflow_id), named_endpoint(conn, job_id)
        control.add_event(conn, before.tenant, f"job:{job_id}", "retry", self.actor, detail={"new": str(new.id)})
        self._insert(conn, [new], None)
        return store.get(conn, self.tenant, new.id)

    def prune(self, older_than: timedelta | float | str | None = None) -> int:
        """Delete the jobs of all tenants that ended longer ago than this; returns how many.

        None: than the operator's settings say (``JOBQ_RETENTION`` and its like), and logs that are kept shorter. Jobs
        of a workflow that has its own retention follow that; those that an idempotency key of the last 24 hours stands
        for are kept so long. In transactions of 1,000, so that nobody waits for it.
        """
        try:
            kept = (
                Kept.by(self.settings) if older_than is None else Kept.alike(parse_duration(older_than).total_seconds())
            )
        except ValueError as error:
            raise InvalidInput(f"older_than is wrong: {error}.", hint=HINT, pointer="/older_than") from None
        kept = replace(kept, events=self.settings.audit_retention.total_seconds())
        while self.database.run(lambda conn: roll_up(conn, lag=0.0)):
            pass  # what is deleted counts in analytics
        total = prune_all(self.database, kept)
        if total:
            detail = {"deleted": total, "older_than_seconds": kept.shortest}
            self.database.run(lambda conn: control.add_event(conn, "", "jobs:all", "prune", self.actor, detail=detail))
        return total

    def _act(self, job_id: UUID, work: Callable[[Connection], None]) -> Job:
        def both(conn: Connection) -> Job:
            work(conn)
            announce(conn)
            return store.get(conn, self.tenant, job_id)

        return self._write(None, both)

    # --- transactions ------------------------------------------------------------------------------------------------

    def _write(
        self, connection: Connection | None, work: Callable[[Connection], Result], *, one_statement: bool = False
    ) -> Result:
        if connection is not None:
            return work(connection)
        done = self.database.run(work, one_statement=one_statement)
        ring(self.database)
        return done

    def _now(self, connection: Connection | None) -> datetime:
        if connection is not None:
            return database_now(connection)
        with self.database.read() as conn:
            return database_now(conn)


JobQ.register(RemoteJobQ)  # it is one to isinstance, without its implementation
