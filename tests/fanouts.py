"""Fan-outs as tests of the store drive them: SYNC jobs, their batches, their children and the scheduler's settling."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from jobq.mapping import content_hash
from jobq.models import Attempt, FanOut, Job, Outcome, Replicated
from jobq.retry import OF_CHILDREN
from jobq.states import Reason
from jobq.store import control, exports, fanin, fanout, jobs, listing, promote, settle
from jobq.store.claim import TAKEN, Claimed, with_data
from jobq.store.entities import Content
from jobq.store.fanout import Added, ChildPolicy, Owner, Sifted, TargetPlan
from jobq.store.record import Report
from jobq.store.tables import jobs as job_table
from jobq.store.tables import watermarks
from jobq.sync import TargetSpec
from tests.services import wait_until
from tests.stores import Store, ended

SLOTS = {"sync": 1000, "replication": 20_000}
POLICY = ChildPolicy(60.0, 3, 1_000_000)
Targets = Sequence[dict[str, Any]]
_TAKEN = list(Claimed.__dataclass_fields__)[:16]
ONE: Targets = ({"name": "crm"},)
CHAIN: Targets = ({"name": "crm"}, {"name": "erp", "after": ["crm"]})


def content(key: str, value: Any) -> Content:
    body = {"id": key, "value": value}
    return Content(key, content_hash(body), body)


def batch(entities: Mapping[str, Any] | Iterable[str], cursor: Any = None, **more: Any) -> Sifted:
    """These entities, each with its value (default: 1), as the source gives them."""
    found = entities if isinstance(entities, Mapping) else dict.fromkeys(entities, 1)
    return Sifted([content(key, value) for key, value in found.items()], cursor, **{"read": len(found), **more})


def keys(count: int) -> list[str]:
    return [f"k{number:05}" for number in range(count)]


@dataclass(frozen=True)
class Sync:
    """A SYNC that a worker executes."""

    job: Claimed
    worker: UUID
    targets: list[TargetPlan]

    @property
    def id(self) -> UUID:
        return self.job.id

    @property
    def owner(self) -> Owner:
        return Owner(self.job.id, self.job.attempt, self.worker)


class FanOuts(Store):
    """The store, and what makes fan-outs of it."""

    def __init__(self, database: Any) -> None:
        super().__init__(database)
        self.sweeps = settle.Sweeps()

    # --- the SYNC ----------------------------------------------------------------------------------------------------

    def enqueue_sync(self, targets: Targets = ONE, domain: str = "customers", **fields: Any) -> UUID:
        described = [{"type": "http", "config": {}, **target} for target in targets]
        spec = {"domain": domain, "source": {"type": "http", "config": {}}, "targets": described}
        defaults = {"kind": "SYNC", "queue": "sync", "timeout": None, "name": domain}
        return self.enqueue_one(**{**defaults, "spec": spec, **fields})

    def sync(self, worker: UUID, targets: Targets = ONE, *, opens: bool = True, **fields: Any) -> Sync:
        """A SYNC that runs, with its fan-out open."""
        return self.take_sync(worker, self.enqueue_sync(targets, **fields), targets, opens=opens)

    def take_sync(self, worker: UUID, job_id: UUID, targets: Targets = ONE, *, opens: bool = True) -> Sync:
        """This worker's next attempt of a SYNC, past the promoter: whose children wait goes on waiting."""
        assert self.job(job_id).status in {"PENDING", "QUEUED"}
        self.pretend(job_id, status="QUEUED", reason="dispatched", queued_at=0, next_send_at=60, due_at=None)
        # A promoter may have its row at this moment, and a claim passes over it.
        (job,) = wait_until(lambda: self.claim(worker, [job_id], "sync"))
        sync = Sync(job, worker, plans(targets))
        if opens:
            assert self.open(sync) is not None
        return sync

    def open(self, sync: Sync) -> Any:
        return self.do(fanout.open_fanout, sync.owner, sync.job.spec["domain"], sync.targets)

    def add_batch(self, sync: Sync, found: Any, limit: int | None = None) -> Added | None:
        """Store a batch: a ``Sifted``, or what ``batch`` takes."""
        policy = POLICY if limit is None else ChildPolicy(60.0, 3, limit)
        sifted = found if isinstance(found, Sifted) else batch(found)
        return self.do(fanout.add_batch, sync.owner, sifted, sync.targets, policy)

    def added(self, sync: Sync, found: Any) -> Added:
        done = self.add_batch(sync, found)
        assert done is not None
        return done

    def end_reading(self, sync: Sync, state: Any = None) -> bool:
        return self.do(fanout.end_reading, sync.owner, state=state, keep_state=True)

    def park(self, sync: Sync, outcome: Outcome | None = None, **report: Any) -> set[UUID]:
        """What the worker says when it needs to do no more: it lives on beside its children."""
        return self.end(sync.worker, sync.job, outcome or Outcome.fanned_out(), **report)

    def fanned_out(self, worker: UUID, found: Any, targets: Targets = ONE, **fields: Any) -> Sync:
        """A SYNC that has read these entities, and lives on beside its children."""
        sync = self.sync(worker, targets, **fields)
        self.added(sync, found)
        assert self.end_reading(sync)
        assert self.park(sync) == {sync.id}
        return sync

    def settle(self) -> None:
        """The scheduler's rounds, until there is nothing more to do."""
        for _ in range(200):
            if not self.do(settle.settle, self.sweeps).moved:
                return
        raise AssertionError("the scheduler finds no end")

    def pause(self, job_id: UUID) -> None:
        self.do(control.pause, None, job_id, "ann")

    def resume(self, job_id: UUID) -> None:
        self.do(control.resume, None, job_id, "ann")

    # --- children ----------------------------------------------------------------------------------------------------

    def children(self, sync: Sync | UUID) -> list[Job]:
        """In the order in which they were made."""
        only = listing.JobFilter(parent_id=sync if isinstance(sync, UUID) else sync.id)
        return self.look(listing.list_page, None, only, before=None, limit=100_000, patience=60).jobs[::-1]

    def child(self, sync: Sync | UUID, key: str, target: str = "crm") -> Job:
        (found,) = [job for job in self.children(sync) if (job.entity_key, job.target) == (key, target)]
        return found

    def child_states(self, sync: Sync | UUID) -> Counter[str]:
        return Counter(f"{job.status}·{job.reason}" for job in self.children(sync))

    def take_children(self, worker: UUID, at_most: int = 10_000) -> list[Claimed]:
        """Promote what may go, and claim it."""
        self.promote()
        return self.claim_waiting(worker, at_most, "replication")

    def running_children(self, sync: Sync | None, worker: UUID) -> list[Claimed]:
        """The children that this worker has in hand."""
        with self.database.read() as conn:
            query = sa.select(*(job_table.c[name] for name in TAKEN)).where(
                job_table.c.worker_id == worker, job_table.c.entity_key.is_not(None)
            )
            rows = conn.execute(query if sync is None else query.where(job_table.c.parent_id == sync.id)).all()
            return with_data(conn, rows)

    def write(self, worker: UUID, *children: Claimed, what: str | None = None) -> set[UUID]:
        """The targets take these entities."""
        return self.record(worker, *(delivered(child, what) for child in children))

    def run_children(self, worker: UUID) -> list[Claimed]:
        """All children that can be executed are, one after another, and their targets take them."""
        done: list[Claimed] = []
        while taken := self.take_children(worker):
            assert self.write(worker, *taken) == {child.id for child in taken}
            done += taken
        return done

    def finish_all(self, worker: UUID) -> list[Claimed]:
        """Children run, and the scheduler settles, until nothing moves any more."""
        done: list[Claimed] = []
        while True:
            self.settle()
            taken = self.run_children(worker)
            self.settle()
            if not taken:
                return done
            done += taken

    def wake_all(self) -> None:
        """Whatever waits for its time need not wait any longer."""
        self.execute("UPDATE jobq_jobs SET due_at = created_at WHERE due_at IS NOT NULL")
        self.do(promote.wake)

    # --- what there is -----------------------------------------------------------------------------------------------

    def counts(self, sync: Sync | UUID) -> FanOut:
        return self.look(exports.fanout, sync if isinstance(sync, UUID) else sync.id)

    def by_target(self, sync: Sync) -> dict[str, fanin.TargetCounts]:
        return {each.target: each for each in self.look(fanin.counts, sync.id)}

    def last_attempt(self, job_id: UUID) -> Attempt:
        return self.attempts(job_id)[-1]

    def marks(self, target: str = "crm") -> dict[str, int]:
        """What the target has: entity → version."""
        with self.database.read() as conn:
            query = sa.select(watermarks.c.key, watermarks.c.version).where(watermarks.c.target == target)
            return {row.key: row.version for row in conn.execute(query)}

    def versions(self) -> dict[str, int]:
        with self.database.read() as conn:
            return {row.key: row.version for row in conn.execute(sa.text("SELECT key, version FROM jobq_entities"))}

    def live_twins(self) -> int:
        """(entity, target) pairs that two jobs in flight write to at once."""
        with self.database.read() as conn:
            twins = (
                sa.select(job_table.c.entity_key)
                .where(job_table.c.entity_key.is_not(None), job_table.c.status.in_(["QUEUED", "RUNNING"]))
                .group_by(job_table.c.tenant, job_table.c.domain, job_table.c.target, job_table.c.entity_key)
                .having(sa.func.count() > 1)
            )
            return len(conn.execute(twins).all())


def plans(targets: Targets) -> list[TargetPlan]:
    """As ``workers.plan`` makes them."""
    found = [TargetSpec.model_validate({"type": "http", "config": {}, **target}) for target in targets]
    return [TargetPlan(each.name, each.rules, tuple(each.after), each.concurrency) for each in found]


def rules_of(store: FanOuts, child: Claimed) -> str:
    """The fingerprint of the child's target, as its own SYNC has it."""
    assert child.parent_id is not None
    spec = store.look(jobs.get_data, child.parent_id).spec
    return next(plan.rules for plan in plans(spec["targets"]) if plan.name == child.target)


def place(child: Claimed) -> tuple[str, str]:
    assert child.target is not None
    return child.tenant, child.target


def delivered(child: Claimed, what: str | None = None, rules: str | None = None) -> Report:
    """The target has the entity as it was when the child began; default: "success", or "updated"."""
    assert child.payload is not None
    assert child.domain is not None
    assert child.target is not None
    assert child.entity_key is not None
    what = what or ("success" if child.payload.mark_version is None else "updated")
    mark = Replicated(
        child.tenant, child.domain, child.target, child.entity_key, child.payload.version, rules or RULES, what
    )
    if what == "skipped":
        return ended(child, Outcome.skipped("filtered", replicated=mark), retry=OF_CHILDREN)
    result = {"report": what, "external_id": None, "version": child.payload.version}
    return ended(child, Outcome.succeeded(result, target=place(child), replicated=mark), retry=OF_CHILDREN)


RULES = plans(ONE)[0].rules
"""The fingerprint of a target without conditions and mapping."""


def refused(child: Claimed, **more: Any) -> Report:
    """The target says no, for good."""
    fields = {"error_class": "InvalidPayload", "retry": False, "target": place(child), **more}
    return ended(child, Outcome.failed("refused", **fields), retry=OF_CHILDREN)


def not_now(child: Claimed, seconds: float = 60.0) -> Report:
    """The target asks for patience."""
    return ended(child, Outcome.requeued(timedelta(seconds=seconds), "429", target=place(child)), retry=OF_CHILDREN)


def too_large() -> Outcome:
    """What a SYNC says whose limit of children was reached."""
    return Outcome.failed("too many", error_class=fanout.TOO_LARGE, reason=Reason.INVALID, retry=False)


def adds_up(counts: FanOut) -> bool:
    """The counts of the children make up their total, and none is negative."""
    parts = [
        counts.pending, counts.queued, counts.running, counts.completed, counts.skipped, counts.failed, counts.canceled
    ]  # fmt: skip
    return sum(parts) == counts.total and min(parts) >= 0


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What each of them returned; they begin in the same moment. What one raises is raised."""

    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        barrier.wait(10)
        return work()

    with ThreadPoolExecutor(len(works)) as threads:
        return [future.result(60) for future in [threads.submit(run, work) for work in works]]
