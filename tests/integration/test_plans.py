"""What the hot statements touch: a few rows, found by an index, whatever the statistics believe.

A queue fills and drains faster than autovacuum looks at it. Plans made from what it saw last walked over every
finished row, and runs fell to a third. The plans here are those of the product's own connections, as executed
(auto_explain), after a fill and a drain that no ANALYZE followed.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.models import Outcome
from jobq.retry import RetryPolicy
from jobq.states import Trigger
from jobq.store import claim, jobs, materialize, overlap, promote, quotas, record, workers
from jobq.store.database import Database
from tests.fanouts import FanOuts, keys, refused

FILL = 1500
BATCH = 100
TOUCHED = 2 * BATCH
"""Rows of a table that one node of a plan may look at: those of the batch, and as many that are in flight beside it."""


@dataclass
class Recorded:
    """The plans that PostgreSQL reports for the connections of a database."""

    database: Database
    worker: UUID = field(default_factory=jobs.new_id)
    cursor: promote.Cursor = field(default_factory=promote.Cursor)
    plans: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        sa.event.listen(self.database.engine, "connect", self._explain)
        identity = workers.Identity(self.worker, "w", "h", 1, "b", "n", "s", "0", {"noop": FILL})
        self.run(lambda conn: workers.register(conn, identity, 300.0))
        self.run(lambda conn: conn.exec_driver_sql("ALTER TABLE jobq_jobs SET (autovacuum_enabled = off)"))

    def _explain(self, connection: Any, _: Any) -> None:
        connection.add_notice_handler(self._keep)
        options = {"log_min_duration": "0", "log_level": "notice", "log_format": "json", "log_analyze": "on"}
        with connection.cursor() as cursor:
            cursor.execute("LOAD 'auto_explain'")
            for name, value in {**options, "log_timing": "off"}.items():
                cursor.execute(f"SET auto_explain.{name} = '{value}'")
        connection.commit()

    def _keep(self, notice: Any) -> None:
        _, found, plan = str(notice.message_primary).partition("plan:\n")
        if found:
            self.plans.append(json.loads(plan))

    def run(self, work: Callable[[Any], Any]) -> Any:
        return self.database.run(work)

    def enqueue(self, count: int, trigger: Trigger = Trigger.MANUAL) -> None:
        new = [
            jobs.NewJob("default", "NOOP", "n", "noop", {}, 4, 3, 60.0, jobs.new_id(), trigger) for _ in range(count)
        ]
        self.run(lambda conn: jobs.enqueue(conn, new))

    def promote(self, room: int) -> list[UUID]:
        self.run(lambda conn: conn.execute(sa.text(f"UPDATE jobq_workers SET queues = '{{\"noop\": {room}}}'")))
        done: promote.Promoted = self.run(lambda conn: promote.promote(conn, {}, self.cursor))
        return done.batches.get("noop", [])

    def take(self, ids: list[UUID]) -> list[claim.Claimed]:
        taken: list[claim.Claimed] = self.run(lambda conn: claim.claim(conn, claim.Claimant(self.worker), "noop", ids))
        return taken

    def end(self, taken: list[claim.Claimed], outcome: Outcome) -> None:
        reports = [record.Report(job.id, job.attempt, outcome, job.started_at, RetryPolicy(), []) for job in taken]
        assert len(self.run(lambda conn: record.record(conn, self.worker, reports))) == len(taken)

    def drain(self) -> None:
        while ids := self.promote(BATCH):
            self.end(self.take(ids), Outcome.succeeded())

    def analyze(self) -> None:
        self.run(lambda conn: conn.exec_driver_sql("ANALYZE"))


@pytest.fixture
def recorded(postgres_url: str) -> Iterator[Recorded]:
    database = Database(postgres_url, pool_size=1)
    yield Recorded(database)
    database.close()


def never(recorded: Recorded) -> None:
    """No statistics at all, as right after the installation."""
    recorded.enqueue(FILL)
    recorded.drain()


def while_full(recorded: Recorded) -> None:
    recorded.enqueue(FILL)
    recorded.analyze()
    recorded.drain()


def while_queued(recorded: Recorded) -> None:
    """The worst moment: every row there was is QUEUED or RUNNING."""
    recorded.enqueue(2 * BATCH)
    ids = recorded.promote(2 * BATCH)
    taken = recorded.take(ids[:BATCH])
    recorded.analyze()
    recorded.end(taken, Outcome.succeeded())
    recorded.end(recorded.take(ids[BATCH:]), Outcome.succeeded())
    recorded.enqueue(FILL)
    recorded.drain()


def after_the_drain(recorded: Recorded) -> None:
    """No row is QUEUED, say the statistics: any index over QUEUED rows looks like the way to find one."""
    recorded.enqueue(FILL)
    recorded.drain()
    recorded.analyze()


@pytest.mark.parametrize("analyzed", [never, while_full, while_queued, after_the_drain])
def test_a_statement_of_the_hot_path_touches_only_its_own_rows(
    recorded: Recorded, analyzed: Callable[[Recorded], None]
) -> None:
    analyzed(recorded)
    recorded.enqueue(2 * BATCH)
    recorded.plans.clear()
    ids = recorded.promote(BATCH)
    taken = recorded.take(ids[: BATCH // 2])
    recorded.end(taken[:-10], Outcome.succeeded())
    recorded.end(taken[-10:], Outcome.failed("no"))
    recorded.run(lambda conn: claim.claim_waiting(conn, claim.Claimant(recorded.worker), "noop", 10))
    recorded.run(lambda conn: workers.renew(conn, recorded.worker, 30.0, None))
    walks = list(walked(recorded.plans))
    assert len(recorded.plans) >= 10, "nothing was explained"
    assert walks == []


@pytest.mark.parametrize("analyzed", [never, while_full, while_queued, after_the_drain])
def test_a_look_that_finds_nothing_walks_past_nothing(recorded: Recorded, analyzed: Callable[[Recorded], None]) -> None:
    analyzed(recorded)
    recorded.plans.clear()
    recorded.run(lambda conn: promote.promote(conn, {}, recorded.cursor))
    recorded.run(promote.unclaimed)
    recorded.run(promote.seconds_to_next_due)
    recorded.run(promote.wake)
    recorded.run(overlap.release_blocked)
    recorded.run(materialize.materialize)
    recorded.run(lambda conn: workers.release_lost(conn, reattach_grace=300.0))
    recorded.run(lambda conn: workers.adopt(conn, recorded.worker, "here", 50))
    recorded.run(lambda conn: quotas.count_waiting(conn, "default", BATCH))
    recorded.run(lambda conn: quotas.count_running(conn, "default"))
    walks = list(walked(recorded.plans))
    assert len(recorded.plans) >= 8, "nothing was explained"
    assert walks == []


def walked(plans: list[dict[str, Any]]) -> Iterator[str]:
    """The nodes that looked at more rows of a table than a batch has, each as one line."""
    for plan in plans:
        for node in nodes(plan["Plan"]):
            per_loop = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) if "Relation Name" in node else 0
            if per_loop * node["Actual Loops"] > TOUCHED:
                where = f"{node['Node Type']} {node.get('Index Name', '')} on {node['Relation Name']}"
                yield f"{where}: {per_loop} rows x {node['Actual Loops']}: {plan['Query Text'][:300]}"


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


# --- fan-outs ---------------------------------------------------------------------------------------------------------


def crowd(recorded: Recorded) -> tuple[FanOuts, UUID]:
    """Many entities that a target has, many children that have ended, and as many that wait in a paused fan-out."""
    for table in ("entities", "watermarks", "fanouts", "fanout_targets", "fanout_deltas", "after"):
        name = f"ALTER TABLE jobq_{table} SET (autovacuum_enabled = off)"
        recorded.run(lambda conn, name=name: conn.exec_driver_sql(name))
    store = FanOuts(recorded.database)
    worker = store.worker({"sync": 10, "replication": BATCH}, lease=300.0)
    store.fanned_out(worker, keys(FILL))
    store.finish_all(worker)
    held = store.fanned_out(
        worker, [f"x{key}" for key in keys(FILL)], [{"name": "crm"}, {"name": "erp", "after": ["crm"]}]
    )
    store.pause(held.id)
    store.settle()
    return store, worker


@pytest.mark.parametrize("analyzes", [False, True])
def test_a_fan_out_touches_only_its_own_rows(recorded: Recorded, analyzes: bool) -> None:
    store, worker = crowd(recorded)
    if analyzes:
        recorded.analyze()
    recorded.plans.clear()
    sync = store.sync(worker)
    part = BATCH // 2
    assert store.added(sync, dict.fromkeys(keys(part), 2)).updated == part
    assert store.added(sync, keys(2 * part)[part:]).existing == part
    assert store.added(sync, dict.fromkeys([f"y{key}" for key in keys(part)], 1)).new == part
    assert store.added(sync, dict.fromkeys([f"x{key}" for key in keys(10)], 2)).updated == 10
    taken = store.take_children(worker, part)
    assert len(taken) == part
    assert all(child.payload is not None for child in taken)
    store.write(worker, *taken[:-10])
    store.record(worker, *(refused(child) for child in taken[-10:]))
    store.pause(sync.id)
    store.resume(sync.id)
    store.end_reading(sync)
    store.park(sync)
    store.settle()
    counts = store.counts(sync)
    walks = list(walked(recorded.plans))
    assert (counts.total, counts.completed, counts.failed) == (2 * part + 10, part - 10, 10)
    assert len(recorded.plans) >= 40, "nothing was explained"
    assert walks == []


@pytest.mark.parametrize("analyzes", [False, True])
def test_a_sync_that_waits_for_stand_ins_walks_past_no_other(recorded: Recorded, analyzes: bool) -> None:
    for table in ("fanouts", "fanout_targets", "fanout_deltas"):
        name = f"ALTER TABLE jobq_{table} SET (autovacuum_enabled = off)"
        recorded.run(lambda conn, name=name: conn.exec_driver_sql(name))
    store = FanOuts(recorded.database)
    worker = store.worker({"sync": 10, "replication": BATCH}, lease=300.0)
    several = keys(FILL)
    older = store.fanned_out(worker, several)
    newer = store.fanned_out(worker, dict.fromkeys(several, 2))
    assert store.child_states(newer) == {"CANCELED·duplicate": FILL}
    store.write(worker, *store.take_children(worker, BATCH))
    store.settle()
    if analyzes:
        recorded.analyze()
    recorded.plans.clear()
    store.settle()
    assert store.states([older.id, newer.id]) == ["RUNNING·fanned_out"] * 2
    walks = list(walked(recorded.plans))
    assert len(recorded.plans) >= 3, "nothing was explained"
    assert walks == []
