"""What all rules share: the store, what is expected of the next step, and the comparison with what happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from unittest import mock
from uuid import UUID

import pytest
import sqlalchemy as sa
import uuid_utils.compat
from hypothesis.stateful import RuleBasedStateMachine, invariant

from jobq.client import JobQ
from jobq.errors import Conflict
from jobq.retry import RetryPolicy, stored_policy
from jobq.settings import Settings
from jobq.store.claim import Claimed
from jobq.store.database import Database
from jobq.store.sql import POSTGRESQL
from jobq.store.tables import job_data, metadata
from tests import plugins
from tests.machine import laws
from tests.machine.clock import START, Clock
from tests.machine.fates import INITIAL, Ending, Fate, over
from tests.machine.picture import Picture, take
from tests.stores import Store

Item = TypeVar("Item")
TENANTS = ("acme", "beta")
QUEUES = ("noop", "slow")


class Stage:
    """A database for many histories, one after another."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.clock = Clock(self.database)
        self.store = Store(self.database)
        settings = Settings(database_url=url, plugins=plugins.EVERY)
        self.doors = {tenant: JobQ(url, tenant=tenant, actor="ann", settings=settings) for tenant in TENANTS}
        for door in self.doors.values():
            door.database = self.database
        if self.database.dialect == POSTGRESQL:
            with self.database.begin() as conn:
                for table in metadata.sorted_tables:
                    conn.execute(sa.text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = false)"))
        self.walked: Counter[tuple[str, str]] = Counter()
        """How often each edge was taken, in all histories."""
        self.steps = 0

    def clear(self) -> None:
        with self.database.begin() as conn:
            tables = [
                table for table in metadata.sorted_tables if table.name not in {"jobq_installation", "jobq_rolled"}
            ]
            if self.database.dialect == POSTGRESQL:
                # New files, which nobody vacuums: where rows lie decides between equals, and must not differ when the
                # same history is tried again.
                conn.execute(sa.text(f"TRUNCATE {', '.join(table.name for table in tables)}"))
            else:
                for table in tables:
                    conn.execute(table.delete())
            conn.execute(metadata.tables["jobq_rolled"].update().values(until=START - timedelta(days=1)))
        self.clock.set(START)
        self.store = Store(self.database)

    def close(self) -> None:
        self.clock.give_back()
        self.database.close()


@dataclass
class Hand:
    """A worker process: what it believes to hold. ``gone``: it will never say anything again."""

    id: UUID
    queues: dict[str, int]
    host: str | None
    held: dict[UUID, Claimed] = field(default_factory=dict)
    unheld: dict[UUID, int] = field(default_factory=dict)
    gone: bool = False


@dataclass
class Expected:
    """What the next step has to lead to, and nothing but that and what follows from it."""

    fates: dict[UUID, Fate] = field(default_factory=dict)
    born: dict[UUID, Fate] = field(default_factory=dict)
    slots: dict[tuple[UUID, Any], Fate] = field(default_factory=dict)
    endings: dict[tuple[UUID, int], Ending] = field(default_factory=dict)
    flows: dict[UUID, Fate] = field(default_factory=dict)
    order: list[UUID] = field(default_factory=list)
    """In which jobs ended, where that matters."""
    pruned: set[UUID] = field(default_factory=set)


class Ground(RuleBasedStateMachine):
    """The store, and a memory of all that was ever said and done."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage, self.clock, self.doors = stage, stage.clock, stage.doors
        stage.clear()
        self.store = stage.store
        self.ids = mock.patch.object(uuid_utils.compat, "uuid7", stage.clock.new_id)
        self.ids.start()
        self.expected = Expected()
        self.hands: list[Hand] = []
        self.claims: list[tuple[UUID, Claimed]] = []
        """Everything that was ever handed out, and to whom."""
        self.hints: list[tuple[str, tuple[UUID, ...]]] = []
        self.after: dict[UUID, frozenset[UUID]] = {}
        self.ends: dict[UUID, str] = {}
        """How jobs ended, also those that were deleted since."""
        self.requests: dict[tuple[str, str], tuple[str, UUID, Any]] = {}
        """By idempotency key: what was asked, the job that it made, and when."""
        self.waited: defaultdict[UUID, timedelta] = defaultdict(timedelta)
        """For how long jobs have been ready, without the time for which they were held."""
        self.forgotten: set[UUID] = set()
        """Jobs of which the record of interventions does not say for how long they were held."""
        self.last = self.look()

    def teardown(self) -> None:
        self.ids.stop()

    # --- picking -----------------------------------------------------------------------------------------------------

    @staticmethod
    def pick(things: Sequence[Item], number: int) -> Item:
        """The newest for 0, then older ones, round about."""
        return things[-1 - number % len(things)]

    def jobs(self, **only: Any) -> list[Any]:
        """The jobs that there were before this step, oldest first."""
        return [
            job
            for _, job in sorted(self.last.jobs.items())
            if all(getattr(job, name) == value for name, value in only.items())
        ]

    def live_hands(self) -> list[Hand]:
        return [hand for hand in self.hands if not hand.gone]

    def policy(self, job: Any) -> RetryPolicy:
        """How a job that exists is retried."""
        with self.stage.database.read() as conn:
            retry = conn.scalar(
                job_data.select().with_only_columns(job_data.c.retry).where(job_data.c.job_id == job.id)
            )
        policy = stored_policy(job.kind, retry)
        assert (policy.initial.total_seconds(), policy.factor, policy.jitter) == (INITIAL, 2, 0)
        return policy

    # --- time --------------------------------------------------------------------------------------------------------

    def let_pass(self, seconds: float) -> None:
        """The clock goes on, and what is ready (or becomes it meanwhile) waits."""
        until = self.clock.at + timedelta(seconds=seconds)
        for job in self.last.live():
            begins = max(job.due_at or self.clock.at, self.clock.at)
            if (is_ready(job) or job.due_at is not None) and begins < until and not self.last.is_held(job):
                self.waited[job.id] += until - begins
        self.clock.advance(seconds)

    # --- comparing ---------------------------------------------------------------------------------------------------

    def look(self) -> Picture:
        return take(self.stage.database, self.clock.at)

    @invariant()
    def check(self) -> None:
        """The step led to what it had to lead to, to what follows from that, and to nothing else."""
        before, now, expected = self.last, self.look(), self.expected
        laws.of_picture(now)
        laws.of_step(before, now)
        assert set(before.jobs) - set(now.jobs) == expected.pruned
        self.compare_flows(before, now)
        self.compare_born(before, now)
        for job_id, was in before.jobs.items():
            if job_id in now.jobs and was.finished_at is None:
                self.compare(was, now.jobs[job_id], now)
        self.compare_attempts(before, now)
        self.remember(before, now)
        self.check_after(now)
        self.last, self.expected = now, Expected()
        self.stage.steps += 1

    def compare(self, was: Any, job: Any, now: Picture) -> None:
        fate = self.expected.fates.get(job.id)
        if fate is None:
            assert was == job or self.follows(was, job, now), f"nobody did this: {was} → {job}"
            return
        ended = fate.get("status") == "PENDING" and job.trigger == "AUTOMATIC"
        if ended and now.flows[job.workflow_id].status == "TERMINATED":
            fate = {**fate, "due_at": None} | over("CANCELED", "workflow_terminated", now.now)
        self.match(job, fate)

    @staticmethod
    def match(row: Any, fate: Fate) -> None:
        found = {name: getattr(row, name) for name in fate}
        assert found == fate, f"{row}"

    def follows(self, was: Any, job: Any, now: Picture) -> bool:
        """What may happen to a job because something happened to another one."""
        changed = {name for name in job._fields if getattr(job, name) != getattr(was, name)}
        flow = now.flows.get(job.workflow_id)
        terminated = job.trigger == "AUTOMATIC" and flow is not None and flow.status == "TERMINATED"
        if job.status == "RUNNING":
            return changed == {"max_attempts"} and terminated and job.max_attempts == job.failures + 1
        if job.status == "PENDING":
            return (
                was.reason == "blocked"
                and changed <= {"reason", "ready_at", "due_at"}
                and job.reason in {"ready", "scheduled"}
                and (job.id in self.after or self.is_next(job, now))
            )
        if job.reason == "workflow_terminated":
            return terminated and job.finished_at == now.now
        return job.reason == "upstream_failed" and job.id in self.after and job.finished_at == now.now

    @staticmethod
    def is_next(job: Any, now: Picture) -> bool:
        """No other slot of its workflow is under way, and none that waits is older."""
        others = [other for other in now.automatic(job.workflow_id) if other.id != job.id]
        return all(other.reason == "blocked" and other.slot_at > job.slot_at for other in others)

    def compare_born(self, before: Picture, now: Picture) -> None:
        slots = dict(self.expected.slots)
        born = dict(self.expected.born)
        for job_id in sorted(now.jobs.keys() - before.jobs.keys()):
            job = now.jobs[job_id]
            fate = (
                slots.pop((job.workflow_id, job.slot_at), None) if job.slot_at is not None else born.pop(job_id, None)
            )
            assert fate is not None, f"nobody asked for {job}"
            self.match(job, {"attempt": 0, "failures": 0, "created_at": now.now, **fate})
        assert not slots, "slots have no jobs"
        assert not {job_id for job_id in born if job_id not in now.jobs}, "an accepted job is missing"

    def compare_attempts(self, before: Picture, now: Picture) -> None:
        new = {place: row for place, row in now.attempts.items() if place not in before.attempts}
        assert set(new) == set(self.expected.endings)
        for place, ending in self.expected.endings.items():
            row = new[place]
            assert Ending(row.outcome, bool(row.charged), row.worker_id) == ending
            assert row.finished_at == now.now

    # --- workflows ---------------------------------------------------------------------------------------------------

    def compare_flows(self, before: Picture, now: Picture) -> None:
        """Fields change as a verb said, and by the ends of jobs."""
        kept = ("status", "generation", "consecutive_failures", "next_fire_at", "anchor_at")
        for flow_id, flow in now.flows.items():
            was = before.flows.get(flow_id)
            fate = {} if was is None else {name: getattr(was, name) for name in kept}
            fate |= self.expected.flows.get(flow_id, {})
            self.match(flow, fate | self.count(flow, fate, before, now))

    def count(self, flow: Any, fate: Fate, before: Picture, now: Picture) -> Fate:
        """What the ends of this step mean to the failure counter; at the threshold the workflow is terminated."""
        places = {job_id: place for place, job_id in enumerate(self.expected.order)}
        ended = [
            job
            for job in sorted(now.jobs.values(), key=lambda job: places.get(job.id, -1))
            if (job.workflow_id, job.generation) == (flow.id, fate.get("generation"))
            and job.finished_at is not None
            and job.id in before.jobs
            and before.jobs[job.id].finished_at is None
        ]
        counter = failures = fate.get("consecutive_failures", 0)
        for job in ended:
            if job.reason == "succeeded":
                counter = 0
            elif job.status == "FAILED":
                counter += 1
        failed = any(job.status == "FAILED" for job in ended)
        if failed and counter >= flow.max_consecutive_job_failures_allowed and fate["status"] != "TERMINATED":
            return {"consecutive_failures": counter, "status": "TERMINATED", "next_fire_at": None}
        return {"consecutive_failures": counter} if counter != failures else {}

    # --- memory ------------------------------------------------------------------------------------------------------

    def remember(self, before: Picture, now: Picture) -> None:
        for job_id, job in now.jobs.items():
            was = before.jobs.get(job_id)
            if was is not None and was.status != job.status:
                self.stage.walked[was.status, job.status] += 1
            if job.finished_at is not None:
                self.ends[job_id] = job.status
            if not is_ready(job) and job.due_at is None:
                self.waited.pop(job_id, None)
                self.forgotten.discard(job_id)

    def check_after(self, now: Picture) -> None:
        """A job waits exactly as long as its upstreams are live, and ends with the first that ends badly."""
        for job_id, upstreams in self.after.items():
            job = now.jobs.get(job_id)
            if job is None:
                continue
            live = {upstream for upstream in upstreams if upstream not in self.ends}
            badly = [upstream for upstream in upstreams if self.ends.get(upstream, "COMPLETED") != "COMPLETED"]
            if job.finished_at is not None:
                assert job.reason != "upstream_failed" or badly
                continue
            assert not badly, f"{job_id} lives on, though {badly} ended badly"
            assert {upstream for its, upstream in now.waits if its == job_id} == live
            assert (job.reason == "blocked") == bool(live) or job.reason == "paused"

    def conflict(self, code: str, verb: Callable[[], Any]) -> None:
        """The verb is refused, for this reason."""
        with pytest.raises(Conflict) as refused:
            verb()
        assert refused.value.code == code


def is_ready(job: Any) -> bool:
    """It waits for a worker, and for nothing else."""
    return job.reason in {"ready", "dispatched"}
