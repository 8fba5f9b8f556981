"""The words of other systems, and which of our states each of them means.

People come from integration platforms, from schedulers that start containers and from hubs of file workflows. Their
words map onto ``status`` and ``reason`` without loss: two states that such a system tells apart never share a word.
Stages of lifecycle webhooks (``job.created`` …) are events, not states, and have their own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobq.states import REASONS, Reason, Status

State = tuple[Status, Reason]


@dataclass(frozen=True, slots=True)
class Meaning:
    """The states that a word stands for. ``reported``: only with (or only without) a structured report."""

    states: frozenset[State]
    reported: bool | None = None


Vocabulary = Mapping[str, Meaning]


def _all(*statuses: Status, but: frozenset[Reason] = frozenset()) -> frozenset[State]:
    return frozenset((status, reason) for status in statuses for reason in REASONS[status] - but)


def _just(status: Status, *reasons: Reason) -> frozenset[State]:
    return frozenset((status, reason) for reason in reasons)


INTEGRATION_PLATFORM: Vocabulary = {
    "pending": Meaning(_all(Status.PENDING, Status.QUEUED, but=frozenset({Reason.REQUEUED}))),
    "requeued": Meaning(_just(Status.PENDING, Reason.REQUEUED)),
    "processing": Meaning(_all(Status.RUNNING)),
    "completed": Meaning(_just(Status.COMPLETED, Reason.SUCCEEDED)),
    "skipped": Meaning(_just(Status.COMPLETED, Reason.SKIPPED)),
    "failed": Meaning(_all(Status.FAILED, but=frozenset({Reason.UNRESOLVED}))),
    "unresolved": Meaning(_just(Status.FAILED, Reason.UNRESOLVED)),
    "duplicate_aborted": Meaning(_just(Status.CANCELED, Reason.DUPLICATE)),
}
"""What an entity's export went through. It has no word for jobs that somebody canceled."""

CONTAINER_SCHEDULER: Vocabulary = {
    "pending": Meaning(_all(Status.PENDING)),
    "queued": Meaning(_all(Status.QUEUED) | _just(Status.RUNNING, Reason.PREPARING)),
    "running": Meaning(_all(Status.RUNNING, but=frozenset({Reason.PREPARING}))),
    "completed": Meaning(_all(Status.COMPLETED)),
    "failed": Meaning(_all(Status.FAILED)),
    "canceled": Meaning(_all(Status.CANCELED)),
}
""""queued" there is: picked up, and awaiting the start of its container."""

FILE_HUB_JOB: Vocabulary = {
    "Pending": Meaning(
        _all(Status.PENDING, Status.QUEUED, but=frozenset({Reason.PAUSED}))
        | _just(Status.RUNNING, Reason.PREPARING, Reason.EXECUTING)
    ),
    "Started": Meaning(_just(Status.RUNNING, Reason.FANNED_OUT)),
    "Pausing": Meaning(_just(Status.RUNNING, Reason.PAUSING)),
    "Paused": Meaning(_just(Status.RUNNING, Reason.PAUSED) | _just(Status.PENDING, Reason.PAUSED)),
    "Dequeuing": Meaning(_just(Status.RUNNING, Reason.DEQUEUING)),
    "Success": Meaning(_all(Status.COMPLETED)),
    "Failure": Meaning(_all(Status.FAILED)),
    "Cancelled": Meaning(_all(Status.CANCELED)),
}
"""A job there fans out: while it discovers its tasks (we: RUNNING·executing, it reads) it is still "Pending"."""

FILE_HUB_TASK: Vocabulary = {
    "Success": Meaning(_just(Status.COMPLETED, Reason.SUCCEEDED)),
    "Skipped": Meaning(_just(Status.COMPLETED, Reason.SKIPPED)),
    "Failure": Meaning(_all(Status.FAILED), reported=False),
    "Error": Meaning(_all(Status.FAILED), reported=True),
    "Cancelled": Meaning(_all(Status.CANCELED)),
}
"""How a task there ended. "Error" was captured and comes with a report of what was done; "Failure" has none."""

VOCABULARIES: Mapping[str, Vocabulary] = {
    "integration platform": INTEGRATION_PLATFORM,
    "container scheduler": CONTAINER_SCHEDULER,
    "file hub, job": FILE_HUB_JOB,
    "file hub, task": FILE_HUB_TASK,
}


def word_for(vocabulary: Vocabulary, status: Status, reason: Reason, *, reported: bool = False) -> str | None:
    """The one word for a job in this state; None: the vocabulary has none. ``reported``: it left a structured report."""
    for word, meaning in vocabulary.items():
        if (status, reason) in meaning.states and meaning.reported in (None, reported):
            return word
    return None
