"""The events that webhooks tell of: their names, the patterns that choose among them, and the body that is sent. Pure.

The names are a contract with those who listen: new ones come, none goes. Which transition is which event is written
where the transition is (``jobq.store.webhook_events``).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from jobq.errors import InvalidInput

JOB = (
    "job.created", "job.queued", "job.started", "job.requeued", "job.completed", "job.failed", "job.canceled",
)  # fmt: skip
STAGES = ("sync.started", "sync.succeeded", "sync.failed", "export.started", "export.failed")
TYPES = (*JOB, *STAGES, "workflow.terminated")
TEST = "webhook.test"
"""Sent by ``JobQ.webhooks.test`` only, and to that endpoint, whatever it listens to."""
_MOST_PATTERNS = 50


@dataclass(frozen=True, slots=True)
class Happened:
    """An event as it is stored: what, and how the job (or the workflow) was at that moment."""

    subject_id: UUID
    number: int
    """Grows by one with each event of a job; of a workflow's end it is the generation that ended."""
    tenant: str
    type: str
    at: datetime
    attempt: int
    status: str
    reason: str
    message: str | None
    error_class: str | None
    traceparent: str | None = None
    """Of the job: the trace that its webhooks belong to."""

    @property
    def webhook_id(self) -> str:
        """The same at each delivery of this event, to whomever: what a receiver tells repetitions by."""
        return f"evt_{self.subject_id.hex}_{self.number}"

    @property
    def stage(self) -> str:
        """The name in the words of integration platforms: JOB_CREATED, SYNC_STARTED, …"""
        return self.type.replace(".", "_").upper()


def chosen(patterns: Iterable[str], pointer: str = "/events") -> tuple[str, ...]:
    """The types that these patterns (``job.*``, ``*``) mean, in the order of ``TYPES``; InvalidInput for one without."""
    asked = list(patterns)
    if len(asked) > _MOST_PATTERNS:
        raise InvalidInput(f"An endpoint has {_MOST_PATTERNS} patterns of events at most.", pointer=pointer)
    found: set[str] = set()
    for number, pattern in enumerate(asked):
        matching = {name for name in TYPES if fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            raise InvalidInput(
                f"{pattern[:100]!r} matches no event.", code="unknown_event", pointer=f"{pointer}/{number}",
                hint=f"Events: {', '.join(TYPES)}; or patterns such as job.*",
            )  # fmt: skip
        found |= matching
    return tuple(name for name in TYPES if name in found)


def words(types: Iterable[str]) -> str:
    """The types as the store keeps them: a space around each, so that one LIKE finds one."""
    return "".join(f" {name}" for name in types) + " "


def body(event: Happened, data: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent: the envelope of Standard Webhooks (type, timestamp, data), and which event of its job it is."""
    return {
        "type": event.type,
        "timestamp": event.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "id": event.webhook_id,
        "number": event.number,
        "stage": event.stage,
        "data": dict(data),
    }


def type_of_end(status: str) -> str:
    """The event of a terminal status."""
    return f"job.{status.lower()}"
