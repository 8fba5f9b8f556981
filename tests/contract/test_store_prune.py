"""Retention: what is old goes, with all that belongs to it; what is young or live stays."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.models import Outcome
from jobq.settings import Settings
from jobq.store import artifacts, jobs, listing, logs, rollup, workers
from jobq.store.claim import Claimed
from jobq.store.jobs import new_id
from jobq.store.logs import Chunk
from jobq.store.prune import EVENTS_KEPT, REQUESTS_KEPT, Kept, Position, prune, prune_all, prune_logs
from jobq.store.tables import metadata
from tests.stores import Store, failed

DAY = 86_400.0


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def run(store: Store, worker: UUID, *, days_ago: float, **fields: object) -> Claimed:
    """A job that ended so long ago and left traces wherever a job can."""
    job = store.running_one(worker, **fields)
    store.do(logs.append, [Chunk(job.id, 1, 1, 2, [(0, "stdout", "x")])])
    store.do(artifacts.put, job.id, 1, {"report.txt": b"x"})
    store.cancel(job.id)
    store.end(worker, job, Outcome.succeeded({"a": 1}))
    store.pretend(job.id, finished_at=-days_ago * DAY)
    return job


def pruned(store: Store, days: float = 30, limit: int = 1000, **kept: float) -> int:
    """One batch from the beginning: how many jobs it deleted."""
    store.do(rollup.roll_up, lag=0.0)
    return store.do(prune, replace(Kept.alike(days * DAY), **kept), limit).jobs


def traces(store: Store, job_id: UUID) -> set[str]:
    """The tables in which the job's id occurs, in whatever column and whatever form."""
    found = set()
    forms = [str(job_id), job_id.hex]
    with store.database.read() as conn:
        for table in metadata.sorted_tables:
            for column in table.columns:
                text = sa.cast(column, sa.Text)
                if conn.scalar(sa.select(sa.func.count()).where(sa.or_(*(text.contains(form) for form in forms)))):
                    found.add(table.name)
    return found


def test_a_job_goes_with_everything_that_belongs_to_it(store: Store, worker: UUID) -> None:
    job = run(store, worker, days_ago=31)
    assert traces(store, job.id) == {
        "jobq_jobs", "jobq_job_data", "jobq_attempts", "jobq_job_logs", "jobq_artifacts", "jobq_events",
    }  # fmt: skip
    assert pruned(store) == 1
    assert traces(store, job.id) == {"jobq_events"}, "what people did to it stays on record"


def test_what_ended_lately_and_what_has_not_ended_stays(store: Store, worker: UUID) -> None:
    young = run(store, worker, days_ago=29)
    live = store.enqueue_one()
    store.pretend(live, created_at=-400 * DAY)
    before = traces(store, young.id)
    assert pruned(store) == 0
    assert traces(store, young.id) == before
    assert store.state(live) == "PENDING·ready"


def test_other_jobs_keep_what_is_theirs(store: Store, worker: UUID) -> None:
    old, young = run(store, worker, days_ago=31), run(store, worker, days_ago=1)
    before = traces(store, young.id)
    assert pruned(store) == 1
    assert (traces(store, old.id), traces(store, young.id)) == ({"jobq_events"}, before)


def test_the_retention_of_a_workflow_is_its_own(store: Store, worker: UUID) -> None:
    brief, long = store.workflow(retention=timedelta(days=1)), store.workflow(retention=timedelta(days=365))
    usual = store.workflow()
    ended = {
        flow.id: run(store, worker, days_ago=days, workflow_id=flow.id, generation=1).id
        for flow, days in ((brief, 2), (long, 100), (usual, 2))
    }
    assert pruned(store, days=30) == 1
    assert traces(store, ended[brief.id]) == {"jobq_events"}
    assert "jobq_jobs" in traces(store, ended[long.id])
    assert store.state(ended[usual.id]) == "COMPLETED·succeeded"


def test_jobs_of_a_deleted_workflow_follow_the_retention_of_the_installation(store: Store, worker: UUID) -> None:
    run(store, worker, days_ago=31, workflow_id=new_id(), generation=1)
    assert pruned(store) == 1


def test_pruning_goes_in_batches_oldest_first(store: Store, worker: UUID) -> None:
    ids = [run(store, worker, days_ago=31).id for _ in range(5)]
    assert pruned(store, limit=2) == 2
    assert store.look(listing.list_page, None, listing.JobFilter(), before=ids[2], limit=9).jobs == []
    assert [pruned(store, limit=2) for _ in range(3)] == [2, 1, 0]


def test_what_people_did_is_on_record_for_a_time_of_its_own(store: Store, worker: UUID) -> None:
    store.workflow()
    run(store, worker, days_ago=31)
    assert pruned(store) == 1
    store.do(prune, Kept.alike(-60.0))
    assert store.count("jobq_events") == 2
    assert EVENTS_KEPT == 400 * DAY
    store.do(prune, replace(Kept.alike(30 * DAY), events=-60.0))
    assert store.count("jobq_events") == 0


def test_idempotency_keys_are_remembered_for_a_day_and_their_jobs_as_long(store: Store, worker: UUID) -> None:
    job, other = run(store, worker, days_ago=0.5), run(store, worker, days_ago=0.5)
    store.do(jobs.remember_request, "acme", "key", "hash", job.id)
    assert pruned(store, days=0.1) == 1
    assert traces(store, other.id) == {"jobq_events"}
    assert store.do(jobs.remember_request, "acme", "key", "hash", new_id()) == job.id
    assert store.state(job.id) == "COMPLETED·succeeded"
    assert REQUESTS_KEPT == DAY
    at = store.look(workers.database_now) - timedelta(days=1, seconds=5)
    with store.database.begin() as conn:
        conn.execute(sa.update(metadata.tables["jobq_requests"]).values(created_at=at))
    assert pruned(store, days=0.1) == 1
    assert store.do(jobs.remember_request, "acme", "key", "hash", new_id()) is None


def test_each_status_has_a_retention_of_its_own(store: Store, worker: UUID) -> None:
    completed, canceled = run(store, worker, days_ago=5), store.enqueue_one()
    broken = store.running_one(worker, max_attempts=1)
    store.end(worker, broken, failed())
    store.cancel(canceled)
    for job_id in (broken.id, canceled):
        store.pretend(job_id, finished_at=-5 * DAY)
    assert store.states([broken.id, canceled]) == ["FAILED·error", "CANCELED·by_user"]
    for kept, gone in (
        ({"completed": 4 * DAY}, completed.id), ({"canceled": 4 * DAY}, canceled), ({"failed": 4 * DAY}, broken.id),
    ):  # fmt: skip
        assert pruned(store, **kept) == 1
        assert traces(store, gone) <= {"jobq_events"}


def test_settings_say_how_long_things_are_kept() -> None:
    usual = Kept.by(Settings(retention="P10D", retention_failed="P90D", retention_logs="P3D"))
    assert usual == Kept(10 * DAY, 90 * DAY, 10 * DAY, 3 * DAY, 730 * DAY)


def test_a_batch_passes_what_is_kept_longer_and_the_next_one_goes_on_there(
    store: Store, worker: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobq.store.prune._LOOKED_AT", 3)
    long = store.workflow(retention=timedelta(days=365))
    for _ in range(7):
        run(store, worker, days_ago=40, workflow_id=long.id, generation=1)
    due = [run(store, worker, days_ago=35).id for _ in range(4)]
    store.do(rollup.roll_up, lag=0.0)
    behind: Position | None = None
    deleted = []
    for _ in range(4):
        done = store.do(prune, Kept.alike(30 * DAY), 1000, behind)
        deleted.append(done.jobs)
        behind = done.behind
    assert (deleted, behind) == ([0, 0, 2, 2], None)
    assert all(traces(store, job_id) == {"jobq_events"} for job_id in due)


def test_logs_may_go_before_their_jobs(store: Store, worker: UUID) -> None:
    old, young = run(store, worker, days_ago=5), run(store, worker, days_ago=1)
    assert prune_all(store.database, Kept.alike(30 * DAY)) == 0
    assert store.count("jobq_job_logs") == 2
    store.do(rollup.roll_up, lag=0.0)
    behind = store.do(prune_logs, 3 * DAY, None)
    assert behind is not None
    assert traces(store, old.id) >= {"jobq_jobs", "jobq_attempts"}
    assert "jobq_job_logs" not in traces(store, old.id)
    assert "jobq_job_logs" in traces(store, young.id)
    assert store.do(prune_logs, 3 * DAY, behind) == behind
    assert prune_all(store.database, replace(Kept.alike(30 * DAY), logs=0.5 * DAY)) == 0
    assert store.count("jobq_job_logs") == 0


def test_rollups_have_a_retention_of_their_own(store: Store, worker: UUID) -> None:
    for days_ago in (800, 40):
        run(store, worker, days_ago=days_ago)
    assert pruned(store) == 2
    for _ in range(3):
        pruned(store)
    left = store.look(lambda conn: conn.scalars(sa.select(metadata.tables["jobq_rollups"].c.start)).all())
    assert {(store.look(workers.database_now) - start).days for start in left} <= {39, 40, 41}
    assert left


def test_dead_workers_go_after_the_retention_unless_they_still_hold_jobs(store: Store, worker: UUID) -> None:
    holding, empty = store.worker(), store.worker()
    store.running_one(holding)
    store.do(workers.declare_dead, [holding, empty])
    at = store.look(workers.database_now) - timedelta(days=31)
    with store.database.begin() as conn:
        conn.execute(
            sa.update(metadata.tables["jobq_workers"]).values(dead_at=at).where(sa.text("dead_at IS NOT NULL"))
        )
    pruned(store)
    assert {row.id for row in store.look(workers.list_workers, everything=True)} == {worker, holding}


def test_schedulers_that_were_not_seen_for_an_hour_are_forgotten(store: Store) -> None:
    store.do(workers.scheduler_seen, new_id(), "here:1", "0.1")
    pruned(store)
    assert store.count("jobq_schedulers") == 1
    at = store.look(workers.database_now) - timedelta(hours=2)
    with store.database.begin() as conn:
        conn.execute(sa.update(metadata.tables["jobq_schedulers"]).values(renewed_at=at))
    pruned(store)
    assert store.count("jobq_schedulers") == 0
