"""Workflows over HTTP: the twin of ``jobq.workflows.Workflows``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from jobq.definition import Definition, Particulars
from jobq.errors import NotFound
from jobq.models import Job, Page, Workflow, WorkflowStatus
from jobq.remote.documents import changes as told
from jobq.remote.documents import document
from jobq.remote.wire import Wire, no_connection, read
from jobq.validation import parse

if TYPE_CHECKING:
    from jobq.workflows import Applied, WorkflowKey
    from jobq.workflows import Workflows as _Workflows
else:
    _Workflows = object

_LONGEST_NAME = 200


class RemoteWorkflows(_Workflows):
    """The half of ``RemoteJobQ`` that concerns definitions and schedules."""

    _wire: Wire

    def create_workflow(self, spec: Any, **definition: Any) -> Workflow:
        """See ``JobQ.create_workflow``."""
        return self.define(parse(Definition, {**definition, "spec": spec}))

    def define(self, definition: Definition, *, idempotency_key: str | None = None) -> Workflow:
        """See ``JobQ.define``."""
        key = idempotency_key or uuid4().hex
        return self._wire.post(Workflow, "/v1/workflows", body=document(definition), key=key)

    def update_workflow(self, workflow: WorkflowKey, /, **changes: Any) -> Workflow:
        """See ``JobQ.update_workflow``."""
        return read(Workflow, self._wire.ask("PATCH", self._workflow(workflow), body=told(changes)))

    def apply(self, definitions: Iterable[Definition]) -> list[Applied]:
        """See ``JobQ.apply``."""
        from jobq.workflows import Applied

        body = [document(definition) for definition in definitions]
        return self._wire.post(Page[Applied], "/v1/workflows/apply", body=body).items

    def get_workflow(self, workflow: WorkflowKey) -> Workflow:
        """See ``JobQ.get_workflow``."""
        if not isinstance(workflow, UUID):
            return self._named(workflow)
        return self._wire.get(Workflow, f"/v1/workflows/{workflow}")

    def list_workflows(
        self,
        *,
        status: WorkflowStatus | None = None,
        name: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Workflow]:
        """See ``JobQ.list_workflows``."""
        return self._wire.page(Workflow, "/v1/workflows", status=status, name=name, limit=limit, cursor=cursor)

    def pause_workflow(self, workflow: WorkflowKey) -> Workflow:
        """See ``JobQ.pause_workflow``."""
        return self._wire.post(Workflow, f"{self._workflow(workflow)}/pause")

    def resume_workflow(self, workflow: WorkflowKey) -> Workflow:
        """See ``JobQ.resume_workflow``."""
        return self._wire.post(Workflow, f"{self._workflow(workflow)}/resume")

    def terminate_workflow(self, workflow: WorkflowKey) -> Workflow:
        """See ``JobQ.terminate_workflow``."""
        return self._wire.post(Workflow, f"{self._workflow(workflow)}/terminate")

    def delete_workflow(self, workflow: WorkflowKey) -> None:
        """See ``JobQ.delete_workflow``."""
        self._wire.remove(self._workflow(workflow))

    def preview(self, workflow: WorkflowKey, count: int = 5) -> list[datetime]:
        """See ``JobQ.preview``."""
        return self._wire.items(datetime, f"{self._workflow(workflow)}/preview", count=count)

    def trigger(self, workflow: WorkflowKey, *, connection: Any = None, **particulars: Any) -> Job:
        """See ``JobQ.trigger``."""
        return self.start(workflow, parse(Particulars, particulars), connection=connection)

    def start(
        self, workflow: WorkflowKey, asked: Particulars, *, connection: Any = None, job_id: UUID | None = None
    ) -> Job:
        """See ``JobQ.start``. The API chooses the job's id: a given one stands for an idempotency key."""
        no_connection(connection)
        key = asked.idempotency_key or (job_id or uuid4()).hex
        return self._wire.post(Job, f"{self._workflow(workflow)}/jobs", body=document(asked), key=key)

    def _workflow(self, workflow: WorkflowKey) -> str:
        """The path of a workflow; by a name, it is looked up."""
        return f"/v1/workflows/{workflow if isinstance(workflow, UUID) else self._named(workflow).id}"

    def _named(self, name: str) -> Workflow:
        found = self.list_workflows(name=name, limit=1).items if len(name) <= _LONGEST_NAME else []
        if not found:
            raise NotFound(f"There is no workflow {name}.", hint="jobq workflow list shows all.")
        return found[0]
