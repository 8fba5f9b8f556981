"""Retention: what is old goes, with all that belongs to it; what is young or live stays."""

from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.models import Outcome
from jobq.store import artifacts, jobs, logs, workers
from jobq.store.claim import Claimed
from jobq.store.jobs import new_id
from jobq.store.logs import Chunk
from jobq.store.prune import EVENTS_KEPT, REQUESTS_KEPT, prune
from jobq.store.tables import metadata
from tests.stores import Store

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


def pruned(store: Store, days: float = 30, limit: int = 1000) -> int:
    return store.do(prune, days * DAY, limit)


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
    assert store.look(jobs.list_page, None, jobs.JobFilter(), before=ids[2], limit=9) == []
    assert [pruned(store, limit=2) for _ in range(3)] == [2, 1, 0]


def test_what_people_did_is_on_record_for_a_time_of_its_own(store: Store, worker: UUID) -> None:
    store.workflow()
    run(store, worker, days_ago=31)
    assert pruned(store) == 1
    store.do(prune, -60.0)
    assert store.count("jobq_events") == 2
    assert EVENTS_KEPT == 400 * DAY
    store.do(lambda conn: prune(conn, 30 * DAY, events_kept=-60.0))
    assert store.count("jobq_events") == 0


def test_idempotency_keys_are_remembered_for_a_day_also_longer_than_their_job(store: Store, worker: UUID) -> None:
    job = run(store, worker, days_ago=0.5)
    store.do(jobs.remember_request, "acme", "key", "hash", job.id)
    assert pruned(store, days=0.1) == 1
    assert store.do(jobs.remember_request, "acme", "key", "hash", new_id()) == job.id
    assert REQUESTS_KEPT == DAY
    at = store.look(workers.database_now) - timedelta(days=1, seconds=5)
    with store.database.begin() as conn:
        conn.execute(sa.update(metadata.tables["jobq_requests"]).values(created_at=at))
    pruned(store)
    assert store.do(jobs.remember_request, "acme", "key", "hash", new_id()) is None


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
