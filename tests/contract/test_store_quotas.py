"""What quotas are compared with is counted exactly, whatever a job waits for, and where few rows are seen."""

from datetime import timedelta
from uuid import UUID

import pytest

from jobq.models import Outcome
from jobq.store import control, quotas
from jobq.store.promote import wake
from tests.stores import Store, ahead


@pytest.fixture
def worker(store: Store) -> UUID:
    return store.worker()


def waiting(store: Store, tenant: str = "acme", most: int = 1000) -> int:
    return store.look(quotas.count_waiting, tenant, most)


def test_every_job_that_waits_is_counted_and_no_other(store: Store, worker: UUID) -> None:
    """One in each state that a job can have; beside them another tenant's."""
    running, ended, retried = store.running(worker, 3)
    store.end(worker, ended)
    store.end(worker, retried, Outcome.failed("it broke"))
    store.queued()
    store.enqueue_one()
    store.enqueue_one(queue="elsewhere")
    store.enqueue_one(scheduled_at=ahead(hours=1))
    store.enqueue_one(after=(running.id,))
    store.do(control.pause, None, store.enqueue_one(), "ann")
    store.cancel(store.enqueue_one())
    store.enqueue(7, tenant="umbrella")
    assert store.state(retried.id) == "PENDING·retrying"
    assert waiting(store) == 7
    assert waiting(store, "umbrella") == 7
    assert waiting(store, "nobody") == 0
    assert store.look(quotas.count_running, "acme") == 1
    assert store.look(quotas.count_running, "umbrella") == 0


def test_counting_stops_soon_behind_the_quota(store: Store) -> None:
    store.enqueue(50)
    assert waiting(store, most=10) == 11


def test_what_becomes_due_is_counted_once(store: Store) -> None:
    job_id = store.enqueue_one(scheduled_at=ahead(hours=1))
    store.pretend(job_id, due_at=-1)
    store.do(wake)
    assert store.state(job_id) == "PENDING·ready"
    assert waiting(store) == 1


def test_workflows_with_a_schedule_are_counted_whatever_their_status(store: Store) -> None:
    store.workflow()
    store.workflow(interval=timedelta(hours=1))
    store.workflow(cron="0 0 * * *", timezone="UTC")
    store.workflow(tenant="umbrella", interval=timedelta(hours=1))
    assert store.look(quotas.count_schedules, "acme") == 2


def test_a_quota_is_changed_field_by_field(store: Store) -> None:
    def change(values: dict[str, float | None], *defaults: str) -> dict[str, float | None]:
        return store.do(quotas.change, "acme", values, set(defaults), "ann")

    assert change({"waiting": 10, "rate": 2.5}) == {"waiting": 10, "rate": 2.5}
    assert change({"waiting": None}) == {"waiting": None, "rate": 2.5}
    assert change({}, "rate", "burst") == {"waiting": None}
    assert store.look(quotas.read, "acme") == {"waiting": None}
    assert store.look(quotas.read_all) == {"acme": {"waiting": None}}
    assert change({}, "waiting") == {}
    assert store.look(quotas.read, "acme") == store.look(quotas.read, "nobody") == {}
    store.do(control.set_tenant, "acme", "ann", limit=3)
    change({"waiting": 5})
    assert store.look(control.list_tenants)[0]["limit"] == 3, "the other settings stay"


def test_a_duplicate_waits_for_nothing(store: Store) -> None:
    store.enqueue_one(dedupe_key="k")
    store.enqueue_one(dedupe_key="k")
    assert waiting(store) == 1
