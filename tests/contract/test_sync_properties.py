"""Whatever happens to SYNCs and their children: in the end the targets have what the source has.

Random histories over the real store, with the real executors and without processes: entities come and change, SYNCs
read all or what is new, workers die at any batch and around any write, people pause and resume and retry, targets fail.
Then nothing fails any more, and one more SYNC runs.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from jobq.client import JobQ
from jobq.models import Outcome
from jobq.plugins import Context, JobRef
from jobq.retry import stored_policy
from jobq.settings import Settings
from jobq.states import Reason
from jobq.store import control, exports, workers
from jobq.store.claim import Claimed
from jobq.store.database import Database
from jobq.store.record import Report
from jobq.store.tables import metadata
from jobq.validation import parse
from tests import memory
from tests.fanouts import SLOTS, FanOuts, adds_up
from tests.memory import Killed, World
from workers.replication import ReplicationExecutor
from workers.sync import SyncExecutor

SPEC: dict[str, Any] = {
    "domain": "customers",
    "source": {"type": "memory", "config": {"world": "w"}},
    "conditions": ["value != `9`"],
    "mapping": {"id": "id", "number": "value", "active": "active", "vip": "vip"},
    "targets": [
        {"name": "crm", "type": "memory", "config": {"world": "w", "name": "crm"}, "conditions": ["active"]},
        {"name": "erp", "type": "memory", "config": {"world": "w", "name": "erp"}, "conditions": ["vip"],
         "mapping": {"key": "id", "n": "number"}, "after": ["crm"]},
    ],
    "batch_size": 2,
}  # fmt: skip
PATIENT = {"max_attempts": 50, "retry_lost": True}

faults = st.sampled_from(["ok", "ok", "ok", "unavailable", "refuse", "not now", "dies before", "dies after"])
puts = st.tuples(
    st.just("put"), st.sampled_from("abcdef"), st.sampled_from([1, 2, 3, 9]), st.booleans(), st.booleans()
)  # fmt: skip
syncs = st.tuples(st.just("sync"), st.sampled_from(["full", "incremental"]))
reads = st.tuples(st.just("read"), st.sampled_from(["ok", "dies", "pause", "put"]), st.integers(0, 3))
works = st.tuples(st.just("work"), st.lists(faults, min_size=1, max_size=6))
others = st.tuples(st.sampled_from(["pause", "resume", "settle", "retry"]))
histories = st.lists(st.one_of(puts, puts, syncs, reads, works, works, others), min_size=4, max_size=24)


class Driver:
    """Stands in for workers and the scheduler, one step at a time."""

    def __init__(self, store: FanOuts, url: str) -> None:
        self.store, self.loop = store, asyncio.Runner()
        self.settings = Settings(database_url=url)
        self.jobq = JobQ(url, tenant="acme", settings=self.settings)
        self.world = World()

    def begin(self) -> None:
        """An empty database, an empty world, and executors that know nothing."""
        with self.store.database.begin() as conn:
            for table in metadata.sorted_tables:
                if table.name not in {"jobq_installation", "jobq_rolled"}:
                    conn.execute(table.delete())
        self.world = memory.worlds["w"] = World()
        self.syncs: list[UUID] = []
        self.sync, self.replication = SyncExecutor(), ReplicationExecutor()
        for executor in (self.sync, self.replication):
            self.loop.run(executor.open(self.settings, self.store.database))

    def close(self) -> None:
        self.loop.close()
        self.jobq.close()

    # --- steps -------------------------------------------------------------------------------------------------------

    def step(self, what: str, *details: Any) -> None:
        note(f"{what} {details}")
        getattr(self, f"do_{what}")(*details)

    def do_put(self, key: str, value: int, active: bool, vip: bool) -> None:
        self.world.put(key, value=value, active=active, vip=vip)

    def do_sync(self, mode: str) -> None:
        job_id = self.store.enqueue_sync(spec={**SPEC, "mode": mode}, retry=PATIENT, max_attempts=50)
        self.syncs.append(job_id)

    def do_read(self, fault: str, at: int) -> None:
        """Every SYNC that can be read is; at its ``at``-th batch this happens."""
        worker = self.ready()
        dead = False
        for job in self.store.claim_waiting(worker, 9, "sync"):
            self.world.on_batch = self.happens(fault, at, job.id)
            dead |= not self.execute(worker, job)
        self.world.on_batch = lambda _: None
        self.bury(worker, dead=dead)

    def happens(self, fault: str, at: int, job_id: UUID) -> Any:
        def on_batch(number: int) -> None:
            if number != at:
                return
            if fault == "dies":
                raise Killed
            if fault == "pause":
                self.store.do(control.pause, None, job_id, "ann")
            elif fault == "put":
                self.world.put("a", value=4 + self.world.changes, active=True, vip=True)

        return on_batch

    def do_work(self, faults: list[str]) -> None:
        """As many children as there are faults are executed, each with its own."""
        worker = self.ready()
        dead = False
        for fault, job in zip(faults, self.store.claim_waiting(worker, len(faults), "replication"), strict=False):
            if fault == "dies before":
                dead = True
                continue
            self.world.faults = deque([fault])
            dead |= not self.execute(worker, job, forget=fault == "dies after")
        self.world.faults.clear()
        self.bury(worker, dead=dead)

    def do_settle(self) -> None:
        self.store.settle()

    def do_pause(self) -> None:
        for job_id in self.syncs[-1:]:
            if not self.store.job(job_id).finished:
                self.store.do(control.pause, None, job_id, "ann")

    def do_resume(self) -> None:
        for job_id in self.syncs:
            if not self.store.job(job_id).finished:
                self.store.do(control.resume, None, job_id, "ann")

    def do_retry(self) -> None:
        partial = [job_id for job_id in self.syncs if self.store.job(job_id).reason is Reason.PARTIAL]
        self.syncs += [self.jobq.retry(job_id).id for job_id in partial[-1:]]

    # --- workers -----------------------------------------------------------------------------------------------------

    def ready(self) -> UUID:
        """A worker, and whatever waits for its time need not wait any longer."""
        self.store.execute("UPDATE jobq_targets SET not_before = '2020-01-01T00:00:00.000000Z'")
        self.store.wake_all()
        self.store.settle()
        worker = self.store.worker(SLOTS, lease=300.0)
        self.store.promote()
        return worker

    def bury(self, worker: UUID, *, dead: bool) -> None:
        held = self.store.count("jobq_jobs", "worker_id IS NOT NULL")
        self.store.do(workers.sign_off, worker)
        released = self.store.do(workers.release_lost, reattach_grace=0.0)
        assert released == held
        assert bool(held) is dead

    def execute(self, worker: UUID, job: Claimed, *, forget: bool = False) -> bool:
        """One attempt, as a worker makes it. False: the worker died, and said nothing."""
        ref = JobRef(
            job.id, job.attempt, job.tenant, job.kind, job.name, job.queue, job.trigger, job.timeout,
            retry_of=job.retry_of, parent_id=job.parent_id, worker_id=worker, payload=job.payload,
        )  # fmt: skip
        executor: Any = self.sync if job.kind == "SYNC" else self.replication
        spec = parse(executor.kind.spec, job.spec, "/spec")
        try:
            outcome: Outcome = self.loop.run(executor.execute(spec, Context(ref)))
        except Killed:
            return False
        if forget:
            return False
        report = Report(job.id, job.attempt, outcome, job.started_at, stored_policy(job.kind, job.retry), [])
        assert self.store.record(worker, report) == {job.id}
        return True

    # --- the end -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Nothing fails any more: everything comes to its end."""
        for _ in range(60):
            if not self.store.count("jobq_jobs", "finished_at IS NULL"):
                return
            self.do_resume()
            self.do_read("ok", 0)
            self.do_work(["ok"] * 40)
            self.do_settle()
        raise AssertionError(f"something never ends: {[self.store.state(job_id) for job_id in self.syncs]}")

    def check(self) -> None:
        wanted = {key: row for key, row in self.world.records.items() if row["value"] != 9 and row["active"]}
        for key, row in wanted.items():
            entity = {"id": key, "number": row["value"], "active": True, "vip": row["vip"]}
            assert self.world.has["crm"].get(key) == entity, f"crm lacks the newest {key}"
            if row["vip"]:
                assert self.world.has["erp"].get(key) == {"key": key, "n": row["value"]}, f"erp lacks the newest {key}"
        for name, key, payload in self.world.sent:
            assert payload.get("number", payload.get("n")) != 9, f"{key} was filtered at the source"
            assert name != "crm" or payload["active"], f"{key} was filtered at crm"
        assert not self.world.overtaken, "erp was sent what crm had not got yet"
        assert self.store.count("jobq_after") == self.store.count("jobq_fanouts", "settled_at IS NULL") == 0
        assert self.store.count("jobq_fanout_deltas") == 0
        for job_id in self.syncs:
            self.check_reports(job_id)

    def check_reports(self, job_id: UUID) -> None:
        counts = self.store.counts(job_id)
        assert adds_up(counts)
        assert counts.pending == counts.queued == counts.running == 0
        found = self.store.look(exports.list_page, job_id, behind=None, limit=1000)
        assert counts.total == len(found)
        assert not [place for place, times in Counter((one.key, one.target) for one in found).items() if times > 1]
        for name, summary in counts.targets.items():
            words = Counter(str(one.status) for one in found if one.target == name)
            told = {"success": summary.success, "updated": summary.updated, "fail": summary.fail}
            told |= {"skipped": summary.skipped, "canceled": summary.canceled}
            assert told == {word: words[word] for word in told}
            unasked = summary.existing - words["existing"]
            keys = {one.key for one in found if one.target == name}
            assert 0 <= unasked <= self.store.count("jobq_entities") - len(keys), "an entity was reported twice"


@pytest.fixture(scope="module", autouse=True)
def _plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("plugin")
    sys.path.insert(0, memory.install(folder))
    yield
    sys.path.remove(str(folder))


def drive(url: str, examples: int) -> None:
    database = Database(url)
    driver = Driver(FanOuts(database), url)

    @settings(
        max_examples=examples, deadline=None, derandomize=DERANDOMIZED, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(histories, st.sampled_from(["full", "incremental"]))
    def run(history: list[tuple[Any, ...]], last: str) -> None:
        driver.begin()
        for step in history:
            driver.step(*step)
        driver.drain()
        driver.step("sync", last)
        driver.drain()
        driver.check()

    try:
        run()
    finally:
        driver.close()
        database.close()


DERANDOMIZED = True
"""A run tells of the change that was made, not of luck; search with False, and more examples."""


def test_in_the_end_the_targets_have_what_the_source_has(sqlite_url: str) -> None:
    drive(sqlite_url, 40)


def test_in_the_end_the_targets_have_it_on_postgresql_too(postgres_url: str) -> None:
    drive(postgres_url, 12)
