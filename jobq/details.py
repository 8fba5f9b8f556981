"""job_details: the JSON document of a job, the same for every kind and at every stage. Pure: from facts to document.

Every key is always there, in one order; ``None``, ``{}`` or ``[]`` say that there is nothing. docs/job-details.md tells
what each key means, and a test compares its table with what is built here. ``jobq.store.details`` gathers the facts of
a stored job; a container gets the same document about itself (``workers.container.files``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

from jobq.models import Attempt, Export, FanOut
from jobq.states import TERMINAL, Reason, Status, Trigger
from jobq.vocabulary import INTEGRATION_PLATFORM, word_for

SYNC, REPLICATION, CONTAINER = "SYNC", "REPLICATION", "CONTAINER"
_JOB_TYPES = {SYNC: "READ", REPLICATION: "WRITE"}
_SYNC_TYPES = {"incremental": "incremental_sync", "full": "full_sync"}
_SUMMARY = ("success", "fail", "existing", "updated")
_RECORDS = ("new", "updated", "existing", "filtered", "invalid")
_MB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the document is made of. The first fields are those of ``jobq.models.Job``."""

    id: UUID
    attempt: int
    tenant: str
    kind: str
    name: str
    queue: str
    trigger: str
    status: Status
    reason: Reason
    workflow_id: UUID | None = None
    domain: str | None = None
    target: str | None = None
    entity_key: str | None = None
    error_class: str | None = None
    env_id: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    """As it is stored; a child's is that of its SYNC. Empty: it is gone."""
    state: Any = None
    message: str | None = None
    started_at: datetime | None = None
    """Of the latest attempt."""
    last_updated: datetime
    actor: str | None = None
    """Who made the job, where that is on record."""
    source_type: str | None = None
    """The source's connector type."""
    host: str | None = None
    slots: int | None = None
    attempts: Sequence[Attempt] = ()
    """Those that have ended, oldest first."""
    fanout: FanOut | None = None
    """Of a SYNC."""
    exports: Sequence[Export] = ()
    """Of a SYNC: the first ones. Of a child: its own."""
    exports_next: str | None = None
    """The cursor behind ``exports``."""
    artifact_bytes: int = 0
    log_bytes: int = 0

    @property
    def result(self) -> Mapping[str, Any]:
        """What the latest attempt left, if that is an object."""
        found = self.attempts[-1].result if self.attempts else None
        return found if isinstance(found, dict) else {}

    @property
    def sync(self) -> Mapping[str, Any]:
        """The spec of the SYNC that the job is, or belongs to; empty for all others."""
        return self.spec if self.kind in _JOB_TYPES else {}


def job_details(facts: Facts) -> dict[str, Any]:
    """The document: JSON values only, instants in RFC 3339, no secret."""
    return {
        "job_id": str(facts.id),
        "env_id": facts.env_id,
        "flow_id": None if facts.workflow_id is None else str(facts.workflow_id),
        "job_name": facts.name,
        "tenant": facts.tenant,
        "started_by": "scheduler" if facts.trigger == Trigger.AUTOMATIC else facts.actor or "application",
        "s3_root": f"jobq://{quote(facts.env_id, safe='')}/{quote(facts.tenant, safe='')}/{facts.id}/",
        "start_time": _instant(facts.started_at),
        "state": facts.state,
        "tap": _tap(facts),
        "target": _target(facts),
        "connector_id": _connector(facts),
        "job_type": _JOB_TYPES.get(facts.kind, facts.kind),
        "status": facts.status.value,
        "reason": facts.reason.value,
        "platform_status": word_for(INTEGRATION_PLATFORM, facts.status, facts.reason),
        "scheduled_job": facts.trigger == Trigger.AUTOMATIC,
        "sync_type": _SYNC_TYPES.get(facts.sync.get("mode", "")),
        "override_start_date": facts.sync.get("override_start_date"),
        "message": facts.message,
        "task_id": f"{facts.id}-{facts.attempt}" if facts.attempt else None,
        "task_type": facts.queue,
        "task_definition": _task_definition(facts),
        "last_updated": _instant(facts.last_updated),
        "metrics": _metrics(facts),
        "error": _error(facts),
        "data_sizes": _data_sizes(facts),
        "resources_usage": _resources_usage(facts),
    }


def _instant(value: datetime | None) -> str | None:
    if value is None:
        return None
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# --- where from, where to ------------------------------------------------------------------------------------------


def _tap(facts: Facts) -> str | None:
    source = facts.sync.get("source", {})
    return facts.source_type or source.get("type") or source.get("connector")


def _target(facts: Facts) -> str | list[str] | None:
    """A SYNC has a list of them: without any, what it reads ends in jobq's own store."""
    if facts.kind == SYNC:
        return [target["name"] for target in facts.sync.get("targets", ())] or ["store"]
    return facts.target


def _connector(facts: Facts) -> str | None:
    """The stored connector of the end that the job works for."""
    if facts.kind == SYNC:
        found: str | None = facts.sync.get("source", {}).get("connector")
        return found
    named = (target for target in facts.sync.get("targets", ()) if target["name"] == facts.target)
    return next((target.get("connector") for target in named), None)


def _task_definition(facts: Facts) -> dict[str, Any]:
    """A container has limits of its own; any other job has a worker slot among others."""
    own = facts.spec if facts.kind == CONTAINER else {}
    return {"memory": own.get("memory"), "cpus": own.get("cpus"), "host": facts.host, "slots": facts.slots}


# --- metrics -------------------------------------------------------------------------------------------------------


def _metrics(facts: Facts) -> dict[str, Any]:
    stream = facts.domain
    details = [_export(export, stream) for export in facts.exports]
    if stream is None:
        counts, records, summary = {}, {}, {}
    elif facts.kind == SYNC:
        seen = _seen(facts)
        counts = {stream: seen["read"]}
        records = {stream: {name: seen[name] for name in _RECORDS}}
        summary = {stream: _summary(facts)}
        details += _files(facts, stream)
    else:
        counts, records = {stream: int(facts.attempt > 0)}, {}
        summary = {stream: {name: sum(export.status == name for export in facts.exports) for name in _SUMMARY}}
    return {
        "recordCount": counts,
        "recordSummary": records,
        "exportSummary": summary,
        "exportDetails": details,
        "exportDetailsNext": facts.exports_next,
    }


def _seen(facts: Facts) -> dict[str, int]:
    """What a SYNC has read, and what it was; a dry run says so in its result, because it stores nothing."""
    if facts.sync.get("dry_run"):
        return {name: int(facts.result.get(name, 0)) for name in ("read", *_RECORDS)}
    return {name: getattr(facts.fanout, name, 0) for name in ("read", *_RECORDS)}


def _summary(facts: Facts) -> dict[str, int]:
    """Over all targets. Where jobq's own store is the only one, what became of the entities there."""
    if all(target.get("type") == "store" for target in facts.sync.get("targets", ())):
        seen = _seen(facts) if not facts.sync.get("dry_run") else dict.fromkeys(_RECORDS, 0)
        return {
            "success": seen["new"], "fail": seen["invalid"], "existing": seen["existing"], "updated": seen["updated"]
        }  # fmt: skip
    targets = facts.fanout.targets.values() if facts.fanout is not None else ()
    return {name: sum(getattr(target, name) for target in targets) for name in _SUMMARY}


def _export(export: Export, stream: str | None) -> dict[str, Any]:
    return {
        "id": export.key,
        "externalId": export.external_id,
        "stream": stream,
        "target": export.target,
        "status": export.status,
        "errorClass": export.error_class,
        "message": export.message,
        "jobId": str(export.job_id),
    }


def _files(facts: Facts, stream: str) -> list[dict[str, Any]]:
    """Targets that the SYNC itself wrote, each as one file: the whole stream, under the file's address."""
    files = facts.result.get("files")
    nothing = dict.fromkeys(("errorClass", "message"))
    return [
        {"id": stream, "externalId": address, "stream": stream, "target": target, "status": "success", **nothing,
         "jobId": str(facts.id)}
        for target, address in (files.items() if isinstance(files, dict) else ())
    ]  # fmt: skip


# --- causes and costs ----------------------------------------------------------------------------------------------


def _error(facts: Facts) -> dict[str, Any] | None:
    """Of a job that failed; of one that is tried again, its latest failure."""
    last = facts.attempts[-1] if facts.attempts else None
    if facts.status is Status.FAILED:
        reason, message = facts.reason.value, facts.message
    elif facts.status not in TERMINAL and facts.error_class and last is not None:
        reason, message = last.reason, last.message
    else:
        return None
    return {
        "class": facts.error_class or reason,
        "reason": reason,
        "message": message,
        "exit_code": None if last is None else last.exit_code,
    }


def _data_sizes(facts: Facts) -> dict[str, float]:
    sizes = {"artifacts": facts.artifact_bytes, "log": facts.log_bytes}
    return {name: round(size / _MB, 6) for name, size in (sizes | {"total": sum(sizes.values())}).items()}


def _resources_usage(facts: Facts) -> dict[str, float | int | None]:
    """Over all attempts that have ended: processor time in all, memory at its highest."""
    cpu = [attempt.usage["cpu_seconds"] for attempt in facts.attempts if "cpu_seconds" in attempt.usage]
    memory = [attempt.usage["memory_bytes"] for attempt in facts.attempts if "memory_bytes" in attempt.usage]
    return {"cpu": round(sum(cpu), 3) if cpu else None, "memory": max(memory, default=None)}
