"""All that a database says, at one moment of a history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from jobq.store.database import Database
from jobq.store.tables import after, attempts, jobs, queues, tenants, workers, workflows

Place = tuple[str, str]
"""What has a limit: ("queue", name), ("tenant", name) or ("workflow", id in hex)."""


@dataclass(frozen=True)
class Picture:
    now: datetime
    jobs: dict[UUID, Any]
    attempts: dict[tuple[UUID, int], Any]
    waits: set[tuple[UUID, UUID]]
    """(job, upstream)"""
    workers: dict[UUID, Any]
    flows: dict[UUID, Any]
    queues: dict[str, Any]
    tenants: dict[str, Any]

    def live(self) -> Iterator[Any]:
        return (job for job in self.jobs.values() if job.finished_at is None)

    def of(self, status: str, *reasons: str) -> list[Any]:
        return [job for job in self.jobs.values() if job.status == status and (not reasons or job.reason in reasons)]

    def automatic(self, flow_id: UUID) -> list[Any]:
        """The live jobs of a workflow's slots."""
        return [job for job in self.live() if job.workflow_id == flow_id and job.trigger == "AUTOMATIC"]

    def first_requeue(self, job_id: UUID) -> datetime:
        """When this job was first put back because of "not now"; now, if it never was."""
        requeues = [
            row.finished_at for row in self.attempts.values() if (row.job_id, row.outcome) == (job_id, "REQUEUED")
        ]
        return min(requeues, default=self.now)

    def is_held(self, job: Any) -> bool:
        """A person holds its queue, or the workflow whose schedule made it."""
        flow = self.flows[job.workflow_id].status if job.trigger == "AUTOMATIC" else None
        return self.paused(job.queue) or flow == "PAUSED"

    def takes_jobs(self, worker: Any) -> bool:
        return worker.dead_at is None and worker.draining_at is None and worker.lease_until > self.now

    def slots(self) -> Counter[str]:
        """Worker slots by queue."""
        slots: Counter[str] = Counter()
        for worker in self.workers.values():
            slots.update(worker.queues if self.takes_jobs(worker) else {})
        return slots

    def in_flight(self) -> Counter[Place]:
        counts: Counter[Place] = Counter()
        for job in self.jobs.values():
            if job.status in {"QUEUED", "RUNNING"}:
                counts.update(places(job))
        return counts

    def limits(self) -> dict[Place, int]:
        """Those that are set."""
        every = {
            **{("queue", name): row.limit for name, row in self.queues.items()},
            **{("tenant", name): row.limit for name, row in self.tenants.items()},
            **{("workflow", flow.id.hex): flow.concurrency for flow in self.flows.values()},
        }
        return {place: limit for place, limit in every.items() if limit is not None}

    def paused(self, queue: str) -> bool:
        return queue in self.queues and self.queues[queue].paused_at is not None


def places(job: Any) -> list[Place]:
    found = [("queue", job.queue), ("tenant", job.tenant)]
    return found if job.workflow_id is None else [*found, ("workflow", job.workflow_id.hex)]


def take(database: Database, now: datetime) -> Picture:
    with database.read() as conn:
        read = {table.name: conn.execute(sa.select(table)).all() for table in _TABLES}
    return Picture(
        now,
        {row.id: row for row in read["jobq_jobs"]},
        {(row.job_id, row.attempt): row for row in read["jobq_attempts"]},
        {(row.job_id, row.upstream_id) for row in read["jobq_after"]},
        {row.id: row for row in read["jobq_workers"]},
        {row.id: row for row in read["jobq_workflows"]},
        {row.name: row for row in read["jobq_queues"]},
        {row.name: row for row in read["jobq_tenants"]},
    )


_TABLES = (jobs, attempts, after, workers, workflows, queues, tenants)
