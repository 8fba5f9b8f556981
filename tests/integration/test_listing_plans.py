"""Pages and totals look at a few rows, whatever the filter, however many jobs there are: the plans, as executed."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from jobq.models import JobFilter
from jobq.states import Reason, Status, Trigger
from jobq.store import listing
from jobq.store.database import Database
from tests import services
from tests.crowd import PARENT, TENANT, fill
from tests.integration.test_plans import Recorded, nodes

MANY = 100_000
NOW = datetime.now(UTC)
FAILED = frozenset({Status.FAILED})
FLOW = UUID(int=3)

FILTERS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "jobq_jobs_list_ended"),
    "status": ({"statuses": FAILED}, "jobq_jobs_list_ended"),
    "a live status": ({"statuses": frozenset({Status.RUNNING})}, "jobq_jobs_of_worker"),
    "another live status": ({"statuses": frozenset({Status.PENDING})}, "jobq_jobs_list_live"),
    "reason": ({"reasons": frozenset({Reason.TIMED_OUT})}, "jobq_jobs_list_ended"),
    "kind": ({"kinds": frozenset({"SYNC"})}, "jobq_jobs_list_ended"),
    "many kinds": ({"kinds": frozenset({"HEARTBEAT", "REPLICATION"})}, "jobq_jobs_list_ended"),
    "queue": ({"queues": frozenset({"rare"})}, "jobq_jobs_list_ended"),
    "trigger": ({"trigger": Trigger.MANUAL}, "jobq_jobs_list_ended"),
    "workflow": ({"workflow_id": FLOW}, "jobq_jobs_list_by_workflow"),
    "a workflow's failures": ({"workflow_id": FLOW, "statuses": FAILED}, "jobq_jobs_odd_of_workflow"),
    "parent": ({"parent_id": PARENT}, "jobq_jobs_list_by_parent"),
    "a parent's failures": ({"parent_id": PARENT, "statuses": FAILED}, "jobq_jobs_odd_of_parent"),
    "domain": ({"domain": "orders"}, "jobq_jobs_list_by_domain"),
    "created": ({"created_from": NOW - timedelta(hours=3), "created_until": NOW - timedelta(hours=2.99)}, "jobq_jobs_list_ended"),
    "finished": ({"finished_from": NOW - timedelta(hours=3), "finished_until": NOW - timedelta(hours=2.99)}, "jobq_jobs_finished"),
    "scheduled": ({"scheduled_from": NOW - timedelta(days=9)}, "jobq_jobs_list_by_schedule"),
    "name and status": ({"name_contains": "needle", "statuses": FAILED}, "jobq_jobs_list_ended"),
}  # fmt: skip
TOUCHED = 5_000
"""Rows that a page may look at: the 2,000 live ones, or those of five minutes (by which clocks may differ), twice each."""


@pytest.fixture(scope="module", params=[MANY, pytest.param(1_000_000, marks=pytest.mark.chaos)])
def crowded(
    request: pytest.FixtureRequest, postgres_server: services.Postgres, postgres_template: str
) -> Iterator[Recorded]:
    """Many jobs in a database that tells its plans."""
    name = postgres_server.create(postgres_template)
    fill(postgres_server.url(name), request.param)
    database = Database(postgres_server.url(name), pool_size=1)
    yield Recorded(database)
    database.close()
    postgres_server.drop(name)


def touched(plans: list[dict[str, Any]]) -> int:
    """Rows of tables and indexes that the plans looked at, together."""
    return sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for plan in plans
        for node in nodes(plan["Plan"])
        if "Relation Name" in node and "Actual Rows" in node
    )


def indexes(plans: list[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for plan in plans for node in nodes(plan["Plan"]) if "Index Name" in node}


@pytest.mark.parametrize("name", FILTERS)
def test_a_page_looks_at_a_few_rows_whatever_the_filter(crowded: Recorded, name: str) -> None:
    only, index = FILTERS[name]
    crowded.plans.clear()
    page = crowded.run(lambda conn: listing.list_page(conn, TENANT, JobFilter(**only), before=None, limit=20))
    assert len(page.jobs) == 20 or page.behind is None, "it gave up"
    assert page.jobs or name in {"name and status", "a workflow's failures"}
    assert index in indexes(crowded.plans)
    assert touched(crowded.plans) <= TOUCHED
    crowded.plans.clear()
    later = crowded.run(
        lambda conn: listing.list_page(conn, TENANT, JobFilter(**only), before=page.behind or UUID(int=9), limit=20)
    )
    assert not {job.id for job in later.jobs} & {job.id for job in page.jobs}
    assert touched(crowded.plans) <= TOUCHED


def test_a_text_that_is_rare_is_looked_for_a_while_and_then_from_there_on(crowded: Recorded) -> None:
    only, before, found, pages = JobFilter(name_contains="needle"), None, 0, 0
    while pages == 0 or before is not None:
        page = crowded.run(
            lambda conn, before=before: listing.list_page(conn, TENANT, only, before=before, limit=20, patience=0.02)
        )
        found, before, pages = found + len(page.jobs), page.behind, pages + 1
    assert (found, pages > 2) == (crowded.run(_needles), True)


def _needles(conn: Any) -> int:
    return int(conn.exec_driver_sql("SELECT count(*) FROM jobq_jobs WHERE position('needle' IN name) > 0").scalar_one())


def test_a_total_is_exact_for_a_few_and_an_estimate_for_many(crowded: Recorded) -> None:
    few = crowded.run(lambda conn: listing.count(conn, TENANT, JobFilter(statuses=FAILED)))
    assert few.exact
    assert few.count == len(
        crowded.run(
            lambda conn: listing.list_page(conn, TENANT, JobFilter(statuses=FAILED), before=None, limit=200)
        ).jobs
    )
    crowded.plans.clear()
    many = crowded.run(lambda conn: listing.count(conn, TENANT, JobFilter(kinds=frozenset({"REPLICATION"}))))
    assert touched(crowded.plans) < 60_000
    exact = crowded.run(
        lambda conn: conn.exec_driver_sql("SELECT count(*) FROM jobq_jobs WHERE kind = 'REPLICATION'").scalar_one()
    )
    assert not many.exact
    assert many.count == pytest.approx(exact, rel=0.1)
