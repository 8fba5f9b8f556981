"""What this process counts of its own work, for whoever scrapes it: ``jobq.exposition`` shows it, docs/observability.md
explains it.

Counting is arithmetic in memory, a batch at a time: the hot path pays less than a microsecond for a job, whether
somebody scrapes or not. Values of labels are bounded. Kinds, statuses, reasons and routes are few; queues are named by
whoever enqueues, so that those beyond the first thousand are counted together.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter as Count
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

    from jobq.store.claim import Claimed
    from jobq.store.record import Report

MOST_SERIES = 1000
"""Of a family: beyond it, queues are counted as ``OTHER``."""
OTHER = "(other)"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Family:
    """A name, and a value for each combination of its labels. ``name``: without ``_total``, for counters."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._lock = threading.Lock()
        self._queue = labels.index("queue") if "queue" in labels else None
        FAMILIES.append(self)

    def _place(self, known: Collection[Sequence[str]], values: tuple[str, ...]) -> tuple[str, ...]:
        if len(known) < MOST_SERIES or values in known or self._queue is None:
            return values
        return (*values[: self._queue], OTHER, *values[self._queue + 1 :])


class Counter(Family):
    """Only grows. One without labels says 0 from the start."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        super().__init__(name, text, *labels)
        self._totals: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, number: float = 1, *values: str) -> None:
        """So many more."""
        self.add_all({values: number})

    def add_all(self, counts: Mapping[tuple[str, ...], float]) -> None:
        """A batch of many."""
        with self._lock:
            for values, number in counts.items():
                place = self._place(self._totals, values)
                self._totals[place] = self._totals.get(place, 0.0) + number

    def totals(self) -> dict[tuple[str, ...], float]:
        """As it stands now."""
        with self._lock:
            return dict(self._totals)


class Histogram(Family):
    """How often a value was at most each of its bounds."""

    def __init__(self, name: str, text: str, *labels: str, bounds: Sequence[float]) -> None:
        super().__init__(name, text, *labels)
        self.bounds = tuple(bounds)
        self._series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def observe(self, value: float, *values: str) -> None:
        """One value."""
        self.observe_all([value], *values)

    def observe_all(self, found: Iterable[float], *values: str) -> None:
        """A batch of values, all with the same labels."""
        with self._lock:
            place = self._place(self._series, values)
            series = self._series.get(place)
            if series is None:
                series = self._series[place] = ([0] * (len(self.bounds) + 1), [0.0])
            counts, total = series
            for value in found:
                counts[bisect_left(self.bounds, value)] += 1
                total[0] += value

    def series(self) -> dict[tuple[str, ...], tuple[list[int], float]]:
        """As it stands now: how many values lie within each bound (the last: beyond all), and their sum."""
        with self._lock:
            return {values: (list(counts), total[0]) for values, (counts, total) in self._series.items()}


FAMILIES: list[Family] = []

# --- jobs ------------------------------------------------------------------------------------------------------------

JOBS = Counter("jobq_jobs", "Jobs that this process ended.", "kind", "queue", "status", "reason")
DURATION = Histogram(
    "jobq_job_duration_seconds", "From the claim of an attempt to its outcome, of attempts that were recorded here.",
    "kind", "queue", bounds=_SECONDS,
)  # fmt: skip
WAIT = Histogram(
    "jobq_job_queue_wait_seconds", "From the moment a job was ready to its claim by this worker.", "kind", "queue",
    bounds=_SECONDS,
)  # fmt: skip

# --- workers ---------------------------------------------------------------------------------------------------------

CLAIM_BATCH = Histogram("jobq_claim_batch_jobs", "Jobs of one claim.", "queue", bounds=(0.0, *_SIZES))
RECORD_BATCH = Histogram("jobq_record_batch_jobs", "Outcomes of one recording transaction.", bounds=_SIZES)
RECORD_SECONDS = Histogram("jobq_record_seconds", "Duration of a recording transaction.", bounds=_SHORT)
REFUSED = Counter("jobq_outcomes_refused", "Outcomes of attempts that had another owner or an end by then.")
DROPPED = Counter("jobq_messages_dropped", "Messages that were no hints of this version.")
PASSED_ON = Counter("jobq_passed_on_jobs", "Jobs of hints that found no room, told to the next worker.", "queue")
GONE = Counter("jobq_workers_gone", "Workers that were declared dead because their process was seen to be gone.")

# --- schedulers ------------------------------------------------------------------------------------------------------

LEASES_EXPIRED = Counter("jobq_leases_expired", "Workers that were declared dead because their lease ran out.")
RECOVERED = Counter("jobq_jobs_recovered", "Running jobs of dead workers that were ended or put back.")
PROMOTED = Counter("jobq_promoted_jobs", "Jobs that were promoted.", "queue")
PROMOTION_SECONDS = Histogram("jobq_promotion_seconds", "Duration of a round of promotion.", bounds=_SHORT)
SLOT_JOBS = Counter("jobq_schedule_jobs", "Jobs that were made for slots of schedules.")
HINTED = Counter("jobq_hinted_jobs", "Jobs whose hints were published.", "queue")
PUBLISH_FAILURES = Counter("jobq_publish_failures", "Times that the broker refused hints, or was away.")
HINTS_DROPPED = Counter("jobq_hints_dropped", "Hints that were not published because the broker was slow or away.")
WEBHOOKS = Counter("jobq_webhook_deliveries", "Requests of webhooks that were recorded, by outcome.", "outcome")

# --- everybody -------------------------------------------------------------------------------------------------------

DATABASE_ERRORS = Counter("jobq_database_errors", "Errors of the database, by cause.", "cause")
LOOP_FAILURES = Counter("jobq_loop_failures", "Rounds of background loops that failed.", "loop")
REQUESTS = Counter("jobq_api_requests", "Requests that the API answered.", "method", "route", "status")
REQUEST_SECONDS = Histogram(
    "jobq_api_request_seconds", "From a request to the end of its answer.", "route", bounds=_SHORT
)


# --- what the hot path counts ------------------------------------------------------------------------------------------


def ended(rows: Iterable[Any]) -> None:
    """Jobs have ended: rows with ``kind``, ``queue``, ``status`` and ``reason``."""
    JOBS.add_all(Count((row.kind, row.queue, row.status, row.reason) for row in rows))


def ended_at_once(number: int, kind: str, queue: str, reason: str) -> None:
    """So many jobs were only recorded: they were canceled before they could wait."""
    JOBS.add(number, kind, queue, "CANCELED", reason)


def claimed(queue: str, jobs: Sequence[Claimed]) -> None:
    """A claim got these jobs."""
    CLAIM_BATCH.observe(len(jobs), queue)
    waits = defaultdict[str, list[float]](list)
    for job in jobs:
        if job.ready_at is not None:
            waits[job.kind].append(max((job.started_at - job.ready_at).total_seconds(), 0.0))
    for kind, its in waits.items():
        WAIT.observe_all(its, kind, queue)


def recorded(reports: Sequence[Report], written: Collection[UUID], seconds: float) -> None:
    """A transaction recorded those of the reports that are in ``written``."""
    RECORD_SECONDS.observe(seconds)
    RECORD_BATCH.observe(len(reports))
    durations = defaultdict[tuple[str, str], list[float]](list)
    for report in reports:
        if report.id in written:
            durations[report.kind, report.queue].append(report.seconds)
    for place, its in durations.items():
        DURATION.observe_all(its, *place)
    if len(written) < len(reports):
        REFUSED.add(len(reports) - len(written))
