"""The store as tests use it: each verb is a transaction of its own, on a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa

from jobq.models import Attempt, Job, Outcome, Step, Workflow
from jobq.retry import RetryPolicy
from jobq.states import Desired
from jobq.store import claim as claims
from jobq.store import control, jobs, listing, materialize, overlap, promote, workers, workflows
from jobq.store import record as records
from jobq.store import why as reasons
from jobq.store.claim import Claimant, Claimed
from jobq.store.database import Database
from jobq.store.record import Report
from jobq.store.sql import later
from jobq.store.tables import jobs as job_table
from jobq.store.tables import workflows as workflow_table

Result = TypeVar("Result")

QUEUE = "noop"
NO_JITTER = RetryPolicy(max_attempts=3, jitter=0, retry_lost=True)
PLENTY = {QUEUE: 1000}


def new_job(**fields: Any) -> jobs.NewJob:
    """A job that was checked, as the door hands it to the store."""
    defaults: dict[str, Any] = {
        "tenant": "acme", "kind": "NOOP", "name": "nightly", "queue": QUEUE, "spec": {}, "priority": 4,
        "max_attempts": 3, "timeout": 60.0,
    }  # fmt: skip
    return jobs.NewJob(**{**defaults, "id": jobs.new_id(), **fields})


def identity(**fields: Any) -> workers.Identity:
    """A worker process of its own, on the machine "here"."""
    worker_id = jobs.new_id()
    defaults: dict[str, Any] = {
        "id": worker_id, "name": f"here:{worker_id.hex[-6:]}", "hostname": "here", "pid": 4711, "boot_id": "boot",
        "pid_namespace": "pid:[1]", "process_start": "100", "version": "0", "queues": PLENTY,
    }  # fmt: skip
    return workers.Identity(**{**defaults, **fields})


def failed(message: str = "it broke", **more: Any) -> Outcome:
    return Outcome.failed(message, **more)


class Store:
    """A database and the verbs that tests need, in the words of the design."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.dialect = database.dialect
        self.cursor = promote.Cursor()

    def do(self, verb: Callable[..., Result], *args: Any, **kw: Any) -> Result:
        """A verb of the store in a writing transaction of its own."""
        return self.database.run(lambda conn: verb(conn, *args, **kw))

    def look(self, verb: Callable[..., Result], *args: Any, **kw: Any) -> Result:
        """A verb that only reads."""
        with self.database.read() as conn:
            return verb(conn, *args, **kw)

    def execute(self, statement: str, **parameters: Any) -> int:
        """Plain SQL, as somebody at the database's console would type it."""
        with self.database.begin() as conn:
            return int(conn.execute(sa.text(statement), parameters).rowcount)

    def count(self, table: str, where: str = "1 = 1") -> int:
        with self.database.read() as conn:
            return int(conn.scalar(sa.text(f"SELECT count(*) FROM {table} WHERE {where}")) or 0)

    # --- jobs --------------------------------------------------------------------------------------------------------

    def enqueue(self, count: int = 1, **fields: Any) -> list[UUID]:
        """So many equal jobs."""
        return self.add(*(new_job(**fields) for _ in range(count)))

    def enqueue_one(self, **fields: Any) -> UUID:
        return self.enqueue(1, **fields)[0]

    def add(self, *new: jobs.NewJob) -> list[UUID]:
        return self.do(jobs.enqueue, new)

    def job(self, job_id: UUID) -> Job:
        return self.look(jobs.get, None, job_id)

    def state(self, job_id: UUID) -> str:
        """ "PENDING·ready" """
        job = self.job(job_id)
        return f"{job.status}·{job.reason}"

    def states(self, ids: Iterable[UUID]) -> list[str]:
        return [self.state(job_id) for job_id in ids]

    def row(self, job_id: UUID) -> Any:
        """Every column, also those that applications do not see."""
        with self.database.read() as conn:
            return conn.execute(sa.select(job_table).where(job_table.c.id == job_id)).one()

    def attempts(self, job_id: UUID) -> list[Attempt]:
        return self.look(jobs.list_attempts, job_id)

    def pretend(self, job_id: UUID, **columns: Any) -> None:
        """Write columns past every rule; a number of seconds for an instant counts from now."""
        self._pretend(job_table, job_id, columns)

    def _pretend(self, table: sa.Table, row_id: UUID, columns: dict[str, Any]) -> None:
        values = {
            name: later(value) if name.endswith(("_at", "_until")) and isinstance(value, int | float) else value
            for name, value in columns.items()
        }
        with self.database.begin() as conn:
            assert conn.execute(sa.update(table).where(table.c.id == row_id).values(**values)).rowcount == 1

    def why(self, job_id: UUID) -> str:
        return self.look(reasons.why, None, job_id)

    # --- the way of a job --------------------------------------------------------------------------------------------

    def worker(self, slots: dict[str, int] | None = None, *, lease: float = 300.0, **fields: Any) -> UUID:
        """A live worker."""
        me = identity(queues=slots or PLENTY, **fields)
        self.do(workers.register, me, lease)
        return me.id

    def promote(self, ended_lately: dict[str, int] | None = None) -> dict[str, list[UUID]]:
        """One tick of the promoter: the ids by queue."""
        return self.do(promote.promote, ended_lately or {}, self.cursor).batches

    def claim(self, worker: UUID, ids: Iterable[UUID], queue: str = QUEUE, **claimant: Any) -> list[Claimed]:
        return self.do(claims.claim, Claimant(worker, **claimant), queue, list(ids))

    def claim_waiting(self, worker: UUID, room: int, queue: str = QUEUE) -> list[Claimed]:
        return self.do(claims.claim_waiting, Claimant(worker), queue, room)

    def queued(self, count: int = 1, **fields: Any) -> list[UUID]:
        """So many jobs, promoted. There must be a worker with room for them."""
        ids = self.enqueue(count, **fields)
        promoted = [job_id for batch in self.promote().values() for job_id in batch]
        assert set(ids) <= set(promoted), "there is no room: the test lacks a worker"
        return ids

    def running(self, worker: UUID, count: int = 1, *, host: str | None = None, **fields: Any) -> list[Claimed]:
        """So many jobs, executed by this worker; with ``host`` their work lives there and can be recovered."""
        ids = self.queued(count, **fields)
        hosted = (new_job(**fields).kind,) if host else ()
        claimed = self.claim(worker, ids, new_job(**fields).queue, host=host, hosted=hosted)
        assert [job.id for job in claimed] == sorted(ids)
        return claimed

    def running_one(self, worker: UUID, **fields: Any) -> Claimed:
        return self.running(worker, 1, **fields)[0]

    def again(self, worker: UUID, job_id: UUID) -> Claimed:
        """The next attempt of a job that waits for it."""
        self.pretend(job_id, due_at=-1)
        self.do(promote.wake)
        self.promote()
        (claimed,) = self.claim(worker, [job_id])
        return claimed

    def record(self, worker: UUID, *reports: Report) -> set[UUID]:
        return self.do(records.record, worker, reports)

    def end(self, worker: UUID, job: Claimed, outcome: Outcome | None = None, **report: Any) -> set[UUID]:
        """Record one outcome; None: succeeded."""
        return self.record(worker, ended(job, outcome, **report))

    def cancel(self, job_id: UUID, actor: str = "ann") -> None:
        self.do(control.cancel, None, job_id, actor)

    # --- workflows ---------------------------------------------------------------------------------------------------

    def workflow(self, **fields: Any) -> Workflow:
        defaults: dict[str, Any] = {
            "name": f"flow {jobs.new_id().hex[-8:]}", "kind": "NOOP", "spec": {}, "queue": QUEUE, "priority": 4,
            "misfire": "coalesce", "max_catch_up": 10, "overlap": "queue", "max_attempts": 1, "retry": {},
            "max_consecutive_job_failures_allowed": 3,
        }  # fmt: skip
        tenant = fields.pop("tenant", "acme")
        return self.do(workflows.create, jobs.new_id(), tenant, {**defaults, **fields}, "ann")

    def flow(self, workflow: Workflow | UUID) -> Workflow:
        """The workflow as it is now."""
        return self.look(workflows.get, None, workflow if isinstance(workflow, UUID) else workflow.id)

    def due(self, workflow: Workflow, seconds_ago: float, *, anchor: float | None = None) -> datetime:
        """Set the next slot so many seconds back (and the anchor; default: one interval before it). The slot."""
        assert workflow.interval is not None
        interval = workflow.interval.total_seconds()
        slot = self.look(workers.database_now) - timedelta(seconds=seconds_ago)
        before = slot - timedelta(seconds=anchor if anchor is not None else interval)
        self._pretend(workflow_table, workflow.id, {"next_fire_at": slot, "anchor_at": before})
        return slot

    def fire_at(self, workflow: Workflow, slot: datetime) -> None:
        """Set the next slot."""
        self._pretend(workflow_table, workflow.id, {"next_fire_at": slot})

    def materialize(self) -> materialize.Materialized:
        return self.do(materialize.materialize)

    def jobs_of(self, workflow: Workflow) -> list[Job]:
        """Its jobs, oldest first."""
        page = self.look(
            listing.list_page, None, listing.JobFilter(workflow_id=workflow.id), before=None, limit=1000, patience=60
        ).jobs
        return page[::-1]

    def job_of(self, workflow: Workflow, **fields: Any) -> jobs.NewJob:
        """A MANUAL job of the workflow, about to be inserted."""
        defaults = {"workflow_id": workflow.id, "generation": workflow.generation, "max_attempts": 1}
        return new_job(**{**defaults, **fields})

    def release_blocked(self) -> int:
        return self.do(overlap.release_blocked)


def ended(job: Claimed, outcome: Outcome | None = None, **more: Any) -> Report:
    """The report on an attempt; None: succeeded."""
    fields: dict[str, Any] = {"retry": NO_JITTER, "steps": [], **more}
    return Report(job.id, job.attempt, outcome or Outcome.succeeded(), job.started_at, **fields)


def attempt(job: Claimed, number: int) -> Claimed:
    """The same job as the owner of another attempt knows it."""
    return replace(job, attempt=number)


def wanted(store: Store, job_id: UUID) -> Desired:
    return store.job(job_id).desired


def ago(**units: float) -> datetime:
    return datetime.now(UTC) - timedelta(**units)


def ahead(**units: float) -> datetime:
    return datetime.now(UTC) + timedelta(**units)


STEP = Step("connect", 0.5, 0.25)
