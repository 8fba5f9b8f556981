"""jobq: a durable job platform on Celery. What applications import; it loads neither Celery, Redis nor Docker.

from jobq import Every, Heartbeat, JobQ

jobq = JobQ()
jobq.create_workflow(Heartbeat(endpoint="https://example.org/"), name="front-page", schedule=Every("PT1M"))
job = jobq.enqueue(Heartbeat(endpoint="https://example.org/"))
print(jobq.wait(job.id).status)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobq.client import JobQ
    from jobq.definition import Definition, JobRequest
    from jobq.errors import (
        Conflict,
        Forbidden,
        InvalidInput,
        JobQError,
        Misconfigured,
        NotFound,
        TooMany,
        Unavailable,
    )
    from jobq.models import Attempt, Job, LogLine, Outcome, Page, Workflow, WorkflowStatus
    from jobq.plugins import Context, Kind
    from jobq.retry import RetryPolicy
    from jobq.schedule import Cron, Every
    from jobq.settings import Settings
    from jobq.specs import Container, Heartbeat, Spec
    from jobq.states import Reason, Status, Trigger
    from jobq.sync import SourceSpec, Sync, TargetSpec

_ADDRESS = {
    "client": ("JobQ",),
    "definition": ("Definition", "JobRequest"),
    "errors": (
        "Conflict",
        "Forbidden",
        "InvalidInput",
        "JobQError",
        "Misconfigured",
        "NotFound",
        "TooMany",
        "Unavailable",
    ),
    "models": ("Attempt", "Job", "LogLine", "Outcome", "Page", "Workflow", "WorkflowStatus"),
    "plugins": ("Context", "Kind"),
    "retry": ("RetryPolicy",),
    "schedule": ("Cron", "Every"),
    "settings": ("Settings",),
    "specs": ("Container", "Heartbeat", "Spec"),
    "states": ("Reason", "Status", "Trigger"),
    "sync": ("SourceSpec", "Sync", "TargetSpec"),
}
_MODULE_OF = {name: module for module, names in _ADDRESS.items() for name in names}

__all__ = [
    "Attempt", "Conflict", "Container", "Context", "Cron", "Definition", "Every", "Forbidden", "Heartbeat",
    "InvalidInput", "Job", "JobQ", "JobQError", "JobRequest", "Kind", "LogLine", "Misconfigured", "NotFound",
    "Outcome", "Page", "Reason", "RetryPolicy", "Settings", "SourceSpec", "Spec", "Status", "Sync", "TargetSpec",
    "TooMany", "Trigger", "Unavailable", "Workflow", "WorkflowStatus",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load what is asked for, when it is asked for: importing jobq alone costs next to nothing."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jobq' has no attribute {name!r}")
    return getattr(import_module(f"jobq.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
