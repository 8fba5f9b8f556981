"""What applications do with workflows: the half of ``JobQ`` that concerns definitions and schedules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from jobq import telemetry
from jobq.cursors import fingerprint, make_cursor, read_cursor
from jobq.definition import Definition, Particulars
from jobq.errors import InvalidInput, JobQError, NotFound
from jobq.models import Job, Page, Workflow, WorkflowStatus
from jobq.schedule import parse_instant, preview
from jobq.states import Trigger
from jobq.store import jobs as store
from jobq.store import workflows
from jobq.store.connectors import check_references
from jobq.store.jobs import NewJob, new_id
from jobq.store.wakeup import announce
from jobq.store.workers import database_now
from jobq.validation import check_json, located, parse

if TYPE_CHECKING:
    from jobq.quotas import Quotas
    from jobq.settings import Settings
    from jobq.specs import Spec
    from jobq.store.database import Connection, Database

Result = TypeVar("Result")
APPLICATION = "python"
"""The actor of who did not say who acts."""
WorkflowKey = UUID | str
"""A workflow is named by its id or by its name."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What ``apply`` did with one definition: ``created``, ``updated`` or ``unchanged``."""

    workflow: Workflow
    what: str


def stored_fields(definition: Definition) -> dict[str, Any]:
    """A checked definition as the fields of ``jobq.models.Workflow``."""
    fields: dict[str, Any] = {
        name: getattr(definition, name)
        for name in (
            "name", "kind", "spec", "queue", "priority", "concurrency", "interval", "cron", "start_at", "misfire",
            "misfire_grace", "max_catch_up", "overlap", "timeout", "stale_after", "retention",
            "max_consecutive_job_failures_allowed",
        )
    }  # fmt: skip
    fields["timezone"] = definition.timezone if definition.cron is not None else None
    fields["retry"] = definition.retry.stored()
    fields["max_attempts"] = definition.retry.max_attempts or 1
    return fields


class Workflows:
    """Create, look at and change workflows, and trigger them."""

    settings: Settings
    tenant: str
    actor: str

    if TYPE_CHECKING:

        @cached_property
        def database(self) -> Database: ...

        @cached_property
        def quotas(self) -> Quotas: ...

        @property
        def _cursor_key(self) -> bytes: ...

        def _write(self, connection: Connection | None, work: Callable[[Connection], Result]) -> Result: ...

    def create_workflow(self, spec: Spec | dict[str, Any], **definition: Any) -> Workflow:
        """A new ACTIVE workflow; ``definition``: the fields of ``jobq.definition.Definition``, or ``schedule=Every(…)``.

        Raises InvalidInput with the field's pointer, Forbidden by the operator's policy, Conflict ``name_taken``.
        """
        return self.define(parse(Definition, {**definition, "spec": spec}))

    def define(self, definition: Definition, *, idempotency_key: str | None = None) -> Workflow:
        """``create_workflow`` of a definition that is a value already.

        A repeated ``idempotency_key`` returns the workflow that the first call made, as it is now.
        """
        fields, workflow_id = stored_fields(definition.checked(self.settings)), new_id()

        def work(conn: Connection) -> Workflow:
            before = self._remembered(conn, idempotency_key, workflow_id, definition.model_dump_json())
            if before is not None:
                return workflows.get(conn, self.tenant, before)
            self._check_references(conn, fields)
            self._admit_schedule(conn, fields, made=workflow_id)
            return workflows.create(conn, workflow_id, self.tenant, fields, self.actor)

        return self._write(None, work)

    def _admit_schedule(
        self, conn: Connection, fields: dict[str, Any], before: Workflow | None = None, *, made: UUID | None = None
    ) -> None:
        """The quota has room for the schedule, if this workflow gets one that had none. ``made``: see ``Quotas.admit``."""
        had_none = before is None or (before.interval is None and before.cron is None)
        if had_none and (fields["interval"] is not None or fields["cron"] is not None):
            self.quotas.admit_schedule(conn, self.tenant, first=made)

    def _remembered(self, conn: Connection, key: str | None, made: UUID, request: str) -> UUID | None:
        """What an earlier request with this idempotency key made; None: this is the first one, or it has no key."""
        if key is None:
            return None
        before = store.remember_request(conn, self.tenant, key, hashlib.sha256(request.encode()).hexdigest(), made)
        return None if before == made else before

    def _check_references(self, conn: Connection, fields: dict[str, Any]) -> None:
        """The connectors and secrets that a SYNC names are there."""
        if fields["kind"] == "SYNC":
            check_references(conn, self.tenant, fields["spec"], self.settings.policy)

    def update_workflow(self, workflow: WorkflowKey, /, **changes: Any) -> Workflow:
        """Change fields of the definition: a new generation. What is not named stays as it is."""

        def work(conn: Connection) -> Workflow:
            before = workflows.get(conn, self.tenant, workflow)
            fields = stored_fields(parse(Definition, _merged(before, changes)).checked(self.settings))
            self._check_references(conn, fields)
            self._admit_schedule(conn, fields, before)
            return workflows.update(conn, self.tenant, before.id, fields, self.actor)

        return self._write(None, work)

    def apply(self, definitions: Iterable[Definition]) -> list[Applied]:
        """Bring workflows to what the definitions say, by name, in one transaction; applying twice changes nothing.

        Workflows that are not named are left alone. Every definition needs a name.
        """
        asked = list(definitions)
        if nameless := [number for number, definition in enumerate(asked) if definition.name is None]:
            raise InvalidInput("apply needs a name for each workflow.", pointer=f"/{nameless[0]}/name")
        checked = [self._checked(number, definition) for number, definition in enumerate(asked)]
        return self._write(None, lambda conn: [self._apply_one(conn, stored_fields(one)) for one in checked])

    def _checked(self, number: int, definition: Definition) -> Definition:
        try:
            return definition.checked(self.settings)
        except JobQError as error:
            raise located(error, f"Workflow {number}", f"/{number}") from None

    def _apply_one(self, conn: Connection, fields: dict[str, Any]) -> Applied:
        self._check_references(conn, fields)
        try:
            before = workflows.get(conn, self.tenant, fields["name"])
        except NotFound:
            self._admit_schedule(conn, fields)
            return Applied(workflows.create(conn, new_id(), self.tenant, fields, self.actor), "created")
        self._admit_schedule(conn, fields, before)
        after = workflows.update(conn, self.tenant, before.id, fields, self.actor)
        return Applied(after, "unchanged" if after.generation == before.generation else "updated")

    def get_workflow(self, workflow: WorkflowKey) -> Workflow:
        """By id or name. Raises NotFound, also for another tenant's."""
        with self.database.read() as conn:
            return workflows.get(conn, self.tenant, workflow)

    def list_workflows(
        self,
        *,
        status: WorkflowStatus | None = None,
        name: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Workflow]:
        """The oldest first; ``name``: only the one that is called so. ``limit``: 1 to 200."""
        if not 1 <= limit <= 200:
            raise InvalidInput("limit is between 1 and 200.", pointer="/limit")
        filters = fingerprint(listing="workflows", tenant=self.tenant, status=status, name=name)
        after = read_cursor(self._cursor_key, filters, cursor)
        with self.database.read() as conn:
            found = workflows.list_page(conn, self.tenant, after=after, limit=limit + 1, status=status, name=name)
        page = found[:limit]
        return Page(page, make_cursor(self._cursor_key, filters, page[-1].id) if len(found) > limit else None)

    def pause_workflow(self, workflow: WorkflowKey) -> Workflow:
        """No more slots until it is resumed; those that pass meanwhile are dropped. Its jobs go on."""
        return self._change(workflow, workflows.pause)

    def resume_workflow(self, workflow: WorkflowKey) -> Workflow:
        """Make it ACTIVE again, also after a termination: a new generation with the failure counter at 0."""
        return self._change(workflow, workflows.resume)

    def terminate_workflow(self, workflow: WorkflowKey) -> Workflow:
        """End it: waiting AUTOMATIC jobs are canceled, running ones end without a retry, MANUAL ones go on."""
        return self._change(workflow, workflows.terminate)

    def delete_workflow(self, workflow: WorkflowKey) -> None:
        """Remove the definition. Conflict ``has_live_jobs`` while it has jobs that have not ended."""

        def work(conn: Connection) -> None:
            workflows.delete(conn, self.tenant, workflows.get(conn, self.tenant, workflow).id, self.actor)

        self._write(None, work)

    def _change(self, workflow: WorkflowKey, verb: Callable[[Connection, str, UUID, str], Workflow]) -> Workflow:
        def work(conn: Connection) -> Workflow:
            found = workflows.get(conn, self.tenant, workflow)
            changed = verb(conn, self.tenant, found.id, self.actor)
            announce(conn)
            return changed

        return self._write(None, work)

    def preview(self, workflow: WorkflowKey, count: int = 5) -> list[datetime]:
        """The next slots, if the workflow were (or is) ACTIVE; empty for one that has no schedule."""
        if not 1 <= count <= 1000:
            raise InvalidInput("count is between 1 and 1000.", pointer="/count")
        with self.database.read() as conn:
            found, now = workflows.get(conn, self.tenant, workflow), database_now(conn)
        schedule = workflows.schedule_of(found)
        return [] if schedule is None else preview(schedule, found.anchor_at, now, count)

    def trigger(self, workflow: WorkflowKey, *, connection: Connection | None = None, **particulars: Any) -> Job:
        """Start a MANUAL job of the workflow, now or at ``scheduled_at``, whatever the workflow's status is.

        ``particulars``: the fields of ``jobq.definition.Particulars``. The name, if none is given, is the workflow's. A
        repeated ``idempotency_key`` returns the job that the first call made.
        """
        return self.start(workflow, parse(Particulars, particulars), connection=connection)

    def start(
        self,
        workflow: WorkflowKey,
        asked: Particulars,
        *,
        connection: Connection | None = None,
        job_id: UUID | None = None,
    ) -> Job:
        """``trigger`` with particulars that are a value already. ``job_id``: the job's, else a new one."""
        job_id = job_id or new_id()  # the same in every try
        work = partial(self._trigger, workflow=workflow, asked=asked, job_id=job_id, own=connection is None)
        with telemetry.enqueuing("workflow") as span:
            job = self._write(connection, work)
            telemetry.enqueued(span, job)
            return job

    def _trigger(self, conn: Connection, workflow: WorkflowKey, asked: Particulars, job_id: UUID, *, own: bool) -> Job:
        found = workflows.get(conn, self.tenant, workflow)
        request = f"{found.id} {asked.model_dump_json(exclude={'idempotency_key'})}"
        before = self._remembered(conn, asked.idempotency_key, job_id, request)
        if before is not None:
            return store.get(conn, self.tenant, before)
        if asked.state is not None:
            check_json(asked.state, max_bytes=self.settings.max_spec_bytes, pointer="/state")
        self.quotas.admit(self.tenant, conn=conn, first=job_id)
        scheduled_at = asked.scheduled_at
        new = NewJob(
            tenant=found.tenant, kind=found.kind, name=asked.name or found.name, queue=found.queue, spec=found.spec,
            priority=found.priority, max_attempts=found.max_attempts,
            timeout=None if found.timeout is None else found.timeout.total_seconds(), id=job_id,
            trigger=Trigger.MANUAL, lane=found.id.hex if found.concurrency is not None else "",
            scheduled_at=None if scheduled_at is None else parse_instant(scheduled_at, database_now(conn)),
            stale_after=None if found.stale_after is None else found.stale_after.total_seconds(),
            state=asked.state, retry=found.retry, workflow_id=found.id, generation=found.generation,
            dedupe_key=asked.dedupe_key, after=asked.after, started_by=self._maker,
            webhook=None if asked.webhook is None else asked.webhook.stored(),
        )  # fmt: skip
        store.enqueue(conn, [new])
        announce(conn, always=not own)
        return store.get(conn, self.tenant, new.id)

    @property
    def _maker(self) -> str | None:
        """Who makes jobs by this door; None: an application that did not say its name."""
        return None if self.actor == APPLICATION else self.actor

    def _lane_of(self, conn: Connection, workflow_id: UUID | None) -> str:
        """The lane of a workflow's jobs: its own where it has a concurrency, else the common one."""
        if workflow_id is None:
            return ""
        try:
            limited = workflows.get(conn, self.tenant, workflow_id).concurrency is not None
        except NotFound:
            return ""
        return workflow_id.hex if limited else ""


def _merged(before: Workflow, changes: dict[str, Any]) -> dict[str, Any]:
    """The definition of a workflow with some fields changed; a new kind of schedule replaces the old one."""
    fields: dict[str, Any] = {
        name: getattr(before, name) for name in Definition.model_fields if hasattr(before, name) and name != "retry"
    }
    fields["timezone"] = before.timezone or "UTC"
    if "schedule" in changes or "interval" in changes or "cron" in changes:
        for name in ("interval", "cron", "start_at"):
            fields[name] = None
        fields.pop("timezone")
    return {**fields, "retry": before.retry, **changes}
