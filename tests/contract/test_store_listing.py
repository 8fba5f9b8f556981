"""Listings by every filter, alone and together: what a naive look at all jobs would show, page by page."""

import itertools
import random
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from jobq.models import Job, JobFilter
from jobq.states import REASONS, Reason, Status, Trigger
from jobq.store import listing
from jobq.store.jobs import new_id
from tests.stores import Store, new_job

JOBS = 60
LIVES = [(status, reason) for status, reasons in sorted(REASONS.items()) for reason in sorted(reasons)]


@pytest.fixture
def several(store: Store) -> list[Job]:
    """Jobs of all kinds in all states, the newest first."""
    chance = random.Random(7)
    flows, parents = [new_id(), new_id()], [new_id(), new_id()]
    ids = store.add(
        *(
            new_job(
                queue=chance.choice(["one", "two"]), kind=chance.choice(["NOOP", "HEARTBEAT"]),
                trigger=chance.choice(list(Trigger)), workflow_id=chance.choice([None, *flows]),
                parent_id=chance.choice([None, *parents]), name=chance.choice(["nightly", "100% right", "a_b"]),
                tenant=chance.choice(["acme"] * 5 + ["other"]),
            )
            for _ in range(JOBS)
        )
    )  # fmt: skip
    for job_id in ids:
        status, reason = chance.choice(LIVES)
        age = chance.uniform(0, 200)
        ended = {"finished_at": -chance.uniform(0, age)} if status in {"COMPLETED", "FAILED", "CANCELED"} else {}
        if status == "RUNNING" and reason in {"fanned_out", "pausing", "paused", "dequeuing"}:
            store.execute(
                "INSERT INTO jobq_fanouts (job_id, tenant, domain, reading, read, filtered, new, updated, existing, invalid)"
                " VALUES (:id, 'acme', 'd', false, 0, 0, 0, 0, 0, 0)", id=job_id if store.dialect != "sqlite" else job_id.hex,
            )  # fmt: skip
        elif status == "RUNNING":
            ended = {"worker_id": new_id()}
        queued = {"next_send_at": 60} if status == "QUEUED" else {}
        later = {"scheduled_at": chance.uniform(-3600, 3600)} if chance.random() < 0.5 else {}
        domain = {"domain": chance.choice(["customers", "orders"])} if chance.random() < 0.5 else {}
        made = {"created_at": -age}
        store.pretend(job_id, status=status.value, reason=reason.value, **ended, **queued, **later, **domain, **made)
    return [job for job in map(store.job, reversed(ids)) if job.tenant == "acme"]


def a_filter(chance: random.Random, jobs: list[Job]) -> dict[str, Any]:
    """Up to three of all filters, with values that some job has."""
    job = chance.choice(jobs)
    at = {name: getattr(job, f"{name}_at") or job.created_at for name in ("created", "scheduled", "finished")}
    some: dict[str, Any] = {
        "statuses": frozenset({job.status, chance.choice(list(Status))}),
        "reasons": frozenset({job.reason, chance.choice(list(Reason))}),
        "kinds": frozenset({job.kind}), "queues": frozenset({job.queue, "three"}), "trigger": job.trigger,
        "workflow_id": job.workflow_id, "parent_id": job.parent_id, "domain": job.domain,
        "name_contains": chance.choice(["%", "_", "right", "nobody"]),
    }  # fmt: skip
    for name, instant in at.items():
        some[f"{name}_from"] = instant
        some[f"{name}_until"] = instant + timedelta(seconds=chance.choice([0, 600]))
    chosen = chance.sample(sorted(some), chance.randint(1, 3))
    return {name: some[name] for name in chosen}


def passes(job: Job, only: dict[str, Any]) -> bool:
    """The filter's meaning, said once more."""
    for name, value in only.items():
        if value is None:
            continue
        of, _, end = name.rpartition("_")
        if end in {"from", "until"}:
            at: datetime | None = getattr(job, f"{of}_at")
            right = at is not None and (at >= value if end == "from" else at < value)
        elif name == "name_contains":
            right = value in job.name
        elif isinstance(value, frozenset):
            right = getattr(job, {"statuses": "status"}.get(name, name[:-1])) in value
        else:
            right = getattr(job, name) == value
        if not right:
            return False
    return True


def pages(store: Store, only: dict[str, Any], limit: int, patience: float) -> list[UUID]:
    found: list[UUID] = []
    before = None
    for _ in range(10 * JOBS):
        page = store.look(
            listing.list_page, "acme", JobFilter(**only), before=before, limit=limit, patience=patience
        )  # fmt: skip
        assert len(page.jobs) <= limit
        found += [job.id for job in page.jobs]
        before = page.behind
        if before is None:
            return found
    raise AssertionError("the pages have no end")


@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_pages_show_what_a_naive_look_shows_by_any_filters(
    store: Store, several: list[Job], monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """Without patience each page ends after one step, full or not."""
    monkeypatch.setattr(listing, "_STEP", 7)
    chance = random.Random(11)
    for _, limit in zip(range(15), itertools.cycle([2, 10]), strict=False):
        only = a_filter(chance, several)
        expected = [job.id for job in several if passes(job, only)]
        assert pages(store, only, limit, patience) == expected, only


def test_totals_are_what_a_naive_look_counts(store: Store, several: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_STEP", 7)
    chance = random.Random(13)
    for _ in range(12):
        only = a_filter(chance, several)
        total = store.look(listing.count, "acme", JobFilter(**only), patience=60.0)
        assert (total.count, total.exact) == (sum(passes(job, only) for job in several), True), only


def test_a_total_above_what_is_counted_says_whether_it_is_an_estimate(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_STEP", 5)
    monkeypatch.setattr(listing, "_COUNTED", 10)
    store.enqueue(30)
    total = store.look(listing.count, "acme", JobFilter())
    assert total.count >= 10
    assert (total.exact, total.exact and total.count != 30) == (store.dialect == "sqlite", False)


def test_a_tenant_with_more_sorts_of_jobs_than_can_be_merged_still_finds_all_its_jobs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_SORTS", 2)
    listing._sorts_there_are.cache_clear()
    ids = store.add(*(new_job(queue=f"q{number % 20}") for number in range(40)))
    assert pages(store, {"kinds": frozenset({"NOOP"})}, 7, 60.0) == ids[::-1]
    assert pages(store, {"queues": frozenset({"q1", "q2", "q3"})}, 7, 60.0) == [
        job_id for number, job_id in reversed(list(enumerate(ids))) if number % 20 in {1, 2, 3}
    ]
    listing._sorts_there_are.cache_clear()


def test_a_job_that_ends_as_none_ever_did_while_it_is_looked_for_is_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sort is not among those that were just enumerated, and among the live ones it is not any more."""
    job_id = store.enqueue_one()
    look = listing._Walk.look
    ended: list[UUID] = []

    def late(walk: Any, *args: Any) -> Any:
        if not ended:
            ended.append(job_id)
            store.cancel(job_id)
        return look(walk, *args)

    monkeypatch.setattr(listing._Walk, "look", late)
    assert pages(store, {"kinds": frozenset({"NOOP"})}, 5, 60.0) == [job_id]
    assert store.state(job_id) == "CANCELED·by_user"


def test_no_reason_is_legal_in_another_status(store: Store) -> None:
    store.enqueue(2)
    only = {"statuses": frozenset({Status.FAILED}), "reasons": frozenset({Reason.SUCCEEDED})}
    assert pages(store, only, 5, 60.0) == []
    assert store.look(listing.count, "acme", JobFilter(**only)).count == 0
